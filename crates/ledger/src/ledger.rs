//! The handle.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use crate::error::Fault;
use crate::writer::Shared;
use crate::{Health, LedgerError};

/// An open ledger. Cheap to clone; the file is closed when the last clone is dropped and what was
/// asked of it is answered.
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
        Ok(Self { shared: Shared::open(path.to_owned())? })
    }

    /// Opens the ledger at `path` to read it alone, also while another process has it open. Nothing
    /// is made, changed or locked; each write is refused.
    ///
    /// # Errors
    /// When it is not there, damaged, of another schema than this version's, or not a ledger.
    pub fn open_read_only(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self { shared: Shared::open_read_only(path.to_owned())? })
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
        self.write(|tx| {
            tx.execute("UPDATE counter SET value = value + 1 WHERE name = 'probe'", [])?;
            Ok(())
        })
        .await
    }

    /// Bounds the file to `pages` of 4,096 bytes (never below what it has); what needs more fails as
    /// on a full disk. `u32::MAX - 1` lifts the bound. Not remembered when the ledger is closed.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when SQLite fails.
    pub async fn set_pages_max(&self, pages: u32) -> Result<(), LedgerError> {
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || shared.set_pages_max(pages));
        done.await.map_err(|_| LedgerError::Closed)?
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.shared.clone().read(read).await
    }

    pub(crate) async fn write(
        &self,
        write: impl FnOnce(&Connection) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), LedgerError> {
        self.shared.clone().write(write).await
    }
}
