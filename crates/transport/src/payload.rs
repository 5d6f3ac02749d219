//! Which packets of a session carry payload.
//!
//! QUIC does not say, but it hands each packet in the clear to the key that seals it. A provider's
//! sessions seal with keys that look first: at packets that are small, since only for those a relay's
//! grant differs (see the `Grant` message). A large packet costs one comparison.

mod frames;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::BytesMut;
use quinn_proto::crypto::{
    CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig,
    Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError};
use sluice_proto::frame::HEADER_LEN;

/// A packet with payload counts as a frame of at least so many bytes.
const GRANT_PACKET_MIN: usize = 1200;
/// First bit of a packet of the handshake (RFC 9000, 17.2).
const LONG_HEADER: u8 = 0x80;

/// What the small packets with payload of a session that were sealed lack, in frame bytes.
#[derive(Debug, Default)]
pub(crate) struct Lacking(AtomicU64);

impl Lacking {
    /// Of those sealed since this was last asked: a packet goes to the socket before the next is sealed.
    pub(crate) fn take(&self) -> u64 {
        // Most of the time there is nothing, and then nothing is written.
        if self.0.load(Relaxed) == 0 { 0 } else { self.0.swap(0, Relaxed) }
    }

    /// Looks at a packet in the clear.
    fn look_at(&self, packet: &[u8], header_len: usize, tag_len: usize) {
        let len = packet.len() + HEADER_LEN;
        if len >= GRANT_PACKET_MIN || packet[0] & LONG_HEADER != 0 {
            return;
        }
        if frames::carry_payload(&packet[header_len..packet.len() - tag_len]) {
            self.0.fetch_add((GRANT_PACKET_MIN - len) as u64, Relaxed);
        }
    }
}

/// TLS of a session whose packets are looked at.
pub(crate) struct Watched {
    pub(crate) tls: Arc<dyn ServerConfig>,
    pub(crate) lacking: Arc<Lacking>,
}

impl ServerConfig for Watched {
    fn initial_keys(&self, version: u32, dst: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.tls.initial_keys(version, dst)
    }

    fn retry_tag(&self, version: u32, orig_dst: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.tls.retry_tag(version, orig_dst, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let tls = self.tls.clone().start_session(version, params);
        Box::new(WatchedSession { tls, lacking: self.lacking.clone() })
    }
}

struct WatchedSession {
    tls: Box<dyn Session>,
    lacking: Arc<Lacking>,
}

impl WatchedSession {
    fn watch(&self, keys: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        let local = WatchingKey { key: keys.local, lacking: self.lacking.clone() };
        KeyPair { local: Box::new(local), remote: keys.remote }
    }
}

impl Session for WatchedSession {
    fn initial_keys(&self, dst: &ConnectionId, side: Side) -> Keys {
        self.tls.initial_keys(dst, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.tls.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.tls.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.tls.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.tls.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.tls.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.tls.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let keys = self.tls.write_handshake(buf)?;
        Some(Keys { header: keys.header, packet: self.watch(keys.packet) })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.tls.next_1rtt_keys()?;
        Some(self.watch(keys))
    }

    fn is_valid_retry(&self, orig_dst: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.tls.is_valid_retry(orig_dst, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.tls.export_keying_material(output, label, context)
    }
}

struct WatchingKey {
    key: Box<dyn PacketKey>,
    lacking: Arc<Lacking>,
}

impl PacketKey for WatchingKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        self.lacking.look_at(buf, header_len, self.key.tag_len());
        self.key.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.key.decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key.integrity_limit()
    }
}
