//! Networks that block UDP: over TCP, and back again.

#[path = "support/lab.rs"]
mod lab;

use std::num::NonZeroU16;

use lab::{
    Party, SILENCE, Wire, carry, go_direct, noise, relay_addr, session, some_keypair, some_node,
    soon, start_relay, until, works,
};
use sluice_proto::RelayAddr;
use sluice_relay::{Dropped, Relay};
use sluice_transport::{AcceptPolicy, PathKind, RelayLink, Session};

/// A wire that may be cut to the relay's UDP port, and what is told of the relay: TCP works.
async fn wired(relay: &Relay) -> (Wire, RelayAddr) {
    let wire = Wire::to(relay_addr(relay)).await;
    let port = relay.tcp_addr().expect("it listens on TCP").port();
    let addr = wire.addr.with_tcp(NonZeroU16::new(port));
    (wire, addr)
}

async fn on_tcp(link: &RelayLink, over_tcp: bool) {
    let what = if over_tcp { "the link goes to TCP" } else { "the link goes to UDP" };
    let mut state = link.over_tcp();
    soon(what, state.wait_for(|now| *now == over_tcp)).await.expect("the link stands");
}

async fn path_on_tcp(session: &Session, over_tcp: bool) {
    let mut path = session.path();
    let there = path.wait_for(|p| p.is_some_and(|p| p.over_tcp == over_tcp));
    soon("the path", there).await.expect("the session stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_without_udp_reaches_a_provider_and_leaves_tcp_in_mid_download() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let (wire, addr) = wired(&relay).await;
    wire.cut();
    let tenant = Party::tenant(addr).await;
    assert!(*tenant.link.over_tcp().borrow());
    assert_eq!(tenant.link.observed(), None, "TCP says nothing of UDP addresses");
    let (ours, theirs) = session(&tenant, &provider).await;
    path_on_tcp(&ours, true).await;
    // The other end is on UDP.
    path_on_tcp(&theirs, false).await;
    works(&ours, &theirs).await;
    let bytes = noise(8_000_000, 5);
    assert!(carry(&theirs, &ours, &bytes).await == bytes);
    assert!(carry(&ours, &theirs, &bytes).await == bytes);
    assert_eq!(tenant.link.observed(), None);
    let before = wire.carried();
    let more = noise(60_000_000, 6);
    let (got, ()) = tokio::join!(carry(&theirs, &ours, &more), async {
        wire.mend();
        on_tcp(&tenant.link, false).await;
        path_on_tcp(&ours, false).await;
    });
    assert!(got == more);
    assert!(carry(&theirs, &ours, &bytes).await == bytes);
    assert!(wire.carried().0 > before.0 + 8_000_000, "the last download came over UDP");
    until("the stream is closed", || relay.stats().streams == 0).await;
    until("the relay says how it sees it", || tenant.link.observed().is_some()).await;
    // One control connection saw it all.
    assert_eq!(tenant.link.state().borrow().generation(), Some(1));
    assert_eq!(relay.stats().flows.len(), 1);
    assert_eq!(relay.stats().dropped(Dropped::StreamBroken), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_comes_up_over_udp_tells_of_no_change() {
    let relay = start_relay().await;
    let (_wire, addr) = wired(&relay).await;
    let (node, _) = some_node(&some_keypair(), AcceptPolicy::Nobody);
    let link = node.link(addr, None);
    let over_tcp = link.over_tcp();
    soon("the link", link.ready()).await.expect("up");
    assert!(!over_tcp.has_changed().expect("the link stands"), "it was always reached over UDP");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_without_udp_is_reached_and_a_direct_path_is_still_found() {
    let relay = start_relay().await;
    let (wire, addr) = wired(&relay).await;
    wire.cut();
    let provider = Party::provider(addr).await;
    assert!(*provider.link.over_tcp().borrow());
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    path_on_tcp(&theirs, true).await;
    let bytes = noise(4_000_000, 7);
    assert!(carry(&theirs, &ours, &bytes).await == bytes);
    assert!(carry(&ours, &theirs, &bytes).await == bytes);
    assert!(relay.stats().forwarded_from_streams > 4_000_000);
    // Only the way to the relay is blocked here.
    go_direct(&ours, &theirs).await;
    works(&ours, &theirs).await;
    path_on_tcp(&theirs, false).await;
    assert_eq!(theirs.path().borrow().map(|p| p.kind), Some(PathKind::Direct));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_that_is_blocked_in_mid_download_is_left_for_tcp_and_no_byte_is_lost() {
    for tenants in [true, false] {
        let relay = start_relay().await;
        let (wire, addr) = wired(&relay).await;
        let plain = relay_addr(&relay);
        let provider = Party::provider(if tenants { plain } else { addr }).await;
        let tenant = Party::tenant(if tenants { addr } else { plain }).await;
        let link = if tenants { &tenant.link } else { &provider.link };
        let (ours, theirs) = session(&tenant, &provider).await;
        works(&ours, &theirs).await;
        assert!(!*link.over_tcp().borrow(), "UDP works, so TCP is not used");
        assert_eq!(relay.stats().streams, 0);
        let bytes = noise(20_000_000, 8);
        let (got, ()) = tokio::join!(carry(&theirs, &ours, &bytes), async {
            let begun = wire.carried().0.max(wire.carried().1) + 100_000;
            let moving = || wire.carried().0.max(wire.carried().1) > begun;
            until("the download moves", moving).await;
            wire.cut();
            on_tcp(link, true).await;
        });
        assert!(got == bytes);
        assert!(carry(&ours, &theirs, &bytes).await == bytes);
        assert_eq!(link.state().borrow().generation(), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_link_notices_that_udp_is_blocked_and_can_still_be_reached() {
    let relay = start_relay().await;
    let (wire, addr) = wired(&relay).await;
    let provider = Party::provider_by(addr, lab::Fast::clock()).await;
    wire.cut();
    on_tcp(&provider.link, true).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_that_lets_only_small_packets_through_is_not_taken_to_work() {
    let relay = start_relay().await;
    let (wire, addr) = wired(&relay).await;
    let (tries, mut tried) = tokio::sync::mpsc::unbounded_channel();
    wire.meddle(Box::new(move |_, bytes| {
        let small = bytes.len() < 1000;
        if !small {
            let _ = tries.send(bytes[0]);
        }
        if small { vec![bytes.to_vec()] } else { Vec::new() }
    }));
    let provider = Party::provider_by(addr, lab::Fast::clock()).await;
    assert!(*provider.link.over_tcp().borrow());
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
    for _ in 0..6 {
        soon("UDP is tried", async { while tried.recv().await.expect("a try") != 0x81 {} }).await;
        works(&ours, &theirs).await;
        assert!(*provider.link.over_tcp().borrow());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_else_answers_on_the_tcp_port_is_not_taken_for_the_relay() {
    let (relay, other) = (start_relay().await, start_relay().await);
    let (wire, addr) = wired(&relay).await;
    wire.cut();
    let port = other.tcp_addr().expect("it listens").port();
    let key = some_keypair();
    let (node, _) = some_node(&key, AcceptPolicy::Nobody);
    let link = node.link(addr.with_tcp(NonZeroU16::new(port)), None);
    soon("an answer", link.ready()).await.expect_err("nobody else is the relay");
    assert!(!*link.over_tcp().borrow());
    assert_eq!(other.stats().legs, 0);
    until("it hung up", || other.stats().dropped(Dropped::StreamBroken) > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_over_tcp_survives_the_loss_of_its_stream() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let (udp, addr) = wired(&relay).await;
    udp.cut();
    // What stands between the tenant and the TCP port breaks connections.
    let listener = tokio::net::TcpListener::bind(lab::loopback()).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let upstream = relay.tcp_addr().expect("it listens");
    let breaking = std::sync::Arc::new(tokio::sync::Notify::new());
    let broken = breaking.clone();
    let task = tokio::spawn(async move {
        loop {
            let (mut down, _) = listener.accept().await.expect("accepted");
            let mut up = tokio::net::TcpStream::connect(upstream).await.expect("connected");
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut down, &mut up) => {}
                () = broken.notified() => {}
            }
        }
    });
    let tenant = Party::tenant(addr.with_tcp(NonZeroU16::new(port))).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
    let bytes = noise(20_000_000, 9);
    let (got, ()) = tokio::join!(carry(&theirs, &ours, &bytes), async {
        for _ in 0..3 {
            tokio::time::sleep(SILENCE / 3).await;
            breaking.notify_one();
        }
    });
    assert!(got == bytes);
    on_tcp(&tenant.link, true).await;
    works(&ours, &theirs).await;
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_carries_nothing_any_more_is_replaced_by_another() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let (udp, addr) = wired(&relay).await;
    udp.cut();
    // The first connection is swallowed once it is told so; later ones work.
    let listener = tokio::net::TcpListener::bind(lab::loopback()).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let upstream = relay.tcp_addr().expect("it listens");
    let (swallow, mut swallowed) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let (mut down, _) = listener.accept().await.expect("accepted");
        let mut up = tokio::net::TcpStream::connect(upstream).await.expect("connected");
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut down, &mut up) => {}
            _ = &mut swallowed => {}
        }
        loop {
            let (mut down, _) = listener.accept().await.expect("accepted");
            let mut up = tokio::net::TcpStream::connect(upstream).await.expect("connected");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut down, &mut up).await });
        }
    });
    let tenant = Party::tenant(addr.with_tcp(NonZeroU16::new(port))).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
    swallow.send(()).expect("it listens");
    works(&ours, &theirs).await;
    assert_eq!(tenant.link.state().borrow().generation(), Some(1));
    task.abort();
}
