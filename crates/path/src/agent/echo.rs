//! Pings and their echoes: when an address is asked, and what an answer proves.

use std::time::{Duration, Instant};

use super::{ASK_AGAIN, Agent, Ping, State};
use crate::event::{Event, Probe};
use crate::{CANDIDATES_MAX, Path};

/// Waits between the first pings to an unproven path; the last one is repeated.
const FIRST_PINGS_MS: [u64; 6] = [0, 20, 50, 100, 200, 400];
/// An address that does not answer this many pings is left alone ..
const PINGS_MAX: u32 = 14;
/// .. for this long, each time twice as long ..
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(4);
/// .. up to this: whoever names a stranger's address must not trouble the stranger for long ..
const RETRY_MAX: Duration = Duration::from_secs(64);
/// .. and then is sent so many.
const RETRY_PINGS: u32 = 4;
/// The same of an address that neither echoed before nor is what a relay sees: it gets no more than
/// [`STRANGER_PROBES_MAX`](crate::STRANGER_PROBES_MAX) in all, half of them at once.
const STRANGER_PINGS: (u32, u32) = (8, 2);
/// An address or relay that carried echoes in this session before is asked again after this, so
/// that it is found soon after it heals ..
const KNOWN_RETRY: Duration = Duration::from_secs(3);
/// .. for as long as this after it died.
const KNOWN_FOR: Duration = Duration::from_secs(600);
/// Unanswered pings remembered for a path: a suspect path's are more than a second's.
const OUTSTANDING_MAX: usize = 16;
/// While a direct path stands, so many unknown addresses of the other node are pinged ..
const STRAYS_MAX: usize = 4;
/// .. within this: where both NATs map by destination, each ping makes another address.
const STRAYS_SPAN: Duration = Duration::from_secs(10);

impl Agent {
    /// Answers, if that may be. What is not answered now comes again. An address for which there was
    /// no room is not answered: packets from there are nobody's, and an echo says that they arrive.
    pub(super) fn handle_ping(&mut self, from: Path, token: u64, now: Instant) {
        if !self.may_probe(from) || !self.paths.contains_key(&from) {
            return;
        }
        // An echo from there is worth more than ours, if but one probe may go there.
        if self.has_one_left(from, now) {
            self.ping(from, now);
        } else if self.admit(from, now).is_ok() {
            self.transmits.push_back((from, Probe::Pong { token }));
        }
        let Some(state) = self.paths.get_mut(&from) else { return };
        // What pings us may be reached: do not wait for our own schedule. One ping for a ping,
        // since anybody's address may stand on it.
        if !state.proven && state.next_ping.is_none_or(|at| at > now + RETRY_AFTER) {
            state.next_ping = Some(now);
        }
        if let Path::Direct(pair) = from {
            self.events.push_back(Event::Proven(pair));
        }
    }

    /// Whether a stranger may be sent one probe, and was not asked for an echo just now.
    fn has_one_left(&self, path: Path, now: Instant) -> bool {
        let (Path::Direct(pair), Some(state)) = (path, self.paths.get(&path)) else { return false };
        !self.is_vouched(pair)
            && self.strangers.left(pair.remote.ip()) == 1
            && state.outstanding.back().is_none_or(|ping| ping.sent + ASK_AGAIN <= now)
    }

    /// Whether the unknown address of a probe becomes a candidate.
    pub(super) fn takes_in(&mut self, probe: Probe, now: Instant) -> bool {
        if !self.has_direct() || matches!(probe, Probe::Use { .. }) {
            return true;
        }
        self.strays.retain(|at| *at + STRAYS_SPAN > now);
        let room = self.strays.len() < STRAYS_MAX;
        if room {
            self.strays.push_back(now);
        }
        room
    }

    /// An echo. It proves the path that its ping took, whichever way it came back itself: a NAT
    /// that maps by destination may answer from another address than was asked.
    pub(super) fn handle_pong(&mut self, from: Path, token: u64, now: Instant) {
        let asked = |state: &State| state.outstanding.iter().any(|p| p.token == token);
        let took = if self.paths.get(&from).is_some_and(asked) {
            from
        } else if let Path::Direct(came) = from {
            let direct = self.paths.iter().filter(|(p, _)| matches!(p, Path::Direct(_)));
            let Some(path) = direct.filter(|(_, s)| asked(s)).map(|(p, _)| *p).next() else {
                return;
            };
            if self.paths.contains_key(&from) {
                self.events.push_back(Event::Proven(came));
            }
            path
        } else {
            return;
        };
        let Some(state) = self.paths.get_mut(&took) else { return };
        let Some(at) = state.outstanding.iter().position(|p| p.token == token) else { return };
        let from = took;
        let ping = state.outstanding[at];
        state.outstanding.drain(..=at);
        state.measure(now.saturating_duration_since(ping.sent), ping.doubted);
        if !state.proven {
            state.proven = true;
            state.echoes = 0;
            state.size.begin(now);
            if let Path::Direct(pair) = from {
                self.events.push_back(Event::Proven(pair));
            }
        }
        if let Path::Direct(pair) = from {
            self.strangers.echoed(pair.remote.ip());
        }
        state.known = true;
        state.echoed = Some(now);
        state.asked = None;
        state.pings = 0;
        state.retry_after = RETRY_AFTER;
        state.echoes = state.echoes.saturating_add(1);
        state.next_ping = Some(now + state.rest(from, self.keepalive));
        let use_epoch = state.use_epoch.take();
        // What else arrives there may still come from a side that hears nothing of us.
        if self.selected == Some(from) {
            self.answered();
        }
        if let Some(epoch) = use_epoch {
            self.handle_use(from, epoch, now);
        }
    }

    /// Forgets the candidate that was heard of longest ago, if there is no room for another.
    pub(super) fn make_room(&mut self) {
        let direct = self.paths.iter().filter(|(p, _)| matches!(p, Path::Direct(_)));
        if direct.clone().count() < CANDIDATES_MAX {
            return;
        }
        let idle = direct.filter(|(p, s)| !s.proven && self.selected != Some(**p));
        let oldest = idle.min_by_key(|(_, s)| s.heard).map(|(path, _)| *path);
        if let Some(path @ Path::Direct(pair)) = oldest {
            self.paths.remove(&path);
            self.events.push_back(Event::Forgotten(pair));
        }
    }

    pub(super) fn ping(&mut self, path: Path, now: Instant) {
        if let Err(later) = self.admit(path, now) {
            if let Some(state) = self.paths.get_mut(&path) {
                state.next_ping = later;
            }
            return;
        }
        let (mut first, mut again) = (PINGS_MAX, RETRY_PINGS);
        if let Path::Direct(pair) = path
            && !self.is_vouched(pair)
        {
            (first, again) = STRANGER_PINGS;
        }
        let token = self.tokens.draw();
        let Some(state) = self.paths.get_mut(&path) else { return };
        if state.outstanding.len() == OUTSTANDING_MAX {
            state.outstanding.pop_front();
        }
        let doubted = self.suspect.is_some();
        state.outstanding.push_back(Ping { token, sent: now, doubted });
        state.pinged = Some(now);
        let asked = *state.asked.get_or_insert(now);
        state.pings = state.pings.saturating_add(1);
        let wait = if state.proven {
            ASK_AGAIN
        } else if state.pings >= first {
            state.pings = first - again;
            if state.known && asked + KNOWN_FOR > now {
                KNOWN_RETRY
            } else {
                let wait = state.retry_after;
                state.retry_after = (wait * 2).min(RETRY_MAX);
                wait
            }
        } else {
            let step = FIRST_PINGS_MS.get(state.pings as usize).or(FIRST_PINGS_MS.last());
            Duration::from_millis(*step.expect("the table is not empty"))
        };
        state.next_ping = Some(now + wait);
        self.transmits.push_back((path, Probe::Ping { token }));
        if self.announces && self.selected == Some(path) {
            self.transmits.push_back((path, Probe::Use { epoch: self.epoch }));
        }
        if self.trial.is_some_and(|t| t.path == path && t.until.is_none()) {
            self.transmits.push_back((path, Probe::Trial { epoch: self.epoch }));
        }
    }
}
