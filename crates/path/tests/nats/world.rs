//! Two homes behind NATs, two relays, and what a node's socket code does around its agent.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sluice_path::{
    Agent, Budget, Candidate, Event, GUESSES_MAX, Guess, Opened, Pair, Path, Probe, Question,
    RelayPort, SURVEY_SOCKETS, SocketId, Survey, SurveyRelay, to_tell,
};

use crate::model::Nat;

/// From a home to a relay.
pub(crate) const TO_RELAY: Duration = Duration::from_millis(20);
/// From home to home.
pub(crate) const DIRECT: Duration = Duration::from_millis(15);
/// Sockets' local ports, by their number.
const LOCAL_PORT: u16 = 20_000;
/// From one socket's to the next.
const APART: u16 = 37;
/// Others of the household open a connection this often.
const NEIGHBOUR: Duration = Duration::from_millis(400);
/// The most probes that a node may send in a second.
const PROBES_PER_S: usize = 500;

pub(crate) fn relays() -> [SurveyRelay; 2] {
    let relay = |ip: [u8; 4]| SurveyRelay {
        main: SocketAddr::from((ip, 7843)),
        alternate: Some(SocketAddr::from((ip, 7844))),
    };
    [relay([198, 51, 100, 1]), relay([198, 51, 101, 1])]
}

#[derive(Debug, Clone, Copy)]
enum Packet {
    Probe(Probe),
    Relayed(Probe),
    Observe(Question),
    Answer { token: u64, observed: SocketAddr },
    Candidates,
}

/// When, in which order, to which home, and what: from where to which public port.
struct Flying {
    home: usize,
    from: SocketAddr,
    port: u16,
    packet: Packet,
}

struct Home {
    agent: Agent,
    budget: Budget,
    nat: Nat,
    survey: Option<Survey>,
    /// Sockets that wait for a relay's word, and its token.
    observing: Option<(u64, Vec<SocketId>)>,
    next_socket: u32,
    open: Vec<SocketId>,
    /// Every probe sent directly: when, and to where.
    probes: Vec<(Instant, SocketAddr)>,
    direct_at: Option<Instant>,
    opened: usize,
    deaf: bool,
}

pub(crate) struct World {
    homes: [Home; 2],
    pub(crate) now: Instant,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    flying: BTreeMap<u64, Flying>,
    sent: u64,
    next_neighbour: Instant,
    begin: Instant,
    /// Packets lost, of 1,000.
    pub(crate) loss: u64,
    random: u64,
}

impl World {
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn new(nats: [Nat; 2], seed: u64) -> Self {
        let now = Instant::now();
        let mut side = 0;
        let homes = nats.map(|nat| {
            side += 1;
            let (mut agent, budget) = (Agent::new(side == 1, seed ^ side), Budget::default());
            agent.share(&budget);
            Home {
                agent,
                budget,
                nat,
                survey: None,
                observing: None,
                next_socket: 10,
                open: Vec::new(),
                probes: Vec::new(),
                direct_at: None,
                opened: 0,
                deaf: false,
            }
        });
        let mut world = Self {
            homes,
            now,
            queue: BinaryHeap::new(),
            flying: BTreeMap::new(),
            sent: 0,
            next_neighbour: now,
            begin: now,
            loss: 0,
            random: seed,
        };
        for i in 0..2 {
            world.homes[i].agent.add_relay(1, now);
            let ports: Vec<u16> = (0..=SURVEY_SOCKETS as u32).map(local_port).collect();
            world.homes[i].survey = Some(Survey::new(relays().to_vec(), ports, seed, now));
        }
        world
    }

    /// Both nodes learn what their NATs do, then are allowed a direct path and tell each other
    /// where they are.
    pub(crate) fn begin(&mut self) {
        self.run(Duration::from_secs(3), |_| false);
        for i in 0..2 {
            let nat = self.survey(i).nat();
            let now = self.now;
            self.homes[i].agent.set_nat(nat, now);
            self.homes[i].agent.set_direct_allowed(true, now);
            self.drain(i);
            let relay = relays()[0].main;
            let flying = Flying { home: 1 - i, from: relay, port: 0, packet: Packet::Candidates };
            self.fly(TO_RELAY * 2, flying);
        }
        self.begin = self.now;
    }

    pub(crate) fn survey(&self, home: usize) -> &Survey {
        self.homes[home].survey.as_ref().expect("a survey")
    }

    /// Runs until both use a direct path, or `span` is over. How long it took.
    pub(crate) fn meet(&mut self, span: Duration) -> Option<Duration> {
        self.run(span, |world| world.homes.iter().all(|h| h.direct_at.is_some()));
        let both = self.homes.iter().map(|h| h.direct_at).collect::<Option<Vec<_>>>()?;
        both.into_iter().max().map(|at| at - self.begin)
    }

    /// Both still go directly, and a packet sent either way arrives.
    pub(crate) fn assert_carries(&mut self) {
        for i in 0..2 {
            let Some(Path::Direct(pair)) = self.homes[i].agent.selected() else {
                panic!("home {i} is not direct: {:?}", self.homes[i].agent.selected());
            };
            let from = self.homes[i].nat.outbound(local_port(pair.socket.0), pair.remote);
            let other = &self.homes[1 - i].nat;
            assert_eq!(pair.remote.ip(), other.ip);
            assert!(other.inbound(from, pair.remote.port()).is_some(), "{i}: {pair:?}");
        }
    }

    pub(crate) fn selected(&self, home: usize) -> Option<Path> {
        self.homes[home].agent.selected()
    }

    /// Different addresses and ports that a home sent to.
    pub(crate) fn guessed(&self, home: usize) -> usize {
        let ports: BTreeSet<_> = self.homes[home].probes.iter().map(|(_, to)| *to).collect();
        ports.len()
    }

    pub(crate) fn probes(&self, home: usize) -> usize {
        self.homes[home].probes.len()
    }

    /// Sockets that a home opened for guessing, ever and now.
    pub(crate) fn sockets(&self, home: usize) -> (usize, usize) {
        (self.homes[home].opened, self.homes[home].open.len())
    }

    pub(crate) fn set_nat_entries_max(&self, entries: u16) {
        self.homes.iter().for_each(|h| h.budget.set_entries_max(entries));
    }

    /// Nothing reaches this home's sockets any more, but for what its relay brings.
    pub(crate) fn deafen(&mut self, home: usize) {
        self.homes[home].deaf = true;
    }

    /// The other node tells `home` of new rounds all the time. Returns where `home` sent to.
    pub(crate) fn harass(&mut self, home: usize, span: Duration) -> BTreeSet<IpAddr> {
        let end = self.now + span;
        let mut round = 0;
        while self.now < end {
            round += 1;
            let guess = Guess { first: 1024, step: 1, count: 60_000 };
            let now = self.now;
            self.homes[home].agent.handle_probe(Path::Relay(1), Probe::Guess { round, guess }, now);
            self.drain(home);
            self.run(Duration::from_secs(1), |_| false);
        }
        self.homes[home].probes.iter().map(|(_, to)| to.ip()).collect()
    }

    fn chance(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % 1000
    }

    fn fly(&mut self, delay: Duration, flying: Flying) {
        // A session's stream repeats what is lost.
        let reliable = matches!(flying.packet, Packet::Candidates);
        if self.chance() < self.loss && !reliable {
            return;
        }
        self.sent += 1;
        self.queue.push(Reverse((self.now + delay, self.sent)));
        self.flying.insert(self.sent, flying);
    }

    fn run(&mut self, span: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + span;
        while self.now < end && !done(self) {
            let arrival = self.queue.peek().map(|Reverse((at, _))| *at);
            let agents = self.homes.iter().filter_map(|h| h.agent.poll_timeout().map(|t| t.0));
            let surveys = self.homes.iter().filter_map(|h| h.survey.as_ref()?.poll_timeout());
            let timers = agents.chain(surveys).chain([self.next_neighbour, end]);
            let next = timers.chain(arrival).min().expect("the end");
            self.now = next.max(self.now);
            while let Some(Reverse((at, number))) = self.queue.peek().copied()
                && at <= self.now
            {
                self.queue.pop();
                let flying = self.flying.remove(&number).expect("it flies");
                self.arrive(flying);
            }
            if self.next_neighbour <= self.now {
                self.next_neighbour = self.now + NEIGHBOUR;
                self.homes.iter_mut().for_each(|h| h.nat.neighbour());
            }
            for i in 0..2 {
                let now = self.now;
                if let Some(survey) = &mut self.homes[i].survey {
                    survey.handle_timeout(now);
                }
                self.homes[i].agent.handle_timeout(now);
                self.drain(i);
            }
        }
    }

    fn arrive(&mut self, flying: Flying) {
        let Flying { home, from, port, packet } = flying;
        let now = self.now;
        match packet {
            Packet::Relayed(probe) => {
                self.homes[home].agent.handle_probe(Path::Relay(1), probe, now);
            }
            Packet::Candidates => self.take_candidates(home),
            Packet::Observe(question) => return self.answer(home, from, question),
            Packet::Answer { token, observed } => {
                if self.homes[home].nat.inbound(from, port).is_some() {
                    self.take_answer(home, token, observed);
                }
            }
            Packet::Probe(probe) => {
                let Some(local) = self.homes[home].nat.inbound(from, port) else { return };
                let socket = SocketId(u32::from((local - LOCAL_PORT) / APART));
                let open = socket == SocketId::DATA || self.homes[home].open.contains(&socket);
                if !open || self.homes[home].deaf {
                    return;
                }
                let path = Path::Direct(Pair { socket, remote: from });
                self.homes[home].agent.handle_probe(path, probe, now);
            }
        }
        self.drain(home);
    }

    /// What a relay does with a question of `home` that came from `from`.
    fn answer(&mut self, home: usize, from: SocketAddr, question: Question) {
        let relay = relays()[question.relay];
        let source = match question.answer_from {
            RelayPort::Main => relay.main,
            RelayPort::Alternate => relay.alternate.expect("it has one"),
        };
        let port = question.answer_to.unwrap_or(from.port());
        let packet = Packet::Answer { token: question.token, observed: from };
        self.fly(TO_RELAY, Flying { home, from: source, port, packet });
    }

    fn take_answer(&mut self, home: usize, token: u64, observed: SocketAddr) {
        let now = self.now;
        let home = &mut self.homes[home];
        if let Some((expected, sockets)) = home.observing.take_if(|(t, _)| *t == token) {
            assert_eq!(expected, token);
            let opened = opened(&sockets, Some(observed.port()));
            home.agent.sockets_opened(&opened, now);
        } else if let Some(survey) = &mut home.survey {
            survey.handle_answer(token, observed, now);
        }
    }

    fn take_candidates(&mut self, home: usize) {
        let now = self.now;
        let other = &self.homes[1 - home];
        let survey = other.survey.as_ref().expect("a survey");
        let host = Candidate::host(SocketAddr::from(([192, 168, 1, 2], local_port(0))));
        let seen = survey
            .relays()
            .into_iter()
            .flatten()
            .map(|(address, _)| Candidate { kind: sluice_path::CandidateKind::Reflexive, address });
        let list: Vec<SocketAddr> =
            to_tell(seen.chain([host]).collect()).into_iter().map(|c| c.address).collect();
        let seen = survey.relays()[0].map(|(address, _)| address);
        let agent = &mut self.homes[home].agent;
        agent.set_peer_address(seen.expect("seen"), now);
        agent.add_candidates(&list, now);
    }

    fn drain(&mut self, i: usize) {
        while let Some(question) = self.homes[i].survey.as_mut().and_then(Survey::poll_transmit) {
            let relay = relays()[question.relay];
            let to = match question.to {
                RelayPort::Main => relay.main,
                RelayPort::Alternate => relay.alternate.expect("it has one"),
            };
            self.observe(i, question, to);
        }
        while let Some(event) = self.homes[i].agent.poll_event() {
            match event {
                Event::Selected { path, .. } => {
                    let direct = matches!(path, Path::Direct(_));
                    self.homes[i].direct_at = direct.then_some(self.now);
                }
                Event::OpenSockets { count, observe } => self.open(i, count, observe),
                Event::CloseSocket(socket) => {
                    let open = &mut self.homes[i].open;
                    let at = open.iter().position(|s| *s == socket).expect("it was open");
                    open.remove(at);
                }
                Event::Proven(_)
                | Event::Forgotten(_)
                | Event::Tried { .. }
                | Event::PacketMax(_)
                | Event::Returned { .. } => {}
            }
        }
        while let Some((path, probe)) = self.homes[i].agent.poll_transmit() {
            self.send(i, path, probe);
        }
    }

    fn observe(&mut self, i: usize, question: Question, to: SocketAddr) {
        let from = self.homes[i].nat.outbound(local_port(question.socket.0), to);
        let packet = Packet::Observe(question);
        self.fly(TO_RELAY, Flying { home: i, from, port: 0, packet });
    }

    fn open(&mut self, i: usize, count: u16, observe: bool) {
        let now = self.now;
        let home = &mut self.homes[i];
        let sockets: Vec<SocketId> =
            (0..u32::from(count)).map(|n| SocketId(home.next_socket + n)).collect();
        home.next_socket += u32::from(count);
        home.open.extend(&sockets);
        home.opened += sockets.len();
        if observe {
            let token = u64::from(sockets[0].0) << 40;
            let question = Question {
                socket: sockets[0],
                relay: 0,
                to: RelayPort::Main,
                answer_from: RelayPort::Main,
                answer_to: None,
                token,
            };
            home.observing = Some((token, sockets));
            self.observe(i, question, relays()[0].main);
        } else {
            home.agent.sockets_opened(&opened(&sockets, None), now);
        }
    }

    fn send(&mut self, i: usize, path: Path, probe: Probe) {
        match path {
            Path::Relay(_) => {
                let from = relays()[0].main;
                let flying = Flying { home: 1 - i, from, port: 0, packet: Packet::Relayed(probe) };
                self.fly(TO_RELAY * 2, flying);
            }
            Path::Direct(pair) => {
                self.count(i, pair.remote);
                let from = self.homes[i].nat.outbound(local_port(pair.socket.0), pair.remote);
                if pair.remote.ip() == self.homes[1 - i].nat.ip {
                    let (port, packet) = (pair.remote.port(), Packet::Probe(probe));
                    self.fly(DIRECT, Flying { home: 1 - i, from, port, packet });
                }
            }
        }
    }

    fn count(&mut self, i: usize, to: SocketAddr) {
        let now = self.now;
        let probes = &mut self.homes[i].probes;
        probes.push((now, to));
        let second = probes.iter().rev().take_while(|(at, _)| *at + Duration::from_secs(1) > now);
        let second = second.count();
        assert!(second <= PROBES_PER_S, "{second} probes within a second");
        assert!(self.homes[i].opened <= usize::from(GUESSES_MAX));
    }
}

fn local_port(socket: u32) -> u16 {
    LOCAL_PORT + u16::try_from(socket).expect("few sockets") * APART
}

fn opened(sockets: &[SocketId], observed: Option<u16>) -> Vec<Opened> {
    sockets
        .iter()
        .enumerate()
        .map(|(i, socket)| Opened {
            socket: *socket,
            local_port: local_port(socket.0),
            observed_port: observed.filter(|_| i == 0),
        })
        .collect()
}
