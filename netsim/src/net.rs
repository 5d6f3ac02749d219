//! The in-memory network: a tree of hosts and gateways below one core, and what happens on it.
//!
//! Everything that moves is an event in one queue, ordered by time and then by the order in which
//! it was caused. One task takes them out; it sleeps on the virtual clock in between.

mod digest;
mod event;
mod link;
mod queue;
mod socket;
mod world;

use std::net::SocketAddr;

use bytes::Bytes;
use quinn_udp::EcnCodepoint;

pub use digest::Digest;
pub use link::{Bursty, LinkSpec, Taken};
pub use queue::Queueing;
pub use world::{Net, PlaceId, Seen, Watch};

/// One datagram.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Who sent it, as far as this part of the network sees.
    pub src: SocketAddr,
    /// Where it goes.
    pub dst: SocketAddr,
    /// Its ECN bits.
    pub ecn: Option<EcnCodepoint>,
    /// Its payload.
    pub bytes: Bytes,
}
