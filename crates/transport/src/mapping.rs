//! Asks the router to forward a port to the data socket: NAT-PMP (RFC 6886), PCP (RFC 6887), UPnP.
//!
//! Each protocol has a client of its own. One client for all of them would ask by UPnP until it was
//! told to look for the others, and again ten minutes after it has last seen them.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::sync::{Arc, Weak};
use std::time::Duration;

use portmapper::{Client, Config};
use tokio::sync::watch;

use crate::node::Inner;
use crate::{Clock, Network};

/// By none of the protocols ..
const NONE: Config = Config {
    enable_upnp: false,
    enable_pcp: false,
    enable_nat_pmp: false,
    protocol: portmapper::Protocol::Udp,
};
/// .. and by each, the best first. PCP is not: a router may refuse a renewal that does not show the
/// mapping's nonce (RFC 6887, section 11.3), and the client draws a new one each time.
const PROTOCOLS: [(&str, Config); 3] = [
    ("NAT-PMP", Config { enable_nat_pmp: true, ..NONE }),
    ("PCP", Config { enable_pcp: true, ..NONE }),
    ("UPnP", Config { enable_upnp: true, ..NONE }),
];
/// A router that speaks a protocol has so long to map by it.
const MAPPED_WITHIN: Duration = Duration::from_secs(5);
/// A mapping that is given back has so long to be.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);
/// A router that maps nothing is asked again after this, for the question may have been lost ..
const AGAIN_MIN: Duration = Duration::from_secs(5);
/// .. each time after twice as long, up to this: whoever switches mapping on in the router's pages
/// will see it work.
const AGAIN_MAX: Duration = Duration::from_secs(600);

/// What is to be mapped. Another address of this node's means another router, perhaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    port: NonZeroU16,
    from: Option<IpAddr>,
}

/// Keeps a mapping while the options ask for one, until the node is gone. Only over the kernel's
/// network, and only if a relay beyond this machine is in use: else no router is in the way.
pub(crate) async fn keep_mapped(node: Weak<Inner>) {
    let Some(strong) = node.upgrade() else { return };
    let mut changes = Changes {
        links: strong.link_changes.subscribe(),
        addresses: strong.address_changes.subscribe(),
    };
    let clock = strong.clock.clone();
    drop(strong);
    let mut again = AGAIN_MIN;
    while let Some(wanted) = node.upgrade().map(|node| wanted(&node)) {
        let Some(wanted) = wanted else {
            again = AGAIN_MIN;
            if changes.next().await.is_none() {
                return;
            }
            continue;
        };
        if map(&node, wanted, &mut changes, &clock).await {
            again = AGAIN_MIN;
        } else {
            changes.while_wanted(&node, wanted, clock.sleep(again)).await;
            again = (again * 2).min(AGAIN_MAX);
        }
    }
}

/// The port to be mapped, if one is.
fn wanted(node: &Inner) -> Option<Wanted> {
    let bound = node.socket.bound().ok()?;
    let mapped = node.nat_options.lock().port_mapping
        && matches!(node.network, Network::Kernel)
        && !bound.ip().is_loopback();
    let beyond = |relay: &SocketAddr| !relay.ip().is_loopback();
    let relay = node.links().iter().map(|link| link.relay().addr).find(beyond)?;
    let from = node.network.local_towards(relay);
    NonZeroU16::new(bound.port()).filter(|_| mapped).map(|port| Wanted { port, from })
}

/// What may change what is wanted.
struct Changes {
    links: watch::Receiver<u64>,
    addresses: watch::Receiver<u64>,
}

impl Changes {
    /// Waits for the next change; `None` once the node is gone.
    async fn next(&mut self) -> Option<()> {
        tokio::select! {
            biased;
            changed = self.links.changed() => changed.ok(),
            changed = self.addresses.changed() => changed.ok(),
        }
    }

    /// Waits for `done` while the same is wanted; `None` once it is not.
    async fn while_wanted<T>(
        &mut self,
        node: &Weak<Inner>,
        wants: Wanted,
        done: impl Future<Output = T>,
    ) -> Option<T> {
        let mut done = std::pin::pin!(done);
        loop {
            if node.upgrade().and_then(|node| wanted(&node)) != Some(wants) {
                return None;
            }
            tokio::select! {
                biased;
                done = &mut done => return Some(done),
                changed = self.next() => changed?,
            }
        }
    }
}

/// Maps the port by the first protocol that the router speaks and grants, and keeps it while it is
/// wanted. False: it was not mapped.
async fn map(node: &Weak<Inner>, wants: Wanted, changes: &mut Changes, clock: &Clock) -> bool {
    let Some(held) = node.upgrade().map(|node| node.mapping.clone()) else { return false };
    let asked = PROTOCOLS.map(|(name, config)| {
        let client = Client::new(config);
        (name, client.probe(), client)
    });
    for (name, found, client) in asked {
        let spoken = changes.while_wanted(node, wants, found).await;
        if !matches!(spoken, Some(Ok(Ok(found))) if found.nat_pmp || found.pcp || found.upnp) {
            continue;
        }
        let _held = held.clone().lock_owned().await;
        client.update_local_port(wants.port);
        let mut external = client.watch_external_address();
        let granted = async { external.wait_for(Option::is_some).await.is_ok() };
        let granted = clock.timeout(MAPPED_WITHIN, granted);
        let mapped = matches!(changes.while_wanted(node, wants, granted).await, Some(Ok(true)));
        tracing::debug!(protocol = name, mapped, "the router was asked to forward a port");
        if mapped {
            changes.while_wanted(node, wants, follow(node, &mut external)).await;
        }
        release(&client, clock).await;
        if mapped {
            tell(node, None);
            return true;
        }
    }
    false
}

/// Tells the node of its public address until the mapping is lost.
async fn follow(node: &Weak<Inner>, external: &mut watch::Receiver<Option<SocketAddrV4>>) {
    loop {
        let address = *external.borrow_and_update();
        let Some(address) = address else { return };
        tell(node, Some(address.into()));
        if external.changed().await.is_err() {
            return;
        }
    }
}

/// Gives a mapping back. The client answers questions in turn, so that once it has answered another
/// one it has done so.
async fn release(client: &Client, clock: &Clock) {
    client.deactivate();
    let _ = clock.timeout(RELEASED_WITHIN, client.probe()).await;
}

fn tell(node: &Weak<Inner>, address: Option<SocketAddr>) {
    let Some(node) = node.upgrade() else { return };
    let changed = node.nat.send_if_modified(|state| {
        let changed = state.mapped != address;
        state.mapped = address;
        changed
    });
    if changed {
        tracing::info!(?address, "the router forwards a port");
        node.addresses_changed();
    }
}

/// Gives the mapping back for good, if there is one.
pub(crate) async fn give_back(node: &Inner) {
    node.nat_options.lock().port_mapping = false;
    node.link_changed();
    let mapping = Arc::clone(&node.mapping);
    let _ = node.clock.timeout(RELEASED_WITHIN * 2, mapping.lock()).await;
}
