//! The data socket of a node, and sessions that outlive the paths under them.
//!
//! A [`Node`] has one UDP socket. quinn runs on it through our `AsyncUdpSocket`, which tells QUIC
//! packets and Sluice frames apart by their first byte:
//!
//! ```text
//!            quinn::Endpoint  (sessions, and control connections to relays)
//!                   |  ^
//!  fake address of a session, or a relay's real one
//!                   v  |
//!      +------------------------------+
//!      | DataSocket                   |   per session: route + batch (up to 40 segments)
//!      |  out: route, header, batch   |   relayed: 19-byte header and tag in front
//!      |  in: sort, check, strip      |   direct: the bare QUIC packet
//!      +------------------------------+
//!                   |  ^
//!                  UDP socket
//! ```
//!
//! To quinn a session's peer has a made-up address that never changes, so a change of path is
//! invisible to it; only the congestion controller is told (a path epoch). Which route a session
//! takes is decided by `sluice_path::Agent`; a task per session drives it.
//!
//! [`RelayLink`] holds the control connection to one relay and makes it again when it breaks.
//! A tenant's [`Node::connect`] knocks through it: a Noise IK message that only the provider can
//! read; its keys seal the probes afterwards.
//!
//! Where UDP does not reach a relay, a stream of TLS over TCP carries the same packets. The data
//! socket looks up, for each batch, whether a stream leads to the relay; what comes over it is sorted
//! as if it had come from the relay's address. Sessions, keys and flows do not notice.
//!
//! Before an address is proven the socket drops QUIC from it: only relays that this node dialled,
//! addresses that completed a sealed probe, and tagged frames of known flows are heard.

#![expect(
    clippy::disallowed_methods,
    reason = "this crate is the node's clock, socket and source of randomness"
)]

mod addresses;
mod clock;
mod connection_ids;
mod epoch;
mod keys;
mod knock;
mod leg;
mod link;
mod mapping;
mod messages;
mod network;
mod node;
mod observe;
mod pause;
mod payload;
mod peer;
mod random;
mod session;
mod side;
mod socket;
mod stream;
mod survey;
mod tables;
mod timer;
mod tls;

pub use clock::{Clock, Elapsed};
pub use connection_ids::ConnectionIds;
pub use keys::{ResetKey, TokenKey};
pub use knock::{NoiseKeys, RendezvousError};
pub use link::{LinkEvent, LinkState, RelayLink};
pub use messages::{MessageError, MessageReader, send_message};
pub use network::{Fabric, Network};
pub use node::{AcceptPolicy, BindError, ConnectError, Node, NodeConfig};
pub use random::Random;
pub use session::{PathBytes, PathInfo, Session, relay_has_room};
pub use sluice_path::{Kind as PathKind, Reason as PathReason};
pub use socket::SocketStats;
pub use stream::{PacketSink, PacketStream, StreamAcceptor, StreamEnd, StreamQueue};
pub use survey::{NatOptions, NatState, RelayView};
pub use tls::{TlsError, client_config, export, peer_of, server_config};
