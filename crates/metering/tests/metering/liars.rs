//! Whoever lies is named, and nothing changes. The control beside each: the truth passes.

use std::time::Duration;

use bytes::Bytes;
use sluice_metering::{
    Channel, Counts, Direction, Lie, Payee, PayeeEvent, Payer, PayerEvent, Permit, Statement,
    StreamIndex, StreamPosition, StreamState,
};
use sluice_proto::eth::keccak256;
use sluice_proto::wire::pay::{self, pay_datagram::Kind};
use sluice_proto::{Amount, ChannelId, LeaseId, Voucher, WalletKey};

use crate::support::{
    WINDOW, decode, domain, drain_payee, drain_payer, encode, key, lies, pair, price, purse, terms,
};

const A: StreamIndex = StreamIndex(1);

/// Builds whatever a liar likes.
struct Forger {
    key: WalletKey,
    channel: ChannelId,
    lease: LeaseId,
    session: u64,
    counts: Counts,
    amount: u128,
    streams: Vec<StreamPosition>,
}

impl Forger {
    /// The truth about 1,000 bytes down.
    fn honest() -> Self {
        Self {
            key: key(),
            channel: channel().id,
            lease: terms(price()).lease,
            session: 1,
            counts: Counts { up: 0, down: 1000 },
            amount: 2000,
            streams: Vec::new(),
        }
    }

    fn message(&self) -> Bytes {
        let (lease, counts) = (self.lease, self.counts);
        let streams = self.streams.clone();
        let mut statement = Statement { lease, counts, session: self.session, streams };
        let statement = statement.encode_fitting();
        let signed = Voucher {
            channel: self.channel,
            amount: Amount(self.amount),
            statement: keccak256(&statement),
        };
        let signature = self.key.sign(signed.digest(&domain()));
        encode(Kind::Voucher(pay::Voucher {
            statement,
            channel: Bytes::copy_from_slice(&self.channel.0),
            amount: Bytes::copy_from_slice(&Amount(self.amount).to_bytes()),
            signature: Bytes::copy_from_slice(&signature.0),
        }))
    }
}

fn channel() -> Channel {
    purse(1 << 60, 1000).channel
}

/// A payee that sent 5,000 bytes and read 500 of 600.
fn payee() -> (Payee, std::time::Instant) {
    let (_, mut payee, now) = pair();
    payee.handle_opened(A);
    assert_eq!(payee.permit(A, Direction::Down, 5000, now), Permit::Granted(5000));
    assert_eq!(payee.permit(A, Direction::Up, 500, now), Permit::Granted(500));
    payee.handle_read(500, now);
    (payee, now)
}

fn told(message: &Bytes) -> Vec<Lie> {
    let (mut payee, now) = payee();
    let before = format!("{payee:?}");
    payee.handle_datagram(message, now);
    let (_, events) = drain_payee(&mut payee, now);
    let lies = lies(&events);
    if lies.is_empty() {
        assert_ne!(payee.paid(), Counts::default(), "the truth counts");
    } else {
        assert_eq!(format!("{payee:?}"), before, "a lie changes nothing");
    }
    lies
}

#[test]
fn the_truth_passes() {
    assert_eq!(told(&Forger::honest().message()), vec![]);
    let all = Forger {
        counts: Counts { up: 500, down: 5000 },
        amount: 1000 + 2 * 500 + 5000,
        ..Forger::honest()
    };
    assert_eq!(told(&all.message()), vec![]);
}

#[test]
fn a_swapped_key_is_named() {
    let other = WalletKey::from_bytes([8; 32]).expect("a valid key");
    let (expected, found) = (key().address(), Some(other.address()));
    let forged = Forger { key: other, ..Forger::honest() };
    assert_eq!(told(&forged.message()), vec![Lie::WrongSigner { expected, found }]);
}

#[test]
fn a_broken_signature_is_named() {
    let Kind::Voucher(mut voucher) = decode(&Forger::honest().message()) else { unreachable!() };
    let mut signature = voucher.signature.to_vec();
    signature[40] ^= 1;
    voucher.signature = signature.into();
    let told = told(&encode(Kind::Voucher(voucher)));
    assert!(matches!(told[..], [Lie::WrongSigner { .. }]), "{told:?}");
}

/// The order of secp256k1's group (SEC 2, section 2.4.1).
const ORDER: [u8; 32] = [
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE,
    0xBA, 0xAE, 0xDC, 0xE6, 0xAF, 0x48, 0xA0, 0x3B, 0xBF, 0xD2, 0x5E, 0x8C, 0xD0, 0x36, 0x41, 0x41,
];

/// The order less `s`.
fn negated(s: &[u8]) -> Vec<u8> {
    let mut borrow = 0;
    let mut out = vec![0; 32];
    for i in (0..32).rev() {
        let difference = i16::from(ORDER[i]) - i16::from(s[i]) - borrow;
        borrow = i16::from(difference < 0);
        out[i] = u8::try_from(difference + 256 * borrow).expect("one digit");
    }
    out
}

/// Whoever sees a signature can make a second one of it, which is as good in mathematics (EIP-2).
#[test]
fn the_second_signature_that_anybody_can_make_of_the_first_is_refused() {
    let Kind::Voucher(voucher) = decode(&Forger::honest().message()) else { unreachable!() };
    let other = |v: u8, s: &[u8]| {
        let signature = [&voucher.signature[..32], s, &[v]].concat().into();
        encode(Kind::Voucher(pay::Voucher { signature, ..voucher.clone() }))
    };
    let (s, v) = (&voucher.signature[32..64], voucher.signature[64]);
    assert_eq!(told(&other(v, s)), vec![], "the first one counts");
    assert!(s < &negated(s)[..], "a voucher is signed with the lower one");
    assert_eq!(negated(&negated(s)), s);
    let expected = key().address();
    for v in [27, 28] {
        let told = told(&other(v, &negated(s)));
        assert_eq!(told, vec![Lie::WrongSigner { expected, found: None }]);
    }
}

#[test]
fn another_lease_session_or_channel_is_named() {
    let lease = LeaseId([1; 32]);
    let forged = Forger { lease, ..Forger::honest() };
    let expected = terms(price()).lease;
    assert_eq!(told(&forged.message()), vec![Lie::WrongLease { expected, found: lease }]);
    let forged = Forger { session: 2, ..Forger::honest() };
    assert_eq!(told(&forged.message()), vec![Lie::WrongSession { expected: 1, found: 2 }]);
    let forged = Forger { channel: ChannelId([1; 32]), ..Forger::honest() };
    assert_eq!(told(&forged.message()), vec![Lie::WrongChannel { expected: channel().id }]);
}

#[test]
fn an_amount_that_is_not_what_the_counts_cost_is_named() {
    for amount in [1999, 2001, 0, u128::MAX] {
        let forged = Forger { amount, ..Forger::honest() };
        let counts = Counts { up: 0, down: 1000 };
        let lie = Lie::WrongAmount { due: Amount(2000), found: Amount(amount), counts };
        assert_eq!(told(&forged.message()), vec![lie]);
    }
}

#[test]
fn counts_beyond_what_was_sent_or_read_are_named() {
    let counted = Counts { up: 500, down: 5000 };
    for found in [Counts { up: 0, down: 5001 }, Counts { up: 501, down: 0 }] {
        let amount = 1000 + 2 * u128::from(found.up) + u128::from(found.down);
        let forged = Forger { counts: found, amount, ..Forger::honest() };
        assert_eq!(told(&forged.message()), vec![Lie::OverCount { counted, found }]);
    }
}

#[test]
fn a_position_beyond_what_was_written_is_named() {
    let position = StreamPosition { stream: A, position: 5001, state: StreamState::Open };
    let forged = Forger { streams: vec![position], ..Forger::honest() };
    let lie = Lie::OverPosition { stream: A, written: 5000, found: 5001 };
    assert_eq!(told(&forged.message()), vec![lie]);
}

#[test]
fn an_amount_over_the_deposit_is_named() {
    let (_, _, now) = pair();
    let channel = Channel { deposit: Amount(1999), ..channel() };
    let mut payee = Payee::new(terms(price()), Some(channel), 1, None);
    payee.handle_datagram(&Forger::honest().message(), now);
    let (_, events) = drain_payee(&mut payee, now);
    let lie = Lie::OverDeposit { deposit: Amount(1999), amount: Amount(2000) };
    assert_eq!(lies(&events), vec![lie]);
}

#[test]
fn a_voucher_before_any_channel_is_named() {
    let (_, _, now) = pair();
    let mut payee = Payee::new(terms(price()), None, 1, None);
    let forged = Forger { amount: 1000, ..Forger::honest() };
    payee.handle_datagram(&forged.message(), now);
    let (_, events) = drain_payee(&mut payee, now);
    assert_eq!(lies(&events), vec![Lie::NoChannel]);
}

#[test]
fn a_replayed_voucher_is_stale_and_one_that_goes_back_is_named() {
    let (mut payee, now) = payee();
    let newer = Forger {
        counts: Counts { up: 100, down: 3000 },
        amount: 1000 + 200 + 3000,
        ..Forger::honest()
    };
    payee.handle_datagram(&newer.message(), now);
    drain_payee(&mut payee, now);
    let paid = payee.paid();
    payee.handle_datagram(&Forger::honest().message(), now);
    assert_eq!(drain_payee(&mut payee, now).1, vec![PayeeEvent::Stale]);
    let back = Forger {
        counts: Counts { up: 50, down: 4000 },
        amount: 1000 + 100 + 4000,
        ..Forger::honest()
    };
    payee.handle_datagram(&back.message(), now);
    let lie = Lie::Backwards { newest: paid, found: Counts { up: 50, down: 4000 } };
    assert_eq!(lies(&drain_payee(&mut payee, now).1), vec![lie]);
    assert_eq!(payee.paid(), paid);
}

fn payer_told(message: &Bytes) -> (Vec<Lie>, Payer) {
    let (mut payer, _, now) = pair();
    payer.handle_written(600, now);
    payer.handle_read(A, 1000, now);
    payer.handle_datagram(message, now);
    let (_, events) = drain_payer(&mut payer, now);
    let lies = events
        .into_iter()
        .filter_map(|e| match e {
            PayerEvent::Lie(evidence) => Some(evidence.lie),
            PayerEvent::Persist { .. } | PayerEvent::DepositExhausted { .. } => None,
        })
        .collect();
    (lies, payer)
}

fn claim(lease: LeaseId, up: u64) -> Bytes {
    encode(Kind::Claim(pay::Claim { lease: Bytes::copy_from_slice(&lease.0), up, down: 0 }))
}

#[test]
fn an_inflated_claim_is_named_and_not_paid() {
    let lease = terms(price()).lease;
    let (told, payer) = payer_told(&claim(lease, 600));
    assert_eq!((told, payer.stated().up), (vec![], 600), "the truth is paid");
    let (told, payer) = payer_told(&claim(lease, 601));
    let lie = Lie::InflatedClaim {
        counted: Counts { up: 600, down: 1000 },
        claimed: Counts { up: 601, down: 0 },
    };
    assert_eq!((told, payer.stated().up), (vec![lie], 0));
    let (told, _) = payer_told(&claim(LeaseId([1; 32]), 10));
    assert!(matches!(told[..], [Lie::WrongLease { .. }]), "{told:?}");
}

#[test]
fn an_acknowledgement_of_what_was_never_signed_is_named() {
    let ack = pay::VoucherAck {
        amount: Bytes::copy_from_slice(&Amount(5000).to_bytes()),
        ..Default::default()
    };
    let (told, _) = payer_told(&encode(Kind::Ack(ack)));
    assert_eq!(told, vec![Lie::FalseAck { signed: Amount(1000), found: Amount(5000) }]);
}

#[test]
fn noise_is_named_and_never_panics() {
    let junk = [Bytes::new(), Bytes::from_static(&[0xff; 40]), Bytes::from(vec![0; 5000])];
    for message in junk {
        assert!(matches!(told(&message)[..], [Lie::Malformed(_)]), "{message:?}");
        assert!(matches!(payer_told(&message).0[..], [Lie::Malformed(_)]));
    }
    assert!(matches!(payer_told(&Forger::honest().message()).0[..], [Lie::Malformed(_)]));
    assert!(matches!(told(&claim(LeaseId([9; 32]), 1))[..], [Lie::Malformed(_)]));
}

#[test]
fn one_who_never_signs_gets_at_most_the_window_whatever_it_opens() {
    let (_, mut payee, now) = pair();
    let (mut got, mut time) = (0, now);
    for n in 0..500 {
        let stream = StreamIndex(n);
        payee.handle_opened(stream);
        for direction in [Direction::Down, Direction::Up] {
            while let Permit::Granted(n) = payee.permit(stream, direction, 65_536, time) {
                got += n;
                if direction == Direction::Up {
                    payee.handle_read(n, time);
                }
            }
        }
        payee.handle_closed(stream);
        time += Duration::from_secs(1);
        payee.handle_timeout(time);
    }
    assert_eq!(got, WINDOW, "all of the window, and not a byte more");
}

#[test]
fn a_payee_that_asks_without_end_does_not_make_its_payer_sign_without_end() {
    let (mut payer, _, now) = pair();
    let lease = terms(price()).lease;
    let mut signed = 0;
    for n in 0..1000 {
        payer.handle_read(A, 1, now);
        payer.handle_written(1, now);
        payer.handle_datagram(&claim(lease, n + 1), now);
        signed += drain_payer(&mut payer, now).0.len();
    }
    assert_eq!(signed, 1);
}
