//! How the window is shared among the streams of a session.
//!
//! What a stream holds is what was written to it beyond the position that the newest durable
//! statement gives. Nothing of it can be taken back, so each stream may hold only a part of what
//! would then be left, the smaller the more streams hold something. So there is always something
//! left for the next one, also when one reader after another pauses. There are two lanes:
//!
//! - *fast*: up to 4 times what the stream read between two statements, of the whole window. While
//!   none is known to pause, those who read may so hold seven eighths of it; otherwise one alone may
//!   hold two thirds of what the paused ones left.
//! - *slow*: of half of the window, for those of whom nothing is known, paused readers among them.
//!   One stream alone may so hold a third of the window.

use std::collections::BTreeMap;

use crate::{Lie, StreamIndex, StreamPosition, StreamState};

/// A stream may hold this many times what it read between two statements: statements come each
/// quarter window, so one that reads all of it may fill the window.
const FAST_FACTOR: u64 = 4;
/// When `n` streams hold something, each may hold this many n-ths of the room that is left. With 2,
/// `k` readers that pause one after another leave `2 / ((k + 1) (k + 2))` of the room; and streams of
/// which nothing is known have a third of the window together, so that a quarter window is read, and
/// a voucher due, before all of them must wait.
const SHARE: u64 = 2;
/// The same while all that hold something read: a window less a quarter, and what the relay's edge
/// keeps free, then bears a round trip. Whoever pauses next leaves an eighth, of which the others go on.
const SHARE_READ: u64 = 7;
/// Most streams that ended here and whose payer did not say so. Beyond it the oldest is forgotten,
/// and its gap can no longer be written off.
const CLOSED_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Stream {
    written: u64,
    reported: u64,
    /// Of what it holds, taken in the slow lane.
    slow: u64,
    /// Read between the last two statements, and between the two before.
    moved: [u64; 2],
    closed: bool,
}

impl Stream {
    const fn held(&self) -> u64 {
        self.written.saturating_sub(self.reported)
    }

    /// Whether it holds something, and is not known to read.
    fn is_still(&self) -> bool {
        self.held() > 0 && self.moved == [0; 2]
    }

    fn fast_limit(&self) -> u64 {
        self.moved.iter().max().map_or(0, |m| m.saturating_mul(FAST_FACTOR))
    }
}

/// Where a grant was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Fast,
    Slow,
}

#[derive(Debug, Default)]
pub(crate) struct Lanes {
    streams: BTreeMap<StreamIndex, Stream>,
    slow: u64,
    gaps: u64,
    closed: usize,
    /// Streams that hold something.
    holding: u64,
    /// Of those, the ones that are not known to read.
    still: u64,
}

impl Lanes {
    pub(crate) fn open(&mut self, stream: StreamIndex) {
        self.streams.entry(stream).or_default();
    }

    pub(crate) fn is_open(&self, stream: StreamIndex) -> bool {
        self.streams.get(&stream).is_some_and(|s| !s.closed)
    }

    /// Bytes of reset streams that were written and will not be read.
    pub(crate) const fn gaps(&self) -> u64 {
        self.gaps
    }

    /// How much more a stream may take of `room` bytes that the window of `window` has left.
    pub(crate) fn allowed(&self, stream: StreamIndex, window: u64, room: u64) -> (u64, Lane) {
        let Some(s) = self.streams.get(&stream).filter(|s| !s.closed) else {
            return (0, Lane::Slow);
        };
        let n = self.holding.saturating_add(u64::from(s.held() == 0)).max(1);
        let most = if self.still == 0 { SHARE_READ } else { SHARE };
        let fast = share(n, most, room, s.held());
        let fast = fast.min(s.fast_limit().saturating_sub(s.held()));
        if fast > 0 {
            return (fast, Lane::Fast);
        }
        let pool = (window / 2).saturating_sub(self.slow).min(room);
        (share(n, SHARE, pool, s.held()), Lane::Slow)
    }

    pub(crate) fn take(&mut self, stream: StreamIndex, n: u64, lane: Lane) {
        self.change(stream, |s| {
            s.written = s.written.saturating_add(n);
            if lane == Lane::Slow {
                s.slow = s.slow.saturating_add(n);
            }
        });
    }

    /// Takes back bytes that were granted and not written.
    pub(crate) fn refund(&mut self, stream: StreamIndex, n: u64) {
        if !self.change(stream, |s| s.written = s.written.saturating_sub(n)) {
            // The payer reported its reset, and the gap held these bytes.
            self.gaps = self.gaps.saturating_sub(n);
        }
    }

    /// Changes a stream and what depends on it; whether there is one.
    fn change(&mut self, stream: StreamIndex, f: impl FnOnce(&mut Stream)) -> bool {
        let Some(s) = self.streams.get_mut(&stream) else { return false };
        let (slow, held, still) = (s.slow, s.held() > 0, s.is_still());
        f(s);
        s.slow = s.slow.min(s.held());
        self.slow = self.slow.saturating_sub(slow).saturating_add(s.slow);
        let holding = self.holding.saturating_sub(u64::from(held));
        self.holding = holding.saturating_add(u64::from(s.held() > 0));
        let others = self.still.saturating_sub(u64::from(still));
        self.still = others.saturating_add(u64::from(s.is_still()));
        true
    }

    /// Nothing more will be written to a stream.
    pub(crate) fn handle_closed(&mut self, stream: StreamIndex) {
        let Some(s) = self.streams.get_mut(&stream).filter(|s| !s.closed) else { return };
        s.closed = true;
        self.closed = self.closed.saturating_add(1);
        if s.held() == 0 {
            self.remove(stream);
        } else if self.closed > CLOSED_MAX {
            let oldest = self.streams.iter().find(|(_, s)| s.closed).map(|(index, _)| *index);
            if let Some(oldest) = oldest {
                self.remove(oldest);
            }
        }
    }

    /// Forgets a stream; what it held.
    fn remove(&mut self, stream: StreamIndex) -> u64 {
        let Some(s) = self.streams.remove(&stream) else { return 0 };
        self.slow = self.slow.saturating_sub(s.slow);
        self.closed = self.closed.saturating_sub(usize::from(s.closed));
        self.holding = self.holding.saturating_sub(u64::from(s.held() > 0));
        self.still = self.still.saturating_sub(u64::from(s.is_still()));
        s.held()
    }

    /// Checks positions against what was written.
    pub(crate) fn check(&self, positions: &[StreamPosition]) -> Result<(), Lie> {
        for position in positions {
            let (stream, found) = (position.stream, position.position);
            let Some(s) = self.streams.get(&stream) else { continue };
            if found > s.written {
                return Err(Lie::OverPosition { stream, written: s.written, found });
            }
        }
        Ok(())
    }

    /// A durable statement gives these positions, of at most `most` that it had room for.
    pub(crate) fn apply(&mut self, positions: &[StreamPosition], most: usize) {
        let all = positions.len() < most;
        if all {
            // It names all that moved: the others stood still.
            self.still = 0;
            for s in self.streams.values_mut() {
                s.moved = [0, s.moved[0]];
                self.still = self.still.saturating_add(u64::from(s.is_still()));
            }
        }
        for position in positions {
            self.apply_one(position, all);
        }
    }

    fn apply_one(&mut self, position: &StreamPosition, shifted: bool) {
        self.change(position.stream, |s| {
            let moved = position.position.saturating_sub(s.reported);
            s.moved = [moved, if shifted { s.moved[1] } else { s.moved[0] }];
            s.reported = s.reported.max(position.position);
        });
        match position.state {
            StreamState::Open => {}
            StreamState::Ended => {
                self.remove(position.stream);
            }
            StreamState::Reset => {
                let gap = self.remove(position.stream);
                self.gaps = self.gaps.saturating_add(gap);
            }
        }
    }
}

/// How much more one of `n` streams may take that holds `held`: until it holds `most / n` of what is
/// then left of `room`.
fn share(n: u64, most: u64, room: u64, held: u64) -> u64 {
    let left = room.saturating_mul(most).saturating_sub(held.saturating_mul(n));
    left.div_ceil(n.saturating_add(most)).min(room)
}
