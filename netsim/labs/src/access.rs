//! How a home reaches the internet.

use std::fmt;
use std::net::Ipv4Addr;

/// What stands between a machine at home and the internet.
///
/// Mapping and filtering are those of RFC 4787. Linux keeps a packet's source port unless it is taken
/// towards the same destination, so that with one machine behind it, mapping does not depend on the
/// destination except where ports are drawn at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// A public address on the machine itself.
    Public,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering: the common home router.
    PortRestricted,
    /// Address- and port-dependent mapping at random ports, and filtering alike.
    Symmetric,
    /// A home router behind a carrier's NAT, both [`Self::PortRestricted`]; 100.64.0.0/10 between.
    Cgnat,
    /// A home router and a firewall that passes nothing but TCP to port 443.
    UdpBlocked,
}

impl Access {
    /// Rules of nftables for a router whose outer interface is `wan`, with this address, and whose
    /// inner one is `lan`.
    #[must_use]
    pub(crate) fn rules(self, wan: Ipv4Addr) -> String {
        match self {
            Self::Public => String::new(),
            Self::FullCone => nat_and_filter(&full_cone(wan), "accept"),
            Self::AddressRestricted => nat_and_filter(&full_cone(wan), CONTACTED_ONLY),
            Self::PortRestricted | Self::Cgnat => nat_and_filter(MASQUERADE, ""),
            Self::Symmetric => nat_and_filter(MASQUERADE_AT_RANDOM, ""),
            Self::UdpBlocked => {
                nat_and_filter(MASQUERADE, "")
                    + "insert rule ip filter forward iifname \"lan\" tcp dport != 443 drop\n\
                 insert rule ip filter forward iifname \"lan\" meta l4proto != tcp drop\n"
            }
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Public => "no NAT",
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::Cgnat => "CGNAT",
            Self::UdpBlocked => "UDP blocked",
        })
    }
}

const MASQUERADE: &str = "chain out {
    type nat hook postrouting priority srcnat;
    oifname \"wan\" masquerade
}";

const MASQUERADE_AT_RANDOM: &str = "chain out {
    type nat hook postrouting priority srcnat;
    oifname \"wan\" masquerade fully-random
}";

const CONTACTED_ONLY: &str = "ip saddr . ip daddr . udp dport @contacted accept";

/// Whoever sends to a port that a machine inside sent from, reaches that machine.
fn full_cone(wan: Ipv4Addr) -> String {
    format!(
        "map inside {{
    type inet_service : ipv4_addr . inet_service
    flags dynamic, timeout
    size 65535
}}
chain out {{
    type nat hook postrouting priority srcnat;
    oifname \"wan\" meta l4proto udp update @inside {{ udp sport timeout 5m : ip saddr . udp sport }} snat to {wan}
    oifname \"wan\" masquerade
}}
chain in {{
    type nat hook prerouting priority dstnat;
    iifname \"wan\" meta l4proto udp dnat ip to udp dport map @inside
}}"
    )
}

/// `unasked` is the rule for packets from outside that belong to no known flow.
///
/// The router itself drops what nobody asked for. If it answered instead, the kernel would remember
/// the packet as a flow of its own, and a punch from inside would get another port.
fn nat_and_filter(nat: &str, unasked: &str) -> String {
    let unasked = match unasked {
        "" => String::new(),
        rule => format!("iifname \"wan\" {rule}"),
    };
    format!(
        "table ip nat {{
{nat}
}}
table ip filter {{
set contacted {{
    type ipv4_addr . ipv4_addr . inet_service
    flags dynamic, timeout
    size 65535
}}
chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname \"lan\" meta l4proto udp update @contacted {{ ip daddr . ip saddr . udp sport timeout 5m }}
    iifname \"lan\" accept
    ct state established,related accept
    {unasked}
}}
chain input {{
    type filter hook input priority filter; policy accept;
    iifname \"wan\" ct state established,related accept
    iifname \"wan\" drop
}}
}}
"
    )
}
