//! The relay without its sockets: who may use it, and what becomes of each frame.
//!
//! A *leg* is one client as the relay knows it: keys from its control connection, the address to
//! answer to, a counter each way. A *reservation* is a leg whose holder accepted terms: its
//! [`Account`] counts frame bytes and stops them at a limit. A *flow* joins a tenant's leg to a
//! holder's; it has one number on each hop, and the number finds the key.
//!
//! Two faces share that state:
//!
//! - [`Forwarder`], the hot path: any number of threads call [`Forwarder::forward`] with one
//!   received batch each. It finds the flow, checks tag and counter, charges limits, rewrites the
//!   header in place and hands out runs that can leave as one batch. It takes no lock that two
//!   legs share, and none while a batch is being sent.
//! - [`Admission`], the control plane, behind one lock of its owner's: `handle_*(.., now)` takes
//!   messages and facts in, [`Admission::poll_action`] and [`Admission::poll_timeout`] give
//!   actions out, drained after each call.
//!
//! Nothing here reads a clock, a socket or a random source. Money is not known here either: the
//! owner says how many bytes an account may pass ([`Admission::set_limit`]), the forwarding path
//! holds it there. What is dropped is counted by kind ([`Drops`]) and never answered; nothing
//! that is answered is larger than the question.

mod account;
mod admission;
mod drops;
mod flow;
mod forward;
mod leg;
mod limits;
mod loopback;
mod streams;
mod table;

pub use account::{Account, AccountTotals};
pub use admission::{Action, Admission, FlowStats, LegId, ReservationStats, Reserve};
pub use drops::{Dropped, Drops};
pub use forward::{Event, Forwarder, Output, RelayPort};
pub use leg::ReturnAddress;
pub use limits::Limits;
pub use streams::{StreamId, StreamRefused, Streams};
