//! Which vouchers to redeem now, and together with which: the user's rule applied to many channels.
//!
//! The driver reads the chain and asks [`RedemptionPolicy::propose`]; it asks the chain what each
//! proposed batch would really cost, and [`RedemptionPolicy::weigh`]s it again. Nothing is
//! remembered from one round to the next: what was redeemed stands on the chain, so that after a
//! reorganisation the next round proposes anew what was undone.

use sluice_proto::{Amount, ChannelId, EthAddress};

use crate::{
    ChannelSlot, Decision, REDEEM_MAX, RedemptionRule, Standing, WhyRedeem, WhyWait, fee_in_token,
};

/// Gas of a redeeming transaction whatever it holds, and of each voucher in it: upper bounds of what
/// `Channels` costs with an ordinary token, for proposals alone.
pub const REDEEM_GAS_BASE: u64 = 60_000;
/// See [`REDEEM_GAS_BASE`].
pub const REDEEM_GAS_EACH: u64 = 18_000;
/// When a close may be finished within this, seconds, the cap on the gas price is ignored: 36 hours.
/// That leaves a price 12 hours to fall in the shortest period, and survives a node that is down
/// for a day.
pub const CAP_YIELDS_S: u64 = 36 * 60 * 60;

/// The user's rule and what it needs to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RedemptionPolicy {
    /// When to redeem.
    pub rule: RedemptionRule,
    /// The dearest gas to buy, wei; any if absent. Yields before a close can be finished.
    pub gas_price_wei_max: Option<u128>,
    /// Token base units that one whole coin (10^18 wei) is worth; absent: fees cannot be weighed.
    pub coin_price: Option<u128>,
}

/// One channel that pays this node, and the newest voucher on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Which.
    pub channel: ChannelId,
    /// Its token.
    pub token: EthAddress,
    /// Where the money goes.
    pub payout: EthAddress,
    /// The voucher's amount, cumulative.
    pub earned: Amount,
    /// The channel in the newest block; absent if it is not there.
    pub latest: Option<ChannelSlot>,
    /// The same in the newest final block.
    pub settled: Option<ChannelSlot>,
    /// Whether the user asks for it now.
    pub demanded: bool,
}

/// What holds for all channels at the moment of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Chain time, Unix seconds.
    pub now_unix_s: u64,
    /// What gas costs now, wei.
    pub gas_price_wei: u128,
}

/// A voucher to redeem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its channel.
    pub channel: ChannelId,
    /// What it would pay.
    pub unredeemed: Amount,
    /// Why it is proposed.
    pub why: WhyRedeem,
}

/// Vouchers to redeem in one transaction, in the order that costs least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// At least one, at most [`REDEEM_MAX`].
    pub items: Vec<Item>,
}

/// What to do in this round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proposal {
    /// To redeem, the urgent first.
    pub batches: Vec<Batch>,
    /// To keep, and why.
    pub waits: Vec<(ChannelId, WhyWait)>,
}

impl Batch {
    /// What all of it would pay.
    #[must_use]
    pub fn sum(&self) -> Amount {
        Amount(self.items.iter().map(|i| i.unredeemed.0).fold(0, u128::saturating_add))
    }

    /// One item's part of the fee: equal parts, what is left over with the first.
    #[must_use]
    pub fn share(&self, fee: Amount, index: usize) -> Amount {
        let count = u128::try_from(self.items.len()).unwrap_or(u128::MAX).max(1);
        let rest = if index == 0 { fee.0.checked_rem(count).unwrap_or(0) } else { 0 };
        Amount(fee.0.checked_div(count).unwrap_or(0).saturating_add(rest))
    }

    fn has(&self, why: WhyRedeem) -> bool {
        self.items.iter().any(|item| item.why == why)
    }
}

impl RedemptionPolicy {
    /// What to redeem now and what to keep: each claim is in exactly one place. A voucher rides
    /// along when its own gas is worth its amount; that the whole transaction's is, must hold unless
    /// something in it cannot wait.
    #[must_use]
    pub fn propose(&self, claims: &[Claim], moment: &Moment) -> Proposal {
        let mut proposal = Proposal::default();
        let mut found = Vec::new();
        for claim in claims {
            match self.judge(claim, moment) {
                Ok(item) => found.push((claim, item)),
                Err(why) => proposal.waits.push((claim.channel, why)),
            }
        }
        // What cannot wait first, and then neighbours of one payout, which share a transfer.
        found.sort_by_key(|(claim, item)| {
            let waits = item.why == WhyRedeem::FeeSmall;
            (waits, claim.token, claim.payout, std::cmp::Reverse(item.unredeemed))
        });
        for chunk in found.chunks(REDEEM_MAX) {
            let batch = Batch { items: chunk.iter().map(|(_, item)| *item).collect() };
            let each = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            let gas = REDEEM_GAS_EACH.saturating_mul(each).saturating_add(REDEEM_GAS_BASE);
            match self.weigh(&batch, moment.gas_price_wei.saturating_mul(u128::from(gas))) {
                Decision::Redeem(_) => proposal.batches.push(batch),
                Decision::Wait(why) => {
                    proposal.waits.extend(batch.items.iter().map(|item| (item.channel, why)));
                }
            }
        }
        proposal
    }

    /// Whether a batch is worth its real fee.
    #[must_use]
    pub fn weigh(&self, batch: &Batch, fee_wei: u128) -> Decision {
        let unredeemed = batch.sum();
        if batch.has(WhyRedeem::Demanded) {
            return Decision::Redeem(WhyRedeem::Demanded);
        }
        let Some(fee) = self.fee(fee_wei) else {
            // Better a fee of unknown worth than all of it lost.
            return match batch.has(WhyRedeem::Closing) {
                true => Decision::Redeem(WhyRedeem::Closing),
                false => Decision::Wait(WhyWait::FeeUnknown),
            };
        };
        let closing = batch.has(WhyRedeem::Closing);
        self.rule.decide(&Standing { unredeemed, fee, closing, demanded: false })
    }

    /// A fee in the token, rounded up; `None` when it is not known what a coin is worth.
    #[must_use]
    pub fn fee(&self, fee_wei: u128) -> Option<Amount> {
        self.coin_price.map(|price| fee_in_token(fee_wei, price).unwrap_or(Amount(u128::MAX)))
    }

    fn judge(&self, claim: &Claim, moment: &Moment) -> Result<Item, WhyWait> {
        let latest = claim.latest.ok_or(WhyWait::NotOpen)?;
        if latest.closed {
            return Err(WhyWait::Closed);
        }
        let unredeemed = Amount(claim.earned.0.saturating_sub(latest.redeemed.0));
        let closes_at = latest.closing_at_unix_s;
        let fee = self.fee(moment.gas_price_wei.saturating_mul(u128::from(REDEEM_GAS_EACH)));
        let standing = Standing {
            unredeemed,
            fee: fee.unwrap_or_default(),
            closing: closes_at.is_some(),
            demanded: claim.demanded,
        };
        let why = match self.rule.decide(&standing) {
            Decision::Redeem(why) => why,
            Decision::Wait(why) => return Err(why),
        };
        if claim.earned > latest.deposit {
            return Err(WhyWait::OverDeposit);
        }
        if why == WhyRedeem::FeeSmall {
            let covered = claim.settled.is_some_and(|s| !s.closed && s.deposit >= claim.earned);
            if fee.is_none() {
                return Err(WhyWait::FeeUnknown);
            }
            if !covered {
                return Err(WhyWait::NotFinal);
            }
        }
        let soon = closes_at.is_some_and(|at| at.saturating_sub(moment.now_unix_s) <= CAP_YIELDS_S);
        if !soon && self.gas_price_wei_max.is_some_and(|max| moment.gas_price_wei > max) {
            return Err(WhyWait::GasTooDear);
        }
        Ok(Item { channel: claim.channel, unredeemed, why })
    }
}

/// When a payer adds to a deposit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopUpRule {
    /// What is added at a time.
    pub step: Amount,
    /// The most that one channel is ever deposited.
    pub deposit_max: Amount,
}

impl TopUpRule {
    /// How much to add to a channel of this `deposit`, of which `signed` is promised and `wanted`
    /// is due: when less than a quarter of a step is left, or more is due than is there. `None`:
    /// nothing, since it is enough or the bound is reached.
    #[must_use]
    pub fn decide(&self, deposit: Amount, signed: Amount, wanted: Amount) -> Option<Amount> {
        let left = deposit.0.saturating_sub(signed.0);
        let lacking = wanted.0.saturating_sub(deposit.0);
        if lacking == 0 && left.saturating_mul(4) >= self.step.0 {
            return None;
        }
        let room = self.deposit_max.0.saturating_sub(deposit.0);
        let more = self.step.0.max(lacking).min(room);
        // Less than what is due would buy nothing.
        (more > 0 && more >= lacking).then_some(Amount(more))
    }
}

/// Whether a payer's close can be finished at `now_unix_s`, chain time: its rest is refunded then.
#[must_use]
pub fn is_refund_due(slot: &ChannelSlot, now_unix_s: u64) -> bool {
    !slot.closed && slot.closing_at_unix_s.is_some_and(|at| now_unix_s >= at)
}
