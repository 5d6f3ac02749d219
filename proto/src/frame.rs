//! The header of a relay frame, its tag, and the window against replay.
//!
//! ```text
//!  0      1          5              11         19
//!  +------+----------+--------------+----------+-----------
//!  | type | flow u32 | counter u48  | tag 8    | payload ..
//!  +------+----------+--------------+----------+-----------
//! ```
//!
//! All numbers are big-endian. The type byte lies in 0x80-0xBF, where no QUIC packet with its
//! fixed bit set begins (RFC 9443); its bits 5 and 4 carry the version, 0 for version 1. The tag is
//! SipHash-2-4 over the first 11 bytes, the UDP payload's length as a u16 and up to 32 bytes of
//! payload. So an outsider cannot spend a holder's credit, and one on the path can only spoil
//! bytes that were sent anyway.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher24;

/// Bytes in front of the payload.
pub const HEADER_LEN: usize = 19;
/// Payload bytes that the tag covers.
pub const TAG_COVERS: usize = 32;
/// Label of the TLS exporter (RFC 8446, section 7.5) for frame keys; the context is the leg's
/// number, 8 bytes big-endian. 32 bytes: client to relay, then relay to client.
pub const EXPORTER_LABEL: &[u8] = b"sluice relay frame v1";
/// Frames that may arrive out of order before one counts as replayed.
pub const REPLAY_WINDOW: u64 = 8192;
/// Largest counter: 48 bits.
pub const COUNTER_MAX: u64 = (1 << 48) - 1;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// A packet from node to node: QUIC, or a probe.
    Data = 0x80,
    /// Client to relay on its own flow: still here. Payload: 18 bytes or more, any; a longer one
    /// tries whether long packets arrive.
    Keepalive = 0x81,
    /// Relay to client: the answer. Payload: how the relay sees the client, 18 bytes
    /// (address as IPv6, mapped if IPv4, and port).
    KeepaliveAck = 0x82,
    /// Relay to a new address of a client: 8 bytes to be echoed.
    Challenge = 0x83,
    /// Client to relay: the echo.
    ChallengeEcho = 0x84,
    /// Client to relay on its own flow, from any socket: how do you see this one? Payload: see
    /// [`Observe`].
    Observe = 0x85,
    /// Relay to client: the answer, as long as the question. Payload: see [`Observed`].
    Observed = 0x86,
}

/// Payload of an observe frame and of its answer.
pub const OBSERVE_LEN: usize = 26;

/// What a client asks with an observe frame: `token u64, flags u8, port u16`, then zeros up to
/// [`OBSERVE_LEN`]. Bit 0 of the flags is `from_other_port`, the rest are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe {
    /// Comes back with the answer.
    pub token: u64,
    /// The relay shall answer from its other port.
    pub from_other_port: bool,
    /// The relay shall answer to this port of the address that the question came from; `None`: to
    /// the port that it came from.
    pub to_port: Option<u16>,
}

impl Observe {
    /// As a frame carries it.
    #[must_use]
    pub fn encode(&self) -> [u8; OBSERVE_LEN] {
        let mut out = [0; OBSERVE_LEN];
        out[..8].copy_from_slice(&self.token.to_be_bytes());
        out[8] = self.from_other_port.into();
        out[9..11].copy_from_slice(&self.to_port.unwrap_or(0).to_be_bytes());
        out
    }

    /// `None`: another length, or flags of a later version.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let payload: &[u8; OBSERVE_LEN] = payload.try_into().ok()?;
        let from_other_port = match payload[8] {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self {
            token: u64::from_be_bytes(payload[..8].try_into().ok()?),
            from_other_port,
            to_port: Some(u16::from_be_bytes([payload[9], payload[10]])).filter(|port| *port != 0),
        })
    }
}

/// What a relay answers: `token u64`, then the address as IPv6, mapped if IPv4, and the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Of the question.
    pub token: u64,
    /// Where the question came from.
    pub address: SocketAddr,
}

impl Observed {
    /// As a frame carries it.
    #[must_use]
    pub fn encode(&self) -> [u8; OBSERVE_LEN] {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut out = [0; OBSERVE_LEN];
        out[..8].copy_from_slice(&self.token.to_be_bytes());
        out[8..24].copy_from_slice(&ip.octets());
        out[24..].copy_from_slice(&self.address.port().to_be_bytes());
        out
    }

    /// `None`: another length, or port 0.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let payload: &[u8; OBSERVE_LEN] = payload.try_into().ok()?;
        let ip: [u8; 16] = payload[8..24].try_into().ok()?;
        let ip = IpAddr::from(ip).to_canonical();
        let port = u16::from_be_bytes([payload[24], payload[25]]);
        let token = u64::from_be_bytes(payload[..8].try_into().ok()?);
        (port != 0).then_some(Self { token, address: SocketAddr::new(ip, port) })
    }
}

/// First byte of a probe between nodes, sealed by the rendezvous' keys and not tagged:
/// `0x90, session u64, nonce u64, ciphertext`.
pub const PROBE: u8 = 0x90;

/// Whether the first byte of a UDP payload is a Sluice frame's, not a QUIC packet's.
#[must_use]
pub const fn is_frame(first: u8) -> bool {
    first & 0xC0 == 0x80
}

impl FrameType {
    /// The type of a first byte, if it is one of version 1.
    #[must_use]
    pub const fn parse(first: u8) -> Option<Self> {
        match first {
            0x80 => Some(Self::Data),
            0x81 => Some(Self::Keepalive),
            0x82 => Some(Self::KeepaliveAck),
            0x83 => Some(Self::Challenge),
            0x84 => Some(Self::ChallengeEcho),
            0x85 => Some(Self::Observe),
            0x86 => Some(Self::Observed),
            _ => None,
        }
    }
}

/// Key of the tags of one direction of one leg.
#[derive(Clone)]
pub struct FrameKey(SipHasher24);

impl std::fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrameKey(..)")
    }
}

impl FrameKey {
    /// From 16 bytes of the exporter.
    #[must_use]
    pub fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(key))
    }

    /// Both keys of a leg from the exporter's 32 bytes: (client to relay, relay to client).
    #[must_use]
    pub fn pair(exported: &[u8; 32]) -> (Self, Self) {
        let (a, b) = exported.split_at(16);
        (
            Self::new(a.try_into().expect("16 of 32 bytes")),
            Self::new(b.try_into().expect("16 of 32 bytes")),
        )
    }

    #[inline]
    fn tag(&self, frame: &[u8]) -> [u8; 8] {
        let mut input = [0; 11 + 2 + TAG_COVERS];
        input[..11].copy_from_slice(&frame[..11]);
        // A UDP payload never exceeds u16.
        let len = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        input[11..13].copy_from_slice(&len.to_be_bytes());
        let covered = &frame[HEADER_LEN..frame.len().min(HEADER_LEN + TAG_COVERS)];
        input[13..13 + covered.len()].copy_from_slice(covered);
        let mut hasher = self.0;
        hasher.write(&input[..13 + covered.len()]);
        hasher.finish().to_le_bytes()
    }
}

/// The header in front of a payload, as read and verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it carries.
    pub kind: FrameType,
    /// Flow number on this hop.
    pub flow: crate::FlowId,
    /// Position in its direction of its leg, from 0.
    pub counter: u64,
}

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than a header.
    #[error("frame of {0} bytes is shorter than a header")]
    Short(usize),
    /// Another version's type, or none.
    #[error("unknown frame type {0:#04x}")]
    Type(u8),
    /// The tag is not the leg's.
    #[error("wrong tag")]
    Tag,
}

/// Reads type, flow and counter without checking the tag: enough to find the key.
///
/// # Errors
/// When the frame is short or of unknown type.
#[inline]
pub fn peek(frame: &[u8]) -> Result<Header, FrameError> {
    if frame.len() < HEADER_LEN {
        return Err(FrameError::Short(frame.len()));
    }
    let kind = FrameType::parse(frame[0]).ok_or(FrameError::Type(frame[0]))?;
    let flow = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]);
    let counter =
        u64::from_be_bytes([0, 0, frame[5], frame[6], frame[7], frame[8], frame[9], frame[10]]);
    Ok(Header { kind, flow: crate::FlowId(flow), counter })
}

/// Checks the tag of a frame that [`peek`] accepted.
///
/// # Errors
/// When the tag is wrong.
#[inline]
pub fn check(frame: &[u8], key: &FrameKey) -> Result<(), FrameError> {
    let tag = key.tag(frame);
    // Both sides are 8 bytes: compared as one word, in constant time.
    if u64::from_le_bytes(tag)
        == u64::from_le_bytes(frame[11..HEADER_LEN].try_into().expect("8 bytes"))
    {
        Ok(())
    } else {
        Err(FrameError::Tag)
    }
}

/// Writes a header in front of the payload that already stands in `frame[HEADER_LEN..]`.
///
/// # Panics
/// When `frame` is shorter than a header: the caller's bug.
#[inline]
pub fn seal(frame: &mut [u8], header: Header, key: &FrameKey) {
    frame[0] = header.kind as u8;
    frame[1..5].copy_from_slice(&header.flow.0.to_be_bytes());
    frame[5..11].copy_from_slice(&header.counter.to_be_bytes()[2..]);
    let tag = key.tag(frame);
    frame[11..HEADER_LEN].copy_from_slice(&tag);
}

const WORDS: usize = (REPLAY_WINDOW / 64) as usize;

/// Remembers which counters of one direction have arrived (RFC 6479, with a window of 8,192).
#[derive(Clone)]
pub struct ReplayWindow {
    next: u64,
    seen: Box<[u64; WORDS]>,
}

impl std::fmt::Debug for ReplayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReplayWindow(next {})", self.next)
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, seen: Box::new([0; WORDS]) }
    }
}

impl ReplayWindow {
    /// Takes a counter whose tag was right. False: it came before, or is too old to tell.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> bool {
        if counter >= self.next {
            let from = self.next / 64;
            let to = counter / 64;
            // Words between the old head and the new one belong to counters 8,192 ago.
            let first = if self.next.is_multiple_of(64) { from } else { from + 1 };
            if to >= first {
                let fresh = (to - first + 1).min(WORDS as u64);
                for word in (to + 1 - fresh)..=to {
                    self.seen[(word % WORDS as u64) as usize] = 0;
                }
            }
            self.next = counter + 1;
        } else if self.next - counter > REPLAY_WINDOW - 64 {
            return false;
        }
        let word = &mut self.seen[((counter / 64) % WORDS as u64) as usize];
        let bit = 1 << (counter % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FlowId;

    fn key() -> FrameKey {
        FrameKey::new(&[9; 16])
    }

    fn sample() -> Vec<u8> {
        let mut frame = vec![0; HEADER_LEN];
        frame.extend_from_slice(&[0x55; 100]);
        let header = Header { kind: FrameType::Data, flow: FlowId(0xABCD_EF01), counter: 77 };
        seal(&mut frame, header, &key());
        frame
    }

    #[test]
    fn a_sealed_frame_is_read_back() {
        let frame = sample();
        let header = peek(&frame).expect("a header");
        assert_eq!((header.flow, header.counter), (FlowId(0xABCD_EF01), 77));
        assert_eq!(check(&frame, &key()), Ok(()));
        assert_eq!(hex::encode(&frame[..HEADER_LEN]), "80abcdef0100000000004de2e6a28ed7963869");
    }

    #[test]
    fn any_flipped_bit_that_the_tag_covers_and_any_truncation_is_refused() {
        let frame = sample();
        for bit in 0..(HEADER_LEN + TAG_COVERS) * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(peek(&bad).is_err() || check(&bad, &key()).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            let bad = &frame[..len];
            assert!(peek(bad).is_err() || check(bad, &key()).is_err(), "length {len}");
        }
    }

    #[test]
    fn each_counter_is_accepted_once_in_any_order_within_the_window() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(5) && !window.accept(5));
        assert!(window.accept(0) && !window.accept(0));
        assert!(window.accept(8000) && window.accept(1) && !window.accept(1));
        assert!(window.accept(20_000) && !window.accept(2));
        assert!(window.accept(19_999) && window.accept(20_001) && !window.accept(20_000));
        for counter in (20_002..30_000).rev().take(8000) {
            assert!(window.accept(counter), "{counter}");
            assert!(!window.accept(counter), "{counter}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_replay_window_agrees_with_a_set(counters in proptest::collection::vec(0u64..40_000, 1..400)) {
            let mut window = ReplayWindow::default();
            let mut seen = std::collections::BTreeSet::new();
            let mut next = 0;
            for counter in counters {
                next = next.max(counter + 1);
                let fresh = window.accept(counter);
                let new = seen.insert(counter);
                if next - counter <= REPLAY_WINDOW - 64 {
                    proptest::prop_assert_eq!(fresh, new);
                } else {
                    proptest::prop_assert!(!fresh);
                }
            }
        }
    }
}
