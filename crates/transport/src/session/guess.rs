//! The sockets that a session opens for its NAT's port to be guessed.

use std::sync::Arc;
use std::time::Duration;

use sluice_path::{Opened, SocketId};
use tokio::sync::watch;

use super::Driver;
use crate::node::Inner;
use crate::observe::Observer;
use crate::peer::{Command, Route};
use crate::side::SideSocket;
use crate::survey::NatState;

/// A relay is asked again after this how it sees a socket ..
const SEE_AGAIN: Duration = Duration::from_millis(250);
/// .. so often in all.
const SEE_TRIES: u32 = 4;
/// The side sockets of one session. Dropping it closes them.
#[derive(Debug)]
pub(super) struct OwnSides {
    node: Arc<Inner>,
    open: Vec<SocketId>,
}

impl OwnSides {
    pub(super) const fn new(node: Arc<Inner>) -> Self {
        Self { node, open: Vec::new() }
    }

    /// Opens as many as the system allows.
    fn open(&mut self, count: u16) -> Vec<Arc<SideSocket>> {
        let socket = &self.node.socket;
        let sides = socket.sides.open(&self.node.network, socket, count.into());
        self.open.extend(sides.iter().map(|side| side.id));
        sides
    }

    pub(super) fn close(&mut self, socket: SocketId) {
        self.open.retain(|id| *id != socket);
        self.node.socket.sides.close(socket);
    }
}

impl Drop for OwnSides {
    fn drop(&mut self) {
        for socket in &self.open {
            self.node.socket.sides.close(*socket);
        }
    }
}

impl Driver {
    pub(super) fn learn_nat(&mut self, nat: &mut watch::Receiver<NatState>) {
        let state = nat.borrow_and_update().clone();
        let now = self.node.clock.now();
        self.agent.set_keepalive(state.timer.keepalive(), now);
        self.agent.set_nat(state.nat, now);
        self.learn_whereabouts();
    }

    /// Tells the agent where this node is.
    pub(super) fn learn_whereabouts(&mut self) {
        let now = self.node.clock.now();
        self.agent.set_whereabouts(self.node.whereabouts(), now);
    }

    pub(super) fn open_sockets(&mut self, count: u16, observe: bool) {
        let now = self.node.clock.now();
        let sides = self.sides.open(count);
        tracing::debug!(
            session = self.peer.index,
            wanted = count,
            opened = sides.len(),
            "sockets for guessing"
        );
        let mut opened: Vec<Opened> = sides
            .iter()
            .map(|side| Opened {
                socket: side.id,
                local_port: side.local_port(),
                observed_port: None,
            })
            .collect();
        let leg = self.relays.values().find_map(|relayed| match &relayed.route {
            Route::Relay { leg, .. } => Some(leg.clone()),
            Route::Direct(_) => None,
        });
        let (Some(leg), Some(first), true) = (leg, sides.first().cloned(), observe) else {
            return self.agent.sockets_opened(&opened, now);
        };
        drop(sides);
        let (node, peer) = (self.node.clone(), self.peer.clone());
        tokio::spawn(async move {
            let seen = Observer::new(node).see(&leg, &first, SEE_TRIES, SEE_AGAIN).await;
            opened[0].observed_port = seen.map(|seen| seen.port());
            peer.command(Command::SocketsOpened(opened));
        });
    }
}
