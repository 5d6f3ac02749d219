//! Asks relays how they see this node's sockets, and the NAT whether it leads back inside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_path::{Hairpin, Pair, RelayPort, SocketId};
use sluice_proto::FlowId;
use sluice_proto::frame::{
    self, FrameKey, FrameType, HEADER_LEN, Header, OBSERVE_LEN, Observe, Observed,
};
use tokio::sync::mpsc;

use crate::leg::Leg;
use crate::node::Inner;
use crate::side::SideSocket;
use crate::tables::Tables;

/// Questions and the answers to them. Dropping it forgets what was not answered.
#[derive(Debug)]
pub(crate) struct Observer {
    node: Arc<Inner>,
    answers: mpsc::UnboundedReceiver<Observed>,
    /// Whoever receives gives each answer to who asked. Each question has at most one answer.
    sender: mpsc::UnboundedSender<Observed>,
    tokens: Vec<u64>,
}

impl Observer {
    pub(crate) fn new(node: Arc<Inner>) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        Self { node, answers, sender, tokens: Vec::new() }
    }

    /// Sends a question to a relay, from a side socket or the data socket.
    pub(crate) fn ask(
        &mut self,
        leg: &Leg,
        from: Option<&SideSocket>,
        to: RelayPort,
        question: &Observe,
    ) {
        let to = match to {
            RelayPort::Main => leg.relay,
            RelayPort::Alternate => match leg.alternate {
                Some(alternate) => alternate,
                None => return,
            },
        };
        self.node.tables.observers.lock().insert(question.token, self.sender.clone());
        self.tokens.push(question.token);
        let frame = leg.control_frame(FrameType::Observe, &question.encode());
        let socket = from.map_or(SocketId::DATA, |side| side.id);
        self.node.budget.note(Pair { socket, remote: to }, self.node.clock.now());
        match from {
            Some(side) => side.send(to, &frame, frame.len(), None),
            None => self.node.socket.send_one(to, &frame),
        }
    }

    /// Sends a question to this node itself, by its public address. That no relay may take it for one
    /// of its own, its tag is of a key that is thrown away.
    pub(crate) fn send_hairpin(&mut self, from: &SideSocket, packet: &Hairpin) {
        self.node.tables.observers.lock().insert(packet.token, self.sender.clone());
        self.tokens.push(packet.token);
        let question = Observe { token: packet.token, from_other_port: false, to_port: None };
        let mut frame = [0; HEADER_LEN + OBSERVE_LEN];
        frame[HEADER_LEN..].copy_from_slice(&question.encode());
        let header = Header { kind: FrameType::Observe, flow: FlowId(0), counter: 0 };
        frame::seal(&mut frame, header, &FrameKey::new(&self.node.random.bytes()));
        from.send(packet.to, &frame, frame.len(), None);
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> Option<Observed> {
        self.answers.recv().await
    }

    /// How a relay sees a side socket; asks `tries` times, `again` apart.
    pub(crate) async fn see(
        &mut self,
        leg: &Leg,
        side: &SideSocket,
        tries: u32,
        again: Duration,
    ) -> Option<SocketAddr> {
        let token = self.node.random.number();
        let clock = self.node.clock.clone();
        for _ in 0..tries {
            let question = Observe { token, from_other_port: false, to_port: None };
            self.ask(leg, Some(side), RelayPort::Main, &question);
            if let Ok(Some(seen)) = clock.timeout(again, self.answer()).await {
                return Some(seen.address);
            }
        }
        None
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let mut observers = self.node.tables.observers.lock();
        for token in &self.tokens {
            observers.remove(token);
        }
    }
}

/// Takes a relay's answer, at whichever socket it arrived and from whichever of its ports, or a
/// question that this node sent to itself. False: it is neither.
pub(crate) fn take_observed(tables: &Tables, from: SocketAddr, bytes: &[u8]) -> bool {
    let Ok(header) = frame::peek(bytes) else { return false };
    match header.kind {
        FrameType::Observed => {}
        FrameType::Observe => return take_hairpin(tables, from, bytes),
        FrameType::Data
        | FrameType::Keepalive
        | FrameType::KeepaliveAck
        | FrameType::Challenge
        | FrameType::ChallengeEcho => return false,
    }
    let legs = tables.legs.read();
    let leg = legs.values().flatten().find(|leg| {
        leg.own_flow == header.flow && (leg.relay.ip() == from.ip()) && leg.admit_unseen(bytes)
    });
    let leg = leg.cloned();
    drop(legs);
    if !leg.is_some_and(|leg| leg.admit(bytes, header)) {
        return false;
    }
    let Some(observed) = Observed::decode(&bytes[HEADER_LEN..]) else { return false };
    let observer = tables.observers.lock().remove(&observed.token);
    if let Some(observer) = observer {
        // Whoever asked may have gone.
        let _ = observer.send(observed);
    }
    true
}

/// A question that this node sent to itself: nobody else knows its token.
fn take_hairpin(tables: &Tables, from: SocketAddr, bytes: &[u8]) -> bool {
    let Some(question) = Observe::decode(&bytes[HEADER_LEN..]) else { return false };
    let observer = tables.observers.lock().remove(&question.token);
    // Whoever asked may have gone.
    observer.is_some_and(|observer| {
        observer.send(Observed { token: question.token, address: from }).is_ok()
    })
}
