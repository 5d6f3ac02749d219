//! The chain that channels live on: an EVM in this process, or any network by JSON-RPC.
//!
//! Both run the same bytecode of `Channels` and answer the same calls, so everything above works on
//! either and cannot tell them apart:
//!
//! - [`Chain::open_embedded`]: revm with its state in a folder, for demos, tests and one's own
//!   machines. Several processes of one machine may share the folder. Its money is worth nothing.
//! - [`Chain::connect_rpc`]: a node of an Ethereum-like network over HTTP. Transactions are EIP-1559,
//!   signed here; the node never sees a key.
//!
//! A method that sends a transaction returns once it is included, or fails with a [`ChainError`]
//! that says whether anything was sent: only [`ChainError::Timeout`] leaves that open. One that
//! stays out is sent again with the same nonce and a higher fee, so that at most one of them counts. Included is
//! not final: before acting on money that came in, read the channel with [`View::Final`].
//!
//! Every call takes the whole [`ChannelKey`](sluice_proto::ChannelKey), not only a channel's id,
//! since the contract stores nothing but the id's hash and the amounts.

#![expect(
    clippy::disallowed_methods,
    reason = "I/O crate: the embedded chain's time is the machine's"
)]

#[cfg(feature = "anvil")]
#[doc(hidden)]
pub mod anvil;
mod chain;
mod embedded;
mod error;
mod rpc;
mod types;

pub use chain::Chain;
pub use embedded::{EMBEDDED_CHAIN_ID, Embedded};
pub use error::ChainError;
pub use rpc::{DEV_CHAIN_ID, Rpc};
pub use sluice_settlement::{ChannelEvent, Refusal, RevertReason};
pub use types::{
    ChannelState, FeeEstimate, Finality, INCLUSION_DEFAULT, PATIENCE_DEFAULT, Redemption,
    RpcConfig, TokenInfo, TxReceipt, View,
};
