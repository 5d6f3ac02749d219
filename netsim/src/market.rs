//! The market alone, in virtual time: thousands of homes that bid and tenants that award, through the
//! public face of `market`, on a network that only delays.
//!
//! - What all leases cost together is compared with a bound below which no assignment can be that knows
//!   everything beforehand ([`bound`]).
//! - The same market eight times as large shows what of a node's work and memory grows with it.
//! - Each home also chooses its relays, among as many honest ones as sybils on ten prefixes
//!   ([`relays`]).
//!
//! The controls take away what is to be shown: a market without a clock that awards by latency must cost
//! more; one whose orders ask everybody must grow; a choice of relays without caps must be captured.

pub mod bound;
mod homes;
mod region;
pub mod relays;

use anyhow::Result;
use clap::Args;
use sluice_market::{AwardPolicy, TenantPolicy, Weights};

use crate::figures::{Figure, Spans, Target};
use crate::pool;
use crate::rng::Rng;

pub use region::{Outcome, Shape};

/// How much is paid above the bound at most, in hundredths of it.
const EXCESS_MAX: f64 = 5.0;
/// What is counted of a node may be so many times as much in a market [`SCALE`] times as large: what chance
/// makes of the largest of more nodes.
const GROWTH_MAX: f64 = 1.25;
/// How much smaller the market is that the large one is compared with. Parts of a region are halves of
/// halves, so that with a power of two an order asks the same part of what is there.
const SCALE: u32 = 8;

/// How large the market is.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Homes.
    #[arg(long, default_value_t = 100_000)]
    providers: u32,
    /// Relays, and as many sybils.
    #[arg(long, default_value_t = 1_000)]
    relays: u32,
    /// Orders; a tenth as many tenants.
    #[arg(long, default_value_t = 10_000)]
    orders: u32,
    /// Parts of the world, each with topics of its own.
    #[arg(long, default_value_t = 4)]
    regions: u32,
    /// Decides all.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A market of 1,600 homes, for every day.
    #[arg(long, conflicts_with_all = ["providers", "relays", "orders", "regions"])]
    small: bool,
    /// End with one line of JSON.
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// What `--small` is.
    #[must_use]
    pub const fn small(seed: u64) -> Self {
        Self {
            providers: 1_600,
            relays: 200,
            orders: 160,
            regions: 1,
            seed,
            small: true,
            json: false,
        }
    }

    const fn shape(&self) -> Shape {
        Shape { homes: self.providers / self.regions, orders: self.orders / self.regions }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    large: Outcome,
    small: Outcome,
    dear: Outcome,
    loud: [Outcome; 2],
    relays: relays::Share,
    open: relays::Share,
}

/// A tenant as it is by default, but for the work of its stamps, which is the same for all.
fn policy() -> TenantPolicy {
    TenantPolicy { stamp_bits: Some(region::STAMP_BITS), ..TenantPolicy::default() }
}

/// Runs all of it; `say` hears what is under way.
///
/// # Errors
/// When a region cannot be run.
pub fn run(options: &Options, say: fn(&str)) -> Result<Report> {
    let options = if options.small {
        Options { json: options.json, ..Options::small(options.seed) }
    } else {
        options.clone()
    };
    let play = |name: &str, scale: u32, policy: TenantPolicy| -> Result<Outcome> {
        let shape = options.shape();
        let shape = Shape { homes: shape.homes / scale, orders: shape.orders / scale };
        let outcome = play(&options, shape, policy)?;
        say(&format!("{name:<44} {outcome}"));
        Ok(outcome)
    };
    let far = AwardPolicy::Score(Weights { price: 0, rate: 0, latency: 1, success: 0 });
    let hasty = TenantPolicy { clock: std::time::Duration::ZERO, award: far, ..policy() };
    let all = TenantPolicy { asked_max: u64::MAX, ..policy() };
    Ok(Report {
        small: play("an eighth of the market", SCALE, policy())?,
        large: play("the market", 1, policy())?,
        dear: play("control: no clock, the nearest wins", SCALE, hasty)?,
        loud: [
            play("control: all are asked, a hundredth", 100, all)?,
            play("control: all are asked, four times as many", 25, all)?,
        ],
        relays: relays::run(options.relays, options.seed, true),
        open: relays::run(options.relays, options.seed, false),
    })
}

fn play(options: &Options, shape: Shape, policy: TenantPolicy) -> Result<Outcome> {
    let mut seeds = Rng::new(options.seed);
    let seeds: Vec<u64> = (0..options.regions).map(|_| seeds.number()).collect();
    let outcomes = pool::run(&seeds, |seed| Ok(region::run(*seed, shape, policy)), |_, _| {});
    let mut sum = Outcome::default();
    for outcome in outcomes {
        sum.add(outcome?);
    }
    Ok(sum)
}

impl Report {
    /// What was measured, against what is wanted.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let (large, small) = (&self.large, &self.small);
        // A market smaller than a part is asked as a whole, and there is less of it.
        let growth_max = if small.heard_per_order() >= policy().asked_max as f64 / 2.0 {
            Target::AtMost(GROWTH_MAX)
        } else {
            Target::None
        };
        let growth = |name: &str, of: fn(&Outcome) -> f64, unit| {
            let times = of(large) / of(small);
            [
                Figure::new(name, of(large), unit, Target::None),
                Figure::new(
                    format!("{name}: times that of an eighth of the market"),
                    times,
                    "",
                    growth_max,
                ),
            ]
        };
        let ms = |name: &str, spans: &Spans, percent| {
            Figure::new(name, spans.percentile_ms(percent), "ms", Target::None)
        };
        let caught = [self.dear_caught(), self.loud_caught(), self.open_caught()];
        let caught = caught.iter().filter(|caught| **caught).count();
        let cap = Target::AtMost(self.relays.cap_percent());
        let mut figures = vec![
            Figure::new(
                "orders that came to a lease",
                large.leased_percent(),
                "%",
                Target::AtLeast(100.0),
            ),
            Figure::new(
                "paid above the cheapest there can be",
                large.excess_percent(),
                "%",
                Target::AtMost(EXCESS_MAX),
            ),
            Figure::new(
                "the same, of an eighth of the market",
                small.excess_percent(),
                "%",
                Target::AtMost(EXCESS_MAX),
            ),
            Figure::new(
                "the cheapest found in hindsight, above that bound",
                large.hindsight_percent(),
                "%",
                Target::None,
            ),
            ms("order to first bid, p95, virtual", &large.first_bid, 95.0),
            ms("order to lease, p95, virtual", &large.lease, 95.0),
        ];
        figures.extend(growth("orders that a home heard", Outcome::heard_each, ""));
        figures.extend(growth("homes that heard an order", Outcome::heard_per_order, ""));
        figures.extend(growth("bids that a tenant got for an order", Outcome::bids_per_order, ""));
        figures.extend(growth("entries in a home's tables at most", |o| o.home_entries as f64, ""));
        figures.extend(growth(
            "entries in a tenant's tables at most",
            |o| o.tenant_entries as f64,
            "",
        ));
        figures.extend([
            Figure::new("sybils' share of chosen relays", self.relays.percent(), "%", cap),
            Figure::new("the same without caps", self.open.percent(), "%", Target::None),
            Figure::new(
                "controls that failed, as they must",
                caught as f64,
                "of 3",
                Target::AtLeast(3.0),
            ),
        ]);
        figures
    }

    fn dear_caught(&self) -> bool {
        self.dear.excess_percent() > EXCESS_MAX
    }

    fn loud_caught(&self) -> bool {
        let [small, large] = &self.loud;
        large.heard_per_order() > GROWTH_MAX * small.heard_per_order()
    }

    fn open_caught(&self) -> bool {
        self.open.percent() > self.relays.cap_percent()
    }

    /// Whether each control did, so that the figures say something.
    #[must_use]
    pub fn controls_failed(&self) -> bool {
        self.dear_caught() && self.loud_caught() && self.open_caught()
    }
}
