//! The ledger's write path, killed at every system call, failed at every disk call, and cut off
//! with what was not synced lost, torn and out of order.
//!
//! A victim, this program anew, records vouchers and tells each one that the ledger accepted; a
//! tracer (ptrace) counts its system calls, ends it, makes calls fail, and notes what it told. What
//! was told is compared with what the ledger holds when it is opened again. The tracer is not the
//! victim: nothing that the victim believes of itself counts.

mod command;
mod disk;
mod trace;
mod victim;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sluice_ledger::{Ledger, Role};

use crate::figures::{Figure, Target};
use crate::pool;
use crate::rng::Rng;

pub use command::{Options, VictimOptions};
pub use victim::{Victim, run as run_victim};

use disk::Damage;
use trace::{Blow, Ended, Fault, Traced};

/// Vouchers that a victim records.
const VOUCHERS: u64 = 8;
/// Vouchers that are recorded after each blow, to see that the ledger goes on.
const AFTER: u64 = 3;
/// Where the ledger is in its folder.
const FILE: &str = "ledger.db";

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// System calls at which the victim is killed; each of one run is among them if there is room.
    pub kills: usize,
    /// Disk calls that fail.
    pub faults: usize,
    /// Images of the disk after a power cut.
    pub cuts: usize,
    /// Victims that are killed, and killed again while they recover.
    pub doubles: usize,
}

/// What a victim finds when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// No ledger.
    Nothing,
    /// A ledger that was closed in order.
    Closed,
    /// A write-ahead log that is about to be checkpointed, left by a process that died.
    BeforeCheckpoint,
    /// So many vouchers that the next one thins the chain of amounts.
    BeforeThinning,
}

const STARTS: [Start; 4] =
    [Start::Nothing, Start::Closed, Start::BeforeCheckpoint, Start::BeforeThinning];
const ROLES: [Role; 2] = [Role::Payee, Role::Payer];

/// A folder to start from, and how long a run from it is.
struct Template {
    folder: tempfile::TempDir,
    start: Start,
    role: Role,
    /// Vouchers in it.
    held: u64,
    /// System calls of the write path.
    calls: usize,
    /// System calls from the start of the process on.
    calls_of_all: usize,
    /// Calls that change or sync the ledger's files, from the first voucher on.
    disk_calls: usize,
}

/// One thing that is tried.
enum Trial<'a> {
    Kill(&'a Template, usize),
    /// The same to a victim that tells of a voucher before it is recorded.
    Hasty(&'a Template, usize),
    Fault(&'a Template, usize, Fault),
    Double(&'a Template, usize, usize),
    Cut(&'a Template, &'a Traced, u64),
    /// As if nothing had ever been synced.
    Control(&'a Template, &'a Traced, u64),
}

/// Tries all of `plan`; `program` is this program. `tell` hears of what is wrong.
///
/// # Errors
/// When a victim cannot be started or traced.
pub fn run(program: &Path, plan: Plan, tell: impl Fn(&str) + Sync) -> Result<Vec<Figure>> {
    let cases: Vec<(Start, Role)> =
        STARTS.iter().flat_map(|start| ROLES.map(|role| (*start, role))).collect();
    let templates = pool::run(&cases, |(start, role)| template(program, *start, *role), |_, _| {});
    let templates: Vec<Template> = templates.into_iter().collect::<Result<_>>()?;
    let recorded = pool::run(&templates, |t| record(program, t), |_, _| {});
    let recorded: Vec<Traced> = recorded.into_iter().collect::<Result<_>>()?;
    let mut figures = Vec::new();
    for (name, unit, wanted, trials) in [
        ("SIGKILL at a system call", "calls", plan.kills, kills(&templates, plan)),
        ("disk call fails", "calls", plan.faults, faults(&templates, plan)),
        ("power cut", "images", plan.cuts, cuts(&templates, &recorded, plan.cuts, false)),
        ("SIGKILL, and again in recovery", "times", plan.doubles, doubles(&templates, plan)),
    ] {
        let outcomes = pool::run(
            &trials,
            |t| t.run(program),
            |trial, outcome| {
                if let Err(error) = outcome {
                    tell(&format!("FAILED: {}: {error:#}", trial.name()));
                }
            },
        );
        let failed = outcomes.iter().filter(|o| o.is_err()).count();
        figures.push(Figure::new(name, trials.len() as f64, unit, Target::AtLeast(wanted as f64)));
        let name = format!("{name}: lost, doubled or stuck");
        figures.push(Figure::new(name, failed as f64, "", Target::AtMost(0.0)));
    }
    let hasty = spread(&templates, plan.kills.div_ceil(20), |t| t.calls, Trial::Hasty);
    for (name, unit, trials) in [
        ("control: SIGKILLs that lose what was told too early", "calls", hasty),
        (
            "control: power cuts that lose vouchers when nothing is synced",
            "images",
            cuts(&templates, &recorded, plan.cuts.div_ceil(4), true),
        ),
    ] {
        let outcomes = pool::run(&trials, |t| t.run(program), |_, _| {});
        let lost = outcomes.iter().filter(|o| o.is_err()).count();
        figures.push(Figure::new(name, lost as f64, unit, Target::AtLeast(1.0)));
    }
    Ok(figures)
}

impl Trial<'_> {
    fn name(&self) -> String {
        let from = |t: &Template| format!("{:?} from {:?}", t.role, t.start);
        match self {
            Self::Kill(t, at) => format!("{}, killed at call {at}", from(t)),
            Self::Hasty(t, at) => format!("{}, hasty, killed at call {at}", from(t)),
            Self::Fault(t, at, fault) => format!("{}, {fault:?} at disk call {at}", from(t)),
            Self::Double(t, first, second) => {
                format!("{}, killed at call {first} and then at {second}", from(t))
            }
            Self::Cut(t, _, seed) => format!("{}, power cut {seed}", from(t)),
            Self::Control(t, _, seed) => format!("{}, control {seed}", from(t)),
        }
    }

    fn run(&self, program: &Path) -> Result<()> {
        let folder = tempfile::tempdir()?;
        match self {
            Self::Kill(template, at) | Self::Hasty(template, at) => {
                template.copy_to(folder.path())?;
                let victim = template.victim(folder.path(), matches!(self, Self::Hasty(..)));
                let traced = trace::run(program, &victim, Blow::KillAt(*at))?;
                ensure!(traced.ended == Ended::Killed, "it was over before: {:?}", traced.ended);
                template.check(folder.path(), traced.told)
            }
            Self::Fault(template, at, fault) => {
                template.copy_to(folder.path())?;
                let traced = template.trace(program, folder.path(), Blow::Fail(*at, *fault))?;
                ensure!(traced.ended != Ended::Killed, "it died: {:?}", traced.ended);
                // What a sync that failed has left on the disk is unknown: the power is cut now.
                let image = tempfile::tempdir()?;
                let cut = traced.log.len();
                let damage = Damage::drawn(&mut Rng::new(*at as u64));
                traced.log.image(template.folder.path(), image.path(), cut, damage)?;
                template.check(folder.path(), traced.told)?;
                template.check(image.path(), traced.told).context("and then a power cut")
            }
            Self::Double(template, first, second) => {
                template.copy_to(folder.path())?;
                let one = template.trace(program, folder.path(), Blow::KillAt(*first))?;
                let two = template.trace(program, folder.path(), Blow::KillInAllAt(*second))?;
                template.check(folder.path(), one.told.max(two.told))
            }
            Self::Cut(template, traced, seed) | Self::Control(template, traced, seed) => {
                let mut rng = Rng::new(*seed);
                let cut = rng.below(traced.log.len() as u64 + 1) as usize;
                let mut damage = Damage::drawn(&mut rng);
                damage.syncs_count = matches!(self, Self::Cut(..));
                let told = traced.log.image(template.folder.path(), folder.path(), cut, damage)?;
                template.check(folder.path(), told)
            }
        }
    }
}

fn kills(templates: &[Template], plan: Plan) -> Vec<Trial<'_>> {
    spread(templates, plan.kills, |t| t.calls, Trial::Kill)
}

fn faults(templates: &[Template], plan: Plan) -> Vec<Trial<'_>> {
    let mut trials = Vec::new();
    for fault in Fault::ALL {
        let wanted = plan.faults.div_ceil(Fault::ALL.len());
        trials.extend(spread(
            templates,
            wanted,
            |t| t.disk_calls,
            |t, at| Trial::Fault(t, at, fault),
        ));
    }
    trials
}

fn doubles(templates: &[Template], plan: Plan) -> Vec<Trial<'_>> {
    let mut rng = Rng::new(2);
    spread(
        templates,
        plan.doubles,
        |t| t.calls,
        |template, first| {
            // Recovery is the first part of a process.
            let second = 1 + rng.below(template.calls_of_all as u64) as usize;
            Trial::Double(template, first, second)
        },
    )
}

fn cuts<'a>(
    templates: &'a [Template],
    recorded: &'a [Traced],
    count: usize,
    control: bool,
) -> Vec<Trial<'a>> {
    let pairs: Vec<_> = templates.iter().zip(recorded).collect();
    (0..count)
        .map(|seed| {
            let (template, traced) = pairs[seed % pairs.len()];
            match control {
                false => Trial::Cut(template, traced, seed as u64),
                true => Trial::Control(template, traced, seed as u64),
            }
        })
        .collect()
}

/// `wanted` points, as evenly over the templates' calls as can be. Where there are fewer calls than
/// are wanted, calls are tried again: which of the victim's threads is ahead differs by run.
fn spread<'a>(
    templates: &'a [Template],
    wanted: usize,
    calls: impl Fn(&Template) -> usize,
    mut trial: impl FnMut(&'a Template, usize) -> Trial<'a>,
) -> Vec<Trial<'a>> {
    let all: Vec<(&Template, usize)> =
        templates.iter().flat_map(|t| (1..=calls(t)).map(move |at| (t, at))).collect();
    let step = (all.len() as f64 / wanted.max(1) as f64).max(f64::MIN_POSITIVE);
    (0..wanted)
        .map(|n| {
            let (template, at) = all[((n as f64 * step) as usize).min(all.len() - 1)];
            trial(template, at)
        })
        .collect()
}

fn template(program: &Path, start: Start, role: Role) -> Result<Template> {
    let folder = tempfile::tempdir()?;
    let held = block_on(prepare(folder.path(), start, role))?;
    let mut template =
        Template { folder, start, role, held, calls: 0, calls_of_all: 0, disk_calls: 0 };
    let traced = record(program, &template)?;
    // A run may be some calls shorter than the one that was counted.
    template.calls = traced.calls * 9 / 10;
    template.calls_of_all = traced.calls_of_all * 9 / 10;
    template.disk_calls = traced.disk_calls;
    Ok(template)
}

/// Runs a victim to its end.
fn record(program: &Path, template: &Template) -> Result<Traced> {
    let folder = tempfile::tempdir()?;
    template.copy_to(folder.path())?;
    let traced = template.trace(program, folder.path(), Blow::None)?;
    ensure!(traced.ended == Ended::Exited(0), "the victim ended with {:?}", traced.ended);
    ensure!(traced.told == template.held + VOUCHERS, "the victim told of {}", traced.told);
    template.check(folder.path(), traced.told)?;
    Ok(traced)
}

/// Makes what a victim is to find; gives how many vouchers that holds.
async fn prepare(folder: &Path, start: Start, role: Role) -> Result<u64> {
    if start == Start::Nothing {
        return Ok(0);
    }
    // Elsewhere, so that what is copied is what a process that died leaves behind.
    let workshop = tempfile::tempdir()?;
    let ledger = victim::open(workshop.path(), role).await?;
    let log = workshop.path().join(format!("{FILE}-wal"));
    let enough = |held: u64| match start {
        Start::Nothing | Start::Closed => Ok(held == 5),
        // SQLite checkpoints at 1,000 pages of the log.
        Start::BeforeCheckpoint => {
            anyhow::Ok(held > 5 && std::fs::metadata(&log)?.len() > 985 * (4096 + 24))
        }
        Start::BeforeThinning => Ok(held == sluice_ledger::LINKS_MAX - 2),
    };
    let mut held = 0;
    while !enough(held)? {
        held += 1;
        ensure!(held < 10_000, "the log of {start:?} does not fill");
        victim::record(&ledger, role, held).await?;
    }
    if start == Start::BeforeCheckpoint {
        copy(workshop.path(), folder)?;
        drop(ledger);
    } else {
        drop(ledger);
        copy(workshop.path(), folder)?;
    }
    Ok(held)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        // SQLite's index of the log is made anew, as after a power cut.
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

impl Template {
    fn copy_to(&self, folder: &Path) -> Result<()> {
        copy(self.folder.path(), folder)
    }

    fn victim(&self, folder: &Path, hasty: bool) -> Victim {
        Victim { folder: folder.to_owned(), role: self.role, vouchers: VOUCHERS, hasty }
    }

    fn trace(&self, program: &Path, folder: &Path, blow: Blow) -> Result<Traced> {
        trace::run(program, &self.victim(folder, false), blow)
    }

    /// Whether a ledger holds all that was told, nothing that was not offered, and goes on.
    fn check(&self, folder: &Path, told: u64) -> Result<()> {
        block_on(async {
            let ledger = victim::open(folder, self.role).await.context("it does not open")?;
            let held = victim::newest(&ledger, self.role).await?;
            ensure!(held >= told, "voucher {told} was acknowledged, {held} is the newest");
            // The victim offers one at a time, and up to two runs may have offered one more.
            ensure!(held <= told.max(self.held) + 2, "{held} is held, {told} was the last told");
            self.check_chain(&ledger, held).await?;
            for next in held + 1..=held + AFTER {
                victim::record(&ledger, self.role, next).await.context("it does not go on")?;
            }
            let after = victim::newest(&ledger, self.role).await?;
            ensure!(after == held + AFTER, "{after} is held after it went on from {held}");
            Ok(())
        })
    }

    async fn check_chain(&self, ledger: &Ledger, newest: u64) -> Result<()> {
        let links = ledger.vouchers(victim::LEASE, self.role).await?;
        let rises = links.is_sorted_by(|a, b| a.seq < b.seq && a.amount < b.amount && a.up < b.up);
        ensure!(rises, "the chain of amounts does not rise");
        match links.last() {
            Some(last) if last.up != newest || last.seq != newest => {
                bail!("the chain ends at {} with number {}, not {newest}", last.up, last.seq)
            }
            None if newest > 0 => bail!("there is no chain"),
            Some(_) | None => Ok(()),
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().build()?.block_on(work)
}
