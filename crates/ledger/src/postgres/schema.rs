//! The tables on the server: versions, migrations, settings that would lose vouchers.

use std::path::PathBuf;

use super::server::Server;
use super::session::Session;
use crate::LedgerError;
use crate::error::Fault;

/// What takes a ledger of version `index` to version `index + 1`.
const MIGRATIONS: [&str; 2] =
    [include_str!("../schema/postgres_v1.sql"), include_str!("../schema/postgres_v2.sql")];
/// The newest schema version that is known here.
pub(crate) const VERSION: i64 = 2;

/// Brings the tables to the newest version, all in one transaction; two processes that start at once
/// do so one after the other.
pub(crate) fn migrate(server: &Server, session: &Session) -> Result<(), LedgerError> {
    let fault = |fault: Fault| told(server, fault);
    check_settings(server, session)?;
    if version(server, session)? == VERSION {
        return Ok(());
    }
    session.batch("BEGIN").map_err(fault)?;
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('sluice schema', 0))";
    session.query(lock, &[]).map_err(fault)?;
    let found = version(server, session)?;
    if found == 0 {
        session
            .batch("CREATE SCHEMA sluice; CREATE TABLE version (number BIGINT NOT NULL)")
            .map_err(fault)?;
        session.batch("INSERT INTO version VALUES (0)").map_err(fault)?;
    }
    for (sql, number) in MIGRATIONS.iter().zip(1_i64..).filter(|(_, number)| *number > found) {
        session.batch(sql).map_err(fault)?;
        session.execute("UPDATE version SET number = $1", &[number.into()]).map_err(fault)?;
    }
    session.batch("COMMIT").map_err(fault)
}

/// Refuses what is not of the newest version.
pub(crate) fn check(server: &Server, session: &Session) -> Result<(), LedgerError> {
    let path = place(server);
    match version(server, session)? {
        VERSION => Ok(()),
        0 => Err(LedgerError::Foreign { path }),
        found => Err(LedgerError::Older { path, found, known: VERSION }),
    }
}

/// The version, 0 where there is no ledger yet. A newer one, and what is none, is refused.
fn version(server: &Server, session: &Session) -> Result<i64, LedgerError> {
    let fault = |fault: Fault| told(server, fault);
    let number = |sql| {
        let rows = session.query(sql, &[]).map_err(fault)?;
        let first = rows.first().map(|row| row.try_get::<_, i64>(0));
        first.transpose().map_err(|error| fault(error.into()))
    };
    let is_there = "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = 'sluice'";
    if number(is_there)? == Some(0) {
        return Ok(0);
    }
    let has_version = "SELECT count(*) FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'sluice' AND c.relname = 'version'";
    if number(has_version)? == Some(0) {
        return Err(LedgerError::Foreign { path: place(server) });
    }
    match number("SELECT number FROM sluice.version")? {
        Some(found) if found > VERSION => {
            Err(LedgerError::Newer { path: place(server), found, known: VERSION })
        }
        Some(found) if found > 0 => Ok(found),
        Some(_) | None => Err(LedgerError::Foreign { path: place(server) }),
    }
}

fn check_settings(server: &Server, session: &Session) -> Result<(), LedgerError> {
    for (sql, setting) in [
        ("SELECT current_setting('fsync')", "fsync = on"),
        ("SELECT current_setting('full_page_writes')", "full_page_writes = on"),
    ] {
        let rows = session.query(sql, &[]).map_err(|fault| told(server, fault))?;
        let is_on =
            rows.first().is_some_and(|row| row.try_get::<_, &str>(0).is_ok_and(|v| v == "on"));
        if !is_on {
            return Err(LedgerError::Unsafe { server: server.to_string(), setting });
        }
    }
    Ok(())
}

pub(crate) fn place(server: &Server) -> PathBuf {
    server.to_string().into()
}

pub(crate) fn told(server: &Server, fault: Fault) -> LedgerError {
    match fault {
        Fault::Refused(error) => error,
        fault @ (Fault::Sqlite(_) | Fault::Postgres(_) | Fault::Slow | Fault::Column(_)) => {
            LedgerError::Server { server: server.to_string(), detail: fault.to_string() }
        }
    }
}
