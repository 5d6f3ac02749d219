//! Packets over one byte stream, both ways at once.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_proto::{PacketError, PacketQueue, PacketReader};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Clock;

/// Bytes that wait to be written. What TCP has in flight is not among them, so this is 100 ms at
/// 20 Mbit/s, and some of the largest batches.
const QUEUE_BYTES: usize = 256 << 10;
/// Bytes read at a time.
const SCRATCH_BYTES: usize = 64 << 10;
/// A stream is looked at this often ..
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// .. and closed if, so many times in a row, nothing had come, or nothing could be sent. Both ends
/// of a control connection speak every few seconds.
const SILENT_LOOKS: u32 = 3;

thread_local! {
    /// Read into here and dealt with at once, so that an idle stream keeps no buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    /// We closed it, or the other end did, between two packets.
    #[error("closed")]
    Closed,
    /// It failed, or ended in the middle of a packet.
    #[error("{0}")]
    Failed(#[from] io::Error),
    /// The other end broke the rules.
    #[error("{0}")]
    Packet(#[from] PacketError),
    /// No packet came, or none could be sent, for half a minute.
    #[error("nothing moved for {} s", (LOOK_EVERY * SILENT_LOOKS).as_secs())]
    Silent,
}

/// What takes the packets that come over a stream.
pub trait PacketSink {
    /// Ready when there is room; else wakes the task later, and TCP holds the sender back.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Takes packets of `stride` bytes, the last may be shorter.
    fn take(&mut self, packets: &mut [u8], stride: usize);
}

#[derive(Debug)]
struct Outgoing {
    queue: PacketQueue,
    waker: Option<Waker>,
    closed: bool,
}

/// Packets for one stream, put in from anywhere. Never blocks: what finds no room is dropped.
#[derive(Debug)]
pub struct StreamQueue(Mutex<Outgoing>);

impl Default for StreamQueue {
    fn default() -> Self {
        let queue = PacketQueue::new(QUEUE_BYTES);
        Self(Mutex::new(Outgoing { queue, waker: None, closed: false }))
    }
}

impl StreamQueue {
    /// Sends packets of `segment` bytes, the last may be shorter; returns how many were dropped.
    pub fn push(&self, packets: &[u8], segment: usize) -> u64 {
        let mut outgoing = self.0.lock();
        if outgoing.closed {
            return packets.len().div_ceil(segment.max(1)) as u64;
        }
        let dropped = outgoing.queue.push(packets, segment);
        let waker = outgoing.waker.take();
        drop(outgoing);
        if let Some(waker) = waker {
            waker.wake();
        }
        dropped
    }

    /// Ends the stream once what waits has been written.
    pub fn close(&self) {
        let mut outgoing = self.0.lock();
        outgoing.closed = true;
        let waker = outgoing.waker.take();
        drop(outgoing);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What is to be written next. Empty: the stream was closed.
    fn poll_take(&self, cx: &Context<'_>) -> Poll<Vec<u8>> {
        let mut outgoing = self.0.lock();
        if outgoing.queue.is_empty() && !outgoing.closed {
            outgoing.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(outgoing.queue.take())
    }
}

/// One stream with its packets.
pub struct PacketStream<S> {
    stream: S,
    queue: Arc<StreamQueue>,
    reader: PacketReader,
    writing: Vec<u8>,
    written: usize,
    /// Packets that came, and bytes that went, since the last look.
    came: u64,
    went: u64,
}

impl<S> std::fmt::Debug for PacketStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PacketStream").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> PacketStream<S> {
    /// Sends what is put into `queue` over `stream`.
    pub fn new(stream: S, queue: Arc<StreamQueue>) -> Self {
        let reader = PacketReader::default();
        Self { stream, queue, reader, writing: Vec::new(), written: 0, came: 0, went: 0 }
    }

    /// Carries packets both ways until the stream ends.
    pub async fn run(mut self, clock: &Clock, sink: &mut impl PacketSink) -> StreamEnd {
        let (mut deaf, mut mute) = (0, 0);
        loop {
            let look_at = clock.now() + LOOK_EVERY;
            tokio::select! {
                biased;
                end = std::future::poll_fn(|cx| self.poll(cx, sink)) => return end,
                () = clock.sleep_until(look_at) => {}
            }
            deaf = if self.came == 0 { deaf + 1 } else { 0 };
            mute = if self.went == 0 { mute + 1 } else { 0 };
            if deaf.max(mute) >= SILENT_LOOKS {
                return StreamEnd::Silent;
            }
            (self.came, self.went) = (0, 0);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, sink: &mut impl PacketSink) -> Poll<StreamEnd> {
        if let Poll::Ready(end) = self.poll_write(cx) {
            return Poll::Ready(end);
        }
        self.poll_read(cx, sink)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<StreamEnd> {
        loop {
            if self.written == self.writing.len() {
                self.written = 0;
                self.writing = match self.queue.poll_take(cx) {
                    Poll::Ready(bytes) => bytes,
                    Poll::Pending => {
                        // An idle stream keeps no buffer.
                        self.writing = Vec::new();
                        return match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
                            Ok(()) => Poll::Pending,
                            Err(error) => Poll::Ready(error.into()),
                        };
                    }
                };
                if self.writing.is_empty() {
                    let done = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
                    return Poll::Ready(
                        done.map_or_else(StreamEnd::Failed, |()| StreamEnd::Closed),
                    );
                }
            }
            let rest = &self.writing[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(n) => {
                    self.written += n;
                    self.went += n as u64;
                }
                Err(error) => return Poll::Ready(error.into()),
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, sink: &mut impl PacketSink) -> Poll<StreamEnd> {
        SCRATCH.with_borrow_mut(|scratch| {
            loop {
                ready!(sink.poll_ready(cx));
                let mut buffer = ReadBuf::new(scratch);
                if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                    return Poll::Ready(error.into());
                }
                let bytes = buffer.filled_mut();
                if bytes.is_empty() {
                    let whole = self.reader.is_between_packets();
                    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof).into();
                    return Poll::Ready(if whole { StreamEnd::Closed } else { cut() });
                }
                let came = &mut self.came;
                let taken = self.reader.take(bytes, |packets, stride| {
                    *came += packets.len().div_ceil(stride) as u64;
                    sink.take(packets, stride);
                });
                if let Err(error) = taken {
                    return Poll::Ready(error.into());
                }
            }
        })
    }
}
