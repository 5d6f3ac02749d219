//! A link's task while its control connection stands.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sluice_proto::FlowId;
use sluice_proto::frame::FrameType;
use sluice_proto::wire::control::{self, control::Kind};
use sluice_proto::wire::{self, code};
use tokio::sync::oneshot;

use super::loopback::Loopback;
use super::{
    Agreement, KnockError, KnockMessage, LinkCommand, LinkEvent, LinkState, OpenedFlow, RelayLink,
    Task, Up, agreement,
};
use crate::messages::{MessageError, send_message};
use crate::peer::Command;
use crate::stream::Keeper;
use crate::tables::FlowEntry;

/// Bytes of a keepalive frame's payload: as many as its answer's.
const KEEPALIVE_LEN: usize = 18;
/// Knocks that wait for their answers.
const KNOCKS_MAX: usize = 256;

impl Task {
    /// Serves the link until the control connection ends; why it did.
    pub(super) async fn serve(&mut self, mut up: Up) -> String {
        if self.events.is_some()
            && let Err(e) = self.write(&mut up, Kind::Reserve(control::Reserve {})).await
        {
            return e;
        }
        let Some(keeper) = self.keeper(&up) else { return "closed".to_owned() };
        let mut keeping = std::pin::pin!(keeper.run());
        loop {
            self.beat(&mut up).await;
            let loopback_at = up.loopback.as_ref().and_then(Loopback::due);
            let beat_at = loopback_at.map_or(up.beat.due(), |at| at.min(up.beat.due()));
            let clock = self.node.clock.clone();
            let result = tokio::select! {
                biased;
                message = up.reader.next() => self.take(&mut up, message).await,
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(&mut up, command).await,
                    None => {
                        up.connection.close(code::OK.into(), b"");
                        Err("closed".to_owned())
                    }
                },
                answer = agreement(&mut up.agreeing) => self.agreed(&mut up, answer).await,
                lost = up.connection.closed() => Err(lost.to_string()),
                never = &mut keeping => match never {},
                () = clock.sleep_until(beat_at) => Ok(()),
            };
            if let Err(reason) = result {
                return reason;
            }
        }
    }

    fn keeper(&self, up: &Up) -> Option<Keeper> {
        let shared = self.link.upgrade()?;
        Some(Keeper {
            node: self.node.clone(),
            relay: self.relay,
            leg: up.leg.clone(),
            connection: up.connection.clone(),
            slot: self.slot.clone(),
            doubt: shared.doubt.clone(),
            over_tcp: shared.over_tcp.clone(),
        })
    }

    async fn write(&self, up: &mut Up, kind: Kind) -> Result<(), String> {
        send_message(&mut up.send, &control::Control { kind: Some(kind) })
            .await
            .map_err(|e| e.to_string())
    }

    /// Asks the forwarder for a sign of life when it is due, and takes in what it answered.
    async fn beat(&mut self, up: &mut Up) {
        let now = self.node.clock.now();
        let answer = up.leg.answered();
        if up.beat.handle(answer.map(|a| a.at), now) {
            let frame = up.leg.control_frame(FrameType::Keepalive, &[0; KEEPALIVE_LEN]);
            self.node.socket.send_one(up.leg.relay, &frame);
        }
        if let Some(loopback) = &mut up.loopback
            && let Some(frame) = loopback.handle(&up.leg, now)
        {
            self.node.socket.send_one(up.leg.relay, &frame);
        }
        let Some(shared) = self.link.upgrade() else { return };
        if let Some(observed) = answer.and_then(|answer| answer.observed)
            && shared.observed.lock().replace(observed) != Some(observed)
        {
            *shared.seen_at.lock() = Some(observed.ip());
            self.node.addresses_changed();
        }
        let loops = up.loopback.as_ref().is_none_or(Loopback::forwards);
        let forwards = up.beat.forwards() && loops;
        if shared.forwards.swap(forwards, Relaxed) != forwards {
            tracing::info!(relay = %self.relay, forwards, "the relay's forwarding changed");
            self.node.link_changed();
            self.emit(LinkEvent::Forwards(forwards)).await;
        }
    }

    async fn obey(&mut self, up: &mut Up, command: LinkCommand) -> Result<(), String> {
        match command {
            LinkCommand::Hurry => {
                up.beat.hurry(self.node.clock.now());
                Ok(())
            }
            LinkCommand::Send(kind) => self.write(up, *kind).await,
            LinkCommand::Knock { message: KnockMessage { to, sealed, first }, reply } => {
                if self.opening.len() + self.answers.len() >= KNOCKS_MAX {
                    self.answers.retain(|_, waiting| !waiting.is_closed());
                    self.opening.retain(|_, waiting| !waiting.is_closed());
                }
                self.next_request = self.next_request.wrapping_add(1);
                self.opening.insert(self.next_request, reply);
                let message = control::Rendezvous {
                    request: self.next_request,
                    to: to.to_bytes().into(),
                    sealed,
                    first,
                };
                self.write(up, Kind::Rendezvous(message)).await
            }
        }
    }

    async fn take(
        &mut self,
        up: &mut Up,
        message: Result<Option<control::Control>, MessageError>,
    ) -> Result<(), String> {
        let message = message.map_err(|e| e.to_string())?.ok_or("the relay closed the stream")?;
        let Some(kind) = message.kind else { return Ok(()) };
        match kind {
            Kind::FlowOpened(m) if up.loopback.as_ref().is_some_and(|l| l.awaits(m.request)) => {
                up.leg.set_loopback(FlowId(m.flow));
                if let Some(loopback) = &mut up.loopback {
                    loopback.opened(FlowId(m.flow));
                }
            }
            // What is not given is no reason to leave the relay.
            Kind::FlowRefused(m) if up.loopback.as_ref().is_some_and(|l| l.awaits(m.request)) => {
                up.loopback = None;
            }
            Kind::FlowOpened(m) => {
                if let Some(reply) = self.opening.remove(&m.request) {
                    let flow = FlowId(m.flow);
                    let (sender, answer) = oneshot::channel();
                    self.answers.insert(flow, sender);
                    let (leg, passed_on) = (up.leg.clone(), m.passed_on);
                    let _ = reply.send(Ok(OpenedFlow { flow, leg, answer, passed_on }));
                }
            }
            Kind::FlowRefused(m) => {
                if let Some(reply) = self.opening.remove(&m.request) {
                    let message = wire::display_text(&m.message);
                    let _ = reply.send(Err(KnockError::Refused { code: m.code, message }));
                }
            }
            Kind::Answer(m) => {
                if let Some(waiting) = self.answers.remove(&FlowId(m.flow)) {
                    let _ = waiting.send(Ok(m.sealed));
                }
            }
            Kind::RendezvousIn(m) => {
                let flow = FlowId(m.flow);
                if let Some(link) = self.link.upgrade().map(RelayLink) {
                    let kind = match self.node.answer_knock(&link, &up.leg, &m) {
                        Ok(sealed) => {
                            Kind::Answer(control::RendezvousAnswer { flow: flow.0, sealed })
                        }
                        Err(error) => {
                            tracing::debug!(%error, "rendezvous refused");
                            let code = error.code();
                            Kind::CloseFlow(control::CloseFlow { flow: flow.0, code })
                        }
                    };
                    self.write(up, kind).await?;
                }
            }
            Kind::CloseFlow(m) => self.flow_closed(FlowId(m.flow), m.code),
            Kind::PeerAddress(m) => {
                let entry =
                    self.node.tables.flows.read().get(&(self.relay.addr, FlowId(m.flow))).cloned();
                if let (Some(entry), Some(address)) = (entry, wire::decode_seen(&m.address)) {
                    entry.peer.command(Command::PeerAddress(address));
                }
            }
            Kind::Unpaid(m) => {
                let key = (self.relay.addr, FlowId(m.flow));
                let entry = self.node.tables.flows.read().get(&key).cloned();
                if let Some(FlowEntry { peer, path, .. }) = entry {
                    peer.command(Command::Unpaid { path, unpaid: m.unpaid });
                }
                self.emit(LinkEvent::Unpaid(m.unpaid)).await;
            }
            Kind::Drain(m) => {
                self.emit(LinkEvent::Draining(Duration::from_millis(m.within_ms.into()))).await;
            }
            Kind::Offer(offer) => self.take_offer(up, offer).await,
            Kind::Reserved(m) => {
                if let Some(shared) = self.link.upgrade() {
                    shared.state.send_replace(LinkState::Reserved(self.generation));
                }
                self.ask_loopback(up).await?;
                self.emit(LinkEvent::Reserved(m.expires_unix_s)).await;
                for (flow, entry) in std::mem::take(&mut self.kept) {
                    let key = (self.relay.addr, flow);
                    let path = self.node.tables.flows.read().get(&key).map(|now| now.path);
                    // Its session may have ended since.
                    if path == Some(entry.path) {
                        let (counts, initiator) = (entry.counts, entry.initiator);
                        self.emit(LinkEvent::FlowOpened { flow, counts, initiator }).await;
                    }
                }
            }
            Kind::Refusal(refusal) => {
                let text = wire::display_text(&refusal.message);
                self.emit(LinkEvent::Refused(refusal)).await;
                return Err(format!("the relay refused: {text}"));
            }
            Kind::Hello(_)
            | Kind::Welcome(_)
            | Kind::Reserve(_)
            | Kind::Accept(_)
            | Kind::Rendezvous(_)
            | Kind::PermitAddress(_)
            | Kind::Grant(_) => return Err("the relay sent a message out of order".to_owned()),
        }
        Ok(())
    }

    /// Asks for a flow to this node itself.
    async fn ask_loopback(&mut self, up: &mut Up) -> Result<(), String> {
        let Some(loopback) = &mut up.loopback else { return Ok(()) };
        self.next_request = self.next_request.wrapping_add(1);
        loopback.asked(self.next_request);
        let to = self.node.id.to_bytes().into();
        let request = self.next_request;
        let message = control::Rendezvous { request, to, ..Default::default() };
        self.write(up, Kind::Rendezvous(message)).await
    }

    /// The owner may take long, for it may have to open a channel: all else goes on meanwhile.
    async fn take_offer(&mut self, up: &mut Up, offer: control::ReserveOffer) {
        let (reply, answer) = oneshot::channel();
        let (offer, connection) = (Box::new(offer), up.connection.clone());
        self.emit(LinkEvent::Offer { offer, connection, reply }).await;
        up.agreeing = Some(answer);
    }

    async fn agreed(&self, up: &mut Up, answer: Option<Agreement>) -> Result<(), String> {
        up.agreeing = None;
        let kind = match answer {
            Some(Ok(accept)) => Kind::Accept(accept),
            Some(Err(refusal)) => Kind::Refusal(refusal),
            None => return Ok(()),
        };
        self.write(up, kind).await
    }

    fn flow_closed(&mut self, flow: FlowId, code: u32) {
        if let Some(waiting) = self.answers.remove(&flow) {
            let _ = waiting.send(Err(code));
        }
        let entry = self.node.tables.flows.read().get(&(self.relay.addr, flow)).cloned();
        if let Some(entry) = entry {
            entry.peer.command(Command::FlowClosed { path: entry.path, code });
        }
    }
}
