//! How far the payer read each stream, and what of that the payee knows.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::desk::Seq;
use crate::{StreamIndex, StreamPosition, StreamState};

/// Most streams that ended and were not yet reported. Beyond it the oldest is forgotten: its bytes
/// are paid in the totals all the same.
const CLOSED_MAX: usize = 4096;

#[derive(Debug)]
struct Stream {
    read: u64,
    state: StreamState,
    /// What the newest statement that names it says.
    reported: u64,
    state_reported: bool,
    reported_in: Seq,
    /// What the newest acknowledged statement that names it says.
    acked: u64,
}

impl Stream {
    const fn new() -> Self {
        Self {
            read: 0,
            state: StreamState::Open,
            reported: 0,
            state_reported: true,
            reported_in: 0,
            acked: 0,
        }
    }

    const fn moved(&self) -> u64 {
        self.read.saturating_sub(self.reported)
    }

    const fn is_news(&self) -> bool {
        !self.state_reported || self.moved() > 0
    }
}

#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: BTreeMap<StreamIndex, Stream>,
    closed: usize,
    news: bool,
}

impl Streams {
    /// Counts bytes read in order.
    pub(crate) fn handle_read(&mut self, stream: StreamIndex, n: u64) {
        let entry = self.streams.entry(stream).or_insert_with(Stream::new);
        entry.read = entry.read.saturating_add(n);
        self.news |= n > 0;
    }

    pub(crate) fn handle_closed(&mut self, stream: StreamIndex, state: StreamState) {
        let entry = self.streams.entry(stream).or_insert_with(Stream::new);
        if entry.state != StreamState::Open || state == StreamState::Open {
            return;
        }
        (entry.state, entry.state_reported) = (state, false);
        self.news = true;
        self.closed = self.closed.saturating_add(1);
        if self.closed > CLOSED_MAX {
            let oldest = self.streams.iter().find(|(_, s)| s.state != StreamState::Open);
            if let Some(oldest) = oldest.map(|(index, _)| *index) {
                self.remove(oldest);
            }
        }
    }

    fn remove(&mut self, stream: StreamIndex) {
        if self.streams.remove(&stream).is_some() {
            self.closed = self.closed.saturating_sub(1);
        }
    }

    /// Whether some stream moved or closed since it was last reported.
    pub(crate) const fn has_news(&self) -> bool {
        self.news
    }

    /// What a statement of at most `most` positions should say: reset, ended, then those that moved
    /// most since reported.
    pub(crate) fn positions(&self, most: usize) -> Vec<StreamPosition> {
        let mut news: Vec<_> = self.streams.iter().filter(|(_, s)| s.is_news()).collect();
        let rank = |s: &Stream| match (s.state_reported, s.state) {
            (false, StreamState::Reset) => 0,
            (false, _) => 1,
            (true, _) => 2,
        };
        news.sort_by_key(|(_, s)| (rank(s), Reverse(s.moved())));
        news.truncate(most);
        news.into_iter()
            .map(|(stream, s)| StreamPosition { stream: *stream, position: s.read, state: s.state })
            .collect()
    }

    /// The voucher `seq` says this.
    pub(crate) fn handle_reported(&mut self, seq: Seq, positions: &[StreamPosition]) {
        for position in positions {
            if let Some(stream) = self.streams.get_mut(&position.stream) {
                stream.reported = position.position;
                stream.state_reported = true;
                stream.reported_in = seq;
            }
        }
        self.news = self.streams.values().any(Stream::is_news);
    }

    /// The payee has the voucher `seq`. What only earlier ones said may be lost: it is news again.
    pub(crate) fn handle_acked(&mut self, seq: Seq) {
        let mut done = Vec::new();
        for (index, stream) in &mut self.streams {
            let closed = stream.state != StreamState::Open;
            if stream.reported_in == seq {
                stream.acked = stream.reported;
                if closed && stream.state_reported {
                    done.push(*index);
                }
            } else if stream.reported_in < seq && (stream.reported > stream.acked || closed) {
                stream.reported = stream.acked;
                stream.state_reported &= !closed;
                self.news = true;
            }
        }
        for index in done {
            self.remove(index);
        }
    }
}
