//! Whether a state directory is where, and as, its node left it.
//!
//! Files are copied, and brought back from a backup, without a trace inside them. What they cannot
//! take along is where the file system put them and when it changed them last, which no program can
//! set. So a node that starts writes the file `instance`, with the number of the start, and then the
//! file `seal`, with where and when the file system has that one. At the next start both must agree.
//! A snapshot below the file system (of a volume, or of a whole machine) brings all of it back and is
//! not found here; the other side of each lease finds it all the same.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use super::StateError;
use super::files::{failed, make};

/// Largest file that is read.
const FILE_MAX: u64 = 4096;
const INSTANCE: &str = "instance";
const SEAL: &str = "seal";

/// What the last start left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Before {
    /// Its number, if there was one.
    pub(super) start: u64,
    /// Why this is not the directory that it left.
    pub(super) moved: Option<&'static str>,
}

/// Looks at a directory that is locked.
pub(super) fn look(dir: &Path) -> Result<Before, StateError> {
    let (instance, seal) = (read(&dir.join(INSTANCE))?, read(&dir.join(SEAL))?);
    let start = instance.as_deref().and_then(parse_instance);
    let sealed = seal.as_deref().and_then(parse_seal);
    let moved = match (start, sealed) {
        (Some(_), Some(sealed)) => sealed.differs(&Place::of(dir)?),
        (None, _) | (_, None) => Some("nothing tells where this directory comes from"),
    };
    Ok(Before { start: start.unwrap_or_default(), moved })
}

/// Marks the directory as the one that the start of this number uses.
pub(super) fn mark(dir: &Path, start: u64) -> Result<(), StateError> {
    make(dir, &dir.join(INSTANCE), format!("sluice instance 1\nstart {start}\n").as_bytes())?;
    let Place { directory, instance, changed_ns } = Place::of(dir)?;
    let seal = format!(
        "sluice seal 1\ndirectory {directory}\ninstance {instance}\nchanged {changed_ns}\n"
    );
    make(dir, &dir.join(SEAL), seal.as_bytes())
}

/// Where a file system has a directory and the file in it, and when it changed the file last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    directory: u64,
    instance: u64,
    changed_ns: i128,
}

impl Place {
    #[cfg(unix)]
    fn of(dir: &Path) -> Result<Self, StateError> {
        use std::os::unix::fs::MetadataExt as _;
        let path = dir.join(INSTANCE);
        let directory = fs::metadata(dir).map_err(failed("look at", dir))?;
        let instance = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        let changed_ns =
            i128::from(instance.ctime()) * 1_000_000_000 + i128::from(instance.ctime_nsec());
        Ok(Self { directory: directory.ino(), instance: instance.ino(), changed_ns })
    }

    /// Elsewhere nothing of this kind is known: only the other sides find a copy.
    #[cfg(not(unix))]
    fn of(_: &Path) -> Result<Self, StateError> {
        Ok(Self { directory: 0, instance: 0, changed_ns: 0 })
    }

    fn differs(&self, now: &Self) -> Option<&'static str> {
        if self.directory != now.directory {
            Some(
                "it is another directory than the one that was used last: a copy, or a restored backup",
            )
        } else if self != now {
            Some("its files were replaced since it was used last: a restored backup")
        } else {
            None
        }
    }
}

/// A small file, if it is there.
pub(super) fn read(path: &Path) -> Result<Option<String>, StateError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed("read", path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", path)(e)),
    };
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn parse_instance(text: &str) -> Option<u64> {
    text.strip_prefix("sluice instance 1\nstart ")?.strip_suffix('\n')?.parse().ok()
}

fn parse_seal(text: &str) -> Option<Place> {
    let mut lines = text.strip_suffix('\n')?.lines();
    let head = lines.next()? == "sluice seal 1";
    let directory = lines.next()?.strip_prefix("directory ")?.parse().ok()?;
    let instance = lines.next()?.strip_prefix("instance ")?.parse().ok()?;
    let changed_ns = lines.next()?.strip_prefix("changed ")?.parse().ok()?;
    (head && lines.next().is_none()).then_some(Place { directory, instance, changed_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_written_and_nothing_else_is() {
        let folder = tempfile::tempdir().expect("a folder");
        mark(folder.path(), 7).expect("writes");
        assert_eq!(look(folder.path()).expect("reads"), Before { start: 7, moved: None });
        let read = |name| fs::read_to_string(folder.path().join(name)).expect("reads");
        let (instance, seal) = (read(INSTANCE), read(SEAL));
        for end in 0..instance.len() {
            assert_eq!(parse_instance(&instance[..end]), None, "{end}");
        }
        for end in 0..seal.len() {
            assert_eq!(parse_seal(&seal[..end]), None, "{end}");
        }
        assert_eq!(parse_instance(&instance.replace('7', "-7")), None);
        assert_eq!(parse_seal(&seal.replace("seal 1", "seal 2")), None);
        assert_eq!(parse_seal(&format!("{seal}more\n")), None);
    }
}
