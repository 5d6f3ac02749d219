//! A provider on the market: hears orders, bids by its owner's policy, answers awards, and sees that what
//! it signed is kept before anybody hears of it.
//!
//! One task drives a [`Bidder`] over the mesh. What a stranger may cost is bounded here where it is not
//! there: orders that ask others are passed on only if they are signed and not too many, one peer's
//! awards are limited, and only so many wallets and bids are under way at a time.

#![expect(clippy::disallowed_methods, reason = "the names of leases are drawn from a seed")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_chain::Chain;
use sluice_ledger::{Edge, Ledger, Role};
use sluice_market::{
    AwardRefused, BidPolicy, Bidder, BidderEvent, BidderTransmit, Limiter, Moment, OrderRefusal,
    Seller,
};
use sluice_mesh::{Gossip, Verdict};
use sluice_proto::ask::{Answer, Ask, AskRefusal, orders_topic};
use sluice_proto::market::{
    MarketError, Money as MarketMoney, OrderId, Region, SignedLease, SignedOrder, closes_order,
};
use sluice_proto::{Amount, EthAddress, LeaseId, PeerId, RelayAddr};
use sluice_transport::{Clock, NoiseKeys};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::bids::{BidLog, Month};
use super::{Ended, LeaseState, Leases};
use crate::roles::mesh::{Asked, Meshed};
use crate::roles::{Identity, Money, Report, Reporter};

/// Messages of all regions that wait.
const QUEUE: usize = 256;
/// Wallets that are looked at at a time; an order that finds no place shows a stamp, or is not bid for.
const WALLETS_MAX: usize = 16;
/// The chain answers within this, or the wallet counts as empty.
const WALLET: Duration = Duration::from_secs(5);
/// Bids that are on their way at a time.
const BIDS_MAX: usize = 64;
/// Orders of one tenant that ask others, and closings: one every ..
const PASS_EVERY: Duration = Duration::from_secs(1);
/// .. and so many at once.
const PASS_BURST: u32 = 40;
/// Awards of one peer: one every ..
const AWARD_EVERY: Duration = Duration::from_secs(1);
/// .. and so many at once. Checking one costs two signatures.
const AWARD_BURST: u32 = 10;
/// Peers that are told apart.
const PEERS_MAX: usize = 4096;
/// Leases whose time is over are noticed within this; what was used this month is counted anew.
const LOOK: Duration = Duration::from_secs(30);
/// The list of bids is written at most this often.
const WRITE: Duration = Duration::from_secs(1);

/// What a provider on the market is told.
#[derive(Debug, Clone)]
pub struct SellOptions {
    /// Its keys.
    pub identity: Identity,
    /// What its owner allows.
    pub policy: BidPolicy,
    /// The regions whose orders it hears.
    pub regions: Vec<Region>,
    /// Bits per second that windows are computed from.
    pub rate_max: u64,
    /// Where it is paid; `None`: everything is free.
    pub money: Option<Money>,
    /// What it wins.
    pub leases: Leases,
    /// What was paid under them.
    pub ledger: Ledger,
    /// The relays at which it can be reached.
    pub relays: watch::Receiver<Vec<RelayAddr>>,
    /// The file that says what was bid; `None`: nobody reads it.
    pub bids: Option<PathBuf>,
    /// Who is told what happens.
    pub report: Reporter,
    /// The clock that it reads.
    pub clock: Clock,
}

/// A provider on the market, until it is dropped.
#[derive(Debug)]
pub struct Selling {
    _tasks: JoinSet<()>,
}

impl Selling {
    /// Listens to orders and bids.
    ///
    /// # Errors
    /// When the keys are no keys, the ledger cannot be read, or the mesh takes no more topics.
    pub async fn start(mesh: Meshed, options: SellOptions) -> Result<Self> {
        let clock = options.clock.clone();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
        let identity = &options.identity;
        let noise = NoiseKeys::from_secret(identity.noise).context("the Noise key is not valid")?;
        let seller = Seller {
            node: identity.node.clone(),
            wallet: options.money.as_ref().map_or(&identity.wallet, |m| &m.wallet).clone(),
            payout: match &options.money {
                Some(money) => money.payout,
                None => identity.wallet.address(),
            },
            noise_key: noise.public(),
            invites: identity.invites,
            regions: options.regions.clone(),
            rate_max: options.rate_max,
        };
        let mut bidder = Bidder::new(seller, options.policy.clone(), seed);
        let now = moment(&clock);
        for (signed, state) in options.leases.all(now.unix_ms / 1_000) {
            let is_ours = signed.lease().provider == identity.peer();
            if is_ours && state == LeaseState::Open {
                let id = signed.lease().lease;
                let row = options.ledger.lease(id).await?;
                let funded = row.is_some_and(|row| row.channel.is_some() || row.sessions > 0);
                bidder.handle_lease(&signed, funded, now);
            }
        }
        let mut tasks = JoinSet::new();
        let (orders, heard) = mpsc::channel(QUEUE);
        for region in &options.regions {
            let mut messages = mesh.on_gossip(&orders_topic(region)).await?;
            let orders = orders.clone();
            tasks.spawn(async move {
                while let Some(gossip) = messages.recv().await {
                    if orders.send(gossip).await.is_err() {
                        return;
                    }
                }
            });
        }
        let (wallets, seen) = mpsc::channel(WALLETS_MAX);
        let asked = mesh.on_ask();
        let task = Task {
            bidder,
            mesh,
            wallets,
            clock,
            passed: Limiter::new(PASS_EVERY, PASS_BURST, PEERS_MAX),
            awards: Limiter::new(AWARD_EVERY, AWARD_BURST, PEERS_MAX),
            looking: Arc::new(Semaphore::new(WALLETS_MAX)),
            bidding: Arc::new(Semaphore::new(BIDS_MAX)),
            log: BidLog::open(options.bids.clone()),
            known: BTreeSet::new(),
            options,
        };
        tasks.spawn(task.run(heard, asked, seen));
        Ok(Self { _tasks: tasks })
    }
}

fn moment(clock: &Clock) -> Moment {
    let unix_ms = u64::try_from(clock.unix_time().as_millis()).unwrap_or(u64::MAX);
    Moment { at: clock.now(), unix_ms }
}

struct Task {
    bidder: Bidder,
    mesh: Meshed,
    options: SellOptions,
    clock: Clock,
    wallets: mpsc::Sender<(OrderId, bool)>,
    passed: Limiter<PeerId>,
    awards: Limiter<PeerId>,
    looking: Arc<Semaphore>,
    bidding: Arc<Semaphore>,
    log: BidLog,
    /// Leases that the bidder keeps room for.
    known: BTreeSet<LeaseId>,
}

impl Task {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<Gossip>,
        mut asked: mpsc::Receiver<Asked>,
        mut seen: mpsc::Receiver<(OrderId, bool)>,
    ) {
        let mut relays = self.options.relays.clone();
        relays.mark_changed();
        let leases = self.options.leases.clone();
        let (mut look, mut write) = (self.clock.now(), None);
        loop {
            let due = self.bidder.poll_timeout().map(|(at, _)| at);
            let next = [Some(look), due, write].into_iter().flatten().min().unwrap_or(look);
            tokio::select! {
                biased;
                Some(asked) = asked.recv() => self.handle_asked(asked).await,
                Some((order, has_budget)) = seen.recv() => {
                    self.bidder.handle_wallet(order, has_budget, moment(&self.clock));
                }
                () = leases.changed() => self.handle_leases(),
                changed = relays.changed() => {
                    // The provider has stopped.
                    if changed.is_err() {
                        return self.log.write(&self.bidder).await;
                    }
                    let now = relays.borrow_and_update().clone();
                    self.bidder.handle_relays(now);
                }
                () = self.clock.sleep_until(next) => {}
                gossip = orders.recv() => match gossip {
                    Some(gossip) => {
                        let verdict = self.judge(&gossip);
                        self.mesh.mesh().judge(&gossip, verdict).await;
                    }
                    // The mesh has ended.
                    None => return self.log.write(&self.bidder).await,
                },
            }
            let now = moment(&self.clock);
            if look <= now.at {
                look = now.at + LOOK;
                self.handle_leases();
                self.count_used().await;
            }
            self.bidder.handle_timeout(now);
            self.drain().await;
            if self.log.take(&self.bidder, now.unix_ms / 1_000) && write.is_none() {
                write = Some(now.at + WRITE);
            }
            if write.is_some_and(|at| at <= now.at) {
                write = None;
                self.log.write(&self.bidder).await;
            }
        }
    }

    /// What becomes of a message of an orders' topic.
    fn judge(&mut self, gossip: &Gossip) -> Verdict {
        let now = moment(&self.clock);
        if let Ok((_, tenant)) = closes_order(&gossip.bytes) {
            if tenant != gossip.source {
                return self.log.rejected("other_source");
            }
            return match self.bidder.handle_closed(&gossip.bytes) {
                Ok(()) => self.pass(tenant, now),
                Err(_) => Verdict::Reject,
            };
        }
        match self.bidder.handle_order(&gossip.bytes, now) {
            Ok(_) => self.source(gossip),
            // It was not looked at whether its tenant signed it.
            Err(OrderRefusal::NotAsked) => match SignedOrder::parse(&gossip.bytes) {
                Ok(signed) if signed.order.tenant == gossip.source && signed.verify().is_ok() => {
                    self.pass(gossip.source, now)
                }
                Ok(_) | Err(_) => self.log.rejected("forged"),
            },
            // Of a version to come: others may know it.
            Err(OrderRefusal::Message(MarketError::Version { .. })) => Verdict::Ignore,
            Err(OrderRefusal::Message(_)) => Verdict::Reject,
            // A clock that is wrong, a message that was late, a node that is busy: nobody's lie.
            Err(
                OrderRefusal::Expired(_)
                | OrderRefusal::Future(_)
                | OrderRefusal::Replayed
                | OrderRefusal::Stamp { .. }
                | OrderRefusal::Limit
                | OrderRefusal::Full
                | OrderRefusal::Shunned,
            ) => Verdict::Ignore,
        }
    }

    /// An order is its tenant's to tell: whoever tells it again under another name wants it to be heard
    /// twice.
    fn source(&mut self, gossip: &Gossip) -> Verdict {
        let tenant = SignedOrder::parse(&gossip.bytes).map(|signed| signed.order.tenant);
        match tenant {
            Ok(tenant) if tenant == gossip.source => Verdict::Accept,
            Ok(_) | Err(_) => self.log.rejected("other_source"),
        }
    }

    fn pass(&mut self, tenant: PeerId, now: Moment) -> Verdict {
        if self.passed.admit(&tenant, now.at) { Verdict::Accept } else { Verdict::Ignore }
    }

    async fn handle_asked(&mut self, asked: Asked) {
        let answer = match &asked.ask {
            Ask::Award(bytes) => self.award(asked.peer, &bytes.clone()).await,
            // It is no tenant, and asks for no bids.
            Ask::Bid(_) | Ask::Relays => Answer::Refused(AskRefusal::Busy),
        };
        asked.answer(&answer).await;
    }

    /// The answer to an award. What is signed is durable before it is told.
    async fn award(&mut self, from: PeerId, bytes: &Bytes) -> Answer {
        let now = moment(&self.clock);
        if !self.awards.admit(&from, now.at) {
            self.log.rejected("award_limit");
            return Answer::Refused(AskRefusal::Busy);
        }
        let outcome = self.bidder.handle_award(from, None, bytes, now);
        let is_kept = self.drain_events().await;
        let mut answer = None;
        while let Some(transmit) = self.bidder.poll_transmit() {
            match transmit {
                BidderTransmit::Answer { to, bytes } if to == from => answer = Some(bytes),
                BidderTransmit::Answer { .. } => {}
                BidderTransmit::Bid { to, bytes } => self.send_bid(to, bytes),
            }
        }
        match (answer, outcome) {
            // What cannot be kept was never promised.
            (Some(_), Ok(())) if !is_kept => Answer::Refused(AskRefusal::Busy),
            (Some(bytes), _) => Answer::Award(bytes),
            (None, Err(AwardRefused::Limit)) => Answer::Refused(AskRefusal::Busy),
            (None, _) => Answer::Refused(AskRefusal::Malformed),
        }
    }

    async fn drain(&mut self) {
        self.drain_events().await;
        while let Some(transmit) = self.bidder.poll_transmit() {
            if let BidderTransmit::Bid { to, bytes } = transmit {
                self.send_bid(to, bytes);
            }
        }
    }

    /// False: a lease could not be kept.
    async fn drain_events(&mut self) -> bool {
        let mut is_kept = true;
        while let Some(event) = self.bidder.poll_event() {
            match event {
                BidderEvent::CheckWallet { order, wallet, money, budget } => {
                    self.check_wallet(order, wallet, money, budget);
                }
                BidderEvent::Leased(signed) => is_kept &= self.keep(*signed).await,
                BidderEvent::Unfunded(lease) => self.end(lease).await,
            }
        }
        is_kept
    }

    async fn keep(&mut self, signed: SignedLease) -> bool {
        let (id, leases) = (signed.lease().lease, self.options.leases.clone());
        let kept = signed.clone();
        match tokio::task::spawn_blocking(move || leases.put(&kept)).await {
            Ok(Ok(())) => {
                self.known.insert(id);
                let (peer, price) = (signed.lease().tenant, signed.lease().price);
                let lease = hex::encode(id.0);
                self.options.report.tell(&Report::Leased { lease, peer, price });
                true
            }
            Ok(Err(error)) => {
                tracing::error!(lease = %id, %error, "an award is not answered: the lease cannot be kept");
                self.bidder.handle_ended(id);
                false
            }
            Err(error) => {
                tracing::error!(lease = %id, %error, "an award is not answered");
                self.bidder.handle_ended(id);
                false
            }
        }
    }

    /// Nobody paid for a lease in time, unless that was seen just now.
    async fn end(&mut self, id: LeaseId) {
        let leases = self.options.leases.clone();
        self.known.remove(&id);
        match tokio::task::spawn_blocking(move || leases.end(id, Ended::Unfunded)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(lease = %id, %error, "its end cannot be written"),
            Err(error) => tracing::error!(lease = %id, %error, "its end cannot be written"),
        }
    }

    /// Sees which leases were funded, and which are over.
    fn handle_leases(&mut self) {
        let now = moment(&self.clock);
        for (signed, state) in self.options.leases.all(now.unix_ms / 1_000) {
            let id = signed.lease().lease;
            if state != LeaseState::Open {
                self.bidder.handle_ended(id);
                self.known.remove(&id);
            } else if self.options.leases.is_funded(id) {
                self.bidder.handle_funded(id, now);
            }
        }
    }

    fn send_bid(&self, to: PeerId, bytes: Bytes) {
        let Ok(turn) = self.bidding.clone().try_acquire_owned() else {
            tracing::debug!(%to, "a bid is not sent: too many are on their way");
            return;
        };
        let mesh = self.mesh.clone();
        tokio::spawn(async move {
            if let Err(error) = mesh.ask(to, &Ask::Bid(bytes)).await {
                tracing::debug!(%to, %error, "a bid did not arrive");
            }
            drop(turn);
        });
    }

    fn check_wallet(
        &mut self,
        order: OrderId,
        wallet: EthAddress,
        money: Option<MarketMoney>,
        budget: Amount,
    ) {
        let ours = self.options.money.as_ref().map(|money| money.chain.clone());
        let turn = self.looking.clone().try_acquire_owned();
        let (Some(chain), Some(money), Ok(turn)) = (ours, money, turn) else {
            self.bidder.handle_wallet(order, false, moment(&self.clock));
            return;
        };
        let (wallets, clock) = (self.wallets.clone(), self.clock.clone());
        tokio::spawn(async move {
            let looked = clock.timeout(WALLET, has(&chain, money, wallet, budget)).await;
            let _ = wallets.send((order, looked.unwrap_or(false))).await;
            drop(turn);
        });
    }

    /// Payload of this month, both ways, as vouchers say.
    async fn count_used(&mut self) {
        if self.options.policy.month_bytes == 0 {
            return;
        }
        let offset_min = self.options.policy.utc_offset_min;
        let month = Month::of(self.clock.unix_time().as_secs(), offset_min);
        match carried(&self.options.ledger).await {
            Ok(total) => {
                let used = self.log.used(month, total);
                self.bidder.handle_used(used);
            }
            Err(error) => tracing::warn!("what was sold this month is not known: {error:#}"),
        }
    }
}

async fn has(chain: &Chain, money: MarketMoney, wallet: EthAddress, budget: Amount) -> bool {
    if (money.domain, money.token) != (chain.domain(), chain.token()) {
        return false;
    }
    match chain.token_balance(wallet).await {
        Ok(balance) => balance >= budget,
        Err(error) => {
            tracing::debug!(%wallet, %error, "a wallet cannot be looked at");
            false
        }
    }
}

/// Payload bytes that tenants ever signed for, both ways.
async fn carried(ledger: &Ledger) -> Result<u64> {
    let mut total: u64 = 0;
    for lease in ledger.leases().await? {
        if (lease.edge, lease.role) != (Edge::Tenant, Role::Payee) {
            continue;
        }
        if let Some(newest) = ledger.newest_earned(lease.id).await? {
            total = total.saturating_add(newest.up).saturating_add(newest.down);
        }
    }
    Ok(total)
}
