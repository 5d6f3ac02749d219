//! Leases and reservations.

use bytes::Bytes;
use sluice_proto::wire::{self, pay};
use sluice_proto::{ChannelId, LeaseId, PeerId};

use crate::db::{Db, Row};
use crate::error::Fault;
use crate::fence::{self, Guarded};
use crate::rows::{amount, bytes, channel, count, flag, integer, peer};
use crate::{Edge, LeaseRow, Ledger, LedgerError, Role, vouchers};

impl Ledger {
    /// Inserts a lease, or updates the one of the same id: its channel, base, sessions and whether
    /// it is closed. Id, edge, role, peer and terms never change, and at a payee neither do channel
    /// and base once there is a channel. Returns once durable.
    ///
    /// A channel pays one lease of a payee at a time, and each begins at what was earned on the
    /// channel before or higher, whoever bound it: vouchers are cumulative, so that what two leases
    /// count from one amount is paid once.
    ///
    /// # Errors
    /// [`LedgerError::ChannelInUse`] while the channel pays another lease that is not closed, see
    /// [`Self::end_leases_on`]; [`LedgerError::BaseTooLow`]; [`LedgerError::Terms`] when the terms
    /// are not encoded terms; [`LedgerError::Range`]; [`LedgerError::Mismatch`] when a field that
    /// never changes did, or the number of the newest session fell; [`LedgerError::Write`].
    pub async fn put_lease(&self, lease: LeaseRow) -> Result<(), LedgerError> {
        self.write(move |tx| put(tx, &lease)).await
    }

    /// Payee: closes what else a channel pays, before `peer` begins `lease` on it: its own leases,
    /// and those of others that expired by `now_unix_s`. Returns once durable.
    ///
    /// # Errors
    /// [`LedgerError::Owned`] while another process of the fleet has the channel;
    /// [`LedgerError::Range`], [`LedgerError::Write`].
    pub async fn end_leases_on(
        &self,
        channel: ChannelId,
        peer: PeerId,
        lease: LeaseId,
        now_unix_s: u64,
    ) -> Result<(), LedgerError> {
        self.write(move |tx| end_on(tx, channel, peer, lease, now_unix_s)).await
    }

    /// Closes a lease: no session will use it again. One that is not known is left alone. Returns
    /// once durable.
    ///
    /// # Errors
    /// [`LedgerError::Write`].
    pub async fn end_lease(&self, id: LeaseId) -> Result<(), LedgerError> {
        self.write(move |tx| {
            tx.execute("UPDATE lease SET closed = 1 WHERE id = $1", &[id.0.into()])?;
            Ok(())
        })
        .await
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

    /// Whether there ever was a lease with a peer.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn knows(&self, peer: PeerId, edge: Edge, role: Role) -> Result<bool, LedgerError> {
        self.read(move |db| {
            let sql = "SELECT n FROM lease WHERE peer = $1 AND edge = $2 AND role = $3 LIMIT 1";
            let values = [peer.to_bytes().into(), edge.into(), role.into()];
            Ok(db.row(sql, &values, |row| row.number("n"))?.is_some())
        })
        .await
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
    let held = self::lease(db, lease.id)?;
    if let Some(held) = &held {
        unchanged(held, lease)?;
    }
    if let (Role::Payee, Some(channel), false) = (lease.role, lease.channel, lease.closed) {
        is_alone(db, channel, lease.id)?;
        if held.as_ref().is_none_or(|held| held.channel.is_none()) {
            begins_high_enough(db, channel, lease)?;
        }
    }
    if held.is_none() {
        insert(db, lease)?;
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

fn is_alone(db: &Db<'_>, channel: ChannelId, lease: LeaseId) -> Result<(), Fault> {
    let other = db.row(
        "SELECT id FROM lease
         WHERE channel = $1 AND role = $2 AND id <> $3 AND closed = 0 LIMIT 1",
        &[channel.0.into(), Role::Payee.into(), lease.0.into()],
        |row| bytes(row, "id").map(LeaseId),
    )?;
    match other {
        Some(lease) => Err(LedgerError::ChannelInUse { channel, lease }.into()),
        None => Ok(()),
    }
}

fn begins_high_enough(db: &Db<'_>, channel: ChannelId, lease: &LeaseRow) -> Result<(), Fault> {
    let earned = vouchers::earned_before(db, channel, lease.id)?;
    match earned.filter(|earned| lease.base < *earned) {
        Some(earned) => {
            let (lease, base) = (lease.id, lease.base);
            Err(LedgerError::BaseTooLow { lease, base, earned }.into())
        }
        None => Ok(()),
    }
}

fn end_on(
    db: &Db<'_>,
    channel: ChannelId,
    peer: PeerId,
    lease: LeaseId,
    now_unix_s: u64,
) -> Result<(), Fault> {
    fence::take(db, Guarded::Channel(channel))?;
    db.execute(
        "UPDATE lease SET closed = 1
         WHERE channel = $1 AND role = $2 AND id <> $3 AND closed = 0
             AND (peer = $4 OR expires_unix_s <= $5)",
        &[
            channel.0.into(),
            Role::Payee.into(),
            lease.0.into(),
            peer.to_bytes().into(),
            integer("now", now_unix_s)?.into(),
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
    let is_bound = held.role == Role::Payee && held.channel.is_some();
    let checks = [
        ("edge", held.edge == offered.edge),
        ("role", held.role == offered.role),
        ("peer", held.peer == offered.peer),
        ("terms", held.terms == offered.terms),
        ("sessions", held.sessions <= offered.sessions),
        ("channel", !is_bound || held.channel == offered.channel),
        ("base", !is_bound || held.base == offered.base),
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
