//! Channels, and what was done to them on-chain.

use sluice_proto::{ChannelId, ChannelKey, Domain, PeerId};

use crate::db::{Db, Row};
use crate::error::Fault;
use crate::rows::{address, amount, bytes, count, integer, peer, small};
use crate::{ChannelRow, ChannelStatus, Ledger, LedgerError, RedemptionKind, RedemptionRow, Role};

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
        self.read(move |db| db.row("SELECT * FROM channel WHERE id = $1", &[id.0.into()], from_row))
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
            db.row(
                "SELECT * FROM channel
                 WHERE peer = $1 AND role = $2 AND status <> 2 ORDER BY n DESC LIMIT 1",
                &[peer.to_bytes().into(), role.into()],
                from_row,
            )
        })
        .await
    }

    /// All channels, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn channels(&self) -> Result<Vec<ChannelRow>, LedgerError> {
        self.read(|db| db.rows("SELECT * FROM channel ORDER BY n", &[], from_row)).await
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
            let sql = "SELECT * FROM redemption WHERE channel = $1 ORDER BY n";
            db.rows(sql, &[channel.0.into()], redemption)
        })
        .await
    }
}

fn put(db: &Db<'_>, channel: &ChannelRow) -> Result<(), Fault> {
    db.execute(
        "INSERT INTO channel (id, chain_id, contract, payer, signer, payee, payout, token, salt,
                              deposit, role, peer, status, period_s)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (id) DO UPDATE SET
             deposit = excluded.deposit, status = excluded.status, period_s = excluded.period_s",
        &[
            channel.id.0.into(),
            integer("chain_id", channel.domain.chain_id)?.into(),
            channel.domain.contract.0.into(),
            channel.key.payer.0.into(),
            channel.key.signer.0.into(),
            channel.key.payee.0.into(),
            channel.key.payout.0.into(),
            channel.key.token.0.into(),
            channel.key.salt.into(),
            channel.deposit.to_bytes().into(),
            channel.role.into(),
            channel.peer.to_bytes().into(),
            channel.status.into(),
            channel.period_s.into(),
        ],
    )?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> Result<ChannelRow, Fault> {
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
        role: Role::of(row, "role")?,
        peer: peer(row, "peer")?,
        status: ChannelStatus::of(row, "status")?,
        period_s: small(row, "period_s")?,
    })
}

fn record(db: &Db<'_>, row: &RedemptionRow) -> Result<(), Fault> {
    let known =
        db.row("SELECT n FROM channel WHERE id = $1", &[row.channel.0.into()], |found| {
            found.number("n")
        })?;
    if known.is_none() {
        return Err(LedgerError::UnknownChannel(row.channel).into());
    }
    db.execute(
        "INSERT INTO redemption (channel, kind, amount, tx, gas, at_unix_s)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (channel, tx, kind) DO NOTHING",
        &[
            row.channel.0.into(),
            row.kind.into(),
            row.amount.to_bytes().into(),
            row.tx.into(),
            integer("gas", row.gas)?.into(),
            integer("at_unix_s", row.at_unix_s)?.into(),
        ],
    )?;
    Ok(())
}

fn redemption(row: &Row<'_>) -> Result<RedemptionRow, Fault> {
    Ok(RedemptionRow {
        channel: ChannelId(bytes(row, "channel")?),
        kind: RedemptionKind::of(row, "kind")?,
        amount: amount(row, "amount")?,
        tx: bytes(row, "tx")?,
        gas: count(row, "gas")?,
        at_unix_s: count(row, "at_unix_s")?,
    })
}
