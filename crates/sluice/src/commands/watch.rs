//! `sluice watch`: a watchtower.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sluice_proto::{ChannelId, Domain};
use sluice_settlement::{Decision, RedemptionPolicy, RedemptionRule, WhyWait};
use sluice_transport::Clock;

use super::export::Export;
use super::{chain, open_key, settler, tell};
use crate::cli::WatchArgs;
use crate::config::Config;
use crate::roles::{Report, Reporter, wait_for_stop};
use crate::settle::{Demand, Held, Line, Rounds, Settler};
use crate::state::State;

/// Largest file of vouchers: a hundred thousand channels.
const FILE_MAX: u64 = 256 << 20;

pub(crate) async fn watch(config: &Config, args: &WatchArgs, json: bool) -> Result<()> {
    let dir = match args.state_dir.as_ref().or(config.node.state_dir.as_ref()) {
        Some(dir) => dir.clone(),
        None => State::default_dir("watch")?,
    };
    let state = State::open(&dir, "watch")?;
    let chain = chain(config, &dir).await?;
    let wallet = match &config.wallet.payee {
        Some(path) => open_key(config, path)?,
        None => state.wallet().clone(),
    };
    let settler = settler(config, chain, wallet).await?;
    // It pays the fees and keeps nothing: it acts when money would be lost, not before.
    let policy = RedemptionPolicy { rule: RedemptionRule::BeforeClose, ..settler.policy };
    let settler = Settler { policy, ..settler };
    let mut files: Vec<_> = args.vouchers.iter().map(|path| Guarded::new(path.clone())).collect();
    for file in &mut files {
        file.read()?;
    }
    let held = all(&files, &settler.chain.domain());
    let account = settler.wallet.address();
    tell(
        json,
        || json!({"event": "ready", "channels": held.len(), "account": account.to_string()}),
        || format!("Guarding {} channels; {account} pays the fees.", held.len()),
    );
    let report = Reporter::print(json);
    if args.once {
        return once(&settler, &held, &report).await;
    }
    tokio::select! {
        () = guard(&settler, files, config, &report) => {}
        why = wait_for_stop() => report.tell(&Report::Stopping { why }),
    }
    drop(state);
    Ok(())
}

/// One round; that a channel which ends keeps its voucher unpaid is a failure, unless it waits for
/// cheaper gas and has the time.
async fn once(settler: &Settler, held: &[Held], report: &Reporter) -> Result<()> {
    let mut rounds = Rounds::default();
    let (plan, _) = rounds.round(settler, held, &Demand::Rule, report).await?;
    if let Some(what) = rounds.trouble() {
        bail!("not all that had to be redeemed was: {what}");
    }
    let ends = |line: &&Line| line.state.is_some_and(|s| s.closing_at_unix_s.is_some());
    for line in plan.lines.iter().filter(ends) {
        if let Decision::Wait(why @ (WhyWait::Refused | WhyWait::OverDeposit)) = line.decision {
            bail!("channel {} ends with its voucher unpaid: {why}", line.held.voucher.channel);
        }
    }
    Ok(())
}

async fn guard(settler: &Settler, mut files: Vec<Guarded>, config: &Config, report: &Reporter) {
    let clock = Clock::default();
    let mut rounds = Rounds::default();
    loop {
        for file in &mut files {
            let outcome = file.read();
            file.note(report, outcome);
        }
        let held = all(&files, &settler.chain.domain());
        let outcome = rounds.round(settler, &held, &Demand::Rule, report).await.map(drop);
        rounds.note(report, outcome);
        clock.sleep(config.chain.look).await;
    }
}

/// The newest voucher of each channel of this chain, whichever file has it.
fn all(files: &[Guarded], domain: &Domain) -> Vec<Held> {
    let mut newest: HashMap<ChannelId, Held> = HashMap::new();
    for held in files.iter().flat_map(|file| &file.held).filter(|held| held.domain == *domain) {
        let known = newest.entry(held.voucher.channel).or_insert(*held);
        if held.voucher.amount > known.voucher.amount {
            *known = *held;
        }
    }
    let mut all: Vec<_> = newest.into_values().collect();
    all.sort_by_key(|held| held.voucher.channel);
    all
}

/// A file of vouchers, and what it held when it could be read last.
struct Guarded {
    path: PathBuf,
    changed: Option<(SystemTime, u64)>,
    held: Vec<Held>,
    trouble: Option<String>,
}

impl Guarded {
    fn new(path: PathBuf) -> Self {
        Self { path, changed: None, held: Vec::new(), trouble: None }
    }

    /// Reads it if it changed. What cannot be read leaves what was there before.
    fn read(&mut self) -> Result<()> {
        let what = || format!("the vouchers in {}", self.path.display());
        let metadata = std::fs::metadata(&self.path).with_context(what)?;
        let changed = Some((metadata.modified().with_context(what)?, metadata.len()));
        if self.changed == changed {
            return Ok(());
        }
        let held = read(&self.path, metadata.len()).with_context(what)?;
        (self.changed, self.held) = (changed, held);
        Ok(())
    }

    fn note(&mut self, report: &Reporter, outcome: Result<()>) {
        let now = outcome.err().map(|error| format!("{error:#}"));
        if let Some(what) = now.as_ref().filter(|what| self.trouble.as_ref() != Some(*what)) {
            report.tell(&Report::SettlementFailed { what: what.clone() });
        }
        self.trouble = now;
    }
}

fn read(path: &Path, size: u64) -> Result<Vec<Held>> {
    if size > FILE_MAX {
        bail!("it has {size} bytes, and at most {FILE_MAX} are read");
    }
    Export::read(&std::fs::read_to_string(path)?)
}
