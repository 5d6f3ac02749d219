//! What the accounts do in the background: the ledger, the chain, the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_metering::RelayMeter;
use sluice_proto::PeerId;
use sluice_proto::wire::code;

use super::{Meter, stored};
use crate::payment::Unfit;
use crate::shared::Shared;

/// Accounts are looked at this often even if nothing is due: traffic below the next alarm counts
/// as silence only once it is known.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Channels in use are read from the chain this often.
const READ_EVERY: Duration = Duration::from_secs(30);
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
            let Some((seq, record)) = next else { return };
            let result = payment.ledger.record_earned(stored(record)).await;
            if let Err(error) = &result {
                tracing::error!(%error, holder = %peer, "a voucher could not be written");
            }
            let is_current = self.meters.get(&peer).is_some_and(|m| Arc::ptr_eq(&m, &entry));
            if is_current {
                self.meter(&peer, |meter, now| match result {
                    Ok(()) => meter.handle_durable(seq, now),
                    Err(_) => meter.handle_ledger_failed(now),
                });
            }
        }
    }

    pub(super) async fn record_starter(
        self: Arc<Self>,
        peer: PeerId,
        entry: Arc<Mutex<Meter>>,
        bytes: u64,
    ) {
        let Some(payment) = self.desk.payment() else { return };
        let prefix = entry.lock().new.starter.prefix.clone();
        let result = payment.ledger.record_starter(peer, prefix, self.desk.month(), bytes).await;
        if let Err(error) = result {
            tracing::error!(%error, holder = %peer, "starter bytes could not be written down");
            self.meter(&peer, RelayMeter::handle_ledger_failed);
        }
    }

    /// Reads a channel anew: a top-up counts, a close ends the reservation.
    pub(super) async fn read_channel(self: Arc<Self>, peer: PeerId, entry: Arc<Mutex<Meter>>) {
        let Some(payment) = self.desk.payment() else { return };
        let (shown, terms) = {
            let meter = entry.lock();
            let Some(shown) = meter.new.shown else { return };
            (shown, meter.new.terms.clone())
        };
        match payment.state(&shown.key).await {
            Ok((state, is_final)) => {
                let deposit = payment.usable(&state, is_final, shown.channel.base, &terms);
                let mut meter = entry.lock();
                if let Some(shown) = &mut meter.new.shown {
                    (shown.state, shown.is_final) = (state, is_final);
                }
                drop(meter);
                self.meter(&peer, |meter, _| meter.handle_deposit(deposit));
            }
            Err(Unfit::Channel(why)) => {
                self.drive(|admission, _| admission.revoke(&peer, code::CHANNEL, why));
            }
            Err(Unfit::Unknown(error)) => {
                tracing::warn!(%error, "the chain cannot be read: serving on within the deposit");
            }
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
            let (moved, read) = {
                let mut meter = entry.lock();
                let reported = meter.new.meter.counts().total();
                let total = meter.new.account.total();
                let base = meter.paid_at_start.total().saturating_add(total);
                let moved = base.saturating_sub(meter.start_total()) != reported;
                let rested =
                    meter.read_at.is_none_or(|at| now.saturating_duration_since(at) >= READ_EVERY);
                let unsure = meter.new.shown.is_some_and(|shown| !shown.is_final);
                let read =
                    rested && meter.new.shown.is_some() && (unsure || meter.read_total != total);
                if read {
                    (meter.read_at, meter.read_total) = (Some(now), total);
                }
                (moved, read)
            };
            if moved {
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
