//! A tenant and a provider, step by step.

use std::time::Duration;

use sluice_metering::{
    Channel, Counts, Direction, Gate, Payee, PayeeEvent, Payer, PayerEvent, Permit, Reason,
    RelayBudget, RelayFlow, StreamIndex, StreamState, VoucherRecord,
};
use sluice_proto::Amount;
use sluice_proto::wire::pay::pay_datagram::Kind;

use crate::support::{WINDOW, decode, drain_payer, pair, price, purse, settle, terms};

const A: StreamIndex = StreamIndex(1);
const QUARTER: u64 = WINDOW / 4;

fn granted(permit: Permit) -> u64 {
    match permit {
        Permit::Granted(n) => n,
        Permit::Wait(reason, _) => panic!("waits: {reason}"),
    }
}

#[test]
fn a_quarter_window_that_was_read_is_signed_made_durable_and_only_then_sent() {
    let (mut payer, _, now) = pair();
    payer.handle_read(A, QUARTER - 1, now);
    assert_eq!((payer.poll_event(), payer.poll_transmit(now)), (None, None));
    payer.handle_read(A, 1, now);
    let Some(PayerEvent::Persist { seq, record }) = payer.poll_event() else {
        panic!("a voucher is due")
    };
    assert_eq!(record.counts, Counts { up: 0, down: QUARTER });
    assert_eq!(record.amount, Amount(1000 + u128::from(QUARTER)));
    assert_eq!(payer.poll_transmit(now), None, "not before the ledger has it");
    payer.handle_persisted(seq, now);
    assert!(matches!(decode(&payer.poll_transmit(now).expect("sent")), Kind::Voucher(_)));
    assert_eq!(payer.poll_transmit(now), None, "once");
}

#[test]
fn the_ledger_does_not_hold_up_the_next_quarters() {
    let (mut payer, _, now) = pair();
    for _ in 0..3 {
        payer.handle_read(A, QUARTER, now);
    }
    let seqs: Vec<_> = std::iter::from_fn(|| payer.poll_event())
        .map(|e| match e {
            PayerEvent::Persist { seq, .. } => seq,
            other @ (PayerEvent::Lie(_) | PayerEvent::DepositExhausted { .. }) => {
                panic!("{other:?}")
            }
        })
        .collect();
    assert_eq!(seqs.len(), 3);
    payer.handle_persisted(seqs[2], now);
    let Kind::Voucher(voucher) = decode(&payer.poll_transmit(now).expect("sent")) else {
        panic!("a voucher")
    };
    let record = VoucherRecord::verify(&terms(price()), Some(&channel()), &voucher);
    assert_eq!(record.expect("holds").counts.down, 3 * QUARTER, "the newest alone is sent");
}

fn channel() -> Channel {
    purse(1 << 60, 1000).channel
}

#[test]
fn a_durable_voucher_opens_the_window_and_is_acknowledged() {
    let (mut payer, mut payee, now) = pair();
    payee.handle_opened(A);
    let first = granted(payee.permit(A, Direction::Down, WINDOW, now));
    assert_eq!(first, WINDOW.div_ceil(3), "a third of the window, nothing being known");
    let mut sent = first;
    while let Permit::Granted(n) = payee.permit(A, Direction::Down, WINDOW, now) {
        sent += n;
    }
    assert!((QUARTER..WINDOW / 2).contains(&sent), "{sent}");
    payer.handle_read(A, sent, now);
    let (out, _) = drain_payer(&mut payer, now);
    payee.handle_datagram(&out[0], now);
    let Some(PayeeEvent::Persist { seq, record }) = payee.poll_event() else {
        panic!("the voucher holds")
    };
    assert_eq!((payee.unpaid(), payee.poll_transmit(now)), (sent, None), "it is not durable yet");
    payee.handle_durable(seq);
    assert_eq!((payee.unpaid(), payee.paid(), payee.amount()), (0, record.counts, record.amount));
    assert_eq!(payee.poll_event(), Some(PayeeEvent::Writable), "whoever waited is woken");
    let ack = payee.poll_transmit(now).expect("acknowledged");
    payer.handle_datagram(&ack, now);
    assert!(payer.is_settled());
    // Lost, and so repeated: acknowledged again, and nothing else.
    payee.handle_datagram(&out[0], now);
    assert_eq!((payee.poll_event(), payee.poll_transmit(now)), (None, Some(ack)));
}

#[test]
fn a_voucher_is_repeated_until_it_is_acknowledged() {
    let (mut payer, _, now) = pair();
    payer.handle_pto(Duration::from_millis(70));
    payer.handle_read(A, QUARTER, now);
    let (first, _) = drain_payer(&mut payer, now);
    let (at, why) = payer.poll_timeout().expect("it repeats");
    assert_eq!((at, why), (now + Duration::from_millis(140), "repeat the newest voucher"));
    payer.handle_timeout(at);
    assert_eq!(drain_payer(&mut payer, at).0, first);
}

#[test]
fn what_is_left_is_settled_at_a_flush_or_after_thirty_seconds() {
    let (mut payer, _, now) = pair();
    payer.handle_read(A, 10, now);
    let (at, why) = payer.poll_timeout().expect("it settles");
    assert_eq!((at, why), (now + Duration::from_secs(30), "settle after silence"));
    payer.handle_timeout(at);
    assert_eq!((drain_payer(&mut payer, at).0.len(), payer.stated().down), (1, 10));
    payer.handle_read(A, 5, at);
    payer.flush(at);
    assert_eq!(payer.stated().down, 15);
}

#[test]
fn a_claim_is_answered_at_once_and_with_all_that_is_owed() {
    let (mut payer, mut payee, now) = pair();
    payer.handle_written(QUARTER, now);
    payer.handle_read(A, 7, now);
    payee.handle_opened(A);
    assert_eq!(granted(payee.permit(A, Direction::Down, 7, now)), 7);
    assert_eq!(granted(payee.permit(A, Direction::Up, QUARTER, now)), QUARTER);
    payee.handle_read(QUARTER, now);
    settle(&mut payer, &mut payee, now);
    assert_eq!(payee.paid(), Counts { up: QUARTER, down: 7 });
}

#[test]
fn a_blocked_payee_asks_and_so_gets_paid_before_a_quarter_is_read() {
    let (mut payer, mut payee, now) = pair();
    // Ninety readers hold a little each; each has read all it got.
    for n in 0..90 {
        let stream = StreamIndex(n);
        payee.handle_opened(stream);
        if let Permit::Granted(got) = payee.permit(stream, Direction::Down, 1000, now) {
            payer.handle_read(stream, got, now);
        }
    }
    assert!(payer.stated() == Counts::default(), "less than a quarter is owed");
    while let Permit::Granted(_) = payee.permit(A, Direction::Down, WINDOW, now) {}
    let (at, why) = payee.poll_timeout().expect("it asks");
    assert_eq!(why, "ask for a statement");
    payee.handle_timeout(at);
    settle(&mut payer, &mut payee, at);
    assert_eq!(payee.paid().down, 90 * 1000);
    // 64 positions fit one statement; the others follow.
    let later = at + Duration::from_secs(1);
    payee.handle_timeout(later);
    settle(&mut payer, &mut payee, later);
    assert_eq!(payer.owed(), 0);
}

#[test]
fn the_gap_of_a_reset_stream_is_written_off() {
    let (mut payer, mut payee, now) = pair();
    payee.handle_opened(A);
    let sent = granted(payee.permit(A, Direction::Down, 80_000, now));
    payer.handle_read(A, 30_000, now);
    payer.handle_closed(A, StreamState::Reset, now);
    payee.handle_closed(A);
    payer.flush(now);
    settle(&mut payer, &mut payee, now);
    assert_eq!((payee.unpaid(), payee.paid().down), (0, 30_000));
    assert!(payee.is_settled() && sent > 30_000);
}

#[test]
fn what_may_be_lost_to_resets_is_bounded() {
    let (mut payer, mut payee, now) = pair();
    let (mut taken, mut time) = (0, now);
    for n in 0..100 {
        let stream = StreamIndex(n);
        payee.handle_opened(stream);
        while let Permit::Granted(got) = payee.permit(stream, Direction::Down, WINDOW, time) {
            taken += got;
        }
        // It reads all, and says that it read nothing.
        payer.handle_closed(stream, StreamState::Reset, time);
        payer.flush(time);
        settle(&mut payer, &mut payee, time);
        time += Duration::from_millis(20);
    }
    assert!(taken > 4 * WINDOW && taken <= 5 * WINDOW, "{taken} bytes for nothing");
    assert_eq!(
        payee.permit(StreamIndex(1000), Direction::Down, 1, time),
        Permit::Wait(Reason::Closed, None)
    );
    payee.handle_opened(StreamIndex(1000));
    let permit = payee.permit(StreamIndex(1000), Direction::Down, 1, time);
    assert_eq!(permit, Permit::Wait(Reason::Losses, None));
}

#[test]
fn the_deposit_is_never_exceeded_and_a_top_up_goes_on() {
    let purse = purse(100_000, 0);
    let channel = purse.channel;
    let (_, _, now) = pair();
    let mut payer = Payer::new(terms(price()), Some(purse), 1, None);
    let mut payee = Payee::new(terms(price()), Some(channel), 1, None);
    payee.handle_opened(A);
    let mut given = 0;
    let wait = loop {
        match payee.permit(A, Direction::Down, 30_000, now) {
            Permit::Granted(n) => given += n,
            wait @ Permit::Wait(..) => break wait,
        }
    };
    assert_eq!(wait, Permit::Wait(Reason::Deposit, None));
    assert!((100_000 - 4096..=100_000).contains(&given), "{given}: what the deposit covers");
    payer.handle_read(A, QUARTER, now);
    let (out, events) = drain_payer(&mut payer, now);
    let (due, deposit) = (Amount(u128::from(QUARTER)), Amount(100_000));
    assert_eq!((out, events), (vec![], vec![PayerEvent::DepositExhausted { due, deposit }]));
    payer.handle_read(A, 1, now);
    assert_eq!(drain_payer(&mut payer, now), (vec![], vec![]), "said once");
    payer.handle_deposit(Amount(200_000), now);
    assert_eq!(drain_payer(&mut payer, now).0.len(), 1);
    payee.handle_deposit(Amount(200_000));
    assert!(granted(payee.permit(A, Direction::Down, 50_000, now)) > 0);
}

#[test]
fn starter_bytes_are_given_before_the_first_voucher_and_the_window_after_it() {
    let mut terms = terms(price());
    terms.starter_bytes = 1 << 20;
    let (_, _, now) = pair();
    let mut payee = Payee::new(terms, Some(channel()), 1, None);
    assert_eq!(payee.window(), WINDOW + (1 << 20));
    let mut sent = 0;
    for n in 0..50 {
        payee.handle_opened(StreamIndex(n));
        while let Permit::Granted(n) = payee.permit(StreamIndex(n), Direction::Up, 65536, now) {
            payee.handle_read(n, now);
            sent += n;
        }
    }
    assert_eq!(sent, WINDOW + (1 << 20));
}

#[test]
fn a_reader_fills_seven_eighths_of_the_window_and_leaves_others_the_rest_when_it_pauses() {
    let (mut payer, mut payee, now) = pair();
    payee.handle_opened(A);
    for _ in 0..2 {
        let sent = granted(payee.permit(A, Direction::Down, QUARTER, now));
        assert_eq!(sent, QUARTER);
        payer.handle_read(A, sent, now);
        settle(&mut payer, &mut payee, now);
    }
    let fill = |payee: &mut Payee, stream| {
        let permits = std::iter::from_fn(|| Some(payee.permit(stream, Direction::Down, 4096, now)));
        permits.map_while(|p| if let Permit::Granted(n) = p { Some(n) } else { None }).sum::<u64>()
    };
    assert_eq!(fill(&mut payee, A), WINDOW - WINDOW / 8);
    // Each that pauses leaves the next one its part of what is left.
    let shares = [2, 3, 4].map(|number| {
        payee.handle_opened(StreamIndex(number));
        fill(&mut payee, StreamIndex(number))
    });
    assert_eq!(shares, [16, 40, 80].map(|part| WINDOW.div_ceil(part)));
}

#[test]
fn what_quic_did_not_take_is_given_back() {
    let (_, mut payee, now) = pair();
    payee.handle_opened(A);
    let n = granted(payee.permit(A, Direction::Down, 50_000, now));
    payee.refund(A, Direction::Down, n);
    assert_eq!((payee.unpaid(), payee.counted().down), (0, 0));
    assert_eq!(granted(payee.permit(A, Direction::Down, 50_000, now)), n);
    assert_eq!(payee.unpaid_max(), n);
}

#[test]
fn the_relays_window_holds_bytes_back_until_its_acknowledgement() {
    let (_, payee, now) = pair();
    let mut gate = Gate::new(payee);
    gate.payee_mut().handle_opened(A);
    let budget = RelayBudget::new(20_000);
    let flow = RelayFlow::new(budget.clone());
    gate.set_relay(Some(flow.clone()));
    let first = granted(gate.permit(A, Direction::Down, 65_536, now));
    assert!((18_000..20_000).contains(&first), "{first} and its headers fit");
    let wait = gate.permit(A, Direction::Down, 65_536, now);
    assert!(matches!(wait, Permit::Granted(0..200) | Permit::Wait(Reason::Relay, Some(_))));
    flow.count_sent(20_000);
    let Permit::Wait(Reason::Relay, _) = gate.permit(A, Direction::Down, 65_536, now) else {
        panic!("frames use the budget up")
    };
    budget.set_limit(40_000);
    assert!(granted(gate.permit(A, Direction::Down, 10_000, now)) >= 9_000);
    gate.set_relay(None);
    assert_eq!(granted(gate.permit(A, Direction::Down, 10_000, now)), 10_000, "a direct path");
}
