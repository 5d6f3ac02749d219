//! End-to-end tests with the real binaries, and benchmarks against peers.
//!
//! The tests start `sluice` as a user does, read what it says with `--json`, and look at the bytes
//! that come out at the other end and at the ledgers that are left behind.
//!
//! - [`Lab`]: a folder with a configuration for all roles, and the roles started in it.
//! - [`Three`]: a relay, a provider and a tenant in it.
//! - [`Process`]: one of them, its events, its end. It is killed when it is dropped, and the test
//!   fails if it panicked.
//! - [`Web`], [`Echo`]: workloads. [`content`] is what the first serves: any part of it can be made
//!   again, nothing in it repeats.
//! - [`Curl`]: the client.
//! - [`Devnet`]: a real chain whose blocks can be undone.
//! - [`Books`]: a role's ledger after it ended.
//! - [`Cast`]: the same roles inside the test's own process, for what needs a look inside.
//! - [`lease_terms`], [`signed_lease`]: what an auction between two of them would end with.
//! - [`LyingTenant`], [`LyingHolder`]: those who do not pay.
//! - [`Capture`]: what somebody sees who listens on the wire.
//!
//! Nothing waits for a fixed time: every wait is for something, and fails after [`PATIENCE`].

#![expect(clippy::disallowed_methods, reason = "tests drive real processes and real time")]

mod agreement;
mod books;
mod capture;
mod cast;
mod content;
mod curl;
mod devnet;
pub mod figures;
mod lab;
mod liar;
mod process;
mod program;
mod three;
mod web;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use agreement::{lease_terms, signed_lease};
pub use books::{Books, both_agree};
pub use capture::{Capture, Runs};
pub use cast::{Cast, Member, loopback};
pub use content::{CHUNK, content, differs_at, sha256_of, sha256_of_content};
pub use curl::{Curl, Downloaded, curl};
pub use devnet::{DEPTH, Devnet};
pub use lab::{Lab, Provider, RelayRole, Tenant, event_kind};
pub use liar::{LyingHolder, LyingTenant, Paid, node, read_all, voucher_for};
pub use process::{Account, Process};
pub use program::sluice;
pub use three::{Three, amount, done, last};
pub use web::{Echo, Python, Web};

/// Every wait gives up after this: long enough for a debug build on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Says loudly that something was not tested, and why. Fails instead where `CI` is set.
///
/// # Errors
/// When `CI` is set.
pub fn skip(what: &str, why: &str) -> Result<()> {
    if std::env::var_os("CI").is_some() {
        bail!("{what} cannot be skipped here: {why}");
    }
    eprintln!("\n*** SKIPPED: {what}: {why}\n");
    Ok(())
}

/// Whether a program can be started.
#[must_use]
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Looks again and again until `look` finds something.
///
/// # Errors
/// When [`PATIENCE`] is over.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("{what} did not happen within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
