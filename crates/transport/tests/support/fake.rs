//! A relay that says and sends whatever a test wants.

#![allow(dead_code, clippy::unwrap_used, reason = "anything unexpected fails the test")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use sluice_proto::frame::{self, FrameKey, FrameType, HEADER_LEN, Header};
use sluice_proto::wire::control::{Control, Welcome, control::Kind};
use sluice_proto::wire::{FEATURE_GRANTED, encode_addr};
use sluice_proto::{ALPN_RELAY, FlowId, RelayAddr, VERSION};
use sluice_transport::{MessageReader, export, send_message, server_config};

use crate::lab::{PATIENCE, SILENCE, loopback, some_keypair, soon};

/// The number of the node's own flow.
pub(crate) const OWN_FLOW: u32 = 77;
const LEG: u64 = 5;

pub(crate) struct FakeRelay {
    pub(crate) addr: RelayAddr,
    pub(crate) raw: UdpSocket,
    endpoint: quinn::Endpoint,
}

/// A control connection that a node made, greeted.
pub(crate) struct Guest {
    pub(crate) connection: quinn::Connection,
    pub(crate) reader: MessageReader<Control>,
    pub(crate) at: SocketAddr,
    send: quinn::SendStream,
    to_node: FrameKey,
    counter: u64,
}

impl FakeRelay {
    pub(crate) fn start() -> Self {
        let key = some_keypair();
        let raw = UdpSocket::bind(loopback()).unwrap();
        let config = quinn::ServerConfig::with_crypto(server_config(&key, ALPN_RELAY).unwrap());
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            Some(config),
            raw.try_clone().unwrap(),
            Arc::new(quinn::TokioRuntime),
        )
        .unwrap();
        let addr = RelayAddr::new(key.public().to_peer_id(), raw.local_addr().unwrap());
        Self { addr, raw, endpoint }
    }

    /// The next node that comes, after hello and welcome.
    pub(crate) async fn greet(&self) -> Guest {
        let connection = soon("a node", self.endpoint.accept()).await.unwrap().await.unwrap();
        let (send, receive) = soon("a stream", connection.accept_bi()).await.unwrap();
        let mut guest = Guest {
            at: connection.remote_address(),
            to_node: {
                let exported = export(&connection, frame::EXPORTER_LABEL, &LEG.to_be_bytes());
                FrameKey::pair(&exported).1
            },
            connection,
            reader: MessageReader::new(receive),
            send,
            counter: 0,
        };
        let Some(Kind::Hello(_)) = guest.hear().await else { panic!("no hello") };
        let welcome = Welcome {
            version: VERSION,
            features: vec![FEATURE_GRANTED.to_owned()],
            leg: LEG,
            observed: encode_addr(guest.at),
            own_flow: OWN_FLOW,
            keepalive_s: 60,
            alternate_port: 0,
        };
        guest.say(Kind::Welcome(welcome)).await;
        guest
    }

    /// Sends from the relay's address.
    pub(crate) fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.raw.send_to(datagram, to).unwrap();
    }
}

impl Guest {
    pub(crate) async fn say(&mut self, kind: Kind) {
        send_message(&mut self.send, &Control { kind: Some(kind) }).await.unwrap();
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    /// The next message, or none if the node closes.
    pub(crate) async fn hear(&mut self) -> Option<Kind> {
        let next = tokio::time::timeout(PATIENCE, self.reader.next()).await.expect("in time");
        next.ok().flatten().and_then(|c| c.kind)
    }

    /// Whether the node says nothing for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(SILENCE, self.reader.next()).await.is_err()
    }

    /// A frame with the right tag and the next counter.
    pub(crate) fn frame(&mut self, kind: FrameType, flow: FlowId, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        out.extend_from_slice(payload);
        let header = Header { kind, flow, counter: self.counter };
        self.counter += 1;
        frame::seal(&mut out, header, &self.to_node);
        out
    }
}
