//! Opening the file: settings, damage, versions, migrations.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::LedgerError;
use crate::lock::private;

/// Marks the file as a ledger: "SLUC" in ASCII.
const APPLICATION_ID: i64 = 0x534C_5543;
/// What takes a ledger of version `index` to version `index + 1`.
const MIGRATIONS: [&str; 2] = [include_str!("schema/v1.sql"), include_str!("schema/v2.sql")];
/// The newest schema version that is known here.
pub const SCHEMA_VERSION: i64 = 2;
/// How long a statement waits for another program, a backup for example, that holds the file.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// Opens the writer's connection, checks the file and brings it to the newest version.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, LedgerError> {
    make_private(path)?;
    let mut connection = connect(path).map_err(|e| fault(path, &e))?;
    let found = check(path, &connection)?;
    settings(&connection).map_err(|e| fault(path, &e))?;
    migrate(&mut connection, found).map_err(|e| fault(path, &e))?;
    Ok(connection)
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, LedgerError> {
    let open = || {
        let connection = connect(path)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    };
    open().map_err(|e| fault(path, &e))
}

/// Opens a ledger that another process may have open, without making or changing anything.
pub(crate) fn open_foreign_reader(path: &Path) -> Result<Connection, LedgerError> {
    let open = || {
        // Not read-only for SQLite: a reader of a write-ahead log keeps its marks beside the file.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_MAX)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    };
    let connection = open().map_err(|e| fault(path, &e))?;
    match check(path, &connection)? {
        0 => Err(LedgerError::Foreign { path: path.to_owned() }),
        SCHEMA_VERSION => Ok(connection),
        found => Err(LedgerError::Older { path: path.to_owned(), found, known: SCHEMA_VERSION }),
    }
}

/// SQLite makes the `-wal` and `-shm` files with the mode of the ledger, so it is made first.
fn make_private(path: &Path) -> Result<(), LedgerError> {
    let make = || {
        private(OpenOptions::new().write(true).create(true)).truncate(false).open(path)?;
        match path.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
            Some(_) | None => Ok(()),
        }
    };
    make().map_err(|e: std::io::Error| LedgerError::Open {
        path: path.to_owned(),
        detail: e.to_string(),
    })
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_MAX)?;
    Ok(connection)
}

/// Looks before anything is written; gives the schema version, 0 for a new file.
fn check(path: &Path, connection: &Connection) -> Result<i64, LedgerError> {
    let number = |sql| {
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|e| fault(path, &e))
    };
    let version = number("PRAGMA user_version")?;
    let application = number("PRAGMA application_id")?;
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    if application != APPLICATION_ID && (version, application, objects) != (0, 0, 0) {
        return Err(LedgerError::Foreign { path: path.to_owned() });
    }
    if !(0..=SCHEMA_VERSION).contains(&version) {
        return Err(LedgerError::Newer {
            path: path.to_owned(),
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|e| fault(path, &e))?;
    if verdict == "ok" {
        Ok(version)
    } else {
        Err(LedgerError::Corrupt { path: path.to_owned(), detail: verdict })
    }
}

fn settings(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some(format!("this file system offers journal mode {mode} only, not WAL")),
        ));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    // macOS: an fsync there reaches the drive's cache only.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let steps = MIGRATIONS.iter().zip(1_i64..).filter(|(_, version)| *version > found);
    let mut steps = steps.peekable();
    if steps.peek().is_none() {
        return Ok(());
    }
    let tx = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    for (sql, version) in steps {
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", version)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.commit()
}

fn fault(path: &Path, error: &rusqlite::Error) -> LedgerError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            LedgerError::Corrupt { path, detail }
        }
        Some(_) | None => LedgerError::Open { path, detail },
    }
}
