//! Whether windows limit a link that pays: the same download, paid and free, over rates and delays.
//!
//! Terms are signed for `rate_max`'s default; with `--tight` for the line's own rate, which makes
//! the windows as small as they can be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sluice_proto::{Price, WINDOW_MAX};
use sluice_transport::{Clock, PathKind};

use crate::figures::{Figure, Target};
use crate::net::{LinkSpec, Queueing};
use crate::paid::{Asked, Deal, Ear, Outcome, Tariff, fetch};
use crate::rng::Rng;
use crate::scene::{HomeSpec, PATIENCE, allow_direct};
use crate::time;

/// Bits per second.
const RATES: [u64; 5] = [56_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];
/// `rate_max` by default.
const RATE_MAX: u64 = 1_000_000_000;
/// Round trips in milliseconds.
const RTTS_MS: [u64; 6] = [1, 20, 60, 100, 300, 800];
/// Beside the round trip a voucher takes this long: timers and ledgers.
const VOUCHER: Duration = Duration::from_millis(20);
/// Of the round trip, this part lies between each home and the relay, each way ..
const HOME_PART: u32 = 5;
/// .. or between the homes, where they meet directly; the rest is the relay's line.
const DIRECT_PART: u32 = 4;
const RELAY_PART: u32 = 20;
/// The queue in front of the line holds one round trip, or this much time if that is longer.
const QUEUE: Duration = Duration::from_millis(20);
const QUEUE_MIN: usize = 32 << 10;
/// Round trips until it is measured, and while it is; and the least that both last.
const ROUND_TRIPS: u32 = 25;
const SPAN_MIN: Duration = Duration::from_secs(2);
/// Bytes that pass at least while it is measured: some windows of the smallest size.
const BYTES_MIN: u64 = 2 << 20;
/// What a line that pays must reach of what it does for nothing.
const RATIO_MIN: f64 = 0.97;

/// A line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Bits per second.
    pub rate: u64,
    /// There and back, unloaded.
    pub rtt: Duration,
    /// Which way the session goes.
    pub path: PathKind,
    /// Whether terms are signed for this rate.
    pub is_tight: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path == PathKind::Direct { "direct" } else { "relayed" };
        write!(f, "{}k-{}ms-{path}", self.rate / 1000, self.rtt.as_millis())
    }
}

/// What a line carried, in bits per second.
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// For nothing.
    pub free: f64,
    /// Paid for.
    pub paid: f64,
    /// The window of the terms, in bytes.
    pub window: u64,
}

impl Throughput {
    fn ratio(&self) -> f64 {
        self.paid / self.free
    }
}

/// Every line on which a window of at most 16 MiB must not be felt:
/// rate x (RTT + 20 ms) is at most five eighths of that.
#[must_use]
pub fn cases(is_tight: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for rate in RATES {
        for rtt in RTTS_MS.map(Duration::from_millis) {
            let in_flight = u128::from(rate) * (rtt + VOUCHER).as_micros() / 8_000_000;
            if in_flight <= u128::from(WINDOW_MAX * 5 / 8) {
                let paths = [PathKind::Direct, PathKind::Relayed];
                cases.extend(paths.map(|path| Case { rate, rtt, path, is_tight }));
            }
        }
    }
    cases
}

impl Case {
    /// Measures it free and paid.
    ///
    /// # Errors
    /// When the session does not come about, or carries nothing.
    pub fn run(&self) -> Result<Throughput> {
        let play = |price| {
            time::run(async |clock| self.play(clock, price).await)
                .with_context(|| format!("case {self}"))
        };
        let (free, _) = play(Price::default())?;
        let (paid, window) = play(Price { up: 1 << 30, down: 1 << 30 })?;
        Ok(Throughput { free, paid, window })
    }

    async fn play(&self, clock: Clock, price: Price) -> Result<(f64, u64)> {
        let mut rng = Rng::new(self.rate ^ self.rtt.as_micros() as u64);
        let rate_max = if self.is_tight { self.rate } else { RATE_MAX };
        let tariff = Tariff { price, relay_rate_max: rate_max, rate_max: Some(rate_max) };
        let relay = LinkSpec::delay(self.rtt / RELAY_PART);
        let mut deal = Deal::open_at(clock.clone(), rng.split(), &[relay], tariff).await?;
        let (provider, tenant) = self.homes();
        let meeting = deal.meet(&provider, &tenant, 1, Ear::True, |_, _| {}).await?;
        if self.path == PathKind::Direct {
            let candidates = allow_direct(&meeting.ours, &meeting.theirs);
            deal.scene.within("the candidates", candidates).await??;
            let direct = deal.scene.until_path(&meeting.theirs, PathKind::Direct, PATIENCE).await;
            direct.context("the session does not become direct")?;
        }
        let _served = deal.serve(&meeting).await?;
        let guest = deal.guest(&meeting).await?;
        let outcome = Arc::<Outcome>::default();
        let asked = Asked { seed: rng.number() >> 1, up: 0, down: u64::MAX >> 8 };
        let fetching = tokio::spawn(fetch(guest, asked, outcome.clone()));
        let span = self.span();
        clock.sleep(span).await;
        let before = outcome.heard();
        clock.sleep(span).await;
        let heard = outcome.heard() - before;
        if fetching.is_finished() {
            fetching.await??;
            bail!("the download came to an end");
        }
        fetching.abort();
        let path = meeting.theirs.path().borrow().map(|path| path.kind);
        ensure!(heard > 0, "nothing came after {before} bytes; the path is {path:?}");
        ensure!(!outcome.is_wrong(), "a byte is wrong");
        Ok((heard as f64 * 8.0 / span.as_secs_f64(), meeting.terms.window))
    }

    fn span(&self) -> Duration {
        let bytes = Duration::from_secs_f64(BYTES_MIN as f64 * 8.0 / self.rate as f64);
        (self.rtt * ROUND_TRIPS).max(SPAN_MIN).max(bytes)
    }

    /// The provider's home, whose line is the bottleneck, and the tenant's.
    fn homes(&self) -> (HomeSpec, HomeSpec) {
        let part = if self.path == PathKind::Direct { DIRECT_PART } else { HOME_PART };
        let far = LinkSpec::delay(self.rtt / part);
        let queue = self.rate as f64 / 8.0 * self.rtt.max(QUEUE).as_secs_f64();
        let queue = Queueing::Fifo((queue as usize).max(QUEUE_MIN));
        let narrow = LinkSpec { rate: Some(self.rate), queue, ..far };
        let provider = HomeSpec { up: narrow, down: far, ..HomeSpec::default() };
        (provider, HomeSpec { up: far, down: far, ..HomeSpec::default() })
    }
}

/// What came of all lines.
#[derive(Debug, Default)]
pub struct Report {
    rows: String,
    least: Option<f64>,
    failed: u64,
}

impl Report {
    /// Takes in what came of a line.
    pub fn add(&mut self, case: &Case, outcome: &Result<Throughput>) {
        let Ok(t) = outcome else {
            self.failed += 1;
            return;
        };
        let ratio = t.ratio();
        self.least = Some(self.least.map_or(ratio, |least| least.min(ratio)));
        self.rows.push_str(&format!(
            "{:<22} {:>9} {:>12.3} {:>12.3} {ratio:>7.3}\n",
            case.to_string(),
            t.window / 1024,
            t.free / 1e6,
            t.paid / 1e6,
        ));
    }

    /// A row for each line.
    #[must_use]
    pub fn table(&self) -> String {
        let head = "line                   window KiB  free Mbit/s  paid Mbit/s   ratio\n";
        format!("{head}{}", self.rows)
    }

    /// What is to be reached.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let least = self.least.unwrap_or(f64::NAN);
        vec![
            Figure::new("least paid throughput", least, "of free", Target::AtLeast(RATIO_MIN)),
            Figure::new("lines that failed", self.failed as f64, "", Target::AtMost(0.0)),
        ]
    }
}
