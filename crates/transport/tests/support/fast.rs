//! A clock that makes what waits for half a minute wait for a second.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use sluice_transport::Clock;

/// Tokio's clock, but so many times as fast: what waits for 30 s waits for 1 s.
#[derive(Debug)]
pub(crate) struct Fast {
    start: tokio::time::Instant,
}

const FASTER: u32 = 30;

impl Fast {
    pub(crate) fn clock() -> Clock {
        Clock::new(Arc::new(Self { start: tokio::time::Instant::now() }))
    }
}

impl quinn::Runtime for Fast {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        let start = self.start;
        let sleep = Box::pin(tokio::time::sleep_until(faster(start, at)));
        Box::pin(FastTimer { start, sleep })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        self.start.into_std() + self.start.elapsed() * FASTER
    }
}

fn faster(start: tokio::time::Instant, at: Instant) -> tokio::time::Instant {
    start + at.saturating_duration_since(start.into_std()) / FASTER
}

#[derive(Debug)]
struct FastTimer {
    start: tokio::time::Instant,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl quinn::AsyncTimer for FastTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let at = faster(self.start, at);
        self.sleep.as_mut().reset(at);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.sleep.as_mut(), cx)
    }
}
