//! What goes into and comes out of a chain.

use std::time::Duration;

use sluice_proto::{Amount, ChannelId, ChannelKey, EthAddress, Voucher, WalletSignature};
use sluice_settlement::{ChannelEvent, ChannelSlot, Refusal};

/// How to reach a chain by JSON-RPC.
#[derive(Debug, Clone)]
pub struct RpcConfig {
    /// `http://..` or `https://..`.
    pub url: String,
    /// Further nodes of the same chain: asked when one does not answer, and for a second opinion on
    /// channels.
    pub other_urls: Vec<String>,
    /// Address of `Channels`; absent only on development chains before
    /// [`Chain::deploy_dev`](crate::Chain::deploy_dev).
    pub contract: Option<EthAddress>,
    /// Address of the ERC-20 token; absent as above.
    pub token: Option<EthAddress>,
    /// What counts as final.
    pub finality: Finality,
    /// The chain id that must be found there; any if absent.
    pub chain_id: Option<u64>,
    /// How long a transaction may stay out of the chain before it is sent again for more:
    /// [`PATIENCE_DEFAULT`] unless there is a reason.
    pub patience: Duration,
    /// Longest wait for a transaction to be included: [`INCLUSION_DEFAULT`] unless there is a
    /// reason.
    pub inclusion: Duration,
}

/// Two blocks of Ethereum, and some: what is offered at first buys a place in the next one.
pub const PATIENCE_DEFAULT: Duration = Duration::from_secs(30);
/// A dozen blocks of Ethereum.
pub const INCLUSION_DEFAULT: Duration = Duration::from_secs(150);

/// What counts as final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// The node's `finalized` block.
    Finalized,
    /// Blocks that have been built on, the including one counted: 1 is "included".
    Confirmations(u64),
}

/// Which state to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The newest block: may still be undone.
    Latest,
    /// The newest final block.
    Final,
}

/// A channel as the chain keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelState {
    /// What it binds.
    pub key: ChannelKey,
    /// Ever deposited.
    pub deposit: Amount,
    /// Paid to the payout so far.
    pub redeemed: Amount,
    /// Seconds between the payer's start of a close and its refund.
    pub period_s: u32,
    /// From when the payer may finish its close; absent when it has not started one, or when closed.
    pub closing_at_unix_s: Option<u64>,
    /// Closed for good.
    pub closed: bool,
}

impl ChannelState {
    pub(crate) fn new(key: ChannelKey, slot: ChannelSlot) -> Self {
        Self {
            key,
            deposit: slot.deposit,
            redeemed: slot.redeemed,
            period_s: slot.period_s,
            closing_at_unix_s: slot.closing_at_unix_s,
            closed: slot.closed,
        }
    }

    /// The changing part of it.
    #[must_use]
    pub const fn slot(&self) -> ChannelSlot {
        ChannelSlot {
            deposit: self.deposit,
            redeemed: self.redeemed,
            period_s: self.period_s,
            closing_at_unix_s: self.closing_at_unix_s,
            closed: self.closed,
        }
    }
}

/// A voucher and what the contract needs to know with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redemption {
    /// The voucher's channel: its id must be `voucher.channel`.
    pub key: ChannelKey,
    /// The voucher.
    pub voucher: Voucher,
    /// Of the channel's signer.
    pub signature: WalletSignature,
}

/// What an included transaction cost and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxReceipt {
    /// The transaction's hash.
    pub hash: [u8; 32],
    /// Gas used.
    pub gas: u64,
    /// Gas used by the token approval that went before it; 0 if none was needed.
    pub gas_approval: u64,
    /// What both cost, in wei.
    pub fee_wei: u128,
    /// The number of the including block.
    pub block: u64,
    /// What it did to channels, in order.
    pub events: Vec<ChannelEvent>,
}

impl TxReceipt {
    /// What went to payouts.
    #[must_use]
    pub fn paid(&self) -> Amount {
        self.sum(|event| if let ChannelEvent::Redeemed { paid, .. } = event { paid.0 } else { 0 })
    }

    /// What went back to payers.
    #[must_use]
    pub fn refunded(&self) -> Amount {
        self.sum(
            |event| if let ChannelEvent::Closed { refunded, .. } = event { refunded.0 } else { 0 },
        )
    }

    /// The vouchers that paid nothing, and why.
    pub fn refused(&self) -> impl Iterator<Item = (ChannelId, Refusal)> + '_ {
        self.events.iter().filter_map(|event| {
            let ChannelEvent::Refused { channel, reason } = event else { return None };
            Some((*channel, *reason))
        })
    }

    fn sum(&self, amount: impl Fn(&ChannelEvent) -> u128) -> Amount {
        Amount(self.events.iter().map(amount).fold(0, u128::saturating_add))
    }
}

/// What a transaction would cost now: a dry run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeeEstimate {
    /// Gas.
    pub gas: u64,
    /// Gas times the current price, in wei.
    pub fee_wei: u128,
}

/// How to print amounts of the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its symbol: at most 16 printable characters, chosen by the token's maker. Proves nothing.
    pub symbol: String,
    /// Base units of one token are 10 to this power.
    pub decimals: u8,
}
