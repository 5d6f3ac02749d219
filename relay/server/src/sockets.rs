//! The port's sockets: one per thread.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use quinn_udp::{EcnCodepoint, Transmit, UdpSocketState};
use sluice_relay_core::ReturnAddress;
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
pub(crate) struct RelaySocket {
    socket: UdpSocket,
    state: UdpSocketState,
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
        Ok(Self { socket, state })
    }

    /// Receives one batch: its length, stride, source and ECN bits.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<quinn_udp::RecvMeta> {
        let mut meta = [quinn_udp::RecvMeta::default()];
        let mut buffers = [io::IoSliceMut::new(buffer)];
        self.state.recv((&self.socket).into(), &mut buffers, &mut meta)?;
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
        if bytes.len() > segment && self.state.max_gso_segments() == 1 {
            return bytes.chunks(segment).try_for_each(|one| self.send(to, one, segment, ecn));
        }
        let transmit = Transmit {
            destination: to.remote,
            ecn,
            contents: bytes,
            segment_size: (bytes.len() > segment).then_some(segment),
            src_ip: to.local,
        };
        self.state.send((&self.socket).into(), &transmit)
    }
}

/// The port's sockets and their address.
pub(crate) struct Port {
    pub(crate) sockets: Vec<RelaySocket>,
    pub(crate) address: SocketAddr,
}

/// Binds `count` sockets to one port.
pub(crate) fn bind(address: SocketAddr, count: usize) -> Result<Port, RelayError> {
    let address = probe(address)?;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = open(address, true).map_err(|e| bind_error(address, e))?;
        sockets.push(RelaySocket::new(socket)?);
    }
    if count > 1 {
        let lanes = u32::try_from(count).expect("as many as cores");
        steer_frames(sockets[0].socket.as_fd(), lanes)
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
    if error.kind() == io::ErrorKind::AddrInUse {
        RelayError::PortInUse(address)
    } else {
        RelayError::Bind(address, error)
    }
}
