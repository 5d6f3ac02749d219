//! Labs: the real `sluice` binaries behind real kernel NAT.
//!
//! A lab is a small internet of network namespaces on one machine. In the middle stands a backbone
//! that forwards packets; each of its legs ends at a relay, at a home, or at a machine with a public
//! address. What a home's router does with packets is said by [`Access`] and done by nftables.
//!
//! - [`Namespace`]: a network stack of its own. It has no name, so that any number of labs run side
//!   by side, and the kernel takes it away with the last process in it, however that ended.
//! - [`Internet`]: the backbone, its legs, and the check that they are as asked.
//! - [`Link`]: what a leg does to packets: rate by tbf; delay, jitter and loss by [`Conditioner`].
//! - [`Home`]: somebody's access to it, with a LAN behind a router, or two routers in a row.
//! - [`Upnp`]: a real miniupnpd on a home's router.
//! - [`Upnp`]: a real miniupnpd on a home's router.
//! - [`Cell`]: a provider and a tenant in their homes, relays, and a download between them.
//! - [`Frames`]: what somebody sees on a wire of the lab.
//!
//! **A lab measures itself first.** [`Internet::measure`] sends packets across each leg; it refuses
//! to go on when a rate is off by more than 2 %, or a delay by more than 1 ms. Kernels without netem
//! are common, and tools that rely on it can succeed without doing anything.
//!
//! Delays are held by packets waiting for a verdict (NFQUEUE) in the *backbone's* FORWARD chain.
//! In the sender's own namespace a packet that waits would still count against its socket, and TCP
//! would crawl.
//!
//! The topologies are made with `ip`, `nft` and `tc`. The crate `patchbay` was looked at and left: its
//! addresses are all in 198.18.0.0/15, where miniupnpd maps nothing; its link conditions need
//! netem; and a test process that dies hard leaves nothing behind here. Packets are queued by a
//! netlink socket of our own, since the crate `nfq` does not let one wait for a packet or a
//! deadline, whichever is first.
//!
//! `cargo labs` runs the labs. They need root, and the programs in [`NEEDED`].

#![expect(clippy::disallowed_methods, reason = "labs drive real kernels in real time")]

mod access;
mod cell;
mod conditioner;
mod frames;
mod internet;
mod link;
mod measure;
mod namespace;
mod queue;
mod upnp;

pub use access::Access;
pub use cell::{Cell, PathKind};
pub use conditioner::{Conditioner, Tally};
pub use frames::{Frame, Frames};
pub use internet::{Home, Host, Internet};
pub use link::Link;
pub use namespace::Namespace;
pub use upnp::{Protocol, Upnp};

/// The programs that labs use.
pub const NEEDED: [&str; 8] =
    ["ip", "tc", "nft", "iptables-nft", "curl", "python3", "setpriv", "miniupnpd"];
