//! The NAT's timer: how it is measured, and how often paths are kept open by what is known of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sluice_path::{
    KEEPALIVE_MAX, KEEPALIVE_MIN, Keepalive, Question, SocketId, Timer, TimerSurvey,
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// A NAT that forgets a socket's mapping after a while, and relays behind it that answer at once.
struct World {
    forgets_after: Duration,
    /// One packet in this many is lost; 0: none.
    loss: u64,
    /// Relays that do not answer.
    dead: Vec<usize>,
    /// The fresh socket is seen at another address than the data socket.
    two_addresses: bool,
    sent: u64,
    used: BTreeMap<SocketId, Instant>,
    questions: usize,
}

impl World {
    fn new(forgets_after: Duration) -> Self {
        let (loss, dead, two_addresses) = (0, Vec::new(), false);
        let (sent, used, questions) = (0, BTreeMap::new(), 0);
        Self { forgets_after, loss, dead, two_addresses, sent, used, questions }
    }

    fn is_lost(&mut self) -> bool {
        // Spread over the packets, or every try of one question would meet the same fate.
        self.sent += 1;
        let drawn = self.sent.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        self.loss != 0 && drawn.is_multiple_of(self.loss)
    }

    fn public(&self, socket: SocketId) -> SocketAddr {
        let second = Ipv4Addr::new(203, 0, 113, 2);
        let ip = if self.two_addresses && socket != SocketId::DATA { second } else { PUBLIC };
        SocketAddr::new(ip.into(), 40_000 + socket.0 as u16)
    }

    /// What the question brings, and for which token.
    fn answer(&mut self, question: Question, now: Instant) -> Option<SocketAddr> {
        self.questions += 1;
        if self.is_lost() {
            return None;
        }
        self.used.insert(question.socket, now);
        let from = self.public(question.socket);
        let to = SocketAddr::new(from.ip(), question.answer_to.unwrap_or(from.port()));
        let all = [SocketId::DATA, SocketId(1)];
        let there = all.into_iter().find(|socket| self.public(*socket) == to)?;
        let open = self.used.get(&there).is_some_and(|at| *at + self.forgets_after > now);
        let answers = !self.dead.contains(&question.relay) && !self.is_lost();
        (open && answers).then_some(from)
    }

    fn measure(&mut self, relays: usize) -> (Timer, bool, Duration) {
        let begin = start();
        let mut now = begin;
        let mut survey = TimerSurvey::new(relays, 7, now);
        while let Some(due) = survey.poll_timeout() {
            while let Some(question) = survey.poll_transmit() {
                if let Some(observed) = self.answer(question, now) {
                    survey.handle_answer(question.token, observed, now);
                }
            }
            now = now.max(survey.poll_timeout().unwrap_or(due));
            survey.handle_timeout(now);
            assert!(now < begin + s(24 * 3600), "it does not end");
        }
        (survey.timer(), survey.is_complete(), now - begin)
    }
}

#[test]
fn a_timer_is_measured_well_enough_that_few_keepalives_keep_a_mapping() {
    for seconds in [10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 600] {
        for relays in [1, 2] {
            let mut world = World::new(s(seconds));
            let (timer, complete, took) = world.measure(relays);
            assert!(complete && took < s(1200), "{seconds} s: {timer:?} after {took:?}");
            assert!(timer.kept < s(seconds), "{seconds} s: {timer:?}");
            assert!(timer.lost.is_none_or(|lost| lost >= s(seconds)), "{seconds} s: {timer:?}");
            let keepalive = timer.keepalive();
            assert!(keepalive < s(seconds), "{seconds} s: {keepalive:?}");
            let least = (s(seconds) / 2).min(KEEPALIVE_MAX);
            assert!(keepalive >= least, "{seconds} s: {keepalive:?} is often");
            assert!(world.questions < 100, "{seconds} s: {} questions", world.questions);
        }
    }
}

#[test]
fn a_nat_that_forgets_at_once_is_kept_open_as_often_as_is_allowed() {
    let (timer, complete, _) = World::new(s(3)).measure(2);
    assert!(complete);
    assert_eq!(timer.keepalive(), KEEPALIVE_MIN);
}

#[test]
fn lost_packets_are_not_taken_for_lost_mappings() {
    for seconds in [20, 30, 120, 300] {
        let mut world = World::new(s(seconds));
        world.loss = 4;
        let (timer, complete, _) = world.measure(2);
        assert!(complete, "{seconds} s: {timer:?}");
        let known = timer.kept < s(seconds) && timer.lost.is_none_or(|lost| lost >= s(seconds));
        assert!(known, "{seconds} s: {timer:?}");
    }
}

#[test]
fn a_dead_relay_costs_time_and_no_truth() {
    let mut world = World::new(s(120));
    world.dead = vec![1];
    let (timer, complete, _) = world.measure(2);
    assert!(complete);
    assert!(timer.kept >= s(90) && timer.kept < s(120), "{timer:?}");
}

#[test]
fn where_nothing_answers_or_an_answer_would_show_nothing_nothing_is_known() {
    let mut silent = World::new(s(120));
    silent.dead = vec![0, 1];
    let mut several = World::new(s(120));
    several.two_addresses = true;
    for mut world in [silent, several] {
        let (timer, complete, took) = world.measure(2);
        assert_eq!((timer, complete), (Timer::default(), false));
        assert!(took < s(600), "given up after {took:?}");
    }
    let (timer, complete, took) = World::new(s(120)).measure(0);
    assert_eq!((timer, complete, took), (Timer::default(), false, Duration::ZERO));
}

fn network(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, last))
}

const fn measured(kept: u64, lost: u64) -> Timer {
    Timer { kept: s(kept), lost: Some(s(lost)) }
}

#[test]
fn networks_are_remembered_and_not_measured_again_the_same_day() {
    let now = start();
    let mut keepalive = Keepalive::default();
    assert_eq!(keepalive.measure_at(), None, "nowhere is nothing to measure");
    keepalive.handle_network(network(1), now);
    assert_eq!(keepalive.measure_at(), Some(now));
    keepalive.handle_timer(measured(100, 120), true, now);
    keepalive.handle_network(network(2), now);
    assert_eq!((keepalive.timer(), keepalive.measure_at()), (Timer::default(), Some(now)));
    keepalive.handle_timer(measured(25, 30), true, now);
    keepalive.handle_network(network(1), now + s(60));
    assert_eq!(keepalive.timer(), measured(100, 120));
    assert!(keepalive.measure_at().is_some_and(|at| at > now + s(12 * 3600)));
    for other in 3..50 {
        keepalive.handle_network(network(other), now);
    }
    keepalive.handle_network(network(1), now);
    assert_eq!(keepalive.timer(), Timer::default(), "only so many are remembered");
}

#[test]
fn while_it_is_measured_what_was_known_counts_unless_more_is_known_already() {
    let now = start();
    let mut keepalive = Keepalive::default();
    keepalive.handle_network(network(1), now);
    keepalive.handle_timer(measured(100, 120), true, now);
    keepalive.handle_timer(Timer { kept: s(25), lost: None }, false, now);
    assert_eq!(keepalive.timer(), measured(100, 120));
    keepalive.handle_timer(Timer { kept: s(200), lost: None }, false, now);
    assert_eq!(keepalive.timer().kept, s(200));
    keepalive.handle_timer(measured(25, 30), true, now);
    assert_eq!(keepalive.timer(), measured(25, 30));
}

#[test]
fn a_lost_mapping_makes_keepalives_frequent_until_it_is_measured_anew() {
    let now = start();
    let mut keepalive = Keepalive::default();
    keepalive.handle_network(network(1), now);
    keepalive.handle_timer(measured(100, 120), true, now);
    keepalive.handle_lost(s(60), now);
    assert!(keepalive.timer().keepalive() <= s(15), "{:?}", keepalive.timer());
    let first = keepalive.measure_at().expect("it is on a network") - now;
    assert!(first > s(60) && first < s(3600), "{first:?}");
    keepalive.handle_timer(measured(100, 120), true, now);
    keepalive.handle_lost(s(60), now);
    let second = keepalive.measure_at().expect("it is on a network") - now;
    assert!(second > first, "a NAT that forgets now and then is measured less and less");
}

#[test]
fn a_path_that_dies_in_use_or_in_sleep_says_nothing_of_the_nat() {
    let now = start();
    let mut keepalive = Keepalive::default();
    keepalive.handle_network(network(1), now);
    keepalive.handle_timer(measured(100, 120), true, now);
    for idle in [0, 1, 10, 15, 3600] {
        keepalive.handle_lost(s(idle), now);
        assert_eq!(keepalive.timer(), measured(100, 120), "after {idle} s");
    }
}
