//! The one face that the tunnel asks before it lets a byte pass.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::repeat::after;
use crate::{Direction, Payee, RelayFlow, StreamIndex};

/// When to ask again for what a relay's window withheld, if nobody wakes the asker: what another
/// lease had queued may have been dropped.
const RELAY_RETRY: Duration = Duration::from_millis(50);

/// The answer to a wish to send or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// So many bytes, at least one if any were asked for. They are reserved: give back the rest.
    Granted(u64),
    /// Nothing now: ask again when woken, and at the latest at the given moment.
    Wait(Reason, Option<Instant>),
}

/// Why bytes wait. Its `Display` is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A whole window is sent and not paid.
    Unpaid {
        /// Its bytes.
        window: u64,
    },
    /// The reader of this stream has not read what it was sent.
    StreamShare,
    /// The payer's deposit is used up.
    Deposit,
    /// Too much was lost to resets and broken sessions.
    Losses,
    /// The relay's window is nearly used up: its vouchers are on their way.
    Relay,
    /// The ledger cannot be written.
    Ledger,
    /// The stream was reset.
    Closed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpaid { window } => {
                write!(f, "waiting for payment: {} KiB sent and unpaid", window / 1024)
            }
            Self::StreamShare => f.write_str("waiting for the reader of this connection"),
            Self::Deposit => {
                f.write_str("the payer's deposit is used up: it must top up its channel")
            }
            Self::Losses => f.write_str("stopped: the payer gave up too much of what it was sent"),
            Self::Relay => f.write_str("waiting for the relay to acknowledge its payment"),
            Self::Ledger => f.write_str("stopped: the ledger cannot be written"),
            Self::Closed => f.write_str("the stream was reset"),
        }
    }
}

/// Everything that may slow a byte of one lease down: the lease's window, and the window of the
/// relay's reservation while a relay carries the session.
#[derive(Debug)]
pub struct Gate {
    payee: Payee,
    relay: Option<Arc<RelayFlow>>,
}

impl Gate {
    /// A gate on a path without a paid relay.
    #[must_use]
    pub const fn new(payee: Payee) -> Self {
        Self { payee, relay: None }
    }

    /// Asks to write `want` bytes to a stream ([`Direction::Down`]) or to read as many from it
    /// ([`Direction::Up`]).
    pub fn permit(
        &mut self,
        stream: StreamIndex,
        direction: Direction,
        want: u64,
        now: Instant,
    ) -> Permit {
        let Some(relay) = self.relay.as_ref().filter(|_| direction == Direction::Down) else {
            return self.payee.permit(stream, direction, want, now);
        };
        relay.limit_queued(self.payee.unsettled());
        let reserved = relay.reserve(want);
        if reserved == 0 && want > 0 {
            self.payee.set_blocked();
            return Permit::Wait(Reason::Relay, Some(after(now, RELAY_RETRY)));
        }
        let permit = self.payee.permit(stream, direction, reserved, now);
        let used = if let Permit::Granted(n) = permit { n } else { 0 };
        relay.release(reserved.saturating_sub(used));
        permit
    }

    /// Gives back what was granted and not used.
    pub fn refund(&mut self, stream: StreamIndex, direction: Direction, n: u64) {
        if let Some(relay) = self.relay.as_ref().filter(|_| direction == Direction::Down) {
            relay.release(n);
        }
        self.payee.refund(stream, direction, n);
    }

    /// A relay carries the session from now on, or (with `None`) none that is paid. Whoever waits
    /// should ask again.
    pub fn set_relay(&mut self, relay: Option<Arc<RelayFlow>>) {
        if let Some(old) = &self.relay {
            old.limit_queued(0);
        }
        self.relay = relay;
    }

    /// The account behind the gate.
    #[must_use]
    pub const fn payee(&self) -> &Payee {
        &self.payee
    }

    /// The account behind the gate.
    pub const fn payee_mut(&mut self) -> &mut Payee {
        &mut self.payee
    }
}
