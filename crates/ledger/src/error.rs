//! What can go wrong with a ledger.

use std::path::PathBuf;

use sluice_proto::{Amount, ChannelId, LeaseId};

/// Why the ledger cannot be opened, or refuses or fails to do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Another process has it open.
    #[error(
        "the ledger {} is in use by {holder}: stop that one, or give this one its own state \
         directory", path.display()
    )]
    Locked {
        /// The ledger.
        path: PathBuf,
        /// Who holds it, as it wrote itself into the lock file.
        holder: String,
    },
    /// It was written by a later version.
    #[error(
        "the ledger {} was made by a newer Sluice (schema {found}, this one knows {known}): update \
         Sluice; nothing was changed", path.display()
    )]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// The file is a database, but not a ledger.
    #[error(
        "{} is a database of another program: choose another state directory; nothing was \
         changed", path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error(
        "the ledger {} is damaged ({detail}): move it aside together with its -wal file and \
         restore both from a backup; if there is none, start without: each payer still holds its \
         newest voucher, but what only this file knew is lost; nothing was changed", path.display()
    )]
    Corrupt {
        /// The ledger.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The file cannot be opened or made.
    #[error(
        "cannot open the ledger {} ({detail}): check that its folder exists, is writable by this \
         user, and is on a local disk", path.display()
    )]
    Open {
        /// The ledger.
        path: PathBuf,
        /// What the system says.
        detail: String,
    },
    /// It was opened to be read alone.
    #[error("the ledger {} was opened to be read alone, and cannot be written", path.display())]
    ReadOnly {
        /// The ledger.
        path: PathBuf,
    },
    /// It is of an earlier version, and was to be read alone.
    #[error(
        "the ledger {} was made by an older Sluice (schema {found}, this one reads {known}): start \
         its role once, which brings it up to date", path.display()
    )]
    Older {
        /// The ledger.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The one that is read here.
        known: i64,
    },
    /// A voucher's amount or counts are below those of one that is held.
    #[error(
        "voucher for lease {lease} goes backwards: it says {offered} (up {offered_up}, down \
         {offered_down}), but {held} (up {held_up}, down {held_down}) is held"
    )]
    NotHigher {
        /// The lease.
        lease: LeaseId,
        /// Amount that is held.
        held: Amount,
        /// Count that is held, payer to payee.
        held_up: u64,
        /// Count that is held, payee to payer.
        held_down: u64,
        /// Amount that was offered.
        offered: Amount,
        /// Count that was offered, payer to payee.
        offered_up: u64,
        /// Count that was offered, payee to payer.
        offered_down: u64,
    },
    /// A voucher's amount is below what its lease began at.
    #[error("voucher for lease {lease} says {offered}, below {base}, which the lease began at")]
    BelowBase {
        /// The lease.
        lease: LeaseId,
        /// Amount at the lease's start.
        base: Amount,
        /// Amount that was offered.
        offered: Amount,
    },
    /// A channel pays one lease at a time.
    #[error(
        "channel {channel} pays lease {lease}, which is neither closed nor expired: go on with that \
         one, or show another channel"
    )]
    ChannelInUse {
        /// The channel.
        channel: ChannelId,
        /// The lease that it pays.
        lease: LeaseId,
    },
    /// A lease is to begin below what was earned on its channel before.
    #[error("lease {lease} is to begin at {base}, below {earned}, earned on its channel before")]
    BaseTooLow {
        /// The lease.
        lease: LeaseId,
        /// What it was to begin at.
        base: Amount,
        /// The newest amount on its channel.
        earned: Amount,
    },
    /// A voucher for a lease whose channel pays a later one.
    #[error("lease {lease} has ended: channel {channel} pays a later one")]
    Ended {
        /// The lease.
        lease: LeaseId,
        /// The channel that paid it.
        channel: ChannelId,
    },
    /// The amount beside a voucher is not the one inside it, or it pays from another channel than
    /// its lease's.
    #[error("voucher for lease {lease}: its {field} is not the one that was stated beside it")]
    Mismatch {
        /// The lease.
        lease: LeaseId,
        /// Which field.
        field: &'static str,
    },
    /// No such lease.
    #[error("lease {0} is not in the ledger")]
    UnknownLease(LeaseId),
    /// No such channel.
    #[error("channel {0} is not in the ledger")]
    UnknownChannel(ChannelId),
    /// A lease's terms cannot be read.
    #[error("lease {lease}: its terms cannot be read: {detail}")]
    Terms {
        /// The lease.
        lease: LeaseId,
        /// Why.
        detail: String,
    },
    /// A number does not fit the ledger's 63 bits.
    #[error("{field} is larger than the ledger can hold (2^63 - 1)")]
    Range {
        /// The field.
        field: &'static str,
    },
    /// A rendezvous of this initiator with the same or a later time was seen: a replay.
    #[error("a rendezvous with the same or a later timestamp was seen before")]
    StaleKnock,
    /// A write did not reach the disk.
    #[error(
        "the ledger cannot be written ({detail}): nothing more is sold on credit until it can; \
         {}", if *retry { "make room on the disk" } else { "check the disk, then start Sluice again" }
    )]
    Write {
        /// What SQLite says.
        detail: String,
        /// Whether the same write may succeed later without opening the ledger anew.
        retry: bool,
    },
    /// The server did not do what it was asked: it is away, or refuses.
    #[error(
        "the ledger at {server} cannot be used ({detail}): nothing more is counted or sold on credit \
         until it can, and nothing is lost; check that PostgreSQL runs there and lets this user in"
    )]
    Server {
        /// Which.
        server: String,
        /// What it or the system says.
        detail: String,
    },
    /// The server's settings would lose what it says is durable.
    #[error("the ledger at {server} would lose vouchers with its server: set {setting} there")]
    Unsafe {
        /// Which.
        server: String,
        /// What to set.
        setting: &'static str,
    },
    /// Another process of the fleet took over what this one had.
    #[error(
        "{what} is kept by {by} now: this process counts and acknowledges nothing more on it; it \
         goes on there"
    )]
    Fenced {
        /// The channel or lease.
        what: String,
        /// Who has it.
        by: String,
    },
    /// Another process of the fleet has it.
    #[error("{what} is in use by {by}, which shares this ledger: use it there, or ask again later")]
    Owned {
        /// The channel or lease.
        what: String,
        /// Who has it.
        by: String,
    },
    /// A later process has the name of this one.
    #[error(
        "another process writes to the ledger as {member} now: this one writes no more; stop one of \
         the two, or give each its own state directory"
    )]
    Superseded {
        /// The name.
        member: String,
    },
    /// A read failed.
    #[error("the ledger cannot be read ({detail}): check the disk, then start Sluice again")]
    Read {
        /// What SQLite says.
        detail: String,
    },
    /// The runtime is shutting down, so that the outcome is unknown.
    #[error("the ledger was closed before it answered")]
    Closed,
}

impl LedgerError {
    /// Whether the ledger itself failed, so that nothing may be sold on credit, rather than refused
    /// what it was asked.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::Read { .. }
                | Self::Server { .. }
                | Self::Superseded { .. }
                | Self::Closed
        )
    }

    /// Whether the same may be asked again, and succeeds once the ledger's server is back or there is
    /// room on its disk.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Server { .. } | Self::Write { retry: true, .. })
    }
}

/// Inside a transaction: either a refusal, which changed nothing, or a failure of the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// What was asked is refused; the rest of the batch goes on.
    #[error(transparent)]
    Refused(#[from] LedgerError),
    /// The file failed; the whole batch fails.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The server failed, or the way to it; the whole batch fails.
    #[error("{}", spelled(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The server did not answer in time.
    #[error("it does not answer")]
    Slow,
    /// A column holds what was never written there.
    #[error("column {0} does not hold what belongs there")]
    Column(&'static str),
}

impl Fault {
    /// What a read that failed is told as.
    pub(crate) fn of_read(self) -> LedgerError {
        match self {
            Self::Refused(error) => error,
            fault @ (Self::Sqlite(_) | Self::Postgres(_) | Self::Slow | Self::Column(_)) => {
                LedgerError::Read { detail: fault.to_string() }
            }
        }
    }
}

/// What a server's error says, and what lies below it.
fn spelled(error: &tokio_postgres::Error) -> String {
    if let Some(answer) = error.as_db_error() {
        return answer.message().to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(below) = cause {
        let said = below.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = below.source();
    }
    text
}
