//! Keeps what is known of this node's NAT up to date.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use sluice_path::{
    GUESSES_MAX, Nat, Question, SURVEY_SOCKETS, SocketId, Survey, SurveyRelay, Timer,
};
use sluice_proto::frame::Observe;

use crate::leg::Leg;
use crate::node::Inner;
use crate::observe::Observer;
use crate::side::SideSocket;

/// Links that come up within this of one another are asked together.
const SETTLE: Duration = Duration::from_millis(50);
/// Relays that are asked: two tell how a NAT maps, a third one bears a lost one.
const RELAYS_MAX: usize = 3;
/// The same relays are asked again after this: routers are replaced.
const AGAIN: Duration = Duration::from_secs(1800);

/// How much a node's NAT may be asked and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatOptions {
    /// Whether relays are asked what they see: a few frames whenever a link comes up. Without it
    /// no port is guessed.
    pub survey: bool,
    /// Whether the router may be asked to forward a port.
    pub port_mapping: bool,
    /// Entries of the NAT's table that guessing may take at a time: the sockets of one side, the
    /// guesses of the other. At most 1,024. With fewer, fewer direct paths are found where a NAT's
    /// ports are random: 98 % at 1,024, 64 % at 256.
    pub entries_max: u16,
}

impl Default for NatOptions {
    fn default() -> Self {
        Self { survey: true, port_mapping: false, entries_max: GUESSES_MAX }
    }
}

/// One relay's view of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayView {
    /// The relay.
    pub relay: SocketAddr,
    /// How it sees the data socket; `None`: UDP to it did not work.
    pub observed: Option<SocketAddr>,
    /// Round-trip time to it over UDP.
    pub rtt: Option<Duration>,
}

/// What is known of this node's NAT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatState {
    /// What it does.
    pub nat: Nat,
    /// Whether sockets behind the NAT reach one another at their public addresses.
    pub hairpins: Option<bool>,
    /// How relays see this node, as far as they were asked.
    pub relays: Vec<RelayView>,
    /// Where the router forwards to the data socket.
    pub mapped: Option<SocketAddr>,
    /// How long the NAT keeps a mapping, as far as it was measured on this network.
    pub timer: Timer,
    /// The survey of these relays is over: what is not known now will not be.
    pub complete: bool,
}

/// Surveys whenever the links that are up change, until the node is gone.
pub(crate) async fn keep_surveyed(node: Weak<Inner>) {
    let Some(mut changes) = node.upgrade().map(|node| node.link_changes.subscribe()) else {
        return;
    };
    let mut asked: Vec<(SocketAddr, Option<SocketAddr>)> = Vec::new();
    loop {
        let Some(strong) = node.upgrade() else { return };
        let legs = legs_up(&strong);
        let now: Vec<_> = legs.iter().map(|(leg, observed)| (leg.relay, *observed)).collect();
        let wanted = strong.nat_options.lock().survey;
        let clock = strong.clock.clone();
        if wanted && !legs.is_empty() && now != asked {
            clock.sleep(SETTLE).await;
            asked = legs_up(&strong).iter().map(|(leg, seen)| (leg.relay, *seen)).collect();
            let legs = legs_up(&strong).into_iter().map(|(leg, _)| leg).collect();
            survey(&strong, legs).await;
            continue;
        }
        drop(strong);
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() { return },
            () = clock.sleep(AGAIN) => asked.clear(),
        }
    }
}

/// The relays that can be asked, in an order of their own, and how they saw this node at first.
pub(crate) fn legs_up(node: &Inner) -> Vec<(Arc<Leg>, Option<SocketAddr>)> {
    let mut legs: Vec<_> = node
        .links()
        .into_iter()
        .filter(|link| link.state().borrow().generation().is_some() && !link.is_over_tcp())
        .filter_map(|link| {
            let leg = node.tables.legs.read().get(&link.relay().addr).cloned().flatten();
            Some((leg?, link.observed()))
        })
        .collect();
    legs.sort_by_key(|(leg, _)| leg.relay);
    legs.dedup_by_key(|(leg, _)| leg.relay);
    legs.truncate(RELAYS_MAX);
    legs
}

async fn survey(node: &Arc<Inner>, legs: Vec<Arc<Leg>>) {
    let before = node.nat.borrow().clone();
    let socket = &node.socket;
    let sides = socket.sides.open(&node.network, socket, SURVEY_SOCKETS);
    let relays =
        legs.iter().map(|l| SurveyRelay { main: l.relay, alternate: l.alternate }).collect();
    let data_port = socket.bound().map_or(0, |bound| bound.port());
    let ports = std::iter::once(data_port).chain(sides.iter().map(|s| s.local_port())).collect();
    let mut survey = Survey::new(relays, ports, node.random.number(), node.clock.now());
    let mut observer = Observer::new(node.clone());
    loop {
        while let Some(question) = survey.poll_transmit() {
            ask(&mut observer, &legs, &sides, &question);
        }
        while let Some(packet) = survey.poll_hairpin() {
            if let Some(side) = fresh(&sides, packet.from) {
                observer.send_hairpin(side, &packet);
            }
        }
        publish(node, &legs, &survey, &before, false);
        let Some(due) = survey.poll_timeout() else { break };
        tokio::select! {
            biased;
            answer = observer.answer() => if let Some(seen) = answer {
                survey.handle_answer(seen.token, seen.address, node.clock.now());
            },
            () = node.clock.sleep_until(due) => survey.handle_timeout(node.clock.now()),
        }
    }
    publish(node, &legs, &survey, &before, true);
    // What relays see now may be news to sessions that stand.
    node.addresses_changed();
    for side in sides {
        socket.sides.close(side.id);
    }
    let nat = node.nat.borrow().nat;
    tracing::debug!(?nat, relays = legs.len(), "the NAT was surveyed");
}

/// The fresh socket of this number, from 1.
fn fresh(sides: &[Arc<SideSocket>], socket: SocketId) -> Option<&SideSocket> {
    let at = usize::try_from(socket.0).ok()?.checked_sub(1)?;
    sides.get(at).map(Arc::as_ref)
}

pub(crate) fn ask(
    observer: &mut Observer,
    legs: &[Arc<Leg>],
    sides: &[Arc<SideSocket>],
    asked: &Question,
) {
    let Some(leg) = legs.get(asked.relay) else { return };
    let side = fresh(sides, asked.socket);
    if side.is_none() && asked.socket != SocketId::DATA {
        return;
    }
    let question = Observe {
        token: asked.token,
        from_other_port: asked.answer_from != asked.to,
        to_port: asked.answer_to,
    };
    observer.ask(leg, side, asked.to, &question);
}

fn publish(node: &Inner, legs: &[Arc<Leg>], survey: &Survey, before: &NatState, complete: bool) {
    let relays = legs.iter().zip(survey.relays()).map(|(leg, seen)| RelayView {
        relay: leg.relay,
        observed: seen.map(|(address, _)| address),
        rtt: seen.map(|(_, rtt)| rtt),
    });
    let relays: Vec<_> = relays.collect();
    node.nat.send_if_modified(|state| {
        let NatState { mapped, timer, .. } = *state;
        let hairpins = survey.hairpins();
        // A survey that has only begun knows less than the last one; nor does one of fewer relays
        // know better, as long as they see this node where it was.
        let stays = seen_at(&before.relays).any(|ip| seen_at(&relays).any(|seen| seen == ip));
        let nat = match (complete, stays) {
            (false, _) => before.nat.or(survey.nat()),
            (true, true) => survey.nat().or(before.nat),
            (true, false) => survey.nat(),
        };
        let known = !complete && seen_at(&before.relays).next().is_some();
        let relays = if known { before.relays.clone() } else { relays };
        let now = NatState { nat, hairpins, relays, mapped, timer, complete };
        let changed = *state != now;
        *state = now;
        changed
    });
}

/// The addresses at which relays saw this node.
fn seen_at(views: &[RelayView]) -> impl Iterator<Item = IpAddr> {
    views.iter().filter_map(|view| view.observed).map(|seen| seen.ip())
}
