//! Numbers drawn from a seed.

use std::fmt;

use siphasher::sip::SipHasher24;

/// Second half of the key of tokens; the first is the seed. Any number.
const TOKEN_KEY: u64 = 0x736C_7569_6365_2070;

/// Numbers that nobody can foretell who does not know the seed, whichever of them he has seen.
pub(crate) struct Tokens {
    key: SipHasher24,
    drawn: u64,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} drawn)", self.drawn)
    }
}

impl Tokens {
    pub(crate) fn new(seed: u64) -> Self {
        Self { key: SipHasher24::new_with_keys(seed, TOKEN_KEY), drawn: 0 }
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.key.hash(&self.drawn.to_be_bytes())
    }
}
