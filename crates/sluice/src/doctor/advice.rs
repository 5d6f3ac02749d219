//! What the user can do about it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use sluice_path::{Allocator, Mapping};

use super::{Findings, Mapped, Reached};

/// A relay farther away than this is worth replacing, milliseconds.
const FAR_MS: u128 = 150;
/// A mapping should last longer than this without traffic (RFC 4787, section 4.3).
const TIMER_LEAST: Duration = Duration::from_secs(120);

/// What the user can do, the most useful first. Empty: all is well.
#[must_use]
pub fn advice(found: &Findings) -> Vec<String> {
    let mut out = Vec::new();
    about_relays(found, &mut out);
    if found.over_udp().next().is_some() {
        about_nat(found, &mut out);
    }
    out
}

fn about_relays(found: &Findings, out: &mut Vec<String>) {
    if found.relays.is_empty() {
        out.push(
            "Name a relay with --relay, or in [provide] relays: without one nobody outside this \
             network can reach it, and this command can tell little."
                .to_owned(),
        );
        return;
    }
    for relay in &found.relays {
        if let Reached::No(reason) = &relay.reached {
            out.push(format!(
                "Relay {} was not reached ({reason}). Check its address with whoever runs it, and \
                 that a firewall here lets UDP out to port {}.",
                relay.relay,
                relay.relay.addr.port()
            ));
        }
    }
    if found.any_relay() && found.over_udp().next().is_none() {
        out.push(
            "This network blocks UDP. Sluice goes over TCP, which is slower and never direct. \
             Whoever runs the network can let UDP out to the relays' ports."
                .to_owned(),
        );
    }
    let networks = found.relays.iter().map(|r| network(r.relay.addr.ip()));
    let mut networks: Vec<_> = networks.collect();
    networks.sort();
    networks.dedup();
    if networks.len() < 2 {
        out.push(
            "Name a second relay, of another operator in another network: when one dies, sessions \
             go on through the other."
                .to_owned(),
        );
    }
    let near = found.over_udp().filter_map(|r| r.rtt).map(|rtt| rtt.as_millis()).min();
    if let Some(ms) = near.filter(|ms| *ms > FAR_MS) {
        out.push(format!("The nearest relay is {ms} ms away: one closer by makes all faster."));
    }
}

fn about_nat(found: &Findings, out: &mut Vec<String>) {
    if found.is_open() {
        return;
    }
    let carrier = found.over_udp().filter_map(|r| r.observed).any(|seen| is_shared(seen.ip()))
        || found.addresses.iter().any(|ip| is_shared(*ip));
    let symmetric = matches!(found.nat.mapping, Some(Mapping::Address | Mapping::AddressAndPort));
    if carrier {
        out.push(
            "The provider of this line shares one address among customers (CGNAT). Ask it for a \
             public IPv4 address or for IPv6; no setting of your router changes it."
                .to_owned(),
        );
    } else if found.mapped == Mapped::No {
        out.push(
            "The router forwards no port by itself. Switch on UPnP, NAT-PMP or PCP in it, or forward \
             one UDP port to this machine and name it with `bind`: then everybody reaches it directly."
                .to_owned(),
        );
    }
    if let Some(lost) = found.timer.and_then(|timer| timer.lost).filter(|lost| *lost < TIMER_LEAST)
    {
        out.push(format!(
            "The router forgets UDP mappings within {} s, so that direct paths need frequent \
             keepalives. If it has a setting for that, 5 minutes are usual.",
            lost.as_secs()
        ));
    }
    if symmetric && !found.has_ipv6() {
        let guess = match found.nat.allocator {
            Some(Allocator::Random) | None => "and its ports are hard to guess",
            Some(
                Allocator::Preserving | Allocator::Sequential { .. } | Allocator::Blocks { .. },
            ) => "though its ports can be guessed",
        };
        out.push(format!(
            "The router gives each destination another port ({guess}). IPv6 at both ends, or another \
             router, makes direct paths usual."
        ));
    }
}

/// The address space that carriers share (RFC 6598).
fn is_shared(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            a == 100 && (64..128).contains(&b)
        }
        IpAddr::V6(_) => false,
    }
}

/// The /24 or /48 that an address is in: what one operator is likely to hold.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            std::net::Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
    }
}
