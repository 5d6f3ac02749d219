//! What a provider sells, to whom, and at what price.

use std::collections::BTreeSet;

use sluice_proto::market::{Money, Order, ServiceOffer};
use sluice_proto::{PeerId, Price};

/// Minutes of a day.
const DAY_MIN: u32 = 24 * 60;

/// A part of each day, in minutes since midnight of the home's own time; across midnight if it ends
/// before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// When it begins.
    pub from_min: u32,
    /// When it ends; that minute is outside.
    pub to_min: u32,
}

impl Hours {
    fn contains(self, minute: u32) -> bool {
        if self.from_min <= self.to_min {
            (self.from_min..self.to_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.to_min
        }
    }
}

/// What the owner of a home allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BidPolicy {
    /// The price while the month's bytes are unused.
    pub floor: Price,
    /// The price of the last of them.
    pub ceiling: Price,
    /// Chains and tokens that are taken.
    pub money: Vec<Money>,
    /// What can be reached.
    pub services: Vec<ServiceOffer>,
    /// Bits per second from the home: proven, or as the owner says.
    pub uplink: u64,
    /// Bits per second to it.
    pub downlink: u64,
    /// Of the uplink, what is never sold.
    pub uplink_kept: u64,
    /// Bytes that may be sold in a month, both ways; 0: no bound.
    pub month_bytes: u64,
    /// When nothing is sold.
    pub closed: Vec<Hours>,
    /// The home's time zone, in minutes east of UTC.
    pub utc_offset_min: i32,
    /// Whom not to serve.
    pub denied: BTreeSet<PeerId>,
    /// Most leases at a time.
    pub leases_max: usize,
    /// Longest lease, seconds.
    pub duration_max_s: u32,
    /// Shortest close period of a tenant's channel, seconds.
    pub period_min_s: u32,
    /// Largest window, which is what a liar can take.
    pub window_max: u64,
    /// Zero bits that a stamp must begin with.
    pub stamp_bits: u32,
}

/// Why a provider does not bid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum NoBid {
    /// The tenant is on the deny list.
    #[error("the tenant is on the deny list")]
    Denied,
    /// Not at this hour.
    #[error("nothing is sold at this hour")]
    Closed,
    /// A service is not offered.
    #[error("it asks for a service that is not offered here")]
    Service,
    /// Another chain or token.
    #[error("it pays on a chain or in a token that is not taken here")]
    Money,
    /// The lease would be too long.
    #[error("it lasts longer than is sold")]
    Duration,
    /// The close period is too short.
    #[error("its close period is shorter than is taken here")]
    Period,
    /// The windows do not meet.
    #[error("its least window is larger than is risked here")]
    Window,
    /// The line is not fast enough.
    #[error("it asks for more than the line has, less what the household keeps")]
    Rate,
    /// The line is fast enough, but leased.
    #[error("too much of the line is leased")]
    Leased,
    /// Too many leases.
    #[error("as many leases run as may")]
    Leases,
    /// Not so much is proven.
    #[error("it asks for a certificate of a higher rate")]
    NotProven,
    /// The month's bytes are used.
    #[error("the month's bytes are used or promised")]
    Month,
    /// The tenant pays less.
    #[error("it pays less than is asked here")]
    TooCheap,
    /// What is expected costs more than the tenant would deposit.
    #[error("its budget is below what its volume costs here")]
    Budget,
}

/// What of the line and of the month is gone.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    pub(crate) rate_up: u64,
    pub(crate) rate_down: u64,
    pub(crate) leases: usize,
    /// Promised to leases, bytes.
    pub(crate) promised: u64,
    /// Used this month, bytes.
    pub(crate) used: u64,
}

impl BidPolicy {
    /// The price while so many of the month's bytes are used: from floor to ceiling in a line.
    #[must_use]
    pub fn price(&self, used: u64) -> Price {
        let climb = |floor: u128, ceiling: u128| {
            let (used, all) = (u128::from(used), u128::from(self.month_bytes));
            let rise = ceiling.saturating_sub(floor).saturating_mul(used.min(all));
            floor.saturating_add(rise.checked_div(all).unwrap_or(0))
        };
        Price {
            up: climb(self.floor.up, self.ceiling.up),
            down: climb(self.floor.down, self.ceiling.down),
        }
    }

    /// What to bid for an order.
    pub(crate) fn bid(
        &self,
        order: &Order,
        taken: &Taken,
        rate_proven: u64,
        unix_ms: u64,
    ) -> Result<Price, NoBid> {
        self.check_tenant(order, unix_ms)?;
        self.check_room(order, taken)?;
        if rate_proven < order.rate_proven_min {
            return Err(NoBid::NotProven);
        }
        let price = self.price(taken.used);
        if price.up > order.max_price.up || price.down > order.max_price.down {
            return Err(NoBid::TooCheap);
        }
        if order.cost(price) > order.budget {
            return Err(NoBid::Budget);
        }
        Ok(price)
    }

    fn check_tenant(&self, order: &Order, unix_ms: u64) -> Result<(), NoBid> {
        if self.denied.contains(&order.tenant) {
            return Err(NoBid::Denied);
        }
        let minute = self.minute_of_day(unix_ms);
        if self.closed.iter().any(|hours| hours.contains(minute)) {
            return Err(NoBid::Closed);
        }
        if !order.services.iter().all(|service| self.services.contains(service)) {
            return Err(NoBid::Service);
        }
        if order.money.is_some_and(|money| !self.money.contains(&money)) {
            return Err(NoBid::Money);
        }
        if order.duration_s > self.duration_max_s {
            return Err(NoBid::Duration);
        }
        if order.money.is_some() && order.period_s < self.period_min_s {
            return Err(NoBid::Period);
        }
        if order.window_min > self.window_max {
            return Err(NoBid::Window);
        }
        Ok(())
    }

    /// Whether a lease of this order fits beside what is taken.
    pub(crate) fn check_room(&self, order: &Order, taken: &Taken) -> Result<(), NoBid> {
        let (up, down) = (self.uplink.saturating_sub(self.uplink_kept), self.downlink);
        // What the tenant calls down is the home's uplink.
        if order.rate_down_min > up || order.rate_up_min > down {
            return Err(NoBid::Rate);
        }
        if order.rate_down_min > up.saturating_sub(taken.rate_up)
            || order.rate_up_min > down.saturating_sub(taken.rate_down)
        {
            return Err(NoBid::Leased);
        }
        if taken.leases >= self.leases_max {
            return Err(NoBid::Leases);
        }
        let volume = order.volume_up.saturating_add(order.volume_down);
        let gone = taken.used.saturating_add(taken.promised);
        if self.month_bytes != 0 && volume > self.month_bytes.saturating_sub(gone) {
            return Err(NoBid::Month);
        }
        Ok(())
    }

    fn minute_of_day(&self, unix_ms: u64) -> u32 {
        let minutes = i64::try_from(unix_ms / 60_000).unwrap_or(i64::MAX);
        let local = minutes.saturating_add(self.utc_offset_min.into());
        u32::try_from(local.rem_euclid(DAY_MIN.into())).expect("below a day's minutes")
    }
}
