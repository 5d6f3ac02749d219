//! The control plane: who may do what, and what becomes of those who leave.

#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

#[path = "support/lab.rs"]
mod lab;

use std::time::Duration;

use bytes::Bytes;
use lab::{Client, Lab, address, frames, key};
use sluice_proto::frame::FrameType;
use sluice_proto::wire::control::{
    CloseFlow, Control, Hello, PermitAddress, Rendezvous, Welcome, control::Kind,
};
use sluice_proto::wire::{FIRST_PACKET_MAX, FIRST_PACKETS_MAX, code, decode_addr};
use sluice_proto::{FlowId, LeaseId};
use sluice_relay_core::{Action, Limits, Reserve};

fn closes(actions: &[Action]) -> Vec<(u64, u32)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Close { leg, code, .. } => Some((leg.0, *code)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_client_without_a_version_in_common_is_told_and_closed() {
    let mut lab = Lab::new();
    let leg = lab.connect(key(1).public().to_peer_id(), address("192.0.2.1:1"), [1; 32]);
    lab.say(leg, Kind::Hello(Hello { versions: vec![2, 3], features: vec![], incarnation: 1 }));
    let actions = lab.actions();
    assert!(matches!(&actions[0], Action::Send { message: Control {
        kind: Some(Kind::Refusal(refusal)) }, .. } if refusal.code == code::VERSION));
    assert_eq!(closes(&actions), [(leg.0, code::VERSION)]);
    assert_eq!(lab.admission.legs(), 0);
}

#[test]
fn a_client_that_says_nothing_is_closed_after_five_seconds() {
    let mut lab = Lab::new();
    let leg = lab.connect(key(1).public().to_peer_id(), address("192.0.2.1:1"), [1; 32]);
    lab.pass(Duration::from_secs(4));
    assert!(lab.actions().is_empty());
    lab.pass(Duration::from_secs(3));
    assert_eq!(closes(&lab.actions()), [(leg.0, code::PROTOCOL)]);
}

#[test]
fn messages_out_of_order_close_the_connection() {
    let welcome = || Kind::Welcome(Welcome::default());
    let accept = || Kind::Accept(Default::default());
    let hello = || Kind::Hello(Hello { versions: vec![1], features: vec![], incarnation: 1 });
    let refusal = || Kind::Refusal(Default::default());
    for kind in [welcome(), accept(), hello(), refusal()] {
        let mut lab = Lab::new();
        let client = lab.client();
        lab.say(client.leg, kind);
        assert_eq!(closes(&lab.actions()), [(client.leg.0, code::PROTOCOL)]);
    }
    let mut lab = Lab::new();
    let leg = lab.connect(key(1).public().to_peer_id(), address("192.0.2.1:1"), [1; 32]);
    lab.say(leg, Kind::Reserve(Default::default()));
    assert_eq!(closes(&lab.actions()), [(leg.0, code::PROTOCOL)]);
}

#[test]
fn too_many_messages_close_the_connection() {
    let mut lab = Lab::with_limits(Limits { messages_per_s: 10, ..Limits::default() });
    let client = lab.client();
    for _ in 0..50 {
        lab.say(client.leg, Kind::CloseFlow(CloseFlow { flow: 1, code: 0 }));
    }
    assert_eq!(closes(&lab.actions()), [(client.leg.0, code::LIMIT)]);
}

#[test]
fn a_flow_that_nobody_answers_is_gone_after_ten_seconds_and_both_ends_are_told() {
    let mut lab = Lab::new();
    let (mut holder, mut tenant) = (lab.holder(None), lab.client());
    let (at_tenant, at_holder) = lab.provisional(&tenant, &holder);
    lab.pass(Duration::from_secs(11));
    let told: Vec<_> = lab.messages();
    let close =
        |flow: FlowId| Kind::CloseFlow(CloseFlow { flow: flow.0, code: code::NO_SUCH_PEER });
    assert_eq!(told, [(tenant.leg, close(at_tenant)), (holder.leg, close(at_holder))]);
    let frame = tenant.data(at_tenant, &[1; 100]);
    assert!(lab.one(tenant.addr, &frame).is_empty());
    // The control: one that is answered stays.
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    lab.pass(Duration::from_secs(11));
    let frame = tenant.data(at_tenant, &[1; 100]);
    assert_eq!(frames(&lab.one(tenant.addr, &frame)).len(), 1);
    let frame = holder.data(at_holder, &[1; 100]);
    assert_eq!(frames(&lab.one(holder.addr, &frame)).len(), 1);
}

fn knock(to: &Client, first: Vec<Bytes>) -> Kind {
    let (to, sealed) = (to.peer.to_bytes().into(), Bytes::from_static(b"sealed"));
    Kind::Rendezvous(Rendezvous { request: 1, to, sealed, first })
}

/// Data frames of the tenant that get through, of so many.
fn passed(lab: &mut Lab, tenant: &mut Client, flow: FlowId, count: usize) -> usize {
    let mut pass = || {
        let frame = tenant.data(flow, &[1; 100]);
        frames(&lab.one(tenant.addr, &frame)).len()
    };
    (0..count).map(|_| pass()).sum()
}

#[test]
fn first_packets_go_with_the_knock_unbilled_and_are_of_the_four_that_a_tenant_may_send() {
    let mut lab = Lab::new();
    let (holder, mut tenant) = (lab.holder(Some(0)), lab.client());
    let first = vec![Bytes::from(vec![0xC3; 1200]), Bytes::from(vec![0x43; FIRST_PACKET_MAX])];
    lab.say(tenant.leg, knock(&holder, first.clone()));
    let messages = lab.messages();
    let [(_, Kind::FlowOpened(opened)), (to, Kind::RendezvousIn(inbound))] = &messages[..] else {
        panic!("{messages:?}");
    };
    assert!(opened.passed_on);
    assert_eq!((*to, &inbound.first), (holder.leg, &first));
    assert_eq!(passed(&mut lab, &mut tenant, FlowId(opened.flow), 5), 2);
    let totals = lab.admission.reservation_stats()[0].totals;
    let unbilled = 1200 + FIRST_PACKET_MAX as u64 + 2 * 119;
    assert_eq!((totals.up, totals.down, totals.unbilled), (0, 0, unbilled));
}

#[test]
fn a_holder_that_does_not_take_first_packets_gets_none_and_the_tenant_is_told() {
    let mut lab = Lab::new();
    let (mut holder, mut tenant) = (lab.holder(None), lab.client());
    let leg = lab.connect(holder.peer, holder.addr, [78; 32]);
    let (versions, features) = (vec![1], vec!["another".to_owned()]);
    lab.say(leg, Kind::Hello(Hello { versions, features, incarnation: 2 }));
    lab.actions();
    holder.leg = leg;
    lab.reserve(&holder, None);
    lab.say(tenant.leg, knock(&holder, vec![Bytes::from(vec![0xC3; 1200])]));
    let messages = lab.messages();
    let [(_, Kind::FlowOpened(opened)), (_, Kind::RendezvousIn(inbound))] = &messages[..] else {
        panic!("{messages:?}");
    };
    assert!(!opened.passed_on && inbound.first.is_empty());
    assert_eq!(passed(&mut lab, &mut tenant, FlowId(opened.flow), 5), 4);
}

#[test]
fn first_packets_that_are_too_many_too_long_empty_or_no_quic_open_nothing() {
    let mut lab = Lab::new();
    let (holder, tenant) = (lab.holder(None), lab.client());
    let small = Bytes::from_static(&[0xC3; 40]);
    for first in [
        vec![small.clone(); FIRST_PACKETS_MAX + 1],
        vec![Bytes::from(vec![0xC3; FIRST_PACKET_MAX + 1])],
        vec![small.clone(), Bytes::new()],
        vec![Bytes::from_static(&[FrameType::Data as u8; 40])],
    ] {
        lab.say(tenant.leg, knock(&holder, first));
        let (to, kind) = lab.message();
        assert!(matches!(kind, Kind::FlowRefused(r) if r.code == code::PROTOCOL));
        assert_eq!((to, lab.admission.flows()), (tenant.leg, 0));
    }
    // The control.
    lab.say(tenant.leg, knock(&holder, vec![small; FIRST_PACKETS_MAX]));
    assert_eq!((lab.messages().len(), lab.admission.flows()), (2, 1));
}

#[test]
fn the_holders_own_frame_opens_the_flow_as_its_answer_does() {
    let mut lab = Lab::new();
    let (mut holder, mut tenant) = (lab.holder(None), lab.client());
    let (at_tenant, at_holder) = lab.provisional(&tenant, &holder);
    let frame = holder.data(at_holder, &[1; 100]);
    assert_eq!(frames(&lab.one(holder.addr, &frame)).len(), 1);
    for _ in 0..10 {
        let frame = tenant.data(at_tenant, &[1; 100]);
        assert_eq!(frames(&lab.one(tenant.addr, &frame)).len(), 1);
    }
    // The answer, overtaken by the frame, still reaches the tenant.
    lab.answer(&holder, at_holder);
    assert!(matches!(lab.message(), (leg, Kind::Answer(_)) if leg == tenant.leg));
}

#[test]
fn an_answer_counts_once_and_only_from_the_flows_holder() {
    let mut lab = Lab::new();
    let (holder, tenant, third) = (lab.holder(None), lab.client(), lab.client());
    let (at_tenant, at_holder) = lab.provisional(&tenant, &holder);
    lab.answer(&third, at_holder);
    lab.answer(&tenant, at_tenant);
    assert!(lab.messages().is_empty());
    lab.answer(&holder, at_holder);
    assert_eq!(lab.messages().len(), 1);
    lab.answer(&holder, at_holder);
    assert!(lab.messages().is_empty());
}

#[test]
fn only_its_ends_can_close_a_flow() {
    let mut lab = Lab::new();
    let (holder, tenant, third) = (lab.holder(None), lab.client(), lab.client());
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    for (client, flow) in [(&third, at_tenant), (&third, at_holder), (&tenant, at_holder)] {
        lab.say(client.leg, Kind::CloseFlow(CloseFlow { flow: flow.0, code: 3 }));
    }
    assert!(lab.messages().is_empty());
    assert_eq!(lab.admission.flows(), 1);
    lab.say(tenant.leg, Kind::CloseFlow(CloseFlow { flow: at_tenant.0, code: 3 }));
    let close = Kind::CloseFlow(CloseFlow { flow: at_holder.0, code: 3 });
    assert_eq!(lab.message(), (holder.leg, close));
    assert_eq!(lab.admission.flows(), 0);
}

#[test]
fn a_restarted_holder_loses_its_flows_and_its_reservation_but_not_its_account() {
    let mut lab = Lab::new();
    let (mut holder, tenant) = (lab.holder(Some(1 << 20)), lab.client());
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    let frame = holder.data(at_holder, &[1; 1000]);
    lab.one(holder.addr, &frame);
    let account = lab.admission.account_of(&holder.peer).expect("reserved");
    let leg = lab.connect(holder.peer, holder.addr, [77; 32]);
    lab.say(leg, Kind::Hello(Hello { versions: vec![1], features: vec![], incarnation: 2 }));
    let actions = lab.actions();
    assert_eq!(closes(&actions), [(holder.leg.0, code::RESTARTED)]);
    assert!(
        actions.iter().any(|a| matches!(a, Action::Released { peer, .. } if *peer == holder.peer))
    );
    let told = |a: &Action| {
        matches!(a, Action::Send { leg, message: Control { kind: Some(
        Kind::CloseFlow(c)) } } if *leg == tenant.leg && *c == CloseFlow {
            flow: at_tenant.0, code: code::RESTARTED })
    };
    assert!(actions.iter().any(told));
    assert!(lab.admission.account_of(&holder.peer).is_none());
    // It comes back to the same lease: counts go on.
    holder.leg = leg;
    lab.reserve(&holder, Some(500));
    let again = lab.admission.account_of(&holder.peer).expect("reserved again");
    assert_eq!((again.totals(), again.limit()), (account.totals(), 1019 + 500));
}

#[test]
fn a_client_without_its_connection_stays_while_it_is_heard_and_no_longer() {
    let mut lab = Lab::new();
    let (mut holder, tenant) = (lab.holder(None), lab.client());
    let (_, at_holder) = lab.flow(&tenant, &holder);
    lab.admission.disconnected(holder.leg, lab.now);
    for _ in 0..10 {
        lab.pass(Duration::from_secs(30));
        let keepalive = holder.frame(FrameType::Keepalive, holder.own_flow, &[0; 18]);
        assert_eq!(lab.one(holder.addr, &keepalive).len(), 1);
    }
    let frame = holder.data(at_holder, &[1; 100]);
    assert_eq!(frames(&lab.one(holder.addr, &frame)).len(), 1);
    lab.actions();
    lab.pass(Duration::from_secs(62));
    assert!(lab.actions().iter().any(|a| matches!(a, Action::Released { .. })));
    assert_eq!((lab.admission.legs(), lab.admission.flows()), (1, 0));
    let frame = holder.data(at_holder, &[1; 100]);
    assert!(lab.one(holder.addr, &frame).is_empty());
}

#[test]
fn a_client_that_leaves_on_purpose_is_forgotten_at_once() {
    let mut lab = Lab::new();
    let (mut holder, tenant) = (lab.holder(None), lab.client());
    let (_, at_holder) = lab.flow(&tenant, &holder);
    lab.admission.left(tenant.leg, lab.now);
    let close = Kind::CloseFlow(CloseFlow { flow: at_holder.0, code: code::OK });
    assert_eq!(lab.message(), (holder.leg, close));
    let frame = holder.data(at_holder, &[1; 100]);
    assert!(lab.one(holder.addr, &frame).is_empty());
    assert_eq!((lab.admission.legs(), lab.admission.flows()), (1, 0));
}

#[test]
fn handshakes_from_one_prefix_wait_for_each_other() {
    let mut lab = Lab::new();
    for n in 0..=255 {
        let ip = address(&format!("192.0.2.{n}:1"));
        assert!(lab.admission.may_connect(ip.ip(), lab.now));
        lab.connect(key(1).public().to_peer_id(), ip, [1; 32]);
    }
    let (same, other) = (address("192.0.2.7:1").ip(), address("192.0.3.7:1").ip());
    assert!(!lab.admission.may_connect(same, lab.now));
    assert!(lab.admission.may_connect(other, lab.now));
    lab.pass(Duration::from_secs(7));
    assert_eq!(closes(&lab.actions()).len(), 256);
    assert!(lab.admission.may_connect(same, lab.now));
}

#[test]
fn the_same_incarnation_keeps_its_flows_on_another_connection() {
    let mut lab = Lab::new();
    let (mut holder, tenant) = (lab.holder(None), lab.client());
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    let old = holder.data(at_holder, &[1; 100]);
    let moved = address("198.51.100.1:5");
    let mut resumed = lab.client_as(holder.peer, moved, 1);
    assert_eq!(resumed.own_flow, holder.own_flow);
    assert!(lab.one(holder.addr, &old).is_empty(), "the old keys are worth nothing");
    let frame = resumed.data(at_holder, &[2; 100]);
    let out = lab.one(moved, &frame);
    let (header, payload) = tenant.open(&frames(&out)[0]);
    assert_eq!((header.flow, payload), (at_tenant, vec![2; 100]));
    assert!(lab.admission.account_of(&holder.peer).is_some());
}

#[test]
fn of_two_processes_with_one_key_the_later_one_stands() {
    let mut lab = Lab::new();
    let first = lab.holder(None);
    let copy = lab.client_as(first.peer, address("198.51.100.9:7"), 2);
    lab.reserve(&copy, None);
    // The first one comes back, and is told.
    let leg = lab.connect(first.peer, first.addr, [81; 32]);
    let hello = || Kind::Hello(Hello { versions: vec![1], features: vec![], incarnation: 1 });
    lab.say(leg, hello());
    let actions = lab.actions();
    assert_eq!(closes(&actions), [(leg.0, code::SUPERSEDED)]);
    let told = |a: &Action| {
        matches!(a, Action::Send { leg: to, message: Control { kind: Some(Kind::Refusal(r)) } }
            if *to == leg && r.code == code::SUPERSEDED)
    };
    assert!(actions.iter().any(told), "{actions:?}");
    assert!(lab.admission.account_of(&copy.peer).is_some(), "the later one keeps what it has");
    // It takes over once the later one has left.
    lab.admission.left(copy.leg, lab.now);
    lab.actions();
    let leg = lab.connect(first.peer, first.addr, [82; 32]);
    lab.say(leg, hello());
    assert!(matches!(lab.message(), (to, Kind::Welcome(_)) if to == leg));
}

#[test]
fn bounds_refuse_the_one_too_many_and_say_so() {
    let limits =
        Limits { flows_per_tenant_max: 2, reservations_max: 1, legs_max: 3, ..Limits::default() };
    let mut lab = Lab::with_limits(limits);
    let (holder, tenant) = (lab.holder(None), lab.client());
    for _ in 0..2 {
        lab.flow(&tenant, &holder);
    }
    lab.rendezvous(&tenant, holder.peer);
    assert!(matches!(lab.message(), (_, Kind::FlowRefused(r)) if r.code == code::LIMIT));
    lab.say(tenant.leg, Kind::Reserve(Default::default()));
    assert!(matches!(lab.message(), (_, Kind::Refusal(r)) if r.code == code::LIMIT));
    lab.client();
    let leg = lab.connect(key(99).public().to_peer_id(), address("192.0.2.99:1"), [1; 32]);
    lab.say(leg, Kind::Hello(Hello { versions: vec![1], features: vec![], incarnation: 1 }));
    assert_eq!(closes(&lab.actions()), [(leg.0, code::LIMIT)]);
}

#[test]
fn a_tenant_has_few_unanswered_flows_at_once() {
    let mut lab = Lab::new();
    let tenant = lab.client();
    let mut refused = 0;
    for n in 0..20 {
        let holder = lab.holder(None);
        lab.rendezvous(&tenant, holder.peer);
        refused += lab.messages().iter().filter(|(_, k)| matches!(k, Kind::FlowRefused(_))).count();
        assert_eq!(refused, usize::from(n >= 16) * (n - 15).max(0) as usize);
    }
}

#[test]
fn rendezvous_from_one_prefix_are_limited_together() {
    let limits = Limits { openings_per_prefix_per_s: 2, ..Limits::default() };
    let mut lab = Lab::with_limits(limits);
    let holder = lab.holder(None);
    let tenant = lab.client();
    // A burst of 16 openings from 192.0.2.0/24.
    for _ in 0..16 {
        let (at_tenant, _) = lab.flow(&tenant, &holder);
        lab.say(tenant.leg, Kind::CloseFlow(CloseFlow { flow: at_tenant.0, code: 0 }));
        lab.messages();
    }
    lab.rendezvous(&tenant, holder.peer);
    assert!(matches!(lab.message(), (_, Kind::FlowRefused(r)) if r.code == code::LIMIT));
    lab.pass(Duration::from_secs(1));
    lab.flow(&tenant, &holder);
}

#[test]
fn unpaid_is_said_to_both_ends_once_and_taken_back_when_there_is_room() {
    let mut lab = Lab::new();
    let (mut holder, tenant) = (lab.holder(Some(5000)), lab.client());
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    let unpaid = |flow: FlowId, unpaid| {
        Kind::Unpaid(sluice_proto::wire::control::Unpaid { flow: flow.0, unpaid })
    };
    for _ in 0..20 {
        let frame = holder.data(at_holder, &[1; 1000]);
        for out in lab.one(holder.addr, &frame) {
            if let lab::Out::Event(event) = out {
                lab.admission.handle_event(event, lab.now);
            }
        }
    }
    assert_eq!(
        lab.messages(),
        [(holder.leg, unpaid(at_holder, true)), (tenant.leg, unpaid(at_tenant, true))]
    );
    lab.admission.set_limit(&holder.peer, 6000);
    assert_eq!(
        lab.messages(),
        [(holder.leg, unpaid(at_holder, false)), (tenant.leg, unpaid(at_tenant, false))]
    );
}

#[test]
fn what_stays_unpaid_for_ten_minutes_loses_its_flows() {
    let mut lab = Lab::new();
    let (mut holder, tenant) = (lab.holder(Some(0)), lab.client());
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    let frame = holder.data(at_holder, &[1; 1000]);
    for out in lab.one(holder.addr, &frame) {
        if let lab::Out::Event(event) = out {
            lab.admission.handle_event(event, lab.now);
        }
    }
    lab.messages();
    lab.pass(Duration::from_secs(590));
    assert!(lab.messages().is_empty());
    lab.pass(Duration::from_secs(20));
    let close = |flow: FlowId| Kind::CloseFlow(CloseFlow { flow: flow.0, code: code::UNPAID });
    assert_eq!(lab.messages(), [(tenant.leg, close(at_tenant)), (holder.leg, close(at_holder))]);
}

#[test]
fn a_reservation_ends_at_its_time_unless_it_is_renewed() {
    let mut lab = Lab::new();
    let (holder, tenant) = (lab.holder(None), lab.client());
    let (_, at_holder) = lab.flow(&tenant, &holder);
    lab.pass(Duration::from_secs(1800));
    lab.reserve(&holder, None);
    lab.pass(Duration::from_secs(1900));
    assert_eq!(lab.admission.flows(), 1, "renewing keeps the flows");
    lab.pass(Duration::from_secs(1800));
    assert!(lab.messages().contains(&(
        holder.leg,
        Kind::CloseFlow(CloseFlow { flow: at_holder.0, code: code::NOT_INVITED })
    )));
    lab.rendezvous(&tenant, holder.peer);
    assert!(matches!(lab.message(), (_, Kind::FlowRefused(r)) if r.code == code::NO_SUCH_PEER));
}

#[test]
fn other_terms_close_the_flows_of_the_old_ones() {
    let mut lab = Lab::new();
    let (holder, tenant) = (lab.holder(Some(1000)), lab.client());
    lab.flow(&tenant, &holder);
    lab.say(holder.leg, Kind::Reserve(Default::default()));
    lab.admission.offered(holder.leg, Default::default());
    lab.say(holder.leg, Kind::Accept(Default::default()));
    let expires = lab.now + Duration::from_secs(10);
    let lease = LeaseId([10; 32]);
    let reserve = Reserve { lease, room: Some(1), expires, expires_unix_s: 1 };
    lab.admission.reserved(holder.leg, reserve, lab.now).expect("reserved");
    assert_eq!(lab.admission.flows(), 0);
}

#[test]
fn a_draining_relay_asks_all_to_leave_and_opens_nothing() {
    let mut lab = Lab::new();
    let (mut holder, tenant) = (lab.holder(None), lab.client());
    let (_, at_holder) = lab.flow(&tenant, &holder);
    lab.admission.drain(Duration::from_secs(3));
    let told = lab.messages();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|(_, k)| matches!(k, Kind::Drain(d) if d.within_ms == 3000)));
    lab.rendezvous(&tenant, holder.peer);
    assert!(matches!(lab.message(), (_, Kind::FlowRefused(r)) if r.code == code::SHUTDOWN));
    let frame = holder.data(at_holder, &[1; 100]);
    assert_eq!(frames(&lab.one(holder.addr, &frame)).len(), 1, "what stands goes on");
}

#[test]
fn flow_numbers_spread_over_the_threads() {
    let mut lab = Lab::new();
    let holder = lab.holder(None);
    let (mut odd, mut odd_own) = (0, 0);
    for _ in 0..16 {
        let tenant = lab.client();
        let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
        assert_eq!(at_tenant.0 % 2, at_holder.0 % 2, "both ends in one thread");
        odd += at_holder.0 % 2;
        odd_own += tenant.own_flow.0 % 2;
    }
    assert_eq!((odd, odd_own), (8, 8));
}

#[test]
fn two_ends_of_a_flow_learn_each_others_address_once_both_permit_it_and_no_third_can_ask() {
    let mut lab = Lab::new();
    let holder = lab.holder(None);
    let (tenant, stranger) = (lab.client(), lab.client());
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    let permit =
        |flow: FlowId, permitted| Kind::PermitAddress(PermitAddress { flow: flow.0, permitted });
    lab.say(stranger.leg, permit(at_holder, true));
    lab.say(stranger.leg, permit(at_tenant, true));
    lab.say(tenant.leg, permit(at_holder, true));
    lab.say(tenant.leg, permit(at_tenant, true));
    assert!(lab.messages().is_empty(), "one end alone");
    lab.say(tenant.leg, permit(at_tenant, false));
    lab.say(holder.leg, permit(at_holder, true));
    assert!(lab.messages().is_empty(), "it was taken back");
    lab.say(tenant.leg, permit(at_tenant, true));
    let told: Vec<_> = lab
        .messages()
        .into_iter()
        .map(|(leg, kind)| match kind {
            Kind::PeerAddress(m) => (leg, m.flow, decode_addr(&m.address).expect("an address")),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [(tenant.leg, at_tenant.0, holder.addr), (holder.leg, at_holder.0, tenant.addr)]
    );
}
