//! Keeps a second process out of a ledger.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::LedgerError;

/// How often a lock that is held is tried again, and how long after: for a second in all. A process
/// that is just ending still holds it, and so does a child between `fork` and `exec`.
const TRIES: u32 = 100;
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// Most of a lock file that is read for an error message.
const HOLDER_MAX: u64 = 64;

/// An exclusive lock on `<ledger>.lock`, held until dropped, or until the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, within a second or not at all, and writes this process's id into the file.
    pub(crate) fn take(ledger: &Path) -> Result<Self, LedgerError> {
        let path = lock_path(ledger);
        let open =
            |e: std::io::Error| LedgerError::Open { path: path.clone(), detail: e.to_string() };
        let mut file = private(OpenOptions::new().read(true).write(true).create(true))
            .truncate(false)
            .open(&path)
            .map_err(open)?;
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LedgerError::Locked { path: ledger.to_owned(), holder: holder(&file) });
            }
            Err(TryLockError::Error(e)) => return Err(open(e)),
        }
        sign(&mut file).map_err(open)?;
        Ok(Self { _file: file })
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

/// Asks for mode 0600 where there are modes.
pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

fn lock_path(ledger: &Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn sign(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    write!(file, "process {}", std::process::id())
}

fn holder(file: &File) -> String {
    let mut text = String::new();
    match file.take(HOLDER_MAX).read_to_string(&mut text) {
        Ok(n) if n > 0 => sluice_proto::wire::display_text(text.trim()),
        Ok(_) | Err(_) => "another process".to_owned(),
    }
}
