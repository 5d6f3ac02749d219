//! What a reservation forwarded, and how far it may go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sluice_proto::LeaseId;

use crate::limits::{FedClock, Throttle};

/// Counts of frame bytes, headers included, since this process first saw the reservation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccountTotals {
    /// Billed bytes from the holder.
    pub up: u64,
    /// Billed bytes to the holder.
    pub down: u64,
    /// Bytes forwarded without a bill, either way: provisional flows and trickles.
    pub unbilled: u64,
}

/// The account of one reservation. Shared by threads: each count is exact, and the limit is never
/// passed by a byte, whichever thread forwards.
#[derive(Debug)]
pub struct Account {
    lease: LeaseId,
    metered: bool,
    /// `up + down`: the one number that the limit is compared with.
    total: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    unbilled: AtomicU64,
    limit: AtomicU64,
    /// The total at which the owner wants to hear; `u64::MAX` once it was told.
    alarm: AtomicU64,
    /// Whether something was held back since the limit was last raised.
    unpaid: AtomicBool,
    /// Whether an eighth of the trickle is used to forgive what is owed.
    forgives: AtomicBool,
    pub(crate) throttle: Throttle,
    trickle: Throttle,
}

/// Which way bytes go, as seen by the holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

impl Account {
    pub(crate) fn new(lease: LeaseId, metered: bool, bits_per_s: u64, clock: &FedClock) -> Self {
        Self {
            lease,
            metered,
            total: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            unbilled: AtomicU64::new(0),
            limit: AtomicU64::new(if metered { 0 } else { u64::MAX }),
            alarm: AtomicU64::new(u64::MAX),
            unpaid: AtomicBool::new(false),
            forgives: AtomicBool::new(false),
            throttle: Throttle::new(bits_per_s, clock),
            trickle: Throttle::trickle(clock),
        }
    }

    /// The reservation's id.
    #[must_use]
    pub const fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Whether windows and grants apply: false at price 0.
    #[must_use]
    pub const fn is_metered(&self) -> bool {
        self.metered
    }

    /// Counts so far.
    #[must_use]
    pub fn totals(&self) -> AccountTotals {
        AccountTotals {
            up: self.up.load(Ordering::Relaxed),
            down: self.down.load(Ordering::Relaxed),
            unbilled: self.unbilled.load(Ordering::Relaxed),
        }
    }

    /// Billed bytes so far, both ways together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// The total of billed bytes, both ways, that it may reach.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether the limit held something back and was not raised since.
    #[must_use]
    pub fn is_unpaid(&self) -> bool {
        self.unpaid.load(Ordering::Relaxed)
    }

    /// Takes `bytes` if they stay within the limit; none if not. True: the owner's alarm went off.
    #[inline]
    pub(crate) fn charge(&self, way: Way, bytes: u64) -> Option<bool> {
        let before = self.total.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit.load(Ordering::Relaxed) {
            self.total.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        let count = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        count.fetch_add(bytes, Ordering::Relaxed);
        let after = before + bytes;
        Some(
            after >= self.alarm.load(Ordering::Relaxed)
                && self.alarm.swap(u64::MAX, Ordering::Relaxed) != u64::MAX,
        )
    }

    /// Sets the total, both ways together, at which [`crate::Action::Report`] comes once.
    pub fn set_alarm(&self, total: u64) {
        self.alarm.store(total, Ordering::Relaxed);
    }

    /// Whether the limit rises by 2 kbit/s that nobody pays for: as much is taken from the trickle.
    pub fn set_forgives(&self, forgives: bool) {
        self.forgives.store(forgives, Ordering::Relaxed);
    }

    /// Whether `bytes` beyond the limit may go on.
    pub(crate) fn trickles(&self, bytes: usize) -> bool {
        let extra = if self.forgives.load(Ordering::Relaxed) { bytes.div_ceil(7) } else { 0 };
        self.trickle.allows(bytes + extra)
    }

    pub(crate) fn count_unbilled(&self, bytes: u64) {
        self.unbilled.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that the limit held something back. True: for the first time since it was raised.
    pub(crate) fn mark_unpaid(&self) -> bool {
        !self.unpaid.swap(true, Ordering::Relaxed)
    }

    /// Sets the limit. True: it was met, and now there is room again.
    pub(crate) fn set_limit(&self, limit: u64) -> bool {
        self.limit.store(limit, Ordering::Relaxed);
        self.total.load(Ordering::Relaxed) < limit && self.unpaid.swap(false, Ordering::Relaxed)
    }
}
