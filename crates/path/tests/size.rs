//! How large packets may be, on paths that carry more or less.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_path::{Agent, Event, PACKET_MAX, PACKET_MIN, Path, Probe, Reason};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// One way over every path.
const DELAY: Duration = Duration::from_millis(20);

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// One side, as its caller sees it.
struct Side {
    agent: Agent,
    packet_max: u16,
    selected: Vec<(Duration, Path, Reason)>,
    /// Sizes of probes that were sent on paths that this side had proven, and on others.
    sizes: BTreeSet<u16>,
    strange_sizes: BTreeSet<u16>,
}

/// Two sides, a tenant at port 1 and a provider at port 2, and paths that carry packets up to some
/// size, later.
struct World {
    sides: [Side; 2],
    start: Instant,
    now: Instant,
    /// By number of relay, 0 for the direct path; 0 bytes: nothing passes.
    widths: BTreeMap<u32, u16>,
    /// Of 100 packets, the same for all sizes.
    loss: u64,
    random: u64,
    flying: BinaryHeap<std::cmp::Reverse<(Instant, u64, usize, u32)>>,
    cargo: BTreeMap<u64, Probe>,
    sent: u64,
}

impl World {
    #[allow(clippy::disallowed_methods)]
    fn new(widths: &[(u32, u16)]) -> Self {
        let side = |controlling| Side {
            agent: Agent::new(controlling, 7),
            packet_max: PACKET_MAX,
            selected: Vec::new(),
            sizes: BTreeSet::new(),
            strange_sizes: BTreeSet::new(),
        };
        let now = Instant::now();
        let mut world = Self {
            sides: [side(true), side(false)],
            start: now,
            now,
            widths: widths.iter().copied().collect(),
            loss: 0,
            random: 1,
            flying: BinaryHeap::new(),
            cargo: BTreeMap::new(),
            sent: 0,
        };
        for (number, _) in widths {
            for i in 0..2 {
                match number {
                    0 => {
                        world.sides[i].agent.set_direct_allowed(true, now);
                        world.sides[i].agent.set_peer_address(addr(2 - i as u16), now);
                    }
                    _ => world.sides[i].agent.add_relay(*number, now),
                }
            }
        }
        world.drain();
        world
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now += MS;
            for side in &mut self.sides {
                side.agent.handle_timeout(self.now);
            }
            while let Some(std::cmp::Reverse((at, number, to, way))) = self.flying.peek().copied()
                && at <= self.now
            {
                self.flying.pop();
                let Some(probe) = self.cargo.remove(&number) else { continue };
                let path = match way {
                    0 => Path::direct(addr(2 - to as u16)),
                    relay => Path::Relay(relay),
                };
                self.sides[to].agent.handle_probe(path, probe, self.now);
            }
            self.drain();
        }
    }

    fn drain(&mut self) {
        for i in 0..2 {
            let side = &mut self.sides[i];
            while let Some(event) = side.agent.poll_event() {
                if let Event::PacketMax(max) = event {
                    side.packet_max = max;
                } else if let Event::Selected { path, reason, .. } = event {
                    side.selected.push((self.now - self.start, path, reason));
                }
            }
            while let Some((path, probe)) = self.sides[i].agent.poll_transmit() {
                self.send(i, path, probe);
            }
        }
    }

    fn send(&mut self, i: usize, path: Path, probe: Probe) {
        let side = &mut self.sides[i];
        let size = if let Probe::Measure { size, .. } = probe {
            let proven = side.agent.is_proven(path);
            let sizes = if proven { &mut side.sizes } else { &mut side.strange_sizes };
            sizes.insert(size);
            size
        } else if let Probe::Measured { size, .. } = probe {
            size
        } else {
            0
        };
        let way = match path {
            Path::Relay(number) => number,
            Path::Direct(_) => 0,
        };
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let lost = (self.random >> 33) % 100 < self.loss;
        let width = self.widths.get(&way).copied().unwrap_or_default();
        if width > 0 && size <= width && !lost {
            self.sent += 1;
            self.cargo.insert(self.sent, probe);
            self.flying.push(std::cmp::Reverse((self.now + DELAY, self.sent, 1 - i, way)));
        }
    }

    /// Packets of this size go both ways from now on.
    fn packets(&mut self, size: u16) {
        for side in &mut self.sides {
            side.agent.set_packet_size(size, self.now);
        }
    }

    /// For so long packets of the provider's are lost on its path, which it sees now and then.
    fn lose(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.sides[1].agent.handle_loss(self.now);
            self.run(30 * MS);
        }
    }

    fn uses(&self) -> [Option<Path>; 2] {
        [0, 1].map(|i| self.sides[i].agent.selected())
    }

    fn packet_max(&self) -> [u16; 2] {
        [0, 1].map(|i| self.sides[i].packet_max)
    }
}

#[test]
fn packets_may_be_as_large_as_all_paths_carry_them() {
    let mut world = World::new(&[(1, 1439), (2, 1335)]);
    world.run(2 * SECOND);
    assert_eq!(world.packet_max(), [1332; 2]);
    let mut world = World::new(&[(1, 1439), (2, 1439), (0, 1439)]);
    world.run(2 * SECOND);
    assert_eq!(world.packet_max(), [PACKET_MAX; 2]);
    let mut world = World::new(&[(1, 1213)]);
    world.run(2 * SECOND);
    assert_eq!(world.packet_max(), [1212; 2]);
}

#[test]
fn whether_a_path_is_wide_enough_is_known_after_few_round_trips_and_then_asked_no_more() {
    let mut world = World::new(&[(1, 1439)]);
    world.run(SECOND);
    assert_eq!(world.sides[0].sizes, BTreeSet::from([0, PACKET_MAX]));
    world.sides[0].sizes.clear();
    world.run(900 * SECOND);
    assert!(world.sides[0].sizes.is_empty(), "{:?}", world.sides[0].sizes);
}

#[test]
fn an_address_that_did_not_echo_is_sent_no_large_probe() {
    let mut world = World::new(&[(1, 1439), (0, 0)]);
    world.run(60 * SECOND);
    for side in &world.sides {
        assert!(side.strange_sizes.is_empty(), "{:?}", side.strange_sizes);
    }
    // The control: once it echoes, it is.
    world.widths.insert(0, 1439);
    world.sides[0].sizes.clear();
    world.run(100 * SECOND);
    assert!(world.sides[0].sizes.contains(&PACKET_MAX));
}

#[test]
fn a_relay_that_begins_to_lose_large_packets_is_left_for_one_that_carries_them() {
    let mut world = World::new(&[(1, 1439), (2, 1439)]);
    world.run(2 * SECOND);
    world.packets(PACKET_MAX);
    let Some(Path::Relay(used)) = world.uses()[0] else { panic!("a relay") };
    world.widths.insert(used, 1233);
    let at = world.now - world.start;
    world.lose(SECOND);
    let other = Path::Relay(3 - used);
    assert_eq!(world.uses(), [Some(other); 2]);
    let left = world.sides[1].selected.iter().find(|(when, ..)| *when > at).expect("a switch");
    assert_eq!((left.1, left.2), (other, Reason::Narrow));
    assert!(left.0 - at < 300 * MS, "after {:?}", left.0 - at);
    // Nobody goes back to it, and packets stay as large as they are.
    let switches = world.sides.iter().map(|side| side.selected.len()).sum::<usize>();
    world.run(300 * SECOND);
    assert_eq!(world.uses(), [Some(other); 2]);
    assert_eq!(world.sides.iter().map(|side| side.selected.len()).sum::<usize>(), switches);
    assert_eq!(world.packet_max(), [PACKET_MAX; 2]);
}

#[test]
fn a_direct_path_is_worth_smaller_packets() {
    let mut world = World::new(&[(1, 1439), (0, 1439)]);
    world.run(2 * SECOND);
    world.packets(PACKET_MAX);
    let direct = [Some(Path::direct(addr(2))), Some(Path::direct(addr(1)))];
    assert_eq!(world.uses(), direct);
    world.widths.insert(0, 1352);
    world.lose(2 * SECOND);
    assert_eq!(world.uses(), direct);
    assert_eq!(world.sides[1].packet_max, 1352);
}

#[test]
fn without_another_path_packets_shrink_and_grow_again_when_the_path_does() {
    let mut world = World::new(&[(1, 1439)]);
    world.run(2 * SECOND);
    world.packets(PACKET_MAX);
    world.widths.insert(1, 1280);
    world.lose(2 * SECOND);
    assert_eq!(world.uses(), [Some(Path::Relay(1)); 2]);
    assert_eq!(world.sides[1].packet_max, 1272);
    world.packets(1272);
    world.widths.insert(1, 1439);
    world.run(700 * SECOND);
    assert_eq!(world.packet_max(), [PACKET_MAX; 2]);
}

#[test]
fn a_path_too_narrow_for_any_session_is_left_even_for_a_relay() {
    let mut world = World::new(&[(1, 1439), (0, 1150)]);
    world.run(5 * SECOND);
    assert_eq!(world.uses(), [Some(Path::Relay(1)); 2]);
    assert_eq!(world.packet_max(), [PACKET_MAX; 2]);
}

#[test]
fn losses_of_packets_of_any_size_do_not_make_a_path_narrow() {
    for seed in 0..40 {
        let mut world = World::new(&[(1, 1439), (2, 1439)]);
        (world.random, world.loss) = (seed, 5);
        world.run(2 * SECOND);
        world.packets(PACKET_MAX);
        world.lose(20 * SECOND);
        assert_eq!(world.packet_max(), [PACKET_MAX; 2], "seed {seed}");
        let narrow = world.sides[1].selected.iter().filter(|(.., why)| *why == Reason::Narrow);
        assert_eq!(narrow.count(), 0, "seed {seed}");
    }
}

#[test]
fn a_silent_path_is_not_taken_for_a_narrow_one() {
    let mut world = World::new(&[(1, 1439), (2, 1439)]);
    world.run(2 * SECOND);
    world.packets(PACKET_MAX);
    let Some(Path::Relay(used)) = world.uses()[0] else { panic!("a relay") };
    world.widths.insert(used, 0);
    world.lose(3 * SECOND);
    let narrow = world.sides[1].selected.iter().filter(|(.., why)| *why == Reason::Narrow);
    assert_eq!(narrow.count(), 0);
    assert_eq!(world.sides[1].packet_max, PACKET_MAX);
}

#[test]
fn an_echo_that_lost_its_padding_proves_no_size() {
    let mut world = World::new(&[(1, 0)]);
    let agent = &mut world.sides[0].agent;
    agent.handle_timeout(world.now);
    while world.now - world.start < 2 * SECOND {
        world.now += MS;
        let agent = &mut world.sides[0].agent;
        agent.handle_timeout(world.now);
        while let Some((path, probe)) = agent.poll_transmit() {
            // A relay's accomplice answers everything at once, with small probes.
            if let Probe::Ping { token } = probe {
                agent.handle_probe(path, Probe::Pong { token }, world.now);
            } else if let Probe::Measure { token, .. } = probe {
                agent.handle_probe(path, Probe::Measured { token, size: 0 }, world.now);
            }
        }
        let mut ignored = std::iter::from_fn(|| agent.poll_event());
        if ignored.any(|event| event == Event::PacketMax(PACKET_MIN)) {
            return;
        }
    }
    panic!("packets may be larger than any that was echoed");
}

#[test]
fn whoever_asks_for_many_echoes_gets_few() {
    let mut world = World::new(&[(1, 1439)]);
    world.run(SECOND);
    let agent = &mut world.sides[1].agent;
    let mut echoes = 0;
    for token in 0..10_000 {
        let ask = Probe::Measure { token, size: PACKET_MAX, packets: PACKET_MIN };
        agent.handle_probe(Path::Relay(1), ask, world.now);
        while let Some((_, probe)) = agent.poll_transmit() {
            let Probe::Measured { size, .. } = probe else { continue };
            assert_eq!(size, PACKET_MAX);
            echoes += 1;
        }
    }
    assert!((1..=64).contains(&echoes), "{echoes} echoes");
}
