//! One direction of a link: rate, delay, jitter, loss, and the queue in front of it.

use std::time::Duration;

use sluice_proto::frame::FrameType;

use super::Packet;
use super::queue::{Queue, Queueing};
use crate::rng::Rng;

/// Bytes of UDP and IP headers.
const HEADERS: [usize; 2] = [28, 48];

/// A packet that arrives late does so after at most this.
const LATE: Duration = Duration::from_millis(10);

/// Bursty loss: a chain of two states (Gilbert, Elliott).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursty {
    /// Probability, per packet, that a burst begins.
    pub begins: f64,
    /// Probability, per packet, that it ends.
    pub ends: f64,
    /// Loss within a burst.
    pub loss: f64,
}

/// What one direction of a link is like. The default neither delays nor loses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LinkSpec {
    /// Bits per second; unlimited if none.
    pub rate: Option<u64>,
    /// Propagation delay.
    pub delay: Duration,
    /// Up to this much more, evenly distributed; packets stay in order.
    pub jitter: Duration,
    /// Probability that a packet is lost, each by itself.
    pub loss: f64,
    /// Losses that come together.
    pub bursts: Option<Bursty>,
    /// Probability that a packet arrives twice.
    pub duplicates: f64,
    /// Probability that a packet arrives late, after others that left up to 10 ms later.
    pub reorders: f64,
    /// The queue in front of it, where there is a rate.
    pub queue: Queueing,
    /// Largest IP packet in bytes; unlimited if none.
    pub mtu: Option<usize>,
}

impl LinkSpec {
    /// A link that only delays.
    #[must_use]
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// Which packets a fault takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// Relay frames; QUIC passes, so that control connections go on.
    Frames,
    /// Data frames; those that the relay's forwarder itself answers pass.
    Data,
}

/// One direction of a link, as it runs.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) spec: LinkSpec,
    pub(super) taken: Taken,
    /// Nothing arrives before this: the link stalls.
    pub(super) stalled_until: u64,
    pub(super) sending: bool,
    pub(super) queue: Queue,
    in_burst: bool,
    last_arrival: u64,
}

impl Link {
    pub(super) fn new(spec: LinkSpec) -> Self {
        Self {
            spec,
            taken: Taken::Nothing,
            stalled_until: 0,
            sending: false,
            queue: Queue::new(spec.queue, spec.rate.unwrap_or(0)),
            in_burst: false,
            last_arrival: 0,
        }
    }

    /// Bytes on the wire.
    pub(super) fn wire_len(packet: &Packet) -> usize {
        packet.bytes.len() + HEADERS[usize::from(packet.dst.is_ipv6())]
    }

    /// Whether a packet comes through at all.
    pub(super) fn admits(&mut self, packet: &Packet, rng: &mut Rng) -> bool {
        let frame = packet.bytes.first().is_some_and(|b| b & 0xC0 == 0x80);
        let taken = match self.taken {
            Taken::Nothing => false,
            Taken::Everything => true,
            Taken::Frames => frame,
            Taken::Data => packet.bytes.first() == Some(&(FrameType::Data as u8)),
        };
        if taken || self.spec.mtu.is_some_and(|mtu| Self::wire_len(packet) > mtu) {
            return false;
        }
        if let Some(bursts) = self.spec.bursts {
            let turns = if self.in_burst { bursts.ends } else { bursts.begins };
            self.in_burst ^= rng.chance(turns);
            if self.in_burst && rng.chance(bursts.loss) {
                return false;
            }
        }
        !rng.chance(self.spec.loss)
    }

    /// Nanoseconds that a packet takes to be put on the wire.
    pub(super) fn sending_ns(&self, packet: &Packet) -> u64 {
        let bits = Self::wire_len(packet) as u64 * 8;
        self.spec.rate.map_or(0, |rate| bits * 1_000_000_000 / rate)
    }

    /// Whether a packet arrives twice.
    pub(super) fn duplicates(&self, rng: &mut Rng) -> bool {
        rng.chance(self.spec.duplicates)
    }

    /// When a packet that left at `now` arrives. Packets stay in order unless the link reorders.
    pub(super) fn arrival(&mut self, now: u64, rng: &mut Rng) -> u64 {
        let jitter = if self.spec.jitter.is_zero() {
            Duration::ZERO
        } else {
            rng.span(Duration::ZERO, self.spec.jitter)
        };
        let at = now + (self.spec.delay + jitter).as_nanos() as u64;
        if rng.chance(self.spec.reorders) {
            let late = rng.span(Duration::ZERO, LATE).as_nanos() as u64;
            return at.max(self.stalled_until) + late;
        }
        self.last_arrival = at.max(self.last_arrival).max(self.stalled_until);
        self.last_arrival
    }
}
