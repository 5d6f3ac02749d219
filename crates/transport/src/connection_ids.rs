//! Connection ids that whoever made them knows as their own, and that a seed can decide.
//!
//! quinn's own keyed ids hold 24 random bits, drawn where no seed reaches. That is too few for a
//! relay: the id of a Retry is not remembered, so one that happens to be a connection's leads the
//! client's next Initial there, and the client hears nothing. With 5,000 clients of five ids each
//! that befalls one in 700.

use std::hash::Hasher as _;
use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionId;
use quinn::crypto::rustls::QuicClientConfig;
use quinn_proto::{ConnectionIdGenerator, InvalidCid};
use siphasher::sip::SipHasher24;

use crate::random::Random;

/// The longest id (RFC 9000, section 17.2).
const MAX_CID_SIZE: usize = 20;
/// Bytes that tell an id from noise.
const TAG: usize = 4;

/// Makes ids of `NONCE` random bytes and a tag, and knows them again.
#[derive(Debug, Clone)]
pub struct ConnectionIds<const NONCE: usize> {
    key: (u64, u64),
    random: Random,
}

impl<const NONCE: usize> ConnectionIds<NONCE> {
    /// Ids that a process with the same `key` knows again.
    #[must_use]
    pub const fn new(key: (u64, u64), random: Random) -> Self {
        Self { key, random }
    }

    fn tag(&self, nonce: &[u8]) -> [u8; TAG] {
        let mut hasher = SipHasher24::new_with_keys(self.key.0, self.key.1);
        hasher.write(nonce);
        let [a, b, c, d, ..] = hasher.finish().to_be_bytes();
        [a, b, c, d]
    }
}

impl<const NONCE: usize> ConnectionIdGenerator for ConnectionIds<NONCE> {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce: [u8; NONCE] = self.random.bytes();
        let tag = self.tag(&nonce);
        ConnectionId::new(&[&nonce[..], &tag].concat())
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(NONCE) {
            Some((nonce, tag)) if *tag == self.tag(nonce) => Ok(()),
            Some(_) | None => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        NONCE + TAG
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A client's configuration. What its first packets are for is drawn from `random`: the tokens that a
/// server answers with hold it, and quinn reads a token that comes after the attempt was given up
/// as if it were frames.
pub(crate) fn client_config(crypto: Arc<QuicClientConfig>, random: &Random) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(crypto);
    let random = random.clone();
    let first_id = move || ConnectionId::new(&random.bytes::<MAX_CID_SIZE>());
    config.initial_dst_cid_provider(Arc::new(first_id));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_again_and_noise_is_not() {
        let mut ids = ConnectionIds::<8>::new((1, 2), Random::default());
        let id = ids.generate_cid();
        assert_eq!(id.len(), ids.cid_len());
        assert!(ConnectionIds::<8>::new((1, 2), Random::default()).validate(&id).is_ok());
        assert!(ConnectionIds::<8>::new((1, 3), Random::default()).validate(&id).is_err());
        for bit in 0..8 * id.len() {
            let mut other = id.to_vec();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(ids.validate(&ConnectionId::new(&other)).is_err());
        }
        assert!(ids.validate(&ConnectionId::new(&id[..8])).is_err());
        assert!(ids.validate(&ConnectionId::new(&[])).is_err());
    }
}
