//! A whole run from one number: topology, traffic, faults, and what the checkers say of it.

mod fault;
mod paid;
mod rough;
mod topology;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sluice_transport::{Clock, PathKind, Session};
use tokio::task::JoinSet;

use crate::check::{Probes, ProvenPaths, Violation, bounds};
use crate::net::{Digest, Net};
use crate::rng::Rng;
use crate::scene::{Scene, allow_direct};
use crate::time;
use crate::workload::{self, Received};

pub use fault::{Fault, Timed};
pub use paid::run_paid;
pub use topology::Topology;

/// Streams begin within this.
const BEGIN_WITHIN: Duration = Duration::from_secs(15);
/// Once all is mended everything must arrive within this.
const FINISH_WITHIN: Duration = Duration::from_secs(180);
/// The largest stream, in bytes.
const STREAM_MAX: u64 = 2 << 20;

/// Something wrong with the nodes that a seed decides to do on purpose, to see that the checkers
/// notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// None.
    None,
    /// One byte of a stream is changed after it was read.
    WrongByte,
    /// One stream ends a byte early.
    LostByte,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// What was built.
    pub topology: Topology,
    /// What befell it.
    pub faults: Vec<Timed>,
    /// A digest of time, length, source and destination of each delivery.
    pub digest: Digest,
    /// Packets that were delivered.
    pub packets: u64,
    /// How long it took in virtual time.
    pub took: Duration,
    /// Payload bytes carried.
    pub bytes: u64,
    /// Whether the session was direct in the end.
    pub is_direct: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (packets, bytes, took) = (self.packets, self.bytes, self.took.as_secs_f64());
        let path = if self.is_direct { "direct" } else { "relayed" };
        write!(f, "{took:6.1} s  {packets:7} packets  {bytes:9} B  {path:7}  {}", self.topology)?;
        for fault in &self.faults {
            write!(f, "; {fault}")?;
        }
        Ok(())
    }
}

/// Runs a seed.
///
/// # Errors
/// When a checker finds something, or the session does not carry what it should.
pub fn run(seed: u64) -> Result<Summary> {
    run_with(seed, Sabotage::None)
}

/// Runs a seed, with something wrong on purpose.
///
/// # Errors
/// As [`run`].
pub fn run_with(seed: u64, sabotage: Sabotage) -> Result<Summary> {
    time::run(async |clock| play(clock, seed, sabotage).await)
        .with_context(|| format!("seed {seed}"))
}

async fn play(clock: Clock, seed: u64, sabotage: Sabotage) -> Result<Summary> {
    let mut rng = Rng::new(seed);
    let topology = Topology::draw(&mut rng);
    let faults = fault::draw(&mut rng, &topology);
    let mut scene = Scene::new(clock, rng.number(), &topology.relays).await?;
    let relays: BTreeSet<IpAddr> =
        scene.relays.iter().flat_map(|r| scene.net.addresses(r.place)).collect();
    let proven = ProvenPaths::new(relays.clone()).watch(&scene.net);
    let probes = Probes::watch(&scene.net);

    let provider = scene.provider(&topology.provider, topology.relays.len()).await?;
    let tenant = scene.tenant(&topology.tenant, 2.min(topology.relays.len())).await?;
    // Addresses change later; whoever had one took part.
    let mut known = relays;
    known.extend(addresses(&scene));
    let (ours, theirs) = scene.session(&tenant, &provider).await?;
    if topology.direct {
        scene.within("the candidates", allow_direct(&ours, &theirs)).await??;
    }
    let began = scene.net.elapsed();
    let traffic =
        tokio::spawn(carry(scene.net.clone(), rng.split(), ours.clone(), theirs.clone(), sabotage));
    fault::befall(&mut scene, &faults).await?;
    let finished = scene.net.clock().timeout(FINISH_WITHIN, traffic).await;
    let Ok(bytes) = finished else {
        let path = ours.path().borrow().map(|p| (p.kind, p.remote));
        bail!(
            "the streams did not arrive; path {path:?}, closed {:?}",
            ours.connection().close_reason()
        );
    };
    let bytes = bytes??;
    ensure!(ours.connection().close_reason().is_none(), "the session ended");
    agree(&ours, &theirs)?;
    known.extend((1..=scene.renumbered).map(|number| IpAddr::V4(Scene::renumbered(number))));
    let mut wrong = proven.lock().violations().clone();
    wrong.extend(over_bounds(&scene, &probes.lock(), known));
    ensure!(wrong.is_empty(), "{wrong:?}");
    let (digest, packets) = scene.net.digest();
    let took = scene.net.elapsed() - began;
    let is_direct = ours.path().borrow().is_some_and(|p| p.kind == PathKind::Direct);
    Ok(Summary { topology, faults, digest, packets, took, bytes, is_direct })
}

/// What both ends count must agree: nothing arrives that was not sent.
fn agree(ours: &Session, theirs: &Session) -> Result<()> {
    let (a, b) = (ours.path_bytes(), theirs.path_bytes());
    for (sent, received, what) in [
        (a.relayed_sent, b.relayed_received, "relayed up"),
        (b.relayed_sent, a.relayed_received, "relayed down"),
        (a.direct_sent, b.direct_received, "direct up"),
        (b.direct_sent, a.direct_received, "direct down"),
    ] {
        ensure!(sent >= received, "{what}: {received} bytes were received of {sent}");
    }
    Ok(())
}

/// The addresses of homes and of the hosts in them.
fn addresses(scene: &Scene) -> BTreeSet<IpAddr> {
    let places = scene.sites.iter().flat_map(|site| site.gateways.iter().chain([&site.host]));
    places.flat_map(|place| scene.net.addresses(*place)).collect()
}

fn over_bounds(scene: &Scene, probes: &Probes, mut known: BTreeSet<IpAddr>) -> BTreeSet<Violation> {
    known.extend(addresses(scene));
    let mut wrong = BTreeSet::new();
    for site in &scene.sites {
        let entries = site.gateways.iter().map(|g| scene.net.with_nat(*g, |nat| nat.peak()));
        let sockets = scene.net.sockets_peak(site.host);
        wrong.extend(bounds(probes, &known, sockets, entries.max().unwrap_or_default()));
    }
    wrong
}

/// One stream: which end writes it, what, and when it begins.
#[derive(Debug, Clone, Copy)]
struct Stream {
    upward: bool,
    seed: u64,
    len: u64,
    begins: Duration,
}

/// Carries some streams each way and checks them at their other ends; how many bytes.
async fn carry(
    net: Net,
    mut rng: Rng,
    ours: Session,
    theirs: Session,
    sabotage: Sabotage,
) -> Result<u64> {
    let streams: Vec<Stream> = (0..2 + rng.below(5))
        .map(|_| Stream {
            upward: rng.chance(0.5),
            seed: rng.number(),
            len: 1 + rng.below(STREAM_MAX),
            begins: rng.span(Duration::ZERO, BEGIN_WITHIN),
        })
        .collect();
    let delivered = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let mut total = 0;
    for (number, stream) in streams.iter().enumerate() {
        let from = if stream.upward { &ours } else { &theirs };
        tasks.spawn(send(net.clone(), from.clone(), *stream, number, sabotage));
        total += stream.len;
    }
    for (at, upward) in [(&theirs, true), (&ours, false)] {
        let expected: Vec<Option<Stream>> =
            streams.iter().map(|s| Some(*s).filter(|s| s.upward == upward)).collect();
        let count = expected.iter().flatten().count();
        let at = at.clone();
        let (net, delivered) = (net.clone(), delivered.clone());
        tasks.spawn(async move {
            let mut readers = JoinSet::new();
            for _ in 0..count {
                let (_, incoming) = at.connection().accept_bi().await?;
                let (net, at, delivered) = (net.clone(), at.clone(), delivered.clone());
                let (expected, tells) = (expected.clone(), upward);
                readers.spawn(async move {
                    receive(net, at, incoming, &expected, tells.then_some(delivered), sabotage)
                        .await
                });
            }
            while let Some(done) = readers.join_next().await {
                done??;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(total)
}

async fn send(
    net: Net,
    from: Session,
    stream: Stream,
    number: usize,
    sabotage: Sabotage,
) -> Result<()> {
    net.clock().sleep(stream.begins).await;
    let (mut out, _) = from.connection().open_bi().await?;
    out.write_all(&[number as u8]).await?;
    let cut = u64::from(sabotage == Sabotage::LostByte && number == 0);
    workload::write(out, stream.seed, stream.len - cut).await?;
    Ok(())
}

async fn receive(
    net: Net,
    at: Session,
    mut incoming: quinn::RecvStream,
    expected: &[Option<Stream>],
    delivered: Option<Arc<AtomicU64>>,
    sabotage: Sabotage,
) -> Result<Received> {
    let mut number = [0];
    incoming.read_exact(&mut number).await?;
    let stream = expected.get(usize::from(number[0])).copied().flatten();
    let stream = stream.context("a stream that nobody sends")?;
    let seed = stream.seed ^ u64::from(sabotage == Sabotage::WrongByte && number[0] == 0);
    let mut before = 0;
    let received = workload::read(
        || net.elapsed(),
        incoming,
        seed,
        1,
        |total| {
            if let Some(delivered) = &delivered {
                let all = delivered.fetch_add(total - before, Ordering::Relaxed) + total - before;
                before = total;
                at.set_delivered(all);
            }
        },
    )
    .await?;
    ensure!(received.bytes == stream.len, "{} of {} bytes came", received.bytes, stream.len);
    Ok(received)
}
