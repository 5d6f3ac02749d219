//! The workload: it gives content from any place on, and takes content from where it left off. It
//! counts every byte at its sockets.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use tests::{CHUNK, content, differs_at};

/// What a client asks for: the kind, the content's seed, where it begins and where it ends.
pub(crate) const REQUEST_LEN: usize = 25;
pub(crate) const GET: u8 = b'G';
pub(crate) const PUT: u8 = b'P';
/// The answer when all of a content was taken.
pub(crate) const TAKEN: u8 = b'!';

/// Bytes at one end's sockets.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) written: AtomicU64,
    pub(crate) read: AtomicU64,
}

impl Wire {
    pub(crate) fn write(&self, tcp: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let n = tcp.write(left)?;
            self.written.fetch_add(n as u64, Relaxed);
            left = &left[n..];
        }
        Ok(())
    }

    pub(crate) fn read(&self, tcp: &mut TcpStream, bytes: &mut [u8]) -> std::io::Result<usize> {
        let n = tcp.read(bytes)?;
        self.read.fetch_add(n as u64, Relaxed);
        Ok(n)
    }

    pub(crate) fn read_exact(&self, tcp: &mut TcpStream, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            match self.read(tcp, &mut bytes[at..])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
        }
        Ok(())
    }
}

/// A workload on loopback.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    addr: SocketAddr,
    inside: Arc<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    wire: Wire,
    /// Connections that are not over.
    live: AtomicUsize,
    /// How much was taken of each content.
    taken: Mutex<HashMap<u64, u64>>,
}

impl Store {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let store = Self { addr: listener.local_addr()?, inside: Arc::default() };
        let inside = store.inside.clone();
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                inside.live.fetch_add(1, Relaxed);
                let inside = inside.clone();
                std::thread::spawn(move || {
                    // That a client goes away is what all this is about.
                    let _ = inside.serve(tcp);
                    inside.live.fetch_sub(1, Relaxed);
                });
            }
        });
        Ok(store)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn wire(&self) -> &Wire {
        &self.inside.wire
    }

    /// Whether every connection is over.
    pub(crate) fn is_idle(&self) -> bool {
        self.inside.live.load(Relaxed) == 0
    }
}

impl Inside {
    fn serve(&self, mut tcp: TcpStream) -> Result<()> {
        tcp.set_nodelay(true)?;
        let mut request = [0; REQUEST_LEN];
        self.wire.read_exact(&mut tcp, &mut request)?;
        let word =
            |at: usize| u64::from_be_bytes(request[at..at + 8].try_into().expect("eight bytes"));
        let (seed, from, to) = (word(1), word(9), word(17));
        match request[0] {
            GET => self.give(&mut tcp, seed, from, to),
            _ => self.take(&mut tcp, seed, to),
        }
    }

    fn give(&self, tcp: &mut TcpStream, seed: u64, from: u64, to: u64) -> Result<()> {
        let (mut at, mut buffer) = (from, vec![0; CHUNK]);
        while at < to {
            let n = (to - at).min(CHUNK as u64) as usize;
            content(seed, at, &mut buffer[..n]);
            self.wire.write(tcp, &buffer[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Says how much it has, and takes the rest.
    fn take(&self, tcp: &mut TcpStream, seed: u64, to: u64) -> Result<()> {
        let mut at = self.taken.lock().get(&seed).copied().unwrap_or_default();
        self.wire.write(tcp, &at.to_be_bytes())?;
        let mut buffer = vec![0; CHUNK];
        while at < to {
            let n = self.wire.read(tcp, &mut buffer)?;
            ensure!(n > 0, "cut off");
            ensure!(differs_at(seed, at, &buffer[..n]).is_none(), "other bytes came");
            at += n as u64;
            self.taken.lock().insert(seed, at);
        }
        Ok(self.wire.write(tcp, &[TAKEN])?)
    }
}
