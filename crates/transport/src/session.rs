//! A session: one QUIC connection from end to end, and the task that keeps a path under it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use sluice_path::{Activity, Agent, Event, Kind, Path, Reason};
use sluice_proto::wire::control::{self, control::Kind as ControlKind};
use sluice_proto::wire::{code, session as wire_session};
use sluice_proto::{PeerId, RelayAddr, RelayFlow};
use tokio::sync::{oneshot, watch};

use crate::epoch::{EpochFactory, PathEpoch};
use crate::knock::{ProbeSeal, decode_candidates, encode_candidates};
use crate::node::{Inner, Target};
use crate::peer::{Command, Inputs, Peer, RelayedPath, Route};
use crate::tls;

/// Largest QUIC packet: with a frame's header it fits an Ethernet packet over IPv6.
const MTU_MAX: u16 = 1420;
/// Smallest, as RFC 9000 demands of every path.
const MTU_MIN: u16 = 1200;
/// Bytes in flight to us on one stream: 1 Gbit/s at 60 ms, with room.
const STREAM_WINDOW: u32 = 10 << 20;
/// Bytes in flight to us on all streams: the largest metering window, and half of it more, since
/// QUIC's credit comes back late.
pub(crate) const RECEIVE_WINDOW: u32 = 24 << 20;
/// The same for whoever accepts a session, until its payload is counted: see
/// [`Session::set_delivered`].
pub(crate) const ACCEPT_WINDOW: u32 = 48 << 10;
/// Unacknowledged bytes that we keep for a peer.
const SEND_WINDOW: u64 = 24 << 20;
/// TCP connections at a time in one session.
const STREAMS_MAX: u32 = 1024;
/// While packets go out, the socket is looked at this often at most ..
const LOOK: Duration = Duration::from_millis(30);
/// .. and, while nothing comes back, each time after this part of the silence ..
const LOOK_PART: u32 = 16;
/// .. but at least this often: a dead session must not keep the processor busy.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// A session is watched for this long after its last packet before its task sleeps for long.
const LINGER: Duration = Duration::from_millis(500);
/// Waits in milliseconds between knocks that bring a lost flow back; the last one is repeated for
/// as long as the session lives.
const KNOCK_AGAIN: [u64; 5] = [0, 250, 1000, 3000, 5000];

/// Transport parameters of a session; its congestion controller follows `epoch`. Whoever accepts
/// begins with a small `receive_window`, since it pays the relay for what it is sent.
pub(crate) fn transport(
    epoch: &Arc<PathEpoch>,
    idle: Duration,
    receive_window: u32,
) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut config = TransportConfig::default();
    config
        .initial_mtu(MTU_MIN)
        .min_mtu(MTU_MIN)
        .mtu_discovery_config(Some(mtu))
        .initial_rtt(Duration::from_millis(100))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(receive_window))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .keep_alive_interval(Some(Duration::from_secs(20).min(idle / 3)))
        .congestion_controller_factory(Arc::new(EpochFactory(epoch.clone())));
    Arc::new(config)
}

/// Transport parameters of a control connection: small, since a relay holds thousands.
pub(crate) fn control_transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(64 << 10))
        .receive_window(VarInt::from_u32(256 << 10))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(IdleTimeout::try_from(Duration::from_secs(30)).ok())
        .keep_alive_interval(Some(Duration::from_secs(5)));
    config
}

/// The path that a session uses, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInfo {
    /// Direct or relayed.
    pub kind: Kind,
    /// The other node's address, or the relay's.
    pub remote: SocketAddr,
    /// The relay, if one carries it.
    pub relay: Option<RelayAddr>,
    /// Its round-trip time, once echoed.
    pub rtt: Option<Duration>,
    /// Why it was chosen.
    pub reason: Reason,
}

/// Packet bytes of a session by kind of path, both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathBytes {
    /// Sent through relays, with headers.
    pub relayed_sent: u64,
    /// Received through relays, with headers.
    pub relayed_received: u64,
    /// Sent directly.
    pub direct_sent: u64,
    /// Received directly.
    pub direct_received: u64,
}

/// A handle on a session. Cheap to clone; the session ends when its connection is closed.
#[derive(Debug, Clone)]
pub struct Session {
    connection: quinn::Connection,
    peer_id: PeerId,
    peer: Arc<Peer>,
    node: Arc<Inner>,
    path: watch::Receiver<Option<PathInfo>>,
}

impl Session {
    #[expect(clippy::too_many_arguments, reason = "two callers, and each is a different thing")]
    pub(crate) fn start(
        node: Arc<Inner>,
        connection: quinn::Connection,
        peer_id: PeerId,
        peer: Arc<Peer>,
        inputs: Inputs,
        relayed: RelayedPath,
        epoch: Arc<PathEpoch>,
        target: Option<Target>,
    ) -> Self {
        let (path_sender, path) = watch::channel(None);
        let driver = Driver {
            agent: Agent::new(target.is_some(), node.random.number()),
            node: node.clone(),
            connection: connection.clone(),
            peer: peer.clone(),
            seal: None,
            relays: BTreeMap::new(),
            epoch,
            path: path_sender,
            target,
            knocking: None,
            direct_allowed: false,
            wakes: 1,
            watch_until: node.clock.now(),
        };
        tokio::spawn(driver.run(inputs, relayed));
        Self { connection, peer_id, peer, node, path }
    }

    /// The QUIC connection: streams and datagrams are the owner's.
    #[must_use]
    pub const fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// Who is at the other end, as TLS proved it.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer_id
    }

    /// The path in use, now and later.
    #[must_use]
    pub fn path(&self) -> watch::Receiver<Option<PathInfo>> {
        self.path.clone()
    }

    /// Keying material of this session alone, for signatures that must not be moved to another.
    #[must_use]
    pub fn exporter(&self) -> [u8; 32] {
        tls::export(&self.connection, sluice_proto::eth::BIND_EXPORTER_LABEL, b"")
    }

    /// Packet bytes so far.
    #[must_use]
    pub fn path_bytes(&self) -> PathBytes {
        PathBytes {
            relayed_sent: self.peer.relayed_sent.load(Relaxed),
            relayed_received: self.peer.relayed_received.load(Relaxed),
            direct_sent: self.peer.direct_sent.load(Relaxed),
            direct_received: self.peer.direct_received.load(Relaxed),
        }
    }

    /// Allows direct paths, or sends the session back to its relay.
    pub fn set_direct_allowed(&self, allowed: bool) {
        self.peer.command(Command::DirectAllowed(allowed));
    }

    /// Where this node may be reached, to be told to the other side once that is allowed.
    #[must_use]
    pub fn local_candidates(&self) -> wire_session::Candidates {
        wire_session::Candidates {
            addresses: encode_candidates(&self.node.local_candidates()),
            nat: None,
        }
    }

    /// Where the other side says it may be reached.
    pub fn add_candidates(&self, candidates: &wire_session::Candidates) {
        self.peer.command(Command::Candidates(decode_candidates(&candidates.addresses)));
    }

    /// Tells how much payload was delivered to this side's services, in all: raises what a relay may
    /// send, and, while a relay carries the session, sets the receive window that keeps an honest
    /// sender within it.
    pub fn set_delivered(&self, delivered: u64) {
        let route = self.peer.outgoing.lock().route.clone();
        let window = match route {
            Some(Route::Relay { leg, flow, .. }) => {
                let event = crate::LinkEvent::Delivered { flow, delivered };
                let links = self.node.links();
                if let Some(link) = links.into_iter().find(|l| l.relay().addr == leg.relay) {
                    link.tell(event);
                }
                u64::from(ACCEPT_WINDOW) + delivered / 8 * 3
            }
            Some(Route::Direct(_)) | None => u64::from(RECEIVE_WINDOW),
        };
        let window = u32::try_from(window).unwrap_or(u32::MAX).min(RECEIVE_WINDOW);
        self.connection.set_receive_window(VarInt::from_u32(window));
    }

    /// The flow that carries the session now, if a relay does, and its link.
    #[must_use]
    pub fn relay_flow(&self) -> Option<Arc<RelayFlow>> {
        match &self.peer.outgoing.lock().route {
            Some(Route::Relay { counts, .. }) => Some(counts.clone()),
            Some(Route::Direct(_)) | None => None,
        }
    }

    /// Whether a relay carries the session now.
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        self.path.borrow().is_none_or(|p| p.kind == Kind::Relayed)
    }

    /// Ends the session; its streams are reset at both ends.
    pub fn close(&self, code: u32, message: &str) {
        self.connection.close(code.into(), message.as_bytes());
    }
}

/// The task of one session.
struct Driver {
    node: Arc<Inner>,
    connection: quinn::Connection,
    peer: Arc<Peer>,
    agent: Agent,
    seal: Option<ProbeSeal>,
    relays: BTreeMap<u32, Relayed>,
    epoch: Arc<PathEpoch>,
    path: watch::Sender<Option<PathInfo>>,
    /// Tenants knock again when a flow is lost; providers wait.
    target: Option<Target>,
    knocking: Option<oneshot::Receiver<()>>,
    direct_allowed: bool,
    wakes: u32,
    watch_until: Instant,
}

/// Lets a relay tell the other node how it sees this one, once the other lets it too.
fn permit_address(path: &RelayedRoute, permitted: bool) {
    let flow = path.flow.0;
    path.link.send(ControlKind::PermitAddress(control::PermitAddress { flow, permitted }));
}

struct Relayed {
    path: RelayedRoute,
    generation: Option<u64>,
}

struct RelayedRoute {
    link: crate::RelayLink,
    route: Route,
    flow: sluice_proto::FlowId,
}

impl Driver {
    async fn run(mut self, mut inputs: Inputs, relayed: RelayedPath) {
        let link = relayed.link.clone();
        let mut link_state = link.state();
        self.add_relayed(relayed);
        self.drain();
        loop {
            let wake_at = self.next_wake();
            let clock = self.node.clock.clone();
            tokio::select! {
                biased;
                _ = self.connection.closed() => break,
                command = inputs.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                probe = inputs.probes.recv() => {
                    if let Some((from, sealed)) = probe {
                        self.take_probe(from, &sealed);
                    }
                }
                changed = link_state.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.link_changed(&link);
                }
                () = self.peer.wake.notified() => {}
                () = clock.sleep_until(wake_at) => {}
            }
            self.look();
            self.drain();
        }
        // quinn still says that it closes, and says it again to what arrives meanwhile: its
        // closing state lasts for three probe timeouts (RFC 9000, 10.2).
        self.node.clock.sleep(self.pto() * 3).await;
        self.drop_relays(self.node.clock.now());
        inputs.commands.close();
        while let Ok(command) = inputs.commands.try_recv() {
            if let Command::Relayed(late) = command {
                late.close();
            }
        }
        self.node.socket.set_route(&self.peer, None);
        self.node.forget_session(&self.peer);
    }

    /// Until when nothing needs to be done unless something happens.
    fn next_wake(&mut self) -> Instant {
        let now = self.node.clock.now();
        let agent = self.agent.poll_timeout().map(|(at, _)| at);
        let silent = self
            .peer
            .unanswered_ns()
            .map(|ns| now.saturating_duration_since(self.node.socket.instant(ns)));
        if silent.is_some() {
            self.watch_until = now + LINGER;
        }
        let look = if silent.is_some() || now < self.watch_until {
            Some(now + (silent.unwrap_or_default() / LOOK_PART).clamp(LOOK, LOOK_MAX))
        } else {
            self.peer.park();
            // A packet that went out just before this line found the task not parked.
            self.peer.unanswered_ns().map(|_| now + LOOK)
        };
        let hour = now + Duration::from_secs(3600);
        [agent, look].into_iter().flatten().min().unwrap_or(hour)
    }

    /// QUIC's probe timeout: RFC 9002, 6.2.1, with the variance at its usual half and the default
    /// ack delay.
    fn pto(&self) -> Duration {
        self.connection.rtt() * 2 + Duration::from_millis(25)
    }

    /// Tells the agent what the socket saw.
    fn look(&mut self) {
        let now = self.node.clock.now();
        let pto = self.pto();
        let unanswered_since = self.peer.unanswered_ns().map(|ns| self.node.socket.instant(ns));
        self.agent.handle_activity(Activity { unanswered_since, pto }, now);
        self.agent.handle_timeout(now);
        if unanswered_since.is_some_and(|since| now.saturating_duration_since(since) > pto * 2) {
            for relayed in self.relays.values() {
                relayed.path.link.nudge();
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = self.node.clock.now();
        match command {
            Command::Relayed(relayed) => {
                self.knocking = None;
                self.drop_relays(now);
                self.add_relayed(*relayed);
            }
            Command::NewLeg { path, leg } => {
                let Some(relayed) = self.relays.get_mut(&path) else { return };
                if let Route::Relay { leg: old, .. } = &mut relayed.path.route {
                    *old = leg;
                }
                if self.agent.selected() == Some(Path::Relay(path)) {
                    let route = relayed.path.route.clone();
                    self.node.socket.set_route(&self.peer, Some(route));
                }
            }
            Command::FlowClosed { code: code::RESTARTED, .. } => {
                self.connection.close(code::RESTARTED.into(), b"the other node restarted");
            }
            Command::FlowClosed { path, code } => {
                tracing::debug!(path, code, "flow closed by the relay");
                if let Some(gone) = self.relays.remove(&path) {
                    gone.path.link.closed(gone.path.flow);
                    self.forget_flow(path, &gone.path);
                    self.agent.remove_relay(path, now);
                    self.knock_again(&gone.path.link);
                }
            }
            Command::Candidates(list) => self.agent.add_candidates(&list, now),
            Command::PeerAddress(address) => self.agent.set_peer_address(address, now),
            Command::DirectAllowed(allowed) => {
                self.direct_allowed = allowed;
                for relayed in self.relays.values() {
                    permit_address(&relayed.path, allowed);
                }
                self.agent.set_direct_allowed(allowed, now);
            }
        }
    }

    fn add_relayed(&mut self, relayed: RelayedPath) {
        let route = Route::Relay { leg: relayed.leg, flow: relayed.flow, counts: relayed.counts };
        self.seal = Some(relayed.seal);
        let generation = relayed.link.0.state.borrow().generation();
        let path = RelayedRoute { link: relayed.link, route, flow: relayed.flow };
        if self.direct_allowed {
            permit_address(&path, true);
        }
        self.relays.insert(relayed.path, Relayed { path, generation });
        self.agent.add_relay(relayed.path, self.node.clock.now());
    }

    fn drop_relays(&mut self, now: Instant) {
        for (number, gone) in std::mem::take(&mut self.relays) {
            gone.path.link.closed(gone.path.flow);
            let (flow, code) = (gone.path.flow.0, code::OK);
            gone.path.link.send(ControlKind::CloseFlow(control::CloseFlow { flow, code }));
            self.forget_flow(number, &gone.path);
            self.agent.remove_relay(number, now);
        }
    }

    /// Frames of a flow no longer arrive here, unless its number was given to a newer one.
    fn forget_flow(&self, path: u32, gone: &RelayedRoute) {
        let key = (gone.route.destination(), gone.flow);
        let mut flows = self.node.tables.flows.write();
        if flows.get(&key).is_some_and(|entry| entry.path == path) {
            flows.remove(&key);
        }
        drop(flows);
        self.node.tables.changed();
    }

    /// A link that came back carries none of the old flows.
    fn link_changed(&mut self, link: &crate::RelayLink) {
        let Some(generation) = link.0.state.borrow().generation() else { return };
        let stale = self.relays.values().all(|r| r.generation != Some(generation));
        if stale {
            self.knock_again(link);
        }
    }

    fn knock_again(&mut self, link: &crate::RelayLink) {
        let Some(target) = self.target.clone() else { return };
        if self
            .knocking
            .as_mut()
            .is_some_and(|k| k.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty))
        {
            return;
        }
        let (done, knocking) = oneshot::channel();
        self.knocking = Some(knocking);
        let (node, peer, link) = (self.node.clone(), self.peer.clone(), link.clone());
        let connection = self.connection.clone();
        tokio::spawn(async move {
            let last = KNOCK_AGAIN.last().copied().into_iter().cycle();
            for wait in KNOCK_AGAIN.into_iter().chain(last) {
                node.clock.sleep(Duration::from_millis(wait)).await;
                if done.is_closed() || connection.close_reason().is_some() {
                    break;
                }
                match resume(&node, &peer, &link, &target).await {
                    Ok(path) => {
                        peer.command(Command::Relayed(Box::new(path)));
                        break;
                    }
                    Err(crate::ConnectError::NotInvited) => {
                        let why = b"the other node knows this session no more";
                        connection.close(code::NOT_INVITED.into(), why);
                        break;
                    }
                    Err(error) => tracing::debug!(%error, "the flow did not come back yet"),
                }
            }
            let _ = done.send(());
        });
    }

    fn take_probe(&mut self, from: Path, sealed: &[u8]) {
        let Some(probe) = self.seal.as_ref().and_then(|s| s.open(sealed)) else {
            self.node.socket.stats.bad_frame.fetch_add(1, Relaxed);
            return;
        };
        if let Path::Direct(pair) = from
            && self.is_anothers(&pair.remote)
        {
            // QUIC from there belongs to another session of the same two nodes; or somebody
            // writes a false sender on its probes. This session stays where it is.
            return;
        }
        let now = self.node.clock.now();
        if self.agent.selected() == Some(from) {
            self.peer.received();
        }
        self.agent.handle_probe(from, probe, now);
    }

    fn is_anothers(&self, addr: &SocketAddr) -> bool {
        self.node.tables.direct.read().get(addr).is_some_and(|p| !Arc::ptr_eq(p, &self.peer))
    }

    /// Sends what the agent wants sent, does what it wants done.
    fn drain(&mut self) {
        let now = self.node.clock.now();
        while let Some(event) = self.agent.poll_event() {
            match event {
                Event::Selected { path, reason, old_dead } => self.select(path, reason, old_dead),
                Event::Proven(pair) => {
                    if self.node.tables.claim_direct(pair.remote, &self.peer) {
                        self.node.tables.changed();
                    }
                }
                Event::Forgotten(pair) => {
                    if !self.is_anothers(&pair.remote) {
                        self.node.tables.direct.write().remove(&pair.remote);
                        self.node.tables.changed();
                    }
                }
                // Ports are guessed only by nodes that can open more sockets.
                Event::OpenSockets { .. } => self.agent.sockets_opened(&[], now),
                Event::CloseSocket(_) => {}
            }
        }
        while let Some((path, probe)) = self.agent.poll_transmit() {
            let Some(sealed) = self.seal.as_ref().and_then(|s| s.seal(probe)) else { continue };
            match path {
                Path::Direct(pair) => self.node.socket.send_one(pair.remote, &sealed),
                Path::Relay(number) => {
                    if let Some(relayed) = self.relays.get(&number) {
                        self.node.socket.send_relayed(&relayed.path.route, &sealed);
                    }
                }
            }
        }
    }

    fn select(&mut self, path: Path, reason: Reason, old_dead: bool) {
        let (route, relay) = match path {
            Path::Direct(pair) => (Route::Direct(pair.remote), None),
            Path::Relay(number) => {
                let Some(relayed) = self.relays.get(&number) else { return };
                (relayed.path.route.clone(), Some(relayed.path.link.relay()))
            }
        };
        let remote = route.destination();
        let first = self.path.borrow().is_none();
        self.node.socket.set_route(&self.peer, Some(route));
        if !first {
            self.epoch.advance(old_dead);
            // Any change of a limit wakes quinn's driver, which then finds the new window.
            self.wakes = 3 - self.wakes;
            self.connection.set_max_concurrent_uni_streams(VarInt::from_u32(self.wakes));
        }
        let rtt = self.agent.rtt(path);
        tracing::debug!(kind = %path.kind(), %remote, %reason, "path selected");
        self.path.send_replace(Some(PathInfo { kind: path.kind(), remote, relay, rtt, reason }));
    }
}

/// Opens a new flow for a session that stands.
async fn resume(
    node: &Arc<Inner>,
    peer: &Arc<Peer>,
    link: &crate::RelayLink,
    target: &Target,
) -> Result<RelayedPath, crate::ConnectError> {
    let knocked = node.knock(link, target, true).await?;
    let deadline = node.clock.now() + Duration::from_secs(3);
    let sealed = tokio::select! {
        biased;
        answer = knocked.answer => crate::node::answered(answer, link.relay())?,
        () = node.clock.sleep_until(deadline) => return Err(crate::ConnectError::Timeout),
    };
    let (_, seal) = knocked
        .knocking
        .finish(target.session, &sealed)
        .map_err(|e| crate::ConnectError::WrongPeer(e.to_string()))?;
    let us = node.noise.public();
    Ok(node.register_flow(peer, link, &knocked.leg, knocked.flow, seal, us))
}
