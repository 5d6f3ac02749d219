//! Findings for a person, and for a program.

use std::fmt::{Display, Write as _};

use serde_json::{Value, json};

use sluice_path::Timer;

use super::{Findings, Mapped, Reached, RelayFinding, advice, expect};

/// What nobody could tell.
const UNKNOWN: &str = "unknown";

fn or_unknown<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |v| v.to_string())
}

/// For a person.
#[must_use]
pub fn text(found: &Findings) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<14}{value}");
    };
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    line(
        "Addresses",
        &if addresses.is_empty() { "none that lead out".into() } else { addresses.join(", ") },
    );
    line("IPv6", if found.has_ipv6() { "yes" } else { "no" });
    for relay in &found.relays {
        line("Relay", &relay_text(relay));
    }
    if found.over_udp().next().is_some() {
        let nat =
            if found.is_public() { "none: relays see this machine's own address" } else { "" };
        if nat.is_empty() {
            line("NAT mapping", &or_unknown(found.nat.mapping));
            line("NAT filtering", &or_unknown(found.nat.filtering));
            line("NAT ports", &or_unknown(found.nat.allocator));
            line("NAT hairpin", &or_unknown(found.hairpins.map(|h| if h { "yes" } else { "no" })));
        } else {
            line("NAT", nat);
        }
    }
    if found.over_udp().next().is_some() {
        let timer = found.timer.as_ref().map(timer_text);
        line("NAT timer", timer.as_deref().unwrap_or("not measured: --nat-timer does"));
    }
    line(
        "Port mapping",
        &match found.mapped {
            Mapped::Yes(public) => format!("offered: {public} leads here"),
            Mapped::No => "not offered by the router".to_owned(),
            Mapped::NotAsked => "not asked for".to_owned(),
        },
    );
    let _ = writeln!(out, "\nWhat to expect, by the network at the other end:");
    for e in expect(found) {
        let _ = writeln!(out, "  {:<7}{}: {}", e.reach.word(), e.peer, e.why);
    }
    let advice = advice(found);
    if advice.is_empty() {
        let _ = writeln!(out, "\nNothing to improve.");
    } else {
        let _ = writeln!(out, "\nWhat you can do:");
        for item in advice {
            let _ = writeln!(out, "  - {item}");
        }
    }
    out
}

fn timer_text(timer: &Timer) -> String {
    let keepalive = timer.keepalive().as_secs();
    let kept = timer.kept.as_secs();
    let known = match timer.lost.map(|lost| lost.as_secs()) {
        Some(lost) if kept == 0 => format!("below {lost} s"),
        Some(lost) => format!("{kept} to {lost} s"),
        None => format!("{kept} s or longer"),
    };
    format!("{known}: direct paths are kept open every {keepalive} s")
}

fn relay_text(relay: &RelayFinding) -> String {
    let at = relay.relay.addr;
    let seen = relay.observed.map_or_else(String::new, |seen| format!(", sees {seen}"));
    let rtt =
        relay.rtt.map_or_else(String::new, |rtt| format!(", {:.1} ms", rtt.as_secs_f64() * 1000.0));
    match &relay.reached {
        Reached::Udp => format!("{at}: UDP works{rtt}{seen}"),
        Reached::Tcp => format!("{at}: TCP only, UDP does not get through{rtt}"),
        Reached::No(reason) => format!("{at}: not reached: {reason}"),
    }
}

/// For a program: one object.
#[must_use]
pub fn json(found: &Findings) -> Value {
    let relays: Vec<Value> = found
        .relays
        .iter()
        .map(|r| {
            let (reached, error) = match &r.reached {
                Reached::Udp => ("udp", None),
                Reached::Tcp => ("tcp", None),
                Reached::No(reason) => ("no", Some(reason)),
            };
            json!({
                "relay": r.relay.to_string(),
                "reached": reached,
                "error": error,
                "rtt_ms": r.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                "observed": r.observed,
            })
        })
        .collect();
    let (mapped, address) = match found.mapped {
        Mapped::Yes(public) => ("yes", Some(public)),
        Mapped::No => ("no", None),
        Mapped::NotAsked => ("not asked", None),
    };
    let expect: Vec<Value> = expect(found)
        .into_iter()
        .map(|e| json!({"peer": e.peer, "reach": e.reach.word(), "why": e.why}))
        .collect();
    json!({
        "event": "doctor",
        "addresses": found.addresses,
        "ipv6": found.has_ipv6(),
        "relays": relays,
        "nat": {
            "none": found.is_public(),
            "mapping": found.nat.mapping.map(|m| m.to_string()),
            "filtering": found.nat.filtering.map(|f| f.to_string()),
            "allocator": found.nat.allocator.map(|a| a.to_string()),
            "hairpin": found.hairpins,
            "timer": found.timer.map(|timer| json!({
                "kept_s": timer.kept.as_secs_f64(),
                "lost_s": timer.lost.map(|lost| lost.as_secs_f64()),
                "keepalive_s": timer.keepalive().as_secs_f64(),
            })),
        },
        "port_mapping": {"offered": mapped, "address": address},
        "expect": expect,
        "advice": advice(found),
    })
}
