//! When to turn vouchers into tokens.

use std::fmt;

use sluice_proto::Amount;

/// A fee is worth paying when it is below this many millionths of the amount: 1 %.
pub const FEE_FRACTION_DEFAULT_PPM: u32 = 10_000;

const PPM_PER_PERCENT: u32 = 10_000;
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
    /// What a coin is worth in tokens is not known, so the fee cannot be weighed.
    FeeUnknown,
    /// Gas costs more than the cap allows.
    GasTooDear,
    /// The deposit that covers the voucher is not final yet.
    NotFinal,
    /// The voucher is above the deposit, and would be refused.
    OverDeposit,
    /// The chain has no such channel.
    NotOpen,
    /// The channel is closed for good.
    Closed,
    /// The contract or the token would refuse it.
    Refused,
}

impl fmt::Display for WhyRedeem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Demanded => "asked for",
            Self::Closing => "the payer is closing the channel",
            Self::FeeSmall => "the fee is small against the amount",
        })
    }
}

impl fmt::Display for WhyWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NothingNew => "nothing is unredeemed",
            Self::RuleSaysNever => "the rule is never to redeem",
            Self::RuleWaitsForDemand => "the rule waits until it is asked for",
            Self::RuleWaitsForClose => "the rule waits until the payer closes the channel",
            Self::FeeTooHigh => "the fee is too high for the amount",
            Self::NotWorthTheFee => "the fee would eat all of it",
            Self::FeeUnknown => "the fee cannot be weighed: chain.coin_price is not set",
            Self::GasTooDear => "gas costs more than chain.gas_price_max",
            Self::NotFinal => "the deposit is not final yet",
            Self::OverDeposit => "the voucher is above the deposit",
            Self::NotOpen => "the chain has no such channel",
            Self::Closed => "the channel is closed",
            Self::Refused => "the contract would refuse it",
        })
    }
}

impl fmt::Display for RedemptionRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FeeBelow { ppm } => {
                let (whole, part) = (ppm / PPM_PER_PERCENT, ppm % PPM_PER_PERCENT);
                let digits = format!("{whole}.{part:04}");
                write!(f, "{} %", digits.trim_end_matches('0').trim_end_matches('.'))
            }
            Self::BeforeClose => f.write_str("before_close"),
            Self::OnDemand => f.write_str("on_demand"),
            Self::Never => f.write_str("never"),
        }
    }
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
