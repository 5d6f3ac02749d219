//! What can go wrong with a chain.

use std::path::PathBuf;

use sluice_proto::{ChannelId, EthAddress};
use sluice_settlement::RevertReason;

/// What can go wrong with a chain; each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Nobody answers, or not in JSON-RPC.
    #[error(
        "cannot reach the chain at {url}: {reason}; check the URL and that the node runs. Service \
         goes on within the deposits that are open"
    )]
    Unreachable {
        /// The URL without credentials or path.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The URL is not one.
    #[error("the chain's URL cannot be used: {reason}; write http://HOST:PORT or https://HOST")]
    BadUrl {
        /// Why.
        reason: String,
    },
    /// The node refused a request.
    #[error("the chain's node at {url} refused {method}: {reason}")]
    Refused {
        /// The URL without credentials or path.
        url: String,
        /// The JSON-RPC method.
        method: String,
        /// The node's words.
        reason: String,
    },
    /// The node answered with something else than the method promises.
    #[error("the chain's node at {url} answered {method} with {reason}; is it an Ethereum node?")]
    BadAnswer {
        /// The URL without credentials or path.
        url: String,
        /// The JSON-RPC method.
        method: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another chain lives there.
    #[error(
        "wrong chain at {url}: its id is {found}, not {expected}; point the URL to the right \
         network or correct `chain_id`"
    )]
    WrongChain {
        /// The URL without credentials or path.
        url: String,
        /// Configured.
        expected: u64,
        /// The node's.
        found: u64,
    },
    /// No such contract.
    #[error("there is no {what} contract at {address} on chain {chain_id}; check the address")]
    NoContract {
        /// `Channels` or `token`.
        what: &'static str,
        /// Where it was looked for.
        address: EthAddress,
        /// On which chain.
        chain_id: u64,
    },
    /// A contract lives there, but another.
    #[error(
        "the contract at {address} on chain {chain_id} is not a {what} contract of this version; \
         check the address"
    )]
    OtherContract {
        /// `Channels` or `token`.
        what: &'static str,
        /// Where.
        address: EthAddress,
        /// On which chain.
        chain_id: u64,
    },
    /// No address was configured.
    #[error("no {what} address is configured for chain {chain_id}; set it in the section `chain`")]
    NoAddress {
        /// `Channels` or `token`.
        what: &'static str,
        /// On which chain.
        chain_id: u64,
    },
    /// A contract refused; nothing was changed.
    #[error("the chain refuses to {what}: {reason}")]
    Reverted {
        /// What was tried: a verb with its object.
        what: &'static str,
        /// The contract's reason.
        reason: RevertReason,
    },
    /// The account cannot pay the transaction's fee.
    #[error(
        "the wallet {account} cannot pay the fee to {what}: {reason}; send it some of the network's \
         own coin"
    )]
    InsufficientFunds {
        /// The account.
        account: EthAddress,
        /// What was tried.
        what: &'static str,
        /// The numbers, as the chain gives them.
        reason: String,
    },
    /// The transaction was sent and not seen included in time.
    #[error(
        "transaction 0x{} to {what} was sent but not included within {waited_s} s; it may still be: \
         look at the channel before trying again{last}", hex::encode(.hash)
    )]
    Timeout {
        /// The transaction.
        hash: [u8; 32],
        /// What was tried.
        what: &'static str,
        /// How long it was waited for.
        waited_s: u64,
        /// What was wrong with the last answer about it, after a colon; empty when nothing was.
        last: String,
    },
    /// A voucher was made for another chain, contract or channel.
    #[error(
        "the voucher is for channel {found}, but on this chain and contract the key's channel is \
         {expected}; it cannot be redeemed here"
    )]
    WrongChannel {
        /// The id of the key on this chain.
        expected: ChannelId,
        /// The voucher's.
        found: ChannelId,
    },
    /// The key is for another token.
    #[error("the channel's token is {found}, but this chain is set up for {expected}")]
    WrongToken {
        /// The chain's.
        expected: EthAddress,
        /// The key's.
        found: EthAddress,
    },
    /// The wallet is not the one that the channel names.
    #[error("the channel's {role} is {expected}, but the wallet is {found}; use the right wallet")]
    WrongWallet {
        /// `payer` or `payee`.
        role: &'static str,
        /// The channel's.
        expected: EthAddress,
        /// The wallet's.
        found: EthAddress,
    },
    /// There is no such channel.
    #[error("channel {channel} was never opened on this chain")]
    NoSuchChannel {
        /// Which.
        channel: ChannelId,
    },
    /// Nothing, or too much at once.
    #[error("{count} vouchers to redeem: give 1 to {most}")]
    BatchSize {
        /// How many were given.
        count: usize,
        /// How many may be.
        most: usize,
    },
    /// Only on development chains.
    #[error("chain {chain_id} is not a development chain: no test money and no time travel there")]
    NotDevelopment {
        /// Which.
        chain_id: u64,
    },
    /// The embedded chain's file is damaged.
    #[error(
        "the embedded chain's state {path} is damaged: {reason}; restore it from a backup, or \
         remove it to start a new chain without any of its channels and test money"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The embedded chain's file is of a newer version.
    #[error("{path} has format {found}, this program knows up to {known}; use a newer program")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A file could not be used.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// A verb.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl ChainError {
    /// Whether the same call may succeed later without anybody changing anything. After a
    /// [`Timeout`](Self::Timeout) look at the channel first.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }
}
