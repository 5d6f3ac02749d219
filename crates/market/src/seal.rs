//! Bids that only the tenant can read.
//!
//! The one message of `Noise_N_25519_AESGCM_SHA256` (Noise specification, revision 34, section 7.4) to a
//! key that the tenant made for the order alone. The prologue binds the order; who bids is signed inside.

use bytes::Bytes;
use sluice_proto::eth::keccak256;
use sluice_proto::market::{MARKET_MESSAGE_MAX, OrderId};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver, FallbackResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};

const PATTERN: &str = "Noise_N_25519_AESGCM_SHA256";
/// What sealing adds: an ephemeral key and a tag.
const OVERHEAD: usize = 32 + 16;

/// Why a bid cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not sealed to this key for this order, or damaged; or no key of the curve.
    #[error("not sealed to this order's key, or damaged")]
    Sealed,
    /// Larger than any bid.
    #[error("sealed bid of {0} bytes exceeds {MARKET_MESSAGE_MAX}")]
    TooLarge(usize),
}

impl From<snow::Error> for SealError {
    fn from(_: snow::Error) -> Self {
        Self::Sealed
    }
}

/// Seals `signed_bid` to the order's key. `seed` is secret and never used twice.
///
/// # Errors
/// When it is too large, or the key is none.
pub fn seal_bid(
    order: OrderId,
    to: &[u8; 32],
    signed_bid: &[u8],
    seed: [u8; 32],
) -> Result<Bytes, SealError> {
    let len = signed_bid.len() + OVERHEAD;
    if len > MARKET_MESSAGE_MAX {
        return Err(SealError::TooLarge(len));
    }
    let prologue = prologue(order);
    let builder = builder(&prologue, seed)?.remote_public_key(to)?;
    let mut out = vec![0; len];
    let written = builder.build_initiator()?.write_message(signed_bid, &mut out)?;
    out.truncate(written);
    Ok(out.into())
}

/// Opens what was sealed to `secret`.
///
/// # Errors
/// When it is too large, not sealed to this key and order, or damaged.
pub fn open_bid(order: OrderId, secret: &[u8; 32], sealed: &[u8]) -> Result<Bytes, SealError> {
    if sealed.len() > MARKET_MESSAGE_MAX {
        return Err(SealError::TooLarge(sealed.len()));
    }
    let prologue = prologue(order);
    // Who only reads draws nothing.
    let builder = builder(&prologue, [0; 32])?.local_private_key(secret)?;
    let mut out = vec![0; sealed.len()];
    let read = builder.build_responder()?.read_message(sealed, &mut out)?;
    out.truncate(read);
    Ok(out.into())
}

/// The public key of an X25519 secret.
///
/// # Errors
/// When the curve's implementation refuses it.
pub fn noise_public(secret: &[u8; 32]) -> Result<[u8; 32], SealError> {
    let mut dh = DefaultResolver.resolve_dh(&DHChoice::Curve25519).ok_or(SealError::Sealed)?;
    dh.set(secret);
    dh.pubkey().try_into().map_err(|_| SealError::Sealed)
}

fn prologue(order: OrderId) -> Vec<u8> {
    [b"sluice bid v1", &order.0[..]].concat()
}

fn builder(prologue: &[u8], seed: [u8; 32]) -> Result<snow::Builder<'_>, SealError> {
    let params: NoiseParams = PATTERN.parse()?;
    let others = FallbackResolver::new(Box::new(RingResolver), Box::new(DefaultResolver));
    let resolver = FallbackResolver::new(Box::new(Seeded(seed)), Box::new(others));
    Ok(snow::Builder::with_resolver(params, Box::new(resolver)).prologue(prologue)?)
}

/// Resolves nothing but a generator that starts at a seed.
struct Seeded([u8; 32]);

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Stream { seed: self.0, block: 0 }))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        None
    }

    fn resolve_hash(&self, _: &HashChoice) -> Option<Box<dyn Hash>> {
        None
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn Cipher>> {
        None
    }
}

struct Stream {
    seed: [u8; 32],
    block: u64,
}

impl Random for Stream {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        for chunk in out.chunks_mut(32) {
            let block = keccak256(&[&self.seed[..], &self.block.to_be_bytes()].concat());
            self.block += 1;
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}
