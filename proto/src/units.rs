//! Money and bytes: integers only.

use std::fmt;
use std::time::Duration;

/// Prices are per this many bytes: one GiB.
pub const BYTES_PER_PRICE_UNIT: u128 = 1 << 30;

/// Smallest window: below it vouchers would cost more than 0.5 % of the bytes.
pub const WINDOW_MIN: u64 = 512 * 1024;
/// Largest window: the most that anyone can lose to a liar.
pub const WINDOW_MAX: u64 = 16 * 1024 * 1024;
/// Most stream positions in one statement, so that it fits one datagram with its voucher.
pub const STATEMENT_STREAMS_MAX: usize = 64;

/// Token base units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(pub u128);

impl Amount {
    /// As 16 big-endian bytes, its form in messages.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Parses the field of a message.
    ///
    /// # Errors
    /// When it is not 16 bytes long.
    pub fn parse(bytes: &[u8]) -> Result<Self, crate::IdError> {
        crate::ids::fixed("amount", bytes).map(|b| Self(u128::from_be_bytes(b)))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Token base units per GiB, each way as the payer sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Price {
    /// For bytes from payer to payee.
    pub up: u128,
    /// For bytes from payee to payer.
    pub down: u128,
}

impl Price {
    /// Whether nothing is charged: no chain, no vouchers, no window.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.up == 0 && self.down == 0
    }
}

/// `base + floor((up * price.up + down * price.down) / 2^30)`: one rounding a lease, in the payer's
/// favour. `None` when it does not fit 128 bits.
#[must_use]
pub fn amount_due(base: Amount, up: u64, down: u64, price: Price) -> Option<Amount> {
    let up = u128::from(up).checked_mul(price.up)?;
    let down = u128::from(down).checked_mul(price.down)?;
    base.0.checked_add(up.checked_add(down)? / BYTES_PER_PRICE_UNIT).map(Amount)
}

/// The window of a lease: `clamp(rate_max x (1.5 x rtt + 100 ms), 512 KiB, 16 MiB)`, `rate_max` in
/// bits per second, `rtt` the largest unloaded one over the paths when the terms are signed.
#[must_use]
pub fn window_bytes(rate_max: u64, rtt: Duration) -> u64 {
    let span_us = rtt.as_micros().saturating_mul(3) / 2 + 100_000;
    let bytes = u128::from(rate_max).saturating_mul(span_us) / 8_000_000;
    u64::try_from(bytes).unwrap_or(WINDOW_MAX).clamp(WINDOW_MIN, WINDOW_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_rounded_once_in_the_payers_favour() {
        let price = Price { up: 3, down: 5 };
        assert_eq!(amount_due(Amount(7), 0, (1 << 30) - 1, price), Some(Amount(7 + 4)));
        assert_eq!(amount_due(Amount(7), 1 << 30, 1 << 30, price), Some(Amount(15)));
        assert_eq!(amount_due(Amount(u128::MAX), 1 << 30, 0, price), None);
    }

    #[test]
    fn a_window_stays_within_its_bounds() {
        assert_eq!(window_bytes(56_000, Duration::from_secs(1)), WINDOW_MIN);
        assert_eq!(window_bytes(10_000_000_000, Duration::ZERO), WINDOW_MAX);
        assert_eq!(window_bytes(u64::MAX, Duration::MAX), WINDOW_MAX);
        assert_eq!(window_bytes(100_000_000, Duration::from_millis(40)), 2_000_000);
    }
}
