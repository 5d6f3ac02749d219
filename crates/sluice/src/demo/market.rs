//! An auction first: three relays, five homes and a tenant who know one address of the mesh and nothing
//! of one another; then the main job under the lease that was won.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_chain::Chain;
use sluice_ledger::{RedemptionKind, Role};
use sluice_market::{TenantPolicy, Want};
use sluice_mesh::Multiaddr;
use sluice_proto::market::{self, Region, ServiceKind, ServiceOffer};
use sluice_proto::record::RelayEntry;
use sluice_proto::{Amount, PeerId, Price, RelayAddr, ServiceName, WINDOW_MAX, WINDOW_MIN};
use sluice_relay::Relay;
use sluice_transport::Clock;
use tokio::task::JoinSet;

use super::{
    Bill, DEPOSIT, DemoOptions, Folder, Narrator, PERIOD_S, Parties, Player, RATE_MAX, Workload,
    any_port, fetch, make_bill, open_chain, settle,
};
use crate::commands::auction_text;
use crate::config::{REGION, SellSection};
use crate::roles::{
    BuyOptions, Buyer, Connect, ConnectOptions, Leases, MeshOptions, Meshed, Provide,
    ProvideOptions, Reporter, SellOptions, Selling, Teller, Times, deposit_under,
};

/// What each relay asks, and each home at least, in millionths of a token per GiB.
const RELAY_PRICES: [u128; 3] = [5_000, 5_500, 6_000];
const HOME_PRICES: [u128; 5] = [62_000, 40_000, 55_000, 48_000, 71_000];
/// The most that the tenant pays: a bid comes the sooner the further it is below.
const PRICE_MAX: u128 = 160_000;
/// Relays that a home has a channel with at a time, at most.
const RELAY_CHANNELS: u128 = 4;
/// What order, bids and lease should take at most, seconds.
const FIRST_BID: f64 = 0.5;
const ALL_BIDS: f64 = 2.0;
const USABLE: f64 = 3.0;

/// What the auction came to.
#[derive(Debug, Clone)]
pub struct Auction {
    /// Relays that were up.
    pub relays: usize,
    /// Homes that could bid.
    pub homes: usize,
    /// Who won.
    pub winner: PeerId,
    /// At what price.
    pub price: Price,
    /// When what happened, from the order on.
    pub times: Times,
    /// Transactions that opened the lease's channel or added to it.
    pub opens: usize,
    /// Transactions that closed it.
    pub closes: usize,
}

impl Auction {
    /// What `sluice demo --market --json` says of it, beside the bill.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "event": "auction", "relays": self.relays, "providers": self.homes,
            "bids": self.times.bids, "winner": self.winner.to_string(),
            "price_up": self.price.up.to_string(), "price_down": self.price.down.to_string(),
        })
    }

    /// The figures, each with what it should reach.
    #[must_use]
    pub fn figures(&self) -> Value {
        let figure = |name: &str, value: f64, unit: &str, target: f64| {
            json!({
                "name": name, "value": value, "unit": unit, "target": format!("<= {target}"),
                "met": value <= target,
            })
        };
        // What did not happen is not met.
        let seconds = |span: Option<Duration>| span.map_or(f64::MAX, |span| span.as_secs_f64());
        let times = self.times;
        json!({"figures": [
            figure("order to first bid", seconds(times.first_bid), "s", FIRST_BID),
            figure("order to all bids", seconds(times.last_bid), "s", ALL_BIDS),
            figure("order to lease usable", seconds(times.usable), "s", USABLE),
            figure("transactions to open", self.opens as f64, "", 1.0),
            figure("transactions to close", self.closes as f64, "", 1.0),
        ]})
    }
}

impl fmt::Display for Auction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |span: Option<Duration>| {
            span.map_or_else(|| "never".to_owned(), |span| format!("{} ms", span.as_millis()))
        };
        let times = self.times;
        writeln!(f, "Auction")?;
        writeln!(f, "  bids                   {} of {} homes", times.bids, self.homes)?;
        writeln!(f, "  first bid after        {}", ms(times.first_bid))?;
        writeln!(f, "  last bid after         {}", ms(times.last_bid))?;
        writeln!(f, "  both had signed after  {}", ms(times.leased))?;
        writeln!(f, "  lease usable after     {}", ms(times.usable))?;
        writeln!(
            f,
            "  transactions           {} to open its channel, {} to close it",
            self.opens, self.closes
        )
    }
}

/// A relay in the mesh.
struct Post {
    player: Player,
    relay: Relay,
    _mesh: Meshed,
}

/// A home that sells.
struct Home {
    player: Player,
    provide: Provide,
    selling: Selling,
    _mesh: Meshed,
}

/// Runs the demo with an auction.
///
/// # Errors
/// When any part of the story fails.
pub async fn run(options: DemoOptions) -> Result<(Auction, Bill)> {
    let folder = Folder::new()?;
    let say = Narrator { quiet: options.quiet };
    let job = Workload::start(&options).await?;
    let chain = open_chain(&options, &folder.0).await?;
    say.line(&format!("Chain       {} (id {})", chain.kind(), chain.domain().chain_id));
    let posts = start_posts(&folder.0, &chain).await?;
    let bootstrap = posts.first().context("no relay")?._mesh.addresses().await;
    for post in &posts {
        say.line(&format!("Relay       {}", post.relay.local_addr()));
    }
    let mut homes = start_homes(&folder.0, &chain, &bootstrap, job.web).await?;
    for home in &homes {
        say.line(&format!("Provider    {}", home.provide.peer()));
    }
    let tenant = Player::new(&folder.0, "connect", &chain)?;
    chain.fund_dev(tenant.money.wallet.address(), Amount(DEPOSIT)).await?;
    say.line(&format!("Tenant      {}: knows one relay's address\n", tenant.identity.peer()));
    let leases = Leases::open(tenant.dir())?;
    let mesh = Meshed::start(&tenant.identity, mesh_options(&bootstrap, false), Some(tenant.dir()))
        .await?;
    let quiet = options.quiet;
    let mut buyer = Buyer::start(BuyOptions {
        identity: tenant.identity.clone(),
        bind: any_port(),
        mesh,
        policy: TenantPolicy::default(),
        money: Some(tenant.money.clone()),
        deposit: Amount(DEPOSIT),
        ledger: tenant.ledger.clone(),
        leases,
        dir: Some(tenant.dir().to_owned()),
        tell: Teller::new(move |since, progress| {
            Narrator { quiet }.line(&auction_text(since, progress));
        }),
    })
    .await?;
    let bought = buyer.order(&want(&chain, job.total)?).await?;
    buyer.stop().await;
    let lease = Arc::new(bought.lease.lease().clone());
    let at = homes.iter().position(|home| home.provide.peer() == lease.provider);
    let Home { player, provide, selling, _mesh } = homes.swap_remove(at.context("a stranger won")?);
    say.line(&format!("\nLease       {} with {}", lease.lease, lease.provider));
    let connect = Connect::start(ConnectOptions {
        lease: Some(lease.clone()),
        deposit: deposit_under(&lease, Amount(DEPOSIT)),
        price_max: Price { up: 0, down: 0 },
        ..tenant.connect_options(lease.ticket())?
    })
    .await?;
    let local = connect.local().first().context("no local port")?.0;
    say.line(&format!("Tenant      http://{local}/file leads there now\n"));
    let (players, relays): (Vec<_>, Vec<_>) =
        posts.into_iter().map(|post| ((post.player, post._mesh), post.relay)).unzip();
    let fetched = fetch(&connect, &provide, &relays, local, (job.total, &job.hold), &say).await?;
    ensure!(fetched.file_bytes == job.total, "{} of {} bytes came", fetched.file_bytes, job.total);
    drop(selling);
    for home in homes {
        drop(home.selling);
        home.provide.stop().await;
    }
    let parties = Parties {
        chain: &chain,
        tenant: &tenant,
        provider: &player,
        relays: players.iter().map(|(player, _)| player).collect(),
    };
    let mut settled = settle::settle(&parties, connect, provide, relays).await?;
    settled.gas.open += bought.open_gas;
    let channel = tenant.ledger.lease(lease.lease).await?.and_then(|row| row.channel);
    let done = tenant.ledger.redemptions(channel.context("the lease has no channel")?).await?;
    let opened =
        |kind: &RedemptionKind| matches!(kind, RedemptionKind::Open | RedemptionKind::TopUp);
    let auction = Auction {
        relays: players.len(),
        homes: HOME_PRICES.len(),
        winner: lease.provider,
        price: lease.price,
        times: bought.times,
        opens: done.iter().filter(|row| opened(&row.kind)).count(),
        closes: settled.closes,
    };
    let channels = tenant.ledger.channels().await?;
    let paid = channels.iter().filter(|channel| channel.role == Role::Payer).count();
    ensure!(paid == 1, "the tenant opened {paid} channels for one lease");
    Ok((auction, make_bill(&chain, &fetched, &settled, job.expected)))
}

/// On loopback, known to nobody but by what it says of itself.
fn mesh_options(bootstrap: &[Multiaddr], is_relay: bool) -> MeshOptions {
    let listen = ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"];
    MeshOptions {
        listen: listen.map(|a| a.parse().expect("an address")).to_vec(),
        bootstrap: bootstrap.to_vec(),
        public: is_relay,
        relay: is_relay,
        private: true,
        ..MeshOptions::default()
    }
}

async fn start_posts(folder: &Path, chain: &Chain) -> Result<Vec<Post>> {
    let (mut posts, mut bootstrap) = (Vec::new(), Vec::new());
    for (n, price) in RELAY_PRICES.into_iter().enumerate() {
        let player = Player::new(folder, &format!("relay-{n}"), chain)?;
        chain.fund_dev(player.money.wallet.address(), Amount(0)).await?;
        let relay = player.start_relay(price).await?;
        let options = mesh_options(&bootstrap, true);
        let mesh = Meshed::start(&player.identity, options, Some(player.dir())).await?;
        let addresses = vec![RelayAddr::new(relay.peer(), relay.local_addr())];
        let entry = RelayEntry { addresses, price: Price { up: price, down: price } };
        mesh.publish(None, Some(entry)).await?;
        if bootstrap.is_empty() {
            bootstrap = mesh.addresses().await;
        }
        posts.push(Post { player, relay, _mesh: mesh });
    }
    Ok(posts)
}

async fn start_homes(
    folder: &Path,
    chain: &Chain,
    bootstrap: &[Multiaddr],
    web: SocketAddr,
) -> Result<Vec<Home>> {
    let mut starting = JoinSet::new();
    for (n, price) in HOME_PRICES.into_iter().enumerate() {
        let player = Player::new(folder, &format!("provide-{n}"), chain)?;
        chain.fund_dev(player.money.wallet.address(), Amount(DEPOSIT)).await?;
        let options = mesh_options(bootstrap, false);
        starting.spawn(Home::start(player, price, options, web));
    }
    let mut homes = Vec::new();
    while let Some(home) = starting.join_next().await {
        homes.push(home??);
    }
    Ok(homes)
}

impl Home {
    async fn start(
        player: Player,
        price: u128,
        options: MeshOptions,
        web: SocketAddr,
    ) -> Result<Self> {
        let mesh = Meshed::start(&player.identity, options, Some(player.dir())).await?;
        let leases = Leases::open(player.dir())?;
        let provide = Provide::start(ProvideOptions {
            mesh: Some(mesh.clone()),
            leases: Some(leases.clone()),
            relay_deposit: Amount(DEPOSIT / RELAY_CHANNELS),
            relay_price_max: RELAY_PRICES.into_iter().max().unwrap_or_default(),
            ..player.provide_options(Vec::new(), web)?
        })
        .await?;
        let section = SellSection { floor_up: price, floor_down: price, ..SellSection::default() };
        let money = player.money.clone();
        let paid = market::Money { domain: money.chain.domain(), token: money.chain.token() };
        let selling = Selling::start(
            mesh.clone(),
            SellOptions {
                identity: player.identity.clone(),
                policy: section.policy(vec![web_service()?], Some(paid), money.period_s),
                regions: section.regions.clone(),
                rate_max: RATE_MAX,
                money: Some(money),
                leases,
                ledger: player.ledger.clone(),
                relays: provide.named(),
                bids: None,
                report: Reporter::logged(),
                clock: Clock::default(),
            },
        )
        .await?;
        Ok(Self { player, provide, selling, _mesh: mesh })
    }
}

fn web_service() -> Result<ServiceOffer> {
    Ok(ServiceOffer { name: ServiceName::parse("web")?, kind: ServiceKind::Tcp })
}

/// The file once, by whoever is cheapest.
fn want(chain: &Chain, total: u64) -> Result<Want> {
    Ok(Want {
        region: Region::parse(REGION)?,
        population: 0,
        services: vec![web_service()?],
        rate_up_min: 0,
        rate_down_min: 0,
        volume_up: 0,
        volume_down: total,
        budget: Amount(DEPOSIT),
        duration_s: 3_600,
        max_price: Price { up: PRICE_MAX, down: PRICE_MAX },
        window_min: WINDOW_MIN,
        window_max: WINDOW_MAX,
        direct: market::DirectPolicy::AfterFunding,
        period_s: PERIOD_S,
        idle_timeout_s: 60,
        money: Some(market::Money { domain: chain.domain(), token: chain.token() }),
        rate_proven_min: 0,
    })
}
