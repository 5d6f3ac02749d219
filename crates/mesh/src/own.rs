//! What this node publishes about itself, and when anew.

use std::time::Duration;

use bytes::Bytes;
use libp2p::Multiaddr;
use sluice_proto::record::{
    MESH_ADDRESS_MAX, MESH_ADDRESSES_MAX, ProviderEntry, RelayEntry, next_sequence,
};
use sluice_proto::{Keypair, Record, RecordError, SignedRecord};

/// What a node says of itself; the mesh adds its id, addresses, number and expiry, and signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnRecord {
    /// Its static Noise key (X25519).
    pub noise_key: [u8; 32],
    /// What it rents out.
    pub provider: Option<ProviderEntry>,
    /// What it forwards for.
    pub relay: Option<RelayEntry>,
    /// How long a record holds; it is published anew at half of that. At most 48 hours.
    pub life: Duration,
}

/// What became of a record that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its number, to be kept for the next start.
    pub sequence: u64,
    /// Nodes that said they store it.
    pub holders: usize,
}

/// The newest own record.
#[derive(Debug)]
pub(crate) struct Own {
    content: OwnRecord,
    mesh: Vec<Bytes>,
    signed: SignedRecord,
    /// Unix milliseconds.
    renew_ms: u64,
}

impl Own {
    /// Signs a record with the number after `last_sequence`.
    ///
    /// # Errors
    /// When it does not stay within the bounds of records.
    pub(crate) fn sign(
        content: OwnRecord,
        addresses: &[Multiaddr],
        last_sequence: u64,
        key: &Keypair,
        now_ms: u64,
    ) -> Result<Self, RecordError> {
        let mesh = mesh_field(addresses);
        let life_ms = u64::try_from(content.life.as_millis()).unwrap_or(u64::MAX);
        let record = Record {
            peer: key.public().to_peer_id(),
            sequence: next_sequence(last_sequence, now_ms),
            expires_unix_s: now_ms.saturating_add(life_ms) / 1000,
            noise_key: content.noise_key,
            mesh: mesh.clone(),
            provider: content.provider.clone(),
            relay: content.relay.clone(),
        };
        let signed = SignedRecord::sign(&record, key)?;
        signed.check_time(now_ms)?;
        Ok(Self { content, mesh, signed, renew_ms: now_ms.saturating_add(life_ms / 2) })
    }

    pub(crate) const fn signed(&self) -> &SignedRecord {
        &self.signed
    }

    pub(crate) const fn content(&self) -> &OwnRecord {
        &self.content
    }

    /// Whether it is half over, or other addresses lead to the node now.
    pub(crate) fn is_stale(&self, addresses: &[Multiaddr], now_ms: u64) -> bool {
        now_ms >= self.renew_ms || self.mesh != mesh_field(addresses)
    }
}

/// Addresses as a record carries them; those that are too long are left out.
fn mesh_field(addresses: &[Multiaddr]) -> Vec<Bytes> {
    let bytes = addresses.iter().map(Multiaddr::to_vec);
    let fits = bytes.filter(|b| b.len() <= MESH_ADDRESS_MAX).take(MESH_ADDRESSES_MAX);
    fits.map(Bytes::from).collect()
}

/// The addresses that a record names; what is none is left out.
pub(crate) fn addresses_of(record: &Record) -> Vec<Multiaddr> {
    record.mesh.iter().filter_map(|bytes| Multiaddr::try_from(bytes.to_vec()).ok()).collect()
}
