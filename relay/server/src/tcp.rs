//! Clients whose network blocks UDP: their packets come over TLS on TCP.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use quinn_udp::RecvMeta;
use sluice_relay_core::{Dropped, Forwarder, Limits, ReturnAddress, StreamId, Streams};
use sluice_transport::{Network, PacketSink, PacketStream, StreamAcceptor, StreamEnd, StreamQueue};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::config::{RelayConfig, RelayError};
use crate::data::Forwarding;

/// A TLS handshake takes no longer.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// After a failure to accept (there may be no file descriptor left) nothing is accepted so long.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Stream {
    remote: SocketAddr,
    queue: Arc<StreamQueue>,
}

/// The streams that stand, and their queues. Shared by threads.
#[derive(Debug)]
pub(crate) struct StreamTable {
    gate: Mutex<Streams>,
    streams: RwLock<BTreeMap<StreamId, Stream>>,
    forwarder: Arc<Forwarder>,
}

impl StreamTable {
    pub(crate) fn new(limits: &Limits, forwarder: Arc<Forwarder>, now: Instant) -> Self {
        let gate = Mutex::new(Streams::new(limits, now));
        Self { gate, streams: RwLock::default(), forwarder }
    }

    /// Puts packets into the queue of a stream. False: some were dropped.
    pub(crate) fn push(&self, id: StreamId, packets: &[u8], segment: usize) -> bool {
        let streams = self.streams.read();
        let dropped = match streams.get(&id) {
            Some(stream) => stream.queue.push(packets, segment),
            None => packets.len().div_ceil(segment.max(1)) as u64,
        };
        drop(streams);
        if dropped > 0 {
            self.forwarder.drops().add(Dropped::StreamQueue, dropped);
        }
        dropped == 0
    }

    /// The real address at the other end of a stream, while it stands.
    pub(crate) fn remote(&self, id: StreamId) -> Option<SocketAddr> {
        self.streams.read().get(&id).map(|stream| stream.remote)
    }

    /// TCP connections that stand, those without a finished handshake included.
    pub(crate) fn len(&self) -> usize {
        self.gate.lock().len()
    }

    /// Takes a connection within the bounds; it is given back when the entry is dropped.
    fn enter(self: &Arc<Self>, remote: SocketAddr, now: Instant) -> Option<Entry> {
        match self.gate.lock().open(remote.ip(), now) {
            Ok(id) => Some(Entry { table: self.clone(), id, remote }),
            Err(reason) => {
                tracing::debug!(from = %remote, %reason, "a TCP connection was refused");
                self.forwarder.drops().add(Dropped::StreamRefused, 1);
                None
            }
        }
    }
}

/// One connection's place in the table.
struct Entry {
    table: Arc<StreamTable>,
    id: StreamId,
    remote: SocketAddr,
}

impl Entry {
    /// From now on packets can be sent over it.
    fn queue(&self) -> Arc<StreamQueue> {
        let queue = Arc::<StreamQueue>::default();
        let stream = Stream { remote: self.remote, queue: queue.clone() };
        self.table.streams.write().insert(self.id, stream);
        queue
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.table.streams.write().remove(&self.id);
        self.table.gate.lock().close(self.id);
    }
}

/// The TCP port.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    tls: StreamAcceptor,
}

impl Listener {
    /// Binds the port; must be called within a tokio runtime.
    pub(crate) fn bind(config: &RelayConfig, address: SocketAddr) -> Result<Self, RelayError> {
        if matches!(config.network, Network::Other(_)) {
            // Simulated networks carry datagrams only.
            return Err(RelayError::Tcp(address, io::ErrorKind::Unsupported.into()));
        }
        let tls = StreamAcceptor::new(&config.keypair)
            .map_err(|e| RelayError::Certificate(e.to_string()))?;
        let tcp = listen(address).map_err(|e| bind_error(address, e))?;
        let address = tcp.local_addr().map_err(|e| RelayError::Tcp(address, e))?;
        Ok(Self { tcp, address, tls })
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Takes every connection within the bounds, until it is dropped.
    pub(crate) async fn accept_all(self, forwarding: Forwarding, any_address: bool) {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                _ = tasks.join_next(), if !tasks.is_empty() => {}
                accepted = self.tcp.accept() => match accepted {
                    Ok((tcp, remote)) => {
                        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                        let now = forwarding.clock.now();
                        // Refused: closed without a word.
                        if let Some(entry) = forwarding.streams.enter(remote, now) {
                            let (tls, forwarding) = (self.tls.clone(), forwarding.clone());
                            tasks.spawn(carry(tcp, tls, entry, forwarding, any_address));
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "failed to accept a TCP connection");
                        forwarding.clock.sleep(PAUSE).await;
                    }
                }
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Or connections of before keep a restarted relay from its port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind_error(address: SocketAddr, error: io::Error) -> RelayError {
    if error.kind() == io::ErrorKind::AddrInUse {
        RelayError::TcpPortInUse(address)
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        RelayError::TcpPermission(address)
    } else {
        RelayError::Tcp(address, error)
    }
}

/// One connection, from its handshake to its end.
async fn carry(
    tcp: TcpStream,
    tls: StreamAcceptor,
    entry: Entry,
    forwarding: Forwarding,
    any_address: bool,
) {
    let remote = entry.remote;
    let clock = forwarding.clock.clone();
    // What QUIC sends once the client is back on UDP comes from the address that the client knows.
    let local = tcp.local_addr().ok().map(|at| at.ip().to_canonical()).filter(|_| any_address);
    let broken = |reason: &dyn std::fmt::Display| {
        tracing::debug!(from = %remote, %reason, "a TCP connection is broken");
        forwarding.forwarder.drops().add(Dropped::StreamBroken, 1);
    };
    let stream = match clock.timeout(HANDSHAKE_WITHIN, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return broken(&error),
        Err(late) => return broken(&late),
    };
    let from = entry.id.return_address(remote);
    let meta = RecvMeta { addr: entry.id.addr(), dst_ip: local, ..RecvMeta::default() };
    let mut inlet = Inlet { forwarding: forwarding.clone(), from, meta };
    tracing::debug!(%remote, "a client came over TCP");
    match PacketStream::new(stream, entry.queue()).run(&clock, &mut inlet).await {
        StreamEnd::Closed => tracing::debug!(%remote, "a client left TCP"),
        end @ (StreamEnd::Failed(_) | StreamEnd::Packet(_) | StreamEnd::Silent) => broken(&end),
    }
}

/// Forwards what a stream brings, at once.
struct Inlet {
    forwarding: Forwarding,
    from: ReturnAddress,
    meta: RecvMeta,
}

impl PacketSink for Inlet {
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        // What cannot go on is dropped, so that there is always room.
        Poll::Ready(())
    }

    fn take(&mut self, packets: &mut [u8], stride: usize) {
        let meta = RecvMeta { len: packets.len(), stride, ..self.meta };
        self.forwarding.batch(self.from, &meta, packets);
    }
}
