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
    /// The channel that it is about.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        match self {
            Self::Opened { channel, .. }
            | Self::ToppedUp { channel, .. }
            | Self::Redeemed { channel, .. }
            | Self::Refused { channel, .. }
            | Self::CloseStarted { channel, .. }
            | Self::Closed { channel, .. } => *channel,
        }
    }

    /// Decodes one log of the `Channels` contract; `None` when it is no event of channels. The
    /// caller has checked that the log's address is that contract.
    #[must_use]
    pub fn decode(topics: &[[u8; 32]], data: &[u8]) -> Option<Self> {
        let first = B256::from(*topics.first()?);
        let topics: Vec<B256> = topics.iter().map(B256::from).collect();
        Some(match first {
            Channels::Opened::SIGNATURE_HASH => {
                let e = whole::<Channels::Opened>(&topics, data)?;
                Self::Opened {
                    channel: ChannelId(e.channel.0),
                    payer: EthAddress(e.payer.into()),
                    payee: EthAddress(e.payee.into()),
                    deposit: amount(e.deposit)?,
                }
            }
            Channels::ToppedUp::SIGNATURE_HASH => {
                let e = whole::<Channels::ToppedUp>(&topics, data)?;
                Self::ToppedUp { channel: ChannelId(e.channel.0), deposit: amount(e.deposit)? }
            }
            Channels::Redeemed::SIGNATURE_HASH => {
                let e = whole::<Channels::Redeemed>(&topics, data)?;
                Self::Redeemed {
                    channel: ChannelId(e.channel.0),
                    redeemed: amount(e.redeemed)?,
                    paid: amount(e.paid)?,
                }
            }
            Channels::Refused::SIGNATURE_HASH => {
                let e = whole::<Channels::Refused>(&topics, data)?;
                Self::Refused { channel: ChannelId(e.channel.0), reason: refusal(e.reason)? }
            }
            Channels::CloseStarted::SIGNATURE_HASH => {
                let e = whole::<Channels::CloseStarted>(&topics, data)?;
                Self::CloseStarted {
                    channel: ChannelId(e.channel.0),
                    closes_at_unix_s: e.closesAt.try_into().ok()?,
                }
            }
            Channels::Closed::SIGNATURE_HASH => {
                let e = whole::<Channels::Closed>(&topics, data)?;
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

/// An event of this kind, with nothing behind it.
fn whole<E: SolEvent>(topics: &[B256], data: &[u8]) -> Option<E> {
    let event = E::decode_raw_log_validate(topics, data).ok()?;
    (event.encode_data() == data).then_some(event)
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
