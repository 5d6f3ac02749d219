//! Vouchers: the newest of each lease, and the chain of amounts.

use bytes::Bytes;
use prost::Message;
use sluice_proto::wire::pay;
use sluice_proto::{Amount, ChannelId, LeaseId};

use crate::db::{Db, Row};
use crate::error::Fault;
use crate::fence::{self, Guarded};
use crate::rows::{amount, bytes, channel, count, flag, integer};
use crate::{Ledger, LedgerError, Link, Role, StoredVoucher};

/// Most links that are kept for one lease and role. When they are reached, every second one of the
/// older half goes: some 60 KB a lease however long it lasts, dense where a dispute would be.
pub const LINKS_MAX: u64 = 1024;

impl Ledger {
    /// Payee: keeps a voucher that it earned. Returns once it is durable; then it may be
    /// acknowledged.
    ///
    /// # Errors
    /// [`LedgerError::NotHigher`] when its amount or a count is below what is held; an identical
    /// repeat is fine, and so is another voucher of the same worth, which replaces it.
    /// [`LedgerError::UnknownLease`] unless its lease was put before; [`LedgerError::Ended`] when its
    /// channel pays a later one; [`LedgerError::Fenced`]; [`LedgerError::BelowBase`],
    /// [`LedgerError::Mismatch`], [`LedgerError::Range`]; [`LedgerError::Write`] when it may not be
    /// counted upon.
    pub async fn record_earned(&self, voucher: StoredVoucher) -> Result<(), LedgerError> {
        self.write(move |tx| record(tx, Role::Payee, &voucher)).await
    }

    /// Payer: keeps a voucher that it signed. Returns once it is durable; then it may be sent.
    ///
    /// # Errors
    /// As [`Self::record_earned`].
    pub async fn record_signed(&self, voucher: StoredVoucher) -> Result<(), LedgerError> {
        self.write(move |tx| record(tx, Role::Payer, &voucher)).await
    }

    /// The newest voucher that was earned on a lease.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn newest_earned(
        &self,
        lease: LeaseId,
    ) -> Result<Option<StoredVoucher>, LedgerError> {
        self.read(move |db| newest(db, lease, Role::Payee)).await
    }

    /// The newest voucher that was signed on a lease.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn newest_signed(
        &self,
        lease: LeaseId,
    ) -> Result<Option<StoredVoucher>, LedgerError> {
        self.read(move |db| newest(db, lease, Role::Payer)).await
    }

    /// The voucher of the highest amount over all leases of a channel: what to redeem, or what the
    /// next lease begins at.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn newest_on_channel(
        &self,
        channel: ChannelId,
        role: Role,
    ) -> Result<Option<StoredVoucher>, LedgerError> {
        self.read(move |db| newest_on_channel(db, channel, role)).await
    }

    /// The chain of amounts of a lease, oldest first: every voucher while there are few, thinned
    /// beyond [`LINKS_MAX`]. The last one's `seq` is how many vouchers there were.
    ///
    /// # Errors
    /// [`LedgerError::Read`] when the file cannot be read.
    pub async fn vouchers(&self, lease: LeaseId, role: Role) -> Result<Vec<Link>, LedgerError> {
        self.read(move |db| links(db, lease, role)).await
    }
}

/// What is held for a lease and role.
struct Held {
    seq: i64,
    links: i64,
    up: u64,
    down: u64,
    amount: Amount,
}

/// Where a lease is, and what it says about its money.
struct Place {
    lease: i64,
    base: Amount,
    channel: Option<ChannelId>,
    closed: bool,
}

fn record(db: &Db<'_>, role: Role, offered: &StoredVoucher) -> Result<(), Fault> {
    let (up, down) = (integer("up", offered.up)?, integer("down", offered.down)?);
    let session = integer("session", offered.session)?;
    let place = place(db, offered.lease)?.ok_or(LedgerError::UnknownLease(offered.lease))?;
    agrees(offered, &place)?;
    if role == Role::Payee {
        goes_on(db, offered, &place)?;
    }
    fence::pass(db, Guarded::of(place.channel, offered.lease))?;
    let held = held(db, place.lease, role)?;
    let moved = moved(offered, held.as_ref())?;
    let step = i64::from(moved);
    let (seq, links) = held.map_or((0, 0), |h| (h.seq, h.links));
    let seq = seq.checked_add(step).ok_or(LedgerError::Range { field: "seq" })?;
    let links = links.checked_add(step).ok_or(LedgerError::Range { field: "links" })?;
    let amount = offered.amount.to_bytes();
    if moved {
        db.execute(
            "INSERT INTO link (lease, role, seq, up, down, amount)
             VALUES ($1, $2, $3, $4, $5, $6)",
            &[place.lease.into(), role.into(), seq.into(), up.into(), down.into(), amount.into()],
        )?;
    }
    let thinned = thin(db, place.lease, role, links)?;
    db.execute(
        "INSERT INTO newest (lease, role, seq, up, down, amount, session, voucher, channel, links)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (lease, role) DO UPDATE SET
             seq = excluded.seq, up = excluded.up, down = excluded.down,
             amount = excluded.amount, session = excluded.session, voucher = excluded.voucher,
             channel = excluded.channel, links = excluded.links",
        &[
            place.lease.into(),
            role.into(),
            seq.into(),
            up.into(),
            down.into(),
            amount.into(),
            session.into(),
            offered.voucher.encode_to_vec().into(),
            offered.voucher.channel[..].into(),
            links.saturating_sub(thinned).into(),
        ],
    )?;
    Ok(())
}

fn place(db: &Db<'_>, lease: LeaseId) -> Result<Option<Place>, Fault> {
    db.row("SELECT n, base, channel, closed FROM lease WHERE id = $1", &[lease.0.into()], |row| {
        Ok(Place {
            lease: row.number("n")?,
            base: amount(row, "base")?,
            channel: channel(row, "channel")?,
            closed: flag(row, "closed")?,
        })
    })
}

/// A channel that went on to a later lease pays this one no more: the later one counts from what was
/// earned before it.
fn goes_on(db: &Db<'_>, offered: &StoredVoucher, place: &Place) -> Result<(), Fault> {
    let Some(channel) = place.channel.filter(|_| place.closed) else { return Ok(()) };
    let later = db.row(
        "SELECT n FROM lease WHERE channel = $1 AND role = $2 AND n > $3 LIMIT 1",
        &[channel.0.into(), Role::Payee.into(), place.lease.into()],
        |row| row.number("n"),
    )?;
    match later {
        Some(_) => Err(LedgerError::Ended { lease: offered.lease, channel }.into()),
        None => Ok(()),
    }
}

/// The highest amount that was earned on a channel under other leases than this one.
pub(crate) fn earned_before(
    db: &Db<'_>,
    channel: ChannelId,
    lease: LeaseId,
) -> Result<Option<Amount>, Fault> {
    db.row(
        "SELECT newest.amount FROM newest JOIN lease ON lease.n = newest.lease
         WHERE newest.channel = $1 AND newest.role = $2 AND lease.id <> $3
         ORDER BY newest.amount DESC LIMIT 1",
        &[channel.0.into(), Role::Payee.into(), lease.0.into()],
        |row| amount(row, "amount"),
    )
}

/// Whether what was stated beside the voucher is what it and its lease say.
fn agrees(offered: &StoredVoucher, place: &Place) -> Result<(), LedgerError> {
    let mismatch = |field| LedgerError::Mismatch { lease: offered.lease, field };
    let inside = &offered.voucher.amount;
    if !inside.is_empty() && inside[..] != offered.amount.to_bytes() {
        return Err(mismatch("amount"));
    }
    if place.channel.is_some_and(|channel| channel.0[..] != offered.voucher.channel[..]) {
        return Err(mismatch("channel"));
    }
    if offered.amount < place.base {
        let (base, offered_amount) = (place.base, offered.amount);
        return Err(LedgerError::BelowBase { lease: offered.lease, base, offered: offered_amount });
    }
    Ok(())
}

/// Whether the voucher is worth more than what is held, or counts more.
fn moved(offered: &StoredVoucher, held: Option<&Held>) -> Result<bool, LedgerError> {
    let Some(held) = held else { return Ok(true) };
    if offered.amount < held.amount || offered.up < held.up || offered.down < held.down {
        return Err(LedgerError::NotHigher {
            lease: offered.lease,
            held: held.amount,
            held_up: held.up,
            held_down: held.down,
            offered: offered.amount,
            offered_up: offered.up,
            offered_down: offered.down,
        });
    }
    Ok((offered.amount, offered.up, offered.down) != (held.amount, held.up, held.down))
}

fn held(db: &Db<'_>, lease: i64, role: Role) -> Result<Option<Held>, Fault> {
    let sql = "SELECT seq, links, up, down, amount FROM newest WHERE lease = $1 AND role = $2";
    db.row(sql, &[lease.into(), role.into()], |row| {
        Ok(Held {
            seq: row.number("seq")?,
            links: row.number("links")?,
            up: count(row, "up")?,
            down: count(row, "down")?,
            amount: amount(row, "amount")?,
        })
    })
}

/// Thins the older half of a chain that is full; gives how many links went. The first stays.
fn thin(db: &Db<'_>, lease: i64, role: Role, links: i64) -> Result<i64, Fault> {
    let max = integer("links", LINKS_MAX)?;
    if links < max {
        return Ok(0);
    }
    let gone = db.execute(
        "DELETE FROM link WHERE lease = $1 AND role = $2 AND seq IN (
             SELECT seq FROM (
                 SELECT seq, row_number() OVER (ORDER BY seq) AS place FROM link
                 WHERE lease = $1 AND role = $2
             ) AS placed WHERE place % 2 = 0 AND place <= $3
         )",
        &[lease.into(), role.into(), (max >> 1).into()],
    )?;
    Ok(i64::try_from(gone).map_err(|_| LedgerError::Range { field: "links" })?)
}

fn newest(db: &Db<'_>, lease: LeaseId, role: Role) -> Result<Option<StoredVoucher>, Fault> {
    db.row(
        "SELECT lease.id, newest.* FROM newest JOIN lease ON lease.n = newest.lease
         WHERE lease.id = $1 AND newest.role = $2",
        &[lease.0.into(), role.into()],
        voucher,
    )
}

fn newest_on_channel(
    db: &Db<'_>,
    channel: ChannelId,
    role: Role,
) -> Result<Option<StoredVoucher>, Fault> {
    db.row(
        "SELECT lease.id, newest.* FROM newest JOIN lease ON lease.n = newest.lease
         WHERE newest.channel = $1 AND newest.role = $2
         ORDER BY newest.amount DESC, newest.lease DESC LIMIT 1",
        &[channel.0.into(), role.into()],
        voucher,
    )
}

fn voucher(row: &Row<'_>) -> Result<StoredVoucher, Fault> {
    let encoded = Bytes::from(row.blob("voucher")?);
    Ok(StoredVoucher {
        lease: LeaseId(bytes(row, "id")?),
        up: count(row, "up")?,
        down: count(row, "down")?,
        amount: amount(row, "amount")?,
        voucher: pay::Voucher::decode(encoded).map_err(|_| Fault::Column("voucher"))?,
        session: count(row, "session")?,
    })
}

fn links(db: &Db<'_>, lease: LeaseId, role: Role) -> Result<Vec<Link>, Fault> {
    db.rows(
        "SELECT link.seq, link.up, link.down, link.amount
         FROM link JOIN lease ON lease.n = link.lease
         WHERE lease.id = $1 AND link.role = $2 ORDER BY link.seq",
        &[lease.0.into(), role.into()],
        |row| {
            Ok(Link {
                seq: count(row, "seq")?,
                up: count(row, "up")?,
                down: count(row, "down")?,
                amount: amount(row, "amount")?,
            })
        },
    )
}
