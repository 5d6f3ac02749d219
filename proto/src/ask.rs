//! What nodes ask one another over the mesh's control protocol, and the topics of its gossip.

use bytes::Bytes;
use prost::Message;

use crate::VERSION;
use crate::market::Region;
use crate::wire::{self, WireError, mesh};

/// Largest ask or answer, bytes.
pub const ASK_MAX: usize = 16 * 1024;
/// Most records of relays in one answer.
pub const RELAYS_KNOWN_MAX: usize = 16;

/// The topic on which orders of a region are told, and that they take no more bids.
#[must_use]
pub fn orders_topic(region: &Region) -> String {
    format!("sluice/orders/1/{region}")
}

/// The inverse of [`orders_topic`]; `None` for any other topic.
#[must_use]
pub fn orders_region(topic: &str) -> Option<Region> {
    Region::parse(topic.strip_prefix("sluice/orders/1/")?).ok()
}

/// The topic on which relays tell their records.
#[must_use]
pub fn relays_topic() -> String {
    "sluice/relays/1".to_owned()
}

/// What a node asks; what is inside is checked by who makes sense of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Takes a sealed bid: an encoded [`SealedBid`](crate::market::SealedBid).
    Bid(Bytes),
    /// Answers an [`Award`](crate::market::Award), encoded.
    Award(Bytes),
    /// Says which relays it knows.
    Relays,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The bid was read.
    BidTaken,
    /// An encoded [`AwardAnswer`](crate::market::AwardAnswer).
    Award(Bytes),
    /// Encoded [`SignedRecord`](crate::SignedRecord)s of relays, at most 16.
    Relays(Vec<Bytes>),
    /// Nothing was done.
    Refused(AskRefusal),
}

/// Why nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskRefusal {
    /// Nodes of another version ask for what this one does not know.
    #[error("it does not know what is asked for")]
    Unknown,
    /// It has no such role, or too much to do.
    #[error("it takes no such request now")]
    Busy,
    /// What was asked makes no sense.
    #[error("it calls the request malformed")]
    Malformed,
}

/// Why an ask or an answer is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It cannot be decoded.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Another version's.
    #[error("a request of version {0}; this node speaks version 1")]
    Version(u32),
    /// Of a kind that this version does not have: answer [`AskRefusal::Unknown`].
    #[error("of a kind that this node does not know")]
    Unknown,
    /// More relays than an answer may have.
    #[error("{0} records of relays, more than 16")]
    TooMany(usize),
}

impl Ask {
    /// As it is sent; over 16 KiB it is refused by who gets it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Bid(bytes) => mesh::ask::Kind::Bid(bytes.clone()),
            Self::Award(bytes) => mesh::ask::Kind::Award(bytes.clone()),
            Self::Relays => mesh::ask::Kind::Relays(mesh::RelaysWanted {}),
        };
        mesh::Ask { version: VERSION, kind: Some(kind) }.encode_to_vec().into()
    }

    /// Reads what was asked.
    ///
    /// # Errors
    /// When it is malformed, or from another version.
    pub fn parse(bytes: Bytes) -> Result<Self, AskError> {
        let ask: mesh::Ask = wire::decode(bytes, ASK_MAX)?;
        if ask.version != VERSION {
            return Err(AskError::Version(ask.version));
        }
        match ask.kind.ok_or(AskError::Unknown)? {
            mesh::ask::Kind::Bid(bytes) => Ok(Self::Bid(bytes)),
            mesh::ask::Kind::Award(bytes) => Ok(Self::Award(bytes)),
            mesh::ask::Kind::Relays(_) => Ok(Self::Relays),
        }
    }
}

impl Answer {
    /// The inverse of [`parse`](Self::parse).
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let kind = match self {
            Self::BidTaken => mesh::answer::Kind::Bid(mesh::BidTaken {}),
            Self::Award(bytes) => mesh::answer::Kind::Award(bytes.clone()),
            Self::Relays(records) => {
                mesh::answer::Kind::Relays(mesh::RelaysKnown { records: records.clone() })
            }
            Self::Refused(why) => {
                mesh::answer::Kind::Refused(mesh::AskRefused { code: why.code() })
            }
        };
        mesh::Answer { kind: Some(kind) }.encode_to_vec().into()
    }

    /// Reads what was answered.
    ///
    /// # Errors
    /// When it is malformed, or of a kind that this version does not know.
    pub fn parse(bytes: Bytes) -> Result<Self, AskError> {
        let answer: mesh::Answer = wire::decode(bytes, ASK_MAX)?;
        match answer.kind.ok_or(AskError::Unknown)? {
            mesh::answer::Kind::Bid(_) => Ok(Self::BidTaken),
            mesh::answer::Kind::Award(bytes) => Ok(Self::Award(bytes)),
            mesh::answer::Kind::Relays(known) if known.records.len() > RELAYS_KNOWN_MAX => {
                Err(AskError::TooMany(known.records.len()))
            }
            mesh::answer::Kind::Relays(known) => Ok(Self::Relays(known.records)),
            mesh::answer::Kind::Refused(refused) => {
                Ok(Self::Refused(AskRefusal::from_code(refused.code)))
            }
        }
    }
}

impl AskRefusal {
    const fn code(self) -> u32 {
        match self {
            Self::Unknown => 1,
            Self::Busy => 2,
            Self::Malformed => 3,
        }
    }

    /// A code of a later version says no more than that nothing was done.
    const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Unknown,
            3 => Self::Malformed,
            _ => Self::Busy,
        }
    }
}
