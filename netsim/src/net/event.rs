//! The queue of what is going to happen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Packet;
use super::world::{PlaceId, Way};

#[derive(Debug)]
pub(super) enum Event {
    /// A packet reaches the other end of a place's link.
    Arrive { place: PlaceId, way: Way, packet: Packet },
    /// A place's link is free to send the next one.
    Free { place: PlaceId, way: Way },
}

#[derive(Debug)]
struct Due {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Events by their time, and by their causes' order where the times are equal.
#[derive(Debug, Default)]
pub(super) struct Events {
    heap: BinaryHeap<Reverse<Due>>,
    count: u64,
}

impl Events {
    pub(super) fn push(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.heap.push(Reverse(Due { at, number: self.count, event }));
    }

    pub(super) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(due)| due.at)
    }

    pub(super) fn pop_due(&mut self, now: u64) -> Option<(u64, Event)> {
        if self.next_at()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(due)| (due.at, due.event))
    }
}
