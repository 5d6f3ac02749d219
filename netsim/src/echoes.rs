//! An hour at a keyboard, through a relay that bills what it sends to the provider up to a grant.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_transport::Clock;

use crate::figures::{Figure, Target};
use crate::net::LinkSpec;
use crate::paid::{Deal, Ear, Typing, chat, megabits};
use crate::rng::Rng;
use crate::scene::HomeSpec;
use crate::time;

/// One way over each line.
const LINE: Duration = Duration::from_millis(10);
/// Bits per second of the homes' lines, in millions.
const MBITS: u64 = 10;
/// What is lost on the relay's line, each way, in some of the runs.
const LOSS: f64 = 0.01;

/// Somebody who types.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// How.
    pub typing: Typing,
    /// Whether packets are lost.
    pub loses: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hour {
    /// Bytes that were typed, and bytes that came back.
    pub typed: u64,
    /// The same.
    pub heard: u64,
    /// Frames that the relay dropped beyond the grant.
    pub dropped: u64,
    /// Frame bytes that it sent to the provider unbilled, beyond grant or window.
    pub unbilled: u64,
    /// Frame bytes that it billed, to the provider.
    pub billed: u64,
}

/// Slow and fast typing, and small messages, each of `lasts`; on good lines and on bad ones.
#[must_use]
pub fn cases(lasts: Duration) -> Vec<Case> {
    let typing = |bytes, ms| Typing { bytes, every: Duration::from_millis(ms), lasts };
    let typing =
        [typing(1, 200), typing(1, 50), typing(1, 25_000), typing(64, 100), typing(1000, 500)];
    let with = |loses| typing.map(|typing| Case { typing, loses });
    with(false).into_iter().chain(with(true)).collect()
}

impl Case {
    /// Lets it happen.
    ///
    /// # Errors
    /// When the session does not come about, or does not say everything back.
    pub fn run(&self) -> Result<Hour> {
        time::run(async |clock| self.play(clock).await).with_context(|| format!("{self:?}"))
    }

    async fn play(&self, clock: Clock) -> Result<Hour> {
        let loss = if self.loses { LOSS } else { 0.0 };
        let line = LinkSpec { loss, ..LinkSpec::delay(LINE) };
        let mut deal = Deal::open(clock, Rng::new(1), &[line]).await?;
        let line = megabits(MBITS, LINE);
        let home = HomeSpec { up: line, down: line, ..HomeSpec::default() };
        let meeting = deal.meet(&home, &home, 1, Ear::True, |_, _| {}).await?;
        let _served = deal.serve(&meeting).await?;
        let guest = deal.guest(&meeting).await?;
        let before = totals(&deal)?;
        let heard = chat(&guest, self.typing).await?;
        let after = totals(&deal)?;
        let times = self.typing.lasts.as_nanos().div_ceil(self.typing.every.as_nanos());
        let typed = u64::try_from(times)? * self.typing.bytes as u64;
        ensure!(heard == typed, "{typed} bytes were typed, and {heard} came back");
        Ok(Hour {
            typed,
            heard,
            dropped: after.0,
            unbilled: (after.1 - before.1) - (after.2 - before.2),
            billed: after.2 - before.2,
        })
    }
}

/// Dropped beyond the grant, sent to the provider, and billed to it.
fn totals(deal: &Deal) -> Result<(u64, u64, u64)> {
    let relay = deal.scene.relays[0].process().context("the relay lives")?;
    let stats = relay.stats();
    let dropped = stats.drops.iter().find(|(kind, _)| kind.name() == "grant").map_or(0, |d| d.1);
    let totals = stats.reservations.first().context("the provider has a reservation")?.totals;
    let forwarded = stats.flows.iter().map(|flow| flow.to_holder).sum();
    Ok((dropped, forwarded, totals.down))
}

/// What came of all.
#[derive(Debug, Default)]
pub struct Report {
    rows: String,
    over: u64,
    failed: u64,
}

impl Report {
    /// Takes in what came of one.
    pub fn add(&mut self, case: &Case, outcome: &Result<Hour>) {
        let Ok(hour) = outcome else {
            self.failed += 1;
            return;
        };
        let (bytes, every) = (case.typing.bytes, case.typing.every.as_millis());
        let lossy = if case.loses { "1 % lost" } else { "" };
        self.over += hour.dropped + hour.unbilled;
        self.rows.push_str(&format!(
            "{bytes:>5} B each {every:>6} ms {lossy:<9} {:>9} {:>10} {:>8} {:>9}\n",
            hour.heard, hour.billed, hour.dropped, hour.unbilled,
        ));
    }

    /// A row for each.
    #[must_use]
    pub fn table(&self) -> String {
        let head = "typing                              echoed B   billed B  dropped  unbilled\n";
        format!("{head}{}", self.rows)
    }

    /// What is to be reached.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let name = "echoes: dropped frames and unbilled bytes beyond the grant";
        vec![
            Figure::new(name, self.over as f64, "", Target::AtMost(0.0)),
            Figure::new("hours that failed", self.failed as f64, "", Target::AtMost(0.0)),
        ]
    }
}
