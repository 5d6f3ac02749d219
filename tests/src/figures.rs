//! What a command that measures comes to: a table for people, and one line of JSON.

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
    name: String,
    value: f64,
    unit: &'static str,
    target: Target,
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

    fn bound(&self) -> String {
        match self.target {
            Target::None => String::new(),
            Target::AtMost(bound) => format!("<= {bound}"),
            Target::AtLeast(bound) => format!(">= {bound}"),
        }
    }

    fn row(&self, width: usize) -> String {
        let value = format!("{:.3}", self.value);
        let value = value.trim_end_matches('0').trim_end_matches('.');
        let met = match (self.target, self.is_met()) {
            (Target::None, _) => "",
            (_, true) => "met",
            (_, false) => "MISSED",
        };
        let row = format!(
            "{:<width$}  {value:>10} {:<9} {:<10} {met}",
            self.name,
            self.unit,
            self.bound()
        );
        row.trim_end().to_owned()
    }

    fn json(&self) -> Value {
        let has = self.target != Target::None;
        json!({
            "name": self.name, "value": self.value, "unit": self.unit,
            "target": has.then(|| self.bound()), "met": has.then(|| self.is_met()),
        })
    }
}

/// The figures as a table; with `json` the line of JSON follows.
#[must_use]
pub fn told(figures: &[Figure], json: bool) -> String {
    let width = figures.iter().map(|f| f.name.len()).max().unwrap_or_default();
    let mut lines: Vec<_> = figures.iter().map(|figure| figure.row(width)).collect();
    if json {
        let all: Vec<_> = figures.iter().map(Figure::json).collect();
        lines.push(json!({ "figures": all }).to_string());
    }
    lines.join("\n")
}
