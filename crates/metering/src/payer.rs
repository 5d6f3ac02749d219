//! The payer of a tenant's edge: the tenant.

mod streams;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::wire::pay::{self, pay_datagram::Kind};
use sluice_proto::{Amount, LeaseId, wire};

use crate::desk::{Desk, Signed};
use crate::repeat::{Deadline, IDLE, after, earlier};
use crate::statement::positions_max;
use crate::{
    Counts, DATAGRAM_MAX, Evidence, Lie, Purse, Statement, StreamIndex, StreamState, Terms,
    VoucherRecord,
};
use streams::Streams;

/// Least time between vouchers that a claim asks for before a quarter window is owed, so that a
/// payee cannot make its payer sign without end.
const ANSWER_MIN: Duration = Duration::from_millis(10);

/// What a [`Payer`] or a [`HolderMeter`](crate::HolderMeter) wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum PayerEvent {
    /// Make this voucher durable, then call `handle_persisted(seq)`: it is not sent before.
    Persist {
        /// Names it; a higher one supersedes it.
        seq: u64,
        /// The voucher.
        record: VoucherRecord,
    },
    /// The payee lied; nothing was changed or paid.
    Lie(Evidence),
    /// The channel holds less than what is due: top it up and tell with `handle_deposit`.
    /// Said once; nothing more is signed until then.
    DepositExhausted {
        /// What is owed in all.
        due: Amount,
        /// What the channel holds.
        deposit: Amount,
    },
}

/// The tenant's account on one lease, for one session.
///
/// Drive it like this: report facts with `handle_*`, then drain [`poll_event`](Self::poll_event)
/// and [`poll_transmit`](Self::poll_transmit), and call [`handle_timeout`](Self::handle_timeout)
/// at [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Payer {
    desk: Desk,
    session: u64,
    /// `up`: the highest claim that was accepted; `down`: bytes read.
    counts: Counts,
    written: u64,
    streams: Streams,
    last_payload: Option<Instant>,
    flush: bool,
    /// A claim waits for a voucher, not before this.
    answer: Option<Instant>,
    answered: Option<Instant>,
    exhausted: bool,
    /// Nothing can be signed until the ledger answers or a channel is shown.
    blocked: bool,
    events: VecDeque<PayerEvent>,
}

impl Payer {
    /// An account that goes on from `newest`, the newest voucher that this payer ever signed on the
    /// lease (or that the payee showed it and that holds), or from nothing.
    #[must_use]
    pub fn new(
        terms: Terms,
        purse: Option<Purse>,
        session: u64,
        newest: Option<&VoucherRecord>,
    ) -> Self {
        let counts = newest.map_or(Counts::default(), |v| v.counts);
        Self {
            desk: Desk::new(terms, purse, newest),
            session,
            counts,
            written: counts.up,
            streams: Streams::default(),
            last_payload: None,
            flush: false,
            answer: None,
            answered: None,
            exhausted: false,
            blocked: false,
            events: VecDeque::new(),
        }
    }

    /// Bytes read in order from a stream, after the read.
    pub fn handle_read(&mut self, stream: StreamIndex, n: u64, now: Instant) {
        self.counts.down = self.counts.down.saturating_add(n);
        self.streams.handle_read(stream, n);
        self.last_payload = Some(now);
        self.sign_if_due(now);
    }

    /// Bytes about to be written to a stream. Count them *before* QUIC may send them, or an honest
    /// payee's claim could look inflated; give back with [`handle_unwritten`](Self::handle_unwritten).
    pub fn handle_written(&mut self, n: u64, now: Instant) {
        self.written = self.written.saturating_add(n);
        self.last_payload = Some(now);
    }

    /// Bytes that were counted as written, but that the stream did not take.
    pub fn handle_unwritten(&mut self, n: u64) {
        self.written = self.written.saturating_sub(n).max(self.counts.up);
    }

    /// Nothing more will be read from a stream: it ended, or either side reset it.
    pub fn handle_closed(&mut self, stream: StreamIndex, state: StreamState, now: Instant) {
        self.streams.handle_closed(stream, state);
        self.sign_if_due(now);
    }

    /// Signs for all that is owed, now or as soon as that can be.
    pub fn flush(&mut self, now: Instant) {
        self.flush = true;
        self.sign_if_due(now);
    }

    /// Shows the channel that pays, where the session began without one.
    pub fn handle_purse(&mut self, purse: Purse, now: Instant) {
        self.desk.set_purse(purse);
        (self.exhausted, self.blocked) = (false, false);
        self.sign_if_due(now);
    }

    /// The channel holds this much now.
    pub fn handle_deposit(&mut self, deposit: Amount, now: Instant) {
        self.desk.set_deposit(deposit);
        self.exhausted = false;
        self.sign_if_due(now);
    }

    /// QUIC's probe timeout changed.
    pub fn handle_pto(&mut self, pto: Duration) {
        self.desk.set_pto(pto);
    }

    /// All vouchers up to `seq` are durable.
    pub fn handle_persisted(&mut self, seq: u64, now: Instant) {
        self.desk.handle_persisted(seq);
        self.blocked = false;
        self.sign_if_due(now);
    }

    /// The ledger failed: nothing more is signed.
    pub fn handle_ledger_failed(&mut self) {
        self.desk.handle_ledger_failed();
    }

    /// A pay message of the payee, as its datagram came.
    pub fn handle_datagram(&mut self, message: &Bytes, now: Instant) {
        let result = match decode(message) {
            Ok(Kind::Claim(claim)) => self.handle_claim(&claim, now),
            Ok(Kind::Ack(ack)) => self.desk.handle_ack(&ack).map(|seq| {
                if let Some(seq) = seq {
                    self.streams.handle_acked(seq);
                }
            }),
            Ok(Kind::Voucher(_)) => Err(Lie::Malformed("a voucher from the payee".to_owned())),
            Err(lie) => Err(lie),
        };
        if let Err(lie) = result {
            let message = message.clone();
            self.events.push_back(PayerEvent::Lie(Evidence { lie, message }));
        }
        self.sign_if_due(now);
    }

    fn handle_claim(&mut self, claim: &pay::Claim, now: Instant) -> Result<(), Lie> {
        check_lease(self.desk.terms(), &claim.lease)?;
        if claim.up > self.written {
            return Err(Lie::InflatedClaim {
                counted: Counts { up: self.written, down: self.counts.down },
                claimed: Counts { up: claim.up, down: claim.down },
            });
        }
        if claim.up > self.counts.up {
            self.counts.up = claim.up;
            self.last_payload = Some(now);
        }
        let earliest = self.answered.map_or(now, |at| after(at, ANSWER_MIN).max(now));
        self.answer = self.answer.or(Some(earliest));
        Ok(())
    }

    /// Owed and not yet in a voucher: bytes both ways.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.counts.since(self.desk.stated())
    }

    /// Positions alone wait until the newest voucher was acknowledged: one would replace the other.
    fn has_news(&self) -> bool {
        self.owed() > 0 || (self.streams.has_news() && self.desk.is_settled())
    }

    fn is_due(&self, now: Instant) -> bool {
        if self.exhausted || self.blocked {
            return false;
        }
        if self.owed() >= quarter(self.desk.terms()) {
            return true;
        }
        let idle = self.last_payload.is_some_and(|at| after(at, IDLE) <= now);
        let asked = self.flush || idle || self.answer.is_some_and(|at| at <= now);
        asked && self.has_news()
    }

    fn sign_if_due(&mut self, now: Instant) {
        if self.is_due(now) {
            self.sign(now);
        }
        if self.owed() == 0 && !self.streams.has_news() {
            (self.answer, self.flush) = (None, false);
        }
    }

    fn sign(&mut self, now: Instant) {
        let statement = Statement {
            lease: self.desk.terms().lease,
            counts: self.counts,
            session: self.session,
            streams: self.streams.positions(positions_max(self.desk.terms().window)),
        };
        match self.desk.sign(statement) {
            Signed::NotNow => self.blocked = true,
            Signed::Exhausted { due, deposit } => {
                self.exhausted = true;
                self.events.push_back(PayerEvent::DepositExhausted { due, deposit });
            }
            Signed::Voucher { seq, statement, persist } => {
                self.streams.handle_reported(seq, &statement.streams);
                self.answered = Some(now);
                self.events.extend(persist.map(|record| PayerEvent::Persist { seq, record }));
            }
        }
    }

    /// What to do next, until `None`.
    pub fn poll_event(&mut self) -> Option<PayerEvent> {
        self.events.pop_front()
    }

    /// A datagram to send, at most 1,100 bytes, until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        self.desk.poll_transmit(now)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let mut next: Option<Deadline> = self.desk.poll_timeout();
        if !self.exhausted && !self.blocked && self.has_news() {
            let answer = self.answer.map(|at| (at, "answer a claim"));
            let idle = self.last_payload.map(|at| (after(at, IDLE), "settle after silence"));
            next = earlier(next, earlier(answer, idle));
        }
        next
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.desk.handle_timeout(now);
        self.sign_if_due(now);
    }

    /// Whether all that is owed is in a voucher that the payee acknowledged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.owed() == 0 && !self.streams.has_news() && self.desk.is_settled()
    }

    /// What this payer counts: bytes up that the payee claimed and it accepted, bytes down read.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// What the newest voucher states.
    #[must_use]
    pub const fn stated(&self) -> Counts {
        self.desk.stated()
    }

    /// What the payee acknowledged.
    #[must_use]
    pub const fn acked(&self) -> Counts {
        self.desk.acked()
    }

    /// The amount of the newest voucher, cumulative over the channel.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        self.desk.stated_amount()
    }

    /// The newest voucher that is durable: present it when the next session begins.
    #[must_use]
    pub fn newest(&self) -> Option<&VoucherRecord> {
        self.desk.newest()
    }

    /// The terms of the lease.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        self.desk.terms()
    }
}

/// A voucher or claim is due at this many new bytes.
pub(crate) const fn quarter(terms: &Terms) -> u64 {
    terms.window / 4
}

pub(crate) fn decode(message: &Bytes) -> Result<Kind, Lie> {
    let datagram: pay::PayDatagram =
        wire::decode(message.clone(), DATAGRAM_MAX).map_err(|e| Lie::Malformed(e.to_string()))?;
    datagram.kind.ok_or_else(|| Lie::Malformed("empty".to_owned()))
}

pub(crate) fn check_lease(terms: &Terms, lease: &[u8]) -> Result<(), Lie> {
    let found = LeaseId::parse(lease).map_err(|e| Lie::Malformed(e.to_string()))?;
    if found != terms.lease {
        return Err(Lie::WrongLease { expected: terms.lease, found });
    }
    Ok(())
}
