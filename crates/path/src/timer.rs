//! Measures how long a NAT keeps a UDP mapping that nothing goes over (RFC 4787, section 4.3).
//!
//! A fresh socket asks a relay, which opens a mapping, and is then silent. After a while the relay is
//! asked from the data socket to answer to the fresh socket's public port: if that answer gets in, the
//! mapping was kept. The mappings that are in use are never put at risk.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::tokens::Tokens;
use crate::{Question, RelayPort, SocketId};

/// The first silence: under what RFC 4787 deplores and many NATs do, half a minute.
const FIRST: Duration = Duration::from_secs(25);
/// The shortest silence that is tried: a NAT that forgets sooner is kept awake by any session.
const SHORTEST: Duration = Duration::from_secs(8);
/// The longest: beyond it a keepalive more or less is of no account.
const LONGEST: Duration = Duration::from_secs(250);
/// The search ends once the silence that was too long is at most this part longer than the one that
/// was not: 1/4.
const PRECISION: u32 = 4;
/// Many NATs keep a mapping longer once packets went both ways for some time; Linux, for 2 s. A
/// session's do.
const SETTLE: Duration = Duration::from_secs(3);
/// A question is asked again after this ..
const AGAIN: Duration = Duration::from_millis(300);
/// .. and so often in all.
const TRIES: u32 = 4;
/// Tries without any answer from a relay, or from an address that shows nothing, before it ends.
const VOIDS_MAX: u32 = 6;

/// How long a NAT keeps a mapping, as far as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timer {
    /// The longest silence after which a packet was let in.
    pub kept: Duration,
    /// The shortest after which none was.
    pub lost: Option<Duration>,
}

impl Timer {
    /// Whether it was measured to the end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.next().is_none()
    }

    /// The next silence to try; `None`: it is known well enough.
    fn next(&self) -> Option<Duration> {
        match self.lost {
            None if self.kept >= LONGEST => None,
            None if self.kept.is_zero() => Some(FIRST),
            None => Some((self.kept * 2).min(LONGEST)),
            Some(lost) if lost <= SHORTEST => None,
            Some(lost) if self.kept.is_zero() => Some((lost / 2).max(SHORTEST)),
            Some(lost) if lost <= self.kept + self.kept / PRECISION => None,
            Some(lost) => Some((self.kept + lost) / 2),
        }
    }
}

/// What is being done about the silence under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The fresh socket asks, the second time after a moment.
    Open { settled: bool },
    /// Between the two.
    Settle,
    /// The fresh socket is silent.
    Silent,
    /// The relay is asked to answer there, and, lest its own silence be taken for the NAT's, here.
    Reach { here: Option<SocketAddr> },
    /// All is known that will be.
    Over,
}

/// One measurement. See the crate's page for how to drive it; it is over when there is no timeout.
#[derive(Debug)]
pub struct TimerSurvey {
    relays: usize,
    tokens: Tokens,
    timer: Timer,
    silence: Duration,
    /// The silence seemed too long once; a lost packet would look the same.
    doubted: bool,
    relay: usize,
    voids: u32,
    step: Step,
    public: Option<SocketAddr>,
    there: u64,
    here: u64,
    tries: u32,
    due: Instant,
    transmits: VecDeque<Question>,
}

impl TimerSurvey {
    /// Begins, with this many relays; a question names one by its place, and as its socket either the
    /// data socket or the fresh one, 1.
    #[must_use]
    pub fn new(relays: usize, seed: u64, now: Instant) -> Self {
        let mut survey = Self {
            relays,
            tokens: Tokens::new(seed),
            timer: Timer::default(),
            silence: FIRST,
            doubted: false,
            relay: 0,
            voids: 0,
            step: Step::Over,
            public: None,
            there: 0,
            here: 0,
            tries: 0,
            due: now,
            transmits: VecDeque::new(),
        };
        if relays > 0 {
            survey.enter(Step::Open { settled: false }, now);
        }
        survey
    }

    /// What is known so far.
    #[must_use]
    pub const fn timer(&self) -> Timer {
        self.timer
    }

    /// Whether it came to its end, and not only to a lack of answers.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.timer.is_complete()
    }

    /// Whether answers may come now.
    #[must_use]
    pub const fn is_asking(&self) -> bool {
        matches!(self.step, Step::Open { .. } | Step::Reach { .. })
    }

    fn enter(&mut self, step: Step, now: Instant) {
        self.step = step;
        self.tries = 0;
        match step {
            Step::Open { .. } | Step::Reach { .. } => {
                (self.there, self.here) = (self.tokens.draw(), self.tokens.draw());
                self.ask(now);
            }
            Step::Settle => self.due = now + SETTLE,
            Step::Silent => self.due = now + self.silence,
            Step::Over => self.transmits.clear(),
        }
    }

    fn ask(&mut self, now: Instant) {
        self.tries += 1;
        self.due = now + AGAIN;
        let question = Question {
            socket: SocketId::DATA,
            relay: self.relay,
            to: RelayPort::Main,
            answer_from: RelayPort::Main,
            answer_to: None,
            token: self.here,
        };
        if let Step::Reach { here } = self.step {
            let answer_to = self.public.map(|public| public.port());
            self.transmits.push_back(Question { answer_to, token: self.there, ..question });
            if here.is_none() {
                self.transmits.push_back(question);
            }
        } else {
            let socket = SocketId(1);
            self.transmits.push_back(Question { socket, token: self.there, ..question });
        }
    }

    /// An answer arrived at one of the two sockets.
    pub fn handle_answer(&mut self, token: u64, observed: SocketAddr, now: Instant) {
        match self.step {
            Step::Open { settled } if token == self.there => {
                self.public = Some(observed);
                self.enter(if settled { Step::Silent } else { Step::Settle }, now);
            }
            Step::Reach { .. } if token == self.there => {
                self.timer.kept = self.timer.kept.max(self.silence);
                self.decided(now);
            }
            Step::Reach { .. } if token == self.here => {
                self.step = Step::Reach { here: Some(observed) };
            }
            Step::Open { .. } | Step::Settle | Step::Silent | Step::Reach { .. } | Step::Over => {}
        }
    }

    /// Asks again, or goes on with the next step.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.due {
            return;
        }
        match self.step {
            Step::Settle => self.enter(Step::Open { settled: true }, now),
            Step::Silent => self.enter(Step::Reach { here: None }, now),
            Step::Open { .. } | Step::Reach { .. } if self.tries < TRIES => self.ask(now),
            Step::Reach { here: Some(here) }
                if self.public.is_some_and(|p| p.ip() == here.ip()) =>
            {
                self.unanswered(now);
            }
            // A relay answers to no other address than it is asked from: where the NAT has several,
            // silence shows nothing.
            Step::Open { .. } | Step::Reach { .. } => self.void(now),
            Step::Over => {}
        }
    }

    /// Nothing got in. If nothing does by another relay either, the mapping was lost.
    fn unanswered(&mut self, now: Instant) {
        if self.doubted {
            self.timer.lost = Some(self.silence);
            return self.decided(now);
        }
        self.doubted = true;
        self.relay = (self.relay + 1) % self.relays;
        self.enter(Step::Open { settled: false }, now);
    }

    fn decided(&mut self, now: Instant) {
        self.doubted = false;
        self.voids = 0;
        let next = self.timer.next();
        self.silence = next.unwrap_or(self.silence);
        self.relay = (self.relay + 1) % self.relays;
        self.enter(next.map_or(Step::Over, |_| Step::Open { settled: false }), now);
    }

    fn void(&mut self, now: Instant) {
        self.voids += 1;
        self.relay = (self.relay + 1) % self.relays;
        let over = self.voids >= VOIDS_MAX;
        self.enter(if over { Step::Over } else { Step::Open { settled: false } }, now);
    }

    /// The next question to send.
    pub fn poll_transmit(&mut self) -> Option<Question> {
        self.transmits.pop_front()
    }

    /// When [`TimerSurvey::handle_timeout`] is next due; `None`: it is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.step != Step::Over).then_some(self.due)
    }
}
