//! A role's part in the mesh: who it is there, who hears what comes in, and which relays are known.

mod hub;
mod known;
mod relays;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use sluice_market::{Limiter, noise_public};
use sluice_mesh::{
    Equivocation, Gossip, GossipError, KeepSequence, Mesh, MeshConfig, MeshEvent, MeshEvents,
    MeshLimits, Multiaddr, OwnRecord, PublishError, Request, RequestError, Verdict,
    parse_remembered, write_remembered,
};
use sluice_proto::ask::{Answer, Ask, AskError, AskRefusal, relays_topic};
use sluice_proto::record::{ProviderEntry, RelayEntry};
use sluice_proto::{PeerId, SignedRecord};
use sluice_transport::Clock;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

pub(crate) use known::{Known, NodeLine, Ranked, RelayLine};
pub use relays::KnownRelay;

use super::identity::Identity;
use crate::state::State;
use hub::Hub;
use relays::RelayTable;

/// A provider's record holds for this long after its home went dark; it is renewed at half of that.
const PROVIDER_LIFE: Duration = Duration::from_secs(2 * 3600);
/// A relay's record: told anew on the relays' topic each half of that.
const RELAY_LIFE: Duration = Duration::from_secs(3600);
/// Messages and requests that wait for whoever listens.
const QUEUE: usize = 256;
/// A message that no peer heard is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// Peers are asked which relays they know this often while few are known ..
const ASK_SOON: Duration = Duration::from_secs(2);
/// .. and this often otherwise.
const ASK_LATER: Duration = Duration::from_secs(300);
/// Few relays: a choice needs a few more than are taken.
const RELAYS_FEW: usize = 4;
/// Peers that are asked at a time.
const ASKED_AT_ONCE: usize = 4;
/// One node may ask which relays are known this often ..
const ASKED_EACH: Duration = Duration::from_secs(5);
/// .. so many times at once ..
const ASKED_BURST: u32 = 8;
/// .. and so many nodes are told apart.
const ASKERS_MAX: usize = 4096;
/// A record that is about to expire is looked for in the DHT this long before.
const REFRESH_BEFORE_S: u64 = 900;
/// What a role knows is written down for others this often, if it changed, and whenever its choice did.
const KNOWN_EACH: Duration = Duration::from_secs(15);
/// How often what is worth remembering is looked at.
const REMEMBER_EACH: Duration = Duration::from_secs(20);

/// What a role's mesh is told.
#[derive(Debug, Clone, Default)]
pub struct MeshOptions {
    /// Where it listens: at least one address, else it cannot be reached through relays either.
    pub listen: Vec<Multiaddr>,
    /// Nodes to begin with.
    pub bootstrap: Vec<Multiaddr>,
    /// Addresses at which it is reached, if they are not those where it listens.
    pub external: Vec<Multiaddr>,
    /// Whether it is reached where it listens: then it serves the DHT and needs no circuit.
    pub public: bool,
    /// Whether it carries circuits of others, and passes on orders that are none of its business.
    pub relay: bool,
    /// Whether addresses of private networks are dialled, those of relays included.
    pub private: bool,
    /// Whether peers are looked for on the LAN.
    pub lan: bool,
}

/// A request that another node made of this role: a bid, or an award.
#[derive(Debug)]
pub struct Asked {
    /// Who asks.
    pub peer: PeerId,
    /// What it asks; never [`Ask::Relays`].
    pub ask: Ask,
    request: Request,
}

impl Asked {
    /// Answers it. Whoever drops it instead lets the other node wait until it gives up.
    pub async fn answer(self, answer: &Answer) {
        self.request.answer(answer.encode()).await;
    }
}

/// Why a node's answer is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskFailed {
    /// It was not reached, or did not answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Its answer cannot be read.
    #[error("its answer is not one: {0}")]
    Answer(#[from] AskError),
    /// It answered that it does not do what was asked.
    #[error("it refuses: {0}")]
    Refused(#[from] AskRefusal),
}

/// A running mesh. Cheap to clone; it ends when the last one is dropped.
#[derive(Clone)]
pub struct Meshed(Arc<Guard>);

/// Its tasks end with it.
struct Guard {
    shared: Arc<Shared>,
    _tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    mesh: Mesh,
    clock: Clock,
    noise_key: [u8; 32],
    dir: Option<PathBuf>,
    relays: RelayTable,
    hub: Option<Hub>,
    listeners: Mutex<HashMap<String, mpsc::Sender<Gossip>>>,
    asked: Mutex<Option<mpsc::Sender<Asked>>>,
    askers: Mutex<Limiter<PeerId>>,
    /// The own record is to be told to the relays' topic.
    tell: Notify,
    /// The relays as they were ranked last.
    ranked: watch::Sender<Vec<Ranked>>,
    /// What was written to remember peers last.
    remembered: Mutex<String>,
}

impl std::fmt::Debug for Meshed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meshed({})", self.peer())
    }
}

impl Meshed {
    /// Starts: listens, then dials whom it is told and whom it remembers, and goes on doing so. With
    /// `dir`, a role's locked state directory, the number of each record is written there before the
    /// record goes out, and peers are remembered.
    ///
    /// # Errors
    /// When an address cannot be listened on, or the directory cannot be read.
    pub async fn start(
        identity: &Identity,
        options: MeshOptions,
        dir: Option<&Path>,
    ) -> Result<Self> {
        let (mut remembered, mut last_sequence, mut keep) = (String::new(), 0, None);
        if let Some(dir) = dir {
            remembered = State::mesh_peers(dir)?;
            last_sequence = State::mesh_sequence(dir)?;
            let dir = dir.to_owned();
            keep = Some(KeepSequence::new(move |sequence| {
                State::keep_mesh_sequence(&dir, sequence).map_err(std::io::Error::other)
            }));
        }
        let limits = match options.relay {
            // Its peers are its purpose.
            true => MeshLimits { incoming_max: 4096, ..MeshLimits::default() },
            false => MeshLimits::default(),
        };
        let config = MeshConfig {
            listen: options.listen,
            bootstrap: options.bootstrap,
            remembered: parse_remembered(&remembered),
            external: options.external,
            public: options.public,
            relay: options.relay,
            private: options.private,
            mdns: options.lan,
            last_sequence,
            keep,
            limits,
            ..MeshConfig::new(identity.node.clone())
        };
        let (mesh, events) = Mesh::start(config).context("the mesh does not start")?;
        mesh.subscribe(&relays_topic()).await?;
        let shared = Arc::new(Shared {
            relays: RelayTable::new(mesh.peer(), options.private),
            hub: options.relay.then(Hub::default),
            mesh,
            clock: Clock::default(),
            noise_key: noise_public(&identity.noise).context("the Noise key is not valid")?,
            dir: dir.map(Path::to_owned),
            listeners: Mutex::default(),
            asked: Mutex::default(),
            askers: Mutex::new(Limiter::new(ASKED_EACH, ASKED_BURST, ASKERS_MAX)),
            tell: Notify::new(),
            ranked: watch::Sender::default(),
            remembered: Mutex::new(remembered),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(dispatch(shared.clone(), events));
        tasks.spawn(tell_relay(shared.clone()));
        tasks.spawn(ask_for_relays(shared.clone()));
        tasks.spawn(keep_remembered(shared.clone()));
        tasks.spawn(keep_known(shared.clone()));
        Ok(Self(Arc::new(Guard { shared, _tasks: Mutex::new(tasks) })))
    }

    /// The mesh itself.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.0.shared.mesh
    }

    /// The node's own id.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.mesh().peer()
    }

    /// Publishes what this node is, in place of what it said before, and goes on doing so. That nobody
    /// holds it yet is no error: it is tried again.
    ///
    /// # Errors
    /// When a record cannot hold it, or its number cannot be written down.
    pub async fn publish(
        &self,
        provider: Option<ProviderEntry>,
        relay: Option<RelayEntry>,
    ) -> Result<(), PublishError> {
        let shared = &self.0.shared;
        let life = if relay.is_some() { RELAY_LIFE } else { PROVIDER_LIFE };
        let content = OwnRecord { noise_key: shared.noise_key, provider, relay, life };
        let published = shared.mesh.publish(content).await;
        shared.tell.notify_one();
        match published {
            Ok(_) | Err(PublishError::NoHolder) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Listens to a topic: each message must be [judged](Mesh::judge), or it goes no further. One that
    /// does not fit the queue is ignored. There is one listener a topic, the last.
    ///
    /// # Errors
    /// When the topic has no place, or the mesh has ended.
    pub async fn on_gossip(&self, topic: &str) -> Result<mpsc::Receiver<Gossip>, GossipError> {
        let (sender, messages) = mpsc::channel(QUEUE);
        self.0.shared.listeners.lock().insert(topic.to_owned(), sender);
        self.mesh().subscribe(topic).await?;
        Ok(messages)
    }

    /// Takes bids and awards from now on; until somebody does they are refused. There is one taker,
    /// the last.
    #[must_use]
    pub fn on_ask(&self) -> mpsc::Receiver<Asked> {
        let (sender, asked) = mpsc::channel(QUEUE);
        *self.0.shared.asked.lock() = Some(sender);
        asked
    }

    /// Asks a node; finds and reaches it at need.
    ///
    /// # Errors
    /// When it is not reached, does not answer, or refuses.
    pub async fn ask(&self, peer: PeerId, ask: &Ask) -> Result<Answer, AskFailed> {
        self.0.shared.ask(peer, ask).await
    }

    /// The relays that are known, in no order.
    #[must_use]
    pub fn relays(&self) -> Vec<KnownRelay> {
        self.0.shared.relays.list(self.0.shared.unix_ms())
    }

    /// Counts changes of what is known of relays.
    #[must_use]
    pub fn relay_changes(&self) -> watch::Receiver<u64> {
        self.0.shared.relays.changes()
    }

    /// Whether addresses of private networks are dialled.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.0.shared.relays.is_private()
    }

    /// Looks for the record of a relay that is used, if the one that is held is about to expire: gossip
    /// may have missed this node.
    pub(crate) async fn refresh(&self, relay: &KnownRelay) {
        let shared = &self.0.shared;
        if relay.expires_unix_s > shared.unix_ms() / 1000 + REFRESH_BEFORE_S {
            return;
        }
        if let Ok(found) = shared.mesh.find(relay.peer).await {
            shared.relays.learn(found.encode(), shared.unix_ms());
        }
    }

    /// Takes how relays were ranked, to be shown to those who look.
    pub(crate) fn explain(&self, ranked: Vec<Ranked>) {
        let same = |a: &Ranked, b: &Ranked| {
            (a.relay.peer, a.chosen, &a.why) == (b.relay.peer, b.chosen, &b.why)
        };
        self.0.shared.ranked.send_if_modified(|before| {
            let is_same =
                before.len() == ranked.len() && before.iter().zip(&ranked).all(|(a, b)| same(a, b));
            *before = ranked;
            !is_same
        });
    }

    /// What is known now.
    pub(crate) async fn known(&self) -> Known {
        self.0.shared.known().await
    }

    /// Where it listens, each with its id, once it does.
    pub async fn addresses(&self) -> Vec<Multiaddr> {
        let (mesh, clock) = (self.mesh(), &self.0.shared.clock);
        for _ in 0..100 {
            let status = mesh.status().await.unwrap_or_default();
            let told =
                if status.reachable.is_empty() { status.listening } else { status.reachable };
            if !told.is_empty() {
                let own = self.peer();
                return told.into_iter().map(|a| a.with_p2p(own).unwrap_or_else(|a| a)).collect();
            }
            clock.sleep(Duration::from_millis(20)).await;
        }
        Vec::new()
    }

    /// Writes down what is worth remembering for the next start.
    pub async fn remember(&self) {
        self.0.shared.remember().await;
    }
}

impl Shared {
    fn unix_ms(&self) -> u64 {
        u64::try_from(self.clock.unix_time().as_millis()).unwrap_or(u64::MAX)
    }

    async fn ask(&self, peer: PeerId, ask: &Ask) -> Result<Answer, AskFailed> {
        match Answer::parse(self.mesh.request(peer, ask.encode()).await?)? {
            Answer::Refused(why) => Err(why.into()),
            answer @ (Answer::BidTaken | Answer::Award(_) | Answer::Relays(_)) => Ok(answer),
        }
    }

    async fn heard(&self, gossip: Gossip) {
        if gossip.topic == relays_topic() {
            let verdict = self.relays.hear(gossip.bytes.clone(), self.clock.now(), self.unix_ms());
            return self.mesh.judge(&gossip, verdict).await;
        }
        let listener = self.listeners.lock().get(&gossip.topic).cloned();
        let verdict = match (listener, &self.hub) {
            (Some(listener), _) => match listener.try_send(gossip.clone()) {
                Ok(()) => return,
                Err(_) => Verdict::Ignore,
            },
            (None, Some(hub)) => hub.judge(&gossip, self.clock.now(), self.unix_ms()),
            (None, None) => Verdict::Ignore,
        };
        self.mesh.judge(&gossip, verdict).await;
    }

    async fn asked(&self, request: Request) {
        let refusal = match Ask::parse(request.bytes.clone()) {
            Ok(Ask::Relays) => {
                let admitted = self.askers.lock().admit(&request.peer, self.clock.now());
                let answer = match admitted {
                    true => Answer::Relays(self.some_relays().await),
                    false => Answer::Refused(AskRefusal::Busy),
                };
                return request.answer(answer.encode()).await;
            }
            Ok(ask @ (Ask::Bid(_) | Ask::Award(_))) => {
                let taker = self.asked.lock().clone();
                let asked = Asked { peer: request.peer, ask, request };
                let refused = match taker {
                    Some(taker) => match taker.try_send(asked) {
                        Ok(()) => return,
                        Err(error) => error.into_inner(),
                    },
                    None => asked,
                };
                return refused.answer(&Answer::Refused(AskRefusal::Busy)).await;
            }
            Err(AskError::Unknown | AskError::Version(_)) => AskRefusal::Unknown,
            Err(AskError::Wire(_) | AskError::TooMany(_)) => AskRefusal::Malformed,
        };
        request.answer(Answer::Refused(refusal).encode()).await;
    }

    /// What is told to those who ask which relays are known; this node's own record if it is one.
    async fn some_relays(&self) -> Vec<bytes::Bytes> {
        let own = self.mesh.own().await.filter(|own| own.record().relay.is_some());
        self.relays.some(own.map(|own| own.encode()), self.unix_ms())
    }

    async fn known(&self) -> Known {
        let mut records = self.mesh.known().await;
        let of_relays = self.relays.records(self.unix_ms());
        let is_new = |signed: &SignedRecord| {
            records.iter().all(|other| other.record().peer != signed.record().peer)
        };
        let more: Vec<_> = of_relays.into_iter().filter(is_new).collect();
        records.extend(more);
        Known::new(self.unix_ms() / 1000, records, &self.ranked.borrow())
    }

    fn contradicted(&self, evidence: &Equivocation) {
        self.relays.condemn(evidence);
    }

    async fn remember(&self) {
        let (Some(dir), Some(status)) = (self.dir.clone(), self.mesh.status().await) else {
            return;
        };
        let text = write_remembered(&status.remembered);
        // Nobody answered this time: those of the last start are still the best that is known.
        if text.is_empty() || *self.remembered.lock() == text {
            return;
        }
        let written = text.clone();
        let kept = tokio::task::spawn_blocking(move || State::keep_mesh_peers(&dir, &written));
        match kept.await {
            Ok(Ok(())) => *self.remembered.lock() = text,
            Ok(Err(error)) => tracing::warn!(%error, "peers are not remembered"),
            Err(error) => tracing::warn!(%error, "peers are not remembered"),
        }
    }
}

/// Hands out what the mesh tells, until it has ended.
async fn dispatch(shared: Arc<Shared>, mut events: MeshEvents) {
    while let Some(event) = events.next().await {
        match event {
            MeshEvent::Gossip(gossip) => shared.heard(gossip).await,
            MeshEvent::Request(request) => shared.asked(request).await,
            MeshEvent::Equivocation { evidence, .. } => shared.contradicted(&evidence),
            MeshEvent::Published(_) => shared.tell.notify_one(),
            MeshEvent::Listener { topic, .. } => {
                let Some(hub) = &shared.hub else { continue };
                if hub.wants(&topic)
                    && let Err(error) = shared.mesh.subscribe(&topic).await
                {
                    tracing::debug!(topic, %error, "not passed on");
                }
            }
        }
    }
}

/// Tells a relay's record on the relays' topic whenever there is a new one, until a peer hears it.
async fn tell_relay(shared: Arc<Shared>) {
    loop {
        shared.tell.notified().await;
        loop {
            let own = shared.mesh.own().await;
            let Some(own) = own.filter(|own| own.record().relay.is_some()) else { break };
            match shared.mesh.gossip(&relays_topic(), own.encode()).await {
                Ok(()) | Err(GossipError::Duplicate | GossipError::Ended) => break,
                Err(GossipError::NoPeers | GossipError::Refused(_)) => {}
                Err(error @ GossipError::TooLarge(_)) => {
                    tracing::warn!(%error, "the own record is not told");
                    break;
                }
            }
            shared.clock.sleep(TELL_AGAIN).await;
        }
    }
}

/// Asks peers which relays they know: soon and often while few are known, and then now and again.
async fn ask_for_relays(shared: Arc<Shared>) {
    let mut asked: HashMap<PeerId, std::time::Instant> = HashMap::new();
    loop {
        let now = shared.clock.now();
        let few = shared.relays.list(shared.unix_ms()).len() < RELAYS_FEW;
        let pause = if few { ASK_SOON } else { ASK_LATER };
        asked.retain(|_, at| *at + ASK_LATER > now);
        let peers = shared.mesh.peers().await;
        let is_due =
            |peer: &PeerId| asked.get(peer).is_none_or(|at| few && *at + 8 * ASK_SOON <= now);
        let due: Vec<_> = peers.into_iter().filter(is_due).take(ASKED_AT_ONCE).collect();
        for peer in due {
            asked.insert(peer, now);
            match shared.ask(peer, &Ask::Relays).await {
                Ok(Answer::Relays(records)) => {
                    for record in records {
                        shared.relays.learn(record, shared.unix_ms());
                    }
                }
                Ok(Answer::BidTaken | Answer::Award(_) | Answer::Refused(_)) => {}
                Err(error) => tracing::debug!(%peer, %error, "says no relays"),
            }
        }
        shared.clock.sleep(pause).await;
    }
}

async fn keep_remembered(shared: Arc<Shared>) {
    loop {
        shared.clock.sleep(REMEMBER_EACH).await;
        shared.remember().await;
    }
}

/// Writes down what is known, for those who look beside the running role.
async fn keep_known(shared: Arc<Shared>) {
    let Some(dir) = shared.dir.clone() else { return };
    let mut ranked = shared.ranked.subscribe();
    let mut before = Known::default();
    loop {
        let known = shared.known().await;
        if !known.says_as(&before)
            && let Ok(text) = serde_json::to_string(&known)
        {
            let dir = dir.clone();
            let kept = tokio::task::spawn_blocking(move || State::keep_mesh_known(&dir, &text));
            match kept.await {
                Ok(Ok(())) => before = known,
                Ok(Err(error)) => tracing::warn!(%error, "what is known is not written down"),
                Err(error) => tracing::warn!(%error, "what is known is not written down"),
            }
        }
        tokio::select! {
            changed = ranked.changed() => if changed.is_err() { return },
            () = shared.clock.sleep(KNOWN_EACH) => {}
        }
    }
}
