//! What a tenant asks.

use std::fmt;

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use prost::Message;

use super::fields::{Reader, wide};
use super::{DirectPolicy, MarketError, Money, RATE_MAX, Region, ServiceOffer, VOLUME_MAX};
use crate::eth::keccak256;
use crate::wire::market;
use crate::{
    Amount, Domain, EthAddress, Price, Topic, VERSION, WalletKey, WalletSignature, amount_due,
    sign, verify,
};

const ORDER: Reader = Reader("order");

/// Most halvings of a region's bidders.
pub const DEPTH_MAX: u32 = 20;
/// Shortest lease, seconds.
pub const DURATION_MIN_S: u32 = 60;
/// Longest lease, seconds: a year.
pub const DURATION_MAX_S: u32 = 366 * 86_400;
/// Longest time that bids may be sent in, milliseconds: an order is remembered for no longer.
pub const BIDDING_MAX_MS: u64 = 60_000;
/// Longest time that a bid is asked to hold, seconds: a person chooses by then.
pub const HOLD_MAX_S: u32 = 600;
/// Shortest close period, seconds: the contract's.
const PERIOD_MIN_S: u64 = 48 * 3600;
/// Longest, seconds: the contract's.
const PERIOD_MAX_S: u64 = 180 * 86_400;

/// An order's name: the Keccak-256 of its encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub [u8; 32]);

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for OrderId {
    /// The first 8 bytes in hex: enough for a person to tell orders apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
}

/// What a tenant asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Who.
    pub tenant: PeerId,
    /// X25519: bids are sealed to it.
    pub noise_key: [u8; 32],
    /// Tells orders of the same content apart.
    pub nonce: [u8; 16],
    /// Where.
    pub region: Region,
    /// Only bidders whose name's hash begins with so many bits of `shard` are asked; at most
    /// [`DEPTH_MAX`].
    pub depth: u32,
    /// Below 2^`depth`.
    pub shard: u32,
    /// What it wants to reach.
    pub services: Vec<ServiceOffer>,
    /// The least rate to the provider, bits per second.
    pub rate_up_min: u64,
    /// The least rate from the provider, bits per second: its uplink.
    pub rate_down_min: u64,
    /// Bytes that it expects to send: what bids are compared by.
    pub volume_up: u64,
    /// Bytes that it expects to receive.
    pub volume_down: u64,
    /// The most that it will deposit.
    pub budget: Amount,
    /// Of the lease.
    pub duration_s: u32,
    /// The most that it pays.
    pub max_price: Price,
    /// The least window that it accepts, bytes.
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
    /// Uplink that the bidder has a certificate of, bits per second; 0: none is asked for.
    pub rate_proven_min: u64,
    /// When it was made.
    pub made_unix_ms: u64,
    /// Until when bids are taken.
    pub bids_until_unix_ms: u64,
    /// How long it takes until the dearest bid may be sent: [`bid_after_ms`](Self::bid_after_ms).
    pub clock_ms: u32,
    /// For so long after bids are taken they should hold; at most [`HOLD_MAX_S`], 0: as the bidder
    /// likes. A bid itself says until when it does.
    pub hold_s: u32,
}

impl Order {
    /// Parses an encoded order.
    ///
    /// # Errors
    /// When a field is missing, malformed, out of bounds, or contradicts another.
    pub fn parse(bytes: &Bytes) -> Result<Self, MarketError> {
        let wire: market::Order = ORDER.decode(bytes)?;
        ORDER.version(wire.version)?;
        let max_price = ORDER.price(
            ("max_price_up", &wire.max_price_up),
            ("max_price_down", &wire.max_price_down),
        )?;
        let order = Self {
            tenant: ORDER.peer("tenant", &wire.tenant)?,
            noise_key: ORDER.bytes("noise_key", &wire.noise_key)?,
            nonce: ORDER.bytes("nonce", &wire.nonce)?,
            region: ORDER.field(Region::parse(&wire.region))?,
            depth: within_u32("depth", wire.depth, 0, DEPTH_MAX)?,
            shard: wire.shard,
            services: ORDER.services(&wire.services)?,
            rate_up_min: ORDER.rate("rate_up_min", wire.rate_up_min)?,
            rate_down_min: ORDER.rate("rate_down_min", wire.rate_down_min)?,
            volume_up: ORDER.within("volume_up", wire.volume_up, 0, VOLUME_MAX)?,
            volume_down: ORDER.within("volume_down", wire.volume_down, 0, VOLUME_MAX)?,
            budget: ORDER.amount("budget", &wire.budget)?,
            duration_s: within_u32("duration_s", wire.duration_s, DURATION_MIN_S, DURATION_MAX_S)?,
            max_price,
            window_min: ORDER.window("window_min", wire.window_min)?,
            window_max: ORDER.window("window_max", wire.window_max)?,
            direct: ORDER.direct(wire.direct)?,
            period_s: wire.period_s,
            idle_timeout_s: ORDER.idle_timeout(wire.idle_timeout_s)?,
            money: ORDER.money(wire.money.as_ref(), max_price)?,
            rate_proven_min: ORDER.within("rate_proven_min", wire.rate_proven_min, 0, RATE_MAX)?,
            made_unix_ms: wire.made_unix_ms,
            bids_until_unix_ms: wire.bids_until_unix_ms,
            clock_ms: wire.clock_ms,
            hold_s: within_u32("hold_s", wire.hold_s, 0, HOLD_MAX_S)?,
        };
        order.check()?;
        Ok(order)
    }

    fn check(&self) -> Result<(), MarketError> {
        ORDER.within("shard", self.shard.into(), 0, (1 << self.depth) - 1)?;
        ORDER.check(self.window_min <= self.window_max, "window_min is above window_max")?;
        ORDER.check(self.volume_up > 0 || self.volume_down > 0, "no volume is expected")?;
        let bidding = self.bids_until_unix_ms.checked_sub(self.made_unix_ms);
        ORDER.check(bidding.is_some_and(|ms| ms > 0), "bids end before the order was made")?;
        let bidding = bidding.unwrap_or_default();
        ORDER.within("bids_until_unix_ms - made_unix_ms", bidding, 1, BIDDING_MAX_MS)?;
        ORDER.within("clock_ms", self.clock_ms.into(), 0, bidding)?;
        if self.money.is_some() {
            ORDER.within("period_s", self.period_s.into(), PERIOD_MIN_S, PERIOD_MAX_S)?;
            ORDER.check(self.budget.0 > 0, "something is charged, but the budget is 0")?;
        }
        Ok(())
    }

    /// What the expected volume costs at `price`, in token base units.
    #[must_use]
    pub fn cost(&self, price: Price) -> Amount {
        amount_due(Amount(0), self.volume_up, self.volume_down, price).unwrap_or(Amount(u128::MAX))
    }

    /// How long after the order a bid of this price may be sent, milliseconds: the cheaper, the sooner.
    /// So the tenant hears the cheapest first and can stop the others, and nobody gains by bidding
    /// early.
    #[must_use]
    pub fn bid_after_ms(&self, price: Price) -> u64 {
        let (cost, most) = (self.cost(price).0, self.cost(self.max_price).0);
        let after = u128::from(self.clock_ms).saturating_mul(cost.min(most));
        after.checked_div(most).map_or(0, |ms| u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// Its form on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = market::Order {
            version: VERSION,
            tenant: self.tenant.to_bytes().into(),
            noise_key: Bytes::copy_from_slice(&self.noise_key),
            nonce: Bytes::copy_from_slice(&self.nonce),
            region: self.region.as_str().to_owned(),
            depth: self.depth,
            shard: self.shard,
            services: self.services.iter().map(ServiceOffer::to_wire).collect(),
            rate_up_min: self.rate_up_min,
            rate_down_min: self.rate_down_min,
            volume_up: self.volume_up,
            volume_down: self.volume_down,
            budget: wide(self.budget.0),
            duration_s: self.duration_s,
            max_price_up: wide(self.max_price.up),
            max_price_down: wide(self.max_price.down),
            window_min: self.window_min,
            window_max: self.window_max,
            direct: self.direct.code(),
            period_s: self.period_s,
            idle_timeout_s: self.idle_timeout_s,
            money: self.money.map(Money::to_wire),
            rate_proven_min: self.rate_proven_min,
            made_unix_ms: self.made_unix_ms,
            bids_until_unix_ms: self.bids_until_unix_ms,
            clock_ms: self.clock_ms,
            hold_s: self.hold_s,
        };
        wire.encode_to_vec().into()
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> OrderId {
        OrderId(keccak256(&self.encode()))
    }
}

fn within_u32(field: &'static str, found: u32, min: u32, max: u32) -> Result<u32, MarketError> {
    ORDER.within(field, found.into(), min.into(), max.into())?;
    Ok(found)
}

/// Whether `bidder` is among those that an order of this depth and shard asks: its peer id's Keccak-256
/// begins with the `depth` bits of `shard`.
#[must_use]
pub fn is_asked(bidder: &PeerId, depth: u32, shard: u32) -> bool {
    let hash = keccak256(&bidder.to_bytes());
    let first = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    first.checked_shr(32 - depth.min(32)).unwrap_or(0) == shard
}

/// What sending an order cost its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderProof {
    /// Work: [`stamp_bits`](super::stamp_bits).
    Stamp(u64),
    /// A wallet that has money, whose key signed the order's name. That it has is for the chain to say.
    Wallet(EthAddress),
}

/// An order with its name, as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedOrder {
    /// Its name.
    pub id: OrderId,
    /// What it says.
    pub order: Order,
    /// What it cost.
    pub proof: OrderProof,
    signature: Bytes,
    encoded: Bytes,
}

impl SignedOrder {
    /// Parses a gossiped order. Its signatures are [`verify`](Self::verify)'s, since much that is
    /// cheaper to check may be wrong with it.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(bytes: &Bytes) -> Result<Self, MarketError> {
        let wire: market::SignedOrder = ORDER.decode(bytes)?;
        let order = Order::parse(&wire.order)?;
        let id = OrderId(keccak256(&wire.order));
        let proof = match &wire.proof {
            Some(market::signed_order::Proof::Stamp(stamp)) => OrderProof::Stamp(*stamp),
            Some(market::signed_order::Proof::Wallet(proof)) => {
                wallet_proof(id, order.money.as_ref(), proof)?
            }
            None => return Err(MarketError::Missing { message: "order", field: "proof" }),
        };
        Ok(Self { id, order, proof, signature: wire.signature, encoded: wire.order })
    }

    /// Checks that the tenant signed it.
    ///
    /// # Errors
    /// When another did.
    pub fn verify(&self) -> Result<(), MarketError> {
        verify(&self.order.tenant, Topic::Order, &self.encoded, &self.signature)
            .map_err(|error| MarketError::Signature { message: "order", error })
    }

    /// Signs an order for gossip, with a stamp that `find` looks for.
    #[must_use]
    pub fn stamp(order: &Order, node: &Keypair, find: impl FnOnce(OrderId) -> u64) -> Bytes {
        let encoded = order.encode();
        let stamp = find(OrderId(keccak256(&encoded)));
        gossip(encoded, node, market::signed_order::Proof::Stamp(stamp))
    }

    /// Signs an order for gossip, with the proof that its tenant has this wallet.
    #[must_use]
    pub fn with_wallet(order: &Order, node: &Keypair, wallet: &WalletKey) -> Bytes {
        let encoded = order.encode();
        let digest =
            order_digest(&Money::domain_of(order.money.as_ref()), OrderId(keccak256(&encoded)));
        let proof = market::WalletProof {
            wallet: Bytes::copy_from_slice(&wallet.address().0),
            signature: Bytes::copy_from_slice(&wallet.sign(digest).0),
        };
        gossip(encoded, node, market::signed_order::Proof::Wallet(proof))
    }
}

fn gossip(order: Bytes, node: &Keypair, proof: market::signed_order::Proof) -> Bytes {
    let signature = sign(node, Topic::Order, &order).into();
    market::SignedOrder { order, signature, proof: Some(proof) }.encode_to_vec().into()
}

fn wallet_proof(
    id: OrderId,
    money: Option<&Money>,
    proof: &market::WalletProof,
) -> Result<OrderProof, MarketError> {
    let wallet = ORDER.address("wallet", &proof.wallet)?;
    let signature = ORDER.field(WalletSignature::parse(&proof.signature))?;
    if signature.recover(order_digest(&Money::domain_of(money), id)) == Some(wallet) {
        Ok(OrderProof::Wallet(wallet))
    } else {
        Err(MarketError::Wallet { message: "order", wallet })
    }
}

/// EIP-712 `Order(bytes32 order)`. Never accepted by the contract.
fn order_digest(domain: &Domain, id: OrderId) -> [u8; 32] {
    let typed = keccak256(b"Order(bytes32 order)");
    domain.digest(keccak256(&[typed, id.0].concat()))
}

/// Says that an order takes no more bids.
#[must_use]
pub fn close_order(id: OrderId, node: &Keypair) -> Bytes {
    let closed = market::OrderClosed {
        order: Bytes::copy_from_slice(&id.0),
        tenant: node.public().to_peer_id().to_bytes().into(),
        signature: sign(node, Topic::OrderClosed, &id.0).into(),
    };
    closed.encode_to_vec().into()
}

/// Reads which order was closed, and by whom: whoever signed it, which need not be its tenant.
///
/// # Errors
/// When it is malformed, or not signed by whom it names.
pub fn closes_order(bytes: &Bytes) -> Result<(OrderId, PeerId), MarketError> {
    const CLOSED: Reader = Reader("closed order");
    let wire: market::OrderClosed = CLOSED.decode(bytes)?;
    let id = OrderId(CLOSED.bytes("order", &wire.order)?);
    let tenant = CLOSED.peer("tenant", &wire.tenant)?;
    verify(&tenant, Topic::OrderClosed, &id.0, &wire.signature)
        .map_err(|error| MarketError::Signature { message: "closed order", error })?;
    Ok((id, tenant))
}

/// A bid that only its order's tenant can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBid {
    /// The order.
    pub order: OrderId,
    /// The sealed [`Bid`](super::Bid).
    pub sealed: Bytes,
}

impl SealedBid {
    /// Parses one.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(bytes: &Bytes) -> Result<Self, MarketError> {
        const SEALED: Reader = Reader("sealed bid");
        let wire: market::SealedBid = SEALED.decode(bytes)?;
        Ok(Self { order: OrderId(SEALED.bytes("order", &wire.order)?), sealed: wire.sealed })
    }

    /// Its form on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let order = Bytes::copy_from_slice(&self.order.0);
        market::SealedBid { order, sealed: self.sealed.clone() }.encode_to_vec().into()
    }
}
