//! How long a busy forwarding thread lets packets gather before it looks again.
//!
//! A wake-up costs its thread, and the sender that causes it, as much as forwarding several packets.
//! So while much passes the thread does not wait for the next packet but for some tenths of a
//! millisecond, as a network card with adaptive interrupt moderation does (ethtool's `rx-usecs`).

use std::time::{Duration, Instant};

/// Longest rest: what it may add to a packet's way. Twice as much saves little more.
const REST_MAX: Duration = Duration::from_micros(400);
/// A shorter rest is not worth a timer.
const REST_MIN: Duration = Duration::from_micros(50);
/// Bytes that passed in a second of a busy thread: 512 Mbit/s. Below, each packet goes at once.
const BUSY: u128 = 64_000_000;

/// A thread that does not rest is judged so often.
const JUDGED: Duration = Duration::from_millis(1);

/// Judges what passes.
#[derive(Debug)]
pub(crate) struct Rest {
    /// When it was last judged.
    since: Instant,
    /// Bytes received since then.
    taken: usize,
    /// Bytes that may gather.
    room: usize,
}

impl Rest {
    /// For a socket in whose buffer the kernel keeps at most `buffer` bytes, its own overhead
    /// included, which is more than half of it in the worst case.
    pub(crate) const fn new(now: Instant, buffer: usize) -> Self {
        Self { since: now, taken: 0, room: buffer / 4 }
    }

    /// So many bytes were received.
    pub(crate) const fn took(&mut self, bytes: usize) {
        self.taken += bytes;
    }

    /// Whether so much passes that resting pays.
    pub(crate) fn pays(&mut self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= JUDGED && self.empty(now).is_some()
    }

    /// A thread that rests found its socket empty: how long to rest before the next look. None if
    /// too little passed since the last: then the next packet is to be waited for.
    pub(crate) fn empty(&mut self, now: Instant) -> Option<Duration> {
        let span = now.saturating_duration_since(self.since);
        let taken = std::mem::take(&mut self.taken) as u128;
        self.since = now;
        if taken == 0 || taken * 1_000_000_000 < BUSY * span.as_nanos() {
            return None;
        }
        let fills = span.as_nanos() * self.room as u128 / taken;
        let fills = Duration::from_nanos(u64::try_from(fills).unwrap_or(u64::MAX));
        Some(fills.min(REST_MAX)).filter(|rest| *rest >= REST_MIN)
    }
}

#[cfg(test)]
mod tests {
    use sluice_transport::Clock;

    use super::*;

    fn after(micros: u64, bytes: usize, buffer: usize) -> Option<Duration> {
        let start = Clock::default().now();
        let mut rest = Rest::new(start, buffer);
        rest.took(bytes);
        rest.empty(start + Duration::from_micros(micros))
    }

    #[test]
    fn a_quiet_thread_waits_for_the_next_packet() {
        assert_eq!(after(1_000, 0, 8 << 20), None);
        assert_eq!(after(10, 0, 8 << 20), None);
        assert_eq!(after(1_000, 1_400, 8 << 20), None, "11 Mbit/s");
        assert_eq!(after(4_500, 57_000, 8 << 20), None, "one batch now and then");
    }

    #[test]
    fn a_busy_one_rests_at_most_400_us() {
        assert_eq!(after(1_000, 64_000, 8 << 20), Some(REST_MAX));
        assert_eq!(after(450, 225_000, 8 << 20), Some(REST_MAX), "4 Gbit/s");
    }

    #[test]
    fn what_gathers_meanwhile_fits_the_buffer() {
        // Linux's default of 212,992 bytes, which it doubles, at 10 Gbit/s.
        let rest = after(100, 125_000, 425_984).unwrap();
        assert!(rest.as_nanos() * 125 / 100_000 <= 425_984 / 4, "{rest:?}");
        assert!(rest >= REST_MIN);
        // Too small for its rate: no rest at all.
        assert_eq!(after(100, 125_000, 16_384), None);
    }

    #[test]
    fn a_single_batch_does_not_make_it_busy() {
        let start = Clock::default().now();
        let mut rest = Rest::new(start, 8 << 20);
        rest.took(60_000);
        assert!(!rest.pays(start + Duration::from_micros(20)), "too early to tell");
        assert!(!rest.pays(start + Duration::from_millis(2)), "240 Mbit/s");
        rest.took(80_000);
        assert!(rest.pays(start + Duration::from_millis(3)));
    }

    #[test]
    fn each_drain_is_judged_by_itself() {
        let start = Clock::default().now();
        let mut rest = Rest::new(start, 8 << 20);
        rest.took(60_000);
        assert!(rest.empty(start + Duration::from_micros(100)).is_some());
        assert_eq!(rest.empty(start + Duration::from_micros(600)), None);
    }
}
