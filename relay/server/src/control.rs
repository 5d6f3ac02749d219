//! One control connection: from its handshake to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream};
use sluice_proto::PeerId;
use sluice_proto::frame::EXPORTER_LABEL;
use sluice_proto::wire::control::Control;
use sluice_proto::wire::{self, MESSAGE_MAX, code};
use sluice_relay_core::{LegId, ReturnAddress, StreamId};

use crate::shared::{Next, Outbox, Shared, close_code};

/// A handshake takes no longer.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A client opens its control stream within this time.
const STREAM_WITHIN: Duration = Duration::from_secs(5);
/// The last words before a close are given this long to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Takes every client that connects, until the endpoint closes.
pub(crate) async fn accept_all(endpoint: quinn::Endpoint, shared: Arc<Shared>, any_address: bool) {
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_address();
        let stream = StreamId::of(from.ip());
        // The address of a TCP connection is proven.
        if !incoming.remote_address_validated() && stream.is_none() {
            // No state, and a small answer, until the address is proven.
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "failed to answer with Retry");
            }
            continue;
        }
        let at = match stream {
            Some(id) => shared.streams.remote(id).map(|remote| id.return_address(remote)),
            None => {
                let local = incoming.local_ip().filter(|_| any_address);
                Some(ReturnAddress { remote: from, local })
            }
        };
        let Some(at) = at else {
            // The stream is gone.
            incoming.ignore();
            continue;
        };
        if !shared.drive(|admission, now| admission.may_connect(at.remote.ip(), now)) {
            incoming.refuse();
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Err(reason) = welcome(incoming, shared, at).await {
                tracing::debug!(from = %at.remote, reason, "a control connection ended");
            }
        });
    }
}

async fn welcome(
    incoming: Incoming,
    shared: Arc<Shared>,
    at: ReturnAddress,
) -> Result<(), &'static str> {
    let connecting = incoming.accept().map_err(|_| "refused")?;
    let connection = shared
        .desk
        .clock()
        .timeout(HANDSHAKE_WITHIN, connecting)
        .await
        .map_err(|_| "the handshake took too long")?
        .map_err(|_| "the handshake failed")?;
    let peer = peer_of(&connection).ok_or("no peer id in the certificate")?;
    let leg = shared.drive(|admission, _| admission.allot());
    let mut exported = [0; 32];
    connection
        .export_keying_material(&mut exported, EXPORTER_LABEL, &leg.0.to_be_bytes())
        .map_err(|_| "no keys could be exported")?;
    let outbox = Arc::new(Outbox::new(connection.clone()));
    shared.add_outbox(leg, outbox.clone());
    let admitted =
        shared.drive(|admission, now| admission.connected(leg, peer, at, &exported, now));
    let result = match admitted {
        Ok(()) => {
            tracing::debug!(%peer, leg = leg.0, from = %at.remote, "a client connected");
            let result = serve(&shared, leg, &connection, &outbox).await;
            let left =
                matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(_)));
            shared.drive(|admission, now| match left {
                true => admission.left(leg, now),
                false => admission.disconnected(leg, now),
            });
            result
        }
        Err(code) => {
            connection.close(close_code(code), b"not admitted");
            Err("not admitted")
        }
    };
    shared.remove_outbox(leg);
    shared.desk.forget(leg);
    result
}

fn peer_of(connection: &Connection) -> Option<PeerId> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    let certificate = libp2p_tls::certificate::parse(chain.first()?).ok()?;
    Some(certificate.peer_id())
}

async fn serve(
    shared: &Arc<Shared>,
    leg: LegId,
    connection: &Connection,
    outbox: &Outbox,
) -> Result<(), &'static str> {
    let (mut send, mut receive) = shared
        .desk
        .clock()
        .timeout(STREAM_WITHIN, connection.accept_bi())
        .await
        .map_err(|_| "no control stream was opened")?
        .map_err(|_| "the connection was lost")?;
    let mut partial = BytesMut::new();
    loop {
        while let Some(next) = outbox.next() {
            match next {
                Next::Write(bytes) => {
                    send.write_all(&bytes).await.map_err(|_| "failed to write")?;
                }
                Next::Close(code, reason) => {
                    last_words(shared, &mut send).await;
                    connection.close(close_code(code), reason.as_bytes());
                    return Err(reason);
                }
            }
        }
        tokio::select! {
            biased;
            () = outbox.ready() => {}
            chunk = next_chunk(&mut receive) => {
                let Some(chunk) = chunk? else { return Ok(()) };
                if let Err(reason) = messages(shared, leg, &mut partial, &chunk) {
                    connection.close(close_code(code::PROTOCOL), reason.as_bytes());
                    return Err(reason);
                }
            }
            datagram = connection.read_datagram() => {
                let datagram = datagram.map_err(|_| "the connection was lost")?;
                shared.pay_datagram(leg, datagram);
            }
        }
    }
}

async fn next_chunk(receive: &mut RecvStream) -> Result<Option<Bytes>, &'static str> {
    match receive.read_chunk(MESSAGE_MAX, true).await {
        Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
        Err(_) => Err("the connection was lost"),
    }
}

/// Takes the whole messages out of what has arrived; keeps the rest.
fn messages(
    shared: &Arc<Shared>,
    leg: LegId,
    partial: &mut BytesMut,
    chunk: &[u8],
) -> Result<(), &'static str> {
    partial.extend_from_slice(chunk);
    while partial.len() >= 2 {
        let len = usize::from(u16::from_be_bytes([partial[0], partial[1]]));
        if len > MESSAGE_MAX {
            return Err("a control message is too long");
        }
        if partial.len() < 2 + len {
            break;
        }
        partial.advance(2);
        let bytes = partial.split_to(len).freeze();
        let message: Control =
            wire::decode(bytes, MESSAGE_MAX).map_err(|_| "a control message is malformed")?;
        shared.drive(|admission, now| admission.handle_control(leg, message, now));
    }
    if partial.is_empty() {
        // An idle client keeps no buffer.
        *partial = BytesMut::new();
    }
    Ok(())
}

async fn last_words(shared: &Shared, send: &mut SendStream) {
    if send.finish().is_ok() {
        let _ = shared.desk.clock().timeout(LAST_WORDS, send.stopped()).await;
    }
}
