//! Nodes on loopback, and patience.

use std::future::Future;
use std::time::Duration;

use sluice_mesh::{Mesh, MeshConfig, MeshEvent, MeshEvents, MeshStatus, Multiaddr, OwnRecord};
use sluice_proto::{Keypair, PeerId};

/// Nothing here takes as long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node, and its events.
pub(crate) struct Node {
    pub(crate) mesh: Mesh,
    pub(crate) events: MeshEvents,
}

/// A key of its own for each number.
pub(crate) fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("a key")
}

pub(crate) fn peer(seed: u8) -> PeerId {
    key(seed).public().to_peer_id()
}

/// Reached where it listens, over QUIC and TCP on loopback.
pub(crate) fn public(seed: u8) -> MeshConfig {
    MeshConfig { public: true, ..hidden(seed) }
}

/// Not known to be reached: a client of the DHT until AutoNAT says otherwise.
pub(crate) fn hidden(seed: u8) -> MeshConfig {
    let listen = ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"];
    MeshConfig {
        listen: listen.map(|a| a.parse().expect("an address")).to_vec(),
        private: true,
        ..MeshConfig::new(key(seed))
    }
}

/// Starts a node that begins with these addresses.
pub(crate) fn start(config: MeshConfig, bootstrap: &[Multiaddr]) -> Node {
    let config = MeshConfig { bootstrap: bootstrap.to_vec(), ..config };
    let (mesh, events) = Mesh::start(config).expect("it listens on loopback");
    Node { mesh, events }
}

impl Node {
    pub(crate) async fn status(&self) -> MeshStatus {
        self.mesh.status().await.expect("it runs")
    }

    /// Where it listens, with its id.
    pub(crate) async fn addresses(&self) -> Vec<Multiaddr> {
        let listening = until(async || {
            let listening = self.status().await.listening;
            (listening.len() >= 2).then_some(listening)
        });
        let with_id = |a: Multiaddr| a.with_p2p(self.mesh.peer()).expect("an address");
        listening.await.into_iter().map(with_id).collect()
    }

    /// Waits until it has so many peers.
    pub(crate) async fn meets(&self, peers: usize) {
        until(async || (self.status().await.peers >= peers).then_some(())).await;
    }

    /// The next event that `pick` wants.
    pub(crate) async fn event<T>(&mut self, mut pick: impl FnMut(MeshEvent) -> Option<T>) -> T {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let event = self.events.next().await.expect("the mesh runs");
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
        });
        waited.await.expect("the event comes in time")
    }
}

/// What a node says of itself here.
pub(crate) fn content(noise: u8) -> OwnRecord {
    OwnRecord {
        noise_key: [noise; 32],
        provider: None,
        relay: None,
        life: Duration::from_secs(3600),
    }
}

/// Asks again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let asked = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    asked.await.expect("it comes about in time")
}
