//! Terms, statements and vouchers on the wire.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use sluice_metering::{
    Counts, Lie, Statement, StreamIndex, StreamPosition, StreamState, Terms, TermsError,
    VoucherRecord, accept_terms, check_accept,
};
use sluice_proto::wire::pay;
use sluice_proto::{Keypair, LeaseId, Price};

use crate::support::{decode, drain_payer, pair, peer, price, purse, terms};

fn node(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes")
}

#[test]
fn terms_survive_the_wire_and_only_their_payee_can_sign_them() {
    for price in [price(), Price::default()] {
        let terms = terms(price);
        let signed = terms.sign(&node(2));
        assert_eq!(Terms::open(&signed), Ok(terms.clone()));
        let forged = terms.sign(&node(3));
        assert!(matches!(Terms::open(&forged), Err(TermsError::Signature(_))));
        let accept = accept_terms(&node(1), &signed.terms);
        assert_eq!(check_accept(&peer(1), &signed.terms, &accept), Ok(()));
        let other = Terms { window: 1 << 20, ..terms }.encode();
        assert_eq!(check_accept(&peer(1), &other, &accept), Err(TermsError::OtherTerms));
        let wrong = check_accept(&peer(2), &signed.terms, &accept);
        assert!(matches!(wrong, Err(TermsError::Signature(_))));
    }
}

#[test]
fn a_wrong_field_of_terms_is_named() {
    let edit = |f: &dyn Fn(&mut pay::Terms)| {
        let mut wire = pay::Terms::decode(terms(price()).encode()).expect("encoded");
        f(&mut wire);
        Terms::parse(&wire.encode_to_vec().into()).expect_err("refused").to_string()
    };
    type Edit<'a> = &'a dyn Fn(&mut pay::Terms);
    let cases: [(Edit<'_>, &str); 7] = [
        (&|t| t.version = 2, "version 2"),
        (&|t| t.lease = Bytes::from_static(b"short"), "lease must be 32 bytes"),
        (&|t| t.window = 1, "window of 1 bytes"),
        (&|t| t.window = u64::MAX, "window of 18446744073709551615 bytes"),
        (&|t| t.payment = None, "payment must be present exactly when something is charged"),
        (&|t| t.price_up = Bytes::new(), "amount must be 16 bytes"),
        (&|t| t.payer_peer = Bytes::from_static(b"nobody"), "payer_peer is not a peer id"),
    ];
    for (f, expected) in cases {
        let error = edit(f);
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }
}

fn position() -> impl Strategy<Value = StreamPosition> {
    let state =
        prop_oneof![Just(StreamState::Open), Just(StreamState::Ended), Just(StreamState::Reset)];
    (any::<u64>(), 0..u64::MAX >> 2, state).prop_map(|(stream, position, state)| StreamPosition {
        stream: StreamIndex(stream),
        position,
        state,
    })
}

proptest! {
    #[test]
    fn a_statement_says_what_it_said_and_always_fits(
        up in 0u64..1 << 60,
        down in 0u64..1 << 60,
        session in any::<u64>(),
        streams in prop::collection::vec(position(), 0..90),
    ) {
        let counts = Counts { up, down };
        let mut statement = Statement { lease: LeaseId([9; 32]), counts, session, streams };
        let bytes = statement.encode_fitting();
        prop_assert!(bytes.len() <= 960 && statement.streams.len() <= 64);
        prop_assert_eq!(Statement::parse(&bytes), Ok(statement));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        let bytes = Bytes::from(bytes);
        let _ = Statement::parse(&bytes);
        let _ = Terms::parse(&bytes);
        let (mut payer, mut payee, now) = pair();
        payer.handle_datagram(&bytes, now);
        payee.handle_datagram(&bytes, now);
    }

    #[test]
    fn no_change_of_a_voucher_goes_unnoticed(at in 0usize..400, bit in 0u8..8) {
        let (mut payer, _, now) = pair();
        payer.handle_read(StreamIndex(3), 1 << 20, now);
        let (out, _) = drain_payer(&mut payer, now);
        let mut bytes = out[0].to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let changed = pay::PayDatagram::decode(Bytes::from(bytes));
        if let Ok(pay::PayDatagram { kind: Some(pay::pay_datagram::Kind::Voucher(voucher)) }) =
            changed
            && decode(&out[0]) != pay::pay_datagram::Kind::Voucher(voucher.clone())
        {
            let channel = purse(1 << 60, 1000).channel;
            let verified = VoucherRecord::verify(&terms(price()), Some(&channel), &voucher);
            prop_assert!(verified.is_err(), "{verified:?}");
        }
    }
}

#[test]
fn a_count_beyond_belief_is_malformed() {
    let counts = Counts { up: 0, down: u64::MAX };
    let mut statement =
        Statement { lease: LeaseId([9; 32]), counts, session: 1, streams: Vec::new() };
    assert!(matches!(Statement::parse(&statement.encode_fitting()), Err(Lie::Malformed(_))));
}
