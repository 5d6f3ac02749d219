//! A small world around one lease: streams that carry bytes reliably, a network that loses, doubles
//! and reorders datagrams, ledgers that take their time, readers that pause.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_metering::{
    Channel, DATAGRAM_MAX, Direction, Gate, Payee, PayeeEvent, Payer, PayerEvent, Permit, Purse,
    StreamIndex, StreamState, Terms, VoucherRecord,
};

use crate::support::{lies, purse, terms};

const TICK: Duration = Duration::from_millis(1);

/// xorshift64*: all that the world needs of chance.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

/// What one stream is to carry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) down: u64,
    pub(crate) up: u64,
    /// Bytes that the tenant reads of `down` before it pauses for good; `u64::MAX` for never.
    pub(crate) pauses_at: u64,
    /// Bytes after which the tenant resets it; `u64::MAX` for never.
    pub(crate) resets_at: u64,
    pub(crate) opens_at_ms: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) price: sluice_proto::Price,
    pub(crate) loss_percent: u64,
    pub(crate) delay_ms: u64,
    pub(crate) ledger_ms: u64,
    /// Most bytes that a reader takes in one tick.
    pub(crate) read_max: u64,
    /// QUIC's flow control for one stream.
    pub(crate) stream_window: u64,
}

#[derive(Debug)]
struct Stream {
    plan: Plan,
    opened: bool,
    to_send: u64,
    arrived: u64,
    in_flight: Vec<(Instant, u64)>,
    read: u64,
    granted: u64,
    up_left: u64,
    up_flight: Vec<(Instant, u64)>,
    up_arrived: u64,
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    setup: Setup,
    terms: Terms,
    purse: Option<Purse>,
    pub(crate) dice: Dice,
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) payer: Payer,
    pub(crate) gate: Gate,
    session: u64,
    streams: BTreeMap<StreamIndex, Stream>,
    to_payee: Vec<(Instant, Bytes)>,
    to_payer: Vec<(Instant, Bytes)>,
    persisting: Vec<(Instant, u64, VoucherRecord)>,
    recording: Vec<(Instant, u64, VoucherRecord)>,
    pub(crate) signed: Option<VoucherRecord>,
    pub(crate) earned: Option<VoucherRecord>,
    pub(crate) datagrams: u64,
    read_total: u64,
    up_total: u64,
}

impl World {
    pub(crate) fn new(setup: Setup, plans: &[Plan]) -> Self {
        let terms = terms(setup.price);
        let purse = (!setup.price.is_zero()).then(|| purse(1 << 90, 77));
        let channel = purse.as_ref().map(|p| p.channel);
        let now = Instant::now();
        let mut world = Self {
            payer: Payer::new(terms.clone(), purse.clone(), 1, None),
            gate: Gate::new(Payee::new(terms.clone(), channel, 1, None)),
            dice: Dice::new(setup.seed),
            setup,
            terms,
            purse,
            now,
            start: now,
            session: 1,
            streams: BTreeMap::new(),
            to_payee: Vec::new(),
            to_payer: Vec::new(),
            persisting: Vec::new(),
            recording: Vec::new(),
            signed: None,
            earned: None,
            datagrams: 0,
            read_total: 0,
            up_total: 0,
        };
        world.add_streams(plans);
        world
    }

    fn add_streams(&mut self, plans: &[Plan]) {
        let next = self.streams.keys().last().map_or(0, |s| s.0 + 1);
        for (index, plan) in plans.iter().enumerate() {
            let stream = Stream {
                plan: *plan,
                opened: false,
                to_send: plan.down,
                arrived: 0,
                in_flight: Vec::new(),
                read: 0,
                granted: 0,
                up_left: plan.up,
                up_flight: Vec::new(),
                up_arrived: 0,
                closed: false,
            };
            self.streams.insert(StreamIndex(next + index as u64), stream);
        }
    }

    fn channel(&self) -> Option<Channel> {
        self.purse.as_ref().map(|p| p.channel)
    }

    /// One millisecond.
    pub(crate) fn tick(&mut self) {
        self.now += TICK;
        self.deliver();
        self.run_ledgers();
        let indices: Vec<_> = self.streams.keys().copied().collect();
        for index in indices {
            self.run_stream(index);
        }
        if self.payer.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            self.payer.handle_timeout(self.now);
        }
        let payee = self.gate.payee_mut();
        if payee.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            payee.handle_timeout(self.now);
        }
        self.drain();
        self.check();
    }

    fn deliver(&mut self) {
        let now = self.now;
        for message in take_due(&mut self.to_payee, now) {
            self.gate.payee_mut().handle_datagram(&message, now);
        }
        for message in take_due(&mut self.to_payer, now) {
            self.payer.handle_datagram(&message, now);
        }
    }

    fn run_ledgers(&mut self) {
        let now = self.now;
        self.persisting.sort_by_key(|(at, seq, _)| (*at, *seq));
        while self.persisting.first().is_some_and(|(at, ..)| *at <= now) {
            let (_, seq, record) = self.persisting.remove(0);
            assert!(record.exceeds(self.signed.as_ref()), "what is signed only rises");
            self.signed = Some(record);
            self.payer.handle_persisted(seq, now);
        }
        self.recording.sort_by_key(|(at, seq, _)| (*at, *seq));
        while self.recording.first().is_some_and(|(at, ..)| *at <= now) {
            let (_, seq, record) = self.recording.remove(0);
            assert!(record.exceeds(self.earned.as_ref()), "what is earned only rises");
            self.earned = Some(record);
            self.gate.payee_mut().handle_durable(seq);
        }
    }

    fn arrival(&mut self) -> Instant {
        self.now + Duration::from_millis(1 + self.dice.roll(self.setup.delay_ms))
    }

    fn run_stream(&mut self, index: StreamIndex) {
        let Some(mut s) = self.streams.remove(&index) else { return };
        if !s.opened && self.now >= self.start + TICK * s.plan.opens_at_ms {
            s.opened = true;
            self.gate.payee_mut().handle_opened(index);
        }
        if s.opened && !s.closed {
            self.run_down(index, &mut s);
            self.run_up(index, &mut s);
            self.run_end(index, &mut s);
        }
        self.streams.insert(index, s);
    }

    fn run_down(&mut self, index: StreamIndex, s: &mut Stream) {
        let now = self.now;
        let credit = self.setup.stream_window.saturating_sub(s.granted - s.read);
        let want = s.to_send.min(64 * 1024).min(credit);
        if want > 0
            && let Permit::Granted(n) = self.gate.permit(index, Direction::Down, want, now)
        {
            // Sometimes QUIC takes less than was granted.
            let back = if self.dice.chance(10) { self.dice.roll(n) } else { 0 };
            self.gate.refund(index, Direction::Down, back);
            s.to_send -= n - back;
            s.granted += n - back;
            let at = self.arrival();
            s.in_flight.push((at, n - back));
        }
        s.arrived += take_due(&mut s.in_flight, now).into_iter().sum::<u64>();
        let reads = s.arrived.min(self.dice.roll(self.setup.read_max + 1));
        let reads = reads.min(s.plan.pauses_at.saturating_sub(s.read));
        if reads > 0 {
            s.arrived -= reads;
            s.read += reads;
            self.read_total += reads;
            self.payer.handle_read(index, reads, now);
        }
    }

    fn run_up(&mut self, index: StreamIndex, s: &mut Stream) {
        let now = self.now;
        let n = s.up_left.min(self.dice.roll(32 * 1024));
        if n > 0 {
            s.up_left -= n;
            self.payer.handle_written(n, now);
            let at = self.arrival();
            s.up_flight.push((at, n));
        }
        s.up_arrived += take_due(&mut s.up_flight, now).into_iter().sum::<u64>();
        if s.up_arrived > 0
            && let Permit::Granted(n) = self.gate.permit(index, Direction::Up, 64 * 1024, now)
        {
            let reads = n.min(s.up_arrived);
            s.up_arrived -= reads;
            self.up_total += reads;
            self.gate.payee_mut().handle_read(reads, now);
            self.gate.refund(index, Direction::Up, n - reads);
        }
    }

    fn run_end(&mut self, index: StreamIndex, s: &mut Stream) {
        let now = self.now;
        let up_done = s.up_left == 0 && s.up_flight.is_empty() && s.up_arrived == 0;
        if s.to_send == 0 && s.in_flight.is_empty() && s.arrived == 0 && up_done {
            s.closed = true;
            self.gate.payee_mut().handle_closed(index);
            self.payer.handle_closed(index, StreamState::Ended, now);
        } else if s.read >= s.plan.resets_at && up_done {
            s.closed = true;
            self.payer.handle_closed(index, StreamState::Reset, now);
            self.gate.payee_mut().handle_closed(index);
        }
    }

    fn drain(&mut self) {
        let now = self.now;
        while let Some(event) = self.payer.poll_event() {
            match event {
                PayerEvent::Persist { seq, record } => {
                    let at = now + Duration::from_millis(self.dice.roll(self.setup.ledger_ms + 1));
                    let at = self.persisting.last().map_or(at, |(last, ..)| at.max(*last));
                    self.persisting.push((at, seq, record));
                }
                other @ (PayerEvent::Lie(_) | PayerEvent::DepositExhausted { .. }) => {
                    panic!("an honest payee: {other:?}")
                }
            }
        }
        while let Some(event) = self.gate.payee_mut().poll_event() {
            match event {
                PayeeEvent::Persist { seq, record } => {
                    let at = now + Duration::from_millis(self.dice.roll(self.setup.ledger_ms + 1));
                    let at = self.recording.last().map_or(at, |(last, ..)| at.max(*last));
                    self.recording.push((at, seq, record));
                }
                lie @ PayeeEvent::Lie(_) => panic!("an honest payer: {:?}", lies(&[lie])),
                PayeeEvent::Stale | PayeeEvent::Writable => {}
            }
        }
        while let Some(message) = self.payer.poll_transmit(now) {
            let copies = self.copies(&message);
            self.to_payee.extend(copies);
        }
        while let Some(message) = self.gate.payee_mut().poll_transmit(now) {
            let copies = self.copies(&message);
            self.to_payer.extend(copies);
        }
    }

    fn copies(&mut self, message: &Bytes) -> Vec<(Instant, Bytes)> {
        assert!(message.len() <= DATAGRAM_MAX, "{} bytes", message.len());
        self.datagrams += 1;
        let mut copies = Vec::new();
        if !self.dice.chance(self.setup.loss_percent) {
            copies.push((self.arrival(), message.clone()));
        }
        if self.dice.chance(self.setup.loss_percent) {
            copies.push((self.arrival(), message.clone()));
        }
        copies
    }

    fn check(&self) {
        let payee = self.gate.payee();
        if !self.terms.price.is_zero() {
            assert!(payee.unpaid() <= self.terms.window, "unpaid {}", payee.unpaid());
            assert!(payee.unpaid_max() <= self.terms.window);
        }
        let counts = self.payer.counts();
        assert!(counts.covers(self.payer.stated()), "nothing is signed that was not counted");
        assert!(payee.counted().covers(payee.paid()), "nothing is paid that was not given");
        let never_read = self.streams.values().filter(|s| s.opened && s.plan.pauses_at == 0);
        let held: u64 = never_read.filter(|s| !s.closed).map(|s| s.granted).sum();
        if !self.terms.price.is_zero() {
            assert!(held <= self.terms.window / 2, "paused readers hold {held}");
        }
    }

    /// Whether every stream that is neither paused nor reset has carried all it should.
    fn is_done(&self) -> bool {
        self.streams.values().all(|s| s.closed || s.read >= s.plan.pauses_at)
    }

    /// Runs until all that can flow has flowed.
    pub(crate) fn run(&mut self, ticks_max: u32) {
        for _ in 0..ticks_max {
            if self.is_done() {
                return;
            }
            self.tick();
        }
        let open: Vec<_> = self.streams.iter().filter(|(_, s)| !s.closed).collect();
        panic!("no progress: {open:?}\n{:?}\n{:?}", self.payer, self.gate);
    }

    /// Settles, and compares what both sides have.
    pub(crate) fn finish(&mut self) {
        for index in self.streams.keys().copied().collect::<Vec<_>>() {
            self.payer.handle_closed(index, StreamState::Reset, self.now);
            self.gate.payee_mut().handle_closed(index);
            if let Some(s) = self.streams.get_mut(&index) {
                s.closed = true;
            }
        }
        self.gate.payee_mut().flush(self.now);
        self.payer.flush(self.now);
        for _ in 0..60_000 {
            self.tick();
            if self.payer.is_settled() && self.gate.payee().is_settled() {
                break;
            }
        }
        let (payer, payee) = (self.payer.stated(), self.gate.payee().paid());
        assert_eq!(payer, payee, "both bill the same");
        assert_eq!(payer, self.payer.counts(), "all that was counted is billed");
        assert_eq!((payer.up, payer.down), (self.up_total, self.read_total), "and it is true");
        assert_eq!(self.payer.amount(), self.gate.payee().amount());
    }

    /// The session breaks. Whoever crashes forgets all but its ledger.
    pub(crate) fn restart(&mut self, payer_crashes: bool, payee_crashes: bool, plans: &[Plan]) {
        if !payer_crashes {
            self.payer.flush(self.now);
            for _ in 0..200 {
                self.tick();
            }
        }
        self.to_payee.clear();
        self.to_payer.clear();
        self.streams.clear();
        self.persisting.clear();
        self.session += 1;
        let channel = self.channel();
        let presented = self.signed.clone();
        let (terms, earned) = (self.terms.clone(), self.earned.clone());
        if payee_crashes {
            self.recording.clear();
            self.gate = Gate::new(Payee::new(terms, channel, self.session, earned));
        }
        let payee = self.gate.payee_mut();
        let newer = presented.as_ref().and_then(|v| {
            payee.check_presented(&v.voucher).expect("an honest payer's newest voucher holds")
        });
        if let Some(newer) = &newer {
            self.earned = Some(newer.clone());
            self.recording.clear();
        }
        payee.begin_session(self.session, newer);
        while let Some((_, seq, record)) =
            (!self.recording.is_empty()).then(|| self.recording.remove(0))
        {
            self.earned = Some(record);
            self.gate.payee_mut().handle_durable(seq);
        }
        let newest = [self.signed.clone(), self.gate.payee().newest().cloned()]
            .into_iter()
            .flatten()
            .reduce(|a, b| if b.exceeds(Some(&a)) { b } else { a });
        if newest.as_ref().is_some_and(|n| n.exceeds(self.signed.as_ref())) {
            self.signed.clone_from(&newest);
        }
        self.payer =
            Payer::new(self.terms.clone(), self.purse.clone(), self.session, newest.as_ref());
        let counts = self.payer.counts();
        (self.up_total, self.read_total) = (counts.up, counts.down);
        assert_eq!(counts, self.gate.payee().counted(), "both go on from the same totals");
        self.start = self.now;
        self.add_streams(plans);
    }
}

fn take_due<T>(queue: &mut Vec<(Instant, T)>, now: Instant) -> Vec<T> {
    let (due, later) = std::mem::take(queue).into_iter().partition(|(at, _)| *at <= now);
    *queue = later;
    let due: Vec<(Instant, T)> = due;
    due.into_iter().map(|(_, item)| item).collect()
}
