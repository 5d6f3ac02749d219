//! Whom to take, and why not the others.

use std::time::Duration;

use sluice_proto::Amount;
use sluice_proto::market::AwardRefusal;

/// How a tenant chooses among bids that will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AwardPolicy {
    /// The cheapest; of several the nearest.
    #[default]
    Cheapest,
    /// The highest score.
    Score(Weights),
}

/// What counts how much; only their proportions matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// The expected cost.
    pub price: u16,
    /// The rate from the provider.
    pub rate: u16,
    /// The measured latency.
    pub latency: u16,
    /// Its share of successes with this tenant.
    pub success: u16,
}

/// What is known of a bid when it is to be chosen or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) cost: Amount,
    pub(crate) rate: u64,
    /// Absent if it could not be measured.
    pub(crate) latency: Option<Duration>,
    pub(crate) success_ppm: u32,
}

/// Why a bid was taken or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// It is the lease.
    #[error("taken")]
    Won,
    /// Not yet decided.
    #[error("undecided")]
    Open,
    /// Another costs less.
    #[error("costs {cost} for the expected volume, the one taken {taken}")]
    Dearer {
        /// What it costs.
        cost: Amount,
        /// What the one taken costs.
        taken: Amount,
    },
    /// Another of the same cost is nearer.
    #[error("costs as much as the one taken, which is nearer")]
    Farther,
    /// Another has a higher score.
    #[error("scores {score} of a million, the one taken {taken}")]
    LowerScore {
        /// Its score.
        score: u32,
        /// That of the one taken.
        taken: u32,
    },
    /// A person chose another.
    #[error("another was chosen by hand")]
    NotChosen,
    /// Farther than the tenant wants.
    #[error("{found:?} away, and at most {max:?} are wanted")]
    TooFar {
        /// Measured.
        found: Duration,
        /// Wanted.
        max: Duration,
    },
    /// A latency was asked for, and it could not be measured.
    #[error("its latency could not be measured")]
    NotMeasured,
    /// It was awarded and did not answer.
    #[error("did not answer the award")]
    NoAnswer,
    /// It was awarded and signed something else.
    #[error("its signatures on the lease are wrong")]
    WrongSignature,
    /// It was awarded and refused.
    #[error("refused the award: {0}")]
    Refused(AwardRefusal),
    /// It signed and did not serve.
    #[error("signed the lease and did not serve")]
    NoService,
}

/// Scores in millionths, the higher the better.
pub(crate) fn scores(facts: &[Facts], weights: Weights) -> Vec<u32> {
    let cheapest = facts.iter().map(|f| f.cost.0).min().unwrap_or(0);
    let fastest = facts.iter().map(|f| f.rate).max().unwrap_or(0);
    let nearest = facts.iter().filter_map(|f| f.latency).min().unwrap_or_default();
    let score = |f: &Facts| {
        let latency =
            f.latency.map_or(0, |latency| share(nearest.as_micros(), latency.as_micros()));
        let parts = [
            (weights.price, share(cheapest, f.cost.0)),
            (weights.rate, share(f.rate.into(), fastest.into())),
            (weights.latency, latency),
            (weights.success, f.success_ppm.into()),
        ];
        let all: u64 = parts.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let sum: u64 = parts.iter().map(|(weight, part)| u64::from(*weight) * part).sum();
        u32::try_from(sum.checked_div(all).unwrap_or(0)).expect("at most a million")
    };
    facts.iter().map(score).collect()
}

/// `part` of `whole` in millionths; all of nothing.
fn share(part: u128, whole: u128) -> u64 {
    let ppm = part.saturating_mul(1_000_000).checked_div(whole).unwrap_or(1_000_000);
    u64::try_from(ppm).unwrap_or(1_000_000).min(1_000_000)
}
