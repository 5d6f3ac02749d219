//! `sluice nodes` and `sluice relays`: what is known in the mesh.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sluice_ledger::Recovery;
use sluice_market::{RelayBook, Reputation};
use sluice_mesh::mesh_addresses;
use sluice_proto::{Keypair, PeerId, WalletKey};
use sluice_transport::{Clock, Random};

use super::{head, place, short, table, tell};
use crate::cli::{MeshArgs, NodesArgs, RelaysArgs, StateArgs};
use crate::config::Config;
use crate::roles::{
    Identity, Known, KnownRelay, MeshOptions, Meshed, NodeLine, Probing, Ranked, RelayLine,
    relay_facts, relay_policy,
};
use crate::state::State;

/// A node of the mesh has so long to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What is told of relays is waited for so long ..
const TOLD_WITHIN: Duration = Duration::from_secs(6);
/// .. and no longer than this after the last that was news.
const QUIET: Duration = Duration::from_millis(1500);
/// How often it is looked whether something has come.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) async fn nodes(config: &Config, args: &NodesArgs, json: bool) -> Result<()> {
    let mut known = match asks_mesh(config, &args.mesh, &args.state)? {
        true => {
            let mesh = visit(config, &args.mesh).await?;
            wait_for_relays(&mesh).await;
            for peer in &args.peer {
                // It is then among those that are held.
                mesh.mesh().find(*peer).await.with_context(|| format!("{peer} is not found"))?;
            }
            mesh.known().await
        }
        false => read(config, &args.state)?,
    };
    if !args.peer.is_empty() {
        let wanted: Vec<String> = args.peer.iter().map(PeerId::to_string).collect();
        known.nodes.retain(|node| wanted.contains(&node.peer));
        for peer in &wanted {
            let is_known = known.nodes.iter().any(|node| node.peer == *peer);
            ensure!(
                is_known,
                "{peer} is not among the records that the role here holds: ask the mesh with --bootstrap"
            );
        }
    }
    if json {
        for node in &known.nodes {
            tell(true, || node_json(node), String::new);
        }
        return Ok(());
    }
    if known.nodes.is_empty() {
        tell(false, || Value::Null, || "No record is known.".to_owned());
        return Ok(());
    }
    let row = |node: &NodeLine| {
        let roles = if node.roles.is_empty() { "-".to_owned() } else { node.roles.join(", ") };
        let shown = if args.peer.is_empty() { short(&node.peer) } else { node.peer.clone() };
        let services = node.services.join(", ");
        let price = format!("{} / {}", node.price_down, node.price_up);
        vec![shown, roles, services, price, node.relays.join(", ")]
    };
    let names = head(["node", "roles", "services", "per GiB down / up", "relays"]);
    let rows: Vec<_> = std::iter::once(names).chain(known.nodes.iter().map(row)).collect();
    tell(false, || Value::Null, || table(&rows));
    Ok(())
}

fn node_json(node: &NodeLine) -> Value {
    json!({
        "event": "node", "peer": node.peer, "roles": node.roles, "services": node.services,
        "relays": node.relays, "price_up": node.price_up, "price_down": node.price_down,
        "sequence": node.sequence, "expires_unix_s": node.expires_unix_s, "mesh": node.mesh,
    })
}

pub(crate) async fn relays(config: &Config, args: &RelaysArgs, json: bool) -> Result<()> {
    let relays: Vec<RelayLine> = match asks_mesh(config, &args.mesh, &args.state)? {
        true => {
            let mesh = visit(config, &args.mesh).await?;
            wait_for_relays(&mesh).await;
            rank(config, &mesh, args.explain).await.iter().map(RelayLine::from).collect()
        }
        false => read(config, &args.state)?.relays,
    };
    if json {
        for relay in &relays {
            tell(true, || relay_json(relay, args.explain), String::new);
        }
        return Ok(());
    }
    if relays.is_empty() {
        tell(false, || Value::Null, || "No relay is known.".to_owned());
        return Ok(());
    }
    let row = |relay: &RelayLine| {
        let ms = relay.latency_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        let price = format!("{} / {}", relay.price_down, relay.price_up);
        let mut row = vec![relay.address.clone(), price, ms];
        if args.explain {
            row.push(relay.why.clone());
        }
        row
    };
    let mut names = head(["relay", "per GiB down / up", "round trip"]);
    if args.explain {
        names.push("why".to_owned());
    }
    let rows: Vec<_> = std::iter::once(names).chain(relays.iter().map(row)).collect();
    tell(false, || Value::Null, || table(&rows));
    Ok(())
}

fn relay_json(relay: &RelayLine, explain: bool) -> Value {
    let mut value = json!({
        "event": "relay", "peer": relay.peer, "address": relay.address,
        "price_up": relay.price_up, "price_down": relay.price_down,
        "latency_ms": relay.latency_ms, "chosen": relay.chosen,
    });
    if explain {
        value["why"] = relay.why.clone().into();
    }
    value
}

/// Whether the mesh is asked, rather than a file of a running role read: when an address to begin with
/// is given, or only the configuration has one.
fn asks_mesh(config: &Config, args: &MeshArgs, state: &StateArgs) -> Result<bool> {
    if !args.bootstrap.is_empty() {
        return Ok(true);
    }
    let has_file = state_dir(config, state)?.is_some();
    Ok(!has_file && !config.mesh.bootstrap.is_empty())
}

/// The directory that is meant, if a role wrote there what it knows.
fn state_dir(config: &Config, state: &StateArgs) -> Result<Option<std::path::PathBuf>> {
    let named =
        state.state_dir.is_some() || state.role.is_some() || config.node.state_dir.is_some();
    let candidates = match named {
        true => vec![place(config, state)?],
        false => ["provide", "connect", "relay"]
            .into_iter()
            .map(State::default_dir)
            .collect::<Result<_, _>>()?,
    };
    for dir in candidates {
        if State::mesh_known(&dir)?.is_some() {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// What the role of a directory wrote down.
fn read(config: &Config, state: &StateArgs) -> Result<Known> {
    let Some(dir) = state_dir(config, state)? else {
        bail!(
            "no role with a mesh has run here: name a node of the mesh with --bootstrap, or a role's \
             directory with --state-dir"
        )
    };
    let text = State::mesh_known(&dir)?.unwrap_or_default();
    parse(&dir, &text)
}

fn parse(dir: &Path, text: &str) -> Result<Known> {
    let path = State::mesh_known_in(dir);
    serde_json::from_str(text).with_context(|| {
        format!("{} is damaged: the role writes it anew when it runs", path.display())
    })
}

/// Joins the mesh under a name of no meaning, and waits until a node answers.
async fn visit(config: &Config, args: &MeshArgs) -> Result<Meshed> {
    let mut section = config.mesh.clone();
    section.listen = args.listen;
    if !args.bootstrap.is_empty() {
        section.bootstrap.clone_from(&args.bootstrap);
    }
    let listen = section.listen.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
    let options = MeshOptions {
        listen: mesh_addresses(listen).to_vec(),
        bootstrap: section.bootstrap.clone(),
        private: section.is_private(),
        lan: section.lan,
        ..MeshOptions::default()
    };
    let mesh = Meshed::start(&nobody()?, options, None).await?;
    let clock = Clock::default();
    let end = clock.now() + ANSWER_WITHIN;
    while mesh.mesh().peers().await.is_empty() {
        ensure!(
            clock.now() < end,
            "no node of the mesh answered within {} s: {}",
            ANSWER_WITHIN.as_secs(),
            section.bootstrap.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        );
        clock.sleep(LOOK).await;
    }
    Ok(mesh)
}

/// Waits until peers have told of relays and nothing more comes.
async fn wait_for_relays(mesh: &Meshed) {
    let clock = Clock::default();
    let mut changes = mesh.relay_changes();
    let end = clock.now() + TOLD_WITHIN;
    loop {
        let left = end.saturating_duration_since(clock.now());
        let quiet = if mesh.relays().is_empty() { left } else { QUIET.min(left) };
        match clock.timeout(quiet, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Measures the relays and ranks them as a provider of this configuration would that uses none yet.
async fn rank(config: &Config, mesh: &Meshed, explain: bool) -> Vec<Ranked> {
    let known = mesh.relays();
    let unmeasured = |relay: &KnownRelay| Ranked {
        relay: *relay,
        latency: None,
        chosen: false,
        why: String::new(),
    };
    if !explain {
        return known.iter().map(unmeasured).collect();
    }
    let mut probing = Probing::new(config.node.bind.ip());
    for relay in &known {
        probing.ask(relay.peer, relay.address);
    }
    let mut latency = std::collections::HashMap::new();
    while !probing.is_idle() {
        let (peer, probed) = probing.next().await;
        latency.insert(peer, probed.rtt);
    }
    let now = Clock::default().now();
    let policy = relay_policy(config.provide.relay_price_max, mesh.is_private());
    let mut book = RelayBook::new(policy, Random::default().bytes());
    let nothing = Reputation::default();
    for relay in &known {
        let rtt = latency.get(&relay.peer).copied().flatten();
        let mut facts = relay_facts(relay, rtt, nothing.success_ppm(&relay.peer, now));
        facts.is_alive = rtt.is_some();
        book.handle_facts(facts, now);
    }
    let choice = book.choose(now);
    crate::roles::ranked(&choice, &known, |relay| latency.get(&relay.peer).copied().flatten())
}

/// Keys for one visit.
fn nobody() -> Result<Identity> {
    let random = Random::default();
    Ok(Identity {
        node: Keypair::ed25519_from_bytes(random.bytes::<32>()).context("no key could be made")?,
        noise: random.bytes(),
        reset: random.bytes(),
        wallet: WalletKey::from_bytes(random.bytes()).context("no key could be made")?,
        invites: random.bytes(),
        incarnation: random.number(),
        recovery: Recovery::none(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fed::feed;

    #[test]
    fn what_a_role_knows() {
        let genuine = serde_json::to_string(&Known::default()).expect("it can be written");
        let dir = Path::new("role");
        assert_eq!(parse(dir, &genuine).expect("the seed is genuine"), Known::default());
        feed!(genuine, |text: &str| drop(parse(dir, text)));
    }
}
