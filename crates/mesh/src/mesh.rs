//! The handle: what the application asks of the mesh.

use std::io;
use std::time::Instant;

use bytes::Bytes;
use libp2p::{Multiaddr, PeerId, TransportError};
use sluice_proto::{RecordError, SignedRecord};
use tokio::sync::{mpsc, oneshot};

use crate::behaviour::swarm;
use crate::config::MeshConfig;
use crate::control::CONTROL_MAX;
use crate::event::{Gossip, MeshEvents, MeshStatus, Verdict};
use crate::gossip::GOSSIP_MAX;
use crate::own::{OwnRecord, Published, addresses_of};
use crate::task::{Command, Task};

/// Most commands that wait for the task.
const COMMANDS: usize = 256;
/// Most events that wait for the application.
const EVENTS: usize = 1024;

/// Why a mesh does not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// An address to listen on cannot be had.
    #[error(
        "the mesh cannot listen on {address}: {}; give it another port with --mesh",
        reason(error)
    )]
    Listen {
        /// The address.
        address: Multiaddr,
        /// Why not.
        error: TransportError<io::Error>,
    },
    /// The system refuses something else.
    #[error("the mesh cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// libp2p's own text leaves out what the system said.
fn reason(error: &TransportError<io::Error>) -> String {
    match error {
        TransportError::MultiaddrNotSupported(_) => "no transport for such an address".to_owned(),
        TransportError::Other(error) => {
            let mut cause: &dyn std::error::Error = error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            cause.to_string()
        }
    }
}

/// Why a record was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It does not stay within the bounds.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its number could not be written down, so it stays here; it is tried again.
    #[error("the record's number cannot be written down: {0}")]
    Kept(String),
    /// No node took it; it is tried again for as long as the mesh runs.
    #[error("no node of the mesh could be reached to hold the record; it is tried again")]
    NoHolder,
    /// The mesh has ended.
    #[error("the mesh has ended")]
    Ended,
}

/// Why a record was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nobody who was asked holds a valid one.
    #[error("no node that was asked has a record of {0} that counts")]
    NotFound(PeerId),
    /// Too many are being looked for.
    #[error("too many records are being looked for")]
    Busy,
    /// The mesh has ended.
    #[error("the mesh has ended")]
    Ended,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GossipError {
    /// It is too large.
    #[error("a message of {0} bytes exceeds 8 KiB")]
    TooLarge(usize),
    /// No peer listens to the topic; it may work later.
    #[error("no peer that is connected listens to the topic")]
    NoPeers,
    /// It was published before.
    #[error("the message was published before")]
    Duplicate,
    /// The topic has no place, or the queues are full.
    #[error("the message cannot be published: {0}")]
    Refused(String),
    /// The mesh has ended.
    #[error("the mesh has ended")]
    Ended,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is too large.
    #[error("a request of {0} bytes exceeds 16 KiB")]
    TooLarge(usize),
    /// The node is not connected, and no record says where it is.
    #[error(transparent)]
    NotFound(#[from] FindError),
    /// The node could not be reached, or did not answer.
    #[error("{peer} did not answer: {reason}")]
    Failed {
        /// The node.
        peer: PeerId,
        /// What happened.
        reason: String,
    },
    /// Too many are waiting for an answer.
    #[error("too many requests wait for an answer")]
    Busy,
    /// The mesh has ended.
    #[error("the mesh has ended")]
    Ended,
}

/// A handle to the mesh; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Mesh {
    own: PeerId,
    commands: mpsc::Sender<Command>,
}

impl Mesh {
    /// Starts the mesh: listens, then dials whom it knows, and goes on doing so.
    ///
    /// # Errors
    /// When an address cannot be listened on, or the system refuses something else.
    pub fn start(config: MeshConfig) -> Result<(Self, MeshEvents), MeshError> {
        let own = config.key.public().to_peer_id();
        let mut swarm = swarm(&config)?;
        // Before anything is dialled, so that what is dialled is from the port that listens.
        for address in &config.listen {
            let listening = swarm.listen_on(address.clone());
            let failed = |error| MeshError::Listen { address: address.clone(), error };
            listening.map_err(failed)?;
        }
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (events, outbox) = mpsc::channel(EVENTS);
        let task = Task::new(config, swarm, events, commands.downgrade(), Instant::now());
        tokio::spawn(task.run(inbox));
        Ok((Self { own, commands }, MeshEvents(outbox)))
    }

    /// The node's own id.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.own
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.ok()?;
        answer.await.ok()
    }

    /// Publishes what this node says of itself, and goes on publishing it: before it expires, and
    /// when other addresses lead to the node.
    ///
    /// # Errors
    /// When it is beyond a bound, or nobody took it yet.
    pub async fn publish(&self, content: OwnRecord) -> Result<Published, PublishError> {
        let published = self.ask(|done| Command::Publish { content, done }).await;
        published.unwrap_or(Err(PublishError::Ended))
    }

    /// Looks for the newest record of a node.
    ///
    /// # Errors
    /// When nobody has one that counts.
    pub async fn find(&self, peer: PeerId) -> Result<SignedRecord, FindError> {
        self.ask(|done| Command::Find { peer, done }).await.unwrap_or(Err(FindError::Ended))
    }

    /// The records that this node holds, in no order.
    pub async fn known(&self) -> Vec<SignedRecord> {
        self.ask(|done| Command::Known { done }).await.unwrap_or_default()
    }

    /// This node's own newest record, once there is one.
    pub async fn own(&self) -> Option<SignedRecord> {
        self.ask(|done| Command::Own { done }).await.flatten()
    }

    /// The peers that are connected, in no order.
    pub async fn peers(&self) -> Vec<PeerId> {
        self.ask(|done| Command::Peers { done }).await.unwrap_or_default()
    }

    /// Listens to a topic.
    ///
    /// # Errors
    /// When the topic has no place, or the mesh has ended.
    pub async fn subscribe(&self, topic: &str) -> Result<(), GossipError> {
        let topic = topic.to_owned();
        let done = self.ask(|done| Command::Subscribe { topic, done }).await;
        done.unwrap_or(Err(GossipError::Ended))
    }

    /// Says something on a topic; at most 8 KiB.
    ///
    /// # Errors
    /// When nobody hears it.
    pub async fn gossip(&self, topic: &str, bytes: Bytes) -> Result<(), GossipError> {
        if bytes.len() > GOSSIP_MAX {
            return Err(GossipError::TooLarge(bytes.len()));
        }
        let topic = topic.to_owned();
        let done = self.ask(|done| Command::Gossip { topic, bytes, done }).await;
        done.unwrap_or(Err(GossipError::Ended))
    }

    /// Judges a message: accepted it goes on, else it ends here. Only the first verdict counts.
    pub async fn judge(&self, gossip: &Gossip, verdict: Verdict) {
        let (id, bringer) = (gossip.id.clone(), gossip.bringer);
        // A mesh that has ended passes nothing on.
        let _ = self.commands.send(Command::Judge { id, bringer, verdict }).await;
    }

    /// What a peer's conduct in gossip has earned it; `None` if it is not connected.
    pub async fn score(&self, peer: PeerId) -> Option<f64> {
        self.ask(|done| Command::Score { peer, done }).await.flatten()
    }

    /// Asks a node and waits for its answer; each at most 16 KiB. A node that is not connected is
    /// dialled where its record says, at need through a circuit.
    ///
    /// # Errors
    /// When it cannot be found, reached, or does not answer.
    pub async fn request(&self, peer: PeerId, bytes: Bytes) -> Result<Bytes, RequestError> {
        if bytes.len() > CONTROL_MAX {
            return Err(RequestError::TooLarge(bytes.len()));
        }
        let connected = self.ask(|done| Command::IsConnected { peer, done }).await;
        let addresses = match connected.ok_or(RequestError::Ended)? {
            true => Vec::new(),
            false => addresses_of(self.find(peer).await?.record()),
        };
        let done = self.ask(|done| Command::Request { peer, addresses, bytes, done }).await;
        done.unwrap_or(Err(RequestError::Ended))
    }

    /// Connects to a node at this address, which may end with its id.
    pub async fn dial(&self, address: Multiaddr) {
        // A mesh that has ended dials nobody.
        let _ = self.commands.send(Command::Dial { address }).await;
    }

    /// Shuts a peer out for an hour.
    pub async fn block(&self, peer: PeerId) {
        // A mesh that has ended has no peers.
        let _ = self.commands.send(Command::Block { peer }).await;
    }

    /// How it stands; `None` when it has ended.
    pub async fn status(&self) -> Option<MeshStatus> {
        self.ask(|done| Command::Status { done }).await
    }
}
