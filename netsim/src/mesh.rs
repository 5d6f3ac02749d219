//! Is a provider's record found by its peer id, while nodes come and go?
//!
//! Real swarms on loopback, in real time: libp2p's timers follow no other clock. Each round a part of
//! all nodes ends without a word and as many others, with new identities, begin with the addresses of
//! some that live. All the time random nodes look for the records of random others that live and have
//! published. Every third node behaves as one that cannot be reached: a client of the DHT.

#![expect(clippy::disallowed_methods, reason = "it measures real swarms")]

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use sluice_mesh::{FindError, Mesh, MeshConfig, MeshLimits, Multiaddr, OwnRecord, PublishError};
use sluice_proto::{Keypair, PeerId};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};

use crate::figures::{Figure, Target};
use crate::rng::Rng;

/// Nodes that begin at once; on a small machine more would wait for one another's handshakes.
const BATCH: usize = 20;
/// Addresses that a node begins with.
const SEEDS: usize = 3;
/// Of all nodes, one in so many cannot be reached.
const CLIENT_EACH: u64 = 3;
/// How long a batch may take to have its records published: a machine that does other work besides
/// takes long over handshakes.
const PUBLISH_MAX: Duration = Duration::from_secs(300);
/// How soon a node that nobody answered tries to publish again.
const AGAIN: Duration = Duration::from_millis(500);

/// How often it is looked whether something has come about.
const LOOK_EACH: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Debug, Args)]
pub struct Options {
    /// Nodes at any time.
    #[arg(long, default_value_t = 200)]
    nodes: usize,
    /// How long records are looked for.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// How often nodes are replaced.
    #[arg(long, default_value_t = 60)]
    each: u64,
    /// Which part of them.
    #[arg(long, default_value_t = 0.2)]
    part: f64,
    /// Records that are looked for each second.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// Seed of who is replaced and who looks for whom; the rest is real, and differs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// A node. Its events are nobody's: what does not fit is dropped.
#[derive(Debug)]
struct Member {
    mesh: Mesh,
    is_client: bool,
    addresses: Vec<Multiaddr>,
    /// How long it took until its record was held, once it is.
    published: Arc<OnceLock<Duration>>,
    publishing: AbortHandle,
}

impl Member {
    fn has_published(&self) -> bool {
        self.published.get().is_some()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

/// What came of the searches.
#[derive(Debug, Default)]
struct Found {
    /// How long each took that was found.
    times: Vec<Duration>,
    /// Who was not found.
    missed: Vec<PeerId>,
}

struct Crowd {
    rng: Rng,
    members: Vec<Member>,
    /// How long those took that were replaced.
    published: Vec<Duration>,
}

impl Crowd {
    fn config(&mut self) -> Result<(MeshConfig, bool)> {
        let key = Keypair::ed25519_from_bytes(self.rng.bytes::<32>()).context("make a key")?;
        let is_client = !self.members.is_empty() && self.rng.below(CLIENT_EACH) == 0;
        let listen = match is_client {
            true => Vec::new(),
            false => vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().context("parse an address")?],
        };
        // All nodes share one process and one address.
        let limits = MeshLimits { memory_max: usize::MAX, ..MeshLimits::default() };
        let bootstrap = self.some_addresses();
        let public = !is_client;
        let private = true;
        Ok((
            MeshConfig { listen, bootstrap, public, private, limits, ..MeshConfig::new(key) },
            is_client,
        ))
    }

    /// Where some live that can be reached.
    fn some_addresses(&mut self) -> Vec<Multiaddr> {
        let known: Vec<usize> =
            (0..self.members.len()).filter(|at| !self.members[*at].addresses.is_empty()).collect();
        if known.is_empty() {
            return Vec::new();
        }
        let picks: Vec<usize> = (0..SEEDS).map(|_| self.rng.pick(&known)).collect();
        picks.iter().flat_map(|at| self.members[*at].addresses.clone()).collect()
    }

    /// Adds one; it publishes on its own.
    async fn begin(&mut self) -> Result<()> {
        let (config, is_client) = self.config()?;
        let (mesh, _) = Mesh::start(config)?;
        let addresses = if is_client { Vec::new() } else { listening(&mesh).await? };
        let published = Arc::new(OnceLock::new());
        let publishing = tokio::spawn(publish(mesh.clone(), published.clone())).abort_handle();
        self.members.push(Member { mesh, is_client, addresses, published, publishing });
        Ok(())
    }

    /// Adds so many, in batches, and waits until all have published.
    async fn grow(&mut self, nodes: usize) -> Result<()> {
        let wanted = self.members.len() + nodes;
        while self.members.len() < wanted {
            let batch = BATCH.min(wanted - self.members.len());
            for _ in 0..batch {
                self.begin().await?;
            }
            self.publish_all().await?;
        }
        Ok(())
    }

    /// Waits until all have.
    async fn publish_all(&self) -> Result<()> {
        // The first finds nobody to hold its record until the second is there.
        let all = self.members.len() < 2;
        let waited = timeout(PUBLISH_MAX, async {
            while !all && self.members.iter().any(|m| !m.has_published()) {
                sleep(LOOK_EACH).await;
            }
        });
        waited.await.context("a node cannot publish its record within 5 minutes")
    }

    /// Ends a part of them without a word.
    fn shrink(&mut self, nodes: usize) {
        for _ in 0..nodes {
            let at = self.rng.below(self.members.len() as u64) as usize;
            let gone = self.members.swap_remove(at);
            self.published.extend(gone.published.get());
        }
    }

    /// Somebody, and somebody else that has published.
    fn pair(&mut self) -> Option<(Mesh, PeerId)> {
        let finder = self.rng.below(self.members.len() as u64) as usize;
        let target = self.rng.below(self.members.len() as u64) as usize;
        let is_fit = finder != target && self.members[target].has_published();
        is_fit.then(|| (self.members[finder].mesh.clone(), self.members[target].mesh.peer()))
    }
}

/// Where a node listens, with its id.
async fn listening(mesh: &Mesh) -> Result<Vec<Multiaddr>> {
    let asked = timeout(PUBLISH_MAX, async {
        loop {
            let status = mesh.status().await.context("the mesh runs")?;
            if !status.listening.is_empty() {
                return Ok::<_, anyhow::Error>(status.listening);
            }
            sleep(LOOK_EACH).await;
        }
    });
    let addresses = asked.await.context("a node does not listen")??;
    Ok(addresses.into_iter().filter_map(|a| a.with_p2p(mesh.peer()).ok()).collect())
}

/// Publishes, again and again until somebody holds it, and notes how long that took.
async fn publish(mesh: Mesh, took: Arc<OnceLock<Duration>>) {
    let begin = Instant::now();
    let content = OwnRecord {
        noise_key: [7; 32],
        provider: None,
        relay: None,
        life: Duration::from_secs(3600),
    };
    while let Err(error) = mesh.publish(content.clone()).await {
        if error != PublishError::NoHolder {
            return;
        }
        sleep(AGAIN).await;
    }
    // It is the only one that notes it.
    let _ = took.set(begin.elapsed());
}

/// Looks for one record.
async fn look(mesh: Mesh, peer: PeerId, found: Arc<Mutex<Found>>) {
    let begin = Instant::now();
    let outcome = mesh.find(peer).await;
    let mut found = found.lock().expect("nobody panics with it");
    match outcome {
        Ok(signed) if signed.record().peer == peer => found.times.push(begin.elapsed()),
        // Who looked was replaced meanwhile.
        Err(FindError::Ended) => {}
        Ok(_) | Err(FindError::NotFound(_) | FindError::Busy) => found.missed.push(peer),
    }
}

/// Runs it; `say` hears how it goes.
///
/// # Errors
/// When nodes cannot start, or cannot publish within 5 minutes: then nothing was measured.
pub fn run(options: &Options, say: impl Fn(&str)) -> Result<Vec<Figure>> {
    ensure!(options.nodes >= 10, "fewer than 10 nodes are no crowd");
    ensure!((0.0..=0.5).contains(&options.part), "a part is 0 to 0.5");
    ensure!(options.rate > 0 && options.each > 0, "nothing would be looked for, or replaced");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(watch(options, &say));
    // Swarms that still run end with it.
    runtime.shutdown_background();
    figures
}

async fn watch(options: &Options, say: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let rng = Rng::new(options.seed);
    let mut crowd = Crowd { rng, members: Vec::new(), published: Vec::new() };
    let begin = Instant::now();
    crowd.grow(options.nodes).await?;
    let clients = crowd.members.iter().filter(|m| m.is_client).count();
    let (nodes, took) = (options.nodes, begin.elapsed().as_secs_f64());
    say(&format!("{nodes} nodes, {clients} of them clients, have published after {took:.1} s"));
    let found = Arc::new(Mutex::new(Found::default()));
    let replaced = ((options.nodes as f64) * options.part).round() as usize;
    let begin = Instant::now();
    let mut round = 0;
    let mut searches = interval(Duration::from_secs(1) / options.rate);
    let mut looking = JoinSet::new();
    while begin.elapsed() < Duration::from_secs(options.seconds) {
        searches.tick().await;
        if let Some((mesh, peer)) = crowd.pair() {
            looking.spawn(look(mesh, peer, found.clone()));
        }
        while looking.try_join_next().is_some() {}
        let due = begin.elapsed().as_secs() / options.each;
        if due > round {
            round = due;
            crowd.shrink(replaced);
            for _ in 0..replaced {
                crowd.begin().await?;
            }
        }
    }
    while looking.join_next().await.is_some() {}
    let found = found.lock().expect("nobody panics with it");
    Ok(figures(&found, &crowd, replaced as u64 * round))
}

fn figures(found: &Found, crowd: &Crowd, replaced: u64) -> Vec<Figure> {
    let looked = found.times.len() + found.missed.len();
    let share = 100.0 * found.times.len() as f64 / looked as f64;
    let mut published = crowd.published.clone();
    published.extend(crowd.members.iter().filter_map(|m| m.published.get()));
    let late = crowd.members.iter().filter(|m| !m.has_published()).count();
    let figure = |name, value, unit, target| Figure::new(name, value, unit, target);
    let s = |times: &[Duration], part| percentile(times, part).as_secs_f64();
    vec![
        figure("nodes", crowd.members.len() as f64, "", Target::None),
        figure("nodes replaced", replaced as f64, "", Target::None),
        figure("records looked for", looked as f64, "", Target::AtLeast(100.0)),
        figure("records found", share, "%", Target::AtLeast(99.5)),
        figure("found after, p50", s(&found.times, 0.5), "s", Target::None),
        figure("found after, p95", s(&found.times, 0.95), "s", Target::AtMost(2.0)),
        figure("found after, longest", s(&found.times, 1.0), "s", Target::None),
        figure("published after, p50", s(&published, 0.5), "s", Target::None),
        figure("published after, p95", s(&published, 0.95), "s", Target::None),
        figure("nodes that have not published at the end", late as f64, "", Target::None),
    ]
}

/// The time within which this part of them lies; the longest there is if there is none.
fn percentile(times: &[Duration], part: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() as f64 * part).ceil() as usize;
    times.get(at.saturating_sub(1)).copied().unwrap_or(Duration::MAX)
}
