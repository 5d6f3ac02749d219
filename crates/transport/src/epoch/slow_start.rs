//! The end of slow start, found by delay, as HyStart++ does (RFC 9406).
//!
//! Slow start ends when something is lost, and then as much is lost as was in flight: on fast lines
//! thousands of packets, every other one. The receiver must keep what lies between, and quinn's gives
//! a connection up at 1,024 gaps. So while packets take clearly longer than they once did, the window
//! grows slowly. HyStart++ looks once in a round trip, in which the window doubles: that is too late
//! for a queue of one round trip. Here a few packets tell.

use std::time::Duration;

/// So many packets in a row tell the delay: the least of them. HyStart++ takes 8 (`N_RTT_SAMPLE`) at
/// the beginning of a round; these may be anywhere in a burst.
const SAMPLES: u32 = 16;
/// A rise of one eighth counts (`MIN_RTT_DIVISOR`), within these bounds. The RFC's least is 4 ms: at
/// 1 Gbit/s another 350 packets.
const RISE_PART: u32 = 8;
const RISE_MIN: Duration = Duration::from_millis(2);
const RISE_MAX: Duration = Duration::from_millis(16);
/// The window then grows by this part of what is acknowledged. The RFC's `CSS_GROWTH_DIVISOR` is 4:
/// smaller steps lose fewer packets at the end.
const GROWTH_PART: u64 = 8;

/// The slow start of one connection on one path.
#[derive(Debug, Clone, Default)]
pub(super) struct SlowStart {
    /// The least delay on this path.
    base: Option<Duration>,
    /// Of the newest packets, and how many they are.
    least: Option<Duration>,
    samples: u32,
    is_slow: bool,
}

impl SlowStart {
    /// How much of `bytes` that were acknowledged after `delay` the window may grow by.
    pub(super) fn growth(&mut self, bytes: u64, delay: Duration) -> u64 {
        let least = self.least.map_or(delay, |least| least.min(delay));
        (self.least, self.samples) = (Some(least), self.samples + 1);
        if self.samples >= SAMPLES {
            let base = self.base.map_or(least, |base| base.min(least));
            let rise = (base / RISE_PART).clamp(RISE_MIN, RISE_MAX);
            self.is_slow = least >= base + rise;
            (self.base, self.least, self.samples) = (Some(base), None, 0);
        }
        if self.is_slow { bytes / GROWTH_PART } else { bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u64 = 1200;

    /// What the window grows by when so many packets are acknowledged after `delay_ms`.
    fn grown(start: &mut SlowStart, packets: u64, delay_ms: u64) -> u64 {
        let delay = Duration::from_millis(delay_ms);
        (0..packets).map(|_| start.growth(PACKET, delay)).sum()
    }

    #[test]
    fn the_window_grows_slowly_while_there_is_a_queue() {
        let mut start = SlowStart::default();
        assert_eq!(grown(&mut start, 80, 20), 80 * PACKET);
        grown(&mut start, 16, 23);
        assert_eq!(grown(&mut start, 80, 30), 80 * PACKET / 8);
        grown(&mut start, 16, 20);
        assert_eq!(grown(&mut start, 80, 20), 80 * PACKET, "it is empty again");
    }

    #[test]
    fn what_few_packets_wait_for_is_no_queue() {
        let mut start = SlowStart::default();
        for _ in 0..20 {
            assert_eq!(grown(&mut start, 12, 50) + grown(&mut start, 4, 20), 16 * PACKET);
        }
        for delay_ms in [20, 21, 22, 21] {
            assert_eq!(grown(&mut start, 16, delay_ms), 16 * PACKET, "less than an eighth");
        }
    }
}
