//! How large packets each path carries: probes of a size are sent, and echoed at the same size.

use std::time::{Duration, Instant};

use super::Agent;
use crate::event::{Event, Probe, Reason};
use crate::tokens::Tokens;
use crate::{PACKET_MAX, PACKET_MIN, Path};

/// Sizes that are asked for: from the least to the most, in steps that cost at most a fiftieth of
/// what a path could carry, placed so that a link of 1,280 bytes is used well.
const SIZES: [u16; 13] =
    [PACKET_MIN, 1212, 1232, 1252, 1272, 1292, 1312, 1332, 1352, 1372, 1392, 1412, PACKET_MAX];
/// A size does not come through if none of its probes was echoed while so many small ones were that
/// went out right behind them. With a fifth of all packets lost each way that happens by chance once
/// in 60 times.
const SMALL_ECHOES: u32 = 4;
/// A path that answers neither this often is silent; whether it is, pings find out.
const TRIES_MAX: u32 = 16;
/// Between two tries at least and at most, however long the round trip is.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// After losses on the path in use it is asked again whether packets come through, this often at most.
const CHECK_AGAIN: Duration = Duration::from_secs(1);
/// What did not come through is tried again after this: routes change (RFC 8899, 5.1.1).
const GROW_AGAIN: Duration = Duration::from_secs(600);
/// Echoes of the size that was asked for are sent so often within [`ECHOES_SPAN`] at most: whoever
/// asks for more spends the relay's fees.
const ECHOES_MAX: usize = 64;
const ECHOES_SPAN: Duration = Duration::from_secs(1);

/// Which of [`SIZES`] packets of so many bytes need.
fn class(packets: u16) -> usize {
    SIZES.iter().position(|size| *size >= packets).unwrap_or(SIZES.len() - 1)
}

/// What is known of one path, and what it is being asked.
#[derive(Debug, Clone)]
pub(super) struct Size {
    /// So many of [`SIZES`] are known to come through ..
    low: usize,
    /// .. and those from this one on are known not to.
    high: usize,
    question: Option<Question>,
    /// When the last question was answered.
    known: Option<Instant>,
}

/// Whether probes of one size come through.
#[derive(Debug, Clone)]
struct Question {
    class: usize,
    /// Tokens of the probes of that size, and of the small ones behind them.
    large: Vec<u64>,
    small: Vec<u64>,
    small_echoes: u32,
    next: Instant,
}

impl Size {
    pub(super) const fn new() -> Self {
        Self { low: 0, high: SIZES.len(), question: None, known: None }
    }

    /// The path is another, or may be: asks for the largest packets first.
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self::new();
        self.ask(SIZES.len() - 1, now);
    }

    /// The path answers no more.
    pub(super) fn stop(&mut self) {
        self.question = None;
    }

    /// Packets that need this class were lost.
    fn check(&mut self, class: usize, now: Instant) {
        let lately = self.known.is_some_and(|at| at + CHECK_AGAIN > now);
        if self.question.is_none() && !lately && !self.fails(class) {
            self.ask(class, now);
        }
    }

    fn ask(&mut self, class: usize, now: Instant) {
        let (large, small) = (Vec::new(), Vec::new());
        self.question = Some(Question { class, large, small, small_echoes: 0, next: now });
    }

    /// Whether packets that need this class are known not to come through.
    fn fails(&self, class: usize) -> bool {
        class >= self.high
    }

    /// Whether not even the smallest packets of a session come through.
    pub(super) fn is_too_small(&self) -> bool {
        self.fails(0)
    }

    /// The largest packets that may come through, as far as is known.
    fn packet_max(&self) -> u16 {
        SIZES[self.high.max(1) - 1]
    }

    /// When the next probes are due.
    pub(super) fn due(&self) -> Option<Instant> {
        let again = self.known.filter(|_| self.high < SIZES.len()).map(|at| at + GROW_AGAIN);
        self.question.as_ref().map(|question| question.next).or(again)
    }

    /// The next probe of the size that is asked about, and the small one to go behind it: tokens and
    /// size.
    fn next(
        &mut self,
        rtt: Duration,
        tokens: &mut Tokens,
        now: Instant,
    ) -> Option<(u64, u64, u16)> {
        if self.due().is_none_or(|at| at > now) {
            return None;
        }
        if self.question.is_none() {
            self.ask(self.high, now);
        }
        let question = self.question.as_mut()?;
        let tries = u32::try_from(question.large.len()).unwrap_or(u32::MAX);
        if tries >= TRIES_MAX {
            self.question = None;
            self.known = Some(now);
            return None;
        }
        // The first may answer all; then no time is to be lost.
        let wait = if tries == 0 { rtt + rtt / 4 } else { rtt / 4 };
        question.next = now + wait.clamp(TRY_AGAIN.0, TRY_AGAIN.1);
        let (large, small) = (tokens.draw(), tokens.draw());
        question.large.push(large);
        question.small.push(small);
        Some((large, small, SIZES[question.class]))
    }

    /// Whether this is the token of a probe whose echo is awaited.
    fn awaits(&self, token: u64) -> bool {
        let sent = |q: &Question| q.large.contains(&token) || q.small.contains(&token);
        self.question.as_ref().is_some_and(sent)
    }

    /// An echo came, padded to `size`.
    fn handle_echo(&mut self, token: u64, size: u16, now: Instant) {
        let Some(question) = &mut self.question else { return };
        let class = question.class;
        if question.large.contains(&token) {
            if size == SIZES[class] {
                self.found(class, true, now);
            }
        } else if let Some(at) = question.small.iter().position(|small| *small == token) {
            question.small.swap_remove(at);
            question.small_echoes += 1;
            if question.small_echoes >= SMALL_ECHOES {
                self.found(class, false, now);
            }
        }
    }

    /// What a question's answer leaves to be asked: halves what is not known.
    fn found(&mut self, class: usize, passes: bool, now: Instant) {
        if passes {
            self.low = self.low.max(class + 1);
            if self.fails(class) {
                self.high = SIZES.len();
            }
        } else {
            self.high = class;
            if self.low > class {
                self.low = 0;
            }
        }
        self.known = Some(now);
        self.question = None;
        if self.low < self.high {
            let next = match (self.low, self.high) {
                (_, high) if high == SIZES.len() => high - 1,
                // Before anything else: whether it is a path at all.
                (0, _) => 0,
                (low, high) => (low + high) / 2,
            };
            self.ask(next, now);
        }
    }
}

impl Agent {
    /// How large QUIC's packets are by now, in bytes of UDP payload.
    pub fn set_packet_size(&mut self, size: u16, now: Instant) {
        if size != self.packets {
            self.packets = size;
            self.handle_timeout(now);
        }
    }

    /// Packets of about that size were lost: perhaps the path in use carries only smaller ones.
    pub fn handle_loss(&mut self, now: Instant) {
        let class = class(self.packets);
        if let Some(state) = self.selected.and_then(|path| self.paths.get_mut(&path))
            && state.proven
        {
            state.size.check(class, now);
        }
        self.handle_timeout(now);
    }

    /// Whether a path is known to lose packets as large as either side sends them.
    pub(super) fn is_narrow(&self, path: Path) -> bool {
        let class = class(self.packets.max(self.peer_packets));
        self.paths.get(&path).is_some_and(|state| state.size.fails(class))
    }

    /// Sends what is due of the probes that find out sizes.
    pub(super) fn measure(&mut self, now: Instant) {
        let due = |state: &super::State| state.size.due().is_some_and(|at| at <= now);
        let proven = self.paths.iter().filter(|(p, s)| s.proven && due(s) && self.may_probe(**p));
        for path in proven.map(|(path, _)| *path).collect::<Vec<_>>() {
            let Some(state) = self.paths.get_mut(&path) else { continue };
            let rtt = state.rtt;
            let Some((large, small, size)) = state.size.next(rtt, &mut self.tokens, now) else {
                continue;
            };
            let packets = self.packets;
            for (token, size) in [(large, size), (small, 0)] {
                // One that is not admitted is a lost one.
                if self.admit(path, now).is_ok() {
                    self.transmits.push_back((path, Probe::Measure { token, size, packets }));
                }
            }
        }
    }

    /// The other side asks whether so large a probe comes through: it does, and so shall the echo.
    pub(super) fn handle_measure(
        &mut self,
        from: Path,
        token: u64,
        (size, packets): (u16, u16),
        now: Instant,
    ) {
        self.peer_packets = packets.min(PACKET_MAX);
        self.measured.retain(|at| *at + ECHOES_SPAN > now);
        if self.may_probe(from) && self.measured.len() < ECHOES_MAX && self.admit(from, now).is_ok()
        {
            self.measured.push_back(now);
            self.transmits.push_back((from, Probe::Measured { token, size }));
        }
    }

    /// An echo of a probe of ours, whichever way it came.
    pub(super) fn handle_measured(&mut self, token: u64, size: u16, now: Instant) {
        if let Some(state) = self.paths.values_mut().find(|state| state.size.awaits(token)) {
            state.size.handle_echo(token, size, now);
        }
    }

    /// Leaves a path that loses the session's packets for one that comes before it but for that.
    pub(super) fn leave_narrow(&mut self, now: Instant) {
        let Some(selected) = self.selected.filter(|path| self.is_narrow(*path)) else { return };
        let Some(rival) = self.best(now, |p| p != selected && !self.is_narrow(p)) else { return };
        let (rank, current) = (self.rank(rival, now), self.rank(selected, now));
        if rank.class() < current.class() {
            self.switch(rival, Reason::Narrow, true, now);
        }
    }

    /// Tells how large packets may be: as all paths carry them that are not too narrow for those in
    /// use, and the one in use in any case.
    pub(super) fn limit(&mut self) {
        let counts = |path: &Path| self.selected == Some(*path) || !self.is_narrow(*path);
        let paths = self.paths.iter().filter(|(path, s)| s.proven && self.may_probe(**path));
        let limit = paths.filter(|(p, _)| counts(p)).map(|(_, s)| s.size.packet_max()).min();
        if let Some(limit) = limit.filter(|limit| *limit != self.packet_max) {
            self.packet_max = limit;
            self.events.push_back(Event::PacketMax(limit));
        }
    }
}
