//! The leases of a node, on disk: what it may connect under, or must serve.
//!
//! One file each in `leases/` of the state directory, named by the lease's id, written whole and synced
//! before anybody is told. A second file beside it says that the lease ended before its time, and why.
//! Only the process that holds the directory's lock writes; anybody of the same user may read beside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_proto::market::{MARKET_MESSAGE_MAX, SignedLease};
use sluice_proto::{LeaseId, PeerId};
use tokio::sync::Notify;

use crate::state::{State, StateError};

/// Leases that are kept, at most; beyond, the one that has been over for longest goes. A home sells a
/// few at a time: these are years of them.
pub const LEASES_MAX: usize = 1024;
/// Name of their directory.
const DIR: &str = "leases";
/// What follows a lease's id in the name of the file that says how it ended.
const ENDED: &str = "ended";
/// What `State::write_file` calls a file that it has not finished.
const UNFINISHED: &str = "new";

/// Why a lease ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its tenant never opened the channel: the provider gave the room to others.
    Unfunded,
    /// Its channel is closed, or pays another lease.
    Closed,
    /// The provider did not serve it.
    NotServed,
}

impl Ended {
    const ALL: [Self; 3] = [Self::Unfunded, Self::Closed, Self::NotServed];

    /// In one word: `unfunded`, `closed`, `not_served`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unfunded => "unfunded",
            Self::Closed => "closed",
            Self::NotServed => "not_served",
        }
    }
}

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It can be used.
    Open,
    /// Its time is over.
    Over,
    /// It ended sooner.
    Ended(Ended),
}

/// Why a lease cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The disk fails, or others may change the directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// As many leases run as are kept.
    #[error("{LEASES_MAX} leases are kept, and none of them is over")]
    Full,
    /// The text is not the beginning of an id.
    #[error("{0:?} is not the beginning of a lease's id: `sluice leases` shows them")]
    NotAnId(String),
    /// None is called so.
    #[error("no lease begins with {0}: `sluice leases` shows them")]
    Unknown(String),
    /// Several are called so.
    #[error("{count} leases begin with {text}: write more of it")]
    Ambiguous {
        /// What they begin with.
        text: String,
        /// How many.
        count: usize,
    },
}

/// A file that should hold a lease and does not. It is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Which.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// The leases of a state directory. Clones share them.
#[derive(Debug, Clone)]
pub struct Leases {
    dir: PathBuf,
    kept: Arc<Mutex<BTreeMap<LeaseId, Kept>>>,
    damaged: Arc<[Damaged]>,
    changed: Arc<Notify>,
}

#[derive(Debug, Clone)]
struct Kept {
    lease: Arc<SignedLease>,
    ended: Option<Ended>,
    /// Its channel was seen by this process, or is not needed.
    funded: bool,
}

impl Leases {
    /// Reads the leases of a state directory; nothing is made or changed.
    ///
    /// # Errors
    /// When the directory cannot be read. A file that holds no lease is [damaged](Self::damaged).
    pub fn open(state_dir: &Path) -> Result<Self, LeaseError> {
        let dir = state_dir.join(DIR);
        let (mut kept, mut damaged) = (BTreeMap::new(), Vec::new());
        for path in files(&dir).map_err(|source| failed("read the directory", &dir, source))? {
            let extension = path.extension().and_then(|e| e.to_str());
            if matches!(extension, Some(ENDED | UNFINISHED)) {
                continue;
            }
            match read(&path) {
                Ok(lease) => {
                    let ended = how_it_ended(&path.with_extension(ENDED));
                    kept.insert(
                        lease.lease().lease,
                        Kept { lease: Arc::new(lease), ended, funded: false },
                    );
                }
                // Its room was needed while it was looked at.
                Err(None) => {}
                Err(Some(what)) => damaged.push(Damaged { path, what }),
            }
        }
        let kept = Arc::new(Mutex::new(kept));
        Ok(Self { dir, kept, damaged: damaged.into(), changed: Arc::default() })
    }

    /// The files that should hold leases and do not.
    #[must_use]
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// Keeps a lease; returns once it is durable. Blocks on the disk.
    ///
    /// # Errors
    /// [`LeaseError::Full`]; when the disk fails.
    pub fn put(&self, lease: &SignedLease) -> Result<(), LeaseError> {
        let terms = lease.lease();
        let (id, now_unix_s) = (terms.lease, terms.made_unix_s);
        let mut kept = self.kept.lock();
        if kept.len() >= LEASES_MAX && !kept.contains_key(&id) {
            let over = oldest_over(&kept, now_unix_s).ok_or(LeaseError::Full)?;
            self.remove(over)?;
            kept.remove(&over);
        }
        State::write_file(&self.path(id), &lease.encode())?;
        let (ended, funded) = kept.get(&id).map_or((None, false), |kept| (kept.ended, kept.funded));
        kept.insert(id, Kept { lease: Arc::new(lease.clone()), ended, funded });
        self.changed.notify_one();
        Ok(())
    }

    /// Ends a lease before its time; the first reason stays, and one that was funded is not unfunded.
    /// Returns once it is durable. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn end(&self, id: LeaseId, why: Ended) -> Result<(), LeaseError> {
        let mut kept = self.kept.lock();
        let Some(kept) = kept.get_mut(&id).filter(|kept| kept.ended.is_none()) else {
            return Ok(());
        };
        if why == Ended::Unfunded && kept.funded {
            return Ok(());
        }
        let path = self.path(id).with_extension(ENDED);
        State::write_file(&path, format!("{}\n", why.as_str()).as_bytes())?;
        kept.ended = Some(why);
        self.changed.notify_one();
        Ok(())
    }

    /// The channel of a lease is open, or it needs none. False: it is not open any more, and must not
    /// be served.
    pub fn fund(&self, id: LeaseId, now_unix_s: u64) -> bool {
        let mut kept = self.kept.lock();
        let Some(kept) = kept.get_mut(&id).filter(|k| k.state(now_unix_s) == LeaseState::Open)
        else {
            return false;
        };
        kept.funded = true;
        self.changed.notify_one();
        true
    }

    /// Whether a lease was [funded](Self::fund) while this process runs.
    #[must_use]
    pub fn is_funded(&self, id: LeaseId) -> bool {
        self.kept.lock().get(&id).is_some_and(|kept| kept.funded)
    }

    /// Waits until one comes, is funded or ends. For one who waits at a time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The lease of this id.
    #[must_use]
    pub fn get(&self, id: LeaseId) -> Option<Arc<SignedLease>> {
        self.kept.lock().get(&id).map(|kept| kept.lease.clone())
    }

    /// The lease whose id, in hexadecimal digits, begins with `text`.
    ///
    /// # Errors
    /// When there is none or more than one, or `text` is no beginning of an id.
    pub fn find(&self, text: &str) -> Result<Arc<SignedLease>, LeaseError> {
        let digits = text.trim().to_lowercase();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(LeaseError::NotAnId(text.chars().take(64).collect()));
        }
        let kept = self.kept.lock();
        let mut found = kept.iter().filter(|(id, _)| hex::encode(id.0).starts_with(&digits));
        match (found.next(), found.count()) {
            (None, _) => Err(LeaseError::Unknown(digits)),
            (Some((_, kept)), 0) => Ok(kept.lease.clone()),
            (Some(_), more) => Err(LeaseError::Ambiguous { text: digits, count: more + 1 }),
        }
    }

    /// All, the newest last, and how each stands at `now_unix_s`.
    #[must_use]
    pub fn all(&self, now_unix_s: u64) -> Vec<(Arc<SignedLease>, LeaseState)> {
        let kept = self.kept.lock();
        let mut all: Vec<_> =
            kept.values().map(|kept| (kept.lease.clone(), kept.state(now_unix_s))).collect();
        all.sort_by_key(|(lease, _)| (lease.lease().made_unix_s, lease.lease().lease));
        all
    }

    /// How a lease stands at `now_unix_s`; `None`: it is not kept.
    #[must_use]
    pub fn state(&self, id: LeaseId, now_unix_s: u64) -> Option<LeaseState> {
        self.kept.lock().get(&id).map(|kept| kept.state(now_unix_s))
    }

    /// The newest lease between these two that is open at `now_unix_s`.
    #[must_use]
    pub fn open_between(
        &self,
        tenant: PeerId,
        provider: PeerId,
        now_unix_s: u64,
    ) -> Option<Arc<SignedLease>> {
        let kept = self.kept.lock();
        let open = kept.values().filter(|kept| {
            let lease = kept.lease.lease();
            (lease.tenant, lease.provider) == (tenant, provider)
                && kept.state(now_unix_s) == LeaseState::Open
        });
        let newest =
            open.max_by_key(|kept| (kept.lease.lease().made_unix_s, kept.lease.lease().lease));
        newest.map(|kept| kept.lease.clone())
    }

    fn path(&self, id: LeaseId) -> PathBuf {
        self.dir.join(hex::encode(id.0))
    }

    fn remove(&self, id: LeaseId) -> Result<(), LeaseError> {
        let path = self.path(id);
        // How it ended goes last: without it the lease would seem to be open.
        for path in [path.clone(), path.with_extension(ENDED)] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path, source));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

impl Kept {
    fn state(&self, now_unix_s: u64) -> LeaseState {
        match self.ended {
            Some(why) => LeaseState::Ended(why),
            None if self.lease.lease().ends_unix_s() <= now_unix_s => LeaseState::Over,
            None => LeaseState::Open,
        }
    }
}

/// Of the leases that are not open the one that would have ended first.
fn oldest_over(kept: &BTreeMap<LeaseId, Kept>, now_unix_s: u64) -> Option<LeaseId> {
    let over = kept.iter().filter(|(_, kept)| kept.state(now_unix_s) != LeaseState::Open);
    over.min_by_key(|(_, kept)| kept.lease.lease().ends_unix_s()).map(|(id, _)| *id)
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// `Err(None)`: it is gone.
fn read(path: &Path) -> Result<SignedLease, Option<String>> {
    let mut bytes = Vec::new();
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(None),
        Err(e) => return Err(Some(e.to_string())),
    };
    // The largest lease and two pairs of signatures.
    let most = 2 * MARKET_MESSAGE_MAX as u64;
    file.take(most).read_to_end(&mut bytes).map_err(|e| Some(e.to_string()))?;
    let lease = SignedLease::open(&Bytes::from(bytes)).map_err(|e| Some(e.to_string()))?;
    let name = path.file_name().and_then(|name| name.to_str());
    match name == Some(&hex::encode(lease.lease().lease.0)) {
        true => Ok(lease),
        false => Err(Some(format!("it holds lease {}", hex::encode(lease.lease().lease.0)))),
    }
}

/// A mark that cannot be read is one all the same: what ended is not served again.
fn how_it_ended(path: &Path) -> Option<Ended> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let known = Ended::ALL.into_iter().find(|why| why.as_str() == text.trim());
            Some(known.unwrap_or(Ended::Closed))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(_) => Some(Ended::Closed),
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> LeaseError {
    LeaseError::State(StateError::Io { doing, path: path.to_owned(), source })
}
