//! What the mesh makes sense of.

use bytes::Bytes;
use prost::Message;
use sluice_mesh::{Equivocation, Records, parse_remembered, record_key, write_remembered};
use sluice_proto::ask::{Answer, Ask, AskRefusal};
use sluice_proto::record::{ProviderEntry, RelayEntry, ServiceKind};
use sluice_proto::wire::record;
use sluice_proto::{PeerId, Price, Record, ServiceName, SignedRecord, Topic, sign};

use super::{INPUTS, Spoiling, peer, some_ticket, spoil, time};

#[test]
fn records() {
    let relay = some_ticket().relays;
    let name = ServiceName::parse("web").expect("a name");
    let genuine = Record {
        peer: peer().public().to_peer_id(),
        sequence: 7,
        expires_unix_s: 100,
        noise_key: [5; 32],
        mesh: vec![Bytes::from_static(&[4, 192, 0, 2, 1])],
        provider: Some(ProviderEntry {
            services: vec![(name, ServiceKind::Tls)],
            relays: relay.clone(),
            ..ProviderEntry::default()
        }),
        relay: Some(RelayEntry { addresses: relay, price: Price { up: 1, down: 2 } }),
    };
    let genuine = SignedRecord::sign(&genuine, &peer()).expect("a record");
    let unsigned = genuine.signed_bytes().to_vec();
    feed!(vec![genuine.encode().to_vec(), unsigned], |bytes| {
        if let Ok(record) = SignedRecord::decode(Bytes::copy_from_slice(bytes)) {
            assert_eq!(record, genuine);
            let _ = record.check_time(u64::from(bytes[0]));
        }
        // Each of its parts signed anew, so that what lies behind the signature is fed too.
        let signature = sign(&peer(), Topic::Record, bytes).into();
        let signed = record::SignedRecord { record: Bytes::copy_from_slice(bytes), signature };
        if let Ok(record) = SignedRecord::decode(signed.encode_to_vec().into()) {
            let _ = record.check_time(7);
            assert_eq!(SignedRecord::decode(record.encode()), Ok(record));
        }
    });
}

#[test]
fn asks_and_answers() {
    let some = Bytes::from_static(b"some bytes");
    let asks = [Ask::Bid(some.clone()), Ask::Award(some.clone()), Ask::Relays];
    let answers = [
        Answer::BidTaken,
        Answer::Award(some.clone()),
        Answer::Relays(vec![some.clone(), some]),
        Answer::Refused(AskRefusal::Busy),
    ];
    let seeds = asks.iter().map(Ask::encode).chain(answers.iter().map(Answer::encode));
    feed!(seeds.map(|bytes| bytes.to_vec()).collect(), |bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        if let Ok(ask) = Ask::parse(bytes.clone()) {
            assert_eq!(Ask::parse(ask.encode()), Ok(ask));
        }
        if let Ok(answer) = Answer::parse(bytes) {
            assert_eq!(Answer::parse(answer.encode()), Ok(answer));
        }
    });
}

#[test]
fn keys_and_contradictions() {
    let of = |noise: u8| Record {
        peer: peer().public().to_peer_id(),
        sequence: 7,
        expires_unix_s: 100,
        noise_key: [noise; 32],
        mesh: Vec::new(),
        provider: None,
        relay: None,
    };
    let signed = |noise| SignedRecord::sign(&of(noise), &peer()).expect("a record").encode();
    let (first, second) = (signed(1), signed(2));
    let own = peer().public().to_peer_id();
    let key = record_key(&own);
    feed!(vec![key.clone(), first.to_vec(), second.to_vec()], |bytes| {
        let given = Bytes::copy_from_slice(bytes);
        // What is not signed may come along, and is dropped.
        let signed = SignedRecord::decode(given.clone()).map(|signed| signed.encode());
        let is = |record: &Bytes| signed.as_ref() == Ok(record);
        let mut records = Records::new(PeerId::random(), 4);
        let taken = records.take(&key, given.clone(), 7).is_ok();
        assert_eq!(taken, is(&first) || is(&second));
        assert_eq!(records.take(bytes, first.clone(), 7).is_ok(), *given == key);
        let proves = Equivocation { first: first.clone(), second: given.clone() }.proves();
        assert_eq!(proves, is(&second).then_some(own));
    });
}

#[test]
fn remembered_peers() {
    let genuine = format!("/ip4/192.0.2.1/udp/9/quic-v1/p2p/{}\n", peer().public().to_peer_id());
    feed!(vec![genuine.clone().into_bytes(), genuine.repeat(40).into_bytes()], |bytes| {
        let read = parse_remembered(&String::from_utf8_lossy(bytes));
        assert!(read.len() <= sluice_mesh::REMEMBERED_MAX);
        assert_eq!(parse_remembered(&write_remembered(&read)), read);
    });
}
