//! Orders, bids and leases: parsed at the edge into valid types, or refused by a named error.
//!
//! Each stands beside the bytes that its signature covers. What binds nobody to anything (when to
//! bid, whom to choose) is not here.

mod bid;
mod fields;
mod lease;
mod order;
mod stamp;

pub use bid::{BIDDER_RELAYS_MAX, Bid};
pub use fields::{
    DirectPolicy, MarketError, Money, ORDER_SERVICES_MAX, RATE_MAX, Region, ServiceKind,
    ServiceOffer, VOLUME_MAX,
};
pub use lease::{Award, AwardAnswer, AwardRefusal, Lease, Signatures, SignedLease, Signer};
pub use order::{
    BIDDING_MAX_MS, DEPTH_MAX, DURATION_MAX_S, DURATION_MIN_S, HOLD_MAX_S, Order, OrderId,
    OrderProof, SealedBid, SignedOrder, close_order, closes_order, is_asked,
};
pub use stamp::{STAMP_BITS_MAX, find_stamp, stamp_bits};

/// Largest market message: an order with the most services, a lease with the most relays.
pub const MARKET_MESSAGE_MAX: usize = 3072;
