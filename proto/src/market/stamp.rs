//! Stamps: a little work that makes a flood of orders dear, and is checked with one hash.

use super::OrderId;
use crate::eth::keccak256;

/// The most work that may be asked for: some seconds of a core.
pub const STAMP_BITS_MAX: u32 = 24;

/// How many zero bits the hash of `order`'s stamp begins with.
#[must_use]
pub fn stamp_bits(order: OrderId, stamp: u64) -> u32 {
    let hash = keccak256(&[b"sluice stamp v1", &order.0[..], &stamp.to_be_bytes()].concat());
    let zeros = hash.iter().take_while(|byte| **byte == 0).count();
    let rest = hash.get(zeros).map_or(0, |byte| byte.leading_zeros());
    u32::try_from(zeros).expect("32 bytes") * 8 + rest
}

/// Looks for a stamp of at least `bits` (at most [`STAMP_BITS_MAX`]) from number `from` on: 2^bits
/// hashes on average.
#[must_use]
pub fn find_stamp(order: OrderId, bits: u32, from: u64) -> u64 {
    let bits = bits.min(STAMP_BITS_MAX);
    let mut stamp = from;
    while stamp_bits(order, stamp) < bits {
        stamp = stamp.wrapping_add(1);
    }
    stamp
}
