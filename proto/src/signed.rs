//! Signatures by a node's key over the bytes of a message.

use libp2p_identity::{Keypair, PeerId, PublicKey};

/// What is signed: keeps a signature over one kind of message from serving as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// `Terms` by their payee.
    Terms,
    /// Acceptance of terms by their payer.
    Accept,
    /// A ticket by its provider.
    Ticket,
    /// An order by its tenant.
    Order,
    /// The name of an order that its tenant closed.
    OrderClosed,
    /// A bid by its provider.
    Bid,
    /// A lease by each of its parties.
    Lease,
    /// A record by its node.
    Record,
}

impl Topic {
    const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Terms => b"sluice terms v1",
            Self::Accept => b"sluice accept v1",
            Self::Ticket => b"sluice ticket v1",
            Self::Order => b"sluice order v1",
            Self::OrderClosed => b"sluice order closed v1",
            Self::Bid => b"sluice bid v1",
            Self::Lease => b"sluice lease v1",
            Self::Record => b"sluice record v1",
        }
    }
}

/// Why a signature does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The peer id does not carry its key (only Ed25519 ids do).
    #[error("peer id {0} does not carry an Ed25519 key")]
    NoKey(PeerId),
    /// The signature is not the peer's over these bytes.
    #[error("the signature is not {0}'s")]
    Wrong(PeerId),
}

/// Signs `bytes` for `topic` with a node's Ed25519 key: 64 bytes.
#[must_use]
pub fn sign(key: &Keypair, topic: Topic, bytes: &[u8]) -> Vec<u8> {
    key.sign(&[topic.prefix(), bytes].concat()).expect("Ed25519 signing does not fail")
}

/// Checks that `signature` is `peer`'s over `bytes` for `topic`.
///
/// # Errors
/// When the id carries no key, or the signature is another's.
pub fn verify(
    peer: &PeerId,
    topic: Topic,
    bytes: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    let multihash = peer.as_ref();
    let key = (multihash.code() == 0)
        .then(|| PublicKey::try_decode_protobuf(multihash.digest()).ok())
        .flatten()
        .ok_or(SignatureError::NoKey(*peer))?;
    if key.verify(&[topic.prefix(), bytes].concat(), signature) {
        Ok(())
    } else {
        Err(SignatureError::Wrong(*peer))
    }
}
