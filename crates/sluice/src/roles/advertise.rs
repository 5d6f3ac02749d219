//! Which relays a provider names: those that hold a reservation and forward.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use sluice_proto::RelayAddr;
use sluice_transport::Clock;
use tokio::sync::watch;

/// A relay without a reservation is named for this long, since most come back at once.
const AWAY: Duration = Duration::from_secs(5);

/// Where a reservation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is none, for now.
    Away,
    /// It stands, but the relay forwards nothing.
    Silent,
    /// It stands.
    Reserved,
}

/// A relay that a provider has, or is about to have, a reservation at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) relay: RelayAddr,
    pub(crate) standing: Standing,
    /// It is to be given up: what is open goes on, and nobody is sent there any more.
    pub(crate) leaves: bool,
}

/// Where all reservations of a provider stand, in the order in which relays are preferred.
pub(crate) type Standings = watch::Sender<Vec<Stand>>;

/// One of them, as its task changes it.
pub(crate) struct Seat {
    pub(crate) all: Standings,
    pub(crate) relay: RelayAddr,
    /// Flows that are open through the relay.
    pub(crate) flows: Arc<AtomicUsize>,
}

impl Seat {
    fn standing(&self) -> Option<Standing> {
        let all = self.all.borrow();
        all.iter().find(|stand| stand.relay == self.relay).map(|stand| stand.standing)
    }

    pub(crate) fn set(&self, standing: Standing) {
        self.all.send_if_modified(|all| {
            let stand = all.iter_mut().find(|stand| stand.relay == self.relay);
            stand.is_some_and(|s| std::mem::replace(&mut s.standing, standing) != standing)
        });
    }

    /// The relay forwards, or does no more; that says nothing of one that is away.
    pub(crate) fn set_forwards(&self, forwards: bool) {
        if self.standing() != Some(Standing::Away) {
            self.set(if forwards { Standing::Reserved } else { Standing::Silent });
        }
    }
}

/// Keeps `named` in step with the reservations: the relays at which this provider can be reached, in
/// the order in which it prefers them. If there is none, all are named: it is this home that is cut
/// off.
pub(crate) async fn advertise(
    mut standings: watch::Receiver<Vec<Stand>>,
    named: watch::Sender<Vec<RelayAddr>>,
    clock: Clock,
) {
    let mut lost: HashMap<RelayAddr, Instant> = HashMap::new();
    loop {
        let now = clock.now();
        let all: Vec<Stand> =
            standings.borrow_and_update().iter().filter(|stand| !stand.leaves).copied().collect();
        let is_lost = |relay: &RelayAddr| {
            all.iter().any(|s| s.relay == *relay && s.standing != Standing::Reserved)
        };
        lost.retain(|relay, _| is_lost(relay));
        for stand in all.iter().filter(|stand| stand.standing != Standing::Reserved) {
            lost.entry(stand.relay).or_insert(now);
        }
        let ends = |relay: &RelayAddr| lost.get(relay).map(|lost| *lost + AWAY);
        let is_named = |stand: &&Stand| match stand.standing {
            Standing::Reserved => true,
            Standing::Silent => false,
            Standing::Away => ends(&stand.relay).is_some_and(|end| end > now),
        };
        let mut list: Vec<_> = all.iter().filter(is_named).map(|stand| stand.relay).collect();
        if list.is_empty() {
            list = all.iter().map(|stand| stand.relay).collect();
        }
        named.send_if_modified(|before| {
            let changed = *before != list;
            *before = list;
            changed
        });
        let next = all.iter().filter_map(|s| ends(&s.relay)).filter(|end| *end > now).min();
        tokio::select! {
            biased;
            // The reservations' tasks end with the role.
            changed = standings.changed() => if changed.is_err() {
                return;
            },
            () = clock.sleep_until(next.unwrap_or(now + Duration::from_secs(3600))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relays() -> Vec<RelayAddr> {
        let relay = |seed: u8| {
            let key = sluice_proto::Keypair::ed25519_from_bytes([seed; 32]).expect("a key");
            RelayAddr::new(key.public().to_peer_id(), ([192, 0, 2, seed], 4433).into())
        };
        (1..=3).map(relay).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_is_named_while_it_forwards_and_a_moment_longer_when_it_is_only_away() {
        let relays = relays();
        let stand = |relay: &RelayAddr| Stand {
            relay: *relay,
            standing: Standing::Reserved,
            leaves: false,
        };
        let all: Standings = watch::Sender::new(relays.iter().map(stand).collect());
        let named = watch::Sender::new(relays.clone());
        let mut list = named.subscribe();
        let seat = |at: usize| Seat { all: all.clone(), relay: relays[at], flows: Arc::default() };
        let task = advertise(all.subscribe(), named, Clock::default());
        let task = tokio::spawn(task);
        seat(1).set_forwards(false);
        let shorter = list.wait_for(|named| *named == [relays[0], relays[2]]).await;
        drop(shorter.expect("it is told"));
        let before = tokio::time::Instant::now();
        seat(0).set(Standing::Away);
        // What is away does not come back because frames got through.
        seat(0).set_forwards(true);
        drop(list.wait_for(|named| *named == [relays[2]]).await.expect("it is told"));
        assert!(before.elapsed() >= AWAY);
        seat(2).set(Standing::Silent);
        drop(list.wait_for(|named| *named == relays).await.expect("it is told"));
        seat(1).set_forwards(true);
        drop(list.wait_for(|named| *named == [relays[1]]).await.expect("it is told"));
        seat(0).set(Standing::Reserved);
        // What is to be given up is not named, though it stands, if another is.
        all.send_modify(|all| all[1].leaves = true);
        drop(list.wait_for(|named| *named == [relays[0]]).await.expect("it is told"));
        drop(all);
        task.abort();
    }
}
