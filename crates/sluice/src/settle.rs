//! From vouchers to tokens: what the roles do by themselves with their channels, and `sluice redeem`
//! when it is asked.
//!
//! [`Settler`] is the driver of [`sluice_settlement`]'s policy: it reads the channels on the chain,
//! asks the policy, asks the chain for the real fee, asks again, and sends. It remembers nothing
//! between rounds. [`keep`] runs it beside a role, tops up the deposits that the role pays from, and
//! finishes closes that it started.

mod deposits;
mod duty;
mod held;
mod keep;

use anyhow::{Context, Result};
use sluice_chain::{Chain, ChainError, ChannelEvent, ChannelState, Redemption, View};
use sluice_ledger::{ChannelStatus, Ledger, RedemptionKind, RedemptionRow};
use sluice_proto::{Amount, ChannelId, EthAddress, WalletKey};
use sluice_settlement::{
    Batch, Claim, Decision, Item, Moment, RedemptionPolicy, WhyRedeem, WhyWait,
};

pub use deposits::{Deposits, Growth};
pub(crate) use duty::Duties;
pub use held::{Held, HeldError, held, held_of};
pub use keep::{KeepOptions, Rounds, keep};
pub(crate) use keep::{finish_close, told};

use crate::config::Config;

/// What one coin of the embedded chain is worth in base units of its token, unless it is configured:
/// play prices.
const PLAY_COIN_PRICE: u128 = 2_000_000_000;

/// The policy that a configuration names.
#[must_use]
pub fn policy(config: &Config, chain: &Chain) -> RedemptionPolicy {
    let play = (chain.kind() == "embedded").then_some(PLAY_COIN_PRICE);
    RedemptionPolicy {
        rule: config.wallet.redeem,
        gas_price_wei_max: config.chain.gas_price_max.map(|price| u128::from(price.0)),
        coin_price: config.chain.coin_price.or(play),
    }
}

/// Which channels the user asks to redeem whatever the fee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// None: as the rule says.
    Rule,
    /// All.
    All,
    /// These.
    Channels(Vec<ChannelId>),
}

impl Demand {
    fn names(&self, channel: ChannelId) -> bool {
        match self {
            Self::Rule => false,
            Self::All => true,
            Self::Channels(named) => named.contains(&channel),
        }
    }
}

/// One channel of a plan.
#[derive(Debug, Clone)]
pub struct Line {
    /// The channel and its newest voucher.
    pub held: Held,
    /// The channel in the newest block, if it is there.
    pub state: Option<ChannelState>,
    /// Whether that it is closed is final.
    pub is_over: bool,
    /// What redeeming pays: what is earned and not redeemed.
    pub unredeemed: Amount,
    /// Its part of the fee, in wei: of its batch, or alone. Absent when nothing can be redeemed.
    pub fee_wei: Option<u128>,
    /// What happens to it, and why.
    pub decision: Decision,
}

/// A transaction of a plan.
#[derive(Debug, Clone)]
pub struct Planned {
    batch: Batch,
    /// What it would cost now.
    pub fee_wei: u128,
}

/// What a round would do.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// One for each channel.
    pub lines: Vec<Line>,
    /// The transactions.
    pub batches: Vec<Planned>,
}

/// What was paid for one channel.
#[derive(Debug, Clone)]
pub struct Paid {
    /// Which.
    pub channel: ChannelId,
    /// How much went to the payout.
    pub paid: Amount,
    /// Cumulative.
    pub redeemed: Amount,
    /// Its part of what the transaction cost, in wei.
    pub fee_wei: u128,
    /// Why it was redeemed.
    pub why: WhyRedeem,
    /// The transaction.
    pub tx: [u8; 32],
    /// Gas of the whole transaction.
    pub gas: u64,
}

/// Redeems vouchers. Its wallet pays the fees; the money goes to each channel's payout.
#[derive(Debug, Clone)]
pub struct Settler {
    /// Where.
    pub chain: Chain,
    /// Pays the fees.
    pub wallet: WalletKey,
    /// When.
    pub policy: RedemptionPolicy,
}

/// Plans what a settler would do; needs no key.
#[derive(Debug, Clone)]
pub struct Planner {
    /// Where.
    pub chain: Chain,
    /// Would pay the fees.
    pub account: EthAddress,
    /// When.
    pub policy: RedemptionPolicy,
}

impl Planner {
    /// What a round would do now; nothing is sent. With `quote_all` each channel that keeps its
    /// voucher is asked for its fee, too.
    ///
    /// # Errors
    /// When the chain cannot be read.
    pub async fn plan(&self, held: &[Held], demand: &Demand, quote_all: bool) -> Result<Plan> {
        let moment = Moment {
            now_unix_s: self.chain.now_unix_s().await?,
            gas_price_wei: self.chain.gas_price_wei().await?,
        };
        let mut claims = Vec::with_capacity(held.len());
        let mut plan = Plan::default();
        for held in held {
            let (claim, state) = self.look(held, demand).await?;
            let redeemed = state.map_or(Amount(0), |s| s.redeemed);
            plan.lines.push(Line {
                held: *held,
                state,
                is_over: claim.settled.is_some_and(|s| s.closed),
                unredeemed: Amount(claim.earned.0.saturating_sub(redeemed.0)),
                fee_wei: None,
                decision: Decision::Wait(WhyWait::NothingNew),
            });
            claims.push(claim);
        }
        let proposal = self.policy.propose(&claims, &moment);
        for (channel, why) in proposal.waits {
            plan.decide(channel, Decision::Wait(why), None);
        }
        for batch in proposal.batches {
            self.weigh(batch, &mut plan).await?;
        }
        if quote_all {
            self.quote_rest(&mut plan).await?;
        }
        Ok(plan)
    }

    async fn look(&self, held: &Held, demand: &Demand) -> Result<(Claim, Option<ChannelState>)> {
        let latest = self.chain.channel(&held.key, View::Latest).await?;
        let settled = self.chain.channel(&held.key, View::Final).await?;
        let claim = Claim {
            channel: held.voucher.channel,
            token: held.key.token,
            payout: held.key.payout,
            earned: held.voucher.amount,
            latest: latest.map(|s| s.slot()),
            settled: settled.map(|s| s.slot()),
            demanded: demand.names(held.voucher.channel),
        };
        Ok((claim, latest))
    }

    /// Asks for a batch's real fee. A voucher that the contract refuses must not hold the others
    /// back, so a batch that fails is tried one by one.
    async fn weigh(&self, batch: Batch, plan: &mut Plan) -> Result<()> {
        match self.estimate(&batch, plan).await {
            Ok(fee_wei) => {
                plan.take(batch, fee_wei, &self.policy);
                Ok(())
            }
            Err(ChainError::Reverted { .. }) if batch.items.len() > 1 => {
                for item in batch.items {
                    let alone = Batch { items: vec![item] };
                    match self.estimate(&alone, plan).await {
                        Ok(fee_wei) => plan.take(alone, fee_wei, &self.policy),
                        Err(error) => plan.refuse(item, error)?,
                    }
                }
                Ok(())
            }
            Err(error) => match batch.items.first() {
                Some(item) if batch.items.len() == 1 => plan.refuse(*item, error),
                Some(_) | None => Err(error.into()),
            },
        }
    }

    async fn estimate(&self, batch: &Batch, plan: &Plan) -> Result<u128, ChainError> {
        let redemptions = plan.redemptions(batch);
        let estimate = self.chain.estimate_redeem(self.account, &redemptions).await?;
        Ok(estimate.fee_wei)
    }

    async fn quote_rest(&self, plan: &mut Plan) -> Result<()> {
        for index in 0..plan.lines.len() {
            let line = &plan.lines[index];
            if line.fee_wei.is_some() || line.unredeemed.0 == 0 {
                continue;
            }
            let redemption = [line.held.redemption()];
            match self.chain.estimate_redeem(self.account, &redemption).await {
                Ok(estimate) => plan.lines[index].fee_wei = Some(estimate.fee_wei),
                Err(ChainError::Reverted { .. } | ChainError::InsufficientFunds { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Settler {
    /// Plans for this settler's account.
    #[must_use]
    pub fn planner(&self) -> Planner {
        let (chain, account) = (self.chain.clone(), self.wallet.address());
        Planner { chain, account, policy: self.policy }
    }

    /// Sends what a plan holds; one transaction that fails does not keep the others back.
    ///
    /// Gives what was paid, and the first failure after all was tried.
    pub async fn carry_out(&self, plan: &Plan) -> (Vec<Paid>, Result<()>) {
        let (mut paid, mut failed) = (Vec::new(), Ok(()));
        for planned in &plan.batches {
            match self.send(plan, planned).await {
                Ok(mut done) => paid.append(&mut done),
                Err(error) if failed.is_ok() => failed = Err(error),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        (paid, failed)
    }

    async fn send(&self, plan: &Plan, planned: &Planned) -> Result<Vec<Paid>> {
        let batch = &planned.batch;
        let redemptions = plan.redemptions(batch);
        let receipt =
            self.chain.redeem(&self.wallet, &redemptions).await.with_context(|| {
                format!("failed to redeem {} of {}", batch.sum(), called(batch))
            })?;
        for (channel, reason) in receipt.refused() {
            tracing::warn!("the contract refused the voucher of channel {channel}: {reason}");
        }
        let paid = receipt.events.iter().filter_map(|event| {
            let ChannelEvent::Redeemed { channel, redeemed, paid } = *event else { return None };
            let index = batch.items.iter().position(|item| item.channel == channel)?;
            Some(Paid {
                channel,
                paid,
                redeemed,
                fee_wei: batch.share(Amount(receipt.fee_wei), index).0,
                why: batch.items[index].why,
                tx: receipt.hash,
                gas: receipt.gas,
            })
        });
        Ok(paid.collect())
    }
}

fn called(batch: &Batch) -> String {
    match batch.items.as_slice() {
        [one] => format!("channel {}", one.channel),
        many => format!("{} channels", many.len()),
    }
}

impl Plan {
    /// Whether anything is to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn decide(&mut self, channel: ChannelId, decision: Decision, fee_wei: Option<u128>) {
        for line in self.lines.iter_mut().filter(|l| l.held.voucher.channel == channel) {
            (line.decision, line.fee_wei) = (decision, fee_wei);
        }
    }

    fn take(&mut self, batch: Batch, fee_wei: u128, policy: &RedemptionPolicy) {
        let decision = policy.weigh(&batch, fee_wei);
        for (index, item) in batch.items.iter().enumerate() {
            let share = batch.share(Amount(fee_wei), index).0;
            let own = match decision {
                Decision::Redeem(_) => Decision::Redeem(item.why),
                Decision::Wait(why) => Decision::Wait(why),
            };
            self.decide(item.channel, own, Some(share));
        }
        if let Decision::Redeem(_) = decision {
            self.batches.push(Planned { batch, fee_wei });
        }
    }

    /// Keeps one voucher that the chain would refuse, and goes on.
    fn refuse(&mut self, item: Item, error: ChainError) -> Result<()> {
        if !matches!(error, ChainError::Reverted { .. }) {
            return Err(error.into());
        }
        tracing::warn!("the voucher of channel {} cannot be redeemed: {error}", item.channel);
        self.decide(item.channel, Decision::Wait(WhyWait::Refused), None);
        Ok(())
    }

    fn redemptions(&self, batch: &Batch) -> Vec<Redemption> {
        let of =
            |item: &Item| self.lines.iter().find(|line| line.held.voucher.channel == item.channel);
        batch.items.iter().filter_map(of).map(|line| line.held.redemption()).collect()
    }
}

/// Writes down what was paid, and what a plan saw of the channels. Failures are logged: the chain
/// knows better than any ledger.
pub async fn write_down(ledger: &Ledger, chain: &Chain, plan: &Plan, paid: &[Paid]) {
    let at_unix_s = chain.now_unix_s().await.unwrap_or_default();
    for done in paid {
        let row = RedemptionRow {
            channel: done.channel,
            kind: RedemptionKind::Redeem,
            amount: done.redeemed,
            tx: done.tx,
            gas: done.gas,
            at_unix_s,
        };
        if let Err(error) = ledger.record_redemption(row).await {
            tracing::warn!("{error}: a redemption was not written down");
        }
    }
    for line in &plan.lines {
        if let Some(state) = &line.state {
            follow(ledger, line.held.voucher.channel, state, line.is_over).await;
        }
    }
}

/// Brings the ledger's row of a channel up to what the chain says. It is closed for the ledger once
/// that is final: until then a voucher may be needed again.
pub(crate) async fn follow(
    ledger: &Ledger,
    channel: ChannelId,
    state: &ChannelState,
    is_over: bool,
) {
    let status = match state {
        _ if is_over => ChannelStatus::Closed,
        ChannelState { closed: true, .. } | ChannelState { closing_at_unix_s: Some(_), .. } => {
            ChannelStatus::Closing
        }
        ChannelState { .. } => ChannelStatus::Open,
    };
    let Ok(Some(mut row)) = ledger.channel(channel).await else { return };
    if (row.status, row.deposit) != (status, state.deposit) {
        (row.status, row.deposit) = (status, state.deposit);
        if let Err(error) = ledger.put_channel(row).await {
            tracing::warn!("{error}: the state of channel {channel} was not written down");
        }
    }
}
