//! A tenant and some providers, on a network without delay, in virtual time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_market::{
    BidPolicy, Bidder, BidderEvent, BidderTransmit, Moment, Seller, Tenant, TenantEvent,
    TenantPolicy, TenantTransmit, Want,
};
use sluice_proto::market::{
    DirectPolicy, Money, Order, OrderId, Region, ServiceKind, ServiceOffer, SignedLease,
};
use sluice_proto::{
    Amount, Domain, EthAddress, Keypair, PeerId, Price, RelayAddr, ServiceName, WalletKey,
};

pub(crate) const UNIX_MS: u64 = 1_800_000_000_000;

pub(crate) fn node(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("a key")
}

pub(crate) fn wallet(seed: u8) -> WalletKey {
    WalletKey::from_bytes([seed; 32]).expect("a key")
}

pub(crate) fn peer(seed: u8) -> PeerId {
    node(seed).public().to_peer_id()
}

pub(crate) fn region() -> Region {
    Region::parse("eu-west").expect("a region")
}

pub(crate) fn money() -> Money {
    let domain = Domain { chain_id: 31_337, contract: EthAddress([1; 20]) };
    Money { domain, token: EthAddress([2; 20]) }
}

pub(crate) fn web() -> ServiceOffer {
    ServiceOffer { name: ServiceName::parse("web").expect("a name"), kind: ServiceKind::Tcp }
}

pub(crate) fn relay() -> RelayAddr {
    RelayAddr::new(peer(200), "192.0.2.1:4433".parse().expect("an address"))
}

/// A home that asks `price` per GiB for what it sends, whatever was sold before.
pub(crate) fn home(price: u128) -> BidPolicy {
    let price = Price { up: 0, down: price };
    BidPolicy {
        floor: price,
        ceiling: price,
        money: vec![money()],
        services: vec![web()],
        uplink: 50_000_000,
        downlink: 200_000_000,
        uplink_kept: 5_000_000,
        month_bytes: 0,
        closed: Vec::new(),
        utc_offset_min: 0,
        denied: BTreeSet::new(),
        leases_max: 8,
        duration_max_s: 86_400,
        period_min_s: 48 * 3_600,
        window_max: 1 << 24,
        stamp_bits: 4,
    }
}

pub(crate) fn bidder(seed: u8, policy: BidPolicy) -> Bidder {
    let seller = Seller {
        node: node(seed),
        wallet: wallet(seed),
        payout: EthAddress([seed; 20]),
        noise_key: [seed; 32],
        invites: [seed; 16],
        regions: vec![region()],
        rate_max: 100_000_000,
    };
    let mut bidder = Bidder::new(seller, policy, [seed; 32]);
    bidder.handle_relays(vec![relay()]);
    bidder
}

/// Ten mebibits for an hour, 4 GiB down, at most 100,000 per GiB.
pub(crate) fn want() -> Want {
    Want {
        region: region(),
        population: 10,
        services: vec![web()],
        rate_up_min: 0,
        rate_down_min: 10_000_000,
        volume_up: 0,
        volume_down: 4 << 30,
        budget: Amount(1_000_000),
        duration_s: 3_600,
        max_price: Price { up: 0, down: 100_000 },
        window_min: 1 << 19,
        window_max: 1 << 24,
        direct: DirectPolicy::AfterFunding,
        period_s: 72 * 3_600,
        idle_timeout_s: 600,
        money: Some(money()),
        rate_proven_min: 0,
    }
}

pub(crate) fn policy() -> TenantPolicy {
    TenantPolicy { stamp_bits: Some(4), ..TenantPolicy::default() }
}

/// What went over the network.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) orders: Vec<Bytes>,
    pub(crate) closed: Vec<Bytes>,
    pub(crate) bids: Vec<(PeerId, Bytes)>,
    pub(crate) awards: Vec<(PeerId, Bytes)>,
}

pub(crate) struct World {
    pub(crate) now: Moment,
    pub(crate) tenant: Tenant,
    pub(crate) homes: Vec<Bidder>,
    pub(crate) peers: Vec<PeerId>,
    /// Homes that do not answer awards.
    pub(crate) deaf: BTreeSet<usize>,
    /// Homes that sign and do not serve.
    pub(crate) idle: BTreeSet<usize>,
    pub(crate) latency: Vec<Duration>,
    pub(crate) wire: Wire,
    pub(crate) leases: Vec<SignedLease>,
    pub(crate) tenant_events: Vec<TenantEvent>,
    pub(crate) home_events: Vec<(usize, BidderEvent)>,
}

impl World {
    /// The tenant has seed 100, the homes 1, 2, ..
    pub(crate) fn new(begin: Instant, policy: TenantPolicy, homes: Vec<BidPolicy>) -> Self {
        let seeds = 1..=u8::try_from(homes.len()).expect("few");
        Self {
            now: Moment { at: begin, unix_ms: UNIX_MS },
            tenant: Tenant::new(node(100), wallet(100), policy, [100; 32]),
            peers: seeds.clone().map(peer).collect(),
            latency: vec![Duration::from_millis(40); homes.len()],
            homes: seeds.zip(homes).map(|(seed, policy)| bidder(seed, policy)).collect(),
            deaf: BTreeSet::new(),
            idle: BTreeSet::new(),
            wire: Wire::default(),
            leases: Vec::new(),
            tenant_events: Vec::new(),
            home_events: Vec::new(),
        }
    }

    pub(crate) fn place(&mut self, want: Want) -> OrderId {
        self.tenant.place(want, self.now).expect("a valid order")
    }

    /// Delivers what is to be delivered, and goes on to the next timeout, until `span` is over.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now.at + span;
        loop {
            self.deliver();
            let homes = self.homes.iter().filter_map(Bidder::poll_timeout);
            let next = homes.chain(self.tenant.poll_timeout()).map(|(at, _)| at).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            // A node is a little late, never early.
            let step = next.saturating_duration_since(self.now.at) + Duration::from_millis(1);
            self.now = self.now.after(step);
            self.tenant.handle_timeout(self.now);
            for home in &mut self.homes {
                home.handle_timeout(self.now);
            }
        }
        self.now = self.now.after(end.saturating_duration_since(self.now.at));
    }

    fn deliver(&mut self) {
        loop {
            let mut idle = true;
            while let Some(transmit) = self.tenant.poll_transmit() {
                idle = false;
                self.on_tenants(transmit);
            }
            while let Some(event) = self.tenant.poll_event() {
                idle = false;
                self.on_event(event);
            }
            for at in 0..self.homes.len() {
                while let Some(transmit) = self.homes[at].poll_transmit() {
                    idle = false;
                    self.on_homes(at, transmit);
                }
                while let Some(event) = self.homes[at].poll_event() {
                    self.home_events.push((at, event));
                }
            }
            if idle {
                return;
            }
        }
    }

    fn on_tenants(&mut self, transmit: TenantTransmit) {
        match transmit {
            TenantTransmit::Order { bytes, .. } => {
                for home in &mut self.homes {
                    let _ = home.handle_order(&bytes, self.now);
                }
                self.wire.orders.push(bytes);
            }
            TenantTransmit::Closed { bytes, .. } => {
                for home in &mut self.homes {
                    home.handle_closed(&bytes).expect("genuine");
                }
                self.wire.closed.push(bytes);
            }
            TenantTransmit::Award { to, bytes } => {
                let at = self.peers.iter().position(|peer| *peer == to).expect("a home");
                if !self.deaf.contains(&at) {
                    let _ = self.homes[at].handle_award(peer(100), None, &bytes, self.now);
                }
                self.wire.awards.push((to, bytes));
            }
        }
    }

    fn on_homes(&mut self, at: usize, transmit: BidderTransmit) {
        match transmit {
            BidderTransmit::Bid { bytes, .. } => {
                let _ = self.tenant.handle_bid(self.peers[at], None, &bytes, self.now);
                self.wire.bids.push((self.peers[at], bytes));
            }
            BidderTransmit::Answer { bytes, .. } => {
                let _ = self.tenant.handle_answer(self.peers[at], &bytes, self.now);
            }
        }
    }

    fn on_event(&mut self, event: TenantEvent) {
        match &event {
            TenantEvent::Measure { order, peer, .. } => {
                let at = self.peers.iter().position(|p| p == peer).expect("a home");
                self.tenant.handle_latency(*order, *peer, Some(self.latency[at]), self.now);
            }
            TenantEvent::Leased { order, lease } => {
                let provider = lease.lease().provider;
                let at = self.peers.iter().position(|p| *p == provider).expect("a home");
                if self.idle.contains(&at) {
                    self.tenant.handle_no_service(*order, self.now);
                } else {
                    self.homes[at].handle_funded(lease.lease().lease, self.now);
                    self.tenant.handle_served(*order, self.now);
                    self.leases.push((**lease).clone());
                }
            }
            TenantEvent::NoLease { .. } | TenantEvent::Choose { .. } => {}
        }
        self.tenant_events.push(event);
    }
}

/// An order that anybody may have made.
pub(crate) fn order() -> Order {
    let want = want();
    Order {
        tenant: peer(100),
        noise_key: sluice_market::noise_public(&[9; 32]).expect("a key"),
        nonce: [7; 16],
        region: want.region,
        depth: 0,
        shard: 0,
        services: want.services,
        rate_up_min: 0,
        rate_down_min: want.rate_down_min,
        volume_up: 0,
        volume_down: want.volume_down,
        budget: want.budget,
        duration_s: want.duration_s,
        max_price: want.max_price,
        window_min: want.window_min,
        window_max: want.window_max,
        direct: want.direct,
        period_s: want.period_s,
        idle_timeout_s: want.idle_timeout_s,
        money: want.money,
        rate_proven_min: 0,
        made_unix_ms: UNIX_MS,
        bids_until_unix_ms: UNIX_MS + 2_000,
        clock_ms: 1_500,
        hold_s: 0,
    }
}
