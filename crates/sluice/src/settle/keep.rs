//! What a running role does with its channels by itself.
//!
//! Blocks may be undone at any time, so nothing that was done is believed to stay done: each look
//! compares the ledger with the chain, and what is missing there is done again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use sluice_chain::{ChannelState, View};
use sluice_ledger::{ChannelRow, ChannelStatus, Ledger, RedemptionKind, RedemptionRow, Role};
use sluice_proto::{Amount, ChannelId};
use sluice_settlement::{Decision, TopUpRule, WhyWait, is_refund_due};
use sluice_transport::Clock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Demand, Deposits, Duties, Held, Paid, Plan, Settler, follow, held, write_down};
use crate::roles::{Report, Reporter};

/// How often deposits that are in use are compared with what was signed. It costs a look into the
/// ledger; the chain is asked only when one runs dry.
const LOOK_DEPOSITS: Duration = Duration::from_secs(1);

/// What [`keep`] is told.
#[derive(Debug)]
pub struct KeepOptions {
    /// Redeems, and pays deposits.
    pub settler: Settler,
    /// The role's.
    pub ledger: Ledger,
    /// How often to look at the chain.
    pub look: Duration,
    /// When to add to deposits; `None`: never.
    pub top_up: Option<TopUpRule>,
    /// The accounts that use them.
    pub deposits: Deposits,
    /// Who is told.
    pub report: Reporter,
}

/// Redeems what the role earns, tops up what it pays from, and finishes the closes that it started,
/// until it is dropped. SIGUSR1 asks for all to be redeemed now.
pub async fn keep(options: KeepOptions) {
    tokio::join!(keep_earnings(&options), keep_deposits(&options));
}

/// Round after round: the same failure is told once, and so is that a channel ends.
#[derive(Debug, Default)]
pub struct Rounds {
    seen: HashMap<ChannelId, ChannelStatus>,
    trouble: Option<String>,
}

impl Rounds {
    /// Redeems what is to be redeemed, and tells of it.
    ///
    /// # Errors
    /// When the chain cannot be read, or a transaction failed; others may have been sent all the
    /// same.
    pub async fn round(
        &mut self,
        settler: &Settler,
        held: &[Held],
        demand: &Demand,
        report: &Reporter,
    ) -> Result<(Plan, Vec<Paid>)> {
        if held.is_empty() {
            return Ok(Default::default());
        }
        let plan = settler.planner().plan(held, demand, false).await?;
        self.tell_ends(&plan, report);
        let (paid, outcome) = settler.carry_out(&plan).await;
        for done in &paid {
            report.tell(&told(settler, done));
        }
        if let Err(error) = outcome {
            self.note(report, Err(error));
        }
        Ok((plan, paid))
    }

    /// Tells of a failure that was not told before.
    pub fn note(&mut self, report: &Reporter, outcome: Result<()>) {
        let now = outcome.err().map(|error| format!("{error:#}"));
        if let Some(what) = now.as_ref().filter(|what| self.trouble.as_ref() != Some(*what)) {
            report.tell(&Report::SettlementFailed { what: what.clone() });
        }
        self.trouble = now;
    }

    /// What failed last, unless it went well since.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn tell_ends(&mut self, plan: &Plan, report: &Reporter) {
        for line in &plan.lines {
            let (channel, Some(state)) = (line.held.voucher.channel, &line.state) else { continue };
            let status = match state {
                ChannelState { closed: true, .. } => ChannelStatus::Closed,
                ChannelState { closing_at_unix_s: Some(_), .. } => ChannelStatus::Closing,
                ChannelState { .. } => ChannelStatus::Open,
            };
            let before = self.seen.insert(channel, status).unwrap_or(ChannelStatus::Open);
            if status != before {
                let (unredeemed, closes_at) = (line.unredeemed, state.closing_at_unix_s);
                report.tell(&Report::ChannelEnds { channel, closes_at, unredeemed });
            }
        }
    }
}

async fn keep_earnings(options: &KeepOptions) {
    let clock = Clock::default();
    let mut asked = signal(SignalKind::user_defined1()).ok();
    let mut rounds = Rounds::default();
    let mut demand = Demand::Rule;
    loop {
        let outcome = earnings_round(options, &demand, &mut rounds).await;
        if let Err(error) = outcome {
            rounds.note(&options.report, Err(error));
        }
        demand = tokio::select! {
            () = clock.sleep(options.look) => Demand::Rule,
            () = next(&mut asked) => Demand::All,
        };
    }
}

async fn next(asked: &mut Option<Signal>) {
    let heard = match asked {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if heard.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn earnings_round(options: &KeepOptions, demand: &Demand, rounds: &mut Rounds) -> Result<()> {
    let KeepOptions { settler, ledger, report, .. } = options;
    let mut held = held(ledger, &settler.chain.domain()).await?;
    let mut duties = Duties::take(ledger, settler.wallet.address(), &mut held).await?;
    let done = rounds.round(settler, &held, demand, report).await;
    if let Ok((plan, paid)) = &done {
        write_down(ledger, &settler.chain, plan, paid).await;
    }
    duties.leave().await;
    let (plan, _) = done?;
    if *demand == Demand::All {
        for line in plan.lines.iter().filter(|line| line.unredeemed.0 > 0) {
            if let Decision::Wait(why) = line.decision {
                tell_kept(report, line.held.voucher.channel, why);
            }
        }
    }
    Ok(())
}

fn tell_kept(report: &Reporter, channel: ChannelId, why: WhyWait) {
    report.tell(&Report::Kept { channel, why: why.to_string() });
}

/// What a redemption is told as.
pub(crate) fn told(settler: &Settler, done: &Paid) -> Report {
    Report::Redeemed {
        channel: done.channel,
        paid: done.paid,
        redeemed: done.redeemed,
        fee_wei: done.fee_wei,
        fee: settler.policy.fee(done.fee_wei),
        why: done.why.to_string(),
        tx: done.tx,
    }
}

async fn keep_deposits(options: &KeepOptions) {
    let clock = Clock::default();
    let mut payer = Payer { options, signed: HashMap::new(), bounded: HashMap::new() };
    // What lies idle from earlier runs is left alone until it is used.
    if let Err(error) = payer.note_signed().await {
        tracing::warn!("{error:#}");
    }
    let (mut trouble, mut closes) = (Rounds::default(), Rounds::default());
    let mut look = clock.now();
    loop {
        if clock.now() >= look {
            look = clock.now() + options.look;
            let outcome = payer.look_after().await;
            closes.note(&options.report, outcome);
        }
        if options.top_up.is_some() {
            let outcome = payer.top_up().await;
            trouble.note(&options.report, outcome);
        }
        tokio::select! {
            () = clock.sleep(LOOK_DEPOSITS) => {}
            () = options.deposits.wanted() => {}
        }
    }
}

struct Payer<'o> {
    options: &'o KeepOptions,
    /// What was signed on each channel when it was looked at last: only what is in use grows.
    signed: HashMap<ChannelId, Amount>,
    /// Channels that reached the bound, and at which deposit.
    bounded: HashMap<ChannelId, Amount>,
}

impl Payer<'_> {
    async fn channels(&self) -> Result<Vec<ChannelRow>> {
        let domain = self.options.settler.chain.domain();
        let mut rows = self.options.ledger.channels().await?;
        rows.retain(|row| row.role == Role::Payer && row.domain == domain);
        Ok(rows)
    }

    async fn note_signed(&mut self) -> Result<()> {
        for row in self.channels().await? {
            let newest = self.options.ledger.newest_on_channel(row.id, Role::Payer).await?;
            self.signed.insert(row.id, newest.map_or(Amount(0), |voucher| voucher.amount));
        }
        Ok(())
    }

    /// Tops up what runs dry. What is wanted and could not be looked into stays wanted.
    async fn top_up(&mut self) -> Result<()> {
        let mut wanted = self.options.deposits.take_wanted();
        let mut outcome = Ok(());
        match self.channels().await {
            Ok(rows) => {
                for row in rows.iter().filter(|row| row.status == ChannelStatus::Open) {
                    let due = wanted.remove(&row.id);
                    outcome = outcome.and(self.look_into(row, due).await);
                }
                // A close may yet be undone with its block; what is closed for good wants nothing.
                let is_closing = |row: &&ChannelRow| row.status == ChannelStatus::Closing;
                let closing: HashSet<_> = rows.iter().filter(is_closing).map(|r| r.id).collect();
                wanted.retain(|channel, _| closing.contains(channel));
            }
            Err(error) => outcome = Err(error),
        }
        for (channel, due) in wanted {
            self.options.deposits.want_later(channel, due);
        }
        outcome
    }

    /// Tops up a channel if what was signed on it grew, or if `due` is wanted; this is asked for again
    /// when it fails.
    async fn look_into(&mut self, row: &ChannelRow, due: Option<Amount>) -> Result<()> {
        let outcome = self.try_look_into(row, due).await;
        if outcome.is_err() {
            // Also when nothing moves meanwhile.
            self.signed.remove(&row.id);
            if let Some(due) = due {
                self.options.deposits.want_later(row.id, due);
            }
        }
        outcome
    }

    async fn try_look_into(&mut self, row: &ChannelRow, due: Option<Amount>) -> Result<()> {
        let newest = self.options.ledger.newest_on_channel(row.id, Role::Payer).await?;
        let signed = newest.map_or(Amount(0), |voucher| voucher.amount);
        let before = self.signed.insert(row.id, signed);
        // A deposit that no longer covers what was signed lost a top-up with its block.
        let is_short = signed > row.deposit;
        let due = if is_short { Some(due.unwrap_or_default().max(signed)) } else { due };
        if is_short {
            // What covers it leaves nothing to go on with, and without that nothing grows.
            self.signed.remove(&row.id);
        }
        if due.is_none() && before.unwrap_or_default() == signed {
            return Ok(());
        }
        self.top_up_one(row, signed, due.unwrap_or_default()).await
    }

    async fn top_up_one(&mut self, row: &ChannelRow, signed: Amount, due: Amount) -> Result<()> {
        let KeepOptions { settler, ledger, deposits, report, .. } = self.options;
        let Some(rule) = &self.options.top_up else { return Ok(()) };
        let dry = rule.decide(row.deposit, signed, due);
        let Some(more) = dry else {
            let unbounded = TopUpRule { deposit_max: Amount(u128::MAX), ..*rule };
            let is_dry = unbounded.decide(row.deposit, signed, due).is_some();
            if is_dry && self.bounded.insert(row.id, row.deposit) != Some(row.deposit) {
                let (channel, deposit_max) = (row.id, rule.deposit_max);
                report.tell(&Report::DepositSpent { channel, deposit: row.deposit, deposit_max });
            }
            return Ok(());
        };
        let Some(state) = settler.chain.channel(&row.key, View::Latest).await? else {
            // Its opening was undone, and is sent again.
            self.signed.remove(&row.id);
            if due.0 > 0 {
                deposits.want_later(row.id, due);
            }
            return Ok(());
        };
        if state.closed || state.closing_at_unix_s.is_some() {
            return Ok(());
        }
        if state.deposit != row.deposit {
            // Somebody else topped it up, or a reorganisation undid ours.
            follow(ledger, row.id, &state, false).await;
            deposits.grew(row.id, state.deposit);
            return Ok(());
        }
        let receipt = settler.chain.top_up(&settler.wallet, &row.key, more).await?;
        let deposit = Amount(row.deposit.0.saturating_add(more.0));
        ledger.put_channel(ChannelRow { deposit, ..row.clone() }).await?;
        deposits.grew(row.id, deposit);
        let at_unix_s = settler.chain.now_unix_s().await.unwrap_or_default();
        let (channel, tx, gas) = (row.id, receipt.hash, receipt.gas);
        let kind = RedemptionKind::TopUp;
        ledger
            .record_redemption(RedemptionRow { channel, kind, amount: more, tx, gas, at_unix_s })
            .await?;
        report.tell(&Report::ToppedUp { channel, more, deposit, tx });
        Ok(())
    }

    /// Opens channels again that the chain forgot, and gets back what is left of those whose close
    /// this node started.
    async fn look_after(&self) -> Result<()> {
        let mut outcome = Ok(());
        for row in self.channels().await?.iter().filter(|r| r.status != ChannelStatus::Closed) {
            outcome = outcome.and(self.look_after_one(row).await);
        }
        outcome
    }

    async fn look_after_one(&self, row: &ChannelRow) -> Result<()> {
        let KeepOptions { settler, ledger, report, .. } = self.options;
        let Some(state) = settler.chain.channel(&row.key, View::Latest).await? else {
            return self.open_again(row).await;
        };
        let is_over = state.closed && is_final(settler, row).await?;
        follow(ledger, row.id, &state, is_over).await;
        if is_refund_due(&state.slot(), settler.chain.now_unix_s().await?) {
            let refunded = finish_close(settler, ledger, row).await?;
            report.tell(&Report::Refunded { channel: row.id, refunded });
        }
        Ok(())
    }

    /// The opening was undone with its block. The key is the same, so what was signed on the channel
    /// holds as before; one on which nothing was signed is opened when it is needed.
    async fn open_again(&self, row: &ChannelRow) -> Result<()> {
        let KeepOptions { settler, ledger, deposits, report, .. } = self.options;
        let _alone = deposits.opening().await;
        if settler.chain.channel(&row.key, View::Latest).await?.is_some() {
            return Ok(());
        }
        let is_used = ledger.newest_on_channel(row.id, Role::Payer).await?.is_some();
        if !is_used || row.key.payer != settler.wallet.address() {
            return Ok(());
        }
        let (wallet, deposit) = (&settler.wallet, row.deposit);
        let opened = settler.chain.open_channel(wallet, row.key, deposit, row.period_s).await;
        let receipt = opened.with_context(|| format!("failed to open channel {} again", row.id))?;
        let at_unix_s = settler.chain.now_unix_s().await.unwrap_or_default();
        let (channel, tx, gas) = (row.id, receipt.hash, receipt.gas);
        let (kind, amount) = (RedemptionKind::Open, deposit);
        ledger
            .record_redemption(RedemptionRow { channel, kind, amount, tx, gas, at_unix_s })
            .await?;
        report.tell(&Report::Reopened { channel, deposit, tx });
        Ok(())
    }
}

/// Whether that a channel is closed is final.
async fn is_final(settler: &Settler, row: &ChannelRow) -> Result<bool> {
    let settled = settler.chain.channel(&row.key, View::Final).await?;
    Ok(settled.is_some_and(|state| state.closed))
}

/// Finishes a close whose period is over; gives what came back.
pub(crate) async fn finish_close(
    settler: &Settler,
    ledger: &Ledger,
    row: &ChannelRow,
) -> Result<Amount> {
    let chain = &settler.chain;
    let receipt = chain.finish_close(&settler.wallet, &row.key).await?;
    let at_unix_s = chain.now_unix_s().await.unwrap_or_default();
    let (channel, tx, gas) = (row.id, receipt.hash, receipt.gas);
    let (kind, amount) = (RedemptionKind::FinishClose, receipt.refunded());
    ledger.record_redemption(RedemptionRow { channel, kind, amount, tx, gas, at_unix_s }).await?;
    Ok(amount)
}
