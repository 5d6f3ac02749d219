//! The payee of a relay's edge: the relay.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::Amount;
use sluice_proto::wire::pay::{self, pay_datagram::Kind};

use crate::payer::{decode, quarter};
use crate::repeat::{Deadline, IDLE, Repeat, after, earlier};
use crate::till::{Taken, Till, encode};
use crate::{Channel, Counts, Evidence, Lie, Terms, VoucherRecord};

/// A reservation that stays unpaid for this long is closed.
const UNPAID_MAX: Duration = Duration::from_secs(600);

/// What a [`RelayMeter`] wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum RelayMeterEvent {
    /// Make this voucher durable, then call `handle_durable(seq)`: it does not count before.
    Persist {
        /// Names it; a higher one supersedes it.
        seq: u64,
        /// The voucher.
        record: VoucherRecord,
    },
    /// The holder lied; nothing was changed.
    Lie(Evidence),
    /// An old voucher came again; nothing was changed.
    Stale,
    /// The limit was met: tell the holder, and go on at 16 kbit/s.
    Unpaid,
    /// A voucher raised the limit again: tell the holder.
    Paid,
    /// Unpaid for ten minutes: close the reservation's flows.
    Close,
}

/// A relay's account of one reservation: frame bytes from its holder (*up*) and, within the grants,
/// to its holder (*down*).
///
/// The forwarding path counts by itself and compares its total with [`limit`](Self::limit) for each
/// batch, so that the window stops the flow there. It reports its totals with
/// [`handle_totals`](Self::handle_totals) as soon as they reach [`alarm`](Self::alarm), and now and
/// then. All else goes as for a [`Payee`](crate::Payee). Totals begin at nothing when the account
/// is made, whatever voucher it goes on from.
#[derive(Debug)]
pub struct RelayMeter {
    till: Till,
    base: Counts,
    starter_left: u64,
    starter_used: u64,
    totals: Counts,
    unpaid_max: u64,
    claimed: Counts,
    claim: Repeat,
    last_payload: Option<Instant>,
    unpaid_since: Option<Instant>,
    closed: bool,
    ledger_failed: bool,
    events: VecDeque<RelayMeterEvent>,
}

impl RelayMeter {
    /// An account that goes on from `newest`, the newest durable voucher of the reservation, or from
    /// nothing. `starter_left` is what the relay still gives to this holder.
    #[must_use]
    pub fn new(
        terms: Terms,
        channel: Option<Channel>,
        starter_left: u64,
        newest: Option<VoucherRecord>,
    ) -> Self {
        let base = newest.as_ref().map_or(Counts::default(), |v| v.counts);
        Self {
            till: Till::new(terms, channel, 0, newest),
            base,
            starter_left,
            starter_used: 0,
            totals: Counts::default(),
            unpaid_max: 0,
            claimed: base,
            claim: Repeat::new(),
            last_payload: None,
            unpaid_since: None,
            closed: false,
            ledger_failed: false,
            events: VecDeque::new(),
        }
    }

    /// The highest total, both ways together, that may be forwarded by now: what was paid, the
    /// window, and the starter bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        if self.ledger_failed {
            return 0;
        }
        if self.till.terms().price.is_zero() {
            return u64::MAX;
        }
        let paid = self.till.paid().since(self.base);
        paid.saturating_add(self.till.terms().window).saturating_add(self.starter_left)
    }

    /// The total, both ways together, at which [`handle_totals`](Self::handle_totals) should be
    /// called at once: the next claim, or the limit.
    #[must_use]
    pub fn alarm(&self) -> u64 {
        let claimed = self.claimed.since(self.base);
        claimed.saturating_add(quarter(self.till.terms())).min(self.limit())
    }

    /// What was forwarded since this account was made. Totals never fall.
    pub fn handle_totals(&mut self, totals: Counts, now: Instant) {
        if totals.since(self.totals) > 0 {
            self.totals = totals;
            self.last_payload = Some(now);
        }
        let unpaid = self.unpaid();
        self.unpaid_max = self.unpaid_max.max(unpaid);
        let beyond = unpaid.saturating_sub(self.till.terms().window);
        self.starter_used = self.starter_used.max(beyond.min(self.starter_left));
        self.claim_if_due(now);
        self.check_limit(now);
    }

    fn counted(&self) -> Counts {
        Counts {
            up: self.base.up.saturating_add(self.totals.up),
            down: self.base.down.saturating_add(self.totals.down),
        }
    }

    fn claim_if_due(&mut self, now: Instant) {
        let unclaimed = self.counted().since(self.claimed);
        let idle = self.last_payload.is_some_and(|at| after(at, IDLE) <= now);
        let blocked = self.unpaid_since.is_some();
        if unclaimed >= quarter(self.till.terms()) || (unclaimed > 0 && (idle || blocked)) {
            self.flush();
        }
    }

    /// Claims all that was forwarded.
    pub fn flush(&mut self) {
        self.claimed = self.counted();
        self.claim.start();
    }

    fn check_limit(&mut self, now: Instant) {
        let unpaid = self.totals.total() >= self.limit();
        match (unpaid, self.unpaid_since) {
            (true, None) => {
                self.unpaid_since = Some(now);
                self.events.push_back(RelayMeterEvent::Unpaid);
                self.claim_if_due(now);
            }
            (false, Some(_)) => {
                (self.unpaid_since, self.closed) = (None, false);
                self.events.push_back(RelayMeterEvent::Paid);
            }
            _ => {}
        }
    }

    /// The holder's channel, where the reservation began without one.
    pub fn handle_channel(&mut self, channel: Channel) {
        self.till.set_channel(channel);
    }

    /// The channel holds this much now.
    pub fn handle_deposit(&mut self, deposit: Amount) {
        if let Some(channel) = self.till.channel().copied() {
            self.till.set_channel(Channel { deposit, ..channel });
        }
    }

    /// The probe timeout of the control connection changed.
    pub fn handle_pto(&mut self, pto: Duration) {
        self.claim.set_pto(pto);
    }

    /// A pay message of the holder, as its datagram came. Report the newest totals first.
    pub fn handle_datagram(&mut self, message: &Bytes, now: Instant) {
        let result = match decode(message) {
            Ok(Kind::Voucher(voucher)) => self.handle_voucher(&voucher, now),
            Ok(Kind::Ack(_) | Kind::Claim(_)) => {
                Err(Lie::Malformed("a payee's message from the payer".to_owned()))
            }
            Err(lie) => Err(lie),
        };
        if let Err(lie) = result {
            let message = message.clone();
            self.events.push_back(RelayMeterEvent::Lie(Evidence { lie, message }));
        }
    }

    fn handle_voucher(&mut self, voucher: &pay::Voucher, now: Instant) -> Result<(), Lie> {
        let statement = crate::Statement::parse(&voucher.statement)?;
        match self.till.handle_voucher(voucher, statement, self.counted(), now)? {
            Taken::Repeated => {}
            Taken::Stale => self.events.push_back(RelayMeterEvent::Stale),
            Taken::News { seq, persist: Some(record) } => {
                self.events.push_back(RelayMeterEvent::Persist { seq, record });
            }
            Taken::News { seq, persist: None } => self.handle_durable(seq, now),
        }
        if self.till.stated().covers(self.claimed) {
            self.claim.stop();
        }
        Ok(())
    }

    /// All vouchers up to `seq` are durable.
    pub fn handle_durable(&mut self, seq: u64, now: Instant) {
        self.till.handle_durable(seq);
        while self.till.next_durable().is_some() {}
        self.check_limit(now);
    }

    /// The ledger failed: nothing more is forwarded.
    pub fn handle_ledger_failed(&mut self, now: Instant) {
        self.ledger_failed = true;
        self.check_limit(now);
    }

    /// What to do next, until `None`.
    pub fn poll_event(&mut self) -> Option<RelayMeterEvent> {
        self.events.pop_front()
    }

    /// A datagram to send, until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if let Some(ack) = self.till.poll_transmit() {
            return Some(ack);
        }
        self.claim.take(now).then(|| {
            let lease = Bytes::copy_from_slice(&self.till.terms().lease.0);
            let (up, down) = (self.claimed.up, self.claimed.down);
            encode(Kind::Claim(pay::Claim { lease, up, down }))
        })
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let mut next: Option<Deadline> = None;
        if !self.till.stated().covers(self.claimed) {
            next = self.claim.next().map(|at| (at, "repeat the claim"));
        }
        if self.counted().since(self.claimed) > 0 {
            let idle = self.last_payload.map(|at| (after(at, IDLE), "claim after silence"));
            next = earlier(next, idle);
        }
        let close = self.unpaid_since.filter(|_| !self.closed);
        earlier(next, close.map(|at| (after(at, UNPAID_MAX), "close what is unpaid for too long")))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.till.stated().covers(self.claimed) {
            self.claim.handle_timeout(now);
        }
        self.claim_if_due(now);
        let overdue = self.unpaid_since.is_some_and(|at| after(at, UNPAID_MAX) <= now);
        if overdue && !self.closed {
            self.closed = true;
            self.events.push_back(RelayMeterEvent::Close);
        }
    }

    /// Forwarded and not covered by the newest durable voucher.
    #[must_use]
    pub fn unpaid(&self) -> u64 {
        self.counted().since(self.till.paid())
    }

    /// The highest value that [`unpaid`](Self::unpaid) had when totals were reported.
    #[must_use]
    pub const fn unpaid_max(&self) -> u64 {
        self.unpaid_max
    }

    /// The most starter bytes that were ever in use: remember them on disk.
    #[must_use]
    pub const fn starter_used(&self) -> u64 {
        self.starter_used
    }

    /// What was forwarded, cumulative over the reservation.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counted()
    }

    /// What durable vouchers pay for.
    #[must_use]
    pub fn paid(&self) -> Counts {
        self.till.paid()
    }

    /// The amount of the newest durable voucher, cumulative over the channel.
    #[must_use]
    pub fn amount(&self) -> Amount {
        self.till.amount()
    }

    /// Vouchers that became durable here.
    #[must_use]
    pub const fn vouchers(&self) -> u64 {
        self.till.vouchers()
    }

    /// The newest durable voucher: show it to the holder when it resumes.
    #[must_use]
    pub const fn newest(&self) -> Option<&VoucherRecord> {
        self.till.newest()
    }

    /// Whether all that was claimed is paid and no voucher is on its way to the ledger.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.till.paid().covers(self.claimed) && !self.till.is_pending()
    }
}
