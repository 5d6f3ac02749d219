//! `sluice ledger`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_ledger::{ChannelStatus, LeaseRow, Ledger, Recovery};

use super::export::Export;
use super::verify::{Problem, verify};
use super::{chain, head, place, read_ledger, short, table, tell};
use crate::app::print;
use crate::cli::{LedgerCommand, StateArgs};
use crate::config::{ChainKind, Config};
use crate::state::State;

pub(crate) async fn ledger(config: &Config, command: &LedgerCommand, json: bool) -> Result<()> {
    match command {
        LedgerCommand::List { state } => list(config, state, json).await,
        LedgerCommand::Export { format, table, out, state } => {
            let ledger = read_ledger(config, state, &place(config, state)?).await?;
            let export = Export::of(&ledger).await?;
            let text = match format.as_str() {
                "csv" => export.csv(table),
                _ => serde_json::to_string_pretty(&export)?,
            };
            write(out.as_deref(), &text)
        }
        LedgerCommand::Verify { offline, state } => check(config, *offline, state, json).await,
    }
}

async fn list(config: &Config, args: &StateArgs, json: bool) -> Result<()> {
    let ledger = read_ledger(config, args, &place(config, args)?).await?;
    let export = Export::of(&ledger).await?;
    let names = ["lease", "edge", "side", "peer", "channel", "up", "down", "amount", "vouchers"];
    let mut rows = vec![head(names)];
    for lease in &export.leases {
        let last = lease.vouchers.last();
        let (up, down) = last.map_or((0, 0), |link| (link.up, link.down));
        let (amount, count) = last.map_or(("0", 0), |link| (link.amount.as_str(), link.seq));
        if json {
            let line = json!({
                "event": "lease", "lease": lease.id, "edge": lease.edge, "side": lease.side,
                "peer": lease.peer, "channel": lease.channel, "up": up, "down": down,
                "amount": amount, "vouchers": count,
            });
            print(&line.to_string());
        }
        rows.push(vec![
            short(&lease.id),
            lease.edge.clone(),
            lease.side.clone(),
            short(&lease.peer),
            lease.channel.as_ref().map_or_else(|| "-".to_owned(), short),
            up.to_string(),
            down.to_string(),
            amount.to_owned(),
            count.to_string(),
        ]);
    }
    if !json {
        print(&if export.leases.is_empty() { "No leases.".to_owned() } else { table(&rows) });
    }
    Ok(())
}

/// A file that is there is replaced, whole or not at all: a watchtower may be reading it.
fn write(out: Option<&Path>, text: &str) -> Result<()> {
    let Some(out) = out else {
        print(text);
        return Ok(());
    };
    let mut name = out.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = Path::new(&name);
    State::write_secret(new, format!("{text}\n").as_bytes())?;
    std::fs::rename(new, out).with_context(|| {
        let _ = std::fs::remove_file(new);
        format!("failed to write {}", out.display())
    })
}

/// Tells whether the directory was found copied or restored, and which leases are in doubt since.
async fn tell_doubts(dir: &Path, ledger: &Ledger, json: bool) -> Result<()> {
    let recovery = Recovery::open(&State::recovery_in(dir))?;
    let moved = State::moved(dir)?;
    let Some(why) = moved.or(recovery.found().map(|found| found.why.as_str())) else {
        return Ok(());
    };
    let leases = in_doubt(ledger, &recovery, moved.is_some()).await?;
    tell(
        json,
        || {
            json!({
                "event": "recovery", "why": why, "begun": moved.is_none(),
                "found_at_unix_s": recovery.found().map(|found| found.at_unix_s),
                "in_doubt": leases.len(),
            })
        },
        || {
            format!(
                "In recovery: {why}. {} leases are in doubt: their newest vouchers may be lost here; \
                 each is settled when its other side comes back.",
                leases.len()
            )
        },
    );
    for lease in leases {
        let (id, peer) = (hex::encode(lease.id.0), lease.peer);
        tell(
            json,
            || json!({"event": "in_doubt", "lease": id, "peer": peer.to_string()}),
            || format!("lease {}: in doubt until {peer} comes back", lease.id),
        );
    }
    Ok(())
}

/// The leases whose channels pay on the word of this ledger alone.
pub(crate) async fn in_doubt(
    ledger: &Ledger,
    recovery: &Recovery,
    all: bool,
) -> Result<Vec<LeaseRow>> {
    let mut leases = Vec::new();
    for lease in ledger.leases().await? {
        let Some(channel) = lease.channel.filter(|_| all || recovery.doubts(lease.id)) else {
            continue;
        };
        let row = ledger.channel(channel).await?;
        if row.is_none_or(|row| row.status != ChannelStatus::Closed) {
            leases.push(lease);
        }
    }
    Ok(leases)
}

async fn check(config: &Config, offline: bool, args: &StateArgs, json: bool) -> Result<()> {
    let dir = place(config, args)?;
    let ledger = read_ledger(config, args, &dir).await?;
    let chain = match config.chain.kind {
        ChainKind::None => None,
        ChainKind::Embedded | ChainKind::Rpc if offline => None,
        ChainKind::Embedded | ChainKind::Rpc => {
            Some(chain(config, &dir).await.context("add --offline to check without the chain")?)
        }
    };
    let verdict = verify(&ledger, chain.as_ref()).await?;
    for Problem { what, of } in &verdict.problems {
        tell(
            json,
            || json!({"event": "problem", "of": of, "what": what}),
            || format!("{of}: {what}"),
        );
    }
    tell_doubts(&dir, &ledger, json).await?;
    let count = verdict.problems.len();
    tell(
        json,
        || {
            json!({
                "event": "verified", "leases": verdict.leases, "vouchers": verdict.vouchers,
                "channels": verdict.channels, "on_chain": chain.is_some(), "problems": count,
            })
        },
        || {
            let with = if chain.is_some() { "with" } else { "without" };
            format!(
                "{} leases, {} vouchers and {} channels were checked {with} the chain: {count} problems.",
                verdict.leases, verdict.vouchers, verdict.channels
            )
        },
    );
    ensure!(count == 0, "the ledger does not hold: {count} problems");
    Ok(())
}
