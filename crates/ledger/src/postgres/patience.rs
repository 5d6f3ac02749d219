//! How long a server may keep those waiting who write.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A statement that takes longer never ends: the server is stopped, or the way to it is cut.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A server from which whoever writes hears nothing for so long is away. The locks of a process that was
/// stopped in a transaction end before.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// What is waited for on a connection: shared by all that follow one another, and with those who ask how
/// the server does.
#[derive(Debug, Default)]
pub(super) struct Patience(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Nothing more is waited for afterwards.
    until: Option<Instant>,
    /// Something is to be done: since when nothing was heard.
    since: Option<Instant>,
}

impl Patience {
    /// What follows is to be done by then.
    pub(super) fn begin(&self, until: Instant) {
        let mut state = self.0.lock();
        state.until = Some(until);
        state.since.get_or_insert_with(now);
    }

    /// The server answered, if only to refuse.
    pub(super) fn heard(&self) {
        let mut state = self.0.lock();
        if state.since.is_some() {
            state.since = Some(now());
        }
    }

    /// It is done.
    pub(super) fn end(&self) {
        *self.0.lock() = State::default();
    }

    /// Most that the next answer is waited for.
    pub(super) fn left(&self) -> Duration {
        let until = self.0.lock().until;
        until.map_or(ANSWER_MAX, |until| until.saturating_duration_since(now()).min(ANSWER_MAX))
    }

    /// For how long a server that is away has said nothing.
    pub(super) fn silence(&self) -> Option<Duration> {
        let since = self.0.lock().since?;
        Some(now().saturating_duration_since(since)).filter(|silence| *silence >= SILENCE_MAX)
    }
}

/// In so much time. Beyond what the clock can say: now.
pub(super) fn within(most: Duration) -> Instant {
    let now = now();
    now.checked_add(most).unwrap_or(now)
}

#[expect(clippy::disallowed_methods, reason = "the server runs in real time, whoever waits for it")]
pub(super) fn now() -> Instant {
    Instant::now()
}
