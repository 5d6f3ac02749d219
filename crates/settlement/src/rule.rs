//! When to turn vouchers into tokens.

use sluice_proto::Amount;

/// A fee is worth paying when it is below this many millionths of the amount: 1 %.
pub const FEE_FRACTION_DEFAULT_PPM: u32 = 10_000;

const MILLION: u128 = 1_000_000;
const WEI_PER_COIN: u128 = 1_000_000_000_000_000_000;

/// The user's rule. Each but [`Never`](Self::Never) also redeems when the user asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedemptionRule {
    /// When the fee is below this many millionths of the amount, and before a channel can close.
    FeeBelow {
        /// Millionths of the amount.
        ppm: u32,
    },
    /// Only before a channel can close.
    BeforeClose,
    /// Only when the user asks.
    OnDemand,
    /// Never, not even when asked: vouchers are a record, not money.
    Never,
}

impl Default for RedemptionRule {
    fn default() -> Self {
        Self::FeeBelow { ppm: FEE_FRACTION_DEFAULT_PPM }
    }
}

/// Where one channel (or several, redeemed together) stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Earned by vouchers and not yet redeemed.
    pub unredeemed: Amount,
    /// What redeeming would cost, in the same token: see [`fee_in_token`].
    pub fee: Amount,
    /// Whether the payer has started to close.
    pub closing: bool,
    /// Whether the user asks for it now.
    pub demanded: bool,
}

/// What to do, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Send the vouchers to the chain.
    Redeem(WhyRedeem),
    /// Keep them.
    Wait(WhyWait),
}

/// Why to redeem now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyRedeem {
    /// The user asked.
    Demanded,
    /// The payer has started to close: unredeemed vouchers are lost when it finishes.
    Closing,
    /// The fee is small against the amount.
    FeeSmall,
}

/// Why not to redeem now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyWait {
    /// Nothing is unredeemed.
    NothingNew,
    /// The rule forbids it.
    RuleSaysNever,
    /// The rule waits for the user.
    RuleWaitsForDemand,
    /// The rule waits for the channel to close.
    RuleWaitsForClose,
    /// The fee is not below the rule's fraction of the amount.
    FeeTooHigh,
    /// The fee would eat all of the amount.
    NotWorthTheFee,
}

impl RedemptionRule {
    /// Decides for one standing.
    #[must_use]
    pub fn decide(&self, standing: &Standing) -> Decision {
        if standing.unredeemed.0 == 0 {
            return Decision::Wait(WhyWait::NothingNew);
        }
        if *self == Self::Never {
            return Decision::Wait(WhyWait::RuleSaysNever);
        }
        if standing.demanded {
            return Decision::Redeem(WhyRedeem::Demanded);
        }
        if *self == Self::OnDemand {
            return Decision::Wait(WhyWait::RuleWaitsForDemand);
        }
        if standing.closing {
            return if standing.fee < standing.unredeemed {
                Decision::Redeem(WhyRedeem::Closing)
            } else {
                Decision::Wait(WhyWait::NotWorthTheFee)
            };
        }
        match *self {
            Self::FeeBelow { ppm } if fee_is_below(standing, ppm) => {
                Decision::Redeem(WhyRedeem::FeeSmall)
            }
            Self::FeeBelow { .. } => Decision::Wait(WhyWait::FeeTooHigh),
            Self::BeforeClose | Self::OnDemand | Self::Never => {
                Decision::Wait(WhyWait::RuleWaitsForClose)
            }
        }
    }
}

/// `fee / unredeemed < ppm / 10^6`, in integers. Saturation keeps the answer on the safe side: amounts
/// that large cannot be deposited.
fn fee_is_below(standing: &Standing, ppm: u32) -> bool {
    let fee = standing.fee.0.saturating_mul(MILLION);
    fee < standing.unredeemed.0.saturating_mul(u128::from(ppm))
}

/// A fee in wei as an amount of the token, rounded up, at `base_units_per_coin` token base units for
/// one whole coin (10^18 wei). `None` when it does not fit 128 bits.
#[must_use]
pub fn fee_in_token(fee_wei: u128, base_units_per_coin: u128) -> Option<Amount> {
    fee_wei.checked_mul(base_units_per_coin).map(|wide| Amount(wide.div_ceil(WEI_PER_COIN)))
}
