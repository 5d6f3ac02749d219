//! Which records count: the newest valid one of each node, and what its maker cannot explain away.

use std::collections::HashMap;

use bytes::Bytes;
use sluice_proto::record::RECORD_LIFE_MAX_S;
use sluice_proto::{PeerId, RecordError, SignedRecord};

/// What a record's key in the DHT begins with; the node's id follows.
const KEY_PREFIX: &[u8] = b"/sluice/record/1/";
/// Most records that are held: with the largest there are, 16 MiB. A DHT of 100,000 nodes gives each
/// about twenty to keep.
pub const RECORDS_MAX: usize = 4096;
/// Most contradictions that are kept.
pub const EVIDENCE_MAX: usize = 256;

/// The key of a node's record in the DHT.
#[must_use]
pub fn record_key(peer: &PeerId) -> Vec<u8> {
    [KEY_PREFIX, &peer.to_bytes()].concat()
}

/// The inverse of [`record_key`].
pub(crate) fn peer_of_key(key: &[u8]) -> Option<PeerId> {
    PeerId::from_bytes(key.strip_prefix(KEY_PREFIX)?).ok()
}

/// Two different records of one node with one sequence number: both carry its signature, so anyone
/// can check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equivocation {
    /// What was seen first, as it was published.
    pub first: Bytes,
    /// What contradicts it.
    pub second: Bytes,
}

impl Equivocation {
    /// The node that contradicts itself, if it does: both are its records, of one number, and differ.
    #[must_use]
    pub fn proves(&self) -> Option<PeerId> {
        let first = SignedRecord::decode(self.first.clone()).ok()?;
        let second = SignedRecord::decode(self.second.clone()).ok()?;
        let id = |signed: &SignedRecord| (signed.record().peer, signed.record().sequence);
        let differ = first.signed_bytes() != second.signed_bytes();
        (id(&first) == id(&second) && differ).then_some(first.record().peer)
    }
}

/// What a record that was taken is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Newer than what was held.
    New,
    /// The one that was held.
    Known,
}

/// Why a record is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is none, or not one that counts now.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It stands under another node's key.
    #[error("the record of {0} stands under another key")]
    WrongKey(PeerId),
    /// A newer one was seen.
    #[error("the record has number {found}, and one with {newest} was seen")]
    Older {
        /// The highest number seen.
        newest: u64,
        /// Its number.
        found: u64,
    },
    /// It contradicts the one that was seen.
    #[error("two records of one node have one number")]
    Equivocation(Box<Equivocation>),
    /// Its node contradicted itself before.
    #[error("{0} contradicted itself")]
    Equivocator(PeerId),
    /// There is no room, and it is farther from us than all that are held.
    #[error("no room for a record of a node so far away")]
    Full(Box<SignedRecord>),
}

impl Refused {
    /// Whether who passed it on should have known better: the rest happens to honest nodes whose
    /// clock or view differs.
    #[must_use]
    pub const fn is_senders_fault(&self) -> bool {
        match self {
            Self::Record(RecordError::Version(_)) => false,
            Self::Record(
                RecordError::Expired(_) | RecordError::TooLong(_) | RecordError::Future(_),
            ) => false,
            Self::Record(_) | Self::WrongKey(_) => true,
            Self::Older { .. } | Self::Equivocation(_) | Self::Equivocator(_) | Self::Full(_) => {
                false
            }
        }
    }
}

#[derive(Debug)]
struct Held {
    signed: SignedRecord,
    /// Unix milliseconds: after it, whatever is older has expired too.
    forget_ms: u64,
}

/// The newest valid record of each node that was heard of, and evidence.
///
/// It reads no clock: `now_ms` is unix milliseconds. A record stays after its expiry, unseen, for as
/// long as an older one could still be valid, so that the older one does not come back.
#[derive(Debug)]
pub struct Records {
    own: PeerId,
    held: HashMap<PeerId, Held>,
    evidence: HashMap<PeerId, Equivocation>,
    capacity: usize,
}

impl Records {
    /// None yet, in the store of node `own`, with room for `capacity`.
    #[must_use]
    pub fn new(own: PeerId, capacity: usize) -> Self {
        Self { own, held: HashMap::new(), evidence: HashMap::new(), capacity }
    }

    /// Takes a record that was received, under its DHT `key`, or refuses it.
    ///
    /// # Errors
    /// Says why it does not count.
    pub fn take(&mut self, key: &[u8], bytes: Bytes, now_ms: u64) -> Result<Taken, Refused> {
        let signed = SignedRecord::decode(bytes)?;
        let peer = signed.record().peer;
        if peer_of_key(key) != Some(peer) {
            return Err(Refused::WrongKey(peer));
        }
        self.take_signed(signed, now_ms)
    }

    /// Takes a record that came another way than through the DHT.
    ///
    /// # Errors
    /// Says why it does not count.
    pub fn take_signed(&mut self, signed: SignedRecord, now_ms: u64) -> Result<Taken, Refused> {
        let peer = signed.record().peer;
        if self.evidence.contains_key(&peer) {
            return Err(Refused::Equivocator(peer));
        }
        self.compare(&signed)?;
        signed.check_time(now_ms)?;
        if self.held.get(&peer).is_some_and(|h| h.signed.signed_bytes() == signed.signed_bytes()) {
            return Ok(Taken::Known);
        }
        if !self.make_room(&peer, now_ms) {
            return Err(Refused::Full(Box::new(signed)));
        }
        let forget_ms = now_ms.saturating_add(RECORD_LIFE_MAX_S * 1000);
        self.held.insert(peer, Held { signed, forget_ms });
        Ok(Taken::New)
    }

    /// Refuses what is older than what is held, or contradicts it.
    fn compare(&mut self, signed: &SignedRecord) -> Result<(), Refused> {
        let peer = signed.record().peer;
        let Some(held) = self.held.get(&peer).map(|h| &h.signed) else { return Ok(()) };
        let (newest, found) = (held.record().sequence, signed.record().sequence);
        if found < newest {
            return Err(Refused::Older { newest, found });
        }
        if found > newest || held.signed_bytes() == signed.signed_bytes() {
            return Ok(());
        }
        let evidence = Equivocation { first: held.encode(), second: signed.encode() };
        if self.evidence.len() < EVIDENCE_MAX {
            self.evidence.insert(peer, evidence.clone());
            self.held.remove(&peer);
        }
        Err(Refused::Equivocation(Box::new(evidence)))
    }

    /// Whether there is room: drops what is over, and at need the record of the node farthest from us.
    fn make_room(&mut self, peer: &PeerId, now_ms: u64) -> bool {
        if self.held.len() < self.capacity || self.held.contains_key(peer) {
            return true;
        }
        self.held.retain(|_, held| held.forget_ms > now_ms);
        if self.held.len() < self.capacity {
            return true;
        }
        let own = self.own;
        let farthest = self.held.keys().filter(|p| **p != own).max_by_key(|p| distance(&own, p));
        match farthest.copied() {
            Some(farthest) if distance(&own, peer) < distance(&own, &farthest) => {
                self.held.remove(&farthest);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes evidence that was found elsewhere: no record of that node counts any more.
    pub fn condemn(&mut self, evidence: &Equivocation) {
        let Some(peer) = evidence.proves() else { return };
        self.held.remove(&peer);
        if self.evidence.len() < EVIDENCE_MAX {
            self.evidence.insert(peer, evidence.clone());
        }
    }

    /// The record of a node, if one is held that has not expired.
    #[must_use]
    pub fn get(&self, peer: &PeerId, now_ms: u64) -> Option<&SignedRecord> {
        self.held.get(peer).map(|h| &h.signed).filter(|signed| holds(signed, now_ms))
    }

    /// All that have not expired, in no order.
    pub fn iter(&self, now_ms: u64) -> impl Iterator<Item = &SignedRecord> {
        self.held.values().map(|h| &h.signed).filter(move |signed| holds(signed, now_ms))
    }

    /// Contradictions that were seen, each with who is to blame.
    pub fn evidence(&self) -> impl Iterator<Item = (&PeerId, &Equivocation)> {
        self.evidence.iter()
    }
}

const fn holds(signed: &SignedRecord, now_ms: u64) -> bool {
    signed.record().expires_unix_s > now_ms / 1000
}

/// How far apart two nodes' records lie in the DHT.
fn distance(one: &PeerId, other: &PeerId) -> libp2p::kad::KBucketDistance {
    let key = |peer| libp2p::kad::KBucketKey::new(record_key(peer));
    key(one).distance(&key(other))
}
