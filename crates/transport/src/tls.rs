//! TLS whose certificates carry the node's identity (libp2p TLS 1.0).

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;
use sluice_proto::{Keypair, PeerId};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made from the node's key.
    #[error("failed to make a certificate from the node's key: {0}")]
    Certificate(#[from] libp2p_tls::certificate::GenError),
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
    let mut tls = libp2p_tls::make_client_config(key, Some(peer))?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    // The default would write session secrets to the file that SSLKEYLOGFILE names.
    tls.key_log = Arc::new(rustls::NoKeyLog);
    Ok(Arc::new(tls.try_into()?))
}

/// Server side: accepts `alpn` from any node that proves its identity.
///
/// # Errors
/// When no certificate can be made.
pub fn server_config(key: &Keypair, alpn: &[u8]) -> Result<Arc<QuicServerConfig>, TlsError> {
    let mut tls = libp2p_tls::make_server_config(key)?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.key_log = Arc::new(rustls::NoKeyLog);
    Ok(Arc::new(tls.try_into()?))
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
