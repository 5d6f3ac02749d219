//! Packets over TLS on TCP, for networks that block UDP.
//!
//! A stream carries what UDP would have carried between a node and its relay, packet by packet: the
//! control connection's QUIC and the frames beside it. Those guard themselves, so TLS only proves
//! that the relay is the right one and makes the stream look like any other on port 443.

mod carriage;
mod carried;
mod keeper;
mod packets;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use sluice_proto::{Keypair, RelayAddr};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{TlsError, tls};

pub(crate) use carriage::Carriage;
pub(crate) use carried::Carried;
pub(crate) use keeper::{Keeper, Slot};
pub use packets::{PacketSink, PacketStream, StreamEnd, StreamQueue};

/// Bytes that TLS keeps for a socket that is not writable: two records.
const TLS_BUFFER: usize = 32 << 10;
/// Bytes that the kernel keeps beyond what it has sent: the rest is for the queue to drop.
#[cfg(target_os = "linux")]
const NOT_SENT: u32 = 64 << 10;
/// A peer that acknowledges nothing for so long is gone.
#[cfg(target_os = "linux")]
const TCP_TIMEOUT: Duration = Duration::from_secs(30);

/// The relay's side: proves who it is to whoever connects, and asks nothing in return. Clients say
/// who they are inside.
#[derive(Clone)]
pub struct StreamAcceptor(TlsAcceptor);

impl std::fmt::Debug for StreamAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamAcceptor")
    }
}

impl StreamAcceptor {
    /// With the identity of `key`.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn new(key: &Keypair) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(tls::stream_server_config(key)?).into()))
    }

    /// Does the handshake on an accepted connection. May take for ever.
    ///
    /// # Errors
    /// When the other end does not speak TLS 1.3 and our protocol, or is gone.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        tune(&tcp);
        let mut stream = self.0.accept(tcp).await?;
        let (_, session) = stream.get_mut();
        if session.alpn_protocol() != Some(sluice_proto::ALPN_STREAM) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no protocol in common"));
        }
        session.set_buffer_limit(Some(TLS_BUFFER));
        Ok(stream)
    }
}

/// Connects to a relay's TCP port and checks that it is that relay. May take for ever.
///
/// # Errors
/// Says what failed.
async fn dial(relay: &RelayAddr) -> io::Result<client::TlsStream<TcpStream>> {
    let addr = relay.tcp_addr().ok_or(io::ErrorKind::Unsupported)?;
    let config = tls::stream_client_config(relay.peer).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(addr).await?;
    tune(&tcp);
    // An IP address: no name is sent.
    let name = ServerName::IpAddress(addr.ip().into());
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    Ok(stream)
}

/// Best effort: a system that does not know an option works without it.
fn tune(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(tcp);
        let _ = socket.set_tcp_notsent_lowat(NOT_SENT);
        let _ = socket.set_tcp_user_timeout(Some(TCP_TIMEOUT));
    }
}
