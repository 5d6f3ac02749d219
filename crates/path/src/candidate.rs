//! Addresses at which a node may be reached.

use std::net::{IpAddr, SocketAddr};

use crate::CANDIDATES_MAX;

/// Where an address comes from, the most promising kind first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// The router forwards a port: PCP, NAT-PMP or UPnP.
    PortMapped,
    /// A relay sees it.
    Reflexive,
    /// An IPv6 address of an interface: no NAT, at most a firewall.
    Ipv6,
    /// An IPv4 address of an interface: for whoever is in the same network.
    Host,
}

/// An address of this node and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Its kind.
    pub kind: CandidateKind,
    /// The address.
    pub address: SocketAddr,
}

impl Candidate {
    /// An address of an interface.
    #[must_use]
    pub fn host(address: SocketAddr) -> Self {
        let kind = match address.ip().to_canonical() {
            IpAddr::V4(_) => CandidateKind::Host,
            IpAddr::V6(_) => CandidateKind::Ipv6,
        };
        Self { kind, address }
    }
}

/// The candidates that the other node shall be told: usable, each address once under its best
/// kind, the best kinds first, at most [`CANDIDATES_MAX`].
#[must_use]
pub fn to_tell(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort();
    let mut told: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let known = told.iter().any(|c| c.address == candidate.address);
        if told.len() < CANDIDATES_MAX && !known && usable(&candidate.address) {
            told.push(candidate);
        }
    }
    told
}

/// Whether an address that the other node named can be one: a unicast address with a port, and not
/// the wildcard. Loopback and private addresses are, since both nodes may be on one machine or one
/// LAN; whether anything is sent there depends on what relays see.
#[must_use]
pub fn usable(addr: &SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let unicast = match ip {
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_multicast() && ip.octets()[0] != 0,
        IpAddr::V6(ip) => !ip.is_multicast(),
    };
    unicast && !ip.is_unspecified() && addr.port() != 0
}
