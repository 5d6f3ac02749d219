//! Circuits: where a node that cannot be reached keeps a reservation.

use std::time::Instant;

use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;

use crate::config::peer_of;
use crate::seeds::pause;

/// Reservations that a node keeps: when one relay dies the other still leads to it.
const RESERVATIONS: usize = 2;
/// Most relays that are known.
const RELAYS_MAX: usize = 16;

/// Relays, and which of them hold a reservation for this node.
#[derive(Debug, Default)]
pub(crate) struct Reservations(Vec<Relay>);

#[derive(Debug)]
struct Relay {
    address: Multiaddr,
    listener: Option<ListenerId>,
    attempts: u32,
    next: Instant,
}

impl Reservations {
    /// Adds a relay by its address, which ends with its id; at most 16 are kept.
    pub(crate) fn add(&mut self, address: Multiaddr, now: Instant) {
        let Some(peer) = peer_of(&address) else { return };
        let is_known = self.0.iter().any(|r| peer_of(&r.address) == Some(peer));
        if !is_known && self.0.len() < RELAYS_MAX {
            self.0.push(Relay { address, listener: None, attempts: 0, next: now });
        }
    }

    /// Relays to ask now, until two have been.
    pub(crate) fn due(&mut self, now: Instant, spread: impl Fn() -> u8) -> Vec<Multiaddr> {
        let held = self.0.iter().filter(|r| r.listener.is_some()).count();
        let wanted = RESERVATIONS.saturating_sub(held);
        let mut relays: Vec<_> =
            self.0.iter_mut().filter(|r| r.listener.is_none() && r.next <= now).collect();
        relays.sort_by_key(|r| r.attempts);
        let due = relays.into_iter().take(wanted).map(|relay| {
            relay.next = now + pause(relay.attempts, spread());
            relay.attempts = relay.attempts.saturating_add(1);
            relay.address.clone()
        });
        due.collect()
    }

    /// The relay is being asked.
    pub(crate) fn asked(&mut self, address: &Multiaddr, listener: ListenerId) {
        if let Some(relay) = self.0.iter_mut().find(|r| r.address == *address) {
            relay.listener = Some(listener);
        }
    }

    /// The reservation stands.
    pub(crate) fn stands(&mut self, listener: ListenerId) {
        if let Some(relay) = self.0.iter_mut().find(|r| r.listener == Some(listener)) {
            relay.attempts = 0;
        }
    }

    /// The reservation is gone, or was refused.
    pub(crate) fn ended(&mut self, listener: ListenerId) {
        if let Some(relay) = self.0.iter_mut().find(|r| r.listener == Some(listener)) {
            relay.listener = None;
        }
    }
}
