//! Records: what a node publishes about itself, signed, with a sequence number and an expiry.

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use prost::Message;

use crate::ids::fixed;
pub use crate::market::ServiceKind;
use crate::ticket::{RELAYS_MAX, decode_relay, encode_relay};
use crate::wire::{self, WireError, rendezvous};
use crate::{Amount, IdError, Price, RelayAddr, ServiceName, SignatureError, Topic, sign, verify};

/// Largest signed record: it fits one message of the mesh and, with its key, one packet of Kademlia.
pub const RECORD_MAX: usize = 4096;
/// Longest a record may still hold when it is seen, in seconds.
pub const RECORD_LIFE_MAX_S: u64 = 48 * 3600;
/// How far a sequence number may lie ahead of the reader's clock, in milliseconds: clocks of homes
/// that were never set differ by minutes, and a number far ahead could never be followed.
pub const RECORD_AHEAD_MAX_MS: u64 = 600_000;
/// Most addresses of its mesh port that a record names.
pub const MESH_ADDRESSES_MAX: usize = 8;
/// Longest of them: a circuit through a relay with a DNS name of some length.
pub const MESH_ADDRESS_MAX: usize = 256;
/// Most services that a record names.
pub const SERVICES_MAX: usize = 32;
/// Largest certificate that a record carries.
pub const CERTIFICATE_MAX: usize = 2048;

/// Why bytes are not a record, or not one that counts now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too large, or not decodable.
    #[error("the record is malformed: {0}")]
    Malformed(#[from] WireError),
    /// A field is not what it should be.
    #[error("the record is not valid: {0}")]
    Field(#[from] IdError),
    /// A list has more entries than fit, or a value is none of those allowed.
    #[error("the record is not valid: {0}")]
    Bounds(&'static str),
    /// Signed by another.
    #[error("the record is not valid: {0}")]
    Signature(#[from] SignatureError),
    /// Of a version that is not known here.
    #[error("the record is of version {0}, and this Sluice knows version 1")]
    Version(u32),
    /// Its time is over.
    #[error("the record expired at unix time {0}")]
    Expired(u64),
    /// It is to hold for longer than records may.
    #[error("the record is to hold until unix time {0}, longer than 48 hours")]
    TooLong(u64),
    /// Its sequence number is of a time that has not come.
    #[error("the record is of unix time {0} ms, which has not come")]
    Future(u64),
}

impl ServiceKind {
    fn from_code(code: u32) -> Result<Self, RecordError> {
        match code {
            1 => Ok(Self::Tcp),
            2 => Ok(Self::Udp),
            3 => Ok(Self::Tls),
            _ => Err(RecordError::Bounds("a service's kind must be 1, 2 or 3")),
        }
    }

    /// As people write it: `tcp`, `udp`, `tls`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Tls => "tls",
        }
    }
}

/// What a provider rents out, and where it is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderEntry {
    /// Its services; at most 32.
    pub services: Vec<(ServiceName, ServiceKind)>,
    /// Its relays in use, best first; at most 8.
    pub relays: Vec<RelayAddr>,
    /// What it asks, each way as the tenant sees it.
    pub price: Price,
    /// Its proven capacity; empty: none. At most 2,048 bytes.
    pub certificate: Bytes,
}

/// What a relay asks for, and where its data sockets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayEntry {
    /// Its data sockets, each with its own id; 1 to 8.
    pub addresses: Vec<RelayAddr>,
    /// What it asks, each way as the holder sees it.
    pub price: Price,
}

/// What a node publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The node.
    pub peer: PeerId,
    /// `max(last + 1, unix milliseconds)`: of two records the one with the higher number counts.
    pub sequence: u64,
    /// Unix seconds.
    pub expires_unix_s: u64,
    /// Its static Noise key (X25519).
    pub noise_key: [u8; 32],
    /// Multiaddrs of its mesh port, circuits included; at most 8 of at most 256 bytes.
    pub mesh: Vec<Bytes>,
    /// What it rents out, if it is a provider.
    pub provider: Option<ProviderEntry>,
    /// What it forwards for, if it is a relay.
    pub relay: Option<RelayEntry>,
}

/// The sequence number of a node's next record: `max(last + 1, unix milliseconds)`, so that a node
/// restored from a backup does not sign a second record of one number.
#[must_use]
pub const fn next_sequence(last: u64, now_unix_ms: u64) -> u64 {
    let next = last.saturating_add(1);
    if next > now_unix_ms { next } else { now_unix_ms }
}

/// A record with the signature over its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    record: Record,
    bytes: Bytes,
    signature: [u8; 64],
}

impl SignedRecord {
    /// Signs a record.
    ///
    /// # Errors
    /// When it does not stay within the bounds, or `key` is another node's.
    pub fn sign(record: &Record, key: &Keypair) -> Result<Self, RecordError> {
        let bytes = record.encode();
        let signature = sign(key, Topic::Record, &bytes).into();
        Self::decode(rebuild(bytes, signature))
    }

    /// Reads a record and checks its bounds and its signature, but not its time.
    ///
    /// # Errors
    /// Says which of these is wrong.
    pub fn decode(bytes: Bytes) -> Result<Self, RecordError> {
        let signed: wire::record::SignedRecord = wire::decode(bytes, RECORD_MAX)?;
        let wire: wire::record::Record = wire::decode(signed.record.clone(), RECORD_MAX)?;
        if wire.version != 1 {
            return Err(RecordError::Version(wire.version));
        }
        let signature = fixed("signature", &signed.signature)?;
        let record = Record::from_wire(&wire)?;
        verify(&record.peer, Topic::Record, &signed.record, &signature)?;
        Ok(Self { record, bytes: signed.record, signature })
    }

    /// As it is published; at most 4,096 bytes. Whoever passes a record on writes it so: nothing that
    /// is not signed goes along.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        rebuild(self.bytes.clone(), Bytes::copy_from_slice(&self.signature))
    }

    /// What it says.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The bytes that are signed: two records are the same if these are.
    #[must_use]
    pub const fn signed_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Checks expiry and sequence number against the reader's clock.
    ///
    /// # Errors
    /// When it expired, is to hold for longer than 48 hours, or is of a time to come.
    pub const fn check_time(&self, now_unix_ms: u64) -> Result<(), RecordError> {
        let (now_s, expires) = (now_unix_ms / 1000, self.record.expires_unix_s);
        if expires <= now_s {
            Err(RecordError::Expired(expires))
        } else if expires - now_s > RECORD_LIFE_MAX_S {
            Err(RecordError::TooLong(expires))
        } else if self.record.sequence > now_unix_ms.saturating_add(RECORD_AHEAD_MAX_MS) {
            Err(RecordError::Future(self.record.sequence))
        } else {
            Ok(())
        }
    }
}

fn rebuild(record: Bytes, signature: Bytes) -> Bytes {
    wire::record::SignedRecord { record, signature }.encode_to_vec().into()
}

impl Record {
    fn encode(&self) -> Bytes {
        let record = wire::record::Record {
            version: 1,
            peer: self.peer.to_bytes().into(),
            sequence: self.sequence,
            expires_unix_s: self.expires_unix_s,
            noise_key: Bytes::copy_from_slice(&self.noise_key),
            mesh: self.mesh.clone(),
            provider: self.provider.as_ref().map(ProviderEntry::to_wire),
            relay: self.relay.as_ref().map(RelayEntry::to_wire),
        };
        record.encode_to_vec().into()
    }

    fn from_wire(wire: &wire::record::Record) -> Result<Self, RecordError> {
        at_most(wire.mesh.len(), MESH_ADDRESSES_MAX, "more than 8 addresses of a mesh port")?;
        let longest = wire.mesh.iter().map(Bytes::len).max().unwrap_or_default();
        at_most(longest, MESH_ADDRESS_MAX, "an address of a mesh port exceeds 256 bytes")?;
        let peer = PeerId::from_bytes(&wire.peer).map_err(|_| IdError::PeerId("peer"))?;
        let relay = wire.relay.as_ref().map(RelayEntry::from_wire).transpose()?;
        if relay.iter().flat_map(|r| &r.addresses).any(|a| a.peer != peer) {
            return Err(RecordError::Bounds("a relay's address names another node"));
        }
        Ok(Self {
            peer,
            sequence: wire.sequence,
            expires_unix_s: wire.expires_unix_s,
            noise_key: fixed("noise_key", &wire.noise_key)?,
            mesh: wire.mesh.clone(),
            provider: wire.provider.as_ref().map(ProviderEntry::from_wire).transpose()?,
            relay,
        })
    }
}

impl ProviderEntry {
    fn to_wire(&self) -> wire::record::Provider {
        let service = |(name, kind): &(ServiceName, ServiceKind)| wire::record::Service {
            name: name.as_str().to_owned(),
            kind: kind.code(),
        };
        let (price_up, price_down) = price_to_wire(self.price);
        wire::record::Provider {
            services: self.services.iter().map(service).collect(),
            relays: self.relays.iter().map(encode_relay).collect(),
            price_up,
            price_down,
            certificate: self.certificate.clone(),
        }
    }

    fn from_wire(wire: &wire::record::Provider) -> Result<Self, RecordError> {
        at_most(wire.services.len(), SERVICES_MAX, "more than 32 services")?;
        at_most(wire.certificate.len(), CERTIFICATE_MAX, "a certificate exceeds 2,048 bytes")?;
        let service = |service: &wire::record::Service| {
            let kind = ServiceKind::from_code(service.kind)?;
            Ok::<_, RecordError>((ServiceName::parse(&service.name)?, kind))
        };
        Ok(Self {
            services: wire.services.iter().map(service).collect::<Result<_, _>>()?,
            relays: relays(&wire.relays)?,
            price: price_from_wire(&wire.price_up, &wire.price_down)?,
            certificate: wire.certificate.clone(),
        })
    }
}

impl RelayEntry {
    fn to_wire(&self) -> wire::record::Relay {
        let (price_up, price_down) = price_to_wire(self.price);
        let addresses = self.addresses.iter().map(encode_relay).collect();
        wire::record::Relay { addresses, price_up, price_down }
    }

    fn from_wire(wire: &wire::record::Relay) -> Result<Self, RecordError> {
        if wire.addresses.is_empty() {
            return Err(RecordError::Bounds("a relay names no address"));
        }
        let price = price_from_wire(&wire.price_up, &wire.price_down)?;
        Ok(Self { addresses: relays(&wire.addresses)?, price })
    }
}

const fn at_most(found: usize, max: usize, what: &'static str) -> Result<(), RecordError> {
    if found <= max { Ok(()) } else { Err(RecordError::Bounds(what)) }
}

/// Unlike those of a ticket, relays of a record are all whole or the record is none.
fn relays(hints: &[rendezvous::RelayHint]) -> Result<Vec<RelayAddr>, RecordError> {
    at_most(hints.len(), RELAYS_MAX, "more than 8 relays")?;
    let relay =
        |hint| decode_relay(hint).ok_or(RecordError::Bounds("a relay's address is damaged"));
    hints.iter().map(relay).collect()
}

fn price_to_wire(price: Price) -> (Bytes, Bytes) {
    let field = |amount| Bytes::copy_from_slice(&Amount(amount).to_bytes());
    (field(price.up), field(price.down))
}

fn price_from_wire(up: &[u8], down: &[u8]) -> Result<Price, IdError> {
    Ok(Price { up: Amount::parse(up)?.0, down: Amount::parse(down)?.0 })
}
