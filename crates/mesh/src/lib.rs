//! The mesh: how nodes find one another, with nobody in the middle.
//!
//! A [`Mesh`] is a handle to one task that owns a libp2p swarm over QUIC and TCP. It carries control
//! only, never a tenant's byte:
//!
//! - **records** in Kademlia: what each node publishes about itself, under its own id. A record is
//!   checked before it is stored, handed on or given to the caller; the newest counts, and two
//!   different ones of one number are evidence ([`Records`]).
//! - **gossip** on topics: bytes that the application judges before they go on; who brings rubbish
//!   loses its score, and then its hearing.
//! - **control**: one request and one answer between two nodes, also through a circuit of relay v2
//!   to a node behind NAT.
//!
//! ```text
//!   Mesh --commands (bounded)--> task { swarm } --events (bounded)--> MeshEvents
//! ```
//!
//! Nobody waits for a slow reader: an event that does not fit is dropped and counted, and a message
//! of gossip with it.
//!
//! A node that AutoNAT v2 finds reachable serves the DHT; any other is its client and keeps
//! reservations at two relays. It begins with any of: configured addresses, a DNS name, the LAN,
//! peers that it remembers; and tries again for as long as it has few.

#![expect(
    clippy::disallowed_methods,
    reason = "this crate reads the clocks and the randomness of the mesh"
)]

mod behaviour;
mod clock;
mod config;
mod control;
mod event;
mod gossip;
mod mesh;
mod own;
mod records;
mod remembered;
mod reserve;
mod seeds;
mod store;
mod task;

pub use config::{KeepSequence, MeshConfig, MeshLimits, is_private, is_public_ip, mesh_addresses};
pub use control::CONTROL_MAX;
pub use event::{Counts, Gossip, MeshEvent, MeshEvents, MeshStatus, Request, Verdict};
pub use gossip::GOSSIP_MAX;
pub use libp2p::Multiaddr;
pub use mesh::{FindError, GossipError, Mesh, MeshError, PublishError, RequestError};
pub use own::{OwnRecord, Published};
pub use records::{EVIDENCE_MAX, Equivocation, RECORDS_MAX, Records, Refused, Taken, record_key};
pub use remembered::{REMEMBERED_MAX, parse_remembered, write_remembered};
