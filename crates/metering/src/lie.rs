//! What a peer may say that is not true.

use bytes::Bytes;
use sluice_proto::{Amount, ChannelId, EthAddress, LeaseId};

use crate::{Counts, StreamIndex};

/// A statement, voucher, claim or acknowledgement that cannot be true. It changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lie {
    /// Not a message of this edge.
    #[error("malformed pay message: {0}")]
    Malformed(String),
    /// About another lease or reservation.
    #[error("the message is about lease {found}, not {expected}")]
    WrongLease {
        /// The lease of this edge.
        expected: LeaseId,
        /// The one that it names.
        found: LeaseId,
    },
    /// A statement about streams of another session.
    #[error("the statement is of session {found}, not {expected}")]
    WrongSession {
        /// The number of this session.
        expected: u64,
        /// The one that it names.
        found: u64,
    },
    /// A session with a number that was there before.
    #[error("session {found} is not new: session {last} was there before it")]
    OldSession {
        /// The newest that the payer knows.
        last: u64,
        /// The number that the payee gave.
        found: u64,
    },
    /// A voucher on an edge that costs something, before its payer showed a channel.
    #[error("a voucher came before the channel that pays it")]
    NoChannel,
    /// A voucher on another channel.
    #[error("the voucher is on another channel than {expected}")]
    WrongChannel {
        /// The channel of this edge.
        expected: ChannelId,
    },
    /// An amount that is not what the statement's counts cost.
    #[error("the voucher says {found}, but {counts} cost {due}")]
    WrongAmount {
        /// What its counts cost.
        due: Amount,
        /// What it says.
        found: Amount,
        /// Its counts.
        counts: Counts,
    },
    /// A signature that is not the channel's signer's.
    #[error("the voucher is not signed by {expected}")]
    WrongSigner {
        /// The channel's signer.
        expected: EthAddress,
        /// Whose signature it is, if anybody's.
        found: Option<EthAddress>,
    },
    /// One count higher and the other lower than in a voucher before.
    #[error("the voucher's counts ({found}) go back behind {newest}")]
    Backwards {
        /// The newest counts.
        newest: Counts,
        /// The ones that it states.
        found: Counts,
    },
    /// More than was sent or read.
    #[error("the voucher states {found}, but only {counted} were counted")]
    OverCount {
        /// This side's own counts.
        counted: Counts,
        /// The ones that it states.
        found: Counts,
    },
    /// A position on a stream beyond what was written to it.
    #[error("position {found} of stream {} is beyond the {written} bytes written", stream.0)]
    OverPosition {
        /// The stream.
        stream: StreamIndex,
        /// Bytes written to it.
        written: u64,
        /// The position that it states.
        found: u64,
    },
    /// More than the channel holds.
    #[error("the voucher's {amount} exceed the deposit of {deposit}")]
    OverDeposit {
        /// What the channel holds.
        deposit: Amount,
        /// What it says.
        amount: Amount,
    },
    /// A payee claims more than the payer gave or allowed.
    #[error("the payee claims {claimed}, but at most {counted} can be")]
    InflatedClaim {
        /// The payer's own bound.
        counted: Counts,
        /// What is claimed.
        claimed: Counts,
    },
    /// A payee acknowledges what was never sent.
    #[error("the payee acknowledges {found}, but {signed} was signed")]
    FalseAck {
        /// The newest amount that was signed.
        signed: Amount,
        /// The amount that it acknowledges.
        found: Amount,
    },
}

/// A lie with the bytes that prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// What is wrong.
    pub lie: Lie,
    /// The message as received.
    pub message: Bytes,
}
