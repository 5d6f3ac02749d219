//! Records: what is read back, what is refused, and when.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use sluice_proto::record::{
    CERTIFICATE_MAX, MESH_ADDRESS_MAX, ProviderEntry, RECORD_AHEAD_MAX_MS, RECORD_LIFE_MAX_S,
    RECORD_MAX, RelayEntry, ServiceKind, next_sequence,
};
use sluice_proto::{
    Keypair, Price, Record, RecordError, RelayAddr, ServiceName, SignedRecord, Topic, sign, wire,
};

const NOW_MS: u64 = 1_800_000_000_000;

fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("a key")
}

fn address(key: &Keypair) -> RelayAddr {
    RelayAddr::new(key.public().to_peer_id(), "192.0.2.1:4433".parse().expect("an address"))
}

fn record() -> Record {
    Record {
        peer: key(3).public().to_peer_id(),
        sequence: NOW_MS,
        expires_unix_s: NOW_MS / 1000 + 3600,
        noise_key: [5; 32],
        mesh: vec![Bytes::from_static(&[4, 192, 0, 2, 1])],
        provider: Some(ProviderEntry {
            services: vec![(ServiceName::parse("web").expect("a name"), ServiceKind::Tcp)],
            relays: vec![address(&key(4))],
            price: Price { up: 1, down: 2 },
            certificate: Bytes::new(),
        }),
        relay: None,
    }
}

/// Signs what [`Record`] would not let through.
fn forge(edit: impl FnOnce(&mut wire::record::Record)) -> Result<SignedRecord, RecordError> {
    let genuine = SignedRecord::sign(&record(), &key(3)).expect("a record");
    let mut wire: wire::record::Record =
        wire::decode(genuine.signed_bytes().clone(), RECORD_MAX).expect("a record");
    edit(&mut wire);
    let bytes = wire.encode_to_vec();
    let signature = sign(&key(3), Topic::Record, &bytes).into();
    let signed = wire::record::SignedRecord { record: bytes.into(), signature };
    SignedRecord::decode(signed.encode_to_vec().into())
}

#[test]
fn a_record_is_its_nodes_own_word() {
    let genuine = SignedRecord::sign(&record(), &key(3)).expect("a record");
    assert_eq!(genuine.record(), &record());
    assert_eq!(SignedRecord::decode(genuine.encode()).as_ref(), Ok(&genuine));
    let other = SignedRecord::sign(&record(), &key(4));
    assert!(matches!(other, Err(RecordError::Signature(_))));
    // A signature for another purpose is none.
    let bytes = genuine.signed_bytes();
    let signature = sign(&key(3), Topic::Ticket, bytes).into();
    let signed = wire::record::SignedRecord { record: bytes.clone(), signature };
    let read = SignedRecord::decode(signed.encode_to_vec().into());
    assert!(matches!(read, Err(RecordError::Signature(_))));
}

#[test]
fn a_record_counts_from_about_now_until_it_expires() {
    let at = |sequence, expires_unix_s, now| {
        let record = Record { sequence, expires_unix_s, ..record() };
        SignedRecord::sign(&record, &key(3)).expect("a record").check_time(now)
    };
    let now_s = NOW_MS / 1000;
    assert_eq!(at(NOW_MS, now_s + 1, NOW_MS), Ok(()));
    assert_eq!(at(NOW_MS, now_s, NOW_MS), Err(RecordError::Expired(now_s)));
    assert_eq!(at(NOW_MS, 0, NOW_MS), Err(RecordError::Expired(0)));
    let longest = now_s + RECORD_LIFE_MAX_S;
    assert_eq!(at(NOW_MS, longest, NOW_MS), Ok(()));
    assert_eq!(at(NOW_MS, longest + 1, NOW_MS), Err(RecordError::TooLong(longest + 1)));
    assert_eq!(at(NOW_MS, u64::MAX, NOW_MS), Err(RecordError::TooLong(u64::MAX)));
    let latest = NOW_MS + RECORD_AHEAD_MAX_MS;
    assert_eq!(at(latest, now_s + 1, NOW_MS), Ok(()));
    assert_eq!(at(latest + 1, now_s + 1, NOW_MS), Err(RecordError::Future(latest + 1)));
    assert_eq!(at(u64::MAX, now_s + 1, NOW_MS), Err(RecordError::Future(u64::MAX)));
}

#[test]
fn a_next_record_has_a_higher_number_whatever_the_clock_says() {
    assert_eq!(next_sequence(0, NOW_MS), NOW_MS);
    assert_eq!(next_sequence(NOW_MS, NOW_MS), NOW_MS + 1);
    assert_eq!(next_sequence(NOW_MS, 0), NOW_MS + 1);
    assert_eq!(next_sequence(u64::MAX, 0), u64::MAX);
}

#[test]
fn what_goes_beyond_a_bound_is_refused_though_it_is_signed() {
    let bounds = |read: Result<SignedRecord, RecordError>| match read {
        Err(RecordError::Bounds(what)) => what,
        other => panic!("{other:?}"),
    };
    assert!(forge(|_| {}).is_ok(), "the control");
    assert_eq!(forge(|r| r.version = 2), Err(RecordError::Version(2)));
    assert!(matches!(forge(|r| r.peer = Bytes::new()), Err(RecordError::Field(_))));
    assert!(matches!(forge(|r| r.noise_key = Bytes::new()), Err(RecordError::Field(_))));
    bounds(forge(|r| r.mesh = vec![Bytes::new(); 9]));
    bounds(forge(|r| r.mesh = vec![vec![0; MESH_ADDRESS_MAX + 1].into()]));
    let provider = |edit: fn(&mut wire::record::Provider)| {
        forge(|r| edit(r.provider.as_mut().expect("a provider")))
    };
    bounds(provider(|p| p.services = vec![p.services[0].clone(); 33]));
    bounds(provider(|p| p.services[0].kind = 4));
    bounds(provider(|p| p.relays = vec![p.relays[0].clone(); 9]));
    bounds(provider(|p| p.relays[0].address = Bytes::from_static(&[1])));
    bounds(provider(|p| p.certificate = vec![0; CERTIFICATE_MAX + 1].into()));
    let name = provider(|p| p.services[0].name = "Web".to_owned());
    assert!(matches!(name, Err(RecordError::Field(_))));
    assert!(matches!(provider(|p| p.price_up = Bytes::new()), Err(RecordError::Field(_))));
    let large = provider(|p| p.services[0].name = "a".repeat(RECORD_MAX));
    assert!(matches!(large, Err(RecordError::Malformed(_))));
    let price = Bytes::from_static(&[0; 16]);
    let relay = |addresses| wire::record::Relay {
        addresses,
        price_up: price.clone(),
        price_down: price.clone(),
    };
    bounds(forge(|r| r.relay = Some(relay(Vec::new()))));
    let others = r_hint(&key(4));
    assert_eq!(
        bounds(forge(|r| r.relay = Some(relay(vec![others])))),
        "a relay's address names another node"
    );
    assert!(forge(|r| r.relay = Some(relay(vec![r_hint(&key(3))]))).is_ok());
}

fn r_hint(key: &Keypair) -> wire::rendezvous::RelayHint {
    sluice_proto::encode_relays(&[address(key)]).remove(0)
}

#[test]
fn what_is_not_signed_does_not_go_along() {
    let genuine = SignedRecord::sign(&record(), &key(3)).expect("a record");
    let padded = [&genuine.encode()[..], &[0x1A, 3, 1, 2, 3]].concat();
    let read = SignedRecord::decode(padded.into()).expect("unknown fields are ignored");
    assert_eq!(read.encode(), genuine.encode());
}

prop_compose! {
    fn any_price()(up: u128, down: u128) -> Price {
        Price { up, down }
    }
}

fn any_relay() -> impl Strategy<Value = RelayAddr> {
    (any::<[u8; 32]>(), any::<([u8; 4], u16, u16)>()).prop_map(|(seed, (ip, port, tcp))| {
        let peer = Keypair::ed25519_from_bytes(seed).expect("a key").public().to_peer_id();
        RelayAddr::new(peer, SocketAddr::from((ip, port.max(1)))).with_tcp(NonZeroU16::new(tcp))
    })
}

fn any_provider() -> impl Strategy<Value = ProviderEntry> {
    let kind = prop::sample::select(vec![ServiceKind::Tcp, ServiceKind::Udp, ServiceKind::Tls]);
    let name = "[a-z][a-z0-9-]{0,31}".prop_map(|s| ServiceName::parse(&s).expect("a name"));
    let certificate = vec(any::<u8>(), 0..500).prop_map(Bytes::from);
    (vec((name, kind), 0..=32), vec(any_relay(), 0..=8), any_price(), certificate).prop_map(
        |(services, relays, price, certificate)| ProviderEntry {
            services,
            relays,
            price,
            certificate,
        },
    )
}

fn any_record() -> impl Strategy<Value = (Keypair, Record)> {
    let mesh = vec(vec(any::<u8>(), 0..60).prop_map(Bytes::from), 0..=8);
    let provider = prop::option::of(any_provider());
    let relay = prop::option::of((vec(any_relay(), 1..=8), any_price()));
    (any::<([u8; 32], u64, u64, [u8; 32])>(), mesh, provider, relay).prop_map(
        |((seed, sequence, expires_unix_s, noise_key), mesh, provider, relay)| {
            let key = Keypair::ed25519_from_bytes(seed).expect("a key");
            let peer = key.public().to_peer_id();
            let relay = relay.map(|(addresses, price)| RelayEntry {
                addresses: addresses.into_iter().map(|a| RelayAddr { peer, ..a }).collect(),
                price,
            });
            let record =
                Record { peer, sequence, expires_unix_s, noise_key, mesh, provider, relay };
            (key, record)
        },
    )
}

proptest! {
    #[test]
    fn what_was_signed_is_read_back((key, record) in any_record()) {
        let signed = SignedRecord::sign(&record, &key).expect("it is within the bounds");
        prop_assert_eq!(signed.record(), &record);
        prop_assert!(signed.encode().len() <= RECORD_MAX);
        prop_assert_eq!(SignedRecord::decode(signed.encode()), Ok(signed));
    }

    #[test]
    fn one_bit_changed_makes_it_no_record((key, record) in any_record(), at: prop::sample::Index, bit in 0..8_u32) {
        let signed = SignedRecord::sign(&record, &key).expect("it is within the bounds");
        let mut bytes = signed.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let read = SignedRecord::decode(bytes.into());
        prop_assert!(read.is_err(), "{read:?}");
    }
}
