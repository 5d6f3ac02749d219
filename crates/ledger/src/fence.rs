//! What one process of a fleet does at a time.
//!
//! A row on the server says who has a channel, and since which epoch: each taking raises it. Whoever
//! has one remembers its epoch, and every write that belongs to the channel locks the row and
//! compares, in the transaction of the write; so a process that was overtaken, however long it slept,
//! cannot write. A row may be taken when nobody has it, or when who has it gave no sign of life for its
//! hold time, by the server's clock; a member renews all that it has with one row of its own. A server
//! that was away gives all of them a hold time to come back.
//!
//! Session locks of the server would end with a server that is killed, when nobody was overtaken, and
//! would not end with a process that is stopped, when somebody should be; and they fence nothing by
//! themselves. So rows and epochs it is, and the clock only says when a row may be taken, never
//! whether a write counts.
//!
//! In a file of one process nothing is fenced.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use sluice_proto::{ChannelId, EthAddress, LeaseId};

use crate::db::{Db, Value};
use crate::error::Fault;
use crate::{Ledger, LedgerError};

/// What one process of a fleet does at a time, beside taking a channel's vouchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Duty {
    /// Redeems a channel: no transaction is wasted.
    Redeem(ChannelId),
    /// Sends transactions from an account: no nonce is used twice.
    Spend(EthAddress),
}

/// What is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Guarded {
    Channel(ChannelId),
    /// While it has no channel.
    Lease(LeaseId),
    Duty(Duty),
}

impl Guarded {
    /// What guards a lease's vouchers.
    pub(crate) fn of(channel: Option<ChannelId>, lease: LeaseId) -> Self {
        channel.map_or(Self::Lease(lease), Self::Channel)
    }

    fn key(self) -> [Value; 2] {
        match self {
            Self::Channel(id) => [0_i64.into(), id.0.into()],
            Self::Lease(id) => [1_i64.into(), id.0.into()],
            Self::Duty(Duty::Redeem(id)) => [2_i64.into(), id.0.into()],
            Self::Duty(Duty::Spend(id)) => [3_i64.into(), id.0.into()],
        }
    }
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel(id) => write!(f, "channel {id}"),
            Self::Lease(id) => write!(f, "lease {id}"),
            Self::Duty(Duty::Redeem(id)) => write!(f, "the redemption of channel {id}"),
            Self::Duty(Duty::Spend(id)) => write!(f, "the account {id}"),
        }
    }
}

impl Ledger {
    /// Takes a channel for this process, so that what is read of it next stays true. A file's one
    /// process has all of them.
    ///
    /// # Errors
    /// [`LedgerError::Owned`] while another process has it; [`LedgerError::Server`].
    pub async fn take_channel(&self, channel: ChannelId) -> Result<(), LedgerError> {
        if !self.is_shared() {
            return Ok(());
        }
        self.write(move |db| take(db, Guarded::Channel(channel))).await
    }

    /// Lets go of a lease's channel, or of the lease while it has none. What this process does not
    /// have is left as it is.
    ///
    /// # Errors
    /// [`LedgerError::Server`].
    pub async fn let_go(
        &self,
        lease: LeaseId,
        channel: Option<ChannelId>,
    ) -> Result<(), LedgerError> {
        if !self.is_shared() {
            return Ok(());
        }
        self.write(move |db| {
            leave(db, Guarded::Lease(lease))?;
            channel.map_or(Ok(()), |channel| leave(db, Guarded::Channel(channel)))
        })
        .await
    }

    /// Takes a duty, unless somebody has it, be it another task of this process.
    ///
    /// # Errors
    /// [`LedgerError::Server`].
    pub async fn take_duty(&self, duty: Duty) -> Result<bool, LedgerError> {
        if !self.is_shared() {
            return Ok(true);
        }
        match self.write(move |db| take_alone(db, Guarded::Duty(duty))).await {
            Ok(()) => Ok(true),
            Err(LedgerError::Owned { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets go of a duty.
    ///
    /// # Errors
    /// [`LedgerError::Server`]: this process has it until it is asked again, or ends.
    pub async fn leave_duty(&self, duty: Duty) -> Result<(), LedgerError> {
        if !self.is_shared() {
            return Ok(());
        }
        self.write(move |db| leave(db, Guarded::Duty(duty))).await
    }
}

/// What a process knows of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// It took it at this epoch.
    At(i64),
    /// Another took it since.
    Lost,
    /// It let go.
    Free,
}

/// What a member of a fleet has.
#[derive(Debug)]
pub(crate) struct Fences {
    member: String,
    incarnation: i64,
    hold_ms: i64,
    held: RefCell<HashMap<Guarded, Hold>>,
    /// What the transaction that runs changes.
    staged: RefCell<HashMap<Guarded, Hold>>,
}

impl Fences {
    pub(crate) fn new(member: &str, incarnation: i64, hold_ms: i64) -> Self {
        let (held, staged) = Default::default();
        Self { member: member.to_owned(), incarnation, hold_ms, held, staged }
    }

    pub(crate) fn member(&self) -> &str {
        &self.member
    }

    pub(crate) const fn incarnation(&self) -> i64 {
        self.incarnation
    }

    /// The transaction is durable.
    pub(crate) fn keep(&self) {
        let mut held = self.held.borrow_mut();
        for (guarded, hold) in self.staged.borrow_mut().drain() {
            match hold {
                Hold::At(_) | Hold::Lost => held.insert(guarded, hold),
                Hold::Free => held.remove(&guarded),
            };
        }
    }

    /// The transaction was undone.
    pub(crate) fn undo(&self) {
        self.staged.borrow_mut().clear();
    }

    fn hold(&self, guarded: Guarded) -> Hold {
        let staged = self.staged.borrow().get(&guarded).copied();
        staged.or_else(|| self.held.borrow().get(&guarded).copied()).unwrap_or(Hold::Free)
    }

    fn stage(&self, guarded: Guarded, hold: Hold) {
        self.staged.borrow_mut().insert(guarded, hold);
    }
}

/// Lets a write pass whose process has what guards it. Whoever let go, or never took it, begins with
/// [`take`] and reads anew: others may have written since.
pub(crate) fn pass(db: &Db<'_>, guarded: Guarded) -> Result<(), Fault> {
    let Db::Postgres(_, Some(fences)) = db else { return Ok(()) };
    match fences.hold(guarded) {
        Hold::At(epoch) => {
            let Found { epoch: found, member } = look(db, guarded)?;
            if found == epoch {
                return Ok(());
            }
            fences.stage(guarded, Hold::Lost);
            Err(fenced(guarded, member))
        }
        Hold::Lost | Hold::Free => {
            let found = look(db, guarded)?;
            Err(fenced(guarded, found.member))
        }
    }
}

/// Takes what guards a channel or lease, also after it was lost: whoever asks starts from what the
/// ledger holds.
pub(crate) fn take(db: &Db<'_>, guarded: Guarded) -> Result<(), Fault> {
    let Db::Postgres(_, Some(fences)) = db else { return Ok(()) };
    match fences.hold(guarded) {
        Hold::At(epoch) if look(db, guarded)?.epoch == epoch => Ok(()),
        Hold::At(_) | Hold::Lost | Hold::Free => acquire(db, fences, guarded),
    }
}

fn take_alone(db: &Db<'_>, guarded: Guarded) -> Result<(), Fault> {
    let Db::Postgres(_, Some(fences)) = db else { return Ok(()) };
    match fences.hold(guarded) {
        Hold::At(epoch) if look(db, guarded)?.epoch == epoch => {
            let (what, by) = (guarded.to_string(), fences.member.clone());
            Err(LedgerError::Owned { what, by }.into())
        }
        Hold::At(_) | Hold::Lost | Hold::Free => acquire(db, fences, guarded),
    }
}

fn leave(db: &Db<'_>, guarded: Guarded) -> Result<(), Fault> {
    let Db::Postgres(_, Some(fences)) = db else { return Ok(()) };
    if let Hold::At(epoch) = fences.hold(guarded) {
        let [kind, id] = guarded.key();
        db.execute(
            "UPDATE fence SET member = NULL WHERE kind = $1 AND id = $2 AND epoch = $3",
            &[kind, id, epoch.into()],
        )?;
    }
    fences.stage(guarded, Hold::Free);
    Ok(())
}

struct Found {
    epoch: i64,
    member: Option<String>,
}

/// Locks the row until the transaction ends: nobody overtakes between the look and the write.
fn look(db: &Db<'_>, guarded: Guarded) -> Result<Found, Fault> {
    let sql = "SELECT epoch, member FROM fence WHERE kind = $1 AND id = $2 FOR UPDATE";
    let found = db.row(sql, &guarded.key(), |row| {
        Ok(Found { epoch: row.number("epoch")?, member: row.maybe_text("member")? })
    })?;
    Ok(found.unwrap_or(Found { epoch: 0, member: None }))
}

fn acquire(db: &Db<'_>, fences: &Fences, guarded: Guarded) -> Result<(), Fault> {
    let [kind, id] = guarded.key();
    let taken = db.row(
        "INSERT INTO fence (kind, id, epoch, member, incarnation) VALUES ($1, $2, 1, $3, $4)
         ON CONFLICT (kind, id) DO UPDATE SET
             epoch = fence.epoch + 1, member = excluded.member, incarnation = excluded.incarnation
         WHERE fence.member IS NULL OR fence.member = excluded.member OR NOT EXISTS (
             SELECT 1 FROM member
             WHERE member.name = fence.member AND member.incarnation = fence.incarnation
                 AND clock_timestamp() < greatest(member.held_until,
                     (SELECT back FROM uptime) + CAST($5 AS BIGINT) * interval '1 millisecond')
         )
         RETURNING epoch",
        &[
            kind,
            id,
            fences.member.as_str().into(),
            fences.incarnation.into(),
            fences.hold_ms.into(),
        ],
        |row| row.number("epoch"),
    )?;
    match taken {
        Some(epoch) => {
            fences.stage(guarded, Hold::At(epoch));
            Ok(())
        }
        None => {
            let by = look(db, guarded)?.member.unwrap_or_else(|| "another process".to_owned());
            Err(LedgerError::Owned { what: guarded.to_string(), by }.into())
        }
    }
}

fn fenced(guarded: Guarded, member: Option<String>) -> Fault {
    let by = member.unwrap_or_else(|| "another process".to_owned());
    LedgerError::Fenced { what: guarded.to_string(), by }.into()
}
