//! Moves bytes between a local connection and a stream, both ways, in one task.

mod incoming;
mod outgoing;

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use sluice_metering::{StreamIndex, StreamState};
use sluice_proto::wire::code;

use crate::account::{Account, Stopped};
use crate::local::Local;

/// What one connection carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pumped {
    /// Bytes from the local connection that the stream took.
    pub sent: u64,
    /// Bytes from the stream that the local connection took.
    pub received: u64,
}

/// How a connection ended, other than by both sides closing it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The local program reset its connection or went away.
    #[error("the local connection was reset")]
    Local,
    /// The other end reset the stream, with a code of [`sluice_proto::wire::code`].
    #[error("the other end reset the connection (code {0})")]
    Remote(u64),
    /// The session ended.
    #[error("the session ended: {0}")]
    Session(ConnectionError),
    /// The account lets nothing more pass.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A count that both directions see; they are one task.
#[derive(Debug, Default)]
struct Tally(AtomicU64);

impl Tally {
    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    fn add(&self, n: u64) {
        self.set(self.get() + n);
    }
}

/// What both directions of one connection share.
struct Ends<'a, L> {
    local: &'a L,
    connection: &'a Connection,
    account: &'a Account,
    stream: StreamIndex,
    /// Permitted, and not yet taken by QUIC.
    unsent: Tally,
    sent: Tally,
    received: Tally,
}

/// Carries a connection to its end, and resets what is left if it breaks. `preamble` goes before
/// everything else and is not payload.
///
/// What was carried, and how it ended when not by both sides closing it.
pub async fn carry<L: Local>(
    local: L,
    connection: &Connection,
    account: &Account,
    (mut send, mut recv): (SendStream, RecvStream),
    preamble: Option<Bytes>,
) -> (Pumped, Result<(), Ended>) {
    let stream = StreamIndex(recv.id().index());
    account.opened(stream);
    let (unsent, sent, received) = Default::default();
    let ends = Ends { local: &local, connection, account, stream, unsent, sent, received };
    let result = both(
        Box::pin(outgoing::run(&ends, &mut send, preamble)),
        Box::pin(incoming::run(&ends, &mut recv)),
    )
    .await;
    let pumped = Pumped { sent: ends.sent.get(), received: ends.received.get() };
    account.refund(stream, ends.unsent.get());
    let Err(ended) = result else {
        account.closed(stream, StreamState::Ended);
        return (pumped, Ok(()));
    };
    if account.pays() {
        incoming::take_rest(account, stream, &mut recv).await;
    }
    abort(&mut send, &mut recv, code::RESET);
    account.closed(stream, StreamState::Reset);
    local.reset();
    // What the session's end looks like from inside depends on who noticed first.
    let ended = connection.close_reason().map_or(ended, Ended::Session);
    (pumped, Err(ended))
}

type Direction<'a> = Pin<Box<dyn Future<Output = Result<(), Ended>> + Send + 'a>>;

/// Runs both directions in one task until both end or one breaks. Only the one that was woken is
/// polled: each poll of an idle direction costs locks that the busy one needs.
async fn both<'a>(outgoing: Direction<'a>, incoming: Direction<'a>) -> Result<(), Ended> {
    let mut directions = FuturesUnordered::from_iter([outgoing, incoming]);
    while let Some(ended) = directions.next().await {
        ended?;
    }
    Ok(())
}

/// Resets both directions of a stream; one that is closed already stays so.
pub(crate) fn abort(send: &mut SendStream, recv: &mut RecvStream, code: u32) {
    let _ = send.reset(VarInt::from_u32(code));
    let _ = recv.stop(VarInt::from_u32(code));
}
