//! What a relay passes on though it is none of its business: orders, so that tenants and providers who
//! are connected to it alone hear of one another.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_market::{Limiter, TenantPolicy};
use sluice_mesh::{Gossip, Verdict};
use sluice_proto::PeerId;
use sluice_proto::ask::{orders_region, orders_topic};
use sluice_proto::market::{OrderProof, SignedOrder, closes_order, stamp_bits};

/// Most topics; others are left to other relays.
const TOPICS_MAX: usize = 256;
/// Orders and closings of one node: one every ..
const SENDER_EVERY: Duration = Duration::from_secs(1);
/// .. and so many at once.
const SENDER_BURST: u32 = 40;
/// So many nodes are told apart.
const SENDERS_MAX: usize = 4096;
/// Clocks differ by this much at most, milliseconds.
const SKEW_MAX_MS: u64 = 30_000;

/// The topics of orders that peers of a relay listen to, and how much passes.
#[derive(Debug)]
pub(super) struct Hub {
    topics: Mutex<BTreeSet<String>>,
    senders: Mutex<Limiter<PeerId>>,
    stamp_bits: u32,
}

impl Default for Hub {
    fn default() -> Self {
        let senders = Limiter::new(SENDER_EVERY, SENDER_BURST, SENDERS_MAX);
        Self {
            topics: Mutex::default(),
            senders: Mutex::new(senders),
            // What tenants put on their orders unless they are told otherwise.
            stamp_bits: TenantPolicy::default().stamp_bits.unwrap_or(0),
        }
    }
}

impl Hub {
    /// Whether a topic that a peer listens to is to be listened to as well: each is said once.
    pub(super) fn wants(&self, topic: &str) -> bool {
        let mut topics = self.topics.lock();
        orders_region(topic).is_some()
            && topics.len() < TOPICS_MAX
            && topics.insert(topic.to_owned())
    }

    /// What only a liar sends is rejected; what comes too often, too early or too late goes no further.
    pub(super) fn judge(&self, gossip: &Gossip, now: Instant, now_ms: u64) -> Verdict {
        if let Ok((_, tenant)) = closes_order(&gossip.bytes) {
            return self.limit(&tenant, now);
        }
        let Ok(signed) = SignedOrder::parse(&gossip.bytes) else { return Verdict::Reject };
        let order = &signed.order;
        if signed.verify().is_err() || orders_topic(&order.region) != gossip.topic {
            return Verdict::Reject;
        }
        let late = order.bids_until_unix_ms.saturating_add(SKEW_MAX_MS) < now_ms;
        let early = order.made_unix_ms > now_ms.saturating_add(SKEW_MAX_MS);
        let cheap = match signed.proof {
            OrderProof::Stamp(stamp) => stamp_bits(signed.id, stamp) < self.stamp_bits,
            // Those who would bid ask the chain.
            OrderProof::Wallet(_) => false,
        };
        if late || early || cheap {
            return Verdict::Ignore;
        }
        self.limit(&order.tenant, now)
    }

    fn limit(&self, sender: &PeerId, now: Instant) -> Verdict {
        if self.senders.lock().admit(sender, now) { Verdict::Accept } else { Verdict::Ignore }
    }
}
