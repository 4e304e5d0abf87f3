//! A data directory: the member in it, those that recoveries have put aside, and the one that is being built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::bolt::Bolt;
use super::revision::revision;
use crate::error::damaged;

/// The member that etcd runs on.
pub(super) const MEMBER: &str = "member";
/// The prefix for a member that a run has put aside; the run's id follows.
const BEFORE: &str = "member.before-";
/// The prefix for a member that a run builds.
pub(super) const NEW: &str = "member.new-";

/// Where a run puts the old member.
pub(super) fn before(data_dir: &Path, run: &str) -> PathBuf {
    data_dir.join(format!("{BEFORE}{run}"))
}

/// The member that a run has put aside in a data directory, if it is still there.
#[must_use]
pub fn kept_of(data_dir: &Path, run: &str) -> Option<PathBuf> {
    Some(before(data_dir, run)).filter(|path| exists(path))
}

/// The members that runs have put aside in a data directory.
pub(super) fn kept(data_dir: &Path) -> Result<Vec<PathBuf>> {
    if exists(data_dir) { beginning_with(data_dir, BEFORE.as_bytes()) } else { Ok(Vec::new()) }
}

/// Everything in the data directory whose name begins with `prefix`, by name.
pub(super) fn beginning_with(data_dir: &Path, prefix: &[u8]) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(data_dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(prefix) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    };
    list().with_context(|| format!("reading the data directory {}", data_dir.display()))
}

/// True when anything is there, even a dangling link.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The greatest revision in the data directory of a stopped etcd; see [`super::revision_of`].
pub(super) fn revision_of(data_dir: &Path) -> Result<Option<i64>> {
    let (mut newest, mut unread) = (None, None);
    for member in [vec![data_dir.join(MEMBER)], kept(data_dir)?].concat() {
        match revision_of_member(&member) {
            Ok(revision) => newest = newest.max(revision),
            Err(error) => {
                tracing::warn!("the revision of {} is not counted: {error:#}", member.display());
                unread.get_or_insert(error);
            }
        }
    }
    // Some revisions are better than none, but if no member can be read, the caller must know.
    unread.filter(|_| newest.is_none()).map_or(Ok(newest), Err)
}

fn revision_of_member(member: &Path) -> Result<Option<i64>> {
    let path = member.join("snap/db");
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let len = file.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
    if len == 0 {
        return Err(damaged(format!("{} is empty", path.display())));
    }
    revision(&Bolt::open(&file, len, &path.display().to_string())?).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_no_error() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(revision_of(dir.path())?, None);
        std::fs::create_dir_all(dir.path().join("member/snap"))?;
        std::fs::write(dir.path().join("member/snap/db"), b"")?;
        assert_eq!(crate::error::exit_code(&revision_of(dir.path()).unwrap_err()), 65);
        Ok(())
    }
}
