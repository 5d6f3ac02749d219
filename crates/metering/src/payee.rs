//! The payee of a tenant's edge: the provider.

mod lanes;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::wire::pay::{self, pay_datagram::Kind};
use sluice_proto::{Amount, LeaseId, WINDOW_MAX};

use crate::payer::{decode, quarter};
use crate::repeat::{Deadline, IDLE, Repeat, after, earlier};
use crate::statement::positions_max;
use crate::till::{Taken, Till, encode};
use crate::voucher::due;
use crate::{
    Channel, Counts, Direction, Evidence, Lie, Permit, Reason, StreamIndex, Terms, VoucherRecord,
};
use lanes::Lanes;

/// Windows that may be lost on a lease to resets and broken sessions, so that an honest payer may
/// crash now and then: each time it loses what it read and did not yet sign for.
const LOSS_WINDOWS: u64 = 4;
/// Beside them this part of what was paid may be lost: one twentieth. What goes beyond stays unpaid,
/// and so stops the flow.
const LOSS_MAX: u64 = 20;
/// What is given of a deposit's last bytes at a time.
const DEPOSIT_STEP: u64 = 4096;
/// A blocked payee asks its payer for a statement after one probe timeout within these bounds, then
/// at doubling intervals.
const POKE_MIN: Duration = Duration::from_millis(5);
const POKE_FIRST_MAX: Duration = Duration::from_millis(100);
const POKE_MAX: Duration = Duration::from_secs(5);

/// What a [`Payee`] wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum PayeeEvent {
    /// Make this voucher durable, then call `handle_durable(seq)`: it does not count before.
    Persist {
        /// Names it; a higher one supersedes it.
        seq: u64,
        /// The voucher.
        record: VoucherRecord,
    },
    /// The payer lied; nothing was changed.
    Lie(Evidence),
    /// An old voucher came again, by the network's doing or the payer's; nothing was changed.
    Stale,
    /// Bytes may flow that had to wait: wake whoever asked.
    Writable,
}

/// Bytes that a payer was given and did not pay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// With sessions that ended.
    pub lost: u64,
    /// In this one, so far.
    pub open: u64,
}

/// The provider's account on one lease, over all its sessions.
///
/// Drive it like this: report facts with `handle_*`, then drain [`poll_event`](Self::poll_event)
/// and [`poll_transmit`](Self::poll_transmit), and call [`handle_timeout`](Self::handle_timeout)
/// at [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Payee {
    till: Till,
    lanes: Lanes,
    /// Bytes granted for streams towards the payer.
    sent: u64,
    /// Bytes read from the payer, and granted to be read.
    read: u64,
    reading: u64,
    /// Lost with earlier sessions, and under earlier leases.
    lost: u64,
    lost_before: u64,
    unpaid_max: u64,
    claimed: u64,
    claim: Repeat,
    poke: Option<Instant>,
    poke_wait: Duration,
    last_payload: Option<Instant>,
    blocked: bool,
    ledger_failed: bool,
    events: VecDeque<PayeeEvent>,
}

impl Payee {
    /// An account that goes on from `newest`, the newest durable voucher of the lease, or from
    /// nothing. `channel` is absent at price 0, and while starter bytes last.
    #[must_use]
    pub fn new(
        terms: Terms,
        channel: Option<Channel>,
        session: u64,
        newest: Option<VoucherRecord>,
    ) -> Self {
        let counts = newest.as_ref().map_or(Counts::default(), |v| v.counts);
        Self {
            till: Till::new(terms, channel, session, newest),
            lanes: Lanes::default(),
            sent: counts.down,
            read: counts.up,
            reading: 0,
            lost: 0,
            lost_before: 0,
            unpaid_max: 0,
            claimed: counts.up,
            claim: Repeat::new(),
            poke: None,
            poke_wait: POKE_MIN,
            last_payload: None,
            blocked: false,
            ledger_failed: false,
            events: VecDeque::new(),
        }
    }

    /// What this payer left unpaid under leases before counts against what may be lost on this one,
    /// and the starter bytes are gone with it.
    #[must_use]
    pub const fn after_losses(mut self, lost: u64) -> Self {
        (self.lost, self.lost_before) = (lost, lost);
        self
    }

    /// What was lost on this lease, and what is open.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Losses {
            lost: self.lost.saturating_sub(self.lost_before),
            open: self.counted().since(self.till.stated()),
        }
    }

    /// Checks a voucher that the payer presents when a session begins.
    /// `Some` when it is higher than what this side has: make it durable, then give it to
    /// [`begin_session`](Self::begin_session) (or to [`new`](Self::new), of the lease's first
    /// session in this process, where [`VoucherRecord::verify`] does the same).
    ///
    /// # Errors
    /// When it does not hold.
    pub fn check_presented(&self, voucher: &pay::Voucher) -> Result<Option<VoucherRecord>, Lie> {
        let record = VoucherRecord::verify(self.till.terms(), self.till.channel(), voucher)?;
        Ok(record.exceeds(self.till.newest_stated()).then_some(record))
    }

    /// The session before is gone, another begins. What was sent in it and not paid is lost, and
    /// counts against what may be lost on this lease.
    pub fn begin_session(&mut self, session: u64, presented: Option<VoucherRecord>) {
        self.till.begin_session(session, presented);
        let counts = self.till.stated();
        self.lost = self.lost.saturating_add(self.counted().since(counts));
        self.lanes = Lanes::default();
        (self.sent, self.read, self.reading) = (counts.down, counts.up, 0);
        self.claimed = counts.up;
        self.claim.stop();
        self.poke = None;
        // The ledger took the terms of this session, so it can be written again.
        self.ledger_failed = false;
        self.wake();
    }

    /// A stream opened.
    pub fn handle_opened(&mut self, stream: StreamIndex) {
        self.lanes.open(stream);
    }

    /// Nothing more will be written to a stream: it was finished or reset.
    pub fn handle_closed(&mut self, stream: StreamIndex) {
        self.lanes.handle_closed(stream);
    }

    /// Asks to write `want` bytes to a stream, or to read as many from it. What is granted counts
    /// at once; give back what was not used with [`refund`](Self::refund), and report what was read
    /// with [`handle_read`](Self::handle_read).
    pub fn permit(
        &mut self,
        stream: StreamIndex,
        direction: Direction,
        want: u64,
        now: Instant,
    ) -> Permit {
        if self.ledger_failed {
            return Permit::Wait(Reason::Ledger, None);
        }
        let granted = match self.allowed(stream, direction, want, now) {
            Ok(n) => n,
            Err(reason) => return Permit::Wait(reason, None),
        };
        match direction {
            Direction::Up => self.reading = self.reading.saturating_add(granted),
            Direction::Down => {
                self.sent = self.sent.saturating_add(granted);
                self.last_payload = Some(now);
            }
        }
        self.unpaid_max = self.unpaid_max.max(self.unpaid());
        Permit::Granted(granted)
    }

    fn allowed(
        &mut self,
        stream: StreamIndex,
        direction: Direction,
        want: u64,
        now: Instant,
    ) -> Result<u64, Reason> {
        let terms = self.till.terms();
        if direction == Direction::Down && !self.lanes.is_open(stream) {
            return Err(Reason::Closed);
        }
        if terms.price.is_zero() {
            return match direction {
                Direction::Up => Ok(want),
                Direction::Down => self.share_freely(stream, want, now),
            };
        }
        let (window, room) = (self.window(), self.room());
        let covered = [want, want.min(DEPOSIT_STEP)];
        let Some(want) = covered.into_iter().find(|n| self.is_covered(direction, *n)) else {
            return Err(self.block(Reason::Deposit, now));
        };
        let (allowed, lane) = match direction {
            Direction::Up => (room, lanes::Lane::Fast),
            Direction::Down => self.lanes.allowed(stream, window, room),
        };
        let granted = allowed.min(room).min(want);
        if granted == 0 && want > 0 {
            let reason = match (room, self.excess()) {
                (0, 0) => Reason::Unpaid { window },
                (0, _) => Reason::Losses,
                _ => Reason::StreamShare,
            };
            return Err(self.block(reason, now));
        }
        if direction == Direction::Down {
            self.lanes.take(stream, granted, lane);
        }
        Ok(granted)
    }

    /// At price 0 nothing is owed, but the streams of a session still share what may be in flight:
    /// the first to ask must not fill QUIC's window for all.
    fn share_freely(
        &mut self,
        stream: StreamIndex,
        want: u64,
        now: Instant,
    ) -> Result<u64, Reason> {
        let room = WINDOW_MAX.saturating_sub(self.unsettled());
        let (allowed, lane) = self.lanes.allowed(stream, WINDOW_MAX, room);
        let granted = allowed.min(room).min(want);
        if granted == 0 && want > 0 {
            return Err(self.block(Reason::StreamShare, now));
        }
        self.lanes.take(stream, granted, lane);
        Ok(granted)
    }

    fn block(&mut self, reason: Reason, now: Instant) -> Reason {
        self.blocked = true;
        if self.poke.is_none() {
            self.poke_wait = self.claim.pto().clamp(POKE_MIN, POKE_FIRST_MAX);
            self.poke = Some(after(now, self.poke_wait));
        }
        reason
    }

    /// Gives back what was granted and not used.
    pub fn refund(&mut self, stream: StreamIndex, direction: Direction, n: u64) {
        if n == 0 {
            return;
        }
        match direction {
            Direction::Up => self.reading = self.reading.saturating_sub(n),
            Direction::Down => {
                self.sent = self.sent.saturating_sub(n).max(self.till.paid().down);
                self.lanes.refund(stream, n);
            }
        }
        self.wake();
    }

    /// Bytes read from the payer, of those that were granted.
    pub fn handle_read(&mut self, n: u64, now: Instant) {
        self.reading = self.reading.saturating_sub(n);
        self.read = self.read.saturating_add(n);
        self.last_payload = Some(now);
        self.claim_if_due(now);
    }

    /// Claims what was read, and asks the payer for a statement.
    pub fn flush(&mut self, now: Instant) {
        self.claimed = self.read;
        self.claim.start();
        self.poke.get_or_insert(after(now, self.poke_wait));
    }

    fn claim_if_due(&mut self, now: Instant) {
        let unclaimed = self.read.saturating_sub(self.claimed);
        let idle = self.last_payload.is_some_and(|at| after(at, IDLE) <= now);
        if unclaimed >= quarter(self.till.terms()) || (idle && unclaimed > 0) {
            self.claimed = self.read;
            self.claim.start();
        }
    }

    /// The payer's channel, where the session began without one.
    pub fn handle_channel(&mut self, channel: Channel) {
        self.till.set_channel(channel);
        self.wake();
    }

    /// The channel holds this much now.
    pub fn handle_deposit(&mut self, deposit: Amount) {
        if let Some(channel) = self.till.channel().copied() {
            self.handle_channel(Channel { deposit, ..channel });
        }
    }

    /// The payer's channel ends, or may have ended: nothing more is given on it. What was given may
    /// still be paid, until it is known to be [open](Self::handle_deposit) again.
    pub fn handle_channel_ends(&mut self) {
        let Some(channel) = self.till.channel().copied() else { return };
        let counts = Counts { up: self.read.saturating_add(self.reading), down: self.sent };
        if let Some(due) = due(self.till.terms(), Some(&channel), counts) {
            self.till.set_channel(Channel { deposit: channel.deposit.min(due), ..channel });
        }
    }

    /// QUIC's probe timeout changed.
    pub fn handle_pto(&mut self, pto: Duration) {
        self.claim.set_pto(pto);
    }

    /// A pay message of the payer, as its datagram came.
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
            self.events.push_back(PayeeEvent::Lie(Evidence { lie, message }));
        }
    }

    fn handle_voucher(&mut self, voucher: &pay::Voucher, now: Instant) -> Result<(), Lie> {
        let statement = crate::Statement::parse(&voucher.statement)?;
        self.lanes.check(&statement.streams)?;
        let counted = Counts { up: self.read, down: self.sent };
        match self.till.handle_voucher(voucher, statement, counted, now)? {
            Taken::Repeated => {}
            Taken::Stale => self.events.push_back(PayeeEvent::Stale),
            Taken::News { seq, persist: Some(record) } => {
                self.events.push_back(PayeeEvent::Persist { seq, record });
            }
            Taken::News { seq, persist: None } => self.handle_durable(seq),
        }
        if self.till.stated().up >= self.claimed {
            self.claim.stop();
        }
        Ok(())
    }

    /// All vouchers up to `seq` are durable.
    pub fn handle_durable(&mut self, seq: u64) {
        self.till.handle_durable(seq);
        let most = positions_max(self.till.terms().window);
        let mut changed = false;
        while let Some(statement) = self.till.next_durable() {
            self.lanes.apply(&statement.streams, most);
            changed = true;
        }
        if changed {
            self.poke = None;
            self.wake();
        }
    }

    /// The ledger failed: nothing more is permitted.
    pub fn handle_ledger_failed(&mut self) {
        self.ledger_failed = true;
        self.wake();
    }

    fn wake(&mut self) {
        if std::mem::take(&mut self.blocked) {
            self.events.push_back(PayeeEvent::Writable);
        }
    }

    /// What to do next, until `None`.
    pub fn poll_event(&mut self) -> Option<PayeeEvent> {
        self.events.pop_front()
    }

    /// A datagram to send, until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if let Some(ack) = self.till.poll_transmit() {
            return Some(ack);
        }
        self.claim.take(now).then(|| {
            let lease = Bytes::copy_from_slice(&self.till.terms().lease.0);
            encode(Kind::Claim(pay::Claim { lease, up: self.claimed, down: 0 }))
        })
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let mut next: Option<Deadline> = self.poke.map(|at| (at, "ask for a statement"));
        if self.claimed > self.till.stated().up {
            next = earlier(next, self.claim.next().map(|at| (at, "repeat the claim")));
        }
        if self.read > self.claimed {
            let idle = self.last_payload.map(|at| (after(at, IDLE), "claim after silence"));
            next = earlier(next, idle);
        }
        next
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.claimed > self.till.stated().up {
            self.claim.handle_timeout(now);
        }
        if self.poke.is_some_and(|at| at <= now) {
            self.poke_wait = self.poke_wait.saturating_mul(2).min(POKE_MAX);
            self.poke = self.blocked.then(|| after(now, self.poke_wait));
            self.claimed = self.read;
            self.claim.start();
        }
        self.claim_if_due(now);
    }

    /// Sent and read, and not covered by the newest durable voucher; bytes in flight and bytes
    /// granted included, gaps of reset streams left out.
    #[must_use]
    pub fn unpaid(&self) -> u64 {
        let counted = Counts { up: self.read.saturating_add(self.reading), down: self.sent };
        let open = counted.since(self.till.paid()).saturating_sub(self.lanes.gaps());
        open.saturating_add(self.excess())
    }

    /// Bytes towards the payer that no durable statement covers yet.
    #[must_use]
    pub(crate) fn unsettled(&self) -> u64 {
        self.sent.saturating_sub(self.till.paid().down).saturating_sub(self.lanes.gaps())
    }

    /// Somebody waits for another reason than this account.
    pub(crate) const fn set_blocked(&mut self) {
        self.blocked = true;
    }

    /// What was lost beyond what may be: four windows and 5 % of what was paid.
    fn excess(&self) -> u64 {
        let paid = self.till.paid().total();
        let windows = self.till.terms().window.saturating_mul(LOSS_WINDOWS);
        let allowed = windows.saturating_add(paid / LOSS_MAX);
        self.lost.saturating_add(self.lanes.gaps()).saturating_sub(allowed)
    }

    /// The highest value that [`unpaid`](Self::unpaid) ever had.
    #[must_use]
    pub const fn unpaid_max(&self) -> u64 {
        self.unpaid_max
    }

    /// The window, with the starter bytes as long as no voucher came and nothing was lost
    /// before.
    #[must_use]
    pub fn window(&self) -> u64 {
        let terms = self.till.terms();
        let is_new = self.till.newest().is_none() && self.lost_before == 0;
        let starter = if is_new { terms.starter_bytes } else { 0 };
        terms.window.saturating_add(starter)
    }

    fn room(&self) -> u64 {
        self.window().saturating_sub(self.unpaid())
    }

    /// Whether the deposit covers what was given and `want` more.
    fn is_covered(&self, direction: Direction, want: u64) -> bool {
        let Some(channel) = self.till.channel() else { return true };
        let mut counts = Counts {
            up: self.read.saturating_add(self.reading),
            down: self.sent.saturating_sub(self.lanes.gaps()),
        };
        match direction {
            Direction::Up => counts.up = counts.up.saturating_add(want),
            Direction::Down => counts.down = counts.down.saturating_add(want),
        }
        due(self.till.terms(), Some(channel), counts).is_some_and(|due| due <= channel.deposit)
    }

    /// Whether all that was read and sent is paid or known to be given up, and no voucher is on its
    /// way to the ledger. A stream whose reader pauses keeps it unsettled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let read = self.reading == 0 && self.till.paid().up >= self.read;
        read && self.unsettled() == 0 && !self.till.is_pending()
    }

    /// What this payee counts: bytes read from the payer, bytes granted towards it.
    #[must_use]
    pub const fn counted(&self) -> Counts {
        Counts { up: self.read, down: self.sent }
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

    /// Vouchers that became durable in this session.
    #[must_use]
    pub const fn vouchers(&self) -> u64 {
        self.till.vouchers()
    }

    /// The newest durable voucher: show it to the payer when a session begins.
    #[must_use]
    pub const fn newest(&self) -> Option<&VoucherRecord> {
        self.till.newest()
    }

    /// The terms of the lease.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        self.till.terms()
    }

    /// The lease.
    #[must_use]
    pub const fn lease(&self) -> LeaseId {
        self.till.terms().lease
    }
}
