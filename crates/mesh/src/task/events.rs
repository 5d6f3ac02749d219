//! What the swarm tells.

use std::time::Instant;

use libp2p::core::ConnectedPoint;
use libp2p::kad::Mode;
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, Message};
use libp2p::swarm::{ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, gossipsub, identify, mdns};

use super::{EXPLORE_SOON, Task};
use crate::behaviour::{BehaviourEvent, KAD_PROTOCOL};
use crate::config::{is_circuit, is_global};
use crate::event::{Gossip, MeshEvent, Request, Verdict};
use crate::mesh::RequestError;
use crate::remembered::REMEMBERED_MAX;

/// What a relay of circuits says it speaks.
const HOP_PROTOCOL: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
/// Most addresses that are believed of one peer.
const ADDRESSES_MAX: usize = 8;

impl Task {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest concerns nobody here")]
    pub(super) fn handle_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.handle_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                self.remember(peer_id, &endpoint);
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.reservations.stands(listener_id);
                let is_believed = self.private || is_global(&address);
                if self.public && !is_circuit(&address) && is_believed {
                    self.swarm.add_external_address(address);
                    self.choose_mode();
                }
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.reservations.ended(listener_id);
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.choose_mode();
            }
            SwarmEvent::IncomingConnectionError { error: ListenError::Denied { .. }, .. } => {
                self.counts.connections_refused += 1;
            }
            _ => {}
        }
    }

    /// Only who is reached without a relay serves the DHT.
    pub(super) fn choose_mode(&mut self) {
        let mode = if self.is_reached_directly() { Mode::Server } else { Mode::Client };
        let kad = &mut self.swarm.behaviour_mut().kad;
        if kad.mode() != mode {
            tracing::debug!(?mode, "the DHT");
            kad.set_mode(Some(mode));
        }
    }

    /// A peer that was dialled with success is worth dialling at the next start.
    fn remember(&mut self, peer: PeerId, endpoint: &ConnectedPoint) {
        let ConnectedPoint::Dialer { address, .. } = endpoint else { return };
        if is_circuit(address) {
            return;
        }
        let mut address = address.clone();
        if !matches!(address.iter().last(), Some(Protocol::P2p(_))) {
            address.push(Protocol::P2p(peer));
        }
        if !self.remembered.contains(&address) {
            if self.remembered.len() >= REMEMBERED_MAX {
                self.remembered.remove(0);
            }
            self.remembered.push(address);
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest concerns nobody here")]
    fn handle_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Kad(event) => self.handle_kad(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.identified(peer_id, info);
            }
            BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => self.heard(propagation_source, message_id, message),
            BehaviourEvent::Gossip(gossipsub::Event::Subscribed { peer_id, topic }) => {
                self.emit(MeshEvent::Listener { peer: peer_id, topic: topic.into_string() });
            }
            BehaviourEvent::Control(event) => self.handle_control(event),
            BehaviourEvent::Lan(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.dial(address.with_p2p(peer).unwrap_or_else(|address| address));
                }
            }
            _ => {}
        }
    }

    /// A peer says where it listens and what it speaks.
    fn identified(&mut self, peer: PeerId, info: identify::Info) {
        let serves = info.protocols.contains(&KAD_PROTOCOL);
        let forwards = info.protocols.contains(&HOP_PROTOCOL);
        let believed: Vec<Multiaddr> = info
            .listen_addrs
            .into_iter()
            .filter(|address| !is_circuit(address) && (self.private || is_global(address)))
            .take(ADDRESSES_MAX)
            .collect();
        if forwards && let Some(address) = believed.first() {
            let relay = address.clone().with_p2p(peer).unwrap_or_else(|address| address);
            self.reservations.add(relay, Instant::now());
        }
        if serves {
            self.explore_at = self.explore_at.min(Instant::now() + EXPLORE_SOON);
            for address in believed {
                self.swarm.behaviour_mut().kad.add_address(&peer, address);
            }
        }
    }

    /// A message of a topic waits for the application's verdict.
    fn heard(&mut self, bringer: PeerId, id: gossipsub::MessageId, message: gossipsub::Message) {
        let Some(source) = message.source else {
            return self.judge(&id, &bringer, Verdict::Reject);
        };
        let gossip = Gossip {
            topic: message.topic.into_string(),
            source,
            bytes: message.data.into(),
            bringer,
            id: id.clone(),
        };
        if !self.emit(MeshEvent::Gossip(gossip)) {
            self.judge(&id, &bringer, Verdict::Ignore);
        }
    }

    fn handle_control(&mut self, event: request_response::Event<bytes::Bytes, bytes::Bytes>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                Message::Request { request, channel, .. } => {
                    let Some(commands) = self.commands.upgrade() else { return };
                    let request = Request { peer, bytes: request, channel, commands };
                    self.emit(MeshEvent::Request(request));
                }
                Message::Response { request_id, response } => {
                    let done = self.requests.remove(&request_id);
                    // Whoever asked and went away wants no answer.
                    drop(done.map(|done| done.send(Ok(response))));
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let failed = RequestError::Failed { peer, reason: error.to_string() };
                let done = self.requests.remove(&request_id);
                drop(done.map(|done| done.send(Err(failed))));
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "a request was not answered");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }
}
