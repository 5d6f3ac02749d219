//! When to ask a relay's forwarding path for a sign of life.
//!
//! A relay whose control connection answers may still have stopped to forward. Keepalive frames take
//! the way of all frames, and the forwarder itself answers them.

use std::time::{Duration, Instant};

/// Time between questions while they are answered.
const EVERY: Duration = Duration::from_secs(10);
/// An unanswered question is repeated after this.
const AGAIN: Duration = Duration::from_millis(500);
/// A relay that has not answered for this long does not forward. With [`EVERY`] that is half a
/// minute after it stopped, at the latest.
const FAILED: Duration = Duration::from_secs(20);

/// The state of one control connection's questions.
#[derive(Debug)]
pub(super) struct Beat {
    asked: Option<Instant>,
    next: Instant,
    forwards: bool,
}

impl Beat {
    /// `forwards`: as far as was known of the relay before.
    pub(super) const fn new(forwards: bool, now: Instant) -> Self {
        Self { asked: None, next: now, forwards }
    }

    /// When [`Beat::handle`] is due.
    pub(super) const fn due(&self) -> Instant {
        self.next
    }

    /// Asks at once: this node's address may have changed.
    pub(super) const fn hurry(&mut self, now: Instant) {
        self.next = now;
    }

    /// Takes the moment of the newest answer; whether to ask now.
    pub(super) fn handle(&mut self, answered: Option<Instant>, now: Instant) -> bool {
        if self.asked.is_some_and(|asked| answered.is_some_and(|at| at >= asked)) {
            self.asked = None;
            self.forwards = true;
            self.next = self.next.max(now + EVERY);
            return false;
        }
        if now < self.next {
            return false;
        }
        let asked = *self.asked.get_or_insert(now);
        self.forwards &= asked + FAILED > now;
        self.next = now + AGAIN;
        true
    }

    /// Whether frames get through, as far as is known.
    pub(super) const fn forwards(&self) -> bool {
        self.forwards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)]
    fn begin() -> (Beat, Instant) {
        let now = Instant::now();
        (Beat::new(true, now), now)
    }

    #[test]
    fn a_relay_that_answers_is_asked_six_times_a_minute() {
        let (mut beat, start) = begin();
        let (mut asked, mut answered) = (0, None);
        for ms in (0..60_000).step_by(100) {
            let now = start + Duration::from_millis(ms);
            if beat.handle(answered, now) {
                asked += 1;
                answered = Some(now);
            }
            assert!(beat.forwards());
        }
        assert_eq!(asked, 6);
    }

    #[test]
    fn one_that_stopped_is_known_within_half_a_minute_and_back_with_its_next_answer() {
        let (mut beat, start) = begin();
        let mut answered = None;
        let mut known = None;
        for ms in (0..100_000).step_by(100) {
            let now = start + Duration::from_millis(ms);
            let works = !(25_000..80_000).contains(&ms);
            if beat.handle(answered, now) && works {
                answered = Some(now);
            }
            if !beat.forwards() {
                known.get_or_insert(ms);
            }
        }
        let known = known.expect("it was noticed");
        assert!((45_000..=56_000).contains(&known), "{known}");
        assert!(beat.forwards());
    }
}
