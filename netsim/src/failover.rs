//! What is lost in the middle of a download, and how long nothing arrives.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use sluice_transport::{Clock, PathInfo, PathKind, PathReason, Session};

use crate::figures::{Figure, Spans, Target};
use crate::nat::{Allocator, Dependence, NatSpec};
use crate::net::{LinkSpec, Queueing, Taken};
use crate::rng::Rng;
use crate::scene::{HomeSpec, Party, Scene, allow_direct};
use crate::{time, workload};

/// One way over each of the three lines between the nodes and from relay to relay: together a
/// round trip of 40 ms.
const LINE: Duration = Duration::from_millis(5);
/// Both homes' lines, each way.
const RATE: u64 = 20_000_000;
/// The queue in front of them.
const QUEUE: usize = 100_000;
/// The download runs for so long before the loss, and a random part of [`STEADY_MORE`] longer.
const STEADY: Duration = Duration::from_secs(2);
const STEADY_MORE: Duration = Duration::from_secs(1);
/// The gap is looked for within this after the loss.
const AFTER: Duration = Duration::from_secs(12);
/// A direct path that was cut is mended after this.
const CUT: Duration = Duration::from_secs(10);
/// How long each seed's stalls go on: 30 seeds make an hour.
const STALLS: Duration = Duration::from_secs(120);
/// How long a stall is.
const STALL: Duration = Duration::from_millis(200);
/// How long a flapping direct path is watched ..
const FLAPPING: Duration = Duration::from_secs(60);
/// .. and how long it stays up or down.
const FLAP: Duration = Duration::from_secs(3);
/// A relay that does not forward must be found out within this ..
const WITHDRAWN: Duration = Duration::from_secs(45);
/// .. and it is looked this often whether it was.
const LOOK: Duration = Duration::from_millis(100);

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loss {
    /// The relay in use is killed.
    RelayKilled,
    /// It silently drops everything.
    RelaySilent,
    /// It drops what comes to it.
    RelayDeaf,
    /// It drops what it sends.
    RelayMute,
    /// It forwards nothing, but its control connection goes on.
    RelayHalfDead,
    /// Nothing: packets are held back for 200 ms now and then.
    Stalls,
    /// The direct path passes nothing for a while.
    DirectLost,
    /// The direct path comes and goes.
    DirectFlaps,
    /// The provider's home gets another address.
    AddressChanged,
    /// The same while the session is direct.
    AddressChangedDirect,
    /// The provider's NAT gives other ports.
    Rebound,
    /// The relay in use passes only packets of 1,280 bytes.
    RelayMtu,
    /// The provider's line is down for three seconds.
    LineDown,
    /// The provider's process is killed and started again.
    NodeKilled,
    /// The relay in use drops data, but answers keepalives.
    RelayDropsData,
    /// The direct path passes only packets of 1,280 bytes.
    DirectMtu,
    /// The provider's line passes only packets of 1,380 bytes.
    LineMtu,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::RelayKilled,
        Self::RelaySilent,
        Self::RelayDeaf,
        Self::RelayMute,
        Self::RelayHalfDead,
        Self::RelayDropsData,
        Self::Stalls,
        Self::DirectLost,
        Self::DirectFlaps,
        Self::AddressChanged,
        Self::AddressChangedDirect,
        Self::Rebound,
        Self::RelayMtu,
        Self::DirectMtu,
        Self::LineMtu,
        Self::LineDown,
        Self::NodeKilled,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::RelayKilled => "relay-killed",
            Self::RelaySilent => "relay-silent",
            Self::RelayDeaf => "relay-deaf",
            Self::RelayMute => "relay-mute",
            Self::RelayHalfDead => "relay-half-dead",
            Self::RelayDropsData => "relay-drops-data",
            Self::Stalls => "stalls",
            Self::DirectLost => "direct-lost",
            Self::DirectFlaps => "direct-flaps",
            Self::AddressChanged => "address-changed",
            Self::AddressChangedDirect => "address-changed-direct",
            Self::Rebound => "rebound",
            Self::RelayMtu => "relay-mtu",
            Self::DirectMtu => "direct-mtu",
            Self::LineMtu => "line-mtu",
            Self::LineDown => "line-down",
            Self::NodeKilled => "node-killed",
        }
    }

    /// Whether the provider is to name the relay no more.
    const fn is_to_be_withdrawn(self) -> bool {
        matches!(self, Self::RelayHalfDead | Self::RelayDropsData)
    }

    const fn is_direct(self) -> bool {
        matches!(
            self,
            Self::DirectLost | Self::DirectFlaps | Self::DirectMtu | Self::AddressChangedDirect
        )
    }
}

/// One loss and one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// What is lost.
    pub loss: Loss,
    /// Decides when, and everything else.
    pub seed: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.loss.name(), self.seed)
    }
}

/// What came of a case.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The longest time without a byte.
    pub gap: Duration,
    /// From the mending of a direct path to its use.
    pub direct_again: Option<Duration>,
    /// Switches because of silence, where nothing was lost.
    pub false_switches: usize,
    /// Most changes to a direct path within 30 s.
    pub flaps: usize,
    /// From the loss until the provider no longer names the relay.
    pub withdrawn: Option<Duration>,
    /// From the start of the node's new process until the other end knew that the session is over.
    pub told: Option<Duration>,
}

/// All cases of some seeds.
#[must_use]
pub fn cases(seeds: u64) -> Vec<Case> {
    (0..seeds).flat_map(|seed| Loss::ALL.into_iter().map(move |loss| Case { loss, seed })).collect()
}

/// A session in the middle of a download.
struct Stage {
    scene: Scene,
    provider: Party,
    tenant: Party,
    ours: Session,
    theirs: Session,
    changes: Arc<Mutex<Vec<(Duration, PathInfo)>>>,
    rng: Rng,
}

impl Case {
    /// Runs it.
    ///
    /// # Errors
    /// When the session or its stream does not survive, or a byte is wrong.
    pub fn run(&self) -> Result<Outcome> {
        time::run(async |clock| {
            let stage = Stage::set(clock, self).await?;
            match self.loss == Loss::NodeKilled {
                true => stage.play_killed().await,
                false => stage.play(self.loss).await,
            }
        })
        .with_context(|| self.to_string())
    }
}

fn line() -> LinkSpec {
    LinkSpec { rate: Some(RATE), delay: LINE, queue: Queueing::Fifo(QUEUE), ..LinkSpec::default() }
}

impl Stage {
    async fn set(clock: Clock, case: &Case) -> Result<Self> {
        let mut rng = Rng::new(case.seed ^ (case.loss as u64) << 32);
        let mut scene = Scene::new(clock, rng.number(), &[LinkSpec::delay(LINE); 2]).await?;
        let usual =
            NatSpec::new(Dependence::Endpoint, Dependence::AddressAndPort, Allocator::Preserving);
        let home = HomeSpec { nats: vec![usual], up: line(), down: line(), ipv6: false };
        let provider = scene.provider(&home, 2).await?;
        let tenant = scene.tenant(&home, 2).await?;
        let (ours, theirs) = scene.session(&tenant, &provider).await?;
        if case.loss.is_direct() {
            scene.within("the candidates", allow_direct(&ours, &theirs)).await??;
            let there = scene.until_path(&ours, PathKind::Direct, Duration::from_secs(10)).await;
            ensure!(there.is_some(), "the session did not become direct");
        }
        let changes = Arc::default();
        tokio::spawn(note_changes(scene.net.clone(), ours.clone(), Arc::clone(&changes)));
        Ok(Self { scene, provider, tenant, ours, theirs, changes, rng })
    }

    async fn play(mut self, loss: Loss) -> Result<Outcome> {
        let steady = STEADY + self.rng.span(Duration::ZERO, STEADY_MORE);
        let span = match loss {
            Loss::Stalls => STALLS,
            Loss::DirectFlaps => FLAPPING,
            Loss::DirectLost => CUT + AFTER,
            Loss::RelayHalfDead | Loss::RelayDropsData => WITHDRAWN + STEADY,
            Loss::RelayKilled
            | Loss::RelaySilent
            | Loss::RelayDeaf
            | Loss::RelayMute
            | Loss::AddressChanged
            | Loss::AddressChangedDirect
            | Loss::Rebound
            | Loss::RelayMtu
            | Loss::DirectMtu
            | Loss::LineMtu
            | Loss::LineDown
            | Loss::NodeKilled => AFTER,
        };
        let clock = self.scene.net.clock().clone();
        let until = clock.now() + steady + span;
        let seed = self.rng.number();
        let (send, _) = self.theirs.connection().open_bi().await?;
        let is_quiet =
            matches!(loss, Loss::Stalls | Loss::DirectFlaps) || loss.is_to_be_withdrawn();
        let writer = tokio::spawn({
            let clock = clock.clone();
            async move {
                match is_quiet {
                    true => {
                        let pause = Duration::from_millis(50);
                        workload::trickle(&clock, send, seed, pause, until).await
                    }
                    false => workload::pour(&clock, send, seed, until).await,
                }
            }
        });
        let reader = tokio::spawn({
            let (net, ours) = (self.scene.net.clone(), self.ours.clone());
            async move {
                let (_, stream) = ours.connection().accept_bi().await?;
                workload::read(|| net.elapsed(), stream, seed, 0, |_| {}).await
            }
        });
        self.scene.sleep(steady).await;
        let at = self.scene.net.elapsed();
        let mut outcome = self.lose(loss, span).await?;
        let left = (at + span).saturating_sub(self.scene.net.elapsed());
        self.scene.sleep(left).await;
        let sent = self.scene.within("the end of the download", writer).await???;
        let received = self.scene.within("the rest of the download", reader).await???;
        ensure!(received.bytes == sent, "{} of {sent} bytes arrived", received.bytes);
        ensure!(self.ours.connection().close_reason().is_none(), "the session ended");
        outcome.gap = received.gap(at, at + span);
        let changes = self.changes.lock().clone();
        let since = changes.iter().filter(|(t, _)| *t >= at);
        if loss == Loss::Stalls {
            outcome.false_switches =
                since.clone().filter(|(_, p)| p.reason == PathReason::Silent).count();
        }
        let direct: Vec<Duration> =
            since.filter(|(_, p)| p.kind == PathKind::Direct).map(|(t, _)| *t).collect();
        outcome.flaps = most_within(&direct, Duration::from_secs(30));
        Ok(outcome)
    }

    /// The provider dies and comes back: the tenant hears of it, and can begin anew.
    async fn play_killed(mut self) -> Result<Outcome> {
        self.scene.sleep(STEADY).await;
        self.scene.net.crash(self.provider.host);
        self.scene.sleep(Duration::from_secs(1)).await;
        let began = self.scene.net.elapsed();
        self.scene.revive(&mut self.provider).await?;
        self.scene.within("the session's end", self.ours.connection().closed()).await?;
        let told = Some(self.scene.net.elapsed() - began);
        let (ours, theirs) = self.scene.session(&self.tenant, &self.provider).await?;
        ensure!(workload::echo(&self.scene, &ours, &theirs, 10_000).await?, "a byte is wrong");
        Ok(Outcome { told, ..Outcome::default() })
    }

    /// Brings the loss about, and waits for what is to be seen of it besides the gap.
    async fn lose(&mut self, loss: Loss, span: Duration) -> Result<Outcome> {
        use Taken::{Data, Everything, Frames, Nothing};
        let net = self.scene.net.clone();
        let relay = self.relay_in_use();
        let relay_place = self.scene.relays[relay].place;
        let gateway = self.provider.gateways[0];
        let mut outcome = Outcome::default();
        match loss {
            Loss::RelayKilled => self.scene.relays[relay].kill(&net),
            Loss::RelaySilent => net.take(relay_place, Everything, Everything),
            Loss::RelayDeaf => net.take(relay_place, Nothing, Everything),
            Loss::RelayMute => net.take(relay_place, Everything, Nothing),
            Loss::RelayHalfDead => {
                net.take(relay_place, Frames, Frames);
                outcome.withdrawn = self.until_withdrawn(relay).await;
            }
            Loss::RelayDropsData => {
                net.take(relay_place, Data, Data);
                outcome.withdrawn = self.until_withdrawn(relay).await;
            }
            Loss::Stalls => self.stall(relay, span).await,
            Loss::DirectLost => {
                let (one, other) = self.public_addresses();
                net.cut(one, other, true);
                self.scene.sleep(CUT).await;
                net.cut(one, other, false);
                let mended = net.elapsed();
                let again = self.scene.until_path(&self.ours, PathKind::Direct, AFTER).await;
                outcome.direct_again = again.map(|at| at.saturating_sub(mended));
            }
            Loss::DirectFlaps => {
                let (one, other) = self.public_addresses();
                let end = net.elapsed() + span - FLAP;
                let mut is_cut = true;
                while net.elapsed() < end {
                    net.cut(one, other, is_cut);
                    is_cut = !is_cut;
                    self.scene.sleep(FLAP).await;
                }
                net.cut(one, other, false);
            }
            Loss::AddressChanged | Loss::AddressChangedDirect => {
                net.reboot(gateway, Ipv4Addr::new(203, 0, 113, 200));
            }
            Loss::Rebound => net.rebind(gateway),
            Loss::RelayMtu => {
                let small = LinkSpec { mtu: Some(1280), ..LinkSpec::delay(LINE) };
                net.relink(relay_place, small, small);
            }
            Loss::DirectMtu => {
                let (one, other) = self.public_addresses();
                net.narrow(one, other, 1280);
            }
            Loss::LineMtu => {
                let small = LinkSpec { mtu: Some(1380), ..line() };
                net.relink(gateway, small, small);
            }
            Loss::LineDown => {
                net.take(gateway, Everything, Everything);
                self.scene.sleep(Duration::from_secs(3)).await;
                net.take(gateway, Nothing, Nothing);
            }
            Loss::NodeKilled => anyhow::bail!("the session does not outlive it"),
        }
        Ok(outcome)
    }

    fn relay_in_use(&self) -> usize {
        let relay = self.ours.path().borrow().and_then(|path| path.relay);
        let at = self.scene.relays.iter().position(|r| Some(r.addr) == relay);
        at.unwrap_or_default()
    }

    fn public_addresses(&self) -> (IpAddr, IpAddr) {
        let of = |party: &Party| self.scene.net.addresses(party.gateways[0])[0];
        (of(&self.tenant), of(&self.provider))
    }

    async fn stall(&mut self, relay: usize, span: Duration) {
        let end = self.scene.net.elapsed() + span;
        while self.scene.net.elapsed() < end {
            self.scene.net.stall(self.scene.relays[relay].place, STALL);
            let pause = self.rng.span(Duration::from_millis(500), Duration::from_secs(5));
            self.scene.sleep(pause).await;
        }
    }

    /// How long the provider goes on naming a relay in its tickets.
    async fn until_withdrawn(&self, relay: usize) -> Option<Duration> {
        let began = self.scene.net.elapsed();
        let addr = self.scene.relays[relay].addr;
        while self.provider.ticket().relays.contains(&addr) {
            if self.scene.net.elapsed() - began > WITHDRAWN {
                return None;
            }
            self.scene.sleep(LOOK).await;
        }
        Some(self.scene.net.elapsed() - began)
    }
}

async fn note_changes(
    net: crate::net::Net,
    session: Session,
    changes: Arc<Mutex<Vec<(Duration, PathInfo)>>>,
) {
    let mut path = session.path();
    while path.changed().await.is_ok() {
        let now = *path.borrow_and_update();
        if let Some(now) = now {
            changes.lock().push((net.elapsed(), now));
        }
    }
}

fn most_within(times: &[Duration], span: Duration) -> usize {
    let count =
        |from: &Duration| times.iter().filter(|t| **t >= *from && **t < *from + span).count();
    times.iter().map(count).max().unwrap_or_default()
}

/// What is reported of the losses.
#[derive(Debug, Default)]
pub struct Report {
    losses: BTreeMap<Loss, Row>,
}

#[derive(Debug, Default)]
struct Row {
    runs: usize,
    failed: usize,
    gaps: Spans,
    direct_again: Spans,
    never_direct: usize,
    withdrawn: Spans,
    never_withdrawn: usize,
    told: Spans,
    false_switches: usize,
    flaps: usize,
}

impl Report {
    /// Takes in a case's outcome.
    pub fn add(&mut self, case: &Case, outcome: &Result<Outcome>) {
        let row = self.losses.entry(case.loss).or_default();
        row.runs += 1;
        let Ok(outcome) = outcome else {
            row.failed += 1;
            return;
        };
        row.false_switches += outcome.false_switches;
        row.flaps = row.flaps.max(outcome.flaps);
        row.direct_again.extend(outcome.direct_again);
        row.withdrawn.extend(outcome.withdrawn);
        row.told.extend(outcome.told);
        if case.loss == Loss::NodeKilled {
            return;
        }
        row.gaps.push(outcome.gap);
        if case.loss == Loss::DirectLost {
            row.never_direct += usize::from(outcome.direct_again.is_none());
        }
        if case.loss.is_to_be_withdrawn() {
            row.never_withdrawn += usize::from(outcome.withdrawn.is_none());
        }
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:23} {:>4} {:>6} {:>11} {:>11} {:>12}\n",
            "lost", "runs", "failed", "gap p50 ms", "gap p99 ms", "worst gap ms"
        );
        for (loss, row) in &self.losses {
            out.push_str(&format!(
                "{:23} {:4} {:6} {:11.0} {:11.0} {:12.0}\n",
                loss.name(),
                row.runs,
                row.failed,
                row.gaps.percentile_ms(50.0),
                row.gaps.percentile_ms(99.0),
                row.gaps.percentile_ms(100.0),
            ));
        }
        out
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let mut out = Vec::new();
        let failed: usize = self.losses.values().map(|row| row.failed).sum();
        out.push(Figure::new("sessions lost", failed as f64, "", Target::AtMost(0.0)));
        for (loss, row) in &self.losses {
            row.figures(*loss, &mut out);
        }
        out
    }
}

impl Row {
    fn figures(&self, loss: Loss, out: &mut Vec<Figure>) {
        let mut gap = |percent: f64, target| {
            let name = format!("{}: gap p{percent}", loss.name());
            out.push(Figure::new(name, self.gaps.percentile_ms(percent), "ms", target));
        };
        match loss {
            Loss::RelayKilled => {
                gap(50.0, Target::AtMost(300.0));
                gap(99.0, Target::AtMost(1000.0));
            }
            Loss::RelaySilent | Loss::RelayDeaf | Loss::RelayMute => {
                gap(99.0, Target::AtMost(1500.0));
            }
            Loss::DirectLost => gap(99.0, Target::AtMost(1000.0)),
            Loss::AddressChanged | Loss::AddressChangedDirect | Loss::Rebound => {
                gap(99.0, Target::AtMost(2000.0));
            }
            Loss::RelayMtu | Loss::DirectMtu | Loss::LineMtu => {
                gap(99.0, Target::AtMost(1500.0));
            }
            Loss::LineDown => gap(99.0, Target::None),
            Loss::RelayHalfDead
            | Loss::RelayDropsData
            | Loss::Stalls
            | Loss::DirectFlaps
            | Loss::NodeKilled => {}
        }
        let mut figure = |name: &str, value: f64, unit, target| {
            out.push(Figure::new(format!("{}: {name}", loss.name()), value, unit, target));
        };
        match loss {
            Loss::DirectLost => {
                let worst = if self.never_direct > 0 {
                    f64::INFINITY
                } else {
                    self.direct_again.percentile_ms(100.0)
                };
                figure("direct again, worst", worst, "ms", Target::AtMost(5000.0));
            }
            Loss::RelayHalfDead | Loss::RelayDropsData => {
                let worst = if self.never_withdrawn > 0 {
                    f64::INFINITY
                } else {
                    self.withdrawn.percentile_ms(100.0) / 1e3
                };
                figure("withdrawn, worst", worst, "s", Target::AtMost(45.0));
            }
            Loss::NodeKilled => {
                let worst = self.told.percentile_ms(100.0);
                figure("the other end knows after its restart, worst", worst, "ms", Target::None);
            }
            Loss::Stalls => {
                let count = self.false_switches as f64;
                figure("false switches", count, "", Target::AtMost(0.0));
                let minutes = STALLS.as_secs_f64() / 60.0 * self.runs as f64;
                figure("stalled for", minutes, "min", Target::None);
            }
            Loss::DirectFlaps => {
                let flaps = self.flaps as f64;
                figure("returns to direct in 30 s, most", flaps, "", Target::AtMost(1.0));
            }
            Loss::RelayKilled
            | Loss::RelaySilent
            | Loss::RelayDeaf
            | Loss::RelayMute
            | Loss::AddressChanged
            | Loss::AddressChangedDirect
            | Loss::Rebound
            | Loss::RelayMtu
            | Loss::DirectMtu
            | Loss::LineMtu
            | Loss::LineDown => {}
        }
    }
}
