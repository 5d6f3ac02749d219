//! Sessions and reservations that cost something: the real accounts, gates, pumps, ledgers and
//! relays, on an embedded chain.
//!
//! Both ends of a session begin with the terms that they would have come to; the relay's terms are
//! offered and accepted as ever. Prices are one token base unit a byte, so that amounts read as
//! bytes. Programs are made up ([`Program`]): what they say can be foretold, so each end checks it.

mod bank;
mod deal;
mod echo;
mod holder;
mod program;
mod provider;
mod tenant;

pub(crate) use bank::stored;
pub use bank::{Bank, Purser};
pub use deal::{Deal, Meeting, RelayEdge, Tariff, megabits};
pub use echo::Typing;
pub use holder::{Ear, Holder, HolderView};
pub use program::{Asked, Outcome, Program};
pub use provider::{ServeOptions, Served, serve};
pub use tenant::{Guest, chat, fetch};
