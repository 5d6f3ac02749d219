//! `sluice order` and `sluice award`: the tenant's side of the market.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use sluice_market::{Considered, Offer, Offers, TenantPolicy, Want};
use sluice_proto::market::{Bid, Money as OrderMoney, Order, SignedLease};
use sluice_proto::{Amount, PeerId, Price, WINDOW_MAX, WINDOW_MIN, amount_due};
use sluice_transport::Clock;

use super::tell;
use crate::app::{Desk, open_desk, print, start_mesh};
use crate::cli::{AwardArgs, OrderArgs};
use crate::config::Config;
use crate::roles::{
    Bought, BuyOptions, Buyer, Leases, Meshed, Money, Progress, Teller, wait_for_stop,
};
use crate::state::State;

/// Bids that a person chooses from should hold for so long.
const HOLD: Duration = Duration::from_secs(300);
/// Its name in the state directory: the bids of the last order that is decided by hand.
const OFFERS: &str = "offers";

/// Orders what `[order]` says.
pub(crate) async fn order(config: &Config, args: &OrderArgs, json: bool) -> Result<()> {
    ensure!(
        !config.order.services.is_empty(),
        "nothing is ordered: name a service with --service web, or in [order] services"
    );
    let by_hand = args.bids_only.then_some(HOLD);
    let (desk, mesh) = enter(config).await?;
    let want = want(config, desk.money.as_ref(), mesh.mesh().known().await.len())?;
    let dir = desk.state.dir().to_owned();
    let mut buyer = Buyer::start(buy_options(config, &desk, mesh, by_hand, json)?).await?;
    if by_hand.is_some() {
        let offers = interrupted(buyer.offers(&want)).await?;
        buyer.stop().await;
        keep(&dir, &offers)?;
        show(&offers, json);
        return Ok(());
    }
    let bought = interrupted(buyer.order(&want)).await?;
    buyer.stop().await;
    told(config, &bought, json);
    Ok(())
}

/// Awards a bid that was kept, or shows them.
pub(crate) async fn award(config: &Config, args: &AwardArgs, json: bool) -> Result<()> {
    let dir = match &config.node.state_dir {
        Some(dir) => dir.clone(),
        None => State::default_dir("connect")?,
    };
    let offers = kept(&dir)?.with_context(|| {
        format!("{}: no bids are kept here: `sluice order --bids-only`", dir.display())
    })?;
    let Some(text) = &args.bid else {
        show(&offers, json);
        return Ok(());
    };
    let bidder = chosen(&offers, text)?;
    let (desk, mesh) = enter(config).await?;
    let mut buyer = Buyer::start(buy_options(config, &desk, mesh, Some(HOLD), json)?).await?;
    let bought = interrupted(buyer.award(offers, bidder)).await?;
    buyer.stop().await;
    told(config, &bought, json);
    Ok(())
}

async fn interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        why = wait_for_stop() => bail!("stopped by {why}; what was signed is in `sluice leases`"),
    }
}

/// A tenant's keys and its mesh.
async fn enter(config: &Config) -> Result<(Desk, Meshed)> {
    let desk = open_desk(config, "connect").await?;
    let mesh = start_mesh(config, &desk.identity, desk.state.dir()).await?;
    let mesh = mesh.context(
        "no way into the mesh: name a node to begin with, --bootstrap <address>, as `sluice relay` \
         prints it",
    )?;
    Ok((desk, mesh))
}

fn buy_options(
    config: &Config,
    desk: &Desk,
    mesh: Meshed,
    by_hand: Option<Duration>,
    json: bool,
) -> Result<BuyOptions> {
    let order = &config.order;
    Ok(BuyOptions {
        identity: desk.identity.clone(),
        bind: config.node.bind,
        mesh,
        policy: TenantPolicy {
            award: order.score.0,
            latency_max: order.latency_max,
            by_hand,
            ..TenantPolicy::default()
        },
        money: desk.money.clone(),
        deposit: Amount(config.connect.deposit),
        ledger: desk.ledger.clone(),
        leases: Leases::open(desk.state.dir())?,
        dir: Some(desk.state.dir().to_owned()),
        tell: Teller::new(move |since, progress| match json {
            true => lines(since, progress).iter().for_each(|line| print(&line.to_string())),
            false => print(&text(since, progress)),
        }),
    })
}

/// What `[order]` asks for, where about so many providers are known.
fn want(config: &Config, money: Option<&Money>, known: usize) -> Result<Want> {
    let order = &config.order;
    let max_price = Price { up: order.max_price_up, down: order.max_price_down };
    let money = match max_price.is_zero() {
        true => None,
        false => {
            let money = money.context("a price needs a chain to be paid on: set [chain]")?;
            Some(OrderMoney { domain: money.chain.domain(), token: money.chain.token() })
        }
    };
    let (up, down) = (order.volume_up.0, order.volume_down.0);
    let budget = match (order.budget, amount_due(Amount(0), up, down, max_price)) {
        (0, Some(Amount(cost))) if money.is_some() => Amount(cost.max(1)),
        (0, None) => bail!("the volume at the highest price is more than any budget: set a budget"),
        (budget, _) => Amount(budget),
    };
    let direct = config.connect.direct.unwrap_or(config.node.direct);
    let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
    Ok(Want {
        region: order.region.clone(),
        population: known as u64,
        services: order.services.clone(),
        rate_up_min: order.rate_up_min.map_or(0, |rate| rate.0),
        rate_down_min: order.rate_down_min.map_or(0, |rate| rate.0),
        volume_up: up,
        volume_down: down,
        budget,
        duration_s: seconds(order.duration),
        max_price,
        window_min: WINDOW_MIN,
        window_max: WINDOW_MAX,
        direct: direct.into(),
        period_s: seconds(config.chain.period),
        idle_timeout_s: seconds(order.idle_timeout),
        money,
        rate_proven_min: 0,
    })
}

/// Says what was bought, and what to do next.
fn told(config: &Config, bought: &Bought, json: bool) {
    let lease = bought.lease.lease();
    let ms = |span: Option<Duration>| {
        span.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    };
    let times = bought.times;
    tell(
        json,
        || {
            json!({
                "event": "leased", "lease": hex::encode(lease.lease.0),
                "provider": lease.provider.to_string(),
                "price_up": lease.price.up.to_string(), "price_down": lease.price.down.to_string(),
                "budget": lease.budget.to_string(), "ends_unix_s": lease.ends_unix_s(),
                "services": lease.services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
                "bids": times.bids, "first_bid_ms": ms(times.first_bid),
                "last_bid_ms": ms(times.last_bid), "signed_ms": ms(times.leased),
                "usable_ms": ms(times.usable), "open_gas": bought.open_gas,
            })
        },
        || next_text(config, &bought.lease, times.usable),
    );
}

fn next_text(config: &Config, lease: &SignedLease, usable: Option<Duration>) -> String {
    let lease = lease.lease();
    let price = match lease.price.is_zero() {
        true => "free of charge".to_owned(),
        false => format!(
            "{} per GiB down, {} up, at most {} in all",
            lease.price.down, lease.price.up, lease.budget
        ),
    };
    let after =
        usable.map_or_else(String::new, |s| format!(" {} ms after the order", s.as_millis()));
    let state = config.node.state_dir.as_ref();
    let state = state.map_or_else(String::new, |dir| format!(" --state-dir {}", dir.display()));
    let service = lease.services.first().map_or("web", |service| service.name.as_str());
    format!(
        "\nLease {} with {} works{after}: {price}. Use it with\n\n  sluice connect {}{state} --map \
         127.0.0.1:9000={service}\n",
        lease.lease, lease.provider, lease.lease
    )
}

/// Shows the bids that may be awarded, by number.
fn show(offers: &Offers, json: bool) {
    let now_ms = u64::try_from(Clock::default().unix_time().as_millis()).unwrap_or(u64::MAX);
    let holds = |bid: &Bid| bid.valid_until_unix_ms.saturating_sub(now_ms) / 1_000;
    let mut rows = vec![
        ["", "bidder", "down", "up", "volume", "latency", "holds"].map(str::to_owned).to_vec(),
    ];
    for (at, Offer { bid, latency }) in offers.bids.iter().enumerate() {
        let cost = offers.order.cost(bid.price);
        if json {
            let line = json!({
                "event": "offer", "number": at + 1, "bidder": bid.bidder.to_string(),
                "price_up": bid.price.up.to_string(), "price_down": bid.price.down.to_string(),
                "cost": cost.to_string(), "holds_s": holds(bid),
                "latency_ms": latency.map(|latency| latency.as_secs_f64() * 1000.0),
            });
            print(&line.to_string());
        }
        rows.push(vec![
            (at + 1).to_string(),
            bid.bidder.to_string(),
            bid.price.down.to_string(),
            bid.price.up.to_string(),
            cost.to_string(),
            latency.map_or_else(|| "not reached".to_owned(), milliseconds),
            match holds(bid) {
                0 => "no longer".to_owned(),
                seconds => format!("{seconds} s"),
            },
        ]);
    }
    if !json {
        print(&format!("\n{}\n\nTake one with `sluice award <number>`.", super::table(&rows)));
    }
}

/// The bidder that `text` names.
fn chosen(offers: &Offers, text: &str) -> Result<PeerId> {
    let number = text.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let offer = match number {
        Some(at) => offers.bids.get(at),
        None => offers.bids.iter().find(|offer| offer.bid.bidder.to_string() == text),
    };
    let offer = offer.with_context(|| {
        format!(
            "{text:?} is no bid: write its number, 1 to {}, or its bidder's id",
            offers.bids.len()
        )
    })?;
    Ok(offer.bid.bidder)
}

fn keep(dir: &Path, offers: &Offers) -> Result<()> {
    let bids: Vec<Value> = offers
        .bids
        .iter()
        .map(|Offer { bid, latency }| {
            let us = latency.map(|l| u64::try_from(l.as_micros()).unwrap_or(u64::MAX));
            json!({"bid": hex::encode(bid.encode()), "latency_us": us})
        })
        .collect();
    let text = json!({"order": hex::encode(offers.order.encode()), "bids": bids});
    Ok(State::write_file(&offers_in(dir), text.to_string().as_bytes())?)
}

fn kept(dir: &Path) -> Result<Option<Offers>> {
    let path = offers_in(dir);
    let Some(text) = State::read_text(&path)? else { return Ok(None) };
    let offers = parse_kept(&text);
    offers.map(Some).with_context(|| format!("{}: its bids cannot be read", path.display()))
}

fn parse_kept(text: &str) -> Result<Offers> {
    let value: Value = serde_json::from_str(text)?;
    let bytes = |value: &Value| -> Result<Bytes> {
        Ok(hex::decode(value.as_str().context("text is missing")?)?.into())
    };
    let bids = value["bids"].as_array().context("there are none")?;
    let bids = bids.iter().map(|offer| {
        let latency = offer["latency_us"].as_u64().map(Duration::from_micros);
        Ok(Offer { bid: Bid::parse(&bytes(&offer["bid"])?)?, latency })
    });
    Ok(Offers {
        order: Order::parse(&bytes(&value["order"])?)?,
        bids: bids.collect::<Result<_>>()?,
    })
}

fn offers_in(dir: &Path) -> PathBuf {
    dir.join(OFFERS)
}

/// For people.
pub(crate) fn text(since: Duration, progress: &Progress) -> String {
    let at = format!("{:>6} ms ", since.as_millis());
    match progress {
        Progress::Placed { order, region } => format!("Order {order} is out in {region}"),
        Progress::Bid { bidder, price, cost } => format!(
            "{at} bid of {bidder}: {} per GiB down, {} up; {cost} for the volume",
            price.down, price.up
        ),
        Progress::Refused { bidder, why } => format!("{at} a bid of {bidder} is refused: {why}"),
        Progress::Measured { bidder, latency: Some(latency) } => {
            format!("{at} {bidder} is {} away", milliseconds(*latency))
        }
        Progress::Measured { bidder, latency: None } => format!("{at} {bidder} cannot be reached"),
        Progress::Awarded { bidder } => format!("{at} awarded to {bidder}"),
        Progress::Leased { lease } => format!("{at} lease {} is signed", lease.lease().lease),
        Progress::NotServed { bidder, why } => {
            format!("{at} {bidder} signed and does not serve, on to the next: {why}")
        }
        Progress::Considered(all) => considered_text(all),
    }
}

/// For scripts: objects, one a line.
fn lines(since: Duration, progress: &Progress) -> Vec<Value> {
    let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let one = match progress {
        Progress::Placed { order, region } => json!({
            "event": "order", "order": order.to_string(), "region": region.as_str(),
        }),
        Progress::Bid { bidder, price, cost } => json!({
            "event": "bid", "bidder": bidder.to_string(), "price_up": price.up.to_string(),
            "price_down": price.down.to_string(), "cost": cost.to_string(), "ms": ms,
        }),
        Progress::Refused { bidder, why } => json!({
            "event": "bid_refused", "bidder": bidder.to_string(), "why": why, "ms": ms,
        }),
        Progress::Measured { bidder, latency } => json!({
            "event": "measured", "bidder": bidder.to_string(), "ms": ms,
            "latency_ms": latency.map(|latency| latency.as_secs_f64() * 1000.0),
        }),
        Progress::Awarded { bidder } => {
            json!({"event": "awarded", "bidder": bidder.to_string(), "ms": ms})
        }
        Progress::Leased { lease } => json!({
            "event": "signed", "lease": hex::encode(lease.lease().lease.0), "ms": ms,
            "bidder": lease.lease().provider.to_string(),
        }),
        Progress::NotServed { bidder, why } => json!({
            "event": "not_served", "bidder": bidder.to_string(), "why": why, "ms": ms,
        }),
        Progress::Considered(all) => return all.iter().map(considered_json).collect(),
    };
    vec![one]
}

/// With a decimal, as far as it matters.
pub(crate) fn milliseconds(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

fn considered_json(bid: &Considered) -> Value {
    let (taken, why) = match &bid.verdict {
        Ok(verdict) => (*verdict == sluice_market::Verdict::Won, verdict.to_string()),
        Err(refusal) => (false, refusal.to_string()),
    };
    json!({
        "event": "considered", "bidder": bid.bidder.to_string(), "taken": taken, "why": why,
        "price_up": bid.price.map(|p| p.up.to_string()),
        "price_down": bid.price.map(|p| p.down.to_string()),
        "cost": bid.cost.map(|c| c.to_string()),
        "latency_ms": bid.latency.map(|latency| latency.as_secs_f64() * 1000.0),
    })
}

fn considered_text(all: &[Considered]) -> String {
    if all.is_empty() {
        return "\nNo bids came.".to_owned();
    }
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by_key(|bid| (bid.cost.is_none(), bid.cost, bid.latency));
    let head = ["bidder", "down", "up", "volume", "latency", ""].map(str::to_owned).to_vec();
    let row = |bid: &&Considered| {
        let price =
            |of: fn(Price) -> u128| bid.price.map_or_else(String::new, |p| of(p).to_string());
        let why = match &bid.verdict {
            Ok(verdict) => verdict.to_string(),
            Err(refusal) => refusal.to_string(),
        };
        vec![
            bid.bidder.to_string(),
            price(|p| p.down),
            price(|p| p.up),
            bid.cost.map_or_else(String::new, |cost| cost.to_string()),
            bid.latency.map_or_else(String::new, milliseconds),
            why,
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(all.iter().map(row)).collect();
    format!("\n{}", super::table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fed::feed;

    /// What is in it is fed where messages of the market are.
    #[test]
    fn kept_bids() {
        let genuine = r#"{"order":"0801","bids":[{"bid":"0801","latency_us":5}]}"#;
        let refused = parse_kept(genuine).expect_err("its order is none");
        assert!(refused.to_string().starts_with("order: "), "{refused}");
        feed!(genuine.to_owned(), |text: &str| drop(parse_kept(text)));
    }
}
