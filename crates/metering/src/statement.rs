//! What the payer saw at one moment.

use bytes::Bytes;
use prost::Message;
use sluice_proto::{LeaseId, STATEMENT_STREAMS_MAX, VERSION, wire};

use crate::{Counts, Lie, StreamIndex};

/// Longest encoded statement: with its voucher's other fields (at most 125 bytes) it stays within
/// the 1,100 bytes that fit a datagram on every path.
pub(crate) const STATEMENT_MAX: usize = 960;

/// Highest position that a statement can carry beside a stream's state.
const POSITION_MAX: u64 = u64::MAX >> 2;

/// Highest count that is believed: an exabyte, so that sums never overflow.
const COUNT_MAX: u64 = 1 << 60;

/// Of a window this many bytes for each position in a statement.
const WINDOW_PER_POSITION: u64 = 12 * 1024;

/// How many positions a statement carries at most on an edge: fewer where the window is small, so
/// that vouchers stay a small part of the bytes that they are for. Both ends know it from the terms.
pub(crate) fn positions_max(window: u64) -> usize {
    let most = usize::try_from(window / WINDOW_PER_POSITION).unwrap_or(STATEMENT_STREAMS_MAX);
    most.min(STATEMENT_STREAMS_MAX)
}

/// How the down direction of a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// More may come.
    Open,
    /// Read to its end.
    Ended,
    /// Given up by either side; the rest will not be read.
    Reset,
}

/// How far the payer read one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPosition {
    /// Which stream.
    pub stream: StreamIndex,
    /// Bytes read in order in this session.
    pub position: u64,
    /// Whether more will be read.
    pub state: StreamState,
}

/// Totals of a lease and positions of some streams of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The lease, or the reservation on a relay's edge.
    pub lease: LeaseId,
    /// Cumulative over the lease.
    pub counts: Counts,
    /// The session of `streams`.
    pub session: u64,
    /// At most [`STATEMENT_STREAMS_MAX`].
    pub streams: Vec<StreamPosition>,
}

impl Statement {
    /// Encodes it, leaving out the last positions that would not fit. The statement then holds
    /// what the bytes say.
    #[must_use]
    pub fn encode_fitting(&mut self) -> Bytes {
        self.streams.truncate(STATEMENT_STREAMS_MAX);
        loop {
            let bytes = self.to_wire().encode_to_vec();
            if bytes.len() <= STATEMENT_MAX || self.streams.pop().is_none() {
                return bytes.into();
            }
        }
    }

    fn to_wire(&self) -> wire::pay::Statement {
        let pair =
            |s: &StreamPosition| [s.stream.0, s.position.min(POSITION_MAX) << 2 | s.state.code()];
        wire::pay::Statement {
            version: VERSION,
            lease: Bytes::copy_from_slice(&self.lease.0),
            up: self.counts.up,
            down: self.counts.down,
            session: self.session,
            streams: self.streams.iter().flat_map(pair).collect(),
        }
    }

    /// Parses the statement of a voucher.
    ///
    /// # Errors
    /// When it is malformed, of another version, or holds too many positions.
    pub fn parse(bytes: &Bytes) -> Result<Self, Lie> {
        let malformed = |what: String| Lie::Malformed(format!("statement: {what}"));
        let wire: wire::pay::Statement =
            wire::decode(bytes.clone(), STATEMENT_MAX).map_err(|e| malformed(e.to_string()))?;
        if wire.version != VERSION {
            return Err(malformed(format!("version {}", wire.version)));
        }
        let lease = LeaseId::parse(&wire.lease).map_err(|e| malformed(e.to_string()))?;
        let (pairs, rest) = wire.streams.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() > STATEMENT_STREAMS_MAX {
            return Err(malformed(format!("{} numbers of streams", wire.streams.len())));
        }
        let streams = pairs
            .iter()
            .map(|[stream, packed]| {
                let state = StreamState::from_code(packed & 3)
                    .ok_or_else(|| malformed(format!("state {}", packed & 3)))?;
                Ok(StreamPosition { stream: StreamIndex(*stream), position: packed >> 2, state })
            })
            .collect::<Result<_, Lie>>()?;
        let counts = Counts { up: wire.up, down: wire.down };
        if counts.up > COUNT_MAX || counts.down > COUNT_MAX {
            return Err(malformed(counts.to_string()));
        }
        Ok(Self { lease, counts, session: wire.session, streams })
    }
}

impl StreamState {
    const fn code(self) -> u64 {
        match self {
            Self::Open => 0,
            Self::Ended => 1,
            Self::Reset => 2,
        }
    }

    const fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(Self::Open),
            1 => Some(Self::Ended),
            2 => Some(Self::Reset),
            _ => None,
        }
    }
}
