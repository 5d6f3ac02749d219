//! What a provider offers.

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use prost::Message;

use super::fields::{Reader, wide};
use super::{MarketError, OrderId};
use crate::wire::market;
use crate::{
    EthAddress, Invite, LeaseId, Price, RelayAddr, Topic, VERSION, decode_relays, encode_relays,
    sign, verify,
};

const BID: Reader = Reader("bid");

/// Most relays of one bid: what a ticket holds.
pub const BIDDER_RELAYS_MAX: usize = 8;

/// What a provider offers for one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bid {
    /// The order.
    pub order: OrderId,
    /// Who.
    pub bidder: PeerId,
    /// The lease it would be.
    pub lease: LeaseId,
    /// Flat, the relay included.
    pub price: Price,
    /// What it can keep up towards itself, bits per second.
    pub rate_up: u64,
    /// And from itself.
    pub rate_down: u64,
    /// What the window is computed from, bits per second.
    pub rate_max: u64,
    /// Of its uplink, by certificate; 0: none.
    pub rate_proven: u64,
    /// Signs the lease; may redeem and close.
    pub wallet: EthAddress,
    /// Receives the money.
    pub payout: EthAddress,
    /// The least close period that it accepts, seconds.
    pub period_min_s: u32,
    /// Bytes that it gives before the first voucher is due.
    pub starter_bytes: u64,
    /// X25519, for the rendezvous.
    pub noise_key: [u8; 32],
    /// Where it has reservations; 1 to [`BIDDER_RELAYS_MAX`].
    pub relays: Vec<RelayAddr>,
    /// The right to connect.
    pub invite: Invite,
    /// Until when it holds.
    pub valid_until_unix_ms: u64,
}

impl Bid {
    /// Parses an encoded bid.
    ///
    /// # Errors
    /// When a field is missing, malformed or out of bounds.
    pub fn parse(bytes: &Bytes) -> Result<Self, MarketError> {
        let wire: market::Bid = BID.decode(bytes)?;
        BID.version(wire.version)?;
        let count = wire.relays.len() as u64;
        BID.within("relays", count, 1, BIDDER_RELAYS_MAX as u64)?;
        let relays = decode_relays(&wire.relays);
        BID.check(relays.len() as u64 == count, "a relay's peer id or address is malformed")?;
        Ok(Self {
            order: OrderId(BID.bytes("order", &wire.order)?),
            bidder: BID.peer("bidder", &wire.bidder)?,
            lease: BID.field(LeaseId::parse(&wire.lease))?,
            price: BID.price(("price_up", &wire.price_up), ("price_down", &wire.price_down))?,
            rate_up: BID.rate("rate_up", wire.rate_up)?,
            rate_down: BID.rate("rate_down", wire.rate_down)?,
            rate_max: BID.rate("rate_max", wire.rate_max)?,
            rate_proven: BID.rate("rate_proven", wire.rate_proven)?,
            wallet: BID.address("wallet", &wire.wallet)?,
            payout: BID.address("payout", &wire.payout)?,
            period_min_s: wire.period_min_s,
            starter_bytes: wire.starter_bytes,
            noise_key: BID.bytes("noise_key", &wire.noise_key)?,
            relays,
            invite: Invite(BID.bytes("invite", &wire.invite)?),
            valid_until_unix_ms: wire.valid_until_unix_ms,
        })
    }

    /// Its form on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = market::Bid {
            version: VERSION,
            order: Bytes::copy_from_slice(&self.order.0),
            bidder: self.bidder.to_bytes().into(),
            lease: Bytes::copy_from_slice(&self.lease.0),
            price_up: wide(self.price.up),
            price_down: wide(self.price.down),
            rate_up: self.rate_up,
            rate_down: self.rate_down,
            rate_max: self.rate_max,
            rate_proven: self.rate_proven,
            wallet: Bytes::copy_from_slice(&self.wallet.0),
            payout: Bytes::copy_from_slice(&self.payout.0),
            period_min_s: self.period_min_s,
            starter_bytes: self.starter_bytes,
            noise_key: Bytes::copy_from_slice(&self.noise_key),
            relays: encode_relays(&self.relays),
            invite: Bytes::copy_from_slice(&self.invite.0),
            valid_until_unix_ms: self.valid_until_unix_ms,
        };
        wire.encode_to_vec().into()
    }

    /// Encodes and signs it with the bidder's node key: what is sealed.
    #[must_use]
    pub fn sign(&self, node: &Keypair) -> Bytes {
        let bid = self.encode();
        let signature = sign(node, Topic::Bid, &bid).into();
        market::SignedBid { bid, signature }.encode_to_vec().into()
    }

    /// Parses a signed bid and checks that its bidder signed it.
    ///
    /// # Errors
    /// When it is malformed, or another signed.
    pub fn open(bytes: &Bytes) -> Result<Self, MarketError> {
        let signed: market::SignedBid = BID.decode(bytes)?;
        let bid = Self::parse(&signed.bid)?;
        verify(&bid.bidder, Topic::Bid, &signed.bid, &signed.signature)
            .map_err(|error| MarketError::Signature { message: "bid", error })?;
        Ok(bid)
    }
}
