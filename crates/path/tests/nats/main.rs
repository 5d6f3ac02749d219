//! Which pairs of NATs meet, how fast, and at what cost: RFC 4787's behaviours, all 81 pairs.

mod model;
mod world;

use std::time::Duration;

use model::{FILTERINGS, MAPPINGS, Nat, PORTS, Ports};
use sluice_path::{Allocator, Filtering, Mapping, Path};
use world::{DIRECT, TO_RELAY, World};

/// What simultaneous opening reaches (Y), what needs one side's port guessed (P), and what both
/// (H): rows and columns in the order of [`kinds`]. Derived from RFC 4787 by hand.
const TABLE: [&str; 9] = [
    "YYYYYYYYY",
    "YYYYYYYYY",
    "YYYPPPPPP",
    "YYPYYPYYP",
    "YYPYPPYPP",
    "YYPPPHHHH",
    "YYPYYHHHH",
    "YYPYPHHHH",
    "YYPPPHHHH",
];

fn kinds() -> Vec<(Mapping, Filtering)> {
    MAPPINGS.iter().flat_map(|m| FILTERINGS.map(|f| (*m, f))).collect()
}

fn world(a: (Mapping, Filtering), b: (Mapping, Filtering), ports: Ports, seed: u64) -> World {
    let nats = [
        Nat::new(a.0, a.1, ports, [203, 0, 113, 1], seed * 2 + 1),
        Nat::new(b.0, b.1, ports, [203, 0, 114, 1], seed * 7919 + 5),
    ];
    World::new(nats, seed)
}

/// Every pair of one class: (row, column).
fn pairs(class: u8) -> Vec<(usize, usize)> {
    let cells = (0..9).flat_map(|i| (0..9).map(move |j| (i, j)));
    cells.filter(|(i, j)| TABLE[*i].as_bytes()[*j] == class).collect()
}

fn p95(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 95 / 100]
}

#[test]
fn the_table_counts_42_easy_23_guessed_and_16_hopeless_pairs() {
    assert_eq!([b'Y', b'P', b'H'].map(|c| pairs(c).len()), [42, 23, 16]);
}

#[test]
fn a_survey_tells_what_the_nat_does() {
    for (mapping, filtering) in kinds() {
        for ports in PORTS {
            for seed in 1..=5 {
                let mut world = world((mapping, filtering), (mapping, filtering), ports, seed);
                world.begin();
                let nat = world.survey(0).nat();
                assert_eq!((nat.mapping, nat.filtering), (Some(mapping), Some(filtering)));
                let found = match nat.allocator.expect("an allocator") {
                    Allocator::Preserving => Ports::Preserving,
                    Allocator::Sequential { .. } => Ports::Sequential,
                    Allocator::Blocks { .. } => Ports::Blocks,
                    Allocator::Random => Ports::Random,
                };
                assert_eq!(found, ports, "{mapping}, {filtering}, seed {seed}");
                assert!(world.survey(0).poll_timeout().is_none(), "the survey is over");
            }
        }
    }
}

#[test]
fn easy_pairs_all_meet_within_a_round_trip_or_two() {
    let kinds = kinds();
    let mut times = Vec::new();
    for (i, j) in pairs(b'Y') {
        for ports in PORTS {
            for seed in 1..=5 {
                let mut world = world(kinds[i], kinds[j], ports, seed);
                world.begin();
                let met = world.meet(Duration::from_secs(6));
                let met = met.unwrap_or_else(|| panic!("{:?} {:?} {ports:?}", kinds[i], kinds[j]));
                times.push(met);
                world.assert_carries();
            }
        }
    }
    let relay_rtt = TO_RELAY * 4;
    let bound = relay_rtt * 3 / 2 + DIRECT * 4 + Duration::from_millis(50);
    assert!(p95(times.clone()) <= bound, "{:?} of {bound:?}", p95(times));
}

#[test]
fn a_port_that_must_be_guessed_is_found_nearly_always_and_within_four_seconds() {
    let kinds = kinds();
    for ports in PORTS {
        let (mut tried, mut times) = (0, Vec::new());
        for (i, j) in pairs(b'P') {
            for seed in 1..=30 {
                let seed = seed * 81 + (i * 9 + j) as u64;
                let mut world = world(kinds[i], kinds[j], ports, seed);
                world.begin();
                tried += 1;
                if let Some(met) = world.meet(Duration::from_secs(6)) {
                    times.push(met);
                    world.assert_carries();
                }
                for home in 0..2 {
                    assert!(world.guessed(home) <= 1024 + 32, "{}", world.guessed(home));
                    assert!(world.sockets(home).0 <= 257, "{:?}", world.sockets(home));
                }
            }
        }
        assert!(times.len() * 100 >= tried * 97, "{ports:?}: {} of {tried}", times.len());
        assert!(p95(times.clone()) <= Duration::from_secs(4), "{ports:?}: {:?}", p95(times));
    }
}

#[test]
fn pairs_with_both_ports_unpredictable_stay_on_their_relay_and_send_little() {
    let kinds = kinds();
    for (i, j) in pairs(b'H') {
        // Where each lets the other in at the port that its relay sees, a path that differs by
        // direction is found nevertheless.
        let lets_in = [i, j].iter().any(|k| kinds[*k].1 == Filtering::Independent)
            && [i, j].iter().all(|k| kinds[*k].1 != Filtering::AddressAndPort);
        for seed in 1..=3 {
            let mut world = world(kinds[i], kinds[j], Ports::Random, seed);
            world.begin();
            let met = world.meet(Duration::from_secs(60));
            for home in 0..2 {
                assert!(world.probes(home) <= 200, "{} probes in a minute", world.probes(home));
                assert_eq!(world.sockets(home).1, 0);
            }
            if met.is_some() {
                assert!(lets_in, "{:?} {:?}", kinds[i], kinds[j]);
                world.assert_carries();
            } else {
                assert_eq!([0, 1].map(|h| world.selected(h)), [Some(Path::Relay(1)); 2]);
            }
        }
    }
}

#[test]
fn loss_and_a_busy_household_spoil_little() {
    let kinds = kinds();
    let mut missed = 0;
    let hard = (Mapping::AddressAndPort, Filtering::AddressAndPort);
    let home = (Mapping::Independent, Filtering::AddressAndPort);
    for ports in PORTS {
        for seed in 1..=20 {
            let mut world = world(home, hard, ports, seed);
            world.loss = 30;
            world.begin();
            missed += usize::from(world.meet(Duration::from_secs(8)).is_none());
        }
    }
    assert!(missed <= 4, "{missed} of 80");
    for (i, j) in pairs(b'Y') {
        let mut world = world(kinds[i], kinds[j], Ports::Random, 99);
        world.loss = 30;
        world.begin();
        assert!(world.meet(Duration::from_secs(5)).is_some(), "{:?} {:?}", kinds[i], kinds[j]);
    }
}

#[test]
fn a_node_that_may_hold_few_entries_opens_few_sockets_and_tries_few_ports() {
    let hard = (Mapping::AddressAndPort, Filtering::AddressAndPort);
    let home = (Mapping::Independent, Filtering::AddressAndPort);
    for seed in 1..=5 {
        let mut world = world(home, hard, Ports::Random, seed);
        world.set_nat_entries_max(64);
        world.begin();
        world.meet(Duration::from_secs(30));
        assert!(world.sockets(1).0 <= 32, "{:?}", world.sockets(1));
        assert!(world.guessed(0) <= 64 + 20, "{}", world.guessed(0));
    }
}

#[test]
fn a_peer_that_asks_for_guesses_again_and_again_gets_few_and_only_at_its_own_address() {
    let home = (Mapping::Independent, Filtering::AddressAndPort);
    let mut world = world(home, home, Ports::Random, 3);
    world.begin();
    world.deafen(1);
    let addresses = world.harass(0, Duration::from_secs(600));
    // A minute, two, four and eight after one another.
    assert!(world.guessed(0) <= 4 * 1024 + 20, "{}", world.guessed(0));
    assert!(world.guessed(0) >= 1024, "it did guess: {}", world.guessed(0));
    assert_eq!(addresses.len(), 1, "{addresses:?}");
}
