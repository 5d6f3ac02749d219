//! Strangers, whoever sits on the wire, tenants without an invite, and a relay that lies.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/lab.rs"]
mod lab;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fake::{FakeRelay, OWN_FLOW};
use lab::{
    Party, SECRET, SILENCE, Toward, Wire, allow_direct, go_direct, loopback, noise, on_path,
    relay_addr, session, some_keypair, some_node, soon, start_relay, until, works,
};
use sluice_proto::frame::{self, FrameType, HEADER_LEN};
use sluice_proto::wire::control::{self, control::Kind};
use sluice_proto::wire::{MESSAGE_MAX, SEALED_MAX, code};
use sluice_proto::{ALPN_RELAY, ALPN_SESSION, FlowId, Invite, RelayAddr, VERSION};
use sluice_transport::{
    AcceptPolicy, ConnectError, MessageReader, Node, PathKind, client_config, send_message,
};
use tokio::sync::mpsc;

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

/// The first datagram of a real QUIC client that wants to talk to a node.
async fn real_initial(alpn: &[u8]) -> Vec<u8> {
    let nowhere = tokio::net::UdpSocket::bind(loopback()).await.expect("a socket");
    let endpoint = quinn::Endpoint::client(loopback()).expect("an endpoint");
    let key = some_keypair();
    let crypto = client_config(&key, key.public().to_peer_id(), alpn).expect("TLS");
    let to = nowhere.local_addr().expect("an address");
    let _connecting =
        endpoint.connect_with(quinn::ClientConfig::new(crypto), to, "x").expect("an attempt");
    let mut packet = vec![0; 2048];
    let len = soon("an Initial", nowhere.recv(&mut packet)).await.expect("a datagram");
    packet.truncate(len);
    packet
}

/// Junk with every first byte, what looks like frames, probes and QUIC, and a real Initial.
async fn junk() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for first in 0..=255_u8 {
        for len in [1, 8, 18, 19, 20, 27, 65, 300, 1200, 1472] {
            let mut datagram = noise(len, u64::from(first) << 16 | len as u64);
            datagram[0] = first;
            all.push(datagram);
        }
    }
    for seed in 0..20 {
        all.push(initial(1, 1200, seed));
        all.push(initial(0x6B33_43CF, 1200, seed));
        all.push(initial(0x1A2A_3A4A, 1472, seed));
        all.push(initial(0, 60, seed));
    }
    all.push(noise(20_000, 1));
    all.push(noise(65_507, 2));
    all.push(real_initial(ALPN_SESSION).await);
    all.push(real_initial(ALPN_RELAY).await);
    all
}

fn dropped(node: &Node) -> u64 {
    let stats = node.socket_stats();
    stats.stranger.load(Relaxed) + stats.bad_frame.load(Relaxed)
}

/// Sends `datagrams` to `node` from one stranger's socket, slowly enough that none is lost; the
/// bytes that come back.
async fn pester(node: &Node, datagrams: &[Vec<u8>]) -> usize {
    let socket = UdpSocket::bind(loopback()).expect("a socket");
    let to = node.local_addr().expect("an address");
    for some in datagrams.chunks(16) {
        let before = dropped(node);
        for datagram in some {
            socket.send_to(datagram, to).expect("sent");
        }
        let all = before + some.len() as u64;
        until("all are dropped and counted", || dropped(node) >= all).await;
    }
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let mut buffer = [0; 65_536];
    let mut received = 0;
    while let Ok((len, _)) = socket.recv_from(&mut buffer) {
        received += len;
    }
    received
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_no_answer_at_all_and_a_session_beside_them_goes_on() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    go_direct(&ours, &theirs).await;
    let junk = junk().await;
    for node in [&provider.node, &tenant.node] {
        assert_eq!(pester(node, &junk).await, 0, "bytes came back");
        works(&ours, &theirs).await;
    }
    // The control: who is no stranger is heard.
    assert!(theirs.path_bytes().direct_received > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_repeats_cuts_and_changes_frames_spoils_nothing() {
    let relay = start_relay().await;
    let wire = Wire::to(relay_addr(&relay)).await;
    let provider = Party::provider(wire.addr).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    let bad = Arc::new(AtomicU64::new(0));
    let (count, mut turn) = (bad.clone(), 0_usize);
    wire.meddle(Box::new(move |toward, bytes| {
        if toward != Toward::Node || bytes[0] != FrameType::Data as u8 {
            return vec![bytes.to_vec()];
        }
        turn += 1;
        let mut forged = bytes.to_vec();
        match turn % 4 {
            0 => forged.truncate(bytes.len() * (turn % 97) / 97),
            1 => forged[turn % (HEADER_LEN + 32).min(bytes.len())] ^= 1 << (turn % 8),
            2 => forged.push(0),
            _ => forged[5..11].copy_from_slice(&[0xFF; 6]),
        }
        count.fetch_add(u64::from(!forged.is_empty()) + 1, Relaxed);
        // The forged one before, the genuine one, and that once more.
        vec![forged, bytes.to_vec(), bytes.to_vec()]
    }));
    for _ in 0..12 {
        works(&ours, &theirs).await;
    }
    wire.mend();
    let stats = provider.node.socket_stats();
    let (bad, seen) =
        (bad.load(Relaxed), || stats.bad_frame.load(Relaxed) + stats.stranger.load(Relaxed));
    assert!(bad > 200, "only {bad} frames were forged");
    // A flipped first byte may make a packet of another kind of it, which quinn drops.
    until("nearly all are counted", || seen() >= bad - bad / 20).await;
    assert_eq!(ours.connection().stats().path.lost_packets, 0, "a genuine packet was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_that_were_copied_or_made_up_move_no_session_and_get_no_answer() {
    let relay = start_relay().await;
    let wire = Wire::to(relay_addr(&relay)).await;
    let provider = Party::provider(wire.addr).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (copies, mut seen) = mpsc::unbounded_channel();
    wire.meddle(Box::new(move |toward, bytes| {
        if toward == Toward::Node && bytes.get(HEADER_LEN) == Some(&frame::PROBE) {
            let _ = copies.send(bytes[HEADER_LEN..].to_vec());
        }
        vec![bytes.to_vec()]
    }));
    let (ours, theirs) = session(&tenant, &provider).await;
    // As long as one end alone permits it, the relay tells neither where the other is.
    theirs.set_direct_allowed(true);
    let genuine = soon("a probe", seen.recv()).await.expect("a copy");
    works(&ours, &theirs).await;
    let mut fakes = vec![genuine.clone(); 20];
    for bit in 0..genuine.len() * 8 {
        let mut changed = genuine.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fakes.push(changed);
    }
    fakes.retain(|f| f[0] == frame::PROBE);
    fakes.extend((0..genuine.len()).map(|len| genuine[..len].to_vec()).filter(|f| !f.is_empty()));
    assert_eq!(pester(&provider.node, &fakes).await, 0, "bytes came back");
    assert!(theirs.is_relayed());
    // The control: genuine ones make a direct path.
    allow_direct(&ours, &theirs);
    on_path(&theirs, PathKind::Direct).await;
    works(&ours, &theirs).await;
}

/// A client of a relay that is no node of ours.
struct Raw {
    send: quinn::SendStream,
    reader: MessageReader<control::Control>,
    _endpoint: quinn::Endpoint,
    _connection: quinn::Connection,
}

impl Raw {
    async fn connect(relay: RelayAddr) -> Self {
        let key = some_keypair();
        let endpoint = quinn::Endpoint::client(loopback()).expect("an endpoint");
        let crypto = client_config(&key, relay.peer, ALPN_RELAY).expect("TLS");
        let connecting = endpoint.connect_with(quinn::ClientConfig::new(crypto), relay.addr, "x");
        let connection = connecting.expect("an attempt").await.expect("a connection");
        let (send, receive) = connection.open_bi().await.expect("a stream");
        let reader = MessageReader::new(receive);
        let mut raw = Self { send, reader, _endpoint: endpoint, _connection: connection };
        let (versions, features) = (vec![VERSION], Vec::new());
        raw.say(Kind::Hello(control::Hello { versions, features, incarnation: 1 })).await;
        let Kind::Welcome(_) = raw.hear().await else { panic!("no welcome") };
        raw
    }

    async fn say(&mut self, kind: Kind) {
        let message = control::Control { kind: Some(kind) };
        send_message(&mut self.send, &message).await.expect("sent");
    }

    async fn hear(&mut self) -> Kind {
        let message = soon("a message", self.reader.next()).await.expect("no error");
        message.and_then(|m| m.kind).expect("a kind")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_knocks_that_nobody_can_open_are_refused_one_by_one() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    let mut raw = Raw::connect(relay_addr(&relay)).await;
    for request in 0..2000_u32 {
        let sealed = noise(request as usize % (SEALED_MAX + 1), u64::from(request)).into();
        let to = provider.node.id().to_bytes().into();
        let first = vec![initial(1, 1200, 7).into(); request as usize % 3];
        raw.say(Kind::Rendezvous(control::Rendezvous { request, to, sealed, first })).await;
        let Kind::FlowOpened(opened) = raw.hear().await else { panic!("not opened: {request}") };
        let Kind::CloseFlow(close) = raw.hear().await else { panic!("not refused: {request}") };
        assert_eq!((close.flow, close.code), (opened.flow, code::PROTOCOL));
    }
    works(&ours, &theirs).await;
    assert_eq!(relay.stats().flows.len(), 1, "no flow of theirs stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn well_formed_knocks_without_a_right_to_connect_leave_nothing_behind() {
    let relay = start_relay().await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let mut ticket = provider.ticket();
    for i in 0..200_u64 {
        ticket.invite = Invite::issue(&SECRET, 1 + i);
        let expired = soon("an answer", tenant.node.connect(&ticket, &tenant.link)).await;
        assert_eq!(expired.err(), Some(ConnectError::NotInvited));
    }
    until("no flow stands", || relay.stats().flows.is_empty()).await;
    let (ours, theirs) = session(&tenant, &provider).await;
    works(&ours, &theirs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_from_a_relays_address_gets_no_more_back_than_it_sent() {
    let relay = start_relay().await;
    let wire = Wire::to(relay_addr(&relay)).await;
    let provider = Party::provider(wire.addr).await;
    let (mut sent, before) = (0, wire.carried().1);
    for seed in 0..100 {
        for packet in [
            initial(1, 1200, seed),
            initial(0x1A2A_3A4A, 1200, seed),
            initial(0x1A2A_3A4A, 300, seed),
            [vec![0x43], noise(40, seed)].concat(),
            real_initial(ALPN_SESSION).await,
        ] {
            sent += packet.len() as u64;
            wire.inject(&packet).await;
        }
    }
    tokio::time::sleep(SILENCE).await;
    let back = wire.carried().1 - before;
    assert!(back < sent / 4, "{back} of {sent} bytes came back");
    provider.reserved().await;
    let incoming = tokio::time::timeout(SILENCE, provider.node.accept()).await;
    assert!(incoming.is_err(), "no session came to be");
}

fn fake_guest_node(relay: RelayAddr) -> (Node, sluice_transport::RelayLink) {
    let (node, _) = some_node(&some_keypair(), AcceptPolicy::Invited(SECRET));
    let (sender, mut events) = mpsc::channel(64);
    let link = node.link(relay, Some(sender));
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    (node, link)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_talks_nonsense_is_left_and_tried_again() {
    let relay = FakeRelay::start();
    let (node, link) = fake_guest_node(relay.addr);
    let too_long = u16::try_from(MESSAGE_MAX + 1).expect("small").to_be_bytes();
    let nonsense: Vec<Vec<u8>> = vec![
        too_long.to_vec(),
        [vec![0, 9], noise(9, 3)].concat(),
        vec![0, 3, 0x0A, 0xFF, 0xFF],
        sluice_proto::wire::prefixed(&control::Control {
            kind: Some(Kind::Welcome(control::Welcome::default())),
        })
        .to_vec(),
    ];
    for bytes in nonsense {
        let mut guest = relay.greet().await;
        let Some(Kind::Reserve(_)) = guest.hear().await else { panic!("no wish to reserve") };
        guest.write(&bytes).await;
        soon("the node leaves", guest.connection.closed()).await;
    }
    drop((link, node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_lies_about_flows_and_knocks_is_endured() {
    let relay = FakeRelay::start();
    let (node, _link) = fake_guest_node(relay.addr);
    let mut guest = relay.greet().await;
    let Some(Kind::Reserve(_)) = guest.hear().await else { panic!("no wish to reserve") };
    let to = node.local_addr().expect("an address");
    for i in 0..500_u32 {
        let sealed = noise(i as usize * 7 % 1500, i.into());
        let from =
            if i % 2 == 0 { some_keypair().public().to_peer_id().to_bytes() } else { noise(9, 1) };
        let first = vec![noise(i as usize * 5 % 800, i.into()).into(); i as usize % 4];
        let (from, sealed) = (from.into(), sealed.into());
        let knock = control::RendezvousIn { flow: i, from, sealed, first };
        guest.say(Kind::RendezvousIn(knock)).await;
        let Some(Kind::CloseFlow(close)) = guest.hear().await else { panic!("not refused: {i}") };
        assert_eq!((close.flow, close.code), (i, code::PROTOCOL));
        for kind in [
            Kind::FlowOpened(control::FlowOpened { request: i, flow: i, passed_on: true }),
            Kind::FlowRefused(control::FlowRefused { request: i, ..Default::default() }),
            Kind::Answer(control::RendezvousAnswer { flow: i, sealed: vec![1; 50].into() }),
            Kind::CloseFlow(control::CloseFlow { flow: i, code: code::RESTARTED }),
            Kind::Unpaid(control::Unpaid { flow: i, unpaid: true }),
        ] {
            guest.say(kind).await;
        }
        // Frames of flows that nobody opened: some are kept for a moment, in case a knock comes.
        for payload in [&[0x43; 1200][..], &[frame::PROBE; 65], &[0x80; 19], &[]] {
            let frame = guest.frame(FrameType::Data, FlowId(i), payload);
            relay.send(to, &frame);
        }
    }
    assert!(guest.is_silent().await);
    assert!(guest.connection.close_reason().is_none());
    let incoming = tokio::time::timeout(SILENCE, node.accept()).await;
    assert!(incoming.is_err(), "no session came to be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenge_is_echoed_once_to_the_byte_and_a_forged_one_never() {
    let relay = FakeRelay::start();
    let wire = Wire::to(relay.addr).await;
    let (node, _link) = fake_guest_node(wire.addr);
    let mut guest = relay.greet().await;
    let Some(Kind::Reserve(_)) = guest.hear().await else { panic!("no wish to reserve") };
    let (echoes, mut heard) = mpsc::unbounded_channel();
    wire.meddle(Box::new(move |toward, bytes| {
        if toward == Toward::Relay && frame::is_frame(bytes[0]) {
            let _ = echoes.send(bytes.to_vec());
        }
        vec![bytes.to_vec()]
    }));
    let own = FlowId(OWN_FLOW);
    let challenge = guest.frame(FrameType::Challenge, own, &[9; 8]);
    let mut forged = guest.frame(FrameType::Challenge, own, &[9; 8]);
    forged[20] ^= 1;
    let unasked = guest.frame(FrameType::ChallengeEcho, own, &[9; 8]);
    let before = dropped(&node);
    for datagram in [&forged, &unasked, &challenge, &challenge] {
        wire.inject(datagram).await;
    }
    until("three are dropped", || dropped(&node) >= before + 3).await;
    let echo = soon("the echo", heard.recv()).await.expect("a frame");
    assert_eq!((echo[0], &echo[HEADER_LEN..]), (FrameType::ChallengeEcho as u8, &[9; 8][..]));
    assert_eq!(dropped(&node), before + 3);
    assert!(heard.try_recv().is_err(), "one echo");
}
