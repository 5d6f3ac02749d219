//! Homes choose relays among honest ones and sybils.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sluice_market::{RelayBook, RelayFacts, RelayPolicy};
use sluice_proto::{EthAddress, PeerId};

use super::homes::keypair;
use crate::rng::Rng;

/// Prefixes that the sybils have.
const SYBIL_PREFIXES: u32 = 10;
/// Homes that choose, for each relay.
const HOMES_EACH: u32 = 2;
/// What a home pays at most.
const PRICE_MAX: u64 = 10_000;

/// Who was chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Share {
    chosen: u64,
    sybils: u64,
    homes: u64,
    /// Shares that one prefix could have, summed over the homes, in millionths.
    caps_ppm: u64,
}

impl Share {
    /// Sybils among those chosen.
    #[must_use]
    pub fn percent(&self) -> f64 {
        100.0 * self.sybils as f64 / self.chosen as f64
    }

    /// What the sybils' prefixes may have together.
    #[must_use]
    pub fn cap_percent(&self) -> f64 {
        let each = self.caps_ppm as f64 / self.homes as f64 / 10_000.0;
        (f64::from(SYBIL_PREFIXES) * each).min(100.0)
    }
}

/// `count` honest relays and as many sybils, with caps or without.
#[expect(clippy::disallowed_methods, reason = "a beginning of virtual time; only spans count")]
#[must_use]
pub fn run(count: u32, seed: u64, is_capped: bool) -> Share {
    let mut rng = Rng::new(seed);
    let begin = Instant::now();
    let honest: Vec<RelayFacts> = (0..count).map(|number| honest(&mut rng, number)).collect();
    let sybils: Vec<RelayFacts> = (0..count).map(|number| sybil(&mut rng, number)).collect();
    let names: BTreeSet<PeerId> = sybils.iter().map(|facts| facts.peer).collect();
    let policy = RelayPolicy { price_max: PRICE_MAX.into(), ..RelayPolicy::default() };
    let open = RelayPolicy { prefix_seats: usize::MAX, prefix_share_ppm: 1_000_000, ..policy };
    let mut share = Share::default();
    for _ in 0..HOMES_EACH * count {
        let mut book = RelayBook::new(if is_capped { policy } else { open }, rng.bytes());
        // The sybils come first, and again and again.
        for minute in 0..3 {
            let now = begin + Duration::from_secs(60 * minute);
            sybils.iter().for_each(|facts| book.handle_facts(*facts, now));
        }
        let now = begin + Duration::from_secs(180);
        for facts in &honest {
            // Measured by each home for itself.
            let latency = Duration::from_millis(5 + rng.below(200));
            book.handle_facts(RelayFacts { latency: Some(latency), ..*facts }, now);
        }
        let choice = book.choose(now);
        share.homes += 1;
        share.caps_ppm += u64::from(choice.prefix_share_ppm);
        share.chosen += choice.chosen.len() as u64;
        share.sybils += choice.chosen.iter().filter(|peer| names.contains(peer)).count() as u64;
    }
    share
}

/// One of many operators; some share a network.
fn honest(rng: &mut Rng, number: u32) -> RelayFacts {
    let network = number - u32::from(rng.chance(0.1) && number > 0);
    let [_, a, b, c] = network.to_be_bytes();
    let [d] = rng.bytes();
    RelayFacts {
        peer: keypair(rng).public().to_peer_id(),
        address: SocketAddr::new(IpAddr::from([11 + a, b, c, d]), 4433),
        operator: Some(EthAddress(rng.bytes())),
        price: (PRICE_MAX / 10 + rng.below(PRICE_MAX)).into(),
        latency: None,
        rate_proven: 100_000_000 * (1 + rng.below(10)),
        success_ppm: 500_000,
        is_alive: true,
    }
}

/// The best there can be: for nothing, next door, with every proof, each of an operator of its own.
fn sybil(rng: &mut Rng, number: u32) -> RelayFacts {
    let network = u8::try_from(number % SYBIL_PREFIXES).expect("few");
    let [d] = rng.bytes();
    RelayFacts {
        peer: keypair(rng).public().to_peer_id(),
        address: SocketAddr::new(IpAddr::from([200, 0, network, d]), 4433),
        operator: Some(EthAddress(rng.bytes())),
        price: 0,
        latency: Some(Duration::from_millis(1)),
        rate_proven: 1_000_000_000,
        success_ppm: 500_000,
        is_alive: true,
    }
}
