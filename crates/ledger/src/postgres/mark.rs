//! Where a server stands: what tells one that was brought back from a backup, or made anew, from the
//! one that was used last.

use std::fmt;

use crate::db::Db;
use crate::error::Fault;

/// The server's own number, the branch of its history (each recovery to a point in time begins
/// another), the tables of the ledger, and how far its log is on the disk.
const STAND: &str = "SELECT CAST(system_identifier AS TEXT),
        substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8),
        CAST(CAST('newest' AS regclass) AS OID)::BIGINT,
        CAST(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0') AS BIGINT)
    FROM pg_control_system()";
const HEAD: &str = "sluice server 1";

/// Where a server stood at one moment. What is flushed there stays, so that a server goes only
/// forward, whatever kills it; one that went back was brought back from a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerMark {
    system: String,
    history: String,
    tables: i64,
    flushed: i64,
}

impl ServerMark {
    pub(crate) fn read(db: &Db<'_>) -> Result<Option<Self>, Fault> {
        let Db::Postgres(session, _) = db else { return Ok(None) };
        let Some(row) = session.query(STAND, &[])?.into_iter().next() else { return Ok(None) };
        Ok(Some(Self {
            system: row.try_get(0)?,
            history: row.try_get(1)?,
            tables: row.try_get(2)?,
            flushed: row.try_get(3)?,
        }))
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.lines();
        let is_ours = lines.next()? == HEAD;
        let system = lines.next()?.strip_prefix("system ")?.to_owned();
        let history = lines.next()?.strip_prefix("history ")?.to_owned();
        let tables = lines.next()?.strip_prefix("tables ")?.parse().ok()?;
        let flushed = lines.next()?.strip_prefix("flushed ")?.parse().ok()?;
        let is_whole = is_ours && lines.next().is_none();
        is_whole.then_some(Self { system, history, tables, flushed })
    }

    /// Why what was written up to a mark before may be missing here.
    #[must_use]
    pub fn differs(&self, before: &Self) -> Option<&'static str> {
        if self.system != before.system {
            Some("the ledger's server is another one than was used last")
        } else if self.tables != before.tables {
            Some("the ledger's tables on the server were made anew since they were used last")
        } else if self.history != before.history {
            Some(
                "the ledger's server was brought back to an earlier time, or another took its place",
            )
        } else if self.flushed < before.flushed {
            Some("the ledger's server was brought back from a backup")
        } else {
            None
        }
    }
}

impl fmt::Display for ServerMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system, history, tables, flushed } = self;
        writeln!(
            f,
            "{HEAD}\nsystem {system}\nhistory {history}\ntables {tables}\nflushed {flushed}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> ServerMark {
        let (system, history) = ("7561".to_owned(), "00000001".to_owned());
        ServerMark { system, history, tables: 16_400, flushed: 1_000 }
    }

    #[test]
    fn a_mark_is_read_as_written_and_nothing_else_is() {
        let text = mark().to_string();
        assert_eq!(ServerMark::parse(&text), Some(mark()));
        for end in 0..text.len() {
            assert_eq!(ServerMark::parse(&text[..end]), None, "{end}");
        }
        assert_eq!(ServerMark::parse(&text.replace("server 1", "server 2")), None);
        assert_eq!(ServerMark::parse(&text.replace("1000", "x")), None);
        assert_eq!(ServerMark::parse(&format!("{text}more\n")), None);
    }

    #[test]
    fn a_server_that_went_on_is_the_same_and_one_that_went_back_is_not() {
        let before = mark();
        assert_eq!(before.differs(&before), None);
        assert_eq!(ServerMark { flushed: 1_001, ..mark() }.differs(&before), None);
        for other in [
            ServerMark { flushed: 999, ..mark() },
            ServerMark { history: "00000002".to_owned(), flushed: 1_001, ..mark() },
            ServerMark { tables: 16_401, flushed: 1_001, ..mark() },
            ServerMark { system: "7562".to_owned(), flushed: 1_001, ..mark() },
        ] {
            assert!(other.differs(&before).is_some(), "{other}");
        }
    }
}
