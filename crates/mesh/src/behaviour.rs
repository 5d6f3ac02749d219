//! The swarm: its transports and the protocols on them.

use std::io;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::transport::{Boxed, OrTransport, global_only, upgrade};
use libp2p::kad::StoreInserts;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, StreamProtocol, Swarm, Transport, allow_block_list, autonat, connection_limits, dcutr,
    dns, gossipsub, identify, kad, mdns, memory_connection_limits, noise, ping, quic, relay,
    request_response, swarm, tcp, yamux,
};

use crate::MeshError;
use crate::config::{MeshConfig, MeshLimits};
use crate::control::ControlCodec;
use crate::gossip;
use crate::records::{RECORDS_MAX, Records};
use crate::store::Store;

/// Our DHT: not that of other networks.
pub(crate) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/sluice/kad/1");
/// Requests and answers between two nodes.
const CONTROL_PROTOCOL: StreamProtocol = StreamProtocol::new("/sluice/control/1");
/// What identify says of us.
const IDENTIFY_VERSION: &str = "/sluice/1";

/// Queries ask so many peers at once: with a fifth of all peers gone, three would wait for their
/// timeouts one after the other.
const PARALLELISM: NonZeroUsize = NonZeroUsize::new(6).expect("not zero");
/// A QUIC handshake is given up after this, time for two lost packets: a query waits for it wherever a
/// peer is gone.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that does not answer within this is passed over.
const QUERY_STREAM_TIMEOUT: Duration = Duration::from_secs(3);
/// A query is given up after this.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Holders hand records on to who has become closer.
const REPLICATION: Duration = Duration::from_secs(600);
/// Largest message of the DHT: a record, or twenty peers with their addresses.
const KAD_PACKET_MAX: usize = 32 * 1024;
/// A connection that nobody uses closes after this: long enough for the next question, short enough
/// to leave a router's table alone.
const IDLE: Duration = Duration::from_secs(60);
/// Whoever connects and then says nothing is given up after this: it takes a place of those under way.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A request is given up after this: a circuit has to be opened within it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests of one connection that are served at once.
const REQUESTS_AT_ONCE: usize = 16;
/// Reservations that one address may ask for at once; many homes share one behind a CGNAT ..
const RESERVATIONS_PER_IP: NonZeroU32 = NonZeroU32::new(256).expect("not zero");
/// .. and one more each.
const RESERVATIONS_PER_IP_EACH: Duration = Duration::from_secs(1);
/// Reservations and circuits that one peer may ask for at once ..
const PER_PEER: NonZeroU32 = NonZeroU32::new(30).expect("not zero");
/// .. and one more each.
const PER_PEER_EACH: Duration = Duration::from_secs(20);

/// The protocols. Those that refuse come first: what they refuse costs the others nothing.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    pub(crate) limits: connection_limits::Behaviour,
    pub(crate) memory: memory_connection_limits::Behaviour,
    pub(crate) blocked: allow_block_list::Behaviour<allow_block_list::BlockedPeers>,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) kad: kad::Behaviour<Store>,
    pub(crate) gossip: gossipsub::Behaviour,
    pub(crate) reachable: autonat::v2::client::Behaviour,
    pub(crate) tests_others: Toggle<autonat::v2::server::Behaviour>,
    pub(crate) circuits: relay::client::Behaviour,
    pub(crate) forwards: Toggle<relay::Behaviour>,
    pub(crate) dcutr: dcutr::Behaviour,
    pub(crate) lan: Toggle<mdns::tokio::Behaviour>,
    pub(crate) control: request_response::Behaviour<ControlCodec>,
}

/// Builds the swarm of a node; it does not listen yet.
///
/// # Errors
/// When the system refuses what it needs.
pub(crate) fn swarm(config: &MeshConfig) -> Result<Swarm<Behaviour>, MeshError> {
    let own = config.key.public().to_peer_id();
    let (circuits, client) = relay::client::new(own);
    let direct = direct_transport(config)?;
    let circuits = circuits
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise_config(config)?)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let transport = OrTransport::new(circuits, direct).map(|either, _| either.into_inner()).boxed();
    let behaviour = behaviour(config, own, client)?;
    let settings = swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE);
    Ok(Swarm::new(transport, behaviour, own, settings))
}

fn noise_config(config: &MeshConfig) -> Result<noise::Config, MeshError> {
    noise::Config::new(&config.key)
        .map_err(|e| MeshError::System("make Noise keys", io::Error::other(e)))
}

/// QUIC and TCP, to addresses and to names.
fn direct_transport(config: &MeshConfig) -> Result<Boxed<(PeerId, StreamMuxerBox)>, MeshError> {
    let mut quic = quic::Config::new(&config.key);
    quic.handshake_timeout = HANDSHAKE_TIMEOUT;
    let quic = quic::tokio::Transport::new(quic)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let tcp = tcp::tokio::Transport::new(tcp::Config::default())
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise_config(config)?)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let both = quic.or_transport(tcp).map(|either, _| either.into_inner()).boxed();
    let allowed = if config.private { both } else { global_only::Transport::new(both).boxed() };
    let resolved = dns::tokio::Transport::system(allowed)
        .map_err(|e| MeshError::System("read the DNS resolver's settings", e))?;
    Ok(TransportTimeout::new(resolved, HANDSHAKE).boxed())
}

fn behaviour(
    config: &MeshConfig,
    own: PeerId,
    circuits: relay::client::Behaviour,
) -> Result<Behaviour, MeshError> {
    let limits = &config.limits;
    let identify = identify::Config::new(IDENTIFY_VERSION.to_owned(), config.key.public())
        .with_agent_version(concat!("sluice/", env!("CARGO_PKG_VERSION")).to_owned())
        // Which networks a home has is nobody's business.
        .with_hide_listen_addrs(!config.private);
    let lan = config.mdns.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), own));
    let lan = lan.transpose().map_err(|e| MeshError::System("open a socket for mDNS", e))?;
    let requests = request_response::Config::default()
        .with_request_timeout(REQUEST_TIMEOUT)
        .with_max_concurrent_streams(REQUESTS_AT_ONCE);
    let protocols = [(CONTROL_PROTOCOL, request_response::ProtocolSupport::Full)];
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(connection_limits(limits)),
        memory: memory_connection_limits::Behaviour::with_max_bytes(limits.memory_max),
        blocked: allow_block_list::Behaviour::default(),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
        kad: kademlia(own),
        gossip: gossip::behaviour(&config.key),
        reachable: autonat::v2::client::Behaviour::default(),
        // A node behind NAT cannot tell: its own mapping is what a dial back would test.
        tests_others: config.public.then(autonat::v2::server::Behaviour::default).into(),
        circuits,
        forwards: config.relay.then(|| relay::Behaviour::new(own, relay_config(limits))).into(),
        dcutr: dcutr::Behaviour::new(own),
        lan: lan.into(),
        control: request_response::Behaviour::with_codec(ControlCodec, protocols, requests),
    })
}

fn connection_limits(limits: &MeshLimits) -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_established_incoming(Some(limits.incoming_max))
        .with_max_established_outgoing(Some(limits.outgoing_max))
        .with_max_established_per_peer(Some(limits.per_peer_max))
        .with_max_pending_incoming(Some(limits.pending_max))
        .with_max_pending_outgoing(Some(limits.pending_max))
}

fn kademlia(own: PeerId) -> kad::Behaviour<Store> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_parallelism(PARALLELISM)
        .set_query_timeout(QUERY_TIMEOUT)
        .set_substreams_timeout(QUERY_STREAM_TIMEOUT)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_replication_interval(Some(REPLICATION))
        // A node publishes its own record anew, with a new number.
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_max_packet_size(KAD_PACKET_MAX);
    let store = Store(Records::new(own, RECORDS_MAX));
    let mut kad = kad::Behaviour::with_config(own, store, config);
    // Its own rule takes a circuit for an address at which the node is reached.
    kad.set_mode(Some(kad::Mode::Client));
    kad
}

/// 128 KiB and 2 minutes a circuit, as the specification has it: circuits are for control. How many
/// there may be is ours.
fn relay_config(limits: &MeshLimits) -> relay::Config {
    let bare = relay::Config {
        max_reservations: limits.reservations_max,
        max_circuits: limits.circuits_max,
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    bare.reservation_rate_per_peer(PER_PEER, PER_PEER_EACH)
        .reservation_rate_per_ip(RESERVATIONS_PER_IP, RESERVATIONS_PER_IP_EACH)
        .circuit_src_per_peer(PER_PEER, PER_PEER_EACH)
        .circuit_src_per_ip(RESERVATIONS_PER_IP, RESERVATIONS_PER_IP_EACH)
}
