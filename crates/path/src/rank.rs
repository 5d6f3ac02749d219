//! Paths and their order.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// A local socket, by the number that the caller gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The node's data socket. Others are opened for guessing ports.
    pub const DATA: Self = Self(0);
}

/// A local socket and an address of the other node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The local socket.
    pub socket: SocketId,
    /// The other node's address.
    pub remote: SocketAddr,
}

impl Pair {
    /// From the data socket.
    #[must_use]
    pub const fn data(remote: SocketAddr) -> Self {
        Self { socket: SocketId::DATA, remote }
    }
}

/// One way between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Through a relay, by the number that the caller gave it.
    Relay(u32),
    /// From socket to socket.
    Direct(Pair),
}

impl Path {
    /// From the data socket to this address.
    #[must_use]
    pub const fn direct(remote: SocketAddr) -> Self {
        Self::Direct(Pair::data(remote))
    }
}

impl Path {
    /// What kind of path it is.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Relay(_) => Kind::Relayed,
            Self::Direct(_) => Kind::Direct,
        }
    }
}

/// Direct or relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// From socket to socket.
    Direct,
    /// Through a relay.
    Relayed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        })
    }
}

/// A new path of the same kind must be faster by this share of the old one's round-trip time ..
const MARGIN_DIVISOR: u32 = 5;
/// .. and by this much, or two equal paths would take turns.
const MARGIN: Duration = Duration::from_millis(5);

/// The order of choice: smaller is better, field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Not echoed, silent, or too narrow for any session.
    pub dead: bool,
    /// Its relay waits for payment and lets only a trickle through.
    pub unpaid: bool,
    /// Direct before relayed.
    pub kind: Kind,
    /// It loses packets as large as they are now. A direct path is worth smaller ones.
    pub narrow: bool,
    /// As measured by echoes.
    pub rtt: Duration,
}

impl Rank {
    /// What counts before all round-trip times.
    pub(crate) const fn class(&self) -> (bool, bool, Kind, bool) {
        (self.dead, self.unpaid, self.kind, self.narrow)
    }

    /// Whether leaving `current` for `self` is worth it.
    #[must_use]
    pub fn beats(&self, current: &Self) -> bool {
        match self.class().cmp(&current.class()) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => {
                self.rtt + MARGIN + current.rtt / MARGIN_DIVISOR < current.rtt
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(dead: bool, kind: Kind, ms: u64) -> Rank {
        Rank { dead, unpaid: false, kind, narrow: false, rtt: Duration::from_millis(ms) }
    }

    #[test]
    fn alive_comes_before_direct_and_direct_before_fast() {
        let slow_direct = rank(false, Kind::Direct, 300);
        assert!(slow_direct.beats(&rank(false, Kind::Relayed, 10)));
        assert!(rank(false, Kind::Relayed, 900).beats(&rank(true, Kind::Direct, 1)));
        assert!(!rank(true, Kind::Direct, 1).beats(&slow_direct));
    }

    #[test]
    fn an_unpaid_path_comes_after_every_paid_one_and_before_the_dead() {
        let unpaid = Rank { unpaid: true, ..rank(false, Kind::Direct, 1) };
        assert!(rank(false, Kind::Relayed, 900).beats(&unpaid));
        assert!(unpaid.beats(&rank(true, Kind::Direct, 1)));
    }

    #[test]
    fn a_narrow_path_comes_after_the_others_of_its_kind() {
        let narrow = Rank { narrow: true, ..rank(false, Kind::Relayed, 1) };
        assert!(rank(false, Kind::Relayed, 900).beats(&narrow));
        assert!(narrow.beats(&rank(true, Kind::Relayed, 1)));
        let direct = Rank { narrow: true, ..rank(false, Kind::Direct, 300) };
        assert!(direct.beats(&rank(false, Kind::Relayed, 1)));
    }

    #[test]
    fn equal_kinds_change_only_beyond_the_margin() {
        let current = rank(false, Kind::Relayed, 100);
        assert!(!rank(false, Kind::Relayed, 80).beats(&current));
        assert!(rank(false, Kind::Relayed, 70).beats(&current));
    }
}
