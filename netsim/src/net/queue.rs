//! Queues in front of a link: plain, PIE, and `fq_codel`.

use std::collections::VecDeque;

use super::Packet;
use super::link::Link;
use crate::rng::Rng;

/// How packets wait for a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queueing {
    /// First in, first out, of so many bytes.
    Fifo(usize),
    /// RFC 8033, with its defaults: 15 ms, within so many bytes.
    Pie(usize),
    /// RFC 8290, with its defaults: 1,024 flows, 5 ms over 100 ms, within so many bytes.
    FqCodel(usize),
}

impl Default for Queueing {
    fn default() -> Self {
        Self::Fifo(256 << 10)
    }
}

/// A packet and when it came.
#[derive(Debug)]
pub(super) struct Waiting {
    packet: Packet,
    came: u64,
}

#[derive(Debug)]
pub(super) enum Queue {
    Fifo { bytes_max: usize, fifo: Fifo },
    Pie { bytes_max: usize, fifo: Fifo, pie: Pie },
    FqCodel { bytes_max: usize, fq: Box<FqCodel> },
}

impl Queue {
    pub(super) fn new(queueing: Queueing, rate: u64) -> Self {
        match queueing {
            Queueing::Fifo(bytes_max) => Self::Fifo { bytes_max, fifo: Fifo::default() },
            Queueing::Pie(bytes_max) => {
                Self::Pie { bytes_max, fifo: Fifo::default(), pie: Pie::new(rate) }
            }
            Queueing::FqCodel(bytes_max) => Self::FqCodel { bytes_max, fq: Box::default() },
        }
    }

    /// Takes a packet in; false: it was dropped.
    pub(super) fn push(&mut self, packet: Packet, now: u64, rng: &mut Rng) -> bool {
        let len = Link::wire_len(&packet);
        match self {
            Self::Fifo { bytes_max, fifo } => {
                let fits = fifo.bytes + len <= *bytes_max;
                if fits {
                    fifo.push(packet, now);
                }
                fits
            }
            Self::Pie { bytes_max, fifo, pie } => {
                let fits = fifo.bytes + len <= *bytes_max && !pie.drops(fifo.bytes, now, rng);
                if fits {
                    fifo.push(packet, now);
                }
                fits
            }
            Self::FqCodel { bytes_max, fq } => fq.push(packet, now, *bytes_max),
        }
    }

    /// The next packet to be sent.
    pub(super) fn pop(&mut self, now: u64) -> Option<Packet> {
        match self {
            Self::Fifo { fifo, .. } | Self::Pie { fifo, .. } => fifo.pop().map(|w| w.packet),
            Self::FqCodel { fq, .. } => fq.pop(now),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Fifo {
    packets: VecDeque<Waiting>,
    bytes: usize,
}

impl Fifo {
    fn push(&mut self, packet: Packet, came: u64) {
        self.bytes += Link::wire_len(&packet);
        self.packets.push_back(Waiting { packet, came });
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.packets.pop_front()?;
        self.bytes -= Link::wire_len(&waiting.packet);
        Some(waiting)
    }
}

/// RFC 8033, section 4: drops at the entrance, with a probability that follows the delay.
#[derive(Debug)]
pub(super) struct Pie {
    rate: u64,
    probability: f64,
    delay_before_s: f64,
    updated: u64,
}

/// `QDELAY_REF`, seconds.
const PIE_TARGET_S: f64 = 0.015;
/// `T_UPDATE`, nanoseconds.
const PIE_UPDATE_NS: u64 = 15_000_000;
/// Weights of the delay's distance from its target, and of its growth, per second.
const PIE_ALPHA: f64 = 0.125;
const PIE_BETA: f64 = 1.25;

impl Pie {
    const fn new(rate: u64) -> Self {
        Self { rate, probability: 0.0, delay_before_s: 0.0, updated: 0 }
    }

    fn drops(&mut self, backlog: usize, now: u64, rng: &mut Rng) -> bool {
        let delay = backlog as f64 * 8.0 / self.rate.max(1) as f64;
        while now.saturating_sub(self.updated) >= PIE_UPDATE_NS {
            self.updated = if self.updated == 0 { now } else { self.updated + PIE_UPDATE_NS };
            self.update(delay);
        }
        // Section 5.1: a queue that is short, or a rate that is far from full, drops nothing.
        if backlog < 3000 || (self.delay_before_s < PIE_TARGET_S / 2.0 && self.probability < 0.2) {
            return false;
        }
        rng.chance(self.probability)
    }

    fn update(&mut self, delay: f64) {
        let change = PIE_ALPHA * (delay - PIE_TARGET_S) + PIE_BETA * (delay - self.delay_before_s);
        // Section 4.2: small steps while the probability is small.
        let scale = match self.probability {
            p if p < 0.000_001 => 2048.0,
            p if p < 0.000_01 => 512.0,
            p if p < 0.000_1 => 128.0,
            p if p < 0.001 => 32.0,
            p if p < 0.01 => 8.0,
            p if p < 0.1 => 2.0,
            _ => 1.0,
        };
        self.probability += change / scale;
        if delay == 0.0 && self.delay_before_s == 0.0 {
            self.probability *= 0.98;
        }
        self.probability = self.probability.clamp(0.0, 1.0);
        self.delay_before_s = delay;
    }
}

const FLOWS: usize = 1024;
/// Bytes that a flow may send in its turn.
const QUANTUM: i64 = 1514;
/// CoDel's target and interval, nanoseconds (RFC 8289).
const CODEL_TARGET_NS: u64 = 5_000_000;
const CODEL_INTERVAL_NS: u64 = 100_000_000;

#[derive(Debug, Default)]
struct Flow {
    fifo: Fifo,
    deficit: i64,
    listed: bool,
    first_above: u64,
    drop_next: u64,
    count: u32,
    count_before: u32,
    dropping: bool,
}

/// RFC 8290: flows in turn, CoDel for each.
#[derive(Debug)]
pub(super) struct FqCodel {
    flows: Vec<Flow>,
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    bytes: usize,
}

impl Default for FqCodel {
    fn default() -> Self {
        let flows = std::iter::repeat_with(Flow::default).take(FLOWS).collect();
        Self { flows, new: VecDeque::new(), old: VecDeque::new(), bytes: 0 }
    }
}

impl FqCodel {
    fn flow_of(packet: &Packet) -> usize {
        let mut hash = super::Digest::default();
        hash.address(packet.src);
        hash.address(packet.dst);
        hash.value() as usize % FLOWS
    }

    fn push(&mut self, packet: Packet, now: u64, bytes_max: usize) -> bool {
        let at = Self::flow_of(&packet);
        self.bytes += Link::wire_len(&packet);
        self.flows[at].fifo.push(packet, now);
        if !self.flows[at].listed {
            self.flows[at].listed = true;
            self.flows[at].deficit = QUANTUM;
            self.new.push_back(at);
        }
        if self.bytes <= bytes_max {
            return true;
        }
        // Section 4.1.2: the fattest flow loses its head.
        let fattest = (0..FLOWS).max_by_key(|i| self.flows[*i].fifo.bytes).unwrap_or(at);
        if let Some(dropped) = self.flows[fattest].fifo.pop() {
            self.bytes -= Link::wire_len(&dropped.packet);
        }
        false
    }

    fn pop(&mut self, now: u64) -> Option<Packet> {
        loop {
            let from_new = !self.new.is_empty();
            let at = *self.new.front().or_else(|| self.old.front())?;
            let list = if from_new { &mut self.new } else { &mut self.old };
            if self.flows[at].deficit <= 0 {
                self.flows[at].deficit += QUANTUM;
                list.pop_front();
                self.old.push_back(at);
                continue;
            }
            let before = self.flows[at].fifo.bytes;
            let packet = self.flows[at].pop(now);
            self.bytes -= before - self.flows[at].fifo.bytes;
            let Some(packet) = packet else {
                list.pop_front();
                // A new flow that ran empty waits one round, so that it cannot starve old ones.
                if from_new && !self.old.is_empty() {
                    self.old.push_back(at);
                } else {
                    self.flows[at].listed = false;
                }
                continue;
            };
            self.flows[at].deficit -= Link::wire_len(&packet) as i64;
            return Some(packet);
        }
    }
}

impl Flow {
    /// RFC 8289, section 5: `dodequeue` and `dequeue`.
    fn pop(&mut self, now: u64) -> Option<Packet> {
        let (mut waiting, mut may_drop) = self.take(now);
        if self.dropping {
            if !may_drop {
                self.dropping = false;
            }
            while self.dropping && now >= self.drop_next {
                self.count += 1;
                (waiting, may_drop) = self.take(now);
                if may_drop {
                    self.drop_next = Self::control(self.drop_next, self.count);
                } else {
                    self.dropping = false;
                }
            }
        } else if may_drop {
            (waiting, _) = self.take(now);
            self.dropping = true;
            let delta = self.count.saturating_sub(self.count_before);
            let recent = now.saturating_sub(self.drop_next) < 16 * CODEL_INTERVAL_NS;
            self.count = if delta > 1 && recent { delta } else { 1 };
            self.drop_next = Self::control(now, self.count);
            self.count_before = self.count;
        }
        waiting.map(|w| w.packet)
    }

    fn take(&mut self, now: u64) -> (Option<Waiting>, bool) {
        let Some(waiting) = self.fifo.pop() else {
            self.first_above = 0;
            return (None, false);
        };
        // A link is found free up to a tick late, after what came in that tick.
        let waited = now.saturating_sub(waiting.came);
        if waited < CODEL_TARGET_NS || self.fifo.bytes <= QUANTUM as usize {
            self.first_above = 0;
            return (Some(waiting), false);
        }
        if self.first_above == 0 {
            self.first_above = now + CODEL_INTERVAL_NS;
            return (Some(waiting), false);
        }
        let may_drop = now >= self.first_above;
        (Some(waiting), may_drop)
    }

    fn control(at: u64, count: u32) -> u64 {
        at + (CODEL_INTERVAL_NS as f64 / f64::from(count.max(1)).sqrt()) as u64
    }
}
