//! A provider on the market, over a real mesh on loopback: what it is asked by those who mean it and by
//! those who do not.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use sluice::config::SellSection;
use sluice::roles::{
    AskFailed, Asked, Bids, Ended, LeaseState, Leases, MeshOptions, Meshed, Provide,
    ProvideOptions, Reporter, SellOptions, Selling, start_relay,
};
use sluice_market::{lease_of, noise_public, open_bid};
use sluice_mesh::Multiaddr;
use sluice_proto::ask::{Answer, Ask, AskRefusal, orders_topic};
use sluice_proto::market::{
    Award, AwardAnswer, AwardRefusal, Bid, DirectPolicy, Lease, MARKET_MESSAGE_MAX, Money, Order,
    Region, SealedBid, ServiceKind, ServiceOffer, SignedLease, SignedOrder, close_order,
    find_stamp, stamp_bits,
};
use sluice_proto::{Amount, Price, ServiceName, WINDOW_MAX, WINDOW_MIN};
use sluice_relay::Relay;
use sluice_transport::Clock;
use tempfile::TempDir;
use tests::{Cast, LyingTenant, Member, PATIENCE, Web, read_all};
use tokio::sync::mpsc;

/// What the owner asks at least, a byte down.
const FLOOR: u128 = 2;
/// Zero bits of a stamp.
const STAMP_BITS: u32 = 8;
/// X25519: bids are sealed to it.
const SECRET: [u8; 32] = [0x42; 32];

/// What is made of the terms of a good award.
type Change = fn(&mut Lease);

/// A clock that a test sets ahead.
#[derive(Debug, Clone, Default)]
struct Ahead(Arc<AtomicU64>);

impl Ahead {
    fn by(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed))
    }

    fn clock(&self) -> Clock {
        Clock::new(Arc::new(self.clone()))
    }
}

impl Runtime for Ahead {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at.checked_sub(self.by()).unwrap_or(at))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> std::time::Instant {
        TokioRuntime.now() + self.by()
    }
}

fn hidden(bootstrap: &[Multiaddr]) -> MeshOptions {
    let listen = ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"];
    MeshOptions {
        listen: listen.map(|a| a.parse().expect("an address")).to_vec(),
        bootstrap: bootstrap.to_vec(),
        private: true,
        ..MeshOptions::default()
    }
}

fn topic() -> String {
    orders_topic(&region())
}

fn region() -> Region {
    Region::parse("world").expect("a region")
}

fn web() -> ServiceOffer {
    ServiceOffer { name: ServiceName::parse("web").expect("a name"), kind: ServiceKind::Tcp }
}

fn unix_ms() -> u64 {
    u64::try_from(Clock::default().unix_time().as_millis()).expect("a time")
}

/// A provider that sells one web service, its state on disk.
struct Home {
    cast: Cast,
    owner: Member,
    provide: Provide,
    leases: Leases,
    state: TempDir,
    mesh: Meshed,
    clock: Ahead,
    selling: Option<Selling>,
    _relay: Relay,
    _web: Web,
}

impl Home {
    async fn new() -> Result<Self> {
        let cast = Cast::paid().await?;
        let (operator, owner) = (cast.member().await?, cast.member().await?);
        let relay = start_relay(cast.relay_options(&operator)).await?;
        let (served, state) = (Web::start()?, tempfile::tempdir()?);
        let leases = Leases::open(state.path())?;
        let options = cast.provide_options(&owner, &relay, &[("web", served.addr())]);
        let kept = Some(leases.clone());
        let provide = Provide::start(ProvideOptions { leases: kept, ..options }).await?;
        let public = MeshOptions { public: true, ..hidden(&[]) };
        let mesh = Meshed::start(&owner.identity, public, None).await?;
        let clock = Ahead::default();
        let mut home = Self {
            cast,
            owner,
            provide,
            leases,
            state,
            mesh,
            clock,
            selling: None,
            _relay: relay,
            _web: served,
        };
        home.sell().await?;
        Ok(home)
    }

    /// Begins to sell, or goes on in another process as far as the market is concerned.
    async fn sell(&mut self) -> Result<()> {
        self.selling = None;
        let money = self.owner.money.clone().context("money")?;
        let paid = Money { domain: money.chain.domain(), token: money.chain.token() };
        let section = SellSection {
            floor_down: FLOOR << 30,
            stamp_bits: STAMP_BITS,
            leases_max: 2,
            ..SellSection::default()
        };
        let options = SellOptions {
            identity: self.owner.identity.clone(),
            policy: section.policy(vec![web()], Some(paid), money.period_s),
            regions: section.regions.clone(),
            rate_max: 10_000_000,
            money: Some(money),
            leases: self.leases.clone(),
            ledger: self.owner.ledger.clone(),
            relays: self.provide.named(),
            bids: Some(Bids::path_in(self.state.path())),
            report: Reporter::logged(),
            clock: self.clock.clock(),
        };
        self.selling = Some(Selling::start(self.mesh.clone(), options).await?);
        Ok(())
    }

    async fn tenant(&self) -> Result<Tenant> {
        let who = self.cast.member().await?;
        let bootstrap = self.mesh.addresses().await;
        let mesh = Meshed::start(&who.identity, hidden(&bootstrap), None).await?;
        let asked = mesh.on_ask();
        mesh.mesh().subscribe(&topic()).await?;
        // Who asks before it knows anybody finds nobody.
        let met = async || mesh.mesh().status().await.is_some_and(|status| status.peers > 0);
        wait(|| "a peer".to_owned(), met).await?;
        Ok(Tenant { who, mesh, asked })
    }

    fn bids(&self) -> Result<Bids> {
        Ok(Bids::read(&Bids::path_in(self.state.path()))?)
    }

    /// Waits until so many were refused by this name.
    async fn refused(&self, name: &str, count: u64) -> Result<()> {
        let found = || self.bids().ok()?.refused.get(name).copied();
        let what = || format!("{count} x {name}: {:?}", self.bids().map(|b| b.refused));
        wait(what, async || found().is_some_and(|found| found >= count)).await
    }

    /// Waits until an order has come to this.
    async fn fate(&self, order: &[u8; 32], fate: &str) -> Result<()> {
        let name: String = order.iter().map(|byte| format!("{byte:02x}")).collect();
        let what = || format!("{name} {fate}: {:?}", self.bids().map(|b| b.bids));
        wait(what, async || {
            let bids = self.bids().map(|bids| bids.bids).unwrap_or_default();
            bids.iter().any(|bid| bid.order == name && bid.fate == fate)
        })
        .await
    }

    /// The leases on disk.
    fn kept(&self) -> Result<Vec<SignedLease>> {
        let all = Leases::open(self.state.path())?.all(0);
        Ok(all.into_iter().map(|(lease, _)| (*lease).clone()).collect())
    }
}

async fn wait(what: impl Fn() -> String, mut is_so: impl AsyncFnMut() -> bool) -> Result<()> {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        ensure!(tokio::time::Instant::now() < end, "it did not come to {}", what());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Somebody in the mesh who asks, and need not mean it.
struct Tenant {
    who: Member,
    mesh: Meshed,
    asked: mpsc::Receiver<Asked>,
}

impl Tenant {
    fn order(&self, nonce: u8) -> Result<Order> {
        let money = self.who.money.as_ref().context("money")?;
        let made_unix_ms = unix_ms();
        Ok(Order {
            tenant: self.who.peer(),
            noise_key: noise_public(&SECRET)?,
            nonce: [nonce; 16],
            region: region(),
            depth: 0,
            shard: 0,
            services: vec![web()],
            rate_up_min: 100_000,
            rate_down_min: 1_000_000,
            volume_up: 0,
            volume_down: 1 << 20,
            budget: Amount(1 << 30),
            duration_s: 3600,
            max_price: Price { up: 9 << 30, down: 9 << 30 },
            window_min: WINDOW_MIN,
            window_max: WINDOW_MAX,
            direct: DirectPolicy::Never,
            period_s: 48 * 3600,
            idle_timeout_s: 60,
            money: Some(Money { domain: money.chain.domain(), token: money.chain.token() }),
            rate_proven_min: 0,
            made_unix_ms,
            bids_until_unix_ms: made_unix_ms + 20_000,
            clock_ms: 0,
            hold_s: 0,
        })
    }

    fn stamped(&self, order: &Order) -> Bytes {
        let node = &self.who.identity.node;
        SignedOrder::stamp(order, node, |id| find_stamp(id, STAMP_BITS, 0))
    }

    /// Says something on the orders' topic, once somebody listens.
    async fn say(&self, bytes: &Bytes) -> Result<()> {
        let what = || "a listener".to_owned();
        let told = async || self.mesh.mesh().gossip(&topic(), bytes.clone()).await.is_ok();
        wait(what, told).await
    }

    /// The next bid that comes.
    async fn bid(&mut self) -> Result<Bid> {
        let asked = tokio::time::timeout(PATIENCE, self.asked.recv()).await;
        let asked = asked.context("no bid")?.context("the mesh ended")?;
        let Ask::Bid(bytes) = asked.ask.clone() else { bail!("{:?}", asked.ask) };
        asked.answer(&Answer::BidTaken).await;
        let sealed = SealedBid::parse(&bytes)?;
        Ok(Bid::open(&open_bid(sealed.order, &SECRET, &sealed.sealed)?)?)
    }

    fn award(&self, order: &Order, bid: &Bid, change: impl FnOnce(&mut Lease)) -> Award {
        let identity = &self.who.identity;
        let wallet = identity.wallet.address();
        let mut lease = lease_of(order, bid, wallet, WINDOW_MIN, unix_ms() / 1_000);
        change(&mut lease);
        Award::make(lease, unix_ms() + 10_000, &identity.node, &identity.wallet)
    }

    async fn ask(&self, home: &Home, bytes: Bytes) -> Result<Answer, AskFailed> {
        self.mesh.ask(home.mesh.peer(), &Ask::Award(bytes)).await
    }

    /// What is answered to an award that is well-formed.
    async fn answer(&self, home: &Home, award: &Award) -> Result<AwardAnswer> {
        let Answer::Award(bytes) = self.ask(home, award.encode()).await? else {
            bail!("no answer to an award");
        };
        Ok(AwardAnswer::parse(&bytes)?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_bid_for_and_its_award_is_kept_before_it_is_answered_and_served() -> Result<()>
{
    let mut home = Home::new().await?;
    let mut tenant = home.tenant().await?;
    let order = tenant.order(1)?;
    let bytes = tenant.stamped(&order);
    let id = SignedOrder::parse(&bytes)?.id;
    tenant.say(&bytes).await?;
    let bid = tenant.bid().await?;
    ensure!(bid.price == Price { up: 0, down: FLOOR << 30 }, "{bid:?}");
    ensure!(bid.order == id && bid.relays == *home.provide.named().borrow());
    home.fate(&id.0, "bid").await?;

    let award = tenant.award(&order, &bid, |_| ());
    let answer = tenant.answer(&home, &award).await?;
    let lease = SignedLease::seal(award.clone(), answer.answer.clone().ok().context("refused")?)?;
    ensure!(home.kept()? == [lease.clone()], "it is on disk once it is told");
    // Asked again, as by a tenant whom the answer did not reach, it says the same: also after a restart.
    ensure!(tenant.answer(&home, &award).await? == answer);
    home.fate(&id.0, "won").await?;
    home.sell().await?;
    ensure!(tenant.answer(&home, &award).await? == answer);
    ensure!(home.kept()?.len() == 1);

    // What was won is served, and a session under it is what funds it.
    let session = LyingTenant::begin_under(&tenant.who, lease.lease(), None).await?;
    ensure!(home.leases.is_funded(lease.lease().lease));
    let mut stream = session.ask("web", "1/100000").await?;
    ensure!(read_all(&mut stream).await? > 100_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_awards_and_never_funds_loses_the_room_and_then_its_hearing() -> Result<()> {
    let home = Home::new().await?;
    let (mut liar, mut honest) = (home.tenant().await?, home.tenant().await?);
    for n in 1..=2 {
        let order = liar.order(n)?;
        let bytes = liar.stamped(&order);
        let id = SignedOrder::parse(&bytes)?.id;
        liar.say(&bytes).await?;
        let bid = liar.bid().await?;
        let award = liar.award(&order, &bid, |_| ());
        let answer = liar.answer(&home, &award).await?.answer;
        let lease = SignedLease::seal(award, answer.ok().context("refused")?)?;
        // Nothing is said of a channel, however long it is waited for.
        home.clock.0.fetch_add(121, Relaxed);
        // Whatever comes in makes it look at the clock.
        honest.say(&close_order(id, &honest.who.identity.node)).await?;
        home.fate(&id.0, "unfunded").await?;
        let state = || home.leases.state(lease.lease().lease, unix_ms() / 1_000);
        let what = || format!("an end: {:?}", state());
        wait(what, async || state() == Some(LeaseState::Ended(Ended::Unfunded))).await?;
        let late = LyingTenant::begin_under(&liar.who, lease.lease(), None).await;
        let late = format!("{:#}", late.err().context("it was served all the same")?);
        ensure!(late.contains("unfunded"), "{late}");
    }
    liar.say(&liar.stamped(&liar.order(4)?)).await?;
    home.refused("shunned", 1).await?;
    // An honest tenant is heard, and finds the room that the liar left.
    let order = honest.order(5)?;
    honest.say(&honest.stamped(&order)).await?;
    let bid = honest.bid().await?;
    let award = honest.award(&order, &bid, |_| ());
    ensure!(honest.answer(&home, &award).await?.answer.is_ok());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_are_none_are_dropped_counted_and_scored_and_honest_ones_clear() -> Result<()> {
    let home = Home::new().await?;
    let (late, mut honest) = (home.tenant().await?, home.tenant().await?);
    // Whose clock is wrong, or who heard late, is nobody's enemy.
    let now = unix_ms();
    let timed = |made: u64| -> Result<Bytes> {
        let times =
            Order { made_unix_ms: made, bids_until_unix_ms: made + 1_000, ..late.order(1)? };
        Ok(late.stamped(&times))
    };
    let unstamped = SignedOrder::stamp(&late.order(2)?, &late.who.identity.node, |id| {
        (0..).find(|stamp| stamp_bits(id, *stamp) < STAMP_BITS).expect("most are small")
    });
    let untimely =
        [("expired", timed(now - 60_000)?), ("future", timed(now + 60_000)?), ("stamp", unstamped)];
    for (name, bytes) in untimely {
        late.say(&bytes).await?;
        home.refused(name, 1).await?;
    }
    let score = async |peer| home.mesh.mesh().score(peer).await.unwrap_or_default();
    ensure!(score(late.who.peer()).await >= 0.0);

    // Of another tenant's name, changed after it was signed, too large, of no sense: who says such
    // things is soon not heard any more, so each has its own liar.
    for (n, name) in (3..).zip(["signature", "signature", "oversized", "malformed"]) {
        let liar = home.tenant().await?;
        let bytes = match n {
            3 => liar.stamped(&Order { tenant: honest.who.peer(), ..liar.order(n)? }),
            4 => {
                let stranger = &late.who.identity.node;
                SignedOrder::stamp(&liar.order(n)?, stranger, |id| find_stamp(id, STAMP_BITS, 0))
            }
            5 => Bytes::from(vec![0x0A; MARKET_MESSAGE_MAX + 1]),
            _ => Bytes::from(vec![0xFF; 300]),
        };
        liar.say(&bytes).await?;
        home.refused(name, u64::from(n == 4) + 1).await?;
        let what = || format!("a score of {name} below nothing");
        wait(what, async || score(liar.who.peer()).await < 0.0).await?;
    }

    // A good one, told again by another, who gave it another stamp: anybody can.
    let order = honest.order(5)?;
    let bytes = honest.stamped(&order);
    honest.say(&bytes).await?;
    let bid = honest.bid().await?;
    let again = SignedOrder::stamp(&order, &honest.who.identity.node, |id| {
        find_stamp(id, STAMP_BITS, 1 << 40)
    });
    late.say(&again).await?;
    home.refused("replayed", 1).await?;
    // Nor can another close what is this one's.
    late.say(&close_order(bid.order, &late.who.identity.node)).await?;
    let award = honest.award(&order, &bid, |_| ());
    ensure!(honest.answer(&home, &award).await?.answer.is_ok());
    ensure!(score(honest.who.peer()).await >= 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awards_that_are_not_due_sign_nothing_and_take_nobodys_bid_away() -> Result<()> {
    let home = Home::new().await?;
    let (mut tenant, liar) = (home.tenant().await?, home.tenant().await?);
    let order = tenant.order(1)?;
    tenant.say(&tenant.stamped(&order)).await?;
    let bid = tenant.bid().await?;

    let malformed = Err(AskFailed::Refused(AskRefusal::Malformed));
    ensure!(liar.ask(&home, Bytes::from(vec![0xFF; 300])).await == malformed);
    ensure!(liar.ask(&home, Bytes::from(vec![0x0A; 5_000])).await == malformed);
    // The tenant's own award, brought by another; and another's award of what was bid to the tenant.
    let good = tenant.award(&order, &bid, |_| ());
    ensure!(liar.ask(&home, good.encode()).await == malformed);
    let theirs = liar.award(&order, &bid, |lease| lease.tenant = liar.who.peer());
    let refused = |why| Err(why);
    ensure!(
        liar.answer(&home, &theirs).await?.answer == refused(AwardRefusal::OtherTerms),
        "a stranger's award of another's bid"
    );
    // Terms that were not offered, of bids that were not made, too late.
    let cases: [(AwardRefusal, Change); 5] = [
        (AwardRefusal::OtherTerms, |lease| lease.price.down -= 1),
        (AwardRefusal::OtherTerms, |lease| lease.window = WINDOW_MAX * 2),
        (AwardRefusal::OtherTerms, |lease| lease.payout.0[0] ^= 1),
        (AwardRefusal::UnknownBid, |lease| lease.order.0[0] ^= 1),
        (AwardRefusal::TooLate, |lease| lease.made_unix_s -= 3_600),
    ];
    for (why, change) in cases {
        let award = tenant.award(&order, &bid, change);
        match tenant.ask(&home, award.encode()).await {
            Ok(Answer::Award(bytes)) => {
                ensure!(AwardAnswer::parse(&bytes)?.answer == refused(why), "{why:?}");
            }
            // Such a window no lease can have.
            other => ensure!(other == malformed && why == AwardRefusal::OtherTerms, "{other:?}"),
        }
    }
    ensure!(home.kept()?.is_empty(), "{:?}", home.kept());

    // A flood ends at its own limit, and the bid still stands.
    let mut busy = 0;
    for _ in 0..30 {
        let answer = liar.ask(&home, theirs.encode()).await;
        busy += u32::from(answer == Err(AskFailed::Refused(AskRefusal::Busy)));
    }
    ensure!(busy > 0, "nothing was too much");
    home.refused("award_limit", 1).await?;
    let good = tenant.award(&order, &bid, |_| ());
    ensure!(tenant.answer(&home, &good).await?.answer.is_ok());
    ensure!(home.kept()?.len() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_shows_a_wallet_is_bid_for_once_the_chain_says_what_it_has() -> Result<()> {
    let home = Home::new().await?;
    let mut tenant = home.tenant().await?;
    let identity = tenant.who.identity.clone();
    // More than anybody was given.
    let order = Order { budget: Amount(1 << 50), ..tenant.order(1)? };
    let poor = SignedOrder::with_wallet(&order, &identity.node, &identity.wallet);
    tenant.say(&poor).await?;
    home.fate(&SignedOrder::parse(&poor)?.id.0, "silent").await?;
    let order = tenant.order(2)?;
    let rich = SignedOrder::with_wallet(&order, &identity.node, &identity.wallet);
    tenant.say(&rich).await?;
    ensure!(tenant.bid().await?.order == SignedOrder::parse(&rich)?.id);
    Ok(())
}
