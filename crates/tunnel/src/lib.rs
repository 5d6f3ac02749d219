//! Services over sessions: TCP connections as QUIC streams, through the gate.
//!
//! Each TCP connection of a tenant becomes one bidirectional stream, opened by the tenant with the
//! service's name in front. A provider dials only the sockets that it declared ([`Services`]); a
//! name is all that a peer can say.
//!
//! ```text
//!  tenant's program <-TCP-> tenant        session (QUIC)        provider <-TCP-> service
//!                             |  one stream for each connection       |
//!                       Account(Payer)  <-- pay datagrams -->  Account(Gate, Payee)
//! ```
//!
//! What users of TCP expect holds: each direction ends by itself (FIN becomes the stream's end), a
//! reset is a reset at the other end, a slow reader slows its own writer and nobody else, and when
//! the session is lost its connections are reset at once.
//!
//! An [`Account`] stands between the pumps and `sluice-metering`. A provider's pump asks before it
//! hands bytes to QUIC and before it reads any; a tenant's reports what it read and wrote. The
//! account's task exchanges vouchers, claims and acknowledgements in the session's datagrams, and
//! asks its owner to make vouchers durable ([`Persist`]).
//!
//! **Few, large steps.** A pump reads what the service has, up to 128 KiB, into one buffer that
//! QUIC then keeps without a copy; the other way it gathers all packets that have arrived into one
//! vectored write. Both directions of a connection are one task.

mod account;
mod connect;
mod local;
mod pump;
mod serve;
mod tcp;

pub use account::{Account, AccountOptions, Persist, Snapshot, Stopped};
pub use connect::{ForwardError, Link, forward, listen};
pub use local::Local;
pub use pump::{Ended, Pumped, carry};
pub use serve::{OpenError, Services, serve, serve_stream};
