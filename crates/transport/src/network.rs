//! Where datagram sockets come from: the kernel, or another network such as a simulator's.

use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::AsyncUdpSocket;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Anywhere on the Internet, as far as the choice of a route goes (RFC 5737, RFC 3849).
const SOMEWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// A network other than the kernel's, as one host on it sees it.
pub trait Fabric: Debug + Send + Sync {
    /// Opens a datagram socket; port 0 lets the network choose. It is closed when dropped, and never
    /// says that it is not writable.
    ///
    /// # Errors
    /// When the address is not the host's or the port is taken.
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// The address from which `remote` would be reached; `None` if no route leads there.
    fn local_towards(&self, remote: SocketAddr) -> Option<IpAddr>;

    /// The host's addresses, without loopback.
    fn local_addrs(&self) -> Vec<IpAddr>;
}

/// The network that a node or a relay runs on.
#[derive(Debug, Clone, Default)]
pub enum Network {
    /// The kernel's sockets, with its offloads.
    #[default]
    Kernel,
    /// Another one.
    Other(Arc<dyn Fabric>),
}

impl Network {
    /// The local address from which `remote` would be reached. Nothing is sent.
    #[must_use]
    pub fn local_towards(&self, remote: SocketAddr) -> Option<IpAddr> {
        match self {
            Self::Kernel => kernel_towards(remote),
            Self::Other(fabric) => fabric.local_towards(remote),
        }
    }

    /// The host's own addresses: from the kernel, those that lead to the Internet over IPv4 and IPv6.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<IpAddr> {
        match self {
            Self::Kernel => SOMEWHERE.into_iter().filter_map(kernel_towards).collect(),
            Self::Other(fabric) => fabric.local_addrs(),
        }
    }

    /// Opens a datagram socket with kernel buffers of `buffer` bytes each way, if the system allows.
    pub(crate) fn bind(&self, addr: SocketAddr, buffer: usize) -> io::Result<Port> {
        match self {
            Self::Kernel => Port::kernel(addr, buffer),
            Self::Other(fabric) => fabric.bind(addr).map(Port::Other),
        }
    }
}

fn kernel_towards(remote: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if remote.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = std::net::UdpSocket::bind(any).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// One datagram socket.
#[derive(Debug)]
pub(crate) enum Port {
    Kernel { io: UdpSocket, state: UdpSocketState },
    Other(Arc<dyn AsyncUdpSocket>),
}

impl Port {
    fn kernel(addr: SocketAddr, buffer: usize) -> io::Result<Self> {
        let domain = if addr.is_ipv6() { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
        let socket =
            socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        // Best effort: the system caps both.
        let _ = socket.set_recv_buffer_size(buffer);
        let _ = socket.set_send_buffer_size(buffer);
        socket.bind(&addr.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self::Kernel { io: UdpSocket::from_std(socket.into())?, state })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Kernel { io, .. } => io.local_addr(),
            Self::Other(socket) => socket.local_addr(),
        }
    }

    /// Segments that one call may send.
    pub(crate) fn send_segments(&self) -> usize {
        match self {
            Self::Kernel { state, .. } => state.max_gso_segments().max(1),
            Self::Other(socket) => socket.max_transmit_segments().max(1),
        }
    }

    /// Segments that one call may receive.
    pub(crate) fn receive_segments(&self) -> usize {
        match self {
            Self::Kernel { state, .. } => state.gro_segments().max(1),
            Self::Other(socket) => socket.max_receive_segments().max(1),
        }
    }

    pub(crate) fn may_fragment(&self) -> bool {
        match self {
            Self::Kernel { state, .. } => state.may_fragment(),
            Self::Other(socket) => socket.may_fragment(),
        }
    }

    pub(crate) fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self {
            Self::Kernel { io, state } => {
                io.try_io(Interest::WRITABLE, || state.try_send(io.into(), transmit))
            }
            Self::Other(socket) => socket.try_send(transmit),
        }
    }

    /// Receives one batch, into the first of `bufs`. An error is the socket's end; `Ok(false)` that
    /// there was nothing after all.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut RecvMeta,
    ) -> Poll<io::Result<bool>> {
        let meta = std::slice::from_mut(meta);
        // One buffer at a time: with more, a call brings so much that the cache runs over.
        let received = match self {
            Self::Kernel { io, state } => {
                ready!(io.poll_recv_ready(cx))?;
                io.try_io(Interest::READABLE, || state.recv(io.into(), &mut bufs[..1], meta))
            }
            Self::Other(socket) => ready!(socket.poll_recv(cx, &mut bufs[..1], meta)),
        };
        Poll::Ready(Ok(match received {
            Ok(count) => count > 0,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            // What an ICMP message left behind is silence on a path, not the socket's end.
            Err(error) => {
                tracing::trace!(%error, "receive failed");
                false
            }
        }))
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Kernel { io, .. } => io.writable().await,
            Self::Other(_) => Ok(()),
        }
    }
}
