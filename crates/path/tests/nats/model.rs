//! A NAT as RFC 4787 describes it, in so far as it matters for traversal: no timeouts, no hairpin.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use sluice_path::{Filtering, Mapping};

/// How the model gives ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    Preserving,
    Sequential,
    Random,
    Blocks,
}

pub(crate) const PORTS: [Ports; 4] =
    [Ports::Preserving, Ports::Sequential, Ports::Random, Ports::Blocks];
pub(crate) const MAPPINGS: [Mapping; 3] =
    [Mapping::Independent, Mapping::Address, Mapping::AddressAndPort];
pub(crate) const FILTERINGS: [Filtering; 3] =
    [Filtering::Independent, Filtering::Address, Filtering::AddressAndPort];

const LOWEST: u16 = 1024;
const BLOCK: u16 = 512;

/// What a mapping is found by: the local port and, as the behaviour says, the destination.
type Key = (u16, Option<IpAddr>, Option<u16>);

#[derive(Debug)]
struct Entry {
    local_port: u16,
    sent_to: BTreeSet<SocketAddr>,
}

#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) mapping: Mapping,
    pub(crate) filtering: Filtering,
    ports: Ports,
    pub(crate) ip: IpAddr,
    keys: BTreeMap<Key, u16>,
    entries: BTreeMap<u16, Entry>,
    next: u16,
    block: u16,
    random: u64,
}

impl Nat {
    pub(crate) fn new(
        mapping: Mapping,
        filtering: Filtering,
        ports: Ports,
        ip: [u8; 4],
        seed: u64,
    ) -> Self {
        let mut nat = Self {
            mapping,
            filtering,
            ports,
            ip: ip.into(),
            keys: BTreeMap::new(),
            entries: BTreeMap::new(),
            next: 0,
            block: 0,
            random: seed,
        };
        nat.next = LOWEST + nat.draw(60_000);
        nat.block = LOWEST + nat.draw(120) * BLOCK;
        nat
    }

    fn draw(&mut self, below: u16) -> u16 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u16::try_from((self.random >> 33) % u64::from(below)).expect("below")
    }

    fn allocate(&mut self, local_port: u16) -> u16 {
        loop {
            let port = match self.ports {
                Ports::Preserving => {
                    let free = (local_port..).find(|p| !self.entries.contains_key(p));
                    free.expect("a free port")
                }
                Ports::Sequential => {
                    self.next = if self.next == u16::MAX { LOWEST } else { self.next + 1 };
                    self.next
                }
                Ports::Random => LOWEST + self.draw(u16::MAX - LOWEST),
                Ports::Blocks => self.block + self.draw(BLOCK),
            };
            if !self.entries.contains_key(&port) {
                return port;
            }
        }
    }

    /// A packet leaves: its public source.
    pub(crate) fn outbound(&mut self, local_port: u16, to: SocketAddr) -> SocketAddr {
        let key = match self.mapping {
            Mapping::Independent => (local_port, None, None),
            Mapping::Address => (local_port, Some(to.ip()), None),
            Mapping::AddressAndPort => (local_port, Some(to.ip()), Some(to.port())),
        };
        let port = match self.keys.get(&key) {
            Some(port) => *port,
            None => {
                let port = self.allocate(local_port);
                self.keys.insert(key, port);
                self.entries.insert(port, Entry { local_port, sent_to: BTreeSet::new() });
                port
            }
        };
        self.entries.get_mut(&port).expect("an entry").sent_to.insert(to);
        SocketAddr::new(self.ip, port)
    }

    /// A packet arrives: the local port that gets it, if it is let in.
    pub(crate) fn inbound(&self, from: SocketAddr, port: u16) -> Option<u16> {
        let entry = self.entries.get(&port)?;
        let let_in = match self.filtering {
            Filtering::Independent => true,
            Filtering::Address => entry.sent_to.iter().any(|to| to.ip() == from.ip()),
            Filtering::AddressAndPort => entry.sent_to.contains(&from),
        };
        let_in.then_some(entry.local_port)
    }

    /// Somebody else of the household opens a connection.
    pub(crate) fn neighbour(&mut self) {
        let local_port = 50_000 + self.draw(10_000);
        self.outbound(local_port, "203.0.113.200:443".parse().expect("an address"));
    }
}
