//! The provider's service: HTTP, echo and bulk on one port.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;

use super::{ASK_BULK, ASK_ECHO, BULK_BYTES, wait_for_end};

/// The length of a response's body: that of nginx' first page.
const BODY_BYTES: usize = 612;

/// The end of a request's head. Requests have no body here.
const HEAD_END: &[u8] = b"\r\n\r\n";

pub(super) fn run(bind: SocketAddr) -> Result<()> {
    let listener =
        TcpListener::bind(bind).with_context(|| format!("failed to listen at {bind}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("failed to start the HTTP server")?;
    let http = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    println!("ready {}", listener.local_addr()?);
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let http = http.clone();
            std::thread::spawn(move || serve(connection, &http));
        }
    });
    wait_for_end();
    Ok(())
}

/// Serves one connection until it ends; how it ends is the client's business.
fn serve(connection: TcpStream, http: &Handle) {
    let _ = connection.set_nodelay(true);
    let mut first = [0];
    let _ = match connection.peek(&mut first) {
        Ok(1) if first == [ASK_ECHO] => echo(connection),
        Ok(1) if first == [ASK_BULK] => bulk(connection),
        Ok(1) => connection.set_nonblocking(true).map(|()| {
            http.spawn(async { serve_http(connection).await });
        }),
        Ok(_) | Err(_) => Ok(()),
    };
}

fn echo(mut connection: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    loop {
        let read = connection.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        connection.write_all(&buffer[..read])?;
    }
}

fn bulk(mut connection: TcpStream) -> std::io::Result<()> {
    let bytes = incompressible(BULK_BYTES);
    loop {
        connection.write_all(&bytes)?;
    }
}

/// Bytes that no tunnel can make fewer (a xorshift generator's).
fn incompressible(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

async fn serve_http(connection: TcpStream) -> std::io::Result<()> {
    let mut connection = tokio::net::TcpStream::from_std(connection)?;
    let mut response = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
    )
    .into_bytes();
    response.resize(response.len() + BODY_BYTES, b'.');
    let mut requests = Vec::with_capacity(4096);
    while connection.read_buf(&mut requests).await? > 0 {
        while let Some(end) = find(&requests, HEAD_END) {
            requests.drain(..end);
            connection.write_all(&response).await?;
        }
    }
    Ok(())
}

/// Where the first `needle` ends.
pub(super) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let start = haystack.windows(needle.len()).position(|window| window == needle)?;
    Some(start + needle.len())
}
