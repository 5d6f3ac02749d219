//! Which addresses may be sent a probe, and what it costs.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Agent, State};
use crate::budget::{Purpose, Spent};
use crate::{CANDIDATES_MAX, Pair, Path, usable};

/// A path for which the NAT's table has no room is tried again after this.
const NO_ROOM: Duration = Duration::from_secs(30);
/// A session's candidates make so many entries of the NAT's table ..
const ENTRIES_MAX: usize = 64;
/// .. within this, the time for which they may stand.
const ENTRIES_SPAN: Duration = Duration::from_secs(300);

impl Agent {
    pub(super) fn may_probe(&self, path: Path) -> bool {
        match path {
            Path::Relay(_) => true,
            Path::Direct(pair) => self.direct_allowed && self.may_reach(pair.remote.ip()),
        }
    }

    /// Whether this address may be sent anything: those of this node's own household only if the
    /// other node is in it, too, as relays see them.
    fn may_reach(&self, ip: IpAddr) -> bool {
        if !self.whereabouts.is_near(ip) {
            return true;
        }
        let Some(peer) = self.peer_ip else { return false };
        self.whereabouts.is_shared(peer) || peer == ip && self.whereabouts.is_private()
    }

    /// Whether this is an address of the other node: it echoed from there, or a relay of this node's
    /// own choosing sees it there.
    pub(super) fn is_vouched(&self, pair: Pair) -> bool {
        let seen = self.punch.peer_address.is_some_and(|seen| seen.ip() == pair.remote.ip());
        seen && !self.whereabouts.is_near(pair.remote.ip())
            || self.paths.get(&Path::Direct(pair)).is_some_and(|s| s.known)
    }

    /// Spends what a probe costs that goes straight to an address; or when it may come again, if
    /// ever.
    pub(super) fn admit(&mut self, path: Path, now: Instant) -> Result<(), Option<Instant>> {
        let Path::Direct(pair) = path else { return Ok(()) };
        let (ip, vouched) = (pair.remote.ip(), self.is_vouched(pair));
        if !vouched && !self.strangers.may_be_sent(ip) {
            return Err(None);
        }
        self.entries.retain(|at| *at + ENTRIES_SPAN > now);
        let purpose = if self.is_proven(path) {
            Purpose::Proven
        } else if self.entries.len() < ENTRIES_MAX {
            Purpose::Candidate
        } else {
            Purpose::Known
        };
        match self.share.spend(pair, purpose, now) {
            Spent::Yes { fresh: true } => self.entries.push_back(now),
            Spent::Yes { fresh: false } => {}
            Spent::Later(at) => return Err(Some(at)),
            Spent::NoRoom => return Err(Some(now + NO_ROOM)),
        }
        if !vouched {
            self.strangers.sent(ip);
        }
        Ok(())
    }

    pub(super) fn add_pair(&mut self, pair: Pair, now: Instant) {
        let direct = self.paths.keys().filter(|p| matches!(p, Path::Direct(_))).count();
        if usable(&pair.remote) && direct < CANDIDATES_MAX {
            self.paths.entry(Path::Direct(pair)).or_insert_with(|| State::new(now));
        }
    }
}
