//! How long a payee may rely on what it saw of the channel that pays it.
//!
//! A payer that starts to close may be refunded once the channel's period is over, and then no voucher
//! is worth anything. So a payee looks again and again, gives nothing more once it sees the close begin,
//! and stops by itself when it could not look for too long. Whatever it gives is given so early before
//! the payer's refund that its vouchers can still be redeemed: by the longest wait between two looks,
//! ten minutes at most, less than the period; or, as long as the chain cannot be read, by
//! [`REDEEM_MARGIN`]. Beyond that it can lose what it always can, one window.

use std::time::{Duration, Instant};

use crate::repeat::after;

/// Between the last byte that is given on a channel that cannot be seen and the earliest refund of its
/// payer: a node that was down for a day may be down for another one.
pub const REDEEM_MARGIN: Duration = Duration::from_secs(24 * 60 * 60);
/// A channel that was seen, and on which nothing moved since, is looked at this often, or as often as
/// all others are if that is less.
const LOOK_IDLE: Duration = Duration::from_secs(10 * 60);

/// What is known of a channel, and since when.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    look: Duration,
    good_for: Duration,
    /// The look that saw it open last began then.
    seen: Instant,
    looked: Instant,
    /// What had been counted at the last look.
    total: u64,
}

impl Sight {
    /// Of a channel with this close period, seconds, that was seen open at `now`, and is to be looked
    /// at each `look` while bytes move.
    #[must_use]
    pub fn new(period_s: u32, look: Duration, now: Instant) -> Self {
        let good_for = Duration::from_secs(u64::from(period_s)).saturating_sub(REDEEM_MARGIN);
        Self { look, good_for, seen: now, looked: now, total: 0 }
    }

    /// Whether to look now that `total` bytes were counted. `expects`: something is to come of the
    /// chain, as that a deposit becomes final.
    #[must_use]
    pub fn is_due(&self, total: u64, expects: bool, now: Instant) -> bool {
        let was_seen = self.seen >= self.looked;
        let is_idle = was_seen && total == self.total && !expects;
        let rest = if is_idle { self.look.max(LOOK_IDLE) } else { self.look };
        after(self.looked, rest) <= now
    }

    /// A look begins.
    pub const fn handle_look(&mut self, total: u64, now: Instant) {
        (self.looked, self.total) = (now, total);
    }

    /// A look that began at `began` saw the channel open.
    pub fn handle_open(&mut self, began: Instant) {
        self.seen = self.seen.max(began);
    }

    /// When it was looked at last.
    #[must_use]
    pub const fn looked(&self) -> Instant {
        self.looked
    }

    /// When the channel was seen open last.
    #[must_use]
    pub const fn seen(&self) -> Instant {
        self.seen
    }

    /// Whether it was not seen for too long: nothing more may be given on it.
    #[must_use]
    pub fn is_lost(&self, now: Instant) -> bool {
        after(self.seen, self.good_for) <= now
    }
}
