//! The tenant: a provider's services on local ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use sluice_ledger::{Ledger, Role};
use sluice_metering::{Lie, Payer};
use sluice_proto::market::Lease;
use sluice_proto::wire::code;
use sluice_proto::wire::session::{Goodbye, session::Kind};
use sluice_proto::{
    Amount, ChannelId, PeerId, Price, RelayAddr, ServiceName, Ticket, decode_relays,
};
use sluice_transport::{
    AcceptPolicy, Clock, NatOptions, Network, Node, NodeConfig, NoiseKeys, PathBytes, Random,
    RelayLink, Session,
};
use sluice_tunnel::{Account, AccountOptions, Link, Snapshot, listen};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::channel::Money;
use super::control::Control;
use super::edge::{Agreed, Guest, Superseded};
use super::identity::Identity;
use super::reach::reach;
use super::report::{Report, Reporter};
use super::vouchers::{keep_vouchers, tell_lies};
use crate::config::DirectPolicy;
use crate::settle::{Deposits, Growth};

/// The provider has so long to answer a goodbye: it claims what is open first.
const GOODBYE: Duration = Duration::from_secs(5);
/// Relays that are kept in hand.
const RELAYS_MAX: usize = 12;
/// How often a session that may be shut out looks at its relays.
const LOOK: Duration = Duration::from_secs(1);
/// Waits between attempts to get a lost session back.
const BACKOFF: [u64; 6] = [0, 200, 500, 1000, 2000, 5000];

/// What a tenant is told.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Its keys.
    pub identity: Identity,
    /// Local address of the data socket.
    pub bind: SocketAddr,
    /// The provider.
    pub ticket: Ticket,
    /// What both signed, if this is not by the ticket alone: other terms are refused.
    pub lease: Option<Arc<Lease>>,
    /// Local ports and the services that they lead to; port 0 takes a free one.
    pub map: Vec<(SocketAddr, ServiceName)>,
    /// When direct paths may be used.
    pub direct: DirectPolicy,
    /// How much the NAT may be asked and used for them.
    pub nat: NatOptions,
    /// Stay on the relay until told otherwise.
    pub hold_relayed: bool,
    /// What it pays with; `None`: only free services.
    pub money: Option<Money>,
    /// Deposit for a new channel.
    pub deposit: Amount,
    /// The most to pay per GiB.
    pub price_max: Price,
    /// A session without traffic ends after this.
    pub idle_timeout: Duration,
    /// Its ledger.
    pub ledger: Ledger,
    /// Who is told what happens.
    pub report: Reporter,
}

/// A session that stands.
#[derive(Debug)]
struct Live {
    session: Session,
    account: Account,
    wishes: watch::Sender<Wishes>,
    parted: watch::Receiver<bool>,
    window: u64,
    open_gas: u64,
}

/// What the session's control stream is to say.
#[derive(Debug, Clone, Copy)]
struct Wishes {
    /// The direct path may be used.
    direct: bool,
    /// This side is about to end the session.
    leave: bool,
}

impl Live {
    /// Lets the provider claim what is open, pays it, and ends the session.
    async fn part(&self) {
        self.wishes.send_modify(|wishes| wishes.leave = true);
        let mut parted = self.parted.clone();
        let _ = tokio::time::timeout(GOODBYE, parted.wait_for(|parted| *parted)).await;
        self.account.settle().await;
        self.session.close(code::OK, "goodbye");
    }
}

/// A running tenant.
pub struct Connect {
    node: Node,
    provider: PeerId,
    local: Vec<(SocketAddr, ServiceName)>,
    live: watch::Receiver<Option<Arc<Live>>>,
    stopping: watch::Sender<bool>,
    listeners: JoinSet<()>,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connect({})", self.provider)
    }
}

struct Tenant {
    node: Node,
    /// To the relays that the ticket or the provider named, the newest word first.
    links: Arc<Mutex<Vec<RelayLink>>>,
    guest: Guest,
    options: ConnectOptions,
    clock: Clock,
}

impl Connect {
    /// Opens the local ports and the first session.
    ///
    /// # Errors
    /// When a port is in use, the provider cannot be reached, or its terms are not acceptable.
    pub async fn start(options: ConnectOptions) -> Result<Self> {
        ensure!(
            !options.map.is_empty(),
            "no local port: map one with --map 127.0.0.1:9000={}",
            options.ticket.services.first().map_or("web", ServiceName::as_str)
        );
        let mut listeners = Vec::new();
        for (addr, service) in &options.map {
            let listener = TcpListener::bind(addr).await.with_context(|| {
                format!("failed to listen on {addr}: choose another local port with --map")
            })?;
            listeners.push((listener, service.clone()));
        }
        let local = listeners
            .iter()
            .map(|(l, s)| Ok((l.local_addr()?, s.clone())))
            .collect::<Result<Vec<_>>>()?;
        let tenant = Tenant::new(options)?;
        let live = tenant.open().await?;
        check_services(&live.1, &local)?;
        let node = tenant.node.clone();
        let provider = tenant.options.ticket.peer;
        let price = live.1.terms.price;
        let report = tenant.options.report.clone();
        let (current, live_now) = watch::channel(None);
        let (links, link_now) = watch::channel(None);
        let (stopping, asked) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(tenant.keep(live, current, links, asked));
        let mut listening = JoinSet::new();
        for (listener, service) in listeners {
            listening.spawn(listen(listener, service, node.clock().clone(), link_now.clone()));
        }
        let map = local.iter().map(|(a, s)| format!("{a}={s}")).collect();
        let mut ready = live_now.clone();
        ready.wait_for(Option::is_some).await.context("the session ended at once")?;
        report.tell(&Report::TenantReady { map, price: (price.up, price.down) });
        let (live, listeners) = (live_now, listening);
        Ok(Self { node, provider, local, live, stopping, listeners, tasks })
    }

    /// The local ports, as bound.
    #[must_use]
    pub fn local(&self) -> &[(SocketAddr, ServiceName)] {
        &self.local
    }

    /// The account of the session that stands.
    #[must_use]
    pub fn account(&self) -> Option<Snapshot> {
        self.live.borrow().as_ref().map(|l| l.account.snapshot())
    }

    /// Packet bytes of the session that stands.
    #[must_use]
    pub fn path_bytes(&self) -> Option<PathBytes> {
        self.live.borrow().as_ref().map(|l| l.session.path_bytes())
    }

    /// Whether a relay carries the session now.
    #[must_use]
    pub fn is_relayed(&self) -> Option<bool> {
        self.live.borrow().as_ref().map(|l| l.session.is_relayed())
    }

    /// The window of the terms, in bytes.
    #[must_use]
    pub fn window(&self) -> Option<u64> {
        self.live.borrow().as_ref().map(|l| l.window)
    }

    /// Gas that opening the channel took.
    #[must_use]
    pub fn open_gas(&self) -> Option<u64> {
        self.live.borrow().as_ref().map(|l| l.open_gas)
    }

    /// Allows the direct path from now on, or goes back to the relay.
    pub fn allow_direct(&self, allowed: bool) {
        if let Some(live) = &*self.live.borrow() {
            live.wishes.send_modify(|wishes| wishes.direct = allowed);
        }
    }

    /// Pays for all that was delivered; true: the provider acknowledged it.
    pub async fn settle(&self) -> bool {
        let live = self.live.borrow().clone();
        match live {
            Some(live) => live.account.settle().await,
            None => true,
        }
    }

    /// Closes the local connections, settles, then ends the session.
    pub async fn stop(mut self) {
        // Nothing more is read, so that what is settled is all.
        self.listeners.shutdown().await;
        self.stopping.send_replace(true);
        // Its task ends once the session did, and with it the sender.
        while self.live.changed().await.is_ok() {}
        self.tasks.shutdown().await;
        self.node.shutdown().await;
    }
}

fn check_services(agreed: &Agreed, local: &[(SocketAddr, ServiceName)]) -> Result<()> {
    for (_, service) in local {
        let offered: Vec<_> = agreed.services.iter().map(ServiceName::as_str).collect();
        ensure!(
            agreed.services.contains(service),
            "the provider has no service {service}; it offers {}",
            offered.join(", ")
        );
    }
    Ok(())
}

impl Tenant {
    fn new(options: ConnectOptions) -> Result<Self> {
        let identity = &options.identity;
        let clock = Clock::default();
        let node = Node::bind(NodeConfig {
            key: identity.node.clone(),
            noise: NoiseKeys::from_secret(identity.noise).context("the Noise key is not valid")?,
            bind: options.bind,
            reset_key: identity.reset,
            incarnation: identity.incarnation,
            accept: AcceptPolicy::Nobody,
            idle_timeout: options.idle_timeout,
            clock: clock.clone(),
            network: Network::Kernel,
            random: Random::default(),
        })?;
        node.set_nat_options(options.direct.nat_options(options.nat));
        let links = options.ticket.relays.iter().map(|r| node.link(*r, None)).collect();
        let links = Arc::new(Mutex::new(links));
        let guest = Guest {
            key: identity.node.clone(),
            ledger: options.ledger.clone(),
            money: options.money.clone(),
            deposit: options.deposit,
            price_max: options.price_max,
            lease: options.lease.clone(),
            start: identity.incarnation,
            anew: Arc::default(),
            recovery: identity.recovery.clone(),
        };
        Ok(Self { node, links, guest, options, clock })
    }

    /// Opens a session through whichever relay leads to the provider first, and comes to terms.
    async fn open(&self) -> Result<(Session, Agreed)> {
        let links = self.links.lock().clone();
        let session = reach(&self.node, &self.options.ticket, links).await?;
        let now = self.clock.unix_time().as_secs();
        match self.guest.agree(&session, now).await {
            Ok(agreed) => {
                let report = &self.options.report;
                report.tell_resumed(session.peer(), &agreed.resumed, 0);
                Ok((session, agreed))
            }
            Err(error) => {
                session.close(code::OK, "no terms");
                if let Some(lie) = error.downcast_ref::<Lie>() {
                    let (peer, what) = (session.peer(), lie.to_string());
                    self.options.report.tell(&Report::Lie { peer, what });
                }
                Err(error)
            }
        }
    }

    /// Keeps a session open: when one is lost, its connections are reset and another is made.
    async fn keep(
        self,
        mut opened: (Session, Agreed),
        current: watch::Sender<Option<Arc<Live>>>,
        links: watch::Sender<Option<Link>>,
        mut stopping: watch::Receiver<bool>,
    ) {
        loop {
            let (session, agreed) = opened;
            let peer = session.peer();
            let mut tasks = JoinSet::new();
            let live = self.begin(&session, agreed, &mut tasks);
            current.send_replace(Some(live.clone()));
            let (connection, account) = (session.connection().clone(), live.account.clone());
            links.send_replace(Some(Link { connection, account }));
            self.options.report.tell(&Report::Session { peer });
            let reason = tokio::select! {
                reason = session.connection().closed() => reason.to_string(),
                () = self.shut_out(&session) => {
                    session.close(code::SUPERSEDED, "another process stands");
                    "another process with the same keys started later".to_owned()
                }
                () = asked(&mut stopping) => {
                    live.part().await;
                    "stopped".to_owned()
                }
            };
            current.send_replace(None);
            links.send_replace(None);
            tasks.shutdown().await;
            let s = live.account.snapshot();
            let (paid, amount) = (s.paid, s.amount.0);
            let report = &self.options.report;
            report.tell(&Report::Account { peer, up: paid.up, down: paid.down, amount });
            report.tell(&Report::SessionEnded { peer, reason });
            opened = tokio::select! {
                opened = self.reopen() => opened,
                () = asked(&mut stopping) => return,
            };
        }
    }

    /// Waits until no relay leads anywhere for this process, since another one with its keys stands:
    /// the session would learn of it from nobody.
    async fn shut_out(&self, session: &Session) {
        loop {
            self.clock.sleep(LOOK).await;
            let links = self.links.lock();
            let is_out = links.iter().any(RelayLink::is_superseded);
            if is_out && session.is_relayed() && !links.iter().any(RelayLink::is_up) {
                return;
            }
        }
    }

    async fn reopen(&self) -> (Session, Agreed) {
        let (mut attempt, mut superseded) = (0, false);
        loop {
            let wait = BACKOFF[attempt.min(BACKOFF.len() - 1)];
            self.clock.sleep(Duration::from_millis(wait)).await;
            match self.open().await {
                Ok(opened) => return opened,
                Err(error) => {
                    tracing::warn!("no session yet: {error:#}");
                    let now = error.downcast_ref::<Superseded>();
                    if let Some(Superseded { by }) = now.filter(|_| !superseded) {
                        self.options.report.tell(&Report::Superseded { by: *by });
                    }
                    superseded = now.is_some();
                }
            }
            attempt += 1;
        }
    }

    fn begin(&self, session: &Session, agreed: Agreed, tasks: &mut JoinSet<()>) -> Arc<Live> {
        let (persist, kept) = mpsc::unbounded_channel();
        let (lies, told) = mpsc::unbounded_channel();
        let (exhausted, used_up) = mpsc::unbounded_channel();
        tokio::spawn(keep_vouchers(self.options.ledger.clone(), Role::Payer, kept));
        tokio::spawn(tell_lies(self.options.report.clone(), session.peer(), told));
        let deposits = self.options.money.as_ref().map(|money| money.deposits.clone());
        let deposits = deposits.unwrap_or_default();
        let channel = agreed.purse.as_ref().map(|purse| purse.channel.id);
        tasks.spawn(tell_exhausted(used_up, channel, deposits.clone()));
        let clock = self.clock.clone();
        let options = AccountOptions { persist, lies, exhausted, delivered: None, clock };
        let payer = Payer::new(
            agreed.terms.clone(),
            agreed.purse.clone(),
            agreed.session,
            agreed.resumed.newest.as_ref(),
        );
        let account = Account::payer(payer, session.connection().clone(), options);
        if let Some(channel) = channel {
            tasks.spawn(follow_deposit(deposits.listen(), channel, account.clone()));
        }
        let may = self.options.direct != DirectPolicy::Never && !self.options.hold_relayed;
        let (wishes, wished) = watch::channel(Wishes { direct: may, leave: false });
        let (heard, parted) = watch::channel(false);
        let relays = Relays { node: self.node.clone(), links: self.links.clone() };
        tasks.spawn(follow_control(session.clone(), agreed.control, wished, heard, relays));
        tasks.spawn(tell_paths(session.clone(), self.options.report.clone()));
        tasks.spawn(tell_warm(session.clone(), self.options.report.clone()));
        Arc::new(Live {
            session: session.clone(),
            account,
            wishes,
            parted,
            window: agreed.terms.window,
            open_gas: agreed.open_gas,
        })
    }
}

/// Waits until the role is asked to stop, or dropped.
async fn asked(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The relays through which a tenant may come back.
struct Relays {
    node: Node,
    links: Arc<Mutex<Vec<RelayLink>>>,
}

impl Relays {
    /// Takes the provider's word on where it can be reached; the ticket's relays stay in hand.
    fn follow(&self, session: &Session, named: &[RelayAddr]) {
        session.set_relays(named.to_vec());
        let mut links = self.links.lock();
        let before = std::mem::take(&mut *links);
        let newest = named.iter().map(|relay| self.node.link(*relay, None));
        for link in newest.chain(before).collect::<Vec<_>>() {
            let known = links.iter().any(|l| l.relay().is_same(&link.relay()));
            if !known && links.len() < RELAYS_MAX {
                links.push(link);
            }
        }
    }
}

/// Exchanges addresses with the provider as the policy allows, and says goodbye at the end.
async fn follow_control(
    session: Session,
    mut control: Control,
    mut wished: watch::Receiver<Wishes>,
    parted: watch::Sender<bool>,
    relays: Relays,
) {
    let mut addresses = session.address_changes();
    loop {
        let wishes = *wished.borrow_and_update();
        session.set_direct_allowed(wishes.direct);
        let kind = match wishes {
            Wishes { leave: true, .. } => Some(Kind::Goodbye(Goodbye::default())),
            Wishes { direct: true, .. } => Some(Kind::Candidates(session.local_candidates())),
            Wishes { .. } => None,
        };
        if let Some(kind) = kind
            && control.send(kind).await.is_err()
        {
            return;
        }
        loop {
            tokio::select! {
                biased;
                changed = wished.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                // They are told again.
                _ = addresses.changed() => break,
                kind = control.next() => match kind {
                    Ok(Kind::Candidates(list)) => session.add_candidates(&list),
                    Ok(Kind::Relays(list)) => relays.follow(&session, &decode_relays(&list.relays)),
                    Ok(Kind::Goodbye(_)) => {
                        parted.send_replace(true);
                    }
                    Ok(
                        Kind::Direct(_)
                        | Kind::Hello(_)
                        | Kind::Offer(_)
                        | Kind::Accept(_)
                        | Kind::Ready(_)
                        | Kind::Refusal(_),
                    ) => {}
                    Err(_) => return,
                }
            }
        }
    }
}

async fn tell_paths(session: Session, report: Reporter) {
    let mut path = session.path();
    loop {
        let info = *path.borrow_and_update();
        if let Some(path) = info {
            report.tell(&Report::Path { peer: session.peer(), path });
        }
        if path.changed().await.is_err() {
            return;
        }
    }
}

/// Tells which relays are ready, whenever that changes.
pub(crate) async fn tell_warm(session: Session, report: Reporter) {
    let mut warm = session.warm_relays();
    while warm.changed().await.is_ok() {
        let relays = warm.borrow_and_update().iter().map(ToString::to_string).collect();
        report.tell(&Report::Warm { peer: session.peer(), relays });
    }
}

/// Tells the account when its channel was topped up.
async fn follow_deposit(mut growth: Growth, channel: ChannelId, account: Account) {
    loop {
        let (grown, deposit) = growth.next().await;
        if grown == channel {
            account.set_deposit(deposit);
        }
    }
}

async fn tell_exhausted(
    mut used_up: mpsc::UnboundedReceiver<(Amount, Amount)>,
    channel: Option<ChannelId>,
    deposits: Deposits,
) {
    while let Some((due, deposit)) = used_up.recv().await {
        if let Some(channel) = channel {
            deposits.want(channel, due);
        }
        tracing::warn!(
            "the deposit of {deposit} is used up ({due} is due): nothing more is paid until the \
             channel is topped up"
        );
    }
}
