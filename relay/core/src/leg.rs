//! One client, as the forwarding path knows it.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use siphasher::sip::SipHasher24;
use sluice_proto::FlowId;
use sluice_proto::frame::{
    self, FrameKey, FrameType, HEADER_LEN, Header, Observe, Observed, ReplayWindow,
};

use crate::drops::{Dropped, Drops};
use crate::limits::{FedClock, Pace, Throttle};

/// Where a client is reached: its address, and ours that it talks to (where a socket is bound to
/// several), so that answers come from the address that the client's NAT expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnAddress {
    /// The client's address.
    pub remote: SocketAddr,
    /// Our address; none if the socket has one only.
    pub local: Option<IpAddr>,
}

/// Largest frame: an Ethernet packet's. So a provisional flow's few packets are small ones.
pub(crate) const FRAME_MAX: usize = 1500;
/// Least payload of a keepalive, and that of its answer.
pub(crate) const KEEPALIVE_LEN: usize = 18;
/// Payload of a challenge and of its echo.
pub(crate) const CHALLENGE_LEN: usize = 8;
/// A client that moves is challenged at most this often.
const CHALLENGE_EVERY_MS: u64 = 250;
/// An echo is awaited this long.
const CHALLENGE_TTL_MS: u64 = 5000;

/// Questions of one client how it is seen: a survey of its NAT asks a dozen.
const OBSERVATIONS_PER_S: u32 = 32;

/// Segments of one group: as many as one bit mask holds.
pub(crate) const GROUP_MAX: usize = 64;

/// A client's control connection, as far as frames are concerned: replaced when it reconnects.
#[derive(Debug)]
struct Wire {
    from_client: FrameKey,
    to_client: FrameKey,
    at: ReturnAddress,
}

#[derive(Debug)]
struct Challenge {
    to: ReturnAddress,
    nonce: [u8; CHALLENGE_LEN],
    at_ms: u64,
}

/// Hot-path state of one client. Shared by threads.
#[derive(Debug)]
pub(crate) struct Leg {
    /// Flow number of keepalives.
    pub(crate) own_flow: FlowId,
    pub(crate) throttle: Throttle,
    wire: RwLock<Wire>,
    /// Made by the first frame: a client that only waits costs no window.
    replay: Mutex<Option<ReplayWindow>>,
    counter: AtomicU64,
    seen_ms: AtomicU64,
    challenge: Mutex<Option<Challenge>>,
    observations: Pace,
}

/// What the tag and the counter of a group of frames said.
pub(crate) struct Verified {
    /// Bit i: segment i is genuine and new.
    pub(crate) accepted: u64,
    /// Whether they came from the address that the relay answers to.
    pub(crate) from_home: bool,
}

impl Leg {
    pub(crate) fn new(
        own_flow: FlowId,
        keys: (FrameKey, FrameKey),
        at: ReturnAddress,
        bits_per_s: u64,
        clock: &FedClock,
        now_ms: u64,
    ) -> Self {
        Self {
            own_flow,
            throttle: Throttle::new(bits_per_s, clock),
            wire: RwLock::new(Wire { from_client: keys.0, to_client: keys.1, at }),
            replay: Mutex::default(),
            counter: AtomicU64::new(0),
            seen_ms: AtomicU64::new(now_ms),
            challenge: Mutex::default(),
            observations: Pace::new(OBSERVATIONS_PER_S, OBSERVATIONS_PER_S * 4, clock),
        }
    }

    /// Puts another control connection's keys and address in place; counters begin anew.
    pub(crate) fn replace(&self, keys: (FrameKey, FrameKey), at: ReturnAddress) {
        let mut wire = self.wire.write();
        *wire = Wire { from_client: keys.0, to_client: keys.1, at };
        *self.replay.lock() = None;
        *self.challenge.lock() = None;
        self.counter.store(0, Ordering::Relaxed);
    }

    /// Where the client is answered.
    pub(crate) fn at(&self) -> ReturnAddress {
        self.wire.read().at
    }

    pub(crate) fn seen_ms(&self) -> u64 {
        self.seen_ms.load(Ordering::Relaxed)
    }

    /// Checks tags and counters of the frames in `group`, all of this leg.
    pub(crate) fn verify(
        &self,
        group: &[u8],
        stride: usize,
        from: ReturnAddress,
        now_ms: u64,
        drops: &Drops,
    ) -> Verified {
        let wire = self.wire.read();
        let (mut genuine, mut bad) = (0_u64, 0_u64);
        for (i, frame) in group.chunks(stride).enumerate() {
            match frame::check(frame, &wire.from_client) {
                Ok(()) => genuine |= 1 << i,
                Err(_) => bad += 1,
            }
        }
        let mut accepted = genuine;
        if genuine != 0 {
            let mut replay = self.replay.lock();
            let window = replay.get_or_insert_default();
            for (i, frame) in group.chunks(stride).enumerate() {
                if genuine & (1 << i) != 0 && !window.accept(counter_of(frame)) {
                    accepted &= !(1 << i);
                }
            }
        }
        let from_home = wire.at == from;
        drop(wire);
        if bad != 0 {
            drops.add(Dropped::Tag, bad);
        }
        if accepted != genuine {
            drops.add(Dropped::Replay, u64::from((genuine & !accepted).count_ones()));
        }
        if accepted != 0 {
            self.seen_ms.store(now_ms, Ordering::Relaxed);
        }
        Verified { accepted, from_home }
    }

    /// Rewrites the frames of `group` whose bit is set for this leg as their receiver: flow,
    /// counter, tag. Returns where they go, or none when the counters are used up.
    pub(crate) fn seal_group(
        &self,
        group: &mut [u8],
        stride: usize,
        mask: u64,
        flow: FlowId,
    ) -> Option<ReturnAddress> {
        let wire = self.wire.read();
        let n = u64::from(mask.count_ones());
        let mut counter = self.counter.fetch_add(n, Ordering::Relaxed);
        if counter + n > frame::COUNTER_MAX {
            return None;
        }
        for (i, frame) in group.chunks_mut(stride).enumerate() {
            if mask & (1 << i) != 0 {
                let header = Header { kind: FrameType::Data, flow, counter };
                frame::seal(frame, header, &wire.to_client);
                counter += 1;
            }
        }
        Some(wire.at)
    }

    /// A frame of the relay's own on this leg, in a fixed buffer; its length is the second value.
    fn own_frame(&self, kind: FrameType, payload: &[u8]) -> Option<([u8; 64], usize)> {
        let wire = self.wire.read();
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        if counter >= frame::COUNTER_MAX {
            return None;
        }
        let len = HEADER_LEN + payload.len();
        let mut out = [0; 64];
        out[HEADER_LEN..len].copy_from_slice(payload);
        let header = Header { kind, flow: self.own_flow, counter };
        frame::seal(&mut out[..len], header, &wire.to_client);
        Some((out, len))
    }

    /// The answer to a keepalive from `from`: how the relay sees the client; port 0 over a stream,
    /// since that says nothing of UDP.
    pub(crate) fn keepalive_ack(&self, from: ReturnAddress) -> Option<([u8; 64], usize)> {
        let mut payload = [0; KEEPALIVE_LEN];
        let (ip, port) = match from.stream() {
            Some(_) => (Ipv6Addr::UNSPECIFIED.into(), 0),
            None => (from.remote.ip(), from.remote.port()),
        };
        let ip = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        payload[..16].copy_from_slice(&ip.octets());
        payload[16..].copy_from_slice(&port.to_be_bytes());
        self.own_frame(FrameType::KeepaliveAck, &payload)
    }

    /// The answer to a question from `from`, and where it goes: to the same address, at the port
    /// that the client names, if it does. None for a stream, which says nothing of UDP, and when
    /// the client asks too often.
    pub(crate) fn observed(
        &self,
        from: ReturnAddress,
        question: &Observe,
    ) -> Option<(ReturnAddress, [u8; 64], usize)> {
        if from.stream().is_some() || !self.observations.allows() {
            return None;
        }
        let mut to = from;
        to.remote.set_port(question.to_port.unwrap_or(from.remote.port()));
        let answer = Observed { token: question.token, address: from.remote };
        let (bytes, len) = self.own_frame(FrameType::Observed, &answer.encode())?;
        Some((to, bytes, len))
    }

    /// A challenge to `from`, an address that is not the leg's, unless one was sent just before.
    pub(crate) fn challenge(
        &self,
        from: ReturnAddress,
        secret: &SipHasher24,
        now_ms: u64,
    ) -> Option<([u8; 64], usize)> {
        let mut challenge = self.challenge.lock();
        if challenge.as_ref().is_some_and(|c| now_ms < c.at_ms.saturating_add(CHALLENGE_EVERY_MS)) {
            return None;
        }
        let mut hasher = *secret;
        hasher.write_u32(self.own_flow.0);
        hasher.write_u64(self.counter.load(Ordering::Relaxed));
        hasher.write_u64(now_ms);
        let nonce = hasher.finish().to_be_bytes();
        *challenge = Some(Challenge { to: from, nonce, at_ms: now_ms });
        drop(challenge);
        self.own_frame(FrameType::Challenge, &nonce)
    }

    /// Takes an echo from `from`: if it answers the challenge there, the leg moves.
    pub(crate) fn echo(&self, from: ReturnAddress, payload: &[u8], now_ms: u64) -> bool {
        let mut challenge = self.challenge.lock();
        let right = challenge.as_ref().is_some_and(|c| {
            c.to == from && c.nonce == payload && now_ms <= c.at_ms.saturating_add(CHALLENGE_TTL_MS)
        });
        if right {
            *challenge = None;
            drop(challenge);
            self.wire.write().at = from;
        }
        right
    }
}

#[inline]
fn counter_of(frame: &[u8]) -> u64 {
    u64::from_be_bytes([0, 0, frame[5], frame[6], frame[7], frame[8], frame[9], frame[10]])
}
