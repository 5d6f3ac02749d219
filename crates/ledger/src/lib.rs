//! The ledger: vouchers, leases and channels on disk, in one SQLite file, or for a fleet of relays of
//! one operator on a PostgreSQL server.
//!
//! A voucher counts once it is durable. [`Ledger::record_earned`] and [`Ledger::record_signed`]
//! return only after the transaction that holds the voucher was synced (WAL,
//! `synchronous = FULL`); a payee acknowledges a voucher after the first, a payer sends one after
//! the second. So after `kill -9` or a power cut at any instant a payee has lost at most what was
//! not yet acknowledged, and nobody pays twice.
//!
//! - **One writer, group commit.** Writes wait in one bounded queue. Whoever finds the writer idle
//!   starts it; it takes all that waits, applies it in one transaction and answers everybody, until
//!   nothing waits. A hundred tenants' vouchers cost one sync. While idle there is no thread.
//! - **Monotone.** Counts and amounts of a lease never fall. One that does is refused by
//!   [`LedgerError::NotHigher`], inside the transaction; an identical repeat is fine.
//! - **Bounded.** The bytes of a voucher are kept for the newest of each lease only. The chain of
//!   amounts, for audits, keeps at most [`LINKS_MAX`] links a lease: older ones are thinned.
//! - **It stops rather than lose count.** When a write fails, all that waited are told
//!   [`LedgerError::Write`]. After a full disk the next write that succeeds heals the ledger; after
//!   any other failure it accepts nothing more until it is opened anew, since what a failed sync
//!   left behind is unknown. [`Ledger::health`] tells which.
//! - **One process.** A lock file beside the ledger keeps a second process out. It is released
//!   when the last [`Ledger`] is dropped and what it was asked is answered. On a server each channel
//!   belongs to one process at a time: whose vouchers another took over is told
//!   [`LedgerError::Fenced`], and must not acknowledge them.
//! - **It resumes with its server.** While that is away each write is told [`LedgerError::Server`], and
//!   the next after its return succeeds. When the connection is lost in a COMMIT, the outcome is read
//!   back before anybody is answered, or after 10 s they are told that it is away.
//!
//! The ledger reads no clock but to give up a server that says nothing: whoever asks for what is not
//! expired says what time it is. It must be used inside a tokio runtime.

#![warn(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::float_arithmetic)]

mod channels;
mod db;
mod error;
mod fence;
mod leases;
mod ledger;
mod lock;
mod postgres;
mod recovery;
mod relay;
mod rows;
mod schema;
mod sqlite;
mod store;
mod vouchers;
mod writer;

pub use error::LedgerError;
pub use fence::Duty;
pub use ledger::Ledger;
pub use postgres::{HOLD_DEFAULT, Server, ServerError, ServerMark};
pub use recovery::{Found, Recovery, RecoveryError};
pub use relay::{KNOCKS_MAX, Starter, StarterMost, StarterPromise};
pub use rows::{
    ChannelRow, ChannelStatus, Edge, LeaseRow, Link, RedemptionKind, RedemptionRow, Role,
    StoredVoucher,
};
pub use schema::SCHEMA_VERSION;
pub use vouchers::LINKS_MAX;
pub use writer::{Health, QUEUE_MAX};
