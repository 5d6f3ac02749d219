//! Reservations: asked for, offered, accepted, limited, ended.

use std::sync::Arc;
use std::time::Instant;

use sluice_proto::wire::control::{ReserveOffer, Reserved, Unpaid, control::Kind};
use sluice_proto::wire::{code, pay};
use sluice_proto::{FlowId, LeaseId, PeerId};

use super::{ACCOUNTS_MAX, Action, Admission, LegId, UNPAID_TTL};
use crate::account::{Account, AccountTotals};
use crate::flow::{Flow, Side};
use crate::table::Entry;

/// How far a connection has come with its reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    None,
    Asked,
    Made,
    Accepting,
}

#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) account: Arc<Account>,
    pub(super) expires: Instant,
    pub(super) unpaid_since: Option<Instant>,
}

/// What the owner agreed with a holder.
#[derive(Debug, Clone, Copy)]
pub struct Reserve {
    /// The reservation's id. If it is the one that this peer holds or held, its counts go on.
    pub lease: LeaseId,
    /// Billed bytes, both ways together, that it may pass from now on; none at price 0.
    pub room: Option<u64>,
    /// When it ends, for this process.
    pub expires: Instant,
    /// When it ends, for the holder.
    pub expires_unix_s: u64,
}

impl Admission {
    pub(super) fn reserve(&mut self, leg: LegId, peer: PeerId) {
        let held = self.clients.get(&peer).is_some_and(|c| c.reservation.is_some());
        if self.draining {
            return self.refuse(leg, code::SHUTDOWN, "the relay is shutting down".into());
        }
        if !held && self.reservations >= self.limits.reservations_max {
            return self.refuse(leg, code::LIMIT, "the relay has no reservation left".into());
        }
        let connection = self.connections.get_mut(&leg).expect("handle_control found it");
        if matches!(connection.offer, Offer::Asked | Offer::Accepting) {
            return self.refuse(leg, code::PROTOCOL, "the last request is not answered yet".into());
        }
        connection.offer = Offer::Asked;
        self.actions.push_back(Action::Offer { leg, peer });
    }

    /// Offers terms to a client that asked for them.
    pub fn offered(&mut self, leg: LegId, offer: ReserveOffer) {
        let Some(connection) = self.connections.get_mut(&leg) else { return };
        connection.offer = Offer::Made;
        self.send(leg, Kind::Offer(offer));
    }

    pub(super) fn accept(&mut self, leg: LegId, peer: PeerId, accept: pay::Accept, now: Instant) {
        let connection = self.connections.get_mut(&leg).expect("handle_control found it");
        if connection.offer != Offer::Made {
            return self.close(leg, code::PROTOCOL, "accepts what was not offered", now);
        }
        connection.offer = Offer::Accepting;
        self.actions.push_back(Action::Accept { leg, peer, accept });
    }

    /// Declines what a client asked for or accepted; it may ask again.
    pub fn declined(&mut self, leg: LegId, code: u32, message: String) {
        let Some(connection) = self.connections.get_mut(&leg) else { return };
        connection.offer = Offer::None;
        self.refuse(leg, code, message);
    }

    /// The terms stand: the client holds a reservation from now on. Returns its account and the
    /// counts that `room` was added to, or none if the client has gone or nothing is left.
    pub fn reserved(
        &mut self,
        leg: LegId,
        reserve: Reserve,
        now: Instant,
    ) -> Option<(Arc<Account>, AccountTotals)> {
        let connection = self.connections.get_mut(&leg)?;
        connection.offer = Offer::None;
        let peer = connection.peer;
        let held = self.clients.get(&peer)?.reservation.as_ref().map(|r| r.account.clone());
        if held.is_none() && self.reservations >= self.limits.reservations_max {
            self.refuse(leg, code::LIMIT, "the relay has no reservation left".into());
            return None;
        }
        let account = self.account_for(&peer, &reserve);
        if held.as_ref().is_some_and(|held| !Arc::ptr_eq(held, &account)) {
            // Its flows would be billed to the old account.
            self.close_flows_held_by(&peer, code::OK);
            self.close_loopback(&peer);
        }
        let start = account.totals();
        let client = self.clients.get_mut(&peer)?;
        client.reservation = Some(Reservation {
            account: account.clone(),
            expires: reserve.expires,
            unpaid_since: account.is_unpaid().then_some(now),
        });
        self.reservations += usize::from(held.is_none());
        if let Some(room) = reserve.room {
            let grants = self.pairs.iter().filter(|((holder, _), _)| *holder == peer);
            grants.for_each(|(_, grant)| grant.renew());
            self.set_limit(&peer, start.up.saturating_add(start.down).saturating_add(room));
        }
        self.send(leg, Kind::Reserved(Reserved { expires_unix_s: reserve.expires_unix_s }));
        Some((account, start))
    }

    /// The account of a reservation: the one that is remembered, or a new one.
    fn account_for(&mut self, peer: &PeerId, reserve: &Reserve) -> Arc<Account> {
        let metered = reserve.room.is_some();
        if let Some(account) = self.accounts.get(peer)
            && account.lease() == reserve.lease
            && account.is_metered() == metered
        {
            return account.clone();
        }
        if self.accounts.len() >= ACCOUNTS_MAX {
            self.accounts.retain(|_, account| Arc::strong_count(account) > 1);
        }
        let bits = self.limits.reservation_bits_per_s;
        let clock = &self.forwarder.clock;
        let account = Arc::new(Account::new(reserve.lease, metered, bits, clock));
        if self.accounts.len() < ACCOUNTS_MAX {
            self.accounts.insert(*peer, account.clone());
        }
        account
    }

    /// The client declines what it was offered.
    pub(super) fn offer_refused(&mut self, leg: LegId, refusal: &pay::Refusal, now: Instant) {
        let connection = self.connections.get_mut(&leg).expect("handle_control found it");
        if connection.offer != Offer::Made {
            return self.close(leg, code::PROTOCOL, "refuses what was not offered", now);
        }
        connection.offer = Offer::None;
        let reason = sluice_proto::wire::display_text(&refusal.message);
        tracing::debug!(peer = %connection.peer, reason, "the terms were refused");
    }

    /// Says how many billed bytes, both ways together, a holder's reservation may reach, since it
    /// paid for others.
    pub fn set_limit(&mut self, holder: &PeerId, limit: u64) {
        if let Some(reservation) = self.raise_limit(holder, limit) {
            reservation.unpaid_since = None;
        }
    }

    /// Says it when nothing was paid: what was owed is [forgiven](Account::set_forgives). Its flows
    /// are still closed when it pays nothing for 10 minutes.
    pub fn forgive(&mut self, holder: &PeerId, limit: u64) {
        self.raise_limit(holder, limit);
    }

    /// The reservation, if it had met its limit and has room again.
    fn raise_limit(&mut self, holder: &PeerId, limit: u64) -> Option<&mut Reservation> {
        let client = self.clients.get(holder)?;
        if !client.reservation.as_ref()?.account.set_limit(limit) {
            return None;
        }
        let flows: Vec<FlowId> = client.flows.iter().copied().collect();
        for number in flows {
            if let Some(Entry::Flow(flow, Side::Holder)) = self.forwarder.table.find(number)
                && flow.clear_unpaid()
            {
                self.tell_unpaid(&flow, false);
            }
        }
        self.clients.get_mut(holder)?.reservation.as_mut()
    }

    pub(super) fn unpaid(&mut self, number: FlowId, now: Instant) {
        let Some(Entry::Flow(flow, Side::Holder)) = self.forwarder.table.find(number) else {
            return;
        };
        if let Some((_, holder)) = self.peers_of.get(&number)
            && let Some(client) = self.clients.get_mut(holder)
            && let Some(reservation) = client.reservation.as_mut()
        {
            reservation.unpaid_since.get_or_insert(now);
            self.actions.push_back(Action::Report { peer: *holder });
        }
        self.tell_unpaid(&flow, true);
    }

    fn tell_unpaid(&mut self, flow: &Flow, unpaid: bool) {
        let Some((tenant, holder)) = self.peers_of.get(&flow.holder.number).copied() else {
            return;
        };
        self.send_to(&holder, Kind::Unpaid(Unpaid { flow: flow.holder.number.0, unpaid }));
        self.send_to(&tenant, Kind::Unpaid(Unpaid { flow: flow.tenant.number.0, unpaid }));
    }

    /// Ends a holder's reservation before its time, with words for a person.
    pub fn revoke(&mut self, holder: &PeerId, code: u32, message: String) {
        self.close_flows_held_by(holder, code);
        self.release(holder);
        self.send_to(holder, Kind::Refusal(pay::Refusal { code, message }));
    }

    /// Ends a holder's reservation; its account is remembered.
    pub(super) fn release(&mut self, peer: &PeerId) {
        let Some(client) = self.clients.get_mut(peer) else { return };
        let Some(reservation) = client.reservation.take() else { return };
        self.reservations -= 1;
        self.close_loopback(peer);
        self.actions.push_back(Action::Released { peer: *peer, account: reservation.account });
    }

    pub(super) fn expire_reservations(&mut self, now: Instant) {
        let (mut over, mut unpaid) = (Vec::new(), Vec::new());
        for (peer, client) in &self.clients {
            let Some(reservation) = &client.reservation else { continue };
            if reservation.expires <= now {
                over.push(*peer);
            } else if reservation.unpaid_since.is_some_and(|at| at + UNPAID_TTL <= now) {
                unpaid.push(*peer);
            }
        }
        for peer in over {
            self.close_flows_held_by(&peer, code::NOT_INVITED);
            self.release(&peer);
        }
        for peer in unpaid {
            self.close_flows_held_by(&peer, code::UNPAID);
            let reservation = self.clients.get_mut(&peer).and_then(|c| c.reservation.as_mut());
            if let Some(reservation) = reservation {
                reservation.unpaid_since = Some(now);
            }
        }
    }
}
