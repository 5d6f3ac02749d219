//! What a person meets at the command line: help, and for each mistake a message that names the
//! field or the cause and what to do, an exit code that is not zero, and never a panic.

#![expect(clippy::disallowed_methods, reason = "an expired ticket needs the time")]

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use sluice_proto::{Invite, Keypair, RelayAddr, ServiceName, Ticket};
use tests::{Echo, Lab, Process, sluice};

const WEB: &str = "web=tcp:127.0.0.1:9";

/// Runs `sluice` to its end, which must be a failure, and checks that all `words` are in what it
/// says: to a person, and as a JSON event.
fn fails(lab: &Lab, state: &str, args: &[&str], words: &[&str]) -> Result<()> {
    let process = lab.run(state, args)?;
    failed(process, words).with_context(|| format!("sluice {}", args.join(" ")))
}

fn failed(mut process: Process, words: &[&str]) -> Result<()> {
    let status = process.wait()?;
    let (said, event) = (process.errors(), process.events("error").pop());
    ensure!(!status.success(), "it ended well, and said {}{said}", process.output());
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in what it said: {said}");
        let message = event.as_ref().and_then(|e| e["message"].as_str()).unwrap_or_default();
        ensure!(message.contains(word), "{word:?} is not in the event {message:?}");
    }
    ensure!(said.lines().count() <= 6, "that is a lot to read: {said}");
    Ok(())
}

fn some_key(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).expect("any 32 bytes are a key")
}

/// A relay's address where no relay is.
fn nowhere() -> Result<RelayAddr> {
    let addr = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    Ok(RelayAddr::new(some_key(1).public().to_peer_id(), addr))
}

fn ticket(relay: RelayAddr, expires_unix_s: u64) -> Result<String> {
    let key = some_key(2);
    let ticket = Ticket {
        peer: key.public().to_peer_id(),
        noise_key: [5; 32],
        relays: vec![relay],
        invite: Invite::issue(&[7; 16], expires_unix_s),
        expires_unix_s,
        services: vec![ServiceName::parse("web")?],
    };
    Ok(ticket.encode(&key))
}

#[test]
fn help_is_there_for_every_command() -> Result<()> {
    let commands: [&[&str]; 21] = [
        &[],
        &["demo"],
        &["relay"],
        &["provide"],
        &["connect"],
        &["doctor"],
        &["redeem"],
        &["channel", "list"],
        &["channel", "top-up"],
        &["channel", "close"],
        &["ledger", "list"],
        &["ledger", "export"],
        &["ledger", "verify"],
        &["wallet", "create"],
        &["wallet", "import"],
        &["wallet", "show"],
        &["wallet", "balance"],
        &["watch"],
        &["config"],
        &["config", "check"],
        &["config", "example"],
    ];
    for command in commands {
        let mut process = Process::start("sluice", sluice(), |c| {
            c.args(command).arg("--help");
        })?;
        ensure!(process.wait()?.success(), "{command:?}: {}", process.errors());
        let help = process.output();
        ensure!(help.contains("Usage:") && help.contains("--json"), "{command:?}: {help}");
        ensure!(help.lines().count() > 8, "{command:?} says too little: {help}");
    }
    Ok(())
}

/// Each flag that takes a number, an address, a choice or an id, and what none of them can be.
#[test]
fn every_flag_refuses_by_its_name_what_it_cannot_be() -> Result<()> {
    let flags: [(&[&str], &[&str]); 8] = [
        (&["demo"], &["--megabytes"]),
        (&["relay"], &["--bind", "--public-addr", "--tcp", "--price"]),
        (&["provide"], &["--price-down", "--price-up", "--direct", "--bind"]),
        (
            &["connect", "x"],
            &[
                "--deposit",
                "--deposit-max",
                "--max-price-down",
                "--max-price-up",
                "--direct",
                "--bind",
            ],
        ),
        (&["doctor"], &["--bind"]),
        (&["redeem"], &["--channel", "--role"]),
        (&["ledger", "export"], &["--format", "--table", "--role"]),
        (&["demo", "--rpc", "http://127.0.0.1:1"], &["--chain-id"]),
    ];
    let values = [
        "",
        "-1",
        "1.5",
        "0x",
        "127.0.0.1:65536",
        "[::1",
        "340282366920938463463374607431768211456",
    ];
    for (command, flags) in flags {
        for (flag, value) in flags.iter().flat_map(|flag| values.map(|value| (flag, value))) {
            let mut process = Process::start("sluice", sluice(), |c| {
                c.args(command).arg(format!("{flag}={value}")).env_remove("SLUICE_LOG");
            })?;
            let (status, said) = (process.wait()?, process.errors());
            ensure!(!status.success(), "{command:?} {flag}={value} was taken");
            ensure!(said.contains(flag), "{command:?} {flag}={value}: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_by_line_and_name() -> Result<()> {
    let lab = Lab::free()?;
    let toml = lab.write("sluice.toml", "version = 1\n\n[relay]\nprise = 3\n")?;
    let words = ["sluice.toml", "4", "relay.prise", "did you mean `price`?"];
    fails(&lab, "relay", &["relay"], &words)?;
    let mut check = Process::start("sluice config check", sluice(), |c| {
        c.args(["config", "check", "--config"]).arg(&toml);
    })?;
    ensure!(!check.wait()?.success());
    ensure!(words.iter().all(|w| check.errors().contains(w)), "{}", check.errors());
    lab.write("sluice.toml", "version = 1\n[provide]\nprice_down = 3\n")?;
    fails(&lab, "relay", &["relay"], &["provide.price_down", "chain.kind"])
}

#[test]
fn a_ticket_that_is_damaged_or_expired_is_refused() -> Result<()> {
    let lab = Lab::free()?;
    let connect = |ticket: &str, words: &[&str]| {
        fails(&lab, "connect", &["connect", ticket, "--map", "127.0.0.1:0=web"], words)
    };
    connect("hello", &["not a ticket", "sluice1"])?;
    let good = ticket(nowhere()?, 0)?;
    connect(&good[..good.len() - 4], &["damaged", "copy it again"])?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    connect(&ticket(nowhere()?, now - 60)?, &["expired", "ask the provider for a new one"])?;
    fails(&lab, "connect", &["connect"], &["no ticket", "sluice provide"])?;
    fails(&lab, "connect", &["connect", &good], &["no local port", "--map"])
}

#[test]
fn services_and_relays_of_the_wrong_form_are_refused() -> Result<()> {
    let lab = Lab::free()?;
    let relay = nowhere()?.to_string();
    let provide = |expose: &str, relay: &str, words: &[&str]| {
        fails(&lab, "provide", &["provide", "--expose", expose, "--relay", relay], words)
    };
    provide("web", &relay, &["--expose web", "name=tcp:"])?;
    provide("web=udp:127.0.0.1:80", &relay, &["--expose", "tcp"])?;
    provide(WEB, "127.0.0.1:4433", &["--relay 127.0.0.1:4433", "@"])?;
    fails(&lab, "provide", &["provide", "--relay", &relay], &["--expose"])?;
    fails(&lab, "provide", &["provide", "--expose", WEB], &["no relay", "--relay"])?;
    let map = ["connect", "sluice1x", "--map", "127.0.0.1:0"];
    fails(&lab, "connect", &map, &["--map 127.0.0.1:0"])
}

#[test]
fn a_service_that_is_not_offered_is_named_with_those_that_are() -> Result<()> {
    let lab = Lab::free()?;
    let echo = Echo::start()?;
    let relay = lab.relay()?;
    let provider = lab.provide(&relay, &[("echo", echo.addr())], "never")?;
    let args = ["connect", &provider.ticket, "--map", "127.0.0.1:0=ehco"];
    fails(&lab, "connect", &args, &["no service ehco", "it offers echo"])
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let lab = Lab::free()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let map = format!("{}=web", taken.local_addr()?);
    let ticket = ticket(nowhere()?, 0)?;
    let port = taken.local_addr()?.to_string();
    fails(&lab, "connect", &["connect", &ticket, "--map", &map], &[&port, "in use", "--map"])?;

    let taken = UdpSocket::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.to_string();
    fails(&lab, "relay", &["relay", "--bind", &port], &[&port, "in use", "bind"])?;
    let (relay, echo) = (lab.relay()?, Echo::start()?);
    let expose = format!("echo=tcp:{}", echo.addr());
    let args = ["provide", "--expose", &expose, "--relay", &relay.address, "--bind", &port];
    fails(&lab, "provide", &args, &[&port, "in use", "bind"])
}

#[test]
fn a_relay_that_is_not_there_or_another_is_said() -> Result<()> {
    let lab = Lab::free()?;
    let absent = nowhere()?;
    let address = absent.addr.to_string();
    let provide = ["provide", "--expose", WEB, "--relay", &absent.to_string()];
    let waiting = lab.run("provide", &provide)?;
    let connect = ["connect", &ticket(absent, 0)?, "--map", "127.0.0.1:0=web"];
    let also_waiting = lab.run("connect", &connect)?;
    let relay = lab.relay()?;
    let other = RelayAddr::new(some_key(9).public().to_peer_id(), relay.socket()?);
    let provide = ["provide", "--expose", WEB, "--relay", &other.to_string()];
    let impostor = lab.run("provide-2", &provide)?;
    failed(also_waiting, &["failed to reach the provider", &address])?;
    failed(waiting, &["no relay gave a reservation", &address, "check the address"])?;
    failed(impostor, &["no relay gave a reservation", &other.addr.to_string(), "peer id"])
}

#[test]
fn keys_that_others_can_read_and_directories_in_use_are_refused() -> Result<()> {
    let lab = Lab::free()?;
    let relay = lab.relay()?;
    let state = lab.state("relay").display().to_string();
    let bind = ["relay", "--bind", "127.0.0.1:0"];
    fails(&lab, "relay", &bind, &[&state, "is in use by", "--state-dir"])?;
    drop(relay);
    let key = lab.state("relay").join("node.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let path = key.display().to_string();
    fails(&lab, "relay", &bind, &[&path, "open to other users", "chmod 600"])?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    std::fs::write(&key, "not a key")?;
    fails(&lab, "relay", &bind, &[&path, "damaged", "backup"])
}

#[test]
fn terms_that_are_too_dear_and_money_that_is_not_there_are_said() -> Result<()> {
    let lab = Lab::paid()?;
    let echo = Echo::start()?;
    let relay = lab.relay()?;
    let provider = lab.provide(&relay, &[("echo", echo.addr())], "never")?;
    let connect = |more: &[&str], words: &[&str]| {
        let args = [&["connect", &provider.ticket, "--map", "127.0.0.1:0=echo"], more].concat();
        fails(&lab, "connect", &args, words)
    };
    connect(&["--max-price-down", "5"], &["2147483648", "5", "--max-price-down"])?;
    connect(&["--deposit", "0"], &["--deposit"])?;
    connect(
        &["--deposit", "340282366920938463463374607431768211455"],
        &["failed to open the payment channel"],
    )?;
    let free = "version = 1\n[connect]\nmax_price_up = 2_147_483_648\n\
                max_price_down = 2_147_483_648\ndeposit = 1_000_000\n";
    lab.write("sluice.toml", free)?;
    connect(&[], &["no chain is configured", "[chain]"])?;
    let elsewhere = lab.path().join("elsewhere").display().to_string();
    let other_chain = format!("{free}[chain]\nkind = \"embedded\"\ndir = \"{elsewhere}\"\n");
    lab.write("sluice.toml", &other_chain)?;
    connect(&[], &["chain"])?;
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    lab.write("sluice.toml", &rpc(free, nobody))?;
    connect(&[], &["chain", &nobody.to_string()])
}

fn rpc(before: &str, node: SocketAddr) -> String {
    let address = "0x000000000000000000000000000000000000dEaD";
    format!(
        "{before}[chain]\nkind = \"rpc\"\nurl = \"http://{node}\"\ncontract = \"{address}\"\n\
         token = \"{address}\"\nchain_id = 31337\n"
    )
}

/// Whether the process has asked the system to be told of SIGINT.
fn hears_ctrl_c(process: &Process) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()));
    let status = status.unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|m| m & 2 != 0)
}

#[test]
fn ctrl_c_while_waiting_ends_it_at_once() -> Result<()> {
    let lab = Lab::free()?;
    let absent = nowhere()?;
    let provide = ["provide", "--expose", WEB, "--relay", &absent.to_string()];
    let connect = ["connect", &ticket(absent, 0)?, "--map", "127.0.0.1:0=web"];
    let (provider, tenant) = (lab.run("provide", &provide)?, lab.run("connect", &connect)?);
    for process in [&provider, &tenant] {
        tests::until("Ctrl-C is heard", || hears_ctrl_c(process).then_some(()))?;
    }
    provider.signal(Signal::INT)?;
    tenant.signal(Signal::INT)?;
    failed(provider, &["stopped by Ctrl-C", "before a relay gave a reservation"])?;
    failed(tenant, &["stopped by Ctrl-C", "before there was a session"])
}

fn doctor(relays: &[&str]) -> Result<(Process, bool)> {
    let mut process = Process::start("sluice doctor", sluice(), |c| {
        c.args(["doctor", "--json", "--no-port-mapping", "--bind", "127.0.0.1:0"]);
        c.args(relays.iter().flat_map(|relay| ["--relay", *relay]));
    })?;
    let went_well = process.wait()?.success();
    Ok((process, went_well))
}

#[test]
fn the_doctor_tells_which_relays_are_reached_and_fails_where_none_is() -> Result<()> {
    let (lab, nowhere) = (Lab::free()?, nowhere()?.to_string());
    let relay = lab.relay()?;
    let (process, went_well) = doctor(&[&relay.address, &nowhere])?;
    ensure!(went_well, "{}{}", process.output(), process.errors());
    let found = process.events("doctor").pop().context("nothing was found")?;
    let relays = found["relays"].as_array().context("relays")?;
    let of = |address: &str| {
        relays.iter().find(|r| r["relay"] == address).with_context(|| format!("{found}"))
    };
    let reached = of(&relay.address)?;
    ensure!(reached["reached"] == "udp" && reached["rtt_ms"].as_f64() > Some(0.0), "{found}");
    ensure!(of(&nowhere)?["reached"] == "no", "{found}");
    ensure!(found["port_mapping"]["offered"] == "not asked", "{found}");
    let advice = found["advice"].to_string();
    ensure!(advice.contains(&nowhere), "{found}");
    let (process, went_well) = doctor(&[&nowhere])?;
    ensure!(!went_well && process.errors().contains("no relay can be reached"));
    ensure!(process.events("doctor").len() == 1, "what was found is told all the same");
    Ok(())
}

#[test]
fn the_demo_tells_the_whole_story_in_one_object() -> Result<()> {
    let mut demo = Process::start("sluice demo", sluice(), |c| {
        c.args(["demo", "--json", "--megabytes", "8"]);
    })?;
    ensure!(demo.wait()?.success(), "{}{}", demo.output(), demo.errors());
    let output = demo.output();
    let bill: Value = serde_json::from_str(output.lines().last().context("nothing was said")?)?;
    let number = |value: &Value| value.as_u64().with_context(|| format!("{value} in {bill}"));
    let field = |key: &str| number(&bill[key]).with_context(|| key.to_owned());
    ensure!(bill["sha256_ok"] == true, "{bill}");
    let delivered = field("bytes_delivered")?;
    ensure!(delivered >= 8_000_000, "{bill}");
    let paths = bill["paths"].as_array().context("paths")?;
    let kinds: Vec<_> = paths.iter().map(|p| p["kind"].as_str().unwrap_or_default()).collect();
    ensure!(kinds == ["relayed", "direct"], "{bill}");
    let by_path: u64 = paths.iter().map(|p| number(&p["bytes"])).sum::<Result<_>>()?;
    ensure!(by_path == delivered && paths.iter().all(|p| p["mbit_s"].as_f64() > Some(0.0)));
    ensure!(field("billed_bytes_tenant")? == delivered, "{bill}");
    ensure!(field("billed_bytes_provider")? == delivered, "{bill}");
    ensure!(field("unpaid_bytes_max")? <= field("window_bytes")?, "{bill}");
    ensure!(field("window_bytes")? == 16 << 20 && field("vouchers")? > 0, "{bill}");
    ensure!(field("tenant_paid")? == field("provider_earned")?, "{bill}");
    ensure!(field("tenant_paid")? > 0 && field("relay_earned")? > 0, "{bill}");
    ensure!(field("tenant_refunded")? + field("tenant_paid")? == 10_000_000, "{bill}");
    ensure!(number(&bill["gas"]["open"])? > 0 && number(&bill["gas"]["close"])? > 0, "{bill}");
    ensure!(bill["gas"]["redeem"].is_u64() && bill["chain"] == "embedded", "{bill}");
    Ok(())
}
