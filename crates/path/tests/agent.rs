//! The agent through its public face, in the order of a session's life.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_path::{Activity, Agent, CANDIDATES_MAX, Event, Kind, Path, Probe, Reason};

/// Two agents, and a network between them that answers at once or not at all.
struct Pair {
    tenant: Agent,
    provider: Agent,
    now: Instant,
    blocked: Vec<Path>,
    tenant_events: Vec<Event>,
    provider_events: Vec<Event>,
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

impl Pair {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Self {
        let mut pair = Self {
            tenant: Agent::new(true, 1),
            provider: Agent::new(false, 2),
            now: Instant::now(),
            blocked: Vec::new(),
            tenant_events: Vec::new(),
            provider_events: Vec::new(),
        };
        pair.tenant.add_relay(1, pair.now);
        pair.provider.add_relay(1, pair.now);
        pair
    }

    fn allow_direct(&mut self) {
        self.tenant.set_direct_allowed(true, self.now);
        self.provider.set_direct_allowed(true, self.now);
    }

    /// Carries probes both ways until `span` has passed, in steps of 5 ms.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now += 5 * MS;
            self.tenant.handle_timeout(self.now);
            self.provider.handle_timeout(self.now);
            for _ in 0..8 {
                self.carry();
            }
        }
    }

    fn carry(&mut self) {
        while let Some((path, probe)) = self.tenant.poll_transmit() {
            if !self.blocked.contains(&path) {
                self.provider.handle_probe(seen_from(path, 1), probe, self.now);
            }
        }
        while let Some((path, probe)) = self.provider.poll_transmit() {
            let path = seen_from(path, 2);
            if !self.blocked.contains(&path) {
                self.tenant.handle_probe(path, probe, self.now);
            }
        }
        self.tenant_events.extend(std::iter::from_fn(|| self.tenant.poll_event()));
        self.provider_events.extend(std::iter::from_fn(|| self.provider.poll_event()));
    }

    fn silence(&mut self, since: Instant) {
        let activity = Activity { unanswered_since: Some(since), pto: 20 * MS, outstanding: true };
        self.tenant.handle_activity(activity, self.now);
    }
}

/// The tenant is at port 1, the provider at port 2; both know the other's.
fn seen_from(path: Path, port: u16) -> Path {
    match path {
        Path::Direct(_) => Path::direct(addr(port)),
        Path::Relay(_) => path,
    }
}

#[test]
fn a_session_begins_on_its_relay_before_anything_is_proven() {
    let pair = Pair::new();
    assert_eq!(pair.tenant.selected(), Some(Path::Relay(1)));
    assert_eq!(pair.tenant.rtt(Path::Relay(1)), None);
}

#[test]
fn a_direct_path_is_taken_by_both_once_it_was_echoed() {
    let mut pair = Pair::new();
    pair.allow_direct();
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    pair.run(300 * MS);
    assert_eq!(pair.tenant.selected(), Some(Path::direct(addr(2))));
    assert_eq!(pair.provider.selected(), Some(Path::direct(addr(1))));
    let followed =
        Event::Selected { path: Path::direct(addr(1)), reason: Reason::Followed, old_dead: false };
    assert!(pair.provider_events.contains(&followed));
}

#[test]
fn an_address_that_does_not_answer_is_not_a_path() {
    let mut pair = Pair::new();
    pair.allow_direct();
    pair.blocked.push(Path::direct(addr(2)));
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    pair.run(Duration::from_secs(20));
    assert_eq!(pair.tenant.selected(), Some(Path::Relay(1)));
    assert_eq!(pair.tenant.rtt(Path::direct(addr(2))), None);
}

#[test]
fn nothing_is_sent_to_an_address_while_direct_paths_are_forbidden() {
    let mut pair = Pair::new();
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    for _ in 0..200 {
        pair.now += 5 * MS;
        pair.tenant.handle_timeout(pair.now);
        while let Some((path, _)) = pair.tenant.poll_transmit() {
            assert_eq!(path.kind(), Kind::Relayed);
        }
    }
}

#[test]
fn a_forged_echo_proves_nothing() {
    let mut pair = Pair::new();
    pair.allow_direct();
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    for token in 0..1000 {
        pair.tenant.handle_probe(Path::direct(addr(2)), Probe::Pong { token }, pair.now);
    }
    assert_eq!(pair.tenant.selected(), Some(Path::Relay(1)));
}

#[test]
fn a_silent_direct_path_is_left_for_the_relay_and_found_again() {
    let mut pair = Pair::new();
    pair.allow_direct();
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    pair.run(300 * MS);
    pair.blocked.push(Path::direct(addr(2)));
    pair.blocked.push(Path::direct(addr(1)));
    let since = pair.now;
    for _ in 0..20 {
        pair.silence(since);
        pair.carry();
        pair.run(20 * MS);
        if pair.tenant.selected() == Some(Path::Relay(1)) {
            break;
        }
    }
    assert_eq!(pair.tenant.selected(), Some(Path::Relay(1)));
    assert!(pair.now - since >= 250 * MS, "left too early");
    assert_eq!(pair.provider.selected(), Some(Path::Relay(1)), "the other side follows");
    pair.blocked.clear();
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.tenant.selected(), Some(Path::direct(addr(2))));
}

#[test]
fn a_stall_without_a_rival_that_echoes_changes_nothing() {
    let mut pair = Pair::new();
    pair.blocked.push(Path::Relay(1));
    let since = pair.now;
    for _ in 0..50 {
        pair.silence(since);
        pair.run(20 * MS);
    }
    assert_eq!(pair.tenant.selected(), Some(Path::Relay(1)));
}

#[test]
fn forbidding_direct_paths_moves_the_session_back() {
    let mut pair = Pair::new();
    pair.allow_direct();
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    pair.run(300 * MS);
    pair.tenant.set_direct_allowed(false, pair.now);
    pair.run(50 * MS);
    assert_eq!(pair.tenant.selected(), Some(Path::Relay(1)));
    assert_eq!(pair.provider.selected(), Some(Path::Relay(1)));
}

#[test]
fn a_stranger_can_name_only_so_many_addresses() {
    let mut pair = Pair::new();
    pair.allow_direct();
    let many: Vec<_> = (1..=5000).map(addr).collect();
    pair.tenant.add_candidates(&many, pair.now);
    let mut probed = BTreeSet::new();
    while let Some((path, _)) = pair.tenant.poll_transmit() {
        probed.insert(path);
    }
    assert!(probed.len() <= CANDIDATES_MAX + 1);
}

/// Pings that the tenant sends on its direct path within an hour in which nothing else happens.
/// Where two NATs map by destination, each ping makes another address.
#[test]
fn no_address_is_echoed_whose_packets_would_be_nobody_s() {
    let mut pair = Pair::new();
    pair.allow_direct();
    let mut belongs = BTreeSet::new();
    let mut echoed = 0;
    for port in 1000..1040 {
        pair.now += SECOND;
        let from = Path::direct(addr(port));
        pair.tenant.handle_probe(from, Probe::Ping { token: port.into() }, pair.now);
        while let Some(event) = pair.tenant.poll_event() {
            if let Event::Proven(there) = event {
                belongs.insert(Path::Direct(there));
            } else if let Event::Forgotten(there) = event {
                belongs.remove(&Path::Direct(there));
            }
        }
        while let Some((to, probe)) = pair.tenant.poll_transmit() {
            if let Probe::Pong { .. } = probe {
                echoed += 1;
                assert!(belongs.contains(&to), "{to:?} was echoed");
            } else if let Probe::Ping { token } = probe {
                // All of them answer, so that none makes room for another.
                pair.tenant.handle_probe(to, Probe::Pong { token }, pair.now);
            }
        }
    }
    assert_eq!((belongs.len(), echoed), (CANDIDATES_MAX, CANDIDATES_MAX));
}

fn pings_of_an_hour(pair: &mut Pair) -> usize {
    let end = pair.now + Duration::from_secs(3600);
    let mut pings = 0;
    while pair.now < end {
        pair.now += 100 * MS;
        pair.tenant.handle_timeout(pair.now);
        pair.provider.handle_timeout(pair.now);
        while let Some((path, probe)) = pair.tenant.poll_transmit() {
            pings +=
                usize::from(matches!(path, Path::Direct(_)) && matches!(probe, Probe::Ping { .. }));
            pair.provider.handle_probe(seen_from(path, 1), probe, pair.now);
        }
        pair.carry();
    }
    pings
}

#[test]
fn a_direct_path_is_echoed_as_often_as_the_nat_demands_and_one_by_relay_more_often() {
    let direct = Path::direct(addr(2));
    let mut pair = Pair::new();
    pair.allow_direct();
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    pair.run(300 * MS);
    assert_eq!(pair.tenant.selected(), Some(direct));
    let pings = pings_of_an_hour(&mut pair);
    assert!((200..=260).contains(&pings), "{pings} while nothing is known of the NAT");
    pair.tenant.set_keepalive(Duration::from_secs(240), pair.now);
    let pings = pings_of_an_hour(&mut pair);
    assert!((15..=20).contains(&pings), "{pings} for a NAT that remembers for long");
    pair.tenant.set_keepalive(Duration::from_secs(5), pair.now);
    let pings = pings_of_an_hour(&mut pair);
    assert!((700..=730).contains(&pings), "{pings} for one that forgets soon");
    let relay = pair.tenant.silent_since(Path::Relay(1));
    assert!(pair.tenant.is_proven(Path::Relay(1)) && relay.is_none());
}

#[test]
fn a_direct_path_in_use_is_echoed_often_however_long_the_nat_remembers() {
    let mut pair = Pair::new();
    pair.allow_direct();
    pair.tenant.set_keepalive(Duration::from_secs(240), pair.now);
    pair.tenant.add_candidates(&[addr(2)], pair.now);
    pair.run(300 * MS);
    pings_of_an_hour(&mut pair);
    let mut pings = 0;
    for _ in 0..60 {
        // A packet every second, which is answered.
        let activity =
            Activity { unanswered_since: Some(pair.now), pto: 20 * MS, outstanding: true };
        pair.tenant.handle_activity(activity, pair.now);
        while let Some((path, probe)) = pair.tenant.poll_transmit() {
            let direct = matches!(path, Path::Direct(_));
            pings += usize::from(direct && matches!(probe, Probe::Ping { .. }));
            pair.provider.handle_probe(seen_from(path, 1), probe, pair.now);
        }
        pair.carry();
        pair.tenant.handle_activity(Activity { unanswered_since: None, ..activity }, pair.now);
        pair.run(Duration::from_secs(1));
    }
    assert!((3..=6).contains(&pings), "{pings} in a minute");
}
