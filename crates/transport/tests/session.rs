//! A session's life over a real relay on loopback.

#[path = "support/lab.rs"]
mod lab;

use std::net::SocketAddr;

use lab::{
    Fast, Party, Wire, allow_direct, carry, go_direct, noise, on_path, relay_addr, session, soon,
    start_relay, start_relay_at, until, works,
};
use sluice_proto::{Invite, RelayAddr};
use sluice_transport::{AcceptPolicy, Clock, ConnectError, LinkState, PathKind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_begins_on_the_relay_and_both_ends_know_each_other() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    assert_eq!((ours.peer(), theirs.peer()), (provider.node.id(), tenant.node.id()));
    assert_eq!(ours.exporter(), theirs.exporter());
    assert!(ours.is_relayed() && theirs.is_relayed());
    works(&ours, &theirs).await;
    let bytes = ours.path_bytes();
    assert!(bytes.relayed_sent > 20_000 && bytes.relayed_received > 20_000, "{bytes:?}");
    assert_eq!((bytes.direct_sent, bytes.direct_received), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_invite_a_wrong_provider_and_an_absent_one_are_told_apart() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let mut uninvited = provider.ticket();
    uninvited.invite = Invite::issue(&[8; 16], 0);
    let error = soon("an answer", tenant.node.connect(&uninvited, &tenant.link)).await;
    assert_eq!(error.err(), Some(ConnectError::NotInvited));
    let mut absent = provider.ticket();
    absent.peer = lab::some_keypair().public().to_peer_id();
    let error = soon("an answer", tenant.node.connect(&absent, &tenant.link)).await;
    assert!(matches!(error.err(), Some(ConnectError::NotThere { .. })));
    // The control: the right ticket.
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_one_end_closes_the_other_at_once() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    for round in 0..10 {
        let (ours, theirs) = session(&tenant, &provider).await;
        let (closing, other) = if round % 2 == 0 { (ours, theirs) } else { (theirs, ours) };
        closing.close(3, "enough");
        let reason = soon("the other end hears", other.connection().closed()).await;
        let quinn::ConnectionError::ApplicationClosed(close) = reason else {
            panic!("round {round}: not closed but {reason}");
        };
        assert_eq!(close.error_code, 3_u32.into());
        until("the flow goes", || relay.stats().flows.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_ended_leave_no_flow_at_the_relay() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    for _ in 0..3 {
        let (ours, _theirs) = session(&tenant, &provider).await;
        assert_eq!(relay.stats().flows.len(), 1);
        ours.close(0, "");
        until("the flow goes", || relay.stats().flows.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_path_is_taken_and_left_again_and_no_byte_is_lost() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    go_direct(&ours, &theirs).await;
    works(&ours, &theirs).await;
    assert!(ours.path_bytes().direct_sent > 20_000, "{:?}", ours.path_bytes());
    let bytes = noise(3_000_000, 5);
    let (got, ()) = tokio::join!(carry(&theirs, &ours, &bytes), async {
        ours.set_direct_allowed(false);
        on_path(&ours, PathKind::Relayed).await;
        on_path(&theirs, PathKind::Relayed).await;
    });
    assert!(got == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_bound_to_ipv6_reaches_relays_and_nodes_on_ipv4() {
    let relay = start_relay().await;
    let any = "[::]:0".parse().expect("an address");
    if std::net::UdpSocket::bind(any).is_err() {
        return;
    }
    let key = lab::some_keypair();
    let invited = AcceptPolicy::Invited(lab::SECRET);
    let (node, noise) = lab::some_node_at(any, &key, invited, Clock::default());
    let provider = Party::reserving(node, noise, key, relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
    go_direct(&ours, &theirs).await;
    works(&ours, &theirs).await;
    let remote = ours.path().borrow().expect("a path").remote;
    assert!(remote.is_ipv4() && theirs.path().borrow().expect("a path").remote.is_ipv4());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sessions_between_the_same_nodes_do_not_disturb_each_other() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let first = session(&tenant, &provider).await;
    go_direct(&first.0, &first.1).await;
    let second = session(&tenant, &provider).await;
    allow_direct(&second.0, &second.1);
    for _ in 0..5 {
        works(&first.0, &first.1).await;
        works(&second.0, &second.1).await;
    }
    // What one leaves behind does not hurt the other.
    second.0.close(0, "");
    soon("the end", second.1.connection().closed()).await;
    works(&first.0, &first.1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_the_restart_of_its_relay() {
    let key = lab::some_keypair();
    let relay = start_relay_at(key.clone(), lab::loopback()).await;
    let addr = relay_addr(&relay);
    let provider = Party::provider(addr).await;
    let tenant = Party::tenant(addr).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
    drop(relay);
    let mut state = provider.link.state();
    let relay = start_relay_at(key, addr.addr).await;
    let down = state.wait_for(|s| !matches!(s, LinkState::Reserved(1)));
    soon("the loss shows", down).await.expect("a state");
    provider.reserved().await;
    works(&ours, &theirs).await;
    drop(relay);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_the_loss_of_either_ends_control_connection() {
    for providers in [true, false] {
        let relay = start_relay().await;
        let (at_provider, at_tenant) =
            (Wire::to(relay_addr(&relay)).await, Wire::to(relay_addr(&relay)).await);
        // Whoever loses it finds out by a timeout; a fast clock brings that about.
        let clock = |fast| if fast { Fast::clock() } else { Clock::default() };
        let provider = Party::provider_by(at_provider.addr, clock(providers)).await;
        let tenant = Party::tenant_by(at_tenant.addr, clock(!providers)).await;
        let (ours, theirs) = session(&tenant, &provider).await;
        works(&ours, &theirs).await;
        let (wire, link) =
            if providers { (&at_provider, &provider.link) } else { (&at_tenant, &tenant.link) };
        let mut state = link.state();
        let before = state.borrow().generation();
        wire.cut();
        soon("the loss shows", state.wait_for(|s| s.generation().is_none())).await.expect("down");
        wire.mend();
        soon("the link", state.wait_for(|s| s.generation() > before)).await.expect("up");
        provider.reserved().await;
        works(&ours, &theirs).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_shut_down_gives_its_port_back() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    let addr = tenant.addr();
    assert!(std::net::UdpSocket::bind(addr).is_err(), "the port is in use");
    tenant.node.shutdown().await;
    soon("the other end hears", theirs.connection().closed()).await;
    assert!(tenant.node.accept().await.is_none());
    drop((tenant, ours));
    until("the port is free", || std::net::UdpSocket::bind(addr).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_the_other_node_forgot_is_closed_when_its_flow_is_asked_for_again() {
    let relay = start_relay().await;
    let (at_provider, at_tenant) =
        (Wire::to(relay_addr(&relay)).await, Wire::to(relay_addr(&relay)).await);
    let provider = Party::provider(at_provider.addr).await;
    let tenant = Party::tenant(at_tenant.addr).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    // The goodbye and all that follows is lost.
    at_tenant.meddle(Box::new(|toward, bytes| match toward {
        lab::Toward::Node if bytes[0] == 0x80 => Vec::new(),
        lab::Toward::Node | lab::Toward::Relay => vec![bytes.to_vec()],
    }));
    theirs.close(4, "not heard");
    let reason = soon("the end", ours.connection().closed()).await;
    let quinn::ConnectionError::LocallyClosed = reason else { panic!("{reason}") };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_opened_at_the_same_time_all_come_to_be() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    for _ in 0..10 {
        let all = (0..6).map(|_| {
            let (node, link, ticket) =
                (tenant.node.clone(), tenant.link.clone(), provider.ticket());
            tokio::spawn(async move { node.connect(&ticket, &link).await })
        });
        let mut sessions = Vec::new();
        for connecting in all.collect::<Vec<_>>() {
            sessions.push(soon("a session", connecting).await.expect("no panic").expect("open"));
            soon("its other end", provider.node.accept()).await.expect("a session");
        }
        for session in sessions {
            session.close(0, "");
        }
        until("no flow stands", || relay.stats().flows.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_a_relay_that_there_is_already_is_shared() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    for node in [&tenant.node, &provider.node] {
        let again = node.link(relay_addr(&relay), None);
        soon("the link", again.ready()).await.expect("up");
    }
    works(&ours, &theirs).await;
    assert_eq!(relay.stats().legs, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_to_one_relay_that_are_begun_at_once_are_one() {
    let relay = start_relay().await;
    let address = relay_addr(&relay);
    let tenant = Party::tenant(address).await;
    let (node, runtime) = (&tenant.node, tokio::runtime::Handle::current());
    for round in 1..=50 {
        // Another address of the same relay is another link.
        let other = RelayAddr::new(address.peer, SocketAddr::new([127, 0, 0, round].into(), 9));
        let begin = std::sync::Barrier::new(4);
        let links = std::thread::scope(|scope| {
            let each = || {
                let _entered = runtime.enter();
                begin.wait();
                node.link(other, None)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(each)).collect();
            threads.into_iter().map(|t| t.join().expect("a link")).collect::<Vec<_>>()
        });
        let first = links[0].state();
        let is_one = links.iter().all(|link| link.state().same_channel(&first));
        assert!(is_one, "two links in round {round}");
    }
}
