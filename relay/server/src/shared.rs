//! What the relay's tasks share, and how its core's actions are obeyed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{Connection, VarInt};
use sluice_proto::wire;
use sluice_relay_core::{Action, Admission, Forwarder, LegId};
use tokio::sync::Notify;

use crate::desk::Desk;
use crate::meters::Meters;
use crate::tcp::StreamTable;

/// Messages that wait for a client that does not read. More, and it is cut off.
const OUTBOX_MAX: usize = 1024;

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    /// Close with this code and reason once the messages are written.
    close: Option<(u32, &'static str)>,
}

/// What one control connection still has to write.
#[derive(Debug)]
pub(crate) struct Outbox {
    connection: Connection,
    queue: Mutex<Queue>,
    notify: Notify,
}

/// What a control connection's task does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Write these bytes.
    Write(Bytes),
    /// Close with this code and reason.
    Close(u32, &'static str),
}

impl Outbox {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, queue: Mutex::default(), notify: Notify::new() }
    }

    /// The connection that it belongs to.
    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    fn push(&self, message: Bytes) {
        let mut queue = self.queue.lock();
        if queue.messages.len() >= OUTBOX_MAX {
            drop(queue);
            return self.connection.close(wire::code::LIMIT.into(), b"does not read");
        }
        queue.messages.push_back(message);
        drop(queue);
        self.notify.notify_one();
    }

    fn close(&self, code: u32, reason: &'static str) {
        self.queue.lock().close.get_or_insert((code, reason));
        self.notify.notify_one();
    }

    /// The next thing to do, if any.
    pub(crate) fn next(&self) -> Option<Next> {
        let mut queue = self.queue.lock();
        if queue.messages.is_empty() && queue.messages.capacity() > 0 {
            queue.messages = VecDeque::new();
        }
        match queue.messages.pop_front() {
            Some(message) => Some(Next::Write(message)),
            None => queue.close.map(|(code, reason)| Next::Close(code, reason)),
        }
    }

    /// Waits until [`Outbox::next`] may have something.
    pub(crate) async fn ready(&self) {
        self.notify.notified().await;
    }
}

/// What the relay's tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) desk: Desk,
    pub(crate) meters: Meters,
    pub(crate) streams: Arc<StreamTable>,
    /// Woken when the time of [`Admission::poll_timeout`] may have changed.
    pub(crate) timer: Notify,
    admission: Mutex<Admission>,
    outboxes: Mutex<BTreeMap<LegId, Arc<Outbox>>>,
}

impl Shared {
    pub(crate) fn new(
        forwarder: Arc<Forwarder>,
        admission: Admission,
        desk: Desk,
        streams: Arc<StreamTable>,
    ) -> Self {
        Self {
            forwarder,
            desk,
            meters: Meters::default(),
            streams,
            timer: Notify::new(),
            admission: Mutex::new(admission),
            outboxes: Mutex::default(),
        }
    }

    /// Changes or reads the control plane, then obeys what it says.
    pub(crate) fn drive<T>(self: &Arc<Self>, f: impl FnOnce(&mut Admission, Instant) -> T) -> T {
        let mut later = Vec::new();
        let result = {
            let mut admission = self.admission.lock();
            let before = admission.poll_timeout();
            let result = f(&mut admission, self.desk.now());
            while let Some(action) = admission.poll_action() {
                // Under the lock, so that each client hears of things in their order.
                later.extend(self.deliver(action));
            }
            if admission.poll_timeout() != before {
                self.timer.notify_one();
            }
            result
        };
        for action in later {
            self.obey(action);
        }
        result
    }

    pub(crate) fn add_outbox(&self, leg: LegId, outbox: Arc<Outbox>) {
        self.outboxes.lock().insert(leg, outbox);
    }

    pub(crate) fn remove_outbox(&self, leg: LegId) {
        self.outboxes.lock().remove(&leg);
    }

    pub(crate) fn outbox(&self, leg: LegId) -> Option<Arc<Outbox>> {
        self.outboxes.lock().get(&leg).cloned()
    }

    /// Puts what is to be written or closed into its outbox; gives anything else back.
    fn deliver(&self, action: Action) -> Option<Action> {
        match action {
            Action::Send { leg, message } => {
                if let Some(outbox) = self.outbox(leg) {
                    outbox.push(wire::prefixed(&message));
                }
                None
            }
            Action::Close { leg, code, reason } => {
                if let Some(outbox) = self.outbox(leg) {
                    tracing::debug!(leg = leg.0, code, reason, "closing a control connection");
                    outbox.close(code, reason);
                }
                None
            }
            Action::Offer { .. }
            | Action::Accept { .. }
            | Action::Report { .. }
            | Action::FlowEnded { .. }
            | Action::Released { .. } => Some(action),
        }
    }

    fn obey(self: &Arc<Self>, action: Action) {
        match action {
            Action::Send { .. } | Action::Close { .. } => {}
            Action::Offer { leg, peer } => {
                let shared = self.clone();
                tokio::spawn(async move { shared.offer(leg, peer).await });
            }
            Action::Accept { leg, peer, accept } => {
                let shared = self.clone();
                tokio::spawn(async move { shared.accept(leg, peer, accept).await });
            }
            Action::Report { peer } => self.report(&peer),
            // An orderly end is a moment to claim: the holder may be about to leave.
            Action::FlowEnded { holder } => self.meter(&holder, |meter, _| meter.flush()),
            Action::Released { peer, account } => {
                let totals = account.totals();
                tracing::info!(
                    %peer, lease = %account.lease(), up = totals.up, down = totals.down,
                    unbilled = totals.unbilled, "a reservation ended",
                );
                self.remove_meter(&peer);
            }
        }
    }
}

/// The code as QUIC carries it.
pub(crate) fn close_code(code: u32) -> VarInt {
    VarInt::from_u32(code)
}
