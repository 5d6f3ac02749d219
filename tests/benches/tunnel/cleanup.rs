//! What must not stay behind: namespaces and files, whether a run ends, panics or is interrupted.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// What this process made and has not yet removed.
static MADE: Mutex<BTreeSet<Made>> = Mutex::new(BTreeSet::new());

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Made {
    Namespace(String),
    Folder(PathBuf),
}

/// Removes the namespace when dropped, or when the process is told to stop.
#[derive(Debug)]
pub(crate) struct Namespace(Made);

/// Removes the folder when dropped, or when the process is told to stop.
#[derive(Debug)]
pub(crate) struct Folder(Made);

impl Namespace {
    pub(crate) fn register(name: &str) -> Self {
        Self(register(Made::Namespace(name.to_owned())))
    }
}

impl Folder {
    pub(crate) fn register(path: PathBuf) -> Self {
        Self(register(Made::Folder(path)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes everything on SIGINT and SIGTERM, then exits. The children die with this process
/// ([`crate::process`]).
///
/// # Errors
///
/// If the signals can't be watched.
pub(crate) fn on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("failed to start a runtime for signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let made = MADE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        made.iter().for_each(remove);
        std::process::exit(130);
    });
    Ok(())
}

fn register(made: Made) -> Made {
    MADE.lock().unwrap_or_else(PoisonError::into_inner).insert(made.clone());
    made
}

fn remove(made: &Made) {
    if !MADE.lock().unwrap_or_else(PoisonError::into_inner).remove(made) {
        return;
    }
    match made {
        Made::Namespace(name) => {
            let _ = Command::new("ip")
                .args(["netns", "del", name])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        Made::Folder(path) => {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}
