//! Stands between a relay and everybody else, and counts the frames that one of them, the holder,
//! sends, and those that the relay sends to it and to the others.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use sluice_proto::frame::FrameType;

/// Larger than any datagram on loopback.
const DATAGRAM_MAX: usize = 65_536;
/// Bytes that wait in the kernel: a burst of both ways.
const BUFFER: usize = 4 << 20;
/// Ways that are kept: three processes, and some that are gone.
const WAYS_MAX: usize = 16;
/// How soon the thread of a way that was given up ends.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of frames, whole UDP payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    /// From the holder to the relay.
    pub(crate) up: u64,
    /// From the relay to the holder.
    pub(crate) down: u64,
    /// From the relay to others: what it forwarded for the holder.
    pub(crate) forwarded: u64,
}

#[derive(Debug, Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
    forwarded: AtomicU64,
}

/// A tap on loopback.
#[derive(Debug)]
pub(crate) struct Tap {
    addr: SocketAddr,
    counts: Arc<Counts>,
}

/// One client's way to the relay.
struct Way {
    client: SocketAddr,
    socket: Arc<UdpSocket>,
    is_open: Arc<AtomicBool>,
}

impl Tap {
    /// Starts it in front of `relay`; frames of the client at `holder` count.
    pub(crate) fn start(relay: SocketAddr, holder: SocketAddr) -> Result<Self> {
        let front = Arc::new(bind()?);
        let tap = Self { addr: front.local_addr()?, counts: Arc::default() };
        let counts = tap.counts.clone();
        std::thread::spawn(move || carry(&front, relay, holder, &counts));
        Ok(tap)
    }

    /// Where clients find the relay.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What passed so far.
    pub(crate) fn frames(&self) -> Frames {
        let Counts { up, down, forwarded } = &*self.counts;
        let [up, down, forwarded] = [up, down, forwarded].map(|count| count.load(Relaxed));
        Frames { up, down, forwarded }
    }
}

fn bind() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let options = socket2::SockRef::from(&socket);
    options.set_recv_buffer_size(BUFFER)?;
    options.set_send_buffer_size(BUFFER)?;
    Ok(socket)
}

/// Packets that one side cannot take are lost, as in any network.
fn carry(front: &Arc<UdpSocket>, relay: SocketAddr, holder: SocketAddr, counts: &Arc<Counts>) {
    let (mut ways, mut packet) = (VecDeque::<Way>::new(), vec![0; DATAGRAM_MAX]);
    while let Ok((len, client)) = front.recv_from(&mut packet) {
        if !ways.iter().any(|way| way.client == client) {
            let counts = counts.clone();
            let Ok(way) = open(front.clone(), relay, client, client == holder, counts) else {
                continue;
            };
            ways.push_back(way);
            if ways.len() > WAYS_MAX
                && let Some(old) = ways.pop_front()
            {
                old.is_open.store(false, Relaxed);
            }
        }
        let Some(way) = ways.iter().find(|way| way.client == client) else { continue };
        if client == holder && counts_for(&packet[..len]) {
            counts.up.fetch_add(len as u64, Relaxed);
        }
        let _ = way.socket.send(&packet[..len]);
    }
}

fn open(
    front: Arc<UdpSocket>,
    relay: SocketAddr,
    client: SocketAddr,
    is_holder: bool,
    counts: Arc<Counts>,
) -> Result<Way> {
    let socket = Arc::new(bind()?);
    socket.connect(relay)?;
    socket.set_read_timeout(Some(LOOK))?;
    let is_open = Arc::new(AtomicBool::new(true));
    let way = Way { client, socket: socket.clone(), is_open: is_open.clone() };
    std::thread::spawn(move || {
        let mut packet = vec![0; DATAGRAM_MAX];
        while is_open.load(Relaxed) {
            // A relay that is not there is told as an error of the socket, and may come back.
            let Ok(len) = socket.recv(&mut packet) else { continue };
            if counts_for(&packet[..len]) {
                let count = if is_holder { &counts.down } else { &counts.forwarded };
                count.fetch_add(len as u64, Relaxed);
            }
            let _ = front.send_to(&packet[..len], client);
        }
    });
    Ok(way)
}

/// Whether a packet is a frame that carries something.
fn counts_for(packet: &[u8]) -> bool {
    packet.first().and_then(|first| FrameType::parse(*first)) == Some(FrameType::Data)
}
