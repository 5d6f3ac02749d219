//! What the contracts are, how to talk to them, and when redeeming is worth its fee.
//!
//! `contracts/` holds the Solidity sources, the script that compiles them and the committed
//! artifacts; [`channels_code`] and [`test_token_code`] are the very bytes that run on a real chain
//! and in the embedded one. [`call`] encodes what is sent to a contract, [`answer`] decodes what
//! comes back, [`ChannelEvent`] what a transaction did, [`RevertReason`] why one failed.
//!
//! A channel is one storage slot on the chain: everything that never changes is in its id, so each
//! call carries the whole [`ChannelKey`](sluice_proto::ChannelKey) and the contract hashes it. Payer
//! and payee both know the key from the lease.
//!
//! [`RedemptionRule`] decides whether to turn vouchers into tokens now. It is the user's rule: it
//! answers with its reason, so that a dry run can show it before anything is sent.
//! [`RedemptionPolicy`] applies it to many channels at once, under a cap on the gas price, and puts
//! them into batches; [`TopUpRule`] is the payer's side.
//!
//! Nothing here does I/O.

#![warn(clippy::arithmetic_side_effects, clippy::float_arithmetic, clippy::as_conversions)]

mod abi;
pub mod answer;
mod artifacts;
pub mod call;
mod event;
mod policy;
mod revert;
mod rule;

pub use answer::ChannelSlot;
pub use artifacts::{channels_code, test_token_code};
pub use event::{ChannelEvent, Refusal};
pub use policy::{
    Batch, CAP_YIELDS_S, Claim, Item, Moment, Proposal, REDEEM_GAS_BASE, REDEEM_GAS_EACH,
    RedemptionPolicy, TopUpRule, is_refund_due,
};
pub use revert::RevertReason;
pub use rule::{
    Decision, FEE_FRACTION_DEFAULT_PPM, RedemptionRule, Standing, WhyRedeem, WhyWait, fee_in_token,
};

/// Shortest close period that the contract accepts, seconds: 48 hours.
pub const PERIOD_MIN_S: u32 = 48 * 60 * 60;
/// Longest close period that the contract accepts, seconds: 180 days.
pub const PERIOD_MAX_S: u32 = 180 * 24 * 60 * 60;
/// Close period of a channel unless its parties agree on another, seconds: 72 hours, a weekend.
pub const PERIOD_DEFAULT_S: u32 = 72 * 60 * 60;
/// Largest deposit: the contract keeps it in 96 bits.
pub const DEPOSIT_MAX: sluice_proto::Amount = sluice_proto::Amount((1 << 96) - 1);
/// Most vouchers in one `redeemMany`: under 2 million gas, well within any network's block.
pub const REDEEM_MAX: usize = 100;
