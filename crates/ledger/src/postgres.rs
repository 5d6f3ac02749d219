//! The store on a server that a fleet shares.

mod mark;
mod patience;
mod schema;
mod server;
mod session;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_proto::eth::keccak256;

use crate::db::Db;
use crate::error::Fault;
use crate::writer::{Operation, Outcome, Shared};
use crate::{Health, LedgerError};

pub use mark::ServerMark;
pub use server::{HOLD_DEFAULT, Server, ServerError};
pub(crate) use session::Session;

use patience::Patience;
use session::Reach;
use writer::Writer;

/// A member renews what it has so often within its hold time.
const RENEWALS: u32 = 4;
const RENEW: &str = "UPDATE member
    SET held_until = clock_timestamp() + CAST($1 AS BIGINT) * interval '1 millisecond'
    WHERE name = $2 AND incarnation = $3";

/// A server, with one connection that reads, one that writes and one that renews. They are made anew
/// when they are lost.
pub(crate) struct Postgres {
    server: Server,
    /// Empty when it was opened to be read alone.
    member: String,
    place: PathBuf,
    reader: Mutex<Option<Session>>,
    /// Absent when it was opened to be read alone.
    writer: Option<Mutex<Writer>>,
    /// The writer's.
    patience: Arc<Patience>,
    beats: Mutex<Option<Session>>,
    incarnation: i64,
}

impl Postgres {
    /// Joins the fleet as `member`. Never from an async thread.
    pub(crate) fn join(server: Server, member: &str) -> Result<Self, LedgerError> {
        let writer = Writer::join(&server, member)?;
        let place = schema::place(&server);
        Ok(Self {
            server,
            member: member.to_owned(),
            place,
            reader: Mutex::default(),
            incarnation: writer.incarnation(),
            patience: writer.patience(),
            writer: Some(Mutex::new(writer)),
            beats: Mutex::default(),
        })
    }

    pub(crate) fn read_only(server: Server) -> Result<Self, LedgerError> {
        let opened = Session::open(server.config(), "");
        let session = opened.map_err(|fault| schema::told(&server, fault))?;
        schema::check(&server, &session)?;
        let place = schema::place(&server);
        Ok(Self {
            server,
            member: String::new(),
            place,
            reader: Mutex::new(Some(session)),
            incarnation: 0,
            writer: None,
            patience: Arc::default(),
            beats: Mutex::default(),
        })
    }

    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Of the member's name: 31 bits of its hash.
    pub(crate) fn number(&self) -> u32 {
        let [a, b, c, d, ..] = keccak256(self.member.as_bytes());
        u32::from_be_bytes([a, b, c, d]) >> 1
    }

    pub(crate) const fn is_read_only(&self) -> bool {
        self.writer.is_none()
    }

    pub(crate) fn read<T>(
        &self,
        read: impl Fn(&Db<'_>) -> Result<T, Fault>,
    ) -> Result<T, LedgerError> {
        let mut reader = self.reader.lock();
        if let Some(session) = reader.take() {
            match read(&Db::Postgres(&session, None)) {
                // It may have been lost long ago: asked again on a new one.
                Err(fault) if fault.reach() == Reach::Connection => {}
                outcome => {
                    *reader = Some(session);
                    return outcome.map_err(Fault::of_read);
                }
            }
        }
        let told = |fault| schema::told(&self.server, fault);
        let session = Session::open(self.server.config(), &self.member).map_err(told)?;
        let outcome = read(&Db::Postgres(&session, None));
        *reader = Some(session);
        outcome.map_err(|fault| match fault.reach() {
            Reach::Connection => told(fault),
            Reach::Conflict | Reach::Statement => fault.of_read(),
        })
    }

    /// Renews what this process has, beside its transactions; gives whether the server took it.
    pub(crate) fn renew(&self) -> bool {
        let mut beats = self.beats.lock();
        let open = || Session::open(self.server.config(), &self.member);
        let Ok(session) = beats.take().map_or_else(open, Ok) else { return false };
        let values =
            [self.server.hold_ms().into(), self.member.as_str().into(), self.incarnation.into()];
        let is_renewed = session.execute(RENEW, &values).is_ok();
        if is_renewed {
            *beats = Some(session);
        }
        is_renewed
    }

    /// What is known of the server while a write waits for it: that it says nothing.
    pub(crate) fn silence(&self) -> Option<Health> {
        let silent_s = self.patience.silence()?.as_secs();
        Some(self.away(format!("it has not answered for {silent_s} s")))
    }

    fn away(&self, detail: String) -> Health {
        Health::Away { server: self.server.to_string(), detail }
    }

    pub(crate) fn apply(&self, batch: &[Operation]) -> Result<Vec<Outcome>, Health> {
        let away = |fault: Fault| self.away(fault.to_string());
        let Some(writer) = &self.writer else {
            let refused = LedgerError::ReadOnly { path: self.place.clone() };
            return Ok(vec![Err(refused); batch.len()]);
        };
        let mut writer = writer.lock();
        match writer.apply(&self.server, batch) {
            Ok(outcomes) => Ok(outcomes),
            // One that the server refuses does not keep the others back.
            Err(fault) if fault.reach() == Reach::Statement && batch.len() > 1 => batch
                .chunks(1)
                .map(|one| match writer.apply(&self.server, one) {
                    Ok(outcome) => Ok(outcome),
                    Err(fault) if fault.reach() == Reach::Statement => {
                        Ok(vec![Err(schema::told(&self.server, fault))])
                    }
                    Err(fault) => Err(away(fault)),
                })
                .collect::<Result<Vec<_>, _>>()
                .map(|outcomes| outcomes.into_iter().flatten().collect()),
            Err(fault) => Err(away(fault)),
        }
    }
}

/// Renews what a member has while its ledger is open.
pub(crate) fn keep_hold(shared: &Arc<Shared>, hold: Duration) {
    let shared: Weak<Shared> = Arc::downgrade(shared);
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(hold.checked_div(RENEWALS).unwrap_or(hold));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let Some(shared) = shared.upgrade() else { return };
            // A connection that was lost is made anew at once. A server that is away is told to those
            // who write.
            let renewed = tokio::task::spawn_blocking(move || shared.renew() || shared.renew());
            if renewed.await.is_err() {
                return;
            }
        }
    });
}
