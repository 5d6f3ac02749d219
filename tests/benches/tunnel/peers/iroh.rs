//! iroh: its own relay server, without TLS, and TCP through it by `tests/peers`.
//!
//! Without TLS the relay is at its cheapest; as it is deployed it costs a quarter more. What holds it
//! to the relay is that no packet passes between the ends; iroh without UDP sockets of its own would
//! send each packet alone, and lose four fifths of its rate.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Folder, Iroh, Tunnel, wait_listening};
use crate::netns::{Lab, Place};
use crate::process::Process;
use crate::subject::Path;

pub(super) fn start(lab: &Lab, programs: &Iroh, path: Path, service: SocketAddr) -> Result<Tunnel> {
    let folder = Folder::new()?;
    let address = lab.free_address(Place::Relay)?;
    let relay = start_relay(lab, programs, &folder, address)?;
    let url = format!("http://{address}");

    let mut command = lab.command(Place::Provider, &programs.tunnel);
    command.args(["provide", "--relay", &url, "--to", &service.to_string()]);
    let mut provider = Process::spawn("tcp-over-iroh provide", &mut command)?;
    let id =
        provider.wait_for(crate::START, |line| Some(line.strip_prefix("ready ")?.to_owned()))?;

    let listen = lab.free_local(Place::Tenant)?.to_string();
    let mut command = lab.command(Place::Tenant, &programs.tunnel);
    command.args(["connect", "--relay", &url, "--peer", &id, "--listen", &listen]);
    let mut tenant = Process::spawn("tcp-over-iroh connect", &mut command)?;
    let entry = tenant.wait_for(crate::START, |line| line.strip_prefix("ready ")?.parse().ok())?;
    if path == Path::Direct {
        tenant.wait_for(crate::START, |line| (line == "path direct").then_some(()))?;
    }

    let roles = vec![(Place::Tenant, tenant), (Place::Relay, relay), (Place::Provider, provider)];
    Ok(Tunnel { entry, roles, _folder: Some(folder) })
}

fn start_relay(
    lab: &Lab,
    programs: &Iroh,
    folder: &Folder,
    address: SocketAddr,
) -> Result<Process> {
    let config = folder.write(
        "relay.toml",
        &format!("http_bind_addr = \"{address}\"\nenable_metrics = false\n"),
    )?;
    let mut command = lab.command(Place::Relay, &programs.relay);
    command.args(["--dev", "--config-path"]).arg(config).env("RUST_LOG", "error");
    let relay = Process::spawn("iroh-relay", &mut command)?;
    wait_listening(&relay, address.port())?;
    Ok(relay)
}
