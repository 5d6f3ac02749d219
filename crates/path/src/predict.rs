//! Which port a NAT may give next, and who of two nodes must guess.

use crate::Nat;
use crate::nat::{Allocator, Mapping, PORT_MIN};

/// Sockets opened where the port is any: 1,024 guesses then find one with 98.3 %.
pub(crate) const SOCKETS_RANDOM: u16 = 256;
/// Sockets opened where the port lies in a block: the household needs the rest of it.
const SOCKETS_BLOCK: u16 = 32;
/// Guesses where ports follow one another: others of the household take some meanwhile.
const NEXT: u16 = 10;

/// Ports to be tried at one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guess {
    /// The first.
    pub first: u16,
    /// From one to the next; 0 is taken for 1.
    pub step: i16,
    /// How many.
    pub count: u16,
}

impl Guess {
    /// Every port that a NAT may give.
    pub const ANY: Self = Self { first: PORT_MIN, step: 1, count: u16::MAX - PORT_MIN + 1 };

    /// Port number `index` of the guess: past the end of the range it goes on at the beginning.
    #[must_use]
    pub fn port(&self, index: u16) -> u16 {
        let range = i32::from(Self::ANY.count);
        let step = i32::from(if self.step == 0 { 1 } else { self.step });
        let offset = i32::from(self.first) - i32::from(PORT_MIN) + step * i32::from(index);
        let port = i32::from(PORT_MIN) + offset.rem_euclid(range);
        u16::try_from(port).expect("within the range")
    }

    /// Whether the order matters: the first is the likeliest.
    pub(crate) const fn is_ordered(&self) -> bool {
        self.count <= NEXT
    }
}

/// How an opener goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    /// Sockets to open.
    pub(crate) sockets: u16,
    /// Whether a relay must be asked first for the public port of the first of them.
    pub(crate) observe: bool,
}

/// What an opener behind this allocator needs, if guesses may make `room` entries.
pub(crate) fn opening(allocator: Allocator, room: u16) -> Opening {
    let (sockets, observe) = match allocator {
        Allocator::Preserving => (1, false),
        Allocator::Sequential { .. } => (1, true),
        Allocator::Blocks { .. } => (SOCKETS_BLOCK, false),
        Allocator::Random => (SOCKETS_RANDOM, false),
    };
    Opening { sockets: sockets.min(room / 2).max(1), observe }
}

/// Where the next mapping's port may be: `local` is the socket's own port, `seen` the public one
/// that a relay saw of it last.
pub(crate) fn guess(allocator: Allocator, local: u16, seen: Option<u16>) -> Guess {
    match (allocator, seen) {
        (Allocator::Preserving, _) => Guess { first: local, step: 1, count: NEXT },
        (Allocator::Sequential { step }, Some(seen)) => {
            let next = Guess { first: seen, step, count: NEXT };
            Guess { first: next.port(1), ..next }
        }
        (Allocator::Blocks { first, last }, _) => {
            Guess { first, step: 1, count: last.saturating_sub(first).saturating_add(1) }
        }
        (Allocator::Sequential { .. }, None) | (Allocator::Random, _) => Guess::ANY,
    }
}

/// What a node does where simultaneous opening is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Nothing: opening suffices, or both ports are unpredictable.
    Neither,
    /// Opens sockets whose public ports the other guesses.
    Opener,
    /// Guesses.
    Guesser,
}

/// Who does what between two NATs. Both sides come to matching answers.
///
/// The guesser's packets must be let in where the opener sent to nobody but the guesser's known
/// address, and the opener's answers must leave from the port that was guessed. So either the
/// guesser's own port is known, or the opener's port and filter depend on addresses only.
#[must_use]
pub fn role(own: &Nat, peer: &Nat, controlling: bool) -> Role {
    let opens = |nat: &Nat| nat.mapping == Some(Mapping::Address) && nat.lets_other_ports_in();
    match (own.is_independent(), peer.is_independent()) {
        (true, true) => Role::Neither,
        // Whoever is let in from any port needs no guess.
        (true, false) if own.lets_other_ports_in() => Role::Neither,
        (false, true) if peer.lets_other_ports_in() => Role::Neither,
        (true, false) => Role::Guesser,
        (false, true) => Role::Opener,
        (false, false) => match (opens(own), opens(peer)) {
            (false, false) => Role::Neither,
            (true, true) if controlling => Role::Opener,
            (true, false) => Role::Opener,
            (true | false, true) => Role::Guesser,
        },
    }
}
