//! What stands between a program that speaks UDP and a relay that it must reach over TCP.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part, and anything unexpected fails it"
)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use sluice_proto::ALPN_STREAM;
use sluice_relay::Relay;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::some_keypair;

/// A TLS connection to the relay's TCP port.
pub(crate) async fn dial(relay: &Relay, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(relay.tcp_addr().unwrap()).await?;
    let mut tls = libp2p_tls::make_client_config(&some_keypair(), Some(relay.peer())).unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.key_log = Arc::new(rustls::NoKeyLog);
    let name = "relay".try_into().unwrap();
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await
}

/// The packets as they stand on a stream.
pub(crate) fn on_stream(packet: &[u8]) -> Vec<u8> {
    let len = u16::try_from(packet.len()).unwrap();
    [&len.to_be_bytes()[..], packet].concat()
}

/// A UDP port that leads to the relay over TCP: one stream for each who sends to it.
pub(crate) struct Tunnel {
    pub(crate) addr: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Tunnel {
    pub(crate) async fn to(relay: &Arc<Relay>) -> Self {
        let udp = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = udp.local_addr().unwrap();
        let task = tokio::spawn(carry(udp, relay.clone()));
        Self { addr, task }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(udp: Arc<UdpSocket>, relay: Arc<Relay>) {
    let mut streams: BTreeMap<SocketAddr, WriteHalf<TlsStream<TcpStream>>> = BTreeMap::new();
    let mut returning = tokio::task::JoinSet::new();
    let mut buffer = [0; 65_536];
    loop {
        let Ok((len, from)) = udp.recv_from(&mut buffer).await else { continue };
        let stream = match streams.entry(from) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(vacant) => {
                let (read, write) = tokio::io::split(dial(&relay, ALPN_STREAM).await.unwrap());
                returning.spawn(bring_back(read, udp.clone(), from));
                vacant.insert(write)
            }
        };
        let _ = stream.write_all(&on_stream(&buffer[..len])).await;
        let _ = stream.flush().await;
    }
}

async fn bring_back(mut read: ReadHalf<TlsStream<TcpStream>>, udp: Arc<UdpSocket>, to: SocketAddr) {
    let mut packet = [0; 2048];
    while let Ok(len) = read.read_u16().await {
        let packet = &mut packet[..usize::from(len)];
        if read.read_exact(packet).await.is_err() {
            break;
        }
        let _ = udp.send_to(packet, to).await;
    }
}
