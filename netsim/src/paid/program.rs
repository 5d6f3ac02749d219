//! Programs at the ends of the pumps: what they say can be foretold, and each checks what it hears.

use std::future::{Future, ready};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use sluice_tunnel::Local;

use crate::workload::Content;

/// What a tenant asks of a service on one stream: how many bytes each way, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Decides the bytes.
    pub seed: u64,
    /// Bytes from the tenant.
    pub up: u64,
    /// Bytes to it.
    pub down: u64,
}

impl Asked {
    /// Bytes of a request.
    pub const LEN: usize = 24;
    /// Everything is to be said back.
    pub const ECHO: Self = Self { seed: 0, up: u64::MAX, down: u64::MAX };

    /// As it goes in front of the stream; not payload.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        [self.seed, self.up, self.down].map(u64::to_be_bytes).concat().into()
    }

    /// Reads one.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 of 24"));
        Self { seed: word(0), up: word(8), down: word(16) }
    }
}

/// What a program has heard so far.
#[derive(Debug, Default)]
pub struct Outcome {
    heard: AtomicU64,
    wrong: AtomicBool,
    is_whole: AtomicBool,
}

impl Outcome {
    /// Bytes that came, all right and in order unless [`is_wrong`](Self::is_wrong).
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// Whether some were not what the other end said.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.wrong.load(Relaxed)
    }

    /// Whether the other end said that this is all.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole.load(Relaxed)
    }
}

/// A program with a pump: it says its bytes as fast as they are taken, and takes what comes.
#[derive(Debug)]
pub struct Program {
    /// What it says, and how much is left of that.
    says: Mutex<(Content, u64)>,
    hears: Mutex<Content>,
    outcome: Arc<Outcome>,
}

/// Tells the two directions of a stream apart.
const DOWNWARD: u64 = 1 << 63;

impl Program {
    /// The tenant's.
    #[must_use]
    pub fn asking(asked: Asked, outcome: Arc<Outcome>) -> Self {
        Self::new((asked.seed, asked.up), asked.seed ^ DOWNWARD, outcome)
    }

    /// The provider's.
    #[must_use]
    pub fn answering(asked: Asked, outcome: Arc<Outcome>) -> Self {
        Self::new((asked.seed ^ DOWNWARD, asked.down), asked.seed, outcome)
    }

    fn new((says, len): (u64, u64), hears: u64, outcome: Arc<Outcome>) -> Self {
        Self {
            says: Mutex::new((Content::new(says), len)),
            hears: Mutex::new(Content::new(hears)),
            outcome,
        }
    }
}

impl Local for Program {
    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let (content, left) = &mut *self.says.lock();
        let room = buffer.capacity() - buffer.len();
        let n = usize::try_from(*left).unwrap_or(usize::MAX).min(room);
        let before = buffer.len();
        buffer.resize(before + n, 0);
        content.fill(&mut buffer[before..]);
        *left -= n as u64;
        Ok(n)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        ready(Ok(()))
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut hears = self.hears.lock();
        let mut n = 0;
        for slice in slices {
            if !hears.matches(slice) {
                self.outcome.wrong.store(true, Relaxed);
            }
            n += slice.len();
        }
        self.outcome.heard.fetch_add(n as u64, Relaxed);
        Ok(n)
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send {
        ready(Ok(()))
    }

    fn finish(&self) {
        self.outcome.is_whole.store(true, Relaxed);
    }

    fn reset(self) {}
}
