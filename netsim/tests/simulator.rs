//! A fast slice of what the commands run, and a control for each checker.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use netsim::check::{Probes, ProvenPaths, Violation, bounds};
use netsim::class::{Class, class, kinds};
use netsim::failover::{self, Loss};
use netsim::matrix::{Case, Help};
use netsim::nat::{Allocator, Dependence};
use netsim::net::{LinkSpec, Net, Packet, Seen};
use netsim::rng::Rng;
use netsim::scene::{HomeSpec, Scene};
use netsim::sim::{self, Sabotage};
use netsim::{pool, time};
use parking_lot::Mutex;
use sluice_proto::frame;

const RELAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));

#[test]
fn the_same_seed_is_the_same_run_packet_by_packet() {
    let (first, second) = (sim::run(4).expect("it passes"), sim::run(4).expect("it passes"));
    assert_eq!((first.digest, first.packets), (second.digest, second.packets));
    let other = sim::run(5).expect("it passes");
    assert_ne!(first.digest, other.digest);
}

/// What relays answer to clients whose addresses are not proven, byte by byte.
fn retries(seed: u64) -> Vec<Bytes> {
    let retries = Arc::new(Mutex::new(Vec::new()));
    let seen = retries.clone();
    time::run(async |clock| {
        let line = LinkSpec::delay(Duration::from_millis(5));
        let mut scene = Scene::new(clock, seed, &[line; 2]).await.expect("relays");
        scene.net.watch(Box::new(move |_, _, what, packet| {
            // RFC 9000, section 17.2.5: a long header of type 3.
            let is_retry = packet.bytes.first().is_some_and(|first| first & 0xF0 == 0xF0);
            if what == Seen::Delivered && is_retry {
                seen.lock().push(packet.bytes.clone());
            }
        }));
        scene.tenant(&HomeSpec::default(), 2).await.expect("a tenant");
    });
    let retries = retries.lock();
    retries.clone()
}

/// quinn reads a Retry that comes too late as frames: what follows depends on every byte of it.
#[test]
fn the_same_seed_gives_the_same_retries_byte_by_byte() {
    let first = retries(1);
    assert_eq!(first.len(), 2, "one from each relay");
    assert_eq!(retries(1), first);
    assert_ne!(retries(2), first);
}

#[test]
fn random_networks_with_random_faults_carry_every_byte() {
    // 24: a node guesses while it opens sockets. 87: a home has three addresses one after another.
    // 727: a packet comes to a queue in the tick in which its link becomes free.
    let seeds: Vec<u64> = (0..12).chain([24, 87, 727]).collect();
    let outcomes = pool::run(&seeds, |seed| sim::run(*seed), |_, _| {});
    for (seed, outcome) in seeds.iter().zip(outcomes) {
        if let Err(error) = outcome {
            panic!("replay with `cargo run --release -p netsim -- sim --seed {seed}`: {error:#}");
        }
    }
}

#[test]
fn a_wrong_byte_and_a_lost_one_are_noticed() {
    for (sabotage, says) in
        [(Sabotage::WrongByte, "a byte is wrong"), (Sabotage::LostByte, "bytes came")]
    {
        let error = sim::run_with(4, sabotage).expect_err("the checker sees it");
        assert!(format!("{error:#}").contains(says), "{sabotage:?}: {error:#}");
    }
}

fn packet(from: SocketAddr, to: SocketAddr, first: u8) -> Packet {
    Packet { src: from, dst: to, ecn: None, bytes: Bytes::from(vec![first; 100]) }
}

#[test]
fn a_path_that_was_never_echoed_is_noticed() {
    let net = time::run(async |clock| Net::new(clock, Rng::new(1)));
    let host = net.core();
    let ours = SocketAddr::new(Ipv4Addr::new(192, 168, 1, 2).into(), 5000);
    let theirs = SocketAddr::new(Ipv4Addr::new(203, 0, 113, 2).into(), 6000);
    let mut checker = ProvenPaths::new(BTreeSet::from([RELAY]));
    // QUIC has its fixed bit set.
    let quic = 0x40;
    checker.see(host, Seen::Sent, &packet(ours, SocketAddr::new(RELAY, 4433), quic));
    assert!(checker.violations().is_empty(), "relays are dialled");
    checker.see(host, Seen::Sent, &packet(ours, theirs, frame::PROBE));
    checker.see(host, Seen::Delivered, &packet(theirs, ours, frame::PROBE));
    checker.see(host, Seen::Sent, &packet(ours, theirs, quic));
    assert!(checker.violations().is_empty(), "this one was");
    let elsewhere = SocketAddr::new(Ipv4Addr::new(203, 0, 113, 3).into(), 6000);
    checker.see(host, Seen::Sent, &packet(ours, elsewhere, frame::PROBE));
    checker.see(host, Seen::Sent, &packet(ours, elsewhere, quic));
    let expected = Violation::Unproven { host, from: ours, to: elsewhere };
    assert_eq!(checker.violations(), &BTreeSet::from([expected]));
    let unasked = SocketAddr::new(theirs.ip(), 6001);
    checker.see(host, Seen::Sent, &packet(ours, unasked, quic));
    assert_eq!(checker.violations().len(), 2, "no probe went to that port");
}

#[test]
fn bounds_that_are_exceeded_are_noticed() {
    let mut known = BTreeSet::from([RELAY]);
    let mut probes = Probes::default();
    assert!(bounds(&probes, &known, 100, 1000).is_empty());
    let stranger = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    probes.by_target.insert(stranger, 17);
    let printer = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 40));
    probes.by_target.insert(printer, 1);
    probes.by_target.insert(RELAY, 1000);
    known.insert(printer);
    probes.peak = 2000;
    let expected = BTreeSet::from([
        Violation::ProbesTooFast(2000),
        Violation::Bystander { target: stranger, probes: 17 },
        Violation::Household { target: printer, probes: 1 },
        Violation::Sockets(1000),
        Violation::NatEntries(2000),
    ]);
    assert_eq!(bounds(&probes, &known, 1000, 2000), expected);
}

fn case(tenant: (Dependence, Dependence), provider: (Dependence, Dependence)) -> Case {
    Case { tenant, provider, allocator: Allocator::Random, seed: 1, help: Help::None }
}

#[test]
fn every_pair_that_opens_at_once_meets() {
    let kinds = kinds();
    let pairs = kinds.iter().flat_map(|a| kinds.iter().map(|b| case(*a, *b)));
    let open: Vec<Case> = pairs.filter(|c| c.class() == Class::Open).collect();
    assert_eq!(open.len(), 42);
    for (case, outcome) in open.iter().zip(pool::run(&open, Case::run, |_, _| {})) {
        let outcome = outcome.expect("the session works");
        assert!(outcome.direct.is_some(), "{case} did not meet");
    }
}

#[test]
fn two_symmetric_nats_go_on_through_the_relay() {
    let symmetric = (Dependence::AddressAndPort, Dependence::AddressAndPort);
    assert_eq!(class(symmetric, symmetric), Class::Hopeless);
    // An echo over whatever path there is belongs to the case.
    case(symmetric, symmetric).run().expect("the session works");
}

#[test]
fn with_ipv6_or_a_public_address_on_one_side_any_pair_meets() {
    let symmetric = (Dependence::AddressAndPort, Dependence::AddressAndPort);
    for help in [Help::Public, Help::Ipv6] {
        let outcome = Case { help, ..case(symmetric, symmetric) }.run().expect("it works");
        assert!(outcome.direct.is_some(), "{help:?} did not help");
    }
}

#[test]
fn a_download_survives_each_loss() {
    let cases: Vec<failover::Case> = Loss::ALL
        .into_iter()
        .filter(|loss| *loss != Loss::Stalls)
        .map(|loss| failover::Case { loss, seed: 1 })
        .collect();
    for (case, outcome) in cases.iter().zip(pool::run(&cases, failover::Case::run, |_, _| {})) {
        if let Err(error) = outcome {
            panic!("replay with `failover --only {case}`: {error:#}");
        }
    }
}

#[test]
fn the_network_s_addresses_are_the_node_s_candidates() {
    time::run(async |clock| {
        let line = LinkSpec::delay(Duration::from_millis(5));
        let mut scene = Scene::new(clock, 1, &[line; 2]).await.expect("relays");
        let home = HomeSpec { ipv6: true, ..HomeSpec::default() };
        let provider = scene.provider(&home, 2).await.expect("a provider");
        let addresses = scene.net.addresses(provider.host);
        assert_eq!(addresses.len(), 2);
        assert_eq!(provider.links.len(), 2);
    });
}
