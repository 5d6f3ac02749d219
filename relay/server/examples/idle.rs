//! Measures what an idle reservation costs: memory of a relay process per reservation, and the CPU
//! time it takes while nothing happens.
//!
//! `cargo run --release -p sluice-relay --example idle [reservations]`

#![allow(clippy::print_stdout, reason = "it prints a table")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

#[path = "../tests/support/client.rs"]
mod client;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use client::{client_config, some_keypair};
use quinn::Endpoint;
use sluice_metering::accept_terms;
use sluice_proto::wire::control::{Control, Hello, control::Kind};
use sluice_proto::wire::{self, MESSAGE_MAX};
use sluice_proto::{Keypair, PeerId};
use sluice_relay::{Relay, RelayConfig};

/// CPU time is watched this long.
const WATCH: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("relay") => relay().await,
        count => measure(count.map_or(5000, |n| n.parse().expect("a number"))).await,
    }
}

async fn relay() {
    let keypair = Keypair::ed25519_from_bytes([0xEE; 32]).expect("32 bytes");
    let config = RelayConfig::new(keypair, "127.0.0.1:0".parse().expect("an address"));
    let relay = Relay::start(config).await.expect("a relay");
    println!("{} {}", relay.local_addr(), relay.peer());
    std::future::pending::<()>().await;
}

async fn measure(count: usize) {
    let program = std::env::current_exe().expect("this program");
    let mut child =
        Command::new(program).arg("relay").stdout(Stdio::piped()).spawn().expect("a relay");
    let pid = child.id();
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let (address, peer) = line.trim().split_once(' ').expect("two words");
    let (address, peer) = (address.parse().expect("an address"), peer.parse().expect("a peer"));
    let base = rss_kb(pid);
    let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let mut held = Vec::new();
    for n in 0..count {
        held.push(reserve(&endpoint, address, peer, n).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (rss, cpu) = (rss_kb(pid), cpu_ticks(pid));
    tokio::time::sleep(WATCH).await;
    let cpu = cpu_ticks(pid) - cpu;
    println!("reservations {count}");
    println!("memory before any {base} kB, with all {rss} kB");
    println!("kB per reservation {:.2}", (rss - base) as f64 / count as f64);
    println!("idle CPU {:.2} % of a core", cpu as f64 / WATCH.as_secs_f64());
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

async fn reserve(
    endpoint: &Endpoint,
    address: std::net::SocketAddr,
    relay: PeerId,
    n: usize,
) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
    let keypair = some_keypair();
    let mut config = client_config(&keypair, relay);
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(15)));
    config.transport_config(std::sync::Arc::new(transport));
    let connection =
        endpoint.connect_with(config, address, "relay").expect("dials").await.expect("connects");
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let hello = Hello { versions: vec![1], features: Vec::new(), incarnation: n as u64 };
    for kind in [Kind::Hello(hello), Kind::Reserve(Default::default())] {
        say(&mut send, kind).await;
    }
    assert!(matches!(hear(&mut receive).await, Kind::Welcome(_)));
    let Kind::Offer(offer) = hear(&mut receive).await else { panic!("no offer") };
    let accept = accept_terms(&keypair, &offer.terms.expect("terms").terms);
    say(&mut send, Kind::Accept(accept)).await;
    assert!(matches!(hear(&mut receive).await, Kind::Reserved(_)));
    (connection, send, receive)
}

async fn say(send: &mut quinn::SendStream, kind: Kind) {
    let message = wire::prefixed(&Control { kind: Some(kind) });
    send.write_all(&message).await.expect("written");
}

async fn hear(receive: &mut quinn::RecvStream) -> Kind {
    let mut len = [0; 2];
    receive.read_exact(&mut len).await.expect("a length");
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    receive.read_exact(&mut message).await.expect("a message");
    let control: Control = wire::decode(message.into(), MESSAGE_MAX).expect("a message");
    control.kind.expect("a kind")
}

fn rss_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a line");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// User and system time of a process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("Linux");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    [11, 12].iter().map(|i| fields[*i].parse::<u64>().expect("a number")).sum()
}
