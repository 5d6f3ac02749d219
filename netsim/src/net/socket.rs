//! Datagram sockets on the in-memory network.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{RecvMeta, Transmit};
use sluice_transport::Fabric;

use super::Packet;
use super::world::{Local, Net, PlaceId};

/// Bytes that wait for a program that does not read; more are dropped, as the kernel does.
const BUFFER: usize = 4 << 20;
/// Datagrams that one call may send.
const SEND_SEGMENTS: usize = 64;

#[derive(Debug, Default)]
struct Inbox {
    packets: VecDeque<Packet>,
    bytes: usize,
    waker: Option<Waker>,
}

/// What the network keeps of a bound socket.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    inbox: Arc<Mutex<Inbox>>,
    /// The address that it is bound to; unspecified for all.
    pub(super) ip: IpAddr,
}

impl Bound {
    pub(super) fn new(ip: IpAddr) -> Self {
        Self { inbox: Arc::default(), ip }
    }

    /// False: there was no room.
    pub(super) fn deliver(&self, packet: Packet) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.bytes + packet.bytes.len() > BUFFER {
            return false;
        }
        inbox.bytes += packet.bytes.len();
        inbox.packets.push_back(packet);
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
        true
    }
}

/// One host's view of the network.
#[derive(Debug, Clone)]
pub(super) struct HostFabric {
    pub(super) net: Net,
    pub(super) host: PlaceId,
}

impl Fabric for HostFabric {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let (local, bound) = self.net.bind(self.host, addr)?;
        Ok(Arc::new(Socket { fabric: self.clone(), local, inbox: bound.inbox }))
    }

    fn local_towards(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.net.addresses(self.host).into_iter().find(|ip| ip.is_ipv4() == remote.is_ipv4())
    }

    fn local_addrs(&self) -> Vec<IpAddr> {
        self.net.addresses(self.host)
    }
}

#[derive(Debug)]
struct Socket {
    fabric: HostFabric,
    local: Local,
    inbox: Arc<Mutex<Inbox>>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.fabric.net.unbind(self.fabric.host, self.local);
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysReady)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let dst = canonical(transmit.destination);
        for part in transmit.contents.chunks(segment) {
            let bytes = bytes::Bytes::copy_from_slice(part);
            let fabric = &self.fabric;
            fabric.net.send(fabric.host, self.local, transmit.src_ip, dst, transmit.ecn, bytes);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock();
        let mut received = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(packet) = inbox.packets.pop_front() else { break };
            let len = packet.bytes.len();
            inbox.bytes -= len;
            buf[..len].copy_from_slice(&packet.bytes);
            let addr = if self.local.addr.is_ipv6() { mapped(packet.src) } else { packet.src };
            let dst_ip = Some(packet.dst.ip());
            *meta = RecvMeta { addr, len, stride: len, ecn: packet.ecn, dst_ip };
            received += 1;
        }
        if received == 0 {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local.addr)
    }

    fn max_transmit_segments(&self) -> usize {
        SEND_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

#[derive(Debug)]
struct AlwaysReady;

impl UdpPoller for AlwaysReady {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
