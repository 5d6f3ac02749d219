//! The auction and the choice of relays: who asks, who bids, who is taken, and why not the others.
//!
//! ```text
//!   Tenant                                            Bidder, at each provider
//!   place() -> order, stamped ---- gossip ----------> handle_order: may I, will I, at what price
//!   handle_bid: genuine, in time <--- sealed bid ---- when the order's clock has come to its price
//!   enough -> closed ------------- gossip ----------> the others keep silent
//!   measures the best, awards ------- award --------> handle_award: still room, the terms I offered
//!   lease of both <------------------ answer -------- signed; the room is kept until it is funded
//! ```
//!
//! **Bids come in the order of their price.** An order has a clock that rises to its highest price, and
//! a bid may not be sent before the clock has come to it ([`Order::bid_after_ms`]). The tenant refuses
//! one that is early for its price, so that bidding early is bidding low; it hears the cheapest first, and
//! says when it has enough. So neither side's work grows with the number of those who could have bid.
//!
//! **An order asks a part of a region.** Its topic is the region and some leading bits of the hash of a
//! bidder's name ([`shard_depth`]): how many hear an order stays the same however many there are.
//!
//! Nobody is trusted for anything that can be measured or counted: latency is measured by the tenant,
//! success is one's own experience ([`Reputation`]), and what cannot be true is refused by a name and
//! counted ([`OrderRefusal`], [`BidRefusal`], [`AwardRefused`]). Each choice explains itself
//! ([`Verdict`], [`NoBid`], [`RelayVerdict`]).
//!
//! Relays are drawn, not simply the cheapest taken ([`RelayBook`]): whoever has the best prices and a
//! thousand names on ten prefixes would otherwise have everybody's traffic.
//!
//! Everything here is sans-IO: facts go in with `handle_*(.., now)`, actions come out of
//! `poll_transmit`, `poll_event` and `poll_timeout`, to be drained after each mutation. Secrets and
//! names are derived from the seed that the caller gives.
//!
//! [`Order::bid_after_ms`]: sluice_proto::market::Order::bid_after_ms

mod award;
mod bidder;
mod draw;
mod limits;
mod moment;
mod policy;
mod refusal;
mod relays;
mod reputation;
mod seal;
mod tenant;
mod terms;

pub use award::{AwardPolicy, Verdict, Weights};
pub use bidder::{Bidder, BidderEvent, BidderTransmit, Fate, Made, Seller};
pub use limits::{IpPrefix, Limiter};
pub use moment::Moment;
pub use policy::{BidPolicy, Hours, NoBid};
pub use refusal::{AwardRefused, BidRefusal, OrderRefusal, Tally};
pub use relays::{
    PREFIX_SEATS_MAX, RelayBook, RelayChoice, RelayFacts, RelayPolicy, RelayVerdict,
    prefix_share_max_ppm,
};
pub use reputation::{Experience, Reputation};
pub use seal::{SealError, noise_public, open_bid, seal_bid};
pub use tenant::{
    Considered, NotChosen, Offer, Offers, Tenant, TenantEvent, TenantPolicy, TenantTransmit, Want,
    WhyNoLease, shard_depth,
};
pub use terms::lease_of;
