//! A client of a relay, as small as can be: control messages over quinn on one socket, frames by
//! hand on another (which the relay allows once a challenge was echoed there).

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test's client: each test uses its part, and anything unexpected fails it"
)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use sluice_proto::eth::keccak256;
use sluice_proto::frame::{self, FrameKey, FrameType, HEADER_LEN, Header};
use sluice_proto::wire::control::{
    Control, Hello, Rendezvous, RendezvousAnswer, ReserveOffer, Welcome, control::Kind,
};
use sluice_proto::wire::{self, MESSAGE_MAX, pay};
use sluice_proto::{ALPN_RELAY, FlowId, Keypair, PeerId, Topic, VERSION, sign};
use sluice_relay::Relay;

/// Longest wait for something that must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Wait for something that must not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{what}: in vain"));
}

/// A node key that no other call in this process gave.
pub(crate) fn some_keypair() -> Keypair {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0x5A; 32];
    bytes[..8].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    Keypair::ed25519_from_bytes(bytes).expect("32 bytes")
}

pub(crate) fn client_config(keypair: &Keypair, relay: PeerId) -> ClientConfig {
    let mut tls = libp2p_tls::make_client_config(keypair, Some(relay)).expect("a certificate");
    tls.alpn_protocols = vec![ALPN_RELAY.to_vec()];
    tls.key_log = Arc::new(rustls::NoKeyLog);
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
    ClientConfig::new(Arc::new(crypto))
}

pub(crate) struct Client {
    pub(crate) keypair: Keypair,
    pub(crate) connection: Connection,
    pub(crate) welcome: Welcome,
    pub(crate) udp: UdpSocket,
    send: SendStream,
    receive: RecvStream,
    to_relay: FrameKey,
    from_relay: FrameKey,
    counter: u64,
    relay: SocketAddr,
    _endpoint: Endpoint,
}

impl Client {
    pub(crate) async fn connect(relay: &Relay) -> Self {
        Self::connect_as(relay, some_keypair(), 1).await
    }

    pub(crate) async fn connect_as(relay: &Relay, keypair: Keypair, incarnation: u64) -> Self {
        Self::connect_at(relay, relay.local_addr(), keypair, incarnation).await
    }

    /// Connects to a relay that answers at another address too.
    pub(crate) async fn connect_at(
        relay: &Relay,
        at: SocketAddr,
        keypair: Keypair,
        incarnation: u64,
    ) -> Self {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = client_config(&keypair, relay.peer());
        let connection = endpoint
            .connect_with(config, at, "relay")
            .unwrap()
            .await
            .expect("the relay takes the connection");
        let (send, receive) = connection.open_bi().await.unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            keypair,
            welcome: Welcome::default(),
            udp,
            send,
            receive,
            to_relay: FrameKey::new(&[0; 16]),
            from_relay: FrameKey::new(&[0; 16]),
            counter: 0,
            relay: at,
            connection,
            _endpoint: endpoint,
        };
        let versions = vec![VERSION];
        client.say(Kind::Hello(Hello { versions, features: Vec::new(), incarnation })).await;
        let Kind::Welcome(welcome) = client.hear().await else { panic!("no welcome") };
        let mut exported = [0; 32];
        client
            .connection
            .export_keying_material(
                &mut exported,
                frame::EXPORTER_LABEL,
                &welcome.leg.to_be_bytes(),
            )
            .unwrap();
        (client.to_relay, client.from_relay) = FrameKey::pair(&exported);
        client.welcome = welcome;
        client
    }

    /// Connects, and moves the leg to the socket of its frames.
    pub(crate) async fn settled(relay: &Relay) -> Self {
        let mut client = Self::connect(relay).await;
        client.settle();
        client
    }

    /// Sends a keepalive from the frames' socket, echoes the challenge, and hears the answer.
    pub(crate) fn settle(&mut self) {
        let own = FlowId(self.welcome.own_flow);
        self.send_frame(FrameType::Keepalive, own, &[0; 18]);
        let (header, nonce) = self.receive_frame();
        assert_eq!((header.kind, header.flow), (FrameType::Challenge, own));
        self.send_frame(FrameType::ChallengeEcho, own, &nonce);
        self.send_frame(FrameType::Keepalive, own, &[0; 18]);
        let (header, _) = self.receive_frame();
        assert_eq!(header.kind, FrameType::KeepaliveAck);
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    pub(crate) async fn say(&mut self, kind: Kind) {
        let message = wire::prefixed(&Control { kind: Some(kind) });
        self.send.write_all(&message).await.unwrap();
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> Kind {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("a message").expect("no close")
    }

    /// The next message, or none if the relay closes.
    pub(crate) async fn read(&mut self) -> Option<Kind> {
        let mut len = [0; 2];
        self.receive.read_exact(&mut len).await.ok()?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
        self.receive.read_exact(&mut message).await.ok()?;
        let control: Control = wire::decode(Bytes::from(message), MESSAGE_MAX).unwrap();
        control.kind
    }

    pub(crate) async fn ask_terms(&mut self) -> ReserveOffer {
        self.say(Kind::Reserve(Default::default())).await;
        match self.hear().await {
            Kind::Offer(offer) => offer,
            other => panic!("no offer but {other:?}"),
        }
    }

    pub(crate) fn acceptance(&self, offer: &ReserveOffer) -> pay::Accept {
        let hash = keccak256(&offer.terms.as_ref().expect("terms").terms);
        pay::Accept {
            terms_hash: Bytes::copy_from_slice(&hash),
            signature: sign(&self.keypair, Topic::Accept, &hash).into(),
            channel: None,
            newest: None,
        }
    }

    pub(crate) async fn reserve(&mut self) {
        let offer = self.ask_terms().await;
        let accept = self.acceptance(&offer);
        if let Err(refusal) = self.accept(accept).await {
            panic!("not reserved but {refusal:?}");
        }
    }

    pub(crate) async fn accept(&mut self, accept: pay::Accept) -> Result<(), pay::Refusal> {
        self.say(Kind::Accept(accept)).await;
        match self.hear().await {
            Kind::Reserved(_) => Ok(()),
            Kind::Refusal(refusal) => Err(refusal),
            other => panic!("neither reserved nor refused but {other:?}"),
        }
    }

    pub(crate) async fn rendezvous(&mut self, to: PeerId, request: u32) {
        let sealed = Bytes::from_static(b"sealed");
        let to = to.to_bytes().into();
        self.say(Kind::Rendezvous(Rendezvous { request, to, sealed, first: Vec::new() })).await;
    }

    /// Opens a flow to `holder`, which answers: the numbers at the tenant and at the holder.
    pub(crate) async fn open_flow(&mut self, holder: &mut Self) -> (FlowId, FlowId) {
        self.rendezvous(holder.peer(), 7).await;
        let Kind::FlowOpened(opened) = self.hear().await else { panic!("not opened") };
        let Kind::RendezvousIn(inbound) = holder.hear().await else { panic!("not told") };
        assert_eq!(inbound.from, self.peer().to_bytes());
        let sealed = Bytes::from_static(b"answer");
        holder.say(Kind::Answer(RendezvousAnswer { flow: inbound.flow, sealed })).await;
        let Kind::Answer(answer) = self.hear().await else { panic!("not answered") };
        assert_eq!((opened.request, answer.flow), (7, opened.flow));
        (FlowId(opened.flow), FlowId(inbound.flow))
    }

    pub(crate) fn sealed(&mut self, kind: FrameType, flow: FlowId, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADER_LEN];
        frame.extend_from_slice(payload);
        let header = Header { kind, flow, counter: self.counter };
        self.counter += 1;
        frame::seal(&mut frame, header, &self.to_relay);
        frame
    }

    pub(crate) fn send_frame(&mut self, kind: FrameType, flow: FlowId, payload: &[u8]) {
        let frame = self.sealed(kind, flow, payload);
        self.send_raw(&frame);
    }

    pub(crate) fn send_data(&mut self, flow: FlowId, payload: &[u8]) {
        self.send_frame(FrameType::Data, flow, payload);
    }

    /// Speaks with the relay at another of its addresses from now on.
    pub(crate) fn turn_to(&mut self, relay: SocketAddr) {
        self.relay = relay;
    }

    pub(crate) fn send_raw(&self, bytes: &[u8]) {
        self.udp.send_to(bytes, self.relay).unwrap();
    }

    /// The next frame, whose tag is right.
    pub(crate) fn receive_frame(&self) -> (Header, Vec<u8>) {
        let mut buffer = [0; 2048];
        let (len, from) = self.udp.recv_from(&mut buffer).expect("a frame");
        assert_eq!(from, self.relay);
        let header = frame::peek(&buffer[..len]).unwrap();
        frame::check(&buffer[..len], &self.from_relay).unwrap();
        (header, buffer[HEADER_LEN..len].to_vec())
    }

    /// The next data frame, whatever else arrives.
    pub(crate) fn receive_data(&self) -> (FlowId, Vec<u8>) {
        loop {
            let (header, payload) = self.receive_frame();
            if header.kind == FrameType::Data {
                return (header.flow, payload);
            }
        }
    }

    /// Asserts that no data frame comes for a while.
    pub(crate) fn expect_silence(&self) {
        self.udp.set_read_timeout(Some(SILENCE)).unwrap();
        let mut buffer = [0; 2048];
        while let Ok((len, _)) = self.udp.recv_from(&mut buffer) {
            let header = frame::peek(&buffer[..len]).unwrap();
            assert_ne!(header.kind, FrameType::Data, "a data frame of {len} bytes");
        }
        self.udp.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}
