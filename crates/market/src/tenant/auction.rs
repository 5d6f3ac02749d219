//! One order from its first bid to service.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::eth::keccak256;
use sluice_proto::market::{
    Award, AwardAnswer, Bid, HOLD_MAX_S, Order, OrderId, SignedLease, close_order, is_asked,
};
use sluice_proto::{LeaseId, PeerId, Ticket, window_bytes};

use super::{Considered, Desk, NotChosen, Offer, Offers, TenantEvent, TenantTransmit, WhyNoLease};
use crate::award::{Facts, scores};
use crate::{
    AwardPolicy, AwardRefused, BidRefusal, Moment, SealError, Verdict, lease_of, open_bid,
};

/// Bids of one order that are kept; a cheaper one takes the place of the dearest.
const BIDS_MAX: usize = 64;
/// Refused bids of one order that are kept, for people.
const REFUSED_MAX: usize = 64;
/// After enough bids so long more are taken: those that are under way.
const IN_FLIGHT: Duration = Duration::from_millis(150);
/// A bidder that cannot be measured within this is not; it is three of the farthest round trips.
const MEASURE_WITHIN: Duration = Duration::from_secs(1);
/// A bidder that does not answer its award within this is passed over.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A provider that signed and does not serve within this is passed over: a channel opens first.
const SERVE_WITHIN: Duration = Duration::from_secs(90);
/// After its end so long an order's bids can be looked at.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
/// No choice is waited for longer.
const HOLD_MAX: Duration = Duration::from_secs(HOLD_MAX_S as u64 + 60);
/// The round-trip time that a window is made for when it could not be measured.
const RTT_UNKNOWN: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Candidate {
    bid: Bid,
    hash: [u8; 32],
    latency: Option<Duration>,
    is_measured: bool,
    verdict: Verdict,
}

#[derive(Debug)]
enum Phase {
    Bidding { until: Instant, is_closed: bool },
    Measuring { until: Instant, missing: BTreeSet<PeerId> },
    Choosing { until: Instant },
    Awarding { bidder: PeerId, award: Box<Award>, until: Instant },
    Serving { bidder: PeerId, until: Instant },
    Over { until: Instant },
}

#[derive(Debug)]
pub(super) struct Auction {
    id: OrderId,
    order: Order,
    secret: [u8; 32],
    placed: Instant,
    candidates: Vec<Candidate>,
    refused: Vec<(PeerId, BidRefusal)>,
    phase: Phase,
}

impl Auction {
    pub(super) fn new(id: OrderId, order: Order, secret: [u8; 32], now: Moment) -> Self {
        let bidding = Duration::from_millis(order.bids_until_unix_ms - order.made_unix_ms);
        Self {
            id,
            order,
            secret,
            placed: now.at,
            candidates: Vec::new(),
            refused: Vec::new(),
            phase: Phase::Bidding { until: now.at + bidding, is_closed: false },
        }
    }

    /// One whose bids were measured before.
    pub(super) fn resume(id: OrderId, offers: Offers, now: Moment) -> Self {
        let candidates = offers.bids.into_iter().take(BIDS_MAX).map(|Offer { bid, latency }| {
            let (hash, verdict) = (keccak256(&bid.encode()), Verdict::Open);
            Candidate { bid, hash, latency, is_measured: true, verdict }
        });
        let candidates: Vec<_> = candidates.collect();
        let phase = Phase::Choosing { until: hold_until(&candidates, now) };
        // Its key opened the bids, and is not needed again.
        let (order, secret) = (offers.order, [0; 32]);
        Self { id, order, secret, placed: now.at, candidates, refused: Vec::new(), phase }
    }

    pub(super) fn takes_bids(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Bidding { until, .. } if now <= until)
    }

    pub(super) fn open(&self, sealed: &[u8]) -> Result<Bytes, SealError> {
        open_bid(self.id, &self.secret, sealed)
    }

    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Over { until } if until <= now)
    }

    pub(super) fn bids(&self) -> usize {
        self.candidates.len() + self.refused.len()
    }

    /// A bid that is its sender's own.
    pub(super) fn handle_bid(
        &mut self,
        desk: &mut Desk,
        bid: Bid,
        now: Moment,
    ) -> Result<(), BidRefusal> {
        let bidder = bid.bidder;
        let taken = self.admit(desk, bid, now);
        match &taken {
            Ok(()) => self.close_if_enough(desk, now),
            Err(why) => {
                if *why == BidRefusal::Contradiction {
                    desk.reputation.failed(bidder, now.at);
                }
                if self.refused.len() < REFUSED_MAX {
                    self.refused.push((bidder, why.clone()));
                }
            }
        }
        taken
    }

    fn admit(&mut self, desk: &Desk, bid: Bid, now: Moment) -> Result<(), BidRefusal> {
        let hash = keccak256(&bid.encode());
        if let Some(first) = self.candidates.iter().find(|c| c.bid.bidder == bid.bidder) {
            let again = first.hash == hash;
            return Err(if again { BidRefusal::Replayed } else { BidRefusal::Contradiction });
        }
        self.check(&bid, now)?;
        if desk.reputation.is_shunned(&bid.bidder, now.at) {
            return Err(BidRefusal::Shunned);
        }
        if self.candidates.len() >= BIDS_MAX {
            let cost = |candidate: &Candidate| self.order.cost(candidate.bid.price);
            let dearest = (0..self.candidates.len()).max_by_key(|i| cost(&self.candidates[*i]));
            let dearest = dearest.expect("there are some");
            if cost(&self.candidates[dearest]) <= self.order.cost(bid.price) {
                return Err(BidRefusal::Full);
            }
            let gone = self.candidates.swap_remove(dearest);
            if self.refused.len() < REFUSED_MAX {
                self.refused.push((gone.bid.bidder, BidRefusal::Full));
            }
        }
        let verdict = Verdict::Open;
        self.candidates.push(Candidate { bid, hash, latency: None, is_measured: false, verdict });
        Ok(())
    }

    /// Whether it is a bid for this order that would do.
    fn check(&self, bid: &Bid, now: Moment) -> Result<(), BidRefusal> {
        let order = &self.order;
        if bid.order != self.id {
            return Err(BidRefusal::OtherOrder);
        }
        if !is_asked(&bid.bidder, order.depth, order.shard) {
            return Err(BidRefusal::NotAsked);
        }
        if bid.price.up > order.max_price.up || bid.price.down > order.max_price.down {
            return Err(BidRefusal::TooDear);
        }
        if order.cost(bid.price) > order.budget {
            return Err(BidRefusal::OverBudget);
        }
        let after = Duration::from_millis(order.bid_after_ms(bid.price));
        let early = (self.placed + after).saturating_duration_since(now.at);
        if !early.is_zero() {
            return Err(BidRefusal::TooEarly(u64::try_from(early.as_millis()).unwrap_or(u64::MAX)));
        }
        if bid.rate_up < order.rate_up_min || bid.rate_down < order.rate_down_min {
            return Err(BidRefusal::TooSlow);
        }
        if bid.rate_proven < order.rate_proven_min {
            return Err(BidRefusal::NotProven);
        }
        if order.money.is_some() && bid.period_min_s > order.period_s {
            return Err(BidRefusal::Period);
        }
        if bid.valid_until_unix_ms < order.bids_until_unix_ms {
            return Err(BidRefusal::Expired);
        }
        Ok(())
    }

    fn close_if_enough(&mut self, desk: &mut Desk, now: Moment) {
        let Phase::Bidding { until, is_closed } = &mut self.phase else { return };
        if *is_closed || self.candidates.len() < desk.policy.bids_enough.min(BIDS_MAX) {
            return;
        }
        *is_closed = true;
        *until = (*until).min(now.at + IN_FLIGHT);
        let Order { region, depth, shard, .. } = self.order.clone();
        let bytes = close_order(self.id, &desk.node);
        desk.transmits.push_back(TenantTransmit::Closed { region, depth, shard, bytes });
    }

    pub(super) fn handle_latency(
        &mut self,
        desk: &mut Desk,
        peer: PeerId,
        latency: Option<Duration>,
        now: Moment,
    ) {
        let Phase::Measuring { missing, .. } = &mut self.phase else { return };
        if !missing.remove(&peer) {
            return;
        }
        let done = missing.is_empty();
        if let Some(candidate) = self.candidates.iter_mut().find(|c| c.bid.bidder == peer) {
            candidate.latency = latency;
            candidate.is_measured = true;
        }
        if done {
            self.award_next(desk, now);
        }
    }

    pub(super) fn awaits(&self, from: &PeerId, lease: LeaseId) -> bool {
        matches!(&self.phase, Phase::Awarding { bidder, award, .. }
            if bidder == from && award.lease.lease == lease)
    }

    pub(super) fn handle_answer(
        &mut self,
        desk: &mut Desk,
        answer: AwardAnswer,
        now: Moment,
    ) -> Result<(), AwardRefused> {
        let Phase::Awarding { bidder, award, .. } = &self.phase else {
            return Err(AwardRefused::NotAwaited);
        };
        let bidder = *bidder;
        let failed = match answer.answer {
            Ok(signatures) => match SignedLease::seal((**award).clone(), signatures) {
                Ok(lease) => {
                    self.phase = Phase::Serving { bidder, until: now.at + SERVE_WITHIN };
                    let (order, lease) = (self.id, Box::new(lease));
                    desk.events.push_back(TenantEvent::Leased { order, lease });
                    return Ok(());
                }
                Err(error) => (Verdict::WrongSignature, AwardRefused::from(error)),
            },
            Err(why) => (Verdict::Refused(why), why.into()),
        };
        // That others came first is no fault.
        if failed.0 == Verdict::WrongSignature {
            desk.reputation.failed(bidder, now.at);
        }
        self.pass_over(desk, bidder, failed.0, now);
        Err(failed.1)
    }

    pub(super) fn handle_served(&mut self, desk: &mut Desk, now: Moment) {
        let Phase::Serving { bidder, .. } = self.phase else { return };
        desk.reputation.succeeded(bidder, now.at);
        self.judge(bidder, Verdict::Won);
        self.explain(desk, bidder, now);
        self.phase = Phase::Over { until: now.at + FORGET_AFTER };
    }

    pub(super) fn handle_no_service(&mut self, desk: &mut Desk, now: Moment) {
        let Phase::Serving { bidder, .. } = self.phase else { return };
        desk.reputation.failed(bidder, now.at);
        self.pass_over(desk, bidder, Verdict::NoService, now);
    }

    pub(super) fn handle_timeout(&mut self, desk: &mut Desk, now: Moment) {
        if self.timeout().0 > now.at {
            return;
        }
        match &self.phase {
            Phase::Bidding { .. } => self.measure_next(desk, now),
            Phase::Measuring { .. } => self.award_next(desk, now),
            Phase::Choosing { .. } => self.give_up(desk, now),
            Phase::Awarding { bidder, .. } => {
                let bidder = *bidder;
                desk.reputation.failed(bidder, now.at);
                self.pass_over(desk, bidder, Verdict::NoAnswer, now);
            }
            Phase::Serving { .. } => self.handle_no_service(desk, now),
            Phase::Over { .. } => {}
        }
    }

    pub(super) const fn timeout(&self) -> (Instant, &'static str) {
        match &self.phase {
            Phase::Bidding { until, .. } => (*until, "end of bidding"),
            Phase::Measuring { until, .. } => (*until, "latencies"),
            Phase::Choosing { until } => (*until, "choice"),
            Phase::Awarding { until, .. } => (*until, "answer to an award"),
            Phase::Serving { until, .. } => (*until, "service"),
            Phase::Over { until } => (*until, "forget an order"),
        }
    }

    /// Asks for the latencies of the cheapest that are not decided; of all that may win by a score.
    fn measure_next(&mut self, desk: &mut Desk, now: Moment) {
        let mut open: Vec<&Candidate> =
            self.candidates.iter().filter(|c| c.verdict == Verdict::Open).collect();
        open.sort_by_key(|c| (self.order.cost(c.bid.price), c.hash));
        if desk.policy.award == AwardPolicy::Cheapest && desk.policy.by_hand.is_none() {
            open.truncate(desk.policy.finalists.max(1));
        }
        let missing: BTreeSet<PeerId> = open.iter().map(|c| c.bid.bidder).collect();
        if missing.is_empty() {
            return self.give_up(desk, now);
        }
        for Candidate { bid, .. } in open {
            let ticket = Ticket {
                peer: bid.bidder,
                noise_key: bid.noise_key,
                relays: bid.relays.clone(),
                invite: bid.invite,
                expires_unix_s: bid.valid_until_unix_ms / 1_000,
                services: self.order.services.iter().map(|s| s.name.clone()).collect(),
            };
            let (peer, ticket) = (bid.bidder, Box::new(ticket));
            desk.events.push_back(TenantEvent::Measure { order: self.id, peer, ticket });
        }
        for candidate in &mut self.candidates {
            candidate.is_measured |= missing.contains(&candidate.bid.bidder);
        }
        self.phase = Phase::Measuring { until: now.at + MEASURE_WITHIN, missing };
    }

    fn give_up(&mut self, desk: &mut Desk, now: Moment) {
        let none = self.candidates.is_empty();
        let why = if none { WhyNoLease::NoBids } else { WhyNoLease::NoneLeft };
        desk.events.push_back(TenantEvent::NoLease { order: self.id, why });
        self.phase = Phase::Over { until: now.at + FORGET_AFTER };
    }

    /// Awards the best of those that were measured and not decided, or measures others.
    fn award_next(&mut self, desk: &mut Desk, now: Moment) {
        if desk.policy.by_hand.is_some() {
            return self.let_choose(desk, now);
        }
        self.drop_far(desk);
        match self.best(desk, now) {
            Some(best) => self.award(desk, best, now),
            None => self.measure_next(desk, now),
        }
    }

    fn let_choose(&mut self, desk: &mut Desk, now: Moment) {
        self.phase = Phase::Choosing { until: hold_until(&self.candidates, now) };
        desk.events.push_back(TenantEvent::Choose { order: self.id });
    }

    pub(super) fn offers(&self) -> Option<Offers> {
        let Phase::Choosing { .. } = self.phase else { return None };
        let mut open: Vec<&Candidate> =
            self.candidates.iter().filter(|c| c.verdict == Verdict::Open).collect();
        open.sort_by_key(|c| (self.order.cost(c.bid.price), c.latency, c.hash));
        let offer = |c: &Candidate| Offer { bid: c.bid.clone(), latency: c.latency };
        Some(Offers { order: self.order.clone(), bids: open.into_iter().map(offer).collect() })
    }

    pub(super) fn choose(
        &mut self,
        desk: &mut Desk,
        bidder: PeerId,
        now: Moment,
    ) -> Result<(), NotChosen> {
        let Phase::Choosing { .. } = self.phase else { return Err(NotChosen::NoOrder(self.id)) };
        let is_it = |c: &Candidate| c.bid.bidder == bidder && c.verdict == Verdict::Open;
        let at = self.candidates.iter().position(is_it).ok_or(NotChosen::NoBid(bidder))?;
        let until = self.candidates[at].bid.valid_until_unix_ms;
        if until <= now.unix_ms {
            return Err(NotChosen::Over(until));
        }
        self.award(desk, at, now);
        Ok(())
    }

    fn award(&mut self, desk: &mut Desk, at: usize, now: Moment) {
        let Candidate { bid, latency, .. } = &self.candidates[at];
        let rtt = latency.unwrap_or(RTT_UNKNOWN);
        let window = window_bytes(bid.rate_max, rtt);
        let window = window.clamp(self.order.window_min, self.order.window_max);
        let made_unix_s = now.unix_ms / 1_000;
        let lease = lease_of(&self.order, bid, desk.wallet.address(), window, made_unix_s);
        let answer_by = now.after(ANSWER_WITHIN);
        let award = Award::make(lease, answer_by.unix_ms, &desk.node, &desk.wallet);
        let (bidder, bytes) = (bid.bidder, award.encode());
        desk.transmits.push_back(TenantTransmit::Award { to: bidder, bytes });
        self.phase = Phase::Awarding { bidder, award: Box::new(award), until: answer_by.at };
    }

    fn drop_far(&mut self, desk: &Desk) {
        let Some(max) = desk.policy.latency_max else { return };
        let measured =
            self.candidates.iter_mut().filter(|c| c.is_measured && c.verdict == Verdict::Open);
        for candidate in measured {
            match candidate.latency {
                Some(found) if found > max => candidate.verdict = Verdict::TooFar { found, max },
                None => candidate.verdict = Verdict::NotMeasured,
                Some(_) => {}
            }
        }
    }

    fn facts(&self, desk: &Desk, candidate: &Candidate, now: Moment) -> Facts {
        Facts {
            cost: self.order.cost(candidate.bid.price),
            rate: candidate.bid.rate_down,
            latency: candidate.latency,
            success_ppm: desk.reputation.success_ppm(&candidate.bid.bidder, now.at),
        }
    }

    /// The best of those that were measured and not decided.
    fn best(&self, desk: &Desk, now: Moment) -> Option<usize> {
        let open = |i: &usize| {
            let candidate = &self.candidates[*i];
            candidate.is_measured && candidate.verdict == Verdict::Open
        };
        let open: Vec<usize> = (0..self.candidates.len()).filter(open).collect();
        let facts: Vec<Facts> =
            open.iter().map(|i| self.facts(desk, &self.candidates[*i], now)).collect();
        let cheapest = |at: &usize| {
            let far = facts[*at].latency.unwrap_or(Duration::MAX);
            (facts[*at].cost, far, self.candidates[open[*at]].hash)
        };
        let at = match desk.policy.award {
            AwardPolicy::Cheapest => (0..open.len()).min_by_key(cheapest),
            AwardPolicy::Score(weights) => {
                let scores = scores(&facts, weights);
                (0..open.len()).max_by_key(|at| (scores[*at], std::cmp::Reverse(cheapest(at))))
            }
        };
        at.map(|at| open[at])
    }

    fn judge(&mut self, bidder: PeerId, verdict: Verdict) {
        if let Some(candidate) = self.candidates.iter_mut().find(|c| c.bid.bidder == bidder) {
            candidate.verdict = verdict;
        }
    }

    fn pass_over(&mut self, desk: &mut Desk, bidder: PeerId, verdict: Verdict, now: Moment) {
        self.judge(bidder, verdict);
        self.award_next(desk, now);
    }

    /// Gives those that were not taken their reason.
    fn explain(&mut self, desk: &Desk, winner: PeerId, now: Moment) {
        let facts: Vec<Facts> = self.candidates.iter().map(|c| self.facts(desk, c, now)).collect();
        let Some(won) = self.candidates.iter().position(|c| c.bid.bidder == winner) else { return };
        let scores = match desk.policy.award {
            AwardPolicy::Cheapest => None,
            AwardPolicy::Score(weights) => Some(scores(&facts, weights)),
        };
        let taken = facts[won].cost;
        for (i, candidate) in self.candidates.iter_mut().enumerate() {
            if candidate.verdict != Verdict::Open {
                continue;
            }
            if desk.policy.by_hand.is_some() {
                candidate.verdict = Verdict::NotChosen;
                continue;
            }
            let cost = facts[i].cost;
            candidate.verdict = match &scores {
                Some(scores) => Verdict::LowerScore { score: scores[i], taken: scores[won] },
                None if cost == taken => Verdict::Farther,
                None => Verdict::Dearer { cost, taken },
            };
        }
    }

    pub(super) fn considered(&self) -> Vec<Considered> {
        let weighed = self.candidates.iter().map(|c| Considered {
            bidder: c.bid.bidder,
            price: Some(c.bid.price),
            cost: Some(self.order.cost(c.bid.price)),
            latency: c.latency,
            verdict: Ok(c.verdict),
        });
        let refused = self.refused.iter().map(|(bidder, why)| Considered {
            bidder: *bidder,
            price: None,
            cost: None,
            latency: None,
            verdict: Err(why.clone()),
        });
        weighed.chain(refused).collect()
    }
}

/// When the last bid that is not decided holds no longer.
fn hold_until(candidates: &[Candidate], now: Moment) -> Instant {
    let open = candidates.iter().filter(|c| c.verdict == Verdict::Open);
    let until_unix_ms = open.map(|c| c.bid.valid_until_unix_ms).max().unwrap_or(0);
    now.at + Duration::from_millis(until_unix_ms.saturating_sub(now.unix_ms)).min(HOLD_MAX)
}
