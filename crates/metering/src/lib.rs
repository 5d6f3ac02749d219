//! Counting, the gate, windows, statements and vouchers: who owes whom what, and who may send.
//!
//! There are two edges, and on each a payer and a payee:
//!
//! | edge | payer | payee | what is counted |
//! |---|---|---|---|
//! | tenant's | [`Payer`], the tenant | [`Payee`], the provider, behind its [`Gate`] | payload of services |
//! | relay's | [`HolderMeter`], the provider | [`RelayMeter`], the relay | frame bytes |
//!
//! The payer states what it saw in a [`Statement`] and signs for it; the payee checks the statement
//! against its own count, makes the voucher durable, and only then counts and acknowledges it. Where
//! only the payee can count exactly (bytes *up*; both ways at a relay) it sends a claim, and the
//! payer pays it if its own count allows. All counts are cumulative over the lease, so that replay,
//! reordering and loss do no harm; a voucher is due each quarter window, when a claim asks for one,
//! at a flush and after 30 s of silence. What a peer says that cannot be true becomes an event with
//! evidence ([`Lie`]) and changes nothing.
//!
//! The payee never has more than one window sent and unpaid, bytes in flight included: it asks
//! before it sends ([`Gate::permit`]), and what is granted counts at once. The window is shared among
//! streams so that paused readers cannot keep it from the others. A payee that is blocked asks for
//! a statement by repeating its claim, so an honest payer always brings the flow back.
//!
//! What a payer was sent and will never pay (the gaps of reset streams, what was open when a session
//! broke) is written off, up to four windows and 5 % of what it paid; beyond that the gate closes, so
//! that resetting and reconnecting again and again brings nobody a free ride. A provider adds these
//! losses up by node and by wallet over their leases ([`Payee::after_losses`]). So all nodes that one
//! wallet pays for can take from it at most four windows and 5 % of what they paid, and one window for
//! each lease that they have at once, each on a channel of its own whose deposit holds its price.
//!
//! A channel pays one lease of a payee at a time, and each lease begins at what was earned or redeemed
//! on it before ([`Channel::begin`]).
//!
//! Before a session begins both sides show their newest voucher, and go on from the higher one
//! ([`Resumption`]): a ledger that was restored from a backup makes nobody pay twice.
//!
//! Everything here is sans-IO: facts go in with `handle_*`, actions come out of `poll_event`,
//! `poll_transmit` and `poll_timeout`, to be drained after each mutation. The caller owns the
//! ledger: on `Persist { seq, record }` it writes, then calls `handle_persisted(seq)` (payer) or
//! `handle_durable(seq)` (payee). Money is integers only, and nothing here overflows.

#![warn(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::float_arithmetic)]

mod binding;
mod channel;
mod counts;
mod debt;
mod desk;
mod gate;
mod grant;
mod holder;
mod lie;
mod payee;
mod payer;
mod relay_meter;
mod repeat;
mod resume;
mod sight;
mod statement;
mod terms;
mod till;
mod voucher;

pub use binding::{OnChain, Unfit};
pub use channel::{Channel, Purse, show_channel};
pub use counts::{Counts, Direction, StreamIndex};
pub use debt::Debt;
pub use gate::{Gate, Permit, Reason};
pub use grant::{
    GRANT_BASE, GRANT_PACKET_MIN, GRANT_PER_SENT, RECEIVE_WINDOW_BASE, counted_as_sent,
    grant_limit, receive_window,
};
pub use holder::HolderMeter;
pub use lie::{Evidence, Lie};
pub use payee::{Losses, Payee, PayeeEvent};
pub use payer::{Payer, PayerEvent};
pub use relay_meter::{RelayMeter, RelayMeterEvent};
pub use resume::{Resumption, Standing, check_session, session_after};
pub use sight::{REDEEM_MARGIN, Sight};
pub use sluice_proto::{RelayBudget, RelayFlow};
pub use statement::{Statement, StreamPosition, StreamState};
pub use terms::{Payment, Terms, TermsError, accept_terms, check_accept, terms_hash};
pub use voucher::VoucherRecord;

/// Largest pay message: what fits a datagram on every path.
pub const DATAGRAM_MAX: usize = 1100;
