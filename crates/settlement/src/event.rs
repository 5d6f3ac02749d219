//! What a transaction did to channels.

use alloy_primitives::{B256, U256};
use alloy_sol_types::SolEvent;
use sluice_proto::{Amount, ChannelId, EthAddress};

use crate::abi::Channels;

/// One event of `Channels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelEvent {
    /// A channel was opened.
    Opened {
        /// Which.
        channel: ChannelId,
        /// By whom.
        payer: EthAddress,
        /// In whose favour.
        payee: EthAddress,
        /// With how much.
        deposit: Amount,
    },
    /// A deposit grew.
    ToppedUp {
        /// Which channel's.
        channel: ChannelId,
        /// To how much.
        deposit: Amount,
    },
    /// A voucher was paid out.
    Redeemed {
        /// Of which channel.
        channel: ChannelId,
        /// The new cumulative amount.
        redeemed: Amount,
        /// What went to the payout now.
        paid: Amount,
    },
    /// A voucher among many was skipped.
    Refused {
        /// Of which channel.
        channel: ChannelId,
        /// Why.
        reason: Refusal,
    },
    /// The payer started to close.
    CloseStarted {
        /// Which channel.
        channel: ChannelId,
        /// From when the payer may be refunded, Unix seconds.
        closes_at_unix_s: u64,
    },
    /// A channel was closed for good.
    Closed {
        /// Which.
        channel: ChannelId,
        /// What the payout got in all.
        redeemed: Amount,
        /// What the payer got back.
        refunded: Amount,
    },
}

/// Why a voucher among many paid nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The channel was never opened, or is closed.
    #[error("the channel is not open")]
    NotOpen,
    /// The amount is not above what was redeemed already.
    #[error("its amount is not above what was redeemed already")]
    NotHigher,
    /// The amount is above the deposit.
    #[error("its amount is above the channel's deposit")]
    OverDeposit,
    /// The signature is not the channel's signer's.
    #[error("its signature is not by the channel's signer")]
    BadSignature,
    /// The contract has nothing of the token any more.
    #[error("the token took all of the contract's balance away")]
    TokenGone,
}

impl ChannelEvent {
    /// Decodes one log of the `Channels` contract; `None` when it is no event of channels. The
    /// caller has checked that the log's address is that contract.
    #[must_use]
    pub fn decode(topics: &[[u8; 32]], data: &[u8]) -> Option<Self> {
        let first = B256::from(*topics.first()?);
        let topics = || topics.iter().map(B256::from);
        Some(match first {
            Channels::Opened::SIGNATURE_HASH => {
                let e = Channels::Opened::decode_raw_log_validate(topics(), data).ok()?;
                Self::Opened {
                    channel: ChannelId(e.channel.0),
                    payer: EthAddress(e.payer.into()),
                    payee: EthAddress(e.payee.into()),
                    deposit: amount(e.deposit)?,
                }
            }
            Channels::ToppedUp::SIGNATURE_HASH => {
                let e = Channels::ToppedUp::decode_raw_log_validate(topics(), data).ok()?;
                Self::ToppedUp { channel: ChannelId(e.channel.0), deposit: amount(e.deposit)? }
            }
            Channels::Redeemed::SIGNATURE_HASH => {
                let e = Channels::Redeemed::decode_raw_log_validate(topics(), data).ok()?;
                Self::Redeemed {
                    channel: ChannelId(e.channel.0),
                    redeemed: amount(e.redeemed)?,
                    paid: amount(e.paid)?,
                }
            }
            Channels::Refused::SIGNATURE_HASH => {
                let e = Channels::Refused::decode_raw_log_validate(topics(), data).ok()?;
                Self::Refused { channel: ChannelId(e.channel.0), reason: refusal(e.reason)? }
            }
            Channels::CloseStarted::SIGNATURE_HASH => {
                let e = Channels::CloseStarted::decode_raw_log_validate(topics(), data).ok()?;
                Self::CloseStarted {
                    channel: ChannelId(e.channel.0),
                    closes_at_unix_s: e.closesAt.try_into().ok()?,
                }
            }
            Channels::Closed::SIGNATURE_HASH => {
                let e = Channels::Closed::decode_raw_log_validate(topics(), data).ok()?;
                Self::Closed {
                    channel: ChannelId(e.channel.0),
                    redeemed: amount(e.redeemed)?,
                    refunded: amount(e.refunded)?,
                }
            }
            _ => return None,
        })
    }
}

/// In the order of the contract's enum; 0 is "none" and never emitted.
fn refusal(reason: u8) -> Option<Refusal> {
    Some(match reason {
        1 => Refusal::NotOpen,
        2 => Refusal::NotHigher,
        3 => Refusal::OverDeposit,
        4 => Refusal::BadSignature,
        5 => Refusal::TokenGone,
        _ => return None,
    })
}

fn amount(value: U256) -> Option<Amount> {
    value.try_into().ok().map(Amount)
}
