//! The agent of one session: proves paths, watches the one in use, chooses.

mod choice;
mod doubt;
mod echo;
mod guess;
mod reach;
mod size;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use self::echo::RETRY_AFTER;
use self::guess::NAT_TOLD;
use self::size::Size;
use crate::budget::{Budget, Share};
use crate::event::{Event, Probe, Reason};
use crate::keepalive::KEEPALIVE_DEFAULT;
use crate::punch::Punch;
use crate::strangers::Strangers;
use crate::tokens::Tokens;
use crate::{Nat, PACKET_MAX, PACKET_MIN, Pair, Path, Whereabouts, usable};

/// A proven path through a relay is echoed at least this often, so that one which does not forward is
/// found out in time. A direct one is at first, and then less and less, to keep the NAT's mapping.
const KEEP_WARM: Duration = KEEPALIVE_DEFAULT;
/// Either is echoed again after this while it does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A path whose pings went unanswered for this long is no path any more.
const STALE: Duration = Duration::from_secs(10);
/// A path's round-trip time is the least of so many echoes, so that one stall does not make it seem
/// slow.
const RTT_SAMPLES: usize = 4;

/// Another path under the session's packets while the one in use is silent.
#[derive(Debug, Clone, Copy)]
struct Trial {
    path: Path,
    /// On our own account, or until when on the other side's word.
    until: Option<Instant>,
}

/// A ping that awaits its echo.
#[derive(Debug, Clone, Copy)]
struct Ping {
    token: u64,
    sent: Instant,
    /// Sent during a silence: its echo says more of the silence than of the path's length.
    doubted: bool,
}

#[derive(Debug, Clone)]
struct State {
    proven: bool,
    rtt: Duration,
    heard: Option<Instant>,
    echoed: Option<Instant>,
    /// When the first ping went out that nothing was echoed after.
    asked: Option<Instant>,
    pings: u32,
    /// Echoes in a row since it was proven or taken into use.
    echoes: u32,
    /// When the newest ping went out, echoed or not.
    pinged: Option<Instant>,
    retry_after: Duration,
    next_ping: Option<Instant>,
    outstanding: VecDeque<Ping>,
    samples: VecDeque<Duration>,
    /// The other side switched to it, before it was proven to us.
    use_epoch: Option<u64>,
    died: Option<Instant>,
    held_until: Option<Instant>,
    /// It was proven before.
    known: bool,
    unpaid: bool,
    size: Size,
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            proven: false,
            rtt: Duration::from_secs(1),
            heard: None,
            echoed: None,
            asked: None,
            pings: 0,
            echoes: 0,
            pinged: None,
            retry_after: RETRY_AFTER,
            next_ping: Some(now),
            outstanding: VecDeque::new(),
            samples: VecDeque::new(),
            use_epoch: None,
            died: None,
            held_until: None,
            known: false,
            unpaid: false,
            size: Size::new(),
        }
    }

    fn measure(&mut self, sample: Duration, doubted: bool) {
        if doubted && self.samples.back().is_some_and(|last| *last < sample) {
            return;
        }
        if self.samples.len() == RTT_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.rtt = self.samples.iter().copied().min().unwrap_or(sample);
    }

    /// From one echo to the next ping. A new path is asked more often: what was said on it, such as
    /// that it is in use, is said again with each ping.
    fn rest(&self, path: Path, keepalive: Duration) -> Duration {
        match path {
            Path::Relay(_) => KEEP_WARM.min(keepalive),
            Path::Direct(_) => {
                let doubled = 2u32.saturating_pow(self.echoes.saturating_sub(1));
                KEEP_WARM.saturating_mul(doubled).min(keepalive)
            }
        }
    }
}

/// Knows and chooses the paths of one session. See the crate's page for how to drive it.
#[derive(Debug)]
pub struct Agent {
    controlling: bool,
    tokens: Tokens,
    epoch: u64,
    /// The switch that counts was ours, so the other side must hear of it.
    announces: bool,
    direct_allowed: bool,
    /// Between pings on a direct path that answers.
    keepalive: Duration,
    paths: BTreeMap<Path, State>,
    selected: Option<Path>,
    suspect: Option<Instant>,
    punch: Punch,
    /// When unknown addresses were taken in while a direct path stood.
    strays: VecDeque<Instant>,
    /// When candidates made entries of the NAT's table.
    entries: VecDeque<Instant>,
    share: Share,
    strangers: Strangers,
    whereabouts: Whereabouts,
    /// Where a relay sees the other node.
    peer_ip: Option<IpAddr>,
    /// When to say next what our NAT does, and how often still.
    tell_nat_at: Option<(Instant, u32)>,
    trial: Option<Trial>,
    /// How large this side's packets are, and the other's as it said last.
    packets: u16,
    peer_packets: u16,
    /// How large packets may be, as the caller was told.
    packet_max: u16,
    /// When the other side was sent echoes of sizes.
    measured: VecDeque<Instant>,
    transmits: VecDeque<(Path, Probe)>,
    events: VecDeque<Event>,
}

impl Agent {
    /// An agent without paths. `controlling` is true on exactly one side; `seed` makes its tokens
    /// unguessable. Its probes come out of a budget of its own until [`Self::share`] is called.
    #[must_use]
    pub fn new(controlling: bool, seed: u64) -> Self {
        Self {
            controlling,
            tokens: Tokens::new(seed),
            epoch: 0,
            announces: false,
            direct_allowed: false,
            keepalive: KEEPALIVE_DEFAULT,
            paths: BTreeMap::new(),
            selected: None,
            suspect: None,
            punch: Punch::new(controlling),
            strays: VecDeque::new(),
            entries: VecDeque::new(),
            share: Budget::default().share(),
            strangers: Strangers::default(),
            whereabouts: Whereabouts::default(),
            peer_ip: None,
            tell_nat_at: None,
            trial: None,
            packets: PACKET_MIN,
            peer_packets: PACKET_MIN,
            packet_max: PACKET_MAX,
            measured: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes part in the budget that all sessions of the node have in common.
    pub fn share(&mut self, budget: &Budget) {
        self.share = budget.share();
    }

    /// The path in use.
    #[must_use]
    pub const fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// Round-trip time of a path, as its echoes measured it.
    #[must_use]
    pub fn rtt(&self, path: Path) -> Option<Duration> {
        self.paths.get(&path).filter(|s| s.proven).map(|s| s.rtt)
    }

    /// Whether a path answers its echoes.
    #[must_use]
    pub fn is_proven(&self, path: Path) -> bool {
        self.paths.get(&path).is_some_and(|s| s.proven)
    }

    /// Since when a path has not answered although it was asked; never, if it answers.
    #[must_use]
    pub fn silent_since(&self, path: Path) -> Option<Instant> {
        self.paths.get(&path)?.asked
    }

    /// A relay now carries the session. The first one is used at once, unproven, since the
    /// session begins on it.
    pub fn add_relay(&mut self, relay: u32, now: Instant) {
        let path = Path::Relay(relay);
        self.paths.insert(path, State::new(now));
        if self.selected.is_none() {
            self.select(path, Reason::First, true);
        }
        self.handle_timeout(now);
    }

    /// A relay no longer carries the session.
    pub fn remove_relay(&mut self, relay: u32, now: Instant) {
        self.remove(Path::Relay(relay), now);
    }

    /// Addresses at which the other node says it may be reached. Unusable ones and those beyond
    /// [`CANDIDATES_MAX`] are ignored.
    pub fn add_candidates(&mut self, addrs: &[SocketAddr], now: Instant) {
        for addr in addrs {
            self.add_pair(Pair::data(*addr), now);
        }
        self.handle_timeout(now);
    }

    /// Allows or forbids direct paths. Forbidding one in use moves the session to a relay.
    pub fn set_direct_allowed(&mut self, allowed: bool, now: Instant) {
        if allowed && !self.direct_allowed {
            for (path, state) in &mut self.paths {
                if matches!(path, Path::Direct(_)) && !state.proven {
                    state.pings = 0;
                    state.retry_after = RETRY_AFTER;
                    state.next_ping = Some(now);
                }
            }
        }
        if allowed && !self.direct_allowed && self.punch.own != Nat::default() {
            self.tell_nat_at = Some((now, NAT_TOLD));
        }
        self.direct_allowed = allowed;
        self.handle_timeout(now);
    }

    /// How often this node's NAT must be reminded of a path: [`crate::Timer::keepalive`].
    pub fn set_keepalive(&mut self, keepalive: Duration, now: Instant) {
        self.keepalive = keepalive;
        for (path, state) in &mut self.paths {
            if let (true, None, Some(echoed)) = (state.proven, state.asked, state.echoed) {
                let due = echoed + state.rest(*path, keepalive);
                state.next_ping = state.next_ping.map(|at| at.min(due));
            }
        }
        self.handle_timeout(now);
    }

    /// How a relay of this node's own choosing sees the other node: the only address at which
    /// ports are guessed. Port 0: the relay does not know where UDP would reach it.
    pub fn set_peer_address(&mut self, address: SocketAddr, now: Instant) {
        self.peer_ip = Some(address.ip());
        if usable(&address) {
            self.punch.peer_address = Some(address);
            self.add_pair(Pair::data(address), now);
            for (path, state) in &mut self.paths {
                let there = matches!(path, Path::Direct(pair) if pair.remote.ip() == address.ip());
                if there && state.next_ping.is_none() {
                    state.next_ping = Some(now);
                }
            }
        }
        self.handle_timeout(now);
    }

    /// A relay waits for payment for the session's packets, or does no more. Such a path is left
    /// for one that is paid for, but it is not dead.
    pub fn set_unpaid(&mut self, relay: u32, unpaid: bool, now: Instant) {
        if let Some(state) = self.paths.get_mut(&Path::Relay(relay)) {
            state.unpaid = unpaid;
        }
        self.handle_timeout(now);
    }

    /// Where this node is: decides which of the addresses that the other node names are probed.
    pub fn set_whereabouts(&mut self, whereabouts: Whereabouts, now: Instant) {
        self.whereabouts = whereabouts;
        self.handle_timeout(now);
    }

    /// This node's own addresses changed, or it slept: every path is to be asked at once.
    pub fn handle_local_change(&mut self, now: Instant) {
        for state in self.paths.values_mut() {
            if !state.proven {
                state.pings = 0;
                state.retry_after = RETRY_AFTER;
            }
            state.next_ping = Some(now);
            if state.proven {
                state.size.begin(now);
            }
        }
        self.strangers.renew();
        self.handle_timeout(now);
    }

    /// A probe arrived and its seal was right. Hearing it on an unknown address makes that
    /// address a candidate (peer-reflexive, RFC 8445).
    pub fn handle_probe(&mut self, from: Path, probe: Probe, now: Instant) {
        if !self.paths.contains_key(&from) {
            let Path::Direct(pair) = from else { return };
            if self.takes_in(probe, now) {
                self.make_room();
                self.add_pair(pair, now);
            }
        }
        if let Some(state) = self.paths.get_mut(&from) {
            state.heard = Some(now);
        }
        if let Path::Direct(pair) = from {
            self.strangers.heard(pair.remote.ip());
        }
        match probe {
            Probe::Ping { token } => self.handle_ping(from, token, now),
            Probe::Pong { token } => self.handle_pong(from, token, now),
            Probe::Use { epoch } => self.handle_use(from, epoch, now),
            Probe::Guess { round, guess } => {
                // Sent through a relay, which sees the other node too.
                if matches!(from, Path::Relay(_)) && self.direct_allowed {
                    let draw = self.tokens.draw();
                    self.punch.handle_guess(round, guess, now, draw);
                }
            }
            Probe::Nat { mapping, filtering } => {
                self.punch.peer = Some(Nat { mapping, filtering, allocator: None });
            }
            Probe::Trial { epoch } => self.handle_trial(from, epoch, now),
            Probe::Measure { token, size, packets } => {
                self.handle_measure(from, token, (size, packets), now);
            }
            Probe::Measured { token, size } => self.handle_measured(token, size, now),
        }
        self.handle_timeout(now);
    }

    /// Sends due pings and takes a better path if there is one.
    pub fn handle_timeout(&mut self, now: Instant) {
        for state in self.paths.values_mut() {
            state.held_until = state.held_until.filter(|until| *until > now);
            if state.proven && state.asked.is_some_and(|at| at + STALE <= now) {
                state.proven = false;
                state.pings = 0;
                state.size.stop();
            }
        }
        let over = |t: Trial| t.until.is_some_and(|until| until <= now) || !self.may_probe(t.path);
        if self.trial.is_some_and(over) {
            self.end_trial();
        }
        let due: Vec<Path> = self
            .paths
            .iter()
            .filter(|(path, s)| self.may_probe(**path) && s.next_ping.is_some_and(|at| at <= now))
            .map(|(path, _)| *path)
            .collect();
        for path in due {
            self.ping(path, now);
        }
        self.tell_nat(now);
        self.advance_punch(now);
        self.measure(now);
        self.withdraw(now);
        self.leave_narrow(now);
        if self.controlling {
            self.improve(now);
        }
        self.limit();
    }

    /// The next probe to seal and send.
    pub fn poll_transmit(&mut self) -> Option<(Path, Probe)> {
        self.transmits.pop_front()
    }

    /// The next thing to act on.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Agent::handle_timeout`] is next due, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let ping = self
            .paths
            .iter()
            .filter(|(p, _)| self.may_probe(**p))
            .filter_map(|(_, s)| s.next_ping)
            .min()
            .map(|at| (at, "ping"));
        let hold = self
            .paths
            .values()
            .filter(|s| s.proven)
            .filter_map(|s| s.held_until)
            .min()
            .map(|at| (at, "hold-down over"));
        let measure = self
            .paths
            .iter()
            .filter(|(path, s)| s.proven && self.may_probe(**path))
            .filter_map(|(_, s)| s.size.due())
            .min()
            .map(|at| (at, "measure"));
        let punch = self.punch.poll_timeout().map(|at| (at, "guess"));
        let tell = self.tell_nat_at.filter(|_| self.direct_allowed).map(|(at, _)| (at, "tell"));
        let lent =
            self.trial.and_then(|t| t.until).map(|at| (at, "the other side's trial is over"));
        [ping, hold, measure, punch, tell, lent].into_iter().flatten().min()
    }
}
