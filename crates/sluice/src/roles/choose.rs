//! Which relays a provider keeps warm, chosen anew whenever conditions change.
//!
//! The choice itself is [`RelayBook`]'s. Here is what feeds it: records of the mesh, round trips that this
//! node measured, and whether a relay kept its word. A new relay has to give a reservation before one that
//! it takes the place of is left; and a relay is left for good when the last flow through it has ended, so
//! that no session is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_market::{RelayBook, RelayChoice, RelayFacts, RelayPolicy, RelayVerdict, Reputation};
use sluice_proto::eth::keccak256;
use sluice_proto::{PeerId, RelayAddr};
use sluice_transport::Clock;
use tokio::time::MissedTickBehavior;

use super::advertise::Standing;
use super::mesh::{KnownRelay, Meshed, Ranked};
use super::probe::{Probed, Probing};
use super::provide::ProvideOptions;
use super::report::{Report, Reporter};
use super::warm::WarmRelays;

/// How often the reservations and their round trips are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The first choice waits so long for relays that are being measured.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
/// A relay is measured again after this if it is among the best ..
const PROBE_BEST: Duration = Duration::from_secs(600);
/// .. which are so many ..
const BEST: usize = 8;
/// .. and after this otherwise.
const PROBE_OTHERS: Duration = Duration::from_secs(6 * 3600);
/// One that did not answer is asked again after this, doubled each time ..
const PROBE_DEAD: Duration = Duration::from_secs(15);
/// .. up to this.
const PROBE_DEAD_MAX: Duration = Duration::from_secs(3600);
/// After so many probes in vain a relay is out of the running until it answers one.
const SILENT_MAX: u32 = 3;
/// A relay that is used, and has given no reservation or forwards nothing for so long, is replaced.
const AWAY_MAX: Duration = Duration::from_secs(10);
/// It is not asked again for this long, doubled each time it happens.
const SHUN: Duration = Duration::from_secs(120);
/// A relay that is to be left is, once no flow has been open through it for so long.
const IDLE: Duration = Duration::from_secs(15);
/// The records of relays that are used are looked at this often.
const REFRESH_EACH: Duration = Duration::from_secs(60);
/// Of a private network, where all are of one prefix, so many are known.
const PRIVATE_SEATS: usize = 64;

/// Why a relay is not even in the draw.
const NO_SEAT: &str = "others of its network were drawn to be considered in its place";

/// What this node knows of a relay by itself.
#[derive(Debug, Default)]
struct Seen {
    probed: Option<Probed>,
    probe_at: Option<Instant>,
    /// Probes in a row that it did not answer.
    silent: u32,
    /// Since when it is used and of no use.
    away: Option<Instant>,
    shunned: Option<Instant>,
    shuns: u32,
    /// Since when no flow is open through it, while it is to be left.
    idle: Option<Instant>,
}

impl Seen {
    fn is_shunned(&self, now: Instant) -> bool {
        self.shunned.is_some_and(|until| until > now)
    }

    fn is_alive(&self, now: Instant) -> bool {
        self.probed.is_some_and(|probed| probed.rtt.is_some()) && !self.is_shunned(now)
    }
}

/// What a provider, or one who asks in its place, wants of relays. In a private network prefixes say
/// nothing.
pub(crate) fn policy(price_max: u128, is_private: bool) -> RelayPolicy {
    let policy = RelayPolicy { price_max, ..RelayPolicy::default() };
    if !is_private {
        return policy;
    }
    RelayPolicy { prefix_seats: PRIVATE_SEATS, prefix_share_ppm: 1_000_000, ..policy }
}

/// The facts of a relay that answers.
pub(crate) fn facts(known: &KnownRelay, latency: Option<Duration>, success_ppm: u32) -> RelayFacts {
    RelayFacts {
        peer: known.peer,
        address: known.address.addr,
        // Records name no wallet, and carry no certificate of a relay.
        operator: None,
        rate_proven: 0,
        price: known.price.up.max(known.price.down),
        latency,
        success_ppm,
        is_alive: true,
    }
}

/// All relays that are known, those of the draw first, each with why it has its place.
pub(crate) fn ranked(
    choice: &RelayChoice,
    known: &[KnownRelay],
    latency: impl Fn(&KnownRelay) -> Option<Duration>,
) -> Vec<Ranked> {
    let rank = |relay: &KnownRelay, why: String| {
        let chosen = choice.chosen.contains(&relay.peer);
        Ranked { relay: *relay, latency: latency(relay), chosen, why }
    };
    let in_draw = choice.ranking.iter().filter_map(|(peer, verdict)| {
        let relay = known.iter().find(|relay| relay.peer == *peer)?;
        Some(rank(relay, verdict.to_string()))
    });
    let is_out = |relay: &&KnownRelay| choice.ranking.iter().all(|(p, _)| *p != relay.peer);
    let mut out: Vec<_> =
        known.iter().filter(is_out).map(|relay| rank(relay, NO_SEAT.to_owned())).collect();
    out.sort_by_key(|out| out.relay.peer);
    in_draw.chain(out).collect()
}

/// Chooses for as long as the provider runs.
pub(crate) struct Chooser {
    mesh: Meshed,
    warm: Arc<WarmRelays>,
    clock: Clock,
    report: Reporter,
    book: RelayBook,
    known: HashMap<PeerId, KnownRelay>,
    seen: HashMap<PeerId, Seen>,
    reputation: Reputation,
    probing: Probing,
    chosen: Vec<PeerId>,
    began: Option<Instant>,
    /// When the records of those that are used were looked at last.
    refreshed: Option<Instant>,
    /// The best at the last choice.
    best: Vec<PeerId>,
}

impl Chooser {
    pub(crate) fn new(
        mesh: Meshed,
        warm: Arc<WarmRelays>,
        options: &ProvideOptions,
        clock: Clock,
    ) -> Self {
        let secret = [b"sluice relays", &options.identity.noise[..]].concat();
        let mut key = [0; 16];
        key.copy_from_slice(&keccak256(&secret)[..16]);
        let policy = policy(options.relay_price_max, mesh.is_private());
        Self {
            mesh,
            warm,
            clock,
            report: options.report.clone(),
            book: RelayBook::new(policy, key),
            known: HashMap::new(),
            seen: HashMap::new(),
            reputation: Reputation::default(),
            probing: Probing::new(options.bind.ip()),
            chosen: Vec::new(),
            began: None,
            refreshed: None,
            best: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        let mut changes = self.mesh.relay_changes();
        let mut standings = self.warm.standings();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.look().await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                changed = standings.changed() => if changed.is_err() { return },
                (peer, probed) = self.probing.next() => self.probed(peer, probed),
                _ = look.tick() => {}
            }
        }
    }

    fn probed(&mut self, peer: PeerId, probed: Probed) {
        let now = self.clock.now();
        let is_best = self.best.contains(&peer) || self.best.len() < BEST;
        let seen = self.seen.entry(peer).or_default();
        seen.probed = Some(probed);
        let pause = match probed.rtt {
            Some(_) => {
                seen.silent = 0;
                if is_best { PROBE_BEST } else { PROBE_OTHERS }
            }
            None => {
                seen.silent = seen.silent.saturating_add(1);
                PROBE_DEAD.saturating_mul(1 << (seen.silent - 1).min(10)).min(PROBE_DEAD_MAX)
            }
        };
        seen.probe_at = Some(now + pause);
    }

    async fn look(&mut self) {
        let now = self.clock.now();
        self.hear(now);
        self.watch_used(now);
        self.refresh_used(now);
        for known in self.known.values() {
            // One that is long gone takes no seat of its network.
            if self.seen.get(&known.peer).is_some_and(|seen| seen.silent >= SILENT_MAX) {
                self.book.handle_gone(&known.peer);
            } else {
                let facts = self.facts(known, now);
                self.book.handle_facts(facts, now);
            }
        }
        for (peer, known) in &self.known {
            let used = self.chosen.contains(peer);
            let due = self.seen.get(peer).and_then(|seen| seen.probe_at).is_none_or(|at| at <= now);
            // Who has no seat is not looked for: a flood of names costs nothing but their records.
            if due && !used && self.is_considered(peer) {
                self.probing.ask(*peer, known.address);
            }
        }
        if self.is_time(now) {
            let choice = self.book.choose(now);
            self.apply(&choice);
        }
        self.give_up_idle(now).await;
    }

    /// Whether a relay has a seat, or would have one if it answered.
    fn is_considered(&self, peer: &PeerId) -> bool {
        let silent = self.seen.get(peer).is_some_and(|seen| seen.silent >= SILENT_MAX);
        silent || self.book.is_known(peer)
    }

    /// Takes in what the mesh tells.
    fn hear(&mut self, now: Instant) {
        let all = self.mesh.relays();
        let before = std::mem::take(&mut self.known);
        self.known = all.into_iter().map(|known| (known.peer, known)).collect();
        for (peer, old) in before {
            match self.known.get(&peer) {
                Some(new) if new.address == old.address => {}
                // What was measured there says nothing of another place.
                Some(_) => drop(self.seen.remove(&peer)),
                None => {
                    self.book.handle_gone(&peer);
                    self.seen.remove(&peer);
                }
            }
        }
        if self.began.is_none() && !self.known.is_empty() {
            self.began = Some(now);
        }
    }

    /// A relay that works is not left because its record was not heard again.
    fn refresh_used(&mut self, now: Instant) {
        if self.refreshed.is_some_and(|at| at + REFRESH_EACH > now) {
            return;
        }
        self.refreshed = Some(now);
        for known in self.chosen.iter().filter_map(|peer| self.known.get(peer)) {
            let (mesh, known) = (self.mesh.clone(), *known);
            tokio::spawn(async move { mesh.refresh(&known).await });
        }
    }

    /// Whether those that are used give what they promised.
    fn watch_used(&mut self, now: Instant) {
        let standings = self.warm.standings();
        let standings = standings.borrow();
        for peer in &self.chosen {
            let Some(known) = self.known.get(peer) else { continue };
            let stand = standings.iter().find(|stand| stand.relay == known.address);
            let seen = self.seen.entry(*peer).or_default();
            match stand.map(|stand| stand.standing) {
                Some(Standing::Reserved) => {
                    if seen.away.take().is_some() {
                        self.reputation.succeeded(*peer, now);
                    }
                }
                Some(Standing::Away | Standing::Silent) | None => {
                    let since = *seen.away.get_or_insert(now);
                    if since + AWAY_MAX <= now && !seen.is_shunned(now) {
                        seen.shunned = Some(now + SHUN.saturating_mul(1 << seen.shuns.min(6)));
                        seen.shuns += 1;
                        seen.away = None;
                        self.reputation.failed(*peer, now);
                    }
                }
            }
        }
    }

    fn facts(&self, known: &KnownRelay, now: Instant) -> RelayFacts {
        let seen = self.seen.get(&known.peer);
        let is_used = self.chosen.contains(&known.peer);
        let is_shunned = seen.is_some_and(|seen| seen.is_shunned(now));
        let probed = seen.and_then(|seen| seen.probed).and_then(|probed| probed.rtt);
        let latency = self.warm.rtt(known.address).filter(|_| is_used).or(probed);
        let is_alive = !is_shunned && (is_used || seen.is_some_and(|seen| seen.is_alive(now)));
        let success_ppm = self.reputation.success_ppm(&known.peer, now);
        RelayFacts { is_alive, ..facts(known, latency, success_ppm) }
    }

    /// The first choice waits until what is known has been measured, for a while.
    fn is_time(&self, now: Instant) -> bool {
        let Some(began) = self.began else { return false };
        let measured = |peer: &PeerId| {
            let probed = self.seen.get(peer).is_some_and(|seen| seen.probed.is_some());
            probed || !self.is_considered(peer)
        };
        !self.chosen.is_empty() || began + FIRST_WITHIN <= now || self.known.keys().all(measured)
    }

    /// Opens what is new, and leaves what is not chosen any more once what is stands.
    fn apply(&mut self, choice: &RelayChoice) {
        let address = |peer: &PeerId| self.known.get(peer).map(|known| known.address);
        let chosen: Vec<RelayAddr> = choice.chosen.iter().filter_map(address).collect();
        for relay in &chosen {
            self.warm.open(*relay);
        }
        self.warm.prefer(&chosen);
        let standings = self.warm.standings().borrow().clone();
        let stands = |relay: &RelayAddr| {
            standings.iter().any(|s| s.relay == *relay && s.standing == Standing::Reserved)
        };
        if !chosen.is_empty() && chosen.iter().all(stands) {
            for stand in standings.iter().filter(|stand| !chosen.contains(&stand.relay)) {
                self.warm.leave(stand.relay);
            }
        }
        if self.chosen != choice.chosen {
            self.chosen.clone_from(&choice.chosen);
            let relays = chosen.iter().map(ToString::to_string).collect();
            self.report.tell(&Report::RelaysChosen { relays });
        }
        self.best = choice.ranking.iter().take(BEST).map(|(peer, _)| *peer).collect();
        self.mesh.explain(self.ranked(choice));
    }

    /// The ranking, with what it was made of.
    fn ranked(&self, choice: &RelayChoice) -> Vec<Ranked> {
        let known: Vec<KnownRelay> = self.known.values().copied().collect();
        let mut ranked = ranked(choice, &known, |relay| {
            let probed = self.seen.get(&relay.peer).and_then(|seen| seen.probed);
            self.warm.rtt(relay.address).or(probed.and_then(|probed| probed.rtt))
        });
        let is_silent = |peer: &PeerId| self.seen.get(peer).is_some_and(|s| s.silent >= SILENT_MAX);
        for out in ranked.iter_mut().filter(|out| is_silent(&out.relay.peer)) {
            out.why = RelayVerdict::Dead.to_string();
        }
        ranked
    }

    /// Gives up what is to be left and carries nothing any more.
    async fn give_up_idle(&mut self, now: Instant) {
        let leaving: Vec<_> =
            self.warm.standings().borrow().iter().filter(|s| s.leaves).copied().collect();
        for stand in leaving {
            let is_idle = self.warm.flows(stand.relay) == 0;
            let seen = self.seen.entry(stand.relay.peer).or_default();
            let since = *seen.idle.get_or_insert(now);
            if !is_idle {
                seen.idle = Some(now);
            } else if since + IDLE <= now {
                seen.idle = None;
                self.warm.close(stand.relay).await;
            }
        }
    }
}
