//! What liars and strangers send is dropped by a name, counted, and costs the others nothing.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use sluice_market::{
    AwardRefused, BidRefusal, Bidder, BidderEvent, BidderTransmit, Fate, IpPrefix, Limiter, Moment,
    OrderRefusal, Reputation, SealError, Tenant, TenantEvent, TenantTransmit, lease_of, open_bid,
    seal_bid,
};
use sluice_proto::market::{
    Award, AwardRefusal, Bid, MarketError, Order, OrderId, SealedBid, SignedOrder, close_order,
    find_stamp, stamp_bits,
};
use sluice_proto::wire::market as wire;
use sluice_proto::{Amount, Price};

use crate::world::{self, UNIX_MS, World, home, node, order, peer, policy, wallet, want};

fn begin() -> Moment {
    Moment { at: Instant::now(), unix_ms: UNIX_MS }
}

fn signed(order: &Order, by: u8) -> Bytes {
    SignedOrder::stamp(order, &node(by), |id| find_stamp(id, 4, 0))
}

fn refusal(order: &Order, now: Moment) -> &'static str {
    let mut home = world::bidder(1, home(30_000));
    let refused = home.handle_order(&signed(order, 100), now).expect_err("refused");
    assert_eq!(home.refused().of(refused.name()), 1, "it is counted");
    assert!(home.poll_timeout().is_none() && home.poll_transmit().is_none());
    refused.name()
}

#[test]
fn an_order_out_of_bounds_is_refused_by_name() {
    let with = |change: &dyn Fn(&mut Order)| {
        let mut order = order();
        change(&mut order);
        match SignedOrder::parse(&signed(&order, 100)) {
            Err(MarketError::Range { field, .. }) => field,
            Err(MarketError::Contradiction { why, .. }) => why,
            Err(MarketError::Missing { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(&|o| o.depth = 21), "depth");
    assert_eq!(with(&|o| o.shard = 1), "shard");
    assert_eq!(with(&|o| o.services.clear()), "services");
    assert_eq!(with(&|o| o.services = vec![world::web(); 2]), "a service is named twice");
    assert_eq!(with(&|o| o.rate_up_min = u64::MAX), "rate_up_min");
    assert_eq!(with(&|o| o.rate_down_min = u64::MAX), "rate_down_min");
    assert_eq!(with(&|o| o.rate_proven_min = u64::MAX), "rate_proven_min");
    assert_eq!(with(&|o| o.volume_up = u64::MAX), "volume_up");
    assert_eq!(with(&|o| o.volume_down = 0), "no volume is expected");
    assert_eq!(with(&|o| o.budget = Amount(0)), "something is charged, but the budget is 0");
    assert_eq!(with(&|o| o.duration_s = 59), "duration_s");
    assert_eq!(with(&|o| o.max_price.down = u128::MAX), "max_price_down");
    assert_eq!(with(&|o| o.max_price.up = u128::MAX), "max_price_up");
    assert_eq!(with(&|o| o.max_price.down = 0), "money is named, but nothing is charged");
    assert_eq!(with(&|o| o.money = None), "money");
    assert_eq!(with(&|o| o.window_min = 1), "window_min");
    assert_eq!(with(&|o| o.window_max = u64::MAX), "window_max");
    assert_eq!(
        with(&|o| (o.window_min, o.window_max) = (1 << 21, 1 << 20)),
        "window_min is above window_max"
    );
    assert_eq!(with(&|o| o.period_s = 1), "period_s");
    assert_eq!(with(&|o| o.idle_timeout_s = 1), "idle_timeout_s");
    assert_eq!(with(&|o| o.clock_ms = 2_001), "clock_ms");
    assert_eq!(with(&|o| o.hold_s = 601), "hold_s");
    assert_eq!(
        with(&|o| o.bids_until_unix_ms = o.made_unix_ms),
        "bids end before the order was made"
    );
    assert_eq!(with(&|o| o.bids_until_unix_ms += 60_000), "bids_until_unix_ms - made_unix_ms");
}

#[test]
fn an_orders_fields_are_missing_or_malformed_by_name() {
    let with = |change: &dyn Fn(&mut wire::Order)| {
        let mut fields = wire::Order::decode(order().encode()).expect("an order");
        change(&mut fields);
        Order::parse(&fields.encode_to_vec().into()).expect_err("refused").to_string()
    };
    assert_eq!(with(&|o| o.version = 2), "order: version 2, but only 1 is known");
    assert_eq!(with(&|o| o.tenant = Bytes::from_static(b"x")), "order: tenant is not a peer id");
    assert_eq!(with(&|o| o.noise_key.clear()), "order: noise_key must be 32 bytes, but has 0");
    assert_eq!(with(&|o| o.nonce.clear()), "order: nonce must be 16 bytes, but has 0");
    assert_eq!(
        with(&|o| o.region = "EU".to_owned()),
        "order: region \"EU\" must be 1 to 32 of a-z, 0-9 and -, starting with a letter"
    );
    assert_eq!(with(&|o| o.budget.clear()), "order: budget must be 16 bytes, but has 0");
    assert_eq!(with(&|o| o.direct = 0), "order: direct is 0, not within 1 to 3");
    assert_eq!(with(&|o| o.services[0].kind = 4), "order: kind is 4, not within 1 to 3");
    assert_eq!(
        with(&|o| o.services[0].name.clear()),
        "order: service name \"\" must be 1 to 32 of a-z, 0-9 and -, starting with a letter"
    );
    let short = |o: &mut wire::Order| o.money.iter_mut().for_each(|m| m.token.clear());
    assert_eq!(with(&short), "order: token must be 20 bytes, but has 0");
}

#[test]
fn orders_that_are_late_early_replayed_or_not_for_us_are_refused() {
    let now = begin();
    assert_eq!(refusal(&order(), now.after(Duration::from_secs(13))), "expired");
    let future =
        Order { made_unix_ms: UNIX_MS + 11_000, bids_until_unix_ms: UNIX_MS + 13_000, ..order() };
    assert_eq!(refusal(&future, now), "future");
    let elsewhere =
        Order { region: sluice_proto::market::Region::parse("moon").expect("a region"), ..order() };
    assert_eq!(refusal(&elsewhere, now), "not_asked");
    let part = (0..2).find(|shard| !sluice_proto::market::is_asked(&peer(1), 1, *shard));
    assert_eq!(
        refusal(&Order { depth: 1, shard: part.expect("one of two"), ..order() }, now),
        "not_asked"
    );
    let mut home = world::bidder(1, home(30_000));
    let bytes = signed(&order(), 100);
    home.handle_order(&bytes, now).expect("the first");
    let again = |home: &mut Bidder, after| home.handle_order(&bytes, now.after(after));
    assert_eq!(again(&mut home, Duration::ZERO), Err(OrderRefusal::Replayed));
    // As long as it would not be refused for its age.
    for _ in 0..40 {
        home.handle_timeout(now.after(Duration::from_millis(11_900)));
    }
    assert_eq!(again(&mut home, Duration::from_millis(11_900)), Err(OrderRefusal::Replayed));
}

#[test]
fn an_order_in_anothers_name_is_refused_and_does_not_spend_the_others_limit() {
    let mut home = world::bidder(1, home(30_000));
    let now = begin();
    for nonce in 0..100 {
        let forged = signed(&Order { nonce: [nonce; 16], ..order() }, 101);
        assert_eq!(home.handle_order(&forged, now).expect_err("forged").name(), "signature");
    }
    assert!(home.handle_order(&signed(&Order { nonce: [200; 16], ..order() }, 100), now).is_ok());
}

#[test]
fn a_flood_of_orders_from_one_identity_leaves_room_for_the_others() {
    let mut home = world::bidder(1, home(30_000));
    let now = begin();
    let taken = |home: &mut Bidder, by: u8, nonce: u8| {
        let order = Order { tenant: peer(by), nonce: [nonce; 16], ..order() };
        home.handle_order(&signed(&order, by), now)
    };
    let ok = (0..=255).filter(|nonce| taken(&mut home, 101, *nonce).is_ok()).count();
    assert_eq!(ok, 20, "the burst");
    assert_eq!(home.refused().of("limit"), 256 - 20);
    assert!(taken(&mut home, 100, 0).is_ok());
}

#[test]
fn a_stamp_is_work_and_checked_with_one_hash() {
    let id = OrderId([3; 32]);
    let stamp = find_stamp(id, 12, 5);
    assert!(stamp_bits(id, stamp) >= 12 && stamp >= 5);
    let mut policy = home(30_000);
    policy.stamp_bits = 24;
    let mut strict = world::bidder(1, policy);
    let refused = strict.handle_order(&signed(&order(), 100), begin()).expect_err("4 bits");
    assert_eq!(refused.name(), "stamp");
}

#[test]
fn a_wallet_that_is_empty_or_anothers_gets_no_bid() {
    let now = begin();
    let bytes = SignedOrder::with_wallet(&order(), &node(100), &wallet(100));
    for has_budget in [true, false] {
        let mut home = world::bidder(1, home(30_000));
        let id = home.handle_order(&bytes, now).expect("a good order");
        let asked = home.poll_event();
        let Some(BidderEvent::CheckWallet { order, wallet: of, budget, .. }) = asked else {
            panic!("{asked:?}")
        };
        assert_eq!((order, of, budget), (id, wallet(100).address(), Amount(1_000_000)));
        home.handle_timeout(now.after(Duration::from_secs(1)));
        assert!(home.poll_transmit().is_none(), "not before the chain was asked");
        home.handle_wallet(id, has_budget, now.after(Duration::from_secs(1)));
        assert_eq!(home.poll_transmit().is_some(), has_budget);
    }
    // Signed by another wallet than it names.
    let mut stolen = wire::SignedOrder::decode(bytes).expect("an order");
    if let Some(wire::signed_order::Proof::Wallet(proof)) = &mut stolen.proof {
        proof.wallet = Bytes::copy_from_slice(&wallet(1).address().0);
    }
    let error = SignedOrder::parse(&stolen.encode_to_vec().into()).expect_err("another's");
    assert_eq!(error, MarketError::Wallet { message: "order", wallet: wallet(1).address() });
    stolen.proof = None;
    let error = SignedOrder::parse(&stolen.encode_to_vec().into()).expect_err("no proof");
    assert_eq!(error, MarketError::Missing { message: "order", field: "proof" });
}

#[test]
fn only_its_tenant_closes_an_order() {
    let now = begin();
    let mut home = world::bidder(1, home(30_000));
    let id = home.handle_order(&signed(&order(), 100), now).expect("a good order");
    home.handle_closed(&close_order(id, &node(101))).expect("well-formed");
    let forged = wire::OrderClosed {
        tenant: peer(100).to_bytes().into(),
        ..wire::OrderClosed::decode(close_order(id, &node(101))).expect("closed")
    };
    let refused = home.handle_closed(&forged.encode_to_vec().into()).expect_err("forged");
    assert_eq!(refused.name(), "signature");
    home.handle_timeout(now.after(Duration::from_secs(1)));
    assert!(home.poll_transmit().is_some(), "it bids all the same");
}

/// A tenant with one order placed, and its bytes.
fn placed(now: Moment) -> (Tenant, SignedOrder, Bytes) {
    let mut tenant = Tenant::new(node(100), wallet(100), policy(), [100; 32]);
    tenant.place(want(), now).expect("a good order");
    let Some(TenantTransmit::Order { bytes, .. }) = tenant.poll_transmit() else {
        panic!("an order")
    };
    (tenant, SignedOrder::parse(&bytes).expect("genuine"), bytes)
}

/// A bid of the home with this seed, which nothing is wrong with.
fn bid_for(order: &SignedOrder, seed: u8, now: Moment) -> Bid {
    Bid {
        order: order.id,
        bidder: peer(seed),
        lease: sluice_proto::LeaseId([seed; 32]),
        price: Price { up: 0, down: 30_000 },
        rate_up: 0,
        rate_down: 20_000_000,
        rate_max: 100_000_000,
        rate_proven: 0,
        wallet: wallet(seed).address(),
        payout: wallet(seed).address(),
        period_min_s: 48 * 3_600,
        starter_bytes: 0,
        noise_key: [seed; 32],
        relays: vec![world::relay()],
        invite: sluice_proto::Invite([0; 24]),
        valid_until_unix_ms: now.unix_ms + 20_000,
    }
}

fn sealed(order: &SignedOrder, bid: &Bid, by: u8, seed: u8) -> Bytes {
    let sealed = seal_bid(order.id, &order.order.noise_key, &bid.sign(&node(by)), [seed; 32]);
    SealedBid { order: order.id, sealed: sealed.expect("a key") }.encode()
}

#[test]
fn a_bid_that_would_not_do_is_refused_by_name() {
    let now = begin();
    let later = now.after(Duration::from_millis(500));
    let with = |change: &dyn Fn(&mut Bid)| {
        let (mut tenant, order, _) = placed(now);
        let mut bid = bid_for(&order, 1, now);
        change(&mut bid);
        let sent = sealed(&order, &bid, 1, 1);
        let refused = tenant.handle_bid(peer(1), None, &sent, later).err();
        let name = refused.as_ref().map(BidRefusal::name);
        assert_eq!(name.map_or(0, |name| tenant.refused().of(name)), u64::from(name.is_some()));
        name
    };
    assert_eq!(with(&|_| {}), None);
    assert_eq!(with(&|b| b.order = OrderId([0; 32])), Some("other_order"));
    assert_eq!(with(&|b| b.bidder = peer(2)), Some("signature"));
    assert_eq!(with(&|b| b.price.down = 100_001), Some("too_dear"));
    assert_eq!(with(&|b| b.price.down = 50_000), Some("too_early"));
    assert_eq!(with(&|b| b.rate_down = 9_999_999), Some("too_slow"));
    assert_eq!(with(&|b| b.period_min_s = 73 * 3_600), Some("period"));
    assert_eq!(with(&|b| b.valid_until_unix_ms = UNIX_MS), Some("expired"));
    assert_eq!(with(&|b| b.rate_down = u64::MAX), Some("range"));
    assert_eq!(with(&|b| b.relays.clear()), Some("range"));
    assert_eq!(with(&|b| b.price.up = u128::MAX), Some("range"));
}

#[test]
fn bids_replayed_stolen_contradicting_or_damaged_are_refused() {
    let now = begin();
    let later = now.after(Duration::from_millis(500));
    let (mut tenant, order, _) = placed(now);
    let bid = bid_for(&order, 1, now);
    let genuine = sealed(&order, &bid, 1, 1);
    let mut send = |from: u8, bytes: &Bytes| tenant.handle_bid(peer(from), None, bytes, later);
    assert_eq!(send(2, &genuine), Err(BidRefusal::OtherSender));
    assert_eq!(send(1, &genuine), Ok(()));
    assert_eq!(send(1, &genuine), Err(BidRefusal::Replayed));
    assert_eq!(send(1, &sealed(&order, &bid, 1, 2)), Err(BidRefusal::Replayed), "sealed anew");
    let lower = Bid { price: Price { up: 0, down: 20_000 }, ..bid };
    assert_eq!(send(1, &sealed(&order, &lower, 1, 3)), Err(BidRefusal::Contradiction));
    let mut damaged = genuine.to_vec();
    *damaged.last_mut().expect("bytes") ^= 1;
    assert_eq!(send(3, &damaged.into()), Err(BidRefusal::Seal(SealError::Sealed)));
    let unknown = SealedBid { order: OrderId([0; 32]), sealed: Bytes::new() }.encode();
    assert_eq!(send(3, &unknown), Err(BidRefusal::UnknownOrder));
    let oversized = Bytes::from(vec![0; 100_000]);
    assert_eq!(send(3, &oversized).expect_err("too large").name(), "oversized");
    assert!(
        tenant.reputation().success_ppm(&peer(1), later.at) < 500_000,
        "the contradiction counts"
    );
    let considered = tenant.considered(order.id);
    assert_eq!(considered.len(), 4, "{considered:?}");
}

#[test]
fn a_flood_of_bids_from_one_network_leaves_room_for_the_others() {
    let now = begin();
    let later = now.after(Duration::from_millis(500));
    let (mut tenant, order, _) = placed(now);
    let prefix = |c| Some(IpPrefix::of(IpAddr::from([192, 0, c, 1])));
    let mut taken = 0;
    for seed in 1..=90 {
        let bid = sealed(&order, &bid_for(&order, seed, now), seed, seed);
        taken += usize::from(tenant.handle_bid(peer(seed), prefix(1), &bid, later).is_ok());
    }
    assert_eq!(taken, 32, "the burst of a network");
    assert!(tenant.refused().of("prefix_limit") > 0);
    let bid = sealed(&order, &bid_for(&order, 99, now), 99, 99);
    assert_eq!(tenant.handle_bid(peer(99), prefix(2), &bid, later), Ok(()));
    assert!(tenant.considered(order.id).len() <= 128, "what is kept is bounded");
}

#[test]
fn an_award_is_signed_only_if_it_is_what_was_offered() {
    let now = begin();
    let (mut tenant, order, bytes) = placed(now);
    let mut home = world::bidder(1, home(30_000));
    home.handle_order(&bytes, now).expect("a good order");
    let later = now.after(Duration::from_millis(500));
    home.handle_timeout(later);
    let Some(BidderTransmit::Bid { bytes, .. }) = home.poll_transmit() else { panic!("a bid") };
    tenant.handle_bid(peer(1), None, &bytes, later).expect("a good bid");
    // What only the tenant can read, read by a copy of it.
    let end = now.after(Duration::from_secs(3));
    tenant.handle_timeout(end);
    while let Some(event) = tenant.poll_event() {
        if let TenantEvent::Measure { order, peer, .. } = event {
            tenant.handle_latency(order, peer, None, end);
        }
    }
    let Some(TenantTransmit::Award { bytes, .. }) = tenant.poll_transmit() else {
        panic!("an award")
    };
    let genuine = Award::open(&bytes).expect("genuine");
    let by = end.unix_ms + 2_000;
    let sign = |lease, by| Award::make(lease, by, &node(100), &wallet(100)).encode();
    let mut refused = |from: u8, bytes: &Bytes, now| {
        home.handle_award(peer(from), None, bytes, now).err().map(|why| {
            let answer = home.poll_transmit();
            (why.name(), answer.is_some())
        })
    };
    let lease = genuine.lease.clone();
    let cheaper = sluice_proto::market::Lease { price: Price { up: 0, down: 1 }, ..lease.clone() };
    assert_eq!(refused(100, &sign(cheaper, by), end), Some(("other_terms", true)));
    let wider = sluice_proto::market::Lease { window: 1 << 19, ..lease.clone() };
    let longer = sluice_proto::market::Lease { duration_s: 7_200, ..lease.clone() };
    assert_eq!(refused(100, &sign(longer, by), end), Some(("other_terms", true)));
    let old = sluice_proto::market::Lease { made_unix_s: lease.made_unix_s - 20, ..lease.clone() };
    assert_eq!(refused(100, &sign(old, by), end), Some(("too_late", true)));
    assert_eq!(refused(100, &sign(lease.clone(), end.unix_ms - 1), end), Some(("too_late", true)));
    let unknown = sluice_proto::market::Lease { order: OrderId([0; 32]), ..lease.clone() };
    assert_eq!(refused(100, &sign(unknown, by), end), Some(("unknown_bid", true)));
    // Who did not make it, and who signs in another's name, get no answer.
    assert_eq!(refused(101, &bytes, end), Some(("not_awaited", false)));
    let forged = Award::make(lease, by, &node(101), &wallet(100)).encode();
    assert_eq!(refused(100, &forged, end), Some(("signature", false)));
    // A window within the order's bounds is the tenant's to choose.
    assert_eq!(refused(100, &sign(wider, by), end), None);
    assert_eq!(home.history().last().map(|m| m.fate), Some(Fate::Won));
    let expected = lease_of(&order.order, &bid_for(&order, 1, now), wallet(100).address(), 1, 1);
    assert_eq!(expected.money, order.order.money);
}

#[test]
fn an_answer_that_is_not_the_winners_changes_nothing() {
    let mut world = World::new(Instant::now(), policy(), vec![home(30_000), home(40_000)]);
    world.deaf.extend([0, 1]);
    world.place(want());
    world.run(Duration::from_millis(2_500));
    let (to, award) = world.wire.awards.first().expect("an award").clone();
    assert_eq!(to, peer(1));
    let award = Award::open(&award).expect("genuine");
    let answer = |seed: u8| {
        let signatures = sluice_proto::market::Signatures::make(
            &award.lease,
            &award.encoded,
            &node(seed),
            &wallet(seed),
        );
        sluice_proto::market::AwardAnswer { lease: award.lease.lease, answer: Ok(signatures) }
            .encode()
    };
    let now = world.now;
    let stranger = world.tenant.handle_answer(peer(2), &answer(2), now);
    assert_eq!(stranger, Err(AwardRefused::NotAwaited));
    let wrong =
        world.tenant.handle_answer(peer(1), &answer(2), now).expect_err("not its signature");
    assert_eq!(wrong.name(), "signature");
    // It is passed over, and the next is awarded.
    let Some(TenantTransmit::Award { to, .. }) = world.tenant.poll_transmit() else {
        panic!("an award")
    };
    assert_eq!(to, peer(2));
    let refused = sluice_proto::market::AwardAnswer {
        lease: award.lease.lease,
        answer: Err(AwardRefusal::NoRoom),
    };
    assert_eq!(
        world.tenant.handle_answer(peer(1), &refused.encode(), now),
        Err(AwardRefused::NotAwaited),
        "too late"
    );
}

#[test]
fn a_sealed_bid_is_read_by_its_order_alone() {
    let secret = [9; 32];
    let to = sluice_market::noise_public(&secret).expect("a key");
    let order = OrderId([1; 32]);
    let sealed = seal_bid(order, &to, b"a bid", [3; 32]).expect("sealed");
    assert_eq!(open_bid(order, &secret, &sealed).as_deref(), Ok(&b"a bid"[..]));
    assert_eq!(open_bid(OrderId([2; 32]), &secret, &sealed), Err(SealError::Sealed));
    assert_eq!(open_bid(order, &[8; 32], &sealed), Err(SealError::Sealed));
    let other = seal_bid(order, &to, b"a bid", [4; 32]).expect("sealed");
    assert_ne!(sealed, other);
    assert!(sealed.windows(5).all(|bytes| bytes != b"a bid"));
    let large = vec![0; 3_072];
    assert_eq!(seal_bid(order, &to, &large, [3; 32]), Err(SealError::TooLarge(3_120)));
}

#[test]
fn a_limit_refills_and_its_table_is_bounded() {
    let mut limiter = Limiter::new(Duration::from_secs(1), 3, 2);
    let now = Instant::now();
    let mut admitted = |key: u8, at: u64| limiter.admit(&key, now + Duration::from_secs(at));
    assert_eq!([0, 0, 0, 0].map(|at| admitted(1, at)), [true, true, true, false]);
    assert_eq!([1, 1].map(|at| admitted(1, at)), [true, false], "one a second");
    assert!(admitted(2, 1));
    // The table is full: strangers share one bucket, and those in it keep theirs.
    assert_eq!([3, 4, 5, 6].map(|key| admitted(key, 1)), [true, true, true, false]);
    assert!(admitted(2, 1));
    assert!(admitted(7, 60), "those that are full again make room");
    assert_eq!(limiter.len(), 1);
}

#[test]
fn an_experience_counts_half_after_a_week() {
    let mut reputation = Reputation::default();
    let now = Instant::now();
    let week = Duration::from_secs(7 * 86_400);
    assert_eq!(reputation.success_ppm(&peer(1), now), 500_000);
    reputation.failed(peer(1), now);
    reputation.failed(peer(1), now);
    assert!(reputation.is_shunned(&peer(1), now));
    assert_eq!(reputation.success_ppm(&peer(1), now), 250_000);
    assert_eq!(reputation.success_ppm(&peer(1), now + week), 333_333);
    assert!(!reputation.is_shunned(&peer(1), now + week));
    reputation.succeeded(peer(1), now + week);
    assert_eq!(reputation.success_ppm(&peer(1), now + week), 500_000);
}
