//! Where a ledger is: a file, or a server.

use std::path::Path;

use crate::db::Db;
use crate::error::Fault;
use crate::postgres::Postgres;
use crate::sqlite::Sqlite;
use crate::writer::{Operation, Outcome};
use crate::{Health, LedgerError};

/// What holds the rows.
#[expect(clippy::large_enum_variant, reason = "one for each ledger, and never moved about")]
pub(crate) enum Store {
    /// One process's own file.
    Sqlite(Sqlite),
    /// A server that a fleet shares.
    Postgres(Postgres),
}

impl Store {
    /// The file's path, or the server's URL without user and password.
    pub(crate) fn place(&self) -> &Path {
        match self {
            Self::Sqlite(store) => store.path(),
            Self::Postgres(store) => store.place(),
        }
    }

    /// A number of the process, which nobody else has who writes here.
    pub(crate) fn number(&self) -> u32 {
        match self {
            Self::Sqlite(_) => 0,
            Self::Postgres(store) => store.number(),
        }
    }

    pub(crate) const fn is_read_only(&self) -> bool {
        match self {
            Self::Sqlite(store) => store.is_read_only(),
            Self::Postgres(store) => store.is_read_only(),
        }
    }

    pub(crate) fn read<T>(
        &self,
        read: impl Fn(&Db<'_>) -> Result<T, Fault>,
    ) -> Result<T, LedgerError> {
        match self {
            Self::Sqlite(store) => store.read(read),
            Self::Postgres(store) => store.read(read),
        }
    }

    /// Applies a batch in one transaction: the outcomes once it is durable, or why all of it is to
    /// be refused.
    pub(crate) fn apply(&self, batch: &[Operation]) -> Result<Vec<Outcome>, Health> {
        match self {
            Self::Sqlite(store) => store.apply(batch),
            Self::Postgres(store) => store.apply(batch),
        }
    }

    /// What is known of it while a write is not answered for long.
    pub(crate) fn silence(&self) -> Option<Health> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(store) => store.silence(),
        }
    }

    /// Renews what a member of a fleet has.
    pub(crate) fn renew(&self) -> bool {
        match self {
            Self::Sqlite(_) => true,
            Self::Postgres(store) => store.renew(),
        }
    }

    pub(crate) fn set_pages_max(&self, pages: u32) -> Result<(), LedgerError> {
        match self {
            Self::Sqlite(store) => store.set_pages_max(pages),
            Self::Postgres(_) => {
                Err(LedgerError::Read { detail: "a server has no bound of pages".to_owned() })
            }
        }
    }
}
