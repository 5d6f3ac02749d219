//! Virtual time: tokio's paused clock, which jumps to the next timer whenever nothing runs.
//!
//! tokio rounds timers up to 1 ms, which would change round-trip times and losses. So a simulated
//! second is [`DILATION`] of tokio's, and the resolution is 1 us.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use sluice_transport::Clock;

/// tokio's seconds in one of ours. tokio's timers reach over two years, so ours over 19 hours.
const DILATION: u32 = 1000;
/// Wall-clock time at which every simulation begins, since 1970.
const UNIX_START: Duration = Duration::from_secs(1_800_000_000);

/// Runs `simulation` in virtual time, on this thread alone, to its end.
///
/// # Panics
/// When the system gives no runtime.
pub fn run<F: Future>(simulation: impl FnOnce(Clock) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    runtime.block_on(async {
        let dilated = Arc::new(Dilated { start: tokio::time::Instant::now() });
        simulation(Clock::with_unix_time(dilated, UNIX_START)).await
    })
}

#[derive(Debug)]
struct Dilated {
    start: tokio::time::Instant,
}

fn to_tokio(start: tokio::time::Instant, at: Instant) -> tokio::time::Instant {
    let span = at.saturating_duration_since(start.into_std());
    start + span.checked_mul(DILATION).unwrap_or(Duration::MAX / 4)
}

impl quinn::Runtime for Dilated {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        let sleep = Box::pin(tokio::time::sleep_until(to_tokio(self.start, at)));
        Box::pin(Timer { start: self.start, sleep })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(
        &self,
        _: std::net::UdpSocket,
    ) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> Instant {
        self.start.into_std() + self.start.elapsed() / DILATION
    }
}

#[derive(Debug)]
struct Timer {
    start: tokio::time::Instant,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl quinn::AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let at = to_tokio(self.start, at);
        self.sleep.as_mut().reset(at);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.sleep.as_mut(), cx)
    }
}
