//! Kept-alive HTTP clients, each with one request under way at a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::serve::find;
use super::{give_up, tell_counts};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\naccept: */*\r\n\r\n";

pub(super) fn run(entry: SocketAddr, connections: usize) -> Result<()> {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("failed to start the HTTP clients")?;
    std::thread::spawn(move || {
        runtime.block_on(clients(entry, connections, &counted));
    });
    tell_counts(&count);
    Ok(())
}

async fn clients(entry: SocketAddr, connections: usize, count: &Arc<AtomicU64>) {
    let (flows, mut flowing) = unbounded_channel();
    for _ in 0..connections {
        let (count, flows) = (Arc::clone(count), flows.clone());
        tokio::spawn(async move {
            if let Err(error) = client(entry, &count, &flows).await {
                give_up(&error.context("an HTTP connection failed"));
            }
        });
    }
    for _ in 0..connections {
        flowing.recv().await;
    }
    println!("flowing");
    std::future::pending::<()>().await;
}

async fn client(entry: SocketAddr, count: &AtomicU64, flows: &UnboundedSender<()>) -> Result<()> {
    let mut connection = TcpStream::connect(entry).await.context("failed to dial")?;
    connection.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    request(&mut connection, &mut buffer).await?;
    flows.send(()).context("nobody waits")?;
    loop {
        request(&mut connection, &mut buffer).await?;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// One request and its whole response.
async fn request(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    connection.write_all(REQUEST).await?;
    buffer.clear();
    loop {
        ensure!(connection.read_buf(buffer).await? > 0, "the server closed");
        if let Some(length) = response_length(buffer)?
            && buffer.len() >= length
        {
            return Ok(());
        }
    }
}

/// How long the response is, once its head is there.
fn response_length(response: &[u8]) -> Result<Option<usize>> {
    let Some(head_length) = find(response, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&response[..head_length])?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "not a success: {head}");
    let body = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
        .context("a response without a length")?;
    Ok(Some(head_length + body))
}
