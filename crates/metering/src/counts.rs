//! Cumulative byte counts of one edge.

use std::fmt;

/// Which way bytes go, as the payer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From payer to payee.
    Up,
    /// From payee to payer.
    Down,
}

/// The index of a QUIC stream that the tenant opened: the same number at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamIndex(pub u64);

/// Bytes each way, cumulative over a lease or reservation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// From payer to payee.
    pub up: u64,
    /// From payee to payer.
    pub down: u64,
}

impl Counts {
    /// Both ways together.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.up.saturating_add(self.down)
    }

    /// Whether neither count is below `other`'s.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.up >= other.up && self.down >= other.down
    }

    /// What was added since `earlier`, both ways together; a count that is below counts as none.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.up.saturating_sub(earlier.up).saturating_add(self.down.saturating_sub(earlier.down))
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes up and {} down", self.up, self.down)
    }
}
