//! The provider's side: hears orders, bids by its owner's policy, signs leases.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::market::{
    Award, AwardAnswer, AwardRefusal, Bid, Lease, Money, Order, OrderId, OrderProof, Region,
    SealedBid, Signatures, SignedLease, SignedOrder, closes_order, is_asked, stamp_bits,
};
use sluice_proto::{
    Amount, EthAddress, Invite, Keypair, LeaseId, PeerId, Price, RelayAddr, WalletKey,
};

use crate::draw::Secrets;
use crate::policy::Taken;
use crate::{
    AwardRefused, BidPolicy, IpPrefix, Limiter, Moment, NoBid, OrderRefusal, Reputation, Tally,
    lease_of, seal_bid,
};

/// Clocks of honest nodes differ by no more, milliseconds.
const SKEW_MAX_MS: u64 = 10_000;
/// Orders that are remembered at a time: a flood fills this and no more.
const ORDERS_MAX: usize = 1_024;
/// What became of orders, for people: so many of the newest.
const HISTORY_MAX: usize = 128;
/// After the last bid so long an award may come: what the tenant takes to measure and to try others.
const BID_HOLDS: Duration = Duration::from_secs(15);
/// Bids at a time that hold for longer, when their order asks for it: a person chooses.
const LONG_HELD_MAX: usize = 64;
/// A lease that is not funded for so long gives its room back: some blocks of a slow chain.
const FUND_WITHIN: Duration = Duration::from_secs(120);
/// Orders of one tenant: one every ..
const TENANT_EVERY: Duration = Duration::from_secs(2);
/// .. and so many at once.
const TENANT_BURST: u32 = 20;
/// Awards from one network: one every ..
const AWARD_EVERY: Duration = Duration::from_millis(250);
/// .. and so many at once. Checking one costs two signatures.
const AWARD_BURST: u32 = 40;
/// Tenants and networks that have a limit of their own.
const LIMITED_MAX: usize = 1_024;

/// Who sells.
#[derive(Debug, Clone)]
pub struct Seller {
    /// Its name.
    pub node: Keypair,
    /// Signs leases; may redeem and close.
    pub wallet: WalletKey,
    /// Receives the money.
    pub payout: EthAddress,
    /// Public X25519 key, for the rendezvous.
    pub noise_key: [u8; 32],
    /// Issues invites.
    pub invites: [u8; 16],
    /// Topics that it listens to.
    pub regions: Vec<Region>,
    /// What windows are computed from, bits per second.
    pub rate_max: u64,
}

/// A message to a peer, on the protocol of bids or of awards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BidderTransmit {
    /// A sealed bid, to the order's tenant.
    Bid {
        /// The tenant.
        to: PeerId,
        /// The message.
        bytes: Bytes,
    },
    /// The answer to an award.
    Answer {
        /// The tenant.
        to: PeerId,
        /// The message.
        bytes: Bytes,
    },
}

/// What a provider is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BidderEvent {
    /// Answer with [`Bidder::handle_wallet`]: has this wallet as much of the token?
    CheckWallet {
        /// The order that names it.
        order: OrderId,
        /// The wallet.
        wallet: EthAddress,
        /// Chain and token.
        money: Option<Money>,
        /// What it should have.
        budget: Amount,
    },
    /// Both signed: keep it, and serve its tenant.
    Leased(Box<SignedLease>),
    /// The tenant did not fund it in time: its room is free.
    Unfunded(LeaseId),
}

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The clock has not come to its price, or its tenant's wallet is being looked at.
    Waiting,
    /// It was bid for.
    Bid,
    /// No bid was made.
    NotBid(NoBid),
    /// The tenant had enough before the clock came to this price, or its wallet was empty.
    Silent,
    /// Others were taken.
    Lost,
    /// Awarded, and not signed.
    Refused(AwardRefusal),
    /// Leased.
    Won,
    /// Leased, and never funded.
    Unfunded,
}

/// An order and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The order.
    pub order: OrderId,
    /// Whose.
    pub tenant: PeerId,
    /// The price that was or would have been bid.
    pub price: Option<Price>,
    /// What became of it.
    pub fate: Fate,
}

/// An order that may still be answered.
#[derive(Debug)]
enum Step {
    /// Whether the wallet has money is asked.
    Wallet(Price),
    /// The clock has not come to this price.
    Waiting(Price),
    /// It was bid for.
    Bid(Box<Bid>),
}

#[derive(Debug)]
struct Heard {
    /// Replays are known until then.
    until: Instant,
    /// Bids are taken until then, or awarded.
    live_until: Instant,
    /// A bid holds for so long then.
    holds: Duration,
    due: Instant,
    /// Gone once nothing is to be done.
    offer: Option<Box<(Order, Step)>>,
}

/// What a lease takes of the line and of the month.
#[derive(Debug, Clone, Copy)]
struct Room {
    rate_up_min: u64,
    rate_down_min: u64,
    /// Bytes, both ways.
    volume: u64,
}

impl Room {
    const fn of_order(order: &Order) -> Self {
        let volume = order.volume_up.saturating_add(order.volume_down);
        Self { rate_up_min: order.rate_up_min, rate_down_min: order.rate_down_min, volume }
    }

    /// The lease does not say which volume was expected: what its budget buys.
    fn of_lease(lease: &Lease) -> Self {
        let cheapest = [lease.price.up, lease.price.down].into_iter().filter(|p| *p > 0).min();
        let bytes =
            cheapest.and_then(|price| lease.budget.0.checked_mul(1 << 30)?.checked_div(price));
        let volume = match cheapest {
            Some(_) => bytes.and_then(|b| u64::try_from(b).ok()).unwrap_or(u64::MAX),
            None => 0,
        };
        Self { rate_up_min: lease.rate_up_min, rate_down_min: lease.rate_down_min, volume }
    }
}

#[derive(Debug)]
struct Held {
    id: OrderId,
    price: Price,
    room: Room,
    tenant: PeerId,
    encoded: Bytes,
    answer: Bytes,
    /// Absent once it is funded.
    fund_by: Option<Instant>,
}

/// The provider's auction. Feed orders, closings and awards; then drain
/// [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), and call
/// [`handle_timeout`](Self::handle_timeout) at [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Bidder {
    seller: Seller,
    peer: PeerId,
    policy: BidPolicy,
    secrets: Secrets,
    relays: Vec<RelayAddr>,
    rate_proven: u64,
    used: u64,
    heard: BTreeMap<OrderId, Heard>,
    leases: BTreeMap<LeaseId, Held>,
    reputation: Reputation,
    tenants: Limiter<PeerId>,
    awards: Limiter<IpPrefix>,
    refused: Tally,
    history: VecDeque<Made>,
    transmits: VecDeque<BidderTransmit>,
    events: VecDeque<BidderEvent>,
}

impl Bidder {
    /// A provider that listens. `seed` is secret and fresh at each start.
    #[must_use]
    pub fn new(seller: Seller, policy: BidPolicy, seed: [u8; 32]) -> Self {
        Self {
            peer: seller.node.public().to_peer_id(),
            seller,
            policy,
            secrets: Secrets::new(seed),
            relays: Vec::new(),
            rate_proven: 0,
            used: 0,
            heard: BTreeMap::new(),
            leases: BTreeMap::new(),
            reputation: Reputation::default(),
            tenants: Limiter::new(TENANT_EVERY, TENANT_BURST, LIMITED_MAX),
            awards: Limiter::new(AWARD_EVERY, AWARD_BURST, LIMITED_MAX),
            refused: Tally::default(),
            history: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Where it can be reached from now on; without any it does not bid.
    pub fn handle_relays(&mut self, relays: Vec<RelayAddr>) {
        self.relays = relays;
    }

    /// The uplink that its certificate proves, bits per second; 0: it has none.
    pub const fn handle_proven(&mut self, rate: u64) {
        self.rate_proven = rate;
    }

    /// Bytes of this month, both ways. Volumes promised to leases that run count on top until they end.
    pub const fn handle_used(&mut self, bytes: u64) {
        self.used = bytes;
    }

    /// An order by gossip.
    ///
    /// # Errors
    /// When it is not to be considered, nor to be passed on, unless it only [asks
    /// others](OrderRefusal::NotAsked).
    pub fn handle_order(&mut self, bytes: &Bytes, now: Moment) -> Result<OrderId, OrderRefusal> {
        let heard = self.consider(bytes, now);
        if let Err(why) = &heard {
            self.refused.count(why.name());
        }
        heard
    }

    fn consider(&mut self, bytes: &Bytes, now: Moment) -> Result<OrderId, OrderRefusal> {
        let signed = SignedOrder::parse(bytes)?;
        self.check_order(&signed, now)?;
        signed.verify()?;
        // Only now: others could spend its limit in its name.
        if !self.tenants.admit(&signed.order.tenant, now.at) {
            return Err(OrderRefusal::Limit);
        }
        let SignedOrder { id, order, proof, .. } = signed;
        let taken = self.taken();
        let asked = self.policy.bid(&order, &taken, self.rate_proven, now.unix_ms);
        let price = match asked {
            Ok(price) => {
                self.note(id, order.tenant, Some(price), Fate::Waiting);
                Some(price)
            }
            Err(why) => {
                self.note(id, order.tenant, None, Fate::NotBid(why));
                None
            }
        };
        let step = price.map(|price| match proof {
            OrderProof::Stamp(_) => Step::Waiting(price),
            OrderProof::Wallet(wallet) => {
                let (money, budget) = (order.money, order.budget);
                self.events.push_back(BidderEvent::CheckWallet {
                    order: id,
                    wallet,
                    money,
                    budget,
                });
                Step::Wallet(price)
            }
        });
        let bidding = order.bids_until_unix_ms - order.made_unix_ms;
        let expires = order.bids_until_unix_ms + SKEW_MAX_MS;
        let heard = Heard {
            until: now.at + Duration::from_millis(expires.saturating_sub(now.unix_ms)),
            live_until: now.at + Duration::from_millis(bidding),
            holds: self.holds(&order),
            due: now.at + Duration::from_millis(price.map_or(0, |p| order.bid_after_ms(p))),
            offer: step.map(|step| Box::new((order, step))),
        };
        self.heard.insert(id, heard);
        Ok(id)
    }

    /// How long a bid for this order would hold.
    fn holds(&self, order: &Order) -> Duration {
        let asked = Duration::from_secs(order.hold_s.into());
        let long = self.heard.values().filter(|h| h.holds > BID_HOLDS && h.offer.is_some());
        if asked > BID_HOLDS && long.count() < LONG_HELD_MAX { asked } else { BID_HOLDS }
    }

    /// What is cheap to check.
    fn check_order(&self, signed: &SignedOrder, now: Moment) -> Result<(), OrderRefusal> {
        let SignedOrder { id, order, proof, .. } = signed;
        let ended = order.bids_until_unix_ms.saturating_add(SKEW_MAX_MS);
        if ended < now.unix_ms {
            return Err(OrderRefusal::Expired(now.unix_ms - order.bids_until_unix_ms));
        }
        if order.made_unix_ms > now.unix_ms.saturating_add(SKEW_MAX_MS) {
            return Err(OrderRefusal::Future(order.made_unix_ms - now.unix_ms));
        }
        if self.heard.contains_key(id) {
            return Err(OrderRefusal::Replayed);
        }
        if let OrderProof::Stamp(stamp) = proof {
            let (found, wanted) = (stamp_bits(*id, *stamp), self.policy.stamp_bits);
            if found < wanted {
                return Err(OrderRefusal::Stamp { found, wanted });
            }
        }
        let here = self.seller.regions.contains(&order.region);
        if !here || !is_asked(&self.peer, order.depth, order.shard) {
            return Err(OrderRefusal::NotAsked);
        }
        if self.reputation.is_shunned(&order.tenant, now.at) {
            return Err(OrderRefusal::Shunned);
        }
        if self.heard.len() >= ORDERS_MAX {
            return Err(OrderRefusal::Full);
        }
        Ok(())
    }

    /// What the chain says of a wallet that was asked for.
    pub fn handle_wallet(&mut self, order: OrderId, has_budget: bool, now: Moment) {
        let Some(heard) = self.heard.get_mut(&order) else { return };
        let Some((asked, Step::Wallet(price))) = heard.offer.as_deref() else { return };
        let (tenant, price) = (asked.tenant, *price);
        if has_budget {
            if let Some(offer) = heard.offer.as_deref_mut() {
                offer.1 = Step::Waiting(price);
            }
            self.handle_timeout(now);
        } else {
            heard.offer = None;
            self.note(order, tenant, Some(price), Fate::Silent);
        }
    }

    /// A tenant takes no more bids.
    ///
    /// # Errors
    /// When it is malformed, or not signed by whom it names.
    pub fn handle_closed(&mut self, bytes: &Bytes) -> Result<(), OrderRefusal> {
        let (id, tenant) = closes_order(bytes).map_err(|error| {
            let why = OrderRefusal::from(error);
            self.refused.count(why.name());
            why
        })?;
        let Some(heard) = self.heard.get_mut(&id) else { return Ok(()) };
        let silenced = match heard.offer.as_deref() {
            Some((order, Step::Waiting(price) | Step::Wallet(price))) if order.tenant == tenant => {
                Some(*price)
            }
            Some(_) | None => None,
        };
        if let Some(price) = silenced {
            heard.offer = None;
            self.note(id, tenant, Some(price), Fate::Silent);
        }
        Ok(())
    }

    /// An award from `from`, whose address is of this prefix. The answer is transmitted.
    ///
    /// # Errors
    /// When nothing was signed.
    pub fn handle_award(
        &mut self,
        from: PeerId,
        prefix: Option<IpPrefix>,
        bytes: &Bytes,
        now: Moment,
    ) -> Result<(), AwardRefused> {
        let outcome = self.answer(from, prefix, bytes, now);
        if let Err(why) = &outcome {
            self.refused.count(why.name());
        }
        outcome
    }

    fn answer(
        &mut self,
        from: PeerId,
        prefix: Option<IpPrefix>,
        bytes: &Bytes,
        now: Moment,
    ) -> Result<(), AwardRefused> {
        if !prefix.is_none_or(|prefix| self.awards.admit(&prefix, now.at)) {
            return Err(AwardRefused::Limit);
        }
        let award = Award::open(bytes)?;
        if award.lease.tenant != from {
            return Err(AwardRefused::NotAwaited);
        }
        let lease = award.lease.lease;
        if let Some(held) = self.leases.get(&lease).filter(|held| held.encoded == award.encoded) {
            let bytes = held.answer.clone();
            self.transmits.push_back(BidderTransmit::Answer { to: from, bytes });
            return Ok(());
        }
        let answer = self.decide(&award, now);
        let refused = answer.as_ref().err().copied();
        match refused {
            None => self.forget_offer(award.lease.order, Fate::Won),
            // Reached only by an award that is right but for this.
            Some(AwardRefusal::NoRoom) => {
                self.forget_offer(award.lease.order, Fate::Refused(AwardRefusal::NoRoom));
            }
            // Or a stranger could take others' bids away.
            Some(AwardRefusal::UnknownBid | AwardRefusal::OtherTerms | AwardRefusal::TooLate) => {}
        }
        let bytes = match answer {
            Ok(order) => self.sign(award, order, now),
            Err(why) => AwardAnswer { lease, answer: Err(why) }.encode(),
        };
        self.transmits.push_back(BidderTransmit::Answer { to: from, bytes });
        refused.map_or(Ok(()), |why| Err(why.into()))
    }

    /// Whether to sign, and for which order.
    fn decide(&self, award: &Award, now: Moment) -> Result<Order, AwardRefusal> {
        let heard = self.heard.get(&award.lease.order).and_then(|heard| heard.offer.as_deref());
        let Some((order, Step::Bid(bid))) = heard else { return Err(AwardRefusal::UnknownBid) };
        let lease = &award.lease;
        if bid.lease != lease.lease {
            return Err(AwardRefusal::UnknownBid);
        }
        let late = now.unix_ms > bid.valid_until_unix_ms.min(award.answer_by_unix_ms);
        let skew_s = (now.unix_ms / 1_000).abs_diff(lease.made_unix_s);
        if late || skew_s > SKEW_MAX_MS / 1_000 {
            return Err(AwardRefusal::TooLate);
        }
        let expected = lease_of(order, bid, lease.tenant_wallet, lease.window, lease.made_unix_s);
        let window_max = order.window_max.min(self.policy.window_max);
        let window_fits = (order.window_min..=window_max).contains(&lease.window);
        if *lease != expected || !window_fits {
            return Err(AwardRefusal::OtherTerms);
        }
        let room = self.policy.check_room(order, &self.taken());
        room.map_err(|_| AwardRefusal::NoRoom)?;
        Ok(order.clone())
    }

    fn sign(&mut self, award: Award, order: Order, now: Moment) -> Bytes {
        let (id, tenant, encoded) = (award.lease.lease, award.lease.tenant, award.encoded.clone());
        let (for_order, price) = (award.lease.order, award.lease.price);
        let (node, wallet) = (&self.seller.node, &self.seller.wallet);
        let signatures = Signatures::make(&award.lease, &encoded, node, wallet);
        let answer = AwardAnswer { lease: id, answer: Ok(signatures.clone()) }.encode();
        let signed = SignedLease::seal(award, signatures).expect("these are our signatures");
        self.events.push_back(BidderEvent::Leased(Box::new(signed)));
        let fund_by = Some(now.at + FUND_WITHIN);
        let (room, answer_) = (Room::of_order(&order), answer.clone());
        let held = Held { id: for_order, price, room, tenant, encoded, answer: answer_, fund_by };
        self.leases.insert(id, held);
        answer
    }

    fn forget_offer(&mut self, order: OrderId, fate: Fate) {
        let Some(heard) = self.heard.get_mut(&order) else { return };
        if let Some((order_, Step::Bid(bid))) = heard.offer.take().map(|offer| *offer) {
            self.note(order, order_.tenant, Some(bid.price), fate);
        }
    }

    /// A lease of a start before this one that has not ended. Its tenant may ask for the answer again;
    /// unless it is `funded` it has as long to be so as a new one. What its budget buys counts against
    /// the month.
    pub fn handle_lease(&mut self, signed: &SignedLease, funded: bool, now: Moment) {
        let lease = signed.lease();
        let held = Held {
            id: lease.order,
            price: lease.price,
            room: Room::of_lease(lease),
            tenant: lease.tenant,
            encoded: signed.encoded().clone(),
            answer: AwardAnswer { lease: lease.lease, answer: Ok(signed.provider().clone()) }
                .encode(),
            fund_by: (!funded).then(|| now.at + FUND_WITHIN),
        };
        self.leases.insert(lease.lease, held);
    }

    /// The lease's channel is open; at price 0, its tenant is here.
    pub fn handle_funded(&mut self, lease: LeaseId, now: Moment) {
        if let Some(held) = self.leases.get_mut(&lease)
            && held.fund_by.take().is_some()
        {
            self.reputation.succeeded(held.tenant, now.at);
        }
    }

    /// The lease is over: its room is free.
    pub fn handle_ended(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.bid_what_is_due(now);
        self.heard.retain(|_, heard| heard.until > now.at || heard.offer.is_some());
        let late = |held: &Held| held.fund_by.is_some_and(|by| by <= now.at);
        let unfunded: Vec<LeaseId> =
            self.leases.iter().filter(|(_, held)| late(held)).map(|(id, _)| *id).collect();
        for lease in unfunded {
            let Some(held) = self.leases.remove(&lease) else { continue };
            self.reputation.failed(held.tenant, now.at);
            self.note(held.id, held.tenant, Some(held.price), Fate::Unfunded);
            self.events.push_back(BidderEvent::Unfunded(lease));
        }
    }

    fn bid_what_is_due(&mut self, now: Moment) {
        let due = |heard: &Heard| match heard.offer.as_deref() {
            Some((_, Step::Waiting(_))) => heard.due <= now.at,
            Some((_, Step::Wallet(_))) => heard.live_until <= now.at,
            Some((_, Step::Bid(_))) => heard.live_until + heard.holds <= now.at,
            None => false,
        };
        let due: Vec<OrderId> =
            self.heard.iter().filter(|(_, heard)| due(heard)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(heard) = self.heard.get_mut(&id) else { continue };
            let live = heard.live_until > now.at;
            match heard.offer.take().map(|offer| *offer) {
                Some((order, Step::Waiting(price))) if live => self.bid(id, order, price, now),
                Some((order, Step::Waiting(price) | Step::Wallet(price))) => {
                    self.note(id, order.tenant, Some(price), Fate::Silent);
                }
                Some((order, Step::Bid(bid))) => {
                    self.note(id, order.tenant, Some(bid.price), Fate::Lost);
                }
                None => {}
            }
        }
    }

    /// The clock has come to the price: if there is still room for it, bids.
    fn bid(&mut self, id: OrderId, order: Order, price: Price, now: Moment) {
        let tenant = order.tenant;
        let asked = self.policy.bid(&order, &self.taken(), self.rate_proven, now.unix_ms);
        if let Err(why) = asked {
            return self.note(id, tenant, Some(price), Fate::NotBid(why));
        }
        let bid = self.offer(id, &order, price, now);
        let signed = bid.sign(&self.seller.node);
        let seed = self.secrets.draw();
        let sealed = (!bid.relays.is_empty())
            .then(|| seal_bid(id, &order.noise_key, &signed, seed).ok())
            .flatten();
        // A key that is none is the tenant's own loss.
        let Some(sealed) = sealed else {
            return self.note(id, tenant, Some(price), Fate::Silent);
        };
        let bytes = SealedBid { order: id, sealed }.encode();
        self.transmits.push_back(BidderTransmit::Bid { to: tenant, bytes });
        self.note(id, tenant, Some(price), Fate::Bid);
        if let Some(heard) = self.heard.get_mut(&id) {
            heard.offer = Some(Box::new((order, Step::Bid(Box::new(bid)))));
        }
    }

    fn offer(&mut self, id: OrderId, order: &Order, price: Price, now: Moment) -> Bid {
        let policy = &self.policy;
        let bidding = order.bids_until_unix_ms - order.made_unix_ms;
        let holds = self.heard.get(&id).map_or(BID_HOLDS, |heard| heard.holds);
        let holds_ms = u64::try_from(holds.as_millis()).expect("some minutes");
        let until = now.unix_ms.saturating_add(bidding).saturating_add(holds_ms);
        let ends_s = until / 1_000 + u64::from(order.duration_s);
        Bid {
            order: id,
            bidder: self.peer,
            lease: LeaseId(self.secrets.draw()),
            price,
            rate_up: policy.downlink,
            rate_down: policy.uplink.saturating_sub(policy.uplink_kept),
            rate_max: self.seller.rate_max,
            rate_proven: self.rate_proven,
            wallet: self.seller.wallet.address(),
            payout: self.seller.payout,
            period_min_s: policy.period_min_s,
            starter_bytes: 0,
            noise_key: self.seller.noise_key,
            relays: self.relays.clone(),
            invite: Invite::for_lease(&self.seller.invites, ends_s),
            valid_until_unix_ms: until,
        }
    }

    fn taken(&self) -> Taken {
        let mut taken = Taken { used: self.used, leases: self.leases.len(), ..Taken::default() };
        for room in self.leases.values().map(|held| &held.room) {
            taken.promised = taken.promised.saturating_add(room.volume);
            taken.rate_up = taken.rate_up.saturating_add(room.rate_down_min);
            taken.rate_down = taken.rate_down.saturating_add(room.rate_up_min);
        }
        taken
    }

    fn note(&mut self, order: OrderId, tenant: PeerId, price: Option<Price>, fate: Fate) {
        let made = Made { order, tenant, price, fate };
        if let Some(known) = self.history.iter_mut().rev().find(|made| made.order == order) {
            *known = made;
            return;
        }
        if self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(made);
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<BidderTransmit> {
        self.transmits.pop_front()
    }

    /// The next thing to know.
    pub fn poll_event(&mut self) -> Option<BidderEvent> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let orders = self.heard.values().map(|heard| match heard.offer.as_deref() {
            Some((_, Step::Waiting(_))) => (heard.due, "bid"),
            Some((_, Step::Wallet(_))) => (heard.live_until, "wallet"),
            Some((_, Step::Bid(_))) => (heard.live_until + heard.holds, "bid lost"),
            None => (heard.until, "forget an order"),
        });
        let leases = self.leases.values().filter_map(|held| Some((held.fund_by?, "funding")));
        orders.chain(leases).min_by_key(|(at, _)| *at)
    }

    /// What became of the newest orders, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Made> {
        self.history.iter()
    }

    /// What was refused, by name.
    #[must_use]
    pub const fn refused(&self) -> &Tally {
        &self.refused
    }

    /// What is remembered at a time: orders, leases, tenants, networks.
    #[must_use]
    pub fn remembered(&self) -> usize {
        let limits = self.tenants.len() + self.awards.len() + self.reputation.len();
        self.heard.len() + self.leases.len() + self.history.len() + limits
    }
}
