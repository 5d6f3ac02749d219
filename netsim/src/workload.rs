//! What the nodes carry: streams whose bytes anybody can foretell, so that each end checks them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quinn::{RecvStream, SendStream};
use sluice_transport::{Clock, Session};

use crate::rng::Rng;
use crate::scene::{Party, Scene};

/// Bytes written or read at a time.
const CHUNK: usize = 16 << 10;

/// The bytes of one stream, as far as anybody has read.
#[derive(Debug, Clone)]
pub struct Content {
    rng: Rng,
    word: [u8; 8],
    used: usize,
}

impl Content {
    /// The bytes that belong to `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), word: [0; 8], used: 8 }
    }

    /// The next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == self.word.len() {
                self.word = self.rng.number().to_le_bytes();
                self.used = 0;
            }
            *byte = self.word[self.used];
            self.used += 1;
        }
    }

    /// Whether these are the next bytes.
    pub fn matches(&mut self, bytes: &[u8]) -> bool {
        let mut expected = vec![0; bytes.len()];
        self.fill(&mut expected);
        expected == bytes
    }
}

/// When the first byte of a request and of its answer arrived, since the network began.
#[derive(Debug, Clone, Copy)]
pub struct FirstBytes {
    /// At the provider.
    pub request: Duration,
    /// At the tenant.
    pub answer: Duration,
}

/// Opens a session; as soon as the tenant has it, it asks on a fresh stream and is answered.
///
/// # Errors
/// When nothing comes.
pub async fn first_bytes(
    scene: &Scene,
    tenant: &Party,
    provider: &Party,
) -> Result<(Session, Session, FirstBytes)> {
    let net = &scene.net;
    let ticket = provider.ticket();
    let ask = async {
        let ours = tenant.node.connect(&ticket, &tenant.links[0]).await?;
        let (mut send, mut receive) = ours.connection().open_bi().await?;
        send.write_all(b"?").await?;
        let mut answer = [0];
        receive.read_exact(&mut answer).await?;
        anyhow::Ok((ours, net.elapsed()))
    };
    let answer = async {
        let theirs = provider.node.accept().await.context("the node has shut down")?;
        let (mut send, mut receive) = theirs.connection().accept_bi().await?;
        let mut request = [0];
        receive.read_exact(&mut request).await?;
        let at = net.elapsed();
        send.write_all(b"!").await?;
        send.finish()?;
        anyhow::Ok((theirs, at))
    };
    let both = async { tokio::try_join!(ask, answer) };
    let ((ours, answer), (theirs, request)) = scene.within("the first byte", both).await??;
    Ok((ours, theirs, FirstBytes { request, answer }))
}

/// Whether `len` bytes go there and back unchanged.
///
/// # Errors
/// When they do not arrive at all.
pub async fn echo(scene: &Scene, ours: &Session, theirs: &Session, len: usize) -> Result<bool> {
    let seed = scene.net.elapsed().as_nanos() as u64;
    let mut sent = vec![0; len];
    Content::new(seed).fill(&mut sent);
    let ask = async {
        let (mut send, mut receive) = ours.connection().open_bi().await?;
        send.write_all(&sent).await?;
        send.finish()?;
        anyhow::Ok(receive.read_to_end(len).await?)
    };
    let answer = async {
        let (mut send, mut receive) = theirs.connection().accept_bi().await?;
        let bytes = receive.read_to_end(len).await?;
        theirs.set_delivered(len as u64);
        send.write_all(&bytes).await?;
        send.finish()?;
        anyhow::Ok(())
    };
    let both = async { tokio::try_join!(ask, answer) };
    let (back, ()) = scene.within("an echo", both).await??;
    Ok(Content::new(seed).matches(&back) && back.len() == len)
}

/// What came out of one direction of a stream.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// Bytes, all right and in order.
    pub bytes: u64,
    /// When some arrived, since the network began.
    pub at: Vec<Duration>,
    /// Whether the sender said that this is all.
    pub is_whole: bool,
}

impl Received {
    /// The longest time without a byte that began no earlier than the last byte before `from`, and
    /// ended before `to`.
    #[must_use]
    pub fn gap(&self, from: Duration, to: Duration) -> Duration {
        let before = self.at.iter().rev().find(|t| **t <= from).copied();
        let within = self.at.iter().copied().filter(|t| *t > from && *t < to);
        let mut last = before.unwrap_or(from);
        let mut longest = Duration::ZERO;
        for at in within.chain([to].into_iter().filter(|_| !self.is_whole)) {
            longest = longest.max(at - last);
            last = at;
        }
        longest
    }
}

/// Writes `len` bytes of `seed`, then ends the stream.
///
/// # Errors
/// When the stream is lost.
pub async fn write(mut stream: SendStream, seed: u64, len: u64) -> Result<u64> {
    let mut content = Content::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut left = len;
    while left > 0 {
        let part = &mut buffer[..CHUNK.min(left as usize)];
        content.fill(part);
        stream.write_all(part).await?;
        left -= part.len() as u64;
    }
    stream.finish()?;
    Ok(len)
}

/// Writes a few bytes of `seed` every `pause` until `until`, then ends the stream.
///
/// # Errors
/// When the stream is lost.
pub async fn trickle(
    clock: &Clock,
    mut stream: SendStream,
    seed: u64,
    pause: Duration,
    until: std::time::Instant,
) -> Result<u64> {
    let mut content = Content::new(seed);
    let mut sent = 0;
    let mut buffer = [0; 64];
    while clock.now() < until {
        content.fill(&mut buffer);
        stream.write_all(&buffer).await?;
        sent += buffer.len() as u64;
        clock.sleep(pause).await;
    }
    stream.finish()?;
    Ok(sent)
}

/// Reads a stream, of which `before` bytes were read, to its end, and checks that the rest is
/// `seed`'s. `progress` is told each total.
///
/// # Errors
/// When the stream is lost, or a byte is wrong.
pub async fn read(
    elapsed: impl Fn() -> Duration,
    mut stream: RecvStream,
    seed: u64,
    before: u64,
    mut progress: impl FnMut(u64),
) -> Result<Received> {
    let mut content = Content::new(seed);
    let mut received = Received::default();
    while let Some(chunk) = stream.read_chunk(CHUNK, true).await.context("a stream was lost")? {
        ensure!(chunk.offset == before + received.bytes, "bytes are missing or came twice");
        ensure!(content.matches(&chunk.bytes), "a byte is wrong after {}", received.bytes);
        received.bytes += chunk.bytes.len() as u64;
        let now = elapsed();
        if received.at.last() != Some(&now) {
            received.at.push(now);
        }
        progress(received.bytes);
    }
    received.is_whole = true;
    Ok(received)
}

/// Writes `seed`'s bytes as fast as they go until `until`, then ends the stream; how many.
///
/// # Errors
/// When the stream is lost.
pub async fn pour(
    clock: &Clock,
    mut stream: SendStream,
    seed: u64,
    until: std::time::Instant,
) -> Result<u64> {
    let mut content = Content::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    while clock.now() < until {
        content.fill(&mut buffer);
        stream.write_all(&buffer).await?;
        sent += buffer.len() as u64;
    }
    stream.finish()?;
    Ok(sent)
}
