//! Bounds, and the rate limiters that keep them.

use std::num::NonZeroU32;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// What one relay gives, to one client and in all.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bits per second that the relay takes from one client which is not a holder.
    pub leg_bits_per_s: u64,
    /// Bits per second that the relay forwards for one reservation, both ways together.
    pub reservation_bits_per_s: u64,
    /// Clients at once, holders and tenants together.
    pub legs_max: usize,
    /// Clients at once from one /24 or /48.
    pub legs_per_prefix_max: usize,
    /// Reservations at once.
    pub reservations_max: usize,
    /// Flows of one holder at once.
    pub flows_per_holder_max: usize,
    /// Flows of one tenant at once.
    pub flows_per_tenant_max: usize,
    /// Control messages per second of one client; bursts of four times as many.
    pub messages_per_s: u32,
    /// Connections and rendezvous per second from one /24 or /48; bursts of eight times as many.
    pub openings_per_prefix_per_s: u32,
    /// Rendezvous per second of one client; bursts of eight times as many.
    pub openings_per_leg_per_s: u32,
    /// TCP connections at once, of clients whose network blocks UDP.
    pub streams_max: usize,
    /// The same from one /24 or /48.
    pub streams_per_prefix_max: usize,
    /// New ones per second from one /24 or /48; bursts of eight times as many.
    pub streams_per_prefix_per_s: u32,
    /// Silence after which a client is forgotten.
    pub keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            leg_bits_per_s: 2_000_000_000,
            reservation_bits_per_s: 2_000_000_000,
            legs_max: 65_536,
            legs_per_prefix_max: 8192,
            reservations_max: 16_384,
            flows_per_holder_max: 4096,
            flows_per_tenant_max: 256,
            messages_per_s: 1000,
            openings_per_prefix_per_s: 1024,
            openings_per_leg_per_s: 64,
            streams_max: 4096,
            streams_per_prefix_max: 512,
            streams_per_prefix_per_s: 32,
            keepalive: Duration::from_secs(60),
        }
    }
}

/// Time as the owner last told it, for the rate limiters: they read a clock by themselves.
#[derive(Debug, Clone)]
pub(crate) struct FedClock {
    base: Instant,
    elapsed_ns: Arc<AtomicU64>,
}

/// Nanoseconds since the clock's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

impl FedClock {
    pub(crate) fn new(base: Instant) -> Self {
        Self { base, elapsed_ns: Arc::default() }
    }

    /// Moves the clock to `now`, never back; returns milliseconds since the base.
    pub(crate) fn feed(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.base);
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.elapsed_ns.fetch_max(ns, Ordering::Relaxed);
        ns / 1_000_000
    }

    /// The instant that lies `ms` milliseconds after the base.
    pub(crate) fn at_ms(&self, ms: u64) -> Instant {
        self.base + Duration::from_millis(ms)
    }
}

impl Clock for FedClock {
    type Instant = Tick;

    fn now(&self) -> Tick {
        Tick(self.elapsed_ns.load(Ordering::Relaxed))
    }
}

impl Add<Nanos> for Tick {
    type Output = Self;

    fn add(self, other: Nanos) -> Self {
        Self(self.0.saturating_add(other.as_u64()))
    }
}

impl Reference for Tick {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.checked_sub(duration.as_u64()).unwrap_or(self.0))
    }
}

/// Limiters count cells of so many bytes: a byte at 10 Gbit/s would last less than a nanosecond.
const CELL: usize = 64;
/// The limiter's least burst: several of the largest batches.
const BURST_BYTES_MIN: u64 = 512 * 1024;
/// A burst is this part of a second.
const BURST_PER_S: u64 = 20;
/// Highest rate that the limiter's nanoseconds can express within 20 %.
const BITS_PER_S_MAX: u64 = 100_000_000_000;

/// A rate limit in bytes, shared by threads.
pub(crate) struct Throttle(RateLimiter<NotKeyed, InMemoryState, FedClock, NoOpMiddleware<Tick>>);

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Throttle(..)")
    }
}

impl Throttle {
    pub(crate) fn new(bits_per_s: u64, clock: &FedClock) -> Self {
        let bytes = bits_per_s.min(BITS_PER_S_MAX) / 8;
        let burst = (bytes / BURST_PER_S).max(BURST_BYTES_MIN);
        let quota = Quota::per_second(cells(bytes)).allow_burst(cells(burst));
        Self(RateLimiter::direct_with_clock(quota, clock.clone()))
    }

    /// 16 kbit/s, two full packets at once: what goes on beyond a window or a grant, so that a
    /// retransmission or a keepalive always gets through.
    pub(crate) fn trickle(clock: &FedClock) -> Self {
        const BURST_CELLS: NonZeroU32 = NonZeroU32::new(48).expect("not zero");
        // 64 bytes each 32 ms are 16 kbit/s.
        let quota = Quota::with_period(Duration::from_millis(32)).expect("not zero");
        Self(RateLimiter::direct_with_clock(quota.allow_burst(BURST_CELLS), clock.clone()))
    }

    pub(crate) fn allows(&self, bytes: usize) -> bool {
        let n = u32::try_from(bytes.div_ceil(CELL)).ok().and_then(NonZeroU32::new);
        n.is_none_or(|n| matches!(self.0.check_n(n), Ok(Ok(()))))
    }
}

fn cells(bytes: u64) -> NonZeroU32 {
    let n = u32::try_from(bytes / CELL as u64).unwrap_or(u32::MAX);
    NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
}

/// A limit on events per second, shared by nobody.
pub(crate) struct Pace(RateLimiter<NotKeyed, InMemoryState, FedClock, NoOpMiddleware<Tick>>);

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pace(..)")
    }
}

impl Pace {
    pub(crate) fn new(per_s: u32, burst: u32, clock: &FedClock) -> Self {
        Self(RateLimiter::direct_with_clock(quota(per_s, burst), clock.clone()))
    }

    pub(crate) fn allows(&self) -> bool {
        self.0.check().is_ok()
    }
}

/// A limit on events per second for each prefix of addresses.
pub(crate) struct PacePerPrefix(
    RateLimiter<Prefix, HashMapStateStore<Prefix>, FedClock, NoOpMiddleware<Tick>>,
);

impl std::fmt::Debug for PacePerPrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PacePerPrefix(..)")
    }
}

/// Prefixes remembered by a [`PacePerPrefix`] before those that are idle are forgotten.
const PREFIXES_MAX: usize = 65_536;

impl PacePerPrefix {
    pub(crate) fn new(per_s: u32, burst: u32, clock: &FedClock) -> Self {
        Self(RateLimiter::hashmap_with_clock(quota(per_s, burst), clock.clone()))
    }

    pub(crate) fn allows(&self, prefix: Prefix) -> bool {
        if self.0.len() >= PREFIXES_MAX {
            self.0.retain_recent();
            if self.0.len() >= PREFIXES_MAX {
                return false;
            }
        }
        self.0.check_key(&prefix).is_ok()
    }
}

fn quota(per_s: u32, burst: u32) -> Quota {
    let one = NonZeroU32::MIN;
    Quota::per_second(NonZeroU32::new(per_s).unwrap_or(one))
        .allow_burst(NonZeroU32::new(burst).unwrap_or(one))
}

/// The /24 or /48 of an address: what one customer of a network is likely to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix([u8; 7]);

impl Prefix {
    pub(crate) fn of(ip: std::net::IpAddr) -> Self {
        let mut bytes = [0; 7];
        match ip.to_canonical() {
            std::net::IpAddr::V4(ip) => {
                bytes[0] = 4;
                bytes[1..4].copy_from_slice(&ip.octets()[..3]);
            }
            std::net::IpAddr::V6(ip) => {
                bytes[0] = 6;
                bytes[1..].copy_from_slice(&ip.octets()[..6]);
            }
        }
        Self(bytes)
    }
}
