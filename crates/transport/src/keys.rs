//! QUIC's own secrets, with aws-lc-rs whatever other users of quinn in the process ask of it.
//!
//! quinn implements its traits for the keys of one library, and which one depends on the features that
//! all crates of a build turn on together.

use aws_lc_rs::{aead, hkdf, hmac};
use quinn::crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey};

/// The key of stateless resets: HMAC with SHA-256.
#[derive(Debug)]
pub struct ResetKey(hmac::Key);

impl ResetKey {
    /// The same secret gives the same resets after a restart.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}

/// The key of Retry's tokens: each is sealed with AES-256-GCM under a key of its own, by HKDF with
/// SHA-256.
#[derive(Debug)]
pub struct TokenKey(hkdf::Prk);

impl TokenKey {
    /// The same secret opens the tokens that were given before a restart.
    #[must_use]
    pub fn new(salt: &[u8], secret: &[u8]) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret))
    }
}

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        let mut key = [0; 32];
        let info = [random_bytes];
        let expanded = self.0.expand(&info, hkdf::HKDF_SHA256).expect("32 bytes are few");
        expanded.fill(&mut key).expect("the length is SHA-256's");
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &key).expect("the length is AES-256's");
        Box::new(Sealing(aead::LessSafeKey::new(key)))
    }
}

/// Seals one token, so that its nonce may be constant.
struct Sealing(aead::LessSafeKey);

fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; 12])
}

impl AeadKey for Sealing {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        let sealed =
            self.0.seal_in_place_append_tag(nonce(), aead::Aad::from(additional_data), data);
        sealed.map_err(|_| CryptoError)
    }

    fn open<'a>(
        &self,
        data: &'a mut [u8],
        additional_data: &[u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        let opened = self.0.open_in_place(nonce(), aead::Aad::from(additional_data), data);
        opened.map_err(|_| CryptoError)
    }
}
