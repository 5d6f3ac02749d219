//! Hosts, gateways and the core: where a packet goes next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn_udp::EcnCodepoint;
use sluice_transport::{Clock, Network};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::event::{Event, Events};
use super::link::{Link, LinkSpec, Taken};
use super::socket::{Bound, HostFabric};
use super::{Digest, Packet};
use crate::nat::{Nat, NatSpec};
use crate::rng::Rng;

/// Lowest port that a host gives to a socket that asked for any (RFC 6056, section 3.2).
const EPHEMERAL: u16 = 32_768;
/// A packet that crossed more places is dropped, as by its hop limit.
const HOPS_MAX: usize = 64;
/// A stateful IPv6 firewall forgets after this (RFC 6092, REC-14: 2 minutes at least).
const FIREWALL_NS: u64 = 120_000_000_000;

/// A host, a gateway, or the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceId(usize);

/// Towards the core or away from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

#[derive(Debug)]
enum Kind {
    Core,
    Host(Host),
    Gateway(Box<Gateway>),
}

#[derive(Debug)]
struct Host {
    addresses: Vec<IpAddr>,
    sockets: BTreeMap<u16, Bound>,
    sockets_peak: usize,
    /// Counts the times that all its programs died.
    life: u64,
}

#[derive(Debug)]
struct Gateway {
    nat: Nat,
    /// Inside and remote endpoints of IPv6 packets that went out, and when.
    firewall: BTreeMap<(SocketAddr, SocketAddr), u64>,
    blocks_udp: bool,
}

#[derive(Debug)]
struct Place {
    parent: Option<PlaceId>,
    up: Link,
    down: Link,
    kind: Kind,
    /// Which child leads to an address.
    routes: BTreeMap<IpAddr, PlaceId>,
}

/// Where a socket is bound, and in which life of its host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local {
    pub(super) addr: SocketAddr,
    life: u64,
}

/// Something that a host did or that befell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It sent the packet.
    Sent,
    /// The packet reached one of its sockets.
    Delivered,
}

/// Looks on. Packets are as the host itself sees them.
pub type Watch = Box<dyn FnMut(Duration, PlaceId, Seen, &Packet) + Send>;

struct World {
    places: Vec<Place>,
    events: Events,
    /// The driver sleeps until then.
    sleeps_until: u64,
    rng: Rng,
    digest: Digest,
    delivered: u64,
    watches: Vec<Watch>,
    /// Pairs of public addresses between which nothing passes.
    cuts: BTreeSet<(IpAddr, IpAddr)>,
    /// The largest IP packets that pass between two public addresses.
    narrow: BTreeMap<(IpAddr, IpAddr), usize>,
    log: bool,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("places", &self.places).finish_non_exhaustive()
    }
}

/// The network. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Net {
    world: Arc<Mutex<World>>,
    driver: Arc<Notify>,
    /// Of the task that drives it.
    task: Arc<OnceLock<AbortHandle>>,
    clock: Clock,
    start: Instant,
}

impl Net {
    /// A network with nothing but its core. Must be called within [`crate::time::run`].
    #[must_use]
    pub fn new(clock: Clock, rng: Rng) -> Self {
        let core = Place {
            parent: None,
            up: Link::new(LinkSpec::default()),
            down: Link::new(LinkSpec::default()),
            kind: Kind::Core,
            routes: BTreeMap::new(),
        };
        let world = World {
            places: vec![core],
            events: Events::default(),
            sleeps_until: u64::MAX,
            rng,
            digest: Digest::default(),
            delivered: 0,
            watches: Vec::new(),
            cuts: BTreeSet::new(),
            narrow: BTreeMap::new(),
            log: std::env::var_os("NETSIM_PACKETS").is_some(),
        };
        let start = clock.now();
        let (world, driver) = (Arc::new(Mutex::new(world)), Arc::default());
        let net = Self { world, driver, task: Arc::default(), clock, start };
        let task = tokio::spawn(net.clone().drive());
        net.task.get_or_init(|| task.abort_handle());
        net
    }

    /// The core, to which everything is attached in the end.
    #[must_use]
    pub const fn core(&self) -> PlaceId {
        PlaceId(0)
    }

    /// The clock that all hosts read.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Time since the network began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.start)
    }

    fn now(&self) -> u64 {
        self.elapsed().as_nanos() as u64
    }

    /// Adds a host with these addresses below `parent`.
    pub fn add_host(
        &self,
        parent: PlaceId,
        addresses: &[IpAddr],
        up: LinkSpec,
        down: LinkSpec,
    ) -> PlaceId {
        let host = Host {
            addresses: addresses.to_vec(),
            sockets: BTreeMap::new(),
            sockets_peak: 0,
            life: 0,
        };
        self.world.lock().add(parent, Kind::Host(host), addresses, up, down)
    }

    /// Adds a gateway with a NAT below `parent`, where it has the address `outside`.
    pub fn add_gateway(
        &self,
        parent: PlaceId,
        outside: Ipv4Addr,
        nat: NatSpec,
        up: LinkSpec,
        down: LinkSpec,
    ) -> PlaceId {
        let mut world = self.world.lock();
        let nat = Nat::new(nat, outside, world.rng.split());
        let gateway = Gateway { nat, firewall: BTreeMap::new(), blocks_udp: false };
        let kind = Kind::Gateway(Box::new(gateway));
        world.add(parent, kind, &[IpAddr::V4(outside)], up, down)
    }

    /// The network as `host` sees it.
    #[must_use]
    pub fn network(&self, host: PlaceId) -> Network {
        Network::Other(Arc::new(HostFabric { net: self.clone(), host }))
    }

    /// Adds somebody who looks on.
    pub fn watch(&self, watch: Watch) {
        self.world.lock().watches.push(watch);
    }

    /// The digest of all deliveries so far, and how many they were.
    ///
    /// # Panics
    /// When the network itself panicked before: what was seen since is worth nothing.
    #[must_use]
    pub fn digest(&self) -> (Digest, u64) {
        let gone = self.task.get().is_none_or(AbortHandle::is_finished);
        assert!(!gone, "the network panicked, see above");
        let world = self.world.lock();
        (world.digest, world.delivered)
    }

    /// The addresses of a host.
    #[must_use]
    pub fn addresses(&self, host: PlaceId) -> Vec<IpAddr> {
        match &self.world.lock().places[host.0].kind {
            Kind::Host(host) => host.addresses.clone(),
            Kind::Gateway(gateway) => vec![IpAddr::V4(gateway.nat.outside())],
            Kind::Core => Vec::new(),
        }
    }

    /// The most sockets that a host had open at a time.
    #[must_use]
    pub fn sockets_peak(&self, host: PlaceId) -> usize {
        match &self.world.lock().places[host.0].kind {
            Kind::Host(host) => host.sockets_peak,
            Kind::Gateway(_) | Kind::Core => 0,
        }
    }

    /// Reads or changes a gateway's NAT.
    ///
    /// # Panics
    /// When `gateway` is none.
    pub fn with_nat<T>(&self, gateway: PlaceId, act: impl FnOnce(&mut Nat) -> T) -> T {
        match &mut self.world.lock().places[gateway.0].kind {
            Kind::Gateway(gateway) => act(&mut gateway.nat),
            Kind::Host(_) | Kind::Core => panic!("{gateway:?} is no gateway"),
        }
    }

    /// The gateway restarts: its mappings are gone; `outside` may be a new address.
    pub fn reboot(&self, gateway: PlaceId, outside: Ipv4Addr) {
        let mut world = self.world.lock();
        let Kind::Gateway(inner) = &mut world.places[gateway.0].kind else { return };
        let before = inner.nat.outside();
        inner.nat.reboot(outside);
        inner.firewall.clear();
        world.unroute(gateway, IpAddr::V4(before));
        world.route(gateway, IpAddr::V4(outside));
    }

    /// The gateway gives other ports to what goes on.
    pub fn rebind(&self, gateway: PlaceId) {
        self.with_nat(gateway, Nat::rebind);
    }

    /// Opens a port of the gateway for `inside`.
    pub fn map_port(&self, gateway: PlaceId, inside: SocketAddr, port: u16) {
        self.with_nat(gateway, |nat| nat.map_port(inside, port));
    }

    /// Whether a gateway drops all UDP that would leave.
    pub fn block_udp(&self, gateway: PlaceId, blocks: bool) {
        if let Kind::Gateway(gateway) = &mut self.world.lock().places[gateway.0].kind {
            gateway.blocks_udp = blocks;
        }
    }

    /// A host's addresses become others; its sockets stay, as a laptop's do.
    pub fn readdress(&self, host: PlaceId, addresses: &[IpAddr]) {
        let mut world = self.world.lock();
        let Kind::Host(inner) = &mut world.places[host.0].kind else { return };
        let before = std::mem::replace(&mut inner.addresses, addresses.to_vec());
        for ip in before {
            world.unroute(host, ip);
        }
        for ip in addresses {
            world.route(host, *ip);
        }
    }

    /// All programs of a host die at once: their sockets neither send nor receive any more.
    pub fn crash(&self, host: PlaceId) {
        if let Kind::Host(host) = &mut self.world.lock().places[host.0].kind {
            host.life += 1;
            host.sockets.clear();
        }
    }

    /// From now on a place's link takes these packets away: towards the core, and from it.
    pub fn take(&self, place: PlaceId, up: Taken, down: Taken) {
        let place = &mut self.world.lock().places[place.0];
        (place.up.taken, place.down.taken) = (up, down);
    }

    /// From now on nothing passes between two public addresses, or everything again.
    pub fn cut(&self, one: IpAddr, other: IpAddr, is_cut: bool) {
        let mut world = self.world.lock();
        for pair in [(one, other), (other, one)] {
            match is_cut {
                true => world.cuts.insert(pair),
                false => world.cuts.remove(&pair),
            };
        }
    }

    /// From now on no IP packet passes between two public addresses that is larger than `mtu` bytes.
    pub fn narrow(&self, one: IpAddr, other: IpAddr, mtu: usize) {
        let mut world = self.world.lock();
        world.narrow.extend([((one, other), mtu), ((other, one), mtu)]);
    }

    /// Holds back for `span` what crosses a place's link, then lets it go.
    pub fn stall(&self, place: PlaceId, span: Duration) {
        let until = self.now() + span.as_nanos() as u64;
        let place = &mut self.world.lock().places[place.0];
        (place.up.stalled_until, place.down.stalled_until) = (until, until);
    }

    /// Holds back for `span` what leaves over a place's link, then lets it go.
    pub fn stall_up(&self, place: PlaceId, span: Duration) {
        let until = self.now() + span.as_nanos() as u64;
        self.world.lock().places[place.0].up.stalled_until = until;
    }

    /// Changes what a place's link is like; the queue stays.
    pub fn relink(&self, place: PlaceId, up: LinkSpec, down: LinkSpec) {
        let place = &mut self.world.lock().places[place.0];
        (place.up.spec, place.down.spec) = (up, down);
    }

    pub(super) fn bind(&self, host: PlaceId, addr: SocketAddr) -> io::Result<(Local, Bound)> {
        let mut world = self.world.lock();
        let mut rng = world.rng.split();
        let Kind::Host(host) = &mut world.places[host.0].kind else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        if !addr.ip().is_unspecified() && !host.addresses.contains(&addr.ip()) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let free = |port: &u16| !host.sockets.contains_key(port);
        let any = || EPHEMERAL + rng.below(u64::from(u16::MAX - EPHEMERAL)) as u16;
        let port = match addr.port() {
            0 => std::iter::repeat_with(any).find(free).unwrap_or(0),
            port => Some(port).filter(free).ok_or(io::ErrorKind::AddrInUse)?,
        };
        let bound = Bound::new(addr.ip());
        host.sockets.insert(port, bound.clone());
        host.sockets_peak = host.sockets_peak.max(host.sockets.len());
        Ok((Local { addr: SocketAddr::new(addr.ip(), port), life: host.life }, bound))
    }

    pub(super) fn unbind(&self, host: PlaceId, local: Local) {
        if let Kind::Host(host) = &mut self.world.lock().places[host.0].kind
            && host.life == local.life
        {
            host.sockets.remove(&local.addr.port());
        }
    }

    pub(super) fn send(
        &self,
        host: PlaceId,
        local: Local,
        src_ip: Option<IpAddr>,
        dst: SocketAddr,
        ecn: Option<EcnCodepoint>,
        bytes: Bytes,
    ) {
        let now = self.now();
        let mut world = self.world.lock();
        let Kind::Host(inner) = &world.places[host.0].kind else { return };
        if inner.life != local.life {
            return;
        }
        let ip = src_ip.or(Some(local.addr.ip()).filter(|ip| !ip.is_unspecified()));
        let own = |ip: &IpAddr| inner.addresses.contains(ip) && ip.is_ipv4() == dst.is_ipv4();
        let first = || inner.addresses.iter().copied().find(own);
        // An address that the host lost is not sent from.
        let Some(ip) = ip.map_or_else(first, |ip| Some(ip).filter(own)) else { return };
        let packet = Packet { src: SocketAddr::new(ip, local.addr.port()), dst, ecn, bytes };
        world.note(now, host, Seen::Sent, &packet);
        let inner = packet.dst.ip();
        match world.is_own(host, inner) {
            true => world.arrive(now, host, Way::Down, packet),
            false => world.transmit(now, host, Way::Up, packet),
        }
        let wake = world.events.next_at().is_some_and(|at| at < world.sleeps_until);
        drop(world);
        if wake {
            self.driver.notify_one();
        }
    }

    /// A host sends a packet that may claim to come from anywhere, whether a socket has it or not.
    pub fn inject(&self, host: PlaceId, packet: Packet) {
        let now = self.now();
        let mut world = self.world.lock();
        world.transmit(now, host, Way::Up, packet);
        let wake = world.events.next_at().is_some_and(|at| at < world.sleeps_until);
        drop(world);
        if wake {
            self.driver.notify_one();
        }
    }

    async fn drive(self) {
        loop {
            let now = self.now();
            let next = {
                let mut world = self.world.lock();
                while let Some((at, event)) = world.events.pop_due(now) {
                    world.happen(at, event);
                }
                world.sleeps_until = world.events.next_at().unwrap_or(u64::MAX);
                world.sleeps_until
            };
            // Rounded up to the clock's resolution, or it would wake early and spin.
            let until = self.start + Duration::from_micros(next.min(1 << 60).div_ceil(1000));
            tokio::select! {
                biased;
                () = self.driver.notified() => {}
                () = self.clock.sleep_until(until), if next != u64::MAX => {}
            }
        }
    }
}

impl World {
    fn add(
        &mut self,
        parent: PlaceId,
        kind: Kind,
        addresses: &[IpAddr],
        up: LinkSpec,
        down: LinkSpec,
    ) -> PlaceId {
        let id = PlaceId(self.places.len());
        let (up, down) = (Link::new(up), Link::new(down));
        self.places.push(Place { parent: Some(parent), up, down, kind, routes: BTreeMap::new() });
        for ip in addresses {
            self.route(id, *ip);
        }
        id
    }

    /// IPv4 addresses are known one level up; IPv6 ones as far as the core.
    fn route(&mut self, place: PlaceId, ip: IpAddr) {
        let mut child = place;
        while let Some(parent) = self.places[child.0].parent {
            self.places[parent.0].routes.insert(ip, child);
            if ip.is_ipv4() {
                return;
            }
            child = parent;
        }
    }

    fn unroute(&mut self, place: PlaceId, ip: IpAddr) {
        let mut child = place;
        while let Some(parent) = self.places[child.0].parent {
            if self.places[parent.0].routes.get(&ip) == Some(&child) {
                self.places[parent.0].routes.remove(&ip);
            }
            child = parent;
        }
    }

    fn is_own(&self, host: PlaceId, ip: IpAddr) -> bool {
        matches!(&self.places[host.0].kind, Kind::Host(host) if host.addresses.contains(&ip))
    }

    fn happen(&mut self, at: u64, event: Event) {
        match event {
            Event::Arrive { place, way, packet } => self.arrive(at, place, way, packet),
            Event::Free { place, way } => self.send_next(at, place, way),
        }
    }

    fn link(&mut self, place: PlaceId, way: Way) -> &mut Link {
        let place = &mut self.places[place.0];
        match way {
            Way::Up => &mut place.up,
            Way::Down => &mut place.down,
        }
    }

    /// A packet is put on the link between `place` and its parent.
    fn transmit(&mut self, now: u64, place: PlaceId, way: Way, packet: Packet) {
        let mut rng = self.rng.split();
        let link = self.link(place, way);
        if !link.admits(&packet, &mut rng) {
            return;
        }
        if link.spec.rate.is_none() {
            return self.depart(now, place, way, packet, &mut rng);
        }
        if link.queue.push(packet, now, &mut rng) && !link.sending {
            self.send_next(now, place, way);
        }
    }

    /// The link is free: the next of its queue goes.
    fn send_next(&mut self, now: u64, place: PlaceId, way: Way) {
        let mut rng = self.rng.split();
        let link = self.link(place, way);
        let Some(packet) = link.queue.pop(now) else {
            link.sending = false;
            return;
        };
        link.sending = true;
        let free = now + link.sending_ns(&packet);
        self.events.push(free, Event::Free { place, way });
        self.depart(free, place, way, packet, &mut rng);
    }

    fn depart(&mut self, at: u64, place: PlaceId, way: Way, packet: Packet, rng: &mut Rng) {
        let link = self.link(place, way);
        let arrives = link.arrival(at, rng);
        if link.duplicates(rng) {
            let again = self.link(place, way).arrival(at, rng);
            self.events.push(again, Event::Arrive { place, way, packet: packet.clone() });
        }
        self.events.push(arrives, Event::Arrive { place, way, packet });
    }

    /// A packet reaches the far end of a link: `place` itself downwards, its parent upwards.
    fn arrive(&mut self, now: u64, place: PlaceId, way: Way, packet: Packet) {
        let mut todo = VecDeque::from([(place, way, packet)]);
        let mut hops = 0;
        while let Some((place, way, packet)) = todo.pop_front() {
            hops += 1;
            if hops > HOPS_MAX {
                return;
            }
            let (at, came_down) = match way {
                Way::Down => (place, true),
                Way::Up => match self.places[place.0].parent {
                    Some(parent) => (parent, false),
                    None => continue,
                },
            };
            match self.step(now, at, came_down, packet) {
                Some((next, way, packet)) => {
                    let link = self.link(next, way);
                    let passes = link.spec == LinkSpec::default() && link.taken == Taken::Nothing;
                    if passes && link.stalled_until <= now {
                        todo.push_back((next, way, packet));
                    } else {
                        self.transmit(now, next, way, packet);
                    }
                }
                None => continue,
            }
        }
    }

    /// What a place does with a packet: the link that it goes on, if any.
    fn step(
        &mut self,
        now: u64,
        at: PlaceId,
        came_down: bool,
        mut packet: Packet,
    ) -> Option<(PlaceId, Way, Packet)> {
        let inside = self.places[at.0].routes.get(&packet.dst.ip()).copied();
        match &mut self.places[at.0].kind {
            Kind::Core => {
                let pair = (packet.src.ip(), packet.dst.ip());
                let mtu = self.narrow.get(&pair).copied().unwrap_or(usize::MAX);
                let passes = !self.cuts.contains(&pair) && Link::wire_len(&packet) <= mtu;
                Some((inside.filter(|_| passes)?, Way::Down, packet))
            }
            Kind::Host(host) => {
                let bound = host.sockets.get(&packet.dst.port()).cloned()?;
                let takes = bound.ip.is_unspecified() || bound.ip == packet.dst.ip();
                if takes && host.addresses.contains(&packet.dst.ip()) {
                    self.note(now, at, Seen::Delivered, &packet);
                    bound.deliver(packet);
                }
                None
            }
            Kind::Gateway(gateway) => {
                let outside = IpAddr::V4(gateway.nat.outside());
                if came_down {
                    if !gateway.lets_in(&mut packet, now) {
                        return None;
                    }
                    let inside = self.places[at.0].routes.get(&packet.dst.ip()).copied();
                    return Some((inside?, Way::Down, packet));
                }
                if let Some(inside) = inside {
                    return Some((inside, Way::Down, packet));
                }
                if gateway.blocks_udp || !gateway.lets_out(&mut packet, now) {
                    return None;
                }
                if packet.dst.ip() != outside {
                    return Some((at, Way::Up, packet));
                }
                if !gateway.nat.spec().hairpins || !gateway.lets_in(&mut packet, now) {
                    return None;
                }
                let inside = self.places[at.0].routes.get(&packet.dst.ip()).copied();
                Some((inside?, Way::Down, packet))
            }
        }
    }

    fn note(&mut self, now: u64, host: PlaceId, seen: Seen, packet: &Packet) {
        if seen == Seen::Delivered {
            self.delivered += 1;
            self.digest.number(now);
            self.digest.number(packet.bytes.len() as u64);
            self.digest.address(packet.src);
            self.digest.address(packet.dst);
        }
        if self.log {
            let kind = packet.bytes.first().copied().unwrap_or_default();
            let (src, dst, len) = (packet.src, packet.dst, packet.bytes.len());
            tracing::info!(t_us = now / 1000, host = host.0, ?seen, %src, %dst, len, kind);
        }
        let at = Duration::from_nanos(now);
        for watch in &mut self.watches {
            watch(at, host, seen, packet);
        }
    }
}

impl Gateway {
    fn lets_out(&mut self, packet: &mut Packet, now: u64) -> bool {
        if packet.src.is_ipv6() {
            self.firewall.insert((packet.src, packet.dst), now);
            return true;
        }
        match self.nat.outward(packet.src, packet.dst, now) {
            Some(src) => {
                packet.src = src;
                true
            }
            None => false,
        }
    }

    fn lets_in(&mut self, packet: &mut Packet, now: u64) -> bool {
        if packet.dst.is_ipv6() {
            let at = self.firewall.get_mut(&(packet.dst, packet.src));
            let known = at.filter(|at| now.saturating_sub(**at) < FIREWALL_NS);
            return known.map(|at| *at = now).is_some();
        }
        match self.nat.inward(packet.dst.port(), packet.src, now) {
            Some(inside) => {
                packet.dst = inside;
                true
            }
            None => false,
        }
    }
}
