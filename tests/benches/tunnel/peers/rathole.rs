//! rathole: a server at the relay, a client at the provider; the tenant speaks plain TCP.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Folder, Tunnel, wait_listening};
use crate::netns::{Lab, Place};
use crate::process::Process;

pub(super) fn start(lab: &Lab, program: &Path, noise: bool, service: SocketAddr) -> Result<Tunnel> {
    let folder = Folder::new()?;
    let control = lab.free_address(Place::Relay)?;
    let entry = lab.free_address(Place::Relay)?;
    let (for_server, for_client) = if noise { noise_keys(program)? } else { Default::default() };
    let server = format!(
        "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n{for_server}\
         [server.services.load]\nbind_addr = \"{entry}\"\n"
    );
    let client = format!(
        "[client]\nremote_addr = \"{control}\"\ndefault_token = \"bench\"\n{for_client}\
         [client.services.load]\nlocal_addr = \"{service}\"\n"
    );
    let run = |place, role, config: &str| {
        let file = folder.write(&format!("{role}.toml"), config)?;
        let mut command = lab.command(place, program);
        command.arg(format!("--{role}")).arg(file).env("RUST_LOG", "error");
        Process::spawn(format!("rathole --{role}"), &mut command)
    };
    let relay = run(Place::Relay, "server", &server)?;
    wait_listening(&relay, control.port())?;
    let provider = run(Place::Provider, "client", &client)?;
    let roles = vec![(Place::Relay, relay), (Place::Provider, provider)];
    Ok(Tunnel { entry, roles, _folder: Some(folder) })
}

/// The transport sections of server and client, with a fresh key pair.
fn noise_keys(program: &Path) -> Result<(String, String)> {
    let output = Command::new(program)
        .arg("--genkey")
        .output()
        .context("failed to make a key with rathole")?;
    let text = String::from_utf8(output.stdout).context("rathole's key is not text")?;
    let key = |title| {
        text.lines()
            .skip_while(|line| *line != title)
            .nth(1)
            .with_context(|| format!("rathole's key has no line {title:?}"))
    };
    let section = |role, name, key| {
        format!(
            "[{role}.transport]\ntype = \"noise\"\n[{role}.transport.noise]\n{name} = \"{key}\"\n"
        )
    };
    let server = section("server", "local_private_key", key("Private Key:")?);
    Ok((server, section("client", "remote_public_key", key("Public Key:")?)))
}
