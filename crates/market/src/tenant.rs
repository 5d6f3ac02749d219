//! The tenant's side: places orders, weighs bids, awards until somebody serves.

mod auction;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::market::{
    AwardAnswer, Bid, DEPTH_MAX, DirectPolicy, HOLD_MAX_S, MarketError, Money, Order, OrderId,
    Region, SealedBid, ServiceOffer, SignedLease, SignedOrder, find_stamp,
};
use sluice_proto::{Amount, Keypair, PeerId, Price, Ticket, WalletKey};

use self::auction::Auction;
use crate::draw::Secrets;
use crate::{
    AwardPolicy, AwardRefused, BidRefusal, IpPrefix, Limiter, Moment, Reputation, Tally, Verdict,
    noise_public,
};

/// Orders at a time.
const AUCTIONS_MAX: usize = 64;
/// Bids of one sender: one every ..
const SENDER_EVERY: Duration = Duration::from_millis(500);
/// .. and so many at once: it may bid for several orders.
const SENDER_BURST: u32 = 16;
/// Bids from one network: one every ..
const PREFIX_EVERY: Duration = Duration::from_millis(100);
/// .. and so many at once: homes behind one carrier's address are many.
const PREFIX_BURST: u32 = 32;
/// Senders and networks that have a limit of their own.
const LIMITED_MAX: usize = 4_096;

/// Halvings of a region of this `population` until at most `asked_max` bidders hear an order.
#[must_use]
pub fn shard_depth(population: u64, asked_max: u64) -> u32 {
    (0..DEPTH_MAX).find(|depth| population >> depth <= asked_max.max(1)).unwrap_or(DEPTH_MAX)
}

/// How a tenant auctions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantPolicy {
    /// Whom to take.
    pub award: AwardPolicy,
    /// Whoever is farther is not taken.
    pub latency_max: Option<Duration>,
    /// Bids to wait for; at most 64 are kept.
    pub bids_enough: usize,
    /// Bids that are measured at a time, the cheapest.
    pub finalists: usize,
    /// How many bidders should hear an order.
    pub asked_max: u64,
    /// How long the clock takes to the highest price.
    pub clock: Duration,
    /// How long bids are taken; not less than the clock.
    pub bidding: Duration,
    /// Zero bits that an order's stamp begins with; absent: the wallet is shown instead.
    pub stamp_bits: Option<u32>,
    /// Who is taken is said with [`Tenant::choose`]; bids should hold for so long until then.
    pub by_hand: Option<Duration>,
}

impl Default for TenantPolicy {
    fn default() -> Self {
        Self {
            award: AwardPolicy::default(),
            latency_max: None,
            bids_enough: 12,
            finalists: 4,
            asked_max: 1_024,
            clock: Duration::from_millis(1_500),
            bidding: Duration::from_secs(2),
            stamp_bits: Some(16),
            by_hand: None,
        }
    }
}

/// What a tenant wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Where.
    pub region: Region,
    /// Providers there, about: what the mesh knows.
    pub population: u64,
    /// What it wants to reach.
    pub services: Vec<ServiceOffer>,
    /// The least rate to the provider, bits per second.
    pub rate_up_min: u64,
    /// The least rate from it.
    pub rate_down_min: u64,
    /// Bytes that it expects to send.
    pub volume_up: u64,
    /// Bytes that it expects to receive.
    pub volume_down: u64,
    /// The most that it will deposit.
    pub budget: Amount,
    /// Of the lease, seconds.
    pub duration_s: u32,
    /// The most that it pays.
    pub max_price: Price,
    /// The least window, bytes.
    pub window_min: u64,
    /// The largest.
    pub window_max: u64,
    /// Whether and when a direct path may be used.
    pub direct: DirectPolicy,
    /// Close period of its channel, seconds.
    pub period_s: u32,
    /// Silence after which a session ends, seconds.
    pub idle_timeout_s: u32,
    /// Absent at price 0.
    pub money: Option<Money>,
    /// Uplink that must be proven, bits per second; 0: none.
    pub rate_proven_min: u64,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantTransmit {
    /// To the topic of this part of a region: an order.
    Order {
        /// The region.
        region: Region,
        /// The topic's depth.
        depth: u32,
        /// Its number.
        shard: u32,
        /// The message.
        bytes: Bytes,
    },
    /// To the same topic: no more bids.
    Closed {
        /// The region.
        region: Region,
        /// The topic's depth.
        depth: u32,
        /// Its number.
        shard: u32,
        /// The message.
        bytes: Bytes,
    },
    /// To one provider: an award.
    Award {
        /// The provider.
        to: PeerId,
        /// The message.
        bytes: Bytes,
    },
}

/// What a tenant is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantEvent {
    /// Answer with [`Tenant::handle_latency`]: how far is this bidder?
    Measure {
        /// The order.
        order: OrderId,
        /// The bidder.
        peer: PeerId,
        /// What reaches it.
        ticket: Box<Ticket>,
    },
    /// Answer with [`Tenant::choose`]: the bids are measured, and those that are undecided hold for a
    /// while.
    Choose {
        /// The order.
        order: OrderId,
    },
    /// Both signed. Open its channel and connect, and say with [`Tenant::handle_served`] or
    /// [`Tenant::handle_no_service`] what came of it.
    Leased {
        /// The order.
        order: OrderId,
        /// The lease.
        lease: Box<SignedLease>,
    },
    /// There will be no lease.
    NoLease {
        /// The order.
        order: OrderId,
        /// Why.
        why: WhyNoLease,
    },
}

/// Why an order came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WhyNoLease {
    /// Nobody bid.
    #[error("nobody bid: ask for less, pay more, or ask a larger part of the region")]
    NoBids,
    /// None of those who bid would do, answered and served.
    #[error("none of those who bid would do")]
    NoneLeft,
}

/// A bid, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Who.
    pub bidder: PeerId,
    /// At what price; absent if it was refused before it was weighed.
    pub price: Option<Price>,
    /// What the expected volume costs.
    pub cost: Option<Amount>,
    /// Its latency, if it was measured.
    pub latency: Option<Duration>,
    /// Taken, or why not.
    pub verdict: Result<Verdict, BidRefusal>,
}

/// A bid that may be chosen by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The bid.
    pub bid: Bid,
    /// Its bidder's latency, if it was measured.
    pub latency: Option<Duration>,
}

/// An order and the bids for it that may be chosen by hand: what is kept until somebody does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offers {
    /// The order.
    pub order: Order,
    /// The cheapest first.
    pub bids: Vec<Offer>,
}

/// Why a bid cannot be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotChosen {
    /// The order is not one whose bids may be chosen now.
    #[error("no bids of order {0} wait to be chosen from")]
    NoOrder(OrderId),
    /// It made none, or it is decided.
    #[error("{0} made no bid that may be chosen")]
    NoBid(PeerId),
    /// It was good until then.
    #[error("the bid held until unix time {} s, which is over: order anew", .0 / 1_000)]
    Over(u64),
}

/// Who buys, and what all of its auctions share.
#[derive(Debug)]
struct Desk {
    node: Keypair,
    wallet: WalletKey,
    policy: TenantPolicy,
    reputation: Reputation,
    transmits: VecDeque<TenantTransmit>,
    events: VecDeque<TenantEvent>,
}

/// The tenant's auctions. Place orders, feed bids, latencies and answers; then drain
/// [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), and call
/// [`handle_timeout`](Self::handle_timeout) at [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Tenant {
    desk: Desk,
    secrets: Secrets,
    auctions: BTreeMap<OrderId, Auction>,
    senders: Limiter<PeerId>,
    prefixes: Limiter<IpPrefix>,
    refused: Tally,
}

impl Tenant {
    /// A tenant without orders. `seed` is secret and fresh at each start.
    #[must_use]
    pub fn new(node: Keypair, wallet: WalletKey, policy: TenantPolicy, seed: [u8; 32]) -> Self {
        Self {
            desk: Desk {
                node,
                wallet,
                policy,
                reputation: Reputation::default(),
                transmits: VecDeque::new(),
                events: VecDeque::new(),
            },
            secrets: Secrets::new(seed),
            auctions: BTreeMap::new(),
            senders: Limiter::new(SENDER_EVERY, SENDER_BURST, LIMITED_MAX),
            prefixes: Limiter::new(PREFIX_EVERY, PREFIX_BURST, LIMITED_MAX),
            refused: Tally::default(),
        }
    }

    /// The same tenant, with what it has seen of providers before.
    #[must_use]
    pub fn with_reputation(mut self, reputation: Reputation) -> Self {
        self.desk.reputation = reputation;
        self
    }

    /// Asks for bids. Takes as long as the stamp's work.
    ///
    /// # Errors
    /// When the order would be refused by everybody; `Range` of `auctions` when too many are open.
    pub fn place(&mut self, want: Want, now: Moment) -> Result<OrderId, MarketError> {
        self.auctions.retain(|_, auction| !auction.is_forgotten(now.at));
        if self.auctions.len() >= AUCTIONS_MAX {
            let (found, max) = (self.auctions.len() as u128 + 1, AUCTIONS_MAX as u128);
            return Err(MarketError::Range {
                message: "order",
                field: "auctions",
                min: 0,
                max,
                found,
            });
        }
        let secret = self.secrets.draw();
        let order = self.order(want, &secret, now);
        // As strict with ourselves as others will be.
        let order = Order::parse(&order.encode())?;
        let from = self.secrets.number();
        let (node, wallet) = (&self.desk.node, &self.desk.wallet);
        let bytes = match self.desk.policy.stamp_bits {
            Some(bits) => SignedOrder::stamp(&order, node, |id| find_stamp(id, bits, from)),
            None => SignedOrder::with_wallet(&order, node, wallet),
        };
        let id = SignedOrder::parse(&bytes)?.id;
        let Order { region, depth, shard, .. } = order.clone();
        self.desk.transmits.push_back(TenantTransmit::Order { region, depth, shard, bytes });
        self.auctions.insert(id, Auction::new(id, order, secret, now));
        Ok(id)
    }

    fn order(&mut self, want: Want, secret: &[u8; 32], now: Moment) -> Order {
        let policy = self.desk.policy;
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let depth = shard_depth(want.population, policy.asked_max);
        let shard = u32::try_from(self.secrets.number() & ((1 << depth) - 1)).expect("20 bits");
        let nonce = self.secrets.draw();
        Order {
            tenant: self.desk.node.public().to_peer_id(),
            noise_key: noise_public(secret).expect("any 32 bytes are an X25519 secret"),
            nonce: nonce[..16].try_into().expect("16 of 32 bytes"),
            region: want.region,
            depth,
            shard,
            services: want.services,
            rate_up_min: want.rate_up_min,
            rate_down_min: want.rate_down_min,
            volume_up: want.volume_up,
            volume_down: want.volume_down,
            budget: want.budget,
            duration_s: want.duration_s,
            max_price: want.max_price,
            window_min: want.window_min,
            window_max: want.window_max,
            direct: want.direct,
            period_s: want.period_s,
            idle_timeout_s: want.idle_timeout_s,
            money: want.money,
            rate_proven_min: want.rate_proven_min,
            made_unix_ms: now.unix_ms,
            bids_until_unix_ms: now.unix_ms.saturating_add(ms(policy.bidding)),
            clock_ms: u32::try_from(ms(policy.clock)).unwrap_or(u32::MAX),
            hold_s: policy.by_hand.map_or(0, |span| {
                u32::try_from(span.as_secs()).unwrap_or(HOLD_MAX_S).min(HOLD_MAX_S)
            }),
        }
    }

    /// Forgets an order that nobody heard.
    pub fn withdraw(&mut self, order: OrderId) {
        self.auctions.remove(&order);
    }

    /// The bids that may be [chosen](Self::choose) from by now, to be kept for
    /// [`resume`](Self::resume).
    #[must_use]
    pub fn offers(&self, order: OrderId) -> Option<Offers> {
        self.auctions.get(&order).and_then(Auction::offers)
    }

    /// Takes up an order whose bids were measured before, so that one can be chosen.
    pub fn resume(&mut self, offers: Offers, now: Moment) -> OrderId {
        let id = offers.order.id();
        self.auctions.insert(id, Auction::resume(id, offers, now));
        id
    }

    /// Awards this bid.
    ///
    /// # Errors
    /// When there is no such bid, or it holds no longer.
    pub fn choose(&mut self, order: OrderId, bidder: PeerId, now: Moment) -> Result<(), NotChosen> {
        let auction = self.auctions.get_mut(&order).ok_or(NotChosen::NoOrder(order))?;
        auction.choose(&mut self.desk, bidder, now)
    }

    /// A sealed bid from `from`, whose address is of this prefix.
    ///
    /// # Errors
    /// When it is not considered.
    pub fn handle_bid(
        &mut self,
        from: PeerId,
        prefix: Option<IpPrefix>,
        bytes: &Bytes,
        now: Moment,
    ) -> Result<(), BidRefusal> {
        let taken = self.consider(from, prefix, bytes, now);
        if let Err(why) = &taken {
            self.refused.count(why.name());
        }
        taken
    }

    fn consider(
        &mut self,
        from: PeerId,
        prefix: Option<IpPrefix>,
        bytes: &Bytes,
        now: Moment,
    ) -> Result<(), BidRefusal> {
        let SealedBid { order, sealed } = SealedBid::parse(bytes)?;
        let auction = self.auctions.get_mut(&order).filter(|auction| auction.takes_bids(now.at));
        let auction = auction.ok_or(BidRefusal::UnknownOrder)?;
        if !self.senders.admit(&from, now.at) {
            return Err(BidRefusal::Limit);
        }
        if !prefix.is_none_or(|prefix| self.prefixes.admit(&prefix, now.at)) {
            return Err(BidRefusal::PrefixLimit);
        }
        let bid = Bid::open(&auction.open(&sealed)?)?;
        if bid.bidder != from {
            return Err(BidRefusal::OtherSender);
        }
        auction.handle_bid(&mut self.desk, bid, now)
    }

    /// How far a bidder is that was to be measured; `None` if it cannot be told.
    pub fn handle_latency(
        &mut self,
        order: OrderId,
        peer: PeerId,
        latency: Option<Duration>,
        now: Moment,
    ) {
        if let Some(auction) = self.auctions.get_mut(&order) {
            auction.handle_latency(&mut self.desk, peer, latency, now);
        }
    }

    /// What a provider says to an award.
    ///
    /// # Errors
    /// When it says nothing that was asked.
    pub fn handle_answer(
        &mut self,
        from: PeerId,
        bytes: &Bytes,
        now: Moment,
    ) -> Result<(), AwardRefused> {
        let taken = AwardAnswer::parse(bytes).map_err(AwardRefused::from).and_then(|answer| {
            let awaits = |auction: &&mut Auction| auction.awaits(&from, answer.lease);
            let auction = self.auctions.values_mut().find(awaits);
            let auction = auction.ok_or(AwardRefused::NotAwaited)?;
            auction.handle_answer(&mut self.desk, answer, now)
        });
        taken.inspect_err(|why| self.refused.count(why.name()))
    }

    /// The lease works.
    pub fn handle_served(&mut self, order: OrderId, now: Moment) {
        if let Some(auction) = self.auctions.get_mut(&order) {
            auction.handle_served(&mut self.desk, now);
        }
    }

    /// The provider that signed does not serve: it counts against it, and the next one is tried.
    pub fn handle_no_service(&mut self, order: OrderId, now: Moment) {
        if let Some(auction) = self.auctions.get_mut(&order) {
            auction.handle_no_service(&mut self.desk, now);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        for auction in self.auctions.values_mut() {
            auction.handle_timeout(&mut self.desk, now);
        }
        self.auctions.retain(|_, auction| !auction.is_forgotten(now.at));
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<TenantTransmit> {
        self.desk.transmits.pop_front()
    }

    /// The next thing to know.
    pub fn poll_event(&mut self) -> Option<TenantEvent> {
        self.desk.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.auctions.values().map(Auction::timeout).min_by_key(|(at, _)| *at)
    }

    /// The bids of an order that is not forgotten (an hour after its end), each with what became of it.
    #[must_use]
    pub fn considered(&self, order: OrderId) -> Vec<Considered> {
        self.auctions.get(&order).map(Auction::considered).unwrap_or_default()
    }

    /// What was refused, by name.
    #[must_use]
    pub const fn refused(&self) -> &Tally {
        &self.refused
    }

    /// What this tenant has seen of providers.
    #[must_use]
    pub const fn reputation(&self) -> &Reputation {
        &self.desk.reputation
    }

    /// What is remembered at a time: orders, bids, senders, networks.
    #[must_use]
    pub fn remembered(&self) -> usize {
        let bids: usize = self.auctions.values().map(Auction::bids).sum();
        let limits = self.senders.len() + self.prefixes.len() + self.desk.reputation.len();
        self.auctions.len() + bids + limits
    }
}
