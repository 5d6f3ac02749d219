//! What was dropped, by kind.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal,)*) => {
        /// Why a frame or packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Dropped {
            $($(#[$doc])* $kind,)*
        }

        impl Dropped {
            /// Every kind, in the order of [`Drops::snapshot`].
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name in metrics: lower case, underscores.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// Shorter than a frame's header, or longer than any packet.
    Size "size",
    /// Neither a QUIC packet nor a frame of a known type that a client may send.
    Type "type",
    /// No flow of this number.
    NoFlow "no_flow",
    /// The tag is not the leg's.
    Tag "tag",
    /// The counter came before, or is too old to tell.
    Replay "replay",
    /// Beyond what a provisional flow may carry.
    Provisional "provisional",
    /// Beyond the rate of a leg or reservation.
    Rate "rate",
    /// Beyond the holder's grant and its trickle.
    Grant "grant",
    /// Beyond the reservation's window and its trickle.
    Unpaid "unpaid",
    /// The leg's counter is used up.
    Exhausted "exhausted",
    /// The system's send buffer was full.
    SendBuffer "send_buffer",
    /// The queue to the QUIC endpoint was full.
    QuicQueue "quic_queue",
    /// The queue to a client's TCP connection was full, or the connection gone.
    StreamQueue "stream_queue",
    /// A TCP connection beyond the bounds on them.
    StreamRefused "stream_refused",
    /// A TCP connection that broke the rules, or stopped in the middle.
    StreamBroken "stream_broken",
    /// From an address that no packet can come from.
    Source "source",
}

/// Counts of what was dropped. Shared by threads.
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; Dropped::ALL.len()]);

impl Drops {
    /// Counts `n` drops of one kind.
    pub fn add(&self, kind: Dropped, n: u64) {
        self.0[kind as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Drops of one kind so far.
    #[must_use]
    pub fn count(&self, kind: Dropped) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// All counts, in the order of [`Dropped::ALL`].
    #[must_use]
    pub fn snapshot(&self) -> Vec<(Dropped, u64)> {
        Dropped::ALL.iter().map(|kind| (*kind, self.count(*kind))).collect()
    }
}
