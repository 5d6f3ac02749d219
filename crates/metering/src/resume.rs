//! How an account goes on: what payer and payee show each other before anything is signed.

use sluice_proto::Amount;
use sluice_proto::wire::pay;

use crate::{Channel, Lie, Terms, VoucherRecord};

/// How this side's newest voucher stands to the one that the other side shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Both have the same one, or none.
    Even,
    /// The other side proves a newer one, which this side forgot, or never got.
    Behind,
    /// The other side shows an older one, or none: it did not get the newest, forgot it, or hides it.
    Ahead,
}

/// What an account goes on from, once each side showed the other its newest voucher: the higher of
/// the two. A ledger may be older than what was written to it once, since it was restored from a
/// backup, or since a copy of it ran elsewhere; nobody can tell by looking at it. So neither side
/// trusts its own disk alone, and these hold for both edges:
///
/// - **Heard before signed.** Nothing is signed, and nothing served, on a lease before the other side
///   was heard. What it proves is made durable first ([`Standing::Behind`]).
/// - **Only what is proved.** What the other side shows must be on this lease and channel, cost what
///   its counts cost, and bear the payer's signature. All else is a [`Lie`], and changes nothing.
/// - **A payer pays for no byte twice.** Vouchers are cumulative and a payee can redeem the highest
///   one, not their sum. A payer that signed for `c` bytes, forgot all beyond `b < c`, and meets a
///   payee that hides it, goes on at `b`: after `n` more bytes that payee holds vouchers for `c` and
///   for `b + n`, and so can redeem `max(c, b + n)`, never above the `c + n` that were delivered.
///   The payee that hid it carries the next `c - b` bytes for nothing.
/// - **A payee asks for no byte twice.** It goes on counting from the higher voucher, of which it
///   holds the signature.
/// - **No contradictions.** The counts of two vouchers of one lease never cross (one higher up, the
///   other down): if they do, the payee hid one of them before, or somebody else signs with the
///   payer's key, and the lease ends here ([`Lie::Backwards`]). Each session has a number above those
///   before ([`session_after`], [`check_session`]), so that two statements about one stream of one
///   session come from one process.
/// - **Both forgot.** Then the account goes on from the older of the two moments that are remembered
///   best, `max` of both: the payee has lost what was paid after it, which is all that can be lost,
///   and the payer saves as much.
#[derive(Debug, Clone, PartialEq)]
pub struct Resumption {
    /// The newest voucher of the lease; `None`: nothing was ever signed.
    pub newest: Option<VoucherRecord>,
    /// How this side stood.
    pub standing: Standing,
    /// Bytes, both ways together, between the two vouchers.
    pub gap: u64,
}

impl Resumption {
    /// Compares `ours`, the newest voucher in this side's ledger, with the one that the other side
    /// shows.
    ///
    /// # Errors
    /// When what is shown does not hold; the account must not go on then.
    pub fn of(
        terms: &Terms,
        channel: Option<&Channel>,
        ours: Option<VoucherRecord>,
        shown: Option<&pay::Voucher>,
    ) -> Result<Self, Lie> {
        let shown = shown.map(|v| VoucherRecord::verify(terms, channel, v)).transpose()?;
        let Some(shown) = shown else {
            let gap = ours.as_ref().map_or(0, |v| v.counts.total());
            let standing = if ours.is_some() { Standing::Ahead } else { Standing::Even };
            return Ok(Self { newest: ours, standing, gap });
        };
        let Some(ours) = ours else {
            let gap = shown.counts.total();
            return Ok(Self { newest: Some(shown), standing: Standing::Behind, gap });
        };
        let (newest, found) = (ours.counts, shown.counts);
        let is_paid = !terms.price.is_zero();
        if is_paid && !newest.covers(found) && !found.covers(newest) {
            return Err(Lie::Backwards { newest, found });
        }
        Ok(if shown.exceeds(Some(&ours)) {
            let gap = found.since(newest);
            Self { newest: Some(shown), standing: Standing::Behind, gap }
        } else {
            let ahead = ours.exceeds(Some(&shown));
            let standing = if ahead { Standing::Ahead } else { Standing::Even };
            Self { newest: Some(ours), standing, gap: newest.since(found) }
        })
    }

    /// What this account goes on from, on `channel`.
    #[must_use]
    pub fn amount(&self, channel: &Channel) -> Amount {
        self.newest.as_ref().map_or(channel.base, |newest| newest.amount)
    }

    /// Payee: whether both sides forgot what the chain says was `redeemed`: what they would count up
    /// to it was paid once already, so that the account must not go on.
    #[must_use]
    pub fn is_forgotten(&self, channel: &Channel, redeemed: Amount) -> bool {
        self.amount(channel) < redeemed
    }

    /// The voucher that must be durable before anything is signed or served.
    #[must_use]
    pub fn forgotten(&self) -> Option<&VoucherRecord> {
        self.newest.as_ref().filter(|_| self.standing == Standing::Behind)
    }
}

/// The number that a payee gives the session that begins at `now_unix_ms`: above `last`, the newest
/// it remembers, above the one that `newest` was signed in, and above those that only a ledger which
/// is gone remembers, as long as its clock moved on since.
#[must_use]
pub fn session_after(last: u64, newest: Option<&VoucherRecord>, now_unix_ms: u64) -> u64 {
    let signed = newest.map_or(0, |v| v.session);
    last.max(signed).saturating_add(1).max(now_unix_ms)
}

/// Checks the number that a payee gave a session: streams are counted anew under each, so the payer
/// signs nothing under one that was there before. `last` is the newest that it remembers.
///
/// # Errors
/// [`Lie::OldSession`].
pub fn check_session(found: u64, last: u64, newest: Option<&VoucherRecord>) -> Result<(), Lie> {
    let last = last.max(newest.map_or(0, |v| v.session));
    if found > last { Ok(()) } else { Err(Lie::OldSession { last, found }) }
}
