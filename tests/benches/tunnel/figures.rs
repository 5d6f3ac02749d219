//! The figures that a run comes to, each with what it is to reach where that was said.
//!
//! Figures of Sluice are those of metered sessions, as that is what people pay for; of unmetered
//! ones only where metering failed to run. Ratios are between runs of the same benchmark.

use serde::Serialize;

use crate::measure::Run;
use crate::netns::Place;
use crate::results::{Results, Spread};
use crate::subject::{Path, Subject};

/// One line of the outcome.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What it is to reach, such as `<= 0.35`; `None` for a figure that is only told.
    pub(crate) target: Option<String>,
    pub(crate) met: Option<bool>,
}

/// What a figure is to reach.
#[derive(Debug, Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

use Target::{AtLeast, AtMost};

impl Figure {
    fn with_target(name: &str, value: Option<f64>, unit: &'static str, to: Target) -> Option<Self> {
        let value = value?;
        let (target, met) = match to {
            AtMost(bound) => (format!("<= {bound}"), value <= bound),
            AtLeast(bound) => (format!(">= {bound}"), value >= bound),
        };
        Some(Self { name: name.to_owned(), value, unit, target: Some(target), met: Some(met) })
    }

    fn told(name: String, value: Spread, unit: &'static str) -> Self {
        Self { name, value: value.median, unit, target: None, met: None }
    }
}

/// All figures of the run: those with a target first, then every subject's medians.
pub(crate) fn all(results: &Results) -> Vec<Figure> {
    let mut all = relayed(results);
    all.extend(direct(results));
    all.extend(metering(results));
    for subject in results.subjects() {
        all.extend(medians(results, subject));
    }
    for subject in results.subjects_without_offloads() {
        all.extend(medians_without_offloads(results, subject));
    }
    all
}

fn relayed(results: &Results) -> Vec<Figure> {
    let Some(sluice) = sluice(results, Path::Relayed) else { return Vec::new() };
    let iroh = Subject::Iroh(Path::Relayed);
    let median = |value: fn(&_) -> f64| Some(results.spread(sluice, value)?.median);
    let over_iroh = |value: fn(&_) -> f64| {
        let ratio = |one: &_, other: &_| vec![value(one) / value(other)];
        Some(results.paired(sluice, iroh, ratio)?.median)
    };
    let without_offloads =
        results.spread_without_offloads(sluice, |bulk| bulk.role_s_per_gb(Place::Relay));
    let figures = [
        ("relay_cpu", median(|run| run.one.role_s_per_gb(Place::Relay)), "CPU s/GB", AtMost(0.35)),
        (
            "relay_cpu_without_offloads",
            without_offloads.map(|spread| spread.median),
            "CPU s/GB",
            AtMost(1.0),
        ),
        ("relayed_1_stream_over_iroh", over_iroh(|run| run.one.gbit_s), "x", AtLeast(2.0)),
        ("relayed_8_streams_over_iroh", over_iroh(|run| run.eight.gbit_s), "x", AtLeast(1.5)),
        ("relayed_1_stream_cpu", median(|run| run.one.cpu_s_per_gb()), "CPU s/GB", AtMost(2.6)),
        ("relayed_8_streams_cpu", median(|run| run.eight.cpu_s_per_gb()), "CPU s/GB", AtMost(2.6)),
        ("relayed_echo_p50", median(|run| micros(run.echo.p50)), "us", AtMost(180.0)),
        ("relayed_first_byte_p50", median(|run| micros(run.dial.p50)), "us", AtMost(400.0)),
        ("relayed_http", median(|run| run.http_per_s), "requests/s", AtLeast(25_000.0)),
        (
            "relay_memory_per_reservation",
            results.idle_bytes.map(|bytes| bytes / 1e3),
            "KB",
            AtMost(40.0),
        ),
    ];
    with_targets(figures)
}

fn direct(results: &Results) -> Vec<Figure> {
    let Some(sluice) = sluice(results, Path::Direct) else { return Vec::new() };
    let median = |value: fn(&_) -> f64| Some(results.spread(sluice, value)?.median);
    let eight_over_one = |run: &Run, _: &Run| vec![run.eight.gbit_s / run.one.gbit_s];
    let eight_over_one = results.paired(sluice, sluice, eight_over_one);
    let figures = [
        ("direct_1_stream", median(|run| run.one.gbit_s), "Gbit/s", AtLeast(4.6)),
        ("direct_1_stream_cpu", median(|run| run.one.cpu_s_per_gb()), "CPU s/GB", AtMost(2.3)),
        ("direct_8_streams_cpu", median(|run| run.eight.cpu_s_per_gb()), "CPU s/GB", AtMost(2.3)),
        ("direct_8_over_1_streams", eight_over_one.map(|spread| spread.median), "x", AtLeast(1.0)),
    ];
    with_targets(figures)
}

fn metering(results: &Results) -> Vec<Figure> {
    let over = |path| {
        let (metered, unmetered) =
            (Subject::Sluice { path, metered: true }, Subject::Sluice { path, metered: false });
        let ratios = results.paired(metered, unmetered, |metered, unmetered| {
            let one = metered.one.cpu_s_per_gb() / unmetered.one.cpu_s_per_gb();
            vec![one, metered.eight.cpu_s_per_gb() / unmetered.eight.cpu_s_per_gb()]
        });
        Some(ratios?.median)
    };
    with_targets([
        ("metered_over_unmetered_cpu_direct", over(Path::Direct), "x", AtMost(1.03)),
        ("metered_over_unmetered_cpu_relayed", over(Path::Relayed), "x", AtMost(1.05)),
    ])
}

/// The Sluice subject that speaks for this path.
fn sluice(results: &Results, path: Path) -> Option<Subject> {
    let [metered, unmetered] = [true, false].map(|metered| Subject::Sluice { path, metered });
    let mut measured = results.subjects().filter(|subject| [metered, unmetered].contains(subject));
    let first = measured.next()?;
    Some(measured.next().unwrap_or(first))
}

fn with_targets<const N: usize>(
    figures: [(&str, Option<f64>, &'static str, Target); N],
) -> Vec<Figure> {
    figures
        .into_iter()
        .filter_map(|(name, value, unit, to)| Figure::with_target(name, value, unit, to))
        .collect()
}

fn medians(results: &Results, subject: Subject) -> Vec<Figure> {
    let slug = subject.slug();
    let told = |name: &str, unit, value: fn(&_) -> f64| {
        Some(Figure::told(format!("{slug}.{name}"), results.spread(subject, value)?, unit))
    };
    [
        told("1_stream", "Gbit/s", |run| run.one.gbit_s),
        told("1_stream_cpu", "CPU s/GB", |run| run.one.cpu_s_per_gb()),
        told("1_stream_relay_cpu", "CPU s/GB", |run| run.one.role_s_per_gb(Place::Relay)),
        told("8_streams", "Gbit/s", |run| run.eight.gbit_s),
        told("8_streams_cpu", "CPU s/GB", |run| run.eight.cpu_s_per_gb()),
        told("echo_p50", "us", |run| micros(run.echo.p50)),
        told("echo_p99", "us", |run| micros(run.echo.p99)),
        told("first_byte_p50", "us", |run| micros(run.dial.p50)),
        told("first_byte_p99", "us", |run| micros(run.dial.p99)),
        told("http", "requests/s", |run| run.http_per_s),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn medians_without_offloads(results: &Results, subject: Subject) -> Vec<Figure> {
    let slug = subject.slug();
    let told = |name: &str, unit, value: fn(&_) -> f64| {
        let spread = results.spread_without_offloads(subject, value)?;
        Some(Figure::told(format!("{slug}_without_offloads.{name}"), spread, unit))
    };
    [
        told("1_stream", "Gbit/s", |bulk| bulk.gbit_s),
        told("1_stream_cpu", "CPU s/GB", |bulk| bulk.cpu_s_per_gb()),
        told("1_stream_relay_cpu", "CPU s/GB", |bulk| bulk.role_s_per_gb(Place::Relay)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Microseconds, as a number with a fraction.
pub(crate) fn micros(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
