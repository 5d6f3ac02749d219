//! Somebody on the network who is no party to anything: sees packets, and sends others.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_proto::frame;

use crate::net::{LinkSpec, Net, Packet, Seen};
use crate::rng::Rng;

/// What a stranger does with the frames and probes that it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrangerLie {
    /// There is none.
    None,
    /// It sends them again.
    Replays,
    /// It sends them again, from an address of its own.
    Elsewhere,
    /// It changes them before it sends them, from the same address and from its own.
    Forges,
}

impl StrangerLie {
    pub(super) const LIES: [Self; 3] = [Self::Replays, Self::Elsewhere, Self::Forges];
}

/// Its address.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 66));
/// It sends what it saw this much later ..
const LATER: Duration = Duration::from_millis(1);
/// .. and so much of that at a time.
const BATCH: usize = 64;
/// Packets that it remembers, beyond which it forgets new ones.
const SEEN_MAX: usize = 4096;

/// What the stranger did so far.
#[derive(Debug, Default)]
pub(super) struct Stranger {
    seen: VecDeque<Packet>,
    /// Bytes that it sent, from whatever address.
    sent: u64,
    /// Bytes that were sent to it: all are answers.
    answers: u64,
}

impl Stranger {
    /// What it sent, and what it was answered with.
    pub(super) const fn bytes(&self) -> [u64; 2] {
        [self.sent, self.answers]
    }

    /// Comes to the network.
    pub(super) fn join(net: &Net, lie: StrangerLie, mut rng: Rng) -> Arc<Mutex<Self>> {
        let stranger = Arc::new(Mutex::new(Self::default()));
        if lie == StrangerLie::None {
            return stranger;
        }
        let line = LinkSpec::delay(LATER);
        let place = net.add_host(net.core(), &[ADDRESS], line, line);
        let watching = stranger.clone();
        net.watch(Box::new(move |_, _, seen, packet| {
            let first = packet.bytes.first().copied().unwrap_or_default();
            let mut stranger = watching.lock();
            if seen == Seen::Sent && packet.dst.ip() == ADDRESS {
                stranger.answers += packet.bytes.len() as u64;
            }
            let room = stranger.seen.len() < SEEN_MAX;
            if seen == Seen::Sent && frame::is_frame(first) && room {
                stranger.seen.push_back(packet.clone());
            }
        }));
        let (net, sending) = (net.clone(), stranger.clone());
        tokio::spawn(async move {
            loop {
                net.clock().sleep(LATER).await;
                let mut stranger = sending.lock();
                let count = stranger.seen.len().min(BATCH);
                let batch: Vec<Packet> = stranger.seen.drain(..count).collect();
                stranger.sent += batch.iter().map(|p| p.bytes.len() as u64).sum::<u64>();
                drop(stranger);
                for packet in batch {
                    net.inject(place, lie.change(packet, &mut rng));
                }
            }
        });
        stranger
    }
}

impl StrangerLie {
    fn change(self, packet: Packet, rng: &mut Rng) -> Packet {
        let elsewhere = SocketAddr::new(ADDRESS, 1024 + rng.below(60_000) as u16);
        match self {
            Self::None | Self::Replays => packet,
            Self::Elsewhere => Packet { src: elsewhere, ..packet },
            Self::Forges => {
                let mut bytes = packet.bytes.to_vec();
                // Not in the first byte, which says what it is, and not beyond what the tag covers:
                // there somebody who is faster than the path can spoil what was sent anyway, as
                // whoever sits on it can by dropping it.
                let covered = bytes.len().min(frame::HEADER_LEN + frame::TAG_COVERS);
                let at = 1 + rng.below(covered as u64 - 1) as usize;
                bytes[at] ^= 1 << rng.below(8);
                let src = if rng.chance(0.5) { packet.src } else { elsewhere };
                Packet { src, bytes: Bytes::from(bytes), ..packet }
            }
        }
    }
}
