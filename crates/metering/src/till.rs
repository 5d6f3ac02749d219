//! The payee's side of vouchers, the same on both edges: check, keep, count, acknowledge.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use sluice_proto::Amount;
use sluice_proto::eth::keccak256;
use sluice_proto::wire::pay;

use crate::repeat::after;
use crate::{Channel, Counts, Lie, Statement, Terms, VoucherRecord};

/// Most vouchers that are on their way to the ledger. More are dropped: their payer repeats them.
const PENDING_MAX: usize = 8;
/// Least time between vouchers that change nothing but positions: each costs a signature check.
const POSITIONS_MIN: Duration = Duration::from_millis(5);

/// What a voucher brought.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "made and taken apart at once")]
pub(crate) enum Taken {
    /// Higher counts; `persist` when the ledger must have it first.
    News { seq: u64, persist: Option<VoucherRecord> },
    /// The newest one again, or one whose turn is over; nothing to do.
    Repeated,
    /// Older than the newest: the network reordered it, or it was replayed.
    Stale,
}

#[derive(Debug)]
struct Pending {
    seq: u64,
    record: VoucherRecord,
    statement: Statement,
    durable: bool,
}

#[derive(Debug)]
pub(crate) struct Till {
    terms: Terms,
    channel: Option<Channel>,
    session: u64,
    newest: Option<VoucherRecord>,
    newest_hash: [u8; 32],
    pending: VecDeque<Pending>,
    seq: u64,
    vouchers: u64,
    positions_at: Option<Instant>,
    ack_due: bool,
}

impl Till {
    pub(crate) fn new(
        terms: Terms,
        channel: Option<Channel>,
        session: u64,
        newest: Option<VoucherRecord>,
    ) -> Self {
        let newest_hash = newest.as_ref().map_or([0; 32], VoucherRecord::statement_hash);
        Self {
            terms,
            channel,
            session,
            newest,
            newest_hash,
            pending: VecDeque::new(),
            seq: 0,
            vouchers: 0,
            positions_at: None,
            ack_due: false,
        }
    }

    /// Another session begins, from what the payer presented if that is higher. What is on its way
    /// to the ledger stays so.
    pub(crate) fn begin_session(&mut self, session: u64, presented: Option<VoucherRecord>) {
        if let Some(presented) = presented.filter(|p| p.exceeds(self.newest_stated())) {
            self.pending.clear();
            self.newest_hash = presented.statement_hash();
            self.newest = Some(presented);
        }
        self.session = session;
        self.ack_due = false;
    }

    pub(crate) const fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(crate) const fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    pub(crate) fn set_channel(&mut self, channel: Channel) {
        self.channel = Some(channel);
    }

    /// What durable vouchers pay for.
    pub(crate) fn paid(&self) -> Counts {
        self.newest.as_ref().map_or(Counts::default(), |v| v.counts)
    }

    pub(crate) fn amount(&self) -> Amount {
        let base = self.channel.map_or(Amount(0), |c| c.base);
        self.newest.as_ref().map_or(base, |v| v.amount)
    }

    pub(crate) const fn newest(&self) -> Option<&VoucherRecord> {
        self.newest.as_ref()
    }

    /// Vouchers that became durable here.
    pub(crate) const fn vouchers(&self) -> u64 {
        self.vouchers
    }

    /// Whether a voucher arrived that is not yet durable.
    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What was stated, durable or not.
    pub(crate) fn stated(&self) -> Counts {
        self.newest_stated().map_or(Counts::default(), |v| v.counts)
    }

    /// The newest voucher, durable or not.
    pub(crate) fn newest_stated(&self) -> Option<&VoucherRecord> {
        self.pending.back().map(|p| &p.record).or(self.newest.as_ref())
    }

    /// Takes a voucher and its statement, which may state at most `counted`.
    pub(crate) fn handle_voucher(
        &mut self,
        voucher: &pay::Voucher,
        statement: Statement,
        counted: Counts,
        now: Instant,
    ) -> Result<Taken, Lie> {
        let (found, stated) = (statement.counts, self.stated());
        if self.is_known(keccak256(&voucher.statement)) {
            return Ok(Taken::Repeated);
        }
        if stated.covers(found) && stated != found {
            self.ack_due |= self.newest.is_some();
            return Ok(Taken::Stale);
        }
        if !found.covers(stated) {
            return Err(Lie::Backwards { newest: stated, found });
        }
        if self.pending.len() >= PENDING_MAX || self.is_too_soon(found == stated, now) {
            return Ok(Taken::Repeated);
        }
        let record =
            VoucherRecord::verify_parsed(&self.terms, self.channel.as_ref(), voucher, &statement)?;
        if statement.session != self.session {
            return Err(Lie::WrongSession { expected: self.session, found: statement.session });
        }
        if !counted.covers(found) {
            return Err(Lie::OverCount { counted, found });
        }
        Ok(self.keep(record, statement))
    }

    /// The newest again is acknowledged again.
    fn is_known(&mut self, hash: [u8; 32]) -> bool {
        let newest = self.newest.is_some() && hash == self.newest_hash;
        self.ack_due |= newest;
        newest || self.pending.iter().any(|p| p.record.statement_hash() == hash)
    }

    fn is_too_soon(&mut self, only_positions: bool, now: Instant) -> bool {
        if !only_positions {
            return false;
        }
        let too_soon = self.positions_at.is_some_and(|at| now < after(at, POSITIONS_MIN));
        if !too_soon {
            self.positions_at = Some(now);
        }
        too_soon
    }

    fn keep(&mut self, record: VoucherRecord, statement: Statement) -> Taken {
        let news = if self.terms.price.is_zero() {
            record.counts != self.stated()
        } else {
            record.amount > self.newest_stated().map_or(self.amount(), |v| v.amount)
        };
        self.seq = self.seq.saturating_add(1);
        let persist = news.then(|| record.clone());
        self.pending.push_back(Pending { seq: self.seq, record, statement, durable: !news });
        Taken::News { seq: self.seq, persist }
    }

    /// All vouchers up to `seq` are durable.
    pub(crate) fn handle_durable(&mut self, seq: u64) {
        for pending in self.pending.iter_mut().filter(|p| p.seq <= seq) {
            pending.durable = true;
        }
    }

    /// The next statement that counts now.
    pub(crate) fn next_durable(&mut self) -> Option<Statement> {
        if !self.pending.front()?.durable {
            return None;
        }
        let pending = self.pending.pop_front()?;
        self.newest_hash = pending.record.statement_hash();
        self.newest = Some(pending.record);
        self.vouchers = self.vouchers.saturating_add(1);
        self.ack_due = true;
        Some(pending.statement)
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<Bytes> {
        let record = self.newest.as_ref()?;
        std::mem::take(&mut self.ack_due).then(|| {
            let ack = pay::VoucherAck {
                amount: Bytes::copy_from_slice(&record.amount.to_bytes()),
                up: record.counts.up,
                down: record.counts.down,
                statement: Bytes::copy_from_slice(&self.newest_hash),
            };
            encode(pay::pay_datagram::Kind::Ack(ack))
        })
    }
}

pub(crate) fn encode(kind: pay::pay_datagram::Kind) -> Bytes {
    pay::PayDatagram { kind: Some(kind) }.encode_to_vec().into()
}
