//! Which kind of path to expect with whom.

use sluice_path::{Allocator, Filtering, Mapping, Nat, Role, role};

use super::Findings;

/// How a network can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Directly, within a few round trips.
    Direct,
    /// Directly, once a port was guessed.
    Guess,
    /// Through a relay.
    Relay,
}

impl Reach {
    /// In one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Guess => "guess",
            Self::Relay => "relay",
        }
    }
}

/// What to expect with one kind of network at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The network at the other end.
    pub peer: &'static str,
    /// How it is reached.
    pub reach: Reach,
    /// Why.
    pub why: String,
}

const fn nat(mapping: Mapping, filtering: Filtering) -> Nat {
    Nat { mapping: Some(mapping), filtering: Some(filtering), allocator: None }
}

/// The networks that people are in.
const NETWORKS: [(&str, Nat); 3] = [
    (
        "a public address, IPv6 or a forwarded port",
        nat(Mapping::Independent, Filtering::Independent),
    ),
    ("a home router", nat(Mapping::Independent, Filtering::AddressAndPort)),
    (
        "a symmetric NAT: many mobile and company networks",
        nat(Mapping::AddressAndPort, Filtering::AddressAndPort),
    ),
];

/// What to expect with whom.
#[must_use]
pub fn expect(found: &Findings) -> Vec<Expectation> {
    let networks = NETWORKS.iter().map(|(peer, nat)| {
        let (reach, why) = with(found, nat);
        Expectation { peer, reach, why }
    });
    let blocked = Expectation {
        peer: "a network that blocks UDP",
        reach: Reach::Relay,
        why: "that network lets only TCP out".to_owned(),
    };
    networks.chain([blocked]).collect()
}

fn with(found: &Findings, peer: &Nat) -> (Reach, String) {
    if found.over_udp().next().is_none() {
        let why = if found.any_relay() { "UDP is blocked here" } else { "no relay is reached" };
        return (Reach::Relay, why.to_owned());
    }
    if found.is_open() {
        return (Reach::Direct, "anybody can reach this machine".to_owned());
    }
    let own = &found.nat;
    match (own.is_independent(), peer.is_independent()) {
        (true, true) => {
            return (Reach::Direct, "both routers keep one port for everybody".to_owned());
        }
        (true, false) if lets_other_ports_in(own) => {
            return (Reach::Direct, "this router lets answers in from other ports".to_owned());
        }
        (false, true) if lets_other_ports_in(peer) => {
            return (Reach::Direct, "the other end lets anybody in".to_owned());
        }
        (true | false, true | false) => {}
    }
    match role(own, peer, true) {
        Role::Opener => {
            (Reach::Guess, format!("the other end must guess a port here{}", pace(own)))
        }
        Role::Guesser => (Reach::Guess, "a port of the other end must be guessed".to_owned()),
        Role::Neither => (Reach::Relay, "neither end's port can be known".to_owned()),
    }
}

const fn pace(own: &Nat) -> &'static str {
    match own.allocator {
        Some(Allocator::Sequential { .. } | Allocator::Preserving) => ", an easy one",
        Some(Allocator::Blocks { .. }) => ", one of a block",
        Some(Allocator::Random) | None => ", which takes some seconds",
    }
}

const fn lets_other_ports_in(nat: &Nat) -> bool {
    matches!(nat.filtering, Some(Filtering::Independent | Filtering::Address))
}
