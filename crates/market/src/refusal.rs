//! What is refused, by name.

use std::collections::BTreeMap;

use sluice_proto::market::{AwardRefusal, MarketError};

use crate::SealError;

/// Why an order is not even considered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// Malformed, or not signed by its tenant.
    #[error("{0}")]
    Message(#[from] MarketError),
    /// Its time for bids is over.
    #[error("order: the time for bids ended {0} ms ago")]
    Expired(u64),
    /// Made in the future.
    #[error("order: made {0} ms in the future")]
    Future(u64),
    /// It came before.
    #[error("order: it came before")]
    Replayed,
    /// It does not ask this node.
    #[error("order: it asks others")]
    NotAsked,
    /// Its stamp is too small.
    #[error("order: its stamp is of {found} bits, and {wanted} are asked for")]
    Stamp {
        /// Of the stamp.
        found: u32,
        /// Asked for.
        wanted: u32,
    },
    /// Its tenant sends too many.
    #[error("order: its tenant sends too many")]
    Limit,
    /// As many are considered as can be.
    #[error("order: too many at once")]
    Full,
    /// Its tenant awarded and never funded, too often.
    #[error("order: its tenant did not fund what it was awarded")]
    Shunned,
}

impl OrderRefusal {
    /// Its name, for counting.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Message(error) => message_name(error),
            Self::Expired(_) => "expired",
            Self::Future(_) => "future",
            Self::Replayed => "replayed",
            Self::NotAsked => "not_asked",
            Self::Stamp { .. } => "stamp",
            Self::Limit => "limit",
            Self::Full => "full",
            Self::Shunned => "shunned",
        }
    }
}

/// Why a bid is not considered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BidRefusal {
    /// Malformed, or not signed by its bidder.
    #[error("{0}")]
    Message(#[from] MarketError),
    /// Not sealed to the order's key.
    #[error("bid: {0}")]
    Seal(#[from] SealError),
    /// No such order, or it is decided.
    #[error("bid: no open order of this name")]
    UnknownOrder,
    /// Inside is a bid for another order.
    #[error("bid: sealed for one order, made for another")]
    OtherOrder,
    /// Sent by another than the one who signed it.
    #[error("bid: sent by another than its bidder")]
    OtherSender,
    /// It came before.
    #[error("bid: it came before")]
    Replayed,
    /// The bidder made two different ones: evidence against it.
    #[error("bid: its bidder made another one before")]
    Contradiction,
    /// Sooner than the order's clock allows at this price.
    #[error("bid: {0} ms too early for its price")]
    TooEarly(u64),
    /// It no longer holds, or not for as long as an award takes.
    #[error("bid: it does not hold for long enough")]
    Expired,
    /// The order did not ask this bidder.
    #[error("bid: its bidder was not asked")]
    NotAsked,
    /// Above the order's highest price.
    #[error("bid: above the highest price")]
    TooDear,
    /// The expected volume at this price is above the budget.
    #[error("bid: the expected volume costs more than the budget")]
    OverBudget,
    /// Below the order's least rates.
    #[error("bid: below the least rate")]
    TooSlow,
    /// Below the order's least proven rate.
    #[error("bid: less uplink is proven than is asked for")]
    NotProven,
    /// It wants a longer close period than the order gives.
    #[error("bid: wants a longer close period than the order gives")]
    Period,
    /// It failed before, too often.
    #[error("bid: its bidder won before and did not serve")]
    Shunned,
    /// Its sender sends too many.
    #[error("bid: too many from one sender")]
    Limit,
    /// Too many from one network.
    #[error("bid: too many from one network")]
    PrefixLimit,
    /// As many are considered as can be, and all are cheaper.
    #[error("bid: enough cheaper ones came")]
    Full,
}

impl BidRefusal {
    /// Its name, for counting.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Message(error) => message_name(error),
            Self::Seal(_) => "seal",
            Self::UnknownOrder => "unknown_order",
            Self::OtherOrder => "other_order",
            Self::OtherSender => "other_sender",
            Self::Replayed => "replayed",
            Self::Contradiction => "contradiction",
            Self::TooEarly(_) => "too_early",
            Self::Expired => "expired",
            Self::NotAsked => "not_asked",
            Self::TooDear => "too_dear",
            Self::OverBudget => "over_budget",
            Self::TooSlow => "too_slow",
            Self::NotProven => "not_proven",
            Self::Period => "period",
            Self::Shunned => "shunned",
            Self::Limit => "limit",
            Self::PrefixLimit => "prefix_limit",
            Self::Full => "full",
        }
    }
}

/// Why an award, or what a tenant gets in answer to one, changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AwardRefused {
    /// Malformed, or not signed by whom it names.
    #[error("{0}")]
    Message(#[from] MarketError),
    /// Well-formed, but not to be signed.
    #[error("award: {0}")]
    Refused(#[from] AwardRefusal),
    /// Too many from one network or sender.
    #[error("award: too many from one sender")]
    Limit,
    /// The answer to an award that was not made to its sender, or is no longer waited for.
    #[error("award: nothing is waited for from its sender")]
    NotAwaited,
}

impl AwardRefused {
    /// Its name, for counting.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Message(error) => message_name(error),
            Self::Refused(AwardRefusal::UnknownBid) => "unknown_bid",
            Self::Refused(AwardRefusal::OtherTerms) => "other_terms",
            Self::Refused(AwardRefusal::NoRoom) => "no_room",
            Self::Refused(AwardRefusal::TooLate) => "too_late",
            Self::Limit => "limit",
            Self::NotAwaited => "not_awaited",
        }
    }
}

const fn message_name(error: &MarketError) -> &'static str {
    match error {
        MarketError::Wire { error: sluice_proto::wire::WireError::TooLarge { .. }, .. } => {
            "oversized"
        }
        MarketError::Wire { .. } | MarketError::Field { .. } | MarketError::Missing { .. } => {
            "malformed"
        }
        MarketError::Version { .. } => "version",
        MarketError::Range { .. } => "range",
        MarketError::Contradiction { .. } => "self_contradicting",
        MarketError::Signature { .. } | MarketError::Wallet { .. } => "signature",
    }
}

/// How often each was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn count(&mut self, name: &'static str) {
        let count = self.0.entry(name).or_default();
        *count = count.saturating_add(1);
    }

    /// How often by this name.
    #[must_use]
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All names and counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, count)| (*name, *count))
    }
}
