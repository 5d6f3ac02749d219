//! A provider's account with one relay: the reservation, its channel and its vouchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_ledger::{Edge, LeaseRow, Ledger, Recovery, Role};
use sluice_metering::{
    HolderMeter, Lie, PayerEvent, Resumption, Terms, VoucherRecord, accept_terms,
};
use sluice_proto::eth::BIND_EXPORTER_LABEL;
use sluice_proto::wire::{code, control, pay};
use sluice_proto::{Amount, ChannelId, Keypair, RelayAddr};
use sluice_transport::{Clock, LinkEvent, RelayLink};
use tokio::sync::{mpsc, oneshot};

use super::advertise::{Seat, Standing};
use super::channel::{Money, bind};
use super::edge::{record, stored};
use super::report::{Report, Reporter};
use super::vouchers::LEDGER_AGAIN;

/// The task looks again after this at the latest: whether a relay that is silent lost frames.
const LOOK: Duration = Duration::from_secs(1);
/// What the relay may delay an acknowledgement, beside the round trip (RFC 9000, 18.2).
const ACK_DELAY_MAX: Duration = Duration::from_millis(25);
/// An orderly end waits so long for the last voucher to be acknowledged.
const SETTLE: Duration = Duration::from_secs(3);

/// After the last flow ended, the relay's last claim is here by then.
const LAST_CLAIM: Duration = Duration::from_millis(300);

/// How a provider pays its relays.
#[derive(Clone)]
pub(crate) struct Holder {
    pub(crate) key: Keypair,
    pub(crate) ledger: Ledger,
    pub(crate) money: Option<Money>,
    pub(crate) deposit: Amount,
    pub(crate) price_max: u128,
    pub(crate) report: Reporter,
    pub(crate) clock: Clock,
    /// Called when a relay acknowledged payment: bytes may flow again.
    pub(crate) wake: Arc<dyn Fn() + Send + Sync>,
    pub(crate) gas: Arc<AtomicU64>,
    pub(crate) recovery: Recovery,
}

/// What a reservation's owner may ask of its task.
pub(crate) enum Ask {
    /// Pay all that the relay claims, and say when it is settled.
    Settle(oneshot::Sender<bool>),
}

struct Task {
    holder: Holder,
    link: RelayLink,
    connection: Option<quinn::Connection>,
    meter: Option<HolderMeter>,
    /// What the link had sent and received when its connection began; none once an account counts.
    began: Option<(u64, u64)>,
    /// What pays, once terms were agreed.
    channel: Option<ChannelId>,
    persisting: Option<tokio::task::JoinHandle<(u64, bool)>>,
    /// Nobody waits any more for what is being written.
    over: Arc<AtomicBool>,
    waiting: Option<(u64, VoucherRecord)>,
    seat: Seat,
    /// The relay refused this process for one that started later.
    superseded: bool,
}

/// Runs until the link's events end.
pub(crate) async fn hold(
    holder: Holder,
    link: RelayLink,
    mut events: mpsc::Receiver<LinkEvent>,
    mut asks: mpsc::Receiver<Ask>,
    seat: Seat,
) {
    let mut task = Task {
        holder,
        link,
        connection: None,
        meter: None,
        began: None,
        channel: None,
        persisting: None,
        over: Arc::default(),
        waiting: None,
        seat,
        superseded: false,
    };
    let mut over_tcp = task.link.over_tcp();
    let deposits = task.holder.money.as_ref().map(|money| money.deposits.clone());
    let mut growth = deposits.unwrap_or_default().listen();
    loop {
        let clock = task.holder.clock.clone();
        let next = task.meter.as_ref().and_then(HolderMeter::poll_timeout);
        let look = clock.now() + LOOK;
        let until = next.map_or(look, |(at, _)| at.min(look));
        let connection = task.connection.clone();
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => task.take(event).await,
                None => break,
            },
            done = finished(&mut task.persisting) => task.persisted(done),
            datagram = read(connection.as_ref()) => match datagram {
                Ok(message) => task.change(|meter, now| {
                    if !message.is_empty() {
                        meter.handle_datagram(&message, now);
                    }
                }),
                Err(_) => task.connection = None,
            },
            ask = asks.recv() => match ask {
                Some(Ask::Settle(reply)) => task.settle(reply).await,
                None => break,
            },
            Ok(()) = over_tcp.changed() => task.tell(if *over_tcp.borrow_and_update() {
                "reached over TCP: UDP does not work"
            } else {
                "reached over UDP again"
            }),
            (channel, deposit) = growth.next() => {
                if task.channel == Some(channel) {
                    task.change(|meter, now| meter.handle_deposit(deposit, now));
                }
            }
            () = clock.sleep_until(until) => task.change(|meter, now| meter.handle_timeout(now)),
        }
    }
    task.tell_account();
}

async fn read(
    connection: Option<&quinn::Connection>,
) -> Result<bytes::Bytes, quinn::ConnectionError> {
    match connection {
        Some(connection) => connection.read_datagram().await,
        None => std::future::pending().await,
    }
}

async fn finished(task: &mut Option<tokio::task::JoinHandle<(u64, bool)>>) -> (u64, bool) {
    match task {
        Some(handle) => {
            let done = handle.await;
            *task = None;
            done.unwrap_or((0, false))
        }
        None => std::future::pending().await,
    }
}

impl Task {
    fn relay(&self) -> RelayAddr {
        self.link.relay()
    }

    fn tell(&self, state: impl Into<String>) {
        let relay = self.relay().to_string();
        self.holder.report.tell(&Report::Link { relay, state: state.into() });
    }

    /// Tells what the relay acknowledged, where it charges.
    fn tell_account(&self) {
        let Some(meter) = self.meter.as_ref().filter(|_| self.channel.is_some()) else { return };
        let (relay, acked) = (self.relay().to_string(), meter.acked());
        let (up, down, amount) = (acked.up, acked.down, meter.amount().0);
        self.holder.report.tell(&Report::Reservation { relay, up, down, amount });
    }

    async fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { connection, .. } => {
                self.connection = Some(connection);
                let budget = self.link.budget();
                self.began = Some((budget.sent(), budget.received()));
            }
            LinkEvent::Offer { offer, connection, reply } => {
                self.connection = Some(connection.clone());
                let answer = self.agree(&offer, &connection).await.map_err(|error| {
                    self.tell(format!("its offer was not accepted: {error:#}"));
                    if let Some(lie) = error.downcast_ref::<Lie>() {
                        let peer = self.relay().peer;
                        self.holder.report.tell(&Report::Lie { peer, what: lie.to_string() });
                    }
                    pay::Refusal { code: code::CHANNEL, message: "not accepted".to_owned() }
                });
                // The link may have broken meanwhile.
                let _ = reply.send(answer);
            }
            LinkEvent::Reserved(_) => {
                self.tell("reserved");
                let forwards = self.link.forwards();
                self.seat.set(if forwards { Standing::Reserved } else { Standing::Silent });
            }
            LinkEvent::Forwards(forwards) => {
                self.seat.set_forwards(forwards);
                let state =
                    if forwards { "forwards again" } else { "answers, but forwards nothing" };
                self.tell(state);
            }
            LinkEvent::FlowOpened { flow, counts, initiator } => {
                self.seat.flows.fetch_add(1, Relaxed);
                self.change(|meter, _| meter.open_flow(flow, counts, initiator));
            }
            LinkEvent::FlowClosed(flow) => {
                let one_less = |flows: usize| Some(flows.saturating_sub(1));
                // It never fails: one less is always some number.
                let _ = self.seat.flows.fetch_update(Relaxed, Relaxed, one_less);
                self.change(|meter, _| meter.close_flow(flow));
            }
            LinkEvent::Grown(flow) => self.change(|meter, _| meter.handle_growth(flow)),
            LinkEvent::Unpaid(true) => self.tell("waits for payment; 16 kbit/s until then"),
            LinkEvent::Unpaid(false) => self.tell("paid; full speed again"),
            LinkEvent::Draining(within) => {
                self.tell(format!("is shutting down within {} s", within.as_secs()));
            }
            LinkEvent::Refused(refusal) => {
                self.tell(format!(
                    "refused: {}",
                    sluice_proto::wire::display_text(&refusal.message)
                ));
            }
            LinkEvent::Down(reason) => {
                self.connection = None;
                self.tell_account();
                (self.meter, self.waiting) = (None, None);
                self.seat.flows.store(0, Relaxed);
                self.seat.set(Standing::Away);
                let before = std::mem::replace(&mut self.superseded, self.link.is_superseded());
                if self.superseded && !before {
                    let by = self.relay().peer;
                    self.holder.report.tell(&Report::Superseded { by });
                }
                self.tell(format!("not connected: {reason}"));
            }
        }
    }

    /// Comes to terms with the relay.
    async fn agree(
        &mut self,
        offer: &control::ReserveOffer,
        connection: &quinn::Connection,
    ) -> Result<pay::Accept> {
        let signed = offer.terms.clone().context("the offer has no terms")?;
        let terms = Terms::open(&signed)?;
        let us = self.holder.key.public().to_peer_id();
        ensure!(terms.payee == self.relay().peer, "the terms are another relay's");
        ensure!(terms.payer == us, "the terms are for another node");
        ensure!(
            terms.price.up <= self.holder.price_max && terms.price.down <= self.holder.price_max,
            "it asks {} per GiB, more than allowed: raise relay_price_max in [provide] if you agree",
            terms.price.up.max(terms.price.down)
        );
        ensure!(
            terms.price.is_zero() || self.holder.money.is_some() || offer.starter_left > 0,
            "it asks for payment, but no chain is configured: set [chain] in sluice.toml"
        );
        let ledger = &self.holder.ledger;
        let known = ledger.lease(terms.lease).await?;
        let mut purse = None;
        if let Some(money) = self.holder.money.as_ref().filter(|_| !terms.price.is_zero()) {
            let channel = match &known {
                Some(lease) => lease.channel,
                None => {
                    let (shown, paid) = (offer.channel.as_ref(), offer.newest.is_some());
                    money.remembered(ledger, &terms, shown, paid).await?
                }
            };
            match money.purse(ledger, &terms, channel, self.holder.deposit).await {
                Ok(found) => purse = Some(found),
                Err(error) if offer.starter_left > 0 => {
                    self.tell(format!("on starter bytes, since {error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
        // The next account counts its vouchers anew: what the last one is still writing is none of
        // its own, but is to be found in the ledger.
        (self.meter, self.waiting) = (None, None);
        if self.persisting.is_some() {
            self.over.store(true, Relaxed);
            finished(&mut self.persisting).await;
        }
        let gas = purse.as_ref().map_or(0, |(_, _, gas)| *gas);
        self.holder.gas.fetch_add(gas, Relaxed);
        let signed_before = ledger.newest_signed(terms.lease).await?.map(record);
        let channel = purse.as_ref().map(|(purse, _, _)| &purse.channel);
        let resumed = Resumption::of(&terms, channel, signed_before, offer.newest.as_ref())
            .map_err(|lie| anyhow::anyhow!(lie).context("it shows a voucher that does not hold"))?;
        ledger
            .put_lease(LeaseRow {
                id: terms.lease,
                edge: Edge::Relay,
                role: Role::Payer,
                peer: terms.payee,
                terms: signed.terms.clone(),
                terms_signature: signed.signature.clone(),
                channel: purse.as_ref().map(|(p, _, _)| p.channel.id),
                base: Amount(0),
                sessions: known.map_or(0, |l| l.sessions) + 1,
                closed: false,
            })
            .await?;
        if let Some(forgotten) = resumed.forgotten() {
            ledger.record_signed(stored(forgotten)).await?;
        }
        self.holder.recovery.settle(terms.lease).await?;
        self.holder.report.tell_resumed(terms.payee, &resumed, 0);
        let newest = resumed.newest;
        let mut accept = accept_terms(&self.holder.key, &signed.terms);
        accept.newest = newest.as_ref().map(|v| v.voucher.clone());
        if let Some((purse, key, _)) = &purse {
            let exporter = sluice_transport::export(connection, BIND_EXPORTER_LABEL, b"");
            accept.channel = Some(bind(purse, key, &us, &exporter));
        }
        let purse = purse.map(|(purse, _, _)| purse);
        self.channel = purse.as_ref().map(|purse| purse.channel.id);
        let budget = self.link.budget();
        let (sent, received) =
            self.began.take().unwrap_or_else(|| (budget.sent(), budget.received()));
        let meter = HolderMeter::new(terms, purse, offer.starter_left, newest.as_ref(), budget);
        self.meter = Some(meter.counting_since(sent, received));
        Ok(accept)
    }

    fn change(&mut self, change: impl FnOnce(&mut HolderMeter, std::time::Instant)) {
        let now = self.holder.clock.now();
        let Some(meter) = &mut self.meter else { return };
        if let Some(connection) = &self.connection {
            meter.handle_pto(connection.rtt() * 2 + ACK_DELAY_MAX);
        }
        change(meter, now);
        while let Some(event) = meter.poll_event() {
            match event {
                PayerEvent::Persist { seq, record } => self.waiting = Some((seq, record)),
                PayerEvent::Lie(evidence) => {
                    let peer = self.link.relay().peer;
                    let what = evidence.lie.to_string();
                    self.holder.report.tell(&Report::Lie { peer, what });
                }
                PayerEvent::DepositExhausted { due, deposit } => {
                    if let (Some(channel), Some(money)) = (self.channel, &self.holder.money) {
                        money.deposits.want(channel, due);
                    }
                    let relay = self.link.relay().to_string();
                    let state = format!("the deposit of {deposit} is used up: {due} is due");
                    self.holder.report.tell(&Report::Link { relay, state });
                }
            }
        }
        while let Some((flow, granted)) = meter.poll_grant() {
            self.link.grant(flow, granted);
        }
        while let Some(datagram) = meter.poll_transmit(now) {
            if let Some(connection) = &self.connection {
                // What is lost is repeated until it is acknowledged.
                let _ = connection.send_datagram(datagram);
            }
        }
        if meter.take_opened() {
            (self.holder.wake)();
        }
        self.persist();
    }

    /// Writes the newest voucher, one at a time.
    fn persist(&mut self) {
        if self.persisting.is_some() {
            return;
        }
        let Some((seq, record)) = self.waiting.take() else { return };
        let (ledger, clock) = (self.holder.ledger.clone(), self.holder.clock.clone());
        // Set once the account is given up for another.
        let is_over = Arc::new(AtomicBool::new(false));
        self.over = is_over.clone();
        self.persisting = Some(tokio::spawn(async move {
            let mut is_told = false;
            loop {
                let Err(error) = ledger.record_signed(stored(&record)).await else {
                    return (seq, true);
                };
                if !std::mem::replace(&mut is_told, true) {
                    tracing::error!(%error, "the ledger did not take a voucher");
                }
                // Until it can, the voucher is not sent, and newer ones wait.
                if !error.is_passing() || is_over.load(Relaxed) {
                    return (seq, false);
                }
                clock.sleep(LEDGER_AGAIN).await;
            }
        }));
    }

    fn persisted(&mut self, (seq, durable): (u64, bool)) {
        self.change(|meter, now| {
            if durable {
                meter.handle_persisted(seq, now);
            } else {
                meter.handle_ledger_failed();
            }
        });
        self.persist();
    }

    async fn settle(&mut self, reply: oneshot::Sender<bool>) {
        let deadline = self.holder.clock.now() + SETTLE;
        let claimed_by = self.holder.clock.now()
            + if self.holder.money.is_some() { LAST_CLAIM } else { Duration::ZERO };
        self.change(|meter, now| meter.flush(now));
        loop {
            let settled = self.persisting.is_none()
                && self.holder.clock.now() >= claimed_by
                && self.meter.as_ref().is_none_or(HolderMeter::is_settled);
            if settled || self.connection.is_none() {
                let _ = reply.send(settled);
                return;
            }
            let connection = self.connection.clone();
            let clock = self.holder.clock.clone();
            tokio::select! {
                biased;
                done = finished(&mut self.persisting) => self.persisted(done),
                datagram = read(connection.as_ref()) => match datagram {
                    Ok(message) => self.change(|meter, now| meter.handle_datagram(&message, now)),
                    Err(_) => self.connection = None,
                },
                () = clock.sleep(Duration::from_millis(50)) => {
                    self.change(|meter, now| meter.handle_timeout(now));
                }
            }
            if clock.now() >= deadline {
                let _ = reply.send(false);
                return;
            }
        }
    }
}
