//! Relays that a stream leads to for now, and what came over the streams.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, RwLock};
use quinn_udp::RecvMeta;

use super::StreamQueue;

/// Bytes that wait for quinn. More are left to TCP, which holds the relay back.
const ARRIVED_BYTES_MAX: usize = 512 << 10;

/// Which relays are reached over streams: looked at for each batch that is sent.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// Whether there is any.
    any: AtomicBool,
    queues: RwLock<HashMap<SocketAddr, Arc<StreamQueue>>>,
    arrived: Mutex<Arrived>,
}

#[derive(Debug, Default)]
struct Arrived {
    /// The relay, packets, and the size of each but the last.
    batches: VecDeque<(SocketAddr, Vec<u8>, usize)>,
    bytes: usize,
    /// Who takes them out.
    taker: Option<Waker>,
    /// Streams that wait for room.
    givers: Vec<Waker>,
}

impl Carried {
    /// From now on packets to `relay` go into `queue`.
    pub(crate) fn begin(&self, relay: SocketAddr, queue: Arc<StreamQueue>) {
        let mut queues = self.queues.write();
        queues.insert(relay, queue);
        self.any.store(true, Relaxed);
    }

    /// From now on packets to `relay` go over UDP, unless another queue took this one's place.
    pub(crate) fn end(&self, relay: SocketAddr, queue: &Arc<StreamQueue>) {
        let mut queues = self.queues.write();
        if queues.get(&relay).is_some_and(|q| Arc::ptr_eq(q, queue)) {
            queues.remove(&relay);
        }
        self.any.store(!queues.is_empty(), Relaxed);
    }

    /// Where packets to `addr` go instead, if it is a relay that a stream leads to.
    pub(crate) fn queue(&self, addr: SocketAddr) -> Option<Arc<StreamQueue>> {
        if !self.any.load(Relaxed) {
            return None;
        }
        self.queues.read().get(&addr).cloned()
    }

    /// Ready when there is room for what a stream brings; else wakes the stream's task later.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut arrived = self.arrived.lock();
        if arrived.bytes < ARRIVED_BYTES_MAX {
            return Poll::Ready(());
        }
        if !arrived.givers.iter().any(|giver| giver.will_wake(cx.waker())) {
            arrived.givers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Takes packets of `stride` bytes that came from `relay`.
    pub(crate) fn give(&self, relay: SocketAddr, packets: &[u8], stride: usize) {
        let mut arrived = self.arrived.lock();
        arrived.bytes += packets.len();
        arrived.batches.push_back((relay, packets.to_vec(), stride));
        let taker = arrived.taker.take();
        drop(arrived);
        if let Some(taker) = taker {
            taker.wake();
        }
    }

    /// Copies the next batch to the beginning of `buffer`, as if it had come over UDP. With none,
    /// wakes the task once there is.
    pub(crate) fn take(&self, buffer: &mut [u8], cx: &Context<'_>) -> Option<RecvMeta> {
        let mut arrived = self.arrived.lock();
        let Some((addr, mut packets, stride)) = arrived.batches.pop_front() else {
            if !arrived.taker.as_ref().is_some_and(|taker| taker.will_wake(cx.waker())) {
                arrived.taker = Some(cx.waker().clone());
            }
            return None;
        };
        let len = packets.len();
        if len > buffer.len() {
            let rest = packets.split_off(buffer.len() / stride * stride);
            // Without room for one packet quinn could not take it over UDP either.
            if !packets.is_empty() {
                arrived.batches.push_front((addr, rest, stride));
                arrived.bytes += len - packets.len();
            }
        }
        arrived.bytes -= len;
        let givers = std::mem::take(&mut arrived.givers);
        drop(arrived);
        givers.into_iter().for_each(Waker::wake);
        let len = packets.len();
        buffer[..len].copy_from_slice(&packets);
        Some(RecvMeta { addr, len, stride, ecn: None, dst_ip: None })
    }
}
