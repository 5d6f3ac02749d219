//! Notices that this node has other addresses than before, or slept.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::node::Inner;

/// Time between looks: a few system calls each.
const LOOK: Duration = Duration::from_secs(1);
/// The wall clock ran ahead of the monotonic one by more than this: the machine slept. A correction
/// of the clock looks the same, and does no harm.
const SLEPT: Duration = Duration::from_secs(5);

struct Seen {
    addresses: BTreeSet<IpAddr>,
    now: Instant,
    unix: Duration,
}

impl Seen {
    fn by(node: &Inner) -> Self {
        let relays = node.links().into_iter().map(|link| link.relay().addr);
        let towards = relays.filter_map(|relay| node.network.local_towards(relay));
        let addresses = towards.chain(node.network.local_addrs()).collect();
        Self { addresses, now: node.clock.now(), unix: node.clock.unix_time() }
    }

    fn slept_since(&self, before: &Self) -> bool {
        let unix = self.unix.saturating_sub(before.unix);
        unix > self.now.saturating_duration_since(before.now) + SLEPT
    }
}

/// Tells links and sessions of each change, until the node is gone.
pub(crate) async fn watch(node: Weak<Inner>) {
    let Some(mut seen) = node.upgrade().map(|node| Seen::by(&node)) else { return };
    let mut relays = 0;
    loop {
        let Some(clock) = node.upgrade().map(|node| node.clock.clone()) else { return };
        clock.sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        node.socket.pause.beat(node.socket.now_ns());
        let now = Seen::by(&node);
        // A new relay may be reached from an address that was not looked at before.
        let same_relays = std::mem::replace(&mut relays, node.links().len()) == relays;
        if now.slept_since(&seen) || same_relays && now.addresses != seen.addresses {
            tracing::info!(addresses = ?now.addresses, "this node moved or slept");
            changed(&node);
        }
        seen = now;
    }
}

fn changed(node: &Arc<Inner>) {
    for link in node.links() {
        link.hurry();
    }
    for peer in node.tables.sessions() {
        peer.command(crate::peer::Command::Moved);
    }
    node.addresses_changed();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_ran_ahead_tells_of_sleep_and_one_that_kept_step_does_not() {
        let start = Instant::now();
        let after = |monotonic: u64, wall: u64| Seen {
            addresses: BTreeSet::new(),
            now: start + Duration::from_secs(monotonic),
            unix: Duration::from_secs(1_000_000 + wall),
        };
        let before = after(0, 0);
        assert!(after(1, 180).slept_since(&before), "three minutes in one second");
        assert!(!after(60, 61).slept_since(&before), "a busy machine looks late");
        assert!(!after(1, 3).slept_since(&before), "the clock was set right");
        assert!(!after(1, 0).slept_since(&after(0, 3600)), "the clock was set back");
    }
}
