//! Clients whose network blocks UDP: the streams that carry their packets instead.
//!
//! A stream has an address of its own, made up, so that everything which is told where a packet
//! came from and where to send the answer works over streams as it does over UDP. To quinn that is
//! [`StreamId::addr`]; elsewhere a [`ReturnAddress`] keeps the client's real address, which bounds
//! are counted by, and names the stream in place of our own address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use sluice_proto::wire::encode_addr;

use crate::leg::ReturnAddress;
use crate::limits::{FedClock, Limits, PacePerPrefix, Prefix};

/// First 8 bytes of the addresses of streams: the discard-only prefix (RFC 6666), from which
/// nothing can be answered.
const STREAM_PREFIX: [u16; 4] = [0x0100, 0, 0, 0];
/// Port of all of them.
const STREAM_PORT: u16 = 1;
/// A prefix may open this many times its streams per second at once.
const BURST: u32 = 8;

/// One stream's number, never used twice while the relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

impl StreamId {
    /// The address by which QUIC knows the stream.
    #[must_use]
    pub fn addr(self) -> SocketAddr {
        SocketAddr::new(self.ip(), STREAM_PORT)
    }

    /// The stream that an address stands for. No packet on the wire has such a source: drop it.
    #[must_use]
    pub fn of(ip: IpAddr) -> Option<Self> {
        let IpAddr::V6(ip) = ip else { return None };
        let (prefix, number) = (u128::from(ip) >> 64, u128::from(ip) as u64);
        (prefix == u128::from(Self(0).ip6()) >> 64).then_some(Self(number))
    }

    /// Where a client is reached whose TCP connection comes from `remote`.
    #[must_use]
    pub fn return_address(self, remote: SocketAddr) -> ReturnAddress {
        ReturnAddress { remote, local: Some(self.ip()) }
    }

    fn ip(self) -> IpAddr {
        self.ip6().into()
    }

    fn ip6(self) -> Ipv6Addr {
        let [a, b, c, d] = STREAM_PREFIX.map(u128::from);
        Ipv6Addr::from(a << 112 | b << 96 | c << 80 | d << 64 | u128::from(self.0))
    }
}

impl ReturnAddress {
    /// The stream that leads there; none: UDP does.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        self.local.and_then(StreamId::of)
    }

    /// The client's address, as messages tell it. A stream's port says nothing of UDP: it is 0.
    pub(crate) fn seen(&self) -> Bytes {
        let port = if self.stream().is_some() { 0 } else { self.remote.port() };
        encode_addr(SocketAddr::new(self.remote.ip(), port))
    }
}

/// Why a TCP connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamRefused {
    /// There are as many as may be.
    #[error("too many TCP connections")]
    Full,
    /// There are as many from its /24 or /48 as may be.
    #[error("too many TCP connections from these addresses")]
    Prefix,
    /// They come too fast from its /24 or /48.
    #[error("TCP connections come too fast from these addresses")]
    Pace,
}

/// Which streams stand: counts them, and keeps their bounds.
#[derive(Debug)]
pub struct Streams {
    max: usize,
    per_prefix_max: usize,
    clock: FedClock,
    pace: PacePerPrefix,
    so_far: u64,
    open: BTreeMap<StreamId, Prefix>,
    per_prefix: BTreeMap<Prefix, usize>,
}

impl Streams {
    /// No stream, within `limits`.
    #[must_use]
    pub fn new(limits: &Limits, now: Instant) -> Self {
        let clock = FedClock::new(now);
        let per_s = limits.streams_per_prefix_per_s;
        Self {
            max: limits.streams_max,
            per_prefix_max: limits.streams_per_prefix_max,
            pace: PacePerPrefix::new(per_s, per_s.saturating_mul(BURST), &clock),
            clock,
            so_far: 0,
            open: BTreeMap::new(),
            per_prefix: BTreeMap::new(),
        }
    }

    /// Takes a TCP connection from `ip`, before anything is read from it.
    ///
    /// # Errors
    /// When a bound is met: close it.
    pub fn open(&mut self, ip: IpAddr, now: Instant) -> Result<StreamId, StreamRefused> {
        self.clock.feed(now);
        let prefix = Prefix::of(ip);
        if self.open.len() >= self.max {
            return Err(StreamRefused::Full);
        }
        if self.per_prefix.get(&prefix).is_some_and(|count| *count >= self.per_prefix_max) {
            return Err(StreamRefused::Prefix);
        }
        if !self.pace.allows(prefix) {
            return Err(StreamRefused::Pace);
        }
        self.so_far += 1;
        let id = StreamId(self.so_far);
        self.open.insert(id, prefix);
        *self.per_prefix.entry(prefix).or_default() += 1;
        Ok(id)
    }

    /// A stream is gone.
    pub fn close(&mut self, id: StreamId) {
        let Some(prefix) = self.open.remove(&id) else { return };
        if let Some(count) = self.per_prefix.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.per_prefix.remove(&prefix);
            }
        }
    }

    /// Streams that stand.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none stands.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}
