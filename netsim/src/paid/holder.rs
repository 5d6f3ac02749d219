//! A provider that pays its relays: the owner of a reservation and of its account.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use parking_lot::Mutex;
use sluice_ledger::{Edge, LeaseRow, Ledger, Role};
use sluice_metering::{Counts, HolderMeter, PayerEvent, Terms, accept_terms};
use sluice_proto::eth::BIND_EXPORTER_LABEL;
use sluice_proto::wire::{code, control, pay};
use sluice_proto::{Amount, Keypair, LeaseId};
use sluice_transport::{Clock, LinkEvent, RelayLink, export};
use sluice_tunnel::Account;
use tokio::sync::mpsc;

use super::bank::{Purser, stored};

/// The account is looked at again after this at the latest.
const LOOK: Duration = Duration::from_secs(1);
/// What the relay may delay an acknowledgement, beside the round trip (RFC 9000, 18.2).
const ACK_DELAY_MAX: Duration = Duration::from_millis(25);

/// What happens to pay messages between a relay and its holder: who lies gives other ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ear {
    /// Both say the truth.
    True,
    /// The relay claims so many times what it forwarded.
    Inflated(u64),
    /// The relay claims what it forwarded, and says each claim again and again.
    Repeated,
    /// The holder never pays.
    Unpaid,
}

/// What a holder's account stands at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HolderView {
    /// The reservation.
    pub lease: Option<LeaseId>,
    /// The reservation's window.
    pub window: u64,
    /// What the holder counts: sent, and granted.
    pub counted: Counts,
    /// What its vouchers state.
    pub stated: Counts,
    /// Lies that the relay told.
    pub lies: u64,
}

/// What a holder's task is made of.
#[derive(Debug)]
pub struct Holder {
    /// The provider's identity.
    pub key: Keypair,
    /// Where it writes what it signs.
    pub ledger: Ledger,
    /// What it pays with.
    pub purser: Purser,
    /// The network's clock.
    pub clock: Clock,
    /// Who lies, and how.
    pub ear: Ear,
    /// The account that waits for this relay.
    pub waits: Arc<Mutex<Option<Account>>>,
    /// What the account stands at.
    pub view: Arc<Mutex<HolderView>>,
}

struct Task {
    holder: Holder,
    link: RelayLink,
    connection: Option<quinn::Connection>,
    meter: Option<HolderMeter>,
    began: Option<(u64, u64)>,
}

impl Holder {
    /// Runs until the link's events end.
    pub async fn hold(self, link: RelayLink, mut events: mpsc::Receiver<LinkEvent>) {
        let (connection, meter, began) = Default::default();
        let mut task = Task { holder: self, link, connection, meter, began };
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
                    None => return,
                },
                datagram = read(connection.as_ref()) => match datagram {
                    Ok(message) => {
                        for heard in task.heard(&message) {
                            task.change(|meter, now| meter.handle_datagram(&heard, now)).await;
                        }
                    }
                    Err(_) => task.connection = None,
                },
                () = clock.sleep_until(until) => {
                    task.change(|meter, now| meter.handle_timeout(now)).await;
                }
            }
        }
    }
}

async fn read(connection: Option<&quinn::Connection>) -> Result<Bytes, quinn::ConnectionError> {
    match connection {
        Some(connection) => connection.read_datagram().await,
        None => std::future::pending().await,
    }
}

impl Task {
    async fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { connection, .. } => {
                self.connection = Some(connection);
                let budget = self.link.budget();
                self.began = Some((budget.sent(), budget.received()));
            }
            LinkEvent::Offer { offer, connection, reply } => {
                self.connection = Some(connection.clone());
                let answer = self.agree(&offer, &connection).await.map_err(|error| pay::Refusal {
                    code: code::CHANNEL,
                    message: format!("{error:#}"),
                });
                // The link may have broken meanwhile.
                let _ = reply.send(answer);
            }
            LinkEvent::FlowOpened { flow, counts, initiator } => {
                self.change(|meter, _| meter.open_flow(flow, counts, initiator)).await;
            }
            LinkEvent::FlowClosed(flow) => self.change(|meter, _| meter.close_flow(flow)).await,
            LinkEvent::Grown(flow) => self.change(|meter, _| meter.handle_growth(flow)).await,
            LinkEvent::Down(_) => {
                self.connection = None;
                self.meter = None;
            }
            LinkEvent::Reserved(_)
            | LinkEvent::Forwards(_)
            | LinkEvent::Unpaid(_)
            | LinkEvent::Draining(_)
            | LinkEvent::Refused(_) => {}
        }
    }

    /// What the holder hears when the relay said `message`.
    fn heard(&self, message: &Bytes) -> Vec<Bytes> {
        match self.holder.ear {
            Ear::True | Ear::Unpaid => vec![message.clone()],
            Ear::Repeated => vec![message.clone(); 3],
            Ear::Inflated(factor) => vec![inflated(message, factor)],
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
        ensure!(terms.payer == us, "the terms are for another node");
        let (ledger, purser) = (&self.holder.ledger, &self.holder.purser);
        ledger.put_channel(purser.row(Role::Payer, terms.payee)).await?;
        let channel = purser.purse.channel.id;
        let known = ledger.lease(terms.lease).await?;
        let row = LeaseRow {
            id: terms.lease,
            edge: Edge::Relay,
            role: Role::Payer,
            peer: terms.payee,
            terms: signed.terms.clone(),
            terms_signature: signed.signature.clone(),
            channel: (!terms.price.is_zero()).then_some(channel),
            base: Amount(0),
            sessions: known.map_or(0, |l| l.sessions) + 1,
            closed: false,
        };
        ledger.put_lease(row).await?;
        let newest = ledger.newest_signed(terms.lease).await?.map(super::bank::record);
        let mut accept = accept_terms(&self.holder.key, &signed.terms);
        accept.newest = newest.as_ref().map(|v| v.voucher.clone());
        let exporter = export(connection, BIND_EXPORTER_LABEL, b"");
        accept.channel = Some(purser.bind(&us, &exporter));
        let (lease, window) = (Some(terms.lease), terms.window);
        *self.holder.view.lock() = HolderView { lease, window, ..HolderView::default() };
        let (purse, budget) = (Some(purser.purse.clone()), self.link.budget());
        let (sent, received) =
            self.began.take().unwrap_or_else(|| (budget.sent(), budget.received()));
        let meter = HolderMeter::new(terms, purse, offer.starter_left, newest.as_ref(), budget);
        self.meter = Some(meter.counting_since(sent, received));
        Ok(accept)
    }

    async fn change(&mut self, change: impl FnOnce(&mut HolderMeter, Instant)) {
        let now = self.holder.clock.now();
        let Some(meter) = &mut self.meter else { return };
        if let Some(connection) = &self.connection {
            meter.handle_pto(connection.rtt() * 2 + ACK_DELAY_MAX);
        }
        change(meter, now);
        while let Some(event) = meter.poll_event() {
            match event {
                PayerEvent::Persist { seq, record } => {
                    match self.holder.ledger.record_signed(stored(&record)).await {
                        Ok(()) => meter.handle_persisted(seq, now),
                        Err(_) => meter.handle_ledger_failed(),
                    }
                }
                PayerEvent::Lie(_) => self.holder.view.lock().lies += 1,
                PayerEvent::DepositExhausted { .. } => {}
            }
        }
        while let Some(datagram) = meter.poll_transmit(now) {
            let pays = self.holder.ear != Ear::Unpaid;
            if let Some(connection) = self.connection.as_ref().filter(|_| pays) {
                // What is lost is repeated until it is acknowledged.
                let _ = connection.send_datagram(datagram);
            }
        }
        while let Some((flow, granted)) = meter.poll_grant() {
            self.link.grant(flow, granted);
        }
        let mut view = self.holder.view.lock();
        (view.counted, view.stated) = (meter.counted(), meter.stated());
        drop(view);
        let opened = meter.take_opened();
        if let Some(account) = self.holder.waits.lock().as_ref().filter(|_| opened) {
            account.wake();
        }
    }
}

/// A claim of `factor` times as much; anything else stays as it is.
pub(crate) fn inflated(message: &Bytes, factor: u64) -> Bytes {
    use prost::Message;
    use sluice_proto::wire::pay::pay_datagram::Kind;
    let Ok(mut datagram) = pay::PayDatagram::decode(message.clone()) else {
        return message.clone();
    };
    if let Some(Kind::Claim(claim)) = &mut datagram.kind {
        claim.up = claim.up.saturating_mul(factor);
        claim.down = claim.down.saturating_mul(factor);
    }
    datagram.encode_to_vec().into()
}
