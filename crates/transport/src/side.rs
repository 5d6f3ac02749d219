//! Sockets beside the data socket: for asking relays how a NAT maps, and for guessing ports.
//!
//! They are few or short-lived. What arrives at them goes, by one copy, to whoever reads the data
//! socket, so that a session may live on one of them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, RwLock};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit};
use sluice_path::{Pair, Path, SocketId};
use sluice_proto::frame;
use tokio::sync::Notify;

use crate::network::Port;
use crate::peer::DIRECT;
use crate::socket::DataSocket;
use crate::tables::{canonical, to_quinn};
use crate::{Network, observe};

/// Kernel buffers of such a socket, each way: one that a session moves to carries all of it.
const SIDE_BUFFER: usize = 1 << 20;
/// Room for the largest batch that the kernel hands over.
const BATCH: usize = 64 << 10;
/// Batches that wait to be read; more are dropped.
const ARRIVED_MAX: usize = 256;

/// One socket.
#[derive(Debug)]
pub(crate) struct SideSocket {
    pub(crate) id: SocketId,
    port: Port,
    v6: bool,
    /// Tells the group's task that one of it was closed.
    closed: Arc<Notify>,
}

impl SideSocket {
    /// Sends segments of `segment` bytes, the last may be shorter. A busy kernel drops them.
    pub(crate) fn send(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment: usize,
        ecn: Option<EcnCodepoint>,
    ) {
        let destination = if self.v6 { to_quinn(to) } else { canonical(to) };
        let per_call = segment.max(1) * self.port.send_segments();
        for part in contents.chunks(per_call) {
            let transmit = Transmit {
                destination,
                ecn,
                contents: part,
                segment_size: (part.len() > segment).then_some(segment),
                src_ip: None,
            };
            if let Err(error) = self.port.try_send(&transmit) {
                tracing::trace!(%to, %error, "not sent from a side socket");
            }
        }
    }

    pub(crate) fn local_port(&self) -> u16 {
        self.port.local_addr().map_or(0, |addr| addr.port())
    }
}

impl Drop for SideSocket {
    fn drop(&mut self) {
        self.closed.notify_one();
    }
}

/// The sockets beside one data socket, and what arrived at them.
#[derive(Debug, Default)]
pub(crate) struct Sides {
    next: AtomicU32,
    open: RwLock<BTreeMap<SocketId, Arc<SideSocket>>>,
    arrived: Mutex<Arrived>,
}

#[derive(Debug, Default)]
struct Arrived {
    batches: VecDeque<(Vec<u8>, RecvMeta)>,
    reader: Option<Waker>,
}

impl Sides {
    /// Opens up to `count` sockets at the data socket's address, any ports.
    pub(crate) fn open(
        &self,
        network: &Network,
        socket: &Arc<DataSocket>,
        count: usize,
    ) -> Vec<Arc<SideSocket>> {
        let Ok(bound) = socket.bound() else { return Vec::new() };
        let any_port = SocketAddr::new(bound.ip(), 0);
        let closed = Arc::new(Notify::new());
        let bind = || -> io::Result<Arc<SideSocket>> {
            let port = network.bind(any_port, SIDE_BUFFER)?;
            let id = SocketId(self.next.fetch_add(1, Relaxed).wrapping_add(1));
            Ok(Arc::new(SideSocket { id, port, v6: bound.is_ipv6(), closed: closed.clone() }))
        };
        let mut group = Vec::with_capacity(count);
        for _ in 0..count {
            match bind() {
                Ok(side) => group.push(side),
                Err(error) => {
                    tracing::debug!(%error, "no more sockets to be had");
                    break;
                }
            }
        }
        self.open.write().extend(group.iter().map(|side| (side.id, side.clone())));
        let weak = group.iter().map(Arc::downgrade).collect();
        tokio::spawn(receive(Arc::downgrade(socket), weak, closed));
        group
    }

    pub(crate) fn get(&self, id: SocketId) -> Option<Arc<SideSocket>> {
        self.open.read().get(&id).cloned()
    }

    pub(crate) fn close(&self, id: SocketId) {
        self.open.write().remove(&id);
    }

    /// Copies the next batch for quinn to the beginning of `buffer`.
    pub(crate) fn take(&self, buffer: &mut [u8]) -> Option<RecvMeta> {
        let mut arrived = self.arrived.lock();
        let (bytes, meta) = arrived.batches.pop_front()?;
        drop(arrived);
        buffer.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        Some(meta)
    }

    /// Wakes the reader once there is something. True: there is already.
    pub(crate) fn wake_when_arrived(&self, waker: &Waker) -> bool {
        let mut arrived = self.arrived.lock();
        if !arrived.reader.as_ref().is_some_and(|reader| reader.will_wake(waker)) {
            arrived.reader = Some(waker.clone());
        }
        !arrived.batches.is_empty()
    }

    /// Leaves a batch for whoever reads the data socket.
    pub(crate) fn give(&self, bytes: &[u8], meta: RecvMeta) {
        let mut arrived = self.arrived.lock();
        if arrived.batches.len() < ARRIVED_MAX {
            arrived.batches.push_back((bytes.to_vec(), meta));
        }
        let reader = arrived.reader.take();
        drop(arrived);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// Reads a group's sockets until all are closed.
async fn receive(socket: Weak<DataSocket>, mut group: Vec<Weak<SideSocket>>, closed: Arc<Notify>) {
    let mut buffer = vec![0; BATCH];
    loop {
        group.retain(|side| side.strong_count() > 0);
        if group.is_empty() {
            return;
        }
        let read = std::future::poll_fn(|cx| poll_group(&socket, &group, &mut buffer, cx));
        tokio::select! {
            biased;
            () = closed.notified() => {}
            () = read => return,
        }
    }
}

/// Takes what has arrived at any of the sockets. Ready once the node is gone.
fn poll_group(
    socket: &Weak<DataSocket>,
    group: &[Weak<SideSocket>],
    buffer: &mut [u8],
    cx: &mut Context<'_>,
) -> Poll<()> {
    let Some(socket) = socket.upgrade() else { return Poll::Ready(()) };
    let mut read = 0;
    for side in group.iter().filter_map(Weak::upgrade) {
        let mut meta = RecvMeta::default();
        let mut bufs = [IoSliceMut::new(buffer)];
        while let Poll::Ready(Ok(received)) = side.port.poll_receive(cx, &mut bufs, &mut meta) {
            if received {
                take_batch(&socket, &side, &bufs[0][..meta.len], &meta);
            }
            read += 1;
            if read == ARRIVED_MAX {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
    Poll::Pending
}

fn take_batch(socket: &DataSocket, side: &SideSocket, batch: &[u8], meta: &RecvMeta) {
    let from = canonical(meta.addr);
    let pair = Pair { socket: side.id, remote: from };
    let Some(first) = batch.first() else { return };
    if !frame::is_frame(*first) {
        let peer = socket.tables.direct.read().get(&pair).cloned();
        let Some(peer) = peer else {
            socket.stats.stranger.fetch_add(1, Relaxed);
            return;
        };
        peer.received(DIRECT);
        peer.direct_received.fetch_add(batch.len() as u64, Relaxed);
        return socket.sides.give(batch, RecvMeta { addr: peer.addr, ..*meta });
    }
    for segment in batch.chunks(meta.stride.max(1)) {
        if segment.first() == Some(&frame::PROBE) {
            socket.take_probe(Path::Direct(pair), segment);
        } else if !observe::take_observed(&socket.tables, from, segment) {
            socket.stats.bad_frame.fetch_add(1, Relaxed);
        }
    }
}
