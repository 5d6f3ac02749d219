//! Peers that answered when the node ran before: one multiaddr a line.

use libp2p::Multiaddr;

use crate::config::{is_circuit, peer_of};

/// Most peers that are remembered.
pub const REMEMBERED_MAX: usize = 32;

/// Reads what [`write_remembered`] wrote. What is no address of a node is left out: a damaged file
/// costs a start nothing that the other ways do not give.
#[must_use]
pub fn parse_remembered(text: &str) -> Vec<Multiaddr> {
    let addresses = text.lines().filter_map(|line| line.trim().parse::<Multiaddr>().ok());
    addresses.filter(is_worth_it).take(REMEMBERED_MAX).collect()
}

/// Writes at most 32 addresses, each with its node's id.
#[must_use]
pub fn write_remembered(addresses: &[Multiaddr]) -> String {
    let lines = addresses.iter().filter(|a| is_worth_it(a)).take(REMEMBERED_MAX);
    lines.map(|address| format!("{address}\n")).collect()
}

fn is_worth_it(address: &Multiaddr) -> bool {
    peer_of(address).is_some() && !is_circuit(address)
}
