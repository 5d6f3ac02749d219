//! What a process did to files, and what a power cut leaves of it.
//!
//! The model: what was written before a sync of the same file is on the disk. Of what came after,
//! each write may be lost, each 512 byte sector of it may be lost by itself, and the order is any.
//! A new name is on the disk once its file or its folder was synced, a removed one once its folder
//! was.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::rng::Rng;

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    /// The write path begins.
    Began,
    /// The voucher of this number was told of.
    Told(u64),
    /// Bytes at an offset of a file.
    Write { file: String, at: u64, bytes: Vec<u8> },
    /// A file's new length.
    Truncate { file: String, len: u64 },
    /// A new file.
    Create { file: String },
    /// A file's end.
    Unlink { file: String },
    /// All that was written to a file is on the disk.
    Sync { file: String },
    /// All names in the folder are.
    SyncFolder,
}

impl Operation {
    /// Whether a disk could fail to do it.
    pub(super) const fn is_of_the_disk(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Truncate { .. } | Self::Sync { .. } | Self::SyncFolder => {
                true
            }
            Self::Began | Self::Told(_) | Self::Create { .. } | Self::Unlink { .. } => false,
        }
    }
}

/// How a power cut leaves what was not synced.
#[derive(Debug, Clone)]
pub(super) struct Damage {
    rng: Rng,
    /// Of what was not synced, the part that is lost.
    lost: f64,
    /// Of the writes that are not, the part of which only some sectors are there.
    torn: f64,
    /// Whether writes reach the disk in any order.
    reordered: bool,
    /// False: as if nothing had been synced.
    pub(super) syncs_count: bool,
}

impl Damage {
    pub(super) fn drawn(rng: &mut Rng) -> Self {
        let lost = rng.pick(&[0.0, 0.1, 0.5, 0.9, 1.0]);
        let torn = rng.pick(&[0.0, 0.3, 1.0]);
        let reordered = rng.chance(0.5);
        Self { rng: Rng::new(rng.below(u64::MAX)), lost, torn, reordered, syncs_count: true }
    }
}

/// All that a process did, in order.
#[derive(Debug, Default)]
pub(super) struct Log(Vec<Operation>);

impl Log {
    pub(super) fn push(&mut self, operation: Operation) {
        self.0.push(operation);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Makes the disk as it may be when the power is cut after the first `cut` operations on what is
    /// in `before`. Gives the newest voucher that had been told of; 0: none.
    pub(super) fn image(
        &self,
        before: &Path,
        into: &Path,
        cut: usize,
        mut damage: Damage,
    ) -> Result<u64> {
        let mut disk = Disk::read(before)?;
        let mut told = 0;
        for operation in &self.0[..cut] {
            match operation {
                Operation::Told(number) => told = *number,
                Operation::Sync { file } if damage.syncs_count => disk.settle(file),
                Operation::SyncFolder if damage.syncs_count => disk.settle_names(),
                Operation::Began | Operation::Sync { .. } | Operation::SyncFolder => {}
                Operation::Write { .. }
                | Operation::Truncate { .. }
                | Operation::Create { .. }
                | Operation::Unlink { .. } => disk.pending.push(operation.clone()),
            }
        }
        disk.lose(&mut damage);
        disk.write(into)?;
        Ok(told)
    }
}

/// Files by name; what is not on the disk yet.
struct Disk {
    files: BTreeMap<String, Vec<u8>>,
    pending: Vec<Operation>,
}

impl Disk {
    fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            files.insert(name, std::fs::read(entry.path())?);
        }
        Ok(Self { files, pending: Vec::new() })
    }

    fn write(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            std::fs::write(folder.join(name), bytes)?;
        }
        Ok(())
    }

    /// A file was synced: all that happened to it is on the disk, its name too.
    fn settle(&mut self, file: &str) {
        let of_file = |o: &Operation| match o {
            Operation::Write { file: f, .. }
            | Operation::Truncate { file: f, .. }
            | Operation::Create { file: f } => f == file,
            // Its name may come back.
            Operation::Unlink { .. }
            | Operation::Began
            | Operation::Told(_)
            | Operation::Sync { .. }
            | Operation::SyncFolder => false,
        };
        // What was done before the file was removed is part of the file that was.
        let removed = |o: &Operation| matches!(o, Operation::Unlink { file: f } if f == file);
        let begin = self.pending.iter().rposition(removed).map_or(0, |at| at + 1);
        let newer = self.pending.split_off(begin);
        let (settled, kept): (Vec<_>, Vec<_>) = newer.into_iter().partition(of_file);
        if begin > 0 && settled.iter().any(|o| matches!(o, Operation::Create { .. })) {
            // The name now stands for the new file.
            self.pending.retain(|o| !of_file(o) && !removed(o));
            self.files.remove(file);
        }
        self.pending.extend(kept);
        for operation in settled {
            self.apply(&operation);
        }
    }

    /// The folder was synced: names are as they were made and removed.
    fn settle_names(&mut self) {
        let mut pending = Vec::new();
        for operation in std::mem::take(&mut self.pending) {
            match &operation {
                Operation::Create { .. } => self.apply(&operation),
                Operation::Unlink { file } => {
                    // What was still to be written to it is gone with it.
                    pending.retain(|o: &Operation| {
                        !matches!(
                            o,
                            Operation::Write { file: f, .. } | Operation::Truncate { file: f, .. }
                                if f == file
                        )
                    });
                    self.apply(&operation);
                }
                Operation::Write { .. }
                | Operation::Truncate { .. }
                | Operation::Began
                | Operation::Told(_)
                | Operation::Sync { .. }
                | Operation::SyncFolder => pending.push(operation),
            }
        }
        self.pending = pending;
    }

    /// What was not synced is lost, torn and out of order.
    fn lose(&mut self, damage: &mut Damage) {
        let mut left = Vec::new();
        for operation in std::mem::take(&mut self.pending) {
            if damage.rng.chance(damage.lost) {
                continue;
            }
            if let Operation::Write { file, at, bytes } = &operation
                && damage.rng.chance(damage.torn)
            {
                left.extend(sectors(file, *at, bytes, &mut damage.rng));
            } else {
                left.push(operation);
            }
        }
        while !left.is_empty() {
            let next = match damage.reordered {
                true => damage.rng.below(left.len() as u64) as usize,
                false => 0,
            };
            let operation = left.remove(next);
            self.apply(&operation);
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Write { file, at, bytes } => {
                // Without a name what was written cannot be found.
                let Some(content) = self.files.get_mut(file) else { return };
                let (at, end) = (*at as usize, *at as usize + bytes.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[at..end].copy_from_slice(bytes);
            }
            Operation::Truncate { file, len } => {
                if let Some(content) = self.files.get_mut(file) {
                    content.resize(*len as usize, 0);
                }
            }
            Operation::Create { file } => {
                self.files.entry(file.clone()).or_default();
            }
            Operation::Unlink { file } => {
                self.files.remove(file);
            }
            Operation::Began
            | Operation::Told(_)
            | Operation::Sync { .. }
            | Operation::SyncFolder => {}
        }
    }
}

/// Some of a write's sectors.
fn sectors(file: &str, at: u64, bytes: &[u8], rng: &mut Rng) -> Vec<Operation> {
    let first = SECTOR - at as usize % SECTOR;
    let (head, tail) = bytes.split_at(first.min(bytes.len()));
    let mut parts = Vec::new();
    let mut offset = at;
    for part in std::iter::once(head).chain(tail.chunks(SECTOR)) {
        if !part.is_empty() && rng.chance(0.5) {
            let file = file.to_owned();
            parts.push(Operation::Write { file, at: offset, bytes: part.to_vec() });
        }
        offset += part.len() as u64;
    }
    parts
}
