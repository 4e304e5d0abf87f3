//! From finished files to a published backup: check what was written, write manifest and sums, sync; then remove the journal, rename, sync.
//!
//! The journal is removed only when everything else is on disk. So a partial backup without a journal, whose files are those in its sums,
//! lacks only its name; so does one whose journal says that manifest and sums are written. [`finish_interrupted`] renames it when a crash
//! prevented that.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use super::partial::{Finished, JOURNAL, is_done};
use super::procedure::Reading;
use crate::backup::layout::{MANIFEST, PARTIAL};
use crate::backup::manifest::Manifest;
use crate::backup::parts::ETCD;
use crate::backup::published::{Backup, complete};
use crate::backup::sums::{Cached, Sum, hash, write_sums};
use crate::backup::survey::{Survey, survey};
use crate::backup::verify::check_part;
use crate::error::damaged;
use crate::etcd;
use crate::node::profile::Profile;
use crate::node::{dir::RecoveryDir, durable};
use crate::report::Progress;
use crate::session::Locked;

/// Checks the finished files in `partial`. The archives were read back from the disk when they were packed, or hashed when this backup was
/// continued, so their length (and their index, when they are opened) shows that they are unchanged. The snapshot is read here, from the
/// disk.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when a file is not as it was written.
pub fn read_back(partial: &Path, files: &BTreeMap<String, Finished>, profile: &'static Profile, progress: &Progress) -> Result<()> {
    for (name, written) in files {
        let path = partial.join(name);
        let same = if name == ETCD {
            let task = progress.task("checking the etcd snapshot", Some(written.stored));
            let sum = hash(&path, Cached::Drop, &|bytes| task.add(bytes))?;
            etcd::verify(&path, &|_| {}).context("checking the etcd snapshot")?;
            sum.bytes == written.stored && sum.sha256 == written.sha256
        } else {
            path.metadata().with_context(|| format!("looking at {name}"))?.len() == written.stored
        };
        if !same {
            return Err(damaged(format!(
                "{name} reads differently from what was written: look at the disk (`dmesg`), then take the backup again"
            )));
        }
    }
    let fits = |name: &String| check_part(partial, name, Some(profile), false);
    files.keys().try_for_each(fits).context("checking the backup before it is published")
}

/// Writes manifest and sums beside the finished files, and syncs everything: then only [`publish`] is missing.
///
/// # Errors
/// When anything cannot be written or synced.
pub fn seal(partial: &Path, files: &BTreeMap<String, Finished>, manifest: &Manifest) -> Result<()> {
    manifest.write(partial)?;
    let sum = |one: &Finished| Sum { bytes: one.stored, sha256: one.sha256.clone() };
    let mut sums: BTreeMap<String, Sum> = files.iter().map(|(name, one)| (name.clone(), sum(one))).collect();
    sums.insert(MANIFEST.to_owned(), hash(&partial.join(MANIFEST), Cached::Take, &|_| {})?);
    write_sums(partial, &sums)?;
    for name in sums.keys() {
        File::open(partial.join(name)).and_then(|file| file.sync_all()).with_context(|| format!("syncing {name}"))?;
    }
    durable::sync_dir(partial)
}

/// Makes the sealed `partial` the backup `id`. Until the rename in this function, nobody who looks for a backup sees a change.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when something is missing; when it cannot be renamed.
pub fn publish(dir: &RecoveryDir, partial: &Path, id: &str) -> Result<Backup> {
    durable::remove(&partial.join(JOURNAL))?;
    let manifest = complete(partial).context("checking the backup before it is published")?;
    let path = dir.backups().join(id);
    durable::rename(partial, &path).context("publishing the backup")?;
    Ok(Backup { id: id.to_owned(), path, manifest })
}

/// Publishes backups that a crash stopped right before the last rename; what then lies in `backups/`. During a recovery, which has chosen
/// its backup, none is published.
///
/// # Errors
/// When `backups/` cannot be listed, or the rename fails.
pub fn finish_interrupted(session: &Locked<'_>) -> Result<Survey> {
    let dir = session.dir;
    let mut survey = survey(dir)?;
    if dir.in_recovery() {
        return Ok(survey);
    }
    for name in survey.partial.clone() {
        let (partial, Some(id)) = (dir.backups().join(&name), name.strip_suffix(PARTIAL)) else { continue };
        let (journal, path) = (partial.join(JOURNAL), dir.backups().join(id));
        if Reading::of(&journal).is_ok_and(|reading| reading.is_some_and(|reading| is_done(&reading))) {
            durable::remove(&journal)?;
        }
        // One with a journal is not: that is none of the files that are listed.
        if !path.exists()
            && let Ok(manifest) = complete(&partial)
            && manifest.id == id
        {
            durable::rename(&partial, &path).context("publishing the backup that a crash kept from it")?;
            survey.add(Backup { id: id.to_owned(), path, manifest });
        }
    }
    Ok(survey)
}
