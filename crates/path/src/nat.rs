//! What a NAT does, told from what relays saw of it (RFC 4787, sections 4 and 5).

use std::fmt;
use std::net::SocketAddr;

use crate::SocketId;

/// How long a new mapping's port may lie from the last one's and still be "next".
const STEP_MAX: i32 = 16;
/// Mappings of fresh sockets that must be seen before an allocator is told.
const SAMPLES_MIN: usize = 3;
/// The same for blocks: that so many random ports lie within [`BLOCK_MAX`] of one another happens
/// once in 10,000 times.
const BLOCK_SAMPLES_MIN: usize = 4;
/// Largest block: carriers give 512 to 2,048 ports a customer (RFC 7422 has examples).
const BLOCK_MAX: u16 = 2048;
/// Smallest block that is told apart from chance.
const BLOCK_MIN: u16 = 64;
/// Lowest port that a NAT gives to a mapping (RFC 4787, section 4.2.2: above the well-known ones).
pub(crate) const PORT_MIN: u16 = 1024;

/// On what the public port of a socket depends (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mapping {
    /// On nothing else: one port for all destinations; or there is no NAT.
    Independent,
    /// On the destination's address.
    Address,
    /// On the destination's address and port.
    AddressAndPort,
}

/// From where packets to a mapping are let in (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filtering {
    /// From anywhere.
    Independent,
    /// From addresses that were sent to.
    Address,
    /// From addresses and ports that were sent to.
    AddressAndPort,
}

/// How a NAT chooses the port of a new mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// The socket's own, if it is free.
    Preserving,
    /// The one this far from the last.
    Sequential {
        /// From one mapping to the next; never 0.
        step: i16,
    },
    /// Any of a block that the customer has.
    Blocks {
        /// Lowest port of the block, as far as seen.
        first: u16,
        /// Highest.
        last: u16,
    },
    /// Any.
    Random,
}

/// What is known of a NAT; `None`: not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Nat {
    /// Its mapping.
    pub mapping: Option<Mapping>,
    /// Its filtering.
    pub filtering: Option<Filtering>,
    /// Its allocator. Never told to the other node.
    pub allocator: Option<Allocator>,
}

impl Nat {
    /// What is known here, and else what `other` knows.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            mapping: self.mapping.or(other.mapping),
            filtering: self.filtering.or(other.filtering),
            allocator: self.allocator.or(other.allocator),
        }
    }

    /// Whether one public port serves all destinations. Assumed while nothing is known: it is the
    /// usual home router.
    #[must_use]
    pub fn is_independent(&self) -> bool {
        self.mapping.unwrap_or(Mapping::Independent) == Mapping::Independent
    }

    /// Whether whoever was sent to may answer from another port.
    pub(crate) fn lets_other_ports_in(&self) -> bool {
        matches!(self.filtering, Some(Filtering::Independent | Filtering::Address))
    }
}

/// One relay's word about one local socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// The local socket.
    pub socket: SocketId,
    /// Its local port.
    pub local_port: u16,
    /// Where it sent to.
    pub destination: SocketAddr,
    /// Its public address, as seen there.
    pub observed: SocketAddr,
}

/// Tells the mapping from what was seen of one or more sockets that each sent to several places.
///
/// Sockets that sent to two addresses tell whether the port depends on the destination's address,
/// those that sent to two ports of one address whether it depends on its port. Without the latter
/// a dependent one is taken for the worse.
#[must_use]
pub fn mapping(seen: &[Observation]) -> Option<Mapping> {
    let pairs = || {
        seen.iter().enumerate().flat_map(move |(i, a)| {
            let same =
                move |b: &&Observation| b.socket == a.socket && b.destination != a.destination;
            seen[i + 1..].iter().filter(same).map(move |b| (a, b))
        })
    };
    let one_address =
        |(a, b): &(&Observation, &Observation)| a.destination.ip() == b.destination.ip();
    let differs = |(a, b): (&Observation, &Observation)| a.observed != b.observed;
    let ports_tried = pairs().any(|p| one_address(&p));
    if pairs().filter(one_address).any(differs) {
        return Some(Mapping::AddressAndPort);
    }
    if pairs().filter(|p| !one_address(p)).any(differs) {
        return Some(if ports_tried { Mapping::Address } else { Mapping::AddressAndPort });
    }
    pairs().any(|p| !one_address(&p)).then_some(Mapping::Independent)
}

/// Tells the filtering from who could reach a socket that had sent to one address and port only:
/// another port of that address, and another address.
#[must_use]
pub fn filtering(other_port: Option<bool>, other_address: Option<bool>) -> Option<Filtering> {
    match (other_port, other_address) {
        (_, Some(true)) => Some(Filtering::Independent),
        // Without the word of another address, the stricter of the two.
        (Some(true), Some(false) | None) => Some(Filtering::Address),
        (Some(false), Some(false) | None) => Some(Filtering::AddressAndPort),
        (None, Some(false) | None) => None,
    }
}

/// Tells the allocator from the local and public ports of fresh sockets that sent to one
/// destination, in the order in which they sent.
#[must_use]
pub fn allocator(samples: &[(u16, u16)]) -> Option<Allocator> {
    if samples.len() < SAMPLES_MIN {
        return None;
    }
    if samples.iter().all(|(local, public)| local == public) {
        return Some(Allocator::Preserving);
    }
    if let Some(step) = step(samples) {
        return Some(Allocator::Sequential { step });
    }
    if samples.len() < BLOCK_SAMPLES_MIN {
        return None;
    }
    Some(block(samples).unwrap_or(Allocator::Random))
}

/// The step of ports that follow one another: all small and of one sign, but for one of them where
/// there are enough (the end of a block, or of the range).
fn step(samples: &[(u16, u16)]) -> Option<i16> {
    let steps = || {
        let ports = samples.iter().map(|(_, public)| i32::from(*public));
        ports.clone().skip(1).zip(ports).map(|(b, a)| b - a)
    };
    let strays = usize::from(samples.len() > SAMPLES_MIN);
    let follows = |sign: i32| {
        let near = |s: &i32| (1..=STEP_MAX).contains(&(s * sign));
        steps().filter(near).count() + strays >= steps().count()
    };
    let sign = [1, -1].into_iter().find(|s| follows(*s))?;
    // Between two of ours others of the household may have been given ports: the smallest is
    // nearest to the truth.
    let smallest = steps().map(|s| s * sign).filter(|s| *s > 0).min()?;
    i16::try_from(smallest * sign).ok()
}

/// The smallest aligned block, a power of two, that holds all.
fn block(samples: &[(u16, u16)]) -> Option<Allocator> {
    let low = samples.iter().map(|(_, public)| *public).min()?;
    let high = samples.iter().map(|(_, public)| *public).max()?;
    let mut size = BLOCK_MIN;
    while size <= BLOCK_MAX {
        if low / size == high / size {
            let first = low / size * size;
            return Some(Allocator::Blocks { first, last: first + (size - 1) });
        }
        size *= 2;
    }
    // Blocks need not be aligned.
    (high - low < BLOCK_MAX).then_some(Allocator::Blocks { first: low, last: high })
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Independent => "endpoint-independent",
            Self::Address => "address-dependent",
            Self::AddressAndPort => "address-and-port-dependent",
        })
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Independent => "endpoint-independent",
            Self::Address => "address-dependent",
            Self::AddressAndPort => "address-and-port-dependent",
        })
    }
}

impl fmt::Display for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preserving => f.write_str("port-preserving"),
            Self::Sequential { step } => write!(f, "sequential, step {step}"),
            Self::Blocks { first, last } => write!(f, "a block, {first} to {last}"),
            Self::Random => f.write_str("random"),
        }
    }
}
