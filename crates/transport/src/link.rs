//! The control connection to one relay, kept up.

mod beat;
mod loopback;
mod serve;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_proto::frame;
use sluice_proto::wire::control::{self, control::Kind};
use sluice_proto::wire::{self, code, pay};
use sluice_proto::{FlowId, PeerId, RelayAddr, RelayBudget, RelayFlow, VERSION};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::connection_ids::client_config;
use crate::leg::Leg;
use crate::messages::{MessageReader, send_message};
use crate::node::Inner;
use crate::peer::Command;
use crate::stream::{Carriage, Slot};
use crate::tables::{FlowEntry, to_quinn};
use crate::tls;
use beat::Beat;
use loopback::Loopback;

/// A relay that does not finish its handshake and its welcome by then is not there.
const SETUP: Duration = Duration::from_secs(5);
/// UDP has so long before TCP is tried as well.
const UDP_PATIENCE: Duration = Duration::from_secs(1);
/// What was sent last before a stream is left has so long to go.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Waits between attempts: the first, and the longest; each doubles the last.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Commands that wait for the link's task.
const COMMANDS: usize = 256;

/// What the owner of a link must know or decide.
#[derive(Debug)]
pub enum LinkEvent {
    /// The control connection is up. Its datagrams belong to the owner: pay messages.
    Up {
        /// The connection.
        connection: quinn::Connection,
        /// How the relay sees this node.
        observed: Option<SocketAddr>,
    },
    /// The relay offers a reservation; answer with an acceptance or a refusal.
    Offer {
        /// Its terms.
        offer: Box<control::ReserveOffer>,
        /// The connection that a channel must be bound to.
        connection: quinn::Connection,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<pay::Accept, pay::Refusal>>,
    },
    /// The reservation stands until this unix time, in seconds.
    Reserved(u64),
    /// A flow to this node stands; its frames are counted here.
    FlowOpened {
        /// Its number at this relay.
        flow: FlowId,
        /// Its counts.
        counts: Arc<RelayFlow>,
        /// The static key of whoever knocked.
        initiator: [u8; 32],
    },
    /// More is to be granted on a flow: payload was delivered or sent, or a session came to it. Tell the
    /// relay with [`RelayLink::grant`].
    Grown(FlowId),
    /// A flow is gone.
    FlowClosed(FlowId),
    /// The window of the reservation is used up, or open again.
    Unpaid(bool),
    /// The relay forwards no frames any more though its control connection stands, or does again.
    Forwards(bool),
    /// The relay is going away within this time.
    Draining(Duration),
    /// The relay said no.
    Refused(pay::Refusal),
    /// The control connection is gone; another one will be tried.
    Down(String),
}

/// Where a link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Not up yet, or not any more. Why, if an attempt failed.
    Down(Option<String>),
    /// Up; the number counts the connections that the link has had.
    Up(u64),
    /// Up, and the reservation stands.
    Reserved(u64),
}

impl LinkState {
    /// The number of the connection that is up.
    #[must_use]
    pub const fn generation(&self) -> Option<u64> {
        match self {
            Self::Down(_) => None,
            Self::Up(n) | Self::Reserved(n) => Some(*n),
        }
    }
}

/// Why a knock through a relay came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KnockError {
    #[error("the relay is not connected")]
    Down,
    #[error("the relay refused: {message}")]
    Refused { code: u32, message: String },
}

/// A flow that a knock opened, and where the answer will come.
pub(crate) struct OpenedFlow {
    pub(crate) flow: FlowId,
    pub(crate) leg: Arc<Leg>,
    /// The sealed answer, or the code with which the flow was closed instead.
    pub(crate) answer: oneshot::Receiver<Result<Bytes, u32>>,
    /// Whether the relay handed on the packets that came with the knock.
    pub(crate) passed_on: bool,
}

/// What is said to another node through a relay.
pub(crate) struct KnockMessage {
    pub(crate) to: PeerId,
    pub(crate) sealed: Bytes,
    /// The session's first packets.
    pub(crate) first: Vec<Bytes>,
}

pub(crate) enum LinkCommand {
    Knock {
        message: KnockMessage,
        reply: oneshot::Sender<Result<OpenedFlow, KnockError>>,
    },
    Send(Box<Kind>),
    /// Asks the forwarder for a sign of life now.
    Hurry,
}

/// A handle on the link to one relay. Dropping the last one ends it.
#[derive(Debug, Clone)]
pub struct RelayLink(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) relay: RelayAddr,
    pub(crate) state: watch::Sender<LinkState>,
    commands: mpsc::Sender<LinkCommand>,
    pub(crate) observed: Mutex<Option<SocketAddr>>,
    /// The same over whatever leads to it, without a port.
    pub(crate) seen_at: Mutex<Option<IpAddr>>,
    connection: Mutex<Option<quinn::Connection>>,
    pub(crate) budget: Arc<RelayBudget>,
    /// Told when a session hears nothing through the relay.
    doubt: Arc<Notify>,
    over_tcp: watch::Sender<bool>,
    flow_events: Option<mpsc::Sender<LinkEvent>>,
    forwards: AtomicBool,
    superseded: AtomicBool,
}

impl RelayLink {
    /// The relay.
    #[must_use]
    pub fn relay(&self) -> RelayAddr {
        self.0.relay
    }

    /// Where the link stands, now and later.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.0.state.subscribe()
    }

    /// How the relay sees this node.
    #[must_use]
    pub fn observed(&self) -> Option<SocketAddr> {
        *self.0.observed.lock()
    }

    /// Whether the relay is reached over TCP, since UDP does not work; now and later.
    #[must_use]
    pub fn over_tcp(&self) -> watch::Receiver<bool> {
        self.0.over_tcp.subscribe()
    }

    pub(crate) fn is_over_tcp(&self) -> bool {
        *self.0.over_tcp.borrow()
    }

    /// Frame bytes over this link since it was made, across reconnections, and how many may be.
    /// Unlimited until a meter limits it.
    #[must_use]
    pub fn budget(&self) -> Arc<RelayBudget> {
        self.0.budget.clone()
    }

    pub(crate) fn opened(&self, flow: FlowId, counts: Arc<RelayFlow>, initiator: [u8; 32]) {
        // A full queue means that the owner is stuck; it then pays for what it was told of.
        self.tell(LinkEvent::FlowOpened { flow, counts, initiator });
    }

    pub(crate) fn tell(&self, event: LinkEvent) {
        let Some(events) = &self.0.flow_events else { return };
        // Counts grow, so a later one says the same; they must not keep flows from being told of.
        let repeats = matches!(event, LinkEvent::Grown(_));
        if !repeats || events.capacity() > events.max_capacity() / 2 {
            let _ = events.try_send(event);
        }
    }

    pub(crate) fn closed(&self, flow: FlowId) {
        self.tell(LinkEvent::FlowClosed(flow));
    }

    /// Tells the relay what is granted on a flow, in all: frame bytes that it may bill.
    pub fn grant(&self, flow: FlowId, granted: u64) {
        self.send(Kind::Grant(control::Grant { flow: flow.0, granted }));
    }

    /// Waits until the link is up, or the attempt has failed.
    ///
    /// # Errors
    /// Why the first attempt failed.
    pub async fn ready(&self) -> Result<(), String> {
        let mut state = self.state();
        let seen = state
            .wait_for(|s| !matches!(s, LinkState::Down(None)))
            .await
            .map_err(|_| "the node is shutting down".to_owned())?;
        match &*seen {
            LinkState::Down(Some(reason)) => Err(reason.clone()),
            LinkState::Down(None) | LinkState::Up(_) | LinkState::Reserved(_) => Ok(()),
        }
    }

    /// Whether the control connection stands.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.state.borrow().generation().is_some()
    }

    /// Whether the relay forwards frames, as far as its answers to keepalive frames tell.
    #[must_use]
    pub fn forwards(&self) -> bool {
        self.0.forwards.load(Relaxed)
    }

    /// Whether the relay refuses this process, since another one with the same key started later.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        self.0.superseded.load(Relaxed)
    }

    /// Round-trip time of the control connection.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.0.connection.lock().as_ref().map(quinn::Connection::rtt)
    }

    /// Lets the relay learn a new address of this node, and a dead control connection show.
    pub(crate) fn hurry(&self) {
        let _ = self.0.commands.try_send(LinkCommand::Hurry);
        self.nudge();
    }

    /// Makes a dead control connection show: anything sent to a relay that restarted is answered
    /// with a stateless reset.
    pub(crate) fn nudge(&self) {
        if let Some(connection) = &*self.0.connection.lock() {
            let _ = connection.send_datagram(Bytes::new());
        }
        self.0.doubt.notify_one();
    }

    pub(crate) fn send(&self, kind: Kind) {
        // A full queue means that the link is down or its relay stuck: the message is stale then.
        let _ = self.0.commands.try_send(LinkCommand::Send(Box::new(kind)));
    }

    /// Sends a knock. Knocks arrive in the order in which this was called.
    pub(crate) async fn knock(
        &self,
        message: KnockMessage,
    ) -> Result<oneshot::Receiver<Result<OpenedFlow, KnockError>>, KnockError> {
        let (reply, answer) = oneshot::channel();
        let command = LinkCommand::Knock { message, reply };
        self.0.commands.send(command).await.map_err(|_| KnockError::Down)?;
        Ok(answer)
    }
}

/// Starts a link. `events` is `None` for a tenant, which reserves nothing.
pub(crate) fn start(
    node: Arc<Inner>,
    relay: RelayAddr,
    events: Option<mpsc::Sender<LinkEvent>>,
) -> RelayLink {
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let (state, _) = watch::channel(LinkState::Down(None));
    let shared = Arc::new(Shared {
        relay,
        state,
        commands,
        observed: Mutex::default(),
        seen_at: Mutex::default(),
        connection: Mutex::default(),
        budget: RelayBudget::new(u64::MAX),
        doubt: Arc::default(),
        over_tcp: watch::Sender::new(false),
        flow_events: events.clone(),
        forwards: AtomicBool::new(true),
        superseded: AtomicBool::new(false),
    });
    let link = RelayLink(shared.clone());
    let weak = Arc::downgrade(&shared);
    drop(shared);
    tokio::spawn(run(Task {
        node,
        link: weak,
        relay,
        commands: command_queue,
        events,
        generation: 0,
        next_request: 0,
        opening: BTreeMap::new(),
        answers: BTreeMap::new(),
        kept: Vec::new(),
        slot: Slot::default(),
        streamed: false,
    }));
    link
}

struct Task {
    node: Arc<Inner>,
    link: std::sync::Weak<Shared>,
    relay: RelayAddr,
    commands: mpsc::Receiver<LinkCommand>,
    events: Option<mpsc::Sender<LinkEvent>>,
    generation: u64,
    next_request: u32,
    opening: BTreeMap<u32, oneshot::Sender<Result<OpenedFlow, KnockError>>>,
    answers: BTreeMap<FlowId, oneshot::Sender<Result<Bytes, u32>>>,
    /// Flows of the control connection before, to be told once the reservation stands again.
    kept: Vec<(FlowId, FlowEntry)>,
    /// The stream that leads to the relay, if one does.
    slot: Slot,
    /// A stream led there at last.
    streamed: bool,
}

async fn run(mut task: Task) {
    let mut backoff = BACKOFF_MIN;
    while task.link.strong_count() > 0 {
        task.node.tables.legs.write().entry(task.relay.addr).or_insert(None);
        let reason = match task.connect().await {
            Ok(up) => {
                let began = task.node.clock.now();
                let reason = task.serve(up).await;
                // A relay that refuses at once is not to be pressed.
                if task.node.clock.now() > began + BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                }
                reason
            }
            Err(reason) => reason,
        };
        task.leave_stream();
        task.opening.clear();
        task.answers.clear();
        tracing::debug!(relay = %task.relay, %reason, "relay link down");
        if let Some(shared) = task.link.upgrade() {
            shared.state.send_replace(LinkState::Down(Some(reason.clone())));
            *shared.connection.lock() = None;
        }
        task.node.link_changed();
        task.emit(LinkEvent::Down(reason)).await;
        task.pause(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
    task.node.tables.legs.write().remove(&task.relay.addr);
}

/// A control connection after its welcome.
struct Up {
    connection: quinn::Connection,
    send: quinn::SendStream,
    reader: MessageReader<control::Control>,
    leg: Arc<Leg>,
    /// The owner decides on an offer.
    agreeing: Option<oneshot::Receiver<Agreement>>,
    beat: Beat,
    /// For those who reserve, if the relay offers it.
    loopback: Option<Loopback>,
}

type Agreement = Result<pay::Accept, pay::Refusal>;

/// What the owner decided; `None` if it is gone. Waits for ever if nothing is to be decided.
async fn agreement(agreeing: &mut Option<oneshot::Receiver<Agreement>>) -> Option<Agreement> {
    match agreeing {
        Some(answer) => answer.await.ok(),
        None => std::future::pending().await,
    }
}

impl Task {
    async fn emit(&self, event: LinkEvent) {
        if let Some(events) = &self.events {
            // The owner may be gone; then nobody minds.
            let _ = events.send(event).await;
        }
    }

    /// Waits before the next attempt, with jitter so that clients of a restarted relay do not
    /// come all at once. Commands are refused meanwhile.
    async fn pause(&mut self, span: Duration) {
        let [random] = self.node.random.bytes();
        let until = self.node.clock.now() + span / 2 + span / 2 * u32::from(random) / 255;
        loop {
            tokio::select! {
                biased;
                () = self.node.clock.sleep_until(until) => return,
                command = self.commands.recv() => match command {
                    Some(LinkCommand::Knock { reply, .. }) => {
                        let _ = reply.send(Err(KnockError::Down));
                    }
                    Some(LinkCommand::Send(_)) => {}
                    // The address may be the reason why it is down.
                    Some(LinkCommand::Hurry) => return,
                    None => return,
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<Up, String> {
        let deadline = self.node.clock.now() + SETUP;
        let clock = self.node.clock.clone();
        tokio::select! {
            biased;
            up = self.reach() => up,
            () = clock.sleep_until(deadline) => {
                Err(format!("no answer from {} within {} s", self.relay.addr, SETUP.as_secs()))
            }
        }
    }

    /// Sets up over UDP; if that takes long, or a stream led there at last, over a stream as well:
    /// the first that answers is used.
    async fn reach(&mut self) -> Result<Up, String> {
        if self.relay.tcp.is_none() {
            return self.set_up().await;
        }
        let (node, relay, slot) = (self.node.clone(), self.relay, self.slot.clone());
        let patience = if self.streamed { Duration::ZERO } else { UDP_PATIENCE };
        {
            let mut over_udp = std::pin::pin!(self.set_up());
            let dialled = tokio::select! {
                biased;
                up = &mut over_udp => return up,
                dialled = async {
                    node.clock.sleep(patience).await;
                    Carriage::dial(&node, &relay).await
                } => dialled,
            };
            match dialled {
                Ok(carriage) => *slot.lock() = Some(carriage),
                Err(reason) => {
                    tracing::debug!(%relay, %reason, "the relay's TCP port: in vain");
                    return over_udp.await;
                }
            }
        }
        self.set_up().await
    }

    /// Lets go of the stream, once what was said last is on its way.
    fn leave_stream(&mut self) {
        let carriage = self.slot.lock().take();
        self.streamed = carriage.is_some();
        if let Some(carriage) = carriage {
            let clock = self.node.clock.clone();
            tokio::spawn(async move {
                clock.sleep(LAST_WORDS).await;
                drop(carriage);
            });
        }
    }

    async fn set_up(&mut self) -> Result<Up, String> {
        let node = self.node.clone();
        let crypto = tls::client_config(&node.key, self.relay.peer, sluice_proto::ALPN_RELAY)
            .map_err(|e| e.to_string())?;
        let mut config = client_config(crypto, &node.random);
        config.transport_config(node.control_transport.clone());
        let connection = node
            .endpoint
            .connect_with(config, to_quinn(self.relay.addr), "relay")
            .map_err(|e| e.to_string())?
            .await
            .map_err(|e| format!("the connection to {} failed: {e}", self.relay))?;
        let (mut send, receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
        let hello = Kind::Hello(control::Hello {
            versions: vec![VERSION],
            features: vec![wire::FEATURE_FIRST.to_owned()],
            incarnation: node.incarnation,
        });
        send_message(&mut send, &control::Control { kind: Some(hello) })
            .await
            .map_err(|e| e.to_string())?;
        let mut reader = MessageReader::<control::Control>::new(receive);
        let welcome = match reader.next().await.map_err(|e| e.to_string())?.and_then(|c| c.kind) {
            Some(Kind::Welcome(welcome)) => welcome,
            Some(Kind::Refusal(r)) => {
                if let Some(shared) = self.link.upgrade() {
                    shared.superseded.store(r.code == code::SUPERSEDED, Relaxed);
                }
                return Err(wire::display_text(&r.message));
            }
            _ => return Err("the relay did not begin with a welcome".to_owned()),
        };
        if welcome.version != VERSION {
            return Err(format!("the relay speaks version {}", welcome.version));
        }
        let grants = welcome.features.iter().any(|f| f == wire::FEATURE_GRANTED);
        if self.events.is_some() && !grants {
            return Err("the relay is too old: it bills what its holders did not grant".to_owned());
        }
        Ok(self.become_up(connection, send, reader, &welcome).await)
    }

    async fn become_up(
        &mut self,
        connection: quinn::Connection,
        send: quinn::SendStream,
        reader: MessageReader<control::Control>,
        welcome: &control::Welcome,
    ) -> Up {
        self.generation += 1;
        let exported = tls::export(&connection, frame::EXPORTER_LABEL, &welcome.leg.to_be_bytes());
        let observed = wire::decode_addr(&welcome.observed);
        let own_flow = FlowId(welcome.own_flow);
        let alternate = u16::try_from(welcome.alternate_port).ok().filter(|port| *port != 0);
        let alternate = alternate.map(|port| SocketAddr::new(self.relay.addr.ip(), port));
        let leg = Arc::new(Leg::new(self.relay.addr, alternate, own_flow, &exported));
        let before = self.node.tables.legs.write().insert(self.relay.addr, Some(leg.clone()));
        // A relay that began anew, or forgot this node, gives it another number.
        let remembers = before.flatten().is_none_or(|b| b.own_flow == leg.own_flow);
        self.kept = self.node.tables.replace_leg(self.relay.addr, &leg);
        for (_, entry) in &self.kept {
            entry.peer.command(if remembers {
                Command::NewLeg { path: entry.path, leg: leg.clone() }
            } else {
                Command::FlowClosed { path: entry.path, code: code::NO_SUCH_PEER }
            });
        }
        if !remembers {
            self.kept.clear();
        }
        if self.events.is_none() {
            self.kept.clear();
        }
        if let Some(shared) = self.link.upgrade() {
            *shared.observed.lock() = observed;
            *shared.seen_at.lock() = wire::decode_seen(&welcome.observed).map(|seen| seen.ip());
            *shared.connection.lock() = Some(connection.clone());
            shared.superseded.store(false, Relaxed);
            let over_tcp = self.slot.lock().is_some();
            let differs = |before: &mut bool| std::mem::replace(before, over_tcp) != over_tcp;
            if shared.over_tcp.send_if_modified(differs) {
                self.node.tables.carrier_changed(self.relay.addr, over_tcp);
            }
            shared.state.send_replace(LinkState::Up(self.generation));
        }
        self.node.link_changed();
        self.emit(LinkEvent::Up { connection: connection.clone(), observed }).await;
        let forwards = self.link.upgrade().is_none_or(|link| link.forwards.load(Relaxed));
        let beat = Beat::new(forwards, self.node.clock.now());
        let offered = welcome.features.iter().any(|f| f == wire::FEATURE_LOOPBACK);
        let loopback = (offered && self.events.is_some())
            .then(|| Loopback::new(forwards, self.node.clock.now()));
        Up { connection, send, reader, leg, agreeing: None, beat, loopback }
    }
}
