//! The channel that pays an edge.

use sluice_proto::{Amount, ChannelId, Domain, EthAddress, WalletKey};

/// A channel as both ends of an edge know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channel {
    /// Its id.
    pub id: ChannelId,
    /// Where it lives.
    pub domain: Domain,
    /// Who signs its vouchers.
    pub signer: EthAddress,
    /// What it holds, what was already redeemed included.
    pub deposit: Amount,
    /// Its cumulative amount when the lease began.
    pub base: Amount,
}

/// A channel with the key that spends from it. The key is never printed.
#[derive(Debug, Clone)]
pub struct Purse {
    /// The channel; its `signer` is the key's address.
    pub channel: Channel,
    /// Signs its vouchers.
    pub key: WalletKey,
}
