//! The forwarding path, one batch at a time.

#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

#[path = "support/lab.rs"]
mod lab;

use std::time::Duration;

use lab::{Client, Lab, Out, address, frames};
use proptest::prelude::*;
use sluice_proto::FlowId;
use sluice_proto::frame::{FrameType, HEADER_LEN, OBSERVE_LEN, Observe, Observed};
use sluice_proto::wire::control::{Grant, control::Kind};
use sluice_relay_core::{Dropped, Event, Limits, RelayPort};

struct Pair {
    lab: Lab,
    holder: Client,
    tenant: Client,
    at_tenant: FlowId,
    at_holder: FlowId,
}

fn pair(room: Option<u64>) -> Pair {
    let mut lab = Lab::new();
    let holder = lab.holder(room);
    let tenant = lab.client();
    let (at_tenant, at_holder) = lab.flow(&tenant, &holder);
    Pair { lab, holder, tenant, at_tenant, at_holder }
}

impl Pair {
    fn up(&mut self, payload: &[u8]) -> Vec<Out> {
        let frame = self.holder.data(self.at_holder, payload);
        self.lab.one(self.holder.addr, &frame)
    }

    fn down(&mut self, payload: &[u8]) -> Vec<Out> {
        let frame = self.tenant.data(self.at_tenant, payload);
        self.lab.one(self.tenant.addr, &frame)
    }

    fn totals(&self) -> (u64, u64, u64) {
        let totals = self.lab.admission.reservation_stats()[0].totals;
        (totals.up, totals.down, totals.unbilled)
    }
}

#[test]
fn a_batch_leaves_as_one_batch_with_its_headers_rewritten_and_its_payload_untouched() {
    let mut p = pair(None);
    let payload = |i: u8, len: usize| vec![i; len];
    let mut batch = Vec::new();
    for i in 0..40 {
        batch.extend(p.holder.data(p.at_holder, &payload(i, 1420)));
    }
    batch.extend(p.holder.data(p.at_holder, &payload(40, 300)));
    let out = p.lab.batch(p.holder.addr, &batch, 1439);
    let [Out::Frames { to, frames }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((*to, frames.len()), (p.tenant.addr, 41));
    for (i, frame) in frames.iter().enumerate() {
        let (header, received) = p.tenant.open(frame);
        assert_eq!((header.flow, header.counter), (p.at_tenant, i as u64));
        assert_eq!(received, payload(i as u8, if i == 40 { 300 } else { 1420 }));
    }
    assert_eq!(p.totals(), (40 * 1439 + 319, 0, 0));
}

#[test]
fn a_batch_that_mixes_flows_junk_and_quic_is_taken_apart_in_order() {
    let mut p = pair(None);
    let other = p.lab.client();
    let (at_other, at_holder_2) = p.lab.flow(&other, &p.holder);
    let mut batch = Vec::new();
    let mut add = |segment: Vec<u8>| {
        assert_eq!(segment.len(), 219);
        batch.extend(segment);
    };
    add(p.holder.data(p.at_holder, &[1; 200]));
    add(p.holder.data(p.at_holder, &[2; 200]));
    let mut forged = p.holder.data(p.at_holder, &[3; 200]);
    forged[30] ^= 1;
    add(forged);
    add(p.holder.data(p.at_holder, &[4; 200]));
    add(p.holder.data(at_holder_2, &[5; 200]));
    add(vec![0x40; 219]);
    add(vec![0xC3; 219]);
    add(vec![0x05; 219]);
    add(vec![0x9F; 219]);
    add(p.holder.data(FlowId(1), &[6; 200]));
    add(p.holder.data(p.at_holder, &[7; 200]));
    let out = p.lab.batch(p.holder.addr, &batch, 219);
    let payloads: Vec<(std::net::SocketAddr, Vec<u8>)> = out
        .iter()
        .filter_map(|o| match o {
            Out::Frames { to, frames } => {
                Some((*to, frames.iter().map(|f| f[HEADER_LEN]).collect()))
            }
            Out::Quic(_) | Out::Answer { .. } | Out::Event(_) => None,
        })
        .collect();
    assert_eq!(
        payloads,
        [
            (p.tenant.addr, vec![1, 2]),
            (p.tenant.addr, vec![4]),
            (other.addr, vec![5]),
            (p.tenant.addr, vec![7]),
        ]
    );
    assert!(out.contains(&Out::Quic(vec![vec![0x40; 219], vec![0xC3; 219]])));
    let (header, _) = other.open(&frames(&out)[3]);
    assert_eq!((header.flow, header.counter), (at_other, 0));
    let drops = p.lab.forwarder.drops();
    let kinds = [Dropped::Tag, Dropped::Type, Dropped::NoFlow];
    assert_eq!(kinds.map(|kind| drops.count(kind)), [1, 2, 1]);
}

#[test]
fn more_than_64_segments_leave_in_batches_that_one_send_can_carry() {
    let mut p = pair(None);
    let mut batch = Vec::new();
    for _ in 0..128 {
        batch.extend(p.holder.data(p.at_holder, &[1; 100]));
    }
    let out = p.lab.batch(p.holder.addr, &batch, 119);
    assert_eq!(out.len(), 2);
    assert_eq!(frames(&out).len(), 128);
    let mut batch = Vec::new();
    for _ in 0..45 {
        batch.extend(p.holder.data(p.at_holder, &[1; 1481]));
    }
    let out = p.lab.batch(p.holder.addr, &batch, 1500);
    assert_eq!(frames(&out).len(), 45);
    assert_eq!(out.len(), 2, "67,500 bytes do not fit one send");
}

#[test]
fn a_frame_that_came_before_is_dropped_even_from_another_address() {
    let mut p = pair(None);
    let frame = p.holder.data(p.at_holder, &[1; 100]);
    assert_eq!(frames(&p.lab.one(p.holder.addr, &frame)).len(), 1);
    assert_eq!(p.lab.one(p.holder.addr, &frame), []);
    assert_eq!(p.lab.one(address("203.0.113.9:9"), &frame), []);
    assert_eq!(p.lab.forwarder.drops().count(Dropped::Replay), 2);
    assert_eq!(p.totals().0, 119);
}

#[test]
fn the_return_address_moves_only_when_a_challenge_there_is_echoed() {
    let mut p = pair(None);
    let (new, elsewhere) = (address("203.0.113.9:9"), address("203.0.113.8:8"));
    let frame = p.tenant.data(p.at_tenant, &[1; 100]);
    let out = p.lab.one(new, &frame);
    let [Out::Answer { to, frame: challenge, .. }, Out::Frames { .. }] = &out[..] else {
        panic!("challenged, and forwarded all the same: {out:?}")
    };
    assert_eq!(*to, new);
    assert!(challenge.len() <= frame.len());
    let (header, nonce) = p.tenant.open(challenge);
    assert_eq!((header.kind, header.flow), (FrameType::Challenge, p.tenant.own_flow));
    let sent_to = |p: &mut Pair| match &p.up(&[2; 100])[..] {
        [Out::Frames { to, .. }] => *to,
        other => panic!("{other:?}"),
    };
    assert_eq!(sent_to(&mut p), p.tenant.addr);
    // A wrong echo, and the right one from elsewhere, move nothing.
    let wrong = p.tenant.frame(FrameType::ChallengeEcho, p.tenant.own_flow, &[0; 8]);
    assert_eq!(p.lab.one(new, &wrong), []);
    let right = p.tenant.frame(FrameType::ChallengeEcho, p.tenant.own_flow, &nonce);
    assert_eq!(p.lab.one(elsewhere, &right), []);
    assert_eq!(sent_to(&mut p), p.tenant.addr);
    let right = p.tenant.frame(FrameType::ChallengeEcho, p.tenant.own_flow, &nonce);
    assert_eq!(p.lab.one(new, &right), []);
    assert_eq!(sent_to(&mut p), new);
    // It serves once.
    let again = p.tenant.frame(FrameType::ChallengeEcho, p.tenant.own_flow, &nonce);
    p.lab.one(elsewhere, &again);
    assert_eq!(sent_to(&mut p), new);
}

#[test]
fn challenges_are_few_however_many_frames_come_from_elsewhere() {
    let mut p = pair(None);
    let mut challenges = 0;
    for _ in 0..100 {
        let frame = p.tenant.data(p.at_tenant, &[1; 100]);
        let out = p.lab.one(address("203.0.113.9:9"), &frame);
        challenges += out.iter().filter(|o| matches!(o, Out::Answer { .. })).count();
        p.lab.now += Duration::from_millis(10);
    }
    assert_eq!(challenges, 4, "one each 250 ms");
}

#[test]
fn a_keepalive_is_answered_with_the_address_seen_and_nothing_larger() {
    let mut p = pair(None);
    let keepalive = p.tenant.frame(FrameType::Keepalive, p.tenant.own_flow, &[0; 18]);
    let out = p.lab.one(p.tenant.addr, &keepalive);
    let [Out::Answer { to, frame, .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((*to, frame.len()), (p.tenant.addr, keepalive.len()));
    let (header, payload) = p.tenant.open(frame);
    assert_eq!((header.kind, header.flow), (FrameType::KeepaliveAck, p.tenant.own_flow));
    assert_eq!(payload[10..], [0xFF, 0xFF, 192, 0, 2, 3, 0x03, 0xE8]);
    // A longer one, which tries what arrives, gets the same.
    let long = p.tenant.frame(FrameType::Keepalive, p.tenant.own_flow, &[0; 1200]);
    let out = p.lab.one(p.tenant.addr, &long);
    assert!(matches!(&out[..], [Out::Answer { frame, .. }] if frame.len() == keepalive.len()));
    // On another leg's flow, or with a shorter payload, it is dropped.
    for (flow, len) in [(p.holder.own_flow, 18), (p.tenant.own_flow, 17), (p.at_tenant, 18)] {
        let bad = p.tenant.frame(FrameType::Keepalive, flow, &vec![0; len]);
        assert_eq!(p.lab.one(p.tenant.addr, &bad), []);
    }
}

#[test]
fn the_window_ends_to_the_byte_then_16_kbit_per_second_go_on_unbilled() {
    let mut p = pair(Some(10_000));
    let mut billed = 0;
    // 8 frames of 1,219 bytes fit 10,000; then two on the trickle's burst.
    let mut passed = 0;
    for _ in 0..20 {
        let out = p.up(&[1; 1200]);
        passed += frames(&out).len();
        billed = billed.max(p.totals().0);
    }
    assert_eq!((billed, passed), (8 * 1219, 10));
    assert_eq!(p.totals(), (8 * 1219, 0, 2 * 1219));
    assert_eq!(p.lab.forwarder.drops().count(Dropped::Unpaid), 10);
    // In 100 s 200,000 bytes more, a little less for whole packets.
    for _ in 0..1000 {
        p.lab.now += Duration::from_millis(100);
        p.up(&[1; 1200]);
    }
    let (up, _, unbilled) = p.totals();
    assert_eq!(up, 8 * 1219);
    assert!((190_000..=204_000).contains(&unbilled), "{unbilled}");
    // A raised limit opens it at once.
    p.lab.admission.set_limit(&p.holder.peer, 20_000);
    assert_eq!(frames(&p.up(&[1; 1200])).len(), 1);
    assert_eq!(p.totals().0, 9 * 1219);
}

#[test]
fn a_whole_batch_that_crosses_the_limit_is_cut_at_the_limit() {
    let mut p = pair(Some(10_000));
    let mut batch = Vec::new();
    for _ in 0..40 {
        batch.extend(p.holder.data(p.at_holder, &[1; 1200]));
    }
    let out = p.lab.batch(p.holder.addr, &batch, 1219);
    let unpaid = Out::Event(Event::Unpaid(p.at_holder));
    assert_eq!(out.iter().filter(|o| **o == unpaid).count(), 1, "said once");
    assert_eq!(p.totals(), (8 * 1219, 0, 2 * 1219));
    assert!(p.totals().0 <= 10_000);
}

#[test]
fn a_tenant_that_floods_costs_its_holder_no_more_than_the_grant() {
    let mut p = pair(Some(1 << 30));
    for _ in 0..200 {
        p.down(&[1; 1200]);
    }
    let start = 64 * 1024 / 1219 * 1219;
    assert_eq!(p.totals(), (0, start, 2 * 1219));
    assert!(p.lab.forwarder.drops().count(Dropped::Grant) > 100);
    // The holder's own packets raise it by an eighth, whatever they carry.
    for _ in 0..800 {
        p.up(&[2; 181]);
    }
    for _ in 0..30 {
        p.down(&[1; 1200]);
    }
    assert_eq!(p.totals().1, (65_536 + 800 * 200 / 8) / 1219 * 1219);
    // What it states on top raises it, once.
    let grant = |granted| Kind::Grant(Grant { flow: p.at_holder.0, granted });
    for message in [grant(150_000), grant(150_000), grant(50_000)] {
        p.lab.say(p.holder.leg, message);
    }
    for _ in 0..300 {
        p.down(&[1; 1200]);
    }
    assert_eq!(p.totals().1, (65_536 + 20_000 + 150_000) / 1219 * 1219);
}

#[test]
fn only_the_holder_raises_its_grant() {
    let mut p = pair(Some(1 << 30));
    for flow in [p.at_tenant, p.at_holder] {
        let grant = Grant { flow: flow.0, granted: 1 << 20 };
        p.lab.say(p.tenant.leg, Kind::Grant(grant));
    }
    for _ in 0..200 {
        p.down(&[1; 1200]);
    }
    assert!(p.totals().1 <= 65_536);
}

#[test]
fn reopening_a_flow_does_not_renew_the_grant() {
    let mut p = pair(Some(1 << 30));
    for _ in 0..100 {
        p.down(&[1; 1200]);
    }
    let before = p.totals().1;
    let (at_tenant, _) = p.lab.flow(&p.tenant, &p.holder);
    p.at_tenant = at_tenant;
    for _ in 0..100 {
        p.down(&[1; 1200]);
    }
    assert_eq!(p.totals().1, before);
}

#[test]
fn a_new_acceptance_of_the_holder_renews_it() {
    let mut p = pair(Some(1 << 30));
    for _ in 0..100 {
        p.down(&[1; 1200]);
    }
    let before = p.totals().1;
    p.lab.reserve(&p.holder, Some(1 << 30));
    for _ in 0..100 {
        p.down(&[1; 1200]);
    }
    assert_eq!(p.totals().1, 2 * before);
}

#[test]
fn at_price_0_neither_window_nor_grant_applies_but_the_rate_does() {
    let limits = Limits { leg_bits_per_s: 8_000_000, ..Limits::default() };
    let mut lab = Lab::with_limits(limits);
    let (holder, mut tenant) = (lab.holder(None), lab.client());
    let (at_tenant, _) = lab.flow(&tenant, &holder);
    let mut passed = 0;
    for _ in 0..10_000 {
        let frame = tenant.data(at_tenant, &[1; 1181]);
        passed += frames(&lab.one(tenant.addr, &frame)).len() * 1200;
        lab.now += Duration::from_micros(120);
    }
    // 1 MB/s for 1.2 s, and the burst of half a MiB.
    assert!((1_600_000..=1_800_000).contains(&passed), "{passed}");
    assert!(lab.forwarder.drops().count(Dropped::Rate) > 0);
}

#[test]
fn the_owner_is_told_once_when_the_total_reaches_its_alarm() {
    let mut p = pair(Some(1 << 30));
    let account = p.lab.admission.account_of(&p.holder.peer).expect("reserved");
    account.set_alarm(3000);
    let mut alarms = Vec::new();
    for i in 0..10 {
        for out in p.up(&[1; 981]) {
            if out == Out::Event(Event::Alarm(p.at_holder)) {
                alarms.push(i);
            }
        }
    }
    assert_eq!(alarms, [2]);
}

#[test]
fn a_closed_flow_forwards_nothing() {
    let mut p = pair(None);
    let close = sluice_proto::wire::control::CloseFlow { flow: p.at_tenant.0, code: 0 };
    p.lab.say(p.tenant.leg, Kind::CloseFlow(close));
    assert_eq!(p.up(&[1; 100]), []);
    assert_eq!(p.down(&[1; 100]), []);
    assert_eq!(p.lab.forwarder.drops().count(Dropped::NoFlow), 2);
}

fn any_datagram() -> impl Strategy<Value = Vec<u8>> {
    (
        prop_oneof![Just(0x80_u8), Just(0x81), Just(0x84), any::<u8>()],
        proptest::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(first, mut rest)| {
            rest.insert(0, first);
            rest
        })
}

proptest! {
    #[test]
    fn noise_never_panics_is_never_forwarded_and_never_answered(
        datagrams in proptest::collection::vec(any_datagram(), 1..20),
        stride in 1_usize..300,
    ) {
        let p = pair(None);
        let batch: Vec<u8> = datagrams.concat();
        let mut out = p.lab.batch(p.holder.addr, &batch, stride);
        for datagram in &datagrams {
            out.extend(p.lab.one(p.tenant.addr, datagram));
        }
        prop_assert!(out.iter().all(|o| matches!(o, Out::Quic(_))), "{:?}", out);
        prop_assert_eq!(p.totals(), (0, 0, 0));
    }

    #[test]
    fn a_genuine_frame_under_another_flows_number_is_dropped(number in any::<u32>()) {
        let mut p = pair(None);
        prop_assume!(number != p.at_holder.0 && number != p.holder.own_flow.0);
        let frame = p.holder.data(FlowId(number), &[1; 100]);
        prop_assert_eq!(p.lab.one(p.holder.addr, &frame), []);
    }

    #[test]
    fn a_genuine_frame_cut_or_changed_in_its_first_51_bytes_is_dropped(
        cut in proptest::option::of(0_usize..119),
        flip in 0_usize..51 * 8,
    ) {
        let mut p = pair(None);
        let mut frame = p.holder.data(p.at_holder, &[1; 100]);
        match cut {
            Some(len) => frame.truncate(len),
            None => frame[flip / 8] ^= 1 << (flip % 8),
        }
        let out = p.lab.one(p.holder.addr, &frame);
        prop_assert!(frames(&out).is_empty(), "{:?}", out);
        prop_assert_eq!(p.totals(), (0, 0, 0));
    }

    #[test]
    fn what_is_counted_is_what_is_forwarded_whatever_the_batches(
        batches in proptest::collection::vec(
            (any::<bool>(), 1_usize..70, 8_usize..1400, 0_u64..200), 1..30),
        room in prop_oneof![Just(None), (10_000_u64..2_000_000).prop_map(Some)],
    ) {
        let mut p = pair(room);
        let (mut up, mut down) = (0_u64, 0_u64);
        for (from_holder, count, len, wait_ms) in batches {
            p.lab.now += Duration::from_millis(wait_ms);
            let payload = vec![7; len];
            let (client, flow, sum) = if from_holder {
                (&mut p.holder, p.at_holder, &mut up)
            } else {
                (&mut p.tenant, p.at_tenant, &mut down)
            };
            let batch: Vec<u8> = (0..count).flat_map(|_| client.data(flow, &payload)).collect();
            let addr = client.addr;
            for frame in frames(&p.lab.batch(addr, &batch, HEADER_LEN + len)) {
                prop_assert_eq!(&frame[HEADER_LEN..], &payload[..]);
                *sum += frame.len() as u64;
            }
        }
        let (billed_up, billed_down, unbilled) = p.totals();
        prop_assert_eq!(billed_up + billed_down + unbilled, up + down);
        let flow = p.lab.admission.flow_stats()[0];
        prop_assert_eq!((flow.to_tenant, flow.to_holder), (up, down));
        if let Some(room) = room {
            prop_assert!(billed_up + billed_down <= room);
        }
    }
}

fn question(token: u64, from_other_port: bool, to_port: Option<u16>) -> [u8; OBSERVE_LEN] {
    Observe { token, from_other_port, to_port }.encode()
}

#[test]
fn a_client_hears_how_any_of_its_sockets_is_seen_and_moves_nothing() {
    let mut p = pair(None);
    let other = address("203.0.113.9:61000");
    let asked = p.tenant.frame(FrameType::Observe, p.tenant.own_flow, &question(7, false, None));
    let out = p.lab.one(other, &asked);
    let [Out::Answer { to, port: RelayPort::Main, frame }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((*to, frame.len()), (other, asked.len()));
    let (header, payload) = p.tenant.open(frame);
    assert_eq!((header.kind, header.flow), (FrameType::Observed, p.tenant.own_flow));
    assert_eq!(Observed::decode(&payload), Some(Observed { token: 7, address: other }));
    // A packet to the tenant still goes where it always was.
    let out = p.up(&[1; 100]);
    assert!(matches!(&out[..], [Out::Frames { to, .. }] if *to == p.tenant.addr), "{out:?}");
}

#[test]
fn an_answer_leaves_from_the_port_and_goes_to_the_port_that_the_client_names_at_its_own_address() {
    let mut p = pair(None);
    let from = address("203.0.113.9:61000");
    for (at_alternate, from_other_port) in [(false, true), (true, false), (true, true)] {
        let payload = question(1, from_other_port, Some(40_000));
        let asked = p.tenant.frame(FrameType::Observe, p.tenant.own_flow, &payload);
        let out =
            if at_alternate { p.lab.alternate(from, &asked) } else { p.lab.one(from, &asked) };
        let [Out::Answer { to, port, frame }] = &out[..] else { panic!("{out:?}") };
        assert_eq!(*to, address("203.0.113.9:40000"));
        let alternate = at_alternate != from_other_port;
        assert_eq!(*port, if alternate { RelayPort::Alternate } else { RelayPort::Main });
        assert_eq!(frame.len(), asked.len());
        let observed = Observed::decode(&p.tenant.open(frame).1).expect("an answer");
        assert_eq!(observed.address, from);
    }
}

#[test]
fn questions_that_are_forged_replayed_malformed_or_too_many_get_no_answer() {
    let mut p = pair(None);
    let from = p.tenant.addr;
    let asked = p.tenant.frame(FrameType::Observe, p.tenant.own_flow, &question(1, false, None));
    for bit in 0..(HEADER_LEN + 26) * 8 {
        let mut bad = asked.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let out = p.lab.one(from, &bad);
        assert!(!out.iter().any(|o| matches!(o, Out::Answer { .. })), "bit {bit}: {out:?}");
    }
    for len in 0..asked.len() {
        assert_eq!(p.lab.one(from, &asked[..len]), [], "length {len}");
        assert_eq!(p.lab.alternate(from, &asked[..len]), [], "length {len}");
    }
    assert_eq!(p.lab.one(from, &asked).len(), 1, "the control");
    assert_eq!(p.lab.one(from, &asked), [], "a replay");
    assert_eq!(p.lab.alternate(from, &asked), [], "a replay at the other port");
    let mut flags = question(1, false, None);
    flags[8] = 2;
    let later = p.tenant.frame(FrameType::Observe, p.tenant.own_flow, &flags);
    assert_eq!(p.lab.one(from, &later), [], "flags of a later version");
    let longer = p.tenant.frame(FrameType::Observe, p.tenant.own_flow, &[0; OBSERVE_LEN + 1]);
    assert_eq!(p.lab.one(from, &longer), [], "another length");
    let on_a_flow = p.tenant.frame(FrameType::Observe, p.at_tenant, &question(1, false, None));
    assert_eq!(p.lab.one(from, &on_a_flow), [], "not on its own flow");
    let answers = (0..1000)
        .filter(|token| {
            let payload = question(*token, false, None);
            let asked = p.tenant.frame(FrameType::Observe, p.tenant.own_flow, &payload);
            !p.lab.one(from, &asked).is_empty()
        })
        .count();
    assert!((16..=200).contains(&answers), "{answers} answers at once");
}

#[test]
fn the_other_port_answers_questions_and_nothing_else() {
    let mut p = pair(None);
    let from = p.tenant.addr;
    let data = p.tenant.data(p.at_tenant, &[1; 100]);
    let keepalive = p.tenant.frame(FrameType::Keepalive, p.tenant.own_flow, &[0; 18]);
    for bytes in [data, keepalive, vec![0x40; 1200], vec![0xC3; 1200], vec![0x9F; 45]] {
        assert_eq!(p.lab.alternate(from, &bytes), []);
    }
}
