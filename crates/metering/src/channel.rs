//! The channel that pays an edge.

use bytes::Bytes;
use sluice_proto::wire::pay;
use sluice_proto::{Amount, ChannelId, ChannelKey, Domain, EthAddress, WalletKey};

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

/// A channel as it is shown to its payer, who may have forgotten it: nothing is signed.
#[must_use]
pub fn show_channel(id: ChannelId, key: &ChannelKey) -> pay::ChannelBinding {
    let copy = |b: &[u8]| Bytes::copy_from_slice(b);
    pay::ChannelBinding {
        payer: copy(&key.payer.0),
        signer: copy(&key.signer.0),
        salt: copy(&key.salt),
        channel: copy(&id.0),
        signature: Bytes::new(),
    }
}

/// A channel with the key that spends from it. The key is never printed.
#[derive(Debug, Clone)]
pub struct Purse {
    /// The channel; its `signer` is the key's address.
    pub channel: Channel,
    /// Signs its vouchers.
    pub key: WalletKey,
}
