//! What contracts answer to [`call`](crate::call)s. `None` means that the bytes are not such an
//! answer: another contract lives at that address.

use alloy_primitives::U256;
use alloy_sol_types::SolCall;
use sluice_proto::Amount;

use crate::abi::{Channels, Token};

/// The changing part of a channel, as the contract keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelSlot {
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

impl ChannelSlot {
    /// What all views of a channel agree on, at least: it may be counted on when any of those who
    /// tell of it is honest. `None` as soon as one does not know it, or they disagree whether it is
    /// closed.
    #[must_use]
    pub fn sure(views: &[Option<Self>]) -> Option<Self> {
        views.iter().copied().reduce(|a, b| {
            let (a, b) = (a?, b?);
            (a.closed == b.closed).then(|| Self {
                deposit: a.deposit.min(b.deposit),
                redeemed: a.redeemed.max(b.redeemed),
                ..a.with_earlier_close(b)
            })
        })?
    }

    /// What must be acted on if any view of a channel is right: it is there, open and closing soon
    /// if one of them says so.
    #[must_use]
    pub fn urgent(views: &[Option<Self>]) -> Option<Self> {
        views.iter().flatten().copied().reduce(|a, b| Self {
            deposit: a.deposit.max(b.deposit),
            redeemed: a.redeemed.min(b.redeemed),
            closed: a.closed && b.closed,
            ..a.with_earlier_close(b)
        })
    }

    fn with_earlier_close(self, other: Self) -> Self {
        let ends = [self.closing_at_unix_s, other.closing_at_unix_s];
        Self {
            period_s: self.period_s.min(other.period_s),
            closing_at_unix_s: ends.into_iter().flatten().min(),
            ..self
        }
    }
}

/// `closesAt` of a closed channel: the largest 40-bit number.
const CLOSED: u64 = (1 << 40) - 1;

/// Of [`call::channel`](crate::call::channel): `Some(None)` when the channel was never opened.
#[must_use]
pub fn channel(bytes: &[u8]) -> Option<Option<ChannelSlot>> {
    let bytes: &[u8; 4 * 32] = bytes.try_into().ok()?;
    let slot = Channels::channelsCall::abi_decode_returns_validate(bytes).ok()?;
    let period_s = slot.period.to::<u32>();
    if period_s == 0 {
        return Some(None);
    }
    let closes_at = slot.closesAt.to::<u64>();
    Some(Some(ChannelSlot {
        deposit: Amount(slot.deposit.to()),
        redeemed: Amount(slot.redeemed.to()),
        period_s,
        closing_at_unix_s: (closes_at != 0 && closes_at != CLOSED).then_some(closes_at),
        closed: closes_at == CLOSED,
    }))
}

/// Of calls that return one 32-byte word.
#[must_use]
pub fn word(bytes: &[u8]) -> Option<[u8; 32]> {
    bytes.try_into().ok()
}

/// Of calls that return one number; `None` also when it does not fit 128 bits.
#[must_use]
pub fn amount(bytes: &[u8]) -> Option<Amount> {
    word(bytes).and_then(|word| U256::from_be_bytes(word).try_into().ok()).map(Amount)
}

/// Of [`call::symbol`](crate::call::symbol): printable characters only, at most 16, since any token
/// may answer anything.
#[must_use]
pub fn symbol(bytes: &[u8]) -> Option<String> {
    let symbol = Token::symbolCall::abi_decode_returns_validate(bytes).ok()?;
    Some(symbol.chars().filter(char::is_ascii_graphic).take(16).collect())
}
