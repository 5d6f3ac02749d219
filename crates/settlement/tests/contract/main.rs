//! `Channels` itself: what no wallet of ours would send, tokens that misbehave, and a model beside
//! the real thing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod evm;
mod hashes;
mod hostile_calls;
mod hostile_tokens;
mod model;

use sluice_proto::{Amount, ChannelKey, EthAddress, Voucher, WalletKey, WalletSignature};

use self::evm::Evm;

pub(crate) const PERIOD_S: u32 = 72 * 60 * 60;
pub(crate) const PAYER: EthAddress = EthAddress([0x11; 20]);
pub(crate) const PAYOUT: EthAddress = EthAddress([0x44; 20]);
pub(crate) const STRANGER: EthAddress = EthAddress([0x55; 20]);

pub(crate) fn wallet(seed: u8) -> WalletKey {
    WalletKey::from_bytes([seed; 32]).unwrap()
}

pub(crate) fn signer() -> WalletKey {
    wallet(2)
}

pub(crate) fn payee() -> WalletKey {
    wallet(3)
}

pub(crate) fn key(evm: &Evm, salt: u8) -> ChannelKey {
    ChannelKey {
        payer: PAYER,
        signer: signer().address(),
        payee: payee().address(),
        payout: PAYOUT,
        token: evm.token,
        salt: [salt; 32],
    }
}

pub(crate) fn voucher(evm: &Evm, key: &ChannelKey, amount: u128) -> (Voucher, WalletSignature) {
    let channel = key.id(&evm.domain());
    let voucher = Voucher { channel, amount: Amount(amount), statement: [6; 32] };
    let signature = signer().sign(voucher.digest(&evm.domain()));
    (voucher, signature)
}
