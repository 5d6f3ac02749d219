//! The handle.

use std::path::Path;
use std::sync::Arc;

use crate::db::Db;
use crate::error::Fault;
use crate::postgres::{self, Postgres, Server, ServerMark};
use crate::sqlite::Sqlite;
use crate::store::Store;
use crate::writer::Shared;
use crate::{Health, LedgerError};

/// An open ledger. Cheap to clone; the file or connection is closed when the last clone is dropped
/// and what was asked of it is answered.
#[derive(Debug, Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

impl Ledger {
    /// Opens the ledger at `path`, or makes one (mode 0600) in a folder that exists.
    ///
    /// # Errors
    /// When another process has it open, it is damaged, of a newer schema or not a ledger, or
    /// cannot be opened or made. Nothing was changed then.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self::of(Store::Sqlite(Sqlite::open(path.to_owned())?)))
    }

    /// Opens the ledger at `path` to read it alone, also while another process has it open. Nothing
    /// is made, changed or locked; each write is refused.
    ///
    /// # Errors
    /// When it is not there, damaged, of another schema than this version's, or not a ledger.
    pub fn open_read_only(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self::of(Store::Sqlite(Sqlite::open_read_only(path.to_owned())?)))
    }

    /// Joins the ledger of a fleet on a server, as `member`: the name of this process, which no other
    /// that runs has. Makes the tables if need be.
    ///
    /// # Errors
    /// When the server cannot be used, would lose vouchers, holds a newer ledger or something else,
    /// or another process runs under that name.
    pub async fn connect(server: &Server, member: &str) -> Result<Self, LedgerError> {
        let (to, name) = (server.clone(), member.to_owned());
        let joined = tokio::task::spawn_blocking(move || Postgres::join(to, &name));
        let ledger = Self::of(Store::Postgres(joined.await.map_err(|_| LedgerError::Closed)??));
        postgres::keep_hold(&ledger.shared, server.hold());
        Ok(ledger)
    }

    /// Opens the ledger of a fleet to read it alone. Nothing is made, changed or taken; each write is
    /// refused.
    ///
    /// # Errors
    /// When the server cannot be used, or holds no ledger of this version's schema.
    pub async fn connect_read_only(server: &Server) -> Result<Self, LedgerError> {
        let to = server.clone();
        let opened = tokio::task::spawn_blocking(move || Postgres::read_only(to));
        Ok(Self::of(Store::Postgres(opened.await.map_err(|_| LedgerError::Closed)??)))
    }

    fn of(store: Store) -> Self {
        Self { shared: Shared::new(store) }
    }

    /// Where the server stands that holds it; `None` for a file.
    ///
    /// # Errors
    /// [`LedgerError::Server`], or [`LedgerError::Read`] when this user may not ask for it.
    pub async fn server_mark(&self) -> Result<Option<ServerMark>, LedgerError> {
        self.read(ServerMark::read).await
    }

    /// Whether other processes use it too.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_shared()
    }

    pub(crate) fn promise_row(&self) -> i64 {
        self.shared.promise_row()
    }

    pub(crate) fn promise_rows(&self) -> (i64, i64) {
        self.shared.promise_rows()
    }

    /// Whether the ledger can be written.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Writes and syncs a few bytes, to find out whether a ledger that failed can be written again.
    ///
    /// # Errors
    /// [`LedgerError::Write`] when it cannot.
    pub async fn probe(&self) -> Result<(), LedgerError> {
        self.write(|db| {
            db.execute("UPDATE counter SET value = value + 1 WHERE name = 'probe'", &[])?;
            Ok(())
        })
        .await
    }

    /// Bounds a file to `pages` of 4,096 bytes (never below what it has); what needs more fails as
    /// on a full disk. `u32::MAX - 1` lifts the bound. Not remembered when the ledger is closed.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when SQLite fails, or it is no file.
    pub async fn set_pages_max(&self, pages: u32) -> Result<(), LedgerError> {
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || shared.set_pages_max(pages));
        done.await.map_err(|_| LedgerError::Closed)?
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&Db<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.shared.clone().read(read).await
    }

    pub(crate) async fn write(
        &self,
        write: impl Fn(&Db<'_>) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), LedgerError> {
        self.shared.clone().write(write).await
    }
}
