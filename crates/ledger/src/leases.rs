//! Leases and reservations.

use bytes::Bytes;
use sluice_proto::wire::{self, pay};
use sluice_proto::{LeaseId, PeerId};

use crate::db::{Db, Row};
use crate::error::Fault;
use crate::fence::{self, Guarded};
use crate::rows::{amount, bytes, channel, count, flag, integer, peer};
use crate::{Edge, LeaseRow, Ledger, LedgerError, Role};

impl Ledger {
    /// Inserts a lease, or updates the one of the same id: its channel, base, sessions and whether
    /// it is closed. Id, edge, role, peer and terms never change. Returns once durable.
    ///
    /// # Errors
    /// [`LedgerError::Terms`] when the terms are not encoded terms; [`LedgerError::Range`];
    /// [`LedgerError::Mismatch`] when a field that never changes did, or the number of the newest session fell;
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
        self.read(|db| db.rows("SELECT * FROM lease ORDER BY n", &[], from_row)).await
    }
}

fn put(db: &Db<'_>, lease: &LeaseRow) -> Result<(), Fault> {
    let sessions = integer("sessions", lease.sessions)?;
    fence::take(db, Guarded::of(lease.channel, lease.id))?;
    match self::lease(db, lease.id)? {
        Some(held) => unchanged(&held, lease)?,
        None => insert(db, lease)?,
    }
    db.execute(
        "UPDATE lease SET channel = $1, base = $2, sessions = $3, closed = $4 WHERE id = $5",
        &[
            lease.channel.map(|c| c.0).into(),
            lease.base.to_bytes().into(),
            sessions.into(),
            lease.closed.into(),
            lease.id.0.into(),
        ],
    )?;
    Ok(())
}

fn insert(db: &Db<'_>, lease: &LeaseRow) -> Result<(), Fault> {
    let terms: pay::Terms = wire::decode(lease.terms.clone(), wire::MESSAGE_MAX)
        .map_err(|e| LedgerError::Terms { lease: lease.id, detail: e.to_string() })?;
    db.execute(
        "INSERT INTO lease (id, edge, role, peer, terms, terms_signature, expires_unix_s, base,
                            sessions, closed)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0)",
        &[
            lease.id.0.into(),
            lease.edge.into(),
            lease.role.into(),
            lease.peer.to_bytes().into(),
            lease.terms[..].into(),
            lease.terms_signature[..].into(),
            // Terms that expire after 2^63 seconds never do.
            i64::try_from(terms.expires_unix_s).unwrap_or(i64::MAX).into(),
            lease.base.to_bytes().into(),
        ],
    )?;
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

fn lease(db: &Db<'_>, id: LeaseId) -> Result<Option<LeaseRow>, Fault> {
    db.row("SELECT * FROM lease WHERE id = $1", &[id.0.into()], from_row)
}

fn lease_with(
    db: &Db<'_>,
    peer: PeerId,
    edge: Edge,
    role: Role,
    now_unix_s: u64,
) -> Result<Option<LeaseRow>, Fault> {
    let now = integer("now", now_unix_s)?;
    // A fleet's members have leases of their own with one peer.
    let sql = match db {
        Db::Sqlite(_) => {
            "SELECT * FROM lease
             WHERE peer = $1 AND edge = $2 AND role = $3 AND closed = 0 AND expires_unix_s > $4
             ORDER BY n DESC LIMIT 1"
        }
        Db::Postgres(..) => {
            "SELECT * FROM lease
             WHERE peer = $1 AND edge = $2 AND role = $3 AND closed = 0 AND expires_unix_s > $4
                 AND member = current_setting('sluice.member')
             ORDER BY n DESC LIMIT 1"
        }
    };
    db.row(sql, &[peer.to_bytes().into(), edge.into(), role.into(), now.into()], from_row)
}

fn from_row(row: &Row<'_>) -> Result<LeaseRow, Fault> {
    Ok(LeaseRow {
        id: LeaseId(bytes(row, "id")?),
        edge: Edge::of(row, "edge")?,
        role: Role::of(row, "role")?,
        peer: peer(row, "peer")?,
        terms: Bytes::from(row.blob("terms")?),
        terms_signature: Bytes::from(row.blob("terms_signature")?),
        channel: channel(row, "channel")?,
        base: amount(row, "base")?,
        sessions: count(row, "sessions")?,
        closed: flag(row, "closed")?,
    })
}
