//! What a node must remember about strangers: starter bytes that it gave, and when they knocked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sluice_proto::PeerId;

use crate::db::Db;
use crate::error::Fault;
use crate::rows::{count, integer};
use crate::{Ledger, LedgerError};

/// Most initiators whose newest knock is remembered; the earliest are forgotten first.
pub const KNOCKS_MAX: u32 = 65_536;

/// Most starter bytes in all.
const SUM_MAX: u64 = i64::MAX.unsigned_abs();

/// Starter bytes that were given or promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Starter {
    /// To this node, ever.
    pub to_peer: u64,
    /// To its /24 or /48, ever.
    pub to_prefix: u64,
    /// To all, in this month.
    pub in_month: u64,
}

/// Starter bytes that one account may still use. They count as given to its node until they are
/// returned, so that no two accounts, of one process or of a fleet, are promised the same ones.
///
/// A promise is a row of `starter` whose month is below 0: a number of its process's and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StarterPromise {
    peer: PeerId,
    /// Distinct in the process.
    row: i64,
    /// How many bytes.
    pub bytes: u64,
}

/// How many starter bytes a relay gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StarterMost {
    /// To one node, and to one prefix, ever.
    pub to_one: u64,
    /// To all, in a month.
    pub in_month: u64,
}

impl StarterMost {
    /// What is left of them.
    #[must_use]
    pub fn left(&self, given: &Starter) -> u64 {
        // No sum may leave 63 bits, or SQLite could no longer add it up.
        let [to_one, in_month] = [self.to_one, self.in_month].map(|most| most.min(SUM_MAX));
        let of_one = to_one.saturating_sub(given.to_peer.max(given.to_prefix));
        of_one.min(in_month.saturating_sub(given.in_month))
    }
}

impl Ledger {
    /// How many starter bytes were given or promised to a node, to its `prefix` (as the relay writes
    /// a /24 or /48), and in `month` (as the relay numbers months) to all.
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

    /// Promises a node of this prefix all starter bytes that are left for it. `before` is a promise to
    /// it that this one replaces, and how much of that is not used. Returns once durable.
    ///
    /// # Errors
    /// [`LedgerError::Range`], [`LedgerError::Write`], [`LedgerError::Server`].
    pub async fn promise_starter(
        &self,
        peer: PeerId,
        prefix: String,
        month: u32,
        most: StarterMost,
        before: Option<(StarterPromise, u64)>,
    ) -> Result<StarterPromise, LedgerError> {
        let row = self.promise_row();
        let promised = Arc::new(AtomicU64::new(0));
        let found = promised.clone();
        self.write(move |db| {
            alone(db)?;
            if let Some((before, left)) = &before {
                settle(db, before, month, *left)?;
                release(db, before)?;
            }
            let left = most.left(&starter(db, peer, &prefix, month)?);
            found.store(left, Relaxed);
            if left == 0 {
                return Ok(());
            }
            db.execute(
                "INSERT INTO starter (peer, prefix, month, bytes) VALUES ($1, $2, $3, $4)",
                &[
                    peer.to_bytes().into(),
                    prefix.as_str().into(),
                    row.into(),
                    integer("bytes", left)?.into(),
                ],
            )?;
            Ok(())
        })
        .await?;
        Ok(StarterPromise { peer, row, bytes: promised.load(Relaxed) })
    }

    /// Of a promise only `left` bytes are not used: the others were given, in `month`. To say so again
    /// changes nothing. Returns once durable.
    ///
    /// # Errors
    /// [`LedgerError::Range`], [`LedgerError::Write`], [`LedgerError::Server`].
    pub async fn record_starter(
        &self,
        promise: StarterPromise,
        month: u32,
        left: u64,
    ) -> Result<(), LedgerError> {
        self.write(move |db| settle(db, &promise, month, left)).await
    }

    /// The account of a promise is closed, with `left` bytes not used: others may have these.
    ///
    /// # Errors
    /// [`LedgerError::Range`], [`LedgerError::Write`], [`LedgerError::Server`].
    pub async fn return_starter(
        &self,
        promise: StarterPromise,
        month: u32,
        left: u64,
    ) -> Result<(), LedgerError> {
        self.write(move |db| {
            settle(db, &promise, month, left)?;
            release(db, &promise)
        })
        .await
    }

    /// Returns what earlier processes of this name had promised: their accounts are closed.
    ///
    /// # Errors
    /// [`LedgerError::Write`], [`LedgerError::Server`].
    pub async fn return_all_starter(&self) -> Result<(), LedgerError> {
        let (first, last) = self.promise_rows();
        self.write(move |db| {
            let sql = "DELETE FROM starter WHERE month >= $1 AND month <= $2";
            db.execute(sql, &[first.into(), last.into()]).map(drop)
        })
        .await
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
             (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM starter
              WHERE month = $3 OR month < 0) AS in_month";
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

/// Of a fleet only one process at a time promises: its sums stay true until its transaction ends.
fn alone(db: &Db<'_>) -> Result<(), Fault> {
    let sql = "INSERT INTO counter (name, value) VALUES ('starter', 1)
        ON CONFLICT (name) DO UPDATE SET value = counter.value + 1";
    db.execute(sql, &[]).map(drop)
}

/// Moves what of a promise was used to what was given.
fn settle(db: &Db<'_>, promise: &StarterPromise, month: u32, left: u64) -> Result<(), Fault> {
    let left = integer("bytes", left)?;
    let (peer, row) = (promise.peer.to_bytes(), promise.row);
    db.execute(
        "INSERT INTO starter (peer, prefix, month, bytes)
         SELECT peer, prefix, CAST($1 AS BIGINT), bytes - CAST($2 AS BIGINT) FROM starter
         WHERE peer = $3 AND month = $4 AND bytes > $2
         ON CONFLICT (peer, prefix, month) DO UPDATE SET bytes = starter.bytes + excluded.bytes",
        &[month.into(), left.into(), peer.clone().into(), row.into()],
    )?;
    db.execute(
        "UPDATE starter SET bytes = $1 WHERE peer = $2 AND month = $3 AND bytes > $1",
        &[left.into(), peer.into(), row.into()],
    )?;
    Ok(())
}

fn release(db: &Db<'_>, promise: &StarterPromise) -> Result<(), Fault> {
    let values = [promise.peer.to_bytes().into(), promise.row.into()];
    db.execute("DELETE FROM starter WHERE peer = $1 AND month = $2", &values).map(drop)
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
