//! What a buyer tells while it orders.

use std::sync::Arc;
use std::time::Duration;

use sluice_market::Considered;
use sluice_proto::market::{OrderId, Region, SignedLease};
use sluice_proto::{Amount, PeerId, Price};

/// Who is told what happened, and how long after the order.
#[derive(Clone)]
pub struct Teller(Arc<Tell>);

type Tell = dyn Fn(Duration, &Progress) + Send + Sync;

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Teller")
    }
}

impl Teller {
    /// Hands each word to `sink`.
    pub fn new(sink: impl Fn(Duration, &Progress) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    pub(super) fn tell(&self, since: Duration, progress: &Progress) {
        (self.0)(since, progress);
    }
}

/// When what happened, from the order on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// The first bid came.
    pub first_bid: Option<Duration>,
    /// The last bid came.
    pub last_bid: Option<Duration>,
    /// Bids that were weighed.
    pub bids: usize,
    /// Both had signed.
    pub leased: Option<Duration>,
    /// The provider had served under the lease, its channel open.
    pub usable: Option<Duration>,
}

/// What happens to an order.
#[derive(Debug, Clone)]
pub enum Progress {
    /// It is out.
    Placed {
        /// The order.
        order: OrderId,
        /// Where.
        region: Region,
    },
    /// A bid came, and is weighed.
    Bid {
        /// Whose.
        bidder: PeerId,
        /// Its price.
        price: Price,
        /// What the expected volume costs.
        cost: Amount,
    },
    /// A bid came, and is not weighed.
    Refused {
        /// Whose.
        bidder: PeerId,
        /// Why not.
        why: String,
    },
    /// A bidder was measured; `None`: it could not be.
    Measured {
        /// Who.
        bidder: PeerId,
        /// How far it is: an echo from end to end.
        latency: Option<Duration>,
    },
    /// A bid is taken, if its bidder signs.
    Awarded {
        /// Who.
        bidder: PeerId,
    },
    /// Both signed, and the lease is kept.
    Leased {
        /// The lease.
        lease: Arc<SignedLease>,
    },
    /// Whoever signed does not serve: the next one is tried.
    NotServed {
        /// Who.
        bidder: PeerId,
        /// What happened.
        why: String,
    },
    /// It is over: all bids, and what became of each.
    Considered(Vec<Considered>),
}
