//! Whom to dial while few peers are connected, and when again.

use std::time::{Duration, Instant};

use libp2p::Multiaddr;

/// First pause before an address is dialled again; doubled with each attempt ..
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// .. up to this.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Most addresses.
const SEEDS_MAX: usize = 128;

/// Addresses to begin with, each with its pause.
#[derive(Debug)]
pub(crate) struct Seeds(Vec<Seed>);

#[derive(Debug)]
struct Seed {
    address: Multiaddr,
    attempts: u32,
    next: Instant,
}

impl Seeds {
    /// All of them are due at once.
    pub(crate) fn new(addresses: impl IntoIterator<Item = Multiaddr>, now: Instant) -> Self {
        let mut seeds = Self(Vec::new());
        for address in addresses {
            seeds.add(address, now);
        }
        seeds
    }

    /// Adds one that is not there; at most 128 are kept.
    pub(crate) fn add(&mut self, address: Multiaddr, now: Instant) {
        if self.0.len() < SEEDS_MAX && self.0.iter().all(|s| s.address != address) {
            self.0.push(Seed { address, attempts: 0, next: now });
        }
    }

    /// Those to dial now. `spread` is random: nodes that lost the same peer do not all come back in
    /// the same second.
    pub(crate) fn due(&mut self, now: Instant, mut spread: impl FnMut() -> u8) -> Vec<Multiaddr> {
        let mut due = Vec::new();
        for seed in self.0.iter_mut().filter(|s| s.next <= now) {
            seed.next = now + pause(seed.attempts, spread());
            seed.attempts = seed.attempts.saturating_add(1);
            due.push(seed.address.clone());
        }
        due
    }

    /// Enough peers are connected: whoever is dialled next is dialled at once.
    pub(crate) fn settle(&mut self, now: Instant) {
        for seed in &mut self.0 {
            (seed.attempts, seed.next) = (0, now);
        }
    }
}

/// `1 s x 2^attempts`, at most 5 min, and up to half of it more.
pub(crate) fn pause(attempts: u32, spread: u8) -> Duration {
    let pause = PAUSE_MIN.saturating_mul(1 << attempts.min(16)).min(PAUSE_MAX);
    pause + pause.mul_f64(f64::from(spread) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_does_not_answer_is_dialled_less_and_less() {
        let now = Instant::now();
        let address: Multiaddr = "/ip4/192.0.2.1/udp/1/quic-v1".parse().expect("an address");
        let mut seeds = Seeds::new([address.clone(), address.clone()], now);
        let second = |s| now + Duration::from_secs(s);
        let dialled: Vec<u64> =
            (0..1_500).filter(|s| seeds.due(second(*s), || 0) == [address.clone()]).collect();
        let pauses: Vec<u64> = dialled.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let at = second(1_500);
        assert!(seeds.due(at, || 0).is_empty());
        seeds.settle(at);
        assert_eq!(seeds.due(at, || 0).len(), 1);
        assert!(pause(3, 255) < PAUSE_MIN * 12 && pause(40, 0) == PAUSE_MAX);
    }
}
