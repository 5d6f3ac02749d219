//! Whether a silence means anything.

use std::time::Instant;

use quinn::FrameStats;

/// Tells whether anything that was sent into a silence demands an answer.
#[derive(Debug, Default)]
pub(super) struct Silence {
    since: Option<Instant>,
    /// Frames that demand an answer, sent before it began.
    before: u64,
    /// The same when this was last looked at.
    seen: u64,
}

impl Silence {
    /// `since`: when the first packet went out that nothing has arrived after. Whether it was one
    /// that demands an answer.
    pub(super) fn look(&mut self, since: Option<Instant>, sent: &FrameStats) -> bool {
        let demanding = demanding(sent);
        if since != self.since {
            self.since = since;
            self.before = self.seen;
        }
        self.seen = demanding;
        since.is_some() && demanding > self.before
    }
}

/// Frames that must be acknowledged: all but a few (RFC 9000, 13.2).
const fn demanding(sent: &FrameStats) -> u64 {
    sent.stream
        + sent.datagram
        + sent.ping
        + sent.max_data
        + sent.max_stream_data
        + sent.max_streams_bidi
        + sent.max_streams_uni
        + sent.reset_stream
        + sent.stop_sending
        + sent.data_blocked
        + sent.stream_data_blocked
        + sent.new_connection_id
        + sent.retire_connection_id
}
