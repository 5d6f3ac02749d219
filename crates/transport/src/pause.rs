//! Notices that the process did not run for a while: stopped by a signal, frozen, or swapped out.
//!
//! What lies in the socket's buffer then arrived at some time unknown. To take it for news would make
//! the round trip as long as the pause, and packets would be paced by that for minutes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A beat that comes so much too late tells of a pause: a busy machine is less late.
const PAUSE: Duration = Duration::from_secs(5);

/// Beats are told of as long as the process runs.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    /// Nanoseconds of the socket's clock at the newest beat.
    beat: AtomicU64,
    noticed: AtomicBool,
}

impl Pause {
    /// The process runs; to be told each second or so.
    pub(crate) fn beat(&self, now_ns: u64) {
        let before = self.beat.swap(now_ns, Relaxed);
        if u128::from(now_ns.saturating_sub(before)) > PAUSE.as_nanos() {
            self.noticed.store(true, Relaxed);
        }
    }

    /// Whether there was a pause since this was last asked.
    pub(crate) fn is_over(&self, now_ns: u64) -> bool {
        self.beat(now_ns);
        self.noticed.load(Relaxed) && self.noticed.swap(false, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_pause_is_noticed_once_by_whoever_runs_first() {
        let pause = Pause::default();
        pause.beat(SECOND);
        pause.beat(2 * SECOND);
        assert!(!pause.is_over(4 * SECOND), "a busy machine looks late");
        assert!(pause.is_over(100 * SECOND));
        assert!(!pause.is_over(100 * SECOND), "it is over");
        pause.beat(200 * SECOND);
        assert!(pause.is_over(200 * SECOND), "the beat came before the packets");
        pause.beat(201 * SECOND);
        assert!(!pause.is_over(201 * SECOND));
    }
}
