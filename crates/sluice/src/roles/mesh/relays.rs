//! The relays that a node has heard of.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_market::{IpPrefix, Limiter};
use sluice_mesh::{Equivocation, Records, Refused, Taken, Verdict, is_public_ip};
use sluice_proto::ask::{ASK_MAX, RELAYS_KNOWN_MAX};
use sluice_proto::{PeerId, Price, RecordError, RelayAddr, SignedRecord};
use sluice_transport::Random;
use tokio::sync::watch;

/// Most relays that are known; beyond, those nearest to this node by the distance of names, which nobody
/// chooses.
const RELAYS_MAX: usize = 1024;
/// Records of one relay by gossip: one every ..
const RECORD_EVERY: Duration = Duration::from_secs(60);
/// .. and so many at once: its addresses may change.
const RECORD_BURST: u32 = 5;
/// Records of one network by gossip: one every ..
const PREFIX_EVERY: Duration = Duration::from_secs(10);
/// .. and so many at once.
const PREFIX_BURST: u32 = 64;
/// Room of an answer beside its records, bytes: their lengths, the version.
const ANSWER_MARGIN: usize = 256;

/// A relay that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownRelay {
    /// Its name.
    pub peer: PeerId,
    /// Its data socket, the first that may be dialled.
    pub address: RelayAddr,
    /// What it asks.
    pub price: Price,
    /// Unix seconds.
    pub expires_unix_s: u64,
}

/// Their newest records.
#[derive(Debug)]
pub(super) struct RelayTable {
    private: bool,
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Table {
    records: Records,
    of_peers: Limiter<PeerId>,
    of_prefixes: Limiter<IpPrefix>,
}

impl RelayTable {
    /// None is known yet. `private`: relays of private networks count.
    pub(super) fn new(own: PeerId, private: bool) -> Self {
        let table = Table {
            records: Records::new(own, RELAYS_MAX),
            of_peers: Limiter::new(RECORD_EVERY, RECORD_BURST, RELAYS_MAX),
            of_prefixes: Limiter::new(PREFIX_EVERY, PREFIX_BURST, RELAYS_MAX),
        };
        Self { private, table: Mutex::new(table), changed: watch::Sender::new(0) }
    }

    pub(super) fn is_private(&self) -> bool {
        self.private
    }

    /// Takes a record by gossip, and says whether it goes on: only what is new does, so that nothing goes
    /// in circles.
    pub(super) fn hear(&self, bytes: Bytes, now: Instant, now_ms: u64) -> Verdict {
        let Ok(signed) = SignedRecord::decode(bytes) else { return Verdict::Reject };
        if signed.record().relay.is_none() {
            return Verdict::Reject;
        }
        let Some(relay) = self.usable(&signed) else { return Verdict::Ignore };
        let mut table = self.table.lock();
        let prefix = IpPrefix::of(relay.address.addr.ip());
        if !table.of_peers.admit(&relay.peer, now) || !table.of_prefixes.admit(&prefix, now) {
            return Verdict::Ignore;
        }
        let taken = table.records.take_signed(signed, now_ms);
        drop(table);
        match taken {
            Ok(Taken::New) => {
                self.tell();
                Verdict::Accept
            }
            Ok(Taken::Known) => Verdict::Ignore,
            // There is no room here, which may be elsewhere.
            Err(Refused::Full(_)) => Verdict::Accept,
            Err(Refused::Record(
                RecordError::Expired(_) | RecordError::TooLong(_) | RecordError::Future(_),
            )) => Verdict::Ignore,
            Err(Refused::Record(_) | Refused::WrongKey(_)) => Verdict::Reject,
            // Both go on: whoever sees both can tell.
            Err(Refused::Equivocation(_)) => {
                self.tell();
                Verdict::Accept
            }
            Err(Refused::Older { .. } | Refused::Equivocator(_)) => Verdict::Ignore,
        }
    }

    /// Takes a record that somebody answered with.
    pub(super) fn learn(&self, bytes: Bytes, now_ms: u64) {
        let Ok(signed) = SignedRecord::decode(bytes) else { return };
        if self.usable(&signed).is_none() {
            return;
        }
        let taken = self.table.lock().records.take_signed(signed, now_ms);
        match taken {
            Ok(Taken::New) | Err(Refused::Equivocation(_)) => self.tell(),
            Ok(Taken::Known) | Err(_) => {}
        }
    }

    /// No record of a node that contradicts itself counts.
    pub(super) fn condemn(&self, evidence: &Equivocation) {
        self.table.lock().records.condemn(evidence);
        self.tell();
    }

    /// Those whose records have not expired, in no order.
    pub(super) fn list(&self, now_ms: u64) -> Vec<KnownRelay> {
        let table = self.table.lock();
        table.records.iter(now_ms).filter_map(|signed| self.usable(signed)).collect()
    }

    /// The records themselves.
    pub(super) fn records(&self, now_ms: u64) -> Vec<SignedRecord> {
        self.table.lock().records.iter(now_ms).cloned().collect()
    }

    /// Records for one who asks, `own` first: as many as fit an answer, others each time.
    pub(super) fn some(&self, own: Option<Bytes>, now_ms: u64) -> Vec<Bytes> {
        let mut records: Vec<Bytes> = {
            let table = self.table.lock();
            table.records.iter(now_ms).map(SignedRecord::encode).collect()
        };
        if let Ok(len) = u64::try_from(records.len())
            && len > 0
        {
            let from = usize::try_from(Random::default().number() % len).unwrap_or_default();
            records.rotate_left(from);
        }
        let mut room = ASK_MAX - ANSWER_MARGIN;
        let fits = |record: &Bytes| {
            let fits = record.len() <= room;
            room -= if fits { record.len() } else { 0 };
            fits
        };
        own.into_iter().chain(records).filter(fits).take(RELAYS_KNOWN_MAX).collect()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// What a record says of a relay that may be dialled from here: a stranger must not make a home knock
    /// at its own devices.
    fn usable(&self, signed: &SignedRecord) -> Option<KnownRelay> {
        let record = signed.record();
        let relay = record.relay.as_ref()?;
        let may = |address: &&RelayAddr| self.private || is_public_ip(address.addr.ip());
        let address = *relay.addresses.iter().find(may)?;
        Some(KnownRelay {
            peer: record.peer,
            address,
            price: relay.price,
            expires_unix_s: record.expires_unix_s,
        })
    }
}
