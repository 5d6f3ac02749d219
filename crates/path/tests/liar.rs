//! What a peer that lies can make a node send, and where to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sluice_path::{
    Agent, Budget, CANDIDATES_MAX, Event, Filtering, GUESSES_MAX, Guess, Mapping, Nat, Opened,
    Pair, Path, Probe, STRANGER_PROBES_MAX, SocketId, Whereabouts,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Probes that a node may send within a second.
const PROBES_PER_S: usize = 500;
/// Where relays see the node, and the other one.
const OURS: &str = "203.0.113.1:6000";
const THEIRS: &str = "203.0.114.1:6000";

fn at(addr: &str) -> SocketAddr {
    addr.parse().expect("an address")
}

/// One session's agent, and all that it sent straight to addresses.
struct Session {
    agent: Agent,
    sent: Vec<(Instant, Pair)>,
    next_socket: u32,
}

/// A node: sessions with one budget.
struct Node {
    sessions: Vec<Session>,
    now: Instant,
}

impl Node {
    #[allow(clippy::disallowed_methods)]
    fn new(sessions: u32) -> Self {
        let now = Instant::now();
        let budget = Budget::default();
        let session = |number: u32| {
            let mut agent = Agent::new(false, number.into());
            agent.share(&budget);
            agent.set_whereabouts(whereabouts(OURS), now);
            agent.add_relay(1, now);
            agent.set_direct_allowed(true, now);
            agent.set_peer_address(at(THEIRS), now);
            Session { agent, sent: Vec::new(), next_socket: 1000 * (number + 1) }
        };
        let mut node = Self { sessions: (0..sessions).map(session).collect(), now };
        node.drain();
        node
    }

    fn drain(&mut self) {
        let now = self.now;
        for session in &mut self.sessions {
            while let Some(event) = session.agent.poll_event() {
                if let Event::OpenSockets { count, .. } = event {
                    let opened: Vec<_> =
                        (0..u32::from(count)).map(|n| opened(session.next_socket + n)).collect();
                    session.next_socket += u32::from(count);
                    session.agent.sockets_opened(&opened, now);
                }
            }
            while let Some((path, _)) = session.agent.poll_transmit() {
                if let Path::Direct(pair) = path {
                    session.sent.push((now, pair));
                }
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            let due = self.sessions.iter().filter_map(|s| s.agent.poll_timeout()).map(|(at, _)| at);
            self.now = due.min().unwrap_or(end).max(self.now + MS / 10).min(end);
            for session in &mut self.sessions {
                session.agent.handle_timeout(self.now);
            }
            self.drain();
        }
    }

    fn tell(&mut self, addrs: &[SocketAddr]) {
        self.sessions[0].agent.add_candidates(addrs, self.now);
        self.drain();
    }

    fn hear(&mut self, session: usize, from: Path, probe: Probe) {
        self.sessions[session].agent.handle_probe(from, probe, self.now);
        self.drain();
    }

    fn all_sent(&self) -> impl Iterator<Item = (Instant, Pair)> {
        self.sessions.iter().flat_map(|s| s.sent.iter().copied())
    }

    fn sent_to(&self, ip: IpAddr) -> usize {
        self.all_sent().filter(|(_, pair)| pair.remote.ip() == ip).count()
    }

    /// The most probes within a second.
    fn peak(&self) -> usize {
        let mut times: Vec<Instant> = self.all_sent().map(|(at, _)| at).collect();
        times.sort();
        let within =
            |from: &Instant| times.iter().filter(|at| (*from..*from + SECOND).contains(at)).count();
        times.iter().map(within).max().unwrap_or_default()
    }

    /// The entries that a NAT holds which forgets them after `life`, at their most.
    fn entries_peak(&self, life: Duration) -> usize {
        let mut sent: Vec<(Instant, Pair)> = self.all_sent().collect();
        sent.sort();
        let (mut standing, mut peak) = (BTreeMap::new(), 0);
        for (at, pair) in sent {
            standing.insert(pair, at);
            standing.retain(|_, used| *used + life > at);
            peak = peak.max(standing.len());
        }
        peak
    }
}

fn whereabouts(seen: &str) -> Whereabouts {
    Whereabouts {
        public: vec![at(seen).ip()],
        hosts: vec![at("192.168.1.2:1").ip(), at("[2001:db8:1:1::2]:1").ip()],
    }
}

fn opened(socket: u32) -> Opened {
    let local_port = 20_000 + u16::try_from(socket % 40_000).expect("small");
    Opened { socket: SocketId(socket), local_port, observed_port: None }
}

/// Behind this NAT a node opens sockets for a peer that is behind a home router.
fn hard() -> Nat {
    Nat {
        mapping: Some(Mapping::AddressAndPort),
        filtering: Some(Filtering::Address),
        allocator: None,
    }
}

const HOME_ROUTER: Probe =
    Probe::Nat { mapping: Some(Mapping::Independent), filtering: Some(Filtering::AddressAndPort) };

impl Node {
    /// The peer has each session open sockets and guess as well, again and again, and lets all its
    /// own ports be heard.
    fn provoke(&mut self, span: Duration) {
        let end = self.now + span;
        for session in 0..self.sessions.len() {
            self.sessions[session].agent.set_nat(hard(), self.now);
            self.hear(session, Path::Relay(1), HOME_ROUTER);
        }
        let mut round = 0;
        while self.now < end {
            for session in 0..self.sessions.len() {
                round += 1;
                self.hear(session, Path::Relay(1), Probe::Guess { round, guess: Guess::ANY });
                let port = u16::try_from(1024 + round % 60_000).expect("a port");
                let from = Path::direct(SocketAddr::new(at(THEIRS).ip(), port));
                self.hear(session, from, Probe::Ping { token: round.into() });
            }
            self.run(2 * MS);
        }
    }
}

#[test]
fn guesses_openings_and_answers_keep_to_one_pace_and_one_count_of_entries() {
    for sessions in [1, 3] {
        let mut node = Node::new(sessions);
        node.provoke(10 * SECOND);
        let sockets: BTreeSet<SocketId> = node.all_sent().map(|(_, pair)| pair.socket).collect();
        assert!(sockets.len() > 100, "it opened sockets: {}", sockets.len());
        let guesses = node.all_sent().filter(|(_, pair)| pair.socket == SocketId::DATA).count();
        assert!(guesses > 500, "it guessed: {guesses}");
        assert!(node.peak() <= PROBES_PER_S, "{} probes within a second", node.peak());
        let entries = node.entries_peak(300 * SECOND);
        assert!(entries <= usize::from(GUESSES_MAX), "{entries} entries, {sessions} sessions");
    }
}

#[test]
fn entries_of_one_round_count_until_the_nat_may_have_forgotten_them() {
    let mut node = Node::new(1);
    node.provoke(4 * SECOND);
    node.run(900 * SECOND);
    node.provoke(4 * SECOND);
    let entries = node.entries_peak(300 * SECOND);
    assert!(entries <= usize::from(GUESSES_MAX), "{entries} entries");
    assert!(node.entries_peak(3600 * SECOND) > usize::from(GUESSES_MAX), "it guessed again");
}

#[test]
fn only_one_session_of_a_node_guesses_at_a_time_and_then_the_next() {
    let mut node = Node::new(2);
    for session in 0..2 {
        node.sessions[session].agent.set_nat(hard(), node.now);
        node.hear(session, Path::Relay(1), HOME_ROUTER);
    }
    node.run(3 * SECOND);
    let has_opened = |s: &Session| !s.next_socket.is_multiple_of(1000);
    assert_eq!(node.sessions.iter().filter(|s| has_opened(s)).count(), 1);
    node.run(3 * SECOND);
    assert!(node.sessions.iter().all(has_opened), "the other one has its turn");
}

/// Addresses of machines in the node's household, however they are written.
const HOUSEHOLD: [&str; 13] = [
    "192.168.1.40:80",
    "10.0.0.1:53",
    "172.16.3.4:22",
    "169.254.169.254:80",
    "127.0.0.1:8080",
    "100.64.0.1:1900",
    "203.0.113.1:443",
    "[::1]:631",
    "[fe80::1]:80",
    "[fd00::40]:80",
    "[2001:db8:1:1::40]:80",
    "[::ffff:192.168.1.40]:80",
    "[64:ff9b::192.168.1.40]:80",
];

#[test]
fn nothing_is_sent_into_the_household_on_the_word_of_a_peer_elsewhere() {
    let household: Vec<SocketAddr> = HOUSEHOLD.map(at).to_vec();
    let mut node = Node::new(1);
    for _ in 0..20 {
        node.tell(&household);
        for addr in &household {
            node.hear(0, Path::direct(*addr), Probe::Ping { token: 1 });
            node.hear(0, Path::direct(*addr), Probe::Use { epoch: 9 });
        }
        node.run(SECOND);
    }
    for addr in household {
        assert_eq!(node.sent_to(addr.ip()), 0, "{addr}");
    }
    assert!(node.sent_to(at(THEIRS).ip()) > 0);
}

#[test]
fn nothing_is_guessed_in_the_household() {
    let mut node = Node::new(1);
    node.sessions[0].agent.set_peer_address(at(OURS), node.now);
    node.provoke(5 * SECOND);
    let ports: BTreeSet<u16> = node
        .all_sent()
        .filter(|(_, pair)| pair.remote.ip() == at(OURS).ip())
        .map(|(_, pair)| pair.remote.port())
        .collect();
    assert!(ports.len() <= 1, "{ports:?}");
}

#[test]
fn a_peer_behind_the_same_nat_is_tried_at_its_private_address() {
    let neighbour = at("192.168.1.40:6000");
    let mut node = Node::new(1);
    node.tell(&[neighbour]);
    node.run(SECOND);
    assert_eq!(node.sent_to(neighbour.ip()), 0, "not before relays saw it here");
    node.sessions[0].agent.set_peer_address(SocketAddr::new(at(OURS).ip(), 7000), node.now);
    node.run(3600 * SECOND);
    let sent = node.sent_to(neighbour.ip());
    assert!((1..=STRANGER_PROBES_MAX as usize).contains(&sent), "{sent}");
}

#[test]
fn a_third_party_gets_a_handful_whatever_is_said_of_it() {
    let victim = at("198.51.100.7:443");
    let ports: Vec<SocketAddr> = (1..=12).map(|p| SocketAddr::new(victim.ip(), p)).collect();
    let mut node = Node::new(1);
    for minute in 0..60 {
        node.tell(&ports);
        node.tell(&[victim]);
        node.sessions[0].agent.set_direct_allowed(minute % 2 == 1, node.now);
        node.hear(0, Path::Relay(1), Probe::Guess { round: minute, guess: Guess::ANY });
        node.run(60 * SECOND);
    }
    let sent = node.sent_to(victim.ip());
    assert!((1..=STRANGER_PROBES_MAX as usize).contains(&sent), "{sent}");
}

#[test]
fn a_false_sender_gets_no_more_than_was_sent_in_its_name_and_a_handful() {
    let victim: IpAddr = at("198.51.100.7:443").ip();
    let mut node = Node::new(1);
    let mut forged = 0;
    for token in 0..1000 {
        let port = 1000 + u16::try_from(token % 100).expect("small");
        let from = Path::direct(SocketAddr::new(victim, port));
        node.hear(0, from, Probe::Ping { token });
        forged += 1;
        node.run(50 * MS);
    }
    node.run(600 * SECOND);
    let sent = node.sent_to(victim);
    assert!(sent <= forged + STRANGER_PROBES_MAX as usize, "{sent} for {forged}");
}

#[test]
fn thousands_of_candidates_are_cut_to_a_few_and_each_gets_a_handful() {
    let mut node = Node::new(1);
    for round in 0..100_u8 {
        let many: Vec<SocketAddr> =
            (1..=250).map(|n| SocketAddr::from(([198, 51, round, n], 443))).collect();
        node.tell(&many);
        for addr in &many {
            node.hear(0, Path::direct(*addr), Probe::Use { epoch: 1 });
        }
        node.run(10 * SECOND);
    }
    let mut targets: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (_, pair) in node.all_sent().filter(|(_, pair)| pair.remote.ip() != at(THEIRS).ip()) {
        *targets.entry(pair.remote.ip()).or_default() += 1;
    }
    // At a time, and as many again that were only heard.
    assert!(targets.len() <= 2 * CANDIDATES_MAX, "{} targets", targets.len());
    assert!(targets.len() >= CANDIDATES_MAX - 1, "{} targets", targets.len());
    // What came from an address may be answered.
    let most = targets.values().max().copied().unwrap_or_default();
    assert!(most <= STRANGER_PROBES_MAX as usize + 100, "{most}");
    assert!(node.peak() <= PROBES_PER_S);
}

#[test]
fn an_address_that_answers_is_no_stranger_any_more() {
    let there = at("198.51.100.7:443");
    let mut node = Node::new(1);
    node.sessions[0].agent.add_candidates(&[there], node.now);
    let mut echoes = 0;
    for _ in 0..100 {
        node.now += 20 * SECOND;
        node.sessions[0].agent.handle_timeout(node.now);
        while let Some((path, probe)) = node.sessions[0].agent.poll_transmit() {
            if let (true, Probe::Ping { token }) = (path == Path::direct(there), probe) {
                echoes += 1;
                node.sessions[0].agent.handle_probe(path, Probe::Pong { token }, node.now);
            }
        }
    }
    assert!(echoes > 2 * STRANGER_PROBES_MAX, "{echoes}");
}
