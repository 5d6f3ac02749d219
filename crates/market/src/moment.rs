//! Now.

use std::time::{Duration, Instant};

/// A moment by both of a node's clocks: the one that never jumps, for spans, and the one that strangers
/// share, for what is written in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// For timeouts.
    pub at: Instant,
    /// Unix time in milliseconds, for what messages say.
    pub unix_ms: u64,
}

impl Moment {
    /// So much later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self { at: self.at + span, unix_ms: self.unix_ms.saturating_add(ms) }
    }
}
