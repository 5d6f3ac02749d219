//! What the doctor concludes from what it found.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sluice::doctor::{Findings, Mapped, Reach, Reached, RelayFinding, advice, expect, json, text};
use sluice_path::{Allocator, Filtering, Mapping, Nat, Timer};
use sluice_proto::{Keypair, RelayAddr};

const HOME: Nat = Nat {
    mapping: Some(Mapping::Independent),
    filtering: Some(Filtering::AddressAndPort),
    allocator: Some(Allocator::Preserving),
};
const SYMMETRIC: Nat = Nat {
    mapping: Some(Mapping::AddressAndPort),
    filtering: Some(Filtering::AddressAndPort),
    allocator: Some(Allocator::Random),
};

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn relay(at: &str, reached: Reached, observed: &str) -> RelayFinding {
    let key = Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes");
    let is_reached = !matches!(reached, Reached::No(_));
    RelayFinding {
        relay: RelayAddr::new(key.public().to_peer_id(), addr(at)),
        reached,
        rtt: is_reached.then_some(Duration::from_millis(20)),
        observed: is_reached.then(|| addr(observed)),
    }
}

fn found(nat: Nat, seen: &str) -> Findings {
    Findings {
        addresses: vec![IpAddr::from([192, 168, 1, 5])],
        relays: vec![
            relay("198.51.100.1:4433", Reached::Udp, seen),
            relay("203.0.113.1:4433", Reached::Udp, seen),
        ],
        nat,
        hairpins: Some(false),
        timer: None,
        mapped: Mapped::No,
    }
}

fn reach(found: &Findings) -> Vec<Reach> {
    expect(found).iter().map(|e| e.reach).collect()
}

#[test]
fn a_home_router_meets_all_but_symmetric_nats_without_guessing() {
    let found = found(HOME, "192.0.2.7:40000");
    assert_eq!(reach(&found), [Reach::Direct, Reach::Direct, Reach::Guess, Reach::Relay]);
    let advice = advice(&found);
    assert_eq!(advice.len(), 1, "{advice:?}");
    assert!(advice[0].contains("UPnP"), "{advice:?}");
}

#[test]
fn a_symmetric_nat_needs_guesses_with_homes_and_a_relay_with_its_like() {
    let found = found(SYMMETRIC, "192.0.2.7:40000");
    assert_eq!(reach(&found), [Reach::Direct, Reach::Guess, Reach::Relay, Reach::Relay]);
    assert!(advice(&found).iter().any(|a| a.contains("hard to guess")));
}

#[test]
fn a_forwarded_port_or_a_public_address_makes_all_direct() {
    let mapped = Findings {
        mapped: Mapped::Yes(addr("192.0.2.7:40000")),
        ..found(SYMMETRIC, "192.0.2.7:1")
    };
    let public =
        Findings { addresses: vec![IpAddr::from([192, 0, 2, 7])], ..found(HOME, "192.0.2.7:1") };
    for found in [mapped, public] {
        assert_eq!(reach(&found), [Reach::Direct, Reach::Direct, Reach::Direct, Reach::Relay]);
        assert_eq!(advice(&found), Vec::<String>::new());
        assert!(text(&found).contains("Nothing to improve"));
    }
}

#[test]
fn carriers_that_share_addresses_are_named_and_no_router_setting_is_recommended() {
    let found = found(SYMMETRIC, "100.72.3.4:40000");
    let advice = advice(&found);
    assert!(advice.iter().any(|a| a.contains("CGNAT")), "{advice:?}");
    assert!(!advice.iter().any(|a| a.contains("UPnP")), "{advice:?}");
}

#[test]
fn without_udp_everything_goes_through_relays_and_is_explained() {
    let at = "198.51.100.1:4433";
    let blocked = Findings {
        relays: vec![
            relay(at, Reached::Tcp, "192.0.2.7:1"),
            relay(at, Reached::Tcp, "192.0.2.7:1"),
        ],
        ..found(Nat::default(), "192.0.2.7:1")
    };
    assert!(reach(&blocked).iter().all(|r| *r == Reach::Relay));
    assert!(advice(&blocked).iter().any(|a| a.contains("blocks UDP")));
    let none = Findings {
        relays: vec![relay(at, Reached::No("timed out".to_owned()), "192.0.2.7:1")],
        ..blocked
    };
    assert!(!none.any_relay());
    let advice = advice(&none);
    assert!(
        advice[0].contains("198.51.100.1:4433") && advice[0].contains("timed out"),
        "{advice:?}"
    );
    assert!(advice.iter().any(|a| a.contains("second relay")), "{advice:?}");
}

#[test]
fn what_is_printed_for_programs_holds_what_people_see() {
    let found = found(HOME, "192.0.2.7:40000");
    let json = json(&found);
    assert_eq!(json["nat"]["mapping"], "endpoint-independent");
    assert_eq!(json["relays"][1]["reached"], "udp");
    assert_eq!(json["relays"][1]["observed"], "192.0.2.7:40000");
    assert_eq!(json["expect"][2]["reach"], "guess");
    let text = text(&found);
    for words in ["endpoint-independent", "192.0.2.7:40000", "20.0 ms", "port-preserving"] {
        assert!(text.contains(words), "{words} in {text}");
    }
}

#[test]
fn hairpin_and_timer_are_told_as_far_as_they_are_known() {
    let plain = found(HOME, "192.0.2.7:40000");
    assert!(text(&plain).contains("NAT hairpin   no") && text(&plain).contains("--nat-timer"));
    assert!(json(&plain)["nat"]["timer"].is_null());
    let s = Duration::from_secs;
    let measured =
        |timer| Findings { timer: Some(timer), hairpins: Some(true), ..found(HOME, "192.0.2.7:1") };
    let short = measured(Timer { kept: s(25), lost: Some(s(30)) });
    let long = measured(Timer { kept: s(250), lost: None });
    assert!(text(&short).contains("25 to 30 s: direct paths are kept open every 20 s"));
    assert!(text(&long).contains("250 s or longer") && text(&long).contains("NAT hairpin   yes"));
    assert_eq!(json(&short)["nat"]["timer"]["lost_s"], 30.0);
    assert_eq!(json(&long)["nat"]["hairpin"], true);
    let forgets = |found| advice(&found).iter().any(|a| a.contains("forgets"));
    assert!(forgets(short) && !forgets(long));
}
