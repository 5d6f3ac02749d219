//! A packet capture on the loopback interface, and a search for a file's bytes in it.

use std::collections::HashSet;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::content;

/// Every protocol, as Linux numbers them (`ETH_P_ALL`).
const EVERYTHING: u16 = 3;
/// Headers of Ethernet and of IPv4 without options.
const ETHERNET: usize = 14;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// Any 32 bytes in a row hold 16 that begin at a multiple of 16.
const RUN: usize = 16;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    /// Starts to capture the packets of a UDP or TCP port over IPv4.
    ///
    /// # Errors
    /// When this process may not: it takes root.
    pub fn start(port: u16) -> Result<Self> {
        let protocol = Protocol::from(i32::from(EVERYTHING.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
            .context("a packet capture takes root")?;
        // As much as the system gives: a reader that is late loses packets.
        let _ = socket.set_recv_buffer_size(64 << 20);
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = std::thread::spawn(move || read(socket, port, &stopped));
        Ok(Self { stop, reader })
    }

    /// Ends it; the packets, from their transport header on.
    ///
    /// # Panics
    /// When its thread did.
    #[must_use]
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Relaxed);
        self.reader.join().expect("the reader does not panic")
    }
}

fn read(mut socket: Socket, port: u16, stopped: &AtomicBool) -> Vec<Vec<u8>> {
    let (mut packets, mut buffer) = (Vec::new(), vec![0; 128 * 1024]);
    loop {
        match socket.read(&mut buffer) {
            Ok(n) => packets.extend(of_port(&buffer[..n], port).map(<[u8]>::to_vec)),
            // What came before it was stopped has been read.
            Err(_) if stopped.load(Relaxed) => return packets,
            Err(_) => {}
        }
    }
}

fn of_port(packet: &[u8], port: u16) -> Option<&[u8]> {
    let ip = packet.get(ETHERNET..)?;
    let is_v4 = ip.first()? >> 4 == 4;
    let header = usize::from(ip.first()? & 0x0F) * 4;
    let is_known = [UDP, TCP].contains(ip.get(9)?);
    let segment = ip.get(header..)?;
    let ports = segment.get(..4)?.as_chunks::<2>().0;
    let is_meant = ports.iter().any(|p| u16::from_be_bytes(*p) == port);
    (is_v4 && is_known && is_meant).then_some(segment)
}

/// The bytes of a content, so that any run of 32 of them is found.
#[derive(Debug)]
pub struct Runs(HashSet<[u8; RUN]>);

impl Runs {
    /// Those of the first `len` bytes of the content `seed`.
    #[must_use]
    pub fn of_content(seed: u64, len: usize) -> Self {
        let mut bytes = vec![0; len];
        content(seed, 0, &mut bytes);
        Self(bytes.as_chunks().0.iter().copied().collect())
    }

    /// In how many of the packets a part of the content is.
    #[must_use]
    pub fn found_in(&self, packets: &[Vec<u8>]) -> usize {
        packets.iter().filter(|packet| self.is_in(packet)).count()
    }

    fn is_in(&self, packet: &[u8]) -> bool {
        packet.windows(RUN).any(|w| w.try_into().is_ok_and(|w: [u8; RUN]| self.0.contains(&w)))
    }
}
