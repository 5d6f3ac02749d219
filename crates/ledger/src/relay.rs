//! What a node must remember about strangers: starter bytes that it gave, and when they knocked.

use sluice_proto::PeerId;

use crate::db::Db;
use crate::error::Fault;
use crate::rows::{count, integer};
use crate::{Ledger, LedgerError};

/// Most initiators whose newest knock is remembered; the earliest are forgotten first.
pub const KNOCKS_MAX: u32 = 65_536;

/// Starter bytes that were given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Starter {
    /// To this node, ever.
    pub to_peer: u64,
    /// To its /24 or /48, ever.
    pub to_prefix: u64,
    /// To all, in this month.
    pub in_month: u64,
}

impl Ledger {
    /// How many starter bytes were given to a node, to its `prefix` (as the relay writes a /24 or
    /// /48), and in `month` (as the relay numbers months) to all.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn starter_given(
        &self,
        peer: PeerId,
        prefix: String,
        month: u32,
    ) -> Result<Starter, LedgerError> {
        self.read(move |db| starter(db, peer, &prefix, month)).await
    }

    /// Adds `bytes` to what was given to a node of this prefix in this month. Returns once durable.
    ///
    /// # Errors
    /// [`LedgerError::Range`], [`LedgerError::Write`].
    pub async fn record_starter(
        &self,
        peer: PeerId,
        prefix: String,
        month: u32,
        bytes: u64,
    ) -> Result<(), LedgerError> {
        self.write(move |tx| give(tx, peer, &prefix, month, bytes)).await
    }

    /// The timestamp, in nanoseconds, that an initiator's next rendezvous must exceed.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn knock_timestamp(&self, peer: PeerId) -> Result<u64, LedgerError> {
        self.read(move |db| last_knock(db, peer)).await
    }

    /// Remembers an initiator's newest timestamp, in nanoseconds. Whoever calls refuses timestamps
    /// far in the future first: when more than [`KNOCKS_MAX`] initiators are known, the earliest is
    /// forgotten, and from then on its timestamp is what newcomers must exceed.
    ///
    /// # Errors
    /// [`LedgerError::StaleKnock`] when it is not later than [`Self::knock_timestamp`];
    /// [`LedgerError::Range`], [`LedgerError::Write`].
    pub async fn record_knock(&self, peer: PeerId, timestamp_ns: u64) -> Result<(), LedgerError> {
        self.write(move |tx| knock(tx, peer, timestamp_ns, KNOCKS_MAX)).await
    }
}

fn starter(db: &Db<'_>, peer: PeerId, prefix: &str, month: u32) -> Result<Starter, Fault> {
    let sql = "SELECT
             (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM starter WHERE peer = $1)
                 AS to_peer,
             (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM starter WHERE prefix = $2)
                 AS to_prefix,
             (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM starter WHERE month = $3)
                 AS in_month";
    let values = [peer.to_bytes().into(), prefix.into(), month.into()];
    let given = db.row(sql, &values, |row| {
        Ok(Starter {
            to_peer: count(row, "to_peer")?,
            to_prefix: count(row, "to_prefix")?,
            in_month: count(row, "in_month")?,
        })
    })?;
    Ok(given.unwrap_or_default())
}

fn give(db: &Db<'_>, peer: PeerId, prefix: &str, month: u32, bytes: u64) -> Result<(), Fault> {
    let given = starter(db, peer, prefix, month)?;
    // No sum may leave 63 bits, or SQLite could no longer add it up.
    for sum in [given.to_peer, given.to_prefix, given.in_month] {
        integer("bytes", sum.saturating_add(bytes))?;
    }
    db.execute(
        "INSERT INTO starter (peer, prefix, month, bytes) VALUES ($1, $2, $3, $4)
         ON CONFLICT (peer, prefix, month) DO UPDATE SET bytes = starter.bytes + excluded.bytes",
        &[peer.to_bytes().into(), prefix.into(), month.into(), integer("bytes", bytes)?.into()],
    )?;
    Ok(())
}

fn last_knock(db: &Db<'_>, peer: PeerId) -> Result<u64, Fault> {
    let sql = "SELECT timestamp_ns FROM knock WHERE peer = $1";
    let known = db.row(sql, &[peer.to_bytes().into()], |row| count(row, "timestamp_ns"))?;
    if let Some(timestamp) = known {
        return Ok(timestamp);
    }
    let sql = "SELECT value FROM counter WHERE name = 'knock_floor'";
    Ok(db.row(sql, &[], |row| count(row, "value"))?.unwrap_or_default())
}

fn knock(db: &Db<'_>, peer: PeerId, timestamp_ns: u64, known_max: u32) -> Result<(), Fault> {
    let timestamp = integer("timestamp_ns", timestamp_ns)?;
    if timestamp_ns <= last_knock(db, peer)? {
        return Err(LedgerError::StaleKnock.into());
    }
    // Asked again, since another process may have been told of the same one meanwhile.
    let changed = db.execute(
        "INSERT INTO knock (peer, timestamp_ns) VALUES ($1, $2)
         ON CONFLICT (peer) DO UPDATE SET timestamp_ns = excluded.timestamp_ns
         WHERE knock.timestamp_ns < excluded.timestamp_ns",
        &[peer.to_bytes().into(), timestamp.into()],
    )?;
    if changed == 0 {
        return Err(LedgerError::StaleKnock.into());
    }
    forget(db, known_max)
}

/// Forgets the earliest initiator when there are more than `known_max`, raising the floor to it.
fn forget(db: &Db<'_>, known_max: u32) -> Result<(), Fault> {
    let known = db.row("SELECT count(*) AS known FROM knock", &[], |row| row.number("known"))?;
    if known.unwrap_or_default() > i64::from(known_max) {
        db.execute(
            "UPDATE counter SET value = (SELECT min(timestamp_ns) FROM knock)
             WHERE name = 'knock_floor' AND value < (SELECT min(timestamp_ns) FROM knock)",
            &[],
        )?;
        db.execute(
            "DELETE FROM knock
             WHERE peer = (SELECT peer FROM knock ORDER BY timestamp_ns LIMIT 1)",
            &[],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn peer(seed: u8) -> PeerId {
        sluice_proto::Keypair::ed25519_from_bytes([seed; 32]).expect("a key").public().to_peer_id()
    }

    #[test]
    fn an_initiator_that_was_forgotten_cannot_be_replayed() {
        let connection = Connection::open_in_memory().expect("opens");
        connection.execute_batch(include_str!("schema/v1.sql")).expect("makes the tables");
        let db = Db::Sqlite(&connection);
        for (seed, timestamp) in [(1, 10), (2, 20), (3, 30)] {
            knock(&db, peer(seed), timestamp, 2).expect("is later");
        }
        assert_eq!(last_knock(&db, peer(1)).expect("reads"), 10, "the floor is the forgotten one");
        assert!(matches!(knock(&db, peer(1), 10, 2), Err(Fault::Refused(LedgerError::StaleKnock))));
        knock(&db, peer(1), 25, 2).expect("is later than the floor");
        assert_eq!(last_knock(&db, peer(9)).expect("reads"), 20);
    }
}
