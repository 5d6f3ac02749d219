//! Whether windows limit a link that pays: the same transfer, paid and free, over rates and delays.
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
/// Bytes that pass at least while it is measured: sixteen windows of the smallest size. What is lost
/// holds back up to one at either end.
const BYTES_MIN: u64 = 8 << 20;
/// So much is asked for that it does not end.
const ENDLESS: u64 = u64::MAX >> 8;
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
    /// The tenant sends, else the provider.
    pub is_up: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path == PathKind::Direct { "direct" } else { "relayed" };
        let way = if self.is_up { "up" } else { "down" };
        write!(f, "{}k-{}ms-{path}-{way}", self.rate / 1000, self.rtt.as_millis())
    }
}

/// What a line carried, in bits per second: while it warmed up, and after that.
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// For nothing.
    pub free: [f64; 2],
    /// Paid for.
    pub paid: [f64; 2],
    /// The window of the terms, in bytes.
    pub window: u64,
}

impl Throughput {
    fn ratios(&self) -> [f64; 2] {
        [0, 1].map(|i| self.paid[i] / self.free[i])
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
                for path in [PathKind::Direct, PathKind::Relayed] {
                    let case = |is_up| Case { rate, rtt, path, is_tight, is_up };
                    cases.extend([false, true].map(case));
                }
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

    async fn play(&self, clock: Clock, price: Price) -> Result<([f64; 2], u64)> {
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
        let served = deal.serve(&meeting).await?;
        let guest = deal.guest(&meeting).await?;
        let outcome = Arc::<Outcome>::default();
        let (up, down) = if self.is_up { (ENDLESS, 0) } else { (0, ENDLESS) };
        let asked = Asked { seed: rng.number() >> 1, up, down };
        let heard = || if self.is_up { served.heard() } else { outcome.heard() };
        let fetching = tokio::spawn(fetch(guest, asked, outcome.clone()));
        let span = self.span();
        clock.sleep(span).await;
        let warm = heard();
        clock.sleep(span).await;
        let heard = heard() - warm;
        if fetching.is_finished() {
            fetching.await??;
            bail!("the transfer came to an end");
        }
        fetching.abort();
        let path = meeting.theirs.path().borrow().map(|path| path.kind);
        ensure!(heard > 0, "nothing came after {warm} bytes; the path is {path:?}");
        ensure!(!outcome.is_wrong(), "a byte is wrong");
        let rate = |bytes: u64| bytes as f64 * 8.0 / span.as_secs_f64();
        Ok(([rate(warm), rate(heard)], meeting.terms.window))
    }

    fn span(&self) -> Duration {
        let bytes = Duration::from_secs_f64(BYTES_MIN as f64 * 8.0 / self.rate as f64);
        (self.rtt * ROUND_TRIPS).max(SPAN_MIN).max(bytes)
    }

    /// The provider's home and the tenant's. The line of the one that sends is the bottleneck.
    fn homes(&self) -> (HomeSpec, HomeSpec) {
        let part = if self.path == PathKind::Direct { DIRECT_PART } else { HOME_PART };
        let far = LinkSpec::delay(self.rtt / part);
        let queue = self.rate as f64 / 8.0 * self.rtt.max(QUEUE).as_secs_f64();
        let queue = Queueing::Fifo((queue as usize).max(QUEUE_MIN));
        let narrow = LinkSpec { rate: Some(self.rate), queue, ..far };
        let home = |up| HomeSpec { up, down: far, ..HomeSpec::default() };
        if self.is_up { (home(far), home(narrow)) } else { (home(narrow), home(far)) }
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
        let [warming, ratio] = t.ratios();
        self.least = Some(self.least.map_or(ratio, |least| least.min(ratio)));
        self.rows.push_str(&format!(
            "{:<27} {:>10} {:>12.3} {:>12.3} {ratio:>6.3} {warming:>8.3}\n",
            case.to_string(),
            t.window / 1024,
            t.free[1] / 1e6,
            t.paid[1] / 1e6,
        ));
    }

    /// A row for each line.
    #[must_use]
    pub fn table(&self) -> String {
        let head =
            "line                        window KiB  free Mbit/s  paid Mbit/s  ratio  warm-up\n";
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
