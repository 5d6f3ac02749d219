//! The market with the real program: a relay, two homes that sell and a tenant who knows one address of
//! the mesh, as in the README's four terminals.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_ledger::{Edge, Role};
use sluice_proto::{Amount, Ticket};
use tests::{
    Lab, Process, RelayRole, Web, both_agree, curl, differs_at, done, has, last, skip, sluice,
};

/// What a home asks for a byte down.
const CHEAP: u128 = 1 << 30;
const DEAR: u128 = 2 << 30;
/// The most that the tenant pays.
const MOST: u128 = 6 << 30;

/// A relay, two homes of different prices, and the address that everybody begins with.
struct Market {
    lab: Lab,
    web: Web,
    relay: RelayRole,
    mesh: String,
    homes: Vec<Home>,
}

struct Home {
    state: &'static str,
    process: Process,
    peer: String,
}

impl Market {
    fn open() -> Result<Self> {
        let (lab, web) = (Lab::paid()?, Web::start()?);
        let relay = lab.relay_with(&["--bind", "127.0.0.1:0", "--mesh", "127.0.0.1:0"])?;
        let ready = relay.process.event(0, "ready")?;
        let mesh = ready["mesh"][0].as_str().context("no address of its mesh")?.to_owned();
        let mut market = Self { lab, web, relay, mesh, homes: Vec::new() };
        for (state, floor) in [("cheap", CHEAP), ("dear", DEAR)] {
            let home = market.home(state, floor)?;
            market.homes.push(home);
        }
        Ok(market)
    }

    /// A home to which nobody names a relay.
    fn home(&self, state: &'static str, floor: u128) -> Result<Home> {
        let (expose, floor) = (format!("web=tcp:{}", self.web.addr()), floor.to_string());
        let args = ["provide", "--direct", "never", "--expose", &expose, "--sell"];
        let args = [&args[..], &["--floor-down", &floor, "--bootstrap", &self.mesh]].concat();
        let process = self.lab.run(state, &args)?;
        let ready = process.event(0, "ready")?;
        let ticket = Ticket::decode(ready["ticket"].as_str().context("no ticket")?, 0)?;
        Ok(Home { state, process, peer: ticket.peer.to_string() })
    }

    fn order(&self, more: &[&str]) -> Result<Process> {
        let most = MOST.to_string();
        let args = ["order", "--service", "web", "--max-price-down", &most, "--bootstrap"];
        self.lab.run("connect", &[&args[..], &[&self.mesh], more].concat())
    }

    /// Uses a lease, whose id begins so, and parts from it.
    fn download(&self, lease: &str) -> Result<()> {
        let mut tenant = self.lab.connect(lease, &["web"], "never")?;
        let page = curl(tenant.port("web"), "3/300000")?;
        ensure!(page.len() == 300_000 && differs_at(3, 0, &page).is_none(), "other bytes came");
        tenant.process.stop()
    }
}

fn text<'v>(event: &'v Value, key: &str) -> Result<&'v str> {
    event[key].as_str().with_context(|| format!("no {key} in {event}"))
}

/// What became of this bidder's bid.
fn verdict(order: &Process, peer: &str) -> Result<Value> {
    let all = order.events("considered");
    let of = all.into_iter().find(|event| event["bidder"] == peer);
    of.with_context(|| format!("{peer} is not among the bids{}", order.story()))
}

#[test]
fn four_terminals_do_an_auction_and_a_download_with_nothing_but_a_bootstrap_address() -> Result<()>
{
    if !has("curl") {
        return skip("an auction and a download", "curl is not installed");
    }
    let mut market = Market::open()?;
    let mut order = market.order(&[])?;
    ensure!(order.wait()?.success(), "no lease{}", order.story());
    let leased = last(&order, "leased")?;
    let (cheap, dear) = (market.homes[0].peer.clone(), market.homes[1].peer.clone());
    ensure!(leased["provider"] == cheap.as_str(), "{leased}");
    ensure!(leased["price_down"] == CHEAP.to_string() && leased["bids"] == 2, "{leased}");
    ensure!(verdict(&order, &cheap)?["taken"] == true);
    let why = verdict(&order, &dear)?;
    ensure!(why["taken"] == false && text(&why, "why")?.contains("costs"), "{why}");
    let latency = &verdict(&order, &cheap)?["latency_ms"];
    ensure!(latency.as_f64().is_some_and(|ms| ms > 0.0), "it was measured: {latency}");
    // Its channel is open, by one transaction, and holds no more than the budget.
    let channel = market.lab.channel("connect", Role::Payer)?;
    let budget: u128 = text(&leased, "budget")?.parse()?;
    ensure!(channel.deposit == Amount(budget), "{} deposited of {budget}", channel.deposit);

    // The beginning of its name is enough, and nothing else is said.
    let lease = text(&leased, "lease")?.to_owned();
    market.download(&lease[..12])?;
    // So is its file, wherever it is.
    let file = market.lab.path().join("a lease");
    std::fs::copy(market.lab.state("connect").join("leases").join(&lease), &file)?;
    market.download(&file.display().to_string())?;
    let [home, other] = market.homes.as_mut_slice() else { anyhow::bail!("two homes") };
    home.process.stop()?;
    other.process.stop()?;
    market.relay.process.stop()?;
    let (tenant, provider) = (market.lab.books("connect")?, market.lab.books(home.state)?);
    ensure!(both_agree(Edge::Tenant, &tenant, &provider)? == 1);
    let rows = tenant.channels()?;
    ensure!(rows.len() == 1, "{} channels for one lease", rows.len());
    Ok(())
}

#[test]
fn whoever_wins_and_is_gone_is_passed_over_for_the_next_and_remembered() -> Result<()> {
    let mut market = Market::open()?;
    let (cheap, dear) = (market.homes[0].peer.clone(), market.homes[1].peer.clone());
    let mut order = market.order(&[])?;
    order.wait_for(0, "the cheapest bid", |event| {
        (event["event"] == "bid" && event["bidder"] == cheap.as_str()).then_some(())
    })?;
    market.homes[0].process.kill()?;
    ensure!(order.wait()?.success(), "no lease{}", order.story());
    let awards = order.events("awarded");
    let awarded: Vec<_> = awards.iter().map(|event| event["bidder"].clone()).collect();
    ensure!(awarded == [cheap.as_str(), dear.as_str()], "{awarded:?}");
    ensure!(last(&order, "leased")?["provider"] == dear.as_str());
    let why = verdict(&order, &cheap)?;
    ensure!(text(&why, "why")? == "did not answer the award", "{why}");
    ensure!(market.lab.channel("connect", Role::Payer)?.peer.to_string() == dear);
    let seen = std::fs::read_to_string(market.lab.state("connect").join("providers"))?;
    let of = |peer: &str| seen.lines().find(|line| line.contains(peer)).map(str::to_owned);
    ensure!(of(&cheap).is_some_and(|line| line.contains("\"bad\":1000")), "{seen}");
    ensure!(of(&dear).is_some_and(|line| line.contains("\"good\":1000")), "{seen}");
    Ok(())
}

#[test]
fn bids_are_kept_and_the_dearer_may_be_taken_by_hand() -> Result<()> {
    if !has("curl") {
        return skip("an award by hand", "curl is not installed");
    }
    let market = Market::open()?;
    let mut order = market.order(&["--bids-only"])?;
    ensure!(order.wait()?.success() && order.events("leased").is_empty(), "{}", order.story());
    let offers = order.events("offer");
    let dear = market.homes[1].peer.as_str();
    ensure!(offers.len() == 2 && offers[1]["bidder"] == dear, "{offers:?}");
    let kept = done(&market.lab, "connect", &["award"])?;
    ensure!(kept.events("offer").len() == 2, "{}", kept.output());
    let mut wrong = market.lab.run("connect", &["award", "3", "--bootstrap", &market.mesh])?;
    ensure!(!wrong.wait()?.success() && wrong.errors().contains("1 to 2"), "{}", wrong.errors());
    let award = done(&market.lab, "connect", &["award", "2", "--bootstrap", &market.mesh])?;
    let leased = last(&award, "leased")?;
    ensure!(leased["provider"] == dear && leased["price_down"] == DEAR.to_string(), "{leased}");
    market.download(text(&leased, "lease")?)
}

#[test]
fn an_order_that_nobody_may_bid_for_says_so_and_opens_nothing() -> Result<()> {
    let market = Market::open()?;
    let mut order = market.lab.run(
        "connect",
        &["order", "--service", "mail", "--max-price-down", "5", "--bootstrap", &market.mesh],
    )?;
    ensure!(
        !order.wait()?.success() && order.errors().contains("nobody bid"),
        "{}",
        order.errors()
    );
    let mut alone = market.lab.run("connect", &["order", "--service", "web"])?;
    ensure!(!alone.wait()?.success() && alone.errors().contains("--bootstrap"));
    let mut nothing = market.lab.run("connect", &["order", "--bootstrap", &market.mesh])?;
    ensure!(!nothing.wait()?.success() && nothing.errors().contains("--service"));
    ensure!(market.lab.channel("connect", Role::Payer).is_err(), "a channel was opened");
    Ok(())
}

#[test]
fn the_demo_runs_an_auction_first_and_its_last_line_are_the_figures() -> Result<()> {
    let mut demo = Process::start("sluice demo", sluice(), |c| {
        c.args(["demo", "--market", "--json", "--megabytes", "8"]);
    })?;
    ensure!(demo.wait()?.success(), "{}{}", demo.output(), demo.errors());
    let output = demo.output();
    let lines: Vec<Value> = output.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let [auction, bill, figures] = lines.as_slice() else { anyhow::bail!("{} lines", lines.len()) };
    ensure!(auction["relays"] == 3 && auction["providers"] == 5, "{auction}");
    ensure!(auction["bids"] == 5 && auction["price_down"] == "40000", "{auction}");
    ensure!(bill["sha256_ok"] == true, "{bill}");
    let tenant_counted = bill["billed_bytes_tenant"].as_u64();
    ensure!(tenant_counted == bill["billed_bytes_provider"].as_u64(), "{bill}");
    ensure!(tenant_counted >= Some(8_000_000), "{bill}");
    let figure = |name: &str| {
        let all = figures["figures"].as_array();
        let found = all.into_iter().flatten().find(|figure| figure["name"] == name);
        found.and_then(|figure| figure["value"].as_f64()).with_context(|| format!("no {name}"))
    };
    ensure!(figure("transactions to open")? == 1.0 && figure("transactions to close")? == 1.0);
    ensure!(figure("order to first bid")? <= figure("order to all bids")?, "{figures}");
    ensure!(figure("order to all bids")? < figure("order to lease usable")?, "{figures}");
    Ok(())
}
