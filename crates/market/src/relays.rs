//! Which relays a provider keeps warm.
//!
//! A relay is drawn with a chance that grows with its price, its measured latency, its proven rate and
//! what it did so far, each against what the provider wants and not against the others', so that nobody
//! makes the others look bad. No prefix has more than two seats among those that are known, nor more than a
//! share of the chances; so names on few prefixes are few of those chosen, whatever they promise. The draw
//! is by a secret of the provider's: the same relay has the same luck tomorrow, so that a choice changes only
//! when a relay does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_proto::{EthAddress, PeerId};

use crate::draw::keyed;
use crate::{IpPrefix, Limiter};

/// Relays that are known at a time: a sample of them all, drawn by the secret.
const KNOWN_MAX: usize = 256;
/// Of one prefix.
pub const PREFIX_SEATS_MAX: usize = 2;
/// Where there are few prefixes, so many times an even share.
const EVEN_SHARES: u64 = 4;
/// Of its share of the choices, what a prefix has of the chances, in hundredths: who is left for the second
/// choice has more of the chances than for the first.
const DRAWN_SHARE: u64 = 90;
/// The best of a quality counts so many times the worst that is taken.
const BEST: u64 = 8;
/// A proven rate of so much more counts once more, bits per second.
const RATE_STEP: u64 = 100_000_000;
/// Until it is known for so long, a relay counts a quarter: names are free.
const NEWCOMER: Duration = Duration::from_secs(86_400);
/// A relay in use has so many hundredths of another's key: what is to take its place must be better by a
/// quarter.
const STICKINESS: f64 = 0.80;
/// Records of one prefix: one every ..
const RECORD_EVERY: Duration = Duration::from_secs(10);
/// .. and so many at once.
const RECORD_BURST: u32 = 64;

/// The largest share of the chances that one prefix may have among `prefixes`, in millionths: `share_max`,
/// or four even shares where there are few.
#[must_use]
pub fn prefix_share_max_ppm(prefixes: usize, share_max: u32) -> u32 {
    let prefixes = u64::try_from(prefixes.max(1)).unwrap_or(u64::MAX);
    let even = EVEN_SHARES.saturating_mul(1_000_000) / prefixes;
    share_max.max(u32::try_from(even.min(1_000_000)).expect("at most a million"))
}

/// What a provider wants of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayPolicy {
    /// How many to keep warm.
    pub wanted: usize,
    /// The most it pays, token base units per GiB each way.
    pub price_max: u128,
    /// The farthest, round trip.
    pub latency_max: Duration,
    /// The least proven rate, bits per second; 0: none.
    pub rate_min: u64,
    /// Of one prefix, known at a time.
    pub prefix_seats: usize,
    /// The largest share of the chances of one prefix where there are many, in millionths.
    pub prefix_share_ppm: u32,
    /// Whether to take two of one operator or prefix rather than too few.
    pub may_share: bool,
}

impl Default for RelayPolicy {
    fn default() -> Self {
        Self {
            wanted: 2,
            price_max: u128::MAX,
            latency_max: Duration::from_millis(300),
            rate_min: 0,
            prefix_seats: PREFIX_SEATS_MAX,
            prefix_share_ppm: 10_000,
            may_share: true,
        }
    }
}

/// What is known of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayFacts {
    /// Its name.
    pub peer: PeerId,
    /// Its data socket.
    pub address: SocketAddr,
    /// Whose it is: the wallet that its record names.
    pub operator: Option<EthAddress>,
    /// Token base units per GiB, the dearer way.
    pub price: u128,
    /// As measured; `None` if it was not.
    pub latency: Option<Duration>,
    /// By certificate, bits per second; 0: none.
    pub rate_proven: u64,
    /// This node's experience, in millionths: [`crate::Reputation::success_ppm`].
    pub success_ppm: u32,
    /// Whether it answers.
    pub is_alive: bool,
}

/// Why a relay is chosen or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelayVerdict {
    /// It is.
    #[error("chosen")]
    Chosen,
    /// It is, though it shares its operator or prefix with another: there are too few.
    #[error("chosen, though it shares its operator or network with {0}: there are too few others")]
    ChosenThough(PeerId),
    /// It does not answer.
    #[error("does not answer")]
    Dead,
    /// Too dear.
    #[error("asks {price}, and at most {max} is paid")]
    TooDear {
        /// Its price.
        price: u128,
        /// The most that is paid.
        max: u128,
    },
    /// Too far.
    #[error("{found:?} away, and at most {max:?} is wanted")]
    TooFar {
        /// Measured.
        found: Duration,
        /// Wanted.
        max: Duration,
    },
    /// Too little is proven.
    #[error("proves {found} bit/s, and {min} is wanted")]
    TooSlow {
        /// Proven.
        found: u64,
        /// Wanted.
        min: u64,
    },
    /// The same operator as one that is chosen.
    #[error("is of the same operator as {0}, which is chosen")]
    SameOperator(PeerId),
    /// The same prefix as one that is chosen.
    #[error("is in the same network as {0}, which is chosen")]
    SamePrefix(PeerId),
    /// Others came out before it.
    #[error("place {place} in the draw")]
    Lower {
        /// From 1.
        place: usize,
    },
    /// It came out before one that is in use, but not by enough to change.
    #[error("not better by enough than {0}, which is in use")]
    NotBetterEnough(PeerId),
}

/// The choice, and what is to be said of each relay, best first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayChoice {
    /// To keep warm, best first.
    pub chosen: Vec<PeerId>,
    /// All that are known.
    pub ranking: Vec<(PeerId, RelayVerdict)>,
    /// The largest share of the chances that one prefix could have, in millionths.
    pub prefix_share_ppm: u32,
}

/// A relay and what is to be said of it.
type Judged = (PeerId, RelayVerdict);
/// A relay and its key in the draw; the smallest comes first.
type Keyed = (PeerId, f64);

#[derive(Debug, Clone, Copy)]
struct Known {
    facts: RelayFacts,
    since: Instant,
    /// Decides who is known: the lowest.
    seat: u64,
    /// Decides the draw: the highest.
    luck: u64,
}

/// The relays that a provider knows, and those it uses.
#[derive(Debug)]
pub struct RelayBook {
    policy: RelayPolicy,
    key: [u8; 16],
    known: BTreeMap<PeerId, Known>,
    used: Vec<PeerId>,
    records: Limiter<IpPrefix>,
}

impl RelayBook {
    /// None is known. `key` is secret, and the same at each start.
    #[must_use]
    pub const fn new(policy: RelayPolicy, key: [u8; 16]) -> Self {
        let records = Limiter::new(RECORD_EVERY, RECORD_BURST, KNOWN_MAX);
        Self { policy, key, known: BTreeMap::new(), used: Vec::new(), records }
    }

    /// What is known of a relay now. One more than is kept takes the place of another if its seat is
    /// lower; a prefix has [`RelayPolicy::prefix_seats`].
    pub fn handle_facts(&mut self, facts: RelayFacts, now: Instant) {
        if let Some(known) = self.known.get_mut(&facts.peer) {
            // A relay that moved is another one.
            let moved = IpPrefix::of(known.facts.address.ip()) != IpPrefix::of(facts.address.ip());
            if !moved {
                known.facts = facts;
                return;
            }
            self.handle_gone(&facts.peer);
        }
        let prefix = IpPrefix::of(facts.address.ip());
        if !self.records.admit(&prefix, now) {
            return;
        }
        let name = facts.peer.to_bytes();
        let seat = keyed(&self.key, &[b"seat", &name[..]].concat());
        let luck = keyed(&self.key, &[b"draw", &name[..]].concat());
        let beside: Vec<(u64, PeerId)> =
            self.seats(|known| IpPrefix::of(known.facts.address.ip()) == prefix);
        if beside.len() >= self.policy.prefix_seats && !self.make_room(&beside, seat) {
            return;
        }
        if self.known.len() >= KNOWN_MAX {
            let all = self.seats(|_| true);
            if !self.make_room(&all, seat) {
                return;
            }
        }
        self.known.insert(facts.peer, Known { facts, since: now, seat, luck });
    }

    /// It is no relay any more.
    pub fn handle_gone(&mut self, peer: &PeerId) {
        self.known.remove(peer);
        self.used.retain(|used| used != peer);
    }

    fn seats(&self, among: impl Fn(&Known) -> bool) -> Vec<(u64, PeerId)> {
        let of = self.known.iter().filter(|(_, known)| among(known));
        of.map(|(peer, known)| (known.seat, *peer)).collect()
    }

    /// Forgets the one of `those` with the highest seat that is not in use, if `seat` is lower.
    fn make_room(&mut self, those: &[(u64, PeerId)], seat: u64) -> bool {
        let free = those.iter().filter(|(_, peer)| !self.used.contains(peer));
        match free.max() {
            Some((worst, peer)) if *worst > seat => {
                self.known.remove(peer);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Whether a relay is among those that are known: others had the lower seats, or it is gone.
    #[must_use]
    pub fn is_known(&self, peer: &PeerId) -> bool {
        self.known.contains_key(peer)
    }

    /// Relays that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Chooses anew. One that is in use stays unless it no longer does, or another is better by a quarter;
    /// the caller opens reservations at new ones before it gives old ones up.
    pub fn choose(&mut self, now: Instant) -> RelayChoice {
        let (mut ranking, drawn) = self.draw(now);
        let prefix_share_ppm = self.prefix_share(drawn.iter().map(|(peer, _)| peer));
        let picked = self.pick(&drawn);
        let chosen: Vec<PeerId> = picked
            .iter()
            .filter(|(_, verdict)| is_chosen(verdict))
            .map(|(peer, _)| *peer)
            .collect();
        let left = self.used.clone();
        self.used.clone_from(&chosen);
        let mut all = picked;
        // Whoever would be chosen but for those in use.
        let by_key = |(peer, key): &Keyed| {
            let used = left.contains(peer);
            (*peer, if used { key / STICKINESS } else { *key })
        };
        let mut fresh: Vec<Keyed> = drawn.iter().map(by_key).collect();
        fresh.sort_by(|a, b| a.1.total_cmp(&b.1));
        for (peer, verdict) in &mut all {
            let place = |of: &PeerId| fresh.iter().position(|(p, _)| p == of);
            if let RelayVerdict::Lower { .. } = verdict
                && let Some(stays) =
                    chosen.iter().find(|c| left.contains(c) && place(peer) < place(c))
            {
                *verdict = RelayVerdict::NotBetterEnough(*stays);
            }
        }
        all.append(&mut ranking);
        RelayChoice { chosen, ranking: all, prefix_share_ppm }
    }

    /// Those that are out of the question, and the others in the order of the draw.
    fn draw(&self, now: Instant) -> (Vec<Judged>, Vec<Keyed>) {
        let mut out = Vec::new();
        let mut weights: Vec<(&Known, u64)> = Vec::new();
        for known in self.known.values() {
            match self.weigh(known, now) {
                Ok(weight) => weights.push((known, weight)),
                Err(why) => out.push((known.facts.peer, why)),
            }
        }
        let capped = self.cap(&weights);
        let key = |(known, _): &(&Known, u64), weight: f64| {
            // Efraimidis and Spirakis, Weighted random sampling with a reservoir (2006): the smallest of
            // exponentially distributed keys.
            let uniform = (known.luck as f64 + 1.0) / (u64::MAX as f64 + 2.0);
            let key = -uniform.ln() / weight;
            let used = self.used.contains(&known.facts.peer);
            (known.facts.peer, if used { key * STICKINESS } else { key })
        };
        let mut drawn: Vec<Keyed> =
            weights.iter().zip(capped).map(|(of, weight)| key(of, weight)).collect();
        drawn.sort_by(|a, b| a.1.total_cmp(&b.1));
        (out, drawn)
    }

    /// How many chances a relay has, or why none.
    fn weigh(&self, known: &Known, now: Instant) -> Result<u64, RelayVerdict> {
        let (facts, policy) = (&known.facts, &self.policy);
        if !facts.is_alive {
            return Err(RelayVerdict::Dead);
        }
        if facts.price > policy.price_max {
            return Err(RelayVerdict::TooDear { price: facts.price, max: policy.price_max });
        }
        if facts.rate_proven < policy.rate_min {
            return Err(RelayVerdict::TooSlow { found: facts.rate_proven, min: policy.rate_min });
        }
        // One that was not measured counts as the farthest.
        let latency = facts.latency.unwrap_or(policy.latency_max);
        if latency > policy.latency_max {
            return Err(RelayVerdict::TooFar { found: latency, max: policy.latency_max });
        }
        let rate = (1 + facts.rate_proven / RATE_STEP).min(BEST);
        let success = u64::from(facts.success_ppm.min(1_000_000)) * BEST / 1_000_000;
        let new = now.saturating_duration_since(known.since) < NEWCOMER;
        let cheap = grade(facts.price, policy.price_max);
        let near = grade(latency.as_micros(), policy.latency_max.as_micros());
        Ok(cheap * near * rate * success.max(1) * if new { 1 } else { 4 })
    }

    /// The weights, no prefix with more than its share.
    fn cap(&self, weights: &[(&Known, u64)]) -> Vec<f64> {
        let prefix = |known: &Known| IpPrefix::of(known.facts.address.ip());
        let mut sums: BTreeMap<IpPrefix, u64> = BTreeMap::new();
        for (known, weight) in weights {
            *sums.entry(prefix(known)).or_default() += weight;
        }
        let share = u64::from(prefix_share_max_ppm(sums.len(), self.policy.prefix_share_ppm));
        let most = level(sums.values().copied(), share * DRAWN_SHARE / 100);
        let capped = |(known, weight): &(&Known, u64)| {
            let sum = sums[&prefix(known)];
            *weight as f64 * (sum.min(most) as f64 / sum as f64)
        };
        weights.iter().map(capped).collect()
    }

    fn prefix_share<'a>(&self, of: impl Iterator<Item = &'a PeerId>) -> u32 {
        let prefixes: BTreeSet<IpPrefix> =
            of.map(|peer| IpPrefix::of(self.known[peer].facts.address.ip())).collect();
        prefix_share_max_ppm(prefixes.len(), self.policy.prefix_share_ppm)
    }

    /// The first of the draw that differ in operator and prefix; if these are too few, others too.
    fn pick(&self, drawn: &[Keyed]) -> Vec<Judged> {
        let mut picked: Vec<Judged> = Vec::new();
        let mut chosen = 0;
        for (at, (peer, _)) in drawn.iter().enumerate() {
            let verdict = if chosen >= self.policy.wanted {
                RelayVerdict::Lower { place: at + 1 }
            } else {
                let of_chosen = picked.iter().filter(|(_, verdict)| is_chosen(verdict));
                let like = of_chosen.filter_map(|(other, _)| self.likeness(peer, other)).next();
                chosen += usize::from(like.is_none());
                like.unwrap_or(RelayVerdict::Chosen)
            };
            picked.push((*peer, verdict));
        }
        for (_, verdict) in &mut picked {
            if chosen >= self.policy.wanted || !self.policy.may_share {
                break;
            }
            if let RelayVerdict::SameOperator(other) | RelayVerdict::SamePrefix(other) = *verdict {
                *verdict = RelayVerdict::ChosenThough(other);
                chosen += 1;
            }
        }
        picked
    }

    fn likeness(&self, peer: &PeerId, other: &PeerId) -> Option<RelayVerdict> {
        let (ours, theirs) = (&self.known[peer].facts, &self.known[other].facts);
        if IpPrefix::of(ours.address.ip()) == IpPrefix::of(theirs.address.ip()) {
            return Some(RelayVerdict::SamePrefix(*other));
        }
        let same = ours.operator.is_some() && ours.operator == theirs.operator;
        same.then_some(RelayVerdict::SameOperator(*other))
    }
}

const fn is_chosen(verdict: &RelayVerdict) -> bool {
    matches!(verdict, RelayVerdict::Chosen | RelayVerdict::ChosenThough(_))
}

/// From [`BEST`] at nothing to 1 at the most.
fn grade(found: u128, max: u128) -> u64 {
    let steps = u128::from(BEST - 1);
    let left = max.saturating_sub(found);
    // Without overflow for the largest bound.
    let grade =
        if max > u128::MAX / steps { left / (max / steps) } else { left * steps / max.max(1) };
    1 + u64::try_from(grade.min(steps)).expect("below the best")
}

/// The largest sum that no prefix may exceed, so that it is at most `share_ppm` of all after the cap.
fn level(sums: impl Iterator<Item = u64> + Clone, share_ppm: u64) -> u64 {
    let holds = |most: u64| {
        let all: u128 = sums.clone().map(|sum| u128::from(sum.min(most))).sum();
        u128::from(most) * 1_000_000 <= all * u128::from(share_ppm)
    };
    let (mut low, mut high) = (1, sums.clone().max().unwrap_or(1).max(1));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    low
}
