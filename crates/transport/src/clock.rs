//! The one clock that all of a node's code reads.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time and timers, as quinn's runtime gives them: the kernel's, or a simulator's.
#[derive(Debug, Clone)]
pub struct Clock {
    runtime: Arc<dyn quinn::Runtime>,
    /// A moment of the runtime's and the wall-clock time then; the system's wall clock if none.
    wall: Option<(Instant, Duration)>,
    /// Seconds by which somebody set the wall clock since.
    set: Arc<AtomicI64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Arc::new(quinn::TokioRuntime))
    }
}

/// What was waited for did not happen in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not in time")]
pub struct Elapsed;

impl Clock {
    /// A clock on another runtime, with the system's wall-clock time.
    #[must_use]
    pub fn new(runtime: Arc<dyn quinn::Runtime>) -> Self {
        Self { runtime, wall: None, set: Arc::default() }
    }

    /// A clock on another runtime whose wall-clock time is `unix` now and goes on with it.
    #[must_use]
    pub fn with_unix_time(runtime: Arc<dyn quinn::Runtime>, unix: Duration) -> Self {
        let wall = Some((runtime.now(), unix));
        Self { runtime, wall, set: Arc::default() }
    }

    /// The same clock, of a machine whose wall clock is set apart from all others'.
    #[must_use]
    pub fn apart(&self) -> Self {
        let set = AtomicI64::new(self.set.load(Relaxed));
        Self { set: Arc::new(set), ..self.clone() }
    }

    /// Sets the wall clock of this machine so many seconds forward, or back; monotonic time goes on.
    /// The system's own wall clock is not ours to set.
    pub fn set_wall(&self, seconds: i64) {
        if self.wall.is_some() {
            self.set.fetch_add(seconds, Relaxed);
        }
    }

    /// Monotonic time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.runtime.now()
    }

    /// Wall-clock time, for expiries only.
    #[must_use]
    pub fn unix_time(&self) -> Duration {
        match self.wall {
            None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Some((then, unix)) => {
                let set = self.set.load(Relaxed);
                let now = unix + self.now().saturating_duration_since(then);
                let step = Duration::from_secs(set.unsigned_abs());
                if set < 0 { now.saturating_sub(step) } else { now + step }
            }
        }
    }

    /// Waits until `at`.
    pub async fn sleep_until(&self, at: Instant) {
        let mut timer = self.runtime.new_timer(at);
        std::future::poll_fn(|cx| timer.as_mut().poll(cx)).await;
    }

    /// Waits for `span`.
    pub async fn sleep(&self, span: Duration) {
        self.sleep_until(self.now() + span).await;
    }

    /// Waits for `future`, but no longer than `span`.
    ///
    /// # Errors
    /// When it takes longer.
    pub async fn timeout<T>(
        &self,
        span: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        tokio::select! {
            biased;
            done = future => Ok(done),
            () = self.sleep(span) => Err(Elapsed),
        }
    }

    /// What quinn runs on.
    #[must_use]
    pub fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        self.runtime.clone()
    }

    /// The same wall-clock time, as quinn reads it for the tokens that it issues.
    #[must_use]
    pub fn time_source(&self) -> Arc<dyn quinn::TimeSource> {
        Arc::new(Wall(self.clone()))
    }
}

struct Wall(Clock);

impl quinn::TimeSource for Wall {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.0.unix_time()
    }
}
