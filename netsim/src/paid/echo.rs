//! A person at a keyboard, and a service that says everything back.

use std::future::{Future, ready};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use sluice_transport::Clock;
use sluice_tunnel::Local;
use tokio::sync::Notify;

/// Says back what it hears.
#[derive(Debug, Default)]
pub(super) struct Echo {
    heard: Mutex<(BytesMut, bool)>,
    more: Notify,
}

impl Local for Echo {
    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let (heard, ended) = &mut *self.heard.lock();
        let n = heard.len().min(buffer.capacity() - buffer.len());
        if n == 0 && !*ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buffer.extend_from_slice(&heard[..n]);
        heard.advance(n);
        Ok(n)
    }

    async fn readable(&self) -> io::Result<()> {
        self.more.notified().await;
        Ok(())
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let heard = &mut self.heard.lock().0;
        slices.iter().for_each(|slice| heard.extend_from_slice(slice));
        self.more.notify_one();
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send {
        ready(Ok(()))
    }

    fn finish(&self) {
        self.heard.lock().1 = true;
        self.more.notify_one();
    }

    fn reset(self) {}
}

/// How somebody types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Typing {
    /// Bytes at a time.
    pub bytes: usize,
    /// From one time to the next.
    pub every: Duration,
    /// How long.
    pub lasts: Duration,
}

/// Somebody who types, and hears it back.
#[derive(Debug)]
pub struct Typist {
    typing: Typing,
    clock: Clock,
    ends: Instant,
    next: Mutex<Instant>,
    heard: AtomicU64,
}

impl Typist {
    /// Begins now.
    #[must_use]
    pub fn new(typing: Typing, clock: Clock) -> Self {
        let now = clock.now();
        let ends = now + typing.lasts;
        Self { typing, clock, ends, next: Mutex::new(now), heard: AtomicU64::new(0) }
    }

    /// Bytes that came back.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }
}

impl Local for &Typist {
    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let (mut next, now) = (self.next.lock(), self.clock.now());
        if now < *next {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if now >= self.ends {
            return Ok(0);
        }
        *next += self.typing.every;
        buffer.resize(buffer.len() + self.typing.bytes, b'k');
        Ok(self.typing.bytes)
    }

    async fn readable(&self) -> io::Result<()> {
        let next = *self.next.lock();
        self.clock.sleep_until(next).await;
        Ok(())
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let n = slices.iter().map(|slice| slice.len()).sum::<usize>();
        self.heard.fetch_add(n as u64, Relaxed);
        Ok(n)
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send {
        ready(Ok(()))
    }

    fn finish(&self) {}

    fn reset(self) {}
}
