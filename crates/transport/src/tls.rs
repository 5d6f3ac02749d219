//! TLS whose certificates carry the node's identity (libp2p TLS 1.0).
//!
//! Certificates are made and parsed by libp2p's crate. The configuration is ours: AES-GCM first where
//! the processor has instructions for it (it costs a third less than ChaCha20 there), and no key log,
//! which would write session secrets to the file that SSLKEYLOGFILE names.

mod steady;
mod verifier;

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use sluice_proto::{ALPN_STREAM, Keypair, PeerId};
use steady::SteadyKey;
use verifier::Verifier;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made from the node's key.
    #[error("failed to make a certificate from the node's key: {0}")]
    Certificate(#[from] libp2p_tls::certificate::GenError),
    /// The TLS library refused.
    #[error("TLS refused its configuration: {0}")]
    Tls(#[from] rustls::Error),
    /// The configuration does not suit QUIC.
    #[error("TLS does not suit QUIC: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Client side: offers `alpn`, and accepts nobody but `peer`.
///
/// # Errors
/// When no certificate can be made.
pub fn client_config(
    key: &Keypair,
    peer: PeerId,
    alpn: &[u8],
) -> Result<Arc<QuicClientConfig>, TlsError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(Some(peer)))
        .with_client_cert_resolver(certified(key)?);
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.key_log = Arc::new(rustls::NoKeyLog);
    Ok(Arc::new(tls.try_into()?))
}

fn provider() -> Arc<CryptoProvider> {
    let aes = [cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];
    let chacha = [cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites =
        if has_aes() { [&aes[..], &chacha].concat() } else { [&chacha[..], &aes].concat() };
    Arc::new(provider)
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const fn has_aes() -> bool {
    false
}

fn certified(key: &Keypair) -> Result<Arc<rustls::sign::SingleCertAndKey>, TlsError> {
    let (certificate, secret) = steady::certificate(key)?;
    let secret = Arc::new(SteadyKey(aws_lc_rs::sign::any_supported_type(&secret)?));
    Ok(Arc::new(CertifiedKey::new(vec![certificate], secret).into()))
}

/// Server side: accepts `alpn` from any node that proves its identity.
///
/// # Errors
/// When no certificate can be made.
pub fn server_config(key: &Keypair, alpn: &[u8]) -> Result<Arc<QuicServerConfig>, TlsError> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Verifier::new(None))
        .with_cert_resolver(certified(key)?);
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.key_log = Arc::new(rustls::NoKeyLog);
    Ok(Arc::new(tls.try_into()?))
}

/// Client side of a stream: says nothing of itself, and accepts nobody but `peer`.
pub(crate) fn stream_client_config(peer: PeerId) -> Result<rustls::ClientConfig, TlsError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(Some(peer)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_STREAM.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.key_log = Arc::new(rustls::NoKeyLog);
    Ok(tls)
}

/// Server side of a stream: whoever connects says who it is inside.
pub(crate) fn stream_server_config(key: &Keypair) -> Result<rustls::ServerConfig, TlsError> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certified(key)?);
    tls.alpn_protocols = vec![ALPN_STREAM.to_vec()];
    // Nobody resumes, so that no session is remembered.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.key_log = Arc::new(rustls::NoKeyLog);
    Ok(tls)
}

/// Who is at the other end, as TLS proved it.
#[must_use]
pub fn peer_of(connection: &quinn::Connection) -> Option<PeerId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let parsed = libp2p_tls::certificate::parse(chain.first()?).ok()?;
    Some(parsed.peer_id())
}

/// 32 bytes of keying material that only both ends of the connection have (RFC 8446, 7.5).
#[must_use]
pub fn export(connection: &quinn::Connection, label: &[u8], context: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    connection
        .export_keying_material(&mut out, label, context)
        .expect("32 bytes can be exported from any finished handshake");
    out
}
