//! How much a relay may send to a holder at the holder's cost, and how an honest sender stays
//! within it.
//!
//! The relay is paid for what it sends to the holder, up to the grant: it would have the grant large,
//! the holder small. Who floods an open flow makes the holder acknowledge; if acknowledgements raised
//! the grant as payload does, the flood would pay for itself. The relay sees lengths only, and a
//! packet of one keystroke is as long as a bare acknowledgement: so the holder, which knows, says what
//! it grants, and its word decides. One that says too little only has its own tenants kept to 16 kbit/s;
//! one that says too much pays for it.
//!
//! For one tenant at one relay, from one acceptance of the relay's terms to the next, the holder pays for
//! at most
//!
//! `64 KiB + sent / 8 + 1.5 x delivered + 27/64 x elsewhere`
//!
//! frame bytes that the relay sent it: `sent` is what the holder sent on the tenant's flows, a packet
//! with payload counted as at least 1,200 bytes; `delivered` is payload that came through this relay and
//! that the tenant paid for; `elsewhere` is such payload of the session that came by another path before
//! the session came here. With it grew the credit that QUIC has given the peer (3/8 of it) and that cannot
//! be taken back: whoever uploads fills it at once when its path dies, in whatever order, so that nothing
//! may be delivered before all of it came. Where one relay carries all, the last term is 0.

use sluice_proto::RelayFlow;

/// Frame bytes granted once for each lease and relay, before anything was sent or delivered.
pub const GRANT_BASE: u64 = 64 * 1024;
/// Of what the holder sent, one eighth is granted: for acknowledgements and window updates.
pub const GRANT_PER_SENT: u64 = 8;
/// A packet with payload counts as at least this many bytes sent, so that small messages grant
/// enough for their answers.
pub const GRANT_PACKET_MIN: u64 = 1200;

/// Receive window of a session that a relay carries, before anything was delivered.
pub const RECEIVE_WINDOW_BASE: u64 = 48 * 1024;

/// What one packet of `len` frame bytes that carries payload counts as sent.
#[must_use]
pub const fn counted_as_sent(len: u64) -> u64 {
    if len < GRANT_PACKET_MIN { GRANT_PACKET_MIN } else { len }
}

/// Frame bytes that a relay may send to a holder on one flow and bill:
/// `64 KiB + sent / 8 + 1.5 x delivered`, where `sent` counts as [`counted_as_sent`] says and
/// `delivered` is payload that reached the holder's services. `first` tells whether the flow is
/// the first of its lease at this relay: the base is given once.
#[must_use]
pub const fn grant_limit(delivered: u64, sent: u64, first: bool) -> u64 {
    let base = if first { GRANT_BASE } else { 0 };
    let half = delivered / 2;
    base.saturating_add(sent / GRANT_PER_SENT).saturating_add(delivered).saturating_add(half)
}

/// The part of a flow's grant that only the holder knows, as it states it in a `Grant`: for what its
/// small packets with payload lacked, for payload that was delivered, and for credit that was carried
/// over, in frames of at least nine bytes for eight of payload.
pub(crate) fn stated(flow: &RelayFlow) -> u64 {
    let carried = flow.carried();
    let carried = carried.saturating_add(carried / 8);
    grant_limit(flow.delivered(), flow.small(), false).saturating_add(carried)
}

/// QUIC receive window of a holder while a relay carries the session, so that an honest sender
/// never meets the grant: `48 KiB + 3/8 x delivered`.
#[must_use]
pub const fn receive_window(delivered: u64) -> u64 {
    RECEIVE_WINDOW_BASE.saturating_add((delivered / 8).saturating_mul(3))
}
