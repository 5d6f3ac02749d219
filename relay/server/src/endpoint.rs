//! The QUIC endpoint of the control connections, fed by the forwarding threads.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use aws_lc_rs::hmac;
use bytes::Bytes;
use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, ServerConfig, TransportConfig, UdpPoller, VarInt};
use sluice_proto::{ALPN_RELAY, Keypair};
use sluice_relay_core::{Limits, ReturnAddress, StreamId};
use sluice_transport::{ConnectionIds, ResetKey, TokenKey};

use crate::config::{RelayConfig, RelayError};
use crate::sockets::RelaySocket;
use crate::tcp::StreamTable;

/// QUIC packets that wait for the endpoint.
const QUEUE_MAX: usize = 4096;
/// Largest QUIC packet that is taken: quinn's own bound.
const PACKET_MAX: usize = 1472;
/// Random bytes of a connection id.
const ID_NONCE: usize = 8;
/// Handshakes at once.
const INCOMING_MAX: usize = 1024;
/// Streams that a client may open: it needs one. A server that allows 10,000 keeps 700 KB ready.
const STREAMS_MAX: u32 = 2;
/// Bytes that a client may have under way on its control stream, and in all.
const STREAM_WINDOW: u32 = 16 * 1024;
/// Bytes of vouchers and claims that wait to be read, or to be sent.
const DATAGRAM_BUFFER: usize = 16 * 1024;

struct Packet {
    bytes: Bytes,
    meta: RecvMeta,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Packet>,
    waker: Option<Waker>,
    /// Gone once the relay stops, so that the port is free though a connection lingers.
    socket: Option<Arc<RelaySocket>>,
}

/// The way of QUIC packets from the threads to the endpoint, and back out.
pub(crate) struct QuicQueue {
    queue: Mutex<Queue>,
    streams: Arc<StreamTable>,
    address: SocketAddr,
}

impl std::fmt::Debug for QuicQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicQueue").field("address", &self.address).finish_non_exhaustive()
    }
}

impl QuicQueue {
    pub(crate) fn new(
        socket: Arc<RelaySocket>,
        streams: Arc<StreamTable>,
        address: SocketAddr,
    ) -> Self {
        let queue = Queue { socket: Some(socket), ..Queue::default() };
        Self { queue: Mutex::new(queue), streams, address }
    }

    /// Hands received packets to the endpoint; returns how many found no room.
    pub(crate) fn push(&self, meta: &RecvMeta, bytes: &[u8], segment: usize) -> u64 {
        let mut dropped = 0;
        let mut queue = self.queue.lock();
        for packet in bytes.chunks(segment) {
            if queue.packets.len() >= QUEUE_MAX || packet.len() > PACKET_MAX {
                dropped += 1;
                continue;
            }
            let meta = RecvMeta { len: packet.len(), stride: packet.len(), ..*meta };
            queue.packets.push_back(Packet { bytes: Bytes::copy_from_slice(packet), meta });
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        dropped
    }

    /// Lets go of the socket: nothing is sent from now on.
    pub(crate) fn close(&self) {
        self.queue.lock().socket = None;
    }
}

impl AsyncUdpSocket for QuicQueue {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysReady)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(socket) = self.queue.lock().socket.clone() else { return Ok(()) };
        let to = ReturnAddress { remote: transmit.destination, local: transmit.src_ip };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        // A full buffer is a lost packet: quinn sends it again.
        if let Some(id) = StreamId::of(transmit.destination.ip()) {
            self.streams.push(id, transmit.contents, segment);
            return Ok(());
        }
        let _ = socket.send(to, transmit.contents, segment, transmit.ecn);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.queue.lock();
        let mut received = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(packet) = queue.packets.pop_front() else { break };
            buf[..packet.bytes.len()].copy_from_slice(&packet.bytes);
            *meta = packet.meta;
            received += 1;
        }
        if received == 0 {
            queue.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    /// One at a time: control messages are small, and quinn keeps a buffer of this many packets
    /// for each connection.
    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysReady;

impl UdpPoller for AlwaysReady {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The endpoint over `socket`. Must be called within a tokio runtime.
pub(crate) fn start(
    socket: Arc<QuicQueue>,
    config: &RelayConfig,
) -> Result<quinn::Endpoint, RelayError> {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &config.reset_key);
    // A reset is sent only for connection ids that are our own: after a restart too.
    let derived = hmac::sign(&secret, b"sluice connection ids");
    let word = |at: usize| {
        u64::from_be_bytes(derived.as_ref()[at..at + 8].try_into().expect("8 of 32 bytes"))
    };
    let ids = ConnectionIds::<ID_NONCE>::new((word(0), word(8)), config.random.clone());
    let reset_key = Arc::new(ResetKey::new(&config.reset_key));
    let mut endpoint = EndpointConfig::new(reset_key);
    endpoint
        .grease_quic_bit(false)
        .rng_seed(Some(config.random.bytes()))
        .cid_generator(move || Box::new(ids.clone()));
    let mut server = server_config(&config.keypair, &config.limits)?;
    // A client that holds a Retry's token goes on with it after a restart.
    let tokens = TokenKey::new(b"sluice retry tokens", &config.reset_key);
    server.token_key(Arc::new(tokens));
    server.time_source(config.clock.time_source());
    let runtime = config.clock.runtime();
    quinn::Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, runtime)
        .map_err(|e| RelayError::System("start the QUIC endpoint", e))
}

fn server_config(keypair: &Keypair, limits: &Limits) -> Result<ServerConfig, RelayError> {
    let crypto = sluice_transport::server_config(keypair, ALPN_RELAY)
        .map_err(|e| RelayError::Certificate(e.to_string()))?;
    let mut config = ServerConfig::with_crypto(crypto);
    config.max_incoming(INCOMING_MAX).transport_config(Arc::new(transport(limits)));
    Ok(config)
}

fn transport(limits: &Limits) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = limits.keepalive.try_into().expect("a keepalive is far below 2^62 ms");
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(STREAM_WINDOW.into())
        .send_window(u64::from(STREAM_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(idle));
    transport
}
