//! The port's sockets: one per thread.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use quinn::AsyncUdpSocket;
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_relay_core::ReturnAddress;
use sluice_transport::Network;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::RelayError;
use crate::steer::steer_frames;

/// Kernel buffer asked for, each way: some milliseconds at 10 Gbit/s. The kernel may give less.
const KERNEL_BUFFER: usize = 4 * 1024 * 1024;
/// A thread looks this often whether it should stop.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(200);
/// A full send buffer is waited for this long (the kernel rounds up to its tick), then the batch
/// is dropped: the packets behind it are of other flows.
const SEND_TIMEOUT: Duration = Duration::from_millis(1);

/// One UDP socket with its offloads.
#[derive(Debug)]
pub(crate) enum RelaySocket {
    /// The kernel's: a thread receives.
    Kernel(UdpSocket, UdpSocketState),
    /// Another network's: a task receives.
    Other(Arc<dyn AsyncUdpSocket>),
}

impl RelaySocket {
    fn new(socket: UdpSocket) -> Result<Self, RelayError> {
        let system = |what| move |e| RelayError::System(what, e);
        let state = UdpSocketState::new((&socket).into())
            .map_err(system("set the options of the relay's socket"))?;
        // The kernel may give less, and says nothing.
        let _ = state.set_recv_buffer_size((&socket).into(), KERNEL_BUFFER);
        let _ = state.set_send_buffer_size((&socket).into(), KERNEL_BUFFER);
        socket.set_nonblocking(false).map_err(system("make the relay's socket blocking"))?;
        socket
            .set_read_timeout(Some(RECEIVE_TIMEOUT))
            .and_then(|()| socket.set_write_timeout(Some(SEND_TIMEOUT)))
            .map_err(system("set the timeouts of the relay's socket"))?;
        Ok(Self::Kernel(socket, state))
    }

    /// Bytes that the kernel keeps until they are received, its own overhead included.
    pub(crate) fn buffer(&self) -> usize {
        match self {
            Self::Kernel(socket, state) => state.recv_buffer_size(socket.into()).unwrap_or(0),
            Self::Other(_) => 0,
        }
    }

    /// Whether [`Self::receive`] waits for a batch, from now on. Returns false if it could not be set.
    pub(crate) fn set_blocking(&self, blocking: bool) -> bool {
        let Self::Kernel(socket, _) = self else { return false };
        socket.set_nonblocking(!blocking).is_ok()
    }

    /// Receives one batch from the kernel: its length, stride, source and ECN bits.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] when it has none, or none came within [`RECEIVE_TIMEOUT`].
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<RecvMeta> {
        let Self::Kernel(socket, state) = self else { return Err(ErrorKind::Unsupported.into()) };
        let mut meta = [RecvMeta::default()];
        let mut buffers = [io::IoSliceMut::new(buffer)];
        state.recv(socket.into(), &mut buffers, &mut meta)?;
        Ok(meta[0])
    }

    /// The same on another network.
    pub(crate) async fn received(&self, buffer: &mut [u8]) -> io::Result<RecvMeta> {
        let Self::Other(socket) = self else { return Err(ErrorKind::Unsupported.into()) };
        let mut meta = [RecvMeta::default()];
        let mut buffers = [io::IoSliceMut::new(buffer)];
        std::future::poll_fn(|cx| socket.poll_recv(cx, &mut buffers, &mut meta)).await?;
        Ok(meta[0])
    }

    /// Sends segments of `segment` bytes, the last may be shorter.
    ///
    /// # Errors
    /// Only when the send buffer stayed full.
    pub(crate) fn send(
        &self,
        to: ReturnAddress,
        bytes: &[u8],
        segment: usize,
        ecn: Option<EcnCodepoint>,
    ) -> io::Result<()> {
        if bytes.len() > segment && self.segments_max() == 1 {
            return bytes.chunks(segment).try_for_each(|one| self.send(to, one, segment, ecn));
        }
        let transmit = Transmit {
            destination: to.remote,
            ecn,
            contents: bytes,
            segment_size: (bytes.len() > segment).then_some(segment),
            src_ip: to.local,
        };
        match self {
            Self::Kernel(socket, state) => match state.send(socket.into(), &transmit) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    // While its thread rests, the socket does not wait by itself.
                    let timeout = Timespec::try_from(SEND_TIMEOUT).ok();
                    let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], timeout.as_ref());
                    state.send(socket.into(), &transmit)
                }
                sent => sent,
            },
            Self::Other(socket) => socket.try_send(&transmit),
        }
    }

    fn segments_max(&self) -> usize {
        match self {
            Self::Kernel(_, state) => state.max_gso_segments(),
            Self::Other(socket) => socket.max_transmit_segments(),
        }
    }
}

/// The port's sockets and their address.
pub(crate) struct Port {
    pub(crate) sockets: Vec<RelaySocket>,
    pub(crate) address: SocketAddr,
}

/// Binds `count` sockets to one port: the kernel's can share it, another network gives one.
pub(crate) fn bind(
    network: &Network,
    address: SocketAddr,
    count: usize,
) -> Result<Port, RelayError> {
    let Network::Other(fabric) = network else { return bind_kernel(address, count) };
    let socket = fabric.bind(address).map_err(|e| bind_error(address, e))?;
    let address = socket.local_addr().map_err(|e| bind_error(address, e))?;
    Ok(Port { sockets: vec![RelaySocket::Other(socket)], address })
}

/// Binds a second port of the same address, which answers observe frames: the next one if it is
/// free, else any. None if there is none to be had: the relay works without.
pub(crate) fn bind_alternate(network: &Network, main: SocketAddr) -> Option<Port> {
    let next = main.port().checked_add(1).map(|port| SocketAddr::new(main.ip(), port));
    let any = SocketAddr::new(main.ip(), 0);
    next.into_iter().chain([any]).find_map(|address| {
        let bound = bind(network, address, 1);
        bound.inspect_err(|error| tracing::debug!(%address, %error, "no second port here")).ok()
    })
}

fn bind_kernel(address: SocketAddr, count: usize) -> Result<Port, RelayError> {
    let address = probe(address)?;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = open(address, true).map_err(|e| bind_error(address, e))?;
        sockets.push(RelaySocket::new(socket)?);
    }
    if let (true, RelaySocket::Kernel(first, _)) = (count > 1, &sockets[0]) {
        let lanes = u32::try_from(count).expect("as many as cores");
        steer_frames(first.as_fd(), lanes)
            .map_err(|e| RelayError::System("attach the program that steers flows", e))?;
    }
    Ok(Port { sockets, address })
}

/// Finds the port to be shared, and that nobody has it: once shared, a second relay would bind it
/// without an error and take half of the packets.
fn probe(address: SocketAddr) -> Result<SocketAddr, RelayError> {
    let socket = open(address, false).map_err(|e| bind_error(address, e))?;
    socket.local_addr().map_err(|e| bind_error(address, e))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if shared {
        SockRef::from(&socket).set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bind_error(address: SocketAddr, error: io::Error) -> RelayError {
    if error.kind() == ErrorKind::AddrInUse {
        RelayError::PortInUse(address)
    } else {
        RelayError::Bind(address, error)
    }
}
