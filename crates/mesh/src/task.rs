//! The task that owns the swarm.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::futures::StreamExt;
use libp2p::kad::QueryId;
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{OutboundRequestId, ResponseChannel};
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub};
use sluice_proto::{Keypair, SignedRecord};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::behaviour::Behaviour;
use crate::clock::{spread, unix_ms};
use crate::config::{KeepSequence, MeshConfig, is_circuit};
use crate::control::CONTROL_MAX;
use crate::event::{Counts, MeshEvent, MeshStatus, Verdict};
use crate::gossip::{topic, topic_score};
use crate::mesh::{FindError, GossipError, PublishError, RequestError};
use crate::own::{Own, OwnRecord, Published};
use crate::reserve::Reservations;
use crate::seeds::Seeds;

mod dht;
mod events;

/// How often the task looks whom to dial, what to publish anew, and what has waited long enough.
const TICK: Duration = Duration::from_millis(250);
/// With fewer peers than this the node looks for more.
const PEERS_LOW: usize = 6;
/// It explores so often at most.
const EXPLORE_EACH: Duration = Duration::from_secs(30);
/// Whoever has just met a node of the DHT, and knows few, asks it for others after this.
const EXPLORE_SOON: Duration = Duration::from_millis(500);
/// A record that nobody took is published again after this.
const PUBLISH_AGAIN: Duration = Duration::from_secs(3);
/// A peer is shut out for this long.
const BLOCKED_FOR: Duration = Duration::from_secs(3600);
/// Most peers that are shut out at once; the oldest leaves.
const BLOCKED_MAX: usize = 1024;
/// Most requests that wait for an answer.
const REQUESTS_MAX: usize = 256;

/// What the handle asks of the task.
#[derive(Debug)]
pub(crate) enum Command {
    Publish {
        content: OwnRecord,
        done: oneshot::Sender<Result<Published, PublishError>>,
    },
    Find {
        peer: PeerId,
        done: oneshot::Sender<Result<SignedRecord, FindError>>,
    },
    /// The number of a record that is to go out was written down, or not.
    Kept {
        own: Box<Own>,
        kept: Result<(), String>,
        done: Option<oneshot::Sender<Result<Published, PublishError>>>,
    },
    Known {
        done: oneshot::Sender<Vec<SignedRecord>>,
    },
    Own {
        done: oneshot::Sender<Option<SignedRecord>>,
    },
    Peers {
        done: oneshot::Sender<Vec<PeerId>>,
    },
    Subscribe {
        topic: String,
        done: oneshot::Sender<Result<(), GossipError>>,
    },
    Gossip {
        topic: String,
        bytes: Bytes,
        done: oneshot::Sender<Result<(), GossipError>>,
    },
    Judge {
        id: gossipsub::MessageId,
        bringer: PeerId,
        verdict: Verdict,
    },
    Score {
        peer: PeerId,
        done: oneshot::Sender<Option<f64>>,
    },
    IsConnected {
        peer: PeerId,
        done: oneshot::Sender<bool>,
    },
    Request {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        bytes: Bytes,
        done: oneshot::Sender<Result<Bytes, RequestError>>,
    },
    Answer {
        channel: ResponseChannel<Bytes>,
        bytes: Bytes,
    },
    Dial {
        address: Multiaddr,
    },
    Block {
        peer: PeerId,
    },
    Status {
        done: oneshot::Sender<MeshStatus>,
    },
}

/// The swarm and what is under way in it.
pub(crate) struct Task {
    swarm: Swarm<Behaviour>,
    key: Keypair,
    /// Whether addresses of private networks are dialled.
    private: bool,
    /// Whether the operator says that the node is reached where it listens.
    public: bool,
    events: mpsc::Sender<MeshEvent>,
    commands: mpsc::WeakSender<Command>,
    seeds: Seeds,
    reservations: Reservations,
    own: Option<Own>,
    last_sequence: u64,
    keep: Option<KeepSequence>,
    /// A number is being written down.
    keeping: bool,
    /// What could not be published for want of that, and when it is tried again.
    unpublished: Option<(OwnRecord, Instant)>,
    publish_at: Option<Instant>,
    explore_at: Instant,
    finds: HashMap<QueryId, dht::Find>,
    /// Those that are to be looked for again, and when.
    waiting_finds: Vec<(Instant, dht::Find)>,
    publishing: HashMap<QueryId, Option<oneshot::Sender<Result<Published, PublishError>>>>,
    requests: HashMap<OutboundRequestId, oneshot::Sender<Result<Bytes, RequestError>>>,
    strikes: HashMap<PeerId, u32>,
    blocked: HashMap<PeerId, Instant>,
    remembered: Vec<Multiaddr>,
    counts: Counts,
}

impl Task {
    pub(crate) fn new(
        config: MeshConfig,
        swarm: Swarm<Behaviour>,
        events: mpsc::Sender<MeshEvent>,
        commands: mpsc::WeakSender<Command>,
        now: Instant,
    ) -> Self {
        let mut reservations = Reservations::default();
        for relay in config.relays {
            reservations.add(relay, now);
        }
        let mut task = Self {
            swarm,
            key: config.key,
            private: config.private,
            public: config.public,
            events,
            commands,
            seeds: Seeds::new(config.bootstrap.into_iter().chain(config.remembered), now),
            reservations,
            own: None,
            last_sequence: config.last_sequence,
            keep: config.keep,
            keeping: false,
            unpublished: None,
            publish_at: None,
            explore_at: now,
            finds: HashMap::new(),
            waiting_finds: Vec::new(),
            publishing: HashMap::new(),
            requests: HashMap::new(),
            strikes: HashMap::new(),
            blocked: HashMap::new(),
            remembered: Vec::new(),
            counts: Counts::default(),
        };
        for address in config.external {
            task.swarm.add_external_address(address);
        }
        task.choose_mode();
        task
    }

    /// Runs until the last handle is gone.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                event = self.swarm.select_next_some() => self.handle_swarm(event),
                _ = tick.tick() => self.handle_tick(Instant::now()),
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        // Whoever asked and went away wants no answer.
        match command {
            Command::Publish { content, done } => self.publish(content, Some(done)),
            Command::Find { peer, done } => self.find(peer, done),
            Command::Kept { own, kept, done } => self.kept(*own, kept, done),
            Command::Own { done } => {
                let _ = done.send(self.own.as_ref().map(|own| own.signed().clone()));
            }
            Command::Peers { done } => {
                let _ = done.send(self.swarm.connected_peers().copied().collect());
            }
            Command::Known { done } => {
                let _ = done.send(self.known());
            }
            Command::Subscribe { topic, done } => {
                let _ = done.send(self.subscribe(&topic));
            }
            Command::Gossip { topic, bytes, done } => {
                let _ = done.send(self.gossip(&topic, &bytes));
            }
            Command::Judge { id, bringer, verdict } => self.judge(&id, &bringer, verdict),
            Command::Score { peer, done } => {
                let connected = self.swarm.is_connected(&peer);
                let score = self.swarm.behaviour().gossip.peer_score(&peer);
                let _ = done.send(score.filter(|_| connected));
            }
            Command::IsConnected { peer, done } => {
                let _ = done.send(self.swarm.is_connected(&peer));
            }
            Command::Request { peer, addresses, bytes, done } => {
                self.request(peer, addresses, bytes, done);
            }
            Command::Answer { channel, bytes } => self.answer(channel, bytes),
            Command::Dial { address } => self.dial(address),
            Command::Block { peer } => self.block(peer),
            Command::Status { done } => {
                let _ = done.send(self.status());
            }
        }
    }

    fn handle_tick(&mut self, now: Instant) {
        self.finish_finds(now);
        self.find_again(now);
        self.look_for_peers(now);
        self.keep_reservations(now);
        self.publish_anew(now);
        let over: Vec<PeerId> = self
            .blocked
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in over {
            self.unblock(peer);
        }
    }

    /// While few peers are connected: dials whom it knows, and explores the DHT.
    fn look_for_peers(&mut self, now: Instant) {
        if self.swarm.network_info().num_peers() >= PEERS_LOW {
            self.seeds.settle(now);
            return;
        }
        for address in self.seeds.due(now, spread) {
            self.dial(address);
        }
        if self.explore_at <= now {
            self.explore_at = now + EXPLORE_EACH;
            self.swarm.behaviour_mut().kad.get_closest_peers(PeerId::random());
        }
    }

    fn dial(&mut self, address: Multiaddr) {
        if let Err(error) = self.swarm.dial(address.clone()) {
            tracing::debug!(%address, %error, "not dialled");
        }
    }

    /// A node that is not reached otherwise keeps two circuits.
    fn keep_reservations(&mut self, now: Instant) {
        if self.public || self.is_reached_directly() {
            return;
        }
        for relay in self.reservations.due(now, spread) {
            let circuit = relay.clone().with(Protocol::P2pCircuit);
            match self.swarm.listen_on(circuit) {
                Ok(listener) => self.reservations.asked(&relay, listener),
                Err(error) => tracing::debug!(%relay, %error, "no circuit"),
            }
        }
    }

    fn is_reached_directly(&self) -> bool {
        self.swarm.external_addresses().any(|address| !is_circuit(address))
    }

    /// Where others reach this node: confirmed addresses and circuits; on a private network, where it
    /// listens too.
    fn addresses(&self) -> Vec<Multiaddr> {
        let own = *self.swarm.local_peer_id();
        let bare = |address: &Multiaddr| {
            let mut address = address.clone();
            if address.iter().last() == Some(Protocol::P2p(own)) {
                address.pop();
            }
            address
        };
        let mut all: Vec<Multiaddr> = self.swarm.external_addresses().map(bare).collect();
        if self.private {
            all.extend(self.swarm.listeners().map(bare));
        }
        all.sort_by_key(Multiaddr::to_vec);
        all.dedup();
        all
    }

    fn subscribe(&mut self, name: &str) -> Result<(), GossipError> {
        let (topic, gossip) = (topic(name), &mut self.swarm.behaviour_mut().gossip);
        let refused = |text: String| GossipError::Refused(text);
        gossip.subscribe(&topic).map_err(|e| refused(e.to_string()))?;
        gossip.set_topic_params(topic, topic_score()).map_err(|e| refused(e.to_string()))
    }

    fn gossip(&mut self, name: &str, bytes: &[u8]) -> Result<(), GossipError> {
        let published = self.swarm.behaviour_mut().gossip.publish(topic(name), bytes);
        match published {
            Ok(_) => Ok(()),
            Err(gossipsub::PublishError::Duplicate) => Err(GossipError::Duplicate),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => Err(GossipError::NoPeers),
            Err(gossipsub::PublishError::MessageTooLarge) => {
                Err(GossipError::TooLarge(bytes.len()))
            }
            Err(other) => Err(GossipError::Refused(other.to_string())),
        }
    }

    fn judge(&mut self, id: &gossipsub::MessageId, bringer: &PeerId, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Accept => gossipsub::MessageAcceptance::Accept,
            Verdict::Reject => gossipsub::MessageAcceptance::Reject,
            Verdict::Ignore => gossipsub::MessageAcceptance::Ignore,
        };
        match verdict {
            gossipsub::MessageAcceptance::Accept => self.counts.gossip_accepted += 1,
            gossipsub::MessageAcceptance::Reject => self.counts.gossip_rejected += 1,
            gossipsub::MessageAcceptance::Ignore => {}
        }
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(id, bringer, verdict);
    }

    fn request(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        bytes: Bytes,
        done: oneshot::Sender<Result<Bytes, RequestError>>,
    ) {
        if self.requests.len() >= REQUESTS_MAX {
            let _ = done.send(Err(RequestError::Busy));
            return;
        }
        let control = &mut self.swarm.behaviour_mut().control;
        let id = control.send_request_with_addresses(&peer, bytes, addresses);
        self.requests.insert(id, done);
    }

    fn answer(&mut self, channel: ResponseChannel<Bytes>, bytes: Bytes) {
        if bytes.len() > CONTROL_MAX {
            tracing::warn!(len = bytes.len(), "an answer exceeds 16 KiB and is not sent");
            return;
        }
        if self.swarm.behaviour_mut().control.send_response(channel, bytes).is_err() {
            tracing::debug!("who asked has gone");
        }
    }

    /// Shuts a peer out for an hour.
    fn block(&mut self, peer: PeerId) {
        if self.blocked.len() >= BLOCKED_MAX {
            let oldest = self.blocked.iter().min_by_key(|(_, until)| **until).map(|(p, _)| *p);
            oldest.into_iter().for_each(|peer| self.unblock(peer));
        }
        self.counts.peers_blocked += 1;
        self.blocked.insert(peer, Instant::now() + BLOCKED_FOR);
        let behaviour = self.swarm.behaviour_mut();
        behaviour.blocked.block_peer(peer);
        behaviour.kad.remove_peer(&peer);
    }

    fn unblock(&mut self, peer: PeerId) {
        self.blocked.remove(&peer);
        self.swarm.behaviour_mut().blocked.unblock_peer(peer);
    }

    fn known(&mut self) -> Vec<SignedRecord> {
        self.swarm.behaviour_mut().kad.store_mut().0.iter(unix_ms()).cloned().collect()
    }

    fn status(&mut self) -> MeshStatus {
        let kad = &self.swarm.behaviour().kad;
        MeshStatus {
            peers: self.swarm.network_info().num_peers(),
            listening: self.swarm.listeners().cloned().collect(),
            reachable: self.swarm.external_addresses().cloned().collect(),
            serves: kad.mode() == libp2p::kad::Mode::Server,
            remembered: self.remembered.clone(),
            counts: self.counts,
        }
    }

    /// Hands an event to the application, if it fits.
    fn emit(&mut self, event: MeshEvent) -> bool {
        let fits = self.events.try_send(event).is_ok();
        self.counts.events_dropped += u64::from(!fits);
        fits
    }
}
