//! Numbers from a seed: secret to others, the same again for the same seed.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use sluice_proto::eth::keccak256;

/// Derives secrets one after the other.
#[derive(Clone)]
pub(crate) struct Secrets {
    seed: [u8; 32],
    drawn: u64,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    pub(crate) const fn new(seed: [u8; 32]) -> Self {
        Self { seed, drawn: 0 }
    }

    /// 32 bytes that were not drawn before.
    pub(crate) fn draw(&mut self) -> [u8; 32] {
        self.drawn = self.drawn.checked_add(1).expect("not in 2^64 draws");
        keccak256(&[b"sluice market", &self.seed[..], &self.drawn.to_be_bytes()].concat())
    }

    pub(crate) fn number(&mut self) -> u64 {
        u64::from_be_bytes(self.draw()[..8].try_into().expect("8 of 32 bytes"))
    }
}

/// A number for `bytes` that only whoever knows the key can foresee.
pub(crate) fn keyed(key: &[u8; 16], bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(bytes);
    hasher.finish()
}
