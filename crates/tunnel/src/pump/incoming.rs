//! From a stream to the local connection.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream};
use sluice_metering::StreamIndex;

use super::{Ended, Ends};
use crate::account::Account;
use crate::local::Local;

/// Pieces that one write gathers: more than one GSO batch of the sender brings.
const PIECES: usize = 64;
/// A read of so many pieces belongs to a bulk transfer that shares the connection with others: more
/// is about to come.
const GATHER: std::ops::Range<usize> = 3..24;
/// After such a read all other tasks have so many turns before the next. With eight streams it makes
/// a third of the writes, and a tenth less CPU, of no turns; more turns gain nothing.
const GATHER_TURNS: u32 = 4;

/// Writes all that the stream brings to the local connection, then its end.
pub(super) async fn run<L: Local>(ends: &Ends<'_, L>, recv: &mut RecvStream) -> Result<(), Ended> {
    let mut pieces = [const { Bytes::new() }; PIECES];
    while let Some(n) = recv.read_chunks(&mut pieces).await.map_err(broken)? {
        if ends.account.pays() {
            ends.account.count_read(ends.stream, total(&pieces[..n]));
            write_all(ends, &mut pieces[..n]).await?;
        } else {
            hand_on(ends, &mut pieces[..n]).await?;
        }
        if GATHER.contains(&n) {
            for _ in 0..GATHER_TURNS {
                tokio::task::yield_now().await;
            }
        } else {
            tokio::task::coop::consume_budget().await;
        }
    }
    ends.local.finish();
    Ok(())
}

/// A payee's way: as much as the gate admits, then the rest.
async fn hand_on<L: Local>(ends: &Ends<'_, L>, pieces: &mut [Bytes]) -> Result<(), Ended> {
    let all = total(pieces);
    let admitted = ends.account.admit(ends.stream, all).await?;
    if admitted == all {
        write_all(ends, pieces).await?;
    } else {
        // The window's edge: one piece at a time.
        let mut admitted = usize::try_from(admitted).unwrap_or(usize::MAX);
        for piece in pieces {
            while !piece.is_empty() {
                if admitted == 0 {
                    let n = ends.account.admit(ends.stream, piece.len() as u64).await?;
                    admitted = usize::try_from(n).unwrap_or(usize::MAX);
                }
                let part = piece.split_to(admitted.min(piece.len()));
                admitted -= part.len();
                write_all(ends, &mut [part]).await?;
            }
        }
    }
    ends.account.delivered(all);
    Ok(())
}

async fn write_all<L: Local>(ends: &Ends<'_, L>, mut pieces: &mut [Bytes]) -> Result<(), Ended> {
    while !pieces.is_empty() {
        let mut slices = [IoSlice::new(&[]); PIECES];
        for (slice, piece) in slices.iter_mut().zip(&*pieces) {
            *slice = IoSlice::new(piece);
        }
        let n = write(ends, &slices[..pieces.len()]).await?;
        pieces = advance(pieces, n);
    }
    Ok(())
}

async fn write<L: Local>(ends: &Ends<'_, L>, slices: &[IoSlice<'_>]) -> Result<usize, Ended> {
    loop {
        match ends.local.try_write(slices) {
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
async fn writable<L: Local>(ends: &Ends<'_, L>) -> Result<(), Ended> {
    tokio::select! {
        biased;
        ready = ends.local.writable() => ready.map_err(|_| Ended::Local),
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
