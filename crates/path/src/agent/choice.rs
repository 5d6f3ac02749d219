//! The choice of a path: what is left, what is taken, and how the other side hears of it.

use std::time::{Duration, Instant};

use super::doubt::SUSPECT_PING;
use super::{Agent, STALE};
use crate::event::{Event, Probe, Reason};
use crate::{Path, Rank};

/// A switch is said again with the pings on the new path, the first of them after this.
const SAY_AGAIN: Duration = Duration::from_millis(200);
/// How long a path that died stays out, the first time ..
const HOLD_DOWN: Duration = Duration::from_secs(2);
/// .. and when it died again, so that it is tried no more often than this ..
const FLAP_HOLD: Duration = Duration::from_secs(30);
/// .. until it has lived for this long.
const FLAP_SPAN: Duration = Duration::from_secs(120);

impl Agent {
    /// Follows the other side, but only to where it was echoed: it may be a stranger's address.
    pub(super) fn handle_use(&mut self, from: Path, epoch: u64, now: Instant) {
        if self.selected == Some(from)
            && epoch >= self.epoch
            && self.trial.is_some_and(|t| t.until.is_some())
        {
            self.end_trial();
        }
        if epoch < self.epoch || (epoch == self.epoch && self.controlling) {
            return;
        }
        if !self.may_probe(from) {
            // Not there: the other side must come back to where we are.
            if let Some(selected) = self.selected.filter(|p| self.may_probe(*p)) {
                self.epoch = epoch.saturating_add(1);
                self.announces = true;
                self.announce(selected);
            }
            return;
        }
        let Some(state) = self.paths.get_mut(&from) else { return };
        if !state.proven && self.selected != Some(from) {
            if state.use_epoch.is_none() && state.outstanding.is_empty() {
                state.next_ping = Some(now);
            }
            state.use_epoch = Some(epoch);
            return;
        }
        self.epoch = epoch;
        self.announces = false;
        if self.selected == Some(from) {
            return;
        }
        // The other side must have had a reason to leave a path that ranks before this one.
        let left = self.selected.filter(|old| !self.rank(from, now).beats(&self.rank(*old, now)));
        if let Some(old) = left {
            self.mark_dead(old, now);
        }
        self.select(from, Reason::Followed, left.is_some());
    }

    pub(super) fn mark_dead(&mut self, path: Path, now: Instant) {
        let Some(state) = self.paths.get_mut(&path) else { return };
        let again = state.died.is_some_and(|at| now.saturating_duration_since(at) < FLAP_SPAN);
        state.held_until = Some(now + if again { FLAP_HOLD } else { HOLD_DOWN });
        state.died = Some(now);
        state.proven = false;
        state.size.stop();
        state.samples.clear();
        state.pings = 0;
        state.echoes = 0;
        state.next_ping = Some(now + SUSPECT_PING);
    }

    pub(super) fn remove(&mut self, path: Path, now: Instant) {
        self.paths.remove(&path);
        if self.trial.is_some_and(|t| t.path == path) {
            self.end_trial();
        }
        if self.selected == Some(path) {
            self.selected = None;
            self.suspect = None;
            self.trial = None;
            if let Some(next) = self.best(now, |_| true) {
                self.switch(next, Reason::Withdrawn, true, now);
            }
        }
    }

    /// Leaves a path that is not allowed any more, or answers no ping any more: what arrives over
    /// other paths may hide that it is dead.
    pub(super) fn withdraw(&mut self, now: Instant) {
        let Some(selected) = self.selected else { return };
        let asked = self.paths.get(&selected).and_then(|s| s.asked);
        let stale = asked.is_some_and(|at| at + STALE <= now);
        let reason = match self.may_probe(selected) {
            true if !stale => return,
            true => Reason::Silent,
            false => Reason::Withdrawn,
        };
        if let Some(next) = self.best(now, |p| p != selected) {
            self.switch(next, reason, stale, now);
        }
    }

    pub(super) fn improve(&mut self, now: Instant) {
        let Some(best) = self.best(now, |_| true) else { return };
        let Some(selected) = self.selected else {
            self.switch(best, Reason::First, true, now);
            return;
        };
        let (rank, current) = (self.rank(best, now), self.rank(selected, now));
        if best != selected && rank.beats(&current) {
            let unpaid = current.unpaid && !rank.unpaid && !current.dead;
            let reason = if unpaid { Reason::Unpaid } else { Reason::Better };
            self.switch(best, reason, false, now);
        }
    }

    pub(super) fn rank(&self, path: Path, now: Instant) -> Rank {
        let state = self.paths.get(&path);
        let held = state.and_then(|s| s.held_until).is_some_and(|until| until > now);
        Rank {
            dead: !state.is_some_and(|s| s.proven && !s.size.is_too_small()) || held,
            unpaid: state.is_some_and(|s| s.unpaid),
            kind: path.kind(),
            narrow: self.is_narrow(path),
            rtt: state.map_or(Duration::MAX, |s| s.rtt),
        }
    }

    /// The best path that was echoed, held down ones last.
    pub(super) fn best(&self, now: Instant, eligible: impl Fn(Path) -> bool) -> Option<Path> {
        self.paths
            .keys()
            .copied()
            .filter(|p| self.may_probe(*p) && eligible(*p))
            .filter(|p| self.paths[p].proven)
            .map(|p| (self.rank(p, now), p))
            .min()
            .map(|(_, p)| p)
    }

    pub(super) fn switch(&mut self, path: Path, reason: Reason, old_dead: bool, now: Instant) {
        // The other side may have named any epoch.
        self.epoch = self.epoch.saturating_add(1);
        self.announces = true;
        self.select(path, reason, old_dead);
        if let Some(state) = self.paths.get_mut(&path) {
            state.echoes = 0;
            state.next_ping = state.next_ping.map(|at| at.min(now + SAY_AGAIN));
        }
        self.announce(path);
    }

    pub(super) fn announce(&mut self, path: Path) {
        // Said three times: one loss must not leave the other side behind.
        for _ in 0..3 {
            self.transmits.push_back((path, Probe::Use { epoch: self.epoch }));
        }
    }

    pub(super) fn select(&mut self, path: Path, reason: Reason, old_dead: bool) {
        self.selected = Some(path);
        self.suspect = None;
        self.trial = None;
        self.events.push_back(Event::Selected { path, reason, old_dead });
    }
}
