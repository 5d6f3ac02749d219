//! One tunnel's run: started, checked, loaded, and taken down again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::cpu::{self, RunTime};
use crate::load::{self, Quantiles};
use crate::netns::{Lab, Place};
use crate::peers::{self, Programs, Tunnel};
use crate::process::Process;
use crate::subject::{Path, Subject};

/// Connections at once in the second bulk load.
pub(crate) const STREAMS: usize = 8;

/// Kept-alive connections of the HTTP load.
pub(crate) const HTTP_CONNECTIONS: usize = 50;

/// A window in which other processes used more cores than this is measured again.
pub(crate) const DISTURBED_CORES: f64 = 0.12;

/// Below this a relay carried nothing: its share of the keepalives costs far less than the cheapest
/// forwarding, 0.15 s/GB.
const RELAY_IDLE_S_PER_GB: f64 = 0.02;

/// How much is measured.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    echoes: usize,
    dials: usize,
    /// How often a window is measured at most, if others disturb it.
    tries: usize,
    /// How long to wait for an idle machine before a window.
    patience: Duration,
}

impl Plan {
    pub(crate) const FULL: Self = Self {
        rounds: 3,
        warm_up: Duration::from_secs(1),
        window: Duration::from_secs(4),
        echoes: 5_000,
        dials: 500,
        tries: 3,
        patience: Duration::from_secs(5),
    };

    pub(crate) const QUICK: Self = Self {
        rounds: 1,
        warm_up: Duration::from_millis(500),
        window: Duration::from_secs(2),
        echoes: 1_000,
        dials: 100,
        tries: 1,
        patience: Duration::from_secs(1),
    };
}

/// What one run measured.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) one: Bulk,
    pub(crate) eight: Bulk,
    pub(crate) echo: Quantiles,
    pub(crate) dial: Quantiles,
    pub(crate) http_per_s: f64,
}

/// A bulk load's rate and cost.
#[derive(Debug)]
pub(crate) struct Bulk {
    pub(crate) gbit_s: f64,
    /// CPU seconds per 10^9 bytes of each role's process.
    cpu_s_per_gb: BTreeMap<Place, f64>,
    /// Cores that processes other than ours used in the window.
    pub(crate) others_cores: f64,
}

impl Bulk {
    /// CPU seconds per 10^9 bytes of all roles, without source and sink; not a number if there is
    /// no process between those.
    pub(crate) fn cpu_s_per_gb(&self) -> f64 {
        self.cpu_s_per_gb.values().copied().reduce(|sum, role| sum + role).unwrap_or(f64::NAN)
    }

    /// CPU seconds per 10^9 bytes of one role; not a number if it has no process.
    pub(crate) fn role_s_per_gb(&self, place: Place) -> f64 {
        self.cpu_s_per_gb.get(&place).copied().unwrap_or(f64::NAN)
    }

    fn check_path(&self, path: Option<Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let relay = self.role_s_per_gb(Place::Relay);
        let carried = relay > RELAY_IDLE_S_PER_GB;
        ensure!(
            carried == (path == Path::Relayed),
            "not {path}: the relay used {relay:.3} CPU s/GB"
        );
        Ok(())
    }
}

/// Runs `subject` through every load.
///
/// # Errors
///
/// If it does not come up, fails under load, or does not take the path it must.
pub(crate) fn tunnel(lab: &Lab, programs: &Programs, subject: Subject, plan: &Plan) -> Result<Run> {
    let bench = Bench::start(lab, programs, subject, plan)?;
    let one = bench.bulk(1).context("one stream")?;
    one.check_path(subject.path())?;
    Ok(Run {
        one,
        eight: bench.bulk(STREAMS).context("eight streams")?,
        echo: bench.quantiles("echo", plan.echoes)?,
        dial: bench.quantiles("dial", plan.dials)?,
        http_per_s: bench.http().context("HTTP")?,
    })
}

/// Runs `subject` through the bulk load with one stream.
///
/// # Errors
///
/// As [`tunnel`].
pub(crate) fn one_stream(
    lab: &Lab,
    programs: &Programs,
    subject: Subject,
    plan: &Plan,
) -> Result<Bulk> {
    let bulk = Bench::start(lab, programs, subject, plan)?.bulk(1)?;
    bulk.check_path(subject.path())?;
    Ok(bulk)
}

/// A tunnel with its service, ready to be loaded.
struct Bench<'a> {
    lab: &'a Lab,
    plan: &'a Plan,
    tunnel: Tunnel,
    service: Process,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab, programs: &Programs, subject: Subject, plan: &'a Plan) -> Result<Self> {
        let bind = if lab.is_namespaces() { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let mut service = load::spawn(lab, Place::Provider, &["serve", bind])?;
        let port = service.wait_for(crate::START, |line| {
            line.strip_prefix("ready ")?.rsplit_once(':')?.1.parse().ok()
        })?;
        let tunnel = peers::start(lab, programs, subject, ([127, 0, 0, 1], port).into())?;
        Ok(Self { lab, plan, tunnel, service })
    }

    /// A bulk load, again if others disturbed it.
    fn bulk(&self, connections: usize) -> Result<Bulk> {
        let mut bulk = self.bulk_once(connections)?;
        for _ in 1..self.plan.tries {
            if bulk.others_cores <= DISTURBED_CORES {
                break;
            }
            bulk = self.bulk_once(connections)?;
        }
        Ok(bulk)
    }

    fn bulk_once(&self, connections: usize) -> Result<Bulk> {
        cpu::wait_until_idle(self.plan.patience)?;
        let mut sink = self.load("bulk", connections)?;
        let ours = self.ours(&sink);
        std::thread::sleep(self.plan.warm_up);

        let others = RunTime::of_others(&ours);
        let (start, bytes, before) = (Instant::now(), count(&mut sink)?, self.run_times()?);
        std::thread::sleep(self.plan.window);
        let (elapsed, more, after) = (start.elapsed(), count(&mut sink)?, self.run_times()?);
        let others_s = RunTime::of_others(&ours).seconds_since(&others);

        let bytes = more - bytes;
        ensure!(bytes > 0, "nothing arrived in the window");
        let gb = bytes as f64 / 1e9;
        let mut cpu_s_per_gb = BTreeMap::new();
        for ((place, after), (_, before)) in after.iter().zip(&before) {
            *cpu_s_per_gb.entry(*place).or_default() += after.seconds_since(before) / gb;
        }
        Ok(Bulk {
            gbit_s: 8.0 * gb / elapsed.as_secs_f64(),
            cpu_s_per_gb,
            others_cores: others_s / elapsed.as_secs_f64(),
        })
    }

    /// Responses per second.
    fn http(&self) -> Result<f64> {
        cpu::wait_until_idle(self.plan.patience)?;
        let mut clients = self.load("http", HTTP_CONNECTIONS)?;
        std::thread::sleep(self.plan.warm_up);
        let (start, responses) = (Instant::now(), count(&mut clients)?);
        std::thread::sleep(self.plan.window);
        let (elapsed, more) = (start.elapsed(), count(&mut clients)?);
        ensure!(more > responses, "no response in the window");
        Ok((more - responses) as f64 / elapsed.as_secs_f64())
    }

    fn quantiles(&self, what: &str, times: usize) -> Result<Quantiles> {
        cpu::wait_until_idle(self.plan.patience)?;
        let entry = self.tunnel.entry.to_string();
        load::spawn(self.lab, Place::Tenant, &[what, &entry, &times.to_string()])?
            .wait_for(crate::START * 3, |line| line.parse().ok())
    }

    /// Starts a load that counts, and waits until each of its connections flows.
    fn load(&self, what: &str, connections: usize) -> Result<Process> {
        let entry = self.tunnel.entry.to_string();
        let args = [what, &entry, &connections.to_string()];
        let mut load = load::spawn(self.lab, Place::Tenant, &args)?;
        load.wait_for(crate::START, |line| (line == "flowing").then_some(()))?;
        Ok(load)
    }

    fn run_times(&self) -> Result<Vec<(Place, RunTime)>> {
        let roles = self.tunnel.roles.iter();
        roles.map(|(place, role)| Ok((*place, RunTime::of(role.pid())?))).collect()
    }

    fn ours(&self, load: &Process) -> BTreeSet<u32> {
        let roles = self.tunnel.roles.iter().map(|(_, role)| role.pid());
        roles.chain([std::process::id(), self.service.pid(), load.pid()]).collect()
    }
}

/// Asks a load how much it has counted.
fn count(load: &mut Process) -> Result<u64> {
    load.tell("count")?;
    load.wait_for(crate::START, |line| line.strip_prefix("count ")?.parse().ok())
}
