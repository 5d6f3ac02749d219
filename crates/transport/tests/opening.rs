//! A session's first packets go with its knock.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/lab.rs"]
mod lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use fake::{FakeRelay, Guest};
use lab::{
    PATIENCE, Party, SECRET, SILENCE, Toward, Wire, relay_addr, session, some_keypair, some_node,
    soon, start_relay, works,
};
use sluice_proto::frame::{self, FrameType, HEADER_LEN};
use sluice_proto::wire::control::{self, control::Kind};
use sluice_proto::wire::{FIRST_PACKET_MAX, FIRST_PACKETS_MAX, code};
use sluice_proto::{FlowId, RelayAddr, Ticket};
use sluice_transport::{AcceptPolicy, ConnectError, Node, NoiseKeys, RelayLink};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinHandle;

/// Number of the flow at the tenant, as the relay of these tests gives it.
const AT_TENANT: u32 = 11;
/// The same at the provider.
const AT_PROVIDER: u32 = 12;

/// The payloads of data frames that a node sends to its relay over `wire`, with their flows.
fn tap(wire: &Wire) -> UnboundedReceiver<(FlowId, Vec<u8>)> {
    let (copies, seen) = mpsc::unbounded_channel();
    wire.meddle(Box::new(move |toward, bytes| {
        if toward == Toward::Relay && bytes[0] == FrameType::Data as u8 {
            let header = frame::peek(bytes).expect("a node's frame");
            let _ = copies.send((header.flow, bytes[HEADER_LEN..].to_vec()));
        }
        vec![bytes.to_vec()]
    }));
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_needs_no_frame_of_the_tenants_before_the_provider_has_answered() {
    let relay = start_relay().await;
    let wire = Wire::to(relay_addr(&relay)).await;
    let provider = Party::provider(relay_addr(&relay)).await;
    let tenant = Party::tenant(wire.addr).await;
    let early = Arc::new(AtomicU64::new(0));
    let (count, mut answered) = (early.clone(), false);
    wire.meddle(Box::new(move |toward, bytes| {
        let is_data = bytes[0] == FrameType::Data as u8;
        answered |= is_data && toward == Toward::Node;
        if is_data && !answered {
            count.fetch_add(1, Relaxed);
            return Vec::new();
        }
        vec![bytes.to_vec()]
    }));
    let (ours, theirs) = session(&tenant, &provider).await;
    assert_eq!(early.load(Relaxed), 0, "frames were sent, and lost");
    works(&ours, &theirs).await;
    assert_eq!(ours.connection().stats().path.lost_packets, 0);
}

/// A tenant and a provider at a relay that does what a test wants.
struct Scene {
    _relay: FakeRelay,
    wires: [Wire; 2],
    tenant: Node,
    tenant_link: RelayLink,
    at_tenant: Guest,
    provider: Node,
    noise: NoiseKeys,
    _provider_link: RelayLink,
    at_provider: Guest,
}

impl Scene {
    async fn new() -> Self {
        let relay = FakeRelay::start();
        let wires = [Wire::to(relay.addr).await, Wire::to(relay.addr).await];
        let (provider, noise) = some_node(&some_keypair(), AcceptPolicy::Invited(SECRET));
        let (sender, mut events) = mpsc::channel(64);
        let provider_link = provider.link(wires[1].addr, Some(sender));
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let mut at_provider = relay.greet().await;
        let Some(Kind::Reserve(_)) = at_provider.hear().await else { panic!("no wish to reserve") };
        let (tenant, _) = some_node(&some_keypair(), AcceptPolicy::Nobody);
        let tenant_link = tenant.link(wires[0].addr, None);
        let at_tenant = relay.greet().await;
        soon("the link", tenant_link.ready()).await.expect("up");
        Self {
            _relay: relay,
            wires,
            tenant,
            tenant_link,
            at_tenant,
            provider,
            noise,
            _provider_link: provider_link,
            at_provider,
        }
    }

    fn ticket(&self, relay: RelayAddr) -> Ticket {
        Ticket {
            peer: self.provider.id(),
            noise_key: self.noise.public(),
            relays: vec![relay],
            invite: sluice_proto::Invite::issue(&SECRET, 0),
            expires_unix_s: 0,
            services: Vec::new(),
        }
    }

    /// The tenant's wish to connect, as the relay hears it.
    async fn knock(&mut self) -> (JoinHandle<Option<ConnectError>>, control::Rendezvous) {
        let (tenant, link) = (self.tenant.clone(), self.tenant_link.clone());
        let ticket = self.ticket(link.relay());
        let connecting = tokio::spawn(async move { tenant.connect(&ticket, &link).await.err() });
        let Some(Kind::Rendezvous(knock)) = self.at_tenant.hear().await else {
            panic!("no knock");
        };
        (connecting, knock)
    }

    async fn hand_on(&mut self, knock: &control::Rendezvous, first: Vec<Bytes>) -> Option<Kind> {
        let from = self.tenant.id().to_bytes().into();
        let sealed = knock.sealed.clone();
        let inbound = control::RendezvousIn { flow: AT_PROVIDER, from, sealed, first };
        self.at_provider.say(Kind::RendezvousIn(inbound)).await;
        self.at_provider.hear().await
    }

    async fn open(&mut self, knock: &control::Rendezvous, passed_on: bool) {
        let (request, flow) = (knock.request, AT_TENANT);
        let opened = control::FlowOpened { request, flow, passed_on };
        self.at_tenant.say(Kind::FlowOpened(opened)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_packets_that_a_relay_does_not_hand_on_follow_as_frames() {
    let mut scene = Scene::new().await;
    let (_connecting, knock) = scene.knock().await;
    assert!((1..=FIRST_PACKETS_MAX).contains(&knock.first.len()), "{}", knock.first.len());
    let mut frames = tap(&scene.wires[0]);
    scene.open(&knock, false).await;
    for packet in &knock.first {
        let (flow, payload) = soon("a frame", frames.recv()).await.expect("a copy");
        assert_eq!(flow, FlowId(AT_TENANT));
        assert!(payload == packet[..], "another packet");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_packets_that_a_relay_hands_on_are_not_sent_twice() {
    let mut scene = Scene::new().await;
    let (_connecting, knock) = scene.knock().await;
    let mut frames = tap(&scene.wires[0]);
    scene.open(&knock, true).await;
    // A probe timeout later the client says it again, in other packets.
    let (flow, payload) = soon("a frame", frames.recv()).await.expect("a copy");
    assert_eq!(flow, FlowId(AT_TENANT));
    assert!(knock.first.iter().all(|packet| payload != packet[..]), "sent twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_knock_whose_first_packets_are_none_is_refused_whoever_knocks() {
    let mut scene = Scene::new().await;
    let too_large: Bytes = vec![0xC3; FIRST_PACKET_MAX + 1].into();
    let small: Bytes = vec![0xC3; 40].into();
    let bad = [
        vec![small.clone(); FIRST_PACKETS_MAX + 1],
        vec![too_large],
        vec![small.clone(), Bytes::new()],
        vec![small.clone(), vec![FrameType::Data as u8; 60].into()],
        vec![vec![frame::PROBE; 65].into()],
    ];
    for first in bad {
        let (connecting, knock) = scene.knock().await;
        let Some(Kind::CloseFlow(close)) = scene.hand_on(&knock, first).await else {
            panic!("not refused");
        };
        assert_eq!((close.flow, close.code), (AT_PROVIDER, code::PROTOCOL));
        scene.open(&knock, true).await;
        let close = control::CloseFlow { flow: AT_TENANT, code: close.code };
        scene.at_tenant.say(Kind::CloseFlow(close)).await;
        let error = soon("an end", connecting).await.expect("no panic");
        assert!(matches!(error, Some(ConnectError::Failed(_))), "{error:?}");
    }
    // Junk that may be QUIC is quinn's to drop: nothing answers it.
    let mut frames = tap(&scene.wires[1]);
    let (_connecting, knock) = scene.knock().await;
    let Some(Kind::Answer(_)) = scene.hand_on(&knock, vec![small]).await else { panic!("refused") };
    assert!(tokio::time::timeout(SILENCE, frames.recv()).await.is_err(), "junk was answered");
    // The control: genuine ones are answered on the flow, though no frame ever came over it.
    let (_connecting, knock) = scene.knock().await;
    let first = knock.first.clone();
    let Some(Kind::Answer(_)) = scene.hand_on(&knock, first).await else { panic!("refused") };
    let (flow, _) =
        tokio::time::timeout(PATIENCE, frames.recv()).await.expect("soon").expect("a frame");
    assert_eq!(flow, FlowId(AT_PROVIDER));
}
