//! Whether a NAT leads what is sent from inside to its own public address back inside (RFC 4787,
//! section 6).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::SocketId;

/// A packet is sent again after this ..
const AGAIN: Duration = Duration::from_millis(300);
/// .. and so often in all.
const TRIES: u32 = 3;

/// A packet from one of this node's sockets to the public address of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hairpin {
    /// From this socket.
    pub from: SocketId,
    /// To here.
    pub to: SocketAddr,
    /// Comes back if it arrives.
    pub token: u64,
}

/// Both sockets send, since a NAT that filters lets in only whom was sent to.
#[derive(Debug)]
pub(crate) struct Both {
    packets: [Hairpin; 2],
    arrived: bool,
    tries: u32,
    due: Instant,
    transmits: VecDeque<Hairpin>,
}

impl Both {
    pub(crate) fn new(packets: [Hairpin; 2], now: Instant) -> Self {
        let transmits = packets.into();
        Self { packets, arrived: false, tries: 1, due: now + AGAIN, transmits }
    }

    pub(crate) fn handle_arrival(&mut self, token: u64) {
        self.arrived |= self.packets.iter().any(|packet| packet.token == token);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|due| due <= now) {
            self.tries += 1;
            self.due = now + AGAIN;
            if self.tries <= TRIES {
                self.transmits.extend(self.packets);
            }
        }
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<Hairpin> {
        self.transmits.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        (!self.arrived && self.tries <= TRIES).then_some(self.due)
    }

    /// Whether one arrived; silence counts once both were sent often enough.
    pub(crate) fn verdict(&self) -> Option<bool> {
        (self.arrived || self.tries > TRIES).then_some(self.arrived)
    }
}
