//! A session: one QUIC connection from end to end, and the task that keeps a path under it.

mod guess;
mod handle;
mod loss;
mod silence;
mod warm;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use sluice_path::{
    Activity, Agent, Event, Kind, PACKET_MAX, PACKET_MIN, Pair, Path, Probe, Reason, SocketId,
};
use sluice_proto::wire::code;
use sluice_proto::wire::control::{self, control::Kind as ControlKind};
use sluice_proto::{Invited, PeerId, RelayAddr};
use tokio::sync::watch;

use crate::epoch::{EpochFactory, PathEpoch};
use crate::knock::ProbeSeal;
use crate::node::{Inner, Target};
use crate::peer::{Command, DIRECT, DirectRoute, Inputs, Peer, RelayedPath, Route};
use crate::timer;
pub use handle::{PathBytes, PathInfo, Session};
use loss::Losses;
use silence::Silence;

/// QUIC looks this often whether larger packets come through by now: the socket lets none pass that
/// are larger than the paths carry, and they may carry more later.
const GROW: Duration = Duration::from_secs(60);
/// Bytes in flight to us on one stream: 1 Gbit/s at 60 ms, with room.
const STREAM_WINDOW: u32 = 10 << 20;
/// Bytes in flight to us on all streams: the largest metering window, and half of it more, since
/// QUIC's credit comes back late.
pub(crate) const RECEIVE_WINDOW: u32 = 24 << 20;
/// The same for whoever accepts a session, until its payload is counted: see
/// [`Session::set_delivered`].
pub(crate) const ACCEPT_WINDOW: u32 = 48 << 10;
/// QUIC's receive window while a relay carries a session and brought `delivered` bytes of its payload:
/// what may come stays within what is granted for it.
const fn relayed_window(delivered: u64) -> u64 {
    ACCEPT_WINDOW as u64 + delivered / 8 * 3
}

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
/// After a silence of this the path in use begins anew when it answers: by then quinn waits for longer
/// and longer before it sends again.
const REVIVED: Duration = Duration::from_secs(2);
/// A knock for another flow must be answered within this.
const RESUME: Duration = Duration::from_secs(3);
/// A session is watched for this long after its last packet before its task sleeps for long.
const LINGER: Duration = Duration::from_millis(500);

/// Transport parameters of a session; its congestion controller follows `epoch`. Whoever accepts
/// begins with a small `receive_window`, since it pays the relay for what it is sent.
pub(crate) fn transport(
    epoch: &Arc<PathEpoch>,
    idle: Duration,
    receive_window: u32,
) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(PACKET_MAX).interval(GROW);
    let mut config = TransportConfig::default();
    config
        .initial_mtu(PACKET_MIN)
        .min_mtu(PACKET_MIN)
        .mtu_discovery_config(Some(mtu))
        .initial_rtt(Duration::from_millis(100))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(receive_window))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        // What keeps NATs from forgetting a path are the agent's echoes.
        .keep_alive_interval(Some(idle / 3))
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
        invited: Option<Invited>,
    ) -> Self {
        let (path_sender, path) = watch::channel(None);
        let (warm_sender, warm) = watch::channel(Vec::new());
        let window = if target.is_some() { RECEIVE_WINDOW } else { ACCEPT_WINDOW };
        peer.receive_window.store(window, Relaxed);
        peer.credit_until.store(window.into(), Relaxed);
        let mut agent = Agent::new(target.is_some(), node.random.number());
        agent.share(&node.budget);
        let driver = Driver {
            agent,
            node: node.clone(),
            connection: connection.clone(),
            peer: peer.clone(),
            seal: None,
            relays: BTreeMap::new(),
            epoch,
            path: path_sender,
            warm: warm_sender,
            target,
            direct_allowed: false,
            sides: guess::OwnSides::new(node.clone()),
            known: Vec::new(),
            on_trial: None,
            silence: Silence::default(),
            losses: Losses::default(),
            watch_until: node.clock.now(),
            unanswered: None,
            revived: false,
            heard_directly: (0, node.clock.now()),
        };
        tokio::spawn(driver.run(inputs, relayed));
        Self { connection, peer_id, invited, peer, node, path, warm }
    }
}

/// The task of one session.
struct Driver {
    node: Arc<Inner>,
    connection: quinn::Connection,
    peer: Arc<Peer>,
    agent: Agent,
    /// Of the first knock: what later ones prove is that the session's initiator knocks.
    seal: Option<ProbeSeal>,
    relays: BTreeMap<u32, Relayed>,
    epoch: Arc<PathEpoch>,
    path: watch::Sender<Option<PathInfo>>,
    warm: watch::Sender<Vec<RelayAddr>>,
    /// Tenants knock; providers wait.
    target: Option<Target>,
    direct_allowed: bool,
    sides: guess::OwnSides,
    known: Vec<warm::Known>,
    /// The path that the packets take while the one in use is doubted, if the doubt is ours.
    on_trial: Option<Path>,
    silence: Silence,
    losses: Losses,
    watch_until: Instant,
    /// Since when the path in use is silent, as the socket said last.
    unanswered: Option<Instant>,
    /// It answered after a long silence.
    revived: bool,
    /// Packet bytes that came directly, and when the last of them, or a probe, did.
    heard_directly: (u64, Instant),
}

/// Lets a relay tell the other node how it sees this one, once the other lets it too.
fn permit_address(path: &Relayed, permitted: bool) {
    let flow = path.flow.0;
    path.link.send(ControlKind::PermitAddress(control::PermitAddress { flow, permitted }));
}

struct Relayed {
    link: crate::RelayLink,
    route: Route,
    flow: sluice_proto::FlowId,
    began: Instant,
}

impl Relayed {
    fn addr(&self) -> SocketAddr {
        self.route.destination()
    }
}

impl Driver {
    async fn run(mut self, mut inputs: Inputs, relayed: RelayedPath) {
        let mut link_changes = self.node.link_changes.subscribe();
        let mut address_changes = self.node.address_changes.subscribe();
        let mut nat = self.node.nat.subscribe();
        self.learn_nat(&mut nat);
        let relays = self.target.iter_mut().flat_map(|t| std::mem::take(&mut t.relays));
        let relays = std::iter::once(relayed.link.relay()).chain(relays).collect();
        self.add_relayed(relayed);
        self.set_known(relays);
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
                // The sender lives as long as the node.
                _ = link_changes.changed() => self.learn_whereabouts(),
                _ = address_changes.changed() => self.learn_whereabouts(),
                _ = nat.changed() => self.learn_nat(&mut nat),
                () = self.peer.wake.notified() => {}
                () = clock.sleep_until(wake_at) => {}
            }
            self.look();
            self.keep_warm();
            self.drain();
            self.revive();
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
        self.node.socket.set_route(&self.peer, DIRECT, None);
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
            let silent = silent.unwrap_or_default();
            let look = (silent / LOOK_PART).clamp(LOOK, LOOK_MAX);
            // Not a moment late when the path becomes suspect.
            let suspect = (self.pto() * 2).checked_sub(silent).filter(|left| !left.is_zero());
            Some(now + suspect.map_or(look, |left| look.min(left)))
        } else {
            self.peer.park();
            // A packet that went out just before this line found the task not parked.
            self.peer.unanswered_ns().map(|_| now + LOOK)
        };
        let hour = now + Duration::from_secs(3600);
        [agent, look, self.next_knock(now)].into_iter().flatten().min().unwrap_or(hour)
    }

    fn pto(&self) -> Duration {
        self.epoch.pto(self.connection.rtt())
    }

    /// Tells the agent what the socket saw.
    fn look(&mut self) {
        let now = self.node.clock.now();
        let heard = self.peer.direct_received.load(Relaxed);
        if heard != self.heard_directly.0 {
            self.heard_directly = (heard, now);
        }
        let pto = self.pto();
        let unanswered_since = self.peer.unanswered_ns().map(|ns| self.node.socket.instant(ns));
        let silence = std::mem::replace(&mut self.unanswered, unanswered_since);
        let answered = silence.filter(|_| unanswered_since != silence);
        self.revived |=
            answered.is_some_and(|since| now.saturating_duration_since(since) >= REVIVED);
        let stats = self.connection.stats();
        let outstanding = self.silence.look(unanswered_since, &stats.frame_tx);
        self.watch_losses(&stats.path, now);
        self.agent.handle_activity(Activity { unanswered_since, pto, outstanding }, now);
        self.agent.handle_timeout(now);
        if unanswered_since.is_some_and(|since| now.saturating_duration_since(since) > pto * 2) {
            for relayed in self.relays.values() {
                relayed.link.nudge();
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = self.node.clock.now();
        match command {
            Command::Relayed(relayed) => {
                self.knock_ended(relayed.leg.relay);
                self.replace_relayed(*relayed, now);
            }
            Command::Grown { relay, flow } => {
                let path = self.relays.values().find(|r| r.addr() == relay && r.flow == flow);
                if let Some(path) = path {
                    path.link.tell(crate::LinkEvent::Grown(flow));
                }
            }
            Command::NotRelayed { relay, error } => self.not_relayed(relay, error),
            Command::Relays(relays) => self.set_known(relays),
            Command::Shutdown => {
                self.connection.close(code::SHUTDOWN.into(), b"shutting down");
            }
            Command::Moved => {
                self.learn_whereabouts();
                self.agent.handle_local_change(now);
            }
            Command::Unpaid { path, unpaid } => self.agent.set_unpaid(path, unpaid, now),
            Command::NewLeg { path, leg } => {
                let Some(relayed) = self.relays.get_mut(&path) else { return };
                if let Route::Relay { leg: old, .. } = &mut relayed.route {
                    *old = leg;
                }
                let route = relayed.route.clone();
                if self.on_trial == Some(Path::Relay(path)) {
                    self.node.socket.try_route(&self.peer, route);
                } else if self.agent.selected() == Some(Path::Relay(path)) {
                    self.node.socket.set_route(&self.peer, path, Some(route));
                }
            }
            Command::CarrierChanged { relay, old_dead } => self.carrier_changed(relay, old_dead),
            Command::FlowClosed { code: code::RESTARTED, .. } => {
                self.connection.close(code::RESTARTED.into(), b"the other node restarted");
            }
            Command::FlowClosed { path, code } => {
                tracing::debug!(path, code, "flow closed by the relay");
                self.drop_relayed(path, false, now);
            }
            Command::Candidates(list) => self.agent.add_candidates(&list, now),
            Command::PeerAddress(address) => self.agent.set_peer_address(address, now),
            Command::SocketsOpened(opened) => self.agent.sockets_opened(&opened, now),
            Command::DirectAllowed(allowed) => {
                self.direct_allowed = allowed;
                for relayed in self.relays.values() {
                    permit_address(relayed, allowed);
                }
                self.agent.set_direct_allowed(allowed, now);
            }
        }
    }

    fn add_relayed(&mut self, relayed: RelayedPath) {
        let route = Route::Relay { leg: relayed.leg, flow: relayed.flow, counts: relayed.counts };
        self.seal.get_or_insert(relayed.seal);
        let (began, link) = (self.node.clock.now(), relayed.link);
        let relay = Relayed { link, route, flow: relayed.flow, began };
        if self.direct_allowed {
            permit_address(&relay, true);
        }
        self.relays.insert(relayed.path, relay);
        self.agent.add_relay(relayed.path, began);
    }

    /// A new flow takes the place of the one through the same relay.
    fn replace_relayed(&mut self, relayed: RelayedPath, now: Instant) {
        let addr = relayed.leg.relay;
        let old = self.relays.iter().find(|(_, r)| r.addr() == addr).map(|(path, _)| *path);
        if let Some(old) = old {
            self.drop_relayed(old, true, now);
        }
        self.add_relayed(relayed);
    }

    /// Ends a flow; `tell`: the relay too.
    fn drop_relayed(&mut self, path: u32, tell: bool, now: Instant) {
        let Some(gone) = self.relays.remove(&path) else { return };
        gone.link.closed(gone.flow);
        if tell {
            let (flow, code) = (gone.flow.0, code::OK);
            gone.link.send(ControlKind::CloseFlow(control::CloseFlow { flow, code }));
        }
        self.forget_flow(path, &gone);
        self.agent.remove_relay(path, now);
    }

    fn drop_relays(&mut self, now: Instant) {
        for path in self.relays.keys().copied().collect::<Vec<_>>() {
            self.drop_relayed(path, true, now);
        }
    }

    /// Frames of a flow no longer arrive here, unless its number was given to a newer one.
    fn forget_flow(&self, path: u32, gone: &Relayed) {
        let key = (gone.addr(), gone.flow);
        let mut flows = self.node.tables.flows.write();
        if flows.get(&key).is_some_and(|entry| entry.path == path) {
            flows.remove(&key);
        }
        drop(flows);
        self.node.tables.changed();
    }

    fn take_probe(&mut self, from: Path, sealed: &[u8]) {
        let Some(probe) = self.seal.as_ref().and_then(|s| s.open(sealed)) else {
            self.node.socket.stats.bad_frame.fetch_add(1, Relaxed);
            return;
        };
        if let Path::Direct(pair) = from
            && self.is_anothers(&pair)
        {
            // QUIC from there belongs to another session of the same two nodes; or somebody
            // writes a false sender on its probes. This session stays where it is.
            return;
        }
        tracing::trace!(us = self.peer.index, ?from, ?probe, "probe received");
        let now = self.node.clock.now();
        if matches!(from, Path::Direct(_)) {
            self.heard_directly.1 = now;
        }
        // Anything but an echo may come from a side that hears nothing of us.
        if matches!(probe, Probe::Pong { .. }) {
            self.peer.received(path_number(from));
        }
        self.agent.handle_probe(from, probe, now);
    }

    fn is_anothers(&self, pair: &Pair) -> bool {
        self.node.tables.direct.read().get(pair).is_some_and(|p| !Arc::ptr_eq(p, &self.peer))
    }

    /// Sends what the agent wants sent, does what it wants done.
    fn drain(&mut self) {
        while let Some(event) = self.agent.poll_event() {
            match event {
                Event::Selected { path, reason, old_dead } => self.select(path, reason, old_dead),
                Event::Tried { path, ours } => self.try_out(path, ours),
                Event::Returned { path } => self.return_to(path),
                Event::Proven(pair) => {
                    if self.node.tables.claim_direct(pair, &self.peer) {
                        self.node.tables.changed();
                    }
                }
                Event::Forgotten(pair) => {
                    if !self.is_anothers(&pair) {
                        self.node.tables.direct.write().remove(&pair);
                        self.node.tables.changed();
                    }
                }
                Event::PacketMax(size) => self.peer.packet_max.store(size, Relaxed),
                Event::OpenSockets { count, observe } => self.open_sockets(count, observe),
                Event::CloseSocket(socket) => self.sides.close(socket),
            }
        }
        while let Some((path, probe)) = self.agent.poll_transmit() {
            let Some(sealed) = self.seal.as_ref().and_then(|s| s.seal(probe)) else { continue };
            match path {
                Path::Direct(pair) => self.node.socket.send_probe(pair, &sealed),
                Path::Relay(number) => {
                    if let Some(relayed) = self.relays.get(&number) {
                        self.node.socket.send_relayed(&self.peer, &relayed.route, &sealed);
                    }
                }
            }
        }
    }

    fn route_of(&self, path: Path) -> Option<Route> {
        match path {
            Path::Direct(pair) => {
                let side = self.node.socket.sides.get(pair.socket);
                let missing = side.is_none() && pair.socket != SocketId::DATA;
                let remote = pair.remote;
                (!missing).then_some(Route::Direct(DirectRoute { side, remote }))
            }
            Path::Relay(number) => self.relays.get(&number).map(|relayed| relayed.route.clone()),
        }
    }

    /// The congestion controller heeds the window of the relay that carries the session.
    fn carry_on(&self, route: &Route) {
        self.epoch.set_relay(match route {
            Route::Relay { counts, .. } => Some(counts.clone()),
            Route::Direct(_) => None,
        });
    }

    fn try_out(&mut self, path: Path, ours: bool) {
        let Some(route) = self.route_of(path) else { return };
        self.carry_on(&route);
        self.node.socket.try_route(&self.peer, route);
        if ours {
            self.on_trial = Some(path);
            self.epoch.try_out();
            self.wake_quinn();
        }
        tracing::debug!(?path, ours, "path tried");
    }

    /// The path in use is back: what was in flight is lost, and quinn need not wait to see it.
    fn revive(&mut self) {
        if std::mem::take(&mut self.revived) {
            self.epoch.advance(true);
            self.wake_quinn();
        }
    }

    fn return_to(&mut self, path: Path) {
        let Some(route) = self.route_of(path) else { return };
        self.carry_on(&route);
        self.node.socket.return_route(&self.peer, route);
        if self.on_trial.take().is_some() {
            self.epoch.undo();
        }
        tracing::debug!(?path, "trial undone");
    }

    fn select(&mut self, path: Path, reason: Reason, old_dead: bool) {
        let Some(route) = self.route_of(path) else { return };
        let relay = match path {
            Path::Direct(_) => None,
            Path::Relay(number) => self.relays.get(&number).map(|relayed| {
                self.take_over(relayed);
                relayed.link.relay()
            }),
        };
        let remote = route.destination();
        let before = self.path.borrow().map(|before| before.kind);
        let first = before.is_none();
        if before == Some(Kind::Direct) && old_dead && reason != Reason::Withdrawn {
            let idle = self.node.clock.now().saturating_duration_since(self.heard_directly.1);
            timer::lost(&self.node, idle);
        }
        self.carry_on(&route);
        self.node.socket.set_route(&self.peer, path_number(path), Some(route));
        (self.unanswered, self.revived) = (None, false);
        let tried = self.on_trial.take();
        if tried == Some(path) && old_dead {
            self.epoch.keep();
        } else if !first {
            self.epoch.advance(old_dead);
        }
        if !first {
            self.wake_quinn();
        }
        let rtt = self.agent.rtt(path);
        tracing::debug!(kind = %path.kind(), %remote, %reason, "path selected");
        let over_tcp = self.is_over_tcp(path);
        let kind = path.kind();
        self.path.send_replace(Some(PathInfo { kind, remote, relay, rtt, reason, over_tcp }));
    }

    /// The session comes to a flow: what the other side may still send, by the credit that QUIC gave
    /// it, may come here. No more is granted than payload that was delivered gives a right to.
    fn take_over(&self, relayed: &Relayed) {
        let Route::Relay { counts, .. } = &relayed.route else { return };
        let delivered = self.peer.delivered.load(Relaxed);
        let credit = self.peer.credit_until.load(Relaxed).saturating_sub(delivered);
        counts.take_over(credit.min(relayed_window(delivered)));
        relayed.link.tell(crate::LinkEvent::Grown(relayed.flow));
    }

    fn is_over_tcp(&self, path: Path) -> bool {
        match path {
            Path::Direct(_) => false,
            Path::Relay(number) => {
                self.relays.get(&number).is_some_and(|relayed| relayed.link.is_over_tcp())
            }
        }
    }

    /// The way to a relay is another: to the congestion controller that is another path.
    fn carrier_changed(&mut self, relay: SocketAddr, old_dead: bool) {
        let Some(path) = self.agent.selected() else { return };
        let over_tcp = self.is_over_tcp(path);
        let changed = self.path.send_if_modified(|info| match info {
            Some(info) if info.remote == relay && info.over_tcp != over_tcp => {
                info.over_tcp = over_tcp;
                true
            }
            Some(_) | None => false,
        });
        if changed {
            self.epoch.advance(old_dead);
            self.wake_quinn();
        }
    }

    /// Makes quinn look at its window again, and send something that is acknowledged: that shows
    /// what was lost, though there be nothing new to send.
    fn wake_quinn(&self) {
        let window = self.peer.receive_window.fetch_add(1, Relaxed).saturating_add(1);
        self.connection.set_receive_window(VarInt::from_u32(window));
    }
}

/// The window of the relay that carries a session has room again: makes quinn go on with what waits
/// for it.
pub fn relay_has_room(connection: &quinn::Connection) {
    connection.set_send_window(SEND_WINDOW);
}

/// The number by which the socket knows a path.
const fn path_number(path: Path) -> u32 {
    match path {
        Path::Direct(_) => DIRECT,
        Path::Relay(number) => number,
    }
}

/// Opens a new flow for a session that stands.
async fn resume(
    node: &Arc<Inner>,
    peer: &Arc<Peer>,
    link: &crate::RelayLink,
    target: &Target,
) -> Result<RelayedPath, crate::ConnectError> {
    let deadline = node.clock.now() + RESUME;
    let clock = node.clock.clone();
    let answered = async {
        let mut knocked = node.knock(link, target, true, Vec::new()).await?;
        let sealed = crate::node::answered((&mut knocked.answer).await, link.relay())?;
        Ok((knocked, sealed))
    };
    let (knocked, sealed) = tokio::select! {
        biased;
        answered = answered => answered?,
        () = clock.sleep_until(deadline) => return Err(crate::ConnectError::Timeout),
    };
    let (_, seal) = knocked
        .knocking
        .finish(target.session, &sealed)
        .map_err(|e| crate::ConnectError::WrongPeer(e.to_string()))?;
    let us = node.noise.public();
    Ok(node.register_flow(peer, link, &knocked.leg, knocked.flow, seal, us))
}
