//! When to say something again until it is answered.

use std::time::{Duration, Instant};

/// Least time between repetitions: pay messages need not be faster than people.
const REPEAT_MIN: Duration = Duration::from_millis(100);
/// Probe timeout assumed before the caller told one.
const PTO_INITIAL: Duration = Duration::from_millis(100);
/// Longest probe timeout that is taken from the caller.
const PTO_MAX: Duration = Duration::from_secs(10);

/// Silence after which an account is settled: 30 s without payload.
pub(crate) const IDLE: Duration = Duration::from_secs(30);

/// `now + d`, or `now` at the end of time.
pub(crate) fn after(now: Instant, d: Duration) -> Instant {
    now.checked_add(d).unwrap_or(now)
}

/// The earlier of two moments that may be none.
pub(crate) fn earlier(a: Option<Deadline>, b: Option<Deadline>) -> Option<Deadline> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.0 < a.0 { b } else { a }),
        (a, None) => a,
        (None, b) => b,
    }
}

/// A moment and why it matters.
pub(crate) type Deadline = (Instant, &'static str);

/// A message that is sent now and again each `max(2 PTO, 100 ms)` until it is answered.
#[derive(Debug)]
pub(crate) struct Repeat {
    pto: Duration,
    now_due: bool,
    next: Option<Instant>,
}

impl Repeat {
    pub(crate) fn new() -> Self {
        Self { pto: PTO_INITIAL, now_due: false, next: None }
    }

    pub(crate) fn set_pto(&mut self, pto: Duration) {
        self.pto = pto.min(PTO_MAX);
    }

    pub(crate) const fn pto(&self) -> Duration {
        self.pto
    }

    /// There is something new to say.
    pub(crate) fn start(&mut self) {
        self.now_due = true;
    }

    /// It was answered.
    pub(crate) fn stop(&mut self) {
        (self.now_due, self.next) = (false, None);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.next.is_some_and(|at| at <= now) {
            self.now_due = true;
        }
    }

    /// Whether to say it now; counts as said.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let due = std::mem::take(&mut self.now_due);
        if due {
            self.next = Some(after(now, self.pto.saturating_mul(2).max(REPEAT_MIN)));
        }
        due
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.next.filter(|_| !self.now_due)
    }
}
