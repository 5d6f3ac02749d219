//! What the socket looks up for each packet.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};
use sluice_path::Pair;
use sluice_proto::frame::Observed;
use sluice_proto::{FlowId, RelayFlow};
use tokio::sync::mpsc;

use crate::leg::Leg;
use crate::peer::{Command, Peer};

/// First 8 bytes of the made-up addresses of sessions: a unique local prefix (RFC 4193).
const FAKE_PREFIX: [u16; 4] = [0xfd53, 0x6c75, 0x6963, 0x6501];
/// Port of all made-up addresses.
const FAKE_PORT: u16 = 1;

/// The address by which quinn knows session number `index`.
pub(crate) fn fake_addr(index: u64) -> SocketAddr {
    let [a, b, c, d] = FAKE_PREFIX;
    let i = index.to_be_bytes();
    let word = |n: usize| u16::from_be_bytes([i[n], i[n + 1]]);
    let ip = Ipv6Addr::new(a, b, c, d, word(0), word(2), word(4), word(6));
    SocketAddr::new(IpAddr::V6(ip), FAKE_PORT)
}

/// The number of the session that a made-up address stands for.
pub(crate) fn fake_index(addr: &SocketAddr) -> Option<u64> {
    let IpAddr::V6(ip) = addr.ip() else { return None };
    let s = ip.segments();
    (addr.port() == FAKE_PORT && s[..4] == FAKE_PREFIX).then(|| {
        (u64::from(s[4]) << 48)
            | (u64::from(s[5]) << 32)
            | (u64::from(s[6]) << 16)
            | u64::from(s[7])
    })
}

/// The form in which quinn knows real addresses: always IPv6.
pub(crate) fn to_quinn(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// The form in which we keep real addresses: IPv4 as IPv4.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Where frames of one flow belong.
#[derive(Debug, Clone)]
pub(crate) struct FlowEntry {
    pub(crate) peer: Arc<Peer>,
    pub(crate) leg: Arc<Leg>,
    pub(crate) counts: Arc<RelayFlow>,
    /// Number of the relayed path in the session's agent.
    pub(crate) path: u32,
    /// The static key of whoever knocked.
    pub(crate) initiator: [u8; 32],
}

/// Shared between the socket, the sessions and the links.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) peers: RwLock<HashMap<u64, Arc<Peer>>>,
    pub(crate) flows: RwLock<HashMap<(SocketAddr, FlowId), FlowEntry>>,
    /// Legs by the relay's address. QUIC from there is heard.
    pub(crate) legs: RwLock<HashMap<SocketAddr, Option<Arc<Leg>>>>,
    /// Addresses that completed a sealed probe, each at its socket.
    pub(crate) direct: RwLock<HashMap<Pair, Arc<Peer>>>,
    /// Who waits for a relay's answer to an observe frame, by its token.
    pub(crate) observers: Mutex<HashMap<u64, mpsc::UnboundedSender<Observed>>>,
    /// Sessions by the number that their probes carry.
    pub(crate) probes: RwLock<HashMap<u64, Arc<Peer>>>,
    /// Changes whenever `flows` or `direct` do, so that look-ups may be remembered.
    generation: AtomicU64,
    next: AtomicU64,
}

impl Tables {
    pub(crate) fn next_index(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(std::sync::atomic::Ordering::Acquire)
    }

    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, std::sync::atomic::Ordering::Release);
    }

    /// The control connection to a relay was made anew: its flows go on with new keys, unless the
    /// relay forgot them. Returns them.
    pub(crate) fn replace_leg(
        &self,
        relay: SocketAddr,
        leg: &Arc<Leg>,
    ) -> Vec<(FlowId, FlowEntry)> {
        let mut flows = self.flows.write();
        let mut kept: Vec<_> = flows
            .iter_mut()
            .filter(|((addr, _), _)| *addr == relay)
            .map(|((_, flow), entry)| {
                entry.leg = leg.clone();
                (*flow, entry.clone())
            })
            .collect();
        drop(flows);
        // In an order that the map's own seed does not decide.
        kept.sort_by_key(|(flow, _)| *flow);
        self.changed();
        kept
    }

    /// The sessions, the oldest first: in an order that the map's own seed does not decide.
    pub(crate) fn sessions(&self) -> Vec<Arc<Peer>> {
        let mut sessions: Vec<_> = self.peers.read().values().cloned().collect();
        sessions.sort_by_key(|peer| peer.index);
        sessions
    }

    /// Tells the sessions that have a flow at a relay that it is reached another way.
    pub(crate) fn carrier_changed(&self, relay: SocketAddr, old_dead: bool) {
        let mut flows: Vec<_> =
            self.flows.read().iter().map(|(k, f)| (*k, f.peer.clone())).collect();
        flows.retain(|((addr, _), _)| *addr == relay);
        flows.sort_by_key(|((_, flow), _)| *flow);
        for (_, peer) in flows {
            peer.command(Command::CarrierChanged { relay, old_dead });
        }
    }

    /// QUIC from there belongs to `peer`, unless it is another session's. Whether that is news.
    pub(crate) fn claim_direct(&self, pair: Pair, peer: &Arc<Peer>) -> bool {
        match self.direct.write().entry(pair) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(peer.clone());
                true
            }
        }
    }

    /// Forgets everything about a session.
    pub(crate) fn remove_peer(&self, peer: &Arc<Peer>) {
        self.peers.write().remove(&peer.index);
        self.probes.write().retain(|_, p| !Arc::ptr_eq(p, peer));
        self.flows.write().retain(|_, f| !Arc::ptr_eq(&f.peer, peer));
        self.direct.write().retain(|_, p| !Arc::ptr_eq(p, peer));
        self.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_address_gives_its_session_back_and_a_real_one_none() {
        for index in [0, 1, 0x1234_5678_9abc_def0, u64::MAX] {
            assert_eq!(fake_index(&fake_addr(index)), Some(index));
        }
        let real: SocketAddr = "192.0.2.1:1".parse().expect("an address");
        assert_eq!(fake_index(&to_quinn(real)), None);
        assert_eq!(canonical(to_quinn(real)), real);
    }
}
