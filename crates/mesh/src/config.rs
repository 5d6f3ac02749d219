//! What a node's mesh is told, and its bounds.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use sluice_proto::Keypair;

/// What a node's mesh is told.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The node's identity: the same key as that of its sessions.
    pub key: Keypair,
    /// Where it listens, QUIC and TCP.
    pub listen: Vec<Multiaddr>,
    /// Nodes to begin with: addresses, or names as `/dnsaddr/example.org`.
    pub bootstrap: Vec<Multiaddr>,
    /// Peers that answered when the node ran before.
    pub remembered: Vec<Multiaddr>,
    /// Relays to hold a circuit's reservation at, each with its id; others are found at need.
    pub relays: Vec<Multiaddr>,
    /// Addresses at which it is reached, if the operator knows.
    pub external: Vec<Multiaddr>,
    /// Whether the operator says that it is reached where it listens: then it serves the DHT at once,
    /// tests others' addresses, and needs no reservation. Else AutoNAT decides.
    pub public: bool,
    /// Whether it forwards circuits of others.
    pub relay: bool,
    /// Whether addresses of private networks are dialled: on a LAN, or in tests. Else a stranger
    /// could make a home knock at its own devices.
    pub private: bool,
    /// Whether peers are looked for on the LAN by mDNS.
    pub mdns: bool,
    /// Number of the last record that this node signed.
    pub last_sequence: u64,
    /// Writes that number down before the record goes out; `None`: nothing is kept.
    pub keep: Option<KeepSequence>,
    /// Bounds.
    pub limits: MeshLimits,
}

impl MeshConfig {
    /// A node that listens nowhere and knows nobody.
    #[must_use]
    pub fn new(key: Keypair) -> Self {
        Self {
            key,
            listen: Vec::new(),
            bootstrap: Vec::new(),
            remembered: Vec::new(),
            relays: Vec::new(),
            external: Vec::new(),
            public: false,
            relay: false,
            private: false,
            mdns: false,
            last_sequence: 0,
            keep: None,
            limits: MeshLimits::default(),
        }
    }
}

/// Makes the number of a record durable. It may block: it runs on a thread where that is allowed.
#[derive(Clone)]
pub struct KeepSequence(Arc<Keep>);

type Keep = dyn Fn(u64) -> io::Result<()> + Send + Sync;

impl KeepSequence {
    /// Calls `keep`, which fails if the number would be forgotten by a crash.
    pub fn new(keep: impl Fn(u64) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(keep))
    }

    pub(crate) fn keep(&self, sequence: u64) -> io::Result<()> {
        (self.0)(sequence)
    }
}

impl fmt::Debug for KeepSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeepSequence")
    }
}

/// Bounds on what strangers may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshLimits {
    /// Connections that others opened.
    pub incoming_max: u32,
    /// Connections that this node opened.
    pub outgoing_max: u32,
    /// Connections with one peer: one each way over QUIC and TCP.
    pub per_peer_max: u32,
    /// Attempts under way, each way.
    pub pending_max: u32,
    /// Resident bytes of the whole process above which no connection is taken.
    pub memory_max: usize,
    /// Reservations of others, and circuits, when it is a relay.
    pub reservations_max: usize,
    /// Circuits at once.
    pub circuits_max: usize,
}

impl Default for MeshLimits {
    /// Those of a home; a relay's operator raises them.
    fn default() -> Self {
        Self {
            incoming_max: 256,
            outgoing_max: 256,
            per_peer_max: 4,
            pending_max: 64,
            memory_max: 1 << 30,
            reservations_max: 4096,
            circuits_max: 1024,
        }
    }
}

/// The addresses of a mesh port: QUIC, and TCP with the same number.
#[must_use]
pub fn mesh_addresses(socket: SocketAddr) -> [Multiaddr; 2] {
    let host = || Multiaddr::from(socket.ip());
    let quic = host().with(Protocol::Udp(socket.port())).with(Protocol::QuicV1);
    [quic, host().with(Protocol::Tcp(socket.port()))]
}

/// Whether an address is one of a private network, or of this machine. A name is not.
#[must_use]
pub fn is_private(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => !is_public_ip(ip.into()),
        Some(Protocol::Ip6(ip)) => !is_public_ip(ip.into()),
        Some(_) | None => false,
    }
}

/// Whether an address leads to the same machine everywhere.
#[must_use]
pub fn is_public_ip(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

/// Whether an address leads to one network everywhere: neither private nor through a relay. Names
/// are judged when they are resolved.
pub(crate) fn is_global(address: &Multiaddr) -> bool {
    !address.is_empty() && !is_private(address)
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64;
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_broadcast()
        || ip.is_multicast()
        || ip.is_documentation()
        || shared)
}

const fn is_global_v6(ip: Ipv6Addr) -> bool {
    !(ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local())
}

/// Whether an address goes through a relay.
pub(crate) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|p| p == Protocol::P2pCircuit)
}

/// An address and the id in it, of the last node that it names.
pub(crate) fn peer_of(address: &Multiaddr) -> Option<libp2p::PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        Some(_) | None => None,
    }
}
