//! How sessions begin: a tenant knocks, a provider answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::wire::rendezvous;
use sluice_proto::wire::{are_first_packets, code, control};
use sluice_proto::{FlowId, Invite, Invited, PeerId, RelayAddr, RelayFlow, VERSION};
use tokio::sync::oneshot;

use super::accept::Expected;
use super::{AcceptPolicy, ConnectError, EXPECTED_MAX, Inner};
use crate::connection_ids::client_config;
use crate::epoch::PathEpoch;
use crate::knock::{Door, Knocking, ProbeSeal, RendezvousError};
use crate::leg::Leg;
use crate::link::{KnockError, KnockMessage, OpenedFlow, RelayLink};
use crate::peer::{Command, Peer, RelayedPath, Route};
use crate::tables::FlowEntry;
use crate::{session, tls};

/// A session must begin within this after its knock was answered.
const EXPECTED_FOR: Duration = Duration::from_secs(15);

/// Whom a tenant knocks at, now and again.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) id: PeerId,
    pub(crate) noise_key: [u8; 32],
    pub(crate) invite: Bytes,
    pub(crate) session: u64,
    /// Where it is said to be.
    pub(crate) relays: Vec<RelayAddr>,
}

pub(crate) struct Knocked {
    pub(crate) flow: FlowId,
    pub(crate) leg: Arc<Leg>,
    pub(crate) answer: oneshot::Receiver<Result<Bytes, u32>>,
    pub(crate) knocking: Knocking,
    /// Whether the session's first packets went with it.
    pub(crate) passed_on: bool,
}

/// What came of a knock: the sealed answer, or why there is none.
pub(crate) fn answered(
    answer: Result<Result<Bytes, u32>, oneshot::error::RecvError>,
    relay: RelayAddr,
) -> Result<Bytes, ConnectError> {
    match answer {
        Ok(Ok(sealed)) => Ok(sealed),
        Ok(Err(code::NOT_INVITED)) => Err(ConnectError::NotInvited),
        Ok(Err(code::NO_SUCH_PEER)) => {
            let message = "it did not answer".to_owned();
            Err(ConnectError::NotThere { relay, message })
        }
        Ok(Err(code)) => Err(ConnectError::Failed(format!("the flow was closed, code {code}"))),
        Err(_) => {
            let reason = "the connection to it was lost".to_owned();
            Err(ConnectError::Relay { relay, reason })
        }
    }
}

impl Inner {
    /// Starts the QUIC handshake with a node to which there is no route yet.
    pub(super) fn begin_handshake(
        &self,
        peer: &Peer,
        to: PeerId,
        epoch: &Arc<PathEpoch>,
    ) -> Result<quinn::Connecting, ConnectError> {
        let crypto = tls::client_config(&self.key, to, sluice_proto::ALPN_SESSION)
            .map_err(|e| ConnectError::Failed(e.to_string()))?;
        let mut config = client_config(crypto, &self.random);
        let window = session::RECEIVE_WINDOW;
        config.transport_config(session::transport(epoch, self.idle_timeout, window));
        peer.keep_first();
        self.endpoint
            .connect_with(config, peer.addr, "sluice")
            .map_err(|e| ConnectError::Failed(e.to_string()))
    }

    /// Seals a knock and opens a flow for it. The session's `first` packets go along.
    pub(crate) async fn knock(
        &self,
        link: &RelayLink,
        target: &Target,
        resume: bool,
        first: Vec<Bytes>,
    ) -> Result<Knocked, ConnectError> {
        // Whoever drew the earlier timestamp knocks first, or would seem to be a replay.
        let turn = self.knocking.lock().await;
        let knock = rendezvous::Knock {
            version: VERSION,
            peer: self.id.to_bytes().into(),
            timestamp_ns: self.timestamps.next(self.clock.unix_time()),
            invite: target.invite.clone(),
            candidates: Vec::new(),
            incarnation: self.incarnation,
            session: target.session,
            resume,
        };
        let (knocking, sealed) =
            Knocking::begin(&self.noise, &target.id, &target.noise_key, &knock)
                .map_err(|e| ConnectError::Failed(e.to_string()))?;
        let relay = link.relay();
        let refused = |e| match e {
            KnockError::Down => ConnectError::Relay { relay, reason: e.to_string() },
            KnockError::Refused { message, .. } => ConnectError::NotThere { relay, message },
        };
        let message = KnockMessage { to: target.id, sealed, first };
        let opening = link.knock(message).await.map_err(refused)?;
        drop(turn);
        let opened = opening.await.unwrap_or(Err(KnockError::Down)).map_err(refused)?;
        let OpenedFlow { flow, leg, answer, passed_on } = opened;
        Ok(Knocked { flow, leg, answer, knocking, passed_on })
    }

    /// A knock came through `link`: opens it and makes ready for its session.
    pub(crate) fn answer_knock(
        self: &Arc<Self>,
        link: &RelayLink,
        leg: &Arc<Leg>,
        message: &control::RendezvousIn,
    ) -> Result<Bytes, RendezvousError> {
        let AcceptPolicy::Invited(secret) = &self.accept else {
            return Err(RendezvousError::Field("recipient"));
        };
        let from =
            PeerId::from_bytes(&message.from).map_err(|_| RendezvousError::Field("sender"))?;
        if !are_first_packets(&message.first) {
            return Err(RendezvousError::Field("first packets"));
        }
        let opened = Door::open(&self.noise, &self.id, &from, &message.sealed)?;
        let now_unix_s = self.clock.unix_time().as_secs();
        let invited = Invite::check(secret, &opened.knock.invite, now_unix_s)?;
        self.door.lock().note(opened.initiator, opened.knock.timestamp_ns)?;
        let (session, resume, initiator) =
            (opened.knock.session, opened.knock.resume, opened.initiator);
        let welcome = rendezvous::Welcome {
            version: VERSION,
            candidates: Vec::new(),
            incarnation: self.incarnation,
        };
        let known = self.tables.probes.read().get(&session).cloned();
        let (sealed, seal) = opened.answer(&welcome)?;
        let flow = FlowId(message.flow);
        match known {
            Some(peer) if resume && self.initiators.lock().get(&session) == Some(&initiator) => {
                let path = self.register_flow(&peer, link, leg, flow, seal, initiator);
                peer.command(Command::Relayed(Box::new(path)));
            }
            None if !resume => {
                let from = (from, invited);
                let peer = self.expect_session(link, leg, flow, seal, from, session, initiator)?;
                self.socket.take_first(&peer, &message.first);
            }
            Some(_) | None => return Err(RendezvousError::UnknownSession),
        }
        Ok(sealed)
    }

    #[expect(clippy::too_many_arguments, reason = "one call, and each is a different thing")]
    fn expect_session(
        self: &Arc<Self>,
        link: &RelayLink,
        leg: &Arc<Leg>,
        flow: FlowId,
        seal: ProbeSeal,
        (peer_id, invited): (PeerId, Invited),
        session: u64,
        initiator: [u8; 32],
    ) -> Result<Arc<Peer>, RendezvousError> {
        if self.expected.lock().len() >= EXPECTED_MAX {
            return Err(RendezvousError::Field("turn: too many sessions are being set up"));
        }
        let index = self.tables.next_index();
        let (peer, inputs) = Peer::new(index);
        self.tables.peers.write().insert(index, peer.clone());
        self.tables.probes.write().insert(session, peer.clone());
        self.initiators.lock().insert(session, initiator);
        let path = self.register_flow(&peer, link, leg, flow, seal, initiator);
        let route =
            Route::Relay { leg: path.leg.clone(), flow: path.flow, counts: path.counts.clone() };
        self.socket.set_route(&peer, path.path, Some(route));
        let expected =
            Expected { peer_id, invited, peer: peer.clone(), inputs, path, epoch: Arc::default() };
        self.expected.lock().insert(index, expected);
        self.socket.release_held();
        let node = self.clone();
        tokio::spawn(async move {
            node.clock.sleep(EXPECTED_FOR).await;
            let late = node.expected.lock().remove(&index);
            if let Some(late) = late {
                late.path.close();
                node.forget_session(&late.peer);
            }
        });
        Ok(peer)
    }

    /// Makes frames of a flow arrive at a session.
    pub(crate) fn register_flow(
        &self,
        peer: &Arc<Peer>,
        link: &RelayLink,
        leg: &Arc<Leg>,
        flow: FlowId,
        seal: ProbeSeal,
        initiator: [u8; 32],
    ) -> RelayedPath {
        let path = self.tables.next_index() as u32;
        let counts = RelayFlow::new(link.0.budget.clone());
        let entry = FlowEntry {
            peer: peer.clone(),
            leg: leg.clone(),
            counts: counts.clone(),
            path,
            initiator,
        };
        self.tables.flows.write().insert((leg.relay, flow), entry);
        self.socket.release_held();
        link.opened(flow, counts.clone(), initiator);
        RelayedPath { path, link: link.clone(), leg: leg.clone(), flow, counts, seal }
    }
}
