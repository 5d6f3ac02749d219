//! Providers that know one address of the mesh, and choose their relays there: real processes, real
//! swarms on loopback.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_proto::Ticket;
use tests::{Echo, Lab, PATIENCE, Process, RelayRole, done, until};

/// A relay in the mesh, and where its mesh is.
struct Hub {
    role: RelayRole,
    mesh: String,
}

fn hub(lab: &Lab, name: &str, bootstrap: &[&str]) -> Result<Hub> {
    let mut args = vec!["--bind", "127.0.0.1:0", "--mesh", "127.0.0.1:0"];
    args.extend(bootstrap.iter().flat_map(|address| ["--bootstrap", address]));
    let role = lab.relay_called(name, &args)?;
    let ready = role.process.event(0, "ready")?;
    let mesh = ready["mesh"][0].as_str().context("no address of its mesh")?.to_owned();
    Ok(Hub { role, mesh })
}

/// A provider of an echo to which nobody names a relay.
fn provider(
    lab: &Lab,
    name: &str,
    echo: &Echo,
    bootstrap: &[&str],
) -> Result<(Process, Ticket, String)> {
    let expose = format!("echo=tcp:{}", echo.addr());
    let mut args = vec!["provide", "--direct", "never", "--expose", &expose];
    args.extend(bootstrap.iter().flat_map(|address| ["--bootstrap", address]));
    let process = lab.run(name, &args)?;
    let ready = process.event(0, "ready")?;
    let text = ready["ticket"].as_str().context("no ticket")?.to_owned();
    Ok((process, Ticket::decode(&text, 0)?, text))
}

/// The relays of the newest choice.
fn chosen(process: &Process) -> Vec<String> {
    let newest = process.events("relays_chosen").pop().unwrap_or_default();
    let relays = newest["relays"].as_array().cloned().unwrap_or_default();
    relays.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The record that the mesh has of a node, asked for at `hub`.
fn found(lab: &Lab, peer: &str, hub: &Hub) -> Result<Value> {
    let asked = done(lab, "nobody", &["nodes", peer, "--bootstrap", &hub.mesh])?;
    asked.events("node").pop().context("no record")
}

#[test]
fn a_home_that_knows_one_address_is_found_by_name_and_reached_through_relays_that_it_chose()
-> Result<()> {
    let lab = Lab::free()?;
    let echo = Echo::start()?;
    let first = hub(&lab, "relay", &[])?;
    let second = hub(&lab, "relay-2", &[&first.mesh])?;
    let third = hub(&lab, "relay-3", &[&first.mesh])?;
    let all = [&first, &second, &third];
    let (home, ticket, text) = provider(&lab, "provide", &echo, &[&first.mesh])?;
    let two =
        until("it chooses two relays", || Some(chosen(&home)).filter(|relays| relays.len() == 2))?;
    ensure!(two.iter().all(|relay| all.iter().any(|hub| hub.role.address == *relay)), "{two:?}");

    // Anybody finds it by its name, and reaches it by its ticket.
    let peer = ticket.peer.to_string();
    let record = until("its record names both", || {
        let record = found(&lab, &peer, &third).ok()?;
        let named = record["relays"].as_array()?.len();
        (named == 2).then_some(record)
    })?;
    ensure!(record["services"] == serde_json::json!(["echo/tcp"]), "{record}");
    let tenant = lab.connect(&text, &["echo"], "never")?;
    let mut talk = TcpStream::connect(tenant.port("echo"))?;
    talk.set_read_timeout(Some(PATIENCE))?;
    let mut say = || -> Result<()> {
        let mut back = [0; 5];
        talk.write_all(b"hello")?;
        talk.read_exact(&mut back).context("no echo")?;
        ensure!(&back == b"hello");
        Ok(())
    };
    say()?;

    // The choice explains itself: two are taken, and of the third it is said why not.
    let reasons = until("the choice is written down", || {
        let told = done(&lab, "provide", &["relays", "--explain"]).ok()?;
        Some(told.events("relay")).filter(|relays| relays.len() == 3)
    })?;
    let (taken, left): (Vec<_>, Vec<_>) = reasons.iter().partition(|r| r["chosen"] == true);
    ensure!(taken.len() == 2 && left.len() == 1, "{reasons:?}");
    let why = left[0]["why"].as_str().context("no reason")?;
    ensure!(!why.is_empty() && !why.starts_with("chosen"), "{why}");
    ensure!(reasons.iter().all(|r| r["latency_ms"].as_f64().is_some()), "{reasons:?}");
    // Who has no role here asks the mesh.
    let asked = done(&lab, "nobody", &["relays", "--explain", "--bootstrap", &second.mesh])?;
    ensure!(asked.events("relay").len() == 3, "{}", asked.output());

    // A relay that it uses dies: another takes its place, and the session goes on.
    let dead = all.into_iter().find(|hub| hub.role.address == two[0]).context("no such relay")?;
    let (dead, bootstrap) = (dead.role.address.clone(), first.mesh.clone());
    let (gone, rest): (Vec<Hub>, Vec<Hub>) =
        [first, second, third].into_iter().partition(|hub| hub.role.address == dead);
    drop(gone);
    say()?;
    until("it chooses another", || {
        let now = chosen(&home);
        (now.len() == 2 && now.iter().all(|relay| *relay != dead)).then_some(())
    })?;
    say()?;
    ensure!(home.events("session_ended").is_empty(), "the session ended");
    // The node that all began with goes, too.
    let rest: Vec<Hub> = rest.into_iter().filter(|hub| hub.mesh != bootstrap).collect();
    let record = until("its record names those that live", || {
        let record = found(&lab, &peer, rest.last()?).ok()?;
        let named = record["relays"].as_array()?;
        named.iter().all(|relay| *relay != dead.as_str()).then(|| record.clone())
    })?;
    ensure!(record["peer"] == peer.as_str(), "{record}");
    say()
}

#[test]
fn a_mesh_whose_bootstrap_is_gone_takes_a_new_home_that_knows_another_node() -> Result<()> {
    let lab = Lab::free()?;
    let echo = Echo::start()?;
    let bootstrap = hub(&lab, "relay", &[])?;
    let second = hub(&lab, "relay-2", &[&bootstrap.mesh])?;
    let third = hub(&lab, "relay-3", &[&bootstrap.mesh])?;
    // They know one another: each is told of by the other.
    until("they have met", || {
        let told = done(&lab, "nobody", &["relays", "--bootstrap", &third.mesh]).ok()?;
        (told.events("relay").len() == 3).then_some(())
    })?;
    let dead = bootstrap.mesh.clone();
    drop(bootstrap);
    // One address is dead, the other is not.
    let (home, ticket, text) = provider(&lab, "provide", &echo, &[&dead, &second.mesh])?;
    let two = until("it chooses the two that live", || {
        Some(chosen(&home)).filter(|relays| relays.len() == 2)
    })?;
    ensure!(two.contains(&second.role.address) && two.contains(&third.role.address), "{two:?}");
    let peer = ticket.peer.to_string();
    until("the third node finds it", || found(&lab, &peer, &third).ok())?;
    let tenant = lab.connect(&text, &["echo"], "never")?;
    let mut talk = TcpStream::connect(tenant.port("echo"))?;
    talk.set_read_timeout(Some(PATIENCE))?;
    talk.write_all(b"hello")?;
    let mut back = [0; 5];
    talk.read_exact(&mut back)?;
    ensure!(&back == b"hello");
    Ok(())
}

#[test]
fn a_mesh_in_which_nobody_answers_is_named() -> Result<()> {
    let lab = Lab::free()?;
    let nobody = "/ip4/127.0.0.1/udp/9/quic-v1";
    let mut asked = lab.run("nobody", &["nodes", "--bootstrap", nobody])?;
    ensure!(!asked.wait()?.success() && asked.errors().contains(nobody), "{}", asked.errors());
    let mut asked = lab.run("nobody", &["relays"])?;
    ensure!(!asked.wait()?.success() && asked.errors().contains("--bootstrap"));
    Ok(())
}
