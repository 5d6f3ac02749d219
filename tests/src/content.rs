//! What workloads serve: bytes of which any part can be made again, and none repeats.

use sha2::{Digest as _, Sha256};

/// Content is made and compared in parts of this size.
pub const CHUNK: usize = 64 * 1024;

/// Fills `buffer` with the content `seed` from `offset` on: SplitMix64 of each word's place.
pub fn content(seed: u64, offset: u64, buffer: &mut [u8]) {
    let (mut place, mut skip) = (offset / 8, (offset % 8) as usize);
    let mut rest = buffer;
    while !rest.is_empty() {
        let word = mix(seed ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes();
        let n = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&word[skip..skip + n]);
        (rest, skip, place) = (later, 0, place + 1);
    }
}

fn mix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The first place where `bytes` are not the content `seed` from `offset` on.
#[must_use]
pub fn differs_at(seed: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut expected = vec![0; CHUNK];
    let mut at = offset;
    for part in bytes.chunks(CHUNK) {
        let expected = &mut expected[..part.len()];
        content(seed, at, expected);
        if let Some(i) = part.iter().zip(&*expected).position(|(a, b)| a != b) {
            return Some(at + i as u64);
        }
        at += part.len() as u64;
    }
    None
}

/// SHA-256 of the first `len` bytes of a content.
#[must_use]
pub fn sha256_of_content(seed: u64, len: u64) -> [u8; 32] {
    let (mut hash, mut at, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    while at < len {
        let n = (len - at).min(CHUNK as u64) as usize;
        content(seed, at, &mut buffer[..n]);
        hash.update(&buffer[..n]);
        at += n as u64;
    }
    hash.finalize().into()
}

/// SHA-256 of bytes.
#[must_use]
pub fn sha256_of(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
