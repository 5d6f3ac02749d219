//! Asks the router to forward a port to the data socket: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Weak;

use tokio::sync::watch;

use crate::Network;
use crate::node::Inner;

/// Keeps a mapping while the options ask for one, until the node is gone. Only over the kernel's
/// network, and only if a relay beyond this machine is in use: else no router is in the way.
pub(crate) async fn keep_mapped(node: Weak<Inner>) {
    let Some(mut changes) = node.upgrade().map(|node| node.link_changes.subscribe()) else {
        return;
    };
    loop {
        let Some(port) = node.upgrade().map(|node| wanted(&node)) else { return };
        if let Some(port) = port {
            map(&node, port, &mut changes).await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The port to be mapped, if one is.
fn wanted(node: &Inner) -> Option<NonZeroU16> {
    let bound = node.socket.bound().ok()?;
    let mapped = node.nat_options.lock().port_mapping
        && matches!(node.network, Network::Kernel)
        && !bound.ip().is_loopback()
        && node.links().iter().any(|link| !link.relay().addr.ip().is_loopback());
    NonZeroU16::new(bound.port()).filter(|_| mapped)
}

/// Maps the port until that is not wanted any more.
async fn map(node: &Weak<Inner>, port: NonZeroU16, changes: &mut watch::Receiver<u64>) {
    let client = portmapper::Client::new(portmapper::Config::default());
    client.update_local_port(port);
    client.procure_mapping();
    let mut external = client.watch_external_address();
    loop {
        let address = external.borrow_and_update().map(SocketAddr::V4);
        let Some(strong) = node.upgrade() else { break };
        tell(&strong, address);
        if wanted(&strong).is_none() {
            tell(&strong, None);
            break;
        }
        drop(strong);
        tokio::select! {
            biased;
            changed = external.changed() => if changed.is_err() { break },
            changed = changes.changed() => if changed.is_err() { break },
        }
    }
    client.deactivate();
}

fn tell(node: &Inner, address: Option<SocketAddr>) {
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
