//! The programs that are measured: where they are, and how a tunnel is made of each.

mod bore;
mod iroh;
mod rathole;
mod sluice;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cleanup;
use crate::load;
use crate::netns::{Lab, Place};
use crate::process::Process;
use crate::results::Results;
use crate::subject::{Family, Subject};

/// The programs found. A family without its programs is not measured.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    tcp: bool,
    sluice: Option<PathBuf>,
    iroh: Option<Iroh>,
    rathole: Option<PathBuf>,
    bore: Option<PathBuf>,
}

/// iroh's relay, and our own tunnel through it.
#[derive(Debug)]
struct Iroh {
    relay: PathBuf,
    tunnel: PathBuf,
}

/// A running tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// Where the tenant dials.
    pub(crate) entry: SocketAddr,
    /// The tunnel's processes, each by the host it runs on.
    pub(crate) roles: Vec<(Place, Process)>,
    _folder: Option<Folder>,
}

/// A folder for a tunnel's files, removed with it.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _made: cleanup::Folder,
}

impl Programs {
    /// Looks for the programs of the families in `only`, or of all if it is empty, and notes what
    /// is absent. Builds Sluice first, unless `SLUICE_BIN` names its binary.
    ///
    /// # Errors
    ///
    /// If Sluice is to be measured and can't be built.
    pub(crate) fn find(only: &[Family], results: &mut Results) -> Result<Self> {
        let wanted = |family| only.is_empty() || only.contains(&family);
        let mut programs = Self { tcp: wanted(Family::Tcp), ..Self::default() };
        if wanted(Family::Sluice) {
            programs.sluice = Some(sluice::program()?);
        }
        if wanted(Family::Iroh) {
            programs.iroh = find("iroh-relay", results)
                .zip(find("tcp-over-iroh", results))
                .map(|(relay, tunnel)| Iroh { relay, tunnel });
        }
        if wanted(Family::Rathole) {
            programs.rathole = find("rathole", results);
        }
        if wanted(Family::Bore) {
            programs.bore = find("bore", results);
        }
        Ok(programs)
    }

    pub(crate) fn has(&self, family: Family) -> bool {
        match family {
            Family::Tcp => self.tcp,
            Family::Sluice => self.sluice.is_some(),
            Family::Iroh => self.iroh.is_some(),
            Family::Rathole => self.rathole.is_some(),
            Family::Bore => self.bore.is_some(),
        }
    }
}

/// Makes a tunnel to the service at the provider's `service`, and waits until an echo came back
/// through it.
///
/// # Errors
///
/// If one of its programs fails, or the tunnel does not come up in time.
pub(crate) fn start(
    lab: &Lab,
    programs: &Programs,
    subject: Subject,
    service: SocketAddr,
) -> Result<Tunnel> {
    let absent = || format!("{subject} is not here");
    lab.set_forwarding(subject.needs_forwarding())?;
    let tunnel = match subject {
        Subject::PlainTcp => {
            let entry = SocketAddr::new(lab.ip(Place::Provider), service.port());
            Tunnel { entry, roles: Vec::new(), _folder: None }
        }
        Subject::Sluice { path, metered } => {
            let program = programs.sluice.as_deref().with_context(absent)?;
            sluice::start(lab, program, path, metered, service)?
        }
        Subject::Iroh(path) => {
            iroh::start(lab, programs.iroh.as_ref().with_context(absent)?, path, service)?
        }
        Subject::Rathole { noise } => {
            rathole::start(lab, programs.rathole.as_deref().with_context(absent)?, noise, service)?
        }
        Subject::Bore => bore::start(lab, programs.bore.as_deref().with_context(absent)?, service)?,
    };
    load::spawn(lab, Place::Tenant, &["probe", &tunnel.entry.to_string()])?
        .wait_for(crate::START * 2, |line| (line == "ready").then_some(()))?;
    Ok(tunnel)
}

/// Starts a Sluice relay alone, and tells the address that its holders are given.
///
/// # Errors
///
/// If Sluice is not here, or its relay does not start.
pub(crate) fn idle_relay(lab: &Lab, programs: &Programs) -> Result<(Tunnel, String)> {
    sluice::relay(lab, programs.sluice.as_deref().context("sluice is not here")?)
}

impl Folder {
    fn new() -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix("sluice-bench-")
            .tempdir()
            .context("failed to make a temporary folder")?
            .keep();
        Ok(Self { _made: cleanup::Folder::register(path.clone()), path })
    }

    /// Writes a file into the folder.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::write(&path, text).with_context(|| format!("failed to write {name}"))?;
        Ok(path)
    }
}

/// A peer's program: on PATH, or where `tests/peers/install` puts it.
fn find(name: &str, results: &mut Results) -> Option<PathBuf> {
    let installed = std::env::home_dir().map(|home| home.join(".cache/sluice/peers/bin"));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&on_path)
        .chain(installed)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    if found.is_none() {
        results.note(format!("{name} is not here (tests/peers/install): left out"));
    }
    found
}

/// Waits until `process` listens at `port`, as its network namespace tells.
fn wait_listening(process: &Process, port: u16) -> Result<()> {
    let end = Instant::now() + crate::START;
    while Instant::now() < end {
        if listens(process.pid(), port)? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{} does not listen at port {port}", process.name())
}

fn listens(pid: u32, port: u16) -> Result<bool> {
    /// The state of a listening socket in `/proc/net/tcp`.
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    for table in ["tcp", "tcp6"] {
        let path = Path::new("/proc").join(pid.to_string()).join("net").join(table);
        let sockets = std::fs::read_to_string(path).context("the program has ended")?;
        let mut rows = sockets.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        if rows.any(
            |row| matches!(row.as_slice(), [_, local, _, LISTEN, ..] if local.ends_with(&port)),
        ) {
            return Ok(true);
        }
    }
    Ok(false)
}
