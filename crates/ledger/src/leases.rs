//! Leases and reservations.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use sluice_proto::wire::{self, pay};
use sluice_proto::{LeaseId, PeerId};

use crate::error::Fault;
use crate::rows::{amount, bytes, channel, count, integer, peer};
use crate::{Edge, LeaseRow, Ledger, LedgerError, Role};

impl Ledger {
    /// Inserts a lease, or updates the one of the same id: its channel, base, sessions and whether
    /// it is closed. Id, edge, role, peer and terms never change. Returns once durable.
    ///
    /// # Errors
    /// [`LedgerError::Terms`] when the terms are not encoded terms; [`LedgerError::Range`];
    /// [`LedgerError::Mismatch`] when a field that never changes did, or a count of sessions fell;
    /// [`LedgerError::Write`].
    pub async fn put_lease(&self, lease: LeaseRow) -> Result<(), LedgerError> {
        self.write(move |tx| put(tx, &lease)).await
    }

    /// A lease by its id.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn lease(&self, id: LeaseId) -> Result<Option<LeaseRow>, LedgerError> {
        self.read(move |db| lease(db, id)).await
    }

    /// The newest lease with a peer that is neither closed nor, at `now_unix_s`, expired.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn lease_with(
        &self,
        peer: PeerId,
        edge: Edge,
        role: Role,
        now_unix_s: u64,
    ) -> Result<Option<LeaseRow>, LedgerError> {
        self.read(move |db| lease_with(db, peer, edge, role, now_unix_s)).await
    }

    /// All leases, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn leases(&self) -> Result<Vec<LeaseRow>, LedgerError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT * FROM lease ORDER BY n")?;
            let leases = statement.query_map([], from_row)?;
            Ok(leases.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn put(tx: &Connection, lease: &LeaseRow) -> Result<(), Fault> {
    let sessions = integer("sessions", lease.sessions)?;
    match self::lease(tx, lease.id)? {
        Some(held) => unchanged(&held, lease)?,
        None => insert(tx, lease)?,
    }
    tx.prepare_cached(
        "UPDATE lease SET channel = :channel, base = :base, sessions = :sessions, closed = :closed
         WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": lease.id.0, ":channel": lease.channel.map(|c| c.0), ":base": lease.base.to_bytes(),
        ":sessions": sessions, ":closed": lease.closed,
    })?;
    Ok(())
}

fn insert(tx: &Connection, lease: &LeaseRow) -> Result<(), Fault> {
    let terms: pay::Terms = wire::decode(lease.terms.clone(), wire::MESSAGE_MAX)
        .map_err(|e| LedgerError::Terms { lease: lease.id, detail: e.to_string() })?;
    tx.prepare_cached(
        "INSERT INTO lease (id, edge, role, peer, terms, terms_signature, expires_unix_s, base,
                            sessions, closed)
         VALUES (:id, :edge, :role, :peer, :terms, :signature, :expires, :base, 0, 0)",
    )?
    .execute(named_params! {
        ":id": lease.id.0, ":edge": lease.edge, ":role": lease.role,
        ":peer": lease.peer.to_bytes(), ":terms": &lease.terms[..],
        ":signature": &lease.terms_signature[..],
        // Terms that expire after 2^63 seconds never do.
        ":expires": i64::try_from(terms.expires_unix_s).unwrap_or(i64::MAX),
        ":base": lease.base.to_bytes(),
    })?;
    Ok(())
}

fn unchanged(held: &LeaseRow, offered: &LeaseRow) -> Result<(), LedgerError> {
    let checks = [
        ("edge", held.edge == offered.edge),
        ("role", held.role == offered.role),
        ("peer", held.peer == offered.peer),
        ("terms", held.terms == offered.terms),
        ("sessions", held.sessions <= offered.sessions),
    ];
    match checks.iter().find(|(_, holds)| !holds) {
        Some((field, _)) => Err(LedgerError::Mismatch { lease: offered.id, field }),
        None => Ok(()),
    }
}

fn lease(db: &Connection, id: LeaseId) -> Result<Option<LeaseRow>, Fault> {
    let found = db
        .prepare_cached("SELECT * FROM lease WHERE id = ?")?
        .query_row([id.0], from_row)
        .optional()?;
    Ok(found)
}

fn lease_with(
    db: &Connection,
    peer: PeerId,
    edge: Edge,
    role: Role,
    now_unix_s: u64,
) -> Result<Option<LeaseRow>, Fault> {
    let now = integer("now", now_unix_s)?;
    let found = db
        .prepare_cached(
            "SELECT * FROM lease
             WHERE peer = :peer AND edge = :edge AND role = :role AND closed = 0
                 AND expires_unix_s > :now
             ORDER BY n DESC LIMIT 1",
        )?
        .query_row(
            named_params! { ":peer": peer.to_bytes(), ":edge": edge, ":role": role, ":now": now },
            from_row,
        )
        .optional()?;
    Ok(found)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<LeaseRow> {
    Ok(LeaseRow {
        id: LeaseId(bytes(row, "id")?),
        edge: row.get("edge")?,
        role: row.get("role")?,
        peer: peer(row, "peer")?,
        terms: Bytes::from(row.get::<_, Vec<u8>>("terms")?),
        terms_signature: Bytes::from(row.get::<_, Vec<u8>>("terms_signature")?),
        channel: channel(row, "channel")?,
        base: amount(row, "base")?,
        sessions: count(row, "sessions")?,
        closed: row.get("closed")?,
    })
}
