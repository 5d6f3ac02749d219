//! What goes between an agent, the other side's, and the caller.

use std::fmt;
use std::time::{Duration, Instant};

use crate::{Filtering, Guess, Mapping, Pair, Path, SocketId};

/// What agents say to one another, sealed by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Asks for an echo.
    Ping {
        /// To be repeated in the answer.
        token: u64,
    },
    /// The echo.
    Pong {
        /// Of the ping.
        token: u64,
    },
    /// The sender now sends on the path that this arrives on.
    Use {
        /// Counts the switches of both sides; a higher one wins.
        epoch: u64,
    },
    /// The sender opened sockets whose public ports may be these.
    Guess {
        /// Counts the sender's rounds: said more than once, it is heard once.
        round: u32,
        /// The ports.
        guess: Guess,
    },
    /// What the sender's NAT does.
    Nat {
        /// Its mapping, if that is known.
        mapping: Option<Mapping>,
        /// Its filtering.
        filtering: Option<Filtering>,
    },
    /// The path in use is silent to the sender, whose packets take this one until it answers.
    Trial {
        /// Of the last switch.
        epoch: u64,
    },
    /// Asks whether so large a probe comes through.
    Measure {
        /// To be repeated in the answer.
        token: u64,
        /// Bytes that the whole probe is padded to; 0: none.
        size: u16,
        /// Bytes of the sender's packets.
        packets: u16,
    },
    /// It did; this one is as large.
    Measured {
        /// Of what was asked.
        token: u64,
        /// The same as there.
        size: u16,
    },
}

/// Why another path was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The session's first path.
    First,
    /// It ranks before the old one.
    Better,
    /// The old one was silent although something was outstanding.
    Silent,
    /// The old one is gone: its relay or its permission.
    Withdrawn,
    /// The old one's relay waits for payment.
    Unpaid,
    /// The old one loses packets as large as the session's.
    Narrow,
    /// The other side switched.
    Followed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first path",
            Self::Better => "a better path was proven",
            Self::Silent => "the old path fell silent",
            Self::Withdrawn => "the old path was withdrawn",
            Self::Unpaid => "the old path's relay waits for payment",
            Self::Narrow => "the old path carries only smaller packets",
            Self::Followed => "the other side switched",
        })
    }
}

/// What the caller must act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Packets go here from now on.
    Selected {
        /// The path.
        path: Path,
        /// Why.
        reason: Reason,
        /// Whether the old path is thought dead, so that its flight is lost.
        old_dead: bool,
    },
    /// Packets go here for now: the path in use is silent, to us or to the other side. Nothing is
    /// decided.
    Tried {
        /// The path.
        path: Path,
        /// The silence is ours: what is in flight may be lost.
        ours: bool,
    },
    /// Packets go on the path in use again.
    Returned {
        /// The path in use.
        path: Path,
    },
    /// QUIC from this address at this socket belongs to the session.
    Proven(Pair),
    /// It no longer does.
    Forgotten(Pair),
    /// Open fresh sockets, then call [`Agent::sockets_opened`], with fewer or none if there is no
    /// room.
    OpenSockets {
        /// How many.
        count: u16,
        /// Whether a relay must be asked how it sees the first of them.
        observe: bool,
    },
    /// No larger packet than this comes through, in bytes of UDP payload.
    PacketMax(u16),
    /// A socket that was opened is not needed any more.
    CloseSocket(SocketId),
}

/// What the data socket saw on the path in use, sampled by the caller.
#[derive(Debug, Clone, Copy)]
pub struct Activity {
    /// When the first packet was sent that nothing has arrived after.
    pub unanswered_since: Option<Instant>,
    /// QUIC's probe timeout (RFC 9002, section 6.2).
    pub pto: Duration,
    /// Whether that packet, or one after it, demands an answer.
    pub outstanding: bool,
}
