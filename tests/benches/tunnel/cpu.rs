//! CPU time and memory, as the kernel counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The machine counts as idle below this many busy cores.
const IDLE_CORES: f64 = 0.08;

/// The span over which idleness is judged.
const IDLE_SPAN: Duration = Duration::from_millis(500);

/// Run time of some threads, in nanoseconds by thread id. `schedstat` counts to the nanosecond what
/// ran in a thread's context, softirqs included, where `/proc/stat` samples ticks.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunTime(BTreeMap<u32, u64>);

impl RunTime {
    /// What the threads of the process `pid` have used until now.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut time = Self::default();
        time.add(pid).with_context(|| format!("process {pid} has ended"))?;
        Ok(time)
    }

    /// What the threads of all processes but `ours` and the kernel's have used until now.
    pub(crate) fn of_others(ours: &BTreeSet<u32>) -> Self {
        let mut time = Self::default();
        for pid in numbered(Path::new("/proc")).unwrap_or_default() {
            // The command line of the kernel's own threads is empty.
            let of_kernel = std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|command| command.is_empty());
            if !of_kernel && !ours.contains(&pid) {
                // A process may end while it is looked at.
                let _ = time.add(pid);
            }
        }
        time
    }

    /// Seconds used between `earlier` and this. Threads that ended in between are left out.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> f64 {
        let nanos: u64 = self
            .0
            .iter()
            .map(|(thread, now)| now.saturating_sub(earlier.0.get(thread).copied().unwrap_or(0)))
            .sum();
        Duration::from_nanos(nanos).as_secs_f64()
    }

    fn add(&mut self, pid: u32) -> Result<()> {
        for thread in numbered(&Path::new("/proc").join(pid.to_string()).join("task"))? {
            let Ok(line) = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"))
            else {
                continue;
            };
            let nanos = line.split_whitespace().next().and_then(|first| first.parse().ok());
            self.0.insert(thread, nanos.context("schedstat without a run time")?);
        }
        Ok(())
    }
}

/// Waits until the machine is idle, at most `limit`.
///
/// # Errors
///
/// If `/proc/stat` can't be read.
pub(crate) fn wait_until_idle(limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let before = busy_ticks()?;
        std::thread::sleep(IDLE_SPAN);
        // A tick is 10 ms on every Linux that matters here.
        let busy = Duration::from_millis(10 * (busy_ticks()? - before));
        if busy.as_secs_f64() / IDLE_SPAN.as_secs_f64() < IDLE_CORES {
            break;
        }
    }
    Ok(())
}

/// Resident memory of the process `pid`, in bytes.
///
/// # Errors
///
/// If there is no such process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .context("no VmRSS in the process' status")?;
    Ok(kib * 1024)
}

/// What machine this is, for the reader of the tables.
pub(crate) fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let model =
        model.and_then(|line| line.split_once(": ")).map_or("unknown CPU", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{cores} cores, {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

fn busy_ticks() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat").context("failed to read /proc/stat")?;
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq
    match ticks.as_slice() {
        [user, nice, system, _idle, _iowait, irq, softirq, ..] => {
            Ok(user + nice + system + irq + softirq)
        }
        _ => anyhow::bail!("/proc/stat has no line for the whole machine"),
    }
}

fn numbered(folder: &Path) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir(folder)?.map_while(Result::ok);
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
