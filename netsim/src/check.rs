//! Onlookers that know nothing of the nodes' insides: they see what hosts send and get.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_proto::frame;

use crate::net::{Net, Packet, PlaceId, Seen};

/// Counts the probes that hosts send to one another, relays left out.
#[derive(Debug, Clone, Default)]
pub struct Probes {
    /// In all.
    pub total: u64,
    /// The most that one host sent within a second.
    pub peak: u64,
    /// How many each remote address was sent.
    pub by_target: BTreeMap<IpAddr, u64>,
    recent: BTreeMap<PlaceId, VecDeque<Duration>>,
}

impl Probes {
    /// Counts from now on.
    #[must_use]
    pub fn watch(net: &Net) -> Arc<Mutex<Self>> {
        let probes = Arc::new(Mutex::new(Self::default()));
        let counted = probes.clone();
        net.watch(Box::new(move |at, host, seen, packet| {
            if seen == Seen::Sent && packet.bytes.first() == Some(&frame::PROBE) {
                counted.lock().count(at, host, packet.dst.ip());
            }
        }));
        probes
    }

    fn count(&mut self, at: Duration, host: PlaceId, target: IpAddr) {
        self.total += 1;
        *self.by_target.entry(target).or_default() += 1;
        let recent = self.recent.entry(host).or_default();
        recent.push_back(at);
        while recent.front().is_some_and(|first| at - *first >= Duration::from_secs(1)) {
            recent.pop_front();
        }
        self.peak = self.peak.max(recent.len() as u64);
    }
}

/// What must never be seen on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A session's packet went straight to an address from which no probe had been answered.
    Unproven {
        /// Who sent it.
        host: PlaceId,
        /// Where from.
        from: SocketAddr,
        /// Where to.
        to: SocketAddr,
    },
    /// More probes within a second than a node may send.
    ProbesTooFast(u64),
    /// More probes than a handful to an address that is neither the other node's nor a relay's.
    Bystander {
        /// The address.
        target: IpAddr,
        /// How many.
        probes: u64,
    },
    /// Probes to a private address, although no two nodes are in one home.
    Household {
        /// The address.
        target: IpAddr,
        /// How many.
        probes: u64,
    },
    /// More sockets open at a time than a node may have.
    Sockets(usize),
    /// More NAT entries than a node may use.
    NatEntries(usize),
}

/// Probes that a node may send within a second: 500, and as many as begin the next.
pub const PROBES_PER_SECOND: u64 = 550;
/// Probes that an address may get that is nobody's who takes part.
pub const BYSTANDER_PROBES: u64 = 16;
/// Temporary sockets of a birthday, the data socket, and some to observe the NAT with.
pub const SOCKETS: usize = 256 + 32;
/// Entries that a node may take in a NAT's table: `nat_entries_max` by default.
pub const NAT_ENTRIES: usize = 1024;

/// Checks that no path is used that was never echoed.
///
/// A path is proven at one of its ends once that end has sent a probe on it, and got one from the
/// same address: from whatever port, since the other side's NAT may give its answer another one.
#[derive(Debug, Default)]
pub struct ProvenPaths {
    relays: BTreeSet<IpAddr>,
    /// By host, local port and remote address and port: a probe was sent.
    sent: BTreeSet<(PlaceId, u16, SocketAddr)>,
    /// By host, local port and remote address: a probe was got.
    got: BTreeSet<(PlaceId, u16, IpAddr)>,
    violations: BTreeSet<Violation>,
    direct: u64,
}

impl ProvenPaths {
    /// A checker that knows who the relays are.
    #[must_use]
    pub fn new(relays: BTreeSet<IpAddr>) -> Self {
        Self { relays, ..Self::default() }
    }

    /// Checks from now on.
    #[must_use]
    pub fn watch(self, net: &Net) -> Arc<Mutex<Self>> {
        let checker = Arc::new(Mutex::new(self));
        let watching = checker.clone();
        net.watch(Box::new(move |_, host, seen, packet| {
            watching.lock().see(host, seen, packet);
        }));
        checker
    }

    /// Takes in what a host did or got.
    pub fn see(&mut self, host: PlaceId, seen: Seen, packet: &Packet) {
        let (local, remote) = match seen {
            Seen::Sent => (packet.src, packet.dst),
            Seen::Delivered => (packet.dst, packet.src),
        };
        if self.relays.contains(&local.ip()) || self.relays.contains(&remote.ip()) {
            return;
        }
        let Some(first) = packet.bytes.first().copied() else { return };
        let key = (host, local.port(), remote);
        if first == frame::PROBE {
            match seen {
                Seen::Sent => self.sent.insert(key),
                Seen::Delivered => self.got.insert((host, local.port(), remote.ip())),
            };
        } else if seen == Seen::Sent && !frame::is_frame(first) {
            self.direct += 1;
            let answered = self.got.contains(&(host, local.port(), remote.ip()));
            if !answered || !self.sent.contains(&key) {
                self.violations.insert(Violation::Unproven { host, from: local, to: remote });
            }
        }
    }

    /// What was wrong so far.
    #[must_use]
    pub const fn violations(&self) -> &BTreeSet<Violation> {
        &self.violations
    }

    /// Packets of sessions that went straight from host to host.
    #[must_use]
    pub const fn direct(&self) -> u64 {
        self.direct
    }
}

/// Checks a node's bounds. `known` are the addresses of those who take part.
#[must_use]
pub fn bounds(
    probes: &Probes,
    known: &BTreeSet<IpAddr>,
    sockets: usize,
    nat_entries: usize,
) -> BTreeSet<Violation> {
    let mut out = BTreeSet::new();
    if probes.peak > PROBES_PER_SECOND {
        out.insert(Violation::ProbesTooFast(probes.peak));
    }
    for (target, probes) in &probes.by_target {
        let (target, probes) = (*target, *probes);
        if is_private(target) {
            out.insert(Violation::Household { target, probes });
        } else if probes > BYSTANDER_PROBES && !known.contains(&target) {
            out.insert(Violation::Bystander { target, probes });
        }
    }
    if sockets > SOCKETS {
        out.insert(Violation::Sockets(sockets));
    }
    if nat_entries > NAT_ENTRIES {
        out.insert(Violation::NatEntries(nat_entries));
    }
    out
}

/// The addresses inside homes (RFC 1918, RFC 4193) and between homes and carriers (RFC 6598).
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64,
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}
