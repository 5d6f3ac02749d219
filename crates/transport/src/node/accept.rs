//! Sessions that others open to this node.

use std::sync::Arc;

use sluice_proto::wire::code;
use sluice_proto::{Invited, PeerId};
use tokio::sync::{Semaphore, mpsc};

use super::{CONNECT_TIMEOUT, Inner};
use crate::epoch::PathEpoch;
use crate::payload::Watched;
use crate::peer::{Inputs, Peer, RelayedPath};
use crate::session::{self, Session};
use crate::tables::fake_index;
use crate::tls;

/// Handshakes of sessions that run at the same time.
const HANDSHAKES_MAX: usize = 128;

/// A session that was announced by a knock and has not begun.
pub(super) struct Expected {
    pub(super) peer_id: PeerId,
    pub(super) invited: Invited,
    pub(super) peer: Arc<Peer>,
    pub(super) inputs: Inputs,
    pub(super) path: RelayedPath,
    pub(super) epoch: Arc<PathEpoch>,
}

impl Expected {
    fn start(self, node: Arc<Inner>, connection: quinn::Connection) -> Session {
        let Self { peer_id, invited, peer, inputs, path, epoch } = self;
        let invited = Some(invited);
        Session::start(node, connection, peer_id, peer, inputs, path, epoch, None, invited)
    }
}

/// Accepts what knocks announced, until the endpoint closes.
pub(super) async fn accept_sessions(node: Arc<Inner>, sessions: mpsc::Sender<Session>) {
    let turns = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = node.endpoint.accept().await {
        let index = fake_index(&incoming.remote_address());
        let turn = turns.clone().try_acquire_owned();
        // Without a turn it stays expected: the Initial comes again.
        let expected = index.filter(|_| turn.is_ok()).and_then(|i| node.expected.lock().remove(&i));
        let (Some(expected), Ok(turn)) = (expected, turn) else {
            // No knock announced it: not even a refusal is sent.
            incoming.ignore();
            continue;
        };
        let node = node.clone();
        let sessions = sessions.clone();
        tokio::spawn(async move {
            match begin(&node, incoming, &expected).await {
                Some(connection) => {
                    let session = expected.start(node, connection);
                    let _ = sessions.send(session).await;
                }
                None => {
                    expected.path.close();
                    node.forget_session(&expected.peer);
                }
            }
            drop(turn);
        });
    }
}

async fn begin(
    node: &Arc<Inner>,
    incoming: quinn::Incoming,
    expected: &Expected,
) -> Option<quinn::Connection> {
    let (tls, lacking) = (node.server_crypto.clone(), expected.peer.lacking.clone());
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(Watched { tls, lacking }));
    config.transport_config(session::transport(
        &expected.epoch,
        node.idle_timeout,
        session::ACCEPT_WINDOW,
    ));
    // To quinn a session's peer never moves.
    config.migration(false);
    let connecting = incoming.accept_with(Arc::new(config)).ok()?;
    let deadline = node.clock.now() + CONNECT_TIMEOUT;
    let connection = tokio::select! {
        biased;
        done = connecting => done.ok()?,
        () = node.clock.sleep_until(deadline) => return None,
    };
    if tls::peer_of(&connection) != Some(expected.peer_id) {
        connection.close(code::PROTOCOL.into(), b"not who knocked");
        return None;
    }
    Some(connection)
}
