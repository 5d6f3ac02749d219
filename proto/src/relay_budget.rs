//! The window of a relay's reservation, as its holder keeps below it: counters that the
//! transport moves, the meter limits and the gate asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Payload that is queued becomes up to this fraction more of frame bytes: headers of QUIC and of
/// the frame (about 75 bytes for each 1,200). Larger packets have less of them.
const OVERHEAD: u64 = 16;

/// What a holder may still send through one relay, shared by all flows across it.
///
/// The transport counts frames as they go out and come in; the holder's meter
/// raises the limit as the relay acknowledges vouchers; the gate reserves for
/// payload that is handed to QUIC and not yet in frames. All counts are bytes since it was made.
///
/// What was sent and received is exact, and QUIC sends nothing that [`room`](Self::room) does not
/// allow. What is queued is a guess, and at most what it really is: a guess that is too high stays
/// so, and keeps from the flows what they may send.
#[derive(Debug)]
pub struct RelayBudget {
    limit: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    queued: AtomicU64,
}

impl RelayBudget {
    /// A budget of `limit` bytes both ways; `u64::MAX` at price 0.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicU64::new(limit),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            queued: AtomicU64::new(0),
        })
    }

    /// Frame bytes sent to the relay.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Frame bytes received from the relay.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Frame bytes that may still go, before those that are queued.
    #[must_use]
    pub fn room(&self) -> u64 {
        let used = self.sent().saturating_add(self.received());
        self.limit.load(Relaxed).saturating_sub(used)
    }

    /// Allows so many bytes in all, both ways; whether that is more than before.
    pub fn set_limit(&self, limit: u64) -> bool {
        self.limit.swap(limit, Relaxed) < limit
    }
}

/// One flow across a relay: counts its frames and what its sessions have queued for it.
#[derive(Debug)]
pub struct RelayFlow {
    budget: Arc<RelayBudget>,
    sent: AtomicU64,
    small: AtomicU64,
    received: AtomicU64,
    queued: AtomicU64,
    delivered: AtomicU64,
    credit: AtomicU64,
    carried: AtomicU64,
}

impl RelayFlow {
    /// A flow that shares `budget`.
    #[must_use]
    pub fn new(budget: Arc<RelayBudget>) -> Arc<Self> {
        Arc::new(Self {
            budget,
            sent: AtomicU64::new(0),
            small: AtomicU64::new(0),
            received: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            credit: AtomicU64::new(0),
            carried: AtomicU64::new(0),
        })
    }

    /// Counts payload that this flow brought and that was delivered; the total.
    pub fn count_delivered(&self, bytes: u64) -> u64 {
        self.delivered.fetch_add(bytes, Relaxed).saturating_add(bytes)
    }

    /// Payload that this flow brought and that was delivered.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    /// The session came to this flow from another path, with QUIC credit of so many bytes of payload
    /// that its peer was given there and may use here.
    pub fn take_over(&self, credit: u64) {
        self.credit.fetch_max(credit, Relaxed);
    }

    /// The most credit that a session brought along.
    #[must_use]
    pub fn credit(&self) -> u64 {
        self.credit.load(Relaxed)
    }

    /// So many bytes of that credit are granted, beside what was before.
    pub fn carry(&self, bytes: u64) {
        self.carried.fetch_add(bytes, Relaxed);
    }

    /// Credit that is granted.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.load(Relaxed)
    }

    /// Counts a batch of frames *before* it is sent, so that an honest relay's claim is never above
    /// this count.
    pub fn count_sent(&self, bytes: u64) {
        self.budget.sent.fetch_add(bytes, Relaxed);
        self.sent.fetch_add(bytes, Relaxed);
        self.unqueue(in_frames(bytes));
    }

    /// Frame bytes that may still go through the relay, on all flows.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.budget.room()
    }

    /// Counts what small packets with payload lack for what a relay's grant counts them as; the total.
    pub fn count_small(&self, bytes: u64) -> u64 {
        self.small.fetch_add(bytes, Relaxed).saturating_add(bytes)
    }

    /// Counts frames that came in.
    pub fn count_received(&self, bytes: u64) {
        self.budget.received.fetch_add(bytes, Relaxed);
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Frame bytes sent on this flow.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// What small packets with payload lacked.
    #[must_use]
    pub fn small(&self) -> u64 {
        self.small.load(Relaxed)
    }

    /// Frame bytes received on this flow.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Sets bytes aside for up to `want` bytes of payload; how many of them may go.
    pub fn reserve(&self, want: u64) -> u64 {
        let room = self.budget.room();
        let mut payload = 0;
        // In one step, or two flows could be given the same room.
        let grow = |queued: u64| {
            let room = room.saturating_sub(queued);
            payload = want.min(room.saturating_sub(room / OVERHEAD));
            Some(queued.saturating_add(in_frames(payload)))
        };
        let _ = self.budget.queued.fetch_update(Relaxed, Relaxed, grow);
        self.queued.fetch_add(in_frames(payload), Relaxed);
        payload
    }

    /// Payload that was set aside and will not go.
    pub fn release(&self, payload: u64) {
        self.unqueue(in_frames(payload));
    }

    /// No more than `unsettled` bytes of payload can be queued: the rest went another way, or was
    /// dropped with a stream.
    pub fn limit_queued(&self, unsettled: u64) {
        let queued = self.queued.load(Relaxed);
        self.unqueue(queued.saturating_sub(in_frames(unsettled)));
    }

    fn unqueue(&self, bytes: u64) {
        let before = self.queued.fetch_update(Relaxed, Relaxed, |q| Some(q.saturating_sub(bytes)));
        let taken = before.unwrap_or_else(|q| q).min(bytes);
        let shrink = |q: u64| Some(q.saturating_sub(taken));
        let _ = self.budget.queued.fetch_update(Relaxed, Relaxed, shrink);
    }
}

impl Drop for RelayFlow {
    fn drop(&mut self) {
        self.limit_queued(0);
    }
}

const fn in_frames(payload: u64) -> u64 {
    payload.saturating_add(payload / OVERHEAD)
}
