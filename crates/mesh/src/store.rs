//! The DHT's store: the records that count, and nothing else.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use sluice_proto::SignedRecord;

use crate::clock::unix_ms;
use crate::records::{Records, peer_of_key, record_key};

/// [`Records`] as Kademlia wants them. What it puts is checked once more, so nothing that does not
/// count is ever handed on; provider records, which we have no use for, are refused.
#[derive(Debug)]
pub(crate) struct Store(pub(crate) Records);

/// A record as Kademlia carries it.
pub(crate) fn kad_record(signed: &SignedRecord, now_ms: u64) -> Record {
    let left_ms = (signed.record().expires_unix_s.saturating_mul(1000)).saturating_sub(now_ms);
    Record {
        key: RecordKey::from(record_key(&signed.record().peer)),
        value: signed.encode().to_vec(),
        publisher: None,
        expires: Instant::now().checked_add(Duration::from_millis(left_ms)),
    }
}

impl RecordStore for Store {
    type RecordsIter<'a> = std::vec::IntoIter<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let now_ms = unix_ms();
        let signed = self.0.get(&peer_of_key(key.as_ref())?, now_ms)?;
        Some(Cow::Owned(kad_record(signed, now_ms)))
    }

    fn put(&mut self, record: Record) -> Result<()> {
        let taken = self.0.take(record.key.as_ref(), record.value.into(), unix_ms());
        taken.map(drop).map_err(|_| Error::MaxRecords)
    }

    /// Records leave when they expire.
    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        let now_ms = unix_ms();
        let records = self.0.iter(now_ms).map(|signed| Cow::Owned(kad_record(signed, now_ms)));
        records.collect::<Vec<_>>().into_iter()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<()> {
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}
