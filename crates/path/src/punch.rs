//! Guessing a port: one side opens sockets, the other tries ports at its address.
//!
//! Of the two the [`Role`] says who does what. The opener sends from each of its sockets to the
//! guesser's known address, tells through the relay which ports it may have got, and waits. The
//! guesser tries them from its data socket, at the address that a relay of its own choosing sees
//! for the opener, and nowhere else.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::budget::{Purpose, Share, Spent};
use crate::event::{Event, Probe};
use crate::predict::{self, Guess, Role};
use crate::tokens::Tokens;
use crate::{Allocator, GUESSES_MAX, Nat, Pair, Path, SocketId};

/// Simultaneous opening gets this long before anything is guessed.
const PATIENCE: Duration = Duration::from_millis(250);
/// Probes of a guess go out in bursts of so many ..
const BURST: usize = 5;
/// .. this far apart: 455 a second, so that with the pings of known candidates it stays below 500.
const BURST_EVERY: Duration = Duration::from_millis(11);
/// Sockets must be open, and the first of them observed, within this.
const OPENING: Duration = Duration::from_secs(2);
/// The opener tells its guess again after this: the first may be lost.
const SAY_AGAIN: Duration = Duration::from_millis(150);
/// An opener of a few sockets sends from them again after this.
const OPEN_AGAIN: Duration = Duration::from_millis(250);
/// So many are a few.
const FEW: usize = 4;
/// A session that may not guess yet, since another one of the node does, looks again after this.
const TURN_AGAIN: Duration = Duration::from_millis(100);
/// A few ordered guesses have had their chance after this ..
const ORDERED_SPAN: Duration = Duration::from_secs(1);
/// .. and a thousand after this: 2.3 s of probes and a slow round trip.
const SPAN: Duration = Duration::from_secs(4);
/// The first rest after a round that failed; each is twice as long as the last ..
const REST: Duration = Duration::from_secs(60);
/// .. up to this.
const REST_MAX: Duration = Duration::from_secs(960);

/// A socket that the caller opened for a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its number, unused before.
    pub socket: SocketId,
    /// Its local port.
    pub local_port: u16,
    /// Its public port as a relay saw it just now, where that was asked for.
    pub observed_port: Option<u16>,
}

/// What the opener does.
#[derive(Debug)]
enum Phase {
    Resting(Option<Instant>),
    Asked { until: Instant, allocator: Allocator },
    Opening { next: usize, at: Instant, guess: Guess },
    Listening { until: Instant, again: Option<Instant>, say: Option<Instant>, guess: Guess },
}

/// What the guesser does.
#[derive(Debug)]
struct Spray {
    guess: Guess,
    start: u16,
    stride: u16,
    tried: u16,
    at: Instant,
    /// The other side does not listen any more.
    until: Instant,
}

impl Spray {
    /// The next port to try.
    fn port(&self) -> u16 {
        let index = u32::from(self.start) + u32::from(self.stride) * u32::from(self.tried);
        let index = index % u32::from(self.guess.count);
        self.guess.port(u16::try_from(index).expect("below the count"))
    }
}

/// One node's part in guessing, for one session.
#[derive(Debug)]
pub(crate) struct Punch {
    controlling: bool,
    pub(crate) own: Nat,
    pub(crate) peer: Option<Nat>,
    pub(crate) peer_address: Option<SocketAddr>,
    active: bool,
    phase: Phase,
    sockets: Vec<SocketId>,
    round: u32,
    rest: Duration,
    /// The prediction failed: the next round takes any port.
    any: bool,
    spray: Option<Spray>,
    heard_round: Option<u32>,
    /// Guesses left for this target ..
    left: u16,
    /// .. until they are renewed.
    renewed_at: Option<Instant>,
    renew_after: Duration,
}

/// Where its actions go, and what they come out of.
pub(crate) struct Out<'a> {
    pub(crate) share: &'a mut Share,
    pub(crate) tokens: &'a mut Tokens,
    pub(crate) transmits: &'a mut VecDeque<(Path, Probe)>,
    pub(crate) events: &'a mut VecDeque<Event>,
    pub(crate) relays: &'a [Path],
}

impl Out<'_> {
    /// Pings over a pair, as far as the budget allows.
    fn ping(&mut self, socket: SocketId, remote: SocketAddr, now: Instant) -> Spent {
        let pair = Pair { socket, remote };
        let spent = self.share.spend(pair, Purpose::Guess, now);
        if matches!(spent, Spent::Yes { .. }) {
            // Whoever hears it pings back: the echo need not be awaited here.
            let token = self.tokens.draw();
            self.transmits.push_back((Path::Direct(pair), Probe::Ping { token }));
        }
        spent
    }

    fn say(&mut self, round: u32, guess: Guess) {
        for relay in self.relays {
            self.transmits.push_back((*relay, Probe::Guess { round, guess }));
        }
    }
}

impl Punch {
    pub(crate) const fn new(controlling: bool) -> Self {
        Self {
            controlling,
            own: Nat { mapping: None, filtering: None, allocator: None },
            peer: None,
            peer_address: None,
            active: false,
            phase: Phase::Resting(None),
            sockets: Vec::new(),
            round: 0,
            rest: REST,
            any: false,
            spray: None,
            heard_round: None,
            left: GUESSES_MAX,
            renewed_at: None,
            renew_after: REST,
        }
    }

    /// There is no direct path, and there may be one: begins, or goes on.
    pub(crate) fn start(&mut self, now: Instant) {
        if !self.active {
            self.active = true;
            if let Phase::Resting(at) = &mut self.phase {
                let patient = now + PATIENCE;
                *at = Some(at.map_or(patient, |at| at.max(patient)));
            }
        }
    }

    /// A direct path was found, or must not be: closes what `keep` does not name.
    pub(crate) fn stop(
        &mut self,
        keep: impl Fn(SocketId) -> bool,
        now: Instant,
        share: &Share,
        events: &mut VecDeque<Event>,
    ) {
        if self.active {
            self.active = false;
            self.spray = None;
            share.end_turn();
            // Not at once again, should the path be lost: its NAT entries still stand.
            if !matches!(self.phase, Phase::Resting(_)) {
                self.any = false;
                self.phase = Phase::Resting(Some(now + self.rest));
            }
        }
        self.close(keep, events);
    }

    fn close(&mut self, keep: impl Fn(SocketId) -> bool, events: &mut VecDeque<Event>) {
        self.sockets.retain(|socket| {
            let kept = keep(*socket);
            if !kept {
                events.push_back(Event::CloseSocket(*socket));
            }
            kept
        });
    }

    fn is_opener(&self) -> bool {
        let Some(peer) = &self.peer else { return false };
        predict::role(&self.own, peer, self.controlling) == Role::Opener
    }

    /// The caller opened sockets, or none.
    pub(crate) fn sockets_opened(&mut self, opened: &[Opened], now: Instant, out: &mut Out<'_>) {
        let sockets = opened.iter().map(|o| o.socket);
        let Phase::Asked { allocator, .. } = self.phase else {
            out.events.extend(sockets.map(Event::CloseSocket));
            return;
        };
        self.sockets.extend(sockets);
        let Some(first) = opened.first() else { return self.fail(now, out) };
        let guess = predict::guess(allocator, first.local_port, first.observed_port);
        self.phase = Phase::Opening { next: self.sockets.len() - opened.len(), at: now, guess };
        self.round += 1;
    }

    /// The other side opened sockets and says which ports they may have.
    pub(crate) fn handle_guess(&mut self, round: u32, guess: Guess, now: Instant, draw: u64) {
        if !self.active || self.heard_round == Some(round) || guess.count == 0 {
            return;
        }
        if self.renewed_at.is_some_and(|at| at <= now) {
            self.renewed_at = None;
            self.left = GUESSES_MAX;
            self.renew_after = (self.renew_after * 2).min(REST_MAX);
        }
        if self.left == 0 || self.peer_address.is_none() {
            return;
        }
        self.heard_round = Some(round);
        let (start, stride) = order(guess, draw);
        self.spray = Some(Spray { guess, start, stride, tried: 0, at: now, until: now + SPAN });
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Out<'_>) {
        if !self.active {
            return;
        }
        let Some(address) = self.peer_address else { return };
        match &mut self.phase {
            Phase::Resting(at) => {
                if at.is_some_and(|at| at <= now) && self.is_opener() {
                    self.ask(now, out);
                }
            }
            Phase::Asked { until, .. } => {
                if *until <= now {
                    self.fail(now, out);
                }
            }
            Phase::Opening { .. } => self.advance_opening(address, now, out),
            Phase::Listening { until, again, say, guess } => {
                if say.is_some_and(|at| at <= now) {
                    *say = None;
                    out.say(self.round, *guess);
                }
                if again.is_some_and(|at| at <= now) {
                    *again = Some(now + OPEN_AGAIN);
                    for socket in &self.sockets {
                        // The next time, if not now.
                        let _ = out.ping(*socket, address, now);
                    }
                }
                if *until <= now {
                    self.fail(now, out);
                }
            }
        }
        // What is opened is soon done, and comes first.
        self.advance_spray(address, now, out);
    }

    fn ask(&mut self, now: Instant, out: &mut Out<'_>) {
        if let Err(until) = out.share.take_turn(now + OPENING, now) {
            self.phase = Phase::Resting(Some(until.min(now + TURN_AGAIN)));
            return;
        }
        let room = out.share.room(now);
        if room == 0 {
            return self.fail(now, out);
        }
        let allocator = self.own.allocator.filter(|_| !self.any).unwrap_or(Allocator::Random);
        let opening = predict::opening(allocator, room);
        let (count, observe) = (opening.sockets, opening.observe);
        out.events.push_back(Event::OpenSockets { count, observe });
        self.phase = Phase::Asked { until: now + OPENING, allocator };
    }

    fn advance_opening(&mut self, address: SocketAddr, now: Instant, out: &mut Out<'_>) {
        let Phase::Opening { next, at, guess } = &mut self.phase else { return };
        if *at > now {
            return;
        }
        *at = now + BURST_EVERY;
        let end = self.sockets.len().min(*next + BURST);
        while *next < end {
            match out.ping(self.sockets[*next], address, now) {
                Spent::Yes { .. } => *next += 1,
                Spent::Later(later) => {
                    *at = later.min(now + TURN_AGAIN);
                    return;
                }
                Spent::NoRoom => {
                    out.events.extend(self.sockets.drain(*next..).map(Event::CloseSocket));
                    break;
                }
            }
        }
        if *next < self.sockets.len() {
            return;
        }
        let guess = *guess;
        out.say(self.round, guess);
        let span = if guess.is_ordered() { ORDERED_SPAN } else { SPAN };
        // It has the turn: it just guessed.
        let _ = out.share.take_turn(now + span, now);
        let few = self.sockets.len() <= FEW;
        self.phase = Phase::Listening {
            until: now + span,
            again: few.then_some(now + OPEN_AGAIN),
            say: Some(now + SAY_AGAIN),
            guess,
        };
    }

    /// A round found nothing: tries any port after a prediction, else rests.
    fn fail(&mut self, now: Instant, out: &mut Out<'_>) {
        out.share.end_turn();
        self.close(|_| false, out.events);
        let predicted = self.own.allocator.is_some_and(|a| a != Allocator::Random);
        if predicted && !self.any {
            self.any = true;
            self.phase = Phase::Resting(Some(now));
        } else {
            self.any = false;
            self.phase = Phase::Resting(Some(now + self.rest));
            self.rest = (self.rest * 2).min(REST_MAX);
        }
    }

    fn advance_spray(&mut self, address: SocketAddr, now: Instant, out: &mut Out<'_>) {
        let Some(spray) = &mut self.spray else { return };
        if spray.at > now {
            return;
        }
        spray.at = now + BURST_EVERY;
        for _ in 0..BURST {
            let over = spray.tried == spray.guess.count || self.left == 0 || spray.until <= now;
            let spent = if over {
                Spent::NoRoom
            } else {
                out.ping(SocketId::DATA, SocketAddr::new(address.ip(), spray.port()), now)
            };
            match spent {
                Spent::Yes { .. } => {
                    spray.tried += 1;
                    self.left -= 1;
                    self.renewed_at.get_or_insert(now + self.renew_after);
                }
                Spent::Later(later) => {
                    spray.at = later.min(now + TURN_AGAIN);
                    return;
                }
                Spent::NoRoom => {
                    self.spray = None;
                    out.share.end_turn();
                    return;
                }
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if !self.active || self.peer_address.is_none() {
            return None;
        }
        let phase = match &self.phase {
            Phase::Resting(at) => at.filter(|_| self.is_opener()),
            Phase::Asked { until, .. } => Some(*until),
            Phase::Opening { at, .. } => Some(*at),
            Phase::Listening { until, again, say, .. } => {
                [Some(*until), *again, *say].into_iter().flatten().min()
            }
        };
        let spray = self.spray.as_ref().map(|s| s.at);
        [phase, spray].into_iter().flatten().min()
    }
}

/// Where to begin in a guess, and how far apart: every port once, in an order that nobody can
/// foretell, unless the guess has an order of its own.
fn order(guess: Guess, draw: u64) -> (u16, u16) {
    if guess.is_ordered() {
        return (0, 1);
    }
    let count = u64::from(guess.count);
    let start = draw % count;
    let mut stride = (draw >> 20) % count;
    while gcd(stride, count) != 1 {
        stride = (stride + 1) % count;
    }
    let small = |n: u64| u16::try_from(n).expect("below a count that is one");
    (small(start), small(stride))
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
