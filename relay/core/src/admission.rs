//! The control plane: who is here, who holds a reservation, which flows stand.

mod flows;
mod greet;
mod reserve;
mod stats;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_proto::frame::FrameKey;
use sluice_proto::wire::control::{Control, Drain, control::Kind};
use sluice_proto::wire::{code, pay};
use sluice_proto::{FlowId, PeerId};

use crate::account::Account;
use crate::flow::Grant;
use crate::forward::{Event, Forwarder};
use crate::leg::{Leg, ReturnAddress};
use crate::limits::{Limits, Pace, PacePerPrefix, Prefix};

pub use reserve::Reserve;
pub use stats::{FlowStats, ReservationStats};

/// A client that connected says hello within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// A provisional flow that nobody answers is forgotten after this time.
const PROVISIONAL_TTL: Duration = Duration::from_secs(10);
/// A reservation unpaid for this long loses its flows.
const UNPAID_TTL: Duration = Duration::from_secs(600);
/// Control connections that have not said hello yet.
const GREETING_MAX: usize = 1024;
/// The same, of one /24 or /48.
const GREETING_PER_PREFIX_MAX: usize = 256;
/// Pairs of holder and tenant whose grant is remembered.
const PAIRS_MAX: usize = 65_536;
/// Accounts remembered after their holder has gone, so that a restart renews no window.
const ACCOUNTS_MAX: usize = 65_536;
/// Flows between the same two nodes: more than one while a tenant reconnects.
const FLOWS_PER_PAIR_MAX: usize = 8;
/// Provisional flows of one tenant.
const PROVISIONAL_PER_TENANT_MAX: usize = 16;
/// Provisional flows of one holder.
const PROVISIONAL_PER_HOLDER_MAX: usize = 256;

/// One control connection's number, never used twice; context of its frame keys' exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegId(pub u64);

/// What the owner must do.
#[derive(Debug)]
pub enum Action {
    /// Write a message to a control connection.
    Send {
        /// Which.
        leg: LegId,
        /// The message.
        message: Control,
    },
    /// Close a control connection; [`Admission::disconnected`] need not be told.
    Close {
        /// Which.
        leg: LegId,
        /// See [`code`].
        code: u32,
        /// For a person.
        reason: &'static str,
    },
    /// A client asks for terms: answer by [`Admission::offered`] or [`Admission::refuse`].
    Offer {
        /// Its control connection.
        leg: LegId,
        /// Who it is.
        peer: PeerId,
    },
    /// A client accepts its terms: answer by [`Admission::reserved`] or [`Admission::refuse`].
    Accept {
        /// Its control connection.
        leg: LegId,
        /// Who it is.
        peer: PeerId,
        /// What it sent.
        accept: pay::Accept,
    },
    /// A flow ended: its holder may be about to leave.
    FlowEnded {
        /// Who pays for it.
        holder: PeerId,
    },
    /// A reservation's total reached the alarm that its owner set ([`Account::set_alarm`]).
    Report {
        /// Who holds it.
        peer: PeerId,
    },
    /// A reservation ended: the holder is gone, or the time is over.
    Released {
        /// Who held it.
        peer: PeerId,
        /// Its counts, which are remembered in case the holder comes back.
        account: Arc<Account>,
    },
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    at: ReturnAddress,
    keys: (FrameKey, FrameKey),
    /// Until when it must say hello; none once it did.
    greet_by: Option<Instant>,
    pace: Pace,
    /// Whether terms were asked for, and offered.
    offer: reserve::Offer,
}

#[derive(Debug)]
struct Client {
    incarnation: u64,
    leg: Arc<Leg>,
    prefix: Prefix,
    /// The control connection, while there is one.
    connection: Option<LegId>,
    detached_at: Option<Instant>,
    reservation: Option<reserve::Reservation>,
    /// It takes a session's first packets out of a rendezvous message.
    takes_first: bool,
    /// Flows of this client by its own numbers, as tenant and as holder.
    flows: BTreeSet<FlowId>,
    /// Its flow to itself; no other map knows it.
    loopback: Option<FlowId>,
    opening_pace: Pace,
}

#[derive(Debug)]
struct Provisional {
    holder_flow: FlowId,
    tenant: PeerId,
    holder: PeerId,
    answered: bool,
}

/// The relay's control plane. After each call, drain [`Admission::poll_action`], then sleep until
/// [`Admission::poll_timeout`] or the next fact.
#[derive(Debug)]
pub struct Admission {
    forwarder: Arc<Forwarder>,
    limits: Limits,
    lanes: u32,
    legs_so_far: u64,
    numbers_so_far: u64,
    flows_so_far: u64,
    connections: BTreeMap<LegId, Connection>,
    greeting: usize,
    greeting_per_prefix: BTreeMap<Prefix, usize>,
    clients: BTreeMap<PeerId, Client>,
    per_prefix: BTreeMap<Prefix, usize>,
    opening_pace: PacePerPrefix,
    reservations: usize,
    /// Provisional flows by their end of life and their number at the tenant.
    provisional: BTreeMap<(Instant, FlowId), Provisional>,
    peers_of: BTreeMap<FlowId, (PeerId, PeerId)>,
    /// Flows, by the number at one end, whose other end may learn this end's address.
    permitted: BTreeSet<FlowId>,
    pairs: BTreeMap<(PeerId, PeerId), Arc<Grant>>,
    accounts: BTreeMap<PeerId, Arc<Account>>,
    alternate_port: u16,
    draining: bool,
    actions: VecDeque<Action>,
    next_sweep: Instant,
}

/// Clients, reservations and unpaid accounts are looked over this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Admission {
    /// An empty relay over `forwarder`. `lanes` is the number of its threads: flow numbers are
    /// dealt out so that each thread gets as many flows.
    #[must_use]
    pub fn new(forwarder: Arc<Forwarder>, limits: Limits, lanes: u32, now: Instant) -> Self {
        let opening_pace = PacePerPrefix::new(
            limits.openings_per_prefix_per_s,
            limits.openings_per_prefix_per_s.saturating_mul(8),
            &forwarder.clock,
        );
        Self {
            forwarder,
            limits,
            lanes: lanes.max(1),
            legs_so_far: 0,
            numbers_so_far: 0,
            flows_so_far: 0,
            connections: BTreeMap::new(),
            greeting: 0,
            greeting_per_prefix: BTreeMap::new(),
            clients: BTreeMap::new(),
            per_prefix: BTreeMap::new(),
            opening_pace,
            reservations: 0,
            provisional: BTreeMap::new(),
            peers_of: BTreeMap::new(),
            permitted: BTreeSet::new(),
            pairs: BTreeMap::new(),
            accounts: BTreeMap::new(),
            alternate_port: 0,
            draining: false,
            actions: VecDeque::new(),
            next_sweep: now + SWEEP_EVERY,
        }
    }

    /// Clients are told of another UDP port of the relay, which answers observe frames.
    pub const fn set_alternate_port(&mut self, port: u16) {
        self.alternate_port = port;
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Admission::handle_timeout`] wants to be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let provisional = self.provisional.first_key_value().map(|(key, _)| key.0);
        let sweep = (!self.clients.is_empty() || !self.connections.is_empty())
            .then_some((self.next_sweep, "look over clients"));
        provisional
            .map(|at| (at, "forget an unanswered flow"))
            .into_iter()
            .chain(sweep)
            .min_by_key(|(at, _)| *at)
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.forwarder.clock.feed(now);
        self.expire_provisional(now);
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP_EVERY;
            self.expire_greetings(now);
            self.expire_clients(now);
            self.expire_reservations(now);
        }
    }

    /// Takes a message of a control connection.
    pub fn handle_control(&mut self, leg: LegId, message: Control, now: Instant) {
        self.forwarder.clock.feed(now);
        let Some(connection) = self.connections.get(&leg) else { return };
        if !connection.pace.allows() {
            return self.close(leg, code::LIMIT, "too many messages", now);
        }
        let (peer, greeted) = (connection.peer, connection.greet_by.is_none());
        match (message.kind, greeted) {
            (Some(Kind::Hello(hello)), false) => self.hello(leg, &hello, now),
            (Some(Kind::Reserve(_)), true) => self.reserve(leg, peer),
            (Some(Kind::Accept(accept)), true) => self.accept(leg, peer, accept, now),
            (Some(Kind::Rendezvous(rendezvous)), true) => {
                self.rendezvous(leg, peer, rendezvous, now);
            }
            (Some(Kind::Answer(answer)), true) => self.answer(peer, answer),
            (Some(Kind::CloseFlow(close)), true) => {
                self.close_flow_of(peer, FlowId(close.flow), close.code);
            }
            (Some(Kind::Grant(grant)), true) => self.grant(peer, &grant),
            (Some(Kind::PermitAddress(permit)), true) => self.permit_address(peer, &permit),
            (Some(Kind::Refusal(refusal)), true) => self.offer_refused(leg, &refusal, now),
            // A message of a later version or feature.
            (None, true) => {}
            _ => self.close(leg, code::PROTOCOL, "a message out of order", now),
        }
    }

    /// Takes what the forwarding path noticed.
    pub fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Unpaid(flow) => self.unpaid(flow, now),
            Event::Alarm(flow) => {
                if let Some((_, holder)) = self.peers_of.get(&flow) {
                    self.actions.push_back(Action::Report { peer: *holder });
                }
            }
        }
    }

    /// Asks every client to leave; admits nobody and opens nothing from now on.
    pub fn drain(&mut self, within: Duration) {
        self.draining = true;
        let within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        let legs: Vec<LegId> = self.connections.keys().copied().collect();
        for leg in legs {
            self.send(leg, Kind::Drain(Drain { within_ms }));
        }
    }

    /// Flows that stand, provisional ones included.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.peers_of.len() / 2
    }

    /// Whose control connection this is, once it said hello.
    #[must_use]
    pub fn peer_of(&self, leg: LegId) -> Option<PeerId> {
        self.connections.get(&leg).filter(|c| c.greet_by.is_none()).map(|c| c.peer)
    }

    /// A client's control connection, while it has one.
    #[must_use]
    pub fn connection_of(&self, peer: &PeerId) -> Option<LegId> {
        self.clients.get(peer)?.connection
    }

    /// The account of a holder's reservation.
    #[must_use]
    pub fn account_of(&self, peer: &PeerId) -> Option<Arc<Account>> {
        Some(self.clients.get(peer)?.reservation.as_ref()?.account.clone())
    }

    /// Refuses what a client asked last, with words for a person.
    pub fn refuse(&mut self, leg: LegId, code: u32, message: String) {
        self.send(leg, Kind::Refusal(pay::Refusal { code, message }));
    }

    fn send(&mut self, leg: LegId, kind: Kind) {
        self.actions.push_back(Action::Send { leg, message: Control { kind: Some(kind) } });
    }

    fn send_to(&mut self, peer: &PeerId, kind: Kind) {
        if let Some(leg) = self.clients.get(peer).and_then(|c| c.connection) {
            self.send(leg, kind);
        }
    }

    fn close(&mut self, leg: LegId, code: u32, reason: &'static str, now: Instant) {
        self.actions.push_back(Action::Close { leg, code, reason });
        self.disconnected(leg, now);
    }

    /// An unused flow number that the thread `lane` will receive.
    fn number(&mut self, lane: u32) -> FlowId {
        use std::hash::Hasher;
        loop {
            self.numbers_so_far += 1;
            let mut hasher = self.forwarder.secret;
            hasher.write(b"flow");
            hasher.write_u64(self.numbers_so_far);
            let random = (hasher.finish() >> 32) as u32;
            let number = random - random % self.lanes;
            // 0 is left out: a message without the field would mean it.
            let Some(number) = number.checked_add(lane % self.lanes).filter(|n| *n != 0) else {
                continue;
            };
            if self.forwarder.table.find(FlowId(number)).is_none() {
                return FlowId(number);
            }
        }
    }

    fn next_lane(&mut self) -> u32 {
        self.flows_so_far += 1;
        u32::try_from(self.flows_so_far % u64::from(self.lanes)).expect("less than lanes")
    }
}
