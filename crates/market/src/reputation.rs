//! What a node has itself seen of others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluice_proto::PeerId;

use crate::Moment;

/// Peers that are remembered; beyond, the one of whom least is known is forgotten.
const PEERS_MAX: usize = 4_096;
/// After so long an experience counts half: a home that was down for a week is given another chance.
const HALF_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// What one success or failure counts.
const ONE: u32 = 1_000;
/// No count goes above this.
const COUNT_MAX: u32 = 1 << 30;
/// From so many failures on, as they count by now, a peer is shunned if it fails more often than not.
const SHUN_FAILURES: u32 = 2 * ONE;

#[derive(Debug, Clone, Copy)]
struct Seen {
    good: u32,
    bad: u32,
    at: Instant,
}

impl Seen {
    fn decayed(self, now: Instant) -> Self {
        Self { at: now, ..self.aged(now.saturating_duration_since(self.at)) }
    }

    /// What is left of it after so long.
    fn aged(self, age: Duration) -> Self {
        let halves = u32::try_from(age.as_secs() / HALF_LIFE.as_secs()).unwrap_or(u32::MAX);
        let rest = age.as_secs() % HALF_LIFE.as_secs();
        let decay = |count: u32| {
            let whole = u64::from(count.checked_shr(halves).unwrap_or(0));
            let lost = whole * rest / (2 * HALF_LIFE.as_secs());
            u32::try_from(whole - lost).expect("not more than before")
        };
        Self { good: decay(self.good), bad: decay(self.bad), at: self.at }
    }
}

/// What is known of one peer, to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experience {
    /// The peer.
    pub peer: PeerId,
    /// Its successes, in thousandths.
    pub good: u32,
    /// Its failures.
    pub bad: u32,
    /// When they counted so much.
    pub at_unix_ms: u64,
}

/// Successes and failures of each peer, as this node saw them; older ones count less. Never told to
/// others, so that nobody can spoil another's name.
#[derive(Debug, Clone, Default)]
pub struct Reputation(BTreeMap<PeerId, Seen>);

impl Reputation {
    /// It did what it had promised.
    pub fn succeeded(&mut self, peer: PeerId, now: Instant) {
        self.note(peer, now, ONE, 0);
    }

    /// It did not.
    pub fn failed(&mut self, peer: PeerId, now: Instant) {
        self.note(peer, now, 0, ONE);
    }

    /// The share of successes to expect, in millionths; one half of whom nothing is known.
    #[must_use]
    pub fn success_ppm(&self, peer: &PeerId, now: Instant) -> u32 {
        let (good, bad) = self.counts(peer, now);
        let (good, all) = (u64::from(good + ONE), u64::from(good) + u64::from(bad + 2 * ONE));
        u32::try_from(good * 1_000_000 / all).expect("at most a million")
    }

    /// Whether to have nothing to do with it for now.
    #[must_use]
    pub fn is_shunned(&self, peer: &PeerId, now: Instant) -> bool {
        let (good, bad) = self.counts(peer, now);
        bad >= SHUN_FAILURES && bad > good
    }

    /// All that is known, to be written down.
    pub fn experiences(&self, now: Moment) -> impl Iterator<Item = Experience> {
        self.0.iter().map(move |(peer, seen)| {
            let Seen { good, bad, .. } = seen.decayed(now.at);
            Experience { peer: *peer, good, bad, at_unix_ms: now.unix_ms }
        })
    }

    /// What was written down before; of more than are remembered the first.
    #[must_use]
    pub fn of(experiences: impl IntoIterator<Item = Experience>, now: Moment) -> Self {
        let seen = experiences.into_iter().take(PEERS_MAX).map(|was| {
            let age = Duration::from_millis(now.unix_ms.saturating_sub(was.at_unix_ms));
            let (good, bad) = (was.good.min(COUNT_MAX), was.bad.min(COUNT_MAX));
            (was.peer, Seen { good, bad, at: now.at }.aged(age))
        });
        Self(seen.collect())
    }

    /// Peers that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn counts(&self, peer: &PeerId, now: Instant) -> (u32, u32) {
        let seen = self.0.get(peer).map(|seen| seen.decayed(now));
        seen.map_or((0, 0), |seen| (seen.good, seen.bad))
    }

    fn note(&mut self, peer: PeerId, now: Instant, good: u32, bad: u32) {
        if !self.0.contains_key(&peer) && self.0.len() >= PEERS_MAX {
            let weight = |seen: &Seen| {
                let seen = seen.decayed(now);
                u64::from(seen.good) + u64::from(seen.bad)
            };
            let least = self.0.iter().min_by_key(|(_, seen)| weight(seen)).map(|(peer, _)| *peer);
            least.and_then(|least| self.0.remove(&least));
        }
        let seen = self.0.entry(peer).or_insert(Seen { good: 0, bad: 0, at: now });
        *seen = seen.decayed(now);
        seen.good = seen.good.saturating_add(good).min(COUNT_MAX);
        seen.bad = seen.bad.saturating_add(bad).min(COUNT_MAX);
    }
}
