//! The parties' machines, and the loop that moves them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sluice_metering::{Gate, Payer, StreamIndex, VoucherRecord};

use super::books::Books;
use super::deal::{Deal, RELAY_PRICE};
use super::network::{Cargo, Control, Network};
use super::plan::{Party, Path, Plan, RELAYS, StreamPlan};
use super::relay::{Holder, Relay, Writing};
use super::streams::Stream;
use super::{Sabotage, Stuck, Tally};
use crate::rng::Rng;

/// How far the clocks are looked at apart while there is traffic.
const TICK: Duration = Duration::from_millis(1);
/// All must be done and settled within this.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Relays look at their accounts this often.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// Whoever settles asks again this often.
const SETTLE_LOOK: Duration = Duration::from_millis(20);

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) deal: Deal,
    pub(super) sabotage: Sabotage,
    pub(super) rng: Rng,
    pub(super) now: Duration,
    pub(super) epoch: Instant,
    pub(super) skew: [Duration; 2 + RELAYS],
    pub(super) net: Network,
    pub(super) payer: Option<Payer>,
    pub(super) signed: Option<VoucherRecord>,
    pub(super) signing: Writing,
    pub(super) gate: Option<Gate>,
    pub(super) earned: Option<VoucherRecord>,
    pub(super) earning: Writing,
    pub(super) holders: [Holder; RELAYS],
    pub(super) relays: [Relay; RELAYS],
    pub(super) books: Books,
    /// Which way the tenant sends, and the provider.
    pub(super) paths: [Path; 2],
    /// The tenant follows then.
    pub(super) follows_at: Option<Duration>,
    pub(super) session: u64,
    pub(super) session_up: bool,
    pub(super) connects_at: Option<Duration>,
    pub(super) revives_at: [Option<Duration>; RELAYS],
    pub(super) began_at: Duration,
    pub(super) streams: BTreeMap<StreamIndex, Stream>,
    pub(super) next_stream: u64,
    pub(super) acks: [Vec<(StreamIndex, u64)>; 2],
    pub(super) numbers: u64,
    pub(super) events_done: usize,
    /// All that was to flow has flowed; whoever settles asks again then.
    pub(super) settles_at: Option<Duration>,
    /// Pay messages that were sent.
    pub(super) messages: u64,
    pub(super) message_bytes: [u64; 2],
    /// Something happened in this tick.
    pub(super) moved: bool,
}

impl World {
    pub(super) fn of(plan: Plan, mut rng: Rng, sabotage: Sabotage) -> Self {
        let deal = Deal::new(&plan);
        let net = Network::new(&plan, rng.split());
        let books = Books::new("the session", plan.window, plan.price, deal.base());
        let copies = sabotage == Sabotage::RelayCountsCopies;
        let relays = ["relay 0", "relay 1"].map(|name| {
            Relay::new(Books::new(name, plan.window, RELAY_PRICE, deal.base()), copies)
        });
        let paths = [plan.begins; 2];
        let mut world = Self {
            plan,
            deal,
            sabotage,
            rng,
            now: Duration::ZERO,
            epoch: epoch(),
            skew: Default::default(),
            net,
            payer: None,
            signed: None,
            signing: Writing::new(),
            gate: None,
            earned: None,
            earning: Writing::new(),
            holders: [(); RELAYS].map(|()| Holder::new(None, 0)),
            relays,
            books,
            paths,
            follows_at: None,
            session: 0,
            session_up: false,
            connects_at: Some(Duration::ZERO),
            revives_at: [None; RELAYS],
            began_at: Duration::ZERO,
            streams: BTreeMap::new(),
            next_stream: 0,
            acks: Default::default(),
            numbers: 0,
            events_done: 0,
            settles_at: None,
            messages: 0,
            message_bytes: [0; 2],
            moved: false,
        };
        world.add_streams(world.plan.streams.clone());
        for relay in 0..RELAYS {
            world.relays[relay].start(Duration::ZERO);
            world.holders[relay].connects_at = Some(Duration::ZERO);
        }
        world
    }

    pub(super) fn add_streams(&mut self, plans: Vec<StreamPlan>) {
        self.streams = plans
            .into_iter()
            .map(|plan| {
                let stream = Stream::new(plan);
                self.next_stream += 1;
                (StreamIndex(self.next_stream - 1), stream)
            })
            .collect();
    }

    pub(super) fn clock(&self, party: Party) -> Instant {
        self.epoch + self.now + self.skew[party.index()]
    }

    /// Plays the schedule to its end.
    pub(super) fn play(mut self) -> Result<Tally> {
        while !self.is_done() {
            self.tick().with_context(|| format!("after {:?}", self.now))?;
            if self.now >= PATIENCE {
                return Err(anyhow!(Stuck))
                    .with_context(|| format!("no progress: {}", self.state()));
            }
        }
        self.settles_at = Some(self.now);
        let deadline = self.now + PATIENCE;
        while !self.is_settled() {
            self.settle();
            self.tick().with_context(|| format!("settling after {:?}", self.now))?;
            if self.now >= deadline {
                let state = || format!("the accounts do not settle: {}", self.state());
                return Err(anyhow!(Stuck)).with_context(state);
            }
        }
        self.books.conclude()?;
        for relay in &self.relays {
            relay.books.conclude()?;
        }
        let (payer, payee) = (self.payer.as_ref(), self.gate.as_ref().map(Gate::payee));
        let (Some(payer), Some(payee)) = (payer, payee) else { bail!("the session is gone") };
        ensure!(payer.stated() == payee.paid(), "{} stated, {} paid", payer.stated(), payee.paid());
        ensure!(payer.amount() == payee.amount(), "the amounts differ");
        Ok(Tally::of(&self))
    }

    fn is_done(&self) -> bool {
        let over = self.events_done == self.plan.events.len() && self.session_up;
        over && self.streams.values().all(Stream::is_over)
    }

    /// Both ends settle, as before an orderly close; then the relays do, whose counts the ends' last
    /// words raise.
    fn settle(&mut self) {
        if self.settles_at.is_some_and(|at| at > self.now) {
            return;
        }
        self.settles_at = Some(self.now + SETTLE_LOOK);
        let now = [Party::Tenant, Party::Provider].map(|p| self.clock(p));
        if self.are_ends_settled() {
            (0..RELAYS).for_each(|i| self.report(i, !self.is_relay_settled(i)));
            return;
        }
        if let Some(payer) = &mut self.payer {
            payer.flush(now[0]);
        }
        if let Some(gate) = &mut self.gate {
            gate.payee_mut().flush(now[1]);
        }
    }

    fn are_ends_settled(&self) -> bool {
        self.payer.as_ref().is_some_and(Payer::is_settled)
            && self.gate.as_ref().is_some_and(|gate| gate.payee().is_settled())
    }

    fn is_relay_settled(&self, i: usize) -> bool {
        let meter = self.relays[i].process.as_ref().and_then(|p| p.meter.as_ref());
        let holder = self.holders[i].meter.as_ref();
        meter.is_some_and(|m| m.is_settled() && m.paid() == m.counts())
            && holder.is_some_and(sluice_metering::HolderMeter::is_settled)
    }

    fn is_settled(&mut self) -> bool {
        (0..RELAYS).for_each(|i| self.report(i, false));
        self.are_ends_settled()
            && (0..RELAYS).all(|i| self.is_relay_settled(i))
            && self.net.next().is_none()
    }

    fn state(&self) -> String {
        let streams: Vec<_> = self.streams.iter().filter(|(_, s)| !s.is_over()).collect();
        let (payer, gate) = (&self.payer, &self.gate);
        let stalled = self.relays.iter().map(|r| (r.over_grant, r.over_window));
        format!(
            "streams {streams:?}, paths {:?}, over grant and window {:?}\n{payer:?}\n{gate:?}\n{:?}",
            self.paths,
            stalled.collect::<Vec<_>>(),
            self.holders,
        )
    }

    fn tick(&mut self) -> Result<()> {
        self.moved = false;
        self.befall()?;
        self.reconnect()?;
        while let Some((to, cargo)) = self.net.arrive(self.now) {
            self.moved = true;
            self.take(to, cargo)?;
        }
        self.run_ledgers()?;
        self.run_streams();
        self.send_acks();
        self.run_timeouts();
        self.drain()?;
        self.check()?;
        self.now += if self.moved { TICK } else { self.pause() };
        Ok(())
    }

    /// How long nothing will happen.
    fn pause(&self) -> Duration {
        let mut next: Vec<Duration> = Vec::new();
        next.extend(self.net.next());
        next.extend(self.plan.events.get(self.events_done).map(|(at, _)| *at));
        next.extend(self.connects_at);
        next.extend(self.follows_at);
        next.extend(self.revives_at.iter().flatten());
        next.extend(self.ledger_deadlines());
        next.extend(self.account_deadlines());
        for holder in &self.holders {
            next.extend(holder.connects_at);
            next.extend(holder.agrees_at);
            next.extend(holder.meter.is_some().then_some(holder.looks_at));
        }
        next.extend(self.streams.values().flat_map(|s| s.deadlines(self.began_at)));
        next.extend(self.settles_at);
        let until = next.into_iter().filter(|at| *at > self.now).min();
        until.map_or(LOOK, |at| at - self.now).max(TICK)
    }

    pub(super) fn earn(&mut self, record: VoucherRecord) -> Result<()> {
        self.books.earn(&record)?;
        self.earned = Some(record);
        Ok(())
    }

    fn take(&mut self, to: Party, cargo: Cargo) -> Result<()> {
        match (to, cargo) {
            (Party::Relay(i), Cargo::Packet(packet)) => {
                if self.relays[i].forward(&packet, self.now) {
                    let to = if packet.is_up { Party::Provider } else { Party::Tenant };
                    self.net.launch(self.now, to, &Cargo::Packet(packet));
                }
                self.hear_alarm(i);
                Ok(())
            }
            (_, Cargo::Packet(packet)) => {
                self.take_packet(packet);
                Ok(())
            }
            (Party::Relay(i), Cargo::Control(_, control)) => self.control_at_relay(i, control),
            (_, Cargo::Control(i, control)) => {
                self.control_at_holder(i, control);
                Ok(())
            }
        }
    }

    pub(super) fn hear_alarm(&mut self, i: usize) {
        let Some(process) = &mut self.relays[i].process else { return };
        let (alarmed, held) = process.take_alarm();
        if alarmed || held {
            self.report(i, held);
        }
    }

    /// The relay's account hears what was forwarded; `flush` if it is to claim all of it.
    pub(super) fn report(&mut self, i: usize, flush: bool) {
        let now = self.clock(Party::Relay(i));
        if let Some(process) = &mut self.relays[i].process {
            process.report(now);
            if let Some(meter) = process.meter.as_mut().filter(|_| flush) {
                meter.flush();
            }
        }
    }

    fn control_at_relay(&mut self, i: usize, control: Control) -> Result<()> {
        let now = self.clock(Party::Relay(i));
        match control {
            Control::Pay(message) => {
                self.report(i, false);
                let process = self.relays[i].process.as_mut();
                if let Some(meter) = process.and_then(|p| p.meter.as_mut()) {
                    meter.handle_datagram(&message, now);
                }
            }
            Control::Grant { flow, granted } => {
                if let Some(process) = &mut self.relays[i].process {
                    process.grant(flow, granted);
                }
            }
            Control::Accept { newest, flow } => {
                let (terms, purse) = self.deal.relay(i);
                self.relays[i].accept(&terms, purse.channel, newest.as_ref(), flow, now)?;
                self.net.deliver(self.now, Party::Provider, i, Control::Reserved { flow });
            }
            Control::Reserved { .. } => {}
        }
        Ok(())
    }

    fn control_at_holder(&mut self, i: usize, control: Control) {
        let now = self.clock(Party::Provider);
        match control {
            Control::Pay(message) => {
                if let Some(meter) = &mut self.holders[i].meter {
                    meter.handle_datagram(&message, now);
                }
            }
            Control::Reserved { flow } => {
                self.holders[i].opened(flow);
                if self.paths[1] == Path::Relay(i) {
                    self.follow_path();
                }
            }
            Control::Grant { .. } | Control::Accept { .. } => {}
        }
    }

    fn check(&mut self) -> Result<()> {
        let under_way = self.streams.values().map(Stream::under_way).sum();
        self.books.expose(if self.session_up { under_way } else { 0 })?;
        for relay in &mut self.relays {
            relay.books.expose(0)?;
        }
        Ok(())
    }
}

/// Any moment that has a past.
fn epoch() -> Instant {
    tokio::time::Instant::now().into_std()
}
