//! Orders, bids and leases.

use bytes::Bytes;
use sluice_market::{noise_public, open_bid, seal_bid};
use sluice_metering::Terms;
use sluice_proto::market::{
    Award, AwardAnswer, AwardRefusal, Bid, DirectPolicy, Lease, Money, Order, OrderId, Region,
    SealedBid, ServiceKind, ServiceOffer, Signatures, SignedLease, SignedOrder, close_order,
    closes_order, find_stamp,
};
use sluice_proto::{
    Amount, Domain, EthAddress, Invite, LeaseId, Price, RelayAddr, ServiceName, WalletKey,
};

use super::{INPUTS, Spoiling, peer, spoil, time};

fn wallet() -> WalletKey {
    WalletKey::from_bytes([7; 32]).expect("a key")
}

fn money() -> Money {
    let domain = Domain { chain_id: 31_337, contract: EthAddress([1; 20]) };
    Money { domain, token: EthAddress([2; 20]) }
}

fn services() -> Vec<ServiceOffer> {
    vec![ServiceOffer { name: ServiceName::parse("web").expect("a name"), kind: ServiceKind::Tcp }]
}

fn relays() -> Vec<RelayAddr> {
    let address = "192.0.2.1:4433".parse().expect("an address");
    vec![RelayAddr::new(peer().public().to_peer_id(), address)]
}

fn order() -> Order {
    Order {
        tenant: peer().public().to_peer_id(),
        noise_key: [3; 32],
        nonce: [4; 16],
        region: Region::parse("eu-west").expect("a region"),
        depth: 3,
        shard: 5,
        services: services(),
        rate_up_min: 1_000_000,
        rate_down_min: 10_000_000,
        volume_up: 1 << 28,
        volume_down: 1 << 33,
        budget: Amount(1_000_000),
        duration_s: 3600,
        max_price: Price { up: 0, down: 90_000 },
        window_min: 1 << 20,
        window_max: 1 << 22,
        direct: DirectPolicy::AfterFunding,
        period_s: 72 * 3600,
        idle_timeout_s: 600,
        money: Some(money()),
        rate_proven_min: 0,
        made_unix_ms: 1_800_000_000_000,
        bids_until_unix_ms: 1_800_000_002_000,
        clock_ms: 1_500,
        hold_s: 0,
    }
}

fn bid() -> Bid {
    Bid {
        order: OrderId([5; 32]),
        bidder: peer().public().to_peer_id(),
        lease: LeaseId([6; 32]),
        price: Price { up: 0, down: 40_000 },
        rate_up: 1_000_000,
        rate_down: 20_000_000,
        rate_max: 1_000_000_000,
        rate_proven: 0,
        wallet: wallet().address(),
        payout: wallet().address(),
        period_min_s: 48 * 3600,
        starter_bytes: 0,
        noise_key: [8; 32],
        relays: relays(),
        invite: Invite([9; 24]),
        valid_until_unix_ms: 1_800_000_010_000,
    }
}

fn lease() -> Lease {
    Lease {
        lease: LeaseId([6; 32]),
        order: OrderId([5; 32]),
        tenant: peer().public().to_peer_id(),
        provider: peer().public().to_peer_id(),
        tenant_wallet: wallet().address(),
        provider_wallet: wallet().address(),
        payout: wallet().address(),
        price: Price { up: 0, down: 40_000 },
        window: 1 << 20,
        rate_max: 1_000_000_000,
        rate_up_min: 1_000_000,
        rate_down_min: 10_000_000,
        budget: Amount(1_000_000),
        made_unix_s: 1_800_000_002,
        duration_s: 3600,
        services: services(),
        money: Some(money()),
        period_s: 72 * 3600,
        idle_timeout_s: 600,
        direct: DirectPolicy::AfterFunding,
        breach_after_s: 30,
        starter_bytes: 0,
        noise_key: [8; 32],
        relays: relays(),
        invite: Invite([9; 24]),
    }
}

/// One of each, as it travels.
fn seeds() -> Vec<Vec<u8>> {
    let award = Award::make(lease(), 1_800_000_003_000, &peer(), &wallet());
    let signatures = Signatures::make(&lease(), &award.encoded, &peer(), &wallet());
    let answer = |answer| AwardAnswer { lease: lease().lease, answer }.encode();
    let refused = answer(Err(AwardRefusal::NoRoom));
    let signed = answer(Ok(signatures.clone()));
    let sealed = SealedBid { order: OrderId([5; 32]), sealed: Bytes::from_static(b"sealed") };
    let leased = SignedLease::seal(award.clone(), signatures).expect("both signed");
    let all = [
        order().encode(),
        SignedOrder::stamp(&order(), &peer(), |id| find_stamp(id, 4, 0)),
        SignedOrder::with_wallet(&order(), &peer(), &wallet()),
        close_order(OrderId([5; 32]), &peer()),
        bid().encode(),
        bid().sign(&peer()),
        sealed.encode(),
        lease().encode(),
        award.encode(),
        refused,
        signed,
        leased.encode(),
    ];
    all.iter().map(|bytes| bytes.to_vec()).collect()
}

#[test]
fn market_messages() {
    feed!(seeds(), |bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        if let Ok(order) = Order::parse(&bytes) {
            assert_eq!(Order::parse(&order.encode()).as_ref(), Ok(&order));
            assert!(order.bid_after_ms(order.max_price) <= u64::from(order.clock_ms));
        }
        if let Ok(signed) = SignedOrder::parse(&bytes) {
            let _ = signed.verify();
        }
        let _ = closes_order(&bytes);
        if let Ok(sealed) = SealedBid::parse(&bytes) {
            assert_eq!(SealedBid::parse(&sealed.encode()), Ok(sealed));
        }
        if let Ok(bid) = Bid::parse(&bytes) {
            assert_eq!(Bid::parse(&bid.encode()), Ok(bid));
        }
        let _ = Bid::open(&bytes);
        if let Ok(lease) = Lease::parse(&bytes) {
            let terms = Terms::of_lease(&lease);
            assert_eq!(Terms::parse(&terms.encode()), Ok(terms));
            assert_eq!(Lease::parse(&lease.encode()), Ok(lease));
        }
        if let Ok(award) = Award::open(&bytes) {
            assert_eq!(Award::open(&award.encode()), Ok(award));
        }
        if let Ok(answer) = AwardAnswer::parse(&bytes) {
            assert_eq!(AwardAnswer::parse(&answer.encode()), Ok(answer));
        }
        if let Ok(signed) = SignedLease::open(&bytes) {
            assert_eq!(SignedLease::open(&signed.encode()), Ok(signed));
        }
    });
}

#[test]
fn sealed_bids() {
    let (order, secret) = (OrderId([5; 32]), [3; 32]);
    let key = noise_public(&secret).expect("a key");
    let signed = bid().sign(&peer());
    let sealed = seal_bid(order, &key, &signed, [7; 32]).expect("it fits");
    assert_eq!(open_bid(order, &secret, &sealed).expect("opens"), signed, "the seed is genuine");
    feed!(vec![sealed.to_vec()], |bytes| {
        if let Ok(opened) = open_bid(order, &secret, bytes) {
            assert!(bytes == &sealed[..] && opened == signed, "somebody else's was opened");
        }
    });
}

/// The control: what the target is fed is read when it is whole.
#[test]
fn the_seeds_are_genuine() {
    let seeds: Vec<Bytes> = seeds().into_iter().map(Bytes::from).collect();
    let [
        order,
        stamped,
        proven,
        closed,
        bid,
        signed,
        sealed,
        lease,
        award,
        refused,
        answer,
        leased,
    ] = seeds.as_slice()
    else {
        panic!("there are {} seeds", seeds.len())
    };
    assert!(Order::parse(order).is_ok());
    for order in [stamped, proven] {
        assert_eq!(SignedOrder::parse(order).and_then(|order| order.verify()), Ok(()));
    }
    assert!(closes_order(closed).is_ok());
    assert!(Bid::parse(bid).is_ok() && Bid::open(signed).is_ok());
    assert!(SealedBid::parse(sealed).is_ok() && Lease::parse(lease).is_ok());
    assert!(Award::open(award).is_ok() && SignedLease::open(leased).is_ok());
    assert!(AwardAnswer::parse(refused).is_ok() && AwardAnswer::parse(answer).is_ok());
}
