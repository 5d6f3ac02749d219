//! Flows: opened by a rendezvous, answered, closed.

use std::sync::Arc;
use std::time::Instant;

use sluice_proto::wire::control::{
    self, CloseFlow, FlowOpened, FlowRefused, PeerAddress, RendezvousAnswer, RendezvousIn,
    control::Kind,
};
use sluice_proto::wire::{SEALED_MAX, are_first_packets, code};
use sluice_proto::{FlowId, PeerId};

use super::{
    Admission, FLOWS_PER_PAIR_MAX, LegId, PAIRS_MAX, PROVISIONAL_PER_HOLDER_MAX,
    PROVISIONAL_PER_TENANT_MAX, PROVISIONAL_TTL, Provisional,
};
use crate::account::Account;
use crate::flow::{End, Flow, Grant, Side};
use crate::leg::Leg;
use crate::limits::Prefix;
use crate::loopback::Loopback;
use crate::table::Entry;

/// Why a flow is not opened.
struct Refused(u32, &'static str);

/// What a flow to a holder needs of it.
struct Target {
    leg: Arc<Leg>,
    account: Arc<Account>,
    connection: LegId,
    takes_first: bool,
}

impl Admission {
    pub(super) fn rendezvous(
        &mut self,
        leg: LegId,
        tenant: PeerId,
        message: control::Rendezvous,
        now: Instant,
    ) {
        let request = message.request;
        if let Err(Refused(code, text)) = self.open_flow(leg, tenant, message, now) {
            let message = text.to_owned();
            self.send(leg, Kind::FlowRefused(FlowRefused { request, code, message }));
        }
    }

    fn open_flow(
        &mut self,
        leg: LegId,
        tenant: PeerId,
        message: control::Rendezvous,
        now: Instant,
    ) -> Result<(), Refused> {
        if message.sealed.len() > SEALED_MAX {
            return Err(Refused(code::PROTOCOL, "the sealed message is too long"));
        }
        if !are_first_packets(&message.first) {
            return Err(Refused(code::PROTOCOL, "the first packets are too many or too long"));
        }
        let holder = PeerId::from_bytes(&message.to)
            .map_err(|_| Refused(code::PROTOCOL, "`to` is not a peer id"))?;
        self.check_opening(leg, &tenant)?;
        if tenant == holder {
            return self.open_loopback(leg, tenant, message.request);
        }
        let target = self.target(&holder)?;
        self.check_bounds(&tenant, &holder)?;
        let grant = self.grant_of(&holder, &tenant)?;
        let flow = self.insert_flow(tenant, holder, &target, grant);
        let (at_tenant, at_holder) = (flow.tenant.number, flow.holder.number);
        let provisional = Provisional { holder_flow: at_holder, tenant, holder, answered: false };
        self.provisional.insert((now + PROVISIONAL_TTL, at_tenant), provisional);
        let first = if target.takes_first { message.first } else { Vec::new() };
        let (request, passed_on) = (message.request, !first.is_empty());
        flow.pass_first(first.iter().map(|packet| packet.len() as u64));
        self.send(leg, Kind::FlowOpened(FlowOpened { request, flow: at_tenant.0, passed_on }));
        self.send(
            target.connection,
            Kind::RendezvousIn(RendezvousIn {
                flow: at_holder.0,
                from: tenant.to_bytes().into(),
                sealed: message.sealed,
                first,
            }),
        );
        Ok(())
    }

    /// Gives a holder a flow to itself, in the place of the one that it had.
    fn open_loopback(&mut self, leg: LegId, peer: PeerId, request: u32) -> Result<(), Refused> {
        let none = Refused(code::NO_SUCH_PEER, "only a holder has a flow to itself");
        let Target { leg: state, account, .. } = self.target(&peer).map_err(|_| none)?;
        self.close_loopback(&peer);
        let lane = self.next_lane();
        let number = self.number(lane);
        let loopback = Loopback::new(number, state, account, &self.forwarder.clock);
        let inserted = self.forwarder.table.insert(number, Entry::Loopback(Arc::new(loopback)));
        debug_assert!(inserted, "the number was free");
        self.clients.get_mut(&peer).expect("it was found").loopback = Some(number);
        let opened = FlowOpened { request, flow: number.0, passed_on: false };
        self.send(leg, Kind::FlowOpened(opened));
        Ok(())
    }

    pub(super) fn close_loopback(&mut self, peer: &PeerId) {
        let number = self.clients.get_mut(peer).and_then(|client| client.loopback.take());
        if let Some(number) = number {
            self.forwarder.table.remove(number);
        }
    }

    fn check_opening(&self, leg: LegId, tenant: &PeerId) -> Result<(), Refused> {
        if self.draining {
            return Err(Refused(code::SHUTDOWN, "the relay is shutting down"));
        }
        let client = self.clients.get(tenant).expect("it said hello");
        let ip = self.connections[&leg].at.remote.ip();
        if client.opening_pace.allows() && self.opening_pace.allows(Prefix::of(ip)) {
            Ok(())
        } else {
            Err(Refused(code::LIMIT, "too many rendezvous: wait a little"))
        }
    }

    fn target(&self, holder: &PeerId) -> Result<Target, Refused> {
        const AWAY: Refused = Refused(code::NO_SUCH_PEER, "that node is not at this relay");
        let client = self.clients.get(holder).ok_or(AWAY)?;
        let reservation = client.reservation.as_ref().ok_or(AWAY)?;
        let connection = client.connection.ok_or(AWAY)?;
        let (leg, account) = (client.leg.clone(), reservation.account.clone());
        Ok(Target { leg, account, connection, takes_first: client.takes_first })
    }

    fn check_bounds(&self, tenant: &PeerId, holder: &PeerId) -> Result<(), Refused> {
        let provisional = |pick: fn(&Provisional) -> &PeerId, peer: &PeerId| {
            self.provisional.values().filter(|p| pick(p) == peer).count()
        };
        if provisional(|p| &p.tenant, tenant) >= PROVISIONAL_PER_TENANT_MAX
            || self.clients[tenant].flows.len() >= self.limits.flows_per_tenant_max
                && self.clients[tenant].reservation.is_none()
        {
            return Err(Refused(code::LIMIT, "too many flows of this tenant"));
        }
        if provisional(|p| &p.holder, holder) >= PROVISIONAL_PER_HOLDER_MAX
            || self.clients[holder].flows.len() >= self.limits.flows_per_holder_max
        {
            return Err(Refused(code::LIMIT, "too many flows of this holder"));
        }
        let of_pair = self.clients[tenant]
            .flows
            .iter()
            .filter(|n| self.peers_of.get(n) == Some(&(*tenant, *holder)))
            .count();
        if of_pair >= FLOWS_PER_PAIR_MAX {
            return Err(Refused(code::LIMIT, "too many flows between these two"));
        }
        Ok(())
    }

    /// The grant of a pair: kept while the relay runs, so that reopening does not renew it.
    fn grant_of(&mut self, holder: &PeerId, tenant: &PeerId) -> Result<Arc<Grant>, Refused> {
        let pair = (*holder, *tenant);
        if let Some(grant) = self.pairs.get(&pair) {
            return Ok(grant.clone());
        }
        if self.pairs.len() >= PAIRS_MAX {
            self.pairs.retain(|_, grant| Arc::strong_count(grant) > 1);
        }
        if self.pairs.len() >= PAIRS_MAX {
            return Err(Refused(code::LIMIT, "the relay is full"));
        }
        Ok(self.pairs.entry(pair).or_default().clone())
    }

    fn insert_flow(
        &mut self,
        tenant: PeerId,
        holder: PeerId,
        target: &Target,
        grant: Arc<Grant>,
    ) -> Arc<Flow> {
        // Both directions of a flow in one thread: it is awake anyway.
        let lane = self.next_lane();
        let at_tenant = self.number(lane);
        let at_holder = loop {
            let number = self.number(lane);
            if number != at_tenant {
                break number;
            }
        };
        let flow = Arc::new(Flow::new(
            End::new(at_tenant, self.clients[&tenant].leg.clone()),
            End::new(at_holder, target.leg.clone()),
            target.account.clone(),
            grant,
            &self.forwarder.clock,
        ));
        for (peer, number, side) in
            [(tenant, at_tenant, Side::Tenant), (holder, at_holder, Side::Holder)]
        {
            let inserted = self.forwarder.table.insert(number, Entry::Flow(flow.clone(), side));
            debug_assert!(inserted, "the number was free");
            self.peers_of.insert(number, (tenant, holder));
            self.clients.get_mut(&peer).expect("both were found").flows.insert(number);
        }
        flow
    }

    pub(super) fn answer(&mut self, holder: PeerId, answer: RendezvousAnswer) {
        let number = FlowId(answer.flow);
        let Some(provisional) = self
            .provisional
            .values_mut()
            .find(|p| p.holder_flow == number && p.holder == holder && !p.answered)
        else {
            return;
        };
        if answer.sealed.len() > SEALED_MAX {
            return self.close_flow_of(holder, number, code::PROTOCOL);
        }
        provisional.answered = true;
        let tenant = provisional.tenant;
        let Some(Entry::Flow(flow, Side::Holder)) = self.forwarder.table.find(number) else {
            return;
        };
        flow.open();
        self.send_to(
            &tenant,
            Kind::Answer(RendezvousAnswer { flow: flow.tenant.number.0, sealed: answer.sealed }),
        );
    }

    pub(super) fn grant(&mut self, holder: PeerId, message: &control::Grant) {
        let number = FlowId(message.flow);
        if self.peers_of.get(&number).is_none_or(|(_, h)| *h != holder) {
            return;
        }
        if let Some(Entry::Flow(flow, Side::Holder)) = self.forwarder.table.find(number) {
            flow.granted(message.granted);
        }
    }

    /// One end of a flow permits that the other learns its address, or takes that back. Once both
    /// do, both are told, and told again whenever one says so again: its address may be new.
    pub(super) fn permit_address(&mut self, peer: PeerId, permit: &control::PermitAddress) {
        let number = FlowId(permit.flow);
        if !self.clients.get(&peer).is_some_and(|c| c.flows.contains(&number)) {
            return;
        }
        if !permit.permitted {
            self.permitted.remove(&number);
            return;
        }
        self.permitted.insert(number);
        let Some(Entry::Flow(flow, side)) = self.forwarder.table.find(number) else { return };
        let (own, other) = (flow.end(side), flow.other(side));
        let Some((tenant, holder)) = self.peers_of.get(&number).copied() else { return };
        let other_peer = if side == Side::Tenant { holder } else { tenant };
        if !self.permitted.contains(&other.number) {
            return;
        }
        for (to, end, seen) in [(peer, own, other), (other_peer, other, own)] {
            let address = seen.leg.at().seen();
            let message = PeerAddress { flow: end.number.0, address };
            self.send_to(&to, Kind::PeerAddress(message));
        }
    }

    /// One end closes a flow: the other is told.
    pub(super) fn close_flow_of(&mut self, peer: PeerId, number: FlowId, code: u32) {
        if !self.clients.get(&peer).is_some_and(|c| c.flows.contains(&number)) {
            return;
        }
        if let Some((other, other_number)) = self.remove_flow(number, &peer) {
            self.send_to(&other, Kind::CloseFlow(CloseFlow { flow: other_number.0, code }));
        }
    }

    /// Closes every flow of a client that is gone: the other ends are told.
    pub(super) fn close_flows_of(&mut self, peer: &PeerId, code: u32) {
        let Some(client) = self.clients.get(peer) else { return };
        for number in client.flows.clone() {
            self.close_flow_of(*peer, number, code);
        }
    }

    /// Closes every flow that a client holds: both ends are told.
    pub(super) fn close_flows_held_by(&mut self, holder: &PeerId, code: u32) {
        let Some(client) = self.clients.get(holder) else { return };
        for number in client.flows.clone() {
            if self.peers_of.get(&number).is_some_and(|(_, h)| h == holder) {
                self.close_flow_of(*holder, number, code);
                self.send_to(holder, Kind::CloseFlow(CloseFlow { flow: number.0, code }));
            }
        }
    }

    /// Takes a flow out of every map; returns the end that is not `peer`'s.
    fn remove_flow(&mut self, number: FlowId, peer: &PeerId) -> Option<(PeerId, FlowId)> {
        let Some(Entry::Flow(flow, side)) = self.forwarder.table.find(number) else {
            return None;
        };
        let (tenant, holder) = self.peers_of.get(&number).copied()?;
        for (owner, end) in [(tenant, &flow.tenant), (holder, &flow.holder)] {
            self.forwarder.table.remove(end.number);
            self.peers_of.remove(&end.number);
            self.permitted.remove(&end.number);
            if let Some(client) = self.clients.get_mut(&owner) {
                client.flows.remove(&end.number);
            }
        }
        self.provisional.retain(|_, p| p.holder_flow != flow.holder.number);
        self.actions.push_back(super::Action::FlowEnded { holder });
        let other = if *peer == tenant { holder } else { tenant };
        Some((other, flow.other(side).number))
    }

    pub(super) fn expire_provisional(&mut self, now: Instant) {
        while let Some(entry) = self.provisional.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let provisional = entry.remove();
            let number = provisional.holder_flow;
            let open = match self.forwarder.table.find(number) {
                Some(Entry::Flow(flow, _)) => flow.is_open(),
                Some(Entry::Own(_) | Entry::Loopback(_)) | None => continue,
            };
            if !open {
                self.close_flow_of(provisional.holder, number, code::NO_SUCH_PEER);
                let close = CloseFlow { flow: number.0, code: code::NO_SUCH_PEER };
                self.send_to(&provisional.holder, Kind::CloseFlow(close));
            }
        }
    }
}
