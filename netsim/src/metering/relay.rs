//! A relay and its holder: the forwarding path, the grant, both accounts and both ledgers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use sluice_metering::{
    Channel, Counts, Debt, GRANT_PACKET_MIN, HolderMeter, RelayBudget, RelayFlow, RelayMeter,
    Resumption, Terms, VoucherRecord, grant_limit,
};
use sluice_proto::FlowId;

use super::books::Books;
use super::network::{Body, Packet};

/// The one tenant's key.
const TENANT: [u8; 32] = [1; 32];
/// What goes on beyond window and grant: 16 kbit/s, two full packets at once.
const TRICKLE_PER_MS: u64 = 2;
const TRICKLE_MAX: u64 = 3000;

/// What a ledger has yet to write: when it has, the number that the account gave, the voucher.
pub(super) type Writing = VecDeque<(Duration, u64, VoucherRecord)>;

/// What packets with payload lack for what they count as sent.
pub(super) fn lacking(packet: &Packet) -> u64 {
    match packet.body {
        Body::Data { .. } => (packet.count() * GRANT_PACKET_MIN).saturating_sub(packet.bytes()),
        Body::Acks(_) | Body::Pay(_) | Body::Reset(_) => 0,
    }
}

#[derive(Debug, Default)]
struct Trickle {
    tokens: u64,
    at: Duration,
}

impl Trickle {
    fn take(&mut self, bytes: u64, now: Duration) -> bool {
        let passed = u64::try_from((now - self.at).as_millis()).unwrap_or(u64::MAX);
        self.at = now;
        self.tokens = (self.tokens + passed.saturating_mul(TRICKLE_PER_MS)).min(TRICKLE_MAX);
        let passes = bytes <= self.tokens;
        self.tokens -= if passes { bytes } else { 0 };
        passes
    }
}

/// What the holder agreed to be billed for.
#[derive(Debug, Default)]
struct Grant {
    sent: u64,
    stated: u64,
    used: u64,
}

/// The process of a relay: all of it is forgotten when it dies.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) meter: Option<RelayMeter>,
    /// The flow that is open, and what the holder granted on it by its word.
    flow: Option<(u32, u64)>,
    /// Forwarded since the process began, and when the account did.
    totals: Counts,
    start: Counts,
    debt: Option<Debt>,
    owes: bool,
    /// What may be forwarded since the account began, as it was when it was last asked.
    limit: u64,
    grant: Grant,
    trickle: Trickle,
    seen: BTreeSet<u64>,
    /// The connection that the account was accepted on: it speaks on no other.
    pub(super) speaks_on: u32,
    /// The holder that lost its connection is still the same process: its flow goes on.
    pub(super) is_kept: bool,
    pub(super) pending: Option<(u64, VoucherRecord)>,
    pub(super) looks_at: Duration,
    /// The total at which the account wants to hear; `u64::MAX` once it was told.
    alarm: u64,
    alarmed: bool,
    /// Something was held back, and the account was told so since there was room last.
    held: bool,
    held_told: bool,
}

impl Process {
    fn new(now: Duration) -> Self {
        Self {
            meter: None,
            flow: None,
            totals: Counts::default(),
            start: Counts::default(),
            debt: None,
            owes: false,
            limit: 0,
            grant: Grant::default(),
            trickle: Trickle { tokens: TRICKLE_MAX, at: now },
            seen: BTreeSet::new(),
            speaks_on: 0,
            is_kept: false,
            pending: None,
            looks_at: now,
            alarm: u64::MAX,
            alarmed: false,
            held: false,
            held_told: false,
        }
    }

    fn since_start(&self) -> Counts {
        let (totals, start) = (self.totals, self.start);
        Counts { up: totals.up - start.up, down: totals.down - start.down }
    }

    fn debt(&self, now: Instant) -> u64 {
        let paid = self.meter.as_ref().map_or(Counts::default(), RelayMeter::paid);
        self.debt.map_or(0, |debt| debt.left(paid, now))
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.since_start().total() + bytes <= self.limit
    }

    /// Reports what was forwarded.
    pub(super) fn report(&mut self, now: Instant) {
        let totals = self.since_start();
        if let Some(meter) = &mut self.meter {
            meter.handle_totals(totals, now);
        }
    }

    /// Whether the account is to hear at once of what was forwarded, or held back.
    pub(super) const fn take_alarm(&mut self) -> (bool, bool) {
        (std::mem::replace(&mut self.alarmed, false), std::mem::replace(&mut self.held, false))
    }

    /// The account was asked and drained: what it allows, and when it wants to hear again.
    pub(super) fn set_limits(&mut self, now: Instant) {
        let (meter, debt) = (self.meter.as_ref(), self.debt(now));
        self.owes = debt > 0;
        self.limit = meter.map_or(0, RelayMeter::limit).saturating_sub(debt);
        self.alarm = meter.map_or(u64::MAX, |m| m.alarm().min(self.limit));
        self.held_told &= !self.has_room(1);
    }

    pub(super) fn grant(&mut self, flow: u32, stated: u64) {
        if let Some((open, before)) = &mut self.flow
            && *open == flow
        {
            self.grant.stated += stated.saturating_sub(*before);
            *before = stated.max(*before);
        }
    }

    pub(super) const fn close_flow(&mut self) {
        self.flow = None;
    }
}

/// A relay.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) process: Option<Process>,
    pub(super) earned: Option<VoucherRecord>,
    pub(super) writing: Writing,
    pub(super) books: Books,
    /// Control that the checker must notice: it counts what comes twice twice.
    pub(super) counts_copies: bool,
    /// Packets that met the end of the grant, or of the window.
    pub(super) over_grant: u64,
    pub(super) over_window: u64,
}

impl Relay {
    pub(super) fn new(books: Books, counts_copies: bool) -> Self {
        Self {
            process: None,
            earned: None,
            writing: Writing::new(),
            books,
            counts_copies,
            over_grant: 0,
            over_window: 0,
        }
    }

    pub(super) fn start(&mut self, now: Duration) {
        self.process = Some(Process::new(now));
    }

    /// The holder's connection was made anew: packets that were sealed before are none.
    pub(super) fn resume_flow(&mut self, flow: u32) {
        if let Some(process) = self.process.as_mut().filter(|p| p.meter.is_some()) {
            process.flow = Some((flow, 0));
        }
    }

    /// A packet came: whether it goes on.
    pub(super) fn forward(&mut self, packet: &Packet, now: Duration) -> bool {
        let Some(process) = &mut self.process else { return false };
        // What a tenant sends is sealed with the tenant's keys.
        let leg = process.flow.map(|(leg, _)| leg);
        if !packet.is_up && leg != Some(packet.leg) {
            return false;
        }
        let first = process.seen.insert(packet.number);
        if process.flow.is_none() || !(first || self.counts_copies) {
            return false;
        }
        let bytes = packet.bytes();
        let grant = &process.grant;
        let limit = grant_limit(0, grant.sent, true) + grant.stated;
        let granted = !packet.is_up || grant.used + bytes <= limit;
        let room = process.has_room(bytes);
        self.over_grant += u64::from(!granted);
        self.over_window += u64::from(granted && !room);
        if granted && !room {
            process.held |= !std::mem::replace(&mut process.held_told, true);
        }
        if !granted || !room {
            // What is forgiven is taken from it.
            let extra = if process.owes { bytes.div_ceil(7) } else { 0 };
            return process.trickle.take(bytes + extra, now);
        }
        let moved = if packet.is_up {
            process.grant.used += bytes;
            Counts { up: 0, down: bytes }
        } else {
            process.grant.sent += bytes;
            Counts { up: bytes, down: 0 }
        };
        process.totals.up += moved.up;
        process.totals.down += moved.down;
        if process.since_start().total() >= process.alarm {
            (process.alarm, process.alarmed) = (u64::MAX, true);
        }
        self.books.give(moved);
        true
    }

    /// The holder accepted: an account goes on from the newest voucher, its own or the one shown.
    pub(super) fn accept(
        &mut self,
        terms: &Terms,
        channel: Channel,
        shown: Option<&VoucherRecord>,
        flow: u32,
        now: Instant,
    ) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let shown = shown.map(|shown| &shown.voucher);
        let resumed = Resumption::of(terms, Some(&channel), self.earned.clone(), shown)?;
        if let Some(record) = resumed.forgotten() {
            self.books.earn(record)?;
            self.writing.clear();
            self.earned = Some(record.clone());
        }
        let meter = RelayMeter::new(terms.clone(), Some(channel), 0, resumed.newest);
        process.report(now);
        let owed = process
            .meter
            .as_ref()
            .map_or(0, |old| old.counts().since(meter.paid()).saturating_add(process.debt(now)));
        process.debt = Some(Debt::new(owed, now, meter.paid()));
        self.books.resume(meter.paid())?;
        process.start = process.totals;
        process.grant = Grant::default();
        process.flow = Some((flow, 0));
        process.speaks_on = flow;
        process.pending = None;
        process.meter = Some(meter);
        Ok(())
    }
}

/// The provider's side of one relay.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) meter: Option<HolderMeter>,
    pub(super) budget: Arc<RelayBudget>,
    flows: BTreeMap<u32, Arc<RelayFlow>>,
    /// The flow that carries packets, if the reservation stands.
    pub(super) open: Option<u32>,
    next_flow: u32,
    /// The budget's counts when the connection began.
    began: (u64, u64),
    seen: BTreeSet<u64>,
    pub(super) signed: Option<VoucherRecord>,
    pub(super) writing: Writing,
    /// When the connection is made again, and when it comes to terms.
    pub(super) connects_at: Option<Duration>,
    pub(super) agrees_at: Option<Duration>,
    /// It looks at its account then, whatever that says.
    pub(super) looks_at: Duration,
}

impl Holder {
    pub(super) fn new(signed: Option<VoucherRecord>, next_flow: u32) -> Self {
        Self {
            meter: None,
            budget: RelayBudget::new(0),
            flows: BTreeMap::new(),
            open: None,
            next_flow,
            began: (0, 0),
            seen: BTreeSet::new(),
            signed,
            writing: Writing::new(),
            connects_at: None,
            agrees_at: None,
            looks_at: Duration::ZERO,
        }
    }

    pub(super) const fn next_flow(&self) -> u32 {
        self.next_flow
    }

    /// The connection to the relay stands again; a relay that remembers the flow goes on with it.
    pub(super) fn connected(&mut self, agrees_at: Duration, is_kept: bool) -> u32 {
        self.next_flow += 1;
        self.agrees_at = Some(agrees_at);
        self.began = (self.budget.sent(), self.budget.received());
        if is_kept {
            self.add_flow(self.next_flow);
        }
        self.next_flow
    }

    /// Accepts the relay's terms: an account begins.
    pub(super) fn accept(&mut self, terms: Terms, purse: sluice_metering::Purse) {
        let newest = self.signed.clone();
        let budget = self.budget.clone();
        let meter = HolderMeter::new(terms, Some(purse), 0, newest.as_ref(), budget);
        let (sent, received) = self.began;
        self.meter = Some(meter.counting_since(sent, received));
    }

    /// The reservation stands, and a flow is open.
    pub(super) fn opened(&mut self, flow: u32) {
        if flow != self.next_flow {
            return;
        }
        self.add_flow(flow);
        if let (Some(meter), Some(counts)) = (&mut self.meter, self.flows.get(&flow)) {
            meter.open_flow(FlowId(flow), counts.clone(), TENANT);
        }
    }

    fn add_flow(&mut self, flow: u32) {
        let budget = &self.budget;
        self.flows.entry(flow).or_insert_with(|| RelayFlow::new(budget.clone()));
        self.open = Some(flow);
    }

    pub(super) fn flow(&self) -> Option<&Arc<RelayFlow>> {
        self.flows.get(&self.open?)
    }

    /// A packet came by way of the relay; copies are not counted.
    pub(super) fn receive(&mut self, packet: &Packet) {
        let first = self.seen.insert(packet.number);
        if let Some(flow) = self.flow().filter(|_| first) {
            flow.count_received(packet.bytes());
        }
    }

    /// Payload reached the service by way of this relay.
    pub(super) fn delivered(&self, bytes: u64) {
        if let Some(flow) = self.flow() {
            flow.count_delivered(bytes);
        }
    }

    /// What the relay is to be told of what is granted.
    pub(super) fn grant(&mut self) -> Option<(u32, u64)> {
        let (open, meter) = (self.open?, self.meter.as_mut()?);
        meter.handle_growth(FlowId(open));
        meter.poll_grant().map(|(flow, granted)| (flow.0, granted))
    }

    /// The connection to the relay is lost, and so is the account; the ledger stays.
    pub(super) fn lose_link(&mut self) {
        (self.meter, self.open, self.agrees_at) = (None, None, None);
        self.flows.clear();
    }
}
