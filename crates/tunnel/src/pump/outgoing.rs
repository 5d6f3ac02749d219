//! From the local connection to a stream.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};

use bytes::{Bytes, BytesMut};
use quinn::{SendStream, StoppedError, VarInt, WriteError};

use super::{Ended, Ends};
use crate::local::Local;

/// First read: what an interactive program sends at once, with room to spare.
const READ_MIN: usize = 8 * 1024;
/// Largest read. More does not make it faster, but costs memory in each connection.
const READ_MAX: usize = 128 * 1024;

type Stop<'a> =
    Pin<&'a mut (dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync)>;

/// Sends the preamble, then all that the local connection has, then finishes the stream.
pub(super) async fn run<L: Local>(
    ends: &Ends<'_, L>,
    send: &mut SendStream,
    preamble: Option<Bytes>,
) -> Result<(), Ended> {
    let stop = send.stopped();
    let mut stop: Stop<'_> = pin!(stop);
    let mut buffer = Buffer::new();
    if let Some(preamble) = preamble {
        greet(ends, send, &mut buffer, preamble).await?;
    }
    loop {
        match ends.local.try_read(buffer.space()) {
            Ok(0) => break,
            Ok(_) => forward(ends, send, buffer.take(), &mut stop).await?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => readable(ends, &mut stop).await?,
            Err(_) => return Err(Ended::Local),
        }
        tokio::task::coop::consume_budget().await;
    }
    // A stream that was stopped meanwhile is found out below.
    let _ = send.finish();
    Ok(())
}

/// Sends the preamble, together with what the program has sent by now.
async fn greet<L: Local>(
    ends: &Ends<'_, L>,
    send: &mut SendStream,
    buffer: &mut Buffer,
    preamble: Bytes,
) -> Result<(), Ended> {
    let data = match ends.local.try_read(buffer.space()) {
        Ok(_) => buffer.take(),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Bytes::new(),
        Err(_) => return Err(Ended::Local),
    };
    let n = data.len() as u64;
    if n > 0 {
        // Only a tenant greets, and a payer is always permitted.
        ends.account.permit(ends.stream, n).await?;
        ends.unsent.set(n);
    }
    send.write_all_chunks(&mut [preamble, data]).await.map_err(broken)?;
    ends.unsent.set(0);
    ends.sent.set(n);
    Ok(())
}

async fn readable<L: Local>(ends: &Ends<'_, L>, stop: &mut Stop<'_>) -> Result<(), Ended> {
    tokio::select! {
        biased;
        ready = ends.local.readable() => ready.map_err(|_| Ended::Local),
        end = stop.as_mut() => Err(stopped(end)),
    }
}

/// Writes a chunk as the gate permits.
async fn forward<L: Local>(
    ends: &Ends<'_, L>,
    send: &mut SendStream,
    mut chunk: Bytes,
    stop: &mut Stop<'_>,
) -> Result<(), Ended> {
    while !chunk.is_empty() {
        let granted = tokio::select! {
            biased;
            granted = ends.account.permit(ends.stream, chunk.len() as u64) => granted?,
            end = stop.as_mut() => return Err(stopped(end)),
        };
        let granted = usize::try_from(granted).unwrap_or(usize::MAX).min(chunk.len());
        let mut part = [chunk.split_to(granted)];
        ends.unsent.set(granted as u64);
        while !part[0].is_empty() {
            let written = send.write_chunks(&mut part).await.map_err(broken)?;
            ends.unsent.set(part[0].len() as u64);
            ends.sent.add(written.bytes as u64);
        }
    }
    Ok(())
}

fn stopped(end: Result<Option<VarInt>, StoppedError>) -> Ended {
    match end {
        Ok(code) => Ended::Remote(code.map_or(0, VarInt::into_inner)),
        Err(StoppedError::ConnectionLost(error)) => Ended::Session(error),
        Err(StoppedError::ZeroRttRejected) => Ended::Remote(0),
    }
}

fn broken(error: WriteError) -> Ended {
    match error {
        WriteError::Stopped(code) => Ended::Remote(code.into_inner()),
        WriteError::ConnectionLost(error) => Ended::Session(error),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => Ended::Remote(0),
    }
}

/// Reads large pieces when there is much, and takes little memory when there is little.
struct Buffer {
    bytes: BytesMut,
    size: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: BytesMut::new(), size: READ_MIN }
    }

    /// Room to read into: what is left of the last piece, if that is at least half.
    fn space(&mut self) -> &mut BytesMut {
        if self.bytes.capacity() < self.size / 2 {
            self.bytes = BytesMut::with_capacity(self.size);
        }
        &mut self.bytes
    }

    /// What was read.
    fn take(&mut self) -> Bytes {
        let full = self.bytes.len() == self.bytes.capacity();
        let chunk = self.bytes.split();
        if full {
            self.size = (self.size * 2).min(READ_MAX);
        } else if chunk.len() < self.size / 8 {
            self.size = (self.size / 2).max(READ_MIN);
        }
        chunk.freeze()
    }
}
