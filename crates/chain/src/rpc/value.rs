//! Numbers and bytes as JSON-RPC writes them, and nothing else: what a library reads as zero, such as
//! an empty text, must not become a balance or a status.

use alloy_primitives::U256;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Most of a text that cannot be that is repeated.
const SHOWN: usize = 40;
/// Hexadecimal digits of 256 bits.
const DIGITS_MAX: usize = 64;

/// A number: `0x` and digits, without a sign, that fits its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quantity<T>(pub(super) T);

impl<'de, T: TryFrom<U256>> Deserialize<'de> for Quantity<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let digits = digits(&text).filter(|digits| (1..=DIGITS_MAX).contains(&digits.len()));
        let number = digits.and_then(|digits| U256::from_str_radix(digits, 16).ok());
        let fitting = number.and_then(|number| T::try_from(number).ok());
        fitting.map(Self).ok_or_else(|| {
            let bits = 8 * size_of::<T>();
            let shown = text.chars().take(SHOWN).collect::<String>();
            D::Error::custom(format!("{shown:?}, not a number such as 0x1f of at most {bits} bits"))
        })
    }
}

/// Bytes: `0x` and two digits for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Data(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        digits(&text).and_then(|digits| hex::decode(digits).ok()).map(Self).ok_or_else(|| {
            let shown = text.chars().take(SHOWN).collect::<String>();
            D::Error::custom(format!("{shown:?}, not bytes such as 0x1f"))
        })
    }
}

fn digits(text: &str) -> Option<&str> {
    text.strip_prefix("0x").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
