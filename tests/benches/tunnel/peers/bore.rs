//! bore: a server at the relay, a client at the provider; the tenant speaks plain TCP.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{Tunnel, wait_listening};
use crate::netns::{Lab, Place};
use crate::process::Process;

/// bore's control port, which can't be chosen.
const CONTROL_PORT: u16 = 7835;

pub(super) fn start(lab: &Lab, program: &Path, service: SocketAddr) -> Result<Tunnel> {
    let entry = lab.free_address(Place::Relay)?;
    let ip = entry.ip().to_string();
    let mut command = lab.command(Place::Relay, program);
    command.args(["server", "--bind-addr", &ip]).env("RUST_LOG", "error");
    let relay = Process::spawn("bore server", &mut command)?;
    wait_listening(&relay, CONTROL_PORT)?;

    let (host, port) = (service.ip().to_string(), service.port().to_string());
    let mut command = lab.command(Place::Provider, program);
    command.args(["local", &port, "--local-host", &host, "--to", &ip]);
    command.args(["--port", &entry.port().to_string()]).env("RUST_LOG", "error");
    let provider = Process::spawn("bore local", &mut command)?;

    let roles = vec![(Place::Relay, relay), (Place::Provider, provider)];
    Ok(Tunnel { entry, roles, _folder: None })
}
