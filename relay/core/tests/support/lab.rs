//! A relay's core with clients around it, no sockets and no clock.

#![allow(
    dead_code,
    clippy::wildcard_enum_match_arm,
    reason = "a test's laboratory: each test uses its part, and anything unexpected fails it"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_proto::frame::{self, FrameKey, FrameType, HEADER_LEN, Header};
use sluice_proto::wire::control::{
    Control, Hello, Rendezvous, RendezvousAnswer, Reserve as ReserveMessage, ReserveOffer,
    control::Kind,
};
use sluice_proto::wire::{FEATURE_FIRST, pay};
use sluice_proto::{FlowId, Keypair, LeaseId, PeerId, VERSION};
use sluice_relay_core::{
    Action, Admission, Event, Forwarder, LegId, Limits, Output, RelayPort, Reserve, ReturnAddress,
};

/// What the forwarder gave out, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Out {
    Frames { to: SocketAddr, frames: Vec<Vec<u8>> },
    Quic(Vec<Vec<u8>>),
    Answer { to: SocketAddr, port: RelayPort, frame: Vec<u8> },
    Event(Event),
}

/// One client: its control connection and its keys.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) peer: PeerId,
    pub(crate) leg: LegId,
    pub(crate) addr: SocketAddr,
    pub(crate) own_flow: FlowId,
    pub(crate) counter: u64,
    to_relay: FrameKey,
    from_relay: FrameKey,
}

impl Client {
    pub(crate) fn frame(&mut self, kind: FrameType, flow: FlowId, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        out.extend_from_slice(payload);
        frame::seal(&mut out, Header { kind, flow, counter: self.counter }, &self.to_relay);
        self.counter += 1;
        out
    }

    pub(crate) fn data(&mut self, flow: FlowId, payload: &[u8]) -> Vec<u8> {
        self.frame(FrameType::Data, flow, payload)
    }

    /// Checks a frame of the relay; returns its header and payload.
    pub(crate) fn open(&self, bytes: &[u8]) -> (Header, Vec<u8>) {
        let header = frame::peek(bytes).expect("a header");
        frame::check(bytes, &self.from_relay).expect("the relay's tag");
        (header, bytes[HEADER_LEN..].to_vec())
    }
}

pub(crate) struct Lab {
    pub(crate) now: Instant,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) admission: Admission,
    clients: u8,
}

pub(crate) fn key(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).expect("32 bytes")
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let now = Instant::now();
        let forwarder = Arc::new(Forwarder::new([7; 16], now));
        let admission = Admission::new(forwarder.clone(), limits, 2, now);
        Self { now, forwarder, admission, clients: 0 }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((at, _)) = self.admission.poll_timeout().filter(|(at, _)| *at <= until) {
            self.now = self.now.max(at);
            self.admission.handle_timeout(self.now);
        }
        self.now = until;
        self.admission.handle_timeout(until);
    }

    pub(crate) fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.admission.poll_action()).collect()
    }

    /// The messages sent, in order, with the control connection of each.
    pub(crate) fn messages(&mut self) -> Vec<(LegId, Kind)> {
        self.actions()
            .into_iter()
            .filter_map(|action| match action {
                Action::Send { leg, message } => Some((leg, message.kind.expect("a kind"))),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn message(&mut self) -> (LegId, Kind) {
        let mut all = self.messages();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    pub(crate) fn say(&mut self, leg: LegId, kind: Kind) {
        self.admission.handle_control(leg, Control { kind: Some(kind) }, self.now);
    }

    /// A handshake without hello.
    pub(crate) fn connect(&mut self, peer: PeerId, addr: SocketAddr, exported: [u8; 32]) -> LegId {
        let leg = self.admission.allot();
        let at = ReturnAddress { remote: addr, local: None };
        self.admission.connected(leg, peer, at, &exported, self.now).expect("admitted");
        leg
    }

    pub(crate) fn client(&mut self) -> Client {
        self.clients += 1;
        let n = self.clients;
        let addr = address(&format!("192.0.2.{n}:1000"));
        self.client_as(key(n).public().to_peer_id(), addr, 1)
    }

    pub(crate) fn client_as(&mut self, peer: PeerId, addr: SocketAddr, incarnation: u64) -> Client {
        self.clients += 1;
        let exported = [self.clients; 32];
        let leg = self.connect(peer, addr, exported);
        let (versions, features) = (vec![VERSION], vec![FEATURE_FIRST.to_owned()]);
        self.say(leg, Kind::Hello(Hello { versions, features, incarnation }));
        let welcome = self
            .messages()
            .into_iter()
            .find_map(|(to, kind)| match kind {
                Kind::Welcome(welcome) if to == leg => Some(welcome),
                _ => None,
            })
            .expect("a welcome");
        assert_eq!(welcome.leg, leg.0);
        let (to_relay, from_relay) = FrameKey::pair(&exported);
        let own_flow = FlowId(welcome.own_flow);
        Client { peer, leg, addr, own_flow, counter: 0, to_relay, from_relay }
    }

    /// A client with a reservation; `room` as the owner would say it.
    pub(crate) fn holder(&mut self, room: Option<u64>) -> Client {
        let holder = self.client();
        self.reserve(&holder, room);
        holder
    }

    pub(crate) fn reserve(&mut self, holder: &Client, room: Option<u64>) {
        self.say(holder.leg, Kind::Reserve(ReserveMessage {}));
        assert!(matches!(self.actions()[..], [Action::Offer { .. }]));
        self.admission.offered(holder.leg, ReserveOffer::default());
        self.say(holder.leg, Kind::Accept(pay::Accept::default()));
        assert!(matches!(self.actions()[..], [Action::Send { .. }, Action::Accept { .. }]));
        let reserve = Reserve {
            lease: LeaseId([9; 32]),
            room,
            expires: self.now + Duration::from_secs(3600),
            expires_unix_s: 3600,
        };
        self.admission.reserved(holder.leg, reserve, self.now).expect("reserved");
        assert!(matches!(self.message(), (_, Kind::Reserved(_))));
    }

    pub(crate) fn rendezvous(&mut self, tenant: &Client, to: PeerId) {
        let sealed = Bytes::from_static(b"sealed");
        let (to, first) = (to.to_bytes().into(), Vec::new());
        self.say(tenant.leg, Kind::Rendezvous(Rendezvous { request: 1, to, sealed, first }));
    }

    /// Opens a provisional flow: the numbers at the tenant and at the holder.
    pub(crate) fn provisional(&mut self, tenant: &Client, holder: &Client) -> (FlowId, FlowId) {
        self.rendezvous(tenant, holder.peer);
        match &self.messages()[..] {
            [(a, Kind::FlowOpened(opened)), (b, Kind::RendezvousIn(inbound))] => {
                assert_eq!((*a, *b), (tenant.leg, holder.leg));
                (FlowId(opened.flow), FlowId(inbound.flow))
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn answer(&mut self, holder: &Client, flow: FlowId) {
        let sealed = Bytes::from_static(b"answer");
        self.say(holder.leg, Kind::Answer(RendezvousAnswer { flow: flow.0, sealed }));
    }

    /// Opens a flow that is answered.
    pub(crate) fn flow(&mut self, tenant: &Client, holder: &Client) -> (FlowId, FlowId) {
        let (at_tenant, at_holder) = self.provisional(tenant, holder);
        self.answer(holder, at_holder);
        match self.message() {
            (leg, Kind::Answer(answer)) => {
                assert_eq!((leg, answer.flow), (tenant.leg, at_tenant.0));
            }
            other => panic!("{other:?}"),
        }
        (at_tenant, at_holder)
    }

    /// Hands one batch to the forwarder.
    pub(crate) fn batch(&self, from: SocketAddr, batch: &[u8], stride: usize) -> Vec<Out> {
        let mut batch = batch.to_vec();
        let mut all = Vec::new();
        let from = ReturnAddress { remote: from, local: None };
        let cut = |bytes: &[u8], segment: usize| -> Vec<Vec<u8>> {
            bytes.chunks(segment).map(<[u8]>::to_vec).collect()
        };
        self.forwarder.forward(self.now, from, &mut batch, stride, &mut |output| {
            all.push(match output {
                Output::Frames { to, bytes, segment } => {
                    assert!(bytes.len() <= 65_000 && bytes.len().div_ceil(segment) <= 64);
                    Out::Frames { to: to.remote, frames: cut(bytes, segment) }
                }
                Output::Quic { bytes, segment } => Out::Quic(cut(bytes, segment)),
                Output::Answer { to, port, bytes } => {
                    Out::Answer { to: to.remote, port, frame: bytes.to_vec() }
                }
                Output::Event(event) => Out::Event(event),
            });
        });
        all
    }

    /// Hands one datagram of the alternate port to the forwarder.
    pub(crate) fn alternate(&self, from: SocketAddr, bytes: &[u8]) -> Vec<Out> {
        let mut all = Vec::new();
        let from = ReturnAddress { remote: from, local: None };
        let stride = bytes.len().max(1);
        self.forwarder.forward_alternate(
            self.now,
            from,
            bytes,
            stride,
            &mut |output| match output {
                Output::Answer { to, port, bytes } => {
                    all.push(Out::Answer { to: to.remote, port, frame: bytes.to_vec() });
                }
                other => panic!("{other:?}"),
            },
        );
        all
    }

    /// Hands one datagram to the forwarder.
    pub(crate) fn one(&self, from: SocketAddr, bytes: &[u8]) -> Vec<Out> {
        self.batch(from, bytes, bytes.len().max(1))
    }
}

/// All frames among what came out.
pub(crate) fn frames(out: &[Out]) -> Vec<Vec<u8>> {
    out.iter()
        .filter_map(|o| match o {
            Out::Frames { frames, .. } => Some(frames.clone()),
            Out::Quic(_) | Out::Answer { .. } | Out::Event(_) => None,
        })
        .flatten()
        .collect()
}
