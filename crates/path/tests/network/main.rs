//! Two agents over a network that loses, delays and blocks in one direction, in virtual time.

mod world;

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sluice_path::{Activity, Kind, Path, Probe, Reason, STRANGER_PROBES_MAX};
use world::{COARSE_STEP, Condition, GOOD, MS, SECOND, STEP, Way, World, nobody};

/// Something happens to the network or to a side.
#[derive(Debug, Clone)]
enum Happening {
    Block(Way, usize, bool),
    Condition(Way, usize, u64, u64),
    Allow(usize, bool),
    Candidates(usize, u16),
    Forged(usize, Way, u64),
    Idle(bool),
    Wait(u64),
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Relay(1)), Just(Way::Relay(2)), Just(Way::Direct)]
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        4 => (way(), 0..2_usize, any::<bool>()).prop_map(|(w, i, b)| Block(w, i, b)),
        2 => (way(), 0..2_usize, 1..400_u64, 0..60_u64).prop_map(|(w, i, d, l)| Condition(w, i, d, l)),
        2 => (0..2_usize, any::<bool>()).prop_map(|(i, a)| Allow(i, a)),
        1 => (0..2_usize, 1..6_u16).prop_map(|(i, n)| Candidates(i, n)),
        1 => (0..2_usize, way(), any::<u64>()).prop_map(|(i, w, t)| Forged(i, w, t)),
        1 => any::<bool>().prop_map(Idle),
        6 => (1..6000_u64).prop_map(Wait),
    ]
}

impl World {
    fn happens(&mut self, what: &Happening) {
        match *what {
            Happening::Block(way, from, blocked) => self.block(way, from, blocked),
            Happening::Condition(way, from, delay, loss) => {
                let blocked = self.ways[&(way, from)].blocked;
                let delay = Duration::from_millis(delay);
                self.ways.insert((way, from), Condition { delay, loss, blocked });
            }
            Happening::Allow(side, allowed) => self.allow_direct(side, allowed),
            Happening::Candidates(side, count) => {
                let list: Vec<_> = (1..=count).map(nobody).collect();
                self.tell_candidates(side, &list);
            }
            Happening::Forged(to, way, token) => {
                let path = match way {
                    Way::Relay(number) => Path::Relay(number),
                    Way::Direct => Path::direct(self.sides[1 - to].addr),
                };
                let now = self.now;
                self.sides[to].agent.handle_probe(path, Probe::Pong { token }, now);
                self.drain(to);
            }
            Happening::Idle(idle) => self.busy = [!idle; 2],
            Happening::Wait(ms) => self.run(Duration::from_millis(ms)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_come_to_use_the_same_working_path_once_the_network_is_at_rest(
        seed in any::<u64>(),
        happenings in prop::collection::vec(happening(), 1..40),
        direct in prop::sample::select(vec![[false, false], [false, true], [true, false], [true, true]]),
        relays in prop::sample::select(vec![[false, false], [false, true], [true, false]]),
        allowed in any::<[bool; 2]>(),
    ) {
        let mut world = World::new(seed);
        world.add_relay(2);
        let addr = world.sides[1].addr;
        world.tell_candidates(0, &[addr]);
        for what in &happenings {
            world.happens(what);
        }
        world.busy = [true; 2];
        world.set(Way::Relay(1), Condition { blocked: relays[0], ..GOOD });
        world.set(Way::Relay(2), Condition { blocked: relays[1], ..GOOD });
        world.set(Way::Direct, GOOD);
        for i in 0..2 {
            world.block(Way::Direct, i, direct[i]);
            world.allow_direct(i, allowed[i]);
        }
        world.step = COARSE_STEP;
        world.run(400 * SECOND);
        let [ours, theirs] = world.chosen();
        prop_assert_eq!(ours, theirs);
        let way = ours.expect("a path");
        prop_assert!(world.works(way), "{:?} does not work", way);
        if direct == [false, false] && allowed == [true, true] {
            prop_assert_eq!(way, Way::Direct);
        } else if allowed != [true, true] {
            prop_assert_ne!(way, Way::Direct);
        }
        // At rest nothing changes any more.
        let before: Vec<_> = world.sides.iter().map(|s| s.switches.len()).collect();
        world.run(60 * SECOND);
        let after: Vec<_> = world.sides.iter().map(|s| s.switches.len()).collect();
        prop_assert_eq!(before, after);
    }
}

#[test]
fn the_sides_agree_within_seconds_after_a_path_died() {
    for (seed, dead) in [(1, [true, true]), (2, [true, false]), (3, [false, true])] {
        let mut world = World::new(seed);
        world.go_direct();
        for (i, blocked) in dead.into_iter().enumerate() {
            world.block(Way::Direct, i, blocked);
        }
        world.run(3 * SECOND);
        assert_eq!(world.chosen(), [Some(Way::Relay(1)); 2], "{dead:?}");
        // Nor does it come back while the network stays so.
        let switches = world.sides[0].switches.len();
        world.run(120 * SECOND);
        assert_eq!(world.sides[0].switches.len(), switches, "{:?}", world.sides[0].switches);
    }
}

#[test]
fn a_path_that_dies_again_and_again_is_tried_once_in_half_a_minute() {
    let mut world = World::new(7);
    world.go_direct();
    let begin = world.now;
    // It carries probes, and the session for a second after each return.
    for _ in 0..3000 {
        let on_it = world.chosen()[0] == Some(Way::Direct);
        let since = world.sides[0].switches.last().map(|(at, ..)| *at).expect("a switch");
        let broken = on_it && world.now > since + SECOND;
        for i in 0..2 {
            world.block(Way::Direct, i, broken);
        }
        world.run(100 * MS);
    }
    let mut returns: Vec<Instant> = Vec::new();
    for (at, path, _) in &world.sides[0].switches {
        if path.kind() == Kind::Direct && *at > begin {
            returns.push(*at);
        }
    }
    assert!(returns.len() > 3, "it is tried again: {}", returns.len());
    for pair in returns[1..].windows(2) {
        assert!(pair[1] - pair[0] >= 30 * SECOND, "{:?}", pair[1] - pair[0]);
    }
}

#[test]
fn who_never_answers_is_asked_less_and_less() {
    let mut world = World::new(9);
    world.allow_direct(0, true);
    world.tell_candidates(0, &[nobody(1)]);
    let mut pings = 0;
    let mut by_minute = Vec::new();
    for _ in 0..20 {
        let before = pings;
        for _ in 0..60 {
            world.sides[0].pings.clear();
            world.run(SECOND);
            pings += world.sides[0].pings.get(&Path::direct(nobody(1))).map_or(0, Vec::len);
        }
        by_minute.push(pings - before);
    }
    assert!(by_minute[0] >= 10, "{by_minute:?}");
    let all: usize = by_minute.iter().sum();
    assert!(all <= STRANGER_PROBES_MAX as usize, "{by_minute:?}");
}

#[test]
fn a_dead_session_asks_less_and_less_but_notices_when_the_path_is_back() {
    let mut world = World::new(11);
    world.run(SECOND);
    world.block(Way::Relay(1), 0, true);
    world.block(Way::Relay(1), 1, true);
    world.run(60 * SECOND);
    world.sides[0].pings.clear();
    world.run(SECOND);
    let pings = world.sides[0].pings.get(&Path::Relay(1)).map_or(0, Vec::len);
    assert!((1..=3).contains(&pings), "{pings} pings in a second");
    world.set(Way::Relay(1), GOOD);
    world.run(3 * SECOND);
    assert_eq!(world.sides[0].unanswered.map(|at| world.now - at > SECOND), Some(false));
}

#[test]
fn tokens_that_were_seen_do_not_tell_the_next_ones() {
    // What a peer could do if the tokens were a sequence that it can run on: SplitMix64 backwards.
    fn unmix(mut z: u64) -> u64 {
        z ^= z >> 31 ^ z >> 62;
        z = z.wrapping_mul(0x3196_42B2_D24D_8EC3);
        z ^= z >> 27 ^ z >> 54;
        z = z.wrapping_mul(0x96DE_1B17_3F11_9089);
        z ^ z >> 30 ^ z >> 60
    }
    fn mix(mut z: u64) -> u64 {
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    let mut world = World::new(12);
    let mut tokens = Vec::new();
    world.run(SECOND);
    for _ in 0..4 {
        let now = world.now;
        world.sides[0].agent.handle_timeout(now);
        world.now += 20 * SECOND;
        let now = world.now;
        world.sides[0].agent.handle_timeout(now);
        while let Some((_, probe)) = world.sides[0].agent.poll_transmit() {
            if let Probe::Ping { token } = probe {
                tokens.push(token);
            }
        }
    }
    assert!(tokens.len() >= 3);
    for pair in tokens.windows(2) {
        assert_eq!(mix(unmix(pair[0])), pair[0], "the test's own arithmetic");
        assert_ne!(mix(unmix(pair[0]).wrapping_add(0x9E37_79B9_7F4A_7C15)), pair[1]);
    }
}

#[test]
fn a_switch_onto_a_path_that_was_not_echoed_is_followed_only_after_its_echo() {
    let mut world = World::new(13);
    world.allow_direct(1, true);
    world.run(SECOND);
    let victim = Path::direct(nobody(9));
    let now = world.now;
    for epoch in 1..50 {
        world.sides[1].agent.handle_probe(victim, Probe::Use { epoch }, now);
        world.drain(1);
    }
    assert_eq!(world.sides[1].agent.selected(), Some(Path::Relay(1)));
}

#[test]
fn an_absurd_epoch_hurts_only_the_session_of_whoever_named_it() {
    for hostile in 0..2 {
        let mut world = World::new(14);
        world.go_direct();
        let (to, from) = (1 - hostile, world.sides[hostile].addr);
        for epoch in [u64::MAX - 1, u64::MAX, 0] {
            for path in [Path::Relay(1), Path::direct(from)] {
                let now = world.now;
                world.sides[to].agent.handle_probe(path, Probe::Use { epoch }, now);
                world.drain(to);
                world.allow_direct(to, false);
                world.run(SECOND);
                world.allow_direct(to, true);
                world.run(SECOND);
            }
        }
    }
}

/// Side 1 sends to side 0 through relay 1, and relay 2 is warm.
fn download(seed: u64) -> World {
    let mut world = World::new(seed);
    world.busy = [false, true];
    world.run(SECOND + Duration::from_millis(seed % 20));
    world.add_relay(2);
    world.run(SECOND);
    assert_eq!(world.chosen(), [Some(Way::Relay(1)); 2]);
    world.sides[0].data.clear();
    world
}

/// The longest time in which no data reached side 0.
fn longest_gap(world: &World) -> Duration {
    let data = &world.sides[0].data;
    data.windows(2).map(|pair| pair[1] - pair[0]).max().expect("data came")
}

#[test]
fn a_dead_relay_costs_two_probe_timeouts_and_the_way_over_the_warm_one() {
    // 40 ms of round trip: 2 PTO are 210 ms.
    let detection = Duration::from_millis(210);
    for seed in 0..30 {
        for dead in [[true, true], [true, false], [false, true]] {
            let mut world = download(seed);
            world.run(SECOND);
            for (i, blocked) in dead.into_iter().enumerate() {
                world.block(Way::Relay(1), i, blocked);
            }
            world.run(5 * SECOND);
            let gap = longest_gap(&world);
            assert!(gap <= detection + GOOD.delay + 3 * STEP, "{dead:?}: {gap:?}");
            assert_eq!(world.chosen(), [Some(Way::Relay(2)); 2], "{dead:?}");
            // Once it is back nothing moves: it is as good as the other.
            let switches = world.sides[0].switches.len();
            world.set(Way::Relay(1), GOOD);
            world.run(60 * SECOND);
            assert_eq!(world.sides[0].switches.len(), switches, "{:?}", world.sides[0].switches);
        }
    }
}

#[test]
fn a_side_that_fled_to_a_relay_that_dies_the_same_moment_is_back_within_a_second() {
    for seed in 0..30 {
        let mut world = download(seed);
        // The sender's process was held up: it finds relay 1 silent, relay 2 is first to echo ..
        world.set(Way::Relay(1), Condition { blocked: true, ..GOOD });
        while world.sides[1].agent.selected() == Some(Path::Relay(1)) {
            let unanswered_since = Some(world.now - SECOND);
            let activity = Activity { unanswered_since, pto: 105 * MS, outstanding: false };
            world.sides[1].agent.handle_activity(activity, world.now);
            world.drain(1);
            world.run(MS);
        }
        world.set(Way::Relay(1), GOOD);
        // .. and then carries nothing to the receiver any more.
        world.flying.retain(|Reverse((_, _, way, from, _))| (*way, *from) != (Way::Relay(2), 1));
        world.block(Way::Relay(2), 1, true);
        world.busy = [true; 2];
        assert_eq!(world.chosen(), [1, 2].map(|relay| Some(Way::Relay(relay))));
        world.sides[0].data.clear();
        world.sides[0].data.push(world.now);
        world.run(5 * SECOND);
        world.sides[0].data.push(world.now);
        let gap = longest_gap(&world);
        assert!(gap <= SECOND, "seed {seed}: {gap:?}");
        assert_eq!(world.chosen(), [Some(Way::Relay(1)); 2]);
        let (at, _, reason) = world.sides[1].switches.last().expect("it switched");
        assert_eq!(*reason, Reason::Silent);
        assert!(
            world.now - *at >= 4 * SECOND,
            "seed {seed}: after {:?}",
            5 * SECOND - (world.now - *at)
        );
    }
}

#[test]
fn a_rival_that_echoes_at_once_is_not_pinged_at_once_again() {
    for dead in [[true, true], [true, false], [false, true]] {
        let mut world = download(4);
        for relay in 1..=2 {
            world.set(Way::Relay(relay), Condition { delay: MS / 4, ..GOOD });
        }
        // Until both were measured anew.
        world.run(120 * SECOND);
        let used = world.chosen()[0].expect("a path");
        world.step = MS;
        for (i, blocked) in dead.into_iter().enumerate() {
            world.block(used, i, blocked);
        }
        // Each ping is counted, see `PINGS_PER_TARGET`.
        world.run(2 * SECOND);
        assert!(world.chosen().iter().all(|way| *way != Some(used)), "{dead:?}");
    }
}

#[test]
fn while_the_path_in_use_is_doubted_the_other_side_answers_where_it_is_spoken_to() {
    let mut world = download(3);
    world.block(Way::Relay(1), 0, true);
    world.block(Way::Relay(1), 1, true);
    while world.sides[0].trials == 0 {
        world.run(STEP);
    }
    // Nothing is decided yet, and nothing that the sender gets comes over the dead relay.
    assert_eq!(world.chosen(), [Some(Way::Relay(1)); 2]);
    assert_eq!(world.sides[0].route, Some(Path::Relay(2)));
}

#[test]
fn an_hour_of_stalls_of_200_ms_switches_nothing() {
    for delay in [1, 5, 20, 60] {
        let mut world = download(delay);
        for relay in 1..=2 {
            let delay = Duration::from_millis(delay);
            world.set(Way::Relay(relay), Condition { delay, ..GOOD });
        }
        // Until both were measured anew.
        world.run(120 * SECOND);
        let before = [0, 1].map(|i| world.sides[i].switches.len());
        let end = world.now + 3600 * SECOND;
        while world.now < end {
            world.stalled_until = world.now + 200 * MS;
            let pause = 500 + 37 * world.chance();
            world.run(Duration::from_millis(pause));
        }
        world.run(SECOND);
        let after = [0, 1].map(|i| world.sides[i].switches.len());
        assert_eq!(before, after, "{delay} ms: {:?}", world.sides[1].switches);
        // On short round trips most of them were a trial; all were undone.
        assert!(delay > 5 || world.sides[1].trials > 500, "{}", world.sides[1].trials);
        for side in &world.sides {
            assert_eq!(side.route, side.agent.selected());
        }
    }
}

#[test]
fn a_warm_relay_that_dies_silently_is_no_path_any_more_within_45_seconds() {
    let mut world = download(5);
    world.block(Way::Relay(2), 0, true);
    world.run(45 * SECOND);
    for side in &world.sides {
        assert!(side.agent.is_proven(Path::Relay(1)));
        assert!(!side.agent.is_proven(Path::Relay(2)));
    }
    world.set(Way::Relay(2), GOOD);
    world.run(5 * SECOND);
    assert!(world.sides[0].agent.is_proven(Path::Relay(2)), "it is found again soon");
}

#[test]
fn a_direct_path_that_was_away_for_minutes_is_back_within_5_seconds_of_its_return() {
    for away in [20, 100, 500] {
        let mut world = World::new(away);
        world.go_direct();
        world.block(Way::Direct, 0, true);
        world.block(Way::Direct, 1, true);
        world.run(Duration::from_secs(away));
        assert_eq!(world.chosen(), [Some(Way::Relay(1)); 2]);
        world.set(Way::Direct, GOOD);
        world.run(5 * SECOND);
        assert_eq!(world.chosen(), [Some(Way::Direct); 2], "{away} s");
    }
}

#[test]
fn a_path_that_waits_for_payment_is_left_and_taken_again_but_never_called_dead() {
    let mut world = download(8);
    let now = world.now;
    for side in &mut world.sides {
        side.agent.set_unpaid(1, true, now);
    }
    world.run(SECOND);
    assert_eq!(world.chosen(), [Some(Way::Relay(2)); 2]);
    let (_, _, reason) = world.sides[0].switches.last().expect("a switch");
    assert_eq!(*reason, Reason::Unpaid);
    assert!(world.sides[0].agent.is_proven(Path::Relay(1)));
    // A dead path is worse than an unpaid one.
    world.block(Way::Relay(2), 0, true);
    world.block(Way::Relay(2), 1, true);
    world.run(3 * SECOND);
    assert_eq!(world.chosen(), [Some(Way::Relay(1)); 2]);
}

#[test]
fn a_stale_or_unproven_trial_moves_nothing() {
    let mut world = download(9);
    let now = world.now;
    let agent = &mut world.sides[0].agent;
    agent.handle_probe(Path::Relay(7), Probe::Trial { epoch: 9 }, now);
    agent.handle_probe(Path::direct(nobody(1)), Probe::Trial { epoch: 9 }, now);
    agent.add_relay(3, now);
    agent.handle_probe(Path::Relay(3), Probe::Trial { epoch: 9 }, now);
    world.drain(0);
    assert_eq!(world.sides[0].trials, 0);
    // The control: the warm relay; and it is over some seconds after it was last said.
    world.sides[0].agent.handle_probe(Path::Relay(2), Probe::Trial { epoch: 9 }, now);
    world.drain(0);
    assert_eq!(world.sides[0].route, Some(Path::Relay(2)));
    world.run(3 * SECOND);
    assert_eq!(world.sides[0].route, Some(Path::Relay(1)));
}
