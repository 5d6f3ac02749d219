//! The one source of randomness that a node draws seeds and numbers from.

use std::sync::Arc;

use parking_lot::Mutex;

/// The system's randomness, or a simulator's: the same numbers each time.
///
/// Keys that protect anything on a real network are drawn by the libraries that use them.
#[derive(Debug, Clone, Default)]
pub struct Random(Option<Arc<Mutex<u64>>>);

impl Random {
    /// A source that repeats itself: for simulations only.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Some(Arc::new(Mutex::new(seed))))
    }

    /// The next number.
    #[must_use]
    pub fn number(&self) -> u64 {
        u64::from_ne_bytes(self.bytes())
    }

    /// The next bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        match &self.0 {
            None => getrandom::fill(&mut out).expect("the system gives random bytes"),
            Some(state) => {
                let mut state = state.lock();
                for chunk in out.chunks_mut(8) {
                    chunk.copy_from_slice(&split_mix(&mut state).to_ne_bytes()[..chunk.len()]);
                }
            }
        }
        out
    }
}

/// `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_the_system_does_not() {
        let (one, two) = (Random::seeded(7), Random::seeded(7));
        assert_eq!((one.number(), one.bytes::<13>()), (two.number(), two.bytes::<13>()));
        assert_ne!(one.number(), Random::seeded(8).number());
        assert_ne!(Random::default().number(), Random::default().number());
    }
}
