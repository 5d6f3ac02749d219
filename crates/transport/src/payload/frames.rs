//! The frames of a packet in the clear (RFC 9000, 19; RFC 9221; draft-ietf-quic-ack-frequency).

/// Whether a packet with these frames carries payload: bytes of a stream. What else a peer can make a
/// node say (acknowledgements, credit, echoes, the bare end of a stream) is none, and neither are
/// datagrams, in which the two speak of payment. What cannot be read is none.
pub(super) fn carry_payload(frames: &[u8]) -> bool {
    let mut rest = Reader(frames);
    while let Some(kind) = rest.number() {
        let read = match kind {
            // Padding, ping, handshake done, immediate acknowledgement.
            0x00 | 0x01 | 0x1e | 0x1f => Some(()),
            0x02 | 0x03 => rest.skip_ack(kind == 0x03),
            // Reset of a stream; new connection id.
            0x04 => rest.skip_numbers(3),
            0x18 => rest.skip_numbers(2).and_then(|()| rest.skip_connection_id()),
            0x05 | 0x11 | 0x15 => rest.skip_numbers(2),
            0x06 => rest.skip_numbers(1).and_then(|()| rest.skip_data()),
            0x07 | 0x31 => rest.skip_data(),
            0x08..=0x0f => match rest.stream_data(kind) {
                Some(0) => Some(()),
                data => return data.is_some(),
            },
            // Credit, streams, what blocks; connection ids that are retired.
            0x10 | 0x12..=0x14 | 0x16 | 0x17 | 0x19 => rest.skip_numbers(1),
            // Path challenge and response.
            0x1a | 0x1b => rest.skip(8),
            // How often to acknowledge.
            0xaf => rest.skip_numbers(4),
            // A datagram or a close ends the packet.
            _ => None,
        };
        if read.is_none() {
            return false;
        }
    }
    false
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn skip(&mut self, n: u64) -> Option<()> {
        let n = usize::try_from(n).ok()?;
        self.0 = self.0.get(n..)?;
        Some(())
    }

    /// A number of variable length (RFC 9000, 16).
    fn number(&mut self) -> Option<u64> {
        let first = *self.0.first()?;
        let len = 1 << (first >> 6);
        let bytes = self.0.get(..len)?;
        let head = u64::from(first & 0x3f);
        let value = bytes[1..].iter().fold(head, |value, byte| value << 8 | u64::from(*byte));
        self.0 = &self.0[len..];
        Some(value)
    }

    fn skip_numbers(&mut self, n: u64) -> Option<()> {
        for _ in 0..n {
            self.number()?;
        }
        Some(())
    }

    /// Data behind its length.
    fn skip_data(&mut self) -> Option<()> {
        let len = self.number()?;
        self.skip(len)
    }

    fn skip_connection_id(&mut self) -> Option<()> {
        let len = *self.0.first()?;
        // One byte of length, the id, a token.
        self.skip(1 + u64::from(len) + 16)
    }

    fn skip_ack(&mut self, has_ecn: bool) -> Option<()> {
        self.skip_numbers(2)?;
        let ranges = self.number()?;
        self.skip_numbers(1)?;
        // No more than the packet has bytes.
        self.skip_numbers(ranges.checked_mul(2)?)?;
        self.skip_numbers(if has_ecn { 3 } else { 0 })
    }

    /// Takes a stream frame; how much it carries.
    fn stream_data(&mut self, kind: u64) -> Option<u64> {
        self.skip_numbers(if kind & 0x04 == 0 { 1 } else { 2 })?;
        let len = if kind & 0x02 == 0 { self.0.len() as u64 } else { self.number()? };
        self.skip(len)?;
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::carry_payload;

    const ACK: &[u8] = &[0x02, 0x40, 0x99, 0x05, 0x01, 0x00, 0x03, 0x02];
    const ACK_ECN: &[u8] = &[0x03, 0x40, 0x99, 0x05, 0x00, 0x00, 0x01, 0x00, 0x00];
    const MAX_DATA: &[u8] = &[0x10, 0x80, 0x01, 0x00, 0x00];
    const NEW_CONNECTION_ID: &[u8] =
        &[0x18, 0x01, 0x00, 0x02, 7, 7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    const PATH_RESPONSE: &[u8] = &[0x1b, 1, 2, 3, 4, 5, 6, 7, 8];
    const ACK_FREQUENCY: &[u8] = &[0x40, 0xaf, 1, 2, 0x40, 0x80, 3];
    const VOUCHER: &[u8] = &[0x31, 0x03, 8, 8, 8];
    const PADDING: &[u8] = &[0, 0, 0];
    const FIN: &[u8] = &[0x0f, 0x04, 0x41, 0x00, 0x00];
    const RESET: &[u8] = &[0x04, 0x04, 0x00, 0x41, 0x00];
    const CRYPTO: &[u8] = &[0x06, 0x00, 0x02, 8, 8];
    const OTHERS: [&[u8]; 11] = [
        ACK,
        ACK_ECN,
        MAX_DATA,
        NEW_CONNECTION_ID,
        PATH_RESPONSE,
        ACK_FREQUENCY,
        VOUCHER,
        PADDING,
        FIN,
        RESET,
        CRYPTO,
    ];
    const STREAMS: [&[u8]; 4] = [
        &[0x08, 0x04, b'x'],
        &[0x0a, 0x04, 0x01, b'x'],
        &[0x0e, 0x04, 0x01, 0x01, b'x'],
        &[0x0d, 0x04, 0x41, 0x00, b'x'],
    ];

    #[test]
    fn bytes_of_a_stream_are_payload_behind_whatever_frames() {
        assert!(!carry_payload(&[]));
        assert!(!carry_payload(&OTHERS.concat()));
        for stream in STREAMS {
            assert!(carry_payload(stream));
            assert!(carry_payload(&[&OTHERS.concat(), stream].concat()));
            for other in OTHERS {
                assert!(!carry_payload(other));
                assert!(carry_payload(&[other, stream].concat()), "{other:x?}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_no_payload() {
        let whole = [&OTHERS.concat(), STREAMS[2]].concat();
        for len in 0..whole.len() {
            assert!(!carry_payload(&whole[..len]), "{len}");
        }
        assert!(!carry_payload(&[0x02, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]));
    }
}
