//! Who sells and who buys.

use std::collections::BTreeSet;

use sluice_market::{BidPolicy, Bidder, Hours, Seller, Tenant, TenantPolicy, Want};
use sluice_proto::market::{DirectPolicy, Money, Region, ServiceKind, ServiceOffer};
use sluice_proto::{
    Amount, Domain, EthAddress, Keypair, PeerId, Price, RelayAddr, ServiceName, WalletKey,
};

use super::bound::{Demand, Supply};
use super::region::STAMP_BITS;
use crate::rng::Rng;

const MBIT: u64 = 1_000_000;
/// Of the uplink, what the household keeps.
const KEPT_MBIT: u64 = 5;
/// A home's bytes of a month.
const MONTH_BYTES: u64 = 4 << 40;
/// The highest price that a tenant pays, and the highest that a home begins with.
const PRICE_MAX: u128 = 100_000;
/// The lowest.
const PRICE_MIN: u128 = 10_000;
/// Of a leased rate, the part that a tenant expects to use.
const USED_PART: u64 = 2;

/// What a home is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It does what it says.
    Honest,
    /// It does not sell now, or not what is asked for.
    Closed,
    /// It bids and does not answer awards.
    Deaf,
    /// It signs and does not serve.
    Idle,
}

pub(super) struct Home {
    pub(super) bidder: Bidder,
    pub(super) peer: PeerId,
    pub(super) kind: Kind,
    pub(super) supply: Supply,
}

pub(super) fn keypair(rng: &mut Rng) -> Keypair {
    Keypair::ed25519_from_bytes(rng.bytes::<32>()).expect("any 32 bytes are a key")
}

fn wallet(rng: &mut Rng) -> WalletKey {
    loop {
        if let Some(key) = WalletKey::from_bytes(rng.bytes()) {
            return key;
        }
    }
}

pub(super) fn region() -> Region {
    Region::parse("region").expect("a name")
}

fn money() -> Money {
    let domain = Domain { chain_id: 31_337, contract: EthAddress([1; 20]) };
    Money { domain, token: EthAddress([2; 20]) }
}

fn service(name: &str) -> ServiceOffer {
    let name = ServiceName::parse(name).expect("a name");
    ServiceOffer { name, kind: ServiceKind::Tcp }
}

/// A home with its own line, prices and habits.
pub(super) fn home(rng: &mut Rng) -> Home {
    let kind = match rng.below(100) {
        0..10 => Kind::Closed,
        10..12 => Kind::Deaf,
        12..14 => Kind::Idle,
        _ => Kind::Honest,
    };
    let spread = u64::try_from(PRICE_MAX - PRICE_MIN).expect("small");
    let floor = PRICE_MIN + u128::from(rng.below(spread));
    let uplink = 20 + 5 * rng.below(17);
    let used = rng.below(MONTH_BYTES / 4);
    let never = vec![Hours { from_min: 0, to_min: 24 * 60 }];
    let policy = BidPolicy {
        floor: Price { up: 0, down: floor },
        ceiling: Price { up: 0, down: 2 * floor },
        money: vec![money()],
        services: vec![service(if rng.chance(0.5) || kind != Kind::Closed {
            "web"
        } else {
            "ssh"
        })],
        uplink: uplink * MBIT,
        downlink: 4 * uplink * MBIT,
        uplink_kept: KEPT_MBIT * MBIT,
        month_bytes: MONTH_BYTES,
        closed: if kind == Kind::Closed { never } else { Vec::new() },
        utc_offset_min: 0,
        denied: BTreeSet::new(),
        leases_max: 32,
        duration_max_s: 86_400,
        period_min_s: 48 * 3_600,
        window_max: 1 << 24,
        stamp_bits: STAMP_BITS,
    };
    let node = keypair(rng);
    let peer = node.public().to_peer_id();
    let supply = Supply { rate: uplink - KEPT_MBIT, price: policy.price(used).down as f64 };
    let seller = Seller {
        node,
        wallet: wallet(rng),
        payout: EthAddress(rng.bytes()),
        noise_key: rng.bytes(),
        invites: rng.bytes(),
        regions: vec![region()],
        rate_max: uplink * MBIT,
    };
    let mut bidder = Bidder::new(seller, policy, rng.bytes());
    bidder.handle_used(used);
    let relay = "192.0.2.1:4433".parse().expect("an address");
    bidder.handle_relays(vec![RelayAddr::new(peer, relay)]);
    Home { bidder, peer, kind, supply }
}

pub(super) fn tenant(rng: &mut Rng, policy: TenantPolicy) -> (Tenant, PeerId) {
    let node = keypair(rng);
    let peer = node.public().to_peer_id();
    (Tenant::new(node, wallet(rng), policy, rng.bytes()), peer)
}

/// An order for 5, 10 or 20 Mbit/s, for one to four hours.
pub(super) fn want(rng: &mut Rng, population: u64) -> (Want, Demand) {
    let rate = rng.pick(&[5, 10, 20]);
    let duration_s = 3_600 + u32::try_from(rng.below(3 * 3_600)).expect("hours");
    let volume_down = rate * MBIT / 8 * u64::from(duration_s) / USED_PART;
    let want = Want {
        region: region(),
        population,
        services: vec![service("web")],
        rate_up_min: 0,
        rate_down_min: rate * MBIT,
        volume_up: 0,
        volume_down,
        budget: Amount((u128::from(volume_down) * PRICE_MAX) >> 30),
        duration_s,
        max_price: Price { up: 0, down: PRICE_MAX },
        window_min: 1 << 19,
        window_max: 1 << 24,
        direct: DirectPolicy::AfterFunding,
        period_s: 72 * 3_600,
        idle_timeout_s: 600,
        money: Some(money()),
        rate_proven_min: 0,
    };
    let weight = volume_down as f64 / f64::from(1 << 30) / rate as f64;
    (want, Demand { rate, weight })
}
