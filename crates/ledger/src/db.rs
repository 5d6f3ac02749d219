//! The two databases behind the ledger, as its queries see them.
//!
//! One text serves both: parameters are `$1`, `$2` and so on, first used in that order, and nothing
//! is written that either understands differently.

use rusqlite::params_from_iter;
use rusqlite::types::{ToSqlOutput, ValueRef};

use crate::error::Fault;
use crate::fence::Fences;
use crate::postgres::Session;

/// What a parameter holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Number(i64),
    Bytes(Vec<u8>),
    Text(String),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Number(flag.into())
    }
}

impl<const N: usize> From<[u8; N]> for Value {
    fn from(bytes: [u8; N]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(*number),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

/// A connection to one of them, inside a transaction if it writes.
pub(crate) enum Db<'c> {
    Sqlite(&'c rusqlite::Connection),
    /// With the fences of a member of a fleet if it writes.
    Postgres(&'c Session, Option<&'c Fences>),
}

impl Db<'_> {
    /// Runs a statement; gives how many rows it changed.
    pub(crate) fn execute(&self, sql: &'static str, values: &[Value]) -> Result<u64, Fault> {
        match self {
            Self::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(sql)?;
                debug_assert!(in_order(&statement), "{sql}");
                let changed = statement.execute(params_from_iter(values))?;
                Ok(u64::try_from(changed).unwrap_or(u64::MAX))
            }
            Self::Postgres(session, _) => session.execute(sql, values),
        }
    }

    /// The rows of a query, each as `read` makes of it.
    pub(crate) fn rows<T>(
        &self,
        sql: &'static str,
        values: &[Value],
        read: impl Fn(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        match self {
            Self::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(sql)?;
                debug_assert!(in_order(&statement), "{sql}");
                let mut rows = statement.query(params_from_iter(values))?;
                let mut all = Vec::new();
                while let Some(row) = rows.next()? {
                    all.push(read(&Row::Sqlite(row))?);
                }
                Ok(all)
            }
            Self::Postgres(session, _) => {
                let rows = session.query(sql, values)?;
                rows.iter().map(|row| read(&Row::Postgres(row))).collect()
            }
        }
    }

    /// The first row of a query.
    pub(crate) fn row<T>(
        &self,
        sql: &'static str,
        values: &[Value],
        read: impl Fn(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        Ok(self.rows(sql, values, read)?.into_iter().next())
    }
}

/// Whether SQLite, which numbers parameters as they come, numbers these as they are called.
fn in_order(statement: &rusqlite::Statement<'_>) -> bool {
    (1..=statement.parameter_count())
        .all(|n| statement.parameter_name(n) == Some(format!("${n}").as_str()))
}

/// A row of either.
pub(crate) enum Row<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    Postgres(&'r tokio_postgres::Row),
}

impl Row<'_> {
    pub(crate) fn number(&self, column: &'static str) -> Result<i64, Fault> {
        match self {
            Self::Sqlite(row) => Ok(row.get(column)?),
            Self::Postgres(row) => row.try_get(column).map_err(|_| Fault::Column(column)),
        }
    }

    pub(crate) fn blob(&self, column: &'static str) -> Result<Vec<u8>, Fault> {
        self.maybe_blob(column)?.ok_or(Fault::Column(column))
    }

    pub(crate) fn maybe_blob(&self, column: &'static str) -> Result<Option<Vec<u8>>, Fault> {
        match self {
            Self::Sqlite(row) => Ok(row.get(column)?),
            Self::Postgres(row) => row.try_get(column).map_err(|_| Fault::Column(column)),
        }
    }

    pub(crate) fn maybe_text(&self, column: &'static str) -> Result<Option<String>, Fault> {
        match self {
            Self::Sqlite(row) => Ok(row.get(column)?),
            Self::Postgres(row) => row.try_get(column).map_err(|_| Fault::Column(column)),
        }
    }
}
