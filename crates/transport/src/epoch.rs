//! Tells the congestion controller that the path under a connection changed.
//!
//! After a change, acknowledgements and losses of packets sent before it say nothing of the new
//! path and are ignored. If the old path is dead its flight will never be acknowledged, so a fresh
//! window is allowed on top of it; otherwise nothing would be sent until a probe timeout. The same is
//! done for a trial, while a path is only doubted; if it answers, the controller goes on as it was.
//!
//! While a relay carries the connection, no more goes into flight than the relay's window has room
//! for: what is retransmitted counts there too, and what lies in QUIC's buffers does not.

mod slow_start;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};
use sluice_proto::RelayFlow;

use slow_start::SlowStart;

/// What a receiver may delay an acknowledgement (RFC 9000, 18.2): quinn's and the default.
const ACK_DELAY_MAX: Duration = Duration::from_millis(25);
/// Least that four variances of the round-trip time count for (RFC 9002, 6.1.2).
const GRANULARITY: Duration = Duration::from_millis(1);
/// Packets that may be in flight though the relay's window has no room: what it then passes at 16
/// kbit/s.
const UNPAID_PACKETS: u64 = 2;

/// Counts the paths that a connection has had; shared with its controller.
#[derive(Debug, Default)]
pub(crate) struct PathEpoch {
    mark: Mutex<Mark>,
    /// The probe timeout, as this epoch's acknowledgements measured it, in nanoseconds; 0: not yet.
    pto_ns: AtomicU64,
    /// The flow that carries the connection, if a relay does.
    relay: Mutex<Option<Arc<RelayFlow>>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    number: u64,
    change: Change,
}

/// What began an epoch.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Another path; the old one lives.
    #[default]
    Moved,
    /// Another path; the old one is dead.
    Fled,
    /// Another path, while the old one is doubted.
    Trial,
    /// The old path again, after a trial.
    Undone,
    /// The path that was tried is kept: the old one is dead.
    Kept,
}

impl PathEpoch {
    /// A new path begins now.
    pub(crate) fn advance(&self, old_dead: bool) {
        self.begin(if old_dead { Change::Fled } else { Change::Moved });
    }

    /// Another path is tried out from now on.
    pub(crate) fn try_out(&self) {
        self.begin(Change::Trial);
    }

    /// The path that is tried out is kept.
    pub(crate) fn keep(&self) {
        self.begin(Change::Kept);
    }

    /// The trial is over, and all is as it was.
    pub(crate) fn undo(&self) {
        self.begin(Change::Undone);
    }

    fn begin(&self, change: Change) {
        let mut mark = self.mark.lock();
        mark.number += 1;
        mark.change = change;
        self.pto_ns.store(0, Relaxed);
    }

    /// A relay carries the connection from now on, or none.
    pub(crate) fn set_relay(&self, flow: Option<Arc<RelayFlow>>) {
        *self.relay.lock() = flow;
    }

    /// What the relay's window has room for.
    fn room(&self) -> u64 {
        self.relay.lock().as_ref().map_or(u64::MAX, |flow| flow.room())
    }

    fn mark(&self) -> Mark {
        *self.mark.lock()
    }

    /// QUIC's probe timeout (RFC 9002, 6.2.1). `rtt` is its round-trip time, whose variance is taken
    /// for a quarter of it while none was measured on this path.
    pub(crate) fn pto(&self, rtt: Duration) -> Duration {
        match self.pto_ns.load(Relaxed) {
            0 => rtt * 2 + ACK_DELAY_MAX,
            ns => Duration::from_nanos(ns),
        }
    }
}

/// Makes controllers that follow one [`PathEpoch`]: Cubic inside (RFC 9438), and its slow
/// start ends by delay.
#[derive(Debug)]
pub(crate) struct EpochFactory(pub(crate) Arc<PathEpoch>);

impl ControllerFactory for EpochFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(EpochController {
            inner: Arc::new(CubicConfig::default()).build(now, current_mtu),
            epoch: self.0.clone(),
            seen: self.0.mark().number,
            since: None,
            mtu: current_mtu,
            in_flight: 0,
            stale: 0,
            saved: None,
            variance: None,
            slow_start: SlowStart::default(),
        })
    }
}

struct EpochController {
    inner: Box<dyn Controller>,
    epoch: Arc<PathEpoch>,
    seen: u64,
    /// When this epoch's first packet was sent; packets sent before it are ignored.
    since: Option<Instant>,
    mtu: u16,
    in_flight: u64,
    /// Bytes of a dead path's flight that are neither acknowledged nor declared lost.
    stale: u64,
    /// What to go back to if a trial is undone.
    saved: Option<Saved>,
    /// Of the round-trip time, in this epoch.
    variance: Option<Duration>,
    slow_start: SlowStart,
}

struct Saved {
    inner: Box<dyn Controller>,
    slow_start: SlowStart,
    since: Option<Instant>,
    stale: u64,
}

impl EpochController {
    fn is_stale(&self, sent: Instant) -> bool {
        self.since.is_some_and(|since| sent < since)
    }

    fn fresh(&self, now: Instant) -> Box<dyn Controller> {
        Arc::new(CubicConfig::default()).build(now, self.mtu)
    }

    /// The first packet of an epoch goes out.
    fn begin(&mut self, change: Change, now: Instant) {
        if change == Change::Undone {
            if let Some(Saved { inner, slow_start, since, stale }) = self.saved.take() {
                (self.inner, self.slow_start) = (inner, slow_start);
                (self.since, self.stale) = (since, stale);
            }
            return;
        }
        if change == Change::Kept && self.saved.take().is_some() {
            return;
        }
        let fresh = self.fresh(now);
        let inner = std::mem::replace(&mut self.inner, fresh);
        let slow_start = std::mem::take(&mut self.slow_start);
        let saved = Saved { inner, slow_start, since: self.since, stale: self.stale };
        self.since = Some(now);
        self.stale = if change == Change::Moved { 0 } else { self.in_flight };
        if change == Change::Trial {
            self.saved.get_or_insert(saved);
        } else {
            self.saved = None;
        }
    }

    /// Takes an acknowledged packet's round trip.
    fn measure(&mut self, sample: Duration, rtt: Duration) {
        let off = sample.abs_diff(rtt);
        let variance = self.variance.map_or(rtt / 4, |before| (before * 3 + off) / 4);
        self.variance = Some(variance);
        let pto = rtt + (variance * 4).max(GRANULARITY) + ACK_DELAY_MAX;
        self.epoch.pto_ns.store(u64::try_from(pto.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// What the path allows.
    fn path_window(&self) -> u64 {
        let mark = self.epoch.mark();
        if mark.number == self.seen {
            return self.inner.window() + self.stale;
        }
        // The epoch began and nothing was sent in it yet: a fresh window is to be had.
        match (mark.change, &self.saved) {
            (Change::Moved, _) => self.inner.initial_window(),
            (Change::Fled | Change::Trial, _) | (Change::Kept, None) => {
                self.inner.initial_window() + self.in_flight
            }
            (Change::Undone, Some(saved)) => saved.inner.window() + saved.stale,
            (Change::Undone, None) | (Change::Kept, Some(_)) => self.inner.window() + self.stale,
        }
    }

    /// What the relay allows.
    fn relay_window(&self) -> u64 {
        let least = UNPAID_PACKETS * u64::from(self.mtu);
        self.in_flight.saturating_add(self.epoch.room()).max(least)
    }

    fn settle(&mut self, bytes: u64, stale: bool) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        if stale {
            self.stale = self.stale.saturating_sub(bytes);
        }
    }
}

impl Controller for EpochController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        let mark = self.epoch.mark();
        if mark.number != self.seen {
            self.seen = mark.number;
            self.variance = None;
            self.begin(mark.change, now);
        }
        self.in_flight += bytes;
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        let stale = self.is_stale(sent);
        self.settle(bytes, stale);
        if !stale {
            let delay = now.saturating_duration_since(sent);
            self.measure(delay, rtt.get());
            // In congestion avoidance Cubic goes by time.
            let bytes = self.slow_start.growth(bytes, delay);
            // What the relay holds back says nothing of the path.
            let limited = app_limited || self.relay_window() < self.path_window();
            self.inner.on_ack(now, sent, bytes, limited, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        // Packets that only acknowledge are told of when sent, but never when they arrive.
        self.in_flight = in_flight;
        self.stale = self.stale.min(in_flight);
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        let stale = self.is_stale(sent);
        self.settle(lost_bytes, stale);
        if !stale {
            self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.path_window().min(self.relay_window())
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            epoch: self.epoch.clone(),
            seen: self.seen,
            since: self.since,
            mtu: self.mtu,
            in_flight: self.in_flight,
            stale: self.stale,
            variance: self.variance,
            slow_start: self.slow_start.clone(),
            saved: self.saved.as_ref().map(|saved| Saved {
                inner: saved.inner.clone_box(),
                slow_start: saved.slow_start.clone(),
                since: saved.since,
                stale: saved.stale,
            }),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::RelayBudget;

    use super::*;

    const PACKET: u64 = 1200;

    #[allow(clippy::disallowed_methods)]
    fn controller() -> (Arc<PathEpoch>, Box<dyn Controller>, Instant) {
        let (epoch, now) = (Arc::new(PathEpoch::default()), Instant::now());
        let controller = Arc::new(EpochFactory(epoch.clone())).build(now, 1200);
        (epoch, controller, now)
    }

    /// Sends as long as the window allows; bytes in flight.
    fn fill(controller: &mut dyn Controller, now: Instant, mut in_flight: u64) -> u64 {
        while in_flight + PACKET <= controller.window() {
            controller.on_sent(now, PACKET, 0);
            in_flight += PACKET;
        }
        in_flight
    }

    #[test]
    fn a_fresh_window_stands_on_top_of_what_was_lost_with_a_dead_path() {
        let (epoch, mut controller, now) = controller();
        let fresh = controller.initial_window();
        let old = fill(&mut *controller, now, 0);
        epoch.advance(true);
        assert_eq!(controller.window(), fresh + old, "before anything is sent on the new path");
        let later = now + Duration::from_secs(1);
        controller.on_sent(later, PACKET, 1);
        assert_eq!(controller.window(), fresh + old);
        // What is found lost takes its room along, and nothing else.
        controller.on_congestion_event(later, now, false, old);
        assert_eq!(controller.window(), fresh);
    }

    #[test]
    fn the_flight_on_a_path_that_lives_must_land_first() {
        let (epoch, mut controller, now) = controller();
        let old = fill(&mut *controller, now, 0);
        epoch.advance(false);
        assert_eq!(controller.window(), controller.initial_window());
        assert_eq!(fill(&mut *controller, now, old), old);
    }

    #[test]
    fn a_trial_gives_a_fresh_window_and_undone_it_leaves_all_as_it_was() {
        let (epoch, mut controller, now) = controller();
        let later = now + Duration::from_secs(1);
        let old = fill(&mut *controller, now, 0);
        controller.on_congestion_event(later, now, false, PACKET);
        let (before, fresh) = (controller.window(), controller.initial_window());
        assert!(before < fresh);
        epoch.try_out();
        assert_eq!(controller.window(), fresh + old - PACKET);
        controller.on_sent(later, PACKET, 1);
        // A loss of before is the doubted path's; one of the trial counts only while it lasts.
        controller.on_congestion_event(later, now, false, PACKET);
        controller.on_congestion_event(later, later, false, PACKET);
        epoch.undo();
        assert_eq!(controller.window(), before);
        controller.on_sent(later, PACKET, 2);
        assert_eq!(controller.window(), before);
        // A trial in which nothing was sent changes nothing either.
        epoch.try_out();
        epoch.undo();
        assert_eq!(controller.window(), before);
        // What was tried and kept goes on from where it is, and the next trial comes back to that.
        epoch.try_out();
        controller.on_sent(later, PACKET, 3);
        let tried = controller.window();
        epoch.keep();
        assert_eq!(controller.window(), tried);
        controller.on_sent(later, PACKET, 4);
        epoch.try_out();
        controller.on_sent(later, PACKET, 5);
        epoch.undo();
        assert_eq!(controller.window(), tried);
    }

    #[test]
    fn packets_that_only_acknowledge_do_not_add_up_to_a_window() {
        let (epoch, mut controller, now) = controller();
        let fresh = controller.initial_window();
        for _ in 0..10_000 {
            controller.on_sent(now, 40, 0);
        }
        controller.on_end_acks(now, PACKET, true, Some(1));
        epoch.advance(true);
        assert_eq!(controller.window(), fresh + PACKET);
    }

    #[test]
    fn no_more_goes_into_flight_than_the_relays_window_has_room_for() {
        let (epoch, mut controller, now) = controller();
        let path = controller.window();
        let budget = RelayBudget::new(4 * PACKET);
        let flow = RelayFlow::new(budget.clone());
        epoch.set_relay(Some(flow.clone()));
        assert_eq!(controller.window(), 4 * PACKET);
        for _ in 0..4 {
            controller.on_sent(now, PACKET, 0);
            flow.count_sent(PACKET);
        }
        assert_eq!(controller.window(), 4 * PACKET, "all of it is in flight");
        controller.on_end_acks(now, 0, false, Some(3));
        assert_eq!(controller.window(), 2 * PACKET, "it arrived, and is not paid");
        budget.set_limit(7 * PACKET);
        assert_eq!(controller.window(), 3 * PACKET);
        budget.set_limit(u64::MAX);
        assert_eq!(controller.window(), path);
        budget.set_limit(0);
        epoch.set_relay(None);
        assert_eq!(controller.window(), path, "a direct path");
    }

    #[test]
    fn losses_of_before_say_nothing_of_the_new_path() {
        let (epoch, mut controller, now) = controller();
        let later = now + Duration::from_secs(1);
        fill(&mut *controller, now, 0);
        epoch.advance(false);
        controller.on_sent(later, PACKET, 0);
        let fresh = controller.window();
        controller.on_congestion_event(later, now, false, PACKET);
        assert_eq!(controller.window(), fresh);
        // The control: a loss on the new path does.
        controller.on_congestion_event(later, later, false, PACKET);
        assert!(controller.window() < fresh);
    }
}
