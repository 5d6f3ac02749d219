//! From an order to a lease that works.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sluice_market::{
    AwardPolicy, BidPolicy, BidRefusal, BidderEvent, Fate, Hours, NoBid, NotChosen, Reputation,
    Tenant, TenantEvent, TenantPolicy, Verdict, Weights, WhyNoLease, shard_depth,
};
use sluice_proto::market::{Order, SignedLease, SignedOrder, find_stamp, is_asked};
use sluice_proto::{Amount, Price, ServiceName};

use crate::world::{self, World, home, order, peer, policy, wallet, want};

const AUCTION: Duration = Duration::from_secs(10);

fn world(homes: Vec<BidPolicy>) -> World {
    World::new(Instant::now(), policy(), homes)
}

#[test]
fn the_cheapest_wins_and_the_others_are_told_why_not() {
    let mut world = world(vec![home(60_000), home(40_000), home(50_000)]);
    let order = world.place(want());
    world.run(AUCTION);
    let [lease] = world.leases.as_slice() else { panic!("{} leases", world.leases.len()) };
    assert_eq!(lease.lease().provider, peer(2));
    assert_eq!(lease.lease().price, Price { up: 0, down: 40_000 });
    let considered = world.tenant.considered(order);
    let verdict = |seed| {
        let of = considered.iter().find(|c| c.bidder == peer(seed)).expect("it bid");
        of.verdict.clone().expect("it was weighed")
    };
    assert_eq!(verdict(2), Verdict::Won);
    let (cost, taken) = (Amount(4 * 60_000), Amount(4 * 40_000));
    assert_eq!(verdict(1), Verdict::Dearer { cost, taken });
    let fates: Vec<Fate> =
        world.homes.iter().map(|home| home.history().last().expect("it bid").fate).collect();
    assert_eq!(fates, [Fate::Bid, Fate::Won, Fate::Bid]);
    world.run(Duration::from_secs(60));
    let last = |at: usize| world.homes[at].history().last().expect("it bid").fate;
    assert_eq!((last(0), last(2)), (Fate::Lost, Fate::Lost));
}

#[test]
fn a_lease_carries_all_that_connects_and_is_signed_by_both() {
    let mut world = world(vec![home(40_000)]);
    world.place(want());
    world.run(AUCTION);
    let signed = world.leases.first().expect("a lease");
    let again = SignedLease::open(&signed.encode()).expect("both signed");
    assert_eq!(again, *signed);
    let lease = again.lease();
    assert_eq!(
        (lease.tenant_wallet, lease.provider_wallet),
        (wallet(100).address(), wallet(1).address())
    );
    let ticket = lease.ticket();
    assert_eq!((ticket.peer, ticket.noise_key), (peer(1), [1; 32]));
    assert_eq!(ticket.relays, vec![world::relay()]);
    assert_eq!(ticket.services, vec![ServiceName::parse("web").expect("a name")]);
    assert_eq!(ticket.expires_unix_s, lease.made_unix_s + 3_600);
    // The window is that of the measured 40 ms at the provider's 100 Mbit/s.
    assert_eq!(lease.window, 2_000_000);
    assert!(
        matches!(world.home_events.as_slice(), [(0, BidderEvent::Leased(held))] if **held == again)
    );
}

#[test]
fn bids_come_in_the_order_of_their_price_until_there_are_enough() {
    let homes: Vec<BidPolicy> = (1..=40).rev().map(|price| home(price * 2_000)).collect();
    let mut world = World::new(Instant::now(), TenantPolicy { bids_enough: 5, ..policy() }, homes);
    let order = world.place(want());
    world.run(AUCTION);
    let bidders: Vec<_> = world.wire.bids.iter().map(|(peer, _)| *peer).collect();
    // The cheapest has the highest seed.
    let expected: Vec<_> = (36..=40).rev().map(peer).collect();
    assert_eq!(bidders, expected, "the sixth kept silent");
    assert_eq!(world.wire.closed.len(), 1);
    assert_eq!(world.tenant.considered(order).len(), 5);
    assert_eq!(world.homes[0].history().last().expect("it heard").fate, Fate::Silent);
}

#[test]
fn the_next_bid_is_taken_when_the_first_does_not_answer_or_serve_and_it_counts() {
    let mut world = world(vec![home(30_000), home(40_000), home(50_000)]);
    world.deaf.insert(0);
    world.idle.insert(1);
    let order = world.place(want());
    world.run(AUCTION);
    assert_eq!(world.leases.first().expect("a lease").lease().provider, peer(3));
    let considered = world.tenant.considered(order);
    let verdict =
        |seed| considered.iter().find(|c| c.bidder == peer(seed)).map(|c| c.verdict.clone());
    assert_eq!(verdict(1), Some(Ok(Verdict::NoAnswer)));
    assert_eq!(verdict(2), Some(Ok(Verdict::NoService)));
    let success = |seed| world.tenant.reputation().success_ppm(&peer(seed), world.now.at);
    assert!(success(1) < 500_000 && success(2) < 500_000 && success(3) > 500_000);
}

#[test]
fn whoever_fails_again_and_again_is_shunned_until_it_is_forgotten() {
    let mut world = world(vec![home(30_000), home(40_000)]);
    world.idle.insert(0);
    for _ in 0..3 {
        world.place(want());
        world.run(AUCTION);
    }
    assert_eq!(world.leases.len(), 3);
    assert_eq!(world.tenant.refused().of("shunned"), 1, "its third bid was not weighed");
    world.idle.clear();
    world.run(Duration::from_secs(14 * 86_400));
    world.place(want());
    world.run(AUCTION);
    assert_eq!(world.leases.last().expect("a lease").lease().provider, peer(1));
}

#[test]
fn a_score_weighs_what_the_tenant_measured() {
    let near = AwardPolicy::Score(Weights { price: 1, rate: 0, latency: 9, success: 0 });
    let homes = vec![home(30_000), home(40_000)];
    let mut world = World::new(Instant::now(), TenantPolicy { award: near, ..policy() }, homes);
    world.latency = vec![Duration::from_millis(200), Duration::from_millis(10)];
    let order = world.place(want());
    world.run(AUCTION);
    assert_eq!(world.leases.first().expect("a lease").lease().provider, peer(2));
    let considered = world.tenant.considered(order);
    let first = considered.iter().find(|c| c.bidder == peer(1)).expect("it bid");
    assert_eq!(first.verdict, Ok(Verdict::LowerScore { score: 145_000, taken: 975_000 }));
}

#[test]
fn whoever_is_too_far_is_not_taken() {
    let max = Duration::from_millis(100);
    let homes = vec![home(30_000), home(40_000)];
    let policy = TenantPolicy { latency_max: Some(max), ..policy() };
    let mut world = World::new(Instant::now(), policy, homes);
    world.latency[0] = Duration::from_millis(101);
    let order = world.place(want());
    world.run(AUCTION);
    assert_eq!(world.leases.first().expect("a lease").lease().provider, peer(2));
    let found = Duration::from_millis(101);
    let considered = world.tenant.considered(order);
    assert!(considered.iter().any(|c| c.verdict == Ok(Verdict::TooFar { found, max })));
}

#[test]
fn an_order_that_nobody_can_serve_says_so() {
    let mut world = world(vec![home(200_000)]);
    let order = world.place(want());
    world.run(AUCTION);
    assert_eq!(world.tenant_events, vec![TenantEvent::NoLease { order, why: WhyNoLease::NoBids }]);
    assert_eq!(
        world.homes[0].history().last().map(|m| m.fate),
        Some(Fate::NotBid(NoBid::TooCheap))
    );
}

#[test]
fn an_unfunded_lease_gives_its_room_back_and_is_remembered() {
    let mut policy = home(30_000);
    policy.leases_max = 1;
    let mut world = world(vec![policy]);
    let mut bidder = std::mem::replace(&mut world.homes[0], world::bidder(1, home(1)));
    let unfunded = |world: &mut World, bidder: &mut sluice_market::Bidder| {
        world.place(want());
        let Some(sluice_market::TenantTransmit::Order { bytes, .. }) = world.tenant.poll_transmit()
        else {
            panic!("an order")
        };
        let taken = bidder.handle_order(&bytes, world.now);
        if taken.is_err() {
            return taken.map(|_| None);
        }
        world.now = world.now.after(Duration::from_secs(1));
        bidder.handle_timeout(world.now);
        let Some(sluice_market::BidderTransmit::Bid { bytes, .. }) = bidder.poll_transmit() else {
            return Ok(None);
        };
        world.tenant.handle_bid(peer(1), None, &bytes, world.now).expect("a good bid");
        world.now = world.now.after(Duration::from_secs(2));
        world.tenant.handle_timeout(world.now);
        while let Some(event) = world.tenant.poll_event() {
            if let TenantEvent::Measure { order, peer, .. } = event {
                world.tenant.handle_latency(order, peer, None, world.now);
            }
        }
        let Some(sluice_market::TenantTransmit::Award { bytes, .. }) = world.tenant.poll_transmit()
        else {
            panic!("an award")
        };
        bidder.handle_award(peer(100), None, &bytes, world.now).expect("signed");
        while bidder.poll_transmit().is_some() {}
        Ok(Some(bytes))
    };
    for _ in 0..2 {
        let award = unfunded(&mut world, &mut bidder).expect("considered").expect("signed");
        // While it waits there is no room; the same award again is answered again.
        bidder.handle_award(peer(100), None, &award, world.now).expect("the same answer");
        assert!(bidder.poll_transmit().is_some());
        assert_eq!(unfunded(&mut world, &mut bidder), Ok(None));
        assert_eq!(bidder.history().last().map(|m| m.fate), Some(Fate::NotBid(NoBid::Leases)));
        world.now = world.now.after(Duration::from_secs(121));
        bidder.handle_timeout(world.now);
        let events: Vec<_> = std::iter::from_fn(|| bidder.poll_event()).collect();
        assert!(matches!(events.last(), Some(BidderEvent::Unfunded(_))), "{events:?}");
    }
    let third = unfunded(&mut world, &mut bidder);
    assert_eq!(third.expect_err("remembered").name(), "shunned");
}

#[test]
fn the_owners_policy_is_kept() {
    let bid = |change: &dyn Fn(&mut BidPolicy)| {
        let mut policy = home(30_000);
        change(&mut policy);
        let mut world = world(vec![policy]);
        world.place(want());
        world.run(AUCTION);
        world.homes[0].history().next().expect("it heard").fate
    };
    assert_eq!(bid(&|_| {}), Fate::Won);
    let denied = |policy: &mut BidPolicy| policy.denied = BTreeSet::from([peer(100)]);
    assert_eq!(bid(&denied), Fate::NotBid(NoBid::Denied));
    // The world begins on a Friday at 08:00 UTC.
    let hours = |from_min, to_min| vec![Hours { from_min, to_min }];
    assert_eq!(bid(&|p| p.closed = hours(7 * 60, 9 * 60)), Fate::NotBid(NoBid::Closed));
    assert_eq!(bid(&|p| p.closed = hours(9 * 60, 7 * 60)), Fate::Won);
    let at_home = |p: &mut BidPolicy| (p.closed, p.utc_offset_min) = (hours(22 * 60, 6 * 60), -600);
    assert_eq!(bid(&at_home), Fate::NotBid(NoBid::Closed), "it is 22:00 there");
    assert_eq!(bid(&|p| p.services.clear()), Fate::NotBid(NoBid::Service));
    assert_eq!(bid(&|p| p.money.clear()), Fate::NotBid(NoBid::Money));
    assert_eq!(bid(&|p| p.duration_max_s = 3_599), Fate::NotBid(NoBid::Duration));
    assert_eq!(bid(&|p| p.period_min_s = 73 * 3_600), Fate::NotBid(NoBid::Period));
    assert_eq!(bid(&|p| p.window_max = 1), Fate::NotBid(NoBid::Window));
    assert_eq!(bid(&|p| p.uplink_kept = 40_000_001), Fate::NotBid(NoBid::Rate));
    assert_eq!(bid(&|p| p.leases_max = 0), Fate::NotBid(NoBid::Leases));
    assert_eq!(bid(&|p| p.month_bytes = (4 << 30) - 1), Fate::NotBid(NoBid::Month));
}

#[test]
fn the_line_is_sold_once() {
    let mut world = world(vec![home(30_000), home(90_000)]);
    for _ in 0..5 {
        world.place(want());
        world.run(AUCTION);
    }
    // 45 of 50 Mbit/s are for sale, and each takes 10.
    let providers: Vec<_> = world.leases.iter().map(|l| l.lease().provider).collect();
    assert_eq!(providers, [1, 1, 1, 1, 2].map(peer));
    world.homes[0].handle_ended(world.leases[0].lease().lease);
    world.place(want());
    world.run(AUCTION);
    assert_eq!(world.leases.last().expect("a lease").lease().provider, peer(1));
}

#[test]
fn the_price_climbs_as_the_month_is_used() {
    let mut policy = home(10_000);
    policy.ceiling = Price { up: 100, down: 30_000 };
    policy.month_bytes = 1_000;
    let price = |used| (policy.price(used).up, policy.price(used).down);
    assert_eq!(price(0), (0, 10_000));
    assert_eq!(price(500), (50, 20_000));
    assert_eq!(price(1_000), (100, 30_000));
    assert_eq!(price(u64::MAX), (100, 30_000));
}

#[test]
fn a_large_region_is_asked_in_parts() {
    assert_eq!(shard_depth(512, 512), 0);
    assert_eq!(shard_depth(513, 512), 1);
    assert_eq!(shard_depth(1_000_000, 512), 11);
    let part = |shard| (1..=255).filter(|seed| is_asked(&peer(*seed), 2, shard)).count();
    assert_eq!((0..4).map(part).sum::<usize>(), 255, "each is in one part");
    assert!((0..4).all(|shard| part(shard) > 40), "about a quarter in each");
    assert!(is_asked(&peer(1), 0, 0) && !is_asked(&peer(1), 0, 1));
}

#[test]
fn bids_before_their_time_are_refused() {
    let mut world = world(vec![home(50_000)]);
    world.place(want());
    // Half of the highest price: not in the first half of the clock.
    let Some(sluice_market::TenantTransmit::Order { bytes, .. }) = world.tenant.poll_transmit()
    else {
        panic!("an order")
    };
    let mut eager = world::bidder(1, home(50_000));
    eager.handle_order(&bytes, world.now).expect("a good order");
    let late = world.now.after(Duration::from_millis(751));
    eager.handle_timeout(late);
    let Some(sluice_market::BidderTransmit::Bid { bytes, .. }) = eager.poll_transmit() else {
        panic!("a bid")
    };
    let early = world.now.after(Duration::from_millis(740));
    let refused = world.tenant.handle_bid(peer(1), None, &bytes, early);
    assert_eq!(refused, Err(BidRefusal::TooEarly(10)));
    assert_eq!(order().bid_after_ms(Price { up: 0, down: 50_000 }), 750);
    assert_eq!(world.tenant.handle_bid(peer(1), None, &bytes, late), Ok(()));
}

#[test]
fn a_bid_is_chosen_by_hand_while_it_holds_and_by_a_later_process_too() {
    let by_hand = Some(Duration::from_secs(300));
    let homes = vec![home(30_000), home(40_000), home(50_000)];
    let mut world = World::new(Instant::now(), TenantPolicy { by_hand, ..policy() }, homes);
    let order = world.place(want());
    world.run(AUCTION);
    assert!(world.leases.is_empty(), "nothing is awarded by itself");
    assert!(world.tenant_events.contains(&TenantEvent::Choose { order }));
    let offers = world.tenant.offers(order).expect("they wait");
    let bidders: Vec<_> = offers.bids.iter().map(|offer| offer.bid.bidder).collect();
    assert_eq!(bidders, [peer(1), peer(2), peer(3)], "the cheapest first");
    assert!(offers.bids.iter().all(|offer| offer.latency.is_some()), "all are measured");
    let refused = world.tenant.choose(order, peer(9), world.now);
    assert_eq!(refused, Err(NotChosen::NoBid(peer(9))));
    // Well after the 15 s that a bid holds unless it is asked to hold for longer.
    world.run(Duration::from_secs(120));
    let policy = TenantPolicy { by_hand, ..policy() };
    world.tenant = Tenant::new(world::node(100), wallet(100), policy, [9; 32]);
    assert_eq!(world.tenant.resume(offers.clone(), world.now), order);
    world.tenant.choose(order, peer(2), world.now).expect("it holds");
    world.run(AUCTION);
    assert_eq!(world.leases.first().expect("a lease").lease().provider, peer(2));
    let considered = world.tenant.considered(order);
    let first = considered.iter().find(|c| c.bidder == peer(1)).expect("it bid");
    assert_eq!(first.verdict, Ok(Verdict::NotChosen));

    world.run(Duration::from_secs(300));
    world.tenant.resume(offers.clone(), world.now);
    let until = offers.bids[2].bid.valid_until_unix_ms;
    let late = world.tenant.choose(order, peer(3), world.now);
    assert_eq!(late, Err(NotChosen::Over(until)));
    world.run(Duration::from_secs(1));
    let over = TenantEvent::NoLease { order, why: WhyNoLease::NoneLeft };
    assert!(world.tenant_events.contains(&over));
}

#[test]
fn a_choice_by_hand_that_fails_leaves_the_others_to_choose_from() {
    let by_hand = Some(Duration::from_secs(300));
    let homes = vec![home(30_000), home(40_000)];
    let mut world = World::new(Instant::now(), TenantPolicy { by_hand, ..policy() }, homes);
    world.deaf.insert(0);
    let order = world.place(want());
    world.run(AUCTION);
    world.tenant.choose(order, peer(1), world.now).expect("it holds");
    world.run(AUCTION);
    let choices = world.tenant_events.iter().filter(|e| **e == TenantEvent::Choose { order });
    assert_eq!(choices.count(), 2);
    assert_eq!(world.tenant.choose(order, peer(1), world.now), Err(NotChosen::NoBid(peer(1))));
    world.tenant.choose(order, peer(2), world.now).expect("it holds");
    world.run(AUCTION);
    assert_eq!(world.leases.first().expect("a lease").lease().provider, peer(2));
}

#[test]
fn few_bids_hold_for_long_however_many_orders_ask_for_it() {
    let mut world = world(vec![home(30_000)]);
    let holds = |world: &World| {
        let bid = |made: &sluice_market::Made| made.fate == Fate::Bid;
        world.homes[0].history().filter(|made| bid(made)).count()
    };
    for by in 101..=200 {
        let tenant = peer(by);
        let order = Order { tenant, hold_s: 600, ..order() };
        let bytes = SignedOrder::stamp(&order, &world::node(by), |id| find_stamp(id, 4, 0));
        world.homes[0].handle_order(&bytes, world.now).expect("a good order");
    }
    world.run(Duration::from_secs(20));
    assert_eq!(holds(&world), 64, "the others held for 15 s");
    world.run(Duration::from_secs(600));
    assert_eq!(holds(&world), 0);
}

#[test]
fn what_was_seen_of_a_provider_outlives_the_process_and_fades() {
    let mut world = world(vec![home(30_000)]);
    world.idle.insert(0);
    for _ in 0..2 {
        world.place(want());
        world.run(AUCTION);
    }
    let seen: Vec<_> = world.tenant.reputation().experiences(world.now).collect();
    let again = Reputation::of(seen.clone(), world.now);
    assert!(again.is_shunned(&peer(1), world.now.at));
    let week = Duration::from_secs(7 * 86_400);
    let later = Reputation::of(seen, world.now.after(week));
    assert!(!later.is_shunned(&peer(1), world.now.at));
    assert_eq!(later.experiences(world.now).next().map(|e| e.bad), Some(1_000), "half of two");
}

#[test]
fn an_order_that_nobody_heard_is_forgotten() {
    let mut world = world(Vec::new());
    let order = world.place(want());
    world.tenant.withdraw(order);
    world.run(AUCTION);
    assert!(world.tenant_events.is_empty());
}
