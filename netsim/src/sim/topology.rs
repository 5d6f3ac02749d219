//! Networks, drawn at random.

use std::fmt;
use std::time::Duration;

use crate::nat::{Allocator, Dependence, NatSpec};
use crate::net::{Bursty, LinkSpec, Queueing};
use crate::rng::Rng;
use crate::scene::HomeSpec;

/// What a run takes place on.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The lines of the relays.
    pub relays: Vec<LinkSpec>,
    /// The tenant's home.
    pub tenant: HomeSpec,
    /// The provider's.
    pub provider: HomeSpec,
    /// Whether direct paths are allowed.
    pub direct: bool,
}

impl Topology {
    /// Draws one.
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let relays = 2 + rng.below(2);
        Self {
            relays: (0..relays).map(|_| LinkSpec::delay(ms(rng, 1, 25))).collect(),
            tenant: home(rng),
            provider: home(rng),
            direct: rng.chance(0.7),
        }
    }
}

fn ms(rng: &mut Rng, from: u64, to: u64) -> Duration {
    rng.span(Duration::from_millis(from), Duration::from_millis(to))
}

fn home(rng: &mut Rng) -> HomeSpec {
    let depth = rng.pick(&[0, 1, 1, 1, 1, 2]);
    // Megabits down and up: cable, fibre, VDSL, fixed 5G, scaled down so that runs stay short.
    let (down, up) = rng.pick(&[(40, 8), (40, 40), (25, 10), (20, 5)]);
    let delay = ms(rng, 2, 30);
    HomeSpec {
        nats: (0..depth).map(|_| nat(rng)).collect(),
        up: line(rng, up, delay),
        down: line(rng, down, delay),
        ipv6: rng.chance(0.25),
    }
}

fn nat(rng: &mut Rng) -> NatSpec {
    let mapping = rng.pick(&Dependence::ALL);
    let filtering = rng.pick(&Dependence::ALL);
    NatSpec {
        timeout: rng.pick(&[30, 60, 120, 300].map(Duration::from_secs)),
        inbound_refreshes: rng.chance(0.5),
        hairpins: rng.chance(0.3),
        ..NatSpec::new(mapping, filtering, rng.pick(&Allocator::ALL))
    }
}

fn line(rng: &mut Rng, mbits: u64, delay: Duration) -> LinkSpec {
    let bytes = rng.pick(&[64, 128, 256]) << 10;
    let bursts = Bursty { begins: 0.000_5, ends: 0.2, loss: 0.5 };
    LinkSpec {
        rate: Some(mbits * 1_000_000),
        delay,
        jitter: rng.pick(&[0, 0, 2, 5].map(Duration::from_millis)),
        loss: rng.pick(&[0.0, 0.0, 0.001, 0.005]),
        bursts: rng.chance(0.3).then_some(bursts),
        queue: rng.pick(&[Queueing::Fifo(bytes), Queueing::Pie(bytes), Queueing::FqCodel(bytes)]),
        ..LinkSpec::default()
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.direct { "" } else { ", direct forbidden" };
        write!(f, "{} relays{direct}, ", self.relays.len())?;
        describe(f, &self.tenant)?;
        f.write_str(" to ")?;
        describe(f, &self.provider)
    }
}

fn describe(f: &mut fmt::Formatter<'_>, home: &HomeSpec) -> fmt::Result {
    for nat in &home.nats {
        write!(f, "{} ", crate::matrix::name((nat.mapping, nat.filtering)))?;
    }
    let mbits = home.up.rate.unwrap_or_default() / 1_000_000;
    let v6 = if home.ipv6 { " v6" } else { "" };
    write!(f, "home {mbits} Mbit/s{v6}")
}
