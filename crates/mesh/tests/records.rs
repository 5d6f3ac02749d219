//! Which records are taken: of forged, expired, older, contradicting and too many ones, none.

use bytes::Bytes;
use sluice_mesh::{Equivocation, Records, Refused, Taken, record_key};
use sluice_proto::record::RECORD_LIFE_MAX_S;
use sluice_proto::{Keypair, PeerId, Record, RecordError, SignedRecord};

const NOW_MS: u64 = 1_800_000_000_000;

fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("a key")
}

fn peer(seed: u8) -> PeerId {
    key(seed).public().to_peer_id()
}

/// A record that differs from others of the same number by its Noise key.
fn record(seed: u8, sequence: u64, noise: u8) -> Bytes {
    let record = Record {
        peer: peer(seed),
        sequence,
        expires_unix_s: NOW_MS / 1000 + 3600,
        noise_key: [noise; 32],
        mesh: Vec::new(),
        provider: None,
        relay: None,
    };
    SignedRecord::sign(&record, &key(seed)).expect("a record").encode()
}

fn records(capacity: usize) -> Records {
    Records::new(peer(200), capacity)
}

fn take(records: &mut Records, seed: u8, bytes: Bytes) -> Result<Taken, Refused> {
    records.take(&record_key(&peer(seed)), bytes, NOW_MS)
}

#[test]
fn the_newest_record_of_a_node_counts() {
    let mut records = records(10);
    assert_eq!(take(&mut records, 1, record(1, 5, 0)), Ok(Taken::New));
    assert_eq!(take(&mut records, 1, record(1, 5, 0)), Ok(Taken::Known));
    assert_eq!(take(&mut records, 1, record(1, 7, 0)), Ok(Taken::New));
    let older = take(&mut records, 1, record(1, 6, 0));
    assert_eq!(older, Err(Refused::Older { newest: 7, found: 6 }));
    let held = records.get(&peer(1), NOW_MS).expect("it is held");
    assert_eq!(held.record().sequence, 7);
    assert_eq!(records.iter(NOW_MS).count(), 1);
}

#[test]
fn a_record_counts_only_under_its_nodes_key_and_signature() {
    let mut records = records(10);
    assert_eq!(take(&mut records, 2, record(1, 5, 0)), Err(Refused::WrongKey(peer(1))));
    let keyless = records.take(b"", record(1, 5, 0), NOW_MS);
    assert_eq!(keyless, Err(Refused::WrongKey(peer(1))));
    let mut forged = record(1, 5, 0).to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let forged = take(&mut records, 1, forged.into()).expect_err("it is forged");
    assert!(matches!(forged, Refused::Record(RecordError::Signature(_))), "{forged}");
    assert!(forged.is_senders_fault());
    assert!(
        take(&mut records, 1, Bytes::from_static(b"rubbish"))
            .expect_err("it is none")
            .is_senders_fault()
    );
    assert_eq!(records.iter(NOW_MS).count(), 0);
}

#[test]
fn what_is_over_is_not_given_and_what_is_older_does_not_come_back() {
    let mut records = records(10);
    assert_eq!(take(&mut records, 1, record(1, 5, 0)), Ok(Taken::New));
    let later = NOW_MS + 3_600_000;
    assert!(records.get(&peer(1), later - 1).is_some());
    assert!(records.get(&peer(1), later).is_none());
    let expired = records.take(&record_key(&peer(2)), record(2, 5, 0), later);
    assert!(matches!(expired, Err(Refused::Record(RecordError::Expired(_)))), "{expired:?}");
    assert!(!expired.expect_err("it expired").is_senders_fault());
    let older = records.take(&record_key(&peer(1)), record(1, 4, 0), later);
    assert_eq!(older, Err(Refused::Older { newest: 5, found: 4 }));
}

#[test]
fn two_records_of_one_number_are_evidence_against_their_node() {
    let mut records = records(10);
    let (first, second) = (record(1, 5, 0), record(1, 5, 1));
    assert_eq!(take(&mut records, 1, first.clone()), Ok(Taken::New));
    let refused = take(&mut records, 1, second.clone()).expect_err("it contradicts");
    assert!(!refused.is_senders_fault(), "who brings the second may not know the first");
    let evidence = Equivocation { first: first.clone(), second };
    assert_eq!(refused, Refused::Equivocation(Box::new(evidence.clone())));
    assert_eq!(evidence.proves(), Some(peer(1)));
    assert_eq!(records.evidence().collect::<Vec<_>>(), [(&peer(1), &evidence)]);
    // Neither counts any more, nor does a third.
    assert!(records.get(&peer(1), NOW_MS).is_none());
    let third = take(&mut records, 1, record(1, 6, 0));
    assert_eq!(third, Err(Refused::Equivocator(peer(1))));
    // The controls: one record twice, two numbers, two nodes prove nothing.
    let proves = |second| Equivocation { first: first.clone(), second }.proves();
    assert_eq!(proves(first.clone()), None);
    assert_eq!(proves(record(1, 6, 0)), None);
    assert_eq!(proves(record(2, 5, 1)), None);
    assert_eq!(proves(Bytes::new()), None);
}

#[test]
fn the_room_is_bounded_and_goes_to_the_nearest() {
    let mut records = records(4);
    let taken = (1..100).filter(|n| take(&mut records, *n, record(*n, 5, 0)).is_ok()).count();
    assert!(taken > 4, "nearer ones push others out");
    assert_eq!(records.iter(NOW_MS).count(), 4);
    let full = (1..100).filter_map(|n| take(&mut records, n, record(n, 5, 0)).err());
    let full: Vec<Refused> = full.collect();
    assert_eq!(full.len(), 95, "the four nearest stay");
    assert!(full.iter().all(|r| matches!(r, Refused::Full(_)) && !r.is_senders_fault()));
    // What was over for so long that nothing older can count makes room.
    let much_later = NOW_MS + RECORD_LIFE_MAX_S * 1000;
    let Refused::Full(farthest) = &full[0] else { panic!("{}", full[0]) };
    let farthest = farthest.record().clone();
    let seed = (1..100).find(|n| peer(*n) == farthest.peer).expect("it is one of them");
    let fresh = Record { expires_unix_s: much_later / 1000 + 60, ..farthest };
    let fresh = SignedRecord::sign(&fresh, &key(seed)).expect("a record").encode();
    let taken = records.take(&record_key(&fresh_peer(&fresh)), fresh, much_later);
    assert_eq!(taken, Ok(Taken::New));
}

fn fresh_peer(bytes: &Bytes) -> PeerId {
    SignedRecord::decode(bytes.clone()).expect("a record").record().peer
}
