//! How much a relay may send to a holder at the holder's cost, and how an honest sender stays
//! within it.

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

/// QUIC receive window of a holder while a relay carries the session, so that an honest sender
/// never meets the grant: `48 KiB + 3/8 x delivered`.
#[must_use]
pub const fn receive_window(delivered: u64) -> u64 {
    RECEIVE_WINDOW_BASE.saturating_add((delivered / 8).saturating_mul(3))
}
