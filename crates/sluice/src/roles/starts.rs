//! Which process of a tenant stands, when two have its key.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_proto::PeerId;

/// The newest start of each tenant that has a session here, and how many sessions it has. Clones
/// share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Starts(Arc<Mutex<HashMap<PeerId, (u64, usize)>>>);

impl Starts {
    /// A session of the process that has this number begins; `None`: one of a later start lasts.
    pub(crate) fn begin(&self, peer: PeerId, number: u64) -> Option<Start> {
        let mut newest = self.0.lock();
        let (newest, sessions) = newest.entry(peer).or_insert((number, 0));
        if *newest > number {
            return None;
        }
        (*newest, *sessions) = (number, *sessions + 1);
        Some(Start { all: self.clone(), peer })
    }
}

/// A session's place among them; it leaves with it.
#[derive(Debug)]
pub(crate) struct Start {
    all: Starts,
    peer: PeerId,
}

impl Drop for Start {
    fn drop(&mut self) {
        let mut newest = self.all.0.lock();
        if let Some((_, sessions)) = newest.get_mut(&self.peer) {
            *sessions -= 1;
            if *sessions == 0 {
                newest.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_start_stands_while_it_has_a_session() {
        let node = |seed| {
            let key = sluice_proto::Keypair::ed25519_from_bytes([seed; 32]).expect("a key");
            key.public().to_peer_id()
        };
        let (starts, a, b) = (Starts::default(), node(1), node(2));
        let first = starts.begin(a, 5).expect("nobody else");
        let second = starts.begin(a, 5).expect("the same process");
        let copy = starts.begin(a, 9).expect("started later");
        assert!(starts.begin(a, 5).is_none() && starts.begin(a, 8).is_none());
        assert!(starts.begin(b, 1).is_some(), "another node");
        drop((first, second));
        assert!(starts.begin(a, 5).is_none(), "the later one still lasts");
        drop(copy);
        assert!(starts.begin(a, 5).is_some(), "nobody else any more");
    }
}
