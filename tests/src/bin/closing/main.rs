//! Very many channels whose payers start to close at once, while gas is dear: the payee's settler
//! waits below its cap, and then redeems all of them in as few transactions as there can be, long
//! before anybody can be refunded. On a real node.

mod crowd;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use parking_lot::Mutex;
use sluice::roles::{Report, Reporter};
use sluice::settle::{Demand, Paid, Plan, Rounds, Settler, held, write_down};
use sluice_chain::View;
use sluice_proto::Amount;
use sluice_settlement::{
    Decision, REDEEM_MAX, RedemptionPolicy, RedemptionRule, WhyRedeem, WhyWait,
};
use tests::Devnet;
use tests::figures::{self, Figure, Target};

use crate::crowd::Crowd;

const GWEI: u128 = 1_000_000_000;
/// The dearest gas that the settler buys, and the price of a bad day.
const CAP_WEI: u128 = 20 * GWEI;
const DEAR_WEI: u128 = 50 * CAP_WEI;
/// Token base units for a coin: small against what channels hold.
const COIN_PRICE: u128 = 1_000;
/// Gas of each of a hundred that are redeemed at once, at the most.
const GAS_EACH_MAX: f64 = 18_000.0;

/// Closes many channels at once, and says what was lost.
#[derive(Debug, Parser)]
#[command(name = "closing")]
struct Options {
    /// Channels.
    #[arg(long, default_value_t = 1_000)]
    channels: usize,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What the settler did.
#[derive(Debug, Default)]
struct Outcome {
    waited: usize,
    paid: Vec<Paid>,
    seconds: f64,
    left_s: u64,
    notices: usize,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(devnet) = Devnet::start(1)? else { return Ok(ExitCode::SUCCESS) };
    let begin = now();
    let crowd = devnet.block_on(Crowd::gather(devnet.chain(), options.channels))?;
    say(&format!("{} channels opened in {:.0} s", options.channels, begin.elapsed().as_secs_f64()));
    let begin = now();
    devnet.block_on(crowd.start_closes())?;
    say(&format!("all are closing after {:.0} s", begin.elapsed().as_secs_f64()));
    let outcome = settle(&devnet, &crowd)?;
    let figures = judge(&devnet, &crowd, &outcome)?;
    say(&figures::told(&figures, options.json));
    Ok(if figures.iter().all(Figure::is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A round while gas is dear, and another when it is not.
fn settle(devnet: &Devnet, crowd: &Crowd) -> Result<Outcome> {
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    let report = Reporter::new(move |report| {
        if let Report::ChannelEnds { .. } = report {
            *count.lock() += 1;
        }
    });
    let policy = RedemptionPolicy {
        rule: RedemptionRule::default(),
        gas_price_wei_max: Some(CAP_WEI),
        coin_price: Some(COIN_PRICE),
    };
    let settler = Settler { chain: devnet.chain().clone(), wallet: crowd.payee.clone(), policy };
    let (mut rounds, mut outcome) = (Rounds::default(), Outcome::default());
    let mut round = |what: &str| -> Result<(Plan, Vec<Paid>)> {
        devnet.block_on(async {
            let held = held(&crowd.ledger, &settler.chain.domain()).await?;
            let (plan, paid) = rounds.round(&settler, &held, &Demand::Rule, &report).await?;
            write_down(&crowd.ledger, &settler.chain, &plan, &paid).await;
            ensure!(rounds.trouble().is_none(), "{what}: {:?}", rounds.trouble());
            Ok((plan, paid))
        })
    };
    let price = |wei: u128| -> Result<()> {
        devnet.ask("anvil_setNextBlockBaseFeePerGas", &serde_json::json!([format!("{wei:#x}")]))?;
        devnet.mine(1)
    };
    price(DEAR_WEI)?;
    let (plan, paid) = round("while gas is dear")?;
    let waits = Decision::Wait(WhyWait::GasTooDear);
    outcome.waited = plan.lines.iter().filter(|line| line.decision == waits).count();
    outcome.paid.extend(paid);
    price(CAP_WEI / 4)?;
    let begin = now();
    let (plan, paid) = round("when gas is cheap")?;
    outcome.seconds = begin.elapsed().as_secs_f64();
    let closing = Decision::Redeem(WhyRedeem::Closing);
    ensure!(plan.lines.iter().all(|line| line.decision == closing), "not all were urgent");
    outcome.paid.extend(paid);
    outcome.notices = *told.lock();
    let chain_now = devnet.block_on(devnet.chain().now_unix_s())?;
    let ends = plan.lines.iter().filter_map(|line| line.state?.closing_at_unix_s);
    outcome.left_s = ends.min().context("nothing closes")?.saturating_sub(chain_now);
    Ok(outcome)
}

/// Lets all payers finish, and counts the tokens.
fn judge(devnet: &Devnet, crowd: &Crowd, outcome: &Outcome) -> Result<Vec<Figure>> {
    let (chain, count) = (devnet.chain(), crowd.channels.len());
    let mut unpaid = 0;
    for (key, due) in &crowd.channels {
        let state = devnet.block_on(chain.channel(key, View::Latest))?.context("it was opened")?;
        unpaid += usize::from(state.redeemed != *due);
    }
    devnet.block_on(crowd.finish_closes())?;
    let tokens = |account| devnet.block_on(chain.token_balance(account));
    let due = crowd.channels.iter().map(|(_, due)| due.0).sum::<u128>();
    let paid = tokens(crowd.payout())?;
    let refunded = tokens(crowd.payer.address())?;
    let stuck = tokens(chain.domain().contract)?;
    ensure!(paid.0 + refunded.0 + stuck.0 == crowd.minted.0, "tokens came from nowhere");
    // Of each transaction: gas, and what its vouchers paid for it together.
    let mut sent = BTreeMap::<[u8; 32], (u64, u128)>::new();
    for done in &outcome.paid {
        let (gas, fee_wei) = sent.entry(done.tx).or_default();
        (*gas, *fee_wei) = (done.gas, *fee_wei + done.fee_wei);
    }
    let gas_max = sent.values().map(|(gas, _)| *gas).max().unwrap_or_default() as f64;
    let fee: u128 = outcome.paid.iter().map(|paid| paid.fee_wei).sum();
    let fewest = count.div_ceil(REDEEM_MAX);
    let dear = sent.values().filter(|(gas, fee_wei)| *fee_wei > CAP_WEI * u128::from(*gas));
    let lost = Amount(due.saturating_sub(paid.0));
    let counted = |name: &str, n: usize, to| Figure::new(name, n as f64, "", to);
    let most = |n: usize| Target::AtMost(n as f64);
    Ok(vec![
        counted("channels whose payers start to close", count, Target::None),
        counted("ends that the payee was told of", outcome.notices, Target::AtLeast(count as f64)),
        counted(
            "vouchers held back while gas was above the cap",
            outcome.waited,
            Target::AtLeast(count as f64),
        ),
        counted("transactions above the cap", dear.count(), most(0)),
        counted("vouchers redeemed", outcome.paid.len(), Target::AtLeast(count as f64)),
        counted("transactions", sent.len(), most(fewest)),
        Figure::new(
            "gas of the largest, for each voucher",
            gas_max / REDEEM_MAX.min(count) as f64,
            "gas",
            Target::AtMost(GAS_EACH_MAX),
        ),
        Figure::new("fees at a quarter of the cap", fee as f64 / 1e18, "coins", Target::None),
        Figure::new("to read all channels and redeem", outcome.seconds, "s", Target::None),
        Figure::new(
            "left before the first refund",
            outcome.left_s as f64 / 3600.0,
            "h",
            Target::AtLeast(1.0),
        ),
        counted("channels not paid in full", unpaid, most(0)),
        Figure::new("lost", lost.0 as f64, "tokens", Target::AtMost(0.0)),
        Figure::new("stuck in the contract", stuck.0 as f64, "tokens", Target::AtMost(0.0)),
    ])
}

#[expect(clippy::disallowed_methods, reason = "people want to know how long it takes")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn say(text: &str) {
    println!("{text}");
}
