//! What was measured so far, and what went wrong.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::measure::{Bulk, Run};
use crate::subject::Subject;

/// The middle of some measurements, with the least and the greatest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

/// All measurements of a run of the benchmark.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Remarks on the circumstances, for the reader of the tables.
    pub(crate) notes: Vec<String>,
    /// One relay's memory per idle reservation, in bytes, where it was measured.
    pub(crate) idle_bytes: Option<f64>,
    errors: Vec<String>,
    runs: BTreeMap<Subject, Vec<Option<Run>>>,
    without_offloads: BTreeMap<Subject, Vec<Bulk>>,
}

impl Results {
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a round's run of `subject`, or why there is none.
    pub(crate) fn add(&mut self, subject: Subject, run: Result<Run>) {
        let run = self.keep(&subject.to_string(), run);
        self.runs.entry(subject).or_default().push(run);
    }

    /// Adds a round's run of `subject` without offloads, or why there is none.
    pub(crate) fn add_without_offloads(&mut self, subject: Subject, bulk: Result<Bulk>) {
        let bulk = self.keep(&format!("{subject}, without offloads"), bulk);
        self.without_offloads.entry(subject).or_default().extend(bulk);
    }

    /// Adds the relay's bytes per idle reservation, or why they are not known.
    pub(crate) fn add_idle(&mut self, bytes: Result<Option<f64>>) {
        self.idle_bytes = self.keep("idle reservations", bytes).flatten();
    }

    /// Whether all that was to be measured was measured.
    pub(crate) fn valid(&self) -> bool {
        self.errors.is_empty()
    }

    pub(crate) fn errors(&self) -> &[String] {
        &self.errors
    }

    /// The subjects with at least one run, in the order of the tables.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = Subject> {
        self.runs
            .iter()
            .filter(|(_, runs)| runs.iter().flatten().next().is_some())
            .map(|(subject, _)| *subject)
    }

    /// The subjects measured without offloads, in the order of the tables.
    pub(crate) fn subjects_without_offloads(&self) -> impl Iterator<Item = Subject> {
        let measured = self.without_offloads.iter().filter(|(_, bulks)| !bulks.is_empty());
        measured.map(|(subject, _)| *subject)
    }

    /// One value of each run of `subject`; `None` if there is no run.
    pub(crate) fn spread(&self, subject: Subject, value: impl Fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.runs.get(&subject)?.iter().flatten().map(value).collect())
    }

    /// As [`spread`](Self::spread), of the runs without offloads.
    pub(crate) fn spread_without_offloads(
        &self,
        subject: Subject,
        value: impl Fn(&Bulk) -> f64,
    ) -> Option<Spread> {
        Spread::of(self.without_offloads.get(&subject)?.iter().map(value).collect())
    }

    /// Values made of two subjects' runs in one round, for each round that has both.
    pub(crate) fn paired(
        &self,
        one: Subject,
        other: Subject,
        values: impl Fn(&Run, &Run) -> Vec<f64>,
    ) -> Option<Spread> {
        let pairs = self.runs.get(&one)?.iter().zip(self.runs.get(&other)?);
        let both = pairs.filter_map(|(one, other)| one.as_ref().zip(other.as_ref()));
        Spread::of(both.flat_map(|(one, other)| values(one, other)).collect())
    }

    /// The most cores that other processes used in any window.
    pub(crate) fn others_cores(&self) -> f64 {
        let runs = self.runs.values().flatten().flatten();
        let bulks = runs.flat_map(|run| [&run.one, &run.eight]);
        bulks
            .chain(self.without_offloads.values().flatten())
            .map(|bulk| bulk.others_cores)
            .fold(0.0, f64::max)
    }

    fn keep<T>(&mut self, what: &str, outcome: Result<T>) -> Option<T> {
        outcome
            .inspect_err(|error| {
                let error = format!("{what}: {error:#}");
                eprintln!("tunnel: {error}");
                self.errors.push(error);
            })
            .ok()
    }
}

impl Spread {
    /// `None` if there are no values, or some are not numbers.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.iter().any(|value| value.is_nan()) {
            return None;
        }
        values.sort_unstable_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        let median = f64::midpoint(*values.get(lower)?, *values.get(upper)?);
        Some(Self { median, least, greatest })
    }
}
