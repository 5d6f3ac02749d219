//! What is in doubt when a ledger may be older than what was written to it once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_proto::LeaseId;

use crate::lock::private;

/// First line of the file.
const HEAD: &str = "sluice recovery 1";
/// Largest file that is read: a million leases.
const FILE_MAX: u64 = 80 << 20;

/// Why a recovery file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{} is damaged at line {line}: delete it and start again, and every lease is looked at anew",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
}

/// The recovery of a node whose state directory was found copied or restored, as a file beside its
/// ledger. While it lasts each lease is in doubt until the other side showed its newest voucher, which
/// happens whenever a session or a reservation begins, or until its owner says that it is fine.
///
/// Signing needs no such doubt: no account begins before the other side was heard. It keeps what
/// cannot be taken back from being done on an old ledger's word alone, as closing a channel at less
/// than was earned. Clones share it; [`none`](Self::none) is of a node that is sure of itself.
#[derive(Debug, Clone, Default)]
pub struct Recovery(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    found: Found,
    settled: Mutex<BTreeSet<LeaseId>>,
    /// Heard, and not yet on the disk.
    heard: Mutex<BTreeSet<LeaseId>>,
    /// Held by whoever writes.
    writing: tokio::sync::Mutex<()>,
}

/// What was found, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Seconds since the Unix epoch.
    pub at_unix_s: u64,
    /// How the directory was found, for a person: one line.
    pub why: String,
}

impl Recovery {
    /// Nothing is in doubt.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Begins a recovery: from now on each lease is in doubt. Durable when it returns; what an
    /// earlier one had settled is forgotten.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(path: &Path, found: &Found) -> Result<Self, RecoveryError> {
        let new = path.with_extension("new");
        let why = found.why.replace('\n', " ");
        let write = || {
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
            let mut file = private(OpenOptions::new().write(true).create_new(true)).open(&new)?;
            write!(file, "{HEAD}\nfound {}\nwhy {why}\n", found.at_unix_s)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            sync_folder(path)
        };
        write().map_err(failed("write", path))?;
        let found = Found { at_unix_s: found.at_unix_s, why };
        Ok(Self::of(path, found, BTreeSet::new()))
    }

    /// The recovery that lasts, if one does.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn open(path: &Path) -> Result<Self, RecoveryError> {
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => file.take(FILE_MAX).read_to_string(&mut text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::none()),
            Err(e) => Err(e),
        }
        .map_err(failed("read", path))?;
        let (found, settled) =
            parse(&text).map_err(|line| RecoveryError::Damaged { path: path.to_owned(), line })?;
        Ok(Self::of(path, found, settled))
    }

    fn of(path: &Path, found: Found, settled: BTreeSet<LeaseId>) -> Self {
        let (path, settled) = (path.to_owned(), Mutex::new(settled));
        let (heard, writing) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Some(Arc::new(Shared { path, found, settled, heard, writing })))
    }

    /// What was found, while a recovery lasts.
    #[must_use]
    pub fn found(&self) -> Option<&Found> {
        self.0.as_ref().map(|shared| &shared.found)
    }

    /// Whether the ledger may be behind on this lease.
    #[must_use]
    pub fn doubts(&self, lease: LeaseId) -> bool {
        self.0.as_ref().is_some_and(|shared| !shared.settled.lock().contains(&lease))
    }

    /// The other side of a lease showed its newest voucher, and the higher of both is in the ledger.
    /// Durable when it returns. It takes a sync of the disk once for each lease, and one for all that
    /// are heard meanwhile.
    ///
    /// # Errors
    /// When the file cannot be written: the lease stays in doubt.
    pub async fn settle(&self, lease: LeaseId) -> Result<(), RecoveryError> {
        let Some(shared) = self.0.as_ref().filter(|_| self.doubts(lease)) else { return Ok(()) };
        shared.heard.lock().insert(lease);
        let _alone = shared.writing.lock().await;
        if !self.doubts(lease) {
            return Ok(());
        }
        let mut all = std::mem::take(&mut *shared.heard.lock());
        // Taken before by one that could not write it.
        all.insert(lease);
        let writer = shared.clone();
        let written = tokio::task::spawn_blocking(move || writer.write(&all).map(|()| all));
        let written = written.await.unwrap_or_else(|gone| Err(io::Error::other(gone)));
        let written = written.map_err(failed("write", &shared.path))?;
        shared.settled.lock().extend(written);
        Ok(())
    }

    /// Ends the recovery: nothing is in doubt any more.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn end(path: &Path) -> Result<(), RecoveryError> {
        let remove = || match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => sync_folder(path),
        };
        remove().map_err(failed("remove", path))
    }
}

impl Shared {
    fn write(&self, leases: &BTreeSet<LeaseId>) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        // On a line of its own, also where a crash cut off the one before.
        let lines = leases.iter().map(|lease| format!("\nsettled {}\n", hex::encode(lease.0)));
        file.write_all(lines.collect::<String>().as_bytes())?;
        file.sync_all()
    }
}

/// The file's text, or the number of the line that is wrong. Lines that a crash cut off settle
/// nothing.
fn parse(text: &str) -> Result<(Found, BTreeSet<LeaseId>), usize> {
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return Err(1);
    }
    let at = lines.next().and_then(|line| line.strip_prefix("found ")?.parse().ok());
    let why = lines.next().and_then(|line| line.strip_prefix("why "));
    let found = Found { at_unix_s: at.ok_or(2_usize)?, why: why.ok_or(3_usize)?.to_owned() };
    let lease = |line: &str| {
        let mut id = [0; 32];
        hex::decode_to_slice(line.strip_prefix("settled ")?, &mut id).ok()?;
        Some(LeaseId(id))
    };
    Ok((found, lines.filter_map(lease).collect()))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

fn failed<'p>(doing: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> RecoveryError + 'p {
    move |source| RecoveryError::Io { doing, path: path.to_owned(), source }
}
