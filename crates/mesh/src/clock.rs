//! The clock on the wall.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix milliseconds; 0 before 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A random byte, to spread what many nodes would do at once.
pub(crate) fn spread() -> u8 {
    let mut byte = [0];
    getrandom::fill(&mut byte).expect("the system gives random bytes");
    byte[0]
}
