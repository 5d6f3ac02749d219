//! The accounts of the reservations that are paid for.

mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_ledger::{StarterPromise, StoredVoucher};
use sluice_metering::{
    Counts, Debt, Lie, RelayMeter, RelayMeterEvent, Sight, Terms, VoucherRecord,
};
use sluice_proto::{Amount, ChannelId, EthAddress, LeaseId, PeerId};
use sluice_relay_core::{Account, AccountTotals, LegId};
use tokio::sync::Notify;

use crate::payment::Shown;
use crate::shared::Shared;

/// A channel whose deposit seems exceeded is read again at most this often.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// What a holder that left owes is remembered for this long.
const DEBT_TTL: Duration = Duration::from_secs(3600);
/// Holders and wallets whose debts are remembered.
const DEBTS_MAX: usize = 65_536;

/// Of whom a debt is remembered: new keys on a wallet's channels renew no window either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Debtor {
    Holder(PeerId),
    Wallet(EthAddress),
}

/// One reservation's money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterStats {
    /// Who pays.
    pub holder: PeerId,
    /// The reservation.
    pub lease: LeaseId,
    /// Frame bytes that were forwarded, cumulative over the reservation.
    pub counts: Counts,
    /// Frame bytes that durable vouchers pay for.
    pub paid: Counts,
    /// The newest durable amount, cumulative over the channel.
    pub amount: Amount,
    /// Vouchers that became durable in this process.
    pub vouchers: u64,
    /// Bytes forwarded and not paid.
    pub unpaid: u64,
    /// The most that ever was.
    pub unpaid_max: u64,
    /// Whether all that was claimed is paid.
    pub is_settled: bool,
}

/// The starter bytes of an account.
#[derive(Debug, Clone, Default)]
pub(crate) struct Starting {
    /// What the ledger holds for it; none where nothing is given.
    pub(crate) promise: Option<StarterPromise>,
    /// So many may be in use at a time.
    pub(crate) total: u64,
}

/// What a new meter begins with.
pub(crate) struct NewMeter {
    pub(crate) meter: RelayMeter,
    pub(crate) terms: Terms,
    pub(crate) account: Arc<Account>,
    pub(crate) start: AccountTotals,
    pub(crate) starter: Starting,
    pub(crate) shown: Option<Shown>,
    pub(crate) debt: Debt,
    /// The control connection that the terms were accepted on. The account speaks on no other: a
    /// holder that came back counts anew once it accepted, and would find these claims too high.
    pub(crate) leg: LegId,
}

struct Meter {
    new: NewMeter,
    paid_at_start: Counts,
    limit: u64,
    starter_recorded: u64,
    due: Option<Instant>,
    pending: Option<(u64, VoucherRecord)>,
    persisting: bool,
    /// Of its channel, if it has one.
    sight: Option<Sight>,
    lies: u64,
}

impl Meter {
    fn totals(&self) -> Counts {
        let totals = self.new.account.totals();
        Counts {
            up: totals.up.saturating_sub(self.new.start.up),
            down: totals.down.saturating_sub(self.new.start.down),
        }
    }

    /// Who paid the deposit of its channel.
    fn wallet(&self) -> Option<EthAddress> {
        self.new.shown.map(|shown| shown.key.payer)
    }

    fn start_total(&self) -> u64 {
        self.new.start.up.saturating_add(self.new.start.down)
    }

    fn debt(&self, now: Instant) -> u64 {
        self.new.debt.left(self.new.meter.paid(), now)
    }

    /// The limit for the forwarding path, in its counts.
    fn limit(&self, now: Instant) -> u64 {
        let room = self.new.meter.limit().saturating_sub(self.debt(now));
        self.start_total().saturating_add(room)
    }

    fn alarm(&self) -> u64 {
        self.start_total().saturating_add(self.new.meter.alarm()).min(self.limit)
    }

    fn starting(&self) -> Option<(StarterPromise, u64)> {
        let Starting { promise, total } = &self.new.starter;
        let left = total.saturating_sub(self.new.meter.starter_used());
        promise.clone().map(|promise| (promise, left))
    }

    fn stats(&self, holder: PeerId) -> MeterStats {
        let meter = &self.new.meter;
        MeterStats {
            holder,
            lease: self.new.terms.lease,
            counts: meter.counts(),
            paid: meter.paid(),
            amount: meter.amount(),
            vouchers: meter.vouchers(),
            unpaid: meter.unpaid(),
            unpaid_max: meter.unpaid_max(),
            is_settled: meter.is_settled(),
        }
    }
}

/// What is to be done once a meter's lock is free.
#[derive(Default)]
struct Todo {
    datagrams: Vec<Bytes>,
    /// The new limit, and whether it was paid for.
    limit: Option<(u64, bool)>,
    persist: bool,
    starter: Option<(StarterPromise, u64)>,
    read: bool,
}

/// Every account that is paid for.
#[derive(Default)]
pub(crate) struct Meters {
    meters: Mutex<BTreeMap<PeerId, Arc<Mutex<Meter>>>>,
    debts: Mutex<BTreeMap<Debtor, Debt>>,
    due: Mutex<BTreeSet<(Instant, PeerId)>>,
    notify: Notify,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meters({})", self.meters.lock().len())
    }
}

impl Meters {
    fn get(&self, peer: &PeerId) -> Option<Arc<Mutex<Meter>>> {
        self.meters.lock().get(peer).cloned()
    }

    fn all(&self) -> Vec<(PeerId, Arc<Mutex<Meter>>)> {
        self.meters.lock().iter().map(|(peer, meter)| (*peer, meter.clone())).collect()
    }

    /// Whether an account is paid from this channel.
    fn pays(&self, channel: ChannelId) -> bool {
        let is = |meter: &Meter| meter.new.shown.is_some_and(|s| s.channel.id == channel);
        self.all().iter().any(|(_, meter)| is(&meter.lock()))
    }

    /// Every account, by holder.
    pub(crate) fn stats(&self) -> Vec<MeterStats> {
        self.all().into_iter().map(|(peer, meter)| meter.lock().stats(peer)).collect()
    }

    /// What a holder's account is promised of starter bytes, and how many are left of them.
    pub(crate) fn starting(&self, peer: &PeerId) -> Option<(StarterPromise, u64)> {
        self.get(peer)?.lock().starting()
    }

    /// What a holder, or another with its wallet, left unpaid before: what its newest voucher on
    /// `lease` does not cover.
    pub(crate) fn debt(
        &self,
        peer: &PeerId,
        wallet: Option<EthAddress>,
        lease: LeaseId,
        newest: Counts,
        now: Instant,
    ) -> Debt {
        let of_holder = if let Some(meter) = self.get(peer) {
            let meter = meter.lock();
            let account = &meter.new.meter;
            let is_same = meter.new.terms.lease == lease;
            let unpaid = if is_same { account.counts().since(newest) } else { account.unpaid() };
            let unpaid = unpaid.saturating_sub(account.starter_used());
            unpaid.saturating_add(meter.debt(now))
        } else {
            self.remembered(Debtor::Holder(*peer), now)
        };
        let of_wallet = wallet.map_or(0, |wallet| self.remembered(Debtor::Wallet(wallet), now));
        Debt::new(of_holder.max(of_wallet), now, newest)
    }

    fn remembered(&self, debtor: Debtor, now: Instant) -> u64 {
        let debt = self.debts.lock().get(&debtor).copied();
        debt.filter(|debt| is_remembered(debt, now))
            .map_or(0, |debt| debt.left(Counts::default(), now))
    }

    /// An account ended with `bytes` unpaid, under which `paid` were paid: they make up for what the
    /// same wallet owed before.
    fn remember_debt(&self, debtor: Debtor, bytes: u64, paid: u64, now: Instant) {
        let bytes = bytes.max(self.remembered(debtor, now).saturating_sub(paid));
        let mut debts = self.debts.lock();
        debts.remove(&debtor);
        if bytes == 0 {
            return;
        }
        if debts.len() >= DEBTS_MAX {
            debts.retain(|_, debt| is_remembered(debt, now));
        }
        if debts.len() < DEBTS_MAX {
            debts.insert(debtor, Debt::new(bytes, now, Counts::default()));
        }
    }

    fn set_due(&self, peer: PeerId, meter: &mut Meter) {
        let next = meter.new.meter.poll_timeout().map(|(at, _)| at);
        if next == meter.due {
            return;
        }
        let mut due = self.due.lock();
        if let Some(old) = meter.due.take() {
            due.remove(&(old, peer));
        }
        if let Some(at) = next {
            due.insert((at, peer));
        }
        meter.due = next;
        drop(due);
        self.notify.notify_one();
    }
}

fn is_remembered(debt: &Debt, now: Instant) -> bool {
    now.saturating_duration_since(debt.since()) < DEBT_TTL
}

impl Shared {
    /// No account began with this promise: the one that goes on has it, or nobody.
    pub(crate) fn promise_anew(self: &Arc<Self>, peer: &PeerId, starter: Starting) {
        let Starting { promise: Some(promise), total } = starter else { return };
        match self.meters.get(peer) {
            Some(entry) => {
                let mut meter = entry.lock();
                let total = total.saturating_add(meter.new.meter.starter_used());
                meter.new.starter = Starting { promise: Some(promise), total };
            }
            None => drop(tokio::spawn(self.clone().return_starter(promise, total))),
        }
    }

    /// Puts a new account in place of the holder's old one; it carries what that left unpaid.
    pub(crate) fn add_meter(self: &Arc<Self>, peer: PeerId, new: NewMeter) {
        let meter = Meter {
            paid_at_start: new.meter.paid(),
            limit: 0,
            starter_recorded: 0,
            due: None,
            pending: None,
            persisting: false,
            sight: self.desk.payment().zip(new.shown).map(|(payment, shown)| {
                Sight::new(shown.chain.period_s, payment.look, self.desk.now())
            }),
            lies: 0,
            new,
        };
        let old = self.meters.meters.lock().insert(peer, Arc::new(Mutex::new(meter)));
        self.meters.debts.lock().remove(&Debtor::Holder(peer));
        if let Some(old) = old {
            let mut meter = old.lock();
            if let Some(due) = meter.due.take() {
                self.meters.due.lock().remove(&(due, peer));
            }
            // Else it lets go once its last voucher is written.
            if !meter.persisting {
                let (shared, old) = (self.clone(), old.clone());
                tokio::spawn(async move { shared.let_go(peer, &old).await });
            }
        }
        self.meter(&peer, |_, _| {});
    }

    /// The reservation ended: what was left unpaid is remembered for a while.
    pub(crate) fn remove_meter(self: &Arc<Self>, peer: &PeerId) {
        self.meter(peer, |_, _| {});
        let Some(entry) = self.meters.meters.lock().remove(peer) else { return };
        let mut meter = entry.lock();
        if let Some(due) = meter.due.take() {
            self.meters.due.lock().remove(&(due, *peer));
        }
        let unpaid = meter.new.meter.unpaid().saturating_sub(meter.new.meter.starter_used());
        let now = self.desk.now();
        let owed = unpaid.saturating_add(meter.debt(now));
        self.meters.remember_debt(Debtor::Holder(*peer), owed, 0, now);
        if let Some(wallet) = meter.wallet() {
            let paid = meter.new.meter.paid().since(meter.paid_at_start);
            self.meters.remember_debt(Debtor::Wallet(wallet), owed, paid, now);
        }
        let stats = meter.stats(*peer);
        tracing::info!(
            holder = %peer, lease = %stats.lease, paid = stats.paid.total(),
            unpaid = stats.unpaid, amount = %stats.amount, "an account is closed",
        );
        if let Some((promise, left)) = meter.starting() {
            tokio::spawn(self.clone().return_starter(promise, left));
        }
        if !meter.persisting {
            let (shared, peer, entry) = (self.clone(), *peer, entry.clone());
            tokio::spawn(async move { shared.let_go(peer, &entry).await });
        }
    }

    /// A pay message of a holder.
    pub(crate) fn pay_datagram(self: &Arc<Self>, leg: LegId, datagram: Bytes) {
        if datagram.is_empty() {
            return;
        }
        let Some(peer) = self.drive(|admission, _| admission.peer_of(leg)) else { return };
        self.meter(&peer, |meter, now| meter.handle_datagram(&datagram, now));
    }

    /// The forwarding path raised the alarm, or held something back.
    pub(crate) fn report(self: &Arc<Self>, peer: &PeerId) {
        let blocked = self.drive(|admission, _| {
            admission.account_of(peer).is_some_and(|account| account.is_unpaid())
        });
        self.meter(peer, |meter, _| {
            if blocked {
                meter.flush();
            }
        });
    }

    /// Reports what was forwarded, changes the holder's account, and does what follows.
    pub(crate) fn meter(
        self: &Arc<Self>,
        peer: &PeerId,
        change: impl FnOnce(&mut RelayMeter, Instant),
    ) {
        let Some(entry) = self.meters.get(peer) else { return };
        let accepted_on = entry.lock().new.leg;
        let connection = self
            .drive(|admission, _| admission.connection_of(peer))
            .filter(|leg| *leg == accepted_on)
            .and_then(|leg| self.outbox(leg))
            .map(|outbox| outbox.connection().clone());
        let mut todo = Todo::default();
        {
            let mut meter = entry.lock();
            let now = self.desk.now();
            if let Some(connection) = &connection {
                meter.new.meter.handle_pto(connection.rtt() * 2);
            }
            let totals = meter.totals();
            meter.new.meter.handle_totals(totals, now);
            let allowed = meter.new.meter.limit();
            change(&mut meter.new.meter, now);
            take_events(peer, &mut meter, &mut todo, now);
            todo.datagrams.extend(std::iter::from_fn(|| meter.new.meter.poll_transmit(now)));
            let (limit, paid) = (meter.limit(now), meter.new.meter.limit() != allowed);
            todo.limit = (limit != meter.limit).then_some((limit, paid));
            meter.limit = limit;
            meter.new.account.set_forgives(meter.debt(now) > 0);
            let used = meter.new.meter.starter_used();
            if used > std::mem::replace(&mut meter.starter_recorded, used) {
                todo.starter = meter.starting();
            }
            self.meters.set_due(*peer, &mut meter);
            meter.new.account.set_alarm(meter.alarm());
        }
        match todo.limit {
            Some((limit, true)) => self.drive(|admission, _| admission.set_limit(peer, limit)),
            Some((limit, false)) => self.drive(|admission, _| admission.forgive(peer, limit)),
            None => {}
        }
        if let Some(connection) = connection {
            for datagram in todo.datagrams {
                // Too large, or the connection is lost: repeated or made good later.
                let _ = connection.send_datagram(datagram);
            }
        }
        if todo.persist {
            tokio::spawn(self.clone().persist(*peer, entry.clone()));
        }
        if let Some((promise, left)) = todo.starter {
            tokio::spawn(self.clone().record_starter(*peer, promise, left));
        }
        if todo.read {
            tokio::spawn(self.clone().read_channel(*peer, entry));
        }
    }
}

fn take_events(peer: &PeerId, meter: &mut Meter, todo: &mut Todo, now: Instant) {
    while let Some(event) = meter.new.meter.poll_event() {
        match event {
            RelayMeterEvent::Persist { seq, record } => {
                meter.pending = Some((seq, record));
                todo.persist |= !meter.persisting;
                meter.persisting = true;
            }
            RelayMeterEvent::Lie(evidence) => {
                meter.lies = meter.lies.saturating_add(1);
                let lie = &evidence.lie;
                tracing::warn!(holder = %peer, %lie, lies = meter.lies, "a pay message is false");
                let over = matches!(lie, Lie::OverDeposit { .. });
                let total = meter.new.account.total();
                if let Some(sight) = meter.sight.as_mut().filter(|_| over)
                    && now.saturating_duration_since(sight.looked()) >= READ_AGAIN
                {
                    sight.handle_look(total, now);
                    todo.read = true;
                }
            }
            RelayMeterEvent::Stale => tracing::trace!(holder = %peer, "an old voucher came again"),
            RelayMeterEvent::Unpaid => tracing::debug!(holder = %peer, "the window is used up"),
            RelayMeterEvent::Paid => tracing::debug!(holder = %peer, "there is room again"),
            // The control plane closes the flows by its own clock.
            RelayMeterEvent::Close => {}
        }
    }
}

pub(crate) fn stored(record: VoucherRecord) -> StoredVoucher {
    StoredVoucher {
        lease: record.lease,
        up: record.counts.up,
        down: record.counts.down,
        amount: record.amount,
        voucher: record.voucher,
        session: record.session,
    }
}
