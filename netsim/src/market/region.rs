//! One region: its homes, its tenants, and a network that only delays.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_market::{
    BidderTransmit, IpPrefix, Moment, Tenant, TenantEvent, TenantPolicy, TenantTransmit, Want,
};
use sluice_proto::PeerId;
use sluice_proto::market::{OrderId, is_asked};

use super::bound::{self, Demand, Supply};
use super::homes::{self, Home, Kind};
use crate::figures::Spans;
use crate::rng::Rng;

/// Zero bits of stamps: a few hashes, so that the time goes into what is looked at.
pub(super) const STAMP_BITS: u32 = 4;
/// When the first order may be placed.
const BEGIN_UNIX_MS: u64 = 1_800_000_000_000;
/// Orders are placed within this; leases last longer.
const SPAN: Duration = Duration::from_secs(1_800);
/// A message by gossip takes some hops, each of half a round trip of 40 ms and more.
const GOSSIP: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(120));
/// A message to a peer.
const DIRECT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(40));
/// Round trips to a provider.
const RTT: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(150));
/// From the lease to its use, a chain's confirmation included.
const FUNDING: Duration = Duration::from_secs(2);
/// An order that came to nothing asks four times as many, so often.
const RETRIES: u32 = 3;
/// How many orders a tenant places.
const ORDERS_EACH: u32 = 10;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Homes.
    pub homes: u32,
    /// Orders.
    pub orders: u32,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    homes: u64,
    orders: u64,
    placed: u64,
    leased: u64,
    paid: f64,
    bound: f64,
    hindsight: f64,
    heard: u64,
    bids: u64,
    /// Most entries in the tables of one home.
    pub home_entries: usize,
    /// Most entries in the tables of one tenant, but for the orders that it may still look at.
    pub tenant_entries: usize,
    /// From an order to its first bid.
    pub first_bid: Spans,
    /// From an order to a lease that both signed.
    pub lease: Spans,
}

impl Outcome {
    pub(super) fn add(&mut self, other: Self) {
        self.homes += other.homes;
        self.orders += other.orders;
        self.placed += other.placed;
        self.leased += other.leased;
        self.paid += other.paid;
        self.bound += other.bound;
        self.hindsight += other.hindsight;
        self.heard += other.heard;
        self.bids += other.bids;
        self.home_entries = self.home_entries.max(other.home_entries);
        self.tenant_entries = self.tenant_entries.max(other.tenant_entries);
        self.first_bid.merge(&other.first_bid);
        self.lease.merge(&other.lease);
    }

    pub(super) fn leased_percent(&self) -> f64 {
        100.0 * self.leased as f64 / self.orders as f64
    }

    /// What was paid above the bound.
    pub(super) fn excess_percent(&self) -> f64 {
        100.0 * (self.paid / self.bound - 1.0)
    }

    pub(super) fn hindsight_percent(&self) -> f64 {
        100.0 * (self.hindsight / self.bound - 1.0)
    }

    pub(super) fn heard_each(&self) -> f64 {
        self.heard as f64 / self.homes as f64
    }

    pub(super) fn heard_per_order(&self) -> f64 {
        self.heard as f64 / self.placed as f64
    }

    pub(super) fn bids_per_order(&self) -> f64 {
        self.bids as f64 / self.placed as f64
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:6} homes {:6} orders {:6} leased  +{:.2} %  heard by {:.0}, bids {:.1}",
            self.homes,
            self.orders,
            self.leased,
            self.excess_percent(),
            self.heard_per_order(),
            self.bids_per_order(),
        )
    }
}

enum Event {
    Place { order: usize },
    Order { home: usize, bytes: Bytes },
    Closed { home: usize, bytes: Bytes },
    Bid { tenant: usize, home: usize, bytes: Bytes },
    Award { tenant: usize, home: usize, bytes: Bytes },
    Answer { tenant: usize, home: usize, bytes: Bytes },
    Latency { tenant: usize, order: OrderId, peer: PeerId, rtt: Duration },
    Funded { tenant: usize, order: OrderId, home: usize, lease: sluice_proto::LeaseId },
    WakeHome(usize),
    WakeTenant(usize),
}

/// In the queue: the earliest comes first, and of several the one that was added first.
struct Queued {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Buyer {
    tenant: Tenant,
    peer: PeerId,
    wake: Option<Duration>,
}

/// One order of the plan, and how it goes.
struct Plan {
    want: Want,
    demand: Demand,
    placed: Duration,
    tries: u32,
    has_bid: bool,
}

struct Region {
    begin: Instant,
    at: Duration,
    rng: Rng,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    homes: Vec<Home>,
    wakes: Vec<Option<Duration>>,
    by_peer: HashMap<PeerId, usize>,
    /// Who listens to the topic of each depth and shard.
    topics: HashMap<(u32, u32), Arc<[usize]>>,
    buyers: Vec<Buyer>,
    by_tenant: HashMap<PeerId, usize>,
    plans: Vec<Plan>,
    open: BTreeMap<OrderId, usize>,
    served: Vec<Demand>,
    outcome: Outcome,
}

/// Plays one region to its end.
#[must_use]
pub(super) fn run(seed: u64, shape: Shape, policy: TenantPolicy) -> Outcome {
    let mut region = Region::new(seed, shape, policy);
    while let Some(Reverse(next)) = region.queue.pop() {
        region.at = next.at;
        region.handle(next.event);
    }
    region.conclude()
}

impl Region {
    #[expect(clippy::disallowed_methods, reason = "a beginning of virtual time; only spans count")]
    fn new(seed: u64, shape: Shape, policy: TenantPolicy) -> Self {
        let mut rng = Rng::new(seed);
        let homes: Vec<Home> = (0..shape.homes).map(|_| homes::home(&mut rng)).collect();
        let buyers: Vec<Buyer> = (0..shape.orders.div_ceil(ORDERS_EACH))
            .map(|_| {
                let (tenant, peer) = homes::tenant(&mut rng, policy);
                Buyer { tenant, peer, wake: None }
            })
            .collect();
        let plans: Vec<Plan> = (0..shape.orders)
            .map(|_| {
                // What the mesh knows of how many there are is not exact.
                let population = f64::from(shape.homes) * (0.8 + 0.4 * rng.fraction());
                let (want, demand) = homes::want(&mut rng, population as u64);
                let placed = SPAN.mul_f64(rng.fraction());
                Plan { want, demand, placed, tries: 0, has_bid: false }
            })
            .collect();
        let mut region = Self {
            begin: Instant::now(),
            at: Duration::ZERO,
            rng,
            queue: BinaryHeap::new(),
            queued: 0,
            by_peer: homes.iter().enumerate().map(|(at, home)| (home.peer, at)).collect(),
            wakes: vec![None; homes.len()],
            homes,
            topics: HashMap::new(),
            by_tenant: buyers.iter().enumerate().map(|(at, buyer)| (buyer.peer, at)).collect(),
            buyers,
            plans,
            open: BTreeMap::new(),
            served: Vec::new(),
            outcome: Outcome::default(),
        };
        for order in 0..region.plans.len() {
            region.push(region.plans[order].placed, Event::Place { order });
        }
        region
    }

    fn now(&self) -> Moment {
        Moment { at: self.begin, unix_ms: BEGIN_UNIX_MS }.after(self.at)
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse(Queued { at, number: self.queued, event }));
    }

    fn later(&mut self, (from, to): (Duration, Duration), event: Event) {
        let at = self.at + self.rng.span(from, to);
        self.push(at, event);
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Place { order } => self.place(order),
            Event::Order { home, bytes } => {
                self.outcome.heard += 1;
                self.homes[home].bidder.handle_order(&bytes, now).expect("a genuine order");
                self.drain_home(home);
            }
            Event::Closed { home, bytes } => {
                self.homes[home].bidder.handle_closed(&bytes).expect("genuine");
                self.drain_home(home);
            }
            Event::Bid { tenant, home, bytes } => self.bid(tenant, home, &bytes),
            Event::Award { home, .. } if self.homes[home].kind == Kind::Deaf => {}
            Event::Award { tenant, home, bytes } => {
                let from = self.buyers[tenant].peer;
                // A refusal is answered.
                let _ = self.homes[home].bidder.handle_award(from, None, &bytes, now);
                self.drain_home(home);
            }
            Event::Answer { tenant, home, bytes } => {
                let from = self.homes[home].peer;
                // One that comes too late is not awaited.
                let _ = self.buyers[tenant].tenant.handle_answer(from, &bytes, now);
                self.drain_tenant(tenant);
            }
            Event::Latency { tenant, order, peer, rtt } => {
                self.buyers[tenant].tenant.handle_latency(order, peer, Some(rtt), now);
                self.drain_tenant(tenant);
            }
            Event::Funded { tenant, order, home, lease } => self.funded(tenant, order, home, lease),
            Event::WakeHome(home) => {
                if self.wakes[home] == Some(self.at) {
                    self.wakes[home] = None;
                    self.homes[home].bidder.handle_timeout(now);
                    self.drain_home(home);
                }
            }
            Event::WakeTenant(tenant) => {
                if self.buyers[tenant].wake == Some(self.at) {
                    self.buyers[tenant].wake = None;
                    self.buyers[tenant].tenant.handle_timeout(now);
                    self.drain_tenant(tenant);
                }
            }
        }
    }

    fn place(&mut self, order: usize) {
        let tenant = order % self.buyers.len();
        let now = self.now();
        let want = self.plans[order].want.clone();
        let id = self.buyers[tenant].tenant.place(want, now).expect("a valid order");
        self.outcome.placed += 1;
        self.plans[order].tries += 1;
        self.open.insert(id, order);
        self.drain_tenant(tenant);
    }

    fn bid(&mut self, tenant: usize, home: usize, bytes: &Bytes) {
        let now = self.now();
        self.outcome.bids += 1;
        let (from, order) = (self.homes[home].peer, SealedOrder::of(bytes));
        // Homes have addresses of their own.
        let [_, a, b, c] = u32::try_from(home).expect("few").to_be_bytes();
        let prefix = IpPrefix::V4([a, b, c]);
        let taken = self.buyers[tenant].tenant.handle_bid(from, Some(prefix), bytes, now);
        if let Some(plan) = self.open.get(&order).map(|at| &mut self.plans[*at])
            && taken.is_ok()
            && !plan.has_bid
        {
            plan.has_bid = true;
            self.outcome.first_bid.push(self.at - plan.placed);
        }
        let entries = self.buyers[tenant].tenant.remembered();
        self.outcome.tenant_entries = self.outcome.tenant_entries.max(entries);
        self.drain_tenant(tenant);
    }

    fn funded(&mut self, tenant: usize, order: OrderId, home: usize, lease: sluice_proto::LeaseId) {
        let now = self.now();
        self.homes[home].bidder.handle_funded(lease, now);
        self.drain_home(home);
        if self.homes[home].kind == Kind::Idle {
            self.buyers[tenant].tenant.handle_no_service(order, now);
        } else {
            self.buyers[tenant].tenant.handle_served(order, now);
            if let Some(at) = self.open.remove(&order) {
                let (plan, price) = (&self.plans[at], self.homes[home].supply.price);
                self.outcome.leased += 1;
                self.outcome.paid += plan.demand.rate as f64 * plan.demand.weight * price;
                self.served.push(plan.demand);
            }
        }
        self.drain_tenant(tenant);
    }

    fn drain_home(&mut self, at: usize) {
        while let Some(transmit) = self.homes[at].bidder.poll_transmit() {
            match transmit {
                BidderTransmit::Bid { to, bytes } => {
                    let tenant = self.by_tenant[&to];
                    self.later(DIRECT, Event::Bid { tenant, home: at, bytes });
                }
                BidderTransmit::Answer { to, bytes } => {
                    let tenant = self.by_tenant[&to];
                    self.later(DIRECT, Event::Answer { tenant, home: at, bytes });
                }
            }
        }
        while self.homes[at].bidder.poll_event().is_some() {}
        let entries = self.homes[at].bidder.remembered();
        self.outcome.home_entries = self.outcome.home_entries.max(entries);
        let due = self.homes[at].bidder.poll_timeout();
        if let Some(due) = self.rearm(due, self.wakes[at]) {
            self.wakes[at] = Some(due);
            self.push(due, Event::WakeHome(at));
        }
    }

    fn drain_tenant(&mut self, at: usize) {
        while let Some(transmit) = self.buyers[at].tenant.poll_transmit() {
            match transmit {
                TenantTransmit::Order { depth, shard, bytes, .. } => {
                    self.gossip(depth, shard, |home| Event::Order { home, bytes: bytes.clone() });
                }
                TenantTransmit::Closed { depth, shard, bytes, .. } => {
                    self.gossip(depth, shard, |home| Event::Closed { home, bytes: bytes.clone() });
                }
                TenantTransmit::Award { to, bytes } => {
                    let home = self.by_peer[&to];
                    self.later(DIRECT, Event::Award { tenant: at, home, bytes });
                }
            }
        }
        while let Some(event) = self.buyers[at].tenant.poll_event() {
            self.on_event(at, event);
        }
        let due = self.buyers[at].tenant.poll_timeout();
        if let Some(due) = self.rearm(due, self.buyers[at].wake) {
            self.buyers[at].wake = Some(due);
            self.push(due, Event::WakeTenant(at));
        }
    }

    fn on_event(&mut self, tenant: usize, event: TenantEvent) {
        match event {
            TenantEvent::Measure { order, peer, .. } => {
                let rtt = self.rng.span(RTT.0, RTT.1);
                let measured = self.at + rtt;
                self.push(measured, Event::Latency { tenant, order, peer, rtt });
            }
            TenantEvent::Leased { order, lease } => {
                let home = self.by_peer[&lease.lease().provider];
                let lease = lease.lease().lease;
                if let Some(plan) = self.open.get(&order).map(|at| &self.plans[*at]) {
                    self.outcome.lease.push(self.at - plan.placed);
                }
                self.push(self.at + FUNDING, Event::Funded { tenant, order, home, lease });
            }
            // Nobody here chooses by hand.
            TenantEvent::Choose { .. } => {}
            TenantEvent::NoLease { order, .. } => {
                let Some(at) = self.open.remove(&order) else { return };
                let plan = &mut self.plans[at];
                plan.want.population /= 4;
                if plan.tries <= RETRIES {
                    self.push(self.at, Event::Place { order: at });
                }
            }
        }
    }

    /// To all that the topic's number names.
    fn gossip(&mut self, depth: u32, shard: u32, event: impl Fn(usize) -> Event) {
        let homes = &self.homes;
        let is_in = |at: &usize| is_asked(&homes[*at].peer, depth, shard);
        let topic = self.topics.entry((depth, shard));
        let asked = topic.or_insert_with(|| (0..homes.len()).filter(is_in).collect()).clone();
        for home in asked.iter() {
            self.later(GOSSIP, event(*home));
        }
    }

    /// When a node is to be woken, if that is not arranged.
    fn rearm(
        &self,
        due: Option<(Instant, &'static str)>,
        armed: Option<Duration>,
    ) -> Option<Duration> {
        let due = due?.0.saturating_duration_since(self.begin).max(self.at);
        // Timers of a real node are late by up to a millisecond, and never early.
        let due = Duration::from_millis(u64::try_from(due.as_millis()).expect("hours") + 1);
        armed.is_none_or(|armed| due < armed).then_some(due)
    }

    fn conclude(mut self) -> Outcome {
        let serves = |home: &&Home| home.kind == Kind::Honest;
        let supplies: Vec<Supply> =
            self.homes.iter().filter(serves).map(|home| home.supply).collect();
        self.outcome.homes = self.homes.len() as u64;
        self.outcome.orders = self.plans.len() as u64;
        self.outcome.bound = bound::cheapest(&self.served, &supplies);
        self.outcome.hindsight = bound::in_hindsight(&self.served, &supplies);
        self.outcome
    }
}

/// What a tenant's mailroom reads of a sealed bid.
struct SealedOrder;

impl SealedOrder {
    fn of(bytes: &Bytes) -> OrderId {
        sluice_proto::market::SealedBid::parse(bytes).expect("a home's").order
    }
}
