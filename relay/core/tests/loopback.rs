//! A holder's flow to itself.

#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

#[path = "support/lab.rs"]
mod lab;

use std::time::Duration;

use lab::{Client, Lab, Out, address, frames};
use sluice_proto::FlowId;
use sluice_proto::frame::{FrameType, HEADER_LEN};
use sluice_proto::wire::code;
use sluice_proto::wire::control::{Hello, control::Kind};
use sluice_relay_core::Dropped;

fn open(lab: &mut Lab, holder: &Client) -> FlowId {
    lab.rendezvous(holder, holder.peer);
    match lab.message() {
        (leg, Kind::FlowOpened(opened)) if leg == holder.leg => FlowId(opened.flow),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_holder_sends_itself_comes_back_unbilled_under_the_relays_tag() {
    let mut lab = Lab::new();
    let mut holder = lab.holder(Some(0));
    let flow = open(&mut lab, &holder);
    let frame = holder.data(flow, &[7; 100]);
    let out = lab.one(holder.addr, &frame);
    let [Out::Frames { to, frames }] = &out[..] else { panic!("{out:?}") };
    let (header, payload) = holder.open(&frames[0]);
    assert_eq!((*to, header.kind, header.flow), (holder.addr, FrameType::Data, flow));
    assert_eq!(payload, [7; 100]);
    let totals = lab.admission.reservation_stats()[0].totals;
    assert_eq!((totals.up, totals.down, totals.unbilled), (0, 0, 119));
    // It is nobody else's business, and keeps no relay from stopping.
    assert_eq!((lab.admission.flows(), lab.admission.flow_stats().len()), (0, 0));
}

#[test]
fn no_more_than_a_trickle_comes_back() {
    let mut lab = Lab::new();
    let mut holder = lab.holder(None);
    let flow = open(&mut lab, &holder);
    let mut back = 0;
    for _ in 0..600 {
        for _ in 0..10 {
            let frame = holder.data(flow, &[7; 1200]);
            back += frames(&lab.one(holder.addr, &frame)).concat().len();
        }
        lab.pass(Duration::from_millis(100));
    }
    // A minute of 16 kbit/s, and what goes at once.
    assert!((60_000..=125_000).contains(&back), "{back} bytes");
    assert!(lab.forwarder.drops().count(Dropped::Rate) > 0);
}

#[test]
fn copies_forgeries_and_frames_of_others_come_back_to_nobody() {
    let mut lab = Lab::new();
    let (mut holder, mut other) = (lab.holder(None), lab.holder(None));
    let flow = open(&mut lab, &holder);
    let frame = holder.data(flow, &[7; 100]);
    assert_eq!(frames(&lab.one(holder.addr, &frame)).len(), 1);
    let mut forged = holder.data(flow, &[7; 100]);
    forged[HEADER_LEN] ^= 1;
    let anothers = other.data(flow, &[7; 100]);
    for bad in [frame, forged, anothers] {
        assert!(lab.one(holder.addr, &bad).is_empty());
    }
    // From elsewhere the frame goes home, and the stranger's address is asked to prove itself.
    let elsewhere = address("203.0.113.9:9");
    let frame = holder.data(flow, &[7; 100]);
    let out = lab.one(elsewhere, &frame);
    let home = |o: &Out| matches!(o, Out::Frames { to, .. } if *to == holder.addr);
    assert_eq!(out.iter().filter(|o| home(o)).count(), 1);
    let asked = |o: &Out| matches!(o, Out::Answer { to, frame, .. } if *to == elsewhere && frame.len() < 119);
    assert_eq!(out.iter().filter(|o| asked(o)).count(), 1);
}

#[test]
fn only_a_holder_has_one_and_never_two_and_none_is_left_when_it_goes() {
    let mut lab = Lab::new();
    let tenant = lab.client();
    lab.rendezvous(&tenant, tenant.peer);
    let (_, kind) = lab.message();
    assert!(matches!(kind, Kind::FlowRefused(r) if r.code == code::NO_SUCH_PEER));
    let mut holder = lab.holder(None);
    let first = open(&mut lab, &holder);
    let second = open(&mut lab, &holder);
    let frame = holder.data(first, &[7; 100]);
    assert!(lab.one(holder.addr, &frame).is_empty());
    let frame = holder.data(second, &[7; 100]);
    assert_eq!(frames(&lab.one(holder.addr, &frame)).len(), 1);
    // Another incarnation: its frames, though their tags are right, find nothing.
    let leg = lab.connect(holder.peer, holder.addr, [77; 32]);
    lab.say(leg, Kind::Hello(Hello { versions: vec![1], features: vec![], incarnation: 2 }));
    lab.actions();
    let before = lab.forwarder.drops().count(Dropped::NoFlow);
    let frame = holder.data(second, &[7; 100]);
    assert!(lab.one(holder.addr, &frame).is_empty());
    assert_eq!(lab.forwarder.drops().count(Dropped::NoFlow), before + 1);
}
