//! A flow, and what its holder granted to its tenant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use sluice_proto::FlowId;

use crate::account::Account;
use crate::leg::Leg;
use crate::limits::{FedClock, Throttle};

/// Packets that a tenant may send on a provisional flow.
const PROVISIONAL_PACKETS: u32 = 4;
/// Bytes to the holder that each pair of holder and tenant starts with, once.
const GRANT_START: u64 = 64 * 1024;
/// Of what the holder sent, this part is granted without a word.
const GRANT_PER_SENT: u64 = 8;

/// What a holder agreed to be billed for, coming from one tenant: 64 KiB once, 1/8 of the frame bytes
/// that it sent, and what it states. Outlives the flows between the two; begins anew with each
/// acceptance of the holder's, since its own count does.
#[derive(Debug, Default)]
pub(crate) struct Grant {
    sent: AtomicU64,
    stated: AtomicU64,
    used: AtomicU64,
}

impl Grant {
    fn allowed(&self) -> u64 {
        let sent = self.sent.load(Ordering::Relaxed) / GRANT_PER_SENT;
        let stated = self.stated.load(Ordering::Relaxed);
        GRANT_START.saturating_add(sent).saturating_add(stated)
    }

    /// Counts frame bytes that the holder sent.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts frame bytes that the holder grants by its word.
    fn state(&self, bytes: u64) {
        let add = |before: u64| Some(before.saturating_add(bytes));
        self.stated.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok();
    }

    /// Takes `bytes` if the grant covers them.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.allowed() {
            self.give_back(bytes);
            return false;
        }
        true
    }

    /// Undoes [`Grant::take`].
    pub(crate) fn give_back(&self, bytes: u64) {
        // It may have been renewed between.
        let subtract = |before: u64| Some(before.saturating_sub(bytes));
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract).ok();
    }

    /// Begins anew, as the holder's own count does when it accepts terms.
    pub(crate) fn renew(&self) {
        for count in [&self.sent, &self.stated, &self.used] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// Which end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Tenant,
    Holder,
}

/// One end of a flow.
#[derive(Debug)]
pub(crate) struct End {
    /// The flow's number on this hop, in both directions.
    pub(crate) number: FlowId,
    pub(crate) leg: Arc<Leg>,
    /// Frame bytes from this end that were forwarded.
    pub(crate) forwarded: AtomicU64,
}

impl End {
    pub(crate) fn new(number: FlowId, leg: Arc<Leg>) -> Self {
        Self { number, leg, forwarded: AtomicU64::new(0) }
    }
}

const PROVISIONAL: u8 = 0;
const OPEN: u8 = 1;

/// A pair of nodes across the relay. Shared by threads.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) tenant: End,
    pub(crate) holder: End,
    pub(crate) account: Arc<Account>,
    pub(crate) grant: Arc<Grant>,
    pub(crate) trickle: Throttle,
    state: AtomicU8,
    provisional_left: AtomicU32,
    unpaid: AtomicBool,
    /// What the holder granted by its word so far.
    stated: AtomicU64,
}

impl Flow {
    pub(crate) fn new(
        tenant: End,
        holder: End,
        account: Arc<Account>,
        grant: Arc<Grant>,
        clock: &FedClock,
    ) -> Self {
        Self {
            tenant,
            holder,
            account,
            grant,
            trickle: Throttle::trickle(clock),
            state: AtomicU8::new(PROVISIONAL),
            provisional_left: AtomicU32::new(PROVISIONAL_PACKETS),
            unpaid: AtomicBool::new(false),
            stated: AtomicU64::new(0),
        }
    }

    /// Takes the holder's word for what it grants on this flow, cumulative.
    pub(crate) fn granted(&self, stated: u64) {
        let before = self.stated.fetch_max(stated, Ordering::Relaxed);
        self.grant.state(stated.saturating_sub(before));
    }

    pub(crate) const fn end(&self, side: Side) -> &End {
        match side {
            Side::Tenant => &self.tenant,
            Side::Holder => &self.holder,
        }
    }

    pub(crate) const fn other(&self, side: Side) -> &End {
        match side {
            Side::Tenant => &self.holder,
            Side::Holder => &self.tenant,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) == OPEN
    }

    /// The holder answered, or sent a frame: it agreed.
    pub(crate) fn open(&self) {
        self.state.store(OPEN, Ordering::Relaxed);
    }

    /// Takes up to `n` of the packets that a provisional flow may carry; returns how many.
    pub(crate) fn take_provisional(&self, n: u32) -> u32 {
        let take = |left: u32| Some(left - left.min(n));
        self.provisional_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_or(0, |left| left.min(n))
    }

    /// Counts packets that go to the holder with the rendezvous: they are of those that a
    /// provisional flow may carry, and unbilled as those are.
    pub(crate) fn pass_first(&self, lengths: impl Iterator<Item = u64>) {
        for len in lengths {
            self.take_provisional(1);
            self.account.count_unbilled(len);
        }
    }

    /// Notes that the window held this flow back. True: for the first time since it was raised.
    pub(crate) fn mark_unpaid(&self) -> bool {
        !self.unpaid.swap(true, Ordering::Relaxed)
    }

    /// Notes that there is room again. True: the ends were told that there was none.
    pub(crate) fn clear_unpaid(&self) -> bool {
        self.unpaid.swap(false, Ordering::Relaxed)
    }
}
