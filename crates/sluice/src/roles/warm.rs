//! The relays that a provider keeps warm: each with a link, a reservation and an account.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_proto::RelayAddr;
use sluice_transport::{LinkState, Node, RelayLink};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::advertise::{Seat, Stand, Standing, Standings};
use super::reservation::{Ask, Holder, hold};

/// Events of a link that wait for their task.
const LINK_EVENTS: usize = 1024;
/// Requests that wait for a reservation's task.
const ASKS: usize = 4;

/// The relays and what they are asked.
pub(crate) struct WarmRelays {
    node: Node,
    holder: Holder,
    standings: Standings,
    held: Mutex<Vec<Held>>,
    /// The provider ends: nothing new is opened.
    ends: AtomicBool,
    tasks: Mutex<JoinSet<()>>,
}

struct Held {
    relay: RelayAddr,
    link: RelayLink,
    /// The reservation's task ends without it.
    ask: Option<mpsc::Sender<Ask>>,
    flows: Arc<AtomicUsize>,
}

impl WarmRelays {
    pub(crate) fn new(node: Node, holder: Holder) -> Self {
        let standings = watch::Sender::new(Vec::new());
        let (held, tasks) = (Mutex::default(), Mutex::default());
        Self { node, holder, standings, held, ends: AtomicBool::new(false), tasks }
    }

    /// Where the reservations stand, now and later.
    pub(crate) fn standings(&self) -> watch::Receiver<Vec<Stand>> {
        self.standings.subscribe()
    }

    /// Asks a relay for a reservation, unless it is asked already; one that was to be given up stays.
    pub(crate) fn open(&self, relay: RelayAddr) {
        let mut held = self.held.lock();
        if self.ends.load(Relaxed) {
            return;
        }
        if held.iter().any(|h| h.relay.is_same(&relay)) {
            self.mark(relay, false);
            return;
        }
        let (events, heard) = mpsc::channel(LINK_EVENTS);
        let (ask, asks) = mpsc::channel(ASKS);
        let flows = Arc::<AtomicUsize>::default();
        let seat = Seat { all: self.standings.clone(), relay, flows: flows.clone() };
        let stand = Stand { relay, standing: Standing::Away, leaves: false };
        self.standings.send_modify(|all| all.push(stand));
        let link = self.node.link(relay, Some(events));
        self.tasks.lock().spawn(hold(self.holder.clone(), link.clone(), heard, asks, seat));
        held.push(Held { relay, link, ask: Some(ask), flows });
    }

    /// Sends nobody there any more; what is open goes on until [`close`](Self::close).
    pub(crate) fn leave(&self, relay: RelayAddr) {
        self.mark(relay, true);
    }

    fn mark(&self, relay: RelayAddr, leaves: bool) {
        self.standings.send_if_modified(|all| {
            let stand = all.iter_mut().find(|stand| stand.relay.is_same(&relay));
            stand.is_some_and(|s| std::mem::replace(&mut s.leaves, leaves) != leaves)
        });
    }

    /// Prefers relays in this order.
    pub(crate) fn prefer(&self, order: &[RelayAddr]) {
        let place = |stand: &Stand| order.iter().position(|r| r.is_same(&stand.relay));
        self.standings.send_if_modified(|all| {
            let before = all.clone();
            all.sort_by_key(|stand| place(stand).unwrap_or(order.len()));
            *all != before
        });
    }

    /// The relays that stay, best first.
    pub(crate) fn preferred(&self) -> Vec<RelayAddr> {
        let all = self.standings.borrow();
        all.iter().filter(|stand| !stand.leaves).map(|stand| stand.relay).collect()
    }

    /// Flows that are open through a relay.
    pub(crate) fn flows(&self, relay: RelayAddr) -> usize {
        let held = self.held.lock();
        held.iter().find(|h| h.relay.is_same(&relay)).map_or(0, |h| h.flows.load(Relaxed))
    }

    /// Round trip of the control connection, if it stands.
    pub(crate) fn rtt(&self, relay: RelayAddr) -> Option<Duration> {
        let held = self.held.lock();
        held.iter().find(|h| h.relay.is_same(&relay)).and_then(|h| h.link.rtt())
    }

    /// Pays what a relay claims, and gives its reservation up.
    pub(crate) async fn close(&self, relay: RelayAddr) {
        let ask = self.held.lock().iter().find(|h| h.relay.is_same(&relay)).map(|h| h.ask.clone());
        if let Some(ask) = ask.flatten() {
            settle(&ask).await;
        }
        self.held.lock().retain(|h| h.relay != relay);
        self.standings.send_modify(|all| all.retain(|stand| stand.relay != relay));
        // Those that ended.
        while self.tasks.lock().try_join_next().is_some() {}
    }

    /// Pays what relays claim.
    pub(crate) async fn settle(&self) {
        let asks: Vec<_> = self.held.lock().iter().filter_map(|h| h.ask.clone()).collect();
        for ask in asks {
            settle(&ask).await;
        }
    }

    /// How each link stands, for a message.
    pub(crate) fn states(&self) -> Vec<(RelayAddr, LinkState)> {
        let held = self.held.lock();
        held.iter().map(|h| (h.relay, h.link.state().borrow().clone())).collect()
    }

    /// Ends the reservations' tasks: nobody hears any more that a relay is not connected. The links stay
    /// until the node has shut down, for the sessions' last words.
    pub(crate) fn release(&self) {
        let mut held = self.held.lock();
        self.ends.store(true, Relaxed);
        for held in held.iter_mut() {
            held.ask = None;
        }
    }
}

async fn settle(ask: &mpsc::Sender<Ask>) {
    let (reply, settled) = oneshot::channel();
    if ask.send(Ask::Settle(reply)).await.is_ok() {
        // The reservation's task may have ended; then nothing is left to settle.
        let _ = settled.await;
    }
}
