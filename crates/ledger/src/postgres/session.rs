//! One connection to the server, driven by whoever asks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Config, NoTls, Row, Statement};

use super::patience::Patience;
use crate::db::Value;
use crate::error::Fault;

/// What every connection begins with: a transaction whose process was stopped in it is undone, and
/// its rows set free, before others give up waiting for them.
const SETTINGS: &str = "SET synchronous_commit = on;
    SET lock_timeout = '6s';
    SET statement_timeout = '8s';
    SET idle_in_transaction_session_timeout = '3s';
    SET default_transaction_isolation = 'read committed';
    SET search_path = sluice";

/// A connection. It is driven while somebody waits for an answer on it, and at no other time.
pub(crate) struct Session {
    /// Absent only while it is dropped.
    runtime: Option<Runtime>,
    client: Client,
    statements: RefCell<HashMap<&'static str, Statement>>,
    patience: Arc<Patience>,
}

impl Session {
    /// Connects as a member, or as nobody to read. Never from an async thread.
    pub(crate) fn open(config: &Config, member: &str) -> Result<Self, Fault> {
        Self::open_for(config, member, Arc::default())
    }

    /// The same for somebody who does not wait for ever.
    pub(super) fn open_for(
        config: &Config,
        member: &str,
        patience: Arc<Patience>,
    ) -> Result<Self, Fault> {
        // One that cannot be made is out of memory or files, as a connection would be.
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(|_| Fault::Slow)?;
        let connecting = async {
            let (client, connection) = config.connect(NoTls).await?;
            // Its end is seen by the next statement.
            tokio::spawn(async move { drop(connection.await) });
            client.batch_execute(SETTINGS).await?;
            client.query("SELECT set_config('sluice.member', $1, false)", &[&member]).await?;
            Ok(client)
        };
        let client = wait(&runtime, &patience, connecting)?;
        Ok(Self { runtime: Some(runtime), client, statements: RefCell::default(), patience })
    }

    fn wait<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Fault> {
        let runtime = self.runtime.as_ref().expect("it is not being dropped");
        wait(runtime, &self.patience, answer)
    }

    /// Runs statements without parameters.
    pub(crate) fn batch(&self, sql: &str) -> Result<(), Fault> {
        self.wait(self.client.batch_execute(sql))
    }

    pub(crate) fn execute(&self, sql: &'static str, values: &[Value]) -> Result<u64, Fault> {
        let statement = self.prepared(sql)?;
        self.wait(self.client.execute(&statement, &params(values)))
    }

    pub(crate) fn query(&self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, Fault> {
        let statement = self.prepared(sql)?;
        self.wait(self.client.query(&statement, &params(values)))
    }

    fn prepared(&self, sql: &'static str) -> Result<Statement, Fault> {
        if let Some(known) = self.statements.borrow().get(sql) {
            return Ok(known.clone());
        }
        let statement = self.wait(self.client.prepare(sql))?;
        self.statements.borrow_mut().insert(sql, statement.clone());
        Ok(statement)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be waited for where another runs.
            runtime.shutdown_background();
        }
    }
}

fn wait<T>(
    runtime: &Runtime,
    patience: &Patience,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Fault> {
    let most = patience.left();
    let answer = runtime.block_on(async { tokio::time::timeout(most, answer).await });
    let answer = answer.map_err(|_| Fault::Slow)?;
    if answer.as_ref().err().is_none_or(|error| error.code().is_some()) {
        patience.heard();
    }
    Ok(answer?)
}

fn params(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values
        .iter()
        .map(|value| {
            let value: &(dyn ToSql + Sync) = value;
            value
        })
        .collect()
}

impl ToSql for Value {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Number(number) => number.to_sql_checked(ty, out),
            Self::Bytes(bytes) => bytes.to_sql_checked(ty, out),
            Self::Text(text) => text.to_sql_checked(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        // What it holds is checked when it is written.
        true
    }

    to_sql_checked!();
}

/// How far a failure reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The statement's transaction lost against another: again.
    Conflict,
    /// The connection is of no more use.
    Connection,
    /// What was asked fails.
    Statement,
}

impl Fault {
    pub(crate) fn reach(&self) -> Reach {
        let error = match self {
            Self::Postgres(error) => error,
            Self::Slow => return Reach::Connection,
            Self::Refused(_) | Self::Sqlite(_) | Self::Column(_) => return Reach::Statement,
        };
        let Some(code) = error.code() else { return Reach::Connection };
        let conflicts = [
            &SqlState::T_R_SERIALIZATION_FAILURE,
            &SqlState::T_R_DEADLOCK_DETECTED,
            &SqlState::LOCK_NOT_AVAILABLE,
            &SqlState::QUERY_CANCELED,
        ];
        if conflicts.contains(&code) {
            return Reach::Conflict;
        }
        // Of the classes of codes: connections, authorization, resources, operators, the system.
        let passing = ["08", "28", "53", "57", "58", "25P03"];
        match passing.iter().any(|class| code.code().starts_with(class)) {
            true => Reach::Connection,
            false => Reach::Statement,
        }
    }
}
