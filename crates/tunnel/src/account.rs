//! The account of one session: metering's state machine, driven over the session's datagrams.

mod pumps;
mod snapshot;
mod task;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_metering::{
    Channel, Evidence, Gate, Payee, PayeeEvent, Payer, PayerEvent, Reason, RelayFlow, VoucherRecord,
};
use sluice_proto::Amount;
use sluice_transport::Clock;
use tokio::sync::{Notify, mpsc};

pub use snapshot::Snapshot;

/// While it waits it asks again this often.
const SETTLE_LOOK: Duration = Duration::from_millis(20);
/// An orderly close waits so long for the last voucher to be acknowledged.
const SETTLE: Duration = Duration::from_secs(3);
/// Lies that are passed on in one session; more are only counted, so that a peer cannot fill memory.
const LIES_MAX: u64 = 32;

/// Nothing more passes: the ledger failed, or another session took the lease over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the account is closed: its ledger failed, or another session took the lease over")]
pub struct Stopped;

/// A voucher that must be made durable; then call [`Persist::done`].
#[derive(Debug)]
pub struct Persist {
    /// The voucher.
    pub record: VoucherRecord,
    seq: u64,
    account: Weak<Inner>,
}

impl Persist {
    /// The ledger has it, and so all before it; or it failed, and nothing more may count.
    pub fn done(self, durable: bool) {
        let mut account = self.account.upgrade().map(Account);
        while let Some(Account(inner)) = account {
            let closed = Account(Arc::clone(&inner)).settle_persist(self.seq, durable);
            inner.progress.notify_waiters();
            // The account may have gone on in another session meanwhile.
            account = closed.then(|| inner.successor.lock().upgrade().map(Account)).flatten();
        }
    }
}

/// Where an account's doings go.
pub struct AccountOptions {
    /// Vouchers to be made durable; at most 8 are open at a time.
    pub persist: mpsc::UnboundedSender<Persist>,
    /// Lies of the peer, with evidence; at most 32 in a session.
    pub lies: mpsc::UnboundedSender<Evidence>,
    /// The payer's deposit is used up: what is due, and what the channel holds.
    pub exhausted: mpsc::UnboundedSender<(Amount, Amount)>,
    /// Told whenever a provider's service took payload: the session's total.
    pub delivered: Option<Box<dyn Fn(u64) + Send + Sync>>,
    /// The node's clock.
    pub clock: Clock,
}

impl std::fmt::Debug for AccountOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccountOptions")
    }
}

#[derive(Debug)]
enum Meter {
    Payer(Payer),
    Payee(Gate),
    /// The lease goes on in another session; how this one stood.
    Closed(Snapshot),
}

struct Inner {
    meter: Mutex<Meter>,
    connection: quinn::Connection,
    options: AccountOptions,
    /// Whether this end pays: it then sends up.
    pays: bool,
    /// Bytes may pass that could not before.
    writable: Notify,
    /// The task's deadline moved.
    task: Notify,
    /// Something was acknowledged or became durable.
    progress: Notify,
    sleeping_until: Mutex<Option<Instant>>,
    /// The account of the lease's next session; set when the meter is closed.
    successor: Mutex<Weak<Self>>,
    stalled: Mutex<Option<Reason>>,
    lies: AtomicU64,
    delivered: AtomicU64,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Account")
    }
}

/// The account of one session. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Account(Arc<Inner>);

impl Account {
    /// The tenant's account; its task runs until the connection is closed. It then signs for all
    /// that was read, so that the lease's next session can begin with [`newest`](Self::newest).
    #[must_use]
    pub fn payer(payer: Payer, connection: quinn::Connection, options: AccountOptions) -> Self {
        Self::start(Meter::Payer(payer), connection, options)
    }

    /// The provider's account; its task runs until the connection is closed.
    #[must_use]
    pub fn payee(payee: Payee, connection: quinn::Connection, options: AccountOptions) -> Self {
        Self::start(Meter::Payee(Gate::new(payee)), connection, options)
    }

    /// Whether both are handles on one account.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.options.clock
    }

    /// The provider's account of the same lease's next session, numbered `session`. What was lost
    /// with this one is remembered: a tenant that comes back again and again does not get a window
    /// for nothing each time. `presented` is the tenant's voucher if it was higher and is durable. `None` at a
    /// tenant, or when this was called before.
    #[must_use]
    pub fn next_session(
        &self,
        session: u64,
        presented: Option<VoucherRecord>,
        connection: quinn::Connection,
        options: AccountOptions,
    ) -> Option<Self> {
        let snapshot = self.snapshot();
        let mut meter = self.0.meter.lock();
        if !matches!(&*meter, Meter::Payee(_)) {
            return None;
        }
        let mut next = std::mem::replace(&mut *meter, Meter::Closed(snapshot));
        if let Meter::Payee(gate) = &mut next {
            gate.set_relay(None);
            gate.payee_mut().begin_session(session, presented);
        }
        let next = Self::start(next, connection, options);
        *self.0.successor.lock() = Arc::downgrade(&next.0);
        drop(meter);
        self.0.writable.notify_waiters();
        Some(next)
    }

    /// The ledger answered; whether this account is closed and another must hear it.
    fn settle_persist(&self, seq: u64, durable: bool) -> bool {
        self.change(|meter, now| {
            match (meter, durable) {
                (Meter::Payer(payer), true) => payer.handle_persisted(seq, now),
                (Meter::Payer(payer), false) => payer.handle_ledger_failed(),
                (Meter::Payee(gate), true) => gate.payee_mut().handle_durable(seq),
                (Meter::Payee(gate), false) => gate.payee_mut().handle_ledger_failed(),
                (Meter::Closed(_), _) => return true,
            }
            false
        })
    }

    fn start(meter: Meter, connection: quinn::Connection, options: AccountOptions) -> Self {
        let account = Self(Arc::new(Inner {
            pays: matches!(meter, Meter::Payer(_)),
            meter: Mutex::new(meter),
            connection,
            options,
            writable: Notify::new(),
            task: Notify::new(),
            progress: Notify::new(),
            sleeping_until: Mutex::default(),
            successor: Mutex::default(),
            stalled: Mutex::default(),
            lies: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        }));
        tokio::spawn(account.clone().run());
        account
    }

    /// Changes the meter, then does what it wants done.
    fn change<T>(&self, change: impl FnOnce(&mut Meter, Instant) -> T) -> T {
        let now = self.0.options.clock.now();
        let mut meter = self.0.meter.lock();
        let result = change(&mut meter, now);
        self.drain(&mut meter, now);
        result
    }

    fn drain(&self, meter: &mut Meter, now: Instant) {
        match meter {
            Meter::Payer(payer) => {
                while let Some(event) = payer.poll_event() {
                    self.obey_payer(event);
                }
                while let Some(datagram) = payer.poll_transmit(now) {
                    self.send(datagram);
                }
            }
            Meter::Payee(gate) => {
                let payee = gate.payee_mut();
                while let Some(event) = payee.poll_event() {
                    self.obey_payee(event);
                }
                while let Some(datagram) = payee.poll_transmit(now) {
                    self.send(datagram);
                }
            }
            Meter::Closed(_) => return,
        }
        if let Some(at) = meter.poll_timeout()
            && self.0.sleeping_until.lock().is_none_or(|until| task::wake_at(at, now) < until)
        {
            self.0.task.notify_one();
        }
    }

    fn send(&self, datagram: Bytes) {
        // What is lost is repeated until it is acknowledged.
        let _ = self.0.connection.send_datagram(datagram);
    }

    fn persist(&self, seq: u64, record: VoucherRecord) {
        let persist = Persist { record, seq, account: Arc::downgrade(&self.0) };
        // The owner is gone: so is the session, soon.
        let _ = self.0.options.persist.send(persist);
    }

    fn lie(&self, evidence: Evidence) {
        tracing::warn!("the other end of the lease lied: {}", evidence.lie);
        if self.0.lies.fetch_add(1, Relaxed) < LIES_MAX {
            let _ = self.0.options.lies.send(evidence);
        }
    }

    fn obey_payer(&self, event: PayerEvent) {
        match event {
            PayerEvent::Persist { seq, record } => self.persist(seq, record),
            PayerEvent::Lie(evidence) => self.lie(evidence),
            PayerEvent::DepositExhausted { due, deposit } => {
                let _ = self.0.options.exhausted.send((due, deposit));
            }
        }
    }

    fn obey_payee(&self, event: PayeeEvent) {
        match event {
            PayeeEvent::Persist { seq, record } => self.persist(seq, record),
            PayeeEvent::Lie(evidence) => self.lie(evidence),
            PayeeEvent::Stale => {}
            PayeeEvent::Writable => self.ask_again(),
        }
    }

    /// A paid relay carries the session from now on, or none.
    pub fn set_relay(&self, relay: Option<Arc<RelayFlow>>) {
        self.change(|meter, _| {
            if let Meter::Payee(gate) = meter {
                gate.set_relay(relay);
            }
        });
        self.ask_again();
    }

    /// The relay acknowledged vouchers: whoever waits for it may ask again, and QUIC go on.
    pub fn wake(&self) {
        self.ask_again();
        sluice_transport::relay_has_room(&self.0.connection);
    }

    fn ask_again(&self) {
        *self.0.stalled.lock() = None;
        self.0.writable.notify_waiters();
    }

    /// The channel holds this much now.
    pub fn set_deposit(&self, deposit: Amount) {
        self.change(|meter, now| match meter {
            Meter::Payer(payer) => payer.handle_deposit(deposit, now),
            Meter::Payee(gate) => gate.payee_mut().handle_deposit(deposit),
            Meter::Closed(_) => {}
        });
        self.ask_again();
    }

    /// The payee's view of the channel that pays from now on.
    pub fn set_channel(&self, channel: Channel) {
        self.change(|meter, _| {
            if let Meter::Payee(gate) = meter {
                gate.payee_mut().handle_channel(channel);
            }
        });
        self.ask_again();
    }

    /// The channel ends, or may have ended: the payee gives nothing more on it. What it gave may still
    /// be paid.
    pub fn channel_ends(&self) {
        self.change(|meter, _| {
            if let Meter::Payee(gate) = meter {
                gate.payee_mut().handle_channel_ends();
            }
        });
    }

    /// The newest voucher: signed (payer), or earned and durable (payee).
    #[must_use]
    pub fn newest(&self) -> Option<VoucherRecord> {
        match &*self.0.meter.lock() {
            Meter::Payer(payer) => payer.newest().cloned(),
            Meter::Payee(gate) => gate.payee().newest().cloned(),
            Meter::Closed(_) => None,
        }
    }

    /// Signs for (payer) or claims (payee) all that is open, and waits up to 3 s until it is
    /// settled. True: it is.
    ///
    /// To close in order, the end that closes says so on the session's control stream; then both
    /// call this, and the payee's end closes the connection once its call returned.
    pub async fn settle(&self) -> bool {
        let clock = &self.0.options.clock;
        let deadline = clock.now() + SETTLE;
        loop {
            // Again and again: a stream may end only now, and its end is to be settled too.
            self.change(|meter, now| match meter {
                Meter::Payer(payer) => payer.flush(now),
                Meter::Payee(gate) => gate.payee_mut().flush(now),
                Meter::Closed(_) => {}
            });
            let progress = self.0.progress.notified();
            let settled = self.is_settled();
            let closed = self.0.connection.close_reason().is_some();
            if settled || closed || clock.now() >= deadline {
                return settled;
            }
            tokio::select! {
                biased;
                () = progress => {}
                () = clock.sleep_until(deadline.min(clock.now() + SETTLE_LOOK)) => {}
            }
        }
    }

    fn is_settled(&self) -> bool {
        match &*self.0.meter.lock() {
            Meter::Payer(payer) => payer.is_settled(),
            Meter::Payee(gate) => gate.payee().is_settled(),
            Meter::Closed(_) => true,
        }
    }
}

impl Meter {
    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Payer(payer) => payer.poll_timeout().map(|(at, _)| at),
            Self::Payee(gate) => gate.payee().poll_timeout().map(|(at, _)| at),
            Self::Closed(_) => None,
        }
    }
}
