//! How much one identity or one network may ask of a node.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The network that an address belongs to: its /24, or its /48 with IPv6. What one household or one
/// rented machine can have many addresses of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpPrefix {
    /// A /24.
    V4([u8; 3]),
    /// A /48.
    V6([u8; 6]),
}

impl IpPrefix {
    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4([a, b, c]) => write!(f, "{a}.{b}.{c}.0/24"),
            Self::V6([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}{b:02x}:{c:02x}{d:02x}:{e:02x}{g:02x}::/48")
            }
        }
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A token bucket for each key, as the generic cell rate algorithm (ITU-T I.371) keeps them: one
/// moment each. When it holds its most keys, and all of them are in use, the others share one.
#[derive(Debug, Clone)]
pub struct Limiter<K> {
    every: Duration,
    burst: u32,
    keys_max: usize,
    /// When each key's bucket is full again.
    full_at: BTreeMap<K, Instant>,
    others_full_at: Option<Instant>,
}

impl<K: Ord + Clone> Limiter<K> {
    /// One every `every`, and `burst` at once, for each of at most `keys_max` keys.
    #[must_use]
    pub const fn new(every: Duration, burst: u32, keys_max: usize) -> Self {
        Self { every, burst, keys_max, full_at: BTreeMap::new(), others_full_at: None }
    }

    /// Whether one more of this key is within its limit; if so it is counted.
    pub fn admit(&mut self, key: &K, now: Instant) -> bool {
        if !self.full_at.contains_key(key) && self.full_at.len() >= self.keys_max {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let (every, room) = (self.every, self.every * self.burst.saturating_sub(1));
        let known = self.full_at.contains_key(key) || self.full_at.len() < self.keys_max;
        let full_at = if known {
            self.full_at.entry(key.clone()).or_insert(now)
        } else {
            self.others_full_at.get_or_insert(now)
        };
        if full_at.saturating_duration_since(now) > room {
            return false;
        }
        *full_at = (*full_at).max(now) + every;
        true
    }

    /// Keys that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }
}
