//! Sessions that stand while something under them goes away: the channel that pays them, the disk or
//! the server under a ledger. Nothing is served that nobody can be paid for, and what was only
//! interrupted goes on.

#[path = "../../crates/ledger/tests/ledger/server.rs"]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use server::PostgresServer;
use sluice::roles::{Connect, ConnectOptions, Provide, Report, Reporter, start_relay};
use sluice::settle::{Demand, KeepOptions, Settler, held, keep};
use sluice_chain::{Chain, View};
use sluice_ledger::{ChannelRow, ChannelStatus, Edge, Health, LeaseRow, Ledger, Role, Server};
use sluice_metering::Terms;
use sluice_proto::{Amount, ChannelKey, Ticket};
use sluice_relay::Relay;
use sluice_settlement::{RedemptionPolicy, RedemptionRule, TopUpRule};
use tests::{Cast, Echo, Member, PATIENCE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// A tenant pays 2 base units a byte each way.
const PER_BYTE: u128 = 2;
const CHUNK: usize = 16 * 1024;

/// A relay, a provider of an echo, and a tenant with a session.
struct Three {
    cast: Cast,
    _echo: Echo,
    relay: Relay,
    home: Member,
    provide: Provide,
    guest: Member,
    connect: Connect,
    /// Why the tenant's sessions ended.
    ended: Arc<Mutex<Vec<String>>>,
}

impl Three {
    async fn start() -> Result<Self> {
        let (cast, echo) = (Cast::paid().await?, Echo::start()?);
        let (operator, home) = (cast.member().await?, cast.member().await?);
        let guest = cast.member().await?;
        let relay = start_relay(cast.relay_options(&operator)).await?;
        let options = cast.provide_options(&home, &relay, &[("echo", echo.addr())]);
        let provide = Provide::start(options).await?;
        let ticket = Ticket::decode(provide.ticket(), 0)?;
        let ended: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = ended.clone();
        let report = Reporter::new(move |report| {
            if let Report::SessionEnded { reason, .. } = report {
                heard.lock().push(reason.clone());
            }
        });
        let options = cast.connect_options(&guest, &ticket, "echo");
        let connect = Connect::start(ConnectOptions { report, ..options }).await?;
        Ok(Self { cast, _echo: echo, relay, home, provide, guest, connect, ended })
    }

    fn chain(&self) -> Result<&Chain> {
        self.cast.chain().context("something is charged")
    }

    async fn dial(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.connect.local()[0].0).await?)
    }

    /// The tenant's lease and channel, as the provider knows them.
    async fn paid_by(&self) -> Result<(LeaseRow, ChannelRow)> {
        let leases = self.home.ledger.leases().await?;
        let lease = leases.into_iter().find(|lease| lease.edge == Edge::Tenant);
        let lease = lease.context("a lease")?;
        let id = lease.channel.context("it is paid")?;
        let channel = self.home.ledger.channel(id).await?.context("it is known")?;
        ensure!(channel.role == Role::Payee);
        Ok((lease, channel))
    }

    async fn stop(self) {
        self.connect.stop().await;
        self.provide.stop().await;
        self.relay.drain(PATIENCE).await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(Instant::now() < deadline, "{what}: in vain");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Sends a chunk to an echo, and waits until it came back.
async fn talk(tcp: &mut TcpStream) -> Result<()> {
    let mut back = [0; CHUNK];
    tcp.write_all(&[7; CHUNK]).await?;
    tcp.read_exact(&mut back).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_when_its_payer_starts_to_close_and_what_was_earned_is_paid() -> Result<()> {
    let three = Three::start().await?;
    let mut tcp = three.dial().await?;
    for _ in 0..64 {
        talk(&mut tcp).await?;
    }
    let (lease, channel) = three.paid_by().await?;
    let payer = &three.guest.money.as_ref().context("it pays")?.wallet;
    three.chain()?.start_close(payer, &channel.key).await?;

    let deadline = Instant::now() + PATIENCE;
    while three.ended.lock().is_empty() {
        ensure!(Instant::now() < deadline, "it is served on a channel that is being closed");
        if timeout(PATIENCE, talk(&mut tcp)).await?.is_err() {
            tokio::task::yield_now().await;
        }
    }
    let why = three.ended.lock()[0].clone();
    ensure!(why.contains(&channel.id.to_string()) && why.contains("closed by its payer"), "{why}");

    let newest = three.home.ledger.newest_earned(lease.id).await?.context("a voucher")?;
    let window = u128::from(Terms::parse(&lease.terms)?.window);
    ensure!(newest.amount.0 >= 2 * 64 * CHUNK as u128 * PER_BYTE - window * PER_BYTE, "{newest:?}");
    let money = three.home.money.as_ref().context("it is paid")?;
    let rule = RedemptionRule::BeforeClose;
    let policy = RedemptionPolicy { rule, ..RedemptionPolicy::default() };
    let settler = Settler { chain: money.chain.clone(), wallet: money.wallet.clone(), policy };
    let held = held(&three.home.ledger, &money.chain.domain()).await?;
    let plan = settler.planner().plan(&held, &Demand::Rule, false).await?;
    settler.carry_out(&plan).await.1?;
    three.chain()?.advance_dev(u64::from(channel.period_s)).await?;
    three.chain()?.finish_close(payer, &channel.key).await?;
    let state = three.chain()?.channel(&channel.key, View::Latest).await?;
    let state = state.context("the chain keeps it")?;
    ensure!(state.closed && state.redeemed == newest.amount, "{state:?}, but {newest:?}");
    three.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_disk_is_full_the_window_stops_the_traffic_and_then_it_goes_on() -> Result<()> {
    let three = Three::start().await?;
    let talked = Arc::new(AtomicU64::new(0));
    let (count, stop) = (talked.clone(), Arc::new(AtomicBool::new(false)));
    let (mut tcp, stopping) = (three.dial().await?, stop.clone());
    let talking = tokio::spawn(async move {
        while !stopping.load(Relaxed) {
            talk(&mut tcp).await?;
            count.fetch_add(1, Relaxed);
        }
        anyhow::Ok(())
    });
    let ledger = &three.home.ledger;
    until("bytes flow", || talked.load(Relaxed) > 16).await?;
    ledger.set_pages_max(1).await?;
    until("the disk is full", || matches!(ledger.health(), Health::Full(_))).await?;
    let stalled = || three.provide.accounts().iter().any(|(_, account)| account.stalled.is_some());
    until("the window is used up", stalled).await?;
    let (_, account) = three.provide.accounts()[0];
    ensure!(account.unpaid <= account.window, "{account:?}");

    ledger.set_pages_max(u32::MAX - 1).await?;
    let before = talked.load(Relaxed);
    until("it goes on", || talked.load(Relaxed) > before + 64 || talking.is_finished()).await?;
    stop.store(true, Relaxed);
    timeout(PATIENCE, talking).await???;
    ensure!(three.ended.lock().is_empty(), "the session went on: {:?}", three.ended.lock());
    ensure!(three.connect.settle().await, "all is paid");
    let (lease, _) = three.paid_by().await?;
    let earned = three.home.ledger.newest_earned(lease.id).await?.context("it earned")?;
    let signed = three.guest.ledger.newest_signed(lease.id).await?.context("it signed")?;
    ensure!((earned.amount, earned.down) == (signed.amount, signed.down), "{earned:?} {signed:?}");
    ensure!(signed.down == talked.load(Relaxed) * CHUNK as u64, "{signed:?}");
    three.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_up_that_is_wanted_while_the_ledgers_server_is_away_is_paid_once_it_is_back()
-> Result<()> {
    let Some(server) = PostgresServer::start().await else { return Ok(()) };
    server.make_database("payer").await;
    let ledger = Ledger::connect(&server.url("payer").parse::<Server>()?, "payer").await?;
    let cast = Cast::paid().await?;
    let (payer, payee) = (cast.member().await?, cast.member().await?);
    let [ours, theirs] = [&payer, &payee].map(|member| member.money.clone());
    let (ours, theirs) = (ours.context("it pays")?, theirs.context("it is paid")?);
    let key = ChannelKey {
        payer: ours.wallet.address(),
        signer: ours.wallet.address(),
        payee: theirs.wallet.address(),
        payout: theirs.payout,
        token: ours.chain.token(),
        salt: [1; 32],
    };
    let (domain, deposit, period_s) = (ours.chain.domain(), Amount(1_000), ours.period_s);
    let (id, role, status) = (key.id(&domain), Role::Payer, ChannelStatus::Open);
    ours.chain.open_channel(&ours.wallet, key, deposit, period_s).await?;
    let peer = payee.peer();
    ledger
        .put_channel(ChannelRow { id, key, domain, deposit, role, peer, status, period_s })
        .await?;

    server.kill();
    let mut growth = ours.deposits.listen();
    ours.deposits.want(id, Amount(1_500));
    let failed = Arc::new(Semaphore::new(0));
    let heard = failed.clone();
    let report = Reporter::new(move |report| {
        if let Report::SettlementFailed { .. } = report {
            heard.add_permits(1);
        }
    });
    let (chain, wallet) = (ours.chain.clone(), ours.wallet.clone());
    let keeping = tokio::spawn(keep(KeepOptions {
        settler: Settler { chain, wallet, policy: RedemptionPolicy::default() },
        ledger,
        look: PATIENCE * 60,
        top_up: Some(TopUpRule { step: Amount(1_000), deposit_max: Amount(1 << 40) }),
        deposits: ours.deposits.clone(),
        report,
    }));
    // Of earnings, of closes, and then of top-ups.
    timeout(PATIENCE, failed.acquire_many(3)).await??.forget();
    server.resume().await;
    let grown = timeout(PATIENCE, growth.next()).await?;
    ensure!(grown == (id, Amount(2_000)), "{grown:?}");
    let state = ours.chain.channel(&key, View::Latest).await?.context("it is open")?;
    ensure!(state.deposit == Amount(2_000), "{state:?}");
    keeping.abort();
    Ok(())
}
