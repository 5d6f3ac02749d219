//! Silence: when the path in use is doubted, and what is tried meanwhile.

use std::time::{Duration, Instant};

use super::{Agent, KEEP_WARM, Trial};
use crate::Path;
use crate::event::{Activity, Event, Probe, Reason};

/// Packets take another way on the other side's word for this long after it was last said.
const LENT: Duration = Duration::from_millis(500);
/// A path is suspect, and others are tried, after a silence of so many probe timeouts ..
const SUSPECT_PTO: u32 = 2;
/// .. and left for another after so many ..
const DEAD_PTO: u32 = 3;
/// .. but for none shorter than this: a stall of 200 ms, a round trip and a delayed acknowledgement
/// are no reason to leave.
const SILENCE_MIN: Duration = Duration::from_millis(300);
/// Whatever arrives on a path: one that answers none of so many pings is left too. With a fifth of
/// all packets lost each way that happens to one keepalive in 500.
const DEAF_PINGS: u32 = 6;
/// A suspect path and its rivals are pinged again after this at the earliest ..
pub(super) const SUSPECT_PING: Duration = Duration::from_millis(40);
/// .. later after this part of the time for which it has been suspect ..
const SUSPECT_PART: u32 = 8;
/// .. and after this at the latest.
const SUSPECT_PING_MAX: Duration = Duration::from_secs(1);

impl Agent {
    /// What the socket saw on the path in use; call it every few tens of milliseconds while
    /// packets go out, and drain afterwards.
    pub fn handle_activity(&mut self, activity: Activity, now: Instant) {
        match activity.unanswered_since {
            Some(since) => self.watch_silence(since, activity, now),
            None => self.answered(),
        }
        self.watch_echoes(activity.pto, now);
        if activity.unanswered_since.is_some() {
            self.echo_in_use(now);
        }
        self.handle_timeout(now);
    }

    /// While packets go out, the path in use is echoed as often as one through a relay is, however
    /// long the NAT would remember it.
    fn echo_in_use(&mut self, now: Instant) {
        let Some(state) = self.selected.and_then(|path| self.paths.get_mut(&path)) else { return };
        if state.asked.is_none() && state.echoed.is_some_and(|at| at + KEEP_WARM <= now) {
            state.next_ping = Some(now);
        }
    }

    fn watch_silence(&mut self, since: Instant, activity: Activity, now: Instant) {
        let Some(selected) = self.selected else { return };
        let silent = now.saturating_duration_since(since);
        if silent < activity.pto * SUSPECT_PTO {
            return;
        }
        let began = *self.suspect.get_or_insert(now);
        self.ping_all_suspects(began, now);
        if activity.outstanding {
            self.try_out(selected, began, now);
        }
        if silent >= patience(activity.pto) {
            self.leave_for_an_echo(selected, began, now);
        }
    }

    /// What arrives on the path in use may come from a side that hears nothing there, on its own
    /// trial of it: that the path carries what is sent here only its echoes show.
    fn watch_echoes(&mut self, pto: Duration, now: Instant) {
        let Some(selected) = self.selected else { return };
        let Some(asked) = self.paths.get(&selected).and_then(|s| s.asked) else { return };
        let deaf = now.saturating_duration_since(asked);
        if deaf < pto * SUSPECT_PTO {
            return;
        }
        self.ping_all_suspects(asked, now);
        let enough = self.paths.get(&selected).is_some_and(|s| s.pings >= DEAF_PINGS);
        if enough && deaf >= patience(pto) {
            self.leave_for_an_echo(selected, asked, now);
        }
    }

    /// Leaves the path in use for the best one that has echoed since a moment, if there is one.
    fn leave_for_an_echo(&mut self, selected: Path, since: Instant, now: Instant) {
        let echoed = |path| self.paths[&path].echoed.is_some_and(|at| at >= since);
        let Some(rival) = self.best(now, |p| p != selected && echoed(p)) else { return };
        let unpaid = self.paths.get(&selected).is_some_and(|s| s.unpaid);
        if !unpaid {
            self.mark_dead(selected, now);
        }
        let reason = if unpaid { Reason::Unpaid } else { Reason::Silent };
        self.switch(rival, reason, true, now);
    }

    fn ping_all_suspects(&mut self, began: Instant, now: Instant) {
        let wait = now.saturating_duration_since(began) / SUSPECT_PART;
        let wait = wait.clamp(SUSPECT_PING, SUSPECT_PING_MAX);
        let due: Vec<Path> = self
            .paths
            .iter()
            .filter(|(path, s)| {
                (s.proven || Some(**path) == self.selected)
                    && self.may_probe(**path)
                    && s.pinged.is_none_or(|at| at + wait <= now)
            })
            .map(|(path, _)| *path)
            .collect();
        for path in due {
            self.ping(path, now);
        }
    }

    /// The path in use answered.
    pub(super) fn answered(&mut self) {
        self.suspect = None;
        if self.trial.is_some_and(|t| t.until.is_none()) {
            self.end_trial();
            if let Some(selected) = self.selected {
                self.announce(selected);
            }
        }
    }

    /// Sends on the best other path while the one in use is silent, so that no time is lost if it
    /// is dead. One that has echoed since comes before one that has not.
    fn try_out(&mut self, selected: Path, began: Instant, now: Instant) {
        let echoed = |path: Path| self.paths[&path].echoed.is_some_and(|at| at >= began);
        let tried = self.trial.filter(|t| t.until.is_none()).map(|t| t.path);
        if tried.is_some_and(|path| self.is_proven(path) && echoed(path)) {
            return;
        }
        let rival = self
            .best(now, |p| p != selected && echoed(p))
            .or_else(|| self.best(now, |p| p != selected));
        let Some(path) = rival.filter(|p| Some(*p) != tried) else { return };
        self.trial = Some(Trial { path, until: None });
        self.events.push_back(Event::Tried { path, ours: true });
        for _ in 0..3 {
            self.transmits.push_back((path, Probe::Trial { epoch: self.epoch }));
        }
    }

    pub(super) fn end_trial(&mut self) {
        if self.trial.take().is_some()
            && let Some(path) = self.selected
        {
            self.events.push_back(Event::Returned { path });
        }
    }

    /// Answers where the other side sends while it doubts the path in use.
    pub(super) fn handle_trial(&mut self, from: Path, epoch: u64, now: Instant) {
        let ours = self.trial.is_some_and(|t| t.until.is_none());
        let elsewhere = self.selected.is_some_and(|selected| selected != from);
        if ours || !elsewhere || epoch < self.epoch || !self.may_probe(from) {
            return;
        }
        if !self.is_proven(from) {
            return;
        }
        let before = self.trial.replace(Trial { path: from, until: Some(now + LENT) });
        if before.is_none_or(|t| t.path != from) {
            self.events.push_back(Event::Tried { path: from, ours: false });
        }
    }
}

/// How long a path may be silent before it is left.
fn patience(pto: Duration) -> Duration {
    (pto * DEAD_PTO).max(SILENCE_MIN)
}
