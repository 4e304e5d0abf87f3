//! From a finished partial to a published backup: check what was written, sums, fsync, remove the journal, rename, fsync.
//!
//! The journal goes only when everything else is on disk: a partial without one, whose files are those that its sums list, lacks nothing
//! but its name. [`finish_interrupted`] gives it that when a crash got in between.

use std::collections::BTreeMap;
use std::fs::File;

use anyhow::{Context, Result};

use super::partial::{Partial, STATE};
use crate::backup::layout::{MANIFEST, PARTIAL};
use crate::backup::manifest::Manifest;
use crate::backup::parts::ETCD;
use crate::backup::published::{Backup, complete};
use crate::backup::sums::{Cached, Sum, hash, write_sums};
use crate::backup::survey::survey;
use crate::backup::verify::check_part;
use crate::error::damaged;
use crate::etcd;
use crate::node::{dir::RecoveryDir, durable};
use crate::report::Progress;

/// Checks the files of `partial` as they are on disk, and makes it the backup of `manifest`. Until the rename in here, nothing has changed
/// for anybody who looks for a backup.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when a file is not what was written; when anything cannot be written or
/// synced.
pub fn publish(dir: &RecoveryDir, partial: &Partial, manifest: Manifest, progress: &Progress) -> Result<Backup> {
    let mut sums = check_finished(partial, progress)?;
    for name in sums.keys() {
        check_part(&partial.path, name, Some(manifest.profile.profile()), false).context("checking the backup before it is published")?;
    }
    manifest.write(&partial.path)?;
    sums.insert(MANIFEST.to_owned(), hash(&partial.path.join(MANIFEST), Cached::Take, &|_| {})?);
    write_sums(&partial.path, &sums)?;
    for name in sums.keys() {
        File::open(partial.path.join(name)).and_then(|file| file.sync_all()).with_context(|| format!("syncing {name}"))?;
    }
    durable::sync_dir(&partial.path)?;
    durable::remove(&partial.path.join(STATE))?;
    complete(&partial.path).context("checking the backup before it is published")?;
    let path = dir.backups().join(&partial.id);
    durable::rename(&partial.path, &path).context("publishing the backup")?;
    Ok(Backup { id: partial.id.clone(), path, manifest })
}

/// Publishes backups that a crash stopped right before the last rename. Not during a recovery, which has chosen its backup. The caller
/// holds the lock.
///
/// # Errors
/// When `backups/` cannot be listed, or the rename fails.
pub fn finish_interrupted(dir: &RecoveryDir) -> Result<()> {
    if dir.in_recovery() {
        return Ok(());
    }
    for name in survey(dir)?.partial {
        let (partial, Some(id)) = (dir.backups().join(&name), name.strip_suffix(PARTIAL)) else { continue };
        let path = dir.backups().join(id);
        let is_whole = || complete(&partial).is_ok_and(|manifest| manifest.id == id);
        if !partial.join(STATE).exists() && !path.exists() && is_whole() {
            durable::rename(&partial, &path).context("publishing the backup that a crash kept from it")?;
        }
    }
    Ok(())
}

/// Checks the finished files: archives were read back from the disk when they were packed, or hashed when this backup was continued, so
/// that their length (and their index, when they are opened) says that they are still those; the snapshot is read here, from the disk.
fn check_finished(partial: &Partial, progress: &Progress) -> Result<BTreeMap<String, Sum>> {
    let mut sums = BTreeMap::new();
    for (name, written) in partial.finished() {
        let path = partial.path.join(name);
        let sum = if name == ETCD {
            let task = progress.task("checking the etcd snapshot", Some(written.stored));
            let sum = hash(&path, Cached::Drop, &|bytes| task.add(bytes))?;
            etcd::verify(&path, &|_| {}).context("checking the etcd snapshot")?;
            sum
        } else {
            let bytes = path.metadata().with_context(|| format!("looking at {name}"))?.len();
            Sum { bytes, sha256: written.sha256.clone() }
        };
        if sum.bytes != written.stored || sum.sha256 != written.sha256 {
            return Err(damaged(format!(
                "{name} reads differently from what was written: look at the disk (`dmesg`), then take the backup again"
            )));
        }
        sums.insert(name.clone(), sum);
    }
    Ok(sums)
}
