//! The relay: sockets, threads and the control connections around `sluice-relay-core`.
//!
//! One UDP port, one socket per thread in the same `SO_REUSEPORT` group. The kernel hands a frame
//! to the socket that its flow number names, so that flows spread over the threads even if all
//! come from one address, and leaves QUIC packets to its own hash. A thread forwards frames right
//! where it received them, one batch at a time: no queue, no task, no copy. QUIC packets go over
//! a bounded queue to the one quinn endpoint, which carries control connections only.
//!
//! Clients whose network blocks UDP send the same packets over TLS on TCP. A task for each such
//! stream forwards what it brings, as a thread would; what leaves over it goes through a bounded
//! queue, so that nobody waits for a slow one.
//!
//! A control connection costs one task. It reads messages, hands them to
//! [`sluice_relay_core::Admission`] behind a lock, and obeys what comes out.
//!
//! Where the relay charges, each reservation has a `RelayMeter`: the forwarding path counts and
//! stops at the limit by itself, and raises an alarm each quarter window; then the meter claims,
//! takes the holder's voucher, and once the ledger has it on disk the limit rises.
//!
//! ```no_run
//! # async fn example() -> Result<(), sluice_relay::RelayError> {
//! use sluice_relay::{Relay, RelayConfig};
//!
//! let keypair = sluice_proto::Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes");
//! let config = RelayConfig::new(keypair, "127.0.0.1:0".parse().expect("an address"));
//! let relay = Relay::start(config).await?;
//! println!("listening on {}", relay.local_addr());
//! relay.drain(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod config;
mod control;
mod data;
mod desk;
mod endpoint;
mod meters;
mod payment;
mod relay;
mod rest;
mod shared;
mod sockets;
mod steer;
mod tcp;

pub use config::{RelayConfig, RelayError, RelayPayment};
pub use meters::MeterStats;
pub use relay::{Relay, RelayStats};
pub use sluice_metering::Counts;
pub use sluice_relay_core::{AccountTotals, Dropped, FlowStats, LegId, Limits, ReservationStats};
