//! A relay, a provider and a tenant on loopback, and wires that can be tapped, cut and forged on.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "each test uses its part, and anything unexpected fails it"
)]

#[path = "fast.rs"]
mod fast;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) use fast::Fast;
use sluice_proto::eth::keccak256;
use sluice_proto::wire::{control, pay};
use sluice_proto::{Invite, Keypair, RelayAddr, Ticket, Topic, sign};
use sluice_relay::{Relay, RelayConfig, RelayError};
use sluice_transport::{
    AcceptPolicy, Clock, LinkEvent, LinkState, Network, Node, NodeConfig, NoiseKeys, PathKind,
    Random, RelayLink, Session,
};
use tokio::sync::mpsc;

/// Longest wait for something that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Wait for something that must not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);
/// What the provider's invites are issued with.
pub(crate) const SECRET: [u8; 16] = [7; 16];

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn unique() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A node key that no other call in this process gave.
pub(crate) fn some_keypair() -> Keypair {
    let mut bytes = [0x3C; 32];
    bytes[..8].copy_from_slice(&unique().to_be_bytes());
    Keypair::ed25519_from_bytes(bytes).unwrap()
}

/// Waits for what must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: in vain"))
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) async fn start_relay() -> Relay {
    start_relay_at(some_keypair(), loopback()).await
}

pub(crate) async fn start_relay_at(keypair: Keypair, bind: SocketAddr) -> Relay {
    let tcp = Some(loopback());
    let mut config = RelayConfig { threads: 1, tcp, ..RelayConfig::new(keypair, bind) };
    config.limits.openings_per_leg_per_s = 100_000;
    config.limits.openings_per_prefix_per_s = 100_000;
    config.limits.messages_per_s = 100_000;
    config.reset_key = [9; 32];
    // The port of one that was just dropped is free a moment later.
    soon("the port", async {
        loop {
            match Relay::start(config.clone()).await {
                Ok(relay) => break relay,
                Err(RelayError::PortInUse(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

pub(crate) fn relay_addr(relay: &Relay) -> RelayAddr {
    RelayAddr::new(relay.peer(), relay.local_addr())
}

/// A node, its keys, and its link to a relay.
pub(crate) struct Party {
    pub(crate) node: Node,
    pub(crate) key: Keypair,
    pub(crate) noise: NoiseKeys,
    pub(crate) link: RelayLink,
}

pub(crate) fn some_node(key: &Keypair, accept: AcceptPolicy) -> (Node, NoiseKeys) {
    some_node_by(key, accept, Clock::default())
}

pub(crate) fn some_node_by(key: &Keypair, accept: AcceptPolicy, clock: Clock) -> (Node, NoiseKeys) {
    some_node_at(loopback(), key, accept, clock)
}

pub(crate) fn some_node_at(
    bind: SocketAddr,
    key: &Keypair,
    accept: AcceptPolicy,
    clock: Clock,
) -> (Node, NoiseKeys) {
    let mut secret = [0x51; 32];
    secret[..8].copy_from_slice(&unique().to_be_bytes());
    let noise = NoiseKeys::from_secret(secret).unwrap();
    let config = NodeConfig {
        key: key.clone(),
        noise: noise.clone(),
        bind,
        reset_key: [5; 64],
        incarnation: unique(),
        accept,
        idle_timeout: Duration::from_secs(60),
        clock,
        network: Network::Kernel,
        random: Random::default(),
    };
    (Node::bind(config).unwrap(), noise)
}

impl Party {
    /// A provider with a reservation at `relay`.
    pub(crate) async fn provider(relay: RelayAddr) -> Self {
        Self::provider_by(relay, Clock::default()).await
    }

    pub(crate) async fn provider_by(relay: RelayAddr, clock: Clock) -> Self {
        let key = some_keypair();
        let (node, noise) = some_node_by(&key, AcceptPolicy::Invited(SECRET), clock);
        Self::reserving(node, noise, key, relay).await
    }

    /// `node` as a provider.
    pub(crate) async fn reserving(
        node: Node,
        noise: NoiseKeys,
        key: Keypair,
        relay: RelayAddr,
    ) -> Self {
        let (sender, events) = mpsc::channel(1024);
        let link = node.link(relay, Some(sender));
        tokio::spawn(accept_offers(key.clone(), events));
        let party = Self { node, key, noise, link };
        party.reserved().await;
        party
    }

    pub(crate) async fn tenant(relay: RelayAddr) -> Self {
        Self::tenant_by(relay, Clock::default()).await
    }

    pub(crate) async fn tenant_by(relay: RelayAddr, clock: Clock) -> Self {
        let key = some_keypair();
        let (node, noise) = some_node_by(&key, AcceptPolicy::Nobody, clock);
        let link = node.link(relay, None);
        soon("the tenant's link", link.ready()).await.unwrap();
        Self { node, key, noise, link }
    }

    /// Reserves at another relay as well.
    pub(crate) async fn reserve_at(&self, relay: RelayAddr) -> RelayLink {
        let (sender, events) = mpsc::channel(1024);
        let link = self.node.link(relay, Some(sender));
        tokio::spawn(accept_offers(self.key.clone(), events));
        let mut state = link.state();
        let reserved = state.wait_for(|s| matches!(s, LinkState::Reserved(_)));
        soon("the other reservation", reserved).await.unwrap();
        link
    }

    pub(crate) async fn reserved(&self) {
        let mut state = self.link.state();
        let reserved = state.wait_for(|s| matches!(s, LinkState::Reserved(_)));
        soon("the reservation", reserved).await.unwrap();
    }

    /// A ticket for this provider.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket {
            peer: self.node.id(),
            noise_key: self.noise.public(),
            relays: vec![self.link.relay()],
            invite: Invite::issue(&SECRET, 0),
            expires_unix_s: 0,
            services: Vec::new(),
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.node.local_addr().unwrap()
    }
}

/// Accepts whatever a free relay offers.
async fn accept_offers(key: Keypair, mut events: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        if let LinkEvent::Offer { offer, reply, .. } = event {
            let _ = reply.send(Ok(acceptance(&key, &offer)));
        }
    }
}

fn acceptance(key: &Keypair, offer: &control::ReserveOffer) -> pay::Accept {
    let hash = keccak256(&offer.terms.as_ref().unwrap().terms);
    pay::Accept {
        terms_hash: hash.to_vec().into(),
        signature: sign(key, Topic::Accept, &hash).into(),
        channel: None,
        newest: None,
    }
}

/// Opens a session; both of its ends.
pub(crate) async fn session(tenant: &Party, provider: &Party) -> (Session, Session) {
    session_by(tenant, provider, vec![tenant.link.relay()]).await
}

/// The same with a ticket that names these relays.
pub(crate) async fn session_by(
    tenant: &Party,
    provider: &Party,
    relays: Vec<RelayAddr>,
) -> (Session, Session) {
    let ticket = Ticket { relays, ..provider.ticket() };
    let both = async {
        tokio::try_join!(tenant.node.connect(&ticket, &tenant.link), async {
            Ok(provider.node.accept().await.unwrap())
        })
    };
    soon("the session", both).await.unwrap()
}

/// Sends `bytes` from `from` on a new stream and reads them at `to`.
pub(crate) async fn carry(from: &Session, to: &Session, bytes: &[u8]) -> Vec<u8> {
    // What arrived is one window and no more until it is said to be read.
    let send = async {
        let mut stream = from.connection().open_bi().await.unwrap().0;
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
    };
    let receive = async {
        let mut stream = to.connection().accept_bi().await.unwrap().1;
        let mut out = Vec::new();
        let mut total = 0;
        while let Some(chunk) = stream.read_chunk(64 << 10, true).await.unwrap() {
            total += chunk.bytes.len() as u64;
            to.set_delivered(total);
            out.extend_from_slice(&chunk.bytes);
        }
        out
    };
    soon("the bytes", async { tokio::join!(send, receive).1 }).await
}

/// Bytes that look random, but are the same each time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

/// Both ways work, and nothing is changed underway.
pub(crate) async fn works(a: &Session, b: &Session) {
    let bytes = noise(20_000, 4);
    assert_eq!(carry(a, b, &bytes).await, bytes);
    assert_eq!(carry(b, a, &bytes).await, bytes);
}

pub(crate) async fn on_path(session: &Session, kind: PathKind) {
    let mut path = session.path();
    let there = path.wait_for(|p| p.is_some_and(|p| p.kind == kind));
    soon("the path", there).await.unwrap();
}

/// Tells each end where the other is, and allows direct paths.
pub(crate) fn allow_direct(a: &Session, b: &Session) {
    a.set_direct_allowed(true);
    b.set_direct_allowed(true);
    a.add_candidates(&b.local_candidates());
    b.add_candidates(&a.local_candidates());
}

/// Waits until both ends use a direct path.
pub(crate) async fn go_direct(a: &Session, b: &Session) {
    allow_direct(a, b);
    on_path(a, PathKind::Direct).await;
    on_path(b, PathKind::Direct).await;
}

/// Waits until both ends have so many relays that carry their echoes.
pub(crate) async fn warm(a: &Session, b: &Session, count: usize) {
    for session in [a, b] {
        let mut warm = session.warm_relays();
        soon("warm relays", warm.wait_for(|relays| relays.len() == count)).await.unwrap();
    }
}

/// What a [`Wire`] does with a datagram.
pub(crate) type Meddler = Box<dyn FnMut(Toward, &[u8]) -> Vec<Vec<u8>> + Send>;

/// Which way a datagram goes on a [`Wire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toward {
    Relay,
    Node,
}

/// A wire between one node and a relay, and whoever sits on it.
pub(crate) struct Wire {
    pub(crate) addr: RelayAddr,
    inner: Arc<Inner>,
    task: tokio::task::JoinHandle<()>,
}

struct Inner {
    relay: SocketAddr,
    outer: tokio::net::UdpSocket,
    /// One for each of the node's sockets, as a NAT has it.
    upstreams: parking_lot::Mutex<HashMap<SocketAddr, Upstream>>,
    /// Where the node's QUIC comes from.
    node: parking_lot::Mutex<Option<SocketAddr>>,
    meddler: parking_lot::Mutex<Option<Meddler>>,
    to_node: AtomicU64,
    to_relay: AtomicU64,
}

struct Upstream {
    socket: Arc<tokio::net::UdpSocket>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    pub(crate) async fn to(relay: RelayAddr) -> Self {
        let outer = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        let addr = RelayAddr::new(relay.peer, outer.local_addr().unwrap());
        let inner = Arc::new(Inner {
            relay: relay.addr,
            outer,
            upstreams: parking_lot::Mutex::default(),
            node: parking_lot::Mutex::default(),
            meddler: parking_lot::Mutex::default(),
            to_node: AtomicU64::new(0),
            to_relay: AtomicU64::new(0),
        });
        let task = tokio::spawn(inner.clone().carry());
        Self { addr, inner, task }
    }

    /// From now on `meddler` decides what becomes of each datagram.
    pub(crate) fn meddle(&self, meddler: Meddler) {
        *self.inner.meddler.lock() = Some(meddler);
    }

    /// The node has other addresses from now on, as the relay sees them; the old ones are gone.
    pub(crate) fn move_node(&self) {
        self.inner.upstreams.lock().clear();
    }

    pub(crate) fn cut(&self) {
        self.meddle(Box::new(|_, _| Vec::new()));
    }

    pub(crate) fn mend(&self) {
        *self.inner.meddler.lock() = None;
    }

    /// Sends to the node from the relay's address.
    pub(crate) async fn inject(&self, bytes: &[u8]) {
        let node = self.inner.node.lock().unwrap();
        self.inner.outer.send_to(bytes, node).await.unwrap();
    }

    /// Bytes carried so far: to the node, to the relay.
    pub(crate) fn carried(&self) -> (u64, u64) {
        (self.inner.to_node.load(Ordering::Relaxed), self.inner.to_relay.load(Ordering::Relaxed))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
        self.inner.upstreams.lock().clear();
    }
}

impl Inner {
    fn decide(&self, toward: Toward, bytes: &[u8]) -> Vec<Vec<u8>> {
        let count = if toward == Toward::Relay { &self.to_relay } else { &self.to_node };
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        match &mut *self.meddler.lock() {
            Some(meddler) => meddler(toward, bytes),
            None => vec![bytes.to_vec()],
        }
    }

    async fn upstream(self: &Arc<Self>, from: SocketAddr) -> Arc<tokio::net::UdpSocket> {
        if let Some(upstream) = self.upstreams.lock().get(&from) {
            return upstream.socket.clone();
        }
        let socket = Arc::new(tokio::net::UdpSocket::bind(loopback()).await.unwrap());
        socket.connect(self.relay).await.unwrap();
        let task = tokio::spawn(self.clone().carry_back(socket.clone(), from));
        self.upstreams.lock().insert(from, Upstream { socket: socket.clone(), task });
        socket
    }

    async fn carry(self: Arc<Self>) {
        let mut bytes = [0; 65_536];
        loop {
            let Ok((len, from)) = self.outer.recv_from(&mut bytes).await else { continue };
            if bytes[0] & 0xC0 == 0xC0 {
                *self.node.lock() = Some(from);
            }
            let upstream = self.upstream(from).await;
            for datagram in self.decide(Toward::Relay, &bytes[..len]) {
                let _ = upstream.send(&datagram).await;
            }
        }
    }

    async fn carry_back(self: Arc<Self>, upstream: Arc<tokio::net::UdpSocket>, node: SocketAddr) {
        let mut bytes = [0; 65_536];
        loop {
            let Ok(len) = upstream.recv(&mut bytes).await else { continue };
            for datagram in self.decide(Toward::Node, &bytes[..len]) {
                let _ = self.outer.send_to(&datagram, node).await;
            }
        }
    }
}
