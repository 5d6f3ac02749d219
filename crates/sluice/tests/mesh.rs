//! The mesh of roles, with real swarms on loopback.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sluice::roles::{Identity, MeshOptions, Meshed};
use sluice::state::State;
use sluice_mesh::{Multiaddr, Verdict};
use sluice_proto::ask::{Answer, Ask, AskRefusal, orders_topic};
use sluice_proto::market::Region;
use sluice_proto::record::{ProviderEntry, RelayEntry};
use sluice_proto::{Price, RelayAddr};
use tempfile::TempDir;

/// Nothing here takes as long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A role's directory and its mesh.
struct Role {
    dir: TempDir,
    state: State,
    mesh: Meshed,
}

impl Role {
    async fn start(options: MeshOptions) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        Self::start_in(dir, options).await
    }

    async fn start_in(dir: TempDir, options: MeshOptions) -> Self {
        let state = State::open(dir.path(), "provide").expect("a state directory");
        let identity = Identity::from_state(&state);
        let mesh = Meshed::start(&identity, options, Some(dir.path())).await.expect("it starts");
        Self { dir, state, mesh }
    }

    /// One that is reached where it listens, and carries circuits.
    async fn relay(bootstrap: &[Multiaddr]) -> Self {
        Self::start(MeshOptions { public: true, relay: true, ..hidden(bootstrap) }).await
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn publish_relay(&self, port: u16) {
        let addresses = vec![RelayAddr::new(self.mesh.peer(), ([127, 0, 0, 1], port).into())];
        let entry = RelayEntry { addresses, price: Price { up: 5, down: 7 } };
        self.mesh.publish(None, Some(entry)).await.expect("it is within its bounds");
    }
}

/// One that nobody says can be reached.
fn hidden(bootstrap: &[Multiaddr]) -> MeshOptions {
    let listen = ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"];
    MeshOptions {
        listen: listen.map(|a| a.parse().expect("an address")).to_vec(),
        bootstrap: bootstrap.to_vec(),
        private: true,
        ..MeshOptions::default()
    }
}

async fn until<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_record_gets_a_number_that_is_on_disk_and_a_restart_goes_on_from_there() {
    let relay = Role::relay(&[]).await;
    let bootstrap = relay.mesh.addresses().await;
    let provider = Role::start(hidden(&bootstrap)).await;
    provider.mesh.publish(Some(ProviderEntry::default()), None).await.expect("it is published");
    let peer = provider.mesh.peer();
    let found = until(async || relay.mesh.mesh().find(peer).await.ok()).await;
    let first = found.record().sequence;
    let kept = State::mesh_sequence(provider.path()).expect("it can be read");
    assert!(kept >= first, "{first} is out, and {kept} on disk");

    // Its clock goes back a year: what was kept still counts.
    let ahead = kept + 60_000;
    State::keep_mesh_sequence(provider.path(), ahead).expect("it can be written");
    let Role { dir, state, mesh } = provider;
    mesh.remember().await;
    drop((state, mesh));
    let again = until(async || State::open(dir.path(), "provide").ok()).await;
    drop(again);
    // It remembers whom it met: nobody tells it where to begin.
    let provider = Role::start_in(dir, hidden(&[])).await;
    provider.mesh.publish(Some(ProviderEntry::default()), None).await.expect("it is published");
    let newer = until(async || {
        let found = relay.mesh.mesh().find(peer).await.ok()?;
        (found.record().sequence > first).then(|| found.record().sequence)
    });
    assert!(newer.await > ahead);
}

#[tokio::test(flavor = "multi_thread")]
async fn bids_and_awards_go_to_their_taker_and_what_nobody_takes_is_refused() {
    let relay = Role::relay(&[]).await;
    let tenant = Role::start(hidden(&relay.mesh.addresses().await)).await;
    let to = relay.mesh.peer();
    until(async || (!tenant.mesh.mesh().peers().await.is_empty()).then_some(())).await;
    let bid = Ask::Bid(Bytes::from_static(b"sealed"));
    let refused = tenant.mesh.ask(to, &bid).await.expect_err("nobody takes bids there");
    assert_eq!(refused, AskRefusal::Busy.into());
    let rubbish = tenant.mesh.mesh().request(to, Bytes::from_static(&[0xFF; 9])).await;
    let answer = Answer::parse(rubbish.expect("it is answered")).expect("an answer");
    assert_eq!(answer, Answer::Refused(AskRefusal::Malformed));

    let mut asked = relay.mesh.on_ask();
    let taker = tokio::spawn(async move {
        let one = asked.recv().await.expect("it comes");
        assert_eq!(one.ask, Ask::Bid(Bytes::from_static(b"sealed")));
        let peer = one.peer;
        one.answer(&Answer::BidTaken).await;
        peer
    });
    assert_eq!(tenant.mesh.ask(to, &bid).await, Ok(Answer::BidTaken));
    assert_eq!(taker.await.expect("it ends"), tenant.mesh.peer());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_on_a_topic_is_heard_by_its_listener() {
    let relay = Role::relay(&[]).await;
    let tenant = Role::start(hidden(&relay.mesh.addresses().await)).await;
    let topic = orders_topic(&Region::parse("eu").expect("a region"));
    let mut heard = relay.mesh.on_gossip(&topic).await.expect("there is room");
    until(async || tenant.mesh.mesh().gossip(&topic, Bytes::from_static(b"an order")).await.ok())
        .await;
    let message = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time");
    let message = message.expect("it is heard");
    assert_eq!((message.source, &message.bytes[..]), (tenant.mesh.peer(), &b"an order"[..]));
    relay.mesh.mesh().judge(&message, Verdict::Accept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_are_heard_of_by_gossip_and_by_asking() {
    let (first, second) = (Role::relay(&[]).await, Role::relay(&[]).await);
    first.publish_relay(4433).await;
    for address in first.mesh.addresses().await {
        second.mesh.mesh().dial(address).await;
    }
    second.publish_relay(4435).await;
    // It knows one of them, which knows the other by gossip.
    let late = Role::start(hidden(&first.mesh.addresses().await)).await;
    let mut both = vec![first.mesh.peer(), second.mesh.peer()];
    both.sort();
    let known = until(async || {
        let mut known: Vec<_> = late.mesh.relays().iter().map(|relay| relay.peer).collect();
        known.sort();
        (known == both).then(|| late.mesh.relays())
    });
    for relay in known.await {
        assert_eq!((relay.address.peer, relay.price), (relay.peer, Price { up: 5, down: 7 }));
    }
}
