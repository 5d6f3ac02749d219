//! What the accounts do in the background: the ledger, the chain, the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_ledger::{LedgerError, StarterPromise};
use sluice_metering::RelayMeter;
use sluice_proto::wire::code;
use sluice_proto::{ChannelId, LeaseId, PeerId};

use super::{Meter, stored};
use crate::payment::Refused;
use crate::shared::Shared;

/// Accounts are looked at this often even if nothing is due: traffic below the next alarm counts
/// as silence only once it is known.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long after a ledger whose server is away is tried again.
const LEDGER_AGAIN: Duration = Duration::from_millis(500);
/// When the relay stops, holders may settle for this long.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);

impl Shared {
    /// Makes the newest voucher durable, then the next, until none is left.
    pub(super) async fn persist(self: Arc<Self>, peer: PeerId, entry: Arc<Mutex<Meter>>) {
        let Some(payment) = self.desk.payment() else { return };
        loop {
            let next = {
                let mut meter = entry.lock();
                let next = meter.pending.take();
                meter.persisting = next.is_some();
                next
            };
            let Some((seq, record)) = next else { break };
            let voucher = stored(record);
            let result = loop {
                let result = payment.ledger.record_earned(voucher.clone()).await;
                let Err(error) = &result else { break result };
                tracing::error!(%error, holder = %peer, "a voucher could not be written");
                // Until its server is back the voucher is neither counted nor acknowledged, so that
                // the window stops the traffic by itself. A newer one takes its place.
                if !error.is_passing() || !self.is_current(&peer, &entry) {
                    break result;
                }
                self.desk.clock().sleep(LEDGER_AGAIN).await;
                if entry.lock().pending.is_some() {
                    break result;
                }
            };
            if !self.is_current(&peer, &entry) {
                continue;
            }
            match result {
                Ok(()) => self.meter(&peer, |meter, now| meter.handle_durable(seq, now)),
                Err(error) if error.is_passing() => {}
                Err(error) => {
                    self.meter(&peer, RelayMeter::handle_ledger_failed);
                    // Nothing more passes here: elsewhere it may.
                    let why = lost(&error)
                        .unwrap_or_else(|| "the relay cannot use its ledger now".to_owned());
                    self.drive(|admission, _| admission.revoke(&peer, code::LEDGER, why));
                }
            }
        }
        if !self.is_current(&peer, &entry) {
            self.let_go(peer, &entry).await;
        }
    }

    fn is_current(&self, peer: &PeerId, entry: &Arc<Mutex<Meter>>) -> bool {
        self.meters.get(peer).is_some_and(|meter| Arc::ptr_eq(&meter, entry))
    }

    /// A reservation ended, and its last voucher is written: another relay of the fleet may go on with
    /// its channel.
    pub(super) async fn let_go(&self, peer: PeerId, entry: &Arc<Mutex<Meter>>) {
        let (lease, channel) = {
            let meter = entry.lock();
            (meter.new.terms.lease, meter.new.shown.map(|shown| shown.channel.id))
        };
        let is_resumed = self.meters.get(&peer).is_some_and(|m| m.lock().new.terms.lease == lease);
        if !is_resumed {
            self.leave_unused(lease, channel).await;
        }
    }

    /// Lets go of a lease and its channel, which other accounts of this relay may use.
    pub(crate) async fn leave_unused(&self, lease: LeaseId, channel: Option<ChannelId>) {
        let Some(payment) = self.desk.payment() else { return };
        if self.meters.all().iter().any(|(_, meter)| meter.lock().new.terms.lease == lease) {
            return;
        }
        let channel = channel.filter(|channel| !self.meters.pays(*channel));
        if let Err(error) = payment.ledger.let_go(lease, channel).await {
            tracing::warn!(%error, %lease, "a channel could not be let go");
        }
    }

    /// Writes down how many starter bytes are left of a promise.
    pub(super) async fn record_starter(
        self: Arc<Self>,
        peer: PeerId,
        promise: StarterPromise,
        left: u64,
    ) {
        let Some(payment) = self.desk.payment() else { return };
        loop {
            let month = self.desk.month();
            let result = payment.ledger.record_starter(promise.clone(), month, left).await;
            let Err(error) = result else { return };
            tracing::error!(%error, holder = %peer, "starter bytes could not be written down");
            if !error.is_passing() {
                return self.meter(&peer, RelayMeter::handle_ledger_failed);
            }
            self.desk.clock().sleep(LEDGER_AGAIN).await;
        }
    }

    /// Returns what is left of a promise to those who come next.
    pub(crate) async fn return_starter(self: Arc<Self>, promise: StarterPromise, left: u64) {
        let Some(payment) = self.desk.payment() else { return };
        loop {
            let month = self.desk.month();
            let result = payment.ledger.return_starter(promise.clone(), month, left).await;
            match result {
                Err(error) if error.is_passing() => self.desk.clock().sleep(LEDGER_AGAIN).await,
                Err(error) => return tracing::warn!(%error, "starter bytes stay promised"),
                Ok(()) => return,
            }
        }
    }

    /// Reads a channel anew: a top-up counts, a close ends the reservation, and so does that it could
    /// not be read for too long (see [`Sight`]).
    pub(super) async fn read_channel(self: Arc<Self>, peer: PeerId, entry: Arc<Mutex<Meter>>) {
        let Some(payment) = self.desk.payment() else { return };
        let began = self.desk.now();
        let (shown, terms) = {
            let meter = entry.lock();
            let Some(shown) = meter.new.shown else { return };
            (shown, meter.new.terms.clone())
        };
        match payment.state(&shown.key).await {
            Ok(chain) => {
                let deposit = terms.usable(chain.deposit, chain.settled, payment.unfinal_credit);
                let mut meter = entry.lock();
                if let Some(shown) = &mut meter.new.shown {
                    shown.chain = chain;
                }
                if let Some(sight) = &mut meter.sight {
                    sight.handle_open(began);
                }
                drop(meter);
                self.meter(&peer, |meter, _| meter.handle_deposit(deposit));
            }
            Err(Refused::Unfit(unfit)) => self.revoke_channel(&peer, &entry, unfit.to_string()),
            Err(Refused::Unknown(error)) => {
                tracing::warn!(%error, "the chain cannot be read: serving on within the deposit");
                let (sight, now) = (entry.lock().sight, self.desk.now());
                if let Some(sight) = sight.filter(|sight| sight.is_lost(now)) {
                    let unseen = now.saturating_duration_since(sight.seen()).as_secs() / 3600;
                    let id = shown.channel.id;
                    let why = format!("channel {id} could not be looked at for {unseen} hours");
                    self.revoke_channel(&peer, &entry, why);
                }
            }
        }
    }

    fn revoke_channel(self: &Arc<Self>, peer: &PeerId, entry: &Arc<Mutex<Meter>>, why: String) {
        if self.is_current(peer, entry) {
            self.drive(|admission, _| admission.revoke(peer, code::CHANNEL, why));
        }
    }

    /// Calls the accounts when it is time.
    pub(crate) async fn keep_accounts(self: Arc<Self>) {
        let clock = self.desk.clock();
        let mut look = clock.now();
        loop {
            let due = self.meters.due.lock().first().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = clock.sleep_until(look) => {
                    self.look_over();
                    look = clock.now() + LOOK_EVERY;
                }
                () = clock.sleep_until(due.unwrap_or(look)), if due.is_some() => self.call_due(),
                () = self.meters.notify.notified() => {}
            }
        }
    }

    fn call_due(self: &Arc<Self>) {
        let now = self.desk.now();
        let due: Vec<(Instant, PeerId)> =
            self.meters.due.lock().iter().take_while(|(at, _)| *at <= now).copied().collect();
        for (at, peer) in due {
            self.meters.due.lock().remove(&(at, peer));
            if let Some(meter) = self.meters.get(&peer) {
                meter.lock().due = None;
            }
            self.meter(&peer, RelayMeter::handle_timeout);
        }
    }

    fn look_over(self: &Arc<Self>) {
        let now = self.desk.now();
        for (peer, entry) in self.meters.all() {
            let (changed, read) = {
                let mut meter = entry.lock();
                let reported = meter.new.meter.counts().total();
                let total = meter.new.account.total();
                let base = meter.paid_at_start.total().saturating_add(total);
                let moved = base.saturating_sub(meter.start_total()) != reported;
                let unsure =
                    meter.new.shown.is_some_and(|shown| shown.chain.settled < shown.chain.deposit);
                let read = meter.sight.as_mut().is_some_and(|sight| {
                    let is_due = sight.is_due(total, unsure, now);
                    if is_due {
                        sight.handle_look(total, now);
                    }
                    is_due
                });
                // Time forgives debts.
                (moved || meter.debt(now) > 0, read)
            };
            if changed {
                self.meter(&peer, |_, _| {});
            }
            if read {
                tokio::spawn(self.clone().read_channel(peer, entry));
            }
        }
    }

    /// Whether a holder that is connected has not paid all.
    fn is_owed(self: &Arc<Self>) -> bool {
        self.meters.stats().iter().any(|meter| {
            let here = self.drive(|admission, _| admission.connection_of(&meter.holder).is_some());
            here && !meter.is_settled
        })
    }

    /// Claims what is left of every account, and waits a little for the vouchers.
    pub(crate) async fn settle_accounts(self: &Arc<Self>) {
        let clock = self.desk.clock();
        let deadline = clock.now() + SETTLE_WITHIN;
        for (peer, _) in self.meters.all() {
            self.meter(&peer, |meter, _| meter.flush());
        }
        while clock.now() < deadline && self.is_owed() {
            clock.sleep(Duration::from_millis(20)).await;
        }
        for (peer, _) in self.meters.all() {
            self.remove_meter(&peer);
        }
    }
}

/// Why an account ends whose vouchers count no more, for its holder.
fn lost(error: &LedgerError) -> Option<String> {
    use LedgerError::{Ended, Fenced, Owned, Superseded};
    if let Ended { .. } = error {
        return Some(error.to_string());
    }
    matches!(error, Fenced { .. } | Owned { .. } | Superseded { .. })
        .then(|| "this relay has lost the channel to another one".to_owned())
}
