//! How a tenant keeps relays ready: it knocks at them in the order in which the provider named them,
//! until two of them carry its echoes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_path::Path;
use sluice_proto::RelayAddr;
use sluice_proto::wire::code;

use super::{Driver, Relayed, resume};
use crate::ConnectError;
use crate::peer::Command;

/// Relays that carry a session's echoes at a time, as far as there are as many.
const WARM: usize = 2;
/// .. and, when lost ones come back, no more than this.
const WARM_MAX: usize = 3;
/// Relays that are remembered: as many as a ticket names.
const KNOWN_MAX: usize = 8;
/// A flow that has carried no echo for this long is taken for lost: another is opened ..
const LOST: Duration = Duration::from_secs(3);
/// .. and for this long, while others do: it is closed.
const GONE: Duration = Duration::from_secs(10);
/// Waits in milliseconds between knocks at one relay; the last one is repeated for as long as the
/// session lives ..
const KNOCK_AGAIN: [u64; 7] = [0, 250, 1000, 3000, 5000, 15_000, 30_000];
/// .. and no wait is longer than this while no path works.
const KNOCK_URGENT: Duration = Duration::from_secs(5);
/// The flows are looked over this often while fewer than [`WARM`] work.
const LOOK: Duration = Duration::from_millis(500);

/// A relay at which the other node is said to be.
#[derive(Debug)]
pub(super) struct Known {
    relay: RelayAddr,
    link: Option<crate::RelayLink>,
    knocking: bool,
    knocks: usize,
    knocked: Option<Instant>,
}

impl Known {
    fn new(relay: RelayAddr) -> Self {
        Self { relay, link: None, knocking: false, knocks: 0, knocked: None }
    }

    fn due(&self, urgent: bool) -> Option<Instant> {
        let wait = KNOCK_AGAIN.get(self.knocks).or(KNOCK_AGAIN.last());
        let wait = Duration::from_millis(*wait.expect("the table is not empty"));
        self.knocked.map(|at| at + if urgent { wait.min(KNOCK_URGENT) } else { wait })
    }

    fn is_up(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_up() && link.forwards())
    }
}

impl Driver {
    /// Takes what the provider said of its relays. The flows that stand go on.
    pub(super) fn set_known(&mut self, relays: Vec<RelayAddr>) {
        if self.target.is_none() {
            return;
        }
        let mut before = std::mem::take(&mut self.known);
        for relay in relays {
            let at = before.iter().position(|k| k.relay.is_same(&relay));
            let listed = self.known.iter().any(|k| k.relay.is_same(&relay));
            if !listed && self.known.len() < KNOWN_MAX {
                self.known.push(at.map_or_else(|| Known::new(relay), |at| before.remove(at)));
            }
        }
    }

    /// Knocks where it is due, closes what is lost, and tells which relays are warm.
    pub(super) fn keep_warm(&mut self) {
        let now = self.node.clock.now();
        self.tell_warm();
        if self.target.is_none() {
            return;
        }
        for known in &mut self.known {
            let works = |(path, relayed): (&u32, &Relayed)| {
                relayed.addr() == known.relay.addr && self.agent.is_proven(Path::Relay(*path))
            };
            if self.relays.iter().any(works) {
                known.knocks = 0;
            }
        }
        self.drop_surplus(now);
        let mut coming = self.relays.keys().filter(|path| !self.is_lost(**path, now)).count();
        coming += self.known.iter().filter(|k| k.knocking).count();
        let urgent = self.warm.borrow().is_empty();
        // A relay whose flow was lost is likely to be gone: the others come first.
        let (lost, unused): (Vec<usize>, Vec<usize>) =
            (0..self.known.len()).partition(|at| self.flow_at(*at).is_some());
        for at in unused.into_iter().chain(lost) {
            if coming >= WARM {
                return;
            }
            coming += usize::from(self.knock_if_due(at, urgent, now));
        }
    }

    /// The flow through a relay that is known.
    fn flow_at(&self, at: usize) -> Option<u32> {
        let addr = self.known[at].relay.addr;
        self.relays.iter().find(|(_, relayed)| relayed.addr() == addr).map(|(path, _)| *path)
    }

    fn tell_warm(&self) {
        let proven =
            self.relays.iter().filter(|(path, _)| self.agent.is_proven(Path::Relay(**path)));
        let warm: Vec<_> = proven.map(|(_, relayed)| relayed.link.relay()).collect();
        self.warm.send_if_modified(|before| {
            let changed = *before != warm;
            *before = warm;
            changed
        });
    }

    /// Whether a flow carries no echoes any more, or did not begin to in time.
    fn is_lost(&self, path: u32, now: Instant) -> bool {
        let Some(relayed) = self.relays.get(&path) else { return true };
        let silent = self.agent.silent_since(Path::Relay(path));
        silent.is_some_and(|at| at.max(relayed.began) + LOST <= now)
    }

    fn drop_surplus(&mut self, now: Instant) {
        let selected = self.agent.selected();
        let idle = |path: &u32| selected != Some(Path::Relay(*path));
        let (proven, silent): (Vec<u32>, Vec<u32>) =
            self.relays.keys().partition(|path| self.agent.is_proven(Path::Relay(**path)));
        if proven.len() >= WARM {
            for path in silent.into_iter().filter(idle) {
                let since = self.agent.silent_since(Path::Relay(path));
                if since.is_some_and(|at| at + GONE <= now) {
                    self.drop_relayed(path, true, now);
                }
            }
        }
        if proven.len() > WARM_MAX {
            let slowest = proven.into_iter().filter(idle);
            let slowest = slowest.max_by_key(|path| self.agent.rtt(Path::Relay(*path)));
            if let Some(path) = slowest {
                self.drop_relayed(path, true, now);
            }
        }
    }

    /// True: a knock is under way.
    fn knock_if_due(&mut self, at: usize, urgent: bool, now: Instant) -> bool {
        let known = &self.known[at];
        let stands = self.flow_at(at).is_some_and(|path| !self.is_lost(path, now));
        if stands || known.knocking || known.due(urgent).is_some_and(|due| due > now) {
            return false;
        }
        let relay = known.relay;
        let known = &mut self.known[at];
        let link = known.link.get_or_insert_with(|| self.node.link(relay, None)).clone();
        if !known.is_up() {
            return false;
        }
        known.knocking = true;
        known.knocked = Some(now);
        known.knocks += 1;
        let Some(target) = self.target.clone() else { return false };
        let (node, peer) = (self.node.clone(), self.peer.clone());
        tokio::spawn(async move {
            let addr = relay.addr;
            peer.command(match resume(&node, &peer, &link, &target).await {
                Ok(path) => Command::Relayed(Box::new(path)),
                Err(error) => Command::NotRelayed { relay: addr, error },
            });
        });
        true
    }

    pub(super) fn not_relayed(&mut self, relay: SocketAddr, error: ConnectError) {
        self.knock_ended(relay);
        if error == ConnectError::NotInvited {
            let why = b"the other node knows this session no more";
            self.connection.close(code::NOT_INVITED.into(), why);
        } else {
            tracing::debug!(%relay, %error, "no flow through this relay yet");
        }
    }

    pub(super) fn knock_ended(&mut self, relay: SocketAddr) {
        if let Some(known) = self.known.iter_mut().find(|k| k.relay.addr == relay) {
            known.knocking = false;
        }
    }

    /// When to look again, while fewer relays than wanted are warm.
    pub(super) fn next_knock(&self, now: Instant) -> Option<Instant> {
        let short = self.target.is_some() && self.warm.borrow().len() < WARM;
        (short && self.known.len() > self.warm.borrow().len()).then(|| now + LOOK)
    }
}
