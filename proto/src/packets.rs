//! Packets on a byte stream, where UDP is blocked: the same UDP payloads, each after its length as
//! a big-endian u16.
//!
//! The stream is TLS over TCP (ALPN [`crate::ALPN_STREAM`]). What it carries guards itself, so a
//! full queue drops packets as a network would, and never makes anybody wait.

use crate::frame::{self, FrameType};

/// Largest packet on a stream: an Ethernet packet's payload.
pub const PACKET_MAX: usize = 1500;
/// Most packets in one run: as many as one UDP batch holds.
const RUN_PACKETS_MAX: usize = 64;
/// Bytes of a packet's length.
const PREFIX: usize = 2;
/// Part of a queue that is kept for packets other than data, so that a flow cannot starve the
/// control connection that would slow it down: one in so many.
const RESERVED_PART: usize = 8;

/// Why a stream is not a stream of packets: the other end broke the rules, close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// A packet without content.
    #[error("an empty packet")]
    Empty,
    /// Longer than [`PACKET_MAX`].
    #[error("a packet of {0} bytes")]
    Long(usize),
}

/// Takes the packets out of a byte stream, however it was cut. Keeps at most one packet.
#[derive(Debug, Default)]
pub struct PacketReader {
    /// The beginning of a packet, length included.
    partial: Vec<u8>,
}

impl PacketReader {
    /// Takes bytes as they arrived; `out` gets runs of packets of one size, the last of which may
    /// be shorter, and that size.
    ///
    /// # Errors
    /// When a length cannot be. Nothing that follows is to be read.
    pub fn take(
        &mut self,
        bytes: &mut [u8],
        mut out: impl FnMut(&mut [u8], usize),
    ) -> Result<(), PacketError> {
        let begun = self.finish_partial(bytes, &mut out)?;
        let bytes = &mut bytes[begun..];
        let mut run = Run::default();
        let mut at = 0;
        while let Some(len) = whole_packet(&bytes[at..])? {
            if !run.takes(len) {
                run.give(bytes, &mut out);
            }
            run.add(bytes, at + PREFIX, len);
            at += PREFIX + len;
        }
        run.give(bytes, &mut out);
        self.partial.extend_from_slice(&bytes[at..]);
        Ok(())
    }

    /// Whether the stream ended between two packets.
    #[must_use]
    pub fn is_between_packets(&self) -> bool {
        self.partial.is_empty()
    }

    /// Completes the packet that the last bytes began; returns how many of `bytes` it took.
    fn finish_partial(
        &mut self,
        bytes: &[u8],
        out: &mut impl FnMut(&mut [u8], usize),
    ) -> Result<usize, PacketError> {
        let mut taken = 0;
        while !self.partial.is_empty() {
            let wanted = match packet_len(&self.partial)? {
                Some(len) => PREFIX + len,
                None => PREFIX,
            };
            let more = (wanted - self.partial.len()).min(bytes.len() - taken);
            self.partial.extend_from_slice(&bytes[taken..taken + more]);
            taken += more;
            if let Some(len) = whole_packet(&self.partial)? {
                out(&mut self.partial[PREFIX..], len);
                // Most streams are idle most of the time: they keep no buffer.
                self.partial = Vec::new();
            } else if taken == bytes.len() {
                break;
            }
        }
        Ok(taken)
    }
}

/// The length that `bytes` begin with, if it is there.
fn packet_len(bytes: &[u8]) -> Result<Option<usize>, PacketError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Ok(None) };
    match usize::from(u16::from_be_bytes(*prefix)) {
        0 => Err(PacketError::Empty),
        len if len > PACKET_MAX => Err(PacketError::Long(len)),
        len => Ok(Some(len)),
    }
}

/// The same, if the packet is there as well.
fn whole_packet(bytes: &[u8]) -> Result<Option<usize>, PacketError> {
    Ok(packet_len(bytes)?.filter(|len| PREFIX + len <= bytes.len()))
}

/// Packets of one size that were moved together.
#[derive(Default)]
struct Run {
    start: usize,
    len: usize,
    stride: usize,
    packets: usize,
    /// Its last packet is short: nothing may follow it.
    closed: bool,
}

impl Run {
    const fn takes(&self, len: usize) -> bool {
        self.packets == 0 || !self.closed && len <= self.stride && self.packets < RUN_PACKETS_MAX
    }

    fn add(&mut self, bytes: &mut [u8], at: usize, len: usize) {
        if self.packets == 0 {
            (self.start, self.stride) = (at, len);
        } else {
            bytes.copy_within(at..at + len, self.start + self.len);
        }
        self.closed = len < self.stride;
        self.packets += 1;
        self.len += len;
    }

    fn give(&mut self, bytes: &mut [u8], out: &mut impl FnMut(&mut [u8], usize)) {
        let Self { start, len, stride, packets, .. } = std::mem::take(self);
        if packets > 0 {
            out(&mut bytes[start..start + len], stride);
        }
    }
}

/// Packets that wait to be written to a stream, at most so many bytes of them.
#[derive(Debug)]
pub struct PacketQueue {
    bytes: Vec<u8>,
    max: usize,
}

impl PacketQueue {
    /// An empty queue of at most `max` bytes.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max }
    }

    /// Puts packets of `segment` bytes, the last may be shorter, at the end. Those that find no
    /// room, or cannot be carried, are dropped; returns how many.
    pub fn push(&mut self, packets: &[u8], segment: usize) -> u64 {
        let mut dropped = 0;
        for packet in packets.chunks(segment.max(1)) {
            let room = if packet[0] == FrameType::Data as u8 && frame::is_frame(packet[0]) {
                self.max - self.max / RESERVED_PART
            } else {
                self.max
            };
            let len = u16::try_from(packet.len()).ok().filter(|_| packet.len() <= PACKET_MAX);
            let Some(len) = len.filter(|_| self.bytes.len() + PREFIX + packet.len() <= room) else {
                dropped += 1;
                continue;
            };
            self.bytes.extend_from_slice(&len.to_be_bytes());
            self.bytes.extend_from_slice(packet);
        }
        dropped
    }

    /// Everything that waits, ready to be written; the queue is empty then.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Whether nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(reader: &mut PacketReader, bytes: &[u8]) -> Result<Vec<Vec<u8>>, PacketError> {
        let mut got = Vec::new();
        reader.take(&mut bytes.to_vec(), |run, stride| {
            got.extend(run.chunks(stride).map(<[u8]>::to_vec));
        })?;
        Ok(got)
    }

    #[test]
    fn packets_of_one_size_come_as_one_run() {
        let mut queue = PacketQueue::new(1 << 20);
        assert_eq!(queue.push(&[0x80; 10 * 100 + 7], 100), 0);
        assert_eq!(queue.push(&[0xC0; 100], 100), 0);
        let mut runs = Vec::new();
        let mut reader = PacketReader::default();
        reader.take(&mut queue.take(), |run, stride| runs.push((run.len(), stride))).expect("fine");
        assert_eq!(runs, [(1007, 100), (100, 100)]);
    }

    #[test]
    fn lengths_that_cannot_be_are_errors_wherever_the_stream_is_cut() {
        for (bytes, error) in [
            ([0, 0, 1], PacketError::Empty),
            ([0xFF, 0xFF, 1], PacketError::Long(0xFFFF)),
            ([0x05, 0xDD, 1], PacketError::Long(1501)),
        ] {
            assert_eq!(read(&mut PacketReader::default(), &bytes), Err(error));
            let mut reader = PacketReader::default();
            assert_eq!(read(&mut reader, &bytes[..1]), Ok(Vec::new()));
            assert_eq!(read(&mut reader, &bytes[1..]), Err(error));
        }
    }

    #[test]
    fn a_full_queue_drops_data_before_anything_else() {
        let mut queue = PacketQueue::new(8 * 1002);
        assert_eq!(queue.push(&[0x80; 10_000], 1000), 3);
        assert_eq!(queue.push(&[0xC0; 1000], 1000), 0);
        assert_eq!(queue.push(&[0x84; 27], 27), 1);
        assert_eq!(queue.push(&[0xC0; PACKET_MAX + 1], PACKET_MAX + 1), 1);
        assert_eq!(read(&mut PacketReader::default(), &queue.take()).expect("fine").len(), 8);
        assert!(queue.is_empty());
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_read_however_the_stream_is_cut(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=PACKET_MAX), 0..40),
            cuts in prop::collection::vec(1_usize..4000, 1..20),
        ) {
            let mut queue = PacketQueue::new(usize::MAX / 2);
            for packet in &packets {
                prop_assert_eq!(queue.push(packet, packet.len()), 0);
            }
            let stream = queue.take();
            let (mut reader, mut got, mut rest) = (PacketReader::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                got.extend(read(&mut reader, now).expect("fine"));
                rest = later;
            }
            prop_assert_eq!(got, packets);
            prop_assert!(reader.is_between_packets());
        }

        #[test]
        fn no_bytes_make_it_panic_or_keep_more_than_a_packet(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
        ) {
            let mut reader = PacketReader::default();
            for part in parts {
                if read(&mut reader, &part).is_err() {
                    break;
                }
                prop_assert!(reader.partial.len() < PREFIX + PACKET_MAX);
            }
        }
    }
}
