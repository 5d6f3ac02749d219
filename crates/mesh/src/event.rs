//! What the mesh tells the application.

use std::fmt;

use bytes::Bytes;
use libp2p::request_response::ResponseChannel;
use libp2p::{Multiaddr, PeerId, gossipsub};
use tokio::sync::mpsc;

use crate::own::Published;
use crate::records::Equivocation;
use crate::task::Command;

/// Something happened.
#[derive(Debug)]
pub enum MeshEvent {
    /// A message of a topic: [judge](crate::Mesh::judge) it, or it goes no further.
    Gossip(Gossip),
    /// Another node asks; whoever drops it does not answer.
    Request(Request),
    /// A node contradicted itself; it is shut out for an hour.
    Equivocation {
        /// The node.
        peer: PeerId,
        /// Both records.
        evidence: Equivocation,
    },
    /// The node's own record was published anew.
    Published(Published),
    /// A peer listens to a topic.
    Listener {
        /// The peer.
        peer: PeerId,
        /// The topic's name.
        topic: String,
    },
}

/// The application's end of the events: they stop when the mesh has ended.
#[derive(Debug)]
pub struct MeshEvents(pub(crate) mpsc::Receiver<MeshEvent>);

impl MeshEvents {
    /// The next event; `None` when the mesh has ended.
    pub async fn next(&mut self) -> Option<MeshEvent> {
        self.0.recv().await
    }
}

/// A message of a topic.
#[derive(Debug, Clone)]
pub struct Gossip {
    /// The topic's name.
    pub topic: String,
    /// Who signed it.
    pub source: PeerId,
    /// What it says; at most 8 KiB.
    pub bytes: Bytes,
    pub(crate) bringer: PeerId,
    pub(crate) id: gossipsub::MessageId,
}

/// What the application thinks of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Accept,
    /// It goes no further, and its bringer loses score.
    Reject,
    /// It goes no further, and nobody is blamed.
    Ignore,
}

/// A request of another node.
pub struct Request {
    /// Who asks.
    pub peer: PeerId,
    /// What it asks; at most 16 KiB.
    pub bytes: Bytes,
    pub(crate) channel: ResponseChannel<Bytes>,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({}, {} bytes)", self.peer, self.bytes.len())
    }
}

impl Request {
    /// Answers with at most 16 KiB; what is longer is not sent.
    pub async fn answer(self, bytes: Bytes) {
        let answer = Command::Answer { channel: self.channel, bytes };
        // A mesh that has ended answers nobody.
        let _ = self.commands.send(answer).await;
    }
}

/// How the mesh stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshStatus {
    /// Peers that are connected.
    pub peers: usize,
    /// Where the node listens.
    pub listening: Vec<Multiaddr>,
    /// Where it is reached: confirmed addresses, and circuits.
    pub reachable: Vec<Multiaddr>,
    /// Whether it serves the DHT.
    pub serves: bool,
    /// Peers to remember for the next start.
    pub remembered: Vec<Multiaddr>,
    /// What was refused, and how often.
    pub counts: Counts,
}

/// How often what happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records taken that were new.
    pub records_taken: u64,
    /// Records refused because they are none: forged, damaged, oversized, under a wrong key.
    pub records_invalid: u64,
    /// Records refused because their time is over or has not come.
    pub records_untimely: u64,
    /// Records refused because a newer one was seen.
    pub records_older: u64,
    /// Nodes that contradicted themselves.
    pub equivocations: u64,
    /// Messages of gossip that the application let pass.
    pub gossip_accepted: u64,
    /// Messages of gossip that it rejected.
    pub gossip_rejected: u64,
    /// Connections that a limit refused.
    pub connections_refused: u64,
    /// Peers that were shut out.
    pub peers_blocked: u64,
    /// Events that did not fit.
    pub events_dropped: u64,
}
