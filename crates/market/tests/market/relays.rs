//! Which relays are chosen, and why not the others.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sluice_market::{
    PREFIX_SEATS_MAX, RelayBook, RelayFacts, RelayPolicy, RelayVerdict, prefix_share_max_ppm,
};
use sluice_proto::eth::keccak256;
use sluice_proto::{EthAddress, Keypair, PeerId};

fn relay(number: u32, address: [u8; 4]) -> RelayFacts {
    let seed = keccak256(&number.to_be_bytes());
    RelayFacts {
        peer: Keypair::ed25519_from_bytes(seed).expect("a key").public().to_peer_id(),
        address: SocketAddr::new(IpAddr::from(address), 4433),
        operator: None,
        price: 5_000,
        latency: Some(Duration::from_millis(30)),
        rate_proven: 500_000_000,
        success_ppm: 500_000,
        is_alive: true,
    }
}

fn policy() -> RelayPolicy {
    RelayPolicy { price_max: 10_000, ..RelayPolicy::default() }
}

fn book(policy: RelayPolicy, key: u8, relays: &[RelayFacts], now: Instant) -> RelayBook {
    let mut book = RelayBook::new(policy, [key; 16]);
    relays.iter().for_each(|facts| book.handle_facts(*facts, now));
    book
}

fn verdict(ranking: &[(PeerId, RelayVerdict)], peer: PeerId) -> RelayVerdict {
    ranking.iter().find(|(p, _)| *p == peer).expect("it is known").1
}

#[test]
fn what_is_out_of_the_question_has_its_reason() {
    let now = Instant::now();
    let good = relay(0, [10, 0, 0, 1]);
    let dear = RelayFacts { price: 10_001, ..relay(1, [10, 0, 1, 1]) };
    let far = RelayFacts { latency: Some(Duration::from_millis(301)), ..relay(2, [10, 0, 2, 1]) };
    let dead = RelayFacts { is_alive: false, ..relay(3, [10, 0, 3, 1]) };
    let slow = RelayFacts { rate_proven: 1, ..relay(4, [10, 0, 4, 1]) };
    let policy = RelayPolicy { rate_min: 2, ..policy() };
    let choice = book(policy, 1, &[good, dear, far, dead, slow], now).choose(now);
    assert_eq!(choice.chosen, vec![good.peer]);
    let of = |facts: RelayFacts| verdict(&choice.ranking, facts.peer);
    assert_eq!(of(good), RelayVerdict::Chosen);
    assert_eq!(of(dear), RelayVerdict::TooDear { price: 10_001, max: 10_000 });
    let (found, max) = (Duration::from_millis(301), Duration::from_millis(300));
    assert_eq!(of(far), RelayVerdict::TooFar { found, max });
    assert_eq!(of(dead), RelayVerdict::Dead);
    assert_eq!(of(slow), RelayVerdict::TooSlow { found: 1, min: 2 });
}

#[test]
fn two_relays_are_of_different_networks_and_operators_if_there_are() {
    let now = Instant::now();
    let operator = Some(EthAddress([1; 20]));
    let near = [relay(0, [10, 0, 0, 1]), relay(1, [10, 0, 0, 2])];
    let one = [20, 21].map(|n| RelayFacts { operator, ..relay(n, [10, 0, n as u8, 1]) });
    let other = relay(3, [10, 1, 0, 1]);
    for key in 0..20 {
        let choice = book(policy(), key, &[near[0], near[1], other], now).choose(now);
        assert!(choice.chosen.contains(&other.peer), "{choice:?}");
        let choice = book(policy(), key, &[one[0], one[1], other], now).choose(now);
        assert!(choice.chosen.contains(&other.peer), "{choice:?}");
        // Where there are no others, two of one are better than one; unless they are not wanted.
        let choice = book(policy(), key, &near, now).choose(now);
        assert_eq!(choice.chosen.len(), 2);
        assert!(matches!(choice.ranking[1].1, RelayVerdict::ChosenThough(_)));
        let strict = RelayPolicy { may_share: false, ..policy() };
        let choice = book(strict, key, &one, now).choose(now);
        assert_eq!(choice.chosen.len(), 1);
        assert_eq!(choice.ranking[1].1, RelayVerdict::SameOperator(choice.chosen[0]));
    }
}

#[test]
fn cheaper_nearer_and_faster_relays_are_chosen_more_often() {
    let now = Instant::now();
    let best = RelayFacts {
        price: 0,
        latency: Some(Duration::from_millis(5)),
        rate_proven: 1_000_000_000,
        ..relay(0, [10, 0, 0, 1])
    };
    let far = |n| RelayFacts {
        price: 9_000,
        latency: Some(Duration::from_millis(250)),
        ..relay(n, [10, 0, u8::try_from(n).expect("few"), 1])
    };
    let relays: Vec<RelayFacts> = std::iter::once(best).chain((1..10).map(far)).collect();
    let chosen = (0..200)
        .filter(|key| book(policy(), *key, &relays, now).choose(now).chosen.contains(&best.peer))
        .count();
    // One prefix of ten has at most 36 % of the chances, so that some 60 % have it among their two.
    assert!((100..140).contains(&chosen), "chosen by {chosen} of 200, and 40 by chance");
}

#[test]
fn a_relay_in_use_stays_until_another_is_better_by_enough_or_it_dies() {
    let now = Instant::now();
    let mut relays: Vec<RelayFacts> = (0..30).map(|n| relay(n, [10, 0, n as u8, 1])).collect();
    let mut changes = 0;
    for key in 0..50 {
        let mut book = book(policy(), key, &relays, now);
        let before = book.choose(now).chosen;
        // All get a little nearer or farther.
        for (n, facts) in relays.iter_mut().enumerate() {
            facts.latency = Some(Duration::from_millis(25 + (n as u64 * 7 + u64::from(key)) % 10));
            book.handle_facts(*facts, now);
        }
        let after = book.choose(now);
        changes += before.iter().filter(|peer| !after.chosen.contains(peer)).count();
        // It dies: it goes, and the other stays.
        let dead = relays.iter().find(|facts| facts.peer == after.chosen[0]).expect("known");
        book.handle_facts(RelayFacts { is_alive: false, ..*dead }, now);
        let last = book.choose(now);
        assert_eq!(verdict(&last.ranking, dead.peer), RelayVerdict::Dead);
        assert!(last.chosen.contains(&after.chosen[1]) && last.chosen.len() == 2);
    }
    assert_eq!(changes, 0, "of 100 choices");
}

#[test]
fn a_prefix_has_two_seats_and_its_share_of_the_chances() {
    let now = Instant::now();
    let honest = |n: u32| relay(n, [10, (n / 250) as u8, (n % 250) as u8, 1]);
    // The best prices and latencies there can be, all on one prefix.
    let sybil = |n: u32| RelayFacts {
        price: 0,
        latency: Some(Duration::ZERO),
        rate_proven: u64::MAX,
        success_ppm: 1_000_000,
        ..relay(10_000 + n, [66, 6, 6, n as u8])
    };
    let sybils: Vec<RelayFacts> = (0..60).map(sybil).collect();
    let relays: Vec<RelayFacts> = sybils.iter().copied().chain((0..99).map(honest)).collect();
    let share = |policy: RelayPolicy| {
        let mut chosen = 0;
        for key in 0..200 {
            let mut book = book(policy, key, &relays, now);
            let choice = book.choose(now);
            let is_sybil = |peer: &&PeerId| sybils.iter().any(|s| s.peer == **peer);
            let known = choice.ranking.iter().filter(|(peer, _)| is_sybil(&peer)).count();
            assert!(known <= policy.prefix_seats);
            assert_eq!(known, sybils.iter().filter(|s| book.is_known(&s.peer)).count());
            chosen += choice.chosen.iter().filter(is_sybil).count();
        }
        chosen
    };
    assert_eq!(prefix_share_max_ppm(100, 10_000), 40_000);
    let capped = share(policy());
    // 4 % of 400 choices, and what chance adds to it.
    assert!(capped <= 16 + 12, "{capped} of 400");
    assert_eq!(policy().prefix_seats, PREFIX_SEATS_MAX);
    // The control: without the cap the same names have far more.
    let open = RelayPolicy { prefix_seats: usize::MAX, prefix_share_ppm: 1_000_000, ..policy() };
    let uncapped = share(open);
    assert!(uncapped > 150, "{uncapped} of 400");
}
