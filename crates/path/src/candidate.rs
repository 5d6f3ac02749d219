//! Which addresses may be probed.

use std::net::{IpAddr, SocketAddr};

/// Whether an address that the other node named may be probed at all: a unicast address with a
/// port, and not the wildcard. Loopback and private addresses are allowed, since both nodes may
/// be on one machine or one LAN; what is sent there is a handful of sealed probes, never a
/// connection.
#[must_use]
pub fn usable(addr: &SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let unicast = match ip {
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_multicast() && ip.octets()[0] != 0,
        IpAddr::V6(ip) => !ip.is_multicast(),
    };
    unicast && !ip.is_unspecified() && addr.port() != 0
}
