//! The arrows between crates point down only: decisions at the bottom, sockets at the top.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Each crate and the crates of this workspace that it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("sluice-proto", &[]),
    ("sluice-path", &["sluice-proto"]),
    ("sluice-metering", &["sluice-proto"]),
    ("sluice-settlement", &["sluice-proto"]),
    ("sluice-market", &["sluice-proto"]),
    ("sluice-relay-core", &["sluice-proto"]),
    ("sluice-ledger", &["sluice-proto"]),
    ("sluice-chain", &["sluice-proto", "sluice-settlement"]),
    ("sluice-mesh", &["sluice-proto"]),
    ("sluice-transport", &["sluice-path", "sluice-proto"]),
    ("sluice-tunnel", &["sluice-metering", "sluice-proto", "sluice-transport"]),
    (
        "sluice-relay",
        &[
            "sluice-chain",
            "sluice-ledger",
            "sluice-metering",
            "sluice-proto",
            "sluice-relay-core",
            "sluice-transport",
        ],
    ),
    (
        "sluice",
        &[
            "sluice-chain",
            "sluice-ledger",
            "sluice-market",
            "sluice-mesh",
            "sluice-metering",
            "sluice-path",
            "sluice-proto",
            "sluice-relay",
            "sluice-settlement",
            "sluice-transport",
            "sluice-tunnel",
        ],
    ),
];

/// Crates that decide and do no I/O: no sockets, no runtime, no disk.
const SANS_IO: &[(&str, &str)] = &[
    ("sluice-proto", "proto"),
    ("sluice-path", "crates/path"),
    ("sluice-metering", "crates/metering"),
    ("sluice-settlement", "crates/settlement"),
    ("sluice-market", "crates/market"),
    ("sluice-relay-core", "relay/core"),
];

/// What a sans-IO crate must not depend on.
const IO_CRATES: &[&str] =
    &["tokio", "quinn", "quinn-udp", "socket2", "rusqlite", "getrandom", "rand", "reqwest", "nix"];

fn manifest(path: &Path) -> toml::Table {
    let text = std::fs::read_to_string(path).expect("a manifest");
    text.parse().expect("TOML")
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    manifest
        .get("dependencies")
        .and_then(toml::Value::as_table)
        .map(|t| t.keys().cloned().collect())
        .unwrap_or_default()
}

fn workspace() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    let members = manifest(&root.join("Cargo.toml"));
    let members = members["workspace"]["members"].as_array().expect("members").clone();
    members
        .iter()
        .map(|m| manifest(&root.join(m.as_str().expect("a path")).join("Cargo.toml")))
        .map(|m| (m["package"]["name"].as_str().expect("a name").to_owned(), dependencies(&m)))
        .collect()
}

#[test]
fn arrows_point_down_only() {
    let crates = workspace();
    for (name, used) in &crates {
        if ["tests", "netsim", "netsim-labs"].contains(&name.as_str()) {
            continue;
        }
        let allowed = ARROWS.iter().find(|(n, _)| n == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{name} has no place in the layout"));
        for dependency in used.iter().filter(|d| crates.contains_key(*d)) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not use {dependency}: the arrow points up or sideways"
            );
        }
    }
}

#[test]
fn crates_that_decide_do_no_io() {
    let crates = workspace();
    for (name, _) in SANS_IO {
        for dependency in &crates[*name] {
            assert!(!IO_CRATES.contains(&dependency.as_str()), "{name} uses {dependency}");
        }
    }
}

#[test]
fn crates_that_decide_read_no_clock_and_open_no_socket() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    for (name, folder) in SANS_IO {
        visit(&root.join(folder).join("src"), &mut |path, text| {
            for banned in
                ["Instant::now(", "SystemTime::now(", "std::fs::", "std::env::", "UdpSocket"]
            {
                assert!(!text.contains(banned), "{name}: {} has {banned}", path.display());
            }
        });
    }
}

fn visit(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            visit(&path, look);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            // What follows is tests, which may do as they like.
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            look(&path, text);
        }
    }
}

/// `secp256k1` is the binding to libsecp256k1; the others are curves written in Rust, several times
/// slower, which only libraries of ours use.
#[test]
fn vouchers_are_signed_and_checked_by_libsecp256k1() {
    let workspace = workspace();
    assert!(workspace["sluice-proto"].contains("secp256k1"));
    for (name, dependencies) in &workspace {
        for other in ["k256", "libsecp256k1", "alloy-signer-local"] {
            assert!(!dependencies.contains(other), "{name} signs with {other}");
        }
        let binds = dependencies.contains("secp256k1");
        assert!(!binds || name == "sluice-proto", "{name} signs by itself");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    let lock = manifest(&root.join("Cargo.lock"));
    let packages = lock["package"].as_array().expect("packages");
    let proto = packages.iter().find(|p| p["name"].as_str() == Some("sluice-proto"));
    let uses = proto.expect("it is locked")["dependencies"].as_array().expect("dependencies");
    let binding = uses.iter().filter_map(toml::Value::as_str).find(|d| d.starts_with("secp256k1"));
    let version = binding.expect("it is used").split(' ').nth(1);
    let is_it = |p: &&toml::Value| {
        p["name"].as_str() == Some("secp256k1")
            && version.is_none_or(|version| p["version"].as_str() == Some(version))
    };
    let binding = packages.iter().find(is_it).expect("it is locked")["dependencies"].as_array();
    let has_c = |d: &toml::Value| d.as_str().is_some_and(|d| d.starts_with("secp256k1-sys"));
    assert!(binding.expect("dependencies").iter().any(has_c), "no library in C is bound");
}
