//! `sluice redeem`.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_chain::Chain;
use sluice_ledger::{ChannelStatus, Ledger, Role};
use sluice_proto::{ChannelId, EthAddress};
use sluice_settlement::{Decision, RedemptionPolicy};

use super::{address_of, chain, free, head, open_key, open_ledger, payee_file, place, read_ledger};
use super::{settler, short, table, tell};
use crate::app::print;
use crate::cli::RedeemArgs;
use crate::config::Config;
use crate::roles::{Reporter, transaction};
use crate::settle::{Demand, Duties, Line, Plan, Planner, held, policy, told, write_down};

pub(crate) async fn redeem(config: &Config, args: &RedeemArgs, json: bool) -> Result<()> {
    let dir = place(config, &args.state)?;
    let demand = match (args.all, args.channel.is_empty()) {
        (true, _) => Demand::All,
        (false, true) => Demand::Rule,
        (false, false) => Demand::Channels(args.channel.clone()),
    };
    let chain = chain(config, &dir).await?;
    if args.dry_run {
        let ledger = read_ledger(config, &args.state, &dir).await?;
        let account = address_of(config, &payee_file(config, &dir))?;
        return dry_run(config, &ledger, chain, account, &demand, json).await;
    }
    free(&dir, config, "redeem")?;
    let (_state, ledger) = open_ledger(config, &args.state, &dir, "redeem").await?;
    check_named(&ledger, &demand, &chain).await?;
    let wallet = open_key(config, &payee_file(config, &dir))?;
    let settler = settler(config, chain, wallet).await?;
    let mut held = held(&ledger, &settler.chain.domain()).await?;
    let all = held.len();
    let mut duties = Duties::take(&ledger, settler.wallet.address(), &mut held).await?;
    if held.len() < all {
        tracing::warn!("{} channels are left to who redeems them now", all - held.len());
    }
    let plan = settler.planner().plan(&held, &demand, true).await;
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            duties.leave().await;
            return Err(error);
        }
    };
    if !json {
        print(&plan_table(&plan, &settler.policy));
    }
    let (paid, outcome) = settler.carry_out(&plan).await;
    write_down(&ledger, &settler.chain, &plan, &paid).await;
    duties.leave().await;
    let report = Reporter::print(json);
    for done in &paid {
        report.tell(&told(&settler, done));
    }
    tell_rest(&plan, &settler.policy, json);
    let sum = paid.iter().map(|p| p.paid.0).fold(0, u128::saturating_add);
    tell(
        json,
        || json!({"event": "redeem_done", "paid": sum.to_string(), "channels": paid.len()}),
        || format!("{sum} base units redeemed from {} channels.", paid.len()),
    );
    outcome
}

async fn dry_run(
    config: &Config,
    ledger: &Ledger,
    chain: Chain,
    account: EthAddress,
    demand: &Demand,
    json: bool,
) -> Result<()> {
    check_named(ledger, demand, &chain).await?;
    let policy = policy(config, &chain);
    let planner = Planner { chain, account, policy };
    let held = held(ledger, &planner.chain.domain()).await?;
    let plan = planner.plan(&held, demand, true).await?;
    if json {
        for line in &plan.lines {
            print(&line_json(line, &policy).to_string());
        }
        let fee = plan.batches.iter().map(|b| b.fee_wei).fold(0, u128::saturating_add);
        let paid = plan_pays(&plan);
        let done = json!({
            "event": "dry_run", "pays": paid.to_string(), "fee_wei": fee.to_string(),
            "fee": policy.fee(fee).map(|f| f.to_string()), "transactions": plan.batches.len(),
            "rule": policy.rule.to_string(),
        });
        print(&done.to_string());
    } else {
        print(&plan_table(&plan, &policy));
        print("Nothing was sent: this was a dry run.");
    }
    Ok(())
}

/// A channel that is asked for by name must be one that can be redeemed.
async fn check_named(ledger: &Ledger, demand: &Demand, chain: &Chain) -> Result<()> {
    let Demand::Channels(named) = demand else { return Ok(()) };
    for id in named {
        let row = ledger.channel(*id).await?;
        let row = row.with_context(|| unknown(id))?;
        ensure!(
            row.role == Role::Payee,
            "--channel {id}: this node pays from it, and earns nothing"
        );
        ensure!(row.status != ChannelStatus::Closed, "--channel {id}: it is closed");
        let (theirs, ours) = (row.domain, chain.domain());
        ensure!(
            theirs == ours,
            "--channel {id}: it is on chain {} at {}, but [chain] is chain {} at {}",
            theirs.chain_id,
            theirs.contract,
            ours.chain_id,
            ours.contract
        );
        let newest = ledger.newest_on_channel(*id, Role::Payee).await?;
        ensure!(newest.is_some(), "--channel {id}: no voucher was earned on it yet");
    }
    Ok(())
}

fn unknown(id: &ChannelId) -> String {
    format!("--channel {id}: the ledger has no such channel; `sluice channel list` shows them")
}

fn plan_pays(plan: &Plan) -> u128 {
    let redeemed = |line: &&Line| matches!(line.decision, Decision::Redeem(_));
    plan.lines.iter().filter(redeemed).map(|l| l.unredeemed.0).fold(0, u128::saturating_add)
}

fn plan_table(plan: &Plan, policy: &RedemptionPolicy) -> String {
    if plan.lines.is_empty() {
        return format!("No vouchers to redeem (rule: {}).", policy.rule);
    }
    let names = ["channel", "earned", "redeemed", "to pay", "fee (wei)", "fee", "decision"];
    let mut rows = vec![head(names)];
    for line in &plan.lines {
        let wei = line.fee_wei;
        let redeemed = line.held.voucher.amount.0.saturating_sub(line.unredeemed.0);
        rows.push(vec![
            short(&line.held.voucher.channel),
            line.held.voucher.amount.to_string(),
            redeemed.to_string(),
            line.unredeemed.to_string(),
            wei.map_or_else(|| "-".to_owned(), |wei| wei.to_string()),
            wei.and_then(|w| policy.fee(w)).map_or_else(|| "-".to_owned(), |f| f.to_string()),
            decided(&line.decision).1,
        ]);
    }
    let fee = plan.batches.iter().map(|b| b.fee_wei).fold(0, u128::saturating_add);
    format!(
        "{}\n\nRule: {}. {} base units to redeem in {} transactions, fee {fee} wei.",
        table(&rows),
        policy.rule,
        plan_pays(plan),
        plan.batches.len()
    )
}

fn decided(decision: &Decision) -> (&'static str, String) {
    match decision {
        Decision::Redeem(why) => ("redeem", format!("redeem: {why}")),
        Decision::Wait(why) => ("wait", format!("wait: {why}")),
    }
}

fn line_json(line: &Line, policy: &RedemptionPolicy) -> Value {
    let why = match line.decision {
        Decision::Redeem(why) => why.to_string(),
        Decision::Wait(why) => why.to_string(),
    };
    json!({
        "event": "redemption",
        "channel": line.held.voucher.channel.to_string(),
        "peer": line.held.peer.map(|p| p.to_string()),
        "payout": line.held.key.payout.to_string(),
        "earned": line.held.voucher.amount.to_string(),
        "redeemed": line.state.map(|s| s.redeemed.to_string()),
        "deposit": line.state.map(|s| s.deposit.to_string()),
        "closes_at_unix_s": line.state.and_then(|s| s.closing_at_unix_s),
        "pays": line.unredeemed.to_string(),
        "fee_wei": line.fee_wei.map(|f| f.to_string()),
        "fee": line.fee_wei.and_then(|f| policy.fee(f)).map(|f| f.to_string()),
        "decision": decided(&line.decision).0,
        "why": why,
        "rule": policy.rule.to_string(),
    })
}

/// Scripts hear of each channel whose voucher was kept.
fn tell_rest(plan: &Plan, policy: &RedemptionPolicy, json: bool) {
    if !json {
        return;
    }
    for line in plan.lines.iter().filter(|l| matches!(l.decision, Decision::Wait(_))) {
        print(&line_json(line, policy).to_string());
    }
}

/// The hash of a transaction, for people.
pub(super) fn hash(tx: &[u8; 32]) -> String {
    transaction(tx)
}
