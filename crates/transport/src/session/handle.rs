//! A session as its owner holds it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use quinn::VarInt;
use sluice_path::{Kind, Reason};
use sluice_proto::wire::session as wire_session;
use sluice_proto::{Invited, PeerId, RelayAddr, RelayFlow};
use tokio::sync::watch;

use super::{RECEIVE_WINDOW, relayed_window};
use crate::knock::{decode_candidates, encode_candidates};
use crate::node::Inner;
use crate::peer::{Command, Peer, Route};
use crate::tls;

/// The path that a session uses, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInfo {
    /// Direct or relayed.
    pub kind: Kind,
    /// The other node's address, or the relay's.
    pub remote: SocketAddr,
    /// The relay, if one carries it.
    pub relay: Option<RelayAddr>,
    /// Its round-trip time, once echoed.
    pub rtt: Option<Duration>,
    /// Why it was chosen.
    pub reason: Reason,
    /// Whether the relay is reached over TCP, since UDP does not work.
    pub over_tcp: bool,
}

/// Packet bytes of a session by kind of path, both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathBytes {
    /// Sent through relays, with headers; probes too, since they are billed.
    pub relayed_sent: u64,
    /// Received through relays, with headers.
    pub relayed_received: u64,
    /// Sent directly.
    pub direct_sent: u64,
    /// Received directly.
    pub direct_received: u64,
}

/// A handle on a session. Cheap to clone; the session ends when its connection is closed.
#[derive(Debug, Clone)]
pub struct Session {
    pub(super) connection: quinn::Connection,
    pub(super) peer_id: PeerId,
    pub(super) invited: Option<Invited>,
    pub(super) peer: Arc<Peer>,
    pub(super) node: Arc<Inner>,
    pub(super) path: watch::Receiver<Option<PathInfo>>,
    pub(super) warm: watch::Receiver<Vec<RelayAddr>>,
}

impl Session {
    /// The QUIC connection: streams and datagrams are the owner's.
    #[must_use]
    pub const fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// Who is at the other end, as TLS proved it.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer_id
    }

    /// What the other end was invited by; `None`: this end opened it.
    #[must_use]
    pub const fn invited(&self) -> Option<Invited> {
        self.invited
    }

    /// The path in use, now and later.
    #[must_use]
    pub fn path(&self) -> watch::Receiver<Option<PathInfo>> {
        self.path.clone()
    }

    /// The relays that carry the session's echoes now, whether its packets go through them or not.
    #[must_use]
    pub fn warm_relays(&self) -> watch::Receiver<Vec<RelayAddr>> {
        self.warm.clone()
    }

    /// Where the other node can be reached by now, best first: a tenant keeps two of these relays
    /// ready. To begin with they are those of its ticket.
    pub fn set_relays(&self, relays: Vec<RelayAddr>) {
        self.peer.command(Command::Relays(relays));
    }

    /// Keying material of this session alone, for signatures that must not be moved to another.
    #[must_use]
    pub fn exporter(&self) -> [u8; 32] {
        tls::export(&self.connection, sluice_proto::eth::BIND_EXPORTER_LABEL, b"")
    }

    /// Packet bytes so far.
    #[must_use]
    pub fn path_bytes(&self) -> PathBytes {
        PathBytes {
            relayed_sent: self.peer.relayed_sent.load(Relaxed),
            relayed_received: self.peer.relayed_received.load(Relaxed),
            direct_sent: self.peer.direct_sent.load(Relaxed),
            direct_received: self.peer.direct_received.load(Relaxed),
        }
    }

    /// Allows direct paths, or sends the session back to its relay.
    pub fn set_direct_allowed(&self, allowed: bool) {
        self.peer.command(Command::DirectAllowed(allowed));
    }

    /// Changes whenever [`Self::local_candidates`] may have.
    #[must_use]
    pub fn address_changes(&self) -> watch::Receiver<u64> {
        self.node.address_changes.subscribe()
    }

    /// Where this node may be reached, to be told to the other side once that is allowed.
    #[must_use]
    pub fn local_candidates(&self) -> wire_session::Candidates {
        wire_session::Candidates { addresses: encode_candidates(&self.node.local_candidates()) }
    }

    /// Where the other side says it may be reached.
    pub fn add_candidates(&self, candidates: &wire_session::Candidates) {
        self.peer.command(Command::Candidates(decode_candidates(&candidates.addresses)));
    }

    /// Tells how much payload this session delivered to this side's services, in all: raises what a relay may
    /// send, and, while a relay carries the session, sets the receive window that keeps an honest
    /// sender within it.
    pub fn set_delivered(&self, delivered: u64) {
        let before = self.peer.delivered.fetch_max(delivered, Relaxed);
        let route = self.peer.outgoing.lock().route.clone();
        let window = match route {
            Some(Route::Relay { leg, flow, counts }) => {
                // Each relay is told of what came through it alone.
                let here = counts.count_delivered(delivered.saturating_sub(before));
                let links = self.node.links();
                if let Some(link) = links.into_iter().find(|l| l.relay().addr == leg.relay) {
                    link.tell(crate::LinkEvent::Grown(flow));
                }
                relayed_window(here)
            }
            Some(Route::Direct(_)) | None => u64::from(RECEIVE_WINDOW),
        };
        let window = u32::try_from(window).unwrap_or(u32::MAX).min(RECEIVE_WINDOW);
        self.peer.receive_window.store(window, Relaxed);
        let until = self.peer.delivered.load(Relaxed).saturating_add(window.into());
        self.peer.credit_until.fetch_max(until, Relaxed);
        self.connection.set_receive_window(VarInt::from_u32(window));
    }

    /// The flow that carries the session now, if a relay does, and its link.
    #[must_use]
    pub fn relay_flow(&self) -> Option<Arc<RelayFlow>> {
        match &self.peer.outgoing.lock().route {
            Some(Route::Relay { counts, .. }) => Some(counts.clone()),
            Some(Route::Direct(_)) | None => None,
        }
    }

    /// Whether a relay carries the session now.
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        self.path.borrow().is_none_or(|p| p.kind == Kind::Relayed)
    }

    /// Ends the session; its streams are reset at both ends.
    pub fn close(&self, code: u32, message: &str) {
        self.connection.close(code.into(), message.as_bytes());
    }
}
