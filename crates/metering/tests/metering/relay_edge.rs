//! A holder and its relay.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_metering::{
    Counts, HolderMeter, Lie, PayerEvent, RelayBudget, RelayFlow, RelayMeter, RelayMeterEvent,
    grant_limit, receive_window,
};
use sluice_proto::wire::pay::{self, pay_datagram::Kind};
use sluice_proto::{Amount, FlowId, Price};

use crate::support::{WINDOW, encode, price, purse, terms};

const FLOW: FlowId = FlowId(7);
const TENANT: [u8; 32] = [1; 32];

struct Edge {
    holder: HolderMeter,
    relay: RelayMeter,
    flow: std::sync::Arc<RelayFlow>,
    now: Instant,
    /// What the relay forwarded.
    totals: Counts,
    events: Vec<RelayMeterEvent>,
    holder_events: Vec<PayerEvent>,
}

impl Edge {
    fn new(price: Price, starter_left: u64) -> Self {
        let purse = (!price.is_zero()).then(|| purse(1 << 60, 1000));
        let channel = purse.as_ref().map(|p| p.channel);
        let budget = RelayBudget::new(0);
        let mut holder = HolderMeter::new(terms(price), purse, starter_left, None, budget.clone());
        let flow = RelayFlow::new(budget);
        holder.open_flow(FLOW, flow.clone(), TENANT);
        let relay = RelayMeter::new(terms(price), channel, starter_left, None);
        let (totals, events, holder_events) = Default::default();
        Self { holder, relay, flow, now: Instant::now(), totals, events, holder_events }
    }

    /// The holder sends frames and the relay forwards them.
    fn send(&mut self, bytes: u64) {
        self.flow.count_sent(bytes);
        self.totals.up += bytes;
        self.relay.handle_totals(self.totals, self.now);
    }

    fn receive(&mut self, bytes: u64) {
        self.flow.count_received(bytes);
        self.totals.down += bytes;
        self.relay.handle_totals(self.totals, self.now);
    }

    /// Claims and pays all that is open.
    fn finish(&mut self) {
        self.relay.flush();
        self.settle(true);
        self.now += Duration::from_millis(20);
        self.holder.handle_timeout(self.now);
        self.settle(true);
    }

    /// Carries messages until nobody has any; the holder's go only if it `pays`.
    fn settle(&mut self, pays: bool) {
        loop {
            while let Some(event) = self.holder.poll_event() {
                if let PayerEvent::Persist { seq, .. } = &event
                    && pays
                {
                    self.holder.handle_persisted(*seq, self.now);
                } else {
                    self.holder_events.push(event);
                }
            }
            while let Some(event) = self.relay.poll_event() {
                if let RelayMeterEvent::Persist { seq, .. } = &event {
                    self.relay.handle_durable(*seq, self.now);
                } else {
                    self.events.push(event);
                }
            }
            let out: Vec<_> = std::iter::from_fn(|| self.holder.poll_transmit(self.now)).collect();
            let back: Vec<_> = std::iter::from_fn(|| self.relay.poll_transmit(self.now)).collect();
            if out.is_empty() && back.is_empty() {
                return;
            }
            out.iter().for_each(|m| self.relay.handle_datagram(m, self.now));
            back.iter().for_each(|m| self.holder.handle_datagram(m, self.now));
        }
    }
}

#[test]
fn an_honest_holder_is_never_unpaid_and_pays_what_was_forwarded() {
    let mut edge = Edge::new(price(), 0);
    for _ in 0..2000 {
        // 7/8 of the window is the holder's own limit.
        assert!(edge.holder.budget().room() >= 10_000);
        edge.send(8_000);
        edge.receive(900);
        assert!(edge.totals.total() < edge.relay.limit(), "the forwarding path never stops");
        edge.settle(true);
    }
    edge.finish();
    assert_eq!((&edge.events, &edge.holder_events), (&vec![], &vec![]));
    assert_eq!(edge.relay.paid(), edge.totals);
    assert_eq!(edge.holder.acked(), edge.totals);
    assert!(edge.holder.is_settled() && edge.relay.is_settled());
    let due = 1000 + 2 * u128::from(edge.totals.up) + u128::from(edge.totals.down);
    assert_eq!((edge.relay.amount(), edge.holder.amount()), (Amount(due), Amount(due)));
    assert!(edge.relay.unpaid_max() <= WINDOW);
}

#[test]
fn a_holder_that_never_pays_meets_the_limit_is_told_and_closed_after_ten_minutes() {
    let mut edge = Edge::new(price(), 0);
    assert_eq!(edge.relay.limit(), WINDOW);
    assert_eq!(edge.relay.alarm(), WINDOW / 4, "the next claim");
    while edge.totals.total() < edge.relay.limit() {
        edge.send((edge.relay.limit() - edge.totals.total()).min(9_000));
        edge.settle(false);
    }
    assert_eq!(edge.totals.total(), WINDOW);
    assert_eq!(edge.events, vec![RelayMeterEvent::Unpaid]);
    edge.now += Duration::from_secs(599);
    edge.relay.handle_timeout(edge.now);
    edge.settle(false);
    assert_eq!(edge.events.len(), 1);
    edge.now += Duration::from_secs(1);
    edge.relay.handle_timeout(edge.now);
    edge.settle(false);
    assert_eq!(edge.events[1..], [RelayMeterEvent::Close]);
}

#[test]
fn a_late_payment_opens_the_limit_again() {
    let mut edge = Edge::new(price(), 0);
    while edge.totals.total() < WINDOW {
        edge.send((WINDOW - edge.totals.total()).min(50_000));
    }
    assert_eq!(edge.holder.budget().room(), 0);
    edge.settle(true);
    let (at, _) = edge.holder.poll_timeout().unwrap_or((edge.now, ""));
    edge.now = at.max(edge.now) + Duration::from_millis(20);
    edge.holder.handle_timeout(edge.now);
    edge.settle(true);
    assert_eq!(edge.events, vec![RelayMeterEvent::Unpaid, RelayMeterEvent::Paid]);
    assert_eq!(edge.relay.limit(), 2 * WINDOW);
    assert!(
        edge.holder.take_opened() && !edge.holder.take_opened(),
        "waiting pumps are woken once"
    );
    assert_eq!(edge.holder.budget().room(), WINDOW - WINDOW / 8);
}

#[test]
fn who_waits_is_woken_when_a_claim_tells_of_losses() {
    let (mut holder, budget) = fresh_holder(0);
    assert!(holder.take_opened(), "there was no room");
    RelayFlow::new(budget.clone()).count_sent(10_000);
    let now = Instant::now();
    holder.handle_timeout(now);
    assert!(!holder.take_opened());
    holder.handle_datagram(&claim(8_000, 0), now + Duration::from_secs(10));
    assert!(holder.take_opened(), "2,000 bytes will never be counted");
    assert_eq!(budget.room(), WINDOW - WINDOW / 8 - 8_000);
}

#[test]
fn starter_bytes_come_on_top_and_their_use_is_remembered() {
    let mut edge = Edge::new(price(), 100_000);
    assert_eq!(edge.relay.limit(), WINDOW + 100_000);
    edge.send(WINDOW - 1000);
    assert_eq!(edge.relay.starter_used(), 0);
    edge.send(41_000);
    assert_eq!(edge.relay.starter_used(), 40_000);
    edge.settle(true);
    edge.finish();
    assert_eq!(edge.relay.starter_used(), 40_000, "paid later, and still used");
}

#[test]
fn at_price_zero_there_is_no_limit_and_the_counts_still_flow() {
    let mut edge = Edge::new(Price::default(), 0);
    for _ in 0..100 {
        edge.send(100_000);
        edge.settle(true);
    }
    edge.finish();
    assert_eq!((edge.relay.limit(), edge.holder.budget().room() > 1 << 60), (u64::MAX, true));
    assert_eq!(edge.relay.paid(), edge.totals);
    assert_eq!(edge.events, vec![]);
}

fn claim(up: u64, down: u64) -> Bytes {
    let lease = Bytes::copy_from_slice(&terms(price()).lease.0);
    encode(Kind::Claim(pay::Claim { lease, up, down }))
}

#[test]
fn a_relay_is_paid_no_more_than_was_sent_to_it_or_granted() {
    let mut edge = Edge::new(price(), 0);
    edge.flow.count_sent(80_000);
    let granted = grant_limit(0, 80_000, true);
    for (up, down, honest) in [(80_000, granted, true), (80_001, 0, false), (0, granted + 1, false)]
    {
        edge.holder.handle_datagram(&claim(up, down), edge.now);
        edge.settle(true);
        let lies = std::mem::take(&mut edge.holder_events);
        if honest {
            assert_eq!(lies, vec![]);
        } else {
            let [PayerEvent::Lie(evidence)] = &lies[..] else { panic!("{lies:?}") };
            assert!(matches!(evidence.lie, Lie::InflatedClaim { .. }));
            assert_eq!(evidence.message, claim(up, down));
        }
        assert_eq!(edge.holder.stated(), Counts { up: 80_000, down: granted });
    }
    // Payload that was delivered grants more; closing a flow takes nothing back.
    edge.flow.count_delivered(100_000);
    assert_eq!(edge.holder.counted().down, granted, "the relay was not told");
    edge.holder.handle_growth(FLOW);
    assert_eq!(edge.holder.poll_grant(), Some((FLOW, 150_000)));
    let granted = grant_limit(100_000, 80_000, true);
    assert_eq!(edge.holder.counted().down, granted);
    edge.holder.close_flow(FLOW);
    assert_eq!(edge.holder.counted().down, granted);
    let again = RelayFlow::new(edge.holder.budget().clone());
    edge.holder.open_flow(FLOW, again, TENANT);
    assert_eq!(edge.holder.counted().down, granted, "reopening a flow renews nothing");
}

/// A holder that accepted terms, and the budget of its link, over which `sent` bytes went before.
fn fresh_holder(sent: u64) -> (HolderMeter, std::sync::Arc<RelayBudget>) {
    let budget = RelayBudget::new(0);
    RelayFlow::new(budget.clone()).count_sent(sent);
    let purse = purse(1 << 60, 1000);
    (HolderMeter::new(terms(price()), Some(purse), 0, None, budget.clone()), budget)
}

/// What the newest voucher states once the claim was heard; none if it is called a lie.
fn answer(holder: &mut HolderMeter, claim: &Bytes) -> Option<Counts> {
    holder.handle_datagram(claim, Instant::now());
    match holder.poll_event() {
        Some(PayerEvent::Lie(_)) => None,
        _ => Some(holder.stated()),
    }
}

#[test]
fn a_claim_that_overtakes_the_news_of_its_flow_is_no_lie_and_is_paid_when_it_comes_again() {
    let (mut holder, budget) = fresh_holder(0);
    assert_eq!(answer(&mut holder, &claim(0, 500)), Some(Counts::default()), "not yet");
    holder.open_flow(FLOW, RelayFlow::new(budget), TENANT);
    assert_eq!(answer(&mut holder, &claim(0, 500)), Some(Counts { up: 0, down: 500 }));
    assert_eq!(answer(&mut holder, &claim(0, 500_000)), None, "more than was granted");
}

#[test]
fn a_flow_that_goes_on_grants_what_it_brought_before() {
    let (mut holder, budget) = fresh_holder(0);
    let flow = RelayFlow::new(budget);
    flow.count_delivered(100_000);
    holder.open_flow(FLOW, flow, TENANT);
    // The relay grants anew, and hears of it once more, with the credit that the session has by now.
    let credit = receive_window(100_000) - receive_window(0);
    assert_eq!(holder.poll_grant(), Some((FLOW, 150_000 + credit + credit / 8)));
    let carried = credit + credit / 8;
    assert_eq!(holder.counted().down, grant_limit(100_000, 0, true) + carried);
}

#[test]
fn what_was_under_way_while_terms_were_agreed_may_be_claimed() {
    let (mut holder, _) = fresh_holder(1000);
    assert_eq!(answer(&mut holder, &claim(1000, 0)), None, "it was sent before");
    let (holder, _) = fresh_holder(1000);
    let mut holder = holder.counting_since(0, 0);
    assert_eq!(answer(&mut holder, &claim(1000, 0)), Some(Counts { up: 1000, down: 0 }));
    assert_eq!(answer(&mut holder, &claim(1001, 0)), None);
}

#[test]
fn a_voucher_for_more_than_was_forwarded_is_named() {
    let mut edge = Edge::new(price(), 0);
    edge.send(WINDOW / 4);
    edge.settle(true);
    // Another relay's count of the same reservation knows less.
    let channel = purse(1 << 60, 1000).channel;
    let mut other = RelayMeter::new(terms(price()), Some(channel), 0, None);
    let newest = edge.holder.newest().expect("it paid").clone();
    let message = encode(Kind::Voucher(newest.voucher));
    other.handle_datagram(&message, edge.now);
    let Some(RelayMeterEvent::Lie(evidence)) = other.poll_event() else { panic!("named") };
    assert!(matches!(evidence.lie, Lie::OverCount { .. }), "{}", evidence.lie);
    assert_eq!((other.paid(), other.limit()), (Counts::default(), WINDOW));
}

#[test]
fn both_go_on_from_the_newest_voucher_after_a_restart() {
    let mut edge = Edge::new(price(), 0);
    for _ in 0..50 {
        edge.send(10_000);
        edge.settle(true);
    }
    let newest = edge.relay.newest().expect("it was paid").clone();
    let purse = purse(1 << 60, 1000);
    let relay = RelayMeter::new(terms(price()), Some(purse.channel), 0, Some(newest.clone()));
    let budget = RelayBudget::new(0);
    let mut holder =
        HolderMeter::new(terms(price()), Some(purse), 0, Some(&newest), budget.clone());
    let flow = RelayFlow::new(budget);
    holder.open_flow(FLOW, flow.clone(), TENANT);
    let before = newest.counts;
    edge = Edge { holder, relay, flow, totals: Counts::default(), ..edge };
    assert_eq!(edge.relay.limit(), WINDOW, "totals begin anew");
    for _ in 0..50 {
        edge.send(10_000);
        edge.settle(true);
    }
    edge.finish();
    assert_eq!((&edge.events, &edge.holder_events), (&vec![], &vec![]));
    assert_eq!(edge.relay.paid().up, before.up + 500_000);
    assert_eq!(edge.holder.acked(), edge.relay.paid());
}

#[test]
fn an_honest_sender_never_meets_the_grant() {
    // The receive window bounds what is in flight; frames are at most 1/16 larger than payload.
    for delivered in [0, 1 << 10, 1 << 16, 1 << 20, 1 << 30] {
        let in_flight = receive_window(delivered);
        let frames = (delivered + in_flight) * 17 / 16;
        assert!(frames <= grant_limit(delivered, 0, true), "at {delivered}");
    }
    assert_eq!(grant_limit(u64::MAX, u64::MAX, true), u64::MAX);
}

/// What is told to the relay of each flow.
fn told(holder: &mut HolderMeter) -> Vec<(FlowId, u64)> {
    std::iter::from_fn(|| holder.poll_grant()).collect()
}

#[test]
fn few_messages_keep_the_relay_ahead_of_an_upload() {
    let (mut holder, budget) = fresh_holder(0);
    let flow = RelayFlow::new(budget);
    holder.open_flow(FLOW, flow.clone(), TENANT);
    let (mut known, mut messages) = (0, 0);
    while flow.delivered() < 1 << 30 {
        let delivered = flow.count_delivered(4096);
        holder.handle_growth(FLOW);
        for (_, granted) in told(&mut holder) {
            (known, messages) = (granted, messages + 1);
        }
        let frames = (delivered + receive_window(delivered)) * 17 / 16;
        assert!(frames <= grant_limit(0, 0, true) + known, "at {delivered}");
    }
    assert!(messages < 1200, "{messages}");
}

#[test]
fn only_packets_with_payload_count_as_large() {
    let (mut holder, budget) = fresh_holder(0);
    let flow = RelayFlow::new(budget);
    holder.open_flow(FLOW, flow.clone(), TENANT);
    // Ten thousand acknowledgements of 50 bytes need no word, and grant what they are.
    flow.count_sent(500_000);
    holder.handle_growth(FLOW);
    assert_eq!((told(&mut holder), holder.counted().down), (vec![], grant_limit(0, 500_000, true)));
    // A thousand echoes of 60 bytes.
    flow.count_sent(60_000);
    flow.count_small(1_140_000);
    holder.handle_growth(FLOW);
    assert_eq!(told(&mut holder), vec![(FLOW, 1_140_000 / 8)]);
    assert_eq!(holder.counted().down, grant_limit(0, 500_000 + 1_200_000, true));
    // Little by little is told when time passes, and not each bit of it.
    flow.count_small(8 * 1000);
    holder.handle_timeout(Instant::now());
    assert_eq!(told(&mut holder), vec![]);
    flow.count_small(8 * 4000);
    holder.handle_timeout(Instant::now());
    assert_eq!(told(&mut holder), vec![(FLOW, 1_180_000 / 8)]);
}

#[test]
fn an_honest_sender_whose_relay_died_does_not_meet_the_grant_of_the_next() {
    for before in [1 << 16, 1 << 20, 1 << 25] {
        let (mut holder, budget) = fresh_holder(0);
        let flow = RelayFlow::new(budget);
        holder.open_flow(FLOW, flow.clone(), TENANT);
        // All credit that was given elsewhere is used here before a byte can be delivered.
        flow.take_over(receive_window(before));
        holder.handle_growth(FLOW);
        let frames = receive_window(before) * 17 / 16;
        assert!(frames <= holder.counted().down, "after {before}");
        assert!(holder.counted().down <= grant_limit(0, 0, true) + before * 27 / 64);
        for after in [1 << 10, 1 << 16, 1 << 20, 1 << 26] {
            flow.count_delivered(after - flow.delivered());
            holder.handle_growth(FLOW);
            // QUIC gives no more until that credit is used up.
            let payload = receive_window(before).max(after + receive_window(after));
            assert!(payload * 17 / 16 <= holder.counted().down, "{after} after {before}");
        }
    }
}

#[test]
fn credit_is_carried_to_a_relay_once_however_often_a_tenant_comes() {
    let (mut holder, budget) = fresh_holder(0);
    let open = |holder: &mut HolderMeter, id, tenant, credit| {
        let flow = RelayFlow::new(budget.clone());
        holder.open_flow(FlowId(id), flow.clone(), tenant);
        flow.take_over(credit);
        holder.handle_growth(FlowId(id));
        flow
    };
    let credit = receive_window(1 << 20);
    open(&mut holder, 1, TENANT, credit);
    let once = holder.counted().down;
    assert!(once > grant_limit(0, 0, true));
    for id in 2..10 {
        holder.close_flow(FlowId(id - 1));
        open(&mut holder, id, TENANT, credit);
        assert_eq!(holder.counted().down, once, "flow {id}");
    }
    open(&mut holder, 10, [2; 32], credit);
    assert_eq!(holder.counted().down, 2 * once, "another tenant's own");
    // What came through this relay gave its credit here.
    let (mut holder, budget) = fresh_holder(0);
    let flow = RelayFlow::new(budget);
    holder.open_flow(FLOW, flow.clone(), TENANT);
    flow.count_delivered(1 << 20);
    flow.take_over(credit);
    holder.handle_growth(FLOW);
    assert_eq!(holder.counted().down, grant_limit(1 << 20, 0, true));
}
