//! Which relays a provider names: those that hold a reservation and forward.

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

/// Where all reservations of a provider stand, in the order of its relays.
pub(crate) type Standings = watch::Sender<Vec<Standing>>;

/// One of them, as its task changes it.
pub(crate) struct Seat {
    pub(crate) all: Standings,
    pub(crate) at: usize,
}

impl Seat {
    pub(crate) fn set(&self, standing: Standing) {
        self.all.send_if_modified(|all| std::mem::replace(&mut all[self.at], standing) != standing);
    }

    /// The relay forwards, or does no more; that says nothing of one that is away.
    pub(crate) fn set_forwards(&self, forwards: bool) {
        if self.all.borrow()[self.at] != Standing::Away {
            self.set(if forwards { Standing::Reserved } else { Standing::Silent });
        }
    }
}

/// Keeps `named` in step with the reservations: the relays at which this provider can be reached, in
/// the order in which it was given them. If there is none, all are named: it is this home that is cut
/// off.
pub(crate) async fn advertise(
    relays: Vec<RelayAddr>,
    mut standings: watch::Receiver<Vec<Standing>>,
    named: watch::Sender<Vec<RelayAddr>>,
    clock: Clock,
) {
    let mut lost: Vec<Option<Instant>> = vec![None; relays.len()];
    loop {
        let now = clock.now();
        let all = standings.borrow_and_update().clone();
        for (lost, standing) in lost.iter_mut().zip(&all) {
            *lost = lost.or(Some(now)).filter(|_| *standing != Standing::Reserved);
        }
        let ends = |at: usize| lost[at].map(|lost| lost + AWAY);
        let is_named = |at: &usize| match all[*at] {
            Standing::Reserved => true,
            Standing::Silent => false,
            Standing::Away => ends(*at).is_some_and(|end| end > now),
        };
        let mut list: Vec<_> = (0..relays.len()).filter(is_named).map(|at| relays[at]).collect();
        if list.is_empty() {
            list.clone_from(&relays);
        }
        named.send_if_modified(|before| {
            let changed = *before != list;
            *before = list;
            changed
        });
        let next = (0..relays.len()).filter_map(ends).filter(|end| *end > now).min();
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
        let all: Standings = watch::Sender::new(vec![Standing::Reserved; 3]);
        let named = watch::Sender::new(relays.clone());
        let mut list = named.subscribe();
        let seat = |at| Seat { all: all.clone(), at };
        let task = advertise(relays.clone(), all.subscribe(), named, Clock::default());
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
        drop(all);
        task.abort();
    }
}
