//! From a stream to TCP.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream};
use sluice_metering::StreamIndex;

use super::{Ended, Ends};
use crate::account::Account;
use crate::tcp;

/// Pieces that one write to TCP gathers: more than one GSO batch of the sender brings.
const PIECES: usize = 64;
/// First buffer of a payee, which reads no more than the gate permits.
const READ_MIN: usize = 8 * 1024;
/// Largest buffer of a payee.
const READ_MAX: usize = 64 * 1024;

/// Writes all that the stream brings to TCP, then FIN.
pub(super) async fn run(ends: &Ends<'_>, recv: &mut RecvStream) -> Result<(), Ended> {
    if ends.account.pays() {
        run_payer(ends, recv).await?;
    } else {
        run_payee(ends, recv).await?;
    }
    tcp::finish(ends.tcp);
    Ok(())
}

async fn run_payer(ends: &Ends<'_>, recv: &mut RecvStream) -> Result<(), Ended> {
    let mut pieces = [const { Bytes::new() }; PIECES];
    while let Some(n) = recv.read_chunks(&mut pieces).await.map_err(broken)? {
        let mut rest = &mut pieces[..n];
        ends.account.count_read(ends.stream, total(rest));
        while !rest.is_empty() {
            let n = write_pieces(ends, rest).await?;
            rest = advance(rest, n);
        }
        tokio::task::coop::consume_budget().await;
    }
    Ok(())
}

async fn run_payee(ends: &Ends<'_>, recv: &mut RecvStream) -> Result<(), Ended> {
    let mut buffer = vec![0; READ_MIN];
    loop {
        let n = read_permitted(ends, recv, &mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let n = write(ends, &[IoSlice::new(rest)]).await?;
            rest = &rest[n..];
        }
        ends.account.delivered(n as u64);
        if n == buffer.len() && n < READ_MAX {
            buffer.resize(READ_MAX, 0);
        }
        tokio::task::coop::consume_budget().await;
    }
}

/// Reads as much as the gate permits; 0 at the end of the stream.
async fn read_permitted(
    ends: &Ends<'_>,
    recv: &mut RecvStream,
    buffer: &mut [u8],
) -> Result<usize, Ended> {
    let want = buffer.len();
    let read = ends.account.read_permitted(ends.stream, want as u64, |cx, granted| {
        let granted = usize::try_from(granted).unwrap_or(usize::MAX).min(want);
        recv.poll_read(cx, &mut buffer[..granted]).map(|r| r.map(|n| n as u64).map_err(broken))
    });
    Ok(usize::try_from(read.await?).expect("no more than the buffer holds"))
}

/// Writes pieces at once; how many bytes TCP took.
async fn write_pieces(ends: &Ends<'_>, pieces: &[Bytes]) -> Result<usize, Ended> {
    let mut slices = [IoSlice::new(&[]); PIECES];
    for (slice, piece) in slices.iter_mut().zip(pieces) {
        *slice = IoSlice::new(piece);
    }
    write(ends, &slices[..pieces.len()]).await
}

async fn write(ends: &Ends<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Ended> {
    loop {
        match ends.tcp.try_write_vectored(slices) {
            Ok(n) => {
                ends.received.add(n as u64);
                return Ok(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => writable(ends).await?,
            Err(_) => return Err(Ended::Local),
        }
    }
}

/// A reader that never reads again must not hide that the session is gone.
async fn writable(ends: &Ends<'_>) -> Result<(), Ended> {
    tokio::select! {
        biased;
        ready = ends.tcp.writable() => ready.map_err(|_| Ended::Local),
        error = ends.connection.closed() => Err(Ended::Session(error)),
    }
}

fn total(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|p| p.len() as u64).sum()
}

/// Leaves out the first `n` bytes.
fn advance(mut pieces: &mut [Bytes], mut n: usize) -> &mut [Bytes] {
    while let Some(first) = pieces.first_mut() {
        if n < first.len() {
            first.advance(n);
            break;
        }
        n -= first.len();
        first.clear();
        pieces = &mut pieces[1..];
    }
    pieces
}

/// Reads and pays for what arrived of a stream that is given up: it was delivered to this node.
pub(super) async fn take_rest(account: &Account, stream: StreamIndex, recv: &mut RecvStream) {
    let mut pieces = [const { Bytes::new() }; PIECES];
    loop {
        let once = poll_fn(|cx| Poll::Ready(pin!(recv.read_chunks(&mut pieces)).poll(cx)));
        let Poll::Ready(Ok(Some(n))) = once.await else { return };
        account.count_read(stream, total(&pieces[..n]));
    }
}

fn broken(error: ReadError) -> Ended {
    match error {
        ReadError::Reset(code) => Ended::Remote(code.into_inner()),
        ReadError::ConnectionLost(error) => Ended::Session(error),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            Ended::Remote(0)
        }
    }
}
