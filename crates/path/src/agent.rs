//! The agent of one session: proves paths, watches the one in use, chooses.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::budget::{Budget, Purpose, Share, Spent};
use crate::keepalive::KEEPALIVE_DEFAULT;
use crate::punch::{Out, Punch};
use crate::strangers::Strangers;
use crate::tokens::Tokens;
use crate::{
    CANDIDATES_MAX, Filtering, Guess, Mapping, Nat, Opened, Pair, Path, Rank, SocketId,
    Whereabouts, usable,
};

/// Waits between the first pings to an unproven path; the last one is repeated.
const FIRST_PINGS_MS: [u64; 6] = [0, 20, 50, 100, 200, 400];
/// An address that does not answer this many pings is left alone ..
const PINGS_MAX: u32 = 14;
/// .. for this long, each time twice as long ..
const RETRY_AFTER: Duration = Duration::from_secs(4);
/// .. up to this: whoever names a stranger's address must not trouble the stranger for long ..
const RETRY_MAX: Duration = Duration::from_secs(64);
/// .. and then is sent so many.
const RETRY_PINGS: u32 = 4;
/// The same of an address that neither echoed before nor is what a relay sees: it gets no more than
/// [`STRANGER_PROBES_MAX`](crate::STRANGER_PROBES_MAX) in all, half of them at once.
const STRANGER_PINGS: (u32, u32) = (8, 2);
/// A path for which the NAT's table has no room is tried again after this.
const NO_ROOM: Duration = Duration::from_secs(30);
/// A proven path through a relay is echoed at least this often, so that one which does not forward is
/// found out in time. A direct one is at first, and then less and less, to keep the NAT's mapping.
const KEEP_WARM: Duration = KEEPALIVE_DEFAULT;
/// Either is echoed again after this while it does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A path whose pings went unanswered for this long is no path any more.
const STALE: Duration = Duration::from_secs(10);
/// An address or relay that carried echoes in this session before is asked again after this, so
/// that it is found soon after it heals ..
const KNOWN_RETRY: Duration = Duration::from_secs(3);
/// .. for as long as this after it died.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Packets take another way on the other side's word for this long after it was last said.
const LENT: Duration = Duration::from_millis(500);
/// A switch is said again with the pings on the new path, the first of them after this.
const SAY_AGAIN: Duration = Duration::from_millis(200);
/// A path is suspect, and others are tried, after a silence of so many probe timeouts ..
const SUSPECT_PTO: u32 = 2;
/// .. and left for another after so many ..
const DEAD_PTO: u32 = 3;
/// .. but for none shorter than this: a stall of 200 ms, a round trip and a delayed acknowledgement
/// are no reason to leave.
const SILENCE_MIN: Duration = Duration::from_millis(300);
/// Whatever arrives on a path: one that answers none of so many pings is left too. With a fifth of
/// all packets lost each way that happens to one keepalive in 500.
const DEAF_PINGS: u32 = 6;
/// A suspect path and its rivals are pinged again after this at the earliest ..
const SUSPECT_PING: Duration = Duration::from_millis(40);
/// .. later after this part of the time for which it has been suspect ..
const SUSPECT_PART: u32 = 8;
/// .. and after this at the latest.
const SUSPECT_PING_MAX: Duration = Duration::from_secs(1);
/// How long a path that died stays out, the first time ..
const HOLD_DOWN: Duration = Duration::from_secs(2);
/// .. and when it died again, so that it is tried no more often than this ..
const FLAP_HOLD: Duration = Duration::from_secs(30);
/// .. until it has lived for this long.
const FLAP_SPAN: Duration = Duration::from_secs(120);
/// Unanswered pings remembered for a path: a suspect path's are more than a second's.
const OUTSTANDING_MAX: usize = 16;
/// While a direct path stands, so many unknown addresses of the other node are pinged ..
const STRAYS_MAX: usize = 4;
/// .. within this: where both NATs map by destination, each ping makes another address.
const STRAYS_SPAN: Duration = Duration::from_secs(10);
/// A session's candidates make so many entries of the NAT's table ..
const ENTRIES_MAX: usize = 64;
/// .. within this, the time for which they may stand.
const ENTRIES_SPAN: Duration = Duration::from_secs(300);
/// What this node's NAT does is said so often ..
const NAT_TOLD: u32 = 4;
/// .. this far apart: some may be lost.
const TELL_NAT_AGAIN: Duration = Duration::from_millis(400);
/// A path's round-trip time is the least of so many echoes, so that one stall does not make it seem
/// slow.
const RTT_SAMPLES: usize = 4;

/// What agents say to one another, sealed by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Asks for an echo.
    Ping {
        /// To be repeated in the answer.
        token: u64,
    },
    /// The echo.
    Pong {
        /// Of the ping.
        token: u64,
    },
    /// The sender now sends on the path that this arrives on.
    Use {
        /// Counts the switches of both sides; a higher one wins.
        epoch: u64,
    },
    /// The sender opened sockets whose public ports may be these.
    Guess {
        /// Counts the sender's rounds: said more than once, it is heard once.
        round: u32,
        /// The ports.
        guess: Guess,
    },
    /// What the sender's NAT does.
    Nat {
        /// Its mapping, if that is known.
        mapping: Option<Mapping>,
        /// Its filtering.
        filtering: Option<Filtering>,
    },
    /// The path in use is silent to the sender, whose packets take this one until it answers.
    Trial {
        /// Of the last switch.
        epoch: u64,
    },
}

/// Why another path was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The session's first path.
    First,
    /// It ranks before the old one.
    Better,
    /// The old one was silent although something was outstanding.
    Silent,
    /// The old one is gone: its relay or its permission.
    Withdrawn,
    /// The old one's relay waits for payment.
    Unpaid,
    /// The other side switched.
    Followed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first path",
            Self::Better => "a better path was proven",
            Self::Silent => "the old path fell silent",
            Self::Withdrawn => "the old path was withdrawn",
            Self::Unpaid => "the old path's relay waits for payment",
            Self::Followed => "the other side switched",
        })
    }
}

/// What the caller must act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Packets go here from now on.
    Selected {
        /// The path.
        path: Path,
        /// Why.
        reason: Reason,
        /// Whether the old path is thought dead, so that its flight is lost.
        old_dead: bool,
    },
    /// Packets go here for now: the path in use is silent, to us or to the other side. Nothing is
    /// decided.
    Tried {
        /// The path.
        path: Path,
        /// The silence is ours: what is in flight may be lost.
        ours: bool,
    },
    /// Packets go on the path in use again.
    Returned {
        /// The path in use.
        path: Path,
    },
    /// QUIC from this address at this socket belongs to the session.
    Proven(Pair),
    /// It no longer does.
    Forgotten(Pair),
    /// Open fresh sockets, then call [`Agent::sockets_opened`], with fewer or none if there is no
    /// room.
    OpenSockets {
        /// How many.
        count: u16,
        /// Whether a relay must be asked how it sees the first of them.
        observe: bool,
    },
    /// A socket that was opened is not needed any more.
    CloseSocket(SocketId),
}

/// What the data socket saw on the path in use, sampled by the caller.
#[derive(Debug, Clone, Copy)]
pub struct Activity {
    /// When the first packet was sent that nothing has arrived after.
    pub unanswered_since: Option<Instant>,
    /// QUIC's probe timeout (RFC 9002, section 6.2).
    pub pto: Duration,
    /// Whether that packet, or one after it, demands an answer.
    pub outstanding: bool,
}

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
        }
    }
}

impl State {
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

    fn add_pair(&mut self, pair: Pair, now: Instant) {
        let direct = self.paths.keys().filter(|p| matches!(p, Path::Direct(_))).count();
        if usable(&pair.remote) && direct < CANDIDATES_MAX {
            self.paths.entry(Path::Direct(pair)).or_insert_with(|| State::new(now));
        }
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

    /// What is known of this node's own NAT.
    pub fn set_nat(&mut self, nat: Nat, now: Instant) {
        if nat != self.punch.own {
            self.punch.own = nat;
            self.tell_nat_at = Some((now, NAT_TOLD));
        }
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

    /// Tells the other node, through the relays, what this node's NAT does.
    fn tell_nat(&mut self, now: Instant) {
        let Some((at, left)) = self.tell_nat_at.filter(|_| self.direct_allowed) else { return };
        if at > now {
            return;
        }
        self.tell_nat_at = (left > 1).then(|| (now + TELL_NAT_AGAIN, left - 1));
        let Nat { mapping, filtering, .. } = self.punch.own;
        let relays = self.paths.keys().filter(|p| matches!(p, Path::Relay(_)));
        let told = relays.map(|path| (*path, Probe::Nat { mapping, filtering }));
        self.transmits.extend(told);
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

    /// The sockets that [`Event::OpenSockets`] asked for, or fewer.
    pub fn sockets_opened(&mut self, opened: &[Opened], now: Instant) {
        self.with_punch(|punch, out| punch.sockets_opened(opened, now, out));
        self.handle_timeout(now);
    }

    fn with_punch(&mut self, act: impl FnOnce(&mut Punch, &mut Out<'_>)) {
        let relays: Vec<Path> =
            self.paths.keys().copied().filter(|p| matches!(p, Path::Relay(_))).collect();
        let mut out = Out {
            share: &mut self.share,
            tokens: &mut self.tokens,
            transmits: &mut self.transmits,
            events: &mut self.events,
            relays: &relays,
        };
        act(&mut self.punch, &mut out);
    }

    /// Guesses ports while there is no direct path but may be one.
    fn advance_punch(&mut self, now: Instant) {
        if self.direct_allowed && !self.has_direct() && self.may_guess() {
            self.punch.start(now);
            self.with_punch(|punch, out| punch.handle_timeout(now, out));
            return;
        }
        let in_use: Vec<SocketId> = self.paths.iter().filter(|(_, s)| s.proven).fold(
            Vec::new(),
            |mut sockets, (path, _)| {
                if let Path::Direct(pair) = path {
                    sockets.push(pair.socket);
                }
                sockets
            },
        );
        let keep = |socket| in_use.contains(&socket);
        self.punch.stop(keep, now, &self.share, &mut self.events);
        self.forget_closed();
    }

    /// Whether the other node's address is where ports may be guessed: not in this household.
    fn may_guess(&self) -> bool {
        self.punch.peer_address.is_none_or(|address| !self.whereabouts.is_near(address.ip()))
    }

    fn has_direct(&self) -> bool {
        self.paths.iter().any(|(p, s)| s.proven && matches!(p, Path::Direct(_)))
    }

    /// Drops the paths of sockets that are being closed.
    fn forget_closed(&mut self) {
        let closed: Vec<SocketId> = self
            .events
            .iter()
            .filter_map(|e| if let Event::CloseSocket(s) = e { Some(*s) } else { None })
            .collect();
        if closed.is_empty() {
            return;
        }
        let gone = |p: &Path| matches!(p, Path::Direct(pair) if closed.contains(&pair.socket));
        let paths: Vec<Path> = self.paths.keys().copied().filter(|p| gone(p)).collect();
        for path in paths {
            self.paths.remove(&path);
            if let Path::Direct(pair) = path {
                self.events.push_back(Event::Forgotten(pair));
            }
        }
    }

    /// This node's own addresses changed, or it slept: every path is to be asked at once.
    pub fn handle_local_change(&mut self, now: Instant) {
        for state in self.paths.values_mut() {
            if !state.proven {
                state.pings = 0;
                state.retry_after = RETRY_AFTER;
            }
            state.next_ping = Some(now);
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
        }
        self.handle_timeout(now);
    }

    /// Answers, if that may be. What is not answered now comes again.
    fn handle_ping(&mut self, from: Path, token: u64, now: Instant) {
        if !self.may_probe(from) {
            return;
        }
        // An echo from there is worth more than ours, if but one probe may go there.
        if self.has_one_left(from, now) {
            self.ping(from, now);
        } else if self.admit(from, now).is_ok() {
            self.transmits.push_back((from, Probe::Pong { token }));
        }
        let Some(state) = self.paths.get_mut(&from) else { return };
        // What pings us may be reached: do not wait for our own schedule. One ping for a ping,
        // since anybody's address may stand on it.
        if !state.proven && state.next_ping.is_none_or(|at| at > now + RETRY_AFTER) {
            state.next_ping = Some(now);
        }
        if let Path::Direct(pair) = from {
            self.events.push_back(Event::Proven(pair));
        }
    }

    /// Whether a stranger may be sent one probe, and was not asked for an echo just now.
    fn has_one_left(&self, path: Path, now: Instant) -> bool {
        let (Path::Direct(pair), Some(state)) = (path, self.paths.get(&path)) else { return false };
        !self.is_vouched(pair)
            && self.strangers.left(pair.remote.ip()) == 1
            && state.outstanding.back().is_none_or(|ping| ping.sent + ASK_AGAIN <= now)
    }

    /// Whether the unknown address of a probe becomes a candidate.
    fn takes_in(&mut self, probe: Probe, now: Instant) -> bool {
        if !self.has_direct() || matches!(probe, Probe::Use { .. }) {
            return true;
        }
        self.strays.retain(|at| *at + STRAYS_SPAN > now);
        let room = self.strays.len() < STRAYS_MAX;
        if room {
            self.strays.push_back(now);
        }
        room
    }

    /// An echo. It proves the path that its ping took, whichever way it came back itself: a NAT
    /// that maps by destination may answer from another address than was asked.
    fn handle_pong(&mut self, from: Path, token: u64, now: Instant) {
        let asked = |state: &State| state.outstanding.iter().any(|p| p.token == token);
        let took = if self.paths.get(&from).is_some_and(asked) {
            from
        } else if let Path::Direct(came) = from {
            let direct = self.paths.iter().filter(|(p, _)| matches!(p, Path::Direct(_)));
            let Some(path) = direct.filter(|(_, s)| asked(s)).map(|(p, _)| *p).next() else {
                return;
            };
            if self.paths.contains_key(&from) {
                self.events.push_back(Event::Proven(came));
            }
            path
        } else {
            return;
        };
        let Some(state) = self.paths.get_mut(&took) else { return };
        let Some(at) = state.outstanding.iter().position(|p| p.token == token) else { return };
        let from = took;
        let ping = state.outstanding[at];
        state.outstanding.drain(..=at);
        state.measure(now.saturating_duration_since(ping.sent), ping.doubted);
        if !state.proven {
            state.proven = true;
            state.echoes = 0;
            if let Path::Direct(pair) = from {
                self.events.push_back(Event::Proven(pair));
            }
        }
        if let Path::Direct(pair) = from {
            self.strangers.echoed(pair.remote.ip());
        }
        state.known = true;
        state.echoed = Some(now);
        state.asked = None;
        state.pings = 0;
        state.retry_after = RETRY_AFTER;
        state.echoes = state.echoes.saturating_add(1);
        state.next_ping = Some(now + state.rest(from, self.keepalive));
        let use_epoch = state.use_epoch.take();
        // What else arrives there may still come from a side that hears nothing of us.
        if self.selected == Some(from) {
            self.answered();
        }
        if let Some(epoch) = use_epoch {
            self.handle_use(from, epoch, now);
        }
    }

    /// The path in use answered.
    fn answered(&mut self) {
        self.suspect = None;
        if self.trial.is_some_and(|t| t.until.is_none()) {
            self.end_trial();
            if let Some(selected) = self.selected {
                self.announce(selected);
            }
        }
    }

    fn end_trial(&mut self) {
        if self.trial.take().is_some()
            && let Some(path) = self.selected
        {
            self.events.push_back(Event::Returned { path });
        }
    }

    /// Sends on the best other path while the one in use is silent, so that no time is lost if it
    /// is dead. One that has echoed since comes before one that has not.
    fn try_out(&mut self, selected: Path, began: Instant, now: Instant) {
        let echoed = |path: Path| self.paths[&path].echoed.is_some_and(|at| at >= began);
        let tried = self.trial.filter(|t| t.until.is_none()).map(|t| t.path);
        if tried.is_some_and(|path| self.is_proven(path) && echoed(path)) {
            return;
        }
        let rival = self
            .best(now, |p| p != selected && echoed(p))
            .or_else(|| self.best(now, |p| p != selected));
        let Some(path) = rival.filter(|p| Some(*p) != tried) else { return };
        self.trial = Some(Trial { path, until: None });
        self.events.push_back(Event::Tried { path, ours: true });
        for _ in 0..3 {
            self.transmits.push_back((path, Probe::Trial { epoch: self.epoch }));
        }
    }

    /// Answers where the other side sends while it doubts the path in use.
    fn handle_trial(&mut self, from: Path, epoch: u64, now: Instant) {
        let ours = self.trial.is_some_and(|t| t.until.is_none());
        let elsewhere = self.selected.is_some_and(|selected| selected != from);
        if ours || !elsewhere || epoch < self.epoch || !self.may_probe(from) {
            return;
        }
        if !self.is_proven(from) {
            return;
        }
        let before = self.trial.replace(Trial { path: from, until: Some(now + LENT) });
        if before.is_none_or(|t| t.path != from) {
            self.events.push_back(Event::Tried { path: from, ours: false });
        }
    }

    /// Follows the other side, but only to where it was echoed: it may be a stranger's address.
    fn handle_use(&mut self, from: Path, epoch: u64, now: Instant) {
        if self.selected == Some(from)
            && epoch >= self.epoch
            && self.trial.is_some_and(|t| t.until.is_some())
        {
            self.end_trial();
        }
        if epoch < self.epoch || (epoch == self.epoch && self.controlling) {
            return;
        }
        if !self.may_probe(from) {
            // Not there: the other side must come back to where we are.
            if let Some(selected) = self.selected.filter(|p| self.may_probe(*p)) {
                self.epoch = epoch.saturating_add(1);
                self.announces = true;
                self.announce(selected);
            }
            return;
        }
        let Some(state) = self.paths.get_mut(&from) else { return };
        if !state.proven && self.selected != Some(from) {
            if state.use_epoch.is_none() && state.outstanding.is_empty() {
                state.next_ping = Some(now);
            }
            state.use_epoch = Some(epoch);
            return;
        }
        self.epoch = epoch;
        self.announces = false;
        if self.selected == Some(from) {
            return;
        }
        // The other side must have had a reason to leave a path that ranks before this one.
        let left = self.selected.filter(|old| !self.rank(from, now).beats(&self.rank(*old, now)));
        if let Some(old) = left {
            self.mark_dead(old, now);
        }
        self.select(from, Reason::Followed, left.is_some());
    }

    /// Forgets the candidate that was heard of longest ago, if there is no room for another.
    fn make_room(&mut self) {
        let direct = self.paths.iter().filter(|(p, _)| matches!(p, Path::Direct(_)));
        if direct.clone().count() < CANDIDATES_MAX {
            return;
        }
        let idle = direct.filter(|(p, s)| !s.proven && self.selected != Some(**p));
        let oldest = idle.min_by_key(|(_, s)| s.heard).map(|(path, _)| *path);
        if let Some(path @ Path::Direct(pair)) = oldest {
            self.paths.remove(&path);
            self.events.push_back(Event::Forgotten(pair));
        }
    }

    /// What the socket saw on the path in use; call it every few tens of milliseconds while
    /// packets go out, and drain afterwards.
    pub fn handle_activity(&mut self, activity: Activity, now: Instant) {
        match activity.unanswered_since {
            Some(since) => self.watch_silence(since, activity, now),
            None => self.answered(),
        }
        self.watch_echoes(activity.pto, now);
        self.handle_timeout(now);
    }

    fn watch_silence(&mut self, since: Instant, activity: Activity, now: Instant) {
        let Some(selected) = self.selected else { return };
        let silent = now.saturating_duration_since(since);
        if silent < activity.pto * SUSPECT_PTO {
            return;
        }
        let began = *self.suspect.get_or_insert(now);
        self.ping_all_suspects(began, now);
        if activity.outstanding {
            self.try_out(selected, began, now);
        }
        if silent >= patience(activity.pto) {
            self.leave_for_an_echo(selected, began, now);
        }
    }

    /// What arrives on the path in use may come from a side that hears nothing there, on its own
    /// trial of it: that the path carries what is sent here only its echoes show.
    fn watch_echoes(&mut self, pto: Duration, now: Instant) {
        let Some(selected) = self.selected else { return };
        let Some(asked) = self.paths.get(&selected).and_then(|s| s.asked) else { return };
        let deaf = now.saturating_duration_since(asked);
        if deaf < pto * SUSPECT_PTO {
            return;
        }
        self.ping_all_suspects(asked, now);
        let enough = self.paths.get(&selected).is_some_and(|s| s.pings >= DEAF_PINGS);
        if enough && deaf >= patience(pto) {
            self.leave_for_an_echo(selected, asked, now);
        }
    }

    /// Leaves the path in use for the best one that has echoed since a moment, if there is one.
    fn leave_for_an_echo(&mut self, selected: Path, since: Instant, now: Instant) {
        let echoed = |path| self.paths[&path].echoed.is_some_and(|at| at >= since);
        let Some(rival) = self.best(now, |p| p != selected && echoed(p)) else { return };
        let unpaid = self.paths.get(&selected).is_some_and(|s| s.unpaid);
        if !unpaid {
            self.mark_dead(selected, now);
        }
        let reason = if unpaid { Reason::Unpaid } else { Reason::Silent };
        self.switch(rival, reason, true, now);
    }

    fn ping_all_suspects(&mut self, began: Instant, now: Instant) {
        let wait = now.saturating_duration_since(began) / SUSPECT_PART;
        let wait = wait.clamp(SUSPECT_PING, SUSPECT_PING_MAX);
        let due: Vec<Path> = self
            .paths
            .iter()
            .filter(|(path, s)| {
                (s.proven || Some(**path) == self.selected)
                    && self.may_probe(**path)
                    && s.pinged.is_none_or(|at| at + wait <= now)
            })
            .map(|(path, _)| *path)
            .collect();
        for path in due {
            self.ping(path, now);
        }
    }

    fn mark_dead(&mut self, path: Path, now: Instant) {
        let Some(state) = self.paths.get_mut(&path) else { return };
        let again = state.died.is_some_and(|at| now.saturating_duration_since(at) < FLAP_SPAN);
        state.held_until = Some(now + if again { FLAP_HOLD } else { HOLD_DOWN });
        state.died = Some(now);
        state.proven = false;
        state.samples.clear();
        state.pings = 0;
        state.echoes = 0;
        state.next_ping = Some(now + SUSPECT_PING);
    }

    fn remove(&mut self, path: Path, now: Instant) {
        self.paths.remove(&path);
        if self.trial.is_some_and(|t| t.path == path) {
            self.end_trial();
        }
        if self.selected == Some(path) {
            self.selected = None;
            self.suspect = None;
            self.trial = None;
            if let Some(next) = self.best(now, |_| true) {
                self.switch(next, Reason::Withdrawn, true, now);
            }
        }
    }

    /// Sends due pings and takes a better path if there is one.
    pub fn handle_timeout(&mut self, now: Instant) {
        for state in self.paths.values_mut() {
            state.held_until = state.held_until.filter(|until| *until > now);
            if state.proven && state.asked.is_some_and(|at| at + STALE <= now) {
                state.proven = false;
                state.pings = 0;
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
        self.withdraw(now);
        if self.controlling {
            self.improve(now);
        }
    }

    /// Leaves a path that is not allowed any more, or answers no ping any more: what arrives over
    /// other paths may hide that it is dead.
    fn withdraw(&mut self, now: Instant) {
        let Some(selected) = self.selected else { return };
        let asked = self.paths.get(&selected).and_then(|s| s.asked);
        let stale = asked.is_some_and(|at| at + STALE <= now);
        let reason = match self.may_probe(selected) {
            true if !stale => return,
            true => Reason::Silent,
            false => Reason::Withdrawn,
        };
        if let Some(next) = self.best(now, |p| p != selected) {
            self.switch(next, reason, stale, now);
        }
    }

    fn may_probe(&self, path: Path) -> bool {
        match path {
            Path::Relay(_) => true,
            Path::Direct(pair) => self.direct_allowed && self.may_reach(pair.remote.ip()),
        }
    }

    /// Whether this address may be sent anything: those of this node's own household only if the
    /// other node is in it, too, as relays see them.
    fn may_reach(&self, ip: IpAddr) -> bool {
        if !self.whereabouts.is_near(ip) {
            return true;
        }
        let Some(peer) = self.peer_ip else { return false };
        self.whereabouts.is_shared(peer) || peer == ip && self.whereabouts.is_private()
    }

    /// Whether this is an address of the other node: it echoed from there, or a relay of this node's
    /// own choosing sees it there.
    fn is_vouched(&self, pair: Pair) -> bool {
        let seen = self.punch.peer_address.is_some_and(|seen| seen.ip() == pair.remote.ip());
        seen && !self.whereabouts.is_near(pair.remote.ip())
            || self.paths.get(&Path::Direct(pair)).is_some_and(|s| s.known)
    }

    /// Spends what a probe costs that goes straight to an address; or when it may come again, if
    /// ever.
    fn admit(&mut self, path: Path, now: Instant) -> Result<(), Option<Instant>> {
        let Path::Direct(pair) = path else { return Ok(()) };
        let (ip, vouched) = (pair.remote.ip(), self.is_vouched(pair));
        if !vouched && !self.strangers.may_be_sent(ip) {
            return Err(None);
        }
        self.entries.retain(|at| *at + ENTRIES_SPAN > now);
        let purpose = if self.is_proven(path) {
            Purpose::Proven
        } else if self.entries.len() < ENTRIES_MAX {
            Purpose::Candidate
        } else {
            Purpose::Known
        };
        match self.share.spend(pair, purpose, now) {
            Spent::Yes { fresh: true } => self.entries.push_back(now),
            Spent::Yes { fresh: false } => {}
            Spent::Later(at) => return Err(Some(at)),
            Spent::NoRoom => return Err(Some(now + NO_ROOM)),
        }
        if !vouched {
            self.strangers.sent(ip);
        }
        Ok(())
    }

    fn ping(&mut self, path: Path, now: Instant) {
        if let Err(later) = self.admit(path, now) {
            if let Some(state) = self.paths.get_mut(&path) {
                state.next_ping = later;
            }
            return;
        }
        let (mut first, mut again) = (PINGS_MAX, RETRY_PINGS);
        if let Path::Direct(pair) = path
            && !self.is_vouched(pair)
        {
            (first, again) = STRANGER_PINGS;
        }
        let token = self.tokens.draw();
        let Some(state) = self.paths.get_mut(&path) else { return };
        if state.outstanding.len() == OUTSTANDING_MAX {
            state.outstanding.pop_front();
        }
        let doubted = self.suspect.is_some();
        state.outstanding.push_back(Ping { token, sent: now, doubted });
        state.pinged = Some(now);
        let asked = *state.asked.get_or_insert(now);
        state.pings = state.pings.saturating_add(1);
        let wait = if state.proven {
            ASK_AGAIN
        } else if state.pings >= first {
            state.pings = first - again;
            if state.known && asked + KNOWN_FOR > now {
                KNOWN_RETRY
            } else {
                let wait = state.retry_after;
                state.retry_after = (wait * 2).min(RETRY_MAX);
                wait
            }
        } else {
            let step = FIRST_PINGS_MS.get(state.pings as usize).or(FIRST_PINGS_MS.last());
            Duration::from_millis(*step.expect("the table is not empty"))
        };
        state.next_ping = Some(now + wait);
        self.transmits.push_back((path, Probe::Ping { token }));
        if self.announces && self.selected == Some(path) {
            self.transmits.push_back((path, Probe::Use { epoch: self.epoch }));
        }
        if self.trial.is_some_and(|t| t.path == path && t.until.is_none()) {
            self.transmits.push_back((path, Probe::Trial { epoch: self.epoch }));
        }
    }

    fn improve(&mut self, now: Instant) {
        let Some(best) = self.best(now, |_| true) else { return };
        let Some(selected) = self.selected else {
            self.switch(best, Reason::First, true, now);
            return;
        };
        let (rank, current) = (self.rank(best, now), self.rank(selected, now));
        if best != selected && rank.beats(&current) {
            let unpaid = current.unpaid && !rank.unpaid && !current.dead;
            let reason = if unpaid { Reason::Unpaid } else { Reason::Better };
            self.switch(best, reason, false, now);
        }
    }

    fn rank(&self, path: Path, now: Instant) -> Rank {
        let state = self.paths.get(&path);
        let held = state.and_then(|s| s.held_until).is_some_and(|until| until > now);
        Rank {
            dead: !state.is_some_and(|s| s.proven) || held,
            unpaid: state.is_some_and(|s| s.unpaid),
            kind: path.kind(),
            rtt: state.map_or(Duration::MAX, |s| s.rtt),
        }
    }

    /// The best path that was echoed, held down ones last.
    fn best(&self, now: Instant, eligible: impl Fn(Path) -> bool) -> Option<Path> {
        self.paths
            .keys()
            .copied()
            .filter(|p| self.may_probe(*p) && eligible(*p))
            .filter(|p| self.paths[p].proven)
            .map(|p| (self.rank(p, now), p))
            .min()
            .map(|(_, p)| p)
    }

    fn switch(&mut self, path: Path, reason: Reason, old_dead: bool, now: Instant) {
        // The other side may have named any epoch.
        self.epoch = self.epoch.saturating_add(1);
        self.announces = true;
        self.select(path, reason, old_dead);
        if let Some(state) = self.paths.get_mut(&path) {
            state.echoes = 0;
            state.next_ping = state.next_ping.map(|at| at.min(now + SAY_AGAIN));
        }
        self.announce(path);
    }

    fn announce(&mut self, path: Path) {
        // Said three times: one loss must not leave the other side behind.
        for _ in 0..3 {
            self.transmits.push_back((path, Probe::Use { epoch: self.epoch }));
        }
    }

    fn select(&mut self, path: Path, reason: Reason, old_dead: bool) {
        self.selected = Some(path);
        self.suspect = None;
        self.trial = None;
        self.events.push_back(Event::Selected { path, reason, old_dead });
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
        let punch = self.punch.poll_timeout().map(|at| (at, "guess"));
        let tell = self.tell_nat_at.filter(|_| self.direct_allowed).map(|(at, _)| (at, "tell"));
        let lent =
            self.trial.and_then(|t| t.until).map(|at| (at, "the other side's trial is over"));
        [ping, hold, punch, tell, lent].into_iter().flatten().min()
    }
}

/// How long a path may be silent before it is left.
fn patience(pto: Duration) -> Duration {
    (pto * DEAD_PTO).max(SILENCE_MIN)
}
