//! What a leg does to packets.

use std::time::Duration;

/// What happens between the backbone and the end of a leg.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bits a second towards the backbone, Ethernet headers included. 0: as fast as the machine.
    pub up: u64,
    /// Bits a second from the backbone.
    pub down: u64,
    /// One way, in each direction.
    pub delay: Duration,
    /// The most that is added to the delay, evenly spread.
    pub jitter: Duration,
    /// The part of packets that is lost in each direction, 0 to 1.
    pub loss: f64,
}

impl Link {
    /// A machine in a data centre: no limit to the rate, 5 ms from the backbone.
    pub const DATA_CENTRE: Self =
        Self { up: 0, down: 0, delay: Duration::from_millis(5), jitter: Duration::ZERO, loss: 0.0 };

    /// A home on fibre: 100 Mbit/s each way, 10 ms from the backbone.
    pub const FIBRE: Self = Self {
        up: 100_000_000,
        down: 100_000_000,
        delay: Duration::from_millis(10),
        jitter: Duration::ZERO,
        loss: 0.0,
    };
}
