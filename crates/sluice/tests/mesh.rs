//! The mesh of roles, with real swarms on loopback.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sluice::roles::{Identity, MeshOptions, Meshed};
use sluice::state::State;
use sluice_market::{Moment, Tenant, TenantPolicy, TenantTransmit, Want};
use sluice_mesh::{Multiaddr, Verdict};
use sluice_proto::ask::{Answer, Ask, AskRefusal, orders_topic, relays_topic};
use sluice_proto::market::{DirectPolicy, Region, ServiceKind, ServiceOffer};
use sluice_proto::record::{ProviderEntry, RelayEntry};
use sluice_proto::{
    Amount, Keypair, PeerId, Price, Record, RelayAddr, ServiceName, SignedRecord, WalletKey,
};
use sluice_transport::Clock;
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

/// What a tenant would say on its region's topic, stamped.
fn order(region: &Region, seed: u8, unix_ms: u64) -> Bytes {
    let node = Keypair::ed25519_from_bytes([seed; 32]).expect("a key");
    let wallet = WalletKey::from_bytes([seed; 32]).expect("below the curve's order");
    let mut tenant = Tenant::new(node, wallet, TenantPolicy::default(), [seed; 32]);
    let want = Want {
        region: region.clone(),
        population: 10,
        services: vec![ServiceOffer {
            name: ServiceName::parse("web").expect("a name"),
            kind: ServiceKind::Tcp,
        }],
        rate_up_min: 0,
        rate_down_min: 1_000_000,
        volume_up: 0,
        volume_down: 1 << 30,
        budget: Amount(0),
        duration_s: 3_600,
        max_price: Price::default(),
        window_min: 1 << 19,
        window_max: 1 << 24,
        direct: DirectPolicy::Never,
        period_s: 0,
        idle_timeout_s: 600,
        money: None,
        rate_proven_min: 0,
    };
    let now = Moment { at: Clock::default().now(), unix_ms };
    tenant.place(want, now).expect("a valid order");
    match tenant.poll_transmit() {
        Some(TenantTransmit::Order { bytes, .. }) => bytes,
        other => panic!("{other:?} is no order"),
    }
}

fn unix_ms() -> u64 {
    u64::try_from(Clock::default().unix_time().as_millis()).expect("before the year 584 million")
}

/// How often the relay let a message pass, and how often it blamed its bringer.
async fn judged(relay: &Role) -> (u64, u64) {
    let counts = relay.mesh.mesh().status().await.expect("it runs").counts;
    (counts.gossip_accepted, counts.gossip_rejected)
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_pass_through_relays_and_through_the_others_when_one_is_gone() {
    let first = Role::relay(&[]).await;
    let bootstrap = first.mesh.addresses().await;
    let (second, third) = (Role::relay(&bootstrap).await, Role::relay(&bootstrap).await);
    let region = Region::parse("eu").expect("a region");
    let topic = orders_topic(&region);
    let home = Role::start(hidden(&second.mesh.addresses().await)).await;
    let mut heard = home.mesh.on_gossip(&topic).await.expect("there is room");
    let tenant = Role::start(hidden(&third.mesh.addresses().await)).await;
    // Nobody but relays and those who trade listens; a relay does because a peer of its does.
    let mut say = async |bytes: Bytes| {
        until(async || tenant.mesh.mesh().gossip(&topic, bytes.clone()).await.ok()).await;
        loop {
            let message = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time");
            let message = message.expect("it listens");
            home.mesh.mesh().judge(&message, Verdict::Accept).await;
            if message.bytes == bytes {
                break;
            }
        }
    };
    say(order(&region, 71, unix_ms())).await;
    until(async || (judged(&second).await.0 > 0 || judged(&third).await.0 > 0).then_some(())).await;
    // Those who met at the first know one another by now.
    let met = async || {
        let peers = second.mesh.mesh().peers().await;
        peers.contains(&third.mesh.peer()).then_some(())
    };
    until(met).await;
    drop(first);
    say(order(&region, 72, unix_ms())).await;

    // What is no order ends at the first relay that sees it, and costs its bringer.
    let before = judged(&third).await;
    let rubbish = Bytes::from_static(b"no order at all");
    until(async || tenant.mesh.mesh().gossip(&topic, rubbish.clone()).await.ok()).await;
    until(async || (judged(&third).await.1 > before.1).then_some(())).await;
    // One whose time is over goes no further, and nobody is blamed.
    let before = judged(&third).await;
    let late = order(&region, 73, unix_ms() - 3_600_000);
    until(async || tenant.mesh.mesh().gossip(&topic, late.clone()).await.ok()).await;
    say(order(&region, 74, unix_ms())).await;
    assert_eq!(judged(&third).await.1, before.1);
}

/// A record of relay `seed`, of this number.
fn relay_record(seed: u8, sequence: u64, expires_unix_s: u64, port: u16) -> (PeerId, Bytes) {
    let key = Keypair::ed25519_from_bytes([seed; 32]).expect("a key");
    let peer = key.public().to_peer_id();
    let addresses = vec![RelayAddr::new(peer, ([127, 0, 0, 1], port).into())];
    let record = Record {
        peer,
        sequence,
        expires_unix_s,
        noise_key: [seed; 32],
        mesh: Vec::new(),
        provider: None,
        relay: Some(RelayEntry { addresses, price: Price::default() }),
    };
    (peer, SignedRecord::sign(&record, &key).expect("it is within its bounds").encode())
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_that_lie_about_themselves_are_not_known_and_an_honest_one_still_is() {
    let relay = Role::relay(&[]).await;
    let bootstrap = relay.mesh.addresses().await;
    let topic = relays_topic();
    let (now_ms, hour) = (unix_ms(), 3600);
    let fine = now_ms / 1000 + hour;
    let liar = Role::start(hidden(&bootstrap)).await;
    let say = async |bytes: Bytes| {
        until(async || liar.mesh.mesh().gossip(&topic, bytes.clone()).await.ok()).await;
    };
    let knows = async |peer: PeerId| relay.mesh.relays().iter().any(|known| known.peer == peer);

    // Newer is taken, older is not, and two of one number are neither.
    let (peer, first) = relay_record(81, now_ms, fine, 1);
    say(first).await;
    until(async || knows(peer).await.then_some(())).await;
    let (_, older) = relay_record(81, now_ms - 1, fine, 2);
    say(older).await;
    let (_, newer) = relay_record(81, now_ms + 1, fine, 3);
    say(newer).await;
    until(async || {
        let known = relay.mesh.relays();
        known.iter().any(|known| known.peer == peer && known.address.addr.port() == 3).then_some(())
    })
    .await;
    let (_, other) = relay_record(81, now_ms + 1, fine, 4);
    say(other).await;
    until(async || (!knows(peer).await).then_some(())).await;
    let (_, again) = relay_record(81, now_ms + 2, fine, 5);
    say(again).await;

    // Over, and of a time to come.
    let (over, bytes) = relay_record(82, now_ms, now_ms / 1000 - 1, 1);
    say(bytes).await;
    let (early, bytes) = relay_record(83, now_ms + 86_400_000, fine + 40 * hour, 1);
    say(bytes).await;
    // Another's name, and rubbish: whoever brings that is blamed.
    let before = judged(&relay).await.1;
    let (robbed, bytes) = relay_record(84, now_ms, fine, 1);
    let mut forged = bytes.to_vec();
    let at = forged.len() - 1;
    forged[at] ^= 1;
    say(forged.into()).await;
    say(Bytes::from_static(b"no record")).await;
    until(async || (judged(&relay).await.1 >= before + 2).then_some(())).await;

    let honest = Role::relay(&bootstrap).await;
    honest.publish_relay(4433).await;
    until(async || knows(honest.mesh.peer()).await.then_some(())).await;
    for out in [peer, over, early, robbed] {
        assert!(!knows(out).await, "{out} is known");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_public_mesh_no_relay_of_a_private_network_is_known() {
    let options = MeshOptions { private: false, ..hidden(&[]) };
    let home = Role::start(options).await;
    // It listens on loopback, so a peer that dials it there is heard; it would dial none itself.
    let mut listening = Vec::new();
    until(async || {
        let status = home.mesh.mesh().status().await?;
        (status.listening.len() == 2).then_some(())
    })
    .await;
    for address in home.mesh.mesh().status().await.expect("it runs").listening {
        listening.push(address.with_p2p(home.mesh.peer()).expect("an address"));
    }
    let relay = Role::relay(&listening).await;
    relay.publish_relay(4433).await;
    until(async || (!home.mesh.mesh().peers().await.is_empty()).then_some(())).await;
    let answer = home.mesh.ask(relay.mesh.peer(), &Ask::Relays).await.expect("it answers");
    let Answer::Relays(records) = answer else { panic!("{answer:?} tells no relays") };
    assert_eq!(records.len(), 1);
    assert!(home.mesh.relays().is_empty(), "a stranger made it knock at its own machine");
}
