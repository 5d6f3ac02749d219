//! The connection that writes: transactions whose outcome is always known before it is told.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::patience::{self, ANSWER_MAX, Patience};
use super::schema;
use super::server::Server;
use super::session::{Reach, Session};
use crate::LedgerError;
use crate::db::{Db, Value};
use crate::error::Fault;
use crate::fence::Fences;
use crate::writer::{Operation, Outcome};

/// How often a transaction that lost against another is tried again ..
const TRIES_MAX: u32 = 8;
/// .. and for how long, COMMIT apart: the locks of another are waited for thrice, or a connection that
/// was lost and the next one.
const TRY_FOR: Duration = Duration::from_secs(20);
/// For how long, and how long after, the outcome of a COMMIT whose connection was lost is asked for.
const ASK_FOR: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often, and how long after, a name is tried that a process has which is just ending: 2 s in all.
const NAME_TRIES: u32 = 40;
const NAME_AGAIN: Duration = Duration::from_millis(50);

/// The lock that a member's writing connection holds. It ends with the process, at once where the
/// connection's end is seen, so that the next of its name need not wait for its hold time.
const LOCK: &str =
    "SELECT pg_try_advisory_lock(hashtextextended('sluice member ' || $1, 0)) AS got";
/// The first statement of each transaction: fails if another process took the member's name, and leaves
/// the number by which the transaction is found again.
const BEGUN: &str = "UPDATE turn SET batch = $1 WHERE member = $2 AND incarnation = $3";
/// Waits for a transaction of a connection that was lost, if the server still works at it.
const OUTCOME: &str = "SELECT incarnation, batch FROM turn WHERE member = $1 FOR UPDATE";
/// The first statement of each connection, before anything is taken: from now on the others have a
/// hold time to come back to a server that was started anew.
const BACK: &str =
    "UPDATE uptime SET started = pg_postmaster_start_time(), back = clock_timestamp()
    WHERE started <> pg_postmaster_start_time()";

pub(super) struct Writer {
    session: Option<Session>,
    fences: Fences,
    /// Number of the newest transaction that was tried.
    batch: i64,
    /// Whether the session holds the member's lock.
    locked: bool,
    patience: Arc<Patience>,
}

enum Tried {
    /// It is durable.
    Done(Vec<Outcome>),
    /// It was undone.
    Undone(Fault),
    /// The connection was lost in COMMIT.
    Unknown(Vec<Outcome>, Fault),
}

impl Writer {
    /// Brings the tables up to date and takes the member's name.
    pub(super) fn join(server: &Server, member: &str) -> Result<Self, LedgerError> {
        let told = |fault| schema::told(server, fault);
        let patience = Arc::<Patience>::default();
        let opened = Session::open_for(server.config(), member, patience.clone());
        let session = opened.map_err(told)?;
        schema::migrate(server, &session)?;
        session.execute(BACK, &[]).map_err(told)?;
        let incarnation = take_name(server, &session, member)?;
        let fences = Fences::new(member, incarnation, server.hold_ms());
        Ok(Self { session: Some(session), fences, batch: 0, locked: true, patience })
    }

    /// What it waits for.
    pub(super) fn patience(&self) -> Arc<Patience> {
        self.patience.clone()
    }

    pub(super) const fn incarnation(&self) -> i64 {
        self.fences.incarnation()
    }

    /// Applies a batch in one transaction; fails only when it is known that none of it counts, or
    /// when that cannot be found out. From a server that says nothing it is back after [`TRY_FOR`], an
    /// answer's time and [`ASK_FOR`] at the most.
    pub(super) fn apply(
        &mut self,
        server: &Server,
        batch: &[Operation],
    ) -> Result<Vec<Outcome>, Fault> {
        let until = patience::within(TRY_FOR);
        let mut tries: u32 = 0;
        loop {
            tries = tries.saturating_add(1);
            let was_open = self.session.is_some();
            let undone = match self.attempt(server, batch, until) {
                Tried::Done(outcomes) => {
                    self.fences.keep();
                    self.patience.end();
                    return Ok(outcomes);
                }
                Tried::Undone(fault) => fault,
                Tried::Unknown(outcomes, fault) => match self.outcome(server) {
                    Some(true) => {
                        self.fences.keep();
                        self.patience.end();
                        return Ok(outcomes);
                    }
                    Some(false) => fault,
                    None => {
                        self.fences.undo();
                        return Err(fault);
                    }
                },
            };
            self.fences.undo();
            let again = match undone.reach() {
                Reach::Conflict => true,
                // It may have been lost long ago: once more on a new one.
                Reach::Connection => was_open,
                Reach::Statement => {
                    self.patience.end();
                    false
                }
            };
            if !again || tries >= TRIES_MAX || until <= patience::now() {
                return Err(undone);
            }
        }
    }

    fn attempt(&mut self, server: &Server, batch: &[Operation], until: Instant) -> Tried {
        self.patience.begin(until);
        let session = match self.open(server) {
            Ok(session) => session,
            Err(fault) => return Tried::Undone(fault),
        };
        self.batch = self.batch.saturating_add(1);
        let tried = self.transact(&session, batch);
        let is_lost = match &tried {
            Tried::Done(_) => false,
            Tried::Undone(fault) => {
                fault.reach() == Reach::Connection || session.batch("ROLLBACK").is_err()
            }
            Tried::Unknown(..) => true,
        };
        self.session = (!is_lost).then_some(session);
        tried
    }

    fn transact(&self, session: &Session, batch: &[Operation]) -> Tried {
        let db = Db::Postgres(session, Some(&self.fences));
        let begun = session.batch("BEGIN").and_then(|()| self.is_begun(&db));
        match begun {
            Ok(true) => {}
            Ok(false) => {
                let member = self.fences.member().to_owned();
                let refused = LedgerError::Superseded { member };
                return match session.batch("ROLLBACK") {
                    Ok(()) => Tried::Done(vec![Err(refused); batch.len()]),
                    Err(fault) => Tried::Undone(fault),
                };
            }
            Err(fault) => return Tried::Undone(fault),
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for operation in batch {
            outcomes.push(match operation(&db) {
                Ok(()) => Ok(()),
                Err(Fault::Refused(error)) => Err(error),
                Err(fault) => return Tried::Undone(fault),
            });
        }
        // One that is cut short leaves more in doubt than it saves.
        self.patience.begin(patience::within(ANSWER_MAX));
        match session.batch("COMMIT") {
            Ok(()) => Tried::Done(outcomes),
            Err(fault) if fault.reach() == Reach::Connection => Tried::Unknown(outcomes, fault),
            Err(fault) => Tried::Undone(fault),
        }
    }

    fn is_begun(&self, db: &Db<'_>) -> Result<bool, Fault> {
        let (member, incarnation) = (self.fences.member().into(), self.fences.incarnation());
        let changed = db.execute(BEGUN, &[self.batch.into(), member, incarnation.into()])?;
        Ok(changed > 0)
    }

    fn open(&mut self, server: &Server) -> Result<Session, Fault> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                self.locked = false;
                let (config, patience) = (server.config(), self.patience.clone());
                let session = Session::open_for(config, self.fences.member(), patience)?;
                session.execute(BACK, &[])?;
                session
            }
        };
        if !self.locked {
            // Its old connection may still have it; the incarnation keeps others out meanwhile.
            self.locked = lock(&session, self.fences.member())?;
        }
        Ok(session)
    }

    /// Whether the newest transaction is durable; `None` when that cannot be found out.
    fn outcome(&mut self, server: &Server) -> Option<bool> {
        let member: Value = self.fences.member().into();
        let until = patience::within(ASK_FOR);
        self.patience.begin(until);
        while patience::now() < until {
            if let Ok(session) = self.open(server) {
                let db = Db::Postgres(&session, None);
                let found = db.row(OUTCOME, std::slice::from_ref(&member), |row| {
                    Ok((row.number("incarnation")?, row.number("batch")?))
                });
                match found {
                    Ok(found) => {
                        self.session = Some(session);
                        let (incarnation, batch) = found?;
                        // A later process of this name forgot it.
                        let is_ours = incarnation == self.fences.incarnation();
                        return is_ours.then_some(batch == self.batch);
                    }
                    Err(fault) if fault.reach() == Reach::Conflict => self.session = Some(session),
                    Err(_) => {}
                }
            }
            thread::sleep(ASK_AGAIN);
        }
        None
    }
}

fn lock(session: &Session, member: &str) -> Result<bool, Fault> {
    let rows = session.query(LOCK, &[member.into()])?;
    Ok(rows.first().is_some_and(|row| row.try_get("got").unwrap_or(false)))
}

/// Takes a name that nobody has, or whose process ended or wrote nothing for its hold time; gives how
/// often it was taken.
fn take_name(server: &Server, session: &Session, member: &str) -> Result<i64, LedgerError> {
    let told = |fault| schema::told(server, fault);
    let db = Db::Postgres(session, None);
    for _ in 0..NAME_TRIES {
        let alive = "SELECT place FROM member WHERE name = $1
            AND clock_timestamp() < greatest(held_until,
                (SELECT back FROM uptime) + CAST($2 AS BIGINT) * interval '1 millisecond')";
        let holder = db
            .row(alive, &[member.into(), server.hold_ms().into()], |row| row.maybe_text("place"))
            .map_err(told)?;
        if lock(session, member).map_err(told)? || holder.is_none() {
            return insert(server, &db, member).map_err(told);
        }
        thread::sleep(NAME_AGAIN);
    }
    let holder = db
        .row("SELECT place FROM member WHERE name = $1", &[member.into()], |row| {
            row.maybe_text("place")
        })
        .map_err(told)?;
    let holder = holder.flatten().unwrap_or_else(|| "another process".to_owned());
    Err(LedgerError::Locked { path: schema::place(server), holder })
}

fn insert(server: &Server, db: &Db<'_>, member: &str) -> Result<i64, Fault> {
    let process = format!("process {}", std::process::id());
    let taken = db.row(
        "WITH taken AS (
             INSERT INTO member (name, incarnation, held_until, place)
             VALUES ($1, 1, clock_timestamp() + CAST($2 AS BIGINT) * interval '1 millisecond',
                 $3 || coalesce(' at ' || host(inet_client_addr()), ''))
             ON CONFLICT (name) DO UPDATE SET incarnation = member.incarnation + 1,
                 held_until = excluded.held_until, place = excluded.place
             RETURNING name, incarnation
         )
         INSERT INTO turn (member, incarnation, batch) SELECT name, incarnation, 0 FROM taken
         ON CONFLICT (member) DO UPDATE SET incarnation = excluded.incarnation, batch = 0
         RETURNING incarnation",
        &[member.into(), server.hold_ms().into(), process.as_str().into()],
        |row| row.number("incarnation"),
    )?;
    Ok(taken.unwrap_or_default())
}
