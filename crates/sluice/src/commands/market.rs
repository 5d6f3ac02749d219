//! `sluice bids` and `sluice leases`: what a role of the market did and has. Both read files beside a
//! running role.

use anyhow::{Context, Result};
use serde_json::json;
use sluice_proto::PeerId;
use sluice_proto::market::Lease;
use sluice_transport::Clock;

use super::{head, place, short, table};
use crate::app::print;
use crate::cli::StateArgs;
use crate::config::Config;
use crate::roles::{Bids, LeaseState, Leases};
use crate::state::State;

/// What there is no value for.
const NONE: &str = "-";

pub(crate) fn bids(config: &Config, args: &StateArgs, json: bool) -> Result<()> {
    let path = Bids::path_in(&place(config, args)?);
    let Bids { bids, refused, .. } = Bids::read(&path)?;
    if json {
        for bid in &bids {
            let mut line = serde_json::to_value(bid)?;
            let fields = line.as_object_mut().context("an object")?;
            fields.insert("event".to_owned(), json!("bid"));
            print(&line.to_string());
        }
        print(&json!({"event": "refused", "counts": refused}).to_string());
        return Ok(());
    }
    if bids.is_empty() {
        print("No order was heard yet: a provider hears them with `sluice provide --sell`.");
    } else {
        let now = Clock::default().unix_time().as_secs();
        let mut rows = vec![head(["order", "tenant", "heard", "up", "down", "fate", "why"])];
        rows.extend(bids.iter().map(|bid| {
            let price = |price: &Option<String>| price.clone().unwrap_or_else(|| NONE.to_owned());
            vec![
                bid.order.chars().take(16).collect(),
                short(&bid.tenant),
                format!("{} ago", span(now.saturating_sub(bid.heard_unix_s))),
                price(&bid.price_up),
                price(&bid.price_down),
                bid.fate.replace('_', " "),
                bid.why.clone(),
            ]
        }));
        print(&table(&rows));
    }
    if !refused.is_empty() {
        let counts: Vec<_> = refused
            .iter()
            .map(|(name, count)| format!("{} {count}", name.replace('_', " ")))
            .collect();
        print(&format!("Refused since it started: {}.", counts.join(", ")));
    }
    Ok(())
}

pub(crate) fn leases(config: &Config, args: &StateArgs, json: bool) -> Result<()> {
    let dir = place(config, args)?;
    let leases = Leases::open(&dir)?;
    let now = Clock::default().unix_time().as_secs();
    let all = leases.all(now);
    if json {
        for (signed, state) in &all {
            print(&line(signed.lease(), *state).to_string());
        }
    } else if all.is_empty() {
        print("No leases.");
    } else {
        let own = State::peer_of(&dir)?;
        let names = ["lease", "side", "with", "up", "down", "budget", "services", "state", "ends"];
        let mut rows = vec![head(names)];
        rows.extend(all.iter().map(|(signed, state)| row(signed.lease(), *state, own, now)));
        print(&table(&rows));
    }
    for damaged in leases.damaged() {
        tracing::warn!("{} is not a lease: {}", damaged.path.display(), damaged.what);
    }
    Ok(())
}

fn line(lease: &Lease, state: LeaseState) -> serde_json::Value {
    let services: Vec<_> =
        lease.services.iter().map(|s| format!("{}={}", s.name, s.kind.as_str())).collect();
    json!({
        "event": "lease",
        "lease": hex::encode(lease.lease.0),
        "order": hex::encode(lease.order.0),
        "tenant": lease.tenant.to_string(),
        "provider": lease.provider.to_string(),
        "price_up": lease.price.up.to_string(),
        "price_down": lease.price.down.to_string(),
        "budget": lease.budget.0.to_string(),
        "window": lease.window,
        "services": services,
        "made_unix_s": lease.made_unix_s,
        "ends_unix_s": lease.ends_unix_s(),
        "state": word(state),
    })
}

fn row(lease: &Lease, state: LeaseState, own: Option<PeerId>, now_unix_s: u64) -> Vec<String> {
    let (side, with) = match own == Some(lease.provider) {
        true => ("provider", lease.tenant),
        false => ("tenant", lease.provider),
    };
    let services: Vec<_> = lease.services.iter().map(|s| s.name.to_string()).collect();
    let ends = match state {
        LeaseState::Open => format!("in {}", span(lease.ends_unix_s().saturating_sub(now_unix_s))),
        LeaseState::Over | LeaseState::Ended(_) => NONE.to_owned(),
    };
    vec![
        hex::encode(lease.lease.0).chars().take(16).collect(),
        side.to_owned(),
        short(&with),
        lease.price.up.to_string(),
        lease.price.down.to_string(),
        lease.budget.0.to_string(),
        services.join(","),
        word(state).replace('_', " "),
        ends,
    ]
}

const fn word(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Open => "open",
        LeaseState::Over => "over",
        LeaseState::Ended(why) => why.as_str(),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}
