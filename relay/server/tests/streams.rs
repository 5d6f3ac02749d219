//! Clients whose network blocks UDP, and those who abuse the TCP port.

#[path = "support/client.rs"]
mod client;
#[path = "../../../crates/transport/tests/support/fast.rs"]
mod fast;
#[path = "support/tunnel.rs"]
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use client::{Client, PATIENCE, SILENCE, some_keypair, until};
use fast::Fast;
use sluice_proto::frame::FrameType;
use sluice_proto::wire;
use sluice_proto::{ALPN_RELAY, ALPN_STREAM};
use sluice_relay::{Dropped, Relay, RelayConfig, RelayError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tunnel::{Tunnel, dial, on_stream};

fn config() -> RelayConfig {
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let config = RelayConfig::new(some_keypair(), loopback);
    RelayConfig { threads: 2, tcp: Some(loopback), ..config }
}

async fn relay() -> Arc<Relay> {
    Arc::new(Relay::start(config()).await.expect("a relay"))
}

async fn over_tcp(relay: &Relay, tunnel: &Tunnel) -> Client {
    let mut client = Client::connect_at(relay, tunnel.addr, some_keypair(), 1).await;
    client.settle();
    client
}

/// Waits until the other end has closed.
async fn closed(mut stream: impl AsyncRead + Unpin) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    // An end without TLS's goodbye, or a reset, is an error to the reader.
    let _ = end.expect("the relay closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_cross_between_a_client_on_tcp_and_one_on_udp_untouched_and_counted() {
    let relay = relay().await;
    let tunnel = Tunnel::to(&relay).await;
    for holder_on_tcp in [false, true] {
        let (mut holder, mut tenant) = if holder_on_tcp {
            (over_tcp(&relay, &tunnel).await, Client::settled(&relay).await)
        } else {
            (Client::settled(&relay).await, over_tcp(&relay, &tunnel).await)
        };
        let on_tcp = if holder_on_tcp { &holder } else { &tenant };
        let observed = &on_tcp.welcome.observed;
        assert_eq!(wire::decode_addr(observed), None, "TCP says nothing of UDP addresses");
        let seen = wire::decode_seen(observed).expect("it says where the client is");
        assert!(seen.ip().is_loopback());
        holder.reserve().await;
        let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
        for size in [8_usize, 100, 1200, 1439 - 19] {
            let payload: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            tenant.send_data(at_tenant, &payload);
            assert_eq!(holder.receive_data(), (at_holder, payload.clone()));
            holder.send_data(at_holder, &payload);
            assert_eq!(tenant.receive_data(), (at_tenant, payload));
        }
        let stats = relay.stats();
        let each_way = (8 + 100 + 1200 + 1420) + 4 * 19;
        let flow = stats.flows.iter().find(|f| f.holder == holder.peer()).expect("the flow");
        assert_eq!((flow.to_holder, flow.to_tenant), (each_way, each_way));
        let row = stats.reservations.iter().find(|r| r.holder == holder.peer());
        let totals = row.expect("the reservation").totals;
        assert_eq!((totals.up, totals.down), (each_way, each_way));
    }
    let all = 2 * ((8 + 100 + 1200 + 1420) + 4 * 19);
    // Counted once it was sent.
    until("all is counted", || relay.stats().forwarded_from_streams >= all).await;
    assert_eq!(relay.stats().forwarded_from_streams, all);
    assert!(relay.stats().streams >= 4, "a stream for each socket of each client");
    drop(tunnel);
    until("the streams go", || relay.stats().streams == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_to_tcp_and_back_to_udp_and_its_flow_stays() {
    let relay = relay().await;
    let tunnel = Tunnel::to(&relay).await;
    let mut holder = Client::settled(&relay).await;
    holder.reserve().await;
    let mut tenant = Client::settled(&relay).await;
    let (at_tenant, at_holder) = tenant.open_flow(&mut holder).await;
    for (i, way) in [tunnel.addr, relay.local_addr(), tunnel.addr].into_iter().enumerate() {
        tenant.turn_to(way);
        // Its frames are taken at once; what comes back goes there once it has echoed.
        tenant.send_data(at_tenant, &[1; 100]);
        assert_eq!(holder.receive_data(), (at_holder, vec![1; 100]));
        let (header, nonce) = tenant.receive_frame();
        assert_eq!(header.kind, FrameType::Challenge, "on way {i}");
        let own = sluice_proto::FlowId(tenant.welcome.own_flow);
        tenant.send_frame(FrameType::ChallengeEcho, own, &nonce);
        tenant.send_frame(FrameType::Keepalive, own, &[0; 18]);
        assert_eq!(tenant.receive_frame().0.kind, FrameType::KeepaliveAck);
        holder.send_data(at_holder, &[2; 100]);
        assert_eq!(tenant.receive_data(), (at_tenant, vec![2; 100]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_break_the_rules_are_closed_and_counted_and_hurt_nobody() {
    let relay = relay().await;
    let addr = relay.tcp_addr().expect("it listens");
    let broken = || relay.stats().dropped(Dropped::StreamBroken);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 400], &[0x16, 3, 1, 0xFF, 0xFF, 0]] {
        let mut tcp = TcpStream::connect(addr).await.expect("it listens");
        tcp.write_all(garbage).await.expect("written");
        tcp.shutdown().await.expect("shut down");
        closed(tcp).await;
    }
    until("they are counted", || broken() == 3).await;
    assert!(dial(&relay, ALPN_RELAY).await.is_err(), "another protocol");
    until("it is counted", || broken() == 4).await;
    // A length of nothing, lengths beyond any packet, and the end in the middle of a packet.
    let cut = [&on_stream(&[0xC0; 50])[..], &[4, 0, 1, 2]].concat();
    for bytes in [&[0, 0, 1][..], &[0xFF, 0xFF], &[0x05, 0xDD, 0x80], &cut] {
        let before = broken();
        let mut stream = dial(&relay, ALPN_STREAM).await.expect("a stream");
        stream.write_all(bytes).await.expect("written");
        if bytes == cut {
            stream.shutdown().await.expect("shut down");
        }
        closed(stream).await;
        until("it is counted", || broken() == before + 1).await;
    }
    until("they are gone", || relay.stats().streams == 0).await;
    // The control: a client works as before, over UDP and over TCP.
    let tunnel = Tunnel::to(&relay).await;
    let mut holder = Client::settled(&relay).await;
    holder.reserve().await;
    let mut tenant = over_tcp(&relay, &tunnel).await;
    let (at_tenant, _) = tenant.open_flow(&mut holder).await;
    tenant.send_data(at_tenant, &[9; 100]);
    assert_eq!(holder.receive_data().1, [9; 100]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_closed_before_and_after_its_handshake() {
    let relay = Relay::start(RelayConfig { clock: Fast::clock(), ..config() }).await;
    let relay = relay.expect("a relay");
    let silent = TcpStream::connect(relay.tcp_addr().expect("it listens")).await.expect("accepted");
    let mut slow = TcpStream::connect(relay.tcp_addr().expect("it listens")).await.expect("taken");
    slow.write_all(&[0x16, 3, 1]).await.expect("written");
    let idle = dial(&relay, ALPN_STREAM).await.expect("a stream");
    // It speaks, but nothing that anybody would answer.
    let mut babbling = dial(&relay, ALPN_STREAM).await.expect("a stream");
    let babble = async {
        while babbling.write_all(&on_stream(&[0x80; 64])).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let all = async { tokio::join!(closed(silent), closed(slow), closed(idle), babble) };
    tokio::time::timeout(PATIENCE, all).await.expect("all are closed");
    until("they are counted", || relay.stats().dropped(Dropped::StreamBroken) == 4).await;
    assert_eq!(relay.stats().streams, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_bound_are_closed_until_there_is_room() {
    let mut config = config();
    config.limits.streams_per_prefix_max = 3;
    let relay = Relay::start(config).await.expect("a relay");
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(dial(&relay, ALPN_STREAM).await.expect("a stream"));
    }
    assert!(dial(&relay, ALPN_STREAM).await.is_err());
    assert_eq!(relay.stats().dropped(Dropped::StreamRefused), 1);
    assert_eq!(relay.stats().streams, 3);
    held.pop();
    until("there is room", || relay.stats().streams == 2).await;
    dial(&relay, ALPN_STREAM).await.expect("a stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_loses_packets_and_holds_nobody_up() {
    let relay = relay().await;
    let tunnel = Tunnel::to(&relay).await;
    let mut deaf = Client::settled(&relay).await;
    let mut other = Client::settled(&relay).await;
    let mut holder = Client::settled(&relay).await;
    holder.reserve().await;
    let (_, to_deaf) = deaf.open_flow(&mut holder).await;
    let (at_other, to_other) = other.open_flow(&mut holder).await;
    drop(tunnel);
    // The leg moves to a stream that is read for the challenge alone.
    let mut stream = dial(&relay, ALPN_STREAM).await.expect("a stream");
    let own = sluice_proto::FlowId(deaf.welcome.own_flow);
    let keepalive = deaf.sealed(FrameType::Keepalive, own, &[0; 18]);
    stream.write_all(&on_stream(&keepalive)).await.expect("written");
    let mut challenge = vec![0; 2 + 19 + 8];
    stream.read_exact(&mut challenge).await.expect("a challenge");
    let echo = deaf.sealed(FrameType::ChallengeEcho, own, &challenge[21..]);
    stream.write_all(&on_stream(&echo)).await.expect("written");
    // Sooner or later no buffer takes more.
    let dropped = || relay.stats().dropped(Dropped::StreamQueue);
    tokio::time::timeout(PATIENCE, async {
        while dropped() == 0 {
            for _ in 0..100 {
                holder.send_data(to_deaf, &[3; 1200]);
            }
            tokio::time::sleep(SILENCE / 100).await;
            holder.send_data(to_other, &[4; 500]);
            assert_eq!(other.receive_data(), (at_other, vec![4; 500]));
        }
    })
    .await
    .expect("the queue fills");
    assert_eq!(relay.stats().streams, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_tcp_port_is_named_and_a_stopped_relay_gives_its_port_back() {
    let relay = Relay::start(config()).await.expect("a relay");
    let addr = relay.tcp_addr().expect("it listens");
    let again = RelayConfig { tcp: Some(addr), ..config() };
    let error = Relay::start(again.clone()).await.expect_err("taken");
    assert!(matches!(error, RelayError::TcpPortInUse(port) if port == addr), "{error}");
    assert!(error.to_string().contains("`tcp` in [relay]"), "{error}");
    let stream = dial(&relay, ALPN_STREAM).await.expect("a stream");
    relay.stop().await;
    closed(stream).await;
    let relay = Relay::start(again).await.expect("the port is free");
    dial(&relay, ALPN_STREAM).await.expect("a stream");
    let udp_only = Relay::start(RelayConfig { tcp: None, ..config() }).await.expect("a relay");
    assert_eq!(udp_only.tcp_addr(), None);
}
