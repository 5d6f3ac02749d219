//! Call data for `Channels` and for ERC-20 tokens.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::SolCall;
use sluice_proto::{Amount, ChannelId, ChannelKey, EthAddress, Voucher, WalletSignature};

use crate::abi::{Channels, Token};

/// `open`: the caller must be `key.payer` and have approved `deposit` of the token.
#[must_use]
pub fn open(key: &ChannelKey, deposit: Amount, period_s: u32) -> Vec<u8> {
    Channels::openCall { key: key_words(key), deposit: deposit.0, period: period_s }.abi_encode()
}

/// `topUp`: the caller must have approved `more` of the token.
#[must_use]
pub fn top_up(key: &ChannelKey, more: Amount) -> Vec<u8> {
    Channels::topUpCall { key: key_words(key), more: more.0 }.abi_encode()
}

/// `startClose`: the caller must be `key.payer`.
#[must_use]
pub fn start_close(key: &ChannelKey) -> Vec<u8> {
    Channels::startCloseCall { key: key_words(key) }.abi_encode()
}

/// `finishClose`: anyone may call once the period has passed.
#[must_use]
pub fn finish_close(key: &ChannelKey) -> Vec<u8> {
    Channels::finishCloseCall { key: key_words(key) }.abi_encode()
}

/// `redeem`: anyone may call.
#[must_use]
pub fn redeem(key: &ChannelKey, voucher: &Voucher, signature: &WalletSignature) -> Vec<u8> {
    Channels::redeemCall {
        key: key_words(key),
        amount: voucher.amount.0,
        statement: B256::from(voucher.statement),
        signature: signature_bytes(signature),
    }
    .abi_encode()
}

/// `redeemMany`, in the order given: neighbours with one token and payout share a transfer.
#[must_use]
pub fn redeem_many<'a>(
    items: impl IntoIterator<Item = (&'a ChannelKey, &'a Voucher, &'a WalletSignature)>,
) -> Vec<u8> {
    let items = items
        .into_iter()
        .map(|(key, voucher, signature)| Channels::Item {
            key: key_words(key),
            amount: voucher.amount.0,
            statement: B256::from(voucher.statement),
            signature: signature_bytes(signature),
        })
        .collect();
    Channels::redeemManyCall { items }.abi_encode()
}

/// `closeByPayee` at `amount`. `voucher` is needed when `amount` is above what was redeemed;
/// `consent`, the payee's signature over [`Domain::close_digest`](sluice_proto::Domain::close_digest),
/// when the caller is not the payee.
#[must_use]
pub fn close_by_payee(
    key: &ChannelKey,
    amount: Amount,
    voucher: Option<(&Voucher, &WalletSignature)>,
    consent: Option<&WalletSignature>,
) -> Vec<u8> {
    Channels::closeByPayeeCall {
        key: key_words(key),
        amount: amount.0,
        statement: voucher.map(|(v, _)| B256::from(v.statement)).unwrap_or_default(),
        voucherSignature: voucher.map(|(_, s)| signature_bytes(s)).unwrap_or_default(),
        payeeSignature: consent.map(signature_bytes).unwrap_or_default(),
    }
    .abi_encode()
}

/// `channels`: answered by [`answer::channel`](crate::answer::channel).
#[must_use]
pub fn channel(id: ChannelId) -> Vec<u8> {
    Channels::channelsCall { id: B256::from(id.0) }.abi_encode()
}

/// `channelId`: answered by [`answer::word`](crate::answer::word).
#[must_use]
pub fn channel_id(key: &ChannelKey) -> Vec<u8> {
    Channels::channelIdCall { key: key_words(key) }.abi_encode()
}

/// `voucherDigest`: answered by [`answer::word`](crate::answer::word).
#[must_use]
pub fn voucher_digest(voucher: &Voucher) -> Vec<u8> {
    Channels::voucherDigestCall {
        channel: B256::from(voucher.channel.0),
        amount: voucher.amount.0,
        statement: B256::from(voucher.statement),
    }
    .abi_encode()
}

/// `closeDigest`: answered by [`answer::word`](crate::answer::word).
#[must_use]
pub fn close_digest(channel: ChannelId, amount: Amount) -> Vec<u8> {
    Channels::closeDigestCall { channel: B256::from(channel.0), amount: amount.0 }.abi_encode()
}

/// ERC-20 `approve`.
#[must_use]
pub fn approve(spender: EthAddress, amount: Amount) -> Vec<u8> {
    Token::approveCall { spender: address(spender), amount: U256::from(amount.0) }.abi_encode()
}

/// ERC-20 `allowance`: answered by [`answer::amount`](crate::answer::amount).
#[must_use]
pub fn allowance(owner: EthAddress, spender: EthAddress) -> Vec<u8> {
    Token::allowanceCall { owner: address(owner), spender: address(spender) }.abi_encode()
}

/// ERC-20 `balanceOf`: answered by [`answer::amount`](crate::answer::amount).
#[must_use]
pub fn balance_of(account: EthAddress) -> Vec<u8> {
    Token::balanceOfCall { account: address(account) }.abi_encode()
}

/// ERC-20 `decimals`: answered by [`answer::amount`](crate::answer::amount).
#[must_use]
pub fn decimals() -> Vec<u8> {
    Token::decimalsCall {}.abi_encode()
}

/// ERC-20 `symbol`: answered by [`answer::symbol`](crate::answer::symbol).
#[must_use]
pub fn symbol() -> Vec<u8> {
    Token::symbolCall {}.abi_encode()
}

/// `TestToken.mint`: development chains only.
#[must_use]
pub fn mint(account: EthAddress, amount: Amount) -> Vec<u8> {
    Token::mintCall { account: address(account), amount: U256::from(amount.0) }.abi_encode()
}

fn address(of: EthAddress) -> Address {
    Address::from(of.0)
}

fn signature_bytes(signature: &WalletSignature) -> Bytes {
    Bytes::copy_from_slice(&signature.0)
}

fn key_words(key: &ChannelKey) -> Channels::Key {
    Channels::Key {
        payer: address(key.payer),
        signer: address(key.signer),
        payee: address(key.payee),
        payout: address(key.payout),
        token: address(key.token),
        salt: B256::from(key.salt),
    }
}
