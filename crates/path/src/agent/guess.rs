//! What the agent does around [`Punch`]: when ports are guessed, and what the other node is told.

use std::time::{Duration, Instant};

use super::Agent;
use crate::event::{Event, Probe};
use crate::punch::{Out, Punch};
use crate::{Nat, Opened, Path, SocketId};

/// What this node's NAT does is said so often ..
pub(super) const NAT_TOLD: u32 = 4;
/// .. this far apart: some may be lost.
const TELL_NAT_AGAIN: Duration = Duration::from_millis(400);

impl Agent {
    /// What is known of this node's own NAT.
    pub fn set_nat(&mut self, nat: Nat, now: Instant) {
        if nat != self.punch.own {
            self.punch.own = nat;
            self.tell_nat_at = Some((now, NAT_TOLD));
        }
        self.handle_timeout(now);
    }

    /// Tells the other node, through the relays, what this node's NAT does.
    pub(super) fn tell_nat(&mut self, now: Instant) {
        let Some((at, left)) = self.tell_nat_at.filter(|_| self.direct_allowed) else { return };
        if at > now {
            return;
        }
        self.tell_nat_at = (left > 1).then(|| (now + TELL_NAT_AGAIN, left - 1));
        let Nat { mapping, filtering, .. } = self.punch.own;
        let relays = self.paths.keys().filter(|p| matches!(p, Path::Relay(_)));
        let told = relays.map(|path| (*path, Probe::Nat { mapping, filtering }));
        self.transmits.extend(told);
    }

    /// The sockets that [`Event::OpenSockets`] asked for, or fewer.
    pub fn sockets_opened(&mut self, opened: &[Opened], now: Instant) {
        self.with_punch(|punch, out| punch.sockets_opened(opened, now, out));
        self.handle_timeout(now);
    }

    fn with_punch(&mut self, act: impl FnOnce(&mut Punch, &mut Out<'_>)) {
        let relays: Vec<Path> =
            self.paths.keys().copied().filter(|p| matches!(p, Path::Relay(_))).collect();
        let mut out = Out {
            share: &mut self.share,
            tokens: &mut self.tokens,
            transmits: &mut self.transmits,
            events: &mut self.events,
            relays: &relays,
        };
        act(&mut self.punch, &mut out);
    }

    /// Guesses ports while there is no direct path but may be one.
    pub(super) fn advance_punch(&mut self, now: Instant) {
        if self.direct_allowed && !self.has_direct() && self.may_guess() {
            self.punch.start(now);
            self.with_punch(|punch, out| punch.handle_timeout(now, out));
            return;
        }
        let in_use: Vec<SocketId> = self.paths.iter().filter(|(_, s)| s.proven).fold(
            Vec::new(),
            |mut sockets, (path, _)| {
                if let Path::Direct(pair) = path {
                    sockets.push(pair.socket);
                }
                sockets
            },
        );
        let keep = |socket| in_use.contains(&socket);
        self.punch.stop(keep, now, &self.share, &mut self.events);
        self.forget_closed();
    }

    /// Whether the other node's address is where ports may be guessed: not in this household.
    fn may_guess(&self) -> bool {
        self.punch.peer_address.is_none_or(|address| !self.whereabouts.is_near(address.ip()))
    }

    pub(super) fn has_direct(&self) -> bool {
        self.paths.iter().any(|(p, s)| s.proven && matches!(p, Path::Direct(_)))
    }

    /// Drops the paths of sockets that are being closed.
    fn forget_closed(&mut self) {
        let closed: Vec<SocketId> = self
            .events
            .iter()
            .filter_map(|e| if let Event::CloseSocket(s) = e { Some(*s) } else { None })
            .collect();
        if closed.is_empty() {
            return;
        }
        let gone = |p: &Path| matches!(p, Path::Direct(pair) if closed.contains(&pair.socket));
        let paths: Vec<Path> = self.paths.keys().copied().filter(|p| gone(p)).collect();
        for path in paths {
            self.paths.remove(&path);
            if let Path::Direct(pair) = path {
                self.events.push_back(Event::Forgotten(pair));
            }
        }
    }
}
