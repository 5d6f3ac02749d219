//! Where the `sluice` binary is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The binary: `SLUICE_BIN`, or the one in the profile's folder that this test was built into. It is
/// built first if it is missing or older than a source file of the product.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn sluice() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("SLUICE_BIN") {
        Some(program) => program.into(),
        None => beside(),
    })
}

fn beside() -> PathBuf {
    let this = std::env::current_exe().expect("a program knows its own file");
    // <target folder>/<profile>/deps/<test>-<hash>, or <target folder>/<profile>/<program>
    let folder = this.parent().expect("a program is in a folder");
    let is_test = folder.ends_with("deps");
    let profile = if is_test { folder.parent().expect("a profile's folder") } else { folder };
    let profile = profile.to_owned();
    let program = profile.join(format!("sluice{}", std::env::consts::EXE_SUFFIX));
    let built = program.metadata().and_then(|m| m.modified());
    if built.is_ok_and(|built| built >= newest_source()) {
        return program;
    }
    let name = profile.file_name().and_then(|n| n.to_str()).expect("a profile's folder");
    let name = if name == "debug" { "dev" } else { name };
    let target = profile.parent().expect("the target folder");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--package", "sluice", "--profile", name, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "failed to build sluice; SLUICE_BIN names a binary built before");
    program
}

fn newest_source() -> SystemTime {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
    let folders = ["proto/src", "crates", "relay"];
    folders.iter().map(|f| newest(&root.join(f))).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let times = entries.filter_map(|entry| {
        let path = entry.path();
        let tests = ["tests", "examples"].iter().any(|t| path.ends_with(t));
        match path.extension().and_then(|e| e.to_str()) {
            _ if path.is_dir() && !tests => Some(newest(&path)),
            Some("rs" | "toml" | "proto" | "json" | "sql") => {
                entry.metadata().ok()?.modified().ok()
            }
            _ => None,
        }
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}
