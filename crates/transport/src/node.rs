//! A node: one identity, one data socket, one quinn endpoint.

mod accept;
mod rendezvous;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicServerConfig;
use sluice_path::{Budget, Candidate, CandidateKind, GUESSES_MAX, Keepalive, Whereabouts};
use sluice_proto::wire::code;
use sluice_proto::{Keypair, PeerId, RelayAddr, RelayFlow, Ticket};
use tokio::sync::{Notify, mpsc, watch};

use crate::connection_ids::ConnectionIds;
use crate::keys::ResetKey;
use crate::knock::{Door, NoiseKeys, Timestamps};
use crate::link::{self, LinkEvent, RelayLink};
use crate::peer::{Command, Peer, RelayedPath, Route};
use crate::session::{self, Session};
use crate::socket::{DataSocket, SocketStats};
use crate::survey::{self, NatOptions, NatState};
use crate::tables::{FlowEntry, Tables};
use crate::{Clock, Network, Random, TlsError, tls};
use accept::{Expected, accept_sessions};
pub(crate) use rendezvous::{Target, answered};

/// Random bytes of a connection id: 8 bytes with its tag, as short as quinn's own.
const ID_NONCE: usize = 4;
/// Knocks that were answered and whose sessions have not begun.
const EXPECTED_MAX: usize = 1024;
/// Bytes kept of a session that was not accepted yet: its first flight, with room ..
const INCOMING_BUFFER: u64 = 64 << 10;
/// .. and of all of them.
const INCOMING_BUFFERS: u64 = 8 << 20;
/// An attempt to connect is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions that are closed at the end have so long to say so.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// Sessions that wait for `accept`.
const ACCEPT_QUEUE: usize = 64;

/// Who may open sessions to this node.
#[derive(Clone)]
pub enum AcceptPolicy {
    /// Nobody: a tenant.
    Nobody,
    /// Whoever shows an invite issued with this secret.
    Invited([u8; 16]),
}

impl std::fmt::Debug for AcceptPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Invited(_) => "Invited(..)",
        })
    }
}

/// What a node is made of.
#[derive(Debug)]
pub struct NodeConfig {
    /// Its identity: an Ed25519 key.
    pub key: Keypair,
    /// Its static Noise keys.
    pub noise: NoiseKeys,
    /// Where its data socket is bound; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// Keys QUIC's stateless resets; kept on disk, so that a restarted node resets what it forgot.
    pub reset_key: [u8; 64],
    /// Number of this start of the process, above those of all before: of two processes with one key
    /// the later one stands.
    pub incarnation: u64,
    /// Who may connect.
    pub accept: AcceptPolicy,
    /// A session without traffic ends after this.
    pub idle_timeout: Duration,
    /// The clock that everything reads.
    pub clock: Clock,
    /// Where its sockets come from.
    pub network: Network,
    /// Where seeds and numbers come from.
    pub random: Random,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be had.
    #[error(
        "failed to bind UDP {addr}: {error}; choose another port with `bind`, or stop what uses it"
    )]
    Address {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's reason.
        error: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a session could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The relay cannot be reached.
    #[error("relay {relay} cannot be reached: {reason}")]
    Relay {
        /// The relay.
        relay: RelayAddr,
        /// Why.
        reason: String,
    },
    /// The provider is not at the relay, or the relay refused.
    #[error("relay {relay} did not find the provider: {message}")]
    NotThere {
        /// The relay.
        relay: RelayAddr,
        /// Its words.
        message: String,
    },
    /// The provider did not open the door.
    #[error("the provider did not let us in: the ticket may have expired or been withdrawn")]
    NotInvited,
    /// Who answered is not who the ticket names.
    #[error("who answered is not the provider that the ticket names: {0}")]
    WrongPeer(String),
    /// Nobody answered.
    #[error("the provider did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    /// Something else went wrong.
    #[error("the session failed: {0}")]
    Failed(String),
}

/// Shared by everything that belongs to one node.
pub(crate) struct Inner {
    pub(crate) key: Keypair,
    pub(crate) id: PeerId,
    pub(crate) noise: NoiseKeys,
    pub(crate) incarnation: u64,
    pub(crate) clock: Clock,
    pub(crate) network: Network,
    pub(crate) random: Random,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) socket: Arc<DataSocket>,
    pub(crate) tables: Arc<Tables>,
    pub(crate) control_transport: Arc<quinn::TransportConfig>,
    server_crypto: Arc<QuicServerConfig>,
    accept: AcceptPolicy,
    idle_timeout: Duration,
    door: Mutex<Door>,
    timestamps: Timestamps,
    knocking: tokio::sync::Mutex<()>,
    expected: Mutex<HashMap<u64, Expected>>,
    /// Static keys of the initiators of sessions, by the number in their probes.
    initiators: Mutex<HashMap<u64, [u8; 32]>>,
    links: Mutex<Vec<std::sync::Weak<link::Shared>>>,
    /// A session ended.
    ended: Notify,
    /// Counts changes of where this node may be reached.
    pub(crate) address_changes: watch::Sender<u64>,
    /// Counts changes of the links' states.
    pub(crate) link_changes: watch::Sender<u64>,
    /// What is known of this node's NAT.
    pub(crate) nat: watch::Sender<NatState>,
    /// What the sessions' probes may cost this node's NAT.
    pub(crate) budget: Budget,
    pub(crate) nat_options: Mutex<NatOptions>,
    pub(crate) keepalive: Mutex<Keepalive>,
    /// Locked while the router may forward a port.
    pub(crate) mapping: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.id)
    }
}

/// A running node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
    incoming: Arc<tokio::sync::Mutex<mpsc::Receiver<Session>>>,
}

impl Node {
    /// Binds the data socket and starts. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound or the key makes no certificate.
    pub fn bind(config: NodeConfig) -> Result<Self, BindError> {
        let address = |error| BindError::Address { addr: config.bind, error };
        let tables = Arc::new(Tables::default());
        let socket =
            DataSocket::bind(&config.network, config.bind, tables.clone(), config.clock.clone());
        let socket = Arc::new(socket.map_err(address)?);
        let server_crypto = tls::server_config(&config.key, sluice_proto::ALPN_SESSION)?;
        let mut server_config = quinn::ServerConfig::with_crypto(server_crypto.clone());
        server_config
            .max_incoming(EXPECTED_MAX)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFERS)
            .time_source(config.clock.time_source());
        let reset_key = ResetKey::new(&config.reset_key);
        let mut endpoint_config = quinn::EndpointConfig::new(Arc::new(reset_key));
        // The first byte must tell frames and QUIC apart (RFC 9287 would clear the fixed bit).
        let ids_key = (config.random.number(), config.random.number());
        let ids = ConnectionIds::<ID_NONCE>::new(ids_key, config.random.clone());
        endpoint_config
            .grease_quic_bit(false)
            .rng_seed(Some(config.random.bytes()))
            .cid_generator(move || Box::new(ids.clone()));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config,
            Some(server_config),
            socket.clone(),
            config.clock.runtime(),
        )
        .map_err(address)?;
        tokio::spawn(socket.run_flusher());
        let inner = Arc::new(Inner {
            id: config.key.public().to_peer_id(),
            key: config.key,
            noise: config.noise,
            incarnation: config.incarnation,
            clock: config.clock,
            network: config.network,
            random: config.random,
            endpoint,
            socket,
            tables,
            control_transport: Arc::new(session::control_transport()),
            server_crypto,
            accept: config.accept,
            idle_timeout: config.idle_timeout,
            door: Mutex::default(),
            timestamps: Timestamps::default(),
            knocking: tokio::sync::Mutex::default(),
            expected: Mutex::default(),
            initiators: Mutex::default(),
            links: Mutex::default(),
            ended: Notify::new(),
            address_changes: watch::Sender::new(0),
            link_changes: watch::Sender::new(0),
            nat: watch::Sender::new(NatState::default()),
            budget: Budget::default(),
            nat_options: Mutex::new(NatOptions::default()),
            keepalive: Mutex::default(),
            mapping: Arc::default(),
        });
        let (sender, incoming) = mpsc::channel(ACCEPT_QUEUE);
        tokio::spawn(accept_sessions(inner.clone(), sender));
        tokio::spawn(crate::addresses::watch(Arc::downgrade(&inner)));
        tokio::spawn(survey::keep_surveyed(Arc::downgrade(&inner)));
        tokio::spawn(crate::timer::keep_timed(Arc::downgrade(&inner)));
        tokio::spawn(crate::mapping::keep_mapped(Arc::downgrade(&inner)));
        Ok(Self { inner, incoming: Arc::new(tokio::sync::Mutex::new(incoming)) })
    }

    /// The node's name.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.inner.id
    }

    /// Where the data socket is bound.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.socket.bound()
    }

    /// The clock that the node reads.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// What the data socket dropped.
    #[must_use]
    pub fn socket_stats(&self) -> &SocketStats {
        &self.inner.socket.stats
    }

    /// How much this node's NAT may be asked and used; the default until this is called.
    pub fn set_nat_options(&self, options: NatOptions) {
        let entries = options.entries_max.min(GUESSES_MAX);
        *self.inner.nat_options.lock() = NatOptions { entries_max: entries, ..options };
        self.inner.budget.set_entries_max(entries);
        // Whoever looks at the options looks again.
        self.inner.link_changes.send_modify(|count| *count += 1);
    }

    /// What is known of this node's NAT by now, and later.
    #[must_use]
    pub fn nat(&self) -> watch::Receiver<NatState> {
        self.inner.nat.subscribe()
    }

    /// Where this node may be reached, the most promising first.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        self.inner.candidates()
    }

    /// Keeps a link to a relay. With `events` it reserves (a provider), and the receiver's owner
    /// decides on offers; without, it only opens flows (a tenant).
    ///
    /// One that only opens flows is shared with a link to the same relay that there is already.
    #[must_use]
    pub fn link(&self, relay: RelayAddr, events: Option<mpsc::Sender<LinkEvent>>) -> RelayLink {
        self.inner.link(relay, events)
    }

    /// The next session that somebody opened to this node; `None` when the node has shut down.
    pub async fn accept(&self) -> Option<Session> {
        self.incoming.lock().await.recv().await
    }

    /// Opens a session to the ticket's provider through `link`.
    ///
    /// # Errors
    /// Says which part of the way failed.
    pub async fn connect(
        &self,
        ticket: &Ticket,
        link: &RelayLink,
    ) -> Result<Session, ConnectError> {
        let deadline = self.inner.clock.now() + CONNECT_TIMEOUT;
        tokio::select! {
            biased;
            done = self.connect_within(ticket, link) => done,
            () = self.inner.clock.sleep_until(deadline) => Err(ConnectError::Timeout),
        }
    }

    async fn connect_within(
        &self,
        ticket: &Ticket,
        link: &RelayLink,
    ) -> Result<Session, ConnectError> {
        let node = &self.inner;
        let relay = link.relay();
        link.ready().await.map_err(|reason| ConnectError::Relay { relay, reason })?;
        let index = node.tables.next_index();
        let (peer, inputs) = Peer::new(index);
        let guard = Registered { node: node.clone(), peer: Some(peer.clone()) };
        node.tables.peers.write().insert(index, peer.clone());
        let session_number = node.random.number();
        let target = Target {
            id: ticket.peer,
            noise_key: ticket.noise_key,
            invite: Bytes::copy_from_slice(&ticket.invite.0),
            session: session_number,
            relays: ticket.relays.clone(),
        };
        let epoch = Arc::default();
        let connecting = node.begin_handshake(&peer, ticket.peer, &epoch)?;
        // They go with the knock, so that the handshake waits for no flow.
        let first = peer.first_packets().await;
        let with_knock = first.len();
        let knocked = node.knock(link, &target, false, first).await?;
        let path = node.tables.next_index() as u32;
        let counts = RelayFlow::new(link.0.budget.clone());
        node.tables.flows.write().insert(
            (relay.addr, knocked.flow),
            FlowEntry {
                peer: peer.clone(),
                leg: knocked.leg.clone(),
                counts: counts.clone(),
                path,
                initiator: node.noise.public(),
            },
        );
        node.socket.release_held();
        let route =
            Route::Relay { leg: knocked.leg.clone(), flow: knocked.flow, counts: counts.clone() };
        let passed_on = if knocked.passed_on { with_knock } else { 0 };
        node.socket.begin_route(&peer, path, route, passed_on);
        // The QUIC handshake and the rendezvous' answer fly at the same time.
        let answer = async {
            let sealed = answered(knocked.answer.await, relay)?;
            let (_, seal) = knocked
                .knocking
                .finish(session_number, &sealed)
                .map_err(|e| ConnectError::WrongPeer(e.to_string()))?;
            Ok(seal)
        };
        let handshake = async {
            connecting.await.map_err(|e| {
                if let quinn::ConnectionError::TransportError(e) = e {
                    return ConnectError::WrongPeer(e.to_string());
                }
                ConnectError::Failed(e.to_string())
            })
        };
        let (seal, connection) = tokio::try_join!(answer, handshake)?;
        node.tables.probes.write().insert(session_number, peer.clone());
        let path = RelayedPath {
            path,
            link: link.clone(),
            leg: knocked.leg,
            flow: knocked.flow,
            counts,
            seal,
        };
        guard.keep();
        Ok(Session::start(
            node.clone(),
            connection,
            ticket.peer,
            peer,
            inputs,
            path,
            epoch,
            Some(target),
            None,
        ))
    }

    /// Ends all sessions and links, and waits until their last packets are out and the router's port
    /// is given back.
    pub async fn shutdown(&self) {
        tokio::join!(self.inner.end_sessions(), crate::mapping::give_back(&self.inner));
        self.inner.endpoint.close(code::SHUTDOWN.into(), b"shutting down");
        let deadline = self.inner.clock.now() + Duration::from_secs(2);
        tokio::select! {
            biased;
            () = self.inner.endpoint.wait_idle() => {}
            () = self.inner.clock.sleep_until(deadline) => {}
        }
    }
}

/// Forgets a session's entries unless it came to be.
struct Registered {
    node: Arc<Inner>,
    peer: Option<Arc<Peer>>,
}

impl Registered {
    fn keep(mut self) {
        self.peer = None;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(peer) = &self.peer {
            self.node.forget_session(peer);
        }
    }
}

impl Inner {
    pub(crate) fn link(
        self: &Arc<Self>,
        relay: RelayAddr,
        events: Option<mpsc::Sender<LinkEvent>>,
    ) -> RelayLink {
        // Locked until it is there: of two links to one relay neither would live.
        let mut links = self.links.lock();
        links.retain(|l| l.strong_count() > 0);
        let known = links.iter().filter_map(std::sync::Weak::upgrade).map(RelayLink);
        let shared = known.into_iter().find(|l| l.relay().is_same(&relay));
        if let Some(shared) = shared.filter(|_| events.is_none()) {
            return shared;
        }
        let link = link::start(self.clone(), relay, events);
        links.push(Arc::downgrade(&link.0));
        link
    }

    /// A link came up or went down: sessions may have to knock.
    pub(crate) fn link_changed(&self) {
        self.link_changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn addresses_changed(&self) {
        self.address_changes.send_modify(|count| *count += 1);
    }

    /// Closes all sessions. A relay whose control connection ends forwards nothing more, so their
    /// last words go first.
    async fn end_sessions(&self) {
        for peer in self.tables.sessions() {
            peer.command(Command::Shutdown);
        }
        let deadline = self.clock.now() + LAST_WORDS;
        loop {
            let ended = self.ended.notified();
            if self.tables.peers.read().is_empty() {
                return;
            }
            tokio::select! {
                biased;
                () = ended => {}
                () = self.clock.sleep_until(deadline) => return,
            }
        }
    }

    /// Forgets a session that ended.
    pub(crate) fn forget_session(&self, peer: &Arc<Peer>) {
        let gone: Vec<u64> = self
            .tables
            .probes
            .read()
            .iter()
            .filter(|(_, p)| Arc::ptr_eq(p, peer))
            .map(|(session, _)| *session)
            .collect();
        let mut initiators = self.initiators.lock();
        for session in gone {
            initiators.remove(&session);
        }
        drop(initiators);
        self.tables.remove_peer(peer);
        self.ended.notify_waiters();
    }

    pub(crate) fn links(&self) -> Vec<RelayLink> {
        self.links.lock().iter().filter_map(std::sync::Weak::upgrade).map(RelayLink).collect()
    }

    /// Where this node may be reached, as far as it knows.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let mut out: Vec<Candidate> = Vec::new();
        let Ok(bound) = self.socket.bound() else { return out };
        let own = |ip| Candidate::host(SocketAddr::new(ip, bound.port()));
        if bound.ip().is_unspecified() {
            out.extend(self.network.local_addrs().into_iter().map(own));
        } else {
            out.push(own(bound.ip()));
        }
        for link in self.links() {
            if bound.ip().is_unspecified() {
                out.extend(self.network.local_towards(link.relay().addr).map(own));
            }
            let kind = CandidateKind::Reflexive;
            out.extend(link.observed().map(|address| Candidate { kind, address }));
        }
        let state = self.nat.borrow();
        let kind = CandidateKind::PortMapped;
        out.extend(state.mapped.map(|address| Candidate { kind, address }));
        let kind = CandidateKind::Reflexive;
        let seen = state.relays.iter().filter_map(|relay| relay.observed);
        out.extend(seen.map(|address| Candidate { kind, address }));
        sluice_path::to_tell(out)
    }

    /// The same, as messages carry them.
    pub(crate) fn local_candidates(&self) -> Vec<SocketAddr> {
        self.candidates().into_iter().map(|candidate| candidate.address).collect()
    }

    /// Where it is, in its own eyes and those of its relays.
    pub(crate) fn whereabouts(&self) -> Whereabouts {
        let links = self.links();
        let mut out = Whereabouts { public: Vec::new(), hosts: self.network.local_addrs() };
        for link in links {
            out.hosts.extend(self.network.local_towards(link.relay().addr));
            out.public.extend(*link.0.seen_at.lock());
        }
        out.hosts.extend(self.socket.bound().map(|bound| bound.ip()));
        let state = self.nat.borrow();
        let seen = state.relays.iter().filter_map(|relay| relay.observed).chain(state.mapped);
        out.public.extend(seen.map(|seen| seen.ip()));
        drop(state);
        for list in [&mut out.public, &mut out.hosts] {
            list.sort();
            list.dedup();
        }
        out
    }
}
