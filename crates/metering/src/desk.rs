//! The payer's side of vouchers, the same on both edges: sign, keep, send, repeat.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::Amount;
use sluice_proto::wire::pay;

use crate::repeat::{Deadline, Repeat};
use crate::till::encode;
use crate::voucher::due;
use crate::{Counts, Lie, Purse, Statement, Terms, VoucherRecord};

/// Most vouchers that are on their way to the ledger: as many as there are quarters in a window.
const PERSISTING_MAX: usize = 4;
/// Sent vouchers whose acknowledgement is still recognised.
const SENT_MAX: usize = 64;

/// Names a voucher between [`Desk`] and ledger; later ones are higher.
pub(crate) type Seq = u64;

/// What became of a wish to sign.
#[expect(clippy::large_enum_variant, reason = "made and taken apart at once")]
pub(crate) enum Signed {
    /// A voucher; `persist` when the ledger must have it first.
    Voucher { seq: Seq, statement: Statement, persist: Option<VoucherRecord> },
    /// Nothing can be signed now: no channel yet, the ledger is behind, or it failed.
    NotNow,
    /// The channel does not hold what is due.
    Exhausted { due: Amount, deposit: Amount },
}

struct Kept {
    seq: Seq,
    record: VoucherRecord,
    durable: bool,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({}, {})", self.seq, self.record.amount)
    }
}

#[derive(Debug)]
pub(crate) struct Desk {
    terms: Terms,
    purse: Option<Purse>,
    /// What the newest voucher says, whether sent or still on its way to the ledger.
    stated: Counts,
    stated_amount: Amount,
    /// Newest voucher that may be sent, or was.
    current: Option<(Seq, VoucherRecord)>,
    /// Signed and not yet durable, oldest first.
    persisting: VecDeque<Kept>,
    sent: VecDeque<(Seq, [u8; 32], Counts)>,
    acked: Counts,
    acked_seq: Seq,
    seq: Seq,
    repeat: Repeat,
    ledger_failed: bool,
}

impl Desk {
    pub(crate) fn new(terms: Terms, purse: Option<Purse>, newest: Option<&VoucherRecord>) -> Self {
        let stated = newest.map_or(Counts::default(), |v| v.counts);
        let base = purse.as_ref().map_or(Amount(0), |p| p.channel.base);
        Self {
            terms,
            purse,
            stated,
            stated_amount: newest.map_or(base, |v| v.amount),
            current: newest.map(|v| (0, v.clone())),
            persisting: VecDeque::new(),
            sent: VecDeque::new(),
            acked: stated,
            acked_seq: 0,
            seq: 0,
            repeat: Repeat::new(),
            ledger_failed: false,
        }
    }

    pub(crate) const fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(crate) const fn stated(&self) -> Counts {
        self.stated
    }

    pub(crate) const fn stated_amount(&self) -> Amount {
        self.stated_amount
    }

    pub(crate) const fn acked(&self) -> Counts {
        self.acked
    }

    /// Whether the newest voucher is with the payee.
    pub(crate) fn is_settled(&self) -> bool {
        self.persisting.is_empty()
            && self.current.as_ref().is_none_or(|(seq, _)| self.acked_seq >= *seq)
    }

    pub(crate) fn set_pto(&mut self, pto: Duration) {
        self.repeat.set_pto(pto);
    }

    pub(crate) const fn pto(&self) -> Duration {
        self.repeat.pto()
    }

    pub(crate) fn set_purse(&mut self, purse: Purse) {
        if self.stated == Counts::default() {
            self.stated_amount = purse.channel.base;
        }
        self.purse = Some(purse);
    }

    pub(crate) fn set_deposit(&mut self, deposit: Amount) {
        if let Some(purse) = &mut self.purse {
            purse.channel.deposit = deposit;
        }
    }

    pub(crate) fn handle_ledger_failed(&mut self) {
        self.ledger_failed = true;
    }

    /// What `counts` cost, if that fits.
    pub(crate) fn due(&self, counts: Counts) -> Option<Amount> {
        due(&self.terms, self.purse.as_ref().map(|p| &p.channel), counts)
    }

    pub(crate) fn sign(&mut self, statement: Statement) -> Signed {
        let missing = !self.terms.price.is_zero() && self.purse.is_none();
        if missing || self.ledger_failed || self.persisting.len() >= PERSISTING_MAX {
            return Signed::NotNow;
        }
        let counts = statement.counts;
        let Some((record, statement)) =
            VoucherRecord::sign(&self.terms, self.purse.as_ref(), statement)
        else {
            let deposit = self.purse.as_ref().map_or(Amount(0), |p| p.channel.deposit);
            return Signed::Exhausted {
                due: self.due(counts).unwrap_or(Amount(u128::MAX)),
                deposit,
            };
        };
        self.seq = self.seq.saturating_add(1);
        let persist = self.is_news(&record).then(|| record.clone());
        (self.stated, self.stated_amount) = (record.counts, record.amount);
        let kept = Kept { seq: self.seq, record, durable: persist.is_none() };
        self.persisting.push_back(kept);
        self.release();
        Signed::Voucher { seq: self.seq, statement, persist }
    }

    /// A voucher of the same amount needs no ledger: what it adds is not money.
    fn is_news(&self, record: &VoucherRecord) -> bool {
        if self.terms.price.is_zero() {
            record.counts != self.stated
        } else {
            record.amount > self.stated_amount
        }
    }

    /// All vouchers up to `seq` are durable.
    pub(crate) fn handle_persisted(&mut self, seq: Seq) {
        for kept in self.persisting.iter_mut().filter(|k| k.seq <= seq) {
            kept.durable = true;
        }
        self.release();
    }

    fn release(&mut self) {
        while self.persisting.front().is_some_and(|k| k.durable) {
            if let Some(kept) = self.persisting.pop_front() {
                if self.sent.len() >= SENT_MAX {
                    self.sent.pop_front();
                }
                let hash = kept.record.statement_hash();
                self.sent.push_back((kept.seq, hash, kept.record.counts));
                self.current = Some((kept.seq, kept.record));
                self.repeat.start();
            }
        }
    }

    /// Takes an acknowledgement; the number of the voucher that it answers, when it is news.
    pub(crate) fn handle_ack(&mut self, ack: &pay::VoucherAck) -> Result<Option<Seq>, Lie> {
        let amount = Amount::parse(&ack.amount).map_err(|e| Lie::Malformed(e.to_string()))?;
        if amount > self.stated_amount {
            return Err(Lie::FalseAck { signed: self.stated_amount, found: amount });
        }
        let known = self.sent.iter().find(|(_, hash, _)| ack.statement == hash.as_slice());
        let Some((seq, _, counts)) = known.copied() else { return Ok(None) };
        if self.acked_seq >= seq {
            return Ok(None);
        }
        (self.acked, self.acked_seq) = (counts, seq);
        self.sent.retain(|(s, _, _)| *s > seq);
        if self.current.as_ref().is_some_and(|(s, _)| *s == seq) {
            self.repeat.stop();
        }
        Ok(Some(seq))
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        let (_, record) = self.current.as_ref()?;
        self.repeat
            .take(now)
            .then(|| encode(pay::pay_datagram::Kind::Voucher(record.voucher.clone())))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Deadline> {
        self.repeat.next().map(|at| (at, "repeat the newest voucher"))
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.repeat.handle_timeout(now);
    }

    /// The newest voucher that may be shown: presented when the next session begins.
    pub(crate) fn newest(&self) -> Option<&VoucherRecord> {
        self.current.as_ref().map(|(_, record)| record)
    }
}
