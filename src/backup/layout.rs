//! The names of a backup's files on disk. Those that hold a part of the node are in [`parts`](super::parts).

use std::path::Path;

use anyhow::{Context, Result};

use crate::error::damaged;

/// The manifest.
pub const MANIFEST: &str = "manifest.json";
/// Sums of every other file.
pub const SUMS: &str = "SHA256SUMS";
/// What was done when it was taken, in lines for people.
pub const LOG: &str = "log";
/// The end of the name of a backup that is being taken.
pub const PARTIAL: &str = ".partial";
/// The suffix of a backup that is being deleted.
pub const DELETING: &str = ".deleting";
/// The id of the old script's backup in the recovery directory.
pub const LEGACY_ID: &str = "upgrade-recovery";

/// Reads a small file of the backup in the directory `backup`, which may be damaged. Nothing is waited for, such as the writer of a FIFO,
/// and a file of more than `most` bytes is not read.
pub(super) fn read_small(backup: &Path, name: &str, most: u64) -> Result<Vec<u8>> {
    let path = backup.join(name);
    let meta = path.symlink_metadata().map_err(|e| damaged(format!("it has no readable {name}: {e}")))?;
    if !meta.is_file() {
        return Err(damaged(format!("its {name} is not a regular file")));
    }
    if meta.len() > most {
        return Err(damaged(format!("its {name} has {} bytes; no more than {most} are read", meta.len())));
    }
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// True when what was found has vanished since: `delete` and `prune` rename a backup before they remove its files.
pub(super) fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// True for a regular file; links are not followed.
pub(super) fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}
