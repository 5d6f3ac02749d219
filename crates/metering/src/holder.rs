//! The payer of a relay's edge: the holder of a reservation.

mod flows;
mod losses;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::wire::pay::{self, pay_datagram::Kind};
use sluice_proto::{Amount, FlowId};

use crate::desk::{Desk, Signed};
use crate::payer::{check_lease, decode, quarter};
use crate::repeat::{Deadline, after, earlier};
use crate::{
    Counts, Evidence, Lie, PayerEvent, Purse, RelayBudget, RelayFlow, Statement, Terms,
    VoucherRecord,
};
use flows::Flows;
use losses::Losses;

/// Least time between vouchers for less than a quarter window.
const ANSWER_MIN: Duration = Duration::from_millis(10);

/// A holder's account with one relay: it pays what the relay claims, within its own count of what
/// it sent and its own grants for what it received.
///
/// Frames are counted by the transport through [`RelayFlow`]s. What the holder grants goes to the relay
/// in `Grant` messages: drain [`poll_grant`](Self::poll_grant) as the other queues. All else goes as for
/// a [`Payer`](crate::Payer).
#[derive(Debug)]
pub struct HolderMeter {
    desk: Desk,
    budget: Arc<RelayBudget>,
    /// The budget's counts when the account began: sent, and both ways.
    began: u64,
    began_both: u64,
    losses: Losses,
    starter_left: u64,
    /// What the account went on from.
    base: Counts,
    claimed: Counts,
    flows: Flows,
    answered: Option<Instant>,
    flush: bool,
    exhausted: bool,
    blocked: bool,
    opened: bool,
    events: VecDeque<PayerEvent>,
}

impl HolderMeter {
    /// An account that goes on from `newest`, or from nothing. `starter_left` is what the relay
    /// said it still gives. `budget` counts the frames of the link, since before the account began;
    /// the account takes its limit over.
    #[must_use]
    pub fn new(
        terms: Terms,
        purse: Option<Purse>,
        starter_left: u64,
        newest: Option<&VoucherRecord>,
        budget: Arc<RelayBudget>,
    ) -> Self {
        let base = newest.map_or(Counts::default(), |v| v.counts);
        let mut meter = Self {
            desk: Desk::new(terms, purse, newest),
            began: budget.sent(),
            began_both: budget.sent().saturating_add(budget.received()),
            losses: Losses::default(),
            budget,
            starter_left,
            base,
            claimed: base,
            flows: Flows::default(),
            answered: None,
            flush: false,
            exhausted: false,
            blocked: false,
            opened: false,
            events: VecDeque::new(),
        };
        meter.raise_limit();
        meter
    }

    /// Counts from what the budget's counts were before: `sent` and `received` when the connection
    /// to the relay began that the terms were accepted on. The relay may count what was on its way
    /// while the terms were.
    #[must_use]
    pub fn counting_since(mut self, sent: u64, received: u64) -> Self {
        self.began = sent.min(self.began);
        self.began_both = self.began.saturating_add(received).min(self.began_both);
        self.raise_limit();
        self
    }

    /// What may still be sent through this relay.
    #[must_use]
    pub const fn budget(&self) -> &Arc<RelayBudget> {
        &self.budget
    }

    /// A flow of the tenant with this key opened. The first of each tenant brings the grant's base; its
    /// flows share what is granted for credit that was carried over.
    pub fn open_flow(&mut self, id: FlowId, flow: Arc<RelayFlow>, tenant: [u8; 32]) {
        self.flows.open(id, flow, tenant);
    }

    /// More may be granted on a flow: payload was delivered or sent, or a session came to it.
    pub fn handle_growth(&mut self, id: FlowId) {
        self.flows.look_at(id);
    }

    /// A flow closed.
    pub fn close_flow(&mut self, id: FlowId) {
        self.flows.close(id);
    }

    /// What to tell the relay in a `Grant` of a flow, until `None`. From now on the relay may claim it.
    pub fn poll_grant(&mut self) -> Option<(FlowId, u64)> {
        self.flows.poll_grant()
    }

    /// What the relay can honestly claim by now.
    #[must_use]
    pub fn counted(&self) -> Counts {
        Counts {
            up: self.base.up.saturating_add(self.sent()),
            down: self.base.down.saturating_add(self.flows.granted()),
        }
    }

    /// A pay message of the relay, as its datagram came.
    pub fn handle_datagram(&mut self, message: &Bytes, now: Instant) {
        self.losses.note(self.sent(), self.received(), now);
        let result = match decode(message) {
            Ok(Kind::Claim(claim)) => self.handle_claim(&claim, now),
            Ok(Kind::Ack(ack)) => self.handle_ack(&ack),
            Ok(Kind::Voucher(_)) => Err(Lie::Malformed("a voucher from the payee".to_owned())),
            Err(lie) => Err(lie),
        };
        if let Err(lie) = result {
            let message = message.clone();
            self.events.push_back(PayerEvent::Lie(Evidence { lie, message }));
        }
        self.sign_if_due(now);
    }

    /// Frame bytes sent since the account began.
    fn sent(&self) -> u64 {
        self.budget.sent().saturating_sub(self.began)
    }

    /// Frame bytes received since the account began.
    fn received(&self) -> u64 {
        let before = self.began_both.saturating_sub(self.began);
        self.budget.received().saturating_sub(before)
    }

    fn handle_claim(&mut self, claim: &pay::Claim, now: Instant) -> Result<(), Lie> {
        check_lease(self.desk.terms(), &claim.lease)?;
        let claimed = Counts { up: claim.up, down: claim.down };
        let counted = self.counted();
        if !self.flows.any() && counted.up >= claimed.up && counted.down < claimed.down {
            // It came before the news of the flow that it is about, and will come again.
            return Ok(());
        }
        if !counted.covers(claimed) {
            return Err(Lie::InflatedClaim { counted, claimed });
        }
        if claimed.covers(self.claimed) {
            let is_news = claimed != self.claimed;
            self.claimed = claimed;
            let up = claimed.up.saturating_sub(self.base.up);
            let down = claimed.down.saturating_sub(self.base.down);
            self.losses.handle_claim(up, self.desk.pto(), now);
            if is_news {
                self.losses.handle_billed(down, self.received(), now);
            }
            self.raise_limit();
        }
        Ok(())
    }

    fn handle_ack(&mut self, ack: &pay::VoucherAck) -> Result<(), Lie> {
        if self.desk.handle_ack(ack)?.is_some() {
            self.raise_limit();
        }
        Ok(())
    }

    /// Unacknowledged bytes stay below 7/8 of the window, beside the starter bytes.
    fn raise_limit(&mut self) {
        self.opened |= self.budget.set_limit(self.limit());
    }

    fn limit(&self) -> u64 {
        let terms = self.desk.terms();
        if terms.price.is_zero() {
            return u64::MAX;
        }
        let share = terms.window.saturating_sub(terms.window / 8);
        let acked = self.began_both.saturating_add(self.desk.acked().since(self.base));
        let limit = acked.saturating_add(share).saturating_add(self.starter_left);
        let limit = limit.saturating_add(self.losses.up()).saturating_add(self.losses.unbilled());
        limit.saturating_sub(self.losses.down())
    }

    /// Whether the budget grew since this was last asked: wake whoever waits for the relay.
    pub const fn take_opened(&mut self) -> bool {
        std::mem::replace(&mut self.opened, false)
    }

    /// Claimed, accepted, and not yet in a voucher.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.claimed.since(self.desk.stated())
    }

    fn answer_at(&self) -> Option<Instant> {
        self.answered.map(|at| after(at, ANSWER_MIN))
    }

    fn sign_if_due(&mut self, now: Instant) {
        let owed = self.owed();
        let large = owed >= quarter(self.desk.terms()) || self.flush;
        let may = large || self.answer_at().is_none_or(|at| at <= now);
        if owed > 0 && may && !self.exhausted && !self.blocked {
            self.sign(now);
        }
    }

    fn sign(&mut self, now: Instant) {
        let lease = self.desk.terms().lease;
        let statement = Statement { lease, counts: self.claimed, session: 0, streams: Vec::new() };
        match self.desk.sign(statement) {
            Signed::NotNow => self.blocked = true,
            Signed::Exhausted { due, deposit } => {
                self.exhausted = true;
                self.events.push_back(PayerEvent::DepositExhausted { due, deposit });
            }
            Signed::Voucher { seq, persist, .. } => {
                self.answered = Some(now);
                self.events.extend(persist.map(|record| PayerEvent::Persist { seq, record }));
            }
        }
    }

    /// Signs for all that the relay claimed.
    pub fn flush(&mut self, now: Instant) {
        self.flush = true;
        self.sign_if_due(now);
        self.flush = false;
    }

    /// Shows the channel that pays, where the reservation began without one.
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

    /// The probe timeout of the control connection changed.
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

    /// What to do next, until `None`.
    pub fn poll_event(&mut self) -> Option<PayerEvent> {
        self.events.pop_front()
    }

    /// A datagram to send, until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        self.desk.poll_transmit(now)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let waits = self.owed() > 0 && !self.exhausted && !self.blocked;
        let answer: Option<Deadline> =
            self.answer_at().filter(|_| waits).map(|at| (at, "answer a claim"));
        earlier(self.desk.poll_timeout(), answer)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.desk.handle_timeout(now);
        self.flows.look_at_all();
        self.losses.note(self.sent(), self.received(), now);
        let claimed = self.claimed.up.saturating_sub(self.base.up);
        let lost = self.losses.up();
        self.losses.handle_silence(claimed.saturating_add(quarter(self.desk.terms())), now);
        if self.losses.up() > lost {
            self.raise_limit();
        }
        self.sign_if_due(now);
    }

    /// Whether all that was claimed is in a voucher that the relay acknowledged.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.owed() == 0 && self.desk.is_settled()
    }

    /// What the newest voucher states.
    #[must_use]
    pub const fn stated(&self) -> Counts {
        self.desk.stated()
    }

    /// What the relay acknowledged.
    #[must_use]
    pub const fn acked(&self) -> Counts {
        self.desk.acked()
    }

    /// The amount of the newest voucher, cumulative over the channel.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        self.desk.stated_amount()
    }

    /// The newest voucher that is durable: present it when the reservation is renewed.
    #[must_use]
    pub fn newest(&self) -> Option<&VoucherRecord> {
        self.desk.newest()
    }
}
