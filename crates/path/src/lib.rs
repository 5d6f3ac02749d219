//! Which way the packets of one session go.
//!
//! A session between two nodes outlives any path. An [`Agent`] on each side knows the paths there
//! are: one through each relay that carries the session, and one for each address at which the
//! other node was heard. It proves them by echoes, watches the one in use, and chooses.
//!
//! The agent is sans-IO: facts go in through `handle_*(.., now)` and the `add_*` methods; after
//! each, drain [`Agent::poll_transmit`] and [`Agent::poll_event`], then sleep until
//! [`Agent::poll_timeout`]. It reads no clock and draws no random number: tokens come from the
//! seed.
//!
//! **The rules.**
//!
//! - A path that was not echoed end to end is not a path.
//! - The choice is an ordering that one can read ([`Rank`]): alive, then direct before relayed,
//!   then round-trip time with a margin. The *controlling* side (the tenant) makes it; the side
//!   that switches says so in a `use` probe on the new path, and the other follows.
//! - Either side leaves a path that is silent although something is outstanding on it, after
//!   max(2 PTO, 250 ms), if another path has echoed since.
//! - A direct path that died may come back after a hold-down, so that a bad one does not flap.

mod agent;
mod candidate;
mod rank;

pub use agent::{Activity, Agent, Event, Probe, Reason};
pub use candidate::usable;
pub use rank::{Kind, Pair, Path, Rank, SocketId};

/// Most remote addresses that are probed for one session; more are ignored.
pub const CANDIDATES_MAX: usize = 16;
