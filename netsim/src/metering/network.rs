//! What is under way between the parties.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sluice_metering::{StreamIndex, VoucherRecord};

use super::plan::{Party, Path, Plan};
use crate::rng::Rng;

/// QUIC's, Noise's and the relay's headers around one packet's payload.
const HEADERS: u64 = 19 + 50;
/// Payload of one packet.
const PACKET: u64 = 1200;
/// A packet that arrives late does so after at most this many times the delay.
const LATE: u32 = 3;

/// What the session's packets say.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Data {
        stream: StreamIndex,
        from: u64,
        len: u64,
    },
    /// These segments arrived.
    Acks(Vec<(StreamIndex, u64)>),
    Pay(Bytes),
    /// A stream was given up.
    Reset(StreamIndex),
}

/// A packet of the session, or as many as carry one segment.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) session: u64,
    /// From the tenant to the provider.
    pub(super) is_up: bool,
    pub(super) path: Path,
    /// The provider's connection to the relay when it was sent: its keys go with it.
    pub(super) leg: u32,
    /// Tells copies of it apart from others.
    pub(super) number: u64,
    pub(super) body: Body,
}

impl Packet {
    pub(super) fn count(&self) -> u64 {
        match self.body {
            Body::Data { len, .. } => len.div_ceil(PACKET),
            Body::Acks(_) | Body::Pay(_) | Body::Reset(_) => 1,
        }
    }

    /// Frame bytes, as a relay counts them.
    pub(super) fn bytes(&self) -> u64 {
        let payload = match &self.body {
            Body::Data { len, .. } => *len,
            Body::Acks(acks) => 4 * acks.len() as u64,
            Body::Pay(message) => message.len() as u64,
            Body::Reset(_) => 8,
        };
        payload + self.count() * HEADERS
    }
}

/// What a holder and its relay say to each other beside frames.
#[derive(Debug, Clone)]
pub(super) enum Control {
    /// May be lost, as frames may. The connection goes with it.
    Pay(Bytes),
    /// What is granted on a flow by the holder's word.
    Grant { flow: u32, granted: u64 },
    /// The holder accepts the terms, and shows the newest voucher that it signed. Flow numbers say
    /// which connection this is about.
    Accept { newest: Option<VoucherRecord>, flow: u32 },
    /// The reservation stands.
    Reserved { flow: u32 },
}

/// What arrives somewhere.
#[derive(Debug, Clone)]
pub(super) enum Cargo {
    Packet(Packet),
    /// Between the provider and this relay.
    Control(usize, Control),
}

/// The network.
#[derive(Debug)]
pub(super) struct Network {
    flights: BTreeMap<(Duration, u64), (Party, Cargo)>,
    launched: u64,
    rng: Rng,
    loss: f64,
    duplicates: f64,
    reorders: f64,
    delay: Duration,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) late: u64,
}

impl Network {
    pub(super) fn new(plan: &Plan, rng: Rng) -> Self {
        Self {
            flights: BTreeMap::new(),
            launched: 0,
            rng,
            loss: plan.loss,
            duplicates: plan.duplicates,
            reorders: plan.reorders,
            delay: plan.delay,
            lost: 0,
            doubled: 0,
            late: 0,
        }
    }

    /// Sends something that may be lost, doubled or late. A hop by way of a relay is half the way.
    pub(super) fn launch(&mut self, now: Duration, to: Party, cargo: &Cargo) {
        if self.rng.chance(self.loss) {
            self.lost += 1;
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(self.duplicates));
        self.doubled += copies - 1;
        let hop = match cargo {
            Cargo::Packet(Packet { path: Path::Direct, .. }) => self.delay,
            Cargo::Packet(_) | Cargo::Control(..) => self.delay / 2,
        };
        for _ in 0..copies {
            let mut at = now + hop + self.rng.span(Duration::ZERO, hop / 8);
            if self.rng.chance(self.reorders) {
                at += self.rng.span(Duration::ZERO, hop * LATE);
                self.late += 1;
            }
            self.put(at, to, cargo.clone());
        }
    }

    /// Sends something on a stream of a control connection: it arrives, in order, after the
    /// repetitions that this takes.
    pub(super) fn deliver(&mut self, now: Duration, to: Party, relay: usize, control: Control) {
        self.put(now + self.delay, to, Cargo::Control(relay, control));
    }

    /// Sends a packet of the session that is repeated until it arrives.
    pub(super) fn surely(&mut self, now: Duration, to: Party, packet: Packet) {
        self.put(now + self.delay, to, Cargo::Packet(packet));
    }

    fn put(&mut self, at: Duration, to: Party, cargo: Cargo) {
        self.launched += 1;
        self.flights.insert((at, self.launched), (to, cargo));
    }

    /// What arrives by now.
    pub(super) fn arrive(&mut self, now: Duration) -> Option<(Party, Cargo)> {
        let entry = self.flights.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.flights.keys().next().map(|(at, _)| *at)
    }

    /// A connection to a relay is gone, with what was said on it.
    pub(super) fn drop_control(&mut self, relay: usize) {
        let is_control = |cargo: &Cargo| matches!(cargo, Cargo::Control(r, _) if *r == relay);
        self.flights.retain(|_, (_, cargo)| !is_control(cargo));
    }
}
