//! The simulator: the real nodes and relays on an in-memory network, in virtual time.
//!
//! A seed decides everything: the topology, the NATs' ports, delays, losses, faults. The same seed
//! gives the same run, packet by packet, so a run that fails is a number to be typed in again.
//!
//! - [`time`]: tokio's paused clock, dilated, so that seconds pass in milliseconds.
//! - [`net`]: hosts and gateways below one core; links with rate, delay, jitter, loss and queues.
//! - [`nat`]: RFC 4787's mappings, filters and allocators. [`class`] derives from them who can meet.
//! - [`scene`]: relays, and nodes in homes. [`workload`]: what they carry.
//! - [`check`]: onlookers that know nothing of the nodes' insides.
//! - [`paid`]: sessions and reservations that cost something, with ledgers on disk and a chain.
//! - [`matrix`], [`failover`], [`sim`], [`liars`], [`metering`], [`rates`],
//!   [`cost`], [`echoes`]: what the commands run.
//! - [`mesh`]: finding records among real swarms, in real time.
//! - [`market`]: the market alone, with as many homes as one likes.
//! - `crash`: the ledger in real processes on a real disk, ended and failed at every call.
//! - `fleet`: several processes on one PostgreSQL server, which is killed.
//!
//! **Architecture invariant:** nothing here is part of a node. Nodes and relays are driven through
//! their public faces, and know of the simulator only a `Network`, a `Clock` and a `Random`.

pub mod check;
pub mod class;
pub mod cost;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod crash;
pub mod echoes;
pub mod failover;
pub mod figures;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod fleet;
pub mod liars;
pub mod market;
pub mod matrix;
pub mod mesh;
pub mod metering;
pub mod nat;
pub mod net;
pub mod paid;
pub mod pool;
pub mod rates;
pub mod rng;
pub mod scene;
pub mod sim;
pub mod time;
pub mod workload;
