//! The data socket: quinn's `AsyncUdpSocket` over one socket of the node's network.
//!
//! Out: quinn hands over at most 10 segments at a time; they are collected, per session, into
//! batches of up to [`BATCH_SEGMENTS`] and sent with one system call. A hand-over of fewer than 10
//! means that quinn has nothing more now, so the batch goes at once and nothing waits.
//! In: one GRO batch at a time, sorted segment by segment (see `sort`).

mod sort;

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{RecvMeta, Transmit};
use sluice_path::{PACKET_MAX, Pair, Path, SocketId};
use sluice_proto::frame::HEADER_LEN;
use tokio::sync::Notify;

use crate::knock::PROBE_LEN;
use crate::network::Port;
use crate::pause::Pause;
use crate::peer::{Command, DirectRoute, Outgoing, Peer, Route};
use crate::side::Sides;
use crate::stream::Carried;
use crate::tables::{Tables, canonical, fake_index, to_quinn};
use crate::{Clock, Network};
use sort::Sorter;

/// Segments that quinn hands over at a time when it has more.
const FULL_TRANSMIT: usize = 10;
/// Segments sent with one system call. Up to 40 each one saves CPU; 44 of 1,439 bytes is all that
/// a UDP payload holds.
const BATCH_SEGMENTS: usize = 40;
/// Bytes sent with one system call: the largest UDP payload.
const BATCH_BYTES: usize = 65_507;
/// The relay hears of small packets when they lack so much more: it grants an eighth of it.
const SMALL_STEP: u64 = 32 << 10;
/// Kernel buffers asked for, each way; the system's limit may make them smaller.
const SOCKET_BUFFER: usize = 4 << 20;
/// Receive calls per poll before other tasks get their turn.
const RECEIVES_PER_POLL: usize = 32;
/// Batches that are thrown away at a time: more than the system's buffer holds.
const DISCARDED_MAX: usize = 1 << 16;

/// What the socket dropped, by cause.
#[derive(Debug, Default)]
pub struct SocketStats {
    /// QUIC from addresses that are neither a relay's nor proven.
    pub stranger: AtomicU64,
    /// Frames that were malformed, forged, replayed, or of unknown flows.
    pub bad_frame: AtomicU64,
    /// Packets of sessions that have no path.
    pub no_path: AtomicU64,
    /// Packets that found no room on the stream to their relay.
    pub stream_full: AtomicU64,
    /// Batches of packets that are larger than any path of their session carries: QUIC tries what may
    /// come through, and finds out.
    pub too_large: AtomicU64,
    /// Batches that lay in the system's buffer while the process did not run.
    pub late: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct DataSocket {
    port: Port,
    v6: bool,
    pub(crate) tables: Arc<Tables>,
    pub(crate) stats: SocketStats,
    clock: Clock,
    pub(crate) pause: Pause,
    start: Instant,
    sorter: Mutex<Sorter>,
    /// The kernel refused a send; nobody tries again before it is writable.
    blocked: AtomicBool,
    to_flush: Mutex<Vec<Arc<Peer>>>,
    flush: Arc<Notify>,
    appended: AtomicU64,
    receiver: Mutex<Option<Waker>>,
    pub(crate) carried: Arc<Carried>,
    pub(crate) sides: Sides,
}

impl DataSocket {
    /// Binds `addr` within a tokio runtime.
    pub(crate) fn bind(
        network: &Network,
        addr: SocketAddr,
        tables: Arc<Tables>,
        clock: Clock,
    ) -> io::Result<Self> {
        let port = network.bind(addr, SOCKET_BUFFER)?;
        let start = clock.now();
        Ok(Self {
            port,
            v6: addr.is_ipv6(),
            tables,
            stats: SocketStats::default(),
            clock,
            pause: Pause::default(),
            start,
            sorter: Mutex::default(),
            blocked: AtomicBool::new(false),
            to_flush: Mutex::default(),
            flush: Arc::default(),
            appended: AtomicU64::new(0),
            receiver: Mutex::default(),
            carried: Arc::default(),
            sides: Sides::default(),
        })
    }

    /// Throws away what has arrived by now.
    fn discard(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>]) {
        for _ in 0..DISCARDED_MAX {
            let received = self.port.poll_receive(cx, bufs, &mut RecvMeta::default());
            if !matches!(received, Poll::Ready(Ok(_))) {
                break;
            }
            self.stats.late.fetch_add(1, Relaxed);
        }
        tracing::info!("this process did not run for a while");
    }

    pub(crate) fn bound(&self) -> io::Result<SocketAddr> {
        self.port.local_addr()
    }

    /// A flow was opened: frames that were set aside for it can be had now.
    pub(crate) fn release_held(&self) {
        self.tables.changed();
        if let Some(waker) = self.receiver.lock().take() {
            waker.wake();
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.now().duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn instant(&self, ns: u64) -> Instant {
        self.start + std::time::Duration::from_nanos(ns)
    }

    /// Sends one datagram beside quinn: a probe or a control frame. Lost if the kernel is busy.
    pub(crate) fn send_one(&self, to: SocketAddr, bytes: &[u8]) {
        if let Err((_, error)) = self.send_batch(to, bytes, bytes.len(), None) {
            tracing::trace!(%to, %error, "datagram not sent");
        }
    }

    /// The same, over UDP though a stream leads to that relay.
    pub(crate) fn send_udp(&self, to: SocketAddr, bytes: &[u8]) {
        if let Err((_, error)) = self.kernel_send(to, bytes, bytes.len(), None) {
            tracing::trace!(%to, %error, "datagram not sent");
        }
    }

    /// A probe came from node to node: it is the session's that it names.
    pub(crate) fn take_probe(&self, from: Path, bytes: &[u8]) {
        let fits = (PROBE_LEN..=usize::from(PACKET_MAX)).contains(&bytes.len());
        let session = bytes.get(1..9).filter(|_| fits);
        let session = session.and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        let peer = session.and_then(|s| self.tables.probes.read().get(&s).cloned());
        match peer {
            Some(peer) => peer.probe(from, bytes),
            None => {
                self.stats.stranger.fetch_add(1, Relaxed);
            }
        }
    }

    /// Sends a probe of a session from one of the node's sockets.
    pub(crate) fn send_probe(&self, pair: Pair, bytes: &[u8]) {
        if pair.socket == SocketId::DATA {
            self.send_one(pair.remote, bytes);
        } else if let Some(side) = self.sides.get(pair.socket) {
            side.send(pair.remote, bytes, bytes.len(), None);
        }
    }

    /// Sends a probe of a session through one of its relays.
    pub(crate) fn send_relayed(&self, peer: &Peer, route: &Route, bytes: &[u8]) {
        let Route::Relay { leg, flow, counts } = route else { return };
        let mut out = Vec::with_capacity(HEADER_LEN + bytes.len());
        leg.wrap(*flow, counts, bytes, bytes.len(), &mut out);
        peer.relayed_sent.fetch_add(out.len() as u64, Relaxed);
        self.send_one(leg.relay, &out);
    }

    /// Sends to a node, or to a relay over whatever leads there. Only `WouldBlock` is an error; with
    /// it, how many bytes went before.
    fn send_batch(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment: usize,
        ecn: Option<quinn_udp::EcnCodepoint>,
    ) -> Result<(), (usize, io::Error)> {
        let Some(queue) = self.carried.queue(canonical(to)) else {
            return self.kernel_send(to, contents, segment, ecn);
        };
        // A full queue is a lost packet, as on any path: nobody waits for a slow stream.
        self.stats.stream_full.fetch_add(queue.push(contents, segment), Relaxed);
        Ok(())
    }

    fn kernel_send(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment: usize,
        ecn: Option<quinn_udp::EcnCodepoint>,
    ) -> Result<(), (usize, io::Error)> {
        let destination = if self.v6 { to_quinn(to) } else { canonical(to) };
        let per_call = segment.max(1) * self.port.send_segments();
        for (i, part) in contents.chunks(per_call).enumerate() {
            let transmit = Transmit {
                destination,
                ecn,
                contents: part,
                segment_size: (part.len() > segment).then_some(segment),
                src_ip: None,
            };
            match self.port.try_send(&transmit) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.store(true, Relaxed);
                    return Err((i * per_call, e));
                }
                // A route may be missing or a neighbour unreachable: that is silence on a path,
                // and the session's agent deals with silence.
                Err(error) => tracing::trace!(%destination, %error, "send failed"),
            }
        }
        Ok(())
    }

    /// Sends a session's batch. On `WouldBlock` what did not go is kept.
    fn flush_batch(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        let batch = &mut outgoing.batch;
        if batch.bytes.is_empty() {
            return Ok(());
        }
        if let Some(Route::Direct(DirectRoute { side: Some(side), remote })) = &outgoing.route {
            side.send(*remote, &batch.bytes, batch.segment, batch.ecn);
        } else if let Some(route) = &outgoing.route {
            let sent = self.send_batch(route.destination(), &batch.bytes, batch.segment, batch.ecn);
            if let Err((sent, error)) = sent {
                batch.bytes.drain(..sent);
                batch.segments -= sent / batch.segment.max(1);
                return Err(error);
            }
        }
        batch.bytes.clear();
        batch.segments = 0;
        batch.closed = false;
        Ok(())
    }

    /// Puts a session on another path, of this number. What was batched for the old one goes out on
    /// it.
    pub(crate) fn set_route(&self, peer: &Peer, path: u32, route: Option<Route>) {
        self.change_route(peer, route, false);
        peer.watch(path);
    }

    /// Gives a session its first route, of this number. Of the packets that were kept for it, all
    /// but the first `passed_on` go out on it.
    pub(crate) fn begin_route(&self, peer: &Peer, path: u32, route: Route, passed_on: usize) {
        let kept = peer.outgoing.lock().first.take().unwrap_or_default();
        self.set_route(peer, path, Some(route.clone()));
        for packet in kept.iter().skip(passed_on) {
            self.send_relayed(peer, &route, packet);
        }
    }

    /// Hands packets of a session to quinn that came with its knock.
    pub(crate) fn take_first(&self, peer: &Peer, packets: &[Bytes]) {
        for packet in packets {
            let (addr, len) = (peer.addr, packet.len());
            let meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
            self.sides.give(packet, meta);
        }
    }

    /// Lets a session's packets take another path for now; the one in use stays watched.
    pub(crate) fn try_route(&self, peer: &Peer, route: Route) {
        self.change_route(peer, Some(route), true);
    }

    /// Ends what [`Self::try_route`] began.
    pub(crate) fn return_route(&self, peer: &Peer, route: Route) {
        self.change_route(peer, Some(route), false);
    }

    fn change_route(&self, peer: &Peer, route: Option<Route>, on_trial: bool) {
        let mut outgoing = peer.outgoing.lock();
        let _ = self.flush_batch(&mut outgoing);
        outgoing.batch.bytes.clear();
        outgoing.batch.segments = 0;
        outgoing.batch.closed = false;
        outgoing.route = route;
        outgoing.on_trial = on_trial;
    }

    fn send_session(&self, peer: &Arc<Peer>, transmit: &Transmit<'_>) -> io::Result<()> {
        let len = transmit.contents.len();
        let segment = transmit.segment_size.unwrap_or(len).max(1);
        let segments = len.div_ceil(segment);
        if segment > peer.packet_max.load(Relaxed).into() {
            self.stats.too_large.fetch_add(1, Relaxed);
            return Ok(());
        }
        let mut outgoing = peer.outgoing.lock();
        let outgoing = &mut *outgoing;
        let header = match &outgoing.route {
            Some(Route::Relay { .. }) => HEADER_LEN,
            Some(Route::Direct(_)) => 0,
            None => {
                if !peer.keep(&mut outgoing.first, transmit.contents, segment) {
                    self.stats.no_path.fetch_add(1, Relaxed);
                }
                return Ok(());
            }
        };
        let on_wire = len + segments * header;
        let batch = &outgoing.batch;
        let fits = !batch.closed
            && batch.segment == segment + header
            && batch.ecn == transmit.ecn
            && batch.segments + segments <= BATCH_SEGMENTS
            && batch.bytes.len() + on_wire <= BATCH_BYTES;
        if !batch.bytes.is_empty() && !fits {
            self.flush_batch(outgoing)?;
        }
        self.append(peer, outgoing, transmit, segment, segments);
        let batch = &outgoing.batch;
        let more_may_come = segments >= FULL_TRANSMIT
            && !batch.closed
            && batch.segments + FULL_TRANSMIT <= BATCH_SEGMENTS;
        if more_may_come || self.flush_batch(outgoing).is_err() {
            self.flush_later(peer, outgoing);
        }
        Ok(())
    }

    fn append(
        &self,
        peer: &Peer,
        outgoing: &mut Outgoing,
        transmit: &Transmit<'_>,
        segment: usize,
        segments: usize,
    ) {
        let batch = &mut outgoing.batch;
        let before = batch.bytes.len();
        let lacking = peer.lacking.take();
        match &outgoing.route {
            Some(Route::Relay { leg, flow, counts }) => {
                if lacking > 0 && counts.count_small(lacking) % SMALL_STEP < lacking {
                    peer.command(Command::Grown { relay: leg.relay, flow: *flow });
                }
                leg.wrap(*flow, counts, transmit.contents, segment, &mut batch.bytes);
                batch.segment = segment + HEADER_LEN;
                peer.relayed_sent.fetch_add((batch.bytes.len() - before) as u64, Relaxed);
            }
            Some(Route::Direct(_)) => {
                batch.bytes.extend_from_slice(transmit.contents);
                batch.segment = segment;
                peer.direct_sent.fetch_add((batch.bytes.len() - before) as u64, Relaxed);
            }
            None => return,
        }
        batch.segments += segments;
        batch.ecn = transmit.ecn;
        batch.closed = !transmit.contents.len().is_multiple_of(segment);
        self.appended.fetch_add(1, Relaxed);
        if !outgoing.on_trial {
            peer.sent(|| self.now_ns());
        }
    }

    fn flush_later(&self, peer: &Arc<Peer>, outgoing: &mut Outgoing) {
        if !outgoing.queued {
            outgoing.queued = true;
            self.to_flush.lock().push(peer.clone());
            self.flush.notify_one();
        }
    }

    /// Sends batches that wait for more, once quinn had its chance to add to them; until the
    /// socket is dropped.
    pub(crate) fn run_flusher(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let (flush, socket) = (self.flush.clone(), Arc::downgrade(self));
        async move {
            loop {
                flush.notified().await;
                let Some(socket) = socket.upgrade() else { return };
                socket.flush_all().await;
            }
        }
    }

    async fn flush_all(&self) {
        for _ in 0..2 {
            let before = self.appended.load(Relaxed);
            tokio::task::yield_now().await;
            if self.appended.load(Relaxed) == before {
                break;
            }
        }
        let peers = std::mem::take(&mut *self.to_flush.lock());
        for peer in peers {
            while self.flush_queued(&peer).is_err() {
                if self.port.writable().await.is_err() {
                    break;
                }
            }
        }
    }

    fn flush_queued(&self, peer: &Peer) -> io::Result<()> {
        let mut outgoing = peer.outgoing.lock();
        self.flush_batch(&mut outgoing)?;
        outgoing.queued = false;
        Ok(())
    }
}

impl Drop for DataSocket {
    fn drop(&mut self) {
        // The flusher ends.
        self.flush.notify_one();
    }
}

impl AsyncUdpSocket for DataSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, wait: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(index) = fake_index(&transmit.destination) else {
            let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
            let to = transmit.destination;
            return self
                .send_batch(to, transmit.contents, segment, transmit.ecn)
                .map_err(|(_, error)| error);
        };
        let peer = self.tables.peers.read().get(&index).cloned();
        match peer {
            Some(peer) => self.send_session(&peer, transmit),
            None => {
                self.stats.no_path.fetch_add(1, Relaxed);
                Ok(())
            }
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.pause.is_over(self.now_ns()) {
            self.discard(cx, bufs);
        }
        let mut sorter = self.sorter.lock();
        sorter.refresh(self);
        let waiting = sorter.take_waiting(bufs, meta);
        if waiting > 0 {
            return Poll::Ready(Ok(waiting));
        }
        for _ in 0..RECEIVES_PER_POLL {
            if let Some(one) = self.carried.take(&mut bufs[0], cx) {
                let runs = sorter.sort_streamed(self, bufs, &one, meta);
                if runs > 0 {
                    return Poll::Ready(Ok(runs));
                }
                continue;
            }
            let mut one = RecvMeta::default();
            let Poll::Ready(received) = self.port.poll_receive(cx, bufs, &mut one) else {
                sorter.wake_when_released(cx.waker(), self);
                if self.sides.wake_when_arrived(cx.waker())
                    && let Some(one) = self.sides.take(&mut bufs[0])
                {
                    meta[0] = one;
                    cx.waker().wake_by_ref();
                    return Poll::Ready(Ok(1));
                }
                return Poll::Pending;
            };
            if received? {
                let runs = sorter.sort(self, bufs, &one, meta);
                if runs > 0 {
                    return Poll::Ready(Ok(runs));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // Always IPv6, since the made-up addresses of sessions are.
        self.port.local_addr().map(to_quinn)
    }

    fn max_transmit_segments(&self) -> usize {
        FULL_TRANSMIT
    }

    fn max_receive_segments(&self) -> usize {
        self.port.receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.port.may_fragment()
    }
}

type Wait = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Lets one of quinn's tasks wait for the kernel.
struct Poller {
    socket: Arc<DataSocket>,
    wait: Option<Wait>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Poller")
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.socket.blocked.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let socket = self.socket.clone();
        let wait =
            self.wait.get_or_insert_with(|| Box::pin(async move { socket.port.writable().await }));
        let done = ready!(wait.as_mut().poll(cx));
        self.wait = None;
        self.socket.blocked.store(false, Relaxed);
        Poll::Ready(done)
    }
}
