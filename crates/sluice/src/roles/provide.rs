//! The provider: reachable through relays, serving what it declared, paid for each byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use sluice_ledger::Ledger;
use sluice_metering::{Lie, Payee};
use sluice_proto::record::{ProviderEntry, ServiceKind};
use sluice_proto::wire::code;
use sluice_proto::wire::session::{Goodbye, Relays, session::Kind};
use sluice_proto::{Amount, Invite, Keypair, PeerId, Price, RelayAddr, Ticket, encode_relays};
use sluice_transport::{
    AcceptPolicy, Clock, NatOptions, Network, Node, NodeConfig, NoiseKeys, Random, Session,
};
use sluice_tunnel::{Account, AccountOptions, Services, Snapshot, serve};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::accounts::{Accounts, Kept};
use super::advertise::{Stand, Standing, advertise};
use super::channel::Money;
use super::choose::Chooser;
use super::edge::{Agreed, Host};
use super::identity::Identity;
use super::market::Leases;
use super::mesh::Meshed;
use super::report::{Report, Reporter};
use super::reservation::Holder;
use super::sight::Served;
use super::starts::Starts;
use super::vouchers::{keep_vouchers, tell_lies};
use super::warm::WarmRelays;
use crate::config::DirectPolicy;
use crate::roles::connect::tell_warm;

/// The first relay must give a reservation within this.
const FIRST_RELAY: Duration = Duration::from_secs(30);
/// The same where relays have to be found and measured first.
const FIRST_CHOICE: Duration = Duration::from_secs(60);
/// A lease lasts this long.
const LEASE: Duration = Duration::from_secs(30 * 86_400);
/// Whether a lease is over is seen within this, also when the clock is set.
const LEASE_LOOK: Duration = Duration::from_secs(60);
/// Payload between reports of what was delivered.
const DELIVERED_STEP: u64 = 16 * 1024;

/// What a provider is told.
#[derive(Debug, Clone)]
pub struct ProvideOptions {
    /// Its keys.
    pub identity: Identity,
    /// Local address of the data socket.
    pub bind: SocketAddr,
    /// The mesh in which it publishes its record, if any.
    pub mesh: Option<Meshed>,
    /// The relays to be reached through; none: those that the mesh offers are chosen from, and anew
    /// when conditions change.
    pub relays: Vec<RelayAddr>,
    /// What it serves.
    pub services: Services,
    /// What tenants pay per GiB.
    pub price: Price,
    /// Bits per second that windows are computed from.
    pub rate_max: u64,
    /// Bytes that a tenant gets before its first voucher is due.
    pub starter_bytes: u64,
    /// A session without traffic ends after this.
    pub idle_timeout: Duration,
    /// How long a ticket is good for; zero: for ever.
    pub ticket_for: Duration,
    /// When direct paths may be used.
    pub direct: DirectPolicy,
    /// How much the NAT may be asked and used for them.
    pub nat: NatOptions,
    /// Where it is paid and pays; `None`: everything is free.
    pub money: Option<Money>,
    /// Deposit in each relay's channel.
    pub relay_deposit: Amount,
    /// The most that a relay may ask per GiB.
    pub relay_price_max: u128,
    /// Its ledger.
    pub ledger: Ledger,
    /// What it won in auctions and serves; `None`: it serves holders of tickets alone.
    pub leases: Option<Leases>,
    /// Who is told what happens.
    pub report: Reporter,
}

#[derive(Debug)]
struct Live {
    peer: PeerId,
    session: Session,
    account: Account,
    /// Whether a direct path may be used.
    direct: bool,
}

struct Shared {
    host: Host,
    services: Arc<Services>,
    direct: DirectPolicy,
    report: Reporter,
    clock: Clock,
    live: Mutex<Vec<Arc<Live>>>,
    accounts: Mutex<Accounts>,
    unpaid_max: AtomicU64,
    /// The relays at which it can be reached.
    named: watch::Sender<Vec<RelayAddr>>,
}

/// A running provider.
pub struct Provide {
    node: Node,
    ticket: String,
    shared: Arc<Shared>,
    warm: Arc<WarmRelays>,
    relay_gas: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Provide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Provide({})", self.node.id())
    }
}

impl Provide {
    /// Starts, and returns once the first relay gave a reservation.
    ///
    /// # Errors
    /// When the socket cannot be bound, or no relay gives a reservation.
    pub async fn start(options: ProvideOptions) -> Result<Self> {
        ensure!(
            !options.relays.is_empty() || options.mesh.is_some(),
            "no relay: name one with --relay <peer id>@<ip:port>, or a mesh with --bootstrap"
        );
        ensure!(
            options.services.names().next().is_some(),
            "nothing to serve: declare a service with --expose web=tcp:127.0.0.1:8080"
        );
        ensure!(
            options.price.is_zero() || options.money.is_some(),
            "a price needs a chain to be paid on: set [chain] in sluice.toml"
        );
        let identity = &options.identity;
        let noise = NoiseKeys::from_secret(identity.noise).context("the Noise key is not valid")?;
        let clock = Clock::default();
        let ticket_key = noise.public();
        let node = Node::bind(NodeConfig {
            key: identity.node.clone(),
            noise,
            bind: options.bind,
            reset_key: identity.reset,
            incarnation: identity.incarnation,
            accept: AcceptPolicy::Invited(identity.invites),
            idle_timeout: options.idle_timeout,
            clock: clock.clone(),
            network: Network::Kernel,
            random: Random::default(),
        })?;
        node.set_nat_options(options.direct.nat_options(options.nat));
        let shared = Arc::new(Shared {
            host: Host {
                key: identity.node.clone(),
                ledger: options.ledger.clone(),
                money: options.money.clone(),
                price: options.price,
                rate_max: options.rate_max,
                starter_bytes: options.starter_bytes,
                idle_timeout: options.idle_timeout,
                lease_for: LEASE,
                services: options.services.names().cloned().collect(),
                starts: Starts::default(),
                recovery: identity.recovery.clone(),
                leases: options.leases.clone(),
            },
            services: Arc::new(options.services.clone()),
            direct: options.direct,
            report: options.report.clone(),
            clock: clock.clone(),
            live: Mutex::default(),
            accounts: Mutex::default(),
            unpaid_max: AtomicU64::new(0),
            named: watch::Sender::new(options.relays.clone()),
        });
        let tickets = Tickets::new(&options, &clock, ticket_key);
        let relay_gas = Arc::<AtomicU64>::default();
        let holder = holder(&options, &shared, relay_gas.clone());
        let mut provide = Self {
            ticket: tickets.naming(&options.relays),
            warm: Arc::new(WarmRelays::new(node.clone(), holder)),
            node,
            shared,
            relay_gas,
            tasks: JoinSet::new(),
        };
        provide.reserve(&options).await?;
        if options.relays.is_empty() {
            provide.ticket = tickets.naming(&provide.warm.preferred());
        }
        provide.tasks.spawn(tell_reachable(provide.shared.clone(), tickets));
        if let Some(mesh) = options.mesh.clone() {
            let named = provide.shared.named.subscribe();
            let services = options.services.names().map(|name| (name.clone(), ServiceKind::Tcp));
            let entry = ProviderEntry {
                services: services.collect(),
                price: options.price,
                ..ProviderEntry::default()
            };
            provide.tasks.spawn(publish(mesh, entry, named));
        }
        let (node, shared) = (provide.node.clone(), provide.shared.clone());
        provide.tasks.spawn(async move {
            while let Some(session) = node.accept().await {
                tokio::spawn(serve_session(shared.clone(), session));
            }
        });
        Ok(provide)
    }

    /// Asks all relays for reservations, or has some chosen, and waits for the first.
    async fn reserve(&mut self, options: &ProvideOptions) -> Result<()> {
        for relay in &options.relays {
            self.warm.open(*relay);
        }
        let mut all = self.warm.standings();
        let named = self.shared.named.clone();
        self.tasks.spawn(advertise(self.warm.standings(), named, self.shared.clock.clone()));
        let mut patience = FIRST_RELAY;
        if let Some(mesh) = options.mesh.clone().filter(|_| options.relays.is_empty()) {
            let chooser = Chooser::new(mesh, self.warm.clone(), options, self.shared.clock.clone());
            self.tasks.spawn(chooser.run());
            patience = FIRST_CHOICE;
        }
        let is_reserved = |all: &Vec<Stand>| all.iter().any(|s| s.standing == Standing::Reserved);
        match self.shared.clock.timeout(patience, all.wait_for(is_reserved)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let states = self.warm.states();
                let states: Vec<_> = states
                    .iter()
                    .map(|(relay, state)| format!("{}: {state:?}", relay.addr))
                    .collect();
                let known = options.mesh.as_ref().map_or(0, |mesh| mesh.relays().len());
                ensure!(
                    !options.relays.is_empty() || !states.is_empty(),
                    "no relay was chosen within {} s: the mesh told of {known} ({})",
                    patience.as_secs(),
                    match known {
                        0 => "is a --bootstrap address reached, and does it know a relay?",
                        _ => "`sluice relays --explain` says why each is not chosen",
                    }
                );
                bail!(
                    "no relay gave a reservation within {} s ({}); check the address, the peer id, and that UDP gets through",
                    patience.as_secs(),
                    states.join("; ")
                )
            }
        }
    }

    /// What a tenant needs to connect.
    #[must_use]
    pub fn ticket(&self) -> &str {
        &self.ticket
    }

    /// The relays at which it can be reached, best first, now and later.
    #[must_use]
    pub fn named(&self) -> watch::Receiver<Vec<RelayAddr>> {
        self.shared.named.subscribe()
    }

    /// The node's name.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.node.id()
    }

    /// The accounts of the sessions that are open.
    #[must_use]
    pub fn accounts(&self) -> Vec<(PeerId, Snapshot)> {
        self.shared.live.lock().iter().map(|l| (l.peer, l.account.snapshot())).collect()
    }

    /// Whether all open sessions go directly.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.shared.live.lock().iter().all(|l| !l.session.is_relayed())
    }

    /// The most that was ever unpaid in one lease of this run, in flight included.
    #[must_use]
    pub fn unpaid_max(&self) -> u64 {
        let live = self.accounts().into_iter().map(|(_, s)| s.unpaid_max).max().unwrap_or(0);
        self.shared.unpaid_max.load(Relaxed).max(live)
    }

    /// Gas that opening channels to relays took.
    #[must_use]
    pub fn relay_gas(&self) -> u64 {
        self.relay_gas.load(Relaxed)
    }

    /// Claims what is open from tenants, and waits for their vouchers.
    pub async fn settle_tenants(&self) {
        let live: Vec<_> = self.shared.live.lock().clone();
        for live in live {
            live.account.settle().await;
        }
    }

    /// Pays what relays claim.
    pub async fn settle_relays(&self) {
        self.warm.settle().await;
    }

    /// Settles, then ends all sessions.
    pub async fn stop(mut self) {
        self.settle_tenants().await;
        for live in self.shared.live.lock().iter() {
            live.session.close(code::SHUTDOWN, "the provider is shutting down");
        }
        // Their flows end, and the relays claim what is left.
        self.settle_relays().await;
        // Nobody need hear that they are not connected any more.
        self.warm.release();
        self.node.shutdown().await;
        self.tasks.shutdown().await;
    }
}

/// What each reservation's task needs of the provider.
fn holder(options: &ProvideOptions, shared: &Arc<Shared>, gas: Arc<AtomicU64>) -> Holder {
    let shared = shared.clone();
    Holder {
        key: options.identity.node.clone(),
        ledger: options.ledger.clone(),
        money: options.money.clone(),
        deposit: options.relay_deposit,
        price_max: options.relay_price_max,
        report: options.report.clone(),
        clock: shared.clock.clone(),
        wake: Arc::new(move || {
            for live in shared.live.lock().iter() {
                live.account.wake();
            }
        }),
        gas,
        recovery: options.identity.recovery.clone(),
    }
}

/// Issues this provider's tickets.
struct Tickets {
    key: Keypair,
    ticket: Ticket,
}

impl Tickets {
    fn new(options: &ProvideOptions, clock: &Clock, noise_key: [u8; 32]) -> Self {
        let expires = match options.ticket_for.as_secs() {
            0 => 0,
            span => clock.unix_time().as_secs().saturating_add(span),
        };
        let ticket = Ticket {
            peer: options.identity.peer(),
            noise_key,
            relays: Vec::new(),
            invite: Invite::issue(&options.identity.invites, expires),
            expires_unix_s: expires,
            services: options.services.names().cloned().collect(),
        };
        Self { key: options.identity.node.clone(), ticket }
    }

    fn naming(&self, relays: &[RelayAddr]) -> String {
        Ticket { relays: relays.to_vec(), ..self.ticket.clone() }.encode(&self.key)
    }
}

async fn serve_session(shared: Arc<Shared>, session: Session) {
    let peer = session.peer();
    let kept = |lease| shared.accounts.lock().newest(lease);
    let agreed = match shared.host.welcome(&session, shared.clock.unix_time(), kept).await {
        Ok(agreed) => agreed,
        Err(error) => {
            if let Some(lie) = error.downcast_ref::<Lie>() {
                shared.report.tell(&Report::Lie { peer, what: lie.to_string() });
            }
            // Whoever parts in peace before there were terms has measured how far this is.
            let reason = session.connection().close_reason();
            if matches!(reason, Some(quinn::ConnectionError::ApplicationClosed(c)) if c.error_code == code::OK.into())
            {
                return;
            }
            let reason = format!("no terms: {error:#}");
            shared.report.tell(&Report::SessionEnded { peer, reason });
            return;
        }
    };
    // What was on its way when a session broke is at most a window.
    shared.report.tell_resumed(peer, &agreed.resumed, agreed.terms.window);
    shared.report.tell(&Report::Session { peer });
    let Some(account) = open_account(&shared, &session, &agreed) else {
        session.close(code::PROTOCOL, "another session of this lease began");
        return;
    };
    // The tenant goes on here: what is left of its earlier session is over, on whatever lease.
    for old in shared.live.lock().iter().filter(|l| l.peer == peer) {
        old.session.close(code::RESTARTED, "the tenant goes on in another session");
    }
    let direct = shared.direct != DirectPolicy::Never && agreed.may_be_direct();
    let live = Live { peer, session: session.clone(), account: account.clone(), direct };
    let live = Arc::new(live);
    shared.live.lock().push(live.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_path(shared.clone(), live.clone()));
    tasks.spawn(tell_warm(session.clone(), shared.report.clone()));
    let earned_max = agreed.earned_max();
    tasks.spawn(follow_control(shared.clone(), live.clone(), agreed.control));
    if agreed.award.is_some() {
        let ends = Duration::from_secs(agreed.terms.expires_unix_s);
        tasks.spawn(end_with_lease(shared.clone(), live.clone(), ends));
    }
    if let (Some(channel), Some(money)) = (agreed.channel, shared.host.money.clone()) {
        let served = Served {
            session: session.clone(),
            account: account.clone(),
            terms: agreed.terms.clone(),
            channel: channel.id,
            earned_max,
            money,
            ledger: shared.host.ledger.clone(),
            clock: shared.clock.clone(),
        };
        tasks.spawn(served.follow_channel());
    }
    let connection = session.connection().clone();
    let services = Arc::new(shared.services.only(&agreed.services));
    let ended = serve(connection, services, account.clone()).await;
    let reason = ended.to_string();
    tasks.shutdown().await;
    let snapshot = account.snapshot();
    shared.unpaid_max.fetch_max(snapshot.unpaid_max, Relaxed);
    shared.live.lock().retain(|l| !Arc::ptr_eq(l, &live));
    shared.report.tell(&account_report(peer, &snapshot));
    shared.report.tell(&Report::SessionEnded { peer, reason });
}

fn account_report(peer: PeerId, snapshot: &Snapshot) -> Report {
    let Snapshot { paid, amount, .. } = snapshot;
    Report::Account { peer, up: paid.up, down: paid.down, amount: amount.0 }
}

/// `None`: another session of the lease began at the same moment.
fn open_account(shared: &Arc<Shared>, session: &Session, agreed: &Agreed) -> Option<Account> {
    let (persist, kept) = mpsc::unbounded_channel();
    let (lies, told) = mpsc::unbounded_channel();
    let (exhausted, _) = mpsc::unbounded_channel();
    let ledger = shared.host.ledger.clone();
    tokio::spawn(keep_vouchers(ledger, sluice_ledger::Role::Payee, kept));
    tokio::spawn(tell_lies(shared.report.clone(), session.peer(), told));
    let reported = AtomicU64::new(0);
    let conn = session.clone();
    let delivered = Box::new(move |total: u64| {
        if total - reported.load(Relaxed) >= DELIVERED_STEP {
            reported.store(total, Relaxed);
            conn.set_delivered(total);
        }
    });
    let options = AccountOptions {
        persist,
        lies,
        exhausted,
        delivered: Some(delivered),
        clock: shared.clock.clone(),
    };
    let connection = session.connection().clone();
    let mut accounts = shared.accounts.lock();
    let (lease, peer, wallet) = (agreed.terms.lease, session.peer(), agreed.wallet);
    // An account outlives its sessions: a tenant that comes back gets no second window for nothing.
    let account = match accounts.get(lease) {
        Some(before) => {
            let presented = agreed
                .resumed
                .newest
                .clone()
                .filter(|newest| newest.exceeds(before.newest().as_ref()));
            before.next_session(agreed.session, presented, connection.clone(), options)
        }
        None => {
            let newest = agreed.resumed.newest.clone();
            let payee = Payee::new(agreed.terms.clone(), agreed.channel, agreed.session, newest)
                .after_losses(accounts.losses(lease, peer, wallet));
            Some(Account::payee(payee, connection, options))
        }
    };
    let account = account?;
    // It may have begun without a channel, or hold more by now than in the session before.
    if let Some(channel) = agreed.channel {
        account.set_channel(channel);
    }
    let is_live = |account: &Account| shared.live.lock().iter().any(|l| l.account.is(account));
    accounts.keep(lease, Kept { account: account.clone(), peer, wallet }, is_live);
    Some(account)
}

/// Tells of each change of the relays that lead here, with a ticket that names them.
async fn tell_reachable(shared: Arc<Shared>, tickets: Tickets) {
    let mut named = shared.named.subscribe();
    while named.changed().await.is_ok() {
        let relays = named.borrow_and_update().clone();
        let ticket = tickets.naming(&relays);
        let relays = relays.iter().map(ToString::to_string).collect();
        shared.report.tell(&Report::Reachable { ticket, relays });
    }
}

/// Keeps the provider's record in step with the relays that lead here.
async fn publish(mesh: Meshed, entry: ProviderEntry, mut named: watch::Receiver<Vec<RelayAddr>>) {
    loop {
        let relays = named.borrow_and_update().clone();
        let entry = ProviderEntry { relays, ..entry.clone() };
        if let Err(error) = mesh.publish(Some(entry), None).await {
            tracing::warn!(%error, "the record is not published");
        }
        if named.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps gate and receive window in step with the path, and tells of changes.
async fn follow_path(shared: Arc<Shared>, live: Arc<Live>) {
    let mut path = live.session.path();
    loop {
        let info = *path.borrow_and_update();
        live.account.set_relay(live.session.relay_flow());
        if let Some(path) = info {
            shared.report.tell(&Report::Path { peer: live.peer, path });
            if path.relay.is_none() {
                live.session.set_delivered(0);
            }
        }
        if path.changed().await.is_err() {
            return;
        }
    }
}

/// Ends a session once the time of its lease, Unix time, is over: what was given is still paid.
async fn end_with_lease(shared: Arc<Shared>, live: Arc<Live>, ends: Duration) {
    // In steps, since the clock may be set meanwhile.
    while let Some(left) = ends.checked_sub(shared.clock.unix_time()).filter(|d| !d.is_zero()) {
        shared.clock.sleep(left.min(LEASE_LOOK)).await;
    }
    live.account.channel_ends();
    live.account.settle().await;
    live.session.close(code::NOT_INVITED, "the time of the lease is over");
}

/// Tells where this node may be reached, and takes what the tenant tells.
async fn follow_control(
    shared: Arc<Shared>,
    live: Arc<Live>,
    mut control: super::control::Control,
) {
    let direct = live.direct;
    live.session.set_direct_allowed(direct);
    let mut named = shared.named.subscribe();
    let mut addresses = live.session.address_changes();
    named.mark_changed();
    if direct {
        addresses.mark_changed();
    }
    loop {
        let kind = tokio::select! {
            biased;
            _ = named.changed() => {
                let relays = encode_relays(&named.borrow_and_update());
                if control.send(Kind::Relays(Relays { relays })).await.is_err() {
                    return;
                }
                continue;
            }
            _ = addresses.changed(), if direct => {
                let candidates = live.session.local_candidates();
                if control.send(Kind::Candidates(candidates)).await.is_err() {
                    return;
                }
                continue;
            }
            kind = control.next() => kind,
        };
        let Ok(kind) = kind else { return };
        match kind {
            Kind::Candidates(list) if direct => {
                live.session.add_candidates(&list);
            }
            Kind::Candidates(_) | Kind::Direct(_) | Kind::Relays(_) => {}
            // The tenant is about to leave: it pays what is claimed first, and goes when it hears so.
            Kind::Goodbye(_) => {
                live.account.settle().await;
                if control.send(Kind::Goodbye(Goodbye::default())).await.is_err() {
                    return;
                }
            }
            Kind::Hello(_)
            | Kind::Offer(_)
            | Kind::Accept(_)
            | Kind::Ready(_)
            | Kind::Refusal(_) => return,
        }
    }
}
