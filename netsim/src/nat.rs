//! A NAT as RFC 4787 describes them: mapping, filtering, allocation of ports, timers, hairpinning.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::rng::Rng;

/// Lowest port that a NAT gives (RFC 4787, section 4.2.2).
const LOWEST: u16 = 1024;
/// Ports of a customer's block: carriers give 512 to 2,048.
const BLOCK: u16 = 512;

/// On what a mapping or a filter depends besides the inside endpoint (RFC 4787, sections 4.1, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dependence {
    /// On nothing.
    Endpoint,
    /// On the remote address.
    Address,
    /// On the remote address and port.
    AddressAndPort,
}

impl Dependence {
    /// From the kindest to the strictest.
    pub const ALL: [Self; 3] = [Self::Endpoint, Self::Address, Self::AddressAndPort];

    /// What of a remote endpoint it looks at.
    fn part(self, remote: SocketAddr) -> Option<(IpAddr, u16)> {
        match self {
            Self::Endpoint => None,
            Self::Address => Some((remote.ip(), 0)),
            Self::AddressAndPort => Some((remote.ip(), remote.port())),
        }
    }
}

/// How the outside port of a new mapping is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Allocator {
    /// The inside port if it is free, or else the next one that is.
    Preserving,
    /// One after the other.
    Sequential,
    /// Any.
    Random,
    /// Any of a block that the inside address has.
    Blocks,
}

impl Allocator {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Preserving, Self::Sequential, Self::Random, Self::Blocks];
}

/// What a NAT is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatSpec {
    /// On what a mapping depends.
    pub mapping: Dependence,
    /// Whom a mapping lets in.
    pub filtering: Dependence,
    /// How ports are chosen.
    pub allocator: Allocator,
    /// A mapping over which nothing went for this long is forgotten.
    pub timeout: Duration,
    /// Whether what arrives from outside keeps a mapping as well.
    pub inbound_refreshes: bool,
    /// Whether insiders reach one another at their outside addresses.
    pub hairpins: bool,
    /// Mappings that it can hold.
    pub entries_max: usize,
}

impl NatSpec {
    /// A NAT with a timer of 2 minutes, the least that RFC 4787 allows.
    #[must_use]
    pub const fn new(mapping: Dependence, filtering: Dependence, allocator: Allocator) -> Self {
        Self {
            mapping,
            filtering,
            allocator,
            timeout: Duration::from_secs(120),
            inbound_refreshes: true,
            hairpins: false,
            entries_max: 4000,
        }
    }
}

type Key = (SocketAddr, Option<(IpAddr, u16)>);

#[derive(Debug)]
struct Entry {
    key: Key,
    /// Whom it sent to, as the filter sees them.
    contacted: BTreeSet<Option<(IpAddr, u16)>>,
    used: u64,
    /// Made by a port mapping protocol: lets anybody in, and stays.
    is_fixed: bool,
}

/// A NAT at work.
#[derive(Debug)]
pub struct Nat {
    spec: NatSpec,
    outside: Ipv4Addr,
    by_key: BTreeMap<Key, u16>,
    by_port: BTreeMap<u16, Entry>,
    blocks: BTreeMap<IpAddr, Vec<u16>>,
    next: u16,
    rng: Rng,
    peak: usize,
    refused: u64,
    /// No mapping ends before this.
    check_at: u64,
}

impl Nat {
    pub(crate) fn new(spec: NatSpec, outside: Ipv4Addr, mut rng: Rng) -> Self {
        let next = LOWEST + rng.below(u64::from(u16::MAX - LOWEST)) as u16;
        let (by_key, by_port, blocks) = Default::default();
        Self { spec, outside, by_key, by_port, blocks, next, rng, peak: 0, refused: 0, check_at: 0 }
    }

    /// The address that the outside sees.
    #[must_use]
    pub const fn outside(&self) -> Ipv4Addr {
        self.outside
    }

    /// What it is like.
    #[must_use]
    pub const fn spec(&self) -> NatSpec {
        self.spec
    }

    /// From now on it forgets mappings after this.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.spec.timeout = timeout;
        self.check_at = 0;
    }

    /// The most mappings that it held at a time.
    #[must_use]
    pub const fn peak(&self) -> usize {
        self.peak
    }

    /// Mappings that it had no room for.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// It restarts: all mappings are gone; the outside address may be another.
    pub(crate) fn reboot(&mut self, outside: Ipv4Addr) {
        *self = Self::new(self.spec, outside, self.rng.split());
    }

    /// The same NAT, but each mapping gets another port: what a rebinding looks like from outside.
    pub(crate) fn rebind(&mut self) {
        self.by_key.clear();
        self.by_port.clear();
    }

    /// Opens `port` outside for everybody, towards `inside`.
    pub(crate) fn map_port(&mut self, inside: SocketAddr, port: u16) {
        let key = (inside, None);
        let entry = Entry { key, contacted: BTreeSet::new(), used: 0, is_fixed: true };
        self.by_port.insert(port, entry);
        self.by_key.insert(key, port);
    }

    /// A packet goes out: the source that the outside sees; `None` if there is no room.
    pub(crate) fn outward(
        &mut self,
        inside: SocketAddr,
        remote: SocketAddr,
        now: u64,
    ) -> Option<SocketAddr> {
        self.expire(now);
        let fixed = self.by_key.get(&(inside, None)).copied();
        let key = (inside, self.spec.mapping.part(remote));
        let known =
            self.by_key.get(&key).copied().or_else(|| {
                fixed.filter(|port| self.by_port.get(port).is_some_and(|e| e.is_fixed))
            });
        let port = match known {
            Some(port) => port,
            None => self.open(key)?,
        };
        let part = self.spec.filtering.part(remote);
        let entry = self.by_port.get_mut(&port)?;
        entry.used = now;
        entry.contacted.insert(part);
        Some(SocketAddr::new(IpAddr::V4(self.outside), port))
    }

    /// A packet comes from outside to `port`: whom it is for, if it is let in.
    pub(crate) fn inward(&mut self, port: u16, remote: SocketAddr, now: u64) -> Option<SocketAddr> {
        self.expire(now);
        let part = self.spec.filtering.part(remote);
        let refreshes = self.spec.inbound_refreshes;
        let entry = self.by_port.get_mut(&port)?;
        if !entry.is_fixed && !entry.contacted.contains(&part) {
            return None;
        }
        if refreshes {
            entry.used = now;
        }
        Some(entry.key.0)
    }

    fn open(&mut self, key: Key) -> Option<u16> {
        if self.by_port.len() >= self.spec.entries_max {
            self.refused += 1;
            return None;
        }
        let port = self.choose(key.0)?;
        self.by_key.insert(key, port);
        let entry = Entry { key, contacted: BTreeSet::new(), used: 0, is_fixed: false };
        self.by_port.insert(port, entry);
        self.peak = self.peak.max(self.by_port.len());
        Some(port)
    }

    fn choose(&mut self, inside: SocketAddr) -> Option<u16> {
        match self.spec.allocator {
            Allocator::Preserving => self.free_from(inside.port().max(LOWEST)),
            Allocator::Sequential => {
                let port = self.free_from(self.next)?;
                self.next = following(port);
                Some(port)
            }
            Allocator::Random => loop {
                let port = LOWEST + self.rng.below(u64::from(u16::MAX - LOWEST) + 1) as u16;
                if !self.by_port.contains_key(&port) {
                    return Some(port);
                }
            },
            Allocator::Blocks => Some(self.of_a_block(inside.ip())),
        }
    }

    /// The first free port at or after `from`. `entries_max` leaves some.
    fn free_from(&self, from: u16) -> Option<u16> {
        let mut port = from;
        while self.by_port.contains_key(&port) {
            port = following(port);
            if port == from {
                return None;
            }
        }
        Some(port)
    }

    fn of_a_block(&mut self, inside: IpAddr) -> u16 {
        loop {
            for first in self.blocks.get(&inside).into_iter().flatten() {
                let free: Vec<u16> =
                    (*first..first + BLOCK).filter(|p| !self.by_port.contains_key(p)).collect();
                if !free.is_empty() {
                    return self.rng.pick(&free);
                }
            }
            let blocks = u64::from((u16::MAX - LOWEST) / BLOCK);
            let first = LOWEST + self.rng.below(blocks) as u16 * BLOCK;
            self.blocks.entry(inside).or_default().push(first);
        }
    }

    fn expire(&mut self, now: u64) {
        if now < self.check_at {
            return;
        }
        let timeout = self.spec.timeout.as_nanos() as u64;
        self.check_at = now + timeout;
        let by_key = &mut self.by_key;
        self.by_port.retain(|_, entry| {
            let lives = entry.is_fixed || now.saturating_sub(entry.used) < timeout;
            if !lives {
                by_key.remove(&entry.key);
            } else if !entry.is_fixed {
                self.check_at = self.check_at.min(entry.used + timeout);
            }
            lives
        });
    }
}

const fn following(port: u16) -> u16 {
    if port == u16::MAX { LOWEST } else { port + 1 }
}
