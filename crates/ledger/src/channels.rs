//! Channels, and what was done to them on-chain.

use rusqlite::{Connection, OptionalExtension, Row, named_params};
use sluice_proto::{ChannelId, ChannelKey, Domain, PeerId};

use crate::error::Fault;
use crate::rows::{address, amount, bytes, count, integer, peer};
use crate::{ChannelRow, Ledger, LedgerError, RedemptionRow, Role};

impl Ledger {
    /// Inserts a channel, or updates the one of the same id: its deposit, status and period.
    /// Returns once durable.
    ///
    /// # Errors
    /// [`LedgerError::Range`], [`LedgerError::Write`].
    pub async fn put_channel(&self, channel: ChannelRow) -> Result<(), LedgerError> {
        self.write(move |tx| put(tx, &channel)).await
    }

    /// A channel by its id.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn channel(&self, id: ChannelId) -> Result<Option<ChannelRow>, LedgerError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT * FROM channel WHERE id = ?")?;
            Ok(statement.query_row([id.0], from_row).optional()?)
        })
        .await
    }

    /// The newest channel with a peer that is not closed; `role` is this node's side.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn channel_with(
        &self,
        peer: PeerId,
        role: Role,
    ) -> Result<Option<ChannelRow>, LedgerError> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT * FROM channel
                 WHERE peer = :peer AND role = :role AND status <> 2 ORDER BY n DESC LIMIT 1",
            )?;
            let params = named_params! { ":peer": peer.to_bytes(), ":role": role };
            Ok(statement.query_row(params, from_row).optional()?)
        })
        .await
    }

    /// All channels, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn channels(&self) -> Result<Vec<ChannelRow>, LedgerError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT * FROM channel ORDER BY n")?;
            let channels = statement.query_map([], from_row)?;
            Ok(channels.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Remembers a transaction; the same one again is fine and changes nothing.
    ///
    /// # Errors
    /// [`LedgerError::UnknownChannel`] unless the channel was put before; [`LedgerError::Range`],
    /// [`LedgerError::Write`].
    pub async fn record_redemption(&self, row: RedemptionRow) -> Result<(), LedgerError> {
        self.write(move |tx| record(tx, &row)).await
    }

    /// What was done to a channel, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn redemptions(&self, channel: ChannelId) -> Result<Vec<RedemptionRow>, LedgerError> {
        self.read(move |db| {
            let mut statement =
                db.prepare_cached("SELECT * FROM redemption WHERE channel = ? ORDER BY n")?;
            let rows = statement.query_map([channel.0], redemption)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn put(tx: &Connection, channel: &ChannelRow) -> Result<(), Fault> {
    tx.prepare_cached(
        "INSERT INTO channel (id, chain_id, contract, payer, signer, payee, payout, token, salt,
                              deposit, role, peer, status, period_s)
         VALUES (:id, :chain_id, :contract, :payer, :signer, :payee, :payout, :token, :salt,
                 :deposit, :role, :peer, :status, :period_s)
         ON CONFLICT (id) DO UPDATE SET
             deposit = excluded.deposit, status = excluded.status, period_s = excluded.period_s",
    )?
    .execute(named_params! {
        ":id": channel.id.0,
        ":chain_id": integer("chain_id", channel.domain.chain_id)?,
        ":contract": channel.domain.contract.0,
        ":payer": channel.key.payer.0,
        ":signer": channel.key.signer.0,
        ":payee": channel.key.payee.0,
        ":payout": channel.key.payout.0,
        ":token": channel.key.token.0,
        ":salt": channel.key.salt,
        ":deposit": channel.deposit.to_bytes(),
        ":role": channel.role,
        ":peer": channel.peer.to_bytes(),
        ":status": channel.status,
        ":period_s": channel.period_s,
    })?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<ChannelRow> {
    Ok(ChannelRow {
        id: ChannelId(bytes(row, "id")?),
        key: ChannelKey {
            payer: address(row, "payer")?,
            signer: address(row, "signer")?,
            payee: address(row, "payee")?,
            payout: address(row, "payout")?,
            token: address(row, "token")?,
            salt: bytes(row, "salt")?,
        },
        domain: Domain { chain_id: count(row, "chain_id")?, contract: address(row, "contract")? },
        deposit: amount(row, "deposit")?,
        role: row.get("role")?,
        peer: peer(row, "peer")?,
        status: row.get("status")?,
        period_s: row.get("period_s")?,
    })
}

fn record(tx: &Connection, row: &RedemptionRow) -> Result<(), Fault> {
    let known = tx.prepare_cached("SELECT 1 FROM channel WHERE id = ?")?.exists([row.channel.0])?;
    if !known {
        return Err(LedgerError::UnknownChannel(row.channel).into());
    }
    tx.prepare_cached(
        "INSERT OR IGNORE INTO redemption (channel, kind, amount, tx, gas, at_unix_s)
         VALUES (:channel, :kind, :amount, :tx, :gas, :at)",
    )?
    .execute(named_params! {
        ":channel": row.channel.0,
        ":kind": row.kind,
        ":amount": row.amount.to_bytes(),
        ":tx": row.tx,
        ":gas": integer("gas", row.gas)?,
        ":at": integer("at_unix_s", row.at_unix_s)?,
    })?;
    Ok(())
}

fn redemption(row: &Row<'_>) -> rusqlite::Result<RedemptionRow> {
    Ok(RedemptionRow {
        channel: ChannelId(bytes(row, "channel")?),
        kind: row.get("kind")?,
        amount: amount(row, "amount")?,
        tx: bytes(row, "tx")?,
        gas: count(row, "gas")?,
        at_unix_s: count(row, "at_unix_s")?,
    })
}
