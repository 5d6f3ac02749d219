//! The whole story in one process: a relay, a home, a tenant, a download, the bill.
//!
//! Every part is real: UDP sockets on loopback, TLS and QUIC from end to end, vouchers in SQLite, a
//! contract in an EVM. One HTTP response crosses the relay first and the direct path then, on one
//! stream.

#![expect(clippy::disallowed_methods, reason = "the name of its folder is drawn here")]

mod market;
mod settle;
mod workload;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sluice_chain::{Chain, Finality, INCLUSION_DEFAULT, PATIENCE_DEFAULT, RpcConfig};
use sluice_ledger::Ledger;
use sluice_proto::{Amount, Price, RelayAddr, ServiceName, Ticket};
use sluice_relay::Relay;
use sluice_transport::{Clock, NatOptions};
use sluice_tunnel::Services;
use tokio::task::JoinSet;

use crate::bill::{Bill, PathBill, PathKind};
use crate::config::DirectPolicy;
use crate::roles::{
    Connect, ConnectOptions, Identity, Money, Provide, ProvideOptions, RelayOptions, Reporter,
    start_relay,
};
use crate::settle::Deposits;
use crate::state::State;
use settle::{Parties, Settled};
use workload::{Content, Downloaded, Hold};

pub use market::{Auction, run as run_market};

/// What the tenant pays per GiB to the provider, and the provider to the relay, in millionths of a
/// token.
const PRICE: u128 = 40_000;
const RELAY_PRICE: u128 = 5_000;
/// Deposits: room for the longest download that the command takes, and to see a refund.
const DEPOSIT: u128 = 10_000_000;
/// Bits per second: the window is the largest, 16 MiB.
const RATE_MAX: u64 = 10_000_000_000;
/// Least and default close period, in seconds.
const PERIOD_S: u32 = 72 * 3600;
/// Windows on a deposit that is not final.
const UNFINAL_CREDIT: u64 = 64;
/// Channels that are in use are looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// The direct path must be found within this once it is allowed.
const DIRECT_WITHIN: Duration = Duration::from_secs(15);

/// After a switch, packets on the old path are in flight for at most this long on loopback.
const IN_FLIGHT: Duration = Duration::from_millis(20);

/// What the demo is told.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Size of the download, unless a file is named.
    pub bytes: u64,
    /// The file to serve.
    pub file: Option<PathBuf>,
    /// A node to settle on, and its chain id.
    pub rpc: Option<(String, u64)>,
    /// Whether to show progress and the story.
    pub quiet: bool,
}

/// Runs the demo.
///
/// # Errors
/// When any part of the story fails.
pub async fn run(options: DemoOptions) -> Result<Bill> {
    let folder = Folder::new()?;
    let say = Narrator { quiet: options.quiet };
    let job = Workload::start(&options).await?;
    let chain = open_chain(&options, &folder.0).await?;
    let cast = Cast::new(&folder.0, &chain).await?;
    say.line(&format!("Chain       {} (id {})", chain.kind(), chain.domain().chain_id));
    say.line(&format!("Workload    a web server at {}, \"at home\"", job.web));
    let relay = cast.start_relay().await?;
    let relay_addr = RelayAddr::new(relay.peer(), relay.local_addr());
    say.line(&format!("Relay       {}", relay_addr.addr));
    let provide = cast.start_provider(relay_addr, job.web).await?;
    say.line(&format!("Provider    {}", provide.peer()));
    let connect = cast.start_tenant(provide.ticket()).await?;
    let local = connect.local().first().context("no local port")?.0;
    say.line(&format!("Tenant      http://{local}/file leads there now\n"));
    let relays = vec![relay];
    let fetched = fetch(&connect, &provide, &relays, local, (job.total, &job.hold), &say).await?;
    ensure!(fetched.file_bytes == job.total, "{} of {} bytes came", fetched.file_bytes, job.total);
    let parties = Parties {
        chain: &cast.chain,
        tenant: &cast.tenant,
        provider: &cast.provider,
        relays: vec![&cast.relay],
    };
    let settled = settle::settle(&parties, connect, provide, relays).await?;
    Ok(make_bill(&chain, &fetched, &settled, job.expected))
}

fn make_bill(chain: &Chain, fetched: &Fetched, settled: &Settled, expected: [u8; 32]) -> Bill {
    Bill {
        bytes_delivered: fetched.bytes,
        sha256_ok: fetched.sha256 == expected,
        paths: fetched.paths.clone(),
        billed_bytes_tenant: settled.tenant_bytes,
        billed_bytes_provider: settled.provider_bytes,
        vouchers: settled.vouchers,
        unpaid_bytes_max: settled.unpaid_max,
        window_bytes: settled.window,
        tenant_paid: settled.tenant_paid.0,
        provider_earned: settled.provider_earned.0,
        relay_earned: settled.relay_earned.0,
        tenant_refunded: settled.tenant_refunded.0,
        gas: settled.gas,
        chain: chain.kind().to_owned(),
    }
}

/// What is served, while it is.
struct Workload {
    total: u64,
    expected: [u8; 32],
    hold: Arc<Hold>,
    web: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Workload {
    async fn start(options: &DemoOptions) -> Result<Self> {
        let content = match &options.file {
            Some(path) => Content::File(Arc::new(path.clone())),
            None => Content::Made(options.bytes),
        };
        let (total, expected) = tokio::task::spawn_blocking({
            let content = content.clone();
            move || content.digest()
        })
        .await??;
        ensure!(total > 0, "there is nothing to download: the file is empty");
        let mut tasks = JoinSet::new();
        let hold = Hold::at(total / 2);
        let web = workload::serve(content, hold.clone(), &mut tasks).await?;
        Ok(Self { total, expected, hold, web, _tasks: tasks })
    }
}

/// A folder for this run's keys, ledgers and chain; it goes when the demo ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
        let path = std::env::temp_dir().join(format!("sluice-demo-{}", hex::encode(name)));
        std::fs::create_dir(&path)
            .with_context(|| format!("failed to make the folder {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The system's temporary folder is cleaned sooner or later anyway.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Narrator {
    quiet: bool,
}

impl Narrator {
    fn line(&self, text: &str) {
        if !self.quiet {
            use std::io::Write;
            // A closed pipe is the reader's wish.
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        }
    }

    fn bar(&self, total: u64) -> ProgressBar {
        let bar = ProgressBar::new(total);
        if self.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template(
            "{bar:28} {bytes:>11}/{total_bytes}  {bytes_per_sec:>13}  {msg}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar
    }
}

async fn open_chain(options: &DemoOptions, folder: &Path) -> Result<Chain> {
    let chain = match &options.rpc {
        None => Chain::open_embedded(&folder.join("chain"))?,
        Some((url, chain_id)) => {
            let config = RpcConfig {
                url: url.clone(),
                contract: None,
                token: None,
                finality: Finality::Confirmations(1),
                chain_id: Some(*chain_id),
                patience: PATIENCE_DEFAULT,
                inclusion: INCLUSION_DEFAULT,
                other_urls: Vec::new(),
            };
            Chain::connect_rpc(config).await?
        }
    };
    Ok(chain.deploy_dev().await?)
}

/// One part of the story: its keys, its ledger, its money.
struct Player {
    identity: Identity,
    ledger: Ledger,
    money: Money,
    /// Keeps the directory locked.
    state: State,
}

struct Cast {
    chain: Chain,
    relay: Player,
    provider: Player,
    tenant: Player,
}

impl Player {
    fn new(folder: &Path, name: &str, chain: &Chain) -> Result<Self> {
        let state = State::open(&folder.join(name), name)?;
        let identity = Identity::from_state(&state);
        let ledger = Ledger::open(&state.ledger_path())?;
        let wallet = identity.wallet.clone();
        let payout = wallet.address();
        let (top_up, deposits) = (None, Deposits::default());
        let chain = chain.clone();
        let period_s = PERIOD_S;
        let (unfinal_credit, look) = (UNFINAL_CREDIT, LOOK);
        let money =
            Money { chain, wallet, payout, period_s, unfinal_credit, look, top_up, deposits };
        Ok(Self { identity, ledger, money, state })
    }
}

impl Player {
    fn dir(&self) -> &Path {
        self.state.dir()
    }

    async fn start_relay(&self, price: u128) -> Result<Relay> {
        start_relay(RelayOptions {
            identity: self.identity.clone(),
            bind: any_port(),
            tcp: None,
            threads: 0,
            price,
            rate_max: RATE_MAX,
            starter_bytes: 0,
            starter_total: 0,
            reservations_max: 16,
            flows_max: 16,
            money: Some(self.money.clone()),
            ledger: self.ledger.clone(),
        })
        .await
    }

    fn provide_options(&self, relays: Vec<RelayAddr>, web: SocketAddr) -> Result<ProvideOptions> {
        Ok(ProvideOptions {
            identity: self.identity.clone(),
            bind: any_port(),
            mesh: None,
            relays,
            services: Services::from_iter([(ServiceName::parse("web")?, web)]),
            price: Price { up: PRICE, down: PRICE },
            rate_max: RATE_MAX,
            starter_bytes: 0,
            idle_timeout: Duration::from_secs(60),
            ticket_for: Duration::from_secs(3600),
            direct: DirectPolicy::AfterFunding,
            nat: NatOptions::default(),
            money: Some(self.money.clone()),
            relay_deposit: Amount(DEPOSIT),
            relay_price_max: RELAY_PRICE,
            ledger: self.ledger.clone(),
            leases: None,
            report: Reporter::logged(),
        })
    }

    fn connect_options(&self, ticket: Ticket) -> Result<ConnectOptions> {
        Ok(ConnectOptions {
            identity: self.identity.clone(),
            bind: any_port(),
            ticket,
            lease: None,
            map: vec![(any_port(), ServiceName::parse("web")?)],
            direct: DirectPolicy::AfterFunding,
            nat: NatOptions::default(),
            hold_relayed: true,
            money: Some(self.money.clone()),
            deposit: Amount(DEPOSIT),
            price_max: Price { up: PRICE, down: PRICE },
            idle_timeout: Duration::from_secs(60),
            ledger: self.ledger.clone(),
            report: Reporter::logged(),
        })
    }
}

impl Cast {
    async fn new(folder: &Path, chain: &Chain) -> Result<Self> {
        let cast = Self {
            chain: chain.clone(),
            relay: Player::new(folder, "relay", chain)?,
            provider: Player::new(folder, "provide", chain)?,
            tenant: Player::new(folder, "connect", chain)?,
        };
        for (player, tokens) in
            [(&cast.relay, 0), (&cast.provider, DEPOSIT), (&cast.tenant, DEPOSIT)]
        {
            chain.fund_dev(player.money.wallet.address(), Amount(tokens)).await?;
        }
        Ok(cast)
    }

    async fn start_relay(&self) -> Result<Relay> {
        self.relay.start_relay(RELAY_PRICE).await
    }

    async fn start_provider(&self, relay: RelayAddr, web: SocketAddr) -> Result<Provide> {
        Provide::start(self.provider.provide_options(vec![relay], web)?).await
    }

    async fn start_tenant(&self, ticket: &str) -> Result<Connect> {
        let now = Clock::default().unix_time().as_secs();
        Connect::start(self.tenant.connect_options(Ticket::decode(ticket, now)?)?).await
    }
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// What came over which path.
struct Fetched {
    /// At the client's socket, both ways.
    bytes: u64,
    file_bytes: u64,
    sha256: [u8; 32],
    paths: Vec<PathBill>,
}

/// Where the download stood when the path changed.
#[derive(Debug, Clone, Copy)]
struct Change {
    bytes: u64,
    at: Instant,
    /// What the relay had forwarded.
    forwarded: u64,
}

/// Downloads the file: half of it through the relay, the rest directly. In the middle the server
/// waits until the path has changed, so that what it sends then crosses the new one.
async fn fetch(
    connect: &Connect,
    provide: &Provide,
    relays: &[Relay],
    local: SocketAddr,
    (total, hold): (u64, &Hold),
    say: &Narrator,
) -> Result<Fetched> {
    let bar = say.bar(total);
    let seen = Arc::new(AtomicU64::new(0));
    let clock = Clock::default();
    let start = Change { bytes: 0, at: clock.now(), forwarded: forwarded(relays) };
    let mut download = std::pin::pin!(workload::download(local, seen.clone()));
    let mut changed: Option<Change> = None;
    let mut half: Option<Change> = None;
    let downloaded = loop {
        tokio::select! {
            biased;
            done = &mut download => break done?,
            () = clock.sleep(Duration::from_millis(10)) => {}
        }
        let bytes = seen.load(Relaxed);
        show(&bar, connect, provide, bytes);
        if half.is_none() && bytes >= total / 2 {
            connect.allow_direct(true);
            let forwarded = forwarded(relays);
            half = Some(Change { bytes, at: clock.now(), forwarded });
        }
        if let (Some(half), None) = (half, changed) {
            if connect.is_relayed() == Some(false) && provide.is_direct() {
                // What was on its way when the sides switched arrives first.
                clock.sleep(IN_FLIGHT).await;
                let bytes = seen.load(Relaxed);
                let forwarded = forwarded(relays);
                changed = Some(Change { bytes, at: clock.now(), forwarded });
                hold.release();
            } else if clock.now() - half.at > DIRECT_WITHIN {
                bail!("no direct path was found on this machine");
            }
        }
    };
    let end = Change { bytes: seen.load(Relaxed), at: clock.now(), forwarded: forwarded(relays) };
    show(&bar, connect, provide, total);
    bar.finish();
    say.line("");
    let change = changed.context("the download ended before the path changed")?;
    check_relay(start, change, end)?;
    // The server waited for the path to change: that is nobody's rate.
    let half = half.map_or(change, |half| Change { at: half.at, ..change });
    let paths = vec![part(PathKind::Relayed, start, half), part(PathKind::Direct, change, end)];
    let Downloaded { file_bytes, sha256 } = downloaded;
    Ok(Fetched { bytes: end.bytes, file_bytes, sha256, paths })
}

fn forwarded(relays: &[Relay]) -> u64 {
    relays.iter().map(|relay| relay.stats().forwarded()).sum()
}

/// The relay must have carried the first part, and less than 1 % of the second.
fn check_relay(start: Change, change: Change, end: Change) -> Result<()> {
    let (first, second) = (change.bytes - start.bytes, end.bytes - change.bytes);
    let carried = change.forwarded - start.forwarded;
    let still = end.forwarded - change.forwarded;
    ensure!(carried >= first, "the relay carried {carried} bytes of the first {first}");
    ensure!(
        still <= (second / 100).max(64 * 1024),
        "the relay still carried {still} bytes while {second} went directly"
    );
    Ok(())
}

fn part(kind: PathKind, from: Change, to: Change) -> PathBill {
    let bytes = to.bytes - from.bytes;
    let seconds = (to.at - from.at).as_secs_f64().max(1e-9);
    PathBill { kind, bytes, mbit_s: bytes as f64 * 8.0 / seconds / 1e6 }
}

fn show(bar: &ProgressBar, connect: &Connect, provide: &Provide, bytes: u64) {
    bar.set_position(bytes);
    let path = match connect.is_relayed() {
        Some(true) => "relayed",
        Some(false) => "direct ",
        None => "no path",
    };
    let accounts = provide.accounts();
    let (paid, unpaid) =
        accounts.first().map_or((0, 0), |(_, s)| (s.paid.down + s.paid.up, s.unpaid));
    bar.set_message(format!(
        "{path}  paid {:.1} MB, unpaid {:.1} MB",
        paid as f64 / 1e6,
        unpaid as f64 / 1e6
    ));
}
