//! A peer of the DHT that lies: with a swarm of its own that checks nothing.

use std::time::Duration;

use libp2p::futures::StreamExt;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, Quorum, Record as KadRecord, RecordKey};
use libp2p::{Multiaddr, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use sluice_mesh::{FindError, MeshEvent, record_key};
use sluice_proto::{PeerId, Record, SignedRecord};

use crate::rig::{Node, key, peer, public, start, until};

fn now_s() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
    now.expect("it is after 1970").as_secs()
}

/// A record of `seed` with this number, in seconds from now, and life.
fn record(seed: u8, number: i64, life_s: i64, noise: u8) -> SignedRecord {
    let number_s = now_s().checked_add_signed(number).expect("a time");
    let record = Record {
        peer: peer(seed),
        sequence: number_s * 1000,
        expires_unix_s: now_s().checked_add_signed(life_s).expect("a time"),
        noise_key: [noise; 32],
        mesh: Vec::new(),
        provider: None,
        relay: None,
    };
    SignedRecord::sign(&record, &key(seed)).expect("a record")
}

/// Puts whatever it likes at its victim.
struct Liar(Swarm<kad::Behaviour<MemoryStore>>);

impl Liar {
    fn new(seed: u8) -> Self {
        let swarm = SwarmBuilder::with_existing_identity(key(seed))
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("TCP")
            .with_behaviour(|key| {
                let own = key.public().to_peer_id();
                let config = kad::Config::new(StreamProtocol::new("/sluice/kad/1"));
                kad::Behaviour::with_config(own, MemoryStore::new(own), config)
            })
            .expect("a behaviour")
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(60)))
            .build();
        Self(swarm)
    }

    /// Puts `value` under the key of `of`; whether the victim says that it has it.
    async fn put(&mut self, victim: PeerId, address: &Multiaddr, of: PeerId, value: Vec<u8>) {
        let kad = self.0.behaviour_mut();
        kad.add_address(&victim, address.clone());
        let record = KadRecord::new(RecordKey::from(record_key(&of)), value);
        let query = kad.put_record_to(record, [victim].into_iter(), Quorum::One);
        loop {
            let event = self.0.select_next_some().await;
            if let Ok(kad::Event::OutboundQueryProgressed { id, .. }) =
                event.try_into_behaviour_event()
                && id == query
            {
                return;
            }
        }
    }
}

async fn victim(seed: u8) -> (Node, Multiaddr) {
    let node = start(public(seed), &[]);
    let addresses = node.addresses().await;
    let tcp = addresses.into_iter().find(|a| a.to_string().contains("/tcp/"));
    (node, tcp.expect("it listens on TCP"))
}

async fn held(node: &Node, of: u8) -> Option<SignedRecord> {
    node.mesh.known().await.into_iter().find(|r| r.record().peer == peer(of))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_do_not_count_are_refused_and_counted() {
    let (mut node, address) = victim(1).await;
    let mut liar = Liar::new(50);
    let me = node.mesh.peer();
    let genuine = record(9, -10, 600, 1);
    // The control: a genuine record is taken from anyone.
    liar.put(me, &address, peer(9), genuine.encode().to_vec()).await;
    until(async || held(&node, 9).await).await;
    let mut forged = record(9, 0, 600, 2).encode().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    liar.put(me, &address, peer(9), forged).await;
    liar.put(me, &address, peer(9), b"rubbish".to_vec()).await;
    liar.put(me, &address, peer(8), genuine.encode().to_vec()).await;
    liar.put(me, &address, peer(9), record(9, 0, -5, 3).encode().to_vec()).await;
    liar.put(me, &address, peer(9), record(9, 3600, 600, 4).encode().to_vec()).await;
    liar.put(me, &address, peer(9), record(9, 0, 100 * 3600, 5).encode().to_vec()).await;
    liar.put(me, &address, peer(9), record(9, -20, 600, 6).encode().to_vec()).await;
    let counts = until(async || {
        let counts = node.status().await.counts;
        (counts.records_invalid == 3 && counts.records_untimely == 3 && counts.records_older == 1)
            .then_some(counts)
    });
    let counts = counts.await;
    assert_eq!((counts.records_taken, counts.equivocations), (1, 0));
    assert_eq!(held(&node, 9).await, Some(genuine.clone()));
    // Another record of the same number contradicts it: neither counts any more.
    let number = i64::try_from(genuine.record().sequence / 1000).expect("a time");
    let ago = number - i64::try_from(now_s()).expect("a time");
    liar.put(me, &address, peer(9), record(9, ago, 600, 7).encode().to_vec()).await;
    let (liar_of, evidence) = node
        .event(|event| match event {
            MeshEvent::Equivocation { peer, evidence } => Some((peer, evidence)),
            MeshEvent::Gossip(_)
            | MeshEvent::Request(_)
            | MeshEvent::Published(_)
            | MeshEvent::Listener { .. } => None,
        })
        .await;
    assert_eq!((liar_of, evidence.proves()), (peer(9), Some(peer(9))));
    assert_eq!(held(&node, 9).await, None);
    assert_eq!(node.mesh.find(peer(9)).await, Err(FindError::NotFound(peer(9))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_brings_rubbish_again_and_again_is_shut_out() {
    let (node, address) = victim(1).await;
    let mut liar = Liar::new(50);
    for n in 0..8 {
        liar.put(node.mesh.peer(), &address, peer(9), vec![n; 40]).await;
    }
    until(async || (node.status().await.counts.peers_blocked == 1).then_some(())).await;
    until(async || (node.status().await.peers == 0).then_some(())).await;
    assert_eq!(node.status().await.counts.records_invalid, 8);
}
