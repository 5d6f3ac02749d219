//! Control connections come and go; clients stay a little longer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use sluice_proto::frame::FrameKey;
use sluice_proto::wire::control::{Hello, Welcome, control::Kind};
use sluice_proto::wire::{FEATURE_FIRST, FEATURE_GRANTED, FEATURE_LOOPBACK, code};
use sluice_proto::{PeerId, VERSION};

use super::{
    Admission, Client, Connection, GREETING_MAX, GREETING_PER_PREFIX_MAX, HELLO_WITHIN, LegId,
    reserve,
};
use crate::leg::{Leg, ReturnAddress};
use crate::limits::{Pace, Prefix};
use crate::table::Entry;

/// What the older of two processes with one key is told.
const SUPERSEDED: &str = "another process with your key started later, and stands";

impl Admission {
    /// A number for a control connection whose handshake is done: the context of its exporter.
    pub fn allot(&mut self) -> LegId {
        self.legs_so_far += 1;
        LegId(self.legs_so_far)
    }

    /// Whether a handshake with this address may begin.
    pub fn may_connect(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.forwarder.clock.feed(now);
        let prefix = Prefix::of(ip);
        let of_prefix = self.greeting_per_prefix.get(&prefix).copied().unwrap_or_default();
        !self.draining
            && self.greeting < GREETING_MAX
            && of_prefix < GREETING_PER_PREFIX_MAX
            && self.opening_pace.allows(prefix)
    }

    /// A control connection stands. `exported` are the 32 bytes of its exporter (label
    /// [`sluice_proto::frame::EXPORTER_LABEL`], context the leg's number, big-endian).
    ///
    /// # Errors
    /// With a code for closing it, when a bound is met or the relay is draining.
    pub fn connected(
        &mut self,
        leg: LegId,
        peer: PeerId,
        at: ReturnAddress,
        exported: &[u8; 32],
        now: Instant,
    ) -> Result<(), u32> {
        self.forwarder.clock.feed(now);
        if self.draining {
            return Err(code::SHUTDOWN);
        }
        let of_prefix = self.greeting_per_prefix.entry(Prefix::of(at.remote.ip())).or_default();
        if self.greeting >= GREETING_MAX || *of_prefix >= GREETING_PER_PREFIX_MAX {
            return Err(code::LIMIT);
        }
        self.greeting += 1;
        *of_prefix += 1;
        let per_s = self.limits.messages_per_s;
        let connection = Connection {
            peer,
            at,
            keys: FrameKey::pair(exported),
            greet_by: Some(now + HELLO_WITHIN),
            pace: Pace::new(per_s, per_s.saturating_mul(4), &self.forwarder.clock),
            offer: reserve::Offer::None,
        };
        self.connections.insert(leg, connection);
        Ok(())
    }

    /// A connection said hello, or went without.
    fn greeted(&mut self, at: ReturnAddress) {
        self.greeting -= 1;
        let prefix = Prefix::of(at.remote.ip());
        if let Some(count) = self.greeting_per_prefix.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.greeting_per_prefix.remove(&prefix);
            }
        }
    }

    /// A control connection is lost. Its client stays while its frames or keepalives arrive.
    pub fn disconnected(&mut self, leg: LegId, now: Instant) {
        let Some(connection) = self.connections.remove(&leg) else { return };
        if connection.greet_by.is_some() {
            self.greeted(connection.at);
        }
        if let Some(client) = self.clients.get_mut(&connection.peer)
            && client.connection == Some(leg)
        {
            client.connection = None;
            client.detached_at = Some(now);
        }
    }

    /// A client closed its control connection on purpose: its flows and reservation end at once.
    pub fn left(&mut self, leg: LegId, now: Instant) {
        let Some(peer) = self.connections.get(&leg).map(|c| c.peer) else { return };
        let current = self.clients.get(&peer).is_some_and(|c| c.connection == Some(leg));
        self.disconnected(leg, now);
        if current {
            self.forget(&peer, code::OK, now);
        }
    }

    pub(super) fn hello(&mut self, leg: LegId, hello: &Hello, now: Instant) {
        if !hello.versions.contains(&VERSION) {
            self.refuse(leg, code::VERSION, format!("this relay speaks version {VERSION}"));
            return self.close(leg, code::VERSION, "no version in common", now);
        }
        let connection = self.connections.get_mut(&leg).expect("handle_control found it");
        let (peer, at, keys) = (connection.peer, connection.at, connection.keys.clone());
        if self.clients.get(&peer).is_some_and(|c| c.incarnation > hello.incarnation) {
            self.refuse(leg, code::SUPERSEDED, SUPERSEDED.to_owned());
            return self.close(leg, code::SUPERSEDED, "a later start stands", now);
        }
        let resumes = self.clients.get(&peer).is_some_and(|c| c.incarnation == hello.incarnation);
        if resumes {
            self.resume(leg, peer, at, keys, now);
        } else {
            self.forget(&peer, code::RESTARTED, now);
            if let Err(reason) = self.admit(leg, peer, at, keys, hello, now) {
                return self.close(leg, code::LIMIT, reason, now);
            }
        }
        self.connections.get_mut(&leg).expect("still there").greet_by = None;
        self.greeted(at);
        let own_flow = self.clients[&peer].leg.own_flow;
        let keepalive_s = u32::try_from(self.limits.keepalive.as_secs()).unwrap_or(u32::MAX);
        self.send(
            leg,
            Kind::Welcome(Welcome {
                version: VERSION,
                features: [FEATURE_LOOPBACK, FEATURE_GRANTED].map(str::to_owned).to_vec(),
                leg: leg.0,
                observed: at.seen(),
                own_flow: own_flow.0,
                keepalive_s,
                alternate_port: self.alternate_port.into(),
            }),
        );
    }

    /// The same process is back on another control connection: its flows go on.
    fn resume(
        &mut self,
        leg: LegId,
        peer: PeerId,
        at: ReturnAddress,
        keys: (FrameKey, FrameKey),
        now: Instant,
    ) {
        let client = self.clients.get_mut(&peer).expect("it resumes");
        client.leg.replace(keys, at);
        client.detached_at = None;
        if let Some(old) = client.connection.replace(leg) {
            self.close(old, code::OK, "replaced by another connection", now);
        }
    }

    fn admit(
        &mut self,
        leg: LegId,
        peer: PeerId,
        at: ReturnAddress,
        keys: (FrameKey, FrameKey),
        hello: &Hello,
        now: Instant,
    ) -> Result<(), &'static str> {
        let prefix = Prefix::of(at.remote.ip());
        if self.clients.len() >= self.limits.legs_max {
            return Err("the relay is full");
        }
        let of_prefix = self.per_prefix.entry(prefix).or_default();
        if *of_prefix >= self.limits.legs_per_prefix_max {
            return Err("too many clients from these addresses");
        }
        *of_prefix += 1;
        let lane = u32::try_from(leg.0 % u64::from(self.lanes)).expect("less than lanes");
        let own_flow = self.number(lane);
        let clock = &self.forwarder.clock;
        let now_ms = clock.feed(now);
        let bits = self.limits.leg_bits_per_s;
        let state = Arc::new(Leg::new(own_flow, keys, at, bits, clock, now_ms));
        let inserted = self.forwarder.table.insert(own_flow, Entry::Own(state.clone()));
        debug_assert!(inserted, "the number was free");
        let per_s = self.limits.openings_per_leg_per_s;
        let client = Client {
            incarnation: hello.incarnation,
            leg: state,
            prefix,
            connection: Some(leg),
            detached_at: None,
            reservation: None,
            takes_first: hello.features.iter().any(|feature| feature == FEATURE_FIRST),
            flows: Default::default(),
            loopback: None,
            opening_pace: Pace::new(per_s, per_s.saturating_mul(8), clock),
        };
        self.clients.insert(peer, client);
        Ok(())
    }

    /// Drops a client with its flows and its reservation.
    pub(super) fn forget(&mut self, peer: &PeerId, code: u32, now: Instant) {
        self.close_flows_of(peer, code);
        self.release(peer);
        let Some(client) = self.clients.remove(peer) else { return };
        self.forwarder.table.remove(client.leg.own_flow);
        if let Some(count) = self.per_prefix.get_mut(&client.prefix) {
            *count -= 1;
            if *count == 0 {
                self.per_prefix.remove(&client.prefix);
            }
        }
        if let Some(leg) = client.connection {
            self.close(leg, code, "this node is forgotten", now);
        }
    }

    pub(super) fn expire_greetings(&mut self, now: Instant) {
        let late: Vec<LegId> = self
            .connections
            .iter()
            .filter(|(_, c)| c.greet_by.is_some_and(|by| by <= now))
            .map(|(leg, _)| *leg)
            .collect();
        for leg in late {
            self.close(leg, code::PROTOCOL, "no hello", now);
        }
    }

    pub(super) fn expire_clients(&mut self, now: Instant) {
        let keepalive = self.limits.keepalive;
        let clock = &self.forwarder.clock;
        let silent: Vec<PeerId> = self
            .clients
            .iter()
            .filter(|(_, client)| {
                let seen = clock.at_ms(client.leg.seen_ms());
                client.detached_at.is_some_and(|at| at.max(seen) + keepalive <= now)
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in silent {
            self.forget(&peer, code::NO_SUCH_PEER, now);
        }
    }
}
