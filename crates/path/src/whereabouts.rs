//! Where this node is, and which addresses are near it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where this node is, as far as that tells whose addresses are near it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whereabouts {
    /// How relays see it.
    pub public: Vec<IpAddr>,
    /// The addresses of its interfaces.
    pub hosts: Vec<IpAddr>,
}

impl Whereabouts {
    /// Whether an address is of this node's own household or of its carrier's: private, its
    /// router's, or in its IPv6 prefix.
    pub(crate) fn is_near(&self, ip: IpAddr) -> bool {
        let ip = embedded(ip);
        is_private(ip)
            || self.public.iter().any(|own| embedded(*own) == ip)
            || self.hosts.iter().any(|own| same_prefix(*own, ip))
    }

    /// Whether relays see this node at that address too, or in its prefix: then the other node is
    /// behind the same NAT, or in the same household.
    pub(crate) fn is_shared(&self, ip: IpAddr) -> bool {
        self.public.iter().any(|own| embedded(*own) == embedded(ip) || same_prefix(*own, ip))
    }

    /// Whether relays see this node without a NAT in between, on a network of private addresses.
    pub(crate) fn is_private(&self) -> bool {
        self.public.iter().any(|own| is_private(embedded(*own)))
    }
}

/// Bits of an IPv6 prefix that a household is given at the most often (RFC 6177).
const HOUSEHOLD_PREFIX: u32 = 56;

fn same_prefix(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()) >> (128 - HOUSEHOLD_PREFIX) == 0
        }
        (IpAddr::V4(_), _) | (_, IpAddr::V4(_)) => false,
    }
}

/// The IPv4 address that a translated or mapped IPv6 address stands for: `::ffff:0:0/96`,
/// `64:ff9b::/96` (RFC 6052), `2002::/16` (RFC 3056).
fn embedded(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    let of = |bits: u128| IpAddr::V4(Ipv4Addr::from_bits(bits as u32));
    let bits = v6.to_bits();
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => of(bits & 0xffff_ffff),
        [0x2002, ..] => of(bits >> 80 & 0xffff_ffff),
        _ => IpAddr::V6(v6),
    }
}

/// Whether an address means something only within some network: RFC 1918, RFC 6598 (carriers),
/// RFC 3927, RFC 4193, RFC 4291 and RFC 8215.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let carrier = a == 100 && (64..128).contains(&b);
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || carrier
        }
        IpAddr::V6(ip) => {
            let translated = ip.segments()[..3] == [0x64, 0xff9b, 1];
            let local = ip == Ipv6Addr::LOCALHOST;
            local || ip.is_unique_local() || ip.is_unicast_link_local() || translated
        }
    }
}
