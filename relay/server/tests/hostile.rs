//! Clients that do not keep to the protocol, and a network that does not either.

#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

#[path = "support/client.rs"]
mod client;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{Client, PATIENCE, SILENCE, client_config, some_keypair};
use quinn::{ConnectionError, Endpoint};
use sluice_proto::FlowId;
use sluice_proto::frame::FrameType;
use sluice_proto::wire::control::{Hello, Rendezvous, RendezvousAnswer, control::Kind};
use sluice_proto::wire::{SEALED_MAX, code};
use sluice_relay::{Dropped, Relay, RelayConfig};

fn config() -> RelayConfig {
    let config = RelayConfig::new(some_keypair(), "127.0.0.1:0".parse().expect("an address"));
    RelayConfig { threads: 2, ..config }
}

async fn relay() -> Relay {
    Relay::start(config()).await.expect("a relay")
}

/// Sends `datagrams` from one socket; bytes sent, and bytes that came back.
fn exchange(relay: &Relay, datagrams: &[Vec<u8>]) -> (usize, usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let (mut sent, mut received) = (0, 0);
    let mut buffer = [0; 65_536];
    for datagram in datagrams {
        sent += datagram.len();
        socket.send_to(datagram, relay.local_addr()).expect("sent");
    }
    while let Ok((len, _)) = socket.recv_from(&mut buffer) {
        received += len;
    }
    (sent, received)
}

/// Bytes that look random, but are the same each time.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

/// What begins like the first packet of a QUIC client.
fn initial(version: u32, len: usize, seed: u64) -> Vec<u8> {
    let mut packet = vec![0xC3];
    packet.extend(version.to_be_bytes());
    packet.push(8);
    packet.extend(noise(8, seed));
    packet.push(8);
    packet.extend(noise(8, seed + 1));
    packet.push(0);
    let rest = u16::try_from(len - packet.len() - 2).expect("small");
    packet.extend((rest | 0x4000).to_be_bytes());
    packet.extend(noise(rest.into(), seed + 2));
    packet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_back_more_than_it_sent() {
    let relay = relay().await;
    let every_first_byte: Vec<Vec<u8>> = (0..=255)
        .flat_map(|first| [20, 30, 60, 300, 1200].map(|len| (first, len)))
        .map(|(first, len)| {
            let mut datagram = noise(len, u64::from(first) << 16 | len as u64);
            datagram[0] = first;
            datagram
        })
        .collect();
    let initials: Vec<Vec<u8>> = (0..50).map(|i| initial(1, 1200, i * 7)).collect();
    let old: Vec<Vec<u8>> = (0..50).map(|i| initial(0x0A1A_2A3A, 1200, i * 7)).collect();
    let short: Vec<Vec<u8>> = (0..50).map(|i| initial(1, 60 + i as usize, i * 7)).collect();
    for datagrams in [every_first_byte, initials, old, short] {
        let (sent, received) = exchange(&relay, &datagrams);
        assert!(received <= sent, "{received} bytes came back for {sent}");
    }
    // Frames alone get nothing at all.
    let frames: Vec<Vec<u8>> = (0x80..0xC0)
        .map(|first| {
            let mut datagram = noise(100, first.into());
            datagram[0] = first;
            datagram
        })
        .collect();
    assert_eq!(exchange(&relay, &frames).1, 0);
    assert!(relay.stats().dropped(Dropped::NoFlow) > 0);
    // The control: a client that proves its address is served.
    Client::connect(&relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_of_a_connection_nobody_knows_is_answered_with_less() {
    let relay = relay().await;
    let client = Client::connect(&relay).await;
    // A reset answers only what could be ours: no connection id of noise is.
    let packets: Vec<Vec<u8>> = (0..200)
        .map(|i| {
            let mut packet = noise(40 + i, i as u64);
            packet[0] = 0x40 | packet[0] & 0x3F;
            packet
        })
        .collect();
    let (sent, received) = exchange(&relay, &packets);
    assert!(received < sent);
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_messages_that_are_too_long_or_malformed_close_the_connection() {
    let relay = relay().await;
    let cases: [&[u8]; 3] =
        [&[0xFF, 0xFF, 1, 2, 3], &[0x10, 0x01, 1, 2, 3], &[0, 4, 0xFF, 0xFF, 0xFF, 0xFF]];
    for bytes in cases {
        let mut client = Client::connect(&relay).await;
        client.write(bytes).await;
        assert!(client.read().await.is_none());
        let error = client.connection.closed().await;
        let ConnectionError::ApplicationClosed(close) = error else { panic!("{error}") };
        assert_eq!(close.error_code, code::PROTOCOL.into());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_cut_in_pieces_is_put_together() {
    let relay = relay().await;
    let mut client = Client::connect(&relay).await;
    let to = some_keypair().public().to_peer_id().to_bytes().into();
    let first = vec![vec![0x43; 1420].into(); 2];
    let kind = Kind::Rendezvous(Rendezvous { request: 9, to, sealed: vec![1; 900].into(), first });
    let control = sluice_proto::wire::control::Control { kind: Some(kind) };
    for piece in sluice_proto::wire::prefixed(&control).chunks(7) {
        client.write(piece).await;
        tokio::task::yield_now().await;
    }
    assert!(matches!(client.hear().await, Kind::FlowRefused(r) if r.request == 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_messages_beyond_their_bound_are_refused() {
    let relay = relay().await;
    let mut holder = Client::connect(&relay).await;
    holder.reserve().await;
    let mut tenant = Client::connect(&relay).await;
    let to = || holder.peer().to_bytes().into();
    let sealed = vec![1; SEALED_MAX + 1].into();
    let too_long = Kind::Rendezvous(Rendezvous { request: 1, to: to(), sealed, first: vec![] });
    tenant.say(too_long).await;
    assert!(matches!(tenant.hear().await, Kind::FlowRefused(r) if r.code == code::PROTOCOL));
    let not_a_peer = Rendezvous { request: 2, to: vec![1; 5].into(), ..Default::default() };
    tenant.say(Kind::Rendezvous(not_a_peer)).await;
    assert!(matches!(tenant.hear().await, Kind::FlowRefused(r) if r.code == code::PROTOCOL));
    tenant.rendezvous(holder.peer(), 3).await;
    assert!(matches!(tenant.hear().await, Kind::FlowOpened(_)));
    let Kind::RendezvousIn(inbound) = holder.hear().await else { panic!("not told") };
    let sealed = vec![1; SEALED_MAX + 1].into();
    holder.say(Kind::Answer(RendezvousAnswer { flow: inbound.flow, sealed })).await;
    assert!(matches!(tenant.hear().await, Kind::CloseFlow(c) if c.code == code::PROTOCOL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_hello_twice_is_closed() {
    let relay = relay().await;
    let mut client = Client::connect(&relay).await;
    let versions = vec![1];
    client.say(Kind::Hello(Hello { versions, features: Vec::new(), incarnation: 5 })).await;
    assert!(client.read().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_with_another_key_than_named_is_not_trusted() {
    let relay = relay().await;
    let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let wrong = some_keypair().public().to_peer_id();
    let config = client_config(&some_keypair(), wrong);
    let connecting = endpoint.connect_with(config, relay.local_addr(), "relay").expect("dials");
    connecting.await.expect_err("another identity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_frames_on_the_flow_of_another_are_dropped() {
    let relay = relay().await;
    let mut holder = Client::settled(&relay).await;
    holder.reserve().await;
    let mut tenant = Client::settled(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    let mut stranger = Client::settled(&relay).await;
    for flow in [at_tenant, at_holder, FlowId(holder.welcome.own_flow)] {
        stranger.send_data(flow, &[1; 100]);
        stranger.send_frame(FrameType::Keepalive, flow, &[0; 18]);
    }
    holder.expect_silence();
    tenant.expect_silence();
    assert_eq!(relay.stats().forwarded(), 0);
}

/// A network between clients and a relay that can be cut.
struct Wire {
    address: std::net::SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn to(relay: std::net::SocketAddr) -> Self {
        let outside = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let inside = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = outside.local_addr().expect("bound");
        let cut = Arc::new(AtomicBool::new(false));
        let client = Arc::new(parking_lot::Mutex::new(None));
        let (outside, inside) = (Arc::new(outside), Arc::new(inside));
        std::thread::spawn({
            let (outside, inside, cut, client) =
                (outside.clone(), inside.clone(), cut.clone(), client.clone());
            move || {
                let mut buffer = [0; 2048];
                while let Ok((len, from)) = outside.recv_from(&mut buffer) {
                    *client.lock() = Some(from);
                    if !cut.load(Ordering::Relaxed) {
                        let _ = inside.send_to(&buffer[..len], relay);
                    }
                }
            }
        });
        std::thread::spawn({
            let cut = cut.clone();
            move || {
                let mut buffer = [0; 2048];
                loop {
                    let Ok((len, _)) = inside.recv_from(&mut buffer) else { continue };
                    let to = *client.lock();
                    if let Some(to) = to.filter(|_| !cut.load(Ordering::Relaxed)) {
                        let _ = outside.send_to(&buffer[..len], to);
                    }
                }
            }
        });
        Self { address, cut }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_that_nobody_announced_a_client_is_reset_at_its_next_packet() {
    let mut config = config();
    let first = Relay::start(config.clone()).await.expect("a relay");
    config.bind = first.local_addr();
    let wire = Wire::to(first.local_addr());
    let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let connection = endpoint
        .connect_with(client_config(&some_keypair(), first.peer()), wire.address, "relay")
        .expect("dials")
        .await
        .expect("connects");
    wire.cut.store(true, Ordering::Relaxed);
    first.stop().await;
    let second = Relay::start(config).await.expect("a relay again");
    wire.cut.store(false, Ordering::Relaxed);
    connection.send_datagram(vec![0; 100].into()).expect("sent");
    let error = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("reset");
    assert_eq!(error, ConnectionError::Reset);
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_relay_forwards_until_its_flows_are_closed() {
    let relay = relay().await;
    let mut holder = Client::settled(&relay).await;
    holder.reserve().await;
    let mut tenant = Client::settled(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    let draining = tokio::spawn(relay.drain(Duration::from_secs(60)));
    assert!(matches!(tenant.hear().await, Kind::Drain(_)));
    assert!(matches!(holder.hear().await, Kind::Drain(_)));
    tenant.send_data(at_tenant, &[1; 100]);
    assert_eq!(holder.receive_data(), (at_holder, vec![1; 100]));
    let close = sluice_proto::wire::control::CloseFlow { flow: at_tenant.0, code: code::OK };
    tenant.say(Kind::CloseFlow(close)).await;
    tokio::time::timeout(PATIENCE, draining).await.expect("drained").expect("no panic");
    assert!(tenant.read().await.is_none());
}
