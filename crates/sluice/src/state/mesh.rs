//! What a node's mesh keeps: its last record's number, peers that answered, and what it knows for those
//! who look.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::files::{failed, make};
use super::{State, StateError};

/// Number of the last record that the node signed.
const SEQUENCE: &str = "mesh-sequence";
/// Addresses of peers, one a line.
const PEERS: &str = "mesh-peers";
/// What a running role knows, as JSON.
const KNOWN: &str = "mesh-known";
/// Largest file that is read.
const FILE_MAX: u64 = 8 << 20;

impl State {
    /// Number of the last record that the node signed; 0 if none is known. A file that is damaged is
    /// as good as none: what counts then is the clock.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn mesh_sequence(dir: &Path) -> Result<u64, StateError> {
        let text = read(&dir.join(SEQUENCE))?.unwrap_or_default();
        Ok(text.trim().parse().unwrap_or_default())
    }

    /// Writes that number down; it is durable when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_mesh_sequence(dir: &Path, sequence: u64) -> Result<(), StateError> {
        make(dir, &dir.join(SEQUENCE), format!("{sequence}\n").as_bytes())
    }

    /// Peers that answered when the node ran before, as the mesh wrote them.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn mesh_peers(dir: &Path) -> Result<String, StateError> {
        Ok(read(&dir.join(PEERS))?.unwrap_or_default())
    }

    /// Remembers peers for the next start.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_mesh_peers(dir: &Path, text: &str) -> Result<(), StateError> {
        make(dir, &dir.join(PEERS), text.as_bytes())
    }

    /// What the role that runs in a directory, or ran there last, knows of the mesh; `None` if none did.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn mesh_known(dir: &Path) -> Result<Option<String>, StateError> {
        read(&dir.join(KNOWN))
    }

    /// Writes what this role knows of the mesh, for those who look.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_mesh_known(dir: &Path, text: &str) -> Result<(), StateError> {
        make(dir, &dir.join(KNOWN), text.as_bytes())
    }

    /// Where that is.
    #[must_use]
    pub fn mesh_known_in(dir: &Path) -> PathBuf {
        dir.join(KNOWN)
    }
}

pub(super) fn read(path: &Path) -> Result<Option<String>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
