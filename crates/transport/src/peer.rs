//! One session as the socket sees it: the route it takes and the batch being filled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn_udp::EcnCodepoint;
use sluice_path::{Opened, PACKET_MAX, Path};
use sluice_proto::wire::control::{self, control::Kind};
use sluice_proto::wire::{self, code};
use sluice_proto::{FlowId, RelayAddr, RelayFlow};
use tokio::sync::{Notify, mpsc};

use crate::knock::ProbeSeal;
use crate::leg::Leg;
use crate::link::RelayLink;
use crate::payload::Lacking;
use crate::side::SideSocket;
use crate::tables::fake_addr;

/// Number of all direct paths together, beside those of relayed ones.
pub(crate) const DIRECT: u32 = u32::MAX;
/// Packets kept of a session whose flow is not open yet: as many as a provisional flow carries.
const FIRST_KEPT: usize = 4;
/// Probes that wait for the session's task; more are dropped.
const PROBE_QUEUE: usize = 32;

/// The way that a session's packets take now.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    Relay { leg: Arc<Leg>, flow: FlowId, counts: Arc<RelayFlow> },
    Direct(DirectRoute),
}

/// From one of the node's sockets to an address.
#[derive(Debug, Clone)]
pub(crate) struct DirectRoute {
    /// None: the data socket.
    pub(crate) side: Option<Arc<SideSocket>>,
    pub(crate) remote: SocketAddr,
}

impl Route {
    pub(crate) fn destination(&self) -> SocketAddr {
        match self {
            Self::Relay { leg, .. } => leg.relay,
            Self::Direct(direct) => direct.remote,
        }
    }
}

/// Segments of equal size for one destination, waiting to be sent as one GSO batch.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) segment: usize,
    pub(crate) segments: usize,
    pub(crate) ecn: Option<EcnCodepoint>,
    /// Its last segment is short: nothing may follow it.
    pub(crate) closed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) route: Option<Route>,
    /// What quinn sent before there was a route, while one is awaited: see [`Peer::first_packets`].
    pub(crate) first: Option<Vec<Bytes>>,
    /// It is not the path in use but another for a trial.
    pub(crate) on_trial: bool,
    pub(crate) batch: Batch,
    /// It stands in the socket's list of batches to flush.
    pub(crate) queued: bool,
}

/// What the session's task is told.
pub(crate) enum Command {
    /// A flow to the other node stands.
    Relayed(Box<RelayedPath>),
    /// The flow of this path goes on over a new control connection.
    NewLeg { path: u32, leg: Arc<Leg> },
    /// Packets to this relay go over a stream now, or over UDP again.
    CarrierChanged { relay: SocketAddr, old_dead: bool },
    /// The relay closed the flow of this path.
    FlowClosed { path: u32, code: u32 },
    /// No flow through this relay came of a knock.
    NotRelayed { relay: SocketAddr, error: crate::ConnectError },
    /// Much payload went out in small packets on this flow: its relay is to hear of it.
    Grown { relay: SocketAddr, flow: FlowId },
    /// The relay waits for payment for this path's flow, or does no more.
    Unpaid { path: u32, unpaid: bool },
    /// This node's addresses changed, or it slept.
    Moved,
    /// The node is shutting down.
    Shutdown,
    /// The relays at which the other node can be reached.
    Relays(Vec<RelayAddr>),
    /// Where else the other node may be.
    Candidates(Vec<SocketAddr>),
    /// How a relay of our choosing sees the other node; over TCP without a port.
    PeerAddress(SocketAddr),
    /// Sockets that were opened for guessing; a relay saw the first of them.
    SocketsOpened(Vec<Opened>),
    /// Direct paths are allowed, or not.
    DirectAllowed(bool),
}

/// A flow, the link it runs over, and the probe keys that its rendezvous made.
pub(crate) struct RelayedPath {
    pub(crate) path: u32,
    pub(crate) link: RelayLink,
    pub(crate) leg: Arc<Leg>,
    pub(crate) flow: FlowId,
    pub(crate) counts: Arc<RelayFlow>,
    pub(crate) seal: ProbeSeal,
}

impl RelayedPath {
    /// Tells the relay and the link's owner that no session came to be on this flow.
    pub(crate) fn close(&self) {
        self.link.closed(self.flow);
        let (flow, code) = (self.flow.0, code::OK);
        self.link.send(Kind::CloseFlow(control::CloseFlow { flow, code }));
    }
}

/// Both queues of a session's task.
pub(crate) struct Inputs {
    pub(crate) probes: mpsc::Receiver<(Path, Bytes)>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) index: u64,
    pub(crate) addr: SocketAddr,
    pub(crate) outgoing: Mutex<Outgoing>,
    probe_queue: mpsc::Sender<(Path, Bytes)>,
    commands: mpsc::UnboundedSender<Command>,
    /// Nanoseconds (of the socket's clock, plus one) at which the first packet went out that
    /// nothing has arrived after; 0: none.
    unanswered: AtomicU64,
    /// Number of the path in use: what arrives on others does not answer what was sent on it.
    watched: AtomicU32,
    /// The largest packets that its paths carry: see [`sluice_path::Event::PacketMax`].
    pub(crate) packet_max: AtomicU16,
    /// QUIC's receive window, as it was last set.
    pub(crate) receive_window: AtomicU32,
    /// Payload that was delivered to this side's services.
    pub(crate) delivered: AtomicU64,
    /// As much may have been delivered once the other side has used up all credit that QUIC gave it.
    pub(crate) credit_until: AtomicU64,
    /// What packets that go to the socket next lack, if they are small and carry payload.
    pub(crate) lacking: Arc<Lacking>,
    /// The session's task sleeps for long; the next packet out must wake it.
    parked: AtomicBool,
    pub(crate) wake: Notify,
    pub(crate) relayed_sent: AtomicU64,
    pub(crate) relayed_received: AtomicU64,
    pub(crate) direct_sent: AtomicU64,
    pub(crate) direct_received: AtomicU64,
}

impl Peer {
    pub(crate) fn new(index: u64) -> (Arc<Self>, Inputs) {
        let (probe_queue, probes) = mpsc::channel(PROBE_QUEUE);
        // Few and small: a relay's messages about this flow, and the owner's wishes.
        let (commands, command_queue) = mpsc::unbounded_channel();
        let peer = Self {
            commands,
            index,
            addr: fake_addr(index),
            outgoing: Mutex::default(),
            probe_queue,
            unanswered: AtomicU64::new(0),
            watched: AtomicU32::new(DIRECT),
            packet_max: AtomicU16::new(PACKET_MAX),
            receive_window: AtomicU32::new(0),
            delivered: AtomicU64::new(0),
            credit_until: AtomicU64::new(0),
            lacking: Arc::default(),
            parked: AtomicBool::new(false),
            wake: Notify::new(),
            relayed_sent: AtomicU64::new(0),
            relayed_received: AtomicU64::new(0),
            direct_sent: AtomicU64::new(0),
            direct_received: AtomicU64::new(0),
        };
        (Arc::new(peer), Inputs { probes, commands: command_queue })
    }

    /// From now until it has a route, what the session sends is kept: as many packets as a
    /// provisional flow carries.
    pub(crate) fn keep_first(&self) {
        self.outgoing.lock().first = Some(Vec::new());
    }

    /// Waits for the first packets that are kept; those that a rendezvous message may carry.
    pub(crate) async fn first_packets(&self) -> Vec<Bytes> {
        loop {
            let kept = self.outgoing.lock().first.clone().unwrap_or_default();
            if !kept.is_empty() {
                let fit = kept.into_iter().take(wire::FIRST_PACKETS_MAX);
                return fit.take_while(|p| p.len() <= wire::FIRST_PACKET_MAX).collect();
            }
            self.wake.notified().await;
        }
    }

    /// Keeps segments of `contents` for the route that is awaited. False: none is.
    pub(crate) fn keep(
        &self,
        first: &mut Option<Vec<Bytes>>,
        contents: &[u8],
        segment: usize,
    ) -> bool {
        let Some(first) = first else { return false };
        let room = FIRST_KEPT - first.len();
        first.extend(contents.chunks(segment).take(room).map(Bytes::copy_from_slice));
        self.wake.notify_one();
        true
    }

    pub(crate) fn probe(&self, from: Path, sealed: &[u8]) {
        // A full queue drops: probes are repeated.
        let _ = self.probe_queue.try_send((from, Bytes::copy_from_slice(sealed)));
    }

    pub(crate) fn command(&self, command: Command) {
        // The session may have ended.
        let _ = self.commands.send(command);
    }

    #[inline]
    pub(crate) fn sent(&self, now_ns: impl FnOnce() -> u64) {
        if self.unanswered.load(Relaxed) == 0 {
            // One of this side and the session's task, which parks and then looks, must see the
            // other's word: both stores come before both loads.
            self.unanswered.store(now_ns() + 1, SeqCst);
            if self.parked.load(SeqCst) && self.parked.swap(false, SeqCst) {
                self.wake.notify_one();
            }
        }
    }

    /// Something arrived on the path of this number.
    #[inline]
    pub(crate) fn received(&self, path: u32) {
        if self.unanswered.load(Relaxed) != 0 && self.watched.load(Relaxed) == path {
            self.unanswered.store(0, Relaxed);
        }
    }

    /// The path of this number is in use from now on.
    pub(crate) fn watch(&self, path: u32) {
        self.watched.store(path, Relaxed);
        self.unanswered.store(0, Relaxed);
    }

    /// When the first unanswered packet went out.
    pub(crate) fn unanswered_ns(&self) -> Option<u64> {
        self.unanswered.load(SeqCst).checked_sub(1)
    }

    pub(crate) fn park(&self) {
        self.parked.store(true, SeqCst);
    }
}
