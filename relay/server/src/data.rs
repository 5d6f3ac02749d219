//! Forwarding: what is done with each batch, and the threads that do it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quinn_udp::{EcnCodepoint, RecvMeta};
use sluice_relay_core::{Dropped, Event, Forwarder, Output, RelayPort, ReturnAddress, StreamId};
use sluice_transport::Clock;
use tokio::sync::mpsc;

use crate::endpoint::QuicQueue;
use crate::rest::Rest;
use crate::sockets::RelaySocket;
use crate::tcp::StreamTable;

/// Room for the largest batch that the kernel hands over.
const BUFFER: usize = 64 * 1024;

/// What one thread did. Apart, so that threads do not write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ThreadCounts {
    /// Frame bytes sent on.
    pub(crate) forwarded: AtomicU64,
    /// Batches received.
    pub(crate) batches: AtomicU64,
}

/// What forwards: everything that a batch needs on its way.
#[derive(Debug, Clone)]
pub(crate) struct Forwarding {
    pub(crate) socket: Arc<RelaySocket>,
    /// The alternate port's socket, if there is one.
    pub(crate) alternate: Option<Arc<RelaySocket>>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) quic: Arc<QuicQueue>,
    pub(crate) streams: Arc<StreamTable>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) counts: Arc<ThreadCounts>,
    pub(crate) clock: Clock,
}

/// One forwarding thread: everything it needs.
pub(crate) struct DataThread {
    pub(crate) forwarding: Forwarding,
    /// The port at which it receives.
    pub(crate) port: RelayPort,
    pub(crate) stop: Arc<AtomicBool>,
    /// Whether the sockets are bound to every address of the host.
    pub(crate) any_address: bool,
}

impl DataThread {
    /// Forwards until told to stop.
    pub(crate) fn run(self) {
        let mut buffer = vec![0; BUFFER];
        let clock = &self.forwarding.clock;
        let mut rest = Rest::new(clock.now(), self.socket().buffer());
        let mut resting = false;
        while !self.stop.load(Ordering::Relaxed) {
            match self.socket().receive(&mut buffer) {
                Ok(meta) => {
                    self.batch(&meta, &mut buffer[..meta.len]);
                    rest.took(meta.len);
                    if !resting && rest.pays(clock.now()) {
                        resting = self.socket().set_blocking(false);
                    }
                }
                Err(e) if is_pause(&e) && resting => match rest.empty(clock.now()) {
                    Some(rest) => std::thread::sleep(rest),
                    None => resting = !self.socket().set_blocking(true),
                },
                Err(e) if is_pause(&e) => {}
                Err(error) => {
                    // An ICMP error of an earlier send, or the like: not this socket's end.
                    tracing::debug!(%error, "failed to receive");
                }
            }
        }
    }

    /// Forwards on a network other than the kernel's until it is dropped.
    pub(crate) async fn run_as_task(self) {
        let mut buffer = vec![0; BUFFER];
        while let Ok(meta) = self.socket().received(&mut buffer).await {
            self.batch(&meta, &mut buffer[..meta.len]);
        }
    }

    fn socket(&self) -> &RelaySocket {
        match (self.port, &self.forwarding.alternate) {
            (RelayPort::Alternate, Some(socket)) => socket,
            (RelayPort::Alternate, None) | (RelayPort::Main, _) => &self.forwarding.socket,
        }
    }

    fn batch(&self, meta: &RecvMeta, batch: &mut [u8]) {
        let local = meta.dst_ip.filter(|_| self.any_address);
        let from = ReturnAddress { remote: meta.addr, local };
        if StreamId::of(meta.addr.ip()).is_some() || from.stream().is_some() {
            // Whoever writes such an address wants to be taken for a stream.
            let count = meta.len.div_ceil(meta.stride.max(1)) as u64;
            return self.forwarding.forwarder.drops().add(Dropped::Source, count);
        }
        match self.port {
            RelayPort::Main => self.forwarding.batch(from, meta, batch),
            RelayPort::Alternate => self.forwarding.answer_batch(from, meta, batch),
        }
    }
}

impl Forwarding {
    /// Forwards a batch that came from `from`, which QUIC knows as `meta.addr`.
    pub(crate) fn batch(&self, from: ReturnAddress, meta: &RecvMeta, batch: &mut [u8]) {
        let mut forwarded = 0;
        self.forwarder.forward(self.clock.now(), from, batch, meta.stride, &mut |output| {
            match output {
                Output::Frames { to, bytes, segment } => {
                    if self.send(to, bytes, segment, meta.ecn) {
                        forwarded += bytes.len() as u64;
                    }
                }
                Output::Answer { to, port, bytes } => self.answer(to, port, bytes),
                Output::Quic { bytes, segment } => {
                    let dropped = self.quic.push(meta, bytes, segment);
                    if dropped != 0 {
                        self.forwarder.drops().add(Dropped::QuicQueue, dropped);
                    }
                }
                Output::Event(event) => {
                    // Full: the control plane hears the next one.
                    let _ = self.events.try_send(event);
                }
            }
        });
        self.counts.batches.fetch_add(1, Ordering::Relaxed);
        self.counts.forwarded.fetch_add(forwarded, Ordering::Relaxed);
    }

    /// Answers what came in at the alternate port.
    fn answer_batch(&self, from: ReturnAddress, meta: &RecvMeta, batch: &[u8]) {
        let (now, stride) = (self.clock.now(), meta.stride);
        self.forwarder.forward_alternate(now, from, batch, stride, &mut |output| {
            if let Output::Answer { to, port, bytes } = output {
                self.answer(to, port, bytes);
            }
        });
    }

    fn answer(&self, to: ReturnAddress, port: RelayPort, bytes: &[u8]) {
        match port {
            RelayPort::Main => {
                self.send(to, bytes, bytes.len(), None);
            }
            RelayPort::Alternate => {
                let Some(socket) = &self.alternate else { return };
                if socket.send(to, bytes, bytes.len(), None).is_err() {
                    self.forwarder.drops().add(Dropped::SendBuffer, 1);
                }
            }
        }
    }

    fn send(
        &self,
        to: ReturnAddress,
        bytes: &[u8],
        segment: usize,
        ecn: Option<EcnCodepoint>,
    ) -> bool {
        if let Some(id) = to.stream() {
            return self.streams.push(id, bytes, segment);
        }
        let sent = self.socket.send(to, bytes, segment, ecn).is_ok();
        if !sent {
            let count = bytes.len().div_ceil(segment.max(1)) as u64;
            self.forwarder.drops().add(Dropped::SendBuffer, count);
        }
        sent
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
