//! How a stream's bytes get across a bad network: segments, acknowledgements, repetition.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Payload of a segment: what two packets carry.
pub(super) const SEGMENT: u64 = 2400;
/// The longest between two attempts.
const AGAIN_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Flying {
    len: u64,
    /// None when it is about to be sent again.
    again_at: Option<Duration>,
    wait: Duration,
}

/// One direction of a stream, both of its ends.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// What the sender has not yet handed over.
    pub(super) left: u64,
    pub(super) written: u64,
    ready: VecDeque<(u64, u64)>,
    flying: BTreeMap<u64, Flying>,
    in_flight: u64,
    arrived: BTreeMap<u64, u64>,
    in_order: u64,
    pub(super) read: u64,
}

impl Half {
    pub(super) fn new(left: u64) -> Self {
        Self { left, ..Self::default() }
    }

    /// Hands over `n` bytes of what is left.
    pub(super) fn write(&mut self, n: u64) {
        let end = self.written + n;
        let mut from = self.written;
        while from < end {
            let len = SEGMENT.min(end - from);
            self.ready.push_back((from, len));
            from += len;
        }
        self.left -= n;
        self.written = end;
    }

    /// Handed over and not read.
    pub(super) const fn unread(&self) -> u64 {
        self.written - self.read
    }

    /// In order, and not read.
    pub(super) const fn readable(&self) -> u64 {
        self.in_order - self.read
    }

    /// Sent and not acknowledged.
    pub(super) const fn flying(&self) -> u64 {
        self.in_flight
    }

    /// Whether all was handed over and read.
    pub(super) const fn is_through(&self) -> bool {
        self.left == 0 && self.read == self.written
    }

    /// The next segment to be sent, new or again. It is sent again `wait` later, then less often.
    pub(super) fn next(&mut self, now: Duration, wait: Duration) -> Option<(u64, u64)> {
        let (from, len) = self.ready.pop_front()?;
        let wait = self.flying.get(&from).map_or(wait, |f| (f.wait * 2).min(AGAIN_MAX));
        self.flying.insert(from, Flying { len, again_at: Some(now + wait), wait });
        self.in_flight += len;
        Some((from, len))
    }

    /// When something is to be sent again.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.flying.values().filter_map(|f| f.again_at).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        for (from, flying) in &mut self.flying {
            if flying.again_at.take_if(|at| *at <= now).is_some() {
                self.in_flight -= flying.len;
                self.ready.push_back((*from, flying.len));
            }
        }
    }

    pub(super) fn handle_ack(&mut self, from: u64) {
        let Some(flying) = self.flying.remove(&from) else { return };
        match flying.again_at {
            Some(_) => self.in_flight -= flying.len,
            None => self.ready.retain(|(ready, _)| *ready != from),
        }
    }

    /// A segment arrived; whether for the first time.
    pub(super) fn handle_arrival(&mut self, from: u64, len: u64) -> bool {
        if from < self.in_order || self.arrived.contains_key(&from) {
            return false;
        }
        self.arrived.insert(from, len);
        while let Some(len) = self.arrived.remove(&self.in_order) {
            self.in_order += len;
        }
        true
    }
}
