//! The desk where reservations are made: terms out, acceptance in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_ledger::{ChannelStatus, Edge, LeaseRow, Role, Starter, StarterMost};
use sluice_metering::{
    Counts, Lie, RelayMeter, Resumption, Standing, Terms, VoucherRecord, check_accept, show_channel,
};
use sluice_proto::wire::control::ReserveOffer;
use sluice_proto::wire::{code, pay};
use sluice_proto::{Amount, Keypair, LeaseId, PeerId, Price, window_bytes};
use sluice_relay_core::{LegId, Reserve};
use sluice_transport::{Clock, Random};

use crate::config::{RelayConfig, RelayPayment};
use crate::meters::{NewMeter, Starting, stored};
use crate::payment::{Declined, Refused, Shown, declined};
use crate::shared::Shared;

/// Silence after which a holder's session with the relay counts as ended, as the terms say it.
const IDLE_TIMEOUT_S: u32 = 600;
/// Offers that wait for an answer.
const OFFERS_MAX: usize = 4096;
/// Terms that end sooner are not offered again.
const RENEW_BEFORE_S: u64 = 3600;

/// A reservation is looked at again after this long, whatever its terms say.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// What was offered on one control connection.
#[derive(Debug, Clone)]
struct Offered {
    terms: Terms,
    signed: pay::SignedTerms,
    /// The ledger's row, if these terms were accepted before.
    row: Option<LeaseRow>,
}

/// The relay's terms, and the offers that are out.
#[derive(Debug)]
pub(crate) struct Desk {
    clock: Clock,
    random: Random,
    keypair: Keypair,
    peer: PeerId,
    price: Price,
    rate_max: u64,
    ttl: Duration,
    starter_bytes: u64,
    starter_total: u64,
    payment: Option<RelayPayment>,
    offers: Mutex<BTreeMap<LegId, Offered>>,
}

impl Desk {
    pub(crate) fn new(config: &RelayConfig) -> Self {
        Self {
            clock: config.clock.clone(),
            random: config.random.clone(),
            keypair: config.keypair.clone(),
            peer: config.keypair.public().to_peer_id(),
            price: config.price,
            rate_max: config.rate_max,
            ttl: config.reservation_ttl,
            starter_bytes: config.starter_bytes,
            starter_total: config.starter_total,
            payment: config.payment.clone(),
            offers: Mutex::default(),
        }
    }

    /// The relay's own identity.
    pub(crate) const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Where the money lives, if anything is charged.
    pub(crate) const fn payment(&self) -> Option<&RelayPayment> {
        self.payment.as_ref()
    }

    /// The clock that the relay reads.
    pub(crate) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Monotonic time.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    fn unix_s(&self) -> u64 {
        self.clock.unix_time().as_secs()
    }

    /// The month, as the ledger's starter bytes are numbered: a twelfth of a year each.
    pub(crate) fn month(&self) -> u32 {
        const MONTH_S: u64 = 2_629_746;
        u32::try_from(self.unix_s() / MONTH_S).unwrap_or(u32::MAX)
    }

    const fn starter_most(&self) -> StarterMost {
        StarterMost { to_one: self.starter_bytes, in_month: self.starter_total }
    }

    fn random_lease(&self) -> LeaseId {
        LeaseId(self.random.bytes())
    }

    /// Forgets what was offered on a control connection.
    pub(crate) fn forget(&self, leg: LegId) {
        self.offers.lock().remove(&leg);
    }

    /// Terms for a holder that is `rtt` away. What it sends is counted here, claimed, paid and
    /// acknowledged before it may send as much again: that takes two round trips, where a lease's
    /// voucher takes one. So the window is that of a line twice as long; it is still one window, in
    /// signed terms, and at most [`WINDOW_MAX`](sluice_proto::WINDOW_MAX).
    fn terms(&self, holder: PeerId, lease: LeaseId, rtt: Duration) -> Terms {
        Terms {
            lease,
            payer: holder,
            payee: self.peer,
            price: self.price,
            window: window_bytes(self.rate_max, rtt.saturating_mul(2)),
            payment: self.payment.as_ref().map(RelayPayment::terms),
            starter_bytes: if self.payment.is_some() { self.starter_bytes } else { 0 },
            idle_timeout_s: IDLE_TIMEOUT_S,
            expires_unix_s: self.unix_s().saturating_add(self.ttl.as_secs()),
            rate_max: self.rate_max,
        }
    }

    /// Whether terms that were accepted before are those that would be offered now.
    fn still_holds(&self, terms: &Terms) -> bool {
        let now = self.terms(terms.payer, terms.lease, Duration::ZERO);
        // The window is what was signed: it does not follow the round-trip time.
        let (expires_unix_s, window) = (now.expires_unix_s, now.window);
        let same = Terms { expires_unix_s, window, ..terms.clone() } == now;
        same && terms.expires_unix_s > self.unix_s().saturating_add(RENEW_BEFORE_S)
    }

    fn keep(&self, leg: LegId, offered: Offered) -> Result<(), Declined> {
        let mut offers = self.offers.lock();
        if offers.len() >= OFFERS_MAX {
            return declined(code::LIMIT, "too many offers wait for an answer: ask again later");
        }
        offers.insert(leg, offered);
        Ok(())
    }

    fn take(&self, leg: LegId, holder: &PeerId, accept: &pay::Accept) -> Result<Offered, Declined> {
        let Some(offered) = self.offers.lock().remove(&leg) else {
            return declined(code::PROTOCOL, "nothing was offered");
        };
        match check_accept(holder, &offered.signed.terms, accept) {
            Ok(()) => Ok(offered),
            Err(error) => declined(code::PROTOCOL, error.to_string()),
        }
    }
}

impl Shared {
    /// Offers terms to a client that asked.
    pub(crate) async fn offer(self: Arc<Self>, leg: LegId, peer: PeerId) {
        let offer = self.make_offer(leg, peer).await;
        if self.outbox(leg).is_none() {
            return self.desk.forget(leg);
        }
        self.drive(|admission, _| match offer {
            Ok(offer) => admission.offered(leg, offer),
            Err(why) => admission.declined(leg, why.code, why.message),
        });
    }

    async fn make_offer(
        self: &Arc<Self>,
        leg: LegId,
        peer: PeerId,
    ) -> Result<ReserveOffer, Declined> {
        let rtt = self.outbox(leg).map_or(Duration::ZERO, |outbox| outbox.connection().rtt());
        let Some(payment) = &self.desk.payment else {
            let known = self.drive(|admission, _| admission.account_of(&peer));
            let lease = known.map_or_else(|| self.desk.random_lease(), |account| account.lease());
            let terms = self.desk.terms(peer, lease, rtt);
            let signed = terms.sign(&self.desk.keypair);
            self.desk.keep(leg, Offered { terms, signed: signed.clone(), row: None })?;
            return Ok(ReserveOffer { terms: Some(signed), ..ReserveOffer::default() });
        };
        let row =
            payment.ledger.lease_with(peer, Edge::Relay, Role::Payee, self.desk.unix_s()).await?;
        let offered = match row {
            Some(row) => self.offer_again(row).await?,
            None => None,
        };
        let offered = offered.unwrap_or_else(|| {
            let terms = self.desk.terms(peer, self.desk.random_lease(), rtt);
            let signed = terms.sign(&self.desk.keypair);
            Offered { terms, signed, row: None }
        });
        let newest = payment.ledger.newest_earned(offered.terms.lease).await?;
        let starter_left = self.starter_left(leg, &peer).await?;
        let paid_from = match offered.row.as_ref().and_then(|row| row.channel) {
            Some(id) => payment.ledger.channel(id).await?,
            None => None,
        };
        let channel = paid_from.map(|row| show_channel(row.id, &row.key));
        let signed = offered.signed.clone();
        self.desk.keep(leg, offered)?;
        let newest = newest.map(|stored| stored.voucher);
        Ok(ReserveOffer { terms: Some(signed), starter_left, newest, channel })
    }

    /// The terms that this holder accepted before, if they still hold and their channel can pay.
    async fn offer_again(&self, row: LeaseRow) -> Result<Option<Offered>, Declined> {
        let Ok(terms) = Terms::parse(&row.terms) else { return Ok(None) };
        if !self.desk.still_holds(&terms) {
            return Ok(None);
        }
        let payment = self.desk.payment.as_ref().expect("only then are there rows");
        if let Some(id) = row.channel {
            let channel = payment.ledger.channel(id).await?;
            let is_over = match channel.filter(|row| row.status == ChannelStatus::Open) {
                Some(channel) => {
                    ends_lease(payment.state(&channel.key).await.as_ref().err(), Some(&row))
                }
                None => true,
            };
            if is_over {
                payment.ledger.end_lease(row.id).await?;
                return Ok(None);
            }
        }
        let signed =
            pay::SignedTerms { terms: row.terms.clone(), signature: row.terms_signature.clone() };
        Ok(Some(Offered { terms, signed, row: Some(row) }))
    }

    fn prefix(&self, leg: LegId) -> String {
        let ip = self.outbox(leg).map(|outbox| outbox.connection().remote_address().ip());
        ip.map_or_else(String::new, prefix)
    }

    /// The starter bytes that are left for a client: others may be promised them before it accepts.
    async fn starter_left(&self, leg: LegId, peer: &PeerId) -> Result<u64, Declined> {
        let Some(payment) = self.desk.payment.as_ref().filter(|_| self.desk.starter_bytes != 0)
        else {
            return Ok(0);
        };
        // What its own account holds is its own.
        let (_, own) = self.meters.starting(peer).unzip();
        let given =
            payment.ledger.starter_given(*peer, self.prefix(leg), self.desk.month()).await?;
        let less = |bytes: u64| bytes.saturating_sub(own.unwrap_or_default());
        Ok(self.desk.starter_most().left(&Starter {
            to_peer: less(given.to_peer),
            to_prefix: less(given.to_prefix),
            in_month: less(given.in_month),
        }))
    }

    /// Has the ledger promise a client what is left for it. From here to its account's beginning
    /// nothing may wait: what its earlier one uses meanwhile would count nowhere.
    async fn promise_starter(
        self: &Arc<Self>,
        leg: LegId,
        peer: &PeerId,
    ) -> Result<Starting, Declined> {
        let Some(payment) = self.desk.payment.as_ref().filter(|_| self.desk.starter_bytes != 0)
        else {
            return Ok(Starting::default());
        };
        self.meter(peer, |_, _| {});
        let before = self.meters.starting(peer);
        let left = before.as_ref().map(|(_, left)| *left);
        let (prefix, month) = (self.prefix(leg), self.desk.month());
        let most = self.desk.starter_most();
        let promise = payment.ledger.promise_starter(*peer, prefix, month, most, before).await?;
        self.meter(peer, |_, _| {});
        let now = self.meters.starting(peer).map(|(_, left)| left);
        let used = left.zip(now).map_or(0, |(then, now)| then.saturating_sub(now));
        let total = promise.bytes.saturating_sub(used);
        Ok(Starting { promise: Some(promise), total })
    }

    /// Takes a client's acceptance.
    pub(crate) async fn accept(self: Arc<Self>, leg: LegId, peer: PeerId, accept: pay::Accept) {
        let result = match self.desk.take(leg, &peer, &accept) {
            Ok(offered) if self.desk.payment.is_some() => {
                self.accept_paid(leg, peer, &accept, offered).await
            }
            Ok(offered) => {
                self.reserve(leg, &offered.terms, None);
                Ok(())
            }
            Err(why) => Err(why),
        };
        if let Err(why) = result {
            tracing::debug!(%peer, code = why.code, reason = why.message, "no reservation");
            self.drive(|admission, _| admission.declined(leg, why.code, why.message));
        }
    }

    fn reserve(
        self: &Arc<Self>,
        leg: LegId,
        terms: &Terms,
        room: Option<u64>,
    ) -> Option<(Arc<sluice_relay_core::Account>, sluice_relay_core::AccountTotals)> {
        let left = Duration::from_secs(terms.expires_unix_s.saturating_sub(self.desk.unix_s()))
            .min(TTL_MAX);
        self.drive(|admission, now| {
            let reserve = Reserve {
                lease: terms.lease,
                room,
                expires: now + left,
                expires_unix_s: terms.expires_unix_s,
            };
            admission.reserved(leg, reserve, now)
        })
    }

    async fn accept_paid(
        self: &Arc<Self>,
        leg: LegId,
        peer: PeerId,
        accept: &pay::Accept,
        offered: Offered,
    ) -> Result<(), Declined> {
        let payment = self.desk.payment.as_ref().expect("it is asked before");
        let Some(outbox) = self.outbox(leg) else { return Ok(()) };
        let (lease, mut shown) = (offered.terms.lease, None);
        if let Some(binding) = &accept.channel {
            let terms = &offered.terms;
            match payment.check(outbox.connection(), &peer, binding, terms).await {
                Ok(found) => shown = Some(found),
                Err(refused) => {
                    if ends_lease(Some(&refused), offered.row.as_ref()) {
                        payment.ledger.end_lease(lease).await?;
                    }
                    return Err(refused.into());
                }
            }
        }
        let channel = shown.map(|shown| shown.channel.id);
        let result = self.accept_shown(leg, peer, accept, offered, shown).await;
        // Taken for an account that does not begin: other relays of the fleet may have it.
        self.leave_unused(lease, channel).await;
        result
    }

    async fn accept_shown(
        self: &Arc<Self>,
        leg: LegId,
        peer: PeerId,
        accept: &pay::Accept,
        offered: Offered,
        mut shown: Option<Shown>,
    ) -> Result<(), Declined> {
        let payment = self.desk.payment.as_ref().expect("it is asked before");
        let terms = offered.terms;
        if shown.is_none() && self.starter_left(leg, &peer).await? == 0 {
            return self.ask_for_channel(payment);
        }
        let presented = accept.newest.as_ref();
        if let Some(shown) = &mut shown {
            self.begin(payment, peer, &terms, offered.row.as_ref(), shown, presented).await?;
        }
        self.write_lease(payment, peer, &terms, offered.signed, offered.row, shown).await?;
        let channel = shown.map(|shown| shown.channel);
        let newest = payment.ledger.newest_earned(terms.lease).await?;
        let newest = newest.map(|v| VoucherRecord {
            lease: v.lease,
            session: v.session,
            counts: Counts { up: v.up, down: v.down },
            amount: v.amount,
            voucher: v.voucher,
        });
        let resumed = Resumption::of(&terms, channel.as_ref(), newest, presented);
        if let Err(Lie::Backwards { .. }) = &resumed {
            payment.ledger.end_lease(terms.lease).await?;
        }
        let resumed =
            resumed.or_else(|lie| declined(code::PROTOCOL, format!("newest voucher: {lie}")))?;
        if let Some(Shown { channel, chain, .. }) = &shown
            && resumed.is_forgotten(channel, chain.redeemed)
        {
            payment.ledger.end_lease(terms.lease).await?;
            return declined(
                code::CHANNEL,
                format!(
                    "the chain says that {} of channel {} was redeemed, and neither of us has a \
                     voucher that reaches it: this reservation is over, ask anew",
                    chain.redeemed, channel.id
                ),
            );
        }
        if let Some(forgotten) = resumed.forgotten() {
            payment.ledger.record_earned(stored(forgotten.clone())).await?;
        }
        self.settled(payment, terms.lease).await;
        // What was on its way when a connection broke is at most a window.
        if resumed.standing == Standing::Behind && resumed.gap > terms.window {
            tracing::warn!(
                holder = %peer, lease = %terms.lease, bytes = resumed.gap,
                "the holder showed a voucher that this ledger has lost, as one that was restored \
                 from a backup: the account goes on from there",
            );
        }
        let starter = self.promise_starter(leg, &peer).await?;
        if channel.is_none() && starter.total == 0 {
            self.promise_anew(&peer, starter);
            return self.ask_for_channel(payment);
        }
        let starter_left = starter.total;
        let meter = RelayMeter::new(terms.clone(), channel, starter_left, resumed.newest);
        self.meter(&peer, |_, _| {});
        let now = self.desk.now();
        let wallet = shown.map(|shown| shown.key.payer);
        let debt = self.meters.debt(&peer, wallet, terms.lease, meter.paid(), now);
        let owed = debt.left(meter.paid(), now);
        let room = meter.limit().saturating_sub(owed);
        let Some((account, start)) = self.reserve(leg, &terms, Some(room)) else {
            self.promise_anew(&peer, starter);
            return Ok(());
        };
        tracing::info!(
            holder = %peer, lease = %terms.lease, starter_left, owed,
            channel = channel.map(|c| tracing::field::display(c.id)), "a reservation stands",
        );
        self.add_meter(peer, NewMeter { meter, terms, account, start, starter, shown, debt, leg });
        Ok(())
    }

    /// The holder was heard: this lease is in no doubt any more.
    async fn settled(&self, payment: &RelayPayment, lease: LeaseId) {
        if let Err(error) = payment.recovery.settle(lease).await {
            tracing::warn!(%lease, "the lease stays in doubt: {error}");
        }
    }

    fn ask_for_channel(&self, payment: &RelayPayment) -> Result<(), Declined> {
        let terms = payment.terms();
        declined(
            code::CHANNEL,
            format!(
                "no starter bytes are left: show a channel to payee {}, payout {}, token {} at \
                 contract {} on chain {}, with a close period of {} s or more",
                terms.payee,
                terms.payout,
                terms.token,
                terms.domain.contract,
                terms.domain.chain_id,
                terms.period_s
            ),
        )
    }

    /// Finds what the account begins at on the channel that is shown.
    async fn begin(
        &self,
        payment: &RelayPayment,
        peer: PeerId,
        terms: &Terms,
        row: Option<&LeaseRow>,
        shown: &mut Shown,
        presented: Option<&pay::Voucher>,
    ) -> Result<(), Declined> {
        let (id, ledger) = (shown.channel.id, &payment.ledger);
        if let Some(row) = row.filter(|row| row.channel.is_some()) {
            shown.channel.base = row.base;
            return Ok(());
        }
        // It takes the channel before what was earned is read: nobody else earns on it from now on.
        ledger.end_leases_on(id, peer, terms.lease, self.desk.unix_s()).await?;
        let earned = ledger.newest_on_channel(id, Role::Payee).await?.map(|v| v.amount);
        shown.channel = shown.channel.begin(terms, &shown.chain, earned, presented)?;
        Ok(())
    }

    /// Writes down what was agreed; a channel's base is what the lease began with.
    async fn write_lease(
        &self,
        payment: &RelayPayment,
        peer: PeerId,
        terms: &Terms,
        signed: pay::SignedTerms,
        row: Option<LeaseRow>,
        shown: Option<Shown>,
    ) -> Result<(), Declined> {
        let known = row.as_ref().and_then(|row| row.channel);
        let showed = shown.map(|shown| shown.channel.id);
        if let Some(known) = known
            && showed != Some(known)
        {
            if showed.is_some() {
                payment.ledger.end_lease(terms.lease).await?;
            }
            return declined(
                code::CHANNEL,
                format!("this reservation is paid from channel {known}: show it, or ask anew"),
            );
        }
        if let Some(shown) = &shown {
            payment.ledger.put_channel(payment.row(shown, peer)).await?;
        }
        let sessions = row.map_or(0, |row| row.sessions).saturating_add(1);
        let lease = LeaseRow {
            id: terms.lease,
            edge: Edge::Relay,
            role: Role::Payee,
            peer,
            terms: signed.terms,
            terms_signature: signed.signature,
            channel: showed,
            base: shown.map_or(Amount(0), |shown| shown.channel.base),
            sessions,
            closed: false,
        };
        Ok(payment.ledger.put_lease(lease).await?)
    }
}

/// Whether a lease can't go on, since the channel that pays it ends.
fn ends_lease(refused: Option<&Refused>, row: Option<&LeaseRow>) -> bool {
    let Some(Refused::Unfit(unfit)) = refused else { return false };
    let ending = unfit.ending();
    ending.is_some() && row.and_then(|row| row.channel) == ending
}

/// A /24 or /48, as the ledger's starter bytes name it.
fn prefix(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
    }
}
