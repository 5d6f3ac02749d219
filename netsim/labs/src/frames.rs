//! A packet capture in a namespace.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Namespace;

/// Every protocol, as Linux numbers them (`ETH_P_ALL`).
const EVERYTHING: u16 = 3;
const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What was in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Somebody asks who has an address, or answers.
    Arp {
        /// Whose frame it is.
        from: Ipv4Addr,
        /// Whom it asks for or answers.
        about: Ipv4Addr,
    },
    /// A packet.
    Ip {
        /// Its source.
        from: Ipv4Addr,
        /// Its destination.
        to: Ipv4Addr,
        /// As IANA numbers them: 6 TCP, 17 UDP.
        protocol: u8,
        /// Source and destination port, where the protocol has them.
        ports: Option<(u16, u16)>,
    },
    /// Something else, by its EtherType.
    Other(u16),
}

/// A capture of all frames on the interfaces of a namespace, loopback aside.
#[derive(Debug)]
pub struct Frames {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Vec<Frame>>,
}

impl Frames {
    /// Starts it.
    ///
    /// # Errors
    /// When this process may not: it takes root.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let protocol = Protocol::from(i32::from(EVERYTHING.to_be()));
        let socket = namespace.call(move || Socket::new(Domain::PACKET, Type::RAW, Some(protocol)));
        let socket = socket.context("a packet capture takes root")?;
        let _ = socket.set_recv_buffer_size(64 << 20);
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = std::thread::spawn(move || read(socket, &stopped));
        Ok(Self { stop, reader })
    }

    /// Ends it; what was seen.
    ///
    /// # Panics
    /// When its thread did.
    #[must_use]
    pub fn stop(self) -> Vec<Frame> {
        self.stop.store(true, Relaxed);
        self.reader.join().expect("the reader does not panic")
    }
}

fn read(mut socket: Socket, stopped: &AtomicBool) -> Vec<Frame> {
    let (mut frames, mut buffer) = (Vec::new(), vec![0; 128 * 1024]);
    loop {
        match socket.read(&mut buffer) {
            Ok(len) => frames.extend(parse(&buffer[..len])),
            // What came before it was stopped has been read.
            Err(_) if stopped.load(Relaxed) => return frames,
            Err(_) => {}
        }
    }
}

/// `None`: loopback, or cut off.
fn parse(frame: &[u8]) -> Option<Frame> {
    if frame.get(..12)?.iter().all(|byte| *byte == 0) {
        return None;
    }
    let kind = u16::from_be_bytes(frame.get(12..ETHERNET)?.try_into().ok()?);
    let rest = frame.get(ETHERNET..)?;
    match kind {
        ARP => Some(Frame::Arp { from: addr(rest, 14)?, about: addr(rest, 24)? }),
        IPV4 => {
            let segment = rest.get(usize::from(rest.first()? & 0x0F) * 4..)?;
            let protocol = *rest.get(9)?;
            let ports = [TCP, UDP].contains(&protocol).then(|| ports(segment)).flatten();
            Some(Frame::Ip { from: addr(rest, 12)?, to: addr(rest, 16)?, protocol, ports })
        }
        other => Some(Frame::Other(other)),
    }
}

fn addr(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    Some((port(0)?, port(2)?))
}
