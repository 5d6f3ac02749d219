//! The store in a file of this process's own.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::db::Db;
use crate::error::Fault;
use crate::lock::Lock;
use crate::writer::{Operation, Outcome};
use crate::{Health, LedgerError, schema};

/// An open file. Dropping it closes the file, then the lock.
pub(crate) struct Sqlite {
    path: PathBuf,
    reader: Mutex<Connection>,
    /// Absent when the ledger was opened to be read alone; then nobody is kept out.
    writer: Option<(Mutex<Connection>, Lock)>,
}

impl Sqlite {
    pub(crate) fn open(path: PathBuf) -> Result<Self, LedgerError> {
        let lock = Lock::take(&path)?;
        let writer = schema::open_writer(&path)?;
        let reader = schema::open_reader(&path)?;
        Ok(Self { path, reader: Mutex::new(reader), writer: Some((Mutex::new(writer), lock)) })
    }

    pub(crate) fn open_read_only(path: PathBuf) -> Result<Self, LedgerError> {
        let reader = schema::open_foreign_reader(&path)?;
        Ok(Self { path, reader: Mutex::new(reader), writer: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn is_read_only(&self) -> bool {
        self.writer.is_none()
    }

    pub(crate) fn read<T>(
        &self,
        read: impl Fn(&Db<'_>) -> Result<T, Fault>,
    ) -> Result<T, LedgerError> {
        read(&Db::Sqlite(&self.reader.lock())).map_err(Fault::of_read)
    }

    pub(crate) fn apply(&self, batch: &[Operation]) -> Result<Vec<Outcome>, Health> {
        let Some((writer, _)) = &self.writer else {
            let refused = LedgerError::ReadOnly { path: self.path.clone() };
            return Ok(vec![Err(refused); batch.len()]);
        };
        apply(&mut writer.lock(), batch).map_err(|fault| health_after(&fault))
    }

    pub(crate) fn set_pages_max(&self, pages: u32) -> Result<(), LedgerError> {
        let Some((writer, _)) = &self.writer else {
            return Err(LedgerError::ReadOnly { path: self.path.clone() });
        };
        writer
            .lock()
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .map_err(|error| LedgerError::Read { detail: error.to_string() })
    }
}

fn apply(connection: &mut Connection, batch: &[Operation]) -> Result<Vec<Outcome>, Fault> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for operation in batch {
        outcomes.push(match operation(&Db::Sqlite(&tx)) {
            Ok(()) => Ok(()),
            Err(Fault::Refused(error)) => Err(error),
            Err(fault) => return Err(fault),
        });
    }
    tx.commit()?;
    Ok(outcomes)
}

fn health_after(fault: &Fault) -> Health {
    let detail = fault.to_string();
    match fault {
        Fault::Sqlite(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Health::Full(detail)
            }
            Some(_) | None => Health::Broken(detail),
        },
        Fault::Refused(_) | Fault::Postgres(_) | Fault::Slow | Fault::Column(_) => {
            Health::Broken(detail)
        }
    }
}
