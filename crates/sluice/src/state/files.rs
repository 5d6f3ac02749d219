//! Files that only their owner may read: made whole or not at all, checked before they are used.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_ledger::RecoveryError;
use zeroize::Zeroizing;

/// A secret of a fixed size, wiped when dropped.
pub(super) type Secret<const N: usize> = Zeroizing<[u8; N]>;

/// Largest key file that is read.
const KEY_MAX: u64 = 4096;
/// How often a lock that is held is tried again, and how long after: for a second in all. A process
/// that is just ending still holds it, and so does a child between `fork` and `exec`.
const TRIES: u32 = 100;
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// Most of a lock file that is read for an error message.
const HOLDER_MAX: u64 = 64;
/// Name of the lock file.
const LOCK: &str = "lock";

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process uses it.
    #[error(
        "{} is in use by {holder}: stop that one, or give this one its own directory with \
         --state-dir", dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, as it wrote itself into the lock file.
        holder: String,
    },
    /// Others than its owner may read or change it.
    #[error(
        "{} is open to other users (mode {mode:04o}), who may have taken its secrets: if you trust \
         them all, run `chmod {wanted:o} {0}`; else {otherwise}",
        path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it must have.
        wanted: u32,
        /// What to do where they are not trusted.
        otherwise: &'static str,
    },
    /// Another user owns it.
    #[error(
        "{} belongs to user {owner}, but Sluice runs as user {me}: run it as user {owner}, or give \
         it its own directory with --state-dir", path.display()
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// This process's effective user.
        me: u32,
    },
    /// A file does not hold its key, or its secret.
    #[error("{holds} {} is damaged ({what}): {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What it should hold.
        holds: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no ledger in it.
    #[error(
        "there is no ledger in {}: no role has run there yet; name another directory with \
         --state-dir", dir.display()
    )]
    NoLedger {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that must not be overwritten.
    #[error("{} exists, and keys are never overwritten: choose another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// What a recovery left in doubt cannot be read or written.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The environment names no place for state.
    #[error("no place for keys is known: give one with --state-dir, or set SLUICE_STATE or HOME")]
    NoHome,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(String),
}

/// What a file holds, for advice when it cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// What this node made for itself.
    Own,
    /// A wallet's key that its owner put there.
    Wallet,
    /// A password or a passphrase.
    Password,
}

impl Holds {
    const fn name(self) -> &'static str {
        match self {
            Self::Own | Self::Wallet => "the key",
            Self::Password => "the password file",
        }
    }

    const fn if_exposed(self) -> &'static str {
        match self {
            Self::Own => "delete it and let Sluice make new keys",
            Self::Wallet => "move what its account has to a new one",
            Self::Password => "change the password, here and where it is asked for",
        }
    }

    const fn if_damaged(self) -> &'static str {
        match self {
            Self::Own => {
                "restore it from a backup, or delete it to get a new one, which is another identity \
                 or account"
            }
            Self::Wallet => "restore it from a backup",
            Self::Password => "write it anew; its first line is what counts",
        }
    }
}

pub(super) fn failed<'p>(
    doing: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> StateError + 'p {
    move |source| StateError::Io { doing, path: path.to_owned(), source }
}

/// Makes the directory (0700) if need be, and refuses one that others can change.
pub(super) fn make_dir(dir: &Path) -> Result<(), StateError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(failed("make the directory", dir))?;
    let metadata = fs::metadata(dir).map_err(failed("look at", dir))?;
    guarded(dir, &metadata, 0o022, 0o700, Holds::Own)
}

/// Locks the directory, within a second or not at all, until the file is dropped or the process dies.
pub(super) fn lock(dir: &Path, role: &str) -> Result<File, StateError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = private(&mut options).open(&path).map_err(failed("open", &path))?;
    match try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(StateError::Locked { dir: dir.to_owned(), holder: holder(&file) });
        }
        Err(TryLockError::Error(source)) => {
            return Err(StateError::Io { doing: "lock", path, source });
        }
    }
    let me = format!("sluice {role}, process {}", std::process::id());
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(me.as_bytes())
    };
    write(&mut file).map_err(failed("write", &path))?;
    Ok(file)
}

/// Who holds the lock of a directory, if anybody does. A role that starts at this moment may be
/// kept waiting for a few milliseconds.
pub(super) fn holder_of(dir: &Path) -> Result<Option<String>, StateError> {
    let path = dir.join(LOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", &path)(e)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(holder(&file))),
        Err(TryLockError::Error(source)) => Err(StateError::Io { doing: "lock", path, source }),
    }
}

fn try_lock(file: &File) -> Result<(), TryLockError> {
    for _ in 1..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_AGAIN),
            verdict => return verdict,
        }
    }
    file.try_lock()
}

fn holder(file: &File) -> String {
    let mut text = String::new();
    match file.take(HOLDER_MAX).read_to_string(&mut text) {
        Ok(n) if n > 0 => sluice_proto::wire::display_text(text.trim()),
        Ok(_) | Err(_) => "another process".to_owned(),
    }
}

/// Reads the key `name`, or makes it with what `draw` gives.
pub(super) fn key<T>(
    dir: &Path,
    name: &str,
    draw: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, StateError>,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, StateError> {
    let path = dir.join(name);
    // Not `exists`, which would take a key that cannot be looked at for one that is missing.
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(dir, &path, &draw()?)?,
        Ok(_) | Err(_) => {}
    }
    read(&path, Holds::Own, parse)
}

/// Reads a file that must be there.
pub(super) fn read<T>(
    path: &Path,
    holds: Holds,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, StateError> {
    let file = File::open(path).map_err(failed("open", path))?;
    let metadata = file.metadata().map_err(failed("look at", path))?;
    guarded(path, &metadata, 0o077, 0o600, holds)?;
    // With room for all that may come, so that no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_MAX as usize + 1));
    file.take(KEY_MAX + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    parse(&bytes).map_err(|what| {
        let (path, holds, remedy) = (path.to_owned(), holds.name(), holds.if_damaged());
        StateError::Damaged { path, what, holds, remedy }
    })
}

/// Writes beside the place and moves it there once it is synced, so that a crash leaves either what
/// was there before, if anything, or all of it.
pub(super) fn make(dir: &Path, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let new = path.with_extension("new");
    // What a crash left behind; the lock says that nobody else is at work on it.
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new)(e)),
        Ok(()) | Err(_) => {}
    }
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = private(options.write(true).create_new(true)).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_dir(dir)
    };
    write().map_err(failed("write", path))
}

/// Makes what was moved into a directory, or made in it, outlast a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Writes a secret to a new file. It never takes another's place; what could not be written whole is
/// removed.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut options = OpenOptions::new();
    let mut file = match private(options.write(true).create_new(true)).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return Err(StateError::Exists { path: path.to_owned() });
        }
        Err(e) => return Err(failed("make", path)(e)),
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(path);
        failed("write", path)(error)
    })
}

/// Asks for mode 0600 where there are modes.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Refuses what another owns, or of whose mode a bit of `forbidden` is set.
#[cfg(unix)]
fn guarded(
    path: &Path,
    metadata: &fs::Metadata,
    forbidden: u32,
    wanted: u32,
    holds: Holds,
) -> Result<(), StateError> {
    use std::os::unix::fs::MetadataExt;
    let (owner, me) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != me {
        return Err(StateError::Owner { path: path.to_owned(), owner, me });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(StateError::Exposed {
            path: path.to_owned(),
            mode,
            wanted,
            otherwise: holds.if_exposed(),
        });
    }
    Ok(())
}

/// Elsewhere the system's own defaults for a user's files must do.
#[cfg(not(unix))]
fn guarded(_: &Path, _: &fs::Metadata, _: u32, _: u32, _: Holds) -> Result<(), StateError> {
    Ok(())
}
