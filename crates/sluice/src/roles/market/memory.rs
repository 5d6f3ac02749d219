//! What a tenant has seen of providers, from one order to the next.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sluice_market::{Experience, Moment, Reputation};

use crate::state::State;

/// Its name in the state directory: one JSON object a line.
const FILE: &str = "providers";

/// Reads what was written down. A file that is damaged is as good as none: it is no one's money.
pub(super) async fn recall(dir: Option<&Path>, now: Moment) -> Result<Reputation> {
    let Some(path) = dir.map(|dir| dir.join(FILE)) else { return Ok(Reputation::default()) };
    let read = tokio::task::spawn_blocking(move || State::read_text(&path)).await?;
    let text = read.context("failed to read what is known of providers")?.unwrap_or_default();
    Ok(Reputation::of(text.lines().filter_map(experience), now))
}

/// Writes it down.
pub(super) async fn keep(dir: Option<&Path>, all: impl Iterator<Item = Experience>) -> Result<()> {
    let Some(path) = dir.map(|dir| dir.join(FILE)) else { return Ok(()) };
    let line = |e: Experience| {
        let line = json!({
            "peer": e.peer.to_string(), "good": e.good, "bad": e.bad, "at_unix_ms": e.at_unix_ms,
        });
        format!("{line}\n")
    };
    let text: String = all.map(line).collect();
    let kept = tokio::task::spawn_blocking(move || State::write_file(&path, text.as_bytes()));
    kept.await?.context("failed to write down what is known of providers")
}

fn experience(line: &str) -> Option<Experience> {
    let value: Value = serde_json::from_str(line).ok()?;
    let count = |key: &str| value[key].as_u64().and_then(|count| u32::try_from(count).ok());
    Some(Experience {
        peer: value["peer"].as_str()?.parse().ok()?,
        good: count("good")?,
        bad: count("bad")?,
        at_unix_ms: value["at_unix_ms"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fed::feed;

    #[test]
    fn what_is_known_of_providers() {
        let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let genuine = format!(r#"{{"peer":"{peer}","good":1000,"bad":0,"at_unix_ms":7}}"#);
        assert!(experience(&genuine).is_some(), "the seed is not genuine");
        feed!(genuine, |text: &str| experience(text).is_some());
    }
}
