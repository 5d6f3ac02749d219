//! What the ledger holds, as its callers see it, and how columns become fields.

use bytes::Bytes;
use sluice_proto::wire::pay;
use sluice_proto::{Amount, ChannelId, ChannelKey, Domain, EthAddress, LeaseId, PeerId};

use crate::LedgerError;
use crate::db::{Row, Value};
use crate::error::Fault;

macro_rules! numbered {
    ($name:ident { $($variant:ident = $number:literal),+ $(,)? }) => {
        impl From<$name> for Value {
            fn from(value: $name) -> Self {
                Self::Number(match value { $($name::$variant => $number),+ })
            }
        }

        impl $name {
            /// A column as one of these.
            pub(crate) fn of(row: &Row<'_>, column: &'static str) -> Result<Self, Fault> {
                match row.number(column)? {
                    $($number => Ok(Self::$variant),)+
                    _ => Err(Fault::Column(column)),
                }
            }
        }
    };
}

/// This node's side of an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It signs vouchers.
    Payer,
    /// It earns them.
    Payee,
}

numbered!(Role { Payer = 0, Payee = 1 });

/// Which two roles an edge joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edge {
    /// A tenant pays a provider.
    Tenant,
    /// A provider pays a relay.
    Relay,
}

numbered!(Edge { Tenant = 0, Relay = 1 });

/// A voucher and what it says, as the payee received it or the payer signed it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredVoucher {
    /// The lease, or the reservation.
    pub lease: LeaseId,
    /// Bytes from payer to payee, cumulative; at most 2^63 - 1.
    pub up: u64,
    /// Bytes from payee to payer, cumulative; at most 2^63 - 1.
    pub down: u64,
    /// Cumulative over the channel.
    pub amount: Amount,
    /// The message, byte for byte in its fields.
    pub voucher: pay::Voucher,
    /// Number of the session it was made in.
    pub session: u64,
}

/// One step of a lease's chain of amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// How many vouchers the lease had with this one, from 1; thinned chains have gaps.
    pub seq: u64,
    /// Bytes from payer to payee.
    pub up: u64,
    /// Bytes from payee to payer.
    pub down: u64,
    /// Cumulative over the channel.
    pub amount: Amount,
}

/// A lease or a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Its id.
    pub id: LeaseId,
    /// Which edge it is about.
    pub edge: Edge,
    /// This node's side.
    pub role: Role,
    /// The other side.
    pub peer: PeerId,
    /// The encoded terms, as signed.
    pub terms: Bytes,
    /// The payee's signature over them.
    pub terms_signature: Bytes,
    /// The channel that pays; `None` at price 0 or while starter bytes last.
    pub channel: Option<ChannelId>,
    /// The channel's amount when the lease began.
    pub base: Amount,
    /// Number of its newest session: each is above those before.
    pub sessions: u64,
    /// Whether no session will use it again.
    pub closed: bool,
}

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelStatus {
    /// It pays.
    Open,
    /// The payer started a close.
    Closing,
    /// It is settled.
    Closed,
}

numbered!(ChannelStatus { Open = 0, Closing = 1, Closed = 2 });

/// A channel that this node pays from or is paid from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelRow {
    /// Its id: the hash of `key` in `domain`.
    pub id: ChannelId,
    /// What it binds.
    pub key: ChannelKey,
    /// Its chain and contract.
    pub domain: Domain,
    /// What was paid in.
    pub deposit: Amount,
    /// This node's side.
    pub role: Role,
    /// The other side.
    pub peer: PeerId,
    /// How far it is.
    pub status: ChannelStatus,
    /// Seconds from the payer's start of a close to its refund.
    pub period_s: u32,
}

/// What a transaction did to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RedemptionKind {
    /// Opened it; the amount is the deposit.
    Open,
    /// Added to the deposit; the amount is what was added.
    TopUp,
    /// Redeemed up to the amount, cumulative.
    Redeem,
    /// Closed it at the amount, by the payee.
    Close,
    /// Started a close, by the payer.
    StartClose,
    /// Finished a close, by the payer.
    FinishClose,
}

numbered!(RedemptionKind {
    Open = 0,
    TopUp = 1,
    Redeem = 2,
    Close = 3,
    StartClose = 4,
    FinishClose = 5,
});

/// A transaction on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedemptionRow {
    /// The channel.
    pub channel: ChannelId,
    /// What it did.
    pub kind: RedemptionKind,
    /// How much: see [`RedemptionKind`].
    pub amount: Amount,
    /// The transaction's hash.
    pub tx: [u8; 32],
    /// Gas that it used.
    pub gas: u64,
    /// When it was included, unix seconds.
    pub at_unix_s: u64,
}

/// A count as a column.
pub(crate) fn integer(field: &'static str, value: u64) -> Result<i64, LedgerError> {
    i64::try_from(value).map_err(|_| LedgerError::Range { field })
}

/// A column as a count.
pub(crate) fn count(row: &Row<'_>, column: &'static str) -> Result<u64, Fault> {
    u64::try_from(row.number(column)?).map_err(|_| Fault::Column(column))
}

/// A column as a smaller count.
pub(crate) fn small(row: &Row<'_>, column: &'static str) -> Result<u32, Fault> {
    u32::try_from(row.number(column)?).map_err(|_| Fault::Column(column))
}

/// A column that is true or false.
pub(crate) fn flag(row: &Row<'_>, column: &'static str) -> Result<bool, Fault> {
    Ok(row.number(column)? != 0)
}

/// A column of exactly `N` bytes.
pub(crate) fn bytes<const N: usize>(row: &Row<'_>, column: &'static str) -> Result<[u8; N], Fault> {
    row.blob(column)?.try_into().map_err(|_| Fault::Column(column))
}

pub(crate) fn amount(row: &Row<'_>, column: &'static str) -> Result<Amount, Fault> {
    bytes(row, column).map(|b| Amount(u128::from_be_bytes(b)))
}

pub(crate) fn address(row: &Row<'_>, column: &'static str) -> Result<EthAddress, Fault> {
    bytes(row, column).map(EthAddress)
}

pub(crate) fn channel(row: &Row<'_>, column: &'static str) -> Result<Option<ChannelId>, Fault> {
    let value = row.maybe_blob(column)?;
    value.map(|b| b.try_into().map(ChannelId).map_err(|_| Fault::Column(column))).transpose()
}

pub(crate) fn peer(row: &Row<'_>, column: &'static str) -> Result<PeerId, Fault> {
    PeerId::from_bytes(&row.blob(column)?).map_err(|_| Fault::Column(column))
}
