//! From the command line to a running role.

use std::io::Write;
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_chain::{
    Chain, Finality as ChainFinality, INCLUSION_DEFAULT, PATIENCE_DEFAULT, RpcConfig,
};
use sluice_ledger::{Ledger, Recovery};
use sluice_market::BidPolicy;
use sluice_mesh::{is_public_ip, mesh_addresses};
use sluice_proto::market::{self, Lease, ServiceOffer, SignedLease};
use sluice_proto::record::RelayEntry;
use sluice_proto::{Amount, Price, RelayAddr, ServiceName, Ticket, WalletKey};
use sluice_settlement::TopUpRule;
use sluice_transport::{Clock, NatOptions};
use sluice_tunnel::Services;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use crate::cli::{
    Cli, Command, ConfigCommand, ConnectArgs, DemoArgs, DoctorArgs, MeshArgs, OrderArgs,
    ProvideArgs, RelayArgs,
};
use crate::config::{ChainChoice, Config, Expose, Finality, Map, parse_relay};
use crate::demo::{self, DemoOptions};
use crate::doctor::{self, DoctorOptions};
use crate::right::Right;
use crate::roles::{
    Bids, Connect, ConnectOptions, Identity, Leases, MeshOptions, Meshed, Money, Provide,
    ProvideOptions, RelayOptions, Report, Reporter, SellOptions, Selling, deposit_under, fits,
    start_relay, wait_for_stop,
};
use crate::settle::{self, Deposits, KeepOptions, Settler, keep};
use crate::state::State;
use crate::{commands, ledgers, wallet};

/// What is logged unless it is said. What a mesh of a few nodes has its libraries warn of is no fault.
const LOG: &str = "warn,libp2p_kad=error,libp2p_gossipsub=error,quinn_proto=error";
/// A relay that is told to stop gives its clients so long to leave.
const DRAIN: Duration = Duration::from_secs(10);
/// What a role's wallet is given on an embedded chain, whose money is play money.
const PLAY_MONEY: Amount = Amount(1_000_000_000_000);

/// Runs a command to its end.
///
/// # Errors
/// What went wrong, where, and what to do.
pub fn run(cli: Cli) -> Result<()> {
    if let Command::Config(command) = &cli.command {
        return run_config(command, cli.config.as_deref());
    }
    let mut config = Config::load(cli.config.as_deref())?;
    merge(&mut config, &cli.command)?;
    config.check()?;
    start_log(cli.log.as_deref())?;
    let runtime = start_runtime(cli.threads.unwrap_or(match cli.command {
        // The demo is three roles and a web server, all in one.
        Command::Demo(_) => 0,
        Command::Relay(_)
        | Command::Provide(_)
        | Command::Connect(_)
        | Command::Doctor(_)
        | Command::Config(_) => config.node.threads,
        // An order's stamp is work, and the mesh goes on beside it.
        Command::Order(_) | Command::Award(_) => 2,
        Command::Redeem(_)
        | Command::Channel(_)
        | Command::Ledger(_)
        | Command::Wallet(_)
        | Command::Bids(_)
        | Command::Leases(_)
        | Command::Nodes(_)
        | Command::Relays(_)
        | Command::Watch(_) => 1,
    }))?;
    let json = cli.json;
    let done = runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => run_demo(args, json).await,
            Command::Relay(_) => run_relay(&config, json).await,
            Command::Provide(_) => run_provide(&config, json).await,
            Command::Connect(_) => run_connect(&config, json).await,
            Command::Order(args) => commands::order(&config, &args, json).await,
            Command::Award(args) => commands::award(&config, &args, json).await,
            Command::Redeem(args) => commands::redeem(&config, &args, json).await,
            Command::Channel(command) => commands::channel(&config, &command, json).await,
            Command::Ledger(command) => commands::ledger(&config, &command, json).await,
            Command::Wallet(command) => commands::wallet(&config, &command, json).await,
            Command::Bids(args) => commands::bids(&config, &args, json),
            Command::Leases(args) => commands::leases(&config, &args, json),
            Command::Nodes(args) => commands::nodes(&config, &args, json).await,
            Command::Relays(args) => commands::relays(&config, &args, json).await,
            Command::Watch(args) => commands::watch(&config, &args, json).await,
            Command::Doctor(args) => run_doctor(&config, args, json).await,
            Command::Config(_) => Ok(()),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    done
}

fn start_runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build().context("failed to start the runtime")
}

fn start_log(filter: Option<&str>) -> Result<()> {
    let filter = EnvFilter::try_new(filter.unwrap_or(LOG))
        .context("the log filter is not valid: write a level such as info, or module=level")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    Ok(())
}

pub(crate) fn print(text: &str) {
    // A closed pipe is the reader's wish.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn run_config(command: &ConfigCommand, path: Option<&Path>) -> Result<()> {
    match command {
        ConfigCommand::Example => print(Config::example().trim_end()),
        ConfigCommand::Check => {
            Config::load(path)?.check()?;
            print("The configuration is fine.");
        }
    }
    Ok(())
}

/// Lets flags override the file.
fn merge(config: &mut Config, command: &Command) -> Result<()> {
    match command {
        Command::Relay(args) => merge_relay(config, args),
        Command::Provide(args) => return merge_provide(config, args),
        Command::Connect(args) => return merge_connect(config, args),
        Command::Order(args) => merge_order(config, args),
        Command::Award(args) => {
            merge_mesh(config, &args.mesh);
            set(&mut config.node.bind, &args.bind);
            config.node.state_dir = args.state_dir.clone().or(config.node.state_dir.take());
        }
        Command::Demo(_)
        | Command::Doctor(_)
        | Command::Config(_)
        | Command::Redeem(_)
        | Command::Channel(_)
        | Command::Ledger(_)
        | Command::Wallet(_)
        | Command::Bids(_)
        | Command::Leases(_)
        | Command::Nodes(_)
        | Command::Relays(_)
        | Command::Watch(_) => {}
    }
    Ok(())
}

fn set<T: Clone>(target: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        target.clone_from(value);
    }
}

fn merge_mesh(config: &mut Config, args: &MeshArgs) {
    config.mesh.listen = args.listen.or(config.mesh.listen);
    if !args.bootstrap.is_empty() {
        config.mesh.bootstrap.clone_from(&args.bootstrap);
    }
}

fn merge_relay(config: &mut Config, args: &RelayArgs) {
    set(&mut config.relay.bind, &args.bind);
    set(&mut config.relay.price, &args.price);
    config.relay.public_addr = args.public_addr.or(config.relay.public_addr);
    config.relay.tcp = args.tcp.or(config.relay.tcp);
    merge_mesh(config, &args.mesh);
    config.node.state_dir = args.state_dir.clone().or(config.node.state_dir.take());
}

fn merge_provide(config: &mut Config, args: &ProvideArgs) -> Result<()> {
    if !args.expose.is_empty() {
        let parse = |s: &String| Expose::parse(s).with_context(|| format!("--expose {s}"));
        config.provide.expose = args.expose.iter().map(parse).collect::<Result<_>>()?;
    }
    if !args.relay.is_empty() {
        let parse = |s: &String| parse_relay(s).with_context(|| format!("--relay {s}"));
        config.provide.relays = args.relay.iter().map(parse).collect::<Result<_>>()?;
    }
    merge_mesh(config, &args.mesh);
    config.sell.on |= args.sell;
    set(&mut config.sell.floor_up, &args.floor_up);
    set(&mut config.sell.floor_down, &args.floor_down);
    set(&mut config.provide.price_up, &args.price_up);
    set(&mut config.provide.price_down, &args.price_down);
    set(&mut config.node.direct, &args.direct);
    set(&mut config.node.bind, &args.bind);
    config.node.state_dir = args.state_dir.clone().or(config.node.state_dir.take());
    Ok(())
}

fn merge_connect(config: &mut Config, args: &ConnectArgs) -> Result<()> {
    if !args.map.is_empty() {
        let parse = |s: &String| Map::parse(s).with_context(|| format!("--map {s}"));
        config.connect.map = args.map.iter().map(parse).collect::<Result<_>>()?;
    }
    config.connect.ticket = args.ticket.clone().or(config.connect.ticket.take());
    set(&mut config.connect.deposit, &args.deposit);
    set(&mut config.connect.deposit_max, &args.deposit_max);
    set(&mut config.connect.max_price_up, &args.max_price_up);
    set(&mut config.connect.max_price_down, &args.max_price_down);
    config.connect.direct = args.direct.or(config.connect.direct);
    set(&mut config.node.bind, &args.bind);
    config.node.state_dir = args.state_dir.clone().or(config.node.state_dir.take());
    Ok(())
}

fn merge_order(config: &mut Config, args: &OrderArgs) {
    let order = &mut config.order;
    if !args.service.is_empty() {
        order.services.clone_from(&args.service);
    }
    set(&mut order.region, &args.region);
    set(&mut order.volume_down, &args.volume_down);
    set(&mut order.volume_up, &args.volume_up);
    set(&mut order.max_price_down, &args.max_price_down);
    set(&mut order.max_price_up, &args.max_price_up);
    set(&mut order.budget, &args.budget);
    set(&mut order.duration, &args.duration);
    set(&mut order.score, &args.score);
    order.latency_max = args.latency_max.or(order.latency_max);
    merge_mesh(config, &args.mesh);
    set(&mut config.node.bind, &args.bind);
    config.node.state_dir = args.state_dir.clone().or(config.node.state_dir.take());
}

async fn run_demo(args: DemoArgs, json: bool) -> Result<()> {
    let options = DemoOptions {
        bytes: args.megabytes.saturating_mul(1_000_000),
        file: args.file,
        rpc: args.rpc.map(|url| (url, args.chain_id)),
        quiet: json,
    };
    let story = async {
        match args.market {
            true => demo::run_market(options).await.map(|(auction, bill)| (Some(auction), bill)),
            false => demo::run(options).await.map(|bill| (None, bill)),
        }
    };
    let (auction, bill) = tokio::select! {
        story = story => story?,
        why = wait_for_stop() => bail!("stopped by {why}; nothing was settled, and the demo's play money is gone"),
    };
    if let Some(auction) = &auction {
        print(&if json { auction.json().to_string() } else { auction.to_string() });
    }
    if json {
        print(&serde_json::to_string(&bill)?);
    } else {
        print(&bill.to_string());
    }
    if let Some(auction) = auction.filter(|_| json) {
        print(&auction.figures().to_string());
    }
    anyhow::ensure!(bill.sha256_ok, "what came is not what was served");
    Ok(())
}

async fn run_doctor(config: &Config, args: DoctorArgs, json: bool) -> Result<()> {
    let parse = |s: &String| parse_relay(s).with_context(|| format!("--relay {s}"));
    let mut relays: Vec<RelayAddr> = args.relay.iter().map(parse).collect::<Result<_>>()?;
    let now = Clock::default().unix_time().as_secs();
    if let Some(ticket) = args.ticket.as_deref() {
        relays.extend(Ticket::decode(ticket, now)?.relays);
    }
    if relays.is_empty() {
        relays.clone_from(&config.provide.relays);
        // One that has expired still names relays, but so does the next ticket.
        let ticket = config.connect.ticket.as_deref().map(|text| Ticket::decode(text, now));
        relays.extend(ticket.and_then(Result::ok).into_iter().flat_map(|t| t.relays));
    }
    relays.sort_by_key(|relay| relay.addr);
    relays.dedup();
    let options = DoctorOptions {
        relays,
        bind: args.bind.unwrap_or(config.node.bind),
        port_mapping: !args.no_port_mapping,
        nat_timer: args.nat_timer,
    };
    let found = tokio::select! {
        found = doctor::examine(options) => found?,
        why = wait_for_stop() => bail!("stopped by {why} before all was examined"),
    };
    if json {
        print(&doctor::json(&found).to_string());
    } else {
        print(doctor::text(&found).trim_end());
    }
    anyhow::ensure!(found.relays.is_empty() || found.any_relay(), "no relay can be reached");
    Ok(())
}

/// Keys, ledger and money of a role.
pub(crate) struct Desk {
    pub(crate) identity: Identity,
    pub(crate) ledger: Ledger,
    pub(crate) money: Option<Money>,
    /// Keeps the directory locked.
    pub(crate) state: State,
}

pub(crate) async fn open_desk(config: &Config, role: &str) -> Result<Desk> {
    let dir = match &config.node.state_dir {
        Some(dir) => dir.clone(),
        None => State::default_dir(role)?,
    };
    let mut state = State::open(&dir, role)?;
    let mut identity = Identity::from_state(&state);
    let payee = match role {
        "connect" => &config.wallet.payer,
        _ => &config.wallet.payee,
    };
    if let Some(path) = payee {
        identity.wallet = wallet::open(path, config.wallet.passphrase_file.as_deref())?;
    }
    let ledger = ledgers::open(config, Some(role), &mut state).await?;
    identity.recovery = still_in_doubt(&state, &ledger).await?;
    let payout = match role {
        "relay" => config.relay.payout,
        _ => config.provide.payout,
    };
    let chain = open_chain(config, &state.chain_dir()).await?;
    let money = match chain {
        Some(chain) => {
            let wallet = identity.wallet.clone();
            give_play_money(&chain, &wallet).await?;
            let payout = payout.unwrap_or_else(|| wallet.address());
            let period_s = u32::try_from(config.chain.period.as_secs()).unwrap_or(u32::MAX);
            let top_up = top_up_rule(config, role);
            let deposits = Deposits::default();
            let unfinal_credit = config.provide.unfinal_credit_windows.into();
            let look = config.chain.look;
            Some(Money { chain, wallet, payout, period_s, unfinal_credit, look, top_up, deposits })
        }
        None => None,
    };
    Ok(Desk { identity, ledger, money, state })
}

/// What is in doubt in a state directory that was copied or restored; the recovery ends when nothing
/// is any more.
async fn still_in_doubt(state: &State, ledger: &Ledger) -> Result<Recovery> {
    let recovery = state.recovery();
    let Some(found) = recovery.found() else { return Ok(Recovery::none()) };
    let leases = commands::in_doubt(ledger, recovery, false).await?;
    if leases.is_empty() {
        Recovery::end(&State::recovery_in(state.dir()))?;
        return Ok(Recovery::none());
    }
    tracing::warn!(
        "{}: {}; {} leases are in doubt, each until its other side has shown its newest voucher; \
         nothing is signed or served on them before",
        state.dir().display(),
        found.why,
        leases.len()
    );
    Ok(recovery.clone())
}

/// When a role adds to the deposits that it pays from.
fn top_up_rule(config: &Config, role: &str) -> Option<TopUpRule> {
    let (step, deposit_max) = match role {
        "connect" => (config.connect.deposit, config.connect.deposit_max),
        "provide" => (config.provide.relay_deposit, config.provide.relay_deposit_max),
        _ => (0, 0),
    };
    let rule = TopUpRule { step: Amount(step), deposit_max: Amount(deposit_max) };
    (deposit_max > 0).then_some(rule)
}

/// Starts to look after a role's channels; it ends with the handle.
fn keep_channels(config: &Config, desk: &Desk, report: &Reporter) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Some(money) = &desk.money else { return tasks };
    let policy = settle::policy(config, &money.chain);
    let settler = Settler { chain: money.chain.clone(), wallet: money.wallet.clone(), policy };
    tasks.spawn(keep(KeepOptions {
        settler,
        ledger: desk.ledger.clone(),
        look: config.chain.look,
        top_up: money.top_up,
        deposits: money.deposits.clone(),
        report: report.clone(),
    }));
    tasks
}

/// The chain that the configuration names; the embedded one is in `own_dir` unless it is shared.
pub(crate) async fn open_chain(config: &Config, own_dir: &Path) -> Result<Option<Chain>> {
    Ok(match config.chain.choice()? {
        ChainChoice::None => None,
        ChainChoice::Embedded { dir } => {
            let dir = dir.unwrap_or_else(|| own_dir.to_owned());
            Some(Chain::open_embedded(&dir)?.deploy_dev().await?)
        }
        ChainChoice::Rpc { url, other_urls, contract, token, chain_id, finality } => {
            let finality = match finality {
                Finality::Finalized => ChainFinality::Finalized,
                Finality::Confirmations(n) => ChainFinality::Confirmations(n),
            };
            if contract.is_none() || token.is_none() {
                bail!(
                    "[chain] needs `contract` and `token` beside the URL: the addresses of Channels and of the token"
                );
            }
            let config = RpcConfig {
                url,
                other_urls,
                contract,
                token,
                finality,
                chain_id,
                patience: PATIENCE_DEFAULT,
                inclusion: INCLUSION_DEFAULT,
            };
            Some(Chain::connect_rpc(config).await?)
        }
    })
}

/// The embedded chain's money is worth nothing: a wallet that has none is given some.
pub(crate) async fn give_play_money(chain: &Chain, wallet: &WalletKey) -> Result<()> {
    if chain.kind() != "embedded" {
        return Ok(());
    }
    if chain.coin_balance_wei(wallet.address()).await? == 0 {
        chain.fund_dev(wallet.address(), PLAY_MONEY).await?;
    }
    Ok(())
}

async fn run_relay(config: &Config, json: bool) -> Result<()> {
    let desk = open_desk(config, "relay").await?;
    let report = Reporter::print(json);
    let kept = keep_channels(config, &desk, &report);
    let mut tasks = JoinSet::new();
    tasks.spawn(ledgers::keep_stand(desk.ledger.clone(), desk.state.dir().to_owned()));
    let identity = desk.identity.clone();
    let relay = start_relay(RelayOptions {
        identity: desk.identity,
        bind: config.relay.bind,
        tcp: config.relay.tcp,
        threads: config.relay.threads,
        price: config.relay.price,
        rate_max: config.relay.rate_max.0,
        starter_bytes: config.relay.starter_bytes.0,
        starter_total: config.relay.starter_total.0,
        reservations_max: config.relay.reservations_max,
        flows_max: config.relay.flows_max,
        money: desk.money,
        ledger: desk.ledger,
    })
    .await?;
    let local = relay.local_addr();
    let addr = config.relay.public_addr.unwrap_or_else(|| public_guess(local));
    let tcp = relay.tcp_addr().and_then(|at| NonZeroU16::new(at.port()));
    let address = RelayAddr::new(relay.peer(), addr).with_tcp(tcp);
    let meshed = match config.mesh.is_on() {
        true => Some(start_relay_mesh(config, &identity, local, desk.state.dir()).await?),
        false => None,
    };
    let mut mesh = Vec::new();
    if let Some(meshed) = &meshed {
        let price = Price { up: config.relay.price, down: config.relay.price };
        meshed.publish(None, Some(RelayEntry { addresses: vec![address], price })).await?;
        mesh = meshed.addresses().await.iter().map(ToString::to_string).collect();
    }
    report.tell(&Report::RelayReady { address: address.to_string(), mesh });
    let why = wait_for_stop().await;
    report.tell(&Report::Stopping { why });
    tokio::select! {
        () = relay.drain(DRAIN) => {}
        _ = wait_for_stop() => {}
    }
    if let Some(meshed) = meshed {
        meshed.remember().await;
    }
    tasks.shutdown().await;
    drop((kept, desk.state));
    Ok(())
}

/// The mesh of a relay: anybody may reach it, so it serves the DHT and carries circuits. Unless it is
/// told, it listens on the second port after that of the data socket; the first answers those who ask
/// how they are seen.
async fn start_relay_mesh(
    config: &Config,
    identity: &Identity,
    local: std::net::SocketAddr,
    dir: &Path,
) -> Result<Meshed> {
    let next = || std::net::SocketAddr::new(local.ip(), local.port().checked_add(2).unwrap_or(0));
    let listen = config.mesh.listen.unwrap_or_else(next);
    let elsewhere = config.mesh.public_addr;
    let options = MeshOptions {
        listen: mesh_addresses(listen).to_vec(),
        bootstrap: config.mesh.bootstrap.clone(),
        external: elsewhere.map(mesh_addresses).into_iter().flatten().collect(),
        public: true,
        relay: true,
        private: config.mesh.is_private()
            || !is_public_ip(listen.ip()) && !listen.ip().is_unspecified(),
        lan: config.mesh.lan,
    };
    Meshed::start(identity, options, Some(dir)).await
}

/// The mesh of a role that need not be reached from everywhere; `None` if nothing asks for one.
pub(crate) async fn start_mesh(
    config: &Config,
    identity: &Identity,
    dir: &Path,
) -> Result<Option<Meshed>> {
    if !config.mesh.is_on() {
        return Ok(None);
    }
    let listen = match config.mesh.listen {
        Some(listen) => vec![listen],
        None => any_address(),
    };
    let options = MeshOptions {
        listen: listen.into_iter().flat_map(mesh_addresses).collect(),
        bootstrap: config.mesh.bootstrap.clone(),
        external: config.mesh.public_addr.map(mesh_addresses).into_iter().flatten().collect(),
        public: false,
        relay: false,
        private: config.mesh.is_private(),
        lan: config.mesh.lan,
    };
    Ok(Some(Meshed::start(identity, options, Some(dir)).await?))
}

/// A free port of all addresses, of both families where the system has both.
fn any_address() -> Vec<std::net::SocketAddr> {
    let v6 = std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
    let has_v6 = std::net::UdpSocket::bind(v6).is_ok();
    let v4 = std::net::SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
    std::iter::once(v4).chain(has_v6.then_some(v6)).collect()
}

/// What to tell others if the relay listens on all addresses: the one that leads out.
fn public_guess(local: std::net::SocketAddr) -> std::net::SocketAddr {
    if !local.ip().is_unspecified() {
        return local;
    }
    let out = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        // Nothing is sent: this only asks the system for the way out.
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let ip = out.map_or(std::net::Ipv4Addr::LOCALHOST.into(), |a| a.ip());
    std::net::SocketAddr::new(ip, local.port())
}

async fn run_provide(config: &Config, json: bool) -> Result<()> {
    let provide = &config.provide;
    let services = provide
        .expose
        .iter()
        .map(|e| {
            let target = e.targets.first().context("a service without a socket")?;
            Ok((e.service.clone(), *target))
        })
        .collect::<Result<Vec<_>>>()?;
    anyhow::ensure!(
        !config.sell.on || config.mesh.is_on(),
        "to sell is to be found: name a node of the mesh with --bootstrap, or set [mesh]"
    );
    let desk = open_desk(config, "provide").await?;
    // Also where nothing is sold any more: what was signed is served.
    let leases = open_leases(desk.state.dir())?;
    let report = Reporter::print(json);
    let kept = keep_channels(config, &desk, &report);
    let mesh = start_mesh(config, &desk.identity, desk.state.dir()).await?;
    let (identity, money, ledger) =
        (desk.identity.clone(), desk.money.clone(), desk.ledger.clone());
    let policy = bid_policy(config, money.as_ref());
    let running = Provide::start(ProvideOptions {
        identity: desk.identity,
        bind: config.node.bind,
        mesh: mesh.clone(),
        relays: provide.relays.clone(),
        services: services.iter().cloned().collect::<Services>(),
        price: Price { up: provide.price_up, down: provide.price_down },
        rate_max: provide.rate_max.0,
        starter_bytes: provide.starter_bytes.0,
        idle_timeout: provide.idle_timeout,
        ticket_for: Duration::from_secs(u64::from(provide.ticket_days) * 86_400),
        direct: config.node.direct,
        nat: nat_options(config),
        money: desk.money,
        relay_deposit: Amount(provide.relay_deposit),
        relay_price_max: provide.relay_price_max,
        ledger: desk.ledger,
        leases: Some(leases.clone()),
        report: report.clone(),
    });
    let running = tokio::select! {
        running = running => running?,
        why = wait_for_stop() => bail!("stopped by {why} before a relay gave a reservation"),
    };
    let selling = match &mesh {
        Some(mesh) if config.sell.on => {
            let (relays, bids) = (running.named(), Some(Bids::path_in(desk.state.dir())));
            let report = report.clone();
            let rate_max = provide.rate_max.0;
            let regions = config.sell.regions.clone();
            let options = SellOptions {
                identity,
                policy,
                regions,
                rate_max,
                money,
                leases,
                ledger,
                relays,
                bids,
                report,
                clock: Clock::default(),
            };
            Some(Selling::start(mesh.clone(), options).await?)
        }
        Some(_) | None => None,
    };
    report.tell(&Report::ProviderReady {
        ticket: running.ticket().to_owned(),
        services: services.iter().map(|(name, _)| name.to_string()).collect(),
    });
    let why = wait_for_stop().await;
    report.tell(&Report::Stopping { why });
    tokio::select! {
        () = running.stop() => {}
        _ = wait_for_stop() => {}
    }
    if let Some(mesh) = mesh {
        mesh.remember().await;
    }
    drop((selling, kept, desk.state));
    Ok(())
}

/// What the owner of a home allows on the market.
fn bid_policy(config: &Config, money: Option<&Money>) -> BidPolicy {
    let services = config
        .provide
        .expose
        .iter()
        .map(|e| ServiceOffer { name: e.service.clone(), kind: e.kind.into() });
    let paid = money.map(|m| market::Money { domain: m.chain.domain(), token: m.chain.token() });
    let period_s = money.map_or(0, |money| money.period_s);
    config.sell.policy(services.collect(), paid, period_s)
}

/// The leases of a state directory; those that cannot be read are named.
fn open_leases(dir: &Path) -> Result<Leases> {
    let leases = Leases::open(dir)?;
    for damaged in leases.damaged() {
        tracing::warn!(
            "{} is not a lease, and is left alone: {}",
            damaged.path.display(),
            damaged.what
        );
    }
    Ok(leases)
}

fn nat_options(config: &Config) -> NatOptions {
    NatOptions {
        survey: true,
        port_mapping: config.node.port_mapping,
        entries_max: config.node.nat_entries_max,
    }
}

async fn run_connect(config: &Config, json: bool) -> Result<()> {
    let connect = &config.connect;
    let text = connect
        .ticket
        .as_deref()
        .context("no ticket and no lease: paste what `sluice provide` or `sluice order` printed")?;
    let now = Clock::default().unix_time().as_secs();
    // Before anything is made: it may be nonsense.
    let right = match &config.node.state_dir {
        Some(dir) => Right::find(text, dir, now)?,
        None => Right::find(text, &State::default_dir("connect")?, now)?,
    };
    let map: Vec<(std::net::SocketAddr, ServiceName)> =
        connect.map.iter().map(|m| (m.local, m.service.clone())).collect();
    let mut desk = open_desk(config, "connect").await?;
    let report = Reporter::print(json);
    let (ticket, lease) = match right {
        Right::Ticket(ticket) => (ticket, None),
        Right::Lease(lease) => {
            (lease.lease().ticket(), Some(enter_lease(&mut desk, &lease).await?))
        }
    };
    let (direct, wanted) = (connect.direct.unwrap_or(config.node.direct), Amount(connect.deposit));
    let terms = lease.as_deref();
    let kept = keep_channels(config, &desk, &report);
    let running = Connect::start(ConnectOptions {
        identity: desk.identity,
        bind: config.node.bind,
        ticket,
        map,
        direct: terms.map_or(direct, |lease| direct.max(lease.direct.into())),
        nat: nat_options(config),
        hold_relayed: false,
        money: desk.money,
        deposit: terms.map_or(wanted, |lease| deposit_under(lease, wanted)),
        price_max: Price { up: connect.max_price_up, down: connect.max_price_down },
        idle_timeout: terms.map_or(config.provide.idle_timeout, |lease| {
            Duration::from_secs(lease.idle_timeout_s.into())
        }),
        lease,
        ledger: desk.ledger,
        report: report.clone(),
    });
    let running = tokio::select! {
        running = running => running?,
        why = wait_for_stop() => bail!("stopped by {why} before there was a session"),
    };
    let why = wait_for_stop().await;
    report.tell(&Report::Stopping { why });
    tokio::select! {
        () = running.stop() => {}
        _ = wait_for_stop() => {}
    }
    drop((kept, desk.state));
    Ok(())
}

/// Keeps the lease that a tenant comes with, and its channels within the budget.
async fn enter_lease(desk: &mut Desk, signed: &Arc<SignedLease>) -> Result<Arc<Lease>> {
    let lease = signed.lease();
    let now = Clock::default().unix_time().as_secs();
    let wallet = desk.money.as_ref().map(|money| money.wallet.address());
    fits(lease, desk.identity.peer(), wallet, now)?;
    if let Some(rule) = desk.money.as_mut().and_then(|money| money.top_up.as_mut()) {
        rule.deposit_max = rule.deposit_max.min(lease.budget);
    }
    let leases = Leases::open(desk.state.dir())?;
    if leases.get(lease.lease).is_none() {
        let signed = signed.clone();
        tokio::task::spawn_blocking(move || leases.put(&signed)).await??;
    }
    Ok(Arc::new(lease.clone()))
}
