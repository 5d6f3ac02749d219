//! Workloads: web servers and an echo.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context as _, Result};

use crate::{CHUNK, Process, content};

/// Starts a listener whose connections each run in a thread of their own.
fn listen(run: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    let run = Arc::new(run);
    std::thread::spawn(move || {
        for tcp in listener.incoming().map_while(Result::ok) {
            let run = run.clone();
            std::thread::spawn(move || run(tcp));
        }
    });
    Ok(addr)
}

/// A web server of [`content`]: `GET /<seed>/<length>`, ranges included.
#[derive(Debug, Clone)]
pub struct Web {
    addr: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Web {
    /// Starts it on a port of its own.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let addr = listen(move |tcp| {
            // A client that goes away is no failure.
            let _ = answer_all(tcp, &count);
        })?;
        Ok(Self { addr, sent })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes that it sent so far, headers included.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

fn answer_all(mut tcp: TcpStream, sent: &AtomicU64) -> Result<()> {
    tcp.set_nodelay(true)?;
    let mut requests = BufReader::new(tcp.try_clone()?);
    loop {
        let (mut path, mut from) = (None, 0);
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET /") {
                path = rest.split(' ').next().map(str::to_owned);
            }
            if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                from = range.split('-').next().unwrap_or_default().parse()?;
            }
        }
        answer(&mut tcp, &path.context("no GET")?, from, sent)?;
    }
}

fn answer(tcp: &mut TcpStream, path: &str, from: u64, sent: &AtomicU64) -> Result<()> {
    let (seed, len) = path.split_once('/').context("GET /<seed>/<length>")?;
    let (seed, len): (u64, u64) = (seed.parse()?, len.parse()?);
    let status = match from {
        0 => "HTTP/1.1 200 OK".to_owned(),
        _ => {
            let last = len.saturating_sub(1);
            format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{last}/{len}")
        }
    };
    let left = len.saturating_sub(from);
    let head = format!("{status}\r\nAccept-Ranges: bytes\r\nContent-Length: {left}\r\n\r\n");
    tcp.write_all(head.as_bytes())?;
    sent.fetch_add(head.len() as u64, Relaxed);
    let (mut at, mut buffer) = (from, vec![0; CHUNK]);
    while at < len {
        let n = (len - at).min(CHUNK as u64) as usize;
        content(seed, at, &mut buffer[..n]);
        tcp.write_all(&buffer[..n])?;
        sent.fetch_add(n as u64, Relaxed);
        at += n as u64;
    }
    Ok(())
}

/// Answers each byte with itself, at once.
#[derive(Debug, Clone, Copy)]
pub struct Echo {
    addr: SocketAddr,
}

impl Echo {
    /// Starts it on a port of its own.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let addr = listen(|mut tcp| {
            let _ = tcp.set_nodelay(true);
            let mut buffer = vec![0; CHUNK];
            while let Ok(n) = tcp.read(&mut buffer) {
                if n == 0 || tcp.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { addr })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// `python3 -m http.server` over a folder.
#[derive(Debug)]
pub struct Python {
    addr: SocketAddr,
    _process: Process,
}

impl Python {
    /// Starts it on a port of its own of the loopback interface.
    ///
    /// # Errors
    /// When there is no Python, or it does not say where it listens.
    pub fn serve(folder: &Path) -> Result<Self> {
        Self::serve_at(folder, Ipv4Addr::LOCALHOST)
    }

    /// Starts it on a port of its own of this address.
    ///
    /// # Errors
    /// When there is no Python, or it does not say where it listens.
    pub fn serve_at(folder: &Path, addr: Ipv4Addr) -> Result<Self> {
        let process = Process::start("python3 -m http.server", Path::new("python3"), |command| {
            command.args(["-u", "-m", "http.server", "0", "--bind", &addr.to_string()]);
            command.current_dir(folder);
        })?;
        let line = process.line("Serving HTTP on")?;
        let mut words = line.split_whitespace();
        let port = words.by_ref().skip_while(|w| *w != "port").nth(1).context("no port")?;
        Ok(Self { addr: (addr, port.parse()?).into(), _process: process })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}
