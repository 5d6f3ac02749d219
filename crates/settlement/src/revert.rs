//! Why a contract refused.

use alloy_primitives::U256;
use alloy_sol_types::{Panic, Revert, SolError, SolInterface};
use sluice_proto::EthAddress;

use crate::abi::{Channels, Token};

/// Why a contract refused, decoded from what it returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevertReason {
    /// Only the payer may do this.
    #[error("NotPayer: only the channel's payer may do this; use the payer's wallet")]
    NotPayer,
    /// An address of the key is zero.
    #[error(
        "ZeroAddress: signer, payee and payout must be set, and payout must not be the contract"
    )]
    ZeroAddress,
    /// Nothing was deposited.
    #[error("ZeroAmount: the deposit must be above 0")]
    ZeroAmount,
    /// The close period is too short or too long.
    #[error("PeriodOutOfRange: a close period of {0} s is not within 48 hours and 180 days")]
    PeriodOutOfRange(U256),
    /// The deposit does not fit.
    #[error("DepositTooLarge: a deposit of {0} base units does not fit 96 bits")]
    DepositTooLarge(U256),
    /// The token delivered another amount than was sent.
    #[error(
        "DepositMismatch: the token delivered {received} of {expected} base units; tokens that take \
         a fee on transfer cannot be used"
    )]
    DepositMismatch {
        /// Sent.
        expected: U256,
        /// Arrived.
        received: U256,
    },
    /// The id was used before.
    #[error("ChannelExists: this channel was opened before; open one with another salt")]
    ChannelExists,
    /// There is no such open channel.
    #[error("ChannelNotOpen: the channel was never opened, or is closed")]
    ChannelNotOpen,
    /// The payer has started to close.
    #[error("ChannelClosing: the payer has started to close this channel")]
    ChannelClosing,
    /// The voucher brings nothing new.
    #[error("AmountNotHigher: the voucher's amount {amount} is not above the {redeemed} redeemed")]
    AmountNotHigher {
        /// The voucher's.
        amount: U256,
        /// Already paid.
        redeemed: U256,
    },
    /// The voucher is not covered.
    #[error("AmountOverDeposit: the voucher's amount {amount} is above the deposit of {deposit}")]
    AmountOverDeposit {
        /// The voucher's.
        amount: U256,
        /// The channel's.
        deposit: U256,
    },
    /// A close below what was redeemed.
    #[error("AmountBelowRedeemed: cannot close at {amount}, {redeemed} was redeemed already")]
    AmountBelowRedeemed {
        /// Asked for.
        amount: U256,
        /// Already paid.
        redeemed: U256,
    },
    /// The voucher is not by the channel's signer.
    #[error(
        "BadVoucherSignature: the voucher is not signed by the channel's signer for this chain"
    )]
    BadVoucherSignature,
    /// The payee did not consent.
    #[error("BadPayeeSignature: the caller is not the payee and brings no consent of the payee")]
    BadPayeeSignature,
    /// All of many vouchers were refused.
    #[error("NothingRedeemed: each of the vouchers was refused")]
    NothingRedeemed,
    /// The contract has nothing of the token any more.
    #[error(
        "TokenGone: the token took all of the contract's balance away; try again if it comes back"
    )]
    TokenGone,
    /// No close was started.
    #[error("NotClosing: start the close first")]
    NotClosing,
    /// The period has not passed.
    #[error("TooEarly: the close can be finished from Unix second {0}")]
    TooEarly(U256),
    /// The payer has too few tokens.
    #[error("ERC20InsufficientBalance: {account} has {balance} of {needed} token base units")]
    TokenBalance {
        /// Whose.
        account: EthAddress,
        /// Has.
        balance: U256,
        /// Needs.
        needed: U256,
    },
    /// The contract was not approved to take so much.
    #[error("ERC20InsufficientAllowance: {allowance} of {needed} token base units are approved")]
    TokenAllowance {
        /// Approved.
        allowance: U256,
        /// Needed.
        needed: U256,
    },
    /// The token refused in its own way.
    #[error("SafeERC20FailedOperation: the token {0} refused the transfer")]
    Token(EthAddress),
    /// A token called back into the contract.
    #[error("ReentrancyGuardReentrantCall: the token called back into the contract")]
    Reentrant,
    /// A text.
    #[error("{0:?}")]
    Text(String),
    /// Solidity's own panic.
    #[error("Panic({0})")]
    Panic(U256),
    /// Nothing that we know.
    #[error("no reason was given (0x{})", hex::encode(.0))]
    Unknown(Vec<u8>),
}

/// Longest part of an unknown reason, or of a text, that is kept.
const REASON_BYTES_MAX: usize = 200;

impl RevertReason {
    /// Decodes what a call returned when it failed.
    #[must_use]
    pub fn decode(data: &[u8]) -> Self {
        if let Ok(error) = Channels::ChannelsErrors::abi_decode_validate(data) {
            return error.into();
        }
        if let Ok(error) = Token::TokenErrors::abi_decode_validate(data) {
            return error.into();
        }
        if let Ok(Revert { reason }) = Revert::abi_decode_validate(data) {
            return Self::Text(reason.chars().take(REASON_BYTES_MAX).collect());
        }
        if let Ok(Panic { code }) = Panic::abi_decode_validate(data) {
            return Self::Panic(code);
        }
        Self::Unknown(data.iter().copied().take(REASON_BYTES_MAX).collect())
    }
}

impl From<Channels::ChannelsErrors> for RevertReason {
    fn from(error: Channels::ChannelsErrors) -> Self {
        use Channels::ChannelsErrors as E;
        match error {
            E::NotPayer(_) => Self::NotPayer,
            E::ZeroAddress(_) => Self::ZeroAddress,
            E::ZeroAmount(_) => Self::ZeroAmount,
            E::PeriodOutOfRange(e) => Self::PeriodOutOfRange(e.period),
            E::DepositTooLarge(e) => Self::DepositTooLarge(e.deposit),
            E::DepositMismatch(e) => {
                Self::DepositMismatch { expected: e.expected, received: e.received }
            }
            E::ChannelExists(_) => Self::ChannelExists,
            E::ChannelNotOpen(_) => Self::ChannelNotOpen,
            E::ChannelClosing(_) => Self::ChannelClosing,
            E::AmountNotHigher(e) => {
                Self::AmountNotHigher { amount: e.amount, redeemed: e.redeemed }
            }
            E::AmountOverDeposit(e) => {
                Self::AmountOverDeposit { amount: e.amount, deposit: e.deposit }
            }
            E::AmountBelowRedeemed(e) => {
                Self::AmountBelowRedeemed { amount: e.amount, redeemed: e.redeemed }
            }
            E::BadVoucherSignature(_) => Self::BadVoucherSignature,
            E::BadPayeeSignature(_) => Self::BadPayeeSignature,
            E::NothingRedeemed(_) => Self::NothingRedeemed,
            E::TokenGone(_) => Self::TokenGone,
            E::NotClosing(_) => Self::NotClosing,
            E::TooEarly(e) => Self::TooEarly(e.closesAt),
            E::SafeERC20FailedOperation(e) => Self::Token(EthAddress(e.token.into())),
            E::ReentrancyGuardReentrantCall(_) => Self::Reentrant,
        }
    }
}

impl From<Token::TokenErrors> for RevertReason {
    fn from(error: Token::TokenErrors) -> Self {
        match error {
            Token::TokenErrors::ERC20InsufficientBalance(e) => Self::TokenBalance {
                account: EthAddress(e.sender.into()),
                balance: e.balance,
                needed: e.needed,
            },
            Token::TokenErrors::ERC20InsufficientAllowance(e) => {
                Self::TokenAllowance { allowance: e.allowance, needed: e.needed }
            }
        }
    }
}
