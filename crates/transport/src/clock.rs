//! The one clock that all of a node's code reads.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time and timers, as quinn's runtime gives them: the kernel's, or a simulator's.
#[derive(Debug, Clone)]
pub struct Clock(Arc<dyn quinn::Runtime>);

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(quinn::TokioRuntime))
    }
}

impl Clock {
    /// A clock on another runtime.
    #[must_use]
    pub fn new(runtime: Arc<dyn quinn::Runtime>) -> Self {
        Self(runtime)
    }

    /// Monotonic time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.now()
    }

    /// Wall-clock time, for expiries only.
    #[must_use]
    pub fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Waits until `at`.
    pub async fn sleep_until(&self, at: Instant) {
        let mut timer = self.0.new_timer(at);
        std::future::poll_fn(|cx| timer.as_mut().poll(cx)).await;
    }

    /// Waits for `span`.
    pub async fn sleep(&self, span: Duration) {
        self.sleep_until(self.now() + span).await;
    }

    pub(crate) fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        self.0.clone()
    }
}
