//! How often paths are kept open, by what is known of the NAT's timer on each network.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::Timer;

/// Between keepalives while nothing is known: below the 30 s after which many NATs forget a mapping.
pub(crate) const KEEPALIVE_DEFAULT: Duration = Duration::from_secs(15);
/// No NAT is kept open more often than this ..
pub const KEEPALIVE_MIN: Duration = Duration::from_secs(5);
/// .. or less often than this.
pub const KEEPALIVE_MAX: Duration = Duration::from_secs(240);
/// Keepalives are earlier than the NAT demands by this part of its timer ..
const MARGIN_PART: u32 = 5;
/// .. but at least by so much, for round trips ..
const MARGIN_MIN: Duration = Duration::from_secs(3);
/// .. and at most by so much: one that was lost is repeated each second, ten times.
const MARGIN_MAX: Duration = Duration::from_secs(10);
/// Networks that are remembered: those of a person's week.
const NETWORKS_MAX: usize = 16;
/// A timer that was measured is measured again after this: routers are replaced.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// After a mapping was lost although it was kept open in time, it is measured again after this, each
/// time after twice as long: a full table forgets earlier.
const AGAIN_LOST: Duration = Duration::from_secs(600);
/// A measurement that came to nothing, or was broken off, is begun again after this.
const AGAIN_BROKEN: Duration = Duration::from_secs(300);

impl Timer {
    /// Between keepalives that keep such a NAT's mappings.
    #[must_use]
    pub fn keepalive(&self) -> Duration {
        let span = match (self.kept.is_zero(), self.lost) {
            (true, None) => KEEPALIVE_DEFAULT,
            (true, Some(lost)) => (lost / 2).min(KEEPALIVE_DEFAULT),
            (false, _) => {
                let margin = (self.kept / MARGIN_PART).clamp(MARGIN_MIN, MARGIN_MAX);
                self.kept.saturating_sub(margin)
            }
        };
        span.clamp(KEEPALIVE_MIN, KEEPALIVE_MAX)
    }
}

/// A network, by the public address that relays see.
#[derive(Debug, Clone, Copy)]
struct Known {
    at: IpAddr,
    timer: Timer,
    measure_at: Instant,
    /// To wait after the next loss.
    again: Duration,
}

/// What is known of the networks that a node was on; it is on the first of them.
#[derive(Debug, Default)]
pub struct Keepalive {
    networks: VecDeque<Known>,
}

impl Keepalive {
    /// The node is on the network with this public address.
    pub fn handle_network(&mut self, at: IpAddr, now: Instant) {
        let before = self.networks.iter().position(|known| known.at == at);
        let known = before.and_then(|before| self.networks.remove(before)).unwrap_or(Known {
            at,
            timer: Timer::default(),
            measure_at: now,
            again: AGAIN_LOST,
        });
        self.networks.truncate(NETWORKS_MAX - 1);
        self.networks.push_front(known);
    }

    /// What is measured of the network's timer so far. What was known before goes on to count until
    /// the measurement is `complete`, unless it was less.
    pub fn handle_timer(&mut self, timer: Timer, complete: bool, now: Instant) {
        let Some(known) = self.networks.front_mut() else { return };
        if complete || timer.keepalive() > known.timer.keepalive() {
            known.timer = timer;
        }
        known.measure_at = now + if complete { AGAIN } else { AGAIN_BROKEN };
    }

    /// A direct path that had been idle for this long turned out to be dead. Unless keepalives were
    /// late, as after sleep, or frequent anyway, the NAT may have forgotten it earlier than measured.
    pub fn handle_lost(&mut self, idle: Duration, now: Instant) {
        let Some(known) = self.networks.front_mut() else { return };
        let late = known.timer.keepalive() + MARGIN_MAX * 2;
        if idle <= KEEPALIVE_DEFAULT || idle > late {
            return;
        }
        known.timer = Timer { kept: Duration::ZERO, lost: Some(idle) };
        known.measure_at = now + known.again;
        known.again = (known.again * 2).min(AGAIN);
    }

    /// What is known of the timer on this network.
    #[must_use]
    pub fn timer(&self) -> Timer {
        self.networks.front().map_or_else(Timer::default, |known| known.timer)
    }

    /// When the timer is to be measured; `None` while the node is on no network.
    #[must_use]
    pub fn measure_at(&self) -> Option<Instant> {
        self.networks.front().map(|known| known.measure_at)
    }
}
