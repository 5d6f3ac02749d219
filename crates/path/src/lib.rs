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
//! - Once a path has been silent for 2 PTO although something is outstanding on it, packets try the
//!   best other one, and the other side answers there; after max(3 PTO, 300 ms) either side leaves it
//!   for one that has echoed since. If it answers before, nothing has changed.
//! - Packets have one size for all paths. What each path carries, probes of that size find out, echoed
//!   at the same size; packets grow to what all paths carry. One that turns out to carry less is left for
//!   another of its kind, or packets must shrink. An address that was not echoed gets small probes only.
//! - A direct path that died may come back after a hold-down, so that a bad one does not flap.
//! - Ports are guessed only while there is no direct path, by one side, at the address that a
//!   relay of its own choosing sees for the other, and no more than [`GUESSES_MAX`] of them.
//! - Whatever is sent straight to an address comes out of the node's one [`Budget`]: 500 probes in
//!   any second, and so many entries of its NAT's table.
//! - An address that has not echoed gets [`STRANGER_PROBES_MAX`] probes and no more, but for the one
//!   that a relay sees; a private address none at all, unless relays see both nodes at one
//!   ([`Whereabouts`]).
//!
//! What a node's own NAT does a [`Survey`] finds out: it asks relays what they see. [`role`] says
//! which of two nodes guesses and which opens sockets to be guessed; [`Guess`] is what may be
//! guessed. A [`TimerSurvey`] measures how long the NAT keeps a mapping, and [`Keepalive`] remembers it
//! for each network: direct paths are echoed as often as that demands.

mod agent;
mod budget;
mod candidate;
mod event;
mod hairpin;
mod keepalive;
mod nat;
mod predict;
mod punch;
mod rank;
mod strangers;
mod survey;
mod timer;
mod tokens;
mod whereabouts;

pub use agent::Agent;
pub use budget::Budget;
pub use candidate::{Candidate, CandidateKind, to_tell, usable};
pub use event::{Activity, Event, Probe, Reason};
pub use hairpin::Hairpin;
pub use keepalive::{KEEPALIVE_MAX, KEEPALIVE_MIN, Keepalive};
pub use nat::{Allocator, Filtering, Mapping, Nat, Observation, allocator, filtering, mapping};
pub use predict::{Guess, Role, role};
pub use punch::Opened;
pub use rank::{Kind, Pair, Path, Rank, SocketId};
pub use survey::{Question, RelayPort, SURVEY_SOCKETS, Survey, SurveyRelay};
pub use timer::{Timer, TimerSurvey};
pub use whereabouts::Whereabouts;

/// Most remote addresses that are probed for one session; more are ignored.
pub const CANDIDATES_MAX: usize = 16;
/// Probes that an address may get in one session before it echoes, wherever it was named; and one more
/// for each that came from there.
pub const STRANGER_PROBES_MAX: u32 = 16;
/// Smallest packets of a session, in bytes of UDP payload, as RFC 9000 demands of every path (section 14).
pub const PACKET_MIN: u16 = 1200;
/// Largest: with a relay frame's header they fit an Ethernet packet over IPv6.
pub const PACKET_MAX: u16 = 1420;
/// Most ports that are guessed at one target in one round; then the target is left alone for a
/// minute, and each time for twice as long.
pub const GUESSES_MAX: u16 = 1024;
