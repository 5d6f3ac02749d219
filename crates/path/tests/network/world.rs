//! Two agents, what their sockets see, and the ways between them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_path::{Activity, Agent, CANDIDATES_MAX, Event, Kind, Path, Probe, Reason};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Packets of the session, while it is busy, and looks at the socket.
pub(crate) const STEP: Duration = Duration::from_millis(10);
/// The same where only the outcome counts.
pub(crate) const COARSE_STEP: Duration = Duration::from_millis(60);
/// Pings to one target in any second: first pings, or suspicion at 25 a second.
pub(crate) const PINGS_PER_TARGET: usize = 30;

/// The ways between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Relay(u32),
    Direct,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Condition {
    pub(crate) delay: Duration,
    /// Of 100.
    pub(crate) loss: u64,
    pub(crate) blocked: bool,
}

pub(crate) const GOOD: Condition =
    Condition { delay: Duration::from_millis(20), loss: 0, blocked: false };

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Packet {
    Ping(u64),
    Pong(u64),
    Use(u64),
    Trial(u64),
    Measure(u64, u16, u16),
    Measured(u64, u16),
    Data,
}

/// When it arrives, an order among equals, and whose packet it is.
pub(crate) type Flying = (Instant, u64, Way, usize, Packet);

pub(crate) struct Side {
    pub(crate) agent: Agent,
    /// Where the other side sees it.
    pub(crate) addr: SocketAddr,
    /// Where its packets go: the path in use, or another for a trial.
    pub(crate) route: Option<Path>,
    pub(crate) unanswered: Option<Instant>,
    pub(crate) owes_ack: bool,
    pub(crate) data: Vec<Instant>,
    pub(crate) trials: usize,
    pub(crate) echoed: BTreeSet<Path>,
    pub(crate) switches: Vec<(Instant, Path, Reason)>,
    pub(crate) pings: BTreeMap<Path, Vec<Instant>>,
}

pub(crate) struct World {
    pub(crate) sides: [Side; 2],
    pub(crate) now: Instant,
    pub(crate) ways: BTreeMap<(Way, usize), Condition>,
    /// Nothing that is sent before then arrives earlier.
    pub(crate) stalled_until: Instant,
    pub(crate) flying: BinaryHeap<Reverse<Flying>>,
    pub(crate) random: u64,
    pub(crate) step: Duration,
    /// Which sides have data to send.
    pub(crate) busy: [bool; 2],
}

pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// An address at which nobody is.
pub(crate) fn nobody(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], port))
}

impl World {
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::now();
        let side = |controlling, port| Side {
            agent: Agent::new(controlling, seed.wrapping_add(u64::from(port))),
            addr: address(port),
            route: None,
            unanswered: None,
            owes_ack: false,
            data: Vec::new(),
            trials: 0,
            echoed: BTreeSet::new(),
            switches: Vec::new(),
            pings: BTreeMap::new(),
        };
        let mut world = Self {
            sides: [side(true, 1), side(false, 2)],
            now,
            ways: BTreeMap::new(),
            stalled_until: now,
            flying: BinaryHeap::new(),
            random: seed,
            step: STEP,
            busy: [true; 2],
        };
        world.add_relay(1);
        world.set(Way::Direct, GOOD);
        // Relays see where the other side is.
        for i in 0..2 {
            let seen = world.sides[1 - i].addr;
            world.sides[i].agent.set_peer_address(seen, now);
            world.drain(i);
        }
        world
    }

    pub(crate) fn add_relay(&mut self, number: u32) {
        self.set(Way::Relay(number), GOOD);
        for i in 0..2 {
            self.sides[i].agent.add_relay(number, self.now);
            self.drain(i);
        }
    }

    pub(crate) fn set(&mut self, way: Way, condition: Condition) {
        self.ways.insert((way, 0), condition);
        self.ways.insert((way, 1), condition);
    }

    pub(crate) fn block(&mut self, way: Way, from: usize, blocked: bool) {
        self.ways.get_mut(&(way, from)).expect("a way").blocked = blocked;
    }

    pub(crate) fn allow_direct(&mut self, side: usize, allowed: bool) {
        self.sides[side].agent.set_direct_allowed(allowed, self.now);
        self.drain(side);
    }

    pub(crate) fn tell_candidates(&mut self, side: usize, addrs: &[SocketAddr]) {
        self.sides[side].agent.add_candidates(addrs, self.now);
        self.drain(side);
    }

    pub(crate) fn chance(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % 100
    }

    pub(crate) fn send(&mut self, from: usize, path: Path, packet: Packet) {
        let way = match path {
            Path::Relay(number) => Way::Relay(number),
            Path::Direct(pair) if pair.remote == self.sides[1 - from].addr => Way::Direct,
            Path::Direct(_) => return,
        };
        let Some(condition) = self.ways.get(&(way, from)).copied() else { return };
        let lost = self.chance() < condition.loss;
        if !condition.blocked && !lost {
            // The chance keeps packets of one moment in no particular order.
            let order = self.chance();
            let at = (self.now + condition.delay).max(self.stalled_until);
            self.flying.push(Reverse((at, order, way, from, packet)));
        }
    }

    pub(crate) fn arrive(&mut self, way: Way, from: usize, packet: Packet) {
        let to = 1 - from;
        let path = match way {
            Way::Relay(number) => Path::Relay(number),
            Way::Direct => Path::direct(self.sides[from].addr),
        };
        let now = self.now;
        let side = &mut self.sides[to];
        let probe = match packet {
            Packet::Data => {
                if side.agent.selected() == Some(path) {
                    side.unanswered = None;
                }
                side.owes_ack = true;
                side.data.push(now);
                return;
            }
            Packet::Ping(token) => Probe::Ping { token },
            Packet::Use(epoch) => Probe::Use { epoch },
            Packet::Trial(epoch) => Probe::Trial { epoch },
            Packet::Measure(token, size, packets) => Probe::Measure { token, size, packets },
            Packet::Measured(token, size) => Probe::Measured { token, size },
            Packet::Pong(token) => {
                side.echoed.insert(path);
                if side.agent.selected() == Some(path) {
                    side.unanswered = None;
                }
                Probe::Pong { token }
            }
        };
        side.agent.handle_probe(path, probe, now);
        self.drain(to);
    }

    /// Takes out what the agent wants done, and checks it.
    pub(crate) fn drain(&mut self, i: usize) {
        while let Some(event) = self.sides[i].agent.poll_event() {
            let side = &mut self.sides[i];
            let (path, reason) = match event {
                Event::Selected { path, reason, .. } => (path, reason),
                Event::Tried { path, .. } => {
                    assert!(side.echoed.contains(&path), "{path:?} is tried but was not echoed");
                    side.route = Some(path);
                    side.trials += 1;
                    continue;
                }
                Event::Returned { path } => {
                    assert_eq!(side.agent.selected(), Some(path));
                    side.route = Some(path);
                    continue;
                }
                Event::Proven(_)
                | Event::Forgotten(_)
                | Event::OpenSockets { .. }
                | Event::PacketMax(_)
                | Event::CloseSocket(_) => continue,
            };
            let first = reason == Reason::First && path.kind() == Kind::Relayed;
            assert!(first || side.echoed.contains(&path), "{path:?} was chosen but not echoed");
            side.switches.push((self.now, path, reason));
            side.route = Some(path);
            side.unanswered = None;
        }
        while let Some((path, probe)) = self.sides[i].agent.poll_transmit() {
            let packet = match probe {
                Probe::Ping { token } => {
                    self.count_ping(i, path);
                    Packet::Ping(token)
                }
                Probe::Pong { token } => Packet::Pong(token),
                Probe::Use { epoch } => Packet::Use(epoch),
                Probe::Guess { .. } | Probe::Nat { .. } => panic!("no NAT is known here"),
                Probe::Trial { epoch } => Packet::Trial(epoch),
                Probe::Measure { token, size, packets } => Packet::Measure(token, size, packets),
                Probe::Measured { token, size } => Packet::Measured(token, size),
            };
            self.send(i, path, packet);
        }
        let timeout = self.sides[i].agent.poll_timeout();
        let now = self.now;
        assert!(timeout.is_none_or(|(at, _)| at > now), "{timeout:?} is not after now");
    }

    pub(crate) fn count_ping(&mut self, i: usize, path: Path) {
        let now = self.now;
        let pings = self.sides[i].pings.entry(path).or_default();
        pings.push(now);
        pings.retain(|at| *at + SECOND > now);
        assert!(pings.len() <= PINGS_PER_TARGET, "{} pings a second to {path:?}", pings.len());
        let direct = self.sides[i].pings.keys().filter(|p| p.kind() == Kind::Direct).count();
        assert!(direct <= CANDIDATES_MAX, "{direct} addresses were pinged");
    }

    /// What the session's task does every few milliseconds.
    pub(crate) fn look(&mut self, i: usize) {
        let now = self.now;
        let side = &mut self.sides[i];
        let selected = side.agent.selected();
        let outstanding = self.busy[i];
        if (outstanding || side.owes_ack)
            && let Some(path) = side.route
        {
            side.owes_ack = false;
            if side.route == selected {
                side.unanswered.get_or_insert(now);
            }
            self.send(i, path, Packet::Data);
        }
        let side = &mut self.sides[i];
        let rtt = selected.and_then(|p| side.agent.rtt(p)).unwrap_or(100 * MS);
        let pto = rtt * 2 + 25 * MS;
        let activity = Activity { unanswered_since: side.unanswered, pto, outstanding };
        side.agent.handle_activity(activity, now);
        side.agent.handle_timeout(now);
        self.drain(i);
    }

    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut step = self.now + self.step;
        while self.now < end {
            let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
            let timers = self.sides.iter().filter_map(|s| s.agent.poll_timeout());
            let timer = timers.map(|(at, _)| at).min();
            let next = [Some(step), arrival, timer].into_iter().flatten().min();
            self.now = next.expect("a step").min(end).max(self.now);
            while let Some(Reverse((at, ..))) = self.flying.peek()
                && *at <= self.now
            {
                let Some(Reverse((_, _, way, from, packet))) = self.flying.pop() else { break };
                self.arrive(way, from, packet);
            }
            for i in 0..2 {
                self.sides[i].agent.handle_timeout(self.now);
                self.drain(i);
            }
            if self.now >= step {
                step = self.now + self.step;
                for i in 0..2 {
                    self.look(i);
                }
            }
        }
    }

    /// Both sides' choice, as ways.
    pub(crate) fn chosen(&self) -> [Option<Way>; 2] {
        [0, 1].map(|i| {
            self.sides[i].agent.selected().map(|p| match p {
                Path::Relay(number) => Way::Relay(number),
                Path::Direct(_) => Way::Direct,
            })
        })
    }

    pub(crate) fn works(&self, way: Way) -> bool {
        [0, 1].iter().all(|i| self.ways.get(&(way, *i)).is_some_and(|c| !c.blocked))
    }

    pub(crate) fn go_direct(&mut self) {
        self.allow_direct(0, true);
        self.allow_direct(1, true);
        let addr = self.sides[1].addr;
        self.tell_candidates(0, &[addr]);
        self.run(2 * SECOND);
        assert_eq!(self.chosen(), [Some(Way::Direct); 2]);
    }
}
