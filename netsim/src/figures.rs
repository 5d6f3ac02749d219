//! What a command comes to: a table for people, and one line of JSON.

use std::time::Duration;

use serde_json::{Value, json};

/// What a figure is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// It is only told.
    None,
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// What it came to; not a number if nothing could be measured.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it is to reach.
    pub target: Target,
}

impl Figure {
    /// A figure.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, target: Target) -> Self {
        Self { name: name.into(), value, unit, target }
    }

    /// Whether the target was reached; true where there is none.
    #[must_use]
    pub fn is_met(&self) -> bool {
        match self.target {
            Target::None => true,
            Target::AtMost(bound) => self.value <= bound,
            Target::AtLeast(bound) => self.value >= bound,
        }
    }

    fn target_text(&self) -> Option<String> {
        match self.target {
            Target::None => None,
            Target::AtMost(bound) => Some(format!("<= {bound}")),
            Target::AtLeast(bound) => Some(format!(">= {bound}")),
        }
    }

    fn json(&self) -> Value {
        let value = if self.value.is_finite() { json!(self.value) } else { Value::Null };
        let met = (self.target != Target::None).then(|| self.is_met());
        let (name, unit, target) = (&self.name, self.unit, self.target_text());
        json!({ "name": name, "value": value, "unit": unit, "target": target, "met": met })
    }
}

/// The figures as a table. A figure that was missed says so.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|f| f.name.len()).max().unwrap_or_default();
    let mut out = String::new();
    for figure in figures {
        let target = figure.target_text().unwrap_or_default();
        let met = match (figure.target, figure.is_met()) {
            (Target::None, _) => "",
            (_, true) => "met",
            (_, false) => "MISSED",
        };
        let (name, value, unit) = (&figure.name, figure.value, figure.unit);
        let value = format!("{value:.3}");
        let value = value.trim_end_matches('0').trim_end_matches('.');
        out.push_str(&format!("{name:<width$}  {value:>10} {unit:<9} {target:<10} {met}\n"));
    }
    out
}

/// The figures as the last line of a command's output.
#[must_use]
pub fn line(figures: &[Figure]) -> String {
    json!({ "figures": figures.iter().map(Figure::json).collect::<Vec<_>>() }).to_string()
}

/// Spans of time that were measured.
#[derive(Debug, Clone, Default)]
pub struct Spans(Vec<Duration>);

impl Spans {
    /// Adds one.
    pub fn push(&mut self, span: Duration) {
        let at = self.0.partition_point(|s| *s <= span);
        self.0.insert(at, span);
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: &Self) {
        self.0.extend(&other.0);
        self.0.sort_unstable();
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The span that `percent` of all do not exceed (nearest rank), in milliseconds.
    #[must_use]
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil().max(1.0) as usize;
        self.0.get(rank - 1).map_or(f64::NAN, |s| s.as_secs_f64() * 1e3)
    }
}

impl Extend<Duration> for Spans {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, spans: T) {
        for span in spans {
            self.push(span);
        }
    }
}
