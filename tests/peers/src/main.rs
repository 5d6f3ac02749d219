//! TCP through iroh: the peer that Sluice's benchmark compares itself with.
//!
//! `provide` accepts iroh connections and dials one TCP service for each stream in them; `connect`
//! holds one warm iroh connection to a provider and carries each TCP connection to its listener in
//! a stream of its own. That is the shape of a Sluice session, so that the two are compared like
//! for like; a tunnel that makes an iroh connection for each TCP connection is slower to first byte.
//!
//! Both print what the benchmark waits for, one line each: `ready <endpoint id>`, `ready
//! <listener>`, and `path relayed` or `path direct` at each change of path.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use clap::Parser;
use futures_util::StreamExt as _;
use iroh::endpoint::{Connection, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, RelayUrl};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const ALPN: &[u8] = b"sluice-bench/tcp/1";

/// Bytes read at once, from TCP as from a stream: large enough that the copy is not what is measured.
const COPY_BYTES: usize = 256 * 1024;

#[derive(Debug, Parser)]
#[command(about = "Carries TCP connections through iroh")]
enum Args {
    /// Accepts iroh connections and dials a TCP service for each of their streams.
    Provide {
        /// The service to dial.
        #[arg(long)]
        to: SocketAddr,
        /// The relay's URL.
        #[arg(long)]
        relay: RelayUrl,
    },
    /// Listens for TCP connections and carries each to a provider in a stream of one connection.
    Connect {
        /// The provider's endpoint id, as `provide` prints it.
        #[arg(long)]
        peer: EndpointId,
        /// The address to listen at.
        #[arg(long)]
        listen: SocketAddr,
        /// The relay's URL.
        #[arg(long)]
        relay: RelayUrl,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Args::parse() {
        Args::Provide { to, relay } => provide(to, relay).await,
        Args::Connect { peer, listen, relay } => connect(peer, listen, relay).await,
    }
}

async fn bind(relay: RelayUrl) -> Result<Endpoint> {
    let endpoint = Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::custom([relay]))
        .bind()
        .await
        .context("failed to bind an iroh endpoint")?;
    endpoint.online().await;
    Ok(endpoint)
}

async fn provide(to: SocketAddr, relay: RelayUrl) -> Result<()> {
    let endpoint = bind(relay).await?;
    println!("ready {}", endpoint.id());
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            match incoming.await {
                Ok(connection) => serve(connection, to).await,
                Err(error) => eprintln!("tcp-over-iroh: a connection failed: {error}"),
            }
        });
    }
    Ok(())
}

async fn serve(connection: Connection, to: SocketAddr) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        tokio::spawn(async move {
            match TcpStream::connect(to).await {
                Ok(tcp) => splice(tcp, send, recv).await,
                Err(error) => eprintln!("tcp-over-iroh: failed to dial {to}: {error}"),
            }
        });
    }
}

async fn connect(peer: EndpointId, listen: SocketAddr, relay: RelayUrl) -> Result<()> {
    let endpoint = bind(relay.clone()).await?;
    let address = EndpointAddr::new(peer).with_relay_url(relay);
    let connection =
        endpoint.connect(address, ALPN).await.context("failed to connect to the provider")?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("failed to listen at {listen}"))?;
    println!("ready {}", listener.local_addr()?);
    tokio::spawn(print_paths(connection.clone()));
    loop {
        let (tcp, _) = listener.accept().await?;
        let (send, recv) = connection.open_bi().await.context("the iroh connection was lost")?;
        tokio::spawn(splice(tcp, send, recv));
    }
}

async fn print_paths(connection: Connection) {
    let mut paths = connection.paths_stream();
    let mut printed = "";
    while let Some(list) = paths.next().await {
        let Some(path) = list.iter().find(|path| path.is_selected()) else { continue };
        let kind = if path.is_ip() { "direct" } else { "relayed" };
        if kind != printed {
            println!("path {kind}");
            printed = kind;
        }
    }
}

/// Copies both ways until both have ended. An end of one way is passed on as such; an error of
/// either way resets its stream or drops its socket.
async fn splice(tcp: TcpStream, send: SendStream, recv: RecvStream) {
    let _ = tcp.set_nodelay(true);
    let (read, write) = tcp.into_split();
    let (_, _) = tokio::join!(into_stream(read, send), into_tcp(recv, write));
}

async fn into_stream(mut tcp: OwnedReadHalf, mut stream: SendStream) -> Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match tcp.read(&mut buffer).await {
            Ok(0) => return stream.finish().context("the stream is closed"),
            Ok(read) => {
                let Err(error) = stream.write_all(&buffer[..read]).await else { continue };
                return Err(error.into());
            }
            Err(error) => {
                let _ = stream.reset(0u32.into());
                return Err(error.into());
            }
        }
    }
}

async fn into_tcp(mut stream: RecvStream, mut tcp: OwnedWriteHalf) -> Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    while let Some(read) = stream.read(&mut buffer).await? {
        if let Err(error) = tcp.write_all(&buffer[..read]).await {
            let _ = stream.stop(0u32.into());
            return Err(error.into());
        }
    }
    Ok(tcp.shutdown().await?)
}
