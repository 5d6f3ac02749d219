//! Which pairs of NATs can meet, derived from what RFC 4787 says of mapping and filtering alone.
//!
//! Both sides have sent to a relay, know how it sees the other, and then send to whatever ports of
//! the other they know of. A packet that gets in teaches the port that it came from. They meet when
//! a packet in each direction gets in between the same two ports.

use std::collections::BTreeSet;
use std::fmt;

use crate::nat::Dependence;

/// What it takes for two sides to meet directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Both send at the same time.
    Open,
    /// One side's port must be guessed as well.
    OneGuess,
    /// Both must be guessed.
    Hopeless,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "Y",
            Self::OneGuess => "P",
            Self::Hopeless => "H",
        })
    }
}

/// One side: its mapping and its filtering.
pub type Kind = (Dependence, Dependence);

/// All kinds, the mapping first.
#[must_use]
pub fn kinds() -> Vec<Kind> {
    let all = Dependence::ALL;
    all.into_iter().flat_map(|m| all.into_iter().map(move |f| (m, f))).collect()
}

/// An outside port, named after what it was opened for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    /// For the relay, and, as the mapping goes, for others.
    First,
    /// For the other side's address.
    ForAddress,
    /// For one port of the other side.
    For(Box<Self>),
}

#[derive(Debug, Clone)]
struct Side {
    kind: Kind,
    /// Ports of the other side that it sends to.
    targets: BTreeSet<Port>,
}

impl Side {
    fn new(kind: Kind) -> Self {
        Self { kind, targets: BTreeSet::from([Port::First]) }
    }

    /// The port from which a packet to the other side's `target` leaves.
    fn source(&self, target: &Port) -> Port {
        match self.kind.0 {
            Dependence::Endpoint => Port::First,
            Dependence::Address => Port::ForAddress,
            Dependence::AddressAndPort => Port::For(Box::new(target.clone())),
        }
    }

    /// Whether a packet from the other side's `source` gets in at `port`.
    fn lets_in(&self, port: &Port, source: &Port) -> bool {
        let from_here = || self.targets.iter().filter(|t| self.source(t) == *port);
        let open = *port == Port::First || from_here().next().is_some();
        open && match self.kind.1 {
            Dependence::Endpoint => true,
            Dependence::Address => from_here().next().is_some(),
            Dependence::AddressAndPort => from_here().any(|t| t == source),
        }
    }
}

/// Rounds after which nothing new is learnt; names of ports grow by one each.
const ROUNDS: usize = 4;

/// What it takes for two sides to meet.
#[must_use]
pub fn class(one: Kind, other: Kind) -> Class {
    if meet(one, other, false) {
        Class::Open
    } else if meet(one, other, true) || meet(other, one, true) {
        Class::OneGuess
    } else {
        Class::Hopeless
    }
}

/// Whether they meet; with `guesses`, `one` knows from which port `other` sends to where the relay
/// sees `one`.
fn meet(one: Kind, other: Kind, guesses: bool) -> bool {
    let (mut a, mut b) = (Side::new(one), Side::new(other));
    if guesses {
        a.targets.insert(b.source(&Port::First));
    }
    for _ in 0..ROUNDS {
        let (to_b, to_a) = (heard(&a, &b), heard(&b, &a));
        let both =
            |(source, target): &(Port, Port)| to_a.contains(&(target.clone(), source.clone()));
        if to_b.iter().any(both) {
            return true;
        }
        b.targets.extend(to_b.into_iter().map(|(source, _)| source));
        a.targets.extend(to_a.into_iter().map(|(source, _)| source));
    }
    false
}

/// Which of `from`'s packets get in: source and target.
fn heard(from: &Side, to: &Side) -> BTreeSet<(Port, Port)> {
    let packets = from.targets.iter().map(|target| (from.source(target), target.clone()));
    packets.filter(|(source, target)| to.lets_in(target, source)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(class_sought: Class) -> usize {
        let kinds = kinds();
        let pairs = kinds.iter().flat_map(|a| kinds.iter().map(move |b| class(*a, *b)));
        pairs.filter(|c| *c == class_sought).count()
    }

    #[test]
    fn of_81_pairs_42_need_no_guess_23_one_and_16_two() {
        assert_eq!(count(Class::Open), 42);
        assert_eq!(count(Class::OneGuess), 23);
        assert_eq!(count(Class::Hopeless), 16);
    }

    #[test]
    fn it_does_not_matter_who_calls() {
        for a in kinds() {
            for b in kinds() {
                assert_eq!(class(a, b), class(b, a), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn the_usual_home_router_meets_a_symmetric_one_only_by_a_guess() {
        use Dependence::{AddressAndPort, Endpoint};
        let (usual, symmetric) = ((Endpoint, AddressAndPort), (AddressAndPort, AddressAndPort));
        assert_eq!(class(usual, usual), Class::Open);
        assert_eq!(class(usual, symmetric), Class::OneGuess);
        assert_eq!(class(symmetric, symmetric), Class::Hopeless);
        assert_eq!(class((Endpoint, Endpoint), symmetric), Class::Open);
    }
}
