//! Frames between a tenant and a holder through a real relay on loopback.

#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

#[path = "support/client.rs"]
mod client;

use client::{Client, some_keypair, until};
use sluice_proto::FlowId;
use sluice_proto::wire::code;
use sluice_proto::wire::control::control::Kind;
use sluice_relay::{Dropped, Relay, RelayConfig, RelayError};

async fn relay() -> Relay {
    let config = RelayConfig::new(some_keypair(), "127.0.0.1:0".parse().expect("an address"));
    Relay::start(RelayConfig { threads: 2, ..config }).await.expect("a relay")
}

/// A holder with a reservation, and a tenant.
async fn pair(relay: &Relay) -> (Client, Client) {
    let mut holder = Client::settled(relay).await;
    holder.reserve().await;
    (holder, Client::settled(relay).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_cross_the_relay_both_ways_with_their_payload_untouched() {
    let relay = relay().await;
    let (mut holder, mut tenant) = pair(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    for size in [8_usize, 100, 1200, 1439 - 19] {
        let payload: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        tenant.send_data(at_tenant, &payload);
        assert_eq!(holder.receive_data(), (at_holder, payload.clone()));
        holder.send_data(at_holder, &payload);
        assert_eq!(tenant.receive_data(), (at_tenant, payload));
    }
    let each_way = (8 + 100 + 1200 + 1420) + 4 * 19;
    // Counted once it was sent.
    until("all is counted", || relay.stats().forwarded() >= 2 * each_way).await;
    let stats = relay.stats();
    assert_eq!(stats.forwarded(), 2 * each_way);
    assert_eq!((stats.flows[0].to_holder, stats.flows[0].to_tenant), (each_way, each_way));
    let totals = stats.reservations[0].totals;
    assert_eq!((totals.up, totals.down), (each_way, each_way));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_a_forged_and_a_strangers_frame_are_dropped_and_not_answered() {
    let relay = relay().await;
    let (mut holder, mut tenant) = pair(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    let frame = tenant.sealed(sluice_proto::frame::FrameType::Data, at_tenant, &[7; 100]);
    tenant.send_raw(&frame);
    assert_eq!(holder.receive_data(), (at_holder, vec![7; 100]));
    tenant.send_raw(&frame);
    let mut forged = tenant.sealed(sluice_proto::frame::FrameType::Data, at_tenant, &[7; 100]);
    forged[12] ^= 1;
    tenant.send_raw(&forged);
    // The holder's flow number under the tenant's key.
    tenant.send_data(at_holder, &[8; 100]);
    tenant.send_data(FlowId(at_tenant.0 ^ 0x5A5A), &[8; 100]);
    holder.expect_silence();
    tenant.expect_silence();
    let stats = relay.stats();
    let kinds = [Dropped::Replay, Dropped::Tag, Dropped::NoFlow];
    assert_eq!(kinds.map(|kind| stats.dropped(kind)), [1, 2, 1]);
    // The control: the flow still works.
    tenant.send_data(at_tenant, &[9; 100]);
    assert_eq!(holder.receive_data().1, [9; 100]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provisional_flow_carries_four_packets_and_no_more_until_it_is_answered() {
    let relay = relay().await;
    let (holder, mut tenant) = pair(&relay).await;
    tenant.rendezvous(holder.peer(), 1).await;
    let Kind::FlowOpened(opened) = tenant.hear().await else { panic!("not opened") };
    for i in 0..6 {
        tenant.send_data(FlowId(opened.flow), &[i; 1200]);
    }
    for i in 0..4 {
        assert_eq!(holder.receive_data().1, [i; 1200]);
    }
    holder.expect_silence();
    let stats = relay.stats();
    assert_eq!(stats.dropped(Dropped::Provisional), 2);
    assert_eq!(stats.reservations[0].totals.down, 0);
    assert_eq!(stats.reservations[0].totals.unbilled, 4 * 1219);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_incarnation_closes_the_flows_of_the_old_one_and_tells_the_other_end() {
    let relay = relay().await;
    let (mut holder, mut tenant) = pair(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    let again = Client::connect_as(&relay, tenant.keypair.clone(), 2).await;
    let Kind::CloseFlow(close) = holder.hear().await else { panic!("not told") };
    assert_eq!((close.flow, close.code), (at_holder.0, code::RESTARTED));
    tenant.send_data(at_tenant, &[1; 100]);
    holder.expect_silence();
    assert_eq!(relay.stats().flows.len(), 0);
    drop(again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_incarnation_resumes_its_flows_under_new_keys() {
    let relay = relay().await;
    let (mut holder, mut tenant) = pair(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    let keypair = tenant.keypair.clone();
    let mut resumed = Client::connect_as(&relay, keypair, 1).await;
    assert_ne!(resumed.welcome.leg, tenant.welcome.leg);
    resumed.settle();
    resumed.send_data(at_tenant, &[1; 100]);
    assert_eq!(holder.receive_data(), (at_holder, vec![1; 100]));
    holder.send_data(at_holder, &[2; 100]);
    assert_eq!(resumed.receive_data(), (at_tenant, vec![2; 100]));
    // The old keys are worth nothing.
    tenant.send_data(at_tenant, &[3; 100]);
    holder.expect_silence();
    assert!(tenant.read().await.is_none(), "the old connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_closes_a_flow_on_both_sides() {
    let relay = relay().await;
    let (mut holder, mut tenant) = pair(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    let close = sluice_proto::wire::control::CloseFlow { flow: at_holder.0, code: 5 };
    holder.say(Kind::CloseFlow(close)).await;
    let Kind::CloseFlow(told) = tenant.hear().await else { panic!("not told") };
    assert_eq!((told.flow, told.code), (at_tenant.0, 5));
    tenant.send_data(at_tenant, &[1; 100]);
    holder.expect_silence();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rendezvous_with_nobody_is_refused_by_name() {
    let relay = relay().await;
    let mut tenant = Client::connect(&relay).await;
    let mut no_holder = Client::connect(&relay).await;
    for to in [some_keypair().public().to_peer_id(), no_holder.peer(), tenant.peer()] {
        tenant.rendezvous(to, 3).await;
        let Kind::FlowRefused(refused) = tenant.hear().await else { panic!("not refused") };
        assert_eq!((refused.request, refused.code), (3, code::NO_SUCH_PEER));
    }
    // The control: with a reservation it works.
    no_holder.reserve().await;
    tenant.rendezvous(no_holder.peer(), 4).await;
    assert!(matches!(tenant.hear().await, Kind::FlowOpened(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_many_flows_each_thread_forwards_its_share() {
    let relay = relay().await;
    let (mut holder, mut tenant) = pair(&relay).await;
    let mut flows = Vec::new();
    for _ in 0..8 {
        flows.push(tenant.open_flow(&mut holder).await);
    }
    for round in 0..50 {
        for (at_tenant, at_holder) in &flows {
            holder.send_data(*at_holder, &[round; 1400]);
            assert_eq!(tenant.receive_data(), (*at_tenant, vec![round; 1400]));
        }
    }
    let stats = relay.stats();
    for bytes in &stats.forwarded_by_thread {
        assert!(bytes * 100 >= stats.forwarded() * 35, "{:?}", stats.forwarded_by_thread);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named() {
    let first = relay().await;
    let config = RelayConfig::new(some_keypair(), first.local_addr());
    let error = Relay::start(config).await.expect_err("the port is taken");
    assert!(matches!(error, RelayError::PortInUse(at) if at == first.local_addr()), "{error}");
    let address = first.local_addr();
    first.stop().await;
    let config = RelayConfig::new(some_keypair(), address);
    Relay::start(config).await.expect("the port is free again");
}
