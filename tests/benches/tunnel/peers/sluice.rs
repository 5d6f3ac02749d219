//! Sluice itself: `sluice relay`, `provide` and `connect`, as a user runs them.
//!
//! A metered tunnel pays on both edges: the three roles share an embedded chain, prices are not
//! zero, and nothing is given for free. An unmetered one has prices of zero and no chain.

use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Folder, Tunnel};
use crate::netns::{Lab, Place};
use crate::process::Process;
use crate::subject::Path;

/// The name of the one service.
const SERVICE: &str = "bulk";

/// Every role's `sluice.toml`: rates at which neither the relay's limit nor the window's (16 MiB, the
/// largest) is what is measured.
const CONFIG: &str = r#"version = 1

[relay]
rate_max = "100 Gbit/s"

[provide]
rate_max = "10 Gbit/s"
"#;

/// As [`CONFIG`], with prices per GiB in the token's smallest unit, so small that a run's bytes stay
/// far below the deposit.
const METERED: &str = r#"version = 1

[chain]
kind = "embedded"
dir = "CHAIN"

[relay]
rate_max = "100 Gbit/s"
price = 1_000
starter_bytes = "0 B"

[provide]
rate_max = "10 Gbit/s"
price_up = 2_000
price_down = 2_000
starter_bytes = "0 B"
relay_deposit = 1_000_000_000
relay_price_max = 1_000

[connect]
deposit = 1_000_000_000
max_price_up = 2_000
max_price_down = 2_000
"#;

/// The binary: `SLUICE_BIN`, or else the one that cargo builds beside this benchmark.
pub(super) fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("SLUICE_BIN") {
        return Ok(program.into());
    }
    let this = std::env::current_exe().context("failed to find this program's own file")?;
    // <target folder>/release/deps/tunnel-<hash>
    let release = this.ancestors().nth(2).context("not run by cargo bench")?;
    let target = release.parent().context("not run by cargo bench")?;
    crate::say("building sluice");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "sluice", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(std::io::stderr())
        .status()
        .context("failed to start cargo")?;
    ensure!(status.success(), "failed to build sluice; SLUICE_BIN names a binary built before");
    Ok(release.join("sluice"))
}

pub(super) fn start(
    lab: &Lab,
    program: &FilePath,
    path: Path,
    metered: bool,
    service: SocketAddr,
) -> Result<Tunnel> {
    let roles = Roles { lab, program, folder: Folder::new()?, metered };
    let direct = match path {
        Path::Relayed => "never",
        Path::Direct => "always",
    };
    let (relay, address) = roles.relay(lab.free_address(Place::Relay)?)?;

    let expose = format!("{SERVICE}=tcp:{service}");
    let args = ["provide", "--expose", &expose, "--relay", &address, "--direct", direct];
    let mut provider = roles.run(Place::Provider, &args)?;
    let ticket = ready(&mut provider)?;
    let ticket = ticket["ticket"].as_str().context("provide is ready without a ticket")?;

    let entry = lab.free_local(Place::Tenant)?;
    let map = format!("{entry}={SERVICE}");
    let mut tenant =
        roles.run(Place::Tenant, &["connect", ticket, "--map", &map, "--direct", direct])?;
    let (mut is_ready, mut has_path) = (false, path == Path::Relayed);
    tenant.wait_for(crate::START, |line| {
        is_ready |= event(line, "ready").is_some();
        has_path |= event(line, "path").is_some_and(|event| event["kind"] == "direct");
        (is_ready && has_path).then_some(())
    })?;

    let processes =
        vec![(Place::Tenant, tenant), (Place::Relay, relay), (Place::Provider, provider)];
    Ok(Tunnel { entry, roles: processes, _folder: Some(roles.folder) })
}

/// A relay alone, unmetered, and the address that its holders are given.
pub(super) fn relay(lab: &Lab, program: &FilePath) -> Result<(Tunnel, String)> {
    let roles = Roles { lab, program, folder: Folder::new()?, metered: false };
    let entry = lab.free_address(Place::Relay)?;
    let (relay, address) = roles.relay(entry)?;
    let alone = vec![(Place::Relay, relay)];
    Ok((Tunnel { entry, roles: alone, _folder: Some(roles.folder) }, address))
}

/// How each role of one tunnel is started.
struct Roles<'a> {
    lab: &'a Lab,
    program: &'a FilePath,
    folder: Folder,
    metered: bool,
}

impl Roles<'_> {
    fn relay(&self, bind: SocketAddr) -> Result<(Process, String)> {
        let mut relay = self.run(Place::Relay, &["relay", "--bind", &bind.to_string()])?;
        let address = ready(&mut relay)?["address"]
            .as_str()
            .context("relay is ready without an address")?
            .to_owned();
        Ok((relay, address))
    }

    fn run(&self, place: Place, args: &[&str]) -> Result<Process> {
        let state = self.folder.path.join(place.to_string());
        let mut command = self.lab.command(place, self.program);
        let chain = self.folder.path.join("chain").display().to_string();
        let config = if self.metered { METERED } else { CONFIG }.replace("CHAIN", &chain);
        command.args(args).arg("--state").arg(state).arg("--json").env("SLUICE_LOG", "error");
        command.arg("--config").arg(self.folder.write("sluice.toml", &config)?);
        let role = args.first().copied().unwrap_or_default();
        Process::spawn(format!("sluice {role}"), &mut command)
    }
}

/// Waits until the role is ready, and returns what it says of itself then.
fn ready(role: &mut Process) -> Result<Value> {
    role.wait_for(crate::START, |line| event(line, "ready"))
}

/// The line, if it is an event of this kind.
fn event(line: &str, kind: &str) -> Option<Value> {
    let event: Value = serde_json::from_str(line).ok()?;
    (event["event"] == kind).then_some(event)
}
