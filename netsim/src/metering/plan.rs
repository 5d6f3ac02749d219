//! What a seed decides: the line, the terms, the streams, and what befalls the parties.

use std::time::Duration;

use sluice_proto::{Price, WINDOW_MIN};

use super::Load;
use crate::rng::Rng;

/// Relays of a schedule.
pub(super) const RELAYS: usize = 2;
/// Most that is lost.
const LOSS_MAX: f64 = 0.2;
/// Most events of a schedule.
const EVENTS_MAX: u64 = 7;
/// Sessions that may break in one schedule: each may cost what was in flight, and a payee stops
/// selling after four windows of that.
const BREAKS_MAX: usize = 3;
/// Events come within this, while there is traffic.
const EVENTS_WITHIN: Duration = Duration::from_millis(2500);
/// Streams open within this.
const OPENS_WITHIN: Duration = Duration::from_millis(600);
/// Bytes of a stream each way, at most: three windows of the smallest size.
const STREAM_MAX: u64 = 3 * WINDOW_MIN;
/// Windows that pass where everything goes well.
const STEADY_WINDOWS: u64 = 24;
/// Flow control of one stream that may be reset: what is then lost stays below half a window.
const SMALL_CREDIT: u64 = 64 << 10;

/// Whose clock, or whose death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// Who pays for the session.
    Tenant,
    /// Who serves, and pays the relays.
    Provider,
    /// Who forwards.
    Relay(usize),
}

impl Party {
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Tenant => 0,
            Self::Provider => 1,
            Self::Relay(number) => 2 + number,
        }
    }
}

/// Which way the session's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Through a relay.
    Relay(usize),
    /// Straight.
    Direct,
}

/// What befalls the parties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The session goes on over this path; what is under way on the old one still arrives.
    Switches(Path),
    /// A process is killed, and comes back with what its ledger holds.
    Dies(Party),
    /// The session is lost, and opened again.
    SessionBreaks,
    /// A provider's connection to a relay is lost, and the reservation is made again.
    LinkBreaks(usize),
    /// A clock goes a day forward at once, as after a suspend.
    ClockSteps(Party),
}

/// What one stream is to carry, and how it fares.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamPlan {
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) opens_at: Duration,
    /// Flow control, each way.
    pub(super) credit: u64,
    /// Most bytes that a reader takes in a millisecond.
    pub(super) reads_max: u64,
    /// The reader stops here for this long.
    pub(super) pauses: Option<(u64, Duration)>,
    /// After so many bytes down it is given up, by the tenant or by the provider.
    pub(super) resets: Option<(u64, Party)>,
}

/// A schedule.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) window: u64,
    pub(super) price: Price,
    pub(super) loss: f64,
    pub(super) duplicates: f64,
    pub(super) reorders: f64,
    /// One way, over all hops.
    pub(super) delay: Duration,
    /// The longest that a ledger takes for a voucher.
    pub(super) ledger: Duration,
    /// Payload that may be under way, each way.
    pub(super) flight: u64,
    pub(super) begins: Path,
    pub(super) streams: Vec<StreamPlan>,
    pub(super) events: Vec<(Duration, Event)>,
}

impl Plan {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let events = events(rng);
        let breaks = events.iter().any(|(_, event)| event.breaks_session());
        let streams = 1 + rng.below(5);
        Self {
            window: rng.pick(&[1, 1, 2, 4]) * WINDOW_MIN,
            price: price(rng),
            loss: rng.pick(&[0.0, 0.3, 1.0]) * LOSS_MAX * rng.fraction(),
            duplicates: rng.pick(&[0.0, 0.1, 0.3]),
            reorders: rng.pick(&[0.0, 0.1, 0.3]),
            delay: rng.span(Duration::from_millis(1), Duration::from_millis(60)),
            ledger: rng.span(Duration::ZERO, Duration::from_millis(30)),
            flight: rng.pick(&[64, 200, 600]) << 10,
            begins: path(rng),
            streams: (0..streams).map(|_| stream(rng, !breaks)).collect(),
            events,
        }
    }
}

impl Plan {
    /// Everything goes well.
    pub(super) fn steady(load: &Load) -> Self {
        let each = load.window * STEADY_WINDOWS / load.streams;
        let stream = StreamPlan {
            up: if load.is_up { each } else { 0 },
            down: if load.is_up { 0 } else { each },
            opens_at: Duration::ZERO,
            credit: load.window,
            reads_max: u64::MAX,
            pauses: None,
            resets: None,
        };
        Self {
            window: load.window,
            price: Price { up: 1 << 30, down: 1 << 30 },
            loss: 0.0,
            duplicates: 0.0,
            reorders: 0.0,
            delay: Duration::from_millis(20),
            ledger: Duration::from_millis(5),
            flight: load.window / 4 / load.streams,
            begins: if load.is_relayed { Path::Relay(0) } else { Path::Direct },
            streams: vec![stream; load.streams as usize],
            events: Vec::new(),
        }
    }
}

impl Event {
    pub(super) const fn breaks_session(self) -> bool {
        matches!(self, Self::SessionBreaks | Self::Dies(Party::Tenant | Party::Provider))
    }
}

/// A token base unit a byte and more, so that each byte shows in the amount.
fn price(rng: &mut Rng) -> Price {
    let mut some = || (1 << 30) + u128::from(rng.below(1 << 40));
    Price { up: some(), down: some() }
}

fn path(rng: &mut Rng) -> Path {
    match rng.below(5) {
        0 => Path::Direct,
        n => Path::Relay(n as usize % RELAYS),
    }
}

fn party(rng: &mut Rng) -> Party {
    match rng.below(3) {
        0 => Party::Tenant,
        1 => Party::Provider,
        _ => Party::Relay(rng.below(RELAYS as u64) as usize),
    }
}

fn events(rng: &mut Rng) -> Vec<(Duration, Event)> {
    let count = rng.below(EVENTS_MAX + 1);
    let mut events: Vec<_> =
        (0..count).map(|_| (rng.span(Duration::ZERO, EVENTS_WITHIN), event(rng))).collect();
    events.sort_by_key(|(at, _)| *at);
    let mut breaks = 0;
    events.retain(|(_, event)| {
        breaks += usize::from(event.breaks_session());
        !event.breaks_session() || breaks <= BREAKS_MAX
    });
    events
}

fn event(rng: &mut Rng) -> Event {
    match rng.below(8) {
        0..3 => Event::Switches(path(rng)),
        3 => Event::Dies(party(rng)),
        4 => Event::SessionBreaks,
        5 => Event::LinkBreaks(rng.below(RELAYS as u64) as usize),
        _ => Event::ClockSteps(party(rng)),
    }
}

fn stream(rng: &mut Rng, may_reset: bool) -> StreamPlan {
    let down = rng.pick(&[2_000, STREAM_MAX / 4, STREAM_MAX]);
    let up = rng.pick(&[0, 0, 2_000, STREAM_MAX / 2]);
    let (down, up) = (rng.below(down + 1), rng.below(up + 1));
    let resets = may_reset && rng.chance(0.25);
    let by = rng.pick(&[Party::Tenant, Party::Provider]);
    StreamPlan {
        up,
        down,
        opens_at: rng.span(Duration::ZERO, OPENS_WITHIN),
        credit: if resets { SMALL_CREDIT } else { rng.pick(&[64, 256, 4096]) << 10 },
        reads_max: rng.pick(&[500, 4_000, 40_000]),
        pauses: rng
            .chance(0.2)
            .then(|| (rng.below(down + 1), rng.span(Duration::ZERO, Duration::from_secs(3)))),
        resets: resets.then(|| (rng.below(down + 1), by)),
    }
}
