//! The tenant's side of the market: an order, its bids, the choice, and a session that proves the lease.
//!
//! Nothing is bought that was not tried: bidders are measured by sessions through their relays, with the
//! right to connect that is in each bid, and whoever is awarded must serve under the lease, channel and
//! all, before it counts. Whoever does not is passed over for the next.

#![expect(clippy::disallowed_methods, reason = "the seed of names and secrets is drawn here")]

mod progress;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sluice_ledger::Ledger;
use sluice_market::{
    Moment, Offers, Tenant, TenantEvent, TenantPolicy, TenantTransmit, Want, noise_public,
};
use sluice_mesh::{GossipError, OwnRecord, PublishError, is_public_ip};
use sluice_proto::ask::{Answer, Ask, AskRefusal, orders_topic};
use sluice_proto::market::{Lease, OrderId, SignedLease};
use sluice_proto::wire::code;
use sluice_proto::{Amount, PeerId, Price, RelayAddr, ServiceName, Ticket};
use sluice_transport::{
    AcceptPolicy, Clock, NatOptions, Network, Node, NodeConfig, NoiseKeys, Random, Session,
};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::leases::{Ended, Leases};
use super::memory;
use crate::roles::channel::{CannotPay, Money};
use crate::roles::edge::Guest;
use crate::roles::identity::Identity;
use crate::roles::lease::deposit_under;
use crate::roles::mesh::{Asked, Meshed};
use crate::roles::reach::reach;
pub use progress::{Progress, Teller, Times};

/// Until then the mesh must have a peer that hears the order.
const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// An order that nobody heard is made anew after this.
const PLACE_AGAIN: Duration = Duration::from_millis(250);
/// Bidders find this node by its record: so long is waited until somebody holds it.
const FOUND_WITHIN: Duration = Duration::from_secs(15);
/// A record that nobody took is offered again after this.
const OFFER_AGAIN: Duration = Duration::from_millis(100);
/// How long the record holds: bids and awards take minutes at most.
const RECORD_LIFE: Duration = Duration::from_secs(900);
/// A session that was opened to measure is given two round trips, within these bounds, for its first
/// acknowledgements.
const SETTLE_MIN: Duration = Duration::from_millis(10);
const SETTLE_MAX: Duration = Duration::from_millis(250);

/// Relays of a bidder that are tried.
const RELAYS_TRIED: usize = 2;

/// What a buyer is told.
#[derive(Debug, Clone)]
pub struct BuyOptions {
    /// Its keys.
    pub identity: Identity,
    /// Local address of the data socket.
    pub bind: SocketAddr,
    /// Its mesh.
    pub mesh: Meshed,
    /// How it auctions.
    pub policy: TenantPolicy,
    /// What it pays with; `None`: only free services.
    pub money: Option<Money>,
    /// What to deposit at most; 0: a lease's budget.
    pub deposit: Amount,
    /// Its ledger.
    pub ledger: Ledger,
    /// Where leases are kept.
    pub leases: Leases,
    /// The state directory, for what is remembered of providers; `None`: nothing is.
    pub dir: Option<PathBuf>,
    /// Who is told what happens.
    pub tell: Teller,
}

/// What was bought.
#[derive(Debug, Clone)]
pub struct Bought {
    /// The lease; it is kept.
    pub lease: Arc<SignedLease>,
    /// When what happened, from the order on.
    pub times: Times,
    /// Gas that opening its channel took.
    pub open_gas: u64,
}

/// A node that orders.
pub struct Buyer {
    options: BuyOptions,
    tenant: Tenant,
    node: Node,
    clock: Clock,
    asked: mpsc::Receiver<Asked>,
    tasks: JoinSet<Done>,
    /// Sessions by which bidders were measured: whoever is awarded goes on in its own.
    sessions: BTreeMap<PeerId, Session>,
    /// The bidder that has to prove its lease, while it does.
    proving: Option<(AbortHandle, Arc<SignedLease>)>,
    placed: Instant,
    times: Times,
}

impl std::fmt::Debug for Buyer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buyer({})", self.node.id())
    }
}

/// What came of a task.
enum Done {
    Measured { order: OrderId, peer: PeerId, reached: Option<(Session, Duration)> },
    Answered { from: PeerId, answer: Option<bytes::Bytes> },
    Proven(Result<u64>),
    Said,
}

/// How an auction ended.
enum End {
    Bought(Box<Bought>),
    Choose,
}

impl Buyer {
    /// Starts: other nodes can find this one when this returns, if there are any.
    ///
    /// # Errors
    /// When the socket cannot be bound, or what is remembered cannot be read.
    pub async fn start(options: BuyOptions) -> Result<Self> {
        let identity = &options.identity;
        let clock = Clock::default();
        let node = Node::bind(NodeConfig {
            key: identity.node.clone(),
            noise: NoiseKeys::from_secret(identity.noise).context("the Noise key is not valid")?,
            bind: options.bind,
            reset_key: identity.reset,
            incarnation: identity.incarnation,
            accept: AcceptPolicy::Nobody,
            idle_timeout: Duration::from_secs(60),
            clock: clock.clone(),
            network: Network::Kernel,
            random: Random::default(),
        })?;
        // Leases are proven through relays: an address is shown to no one who has not won.
        node.set_nat_options(NatOptions { survey: false, port_mapping: false, entries_max: 0 });
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| anyhow!("no random bytes: {e}"))?;
        let wallet = options.money.as_ref().map_or(&identity.wallet, |money| &money.wallet);
        let now = moment(&clock);
        let tenant = Tenant::new(identity.node.clone(), wallet.clone(), options.policy, seed);
        let tenant = tenant.with_reputation(memory::recall(options.dir.as_deref(), now).await?);
        let asked = options.mesh.on_ask();
        let placed = clock.now();
        let buyer = Self {
            options,
            tenant,
            node,
            clock,
            asked,
            tasks: JoinSet::new(),
            sessions: BTreeMap::new(),
            proving: None,
            placed,
            times: Times::default(),
        };
        buyer.be_found().await?;
        Ok(buyer)
    }

    /// Publishes a record with the addresses at which bids arrive.
    async fn be_found(&self) -> Result<()> {
        let (mesh, end) = (self.options.mesh.mesh(), self.clock.now() + FOUND_WITHIN);
        let noise_key = noise_public(&self.options.identity.noise).context("the Noise key")?;
        let content = OwnRecord { noise_key, provider: None, relay: None, life: RECORD_LIFE };
        loop {
            let published = mesh.publish(content.clone()).await;
            let has_address = mesh.own().await.is_some_and(|own| !own.record().mesh.is_empty());
            match published {
                Ok(_) if has_address => return Ok(()),
                Ok(_) | Err(PublishError::NoHolder) => {}
                Err(error) => return Err(error.into()),
            }
            if self.clock.now() > end {
                tracing::warn!(
                    "no node of the mesh holds this one's record yet: bids come only from nodes \
                     that are connected"
                );
                return Ok(());
            }
            self.clock.sleep(OFFER_AGAIN).await;
        }
    }

    /// Orders, takes the best bid whose bidder proves to serve, and keeps the lease.
    ///
    /// # Errors
    /// When nobody hears the order, bids and serves; when the lease cannot be kept or paid for.
    pub async fn order(&mut self, want: &Want) -> Result<Bought> {
        ensure!(self.options.policy.by_hand.is_none(), "bids are chosen by hand: use `offers`");
        self.check_wallet(want).await?;
        let order = self.place(want).await?;
        let ended = self.run(order).await;
        self.finish(order).await?;
        match ended? {
            End::Bought(bought) => Ok(*bought),
            End::Choose => bail!("the auction waits to be decided by hand"),
        }
    }

    /// Orders, and gives the bids, measured: one of them may be [awarded](Self::award) while it holds.
    ///
    /// # Errors
    /// When nobody hears the order, or nobody bids.
    pub async fn offers(&mut self, want: &Want) -> Result<Offers> {
        self.check_wallet(want).await?;
        let order = self.place(want).await?;
        let ended = self.run(order).await;
        let offers = self.tenant.offers(order);
        self.finish(order).await?;
        match ended? {
            End::Choose => offers.context("no bid may be chosen"),
            End::Bought(_) => bail!("the auction was not to be decided by itself"),
        }
    }

    /// Awards one of the bids that were kept, and proves that its bidder serves.
    ///
    /// # Errors
    /// When the bid holds no longer, or its bidder does not sign or serve.
    pub async fn award(&mut self, offers: Offers, bidder: PeerId) -> Result<Bought> {
        let now = self.now();
        self.placed = now.at;
        let order = self.tenant.resume(offers, now);
        self.tenant.choose(order, bidder, now)?;
        let ended = self.run(order).await;
        let considered = self.tenant.considered(order);
        self.finish(order).await?;
        match ended? {
            End::Bought(bought) => Ok(*bought),
            End::Choose => {
                let chosen = considered.into_iter().find(|c| c.bidder == bidder);
                let why = chosen.and_then(|c| c.verdict.ok()).map(|verdict| verdict.to_string());
                bail!("{bidder}: {}", why.as_deref().unwrap_or("there is no lease"))
            }
        }
    }

    /// Ends; what the mesh knows is remembered.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        self.node.shutdown().await;
        self.options.mesh.remember().await;
    }

    fn now(&self) -> Moment {
        moment(&self.clock)
    }

    /// A deposit that is not there would be found out only after somebody had signed.
    async fn check_wallet(&self, want: &Want) -> Result<()> {
        let Some(money) = self.options.money.as_ref().filter(|_| want.money.is_some()) else {
            return Ok(());
        };
        let deposit = match self.options.deposit {
            Amount(0) => want.budget,
            wanted => wanted.min(want.budget),
        };
        let wallet = money.wallet.address();
        let has = money.chain.token_balance(wallet).await?;
        ensure!(
            has >= deposit,
            "wallet {wallet} has {has} token base units, and {deposit} are to be deposited: fund it, \
             or set a lower budget"
        );
        Ok(())
    }

    /// Tells the order to those who listen in its region.
    async fn place(&mut self, want: &Want) -> Result<OrderId> {
        let end = self.clock.now() + HEARD_WITHIN;
        let topic = orders_topic(&want.region);
        self.options.mesh.mesh().subscribe(&topic).await?;
        loop {
            let now = self.now();
            let order = self.tenant.place(want.clone(), now)?;
            let bytes = loop {
                match self.tenant.poll_transmit() {
                    Some(TenantTransmit::Order { bytes, .. }) => break bytes,
                    Some(TenantTransmit::Closed { .. } | TenantTransmit::Award { .. }) => {}
                    None => bail!("the order was not made"),
                }
            };
            match self.options.mesh.mesh().gossip(&topic, bytes).await {
                Ok(()) => {
                    self.placed = now.at;
                    self.times = Times::default();
                    let region = want.region.clone();
                    self.tell(&Progress::Placed { order, region });
                    return Ok(order);
                }
                Err(GossipError::NoPeers | GossipError::Refused(_)) if now.at < end => {
                    self.tenant.withdraw(order);
                    self.clock.sleep(PLACE_AGAIN).await;
                }
                Err(GossipError::NoPeers) => bail!(
                    "nobody who is reached hears orders of the region {:?}: is the bootstrap \
                     address right, and does anybody sell there?",
                    want.region.as_str()
                ),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs the auction until it is decided.
    async fn run(&mut self, order: OrderId) -> Result<End> {
        loop {
            if let Some(end) = self.drain(order).await? {
                return Ok(end);
            }
            let (clock, wake) = (self.clock.clone(), self.tenant.poll_timeout());
            let wake = wake.map_or_else(|| clock.now() + HEARD_WITHIN, |(at, _)| at);
            tokio::select! {
                asked = self.asked.recv() => {
                    self.on_asked(order, asked.context("the mesh has ended")?).await;
                }
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => {
                        if let Some(end) = self.on_done(order, done).await? {
                            return Ok(end);
                        }
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(error.into()),
                },
                () = clock.sleep_until(wake) => self.tenant.handle_timeout(self.now()),
            }
        }
    }

    /// Ends what is left of an auction, says what became of each bid, and remembers it.
    async fn finish(&mut self, order: OrderId) -> Result<()> {
        self.tasks.shutdown().await;
        self.proving = None;
        for session in std::mem::take(&mut self.sessions).into_values() {
            session.close(code::OK, "measured");
        }
        // Those that may still be chosen are shown as such.
        if self.tenant.offers(order).is_none() {
            self.tell(&Progress::Considered(self.tenant.considered(order)));
        }
        let now = self.now();
        memory::keep(self.options.dir.as_deref(), self.tenant.reputation().experiences(now)).await
    }

    fn tell(&self, progress: &Progress) {
        let since = self.clock.now().saturating_duration_since(self.placed);
        self.options.tell.tell(since, progress);
    }

    fn since(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.placed)
    }

    async fn on_asked(&mut self, order: OrderId, asked: Asked) {
        let Ask::Bid(bytes) = &asked.ask else {
            return asked.answer(&Answer::Refused(AskRefusal::Busy)).await;
        };
        let bidder = asked.peer;
        let taken = self.tenant.handle_bid(bidder, None, bytes, self.now());
        match taken {
            Ok(()) => {
                let since = self.since();
                self.times.first_bid.get_or_insert(since);
                self.times.last_bid = Some(since);
                self.times.bids += 1;
                let considered = self.tenant.considered(order);
                let bid = considered.iter().find(|c| c.bidder == bidder && c.verdict.is_ok());
                if let Some((price, cost)) = bid.and_then(|c| c.price.zip(c.cost)) {
                    self.tell(&Progress::Bid { bidder, price, cost });
                }
            }
            Err(why) => self.tell(&Progress::Refused { bidder, why: why.to_string() }),
        }
        asked.answer(&Answer::BidTaken).await;
    }

    /// Does what the auction says.
    async fn drain(&mut self, order: OrderId) -> Result<Option<End>> {
        loop {
            if let Some(transmit) = self.tenant.poll_transmit() {
                self.transmit(transmit);
                continue;
            }
            let Some(event) = self.tenant.poll_event() else { return Ok(None) };
            match event {
                TenantEvent::Measure { order, peer, ticket } => {
                    let (node, private) = (self.node.clone(), self.options.mesh.is_private());
                    self.tasks.spawn(async move {
                        let reached = measure(&node, &ticket, private).await;
                        let reached = reached.inspect_err(|error| {
                            tracing::debug!(%peer, "not measured: {error:#}");
                        });
                        Done::Measured { order, peer, reached: reached.ok() }
                    });
                }
                TenantEvent::Leased { lease, .. } => self.prove(Arc::new(*lease)).await?,
                TenantEvent::Choose { .. } => return Ok(Some(End::Choose)),
                TenantEvent::NoLease { order: over, why } if over == order => {
                    return Err(why.into());
                }
                TenantEvent::NoLease { .. } => {}
            }
        }
    }

    fn transmit(&mut self, transmit: TenantTransmit) {
        let mesh = self.options.mesh.clone();
        match transmit {
            TenantTransmit::Order { region, bytes, .. }
            | TenantTransmit::Closed { region, bytes, .. } => {
                self.tasks.spawn(async move {
                    // They would have heard only that no more bids are taken.
                    let _ = mesh.mesh().gossip(&orders_topic(&region), bytes).await;
                    Done::Said
                });
            }
            TenantTransmit::Award { to, bytes } => {
                if let Some((proving, _)) = self.proving.take() {
                    proving.abort();
                }
                self.tell(&Progress::Awarded { bidder: to });
                self.tasks.spawn(async move {
                    let answer = match mesh.ask(to, &Ask::Award(bytes)).await {
                        Ok(Answer::Award(bytes)) => Some(bytes),
                        Ok(Answer::BidTaken | Answer::Relays(_) | Answer::Refused(_)) => None,
                        Err(error) => {
                            tracing::debug!(%to, "no answer to the award: {error}");
                            None
                        }
                    };
                    Done::Answered { from: to, answer }
                });
            }
        }
    }

    async fn on_done(&mut self, order: OrderId, done: Done) -> Result<Option<End>> {
        let now = self.now();
        match done {
            Done::Measured { order, peer, reached } => {
                let latency = reached.as_ref().map(|(_, rtt)| *rtt);
                if let Some((session, _)) = reached {
                    self.sessions.insert(peer, session);
                }
                self.tell(&Progress::Measured { bidder: peer, latency });
                self.tenant.handle_latency(order, peer, latency, now);
            }
            Done::Answered { from, answer: Some(bytes) } => {
                // What is wrong with it is its verdict.
                if let Err(why) = self.tenant.handle_answer(from, &bytes, now) {
                    tracing::debug!(%from, %why, "its answer to the award");
                }
            }
            // Its time runs out.
            Done::Answered { answer: None, .. } | Done::Said => {}
            Done::Proven(proven) => return self.on_proven(order, proven).await,
        }
        Ok(None)
    }

    /// Keeps a lease, then has its provider prove that it serves.
    async fn prove(&mut self, lease: Arc<SignedLease>) -> Result<()> {
        self.times.leased = Some(self.since());
        // Before anything is paid: it says to whom.
        let (leases, kept) = (self.options.leases.clone(), lease.clone());
        tokio::task::spawn_blocking(move || leases.put(&kept)).await??;
        self.tell(&Progress::Leased { lease: lease.clone() });
        let options = &self.options;
        let terms = Arc::new(lease.lease().clone());
        let guest = Guest {
            key: options.identity.node.clone(),
            ledger: options.ledger.clone(),
            money: options.money.clone(),
            deposit: deposit_under(&terms, options.deposit),
            price_max: Price { up: 0, down: 0 },
            lease: Some(terms.clone()),
            start: options.identity.incarnation,
            anew: Arc::default(),
            recovery: options.identity.recovery.clone(),
        };
        let session = self.sessions.remove(&terms.provider);
        let (node, clock) = (self.node.clone(), self.clock.clone());
        let private = options.mesh.is_private();
        let task = async move {
            let session = session.filter(|s| s.connection().close_reason().is_none());
            let session = match session {
                Some(session) => Ok(session),
                None => open(&node, &terms.ticket(), private).await,
            };
            Done::Proven(match session {
                Ok(session) => serve_once(clock, guest, session, &terms).await,
                Err(error) => Err(error),
            })
        };
        self.proving = Some((self.tasks.spawn(task), lease));
        Ok(())
    }

    async fn on_proven(&mut self, order: OrderId, proven: Result<u64>) -> Result<Option<End>> {
        let Some((_, lease)) = self.proving.take() else { return Ok(None) };
        let now = self.now();
        match proven {
            Ok(open_gas) => {
                self.tenant.handle_served(order, now);
                self.times.usable = Some(self.since());
                let times = self.times;
                Ok(Some(End::Bought(Box::new(Bought { lease, times, open_gas }))))
            }
            Err(error) => {
                let (leases, id) = (self.options.leases.clone(), lease.lease().lease);
                tokio::task::spawn_blocking(move || leases.end(id, Ended::NotServed)).await??;
                // That this side cannot pay is not the other's fault, and the next would not be paid
                // either.
                if error.is::<CannotPay>() {
                    return Err(error);
                }
                let (bidder, why) = (lease.lease().provider, format!("{error:#}"));
                self.tell(&Progress::NotServed { bidder, why });
                self.tenant.handle_no_service(order, now);
                Ok(None)
            }
        }
    }
}

fn moment(clock: &Clock) -> Moment {
    let unix_ms = u64::try_from(clock.unix_time().as_millis()).unwrap_or(u64::MAX);
    Moment { at: clock.now(), unix_ms }
}

/// Opens a session to a bidder through its relays, and tells how far it is: QUIC's round trip, once what
/// follows the handshake, which is slowed by its signatures, has been acknowledged too.
async fn measure(node: &Node, ticket: &Ticket, private: bool) -> Result<(Session, Duration)> {
    let session = open(node, ticket, private).await?;
    let first = session.connection().rtt();
    node.clock().sleep((first * 2).clamp(SETTLE_MIN, SETTLE_MAX)).await;
    let rtt = session.connection().rtt().min(first);
    Ok((session, rtt))
}

/// Through at most two of the relays that it names; none of a private network, unless the mesh is one:
/// a bid could name the tenant's own devices.
async fn open(node: &Node, ticket: &Ticket, private: bool) -> Result<Session> {
    let may = |relay: &&RelayAddr| private || is_public_ip(relay.addr.ip());
    let usable = ticket.relays.iter().filter(may).take(RELAYS_TRIED);
    let links: Vec<_> = usable.map(|relay| node.link(*relay, None)).collect();
    ensure!(!links.is_empty(), "it names no relay with a public address");
    reach(node, ticket, links).await
}

/// Comes to terms under a lease, opening its channel, and parts; the gas of opening it.
async fn serve_once(clock: Clock, guest: Guest, session: Session, lease: &Lease) -> Result<u64> {
    let agreed = guest.agree(&session, clock.unix_time().as_secs()).await;
    let agreed = agreed.inspect_err(|_| session.close(code::OK, "no terms"))?;
    let missing = lease.services.iter().find(|s| !agreed.services.contains(&s.name));
    let missing = missing.map(|service| &service.name);
    session.close(code::OK, "the lease works");
    match missing {
        Some(name) => Err(no_service(name)),
        None => Ok(agreed.open_gas),
    }
}

fn no_service(name: &ServiceName) -> anyhow::Error {
    anyhow!("the provider signed for the service {name} and does not offer it")
}
