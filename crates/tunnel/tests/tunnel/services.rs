//! Workloads.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A service whose connections the test holds itself.
pub(crate) async fn manual() -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let addr = spawn(move |tcp| {
        let _ = tx.send(tcp);
        std::future::ready(())
    })
    .await;
    (addr, rx)
}

/// Sends back what it gets, closes when the other side does.
pub(crate) async fn echo() -> SocketAddr {
    spawn(|mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        if tokio::io::copy(&mut read, &mut write).await.is_ok() {
            let _ = write.shutdown().await;
        }
    })
    .await
}

/// Sends `pattern(len)` and closes.
pub(crate) async fn source(len: u64) -> SocketAddr {
    spawn(move |mut tcp| async move {
        let mut at = 0;
        while at < len {
            let n = (len - at).min(256 * 1024);
            if tcp.write_all(&pattern(at, n)).await.is_err() {
                return;
            }
            at += n;
        }
        let _ = tcp.shutdown().await;
        let _ = tcp.read(&mut [0]).await;
    })
    .await
}

/// Bytes that differ along the way.
pub(crate) fn pattern(at: u64, len: u64) -> Vec<u8> {
    (at..at + len).map(|n| (n ^ (n >> 8) ^ (n >> 16) ^ (n >> 24)) as u8).collect()
}

async fn spawn<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    addr
}
