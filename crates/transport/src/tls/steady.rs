//! Certificates and signatures that always have the same length.
//!
//! ECDSA's are a byte or two longer or shorter by chance, and so would packets of a handshake be:
//! what happens on a line would then not be the same twice, though all else is.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use sluice_proto::Keypair;

/// The likeliest length of a certificate ..
const CERTIFICATE_LEN: usize = 391;
/// .. and of an ECDSA signature on P-256: every second one has it.
const SIGNATURE_LEN: usize = 71;
/// Attempts before one of another length is taken: it is as good. 64 fail once in 2^64 times.
const TRIES: usize = 64;

/// A certificate for `key`, and its own secret.
pub(super) fn certificate(
    key: &Keypair,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), libp2p_tls::certificate::GenError> {
    let mut made = libp2p_tls::certificate::generate(key)?;
    for _ in 0..TRIES {
        if made.0.len() == CERTIFICATE_LEN {
            break;
        }
        made = libp2p_tls::certificate::generate(key)?;
    }
    Ok(made)
}

/// Signs as another key does.
#[derive(Debug)]
pub(super) struct SteadyKey(pub(super) Arc<dyn SigningKey>);

impl SigningKey for SteadyKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.0.choose_scheme(offered)?;
        Some(Box::new(SteadySigner(signer)))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[derive(Debug)]
struct SteadySigner(Box<dyn Signer>);

impl Signer for SteadySigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut signature = self.0.sign(message)?;
        for _ in 0..TRIES {
            if signature.len() == SIGNATURE_LEN {
                break;
            }
            signature = self.0.sign(message)?;
        }
        Ok(signature)
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_signatures_have_one_length() {
        let key = Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes");
        for _ in 0..50 {
            let (certificate, secret) = certificate(&key).expect("a certificate");
            assert_eq!(certificate.len(), CERTIFICATE_LEN);
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&secret).expect("a key");
            let signer = SteadyKey(key).choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
            let signature = signer.expect("P-256").sign(b"message").expect("a signature");
            assert_eq!(signature.len(), SIGNATURE_LEN);
        }
    }
}
