//! The backups of a recovery directory: list, choose, show, delete, prune.
//!
//! Order is the manifests' sequence. Imported backups have the sequence 0: whatever the agent took itself is newer. The link `latest` is for
//! people and is never read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::legacy::Legacy;
use super::manifest::{DeploymentId, Manifest};
use super::verify::VerifyReport;
use super::{Backup, DELETING, LEGACY_ID, PARTIAL, import, legacy, names, pins, publish, verify};
use crate::error::{busy, damaged, misfit, usage};
use crate::node::{Node, dir::RecoveryDir, durable, mounts};
use crate::report::Progress;

/// What lies in `backups/`.
#[derive(Debug, Default)]
pub struct Survey {
    /// Published, with a manifest that is readable and all files there: newest first. Their contents have not been looked at.
    pub backups: Vec<Backup>,
    /// Published, but not to be used, and why.
    pub damaged: Vec<(String, anyhow::Error)>,
    /// Being taken, or interrupted.
    pub partial: Vec<String>,
    /// Left over from a deletion that was cut short.
    pub deleting: Vec<String>,
}

/// Whether a backup can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Published; all its files are there.
    Complete,
    /// Being taken, or interrupted.
    Partial,
    /// Not to be used.
    Damaged,
    /// Left by the old script; imported when it is chosen.
    Legacy,
}

/// One line of `list`.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Whether it can be used.
    pub state: State,
    /// Why not, when it is damaged.
    pub reason: Option<String>,
    /// Given name.
    pub name: Option<String>,
    /// Given labels.
    pub labels: BTreeMap<String, String>,
    /// Its place in the order; 0 when imported.
    pub sequence: Option<u64>,
    /// When it was begun.
    pub taken: Option<Timestamp>,
    /// Release of the cluster.
    pub release: Option<String>,
    /// Deployment it belongs to.
    pub deployment: Option<DeploymentId>,
    /// Who asked for it.
    pub asked_by: Option<String>,
    /// Bytes it takes on disk.
    pub stored: u64,
}

/// What `show` says.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Its directory, as the node calls it.
    pub path: PathBuf,
    /// When it was taken, as far as it says.
    pub taken: Option<Timestamp>,
    /// Its manifest; what the old script left has none.
    pub manifest: Option<Manifest>,
    /// Bytes of each file on disk, of the old script's each part.
    pub files: BTreeMap<String, u64>,
}

/// What `delete` and `prune` did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Removed {
    /// Ids that are gone.
    pub removed: Vec<String>,
    /// Ids of those that stay, newest first; of [`prune`], the good ones.
    pub kept: Vec<String>,
    /// Deployments whose pin was dropped.
    pub unpinned: Vec<String>,
    /// What went wrong without stopping it.
    pub warnings: Vec<String>,
}

/// Looks at everything in `backups/`.
///
/// # Errors
/// When it cannot be listed; a directory that is not there is empty.
pub fn survey(dir: &RecoveryDir) -> Result<Survey> {
    let mut survey = Survey::default();
    let backups = dir.backups();
    let list = match std::fs::read_dir(&backups) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(survey),
        Err(error) => return Err(error).with_context(|| format!("listing {}", backups.display())),
    };
    for entry in list {
        let path = entry.with_context(|| format!("listing {}", backups.display()))?.path();
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A file system of its own may be mounted on `backups`.
        if id == "lost+found" {
            continue;
        }
        if id.ends_with(PARTIAL) {
            survey.partial.push(id);
        } else if id.ends_with(DELETING) {
            survey.deleting.push(id);
        } else {
            match open(&path, &id) {
                Ok(backup) => survey.backups.push(backup),
                // Deleted while it was looked at: nothing is wrong with it.
                Err(_) if is_gone(&path) => {}
                Err(error) => survey.damaged.push((id, error)),
            }
        }
    }
    survey.backups.sort_by(|a, b| order(b).cmp(&order(a)));
    survey.damaged.sort_by(|a, b| b.0.cmp(&a.0));
    survey.partial.sort();
    Ok(survey)
}

/// True when a backup that was found is there no more: `delete` and `prune` rename it before they remove its files.
pub(super) fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// True when `dir` has no backup `id`, whole or not, any more: what the old script left is at another place, and never is.
#[must_use]
pub fn is_deleted(dir: &RecoveryDir, id: &str) -> bool {
    id != LEGACY_ID && is_gone(&dir.backups().join(id))
}

fn order(backup: &Backup) -> (u64, Timestamp, &str) {
    (backup.manifest.sequence, backup.manifest.taken, &backup.id)
}

fn open(path: &Path, id: &str) -> Result<Backup> {
    let is_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    if !is_dir {
        return Err(damaged("it is not a directory"));
    }
    let manifest = verify::complete(path)?;
    if manifest.id != id {
        return Err(damaged(format!("its manifest says that it is {}", manifest.id)));
    }
    Ok(Backup { id: id.to_owned(), path: path.to_owned(), manifest })
}

impl Survey {
    /// The backup of this id or, when no id is like that, the newest of this name.
    #[must_use]
    pub fn find(&self, wanted: &str) -> Option<&Backup> {
        let by_id = self.backups.iter().find(|b| b.id == wanted);
        by_id.or_else(|| self.backups.iter().find(|b| b.manifest.name.as_deref() == Some(wanted)))
    }

    /// The number of the next backup.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.backups.iter().map(|b| b.manifest.sequence).max().unwrap_or(0) + 1
    }
}

/// Every backup: usable ones newest first, then what the old script left, damaged ones and unfinished ones.
///
/// # Errors
/// As [`survey`].
pub fn list(dir: &RecoveryDir) -> Result<Vec<Listed>> {
    let survey = survey(dir)?;
    let bare = |id: &str, state, reason| Listed {
        id: id.to_owned(),
        state,
        reason,
        name: None,
        labels: BTreeMap::new(),
        sequence: None,
        taken: None,
        release: None,
        deployment: None,
        asked_by: None,
        stored: mounts::usage(&dir.backups().join(id)).unwrap_or(0),
    };
    let mut lines: Vec<Listed> = Vec::new();
    for backup in survey.backups {
        let Manifest { name, labels, sequence, taken, cluster, deployment, asked_by, .. } = backup.manifest;
        lines.push(Listed {
            name,
            labels,
            sequence: Some(sequence),
            taken: Some(taken),
            release: cluster.map(|c| c.version),
            deployment,
            asked_by: Some(asked_by),
            ..bare(&backup.id, State::Complete, None)
        });
    }
    if let Some(old) = legacy::find(dir) {
        let (state, reason) = old.problem()?.map_or((State::Legacy, None), |problem| (State::Damaged, Some(problem)));
        let stored = old.usage();
        lines.push(Listed {
            taken: old.taken(),
            asked_by: Some("upgrade-recovery.sh".to_owned()),
            stored,
            ..bare(LEGACY_ID, state, reason)
        });
    }
    lines.extend(survey.damaged.iter().map(|(id, error)| bare(id, State::Damaged, Some(format!("{error:#}")))));
    lines.extend(survey.partial.iter().map(|id| bare(id, State::Partial, None)));
    Ok(lines)
}

/// The manifest and files of one backup.
///
/// # Errors
/// As [`choose`]; nothing is imported.
pub fn show(node: &Node, dir: &RecoveryDir, wanted: &str) -> Result<Shown> {
    let survey = survey(dir)?;
    let Some(backup) = survey.find(wanted) else {
        let old = legacy::find(dir).filter(|_| wanted == LEGACY_ID).ok_or_else(|| no_such(dir, &survey, wanted))?;
        let (path, files) = (dir.shown().to_owned(), old.files());
        return Ok(Shown { id: LEGACY_ID.to_owned(), path, taken: old.taken(), manifest: None, files });
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&backup.path).with_context(|| format!("listing {}", backup.path.display()))? {
        let entry = entry.with_context(|| format!("listing {}", backup.path.display()))?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_or(0, |m| m.len()));
    }
    let manifest = backup.manifest.clone();
    Ok(Shown { id: backup.id.clone(), path: node.shown(&backup.path), taken: Some(manifest.taken), manifest: Some(manifest), files })
}

/// What [`find`] found.
#[derive(Debug)]
pub enum Found {
    /// A backup.
    Backup(Box<Backup>),
    /// One of the old script's, which is not imported yet, or asked for by its own id.
    Old(Legacy),
}

/// As [`choose`], for reports: nothing is imported, so that nothing changes.
///
/// # Errors
/// As [`choose`].
pub fn find(dir: &RecoveryDir, wanted: Option<&str>, progress: &Progress) -> Result<Found> {
    let survey = survey(dir)?;
    let old = legacy::find(dir);
    match wanted {
        Some(LEGACY_ID) => {
            old.map(Found::Old).ok_or_else(|| misfit(format!("{} holds no backup of upgrade-recovery.sh", dir.shown().display())))
        }
        Some(wanted) => survey.find(wanted).cloned().map(|b| Found::Backup(Box::new(b))).ok_or_else(|| no_such(dir, &survey, wanted)),
        None => {
            for (id, error) in &survey.damaged {
                progress.say(&format!("passing over the damaged backup {id}: {error:#}"));
            }
            match (survey.backups.first(), old) {
                (Some(newest), _) => Ok(Found::Backup(Box::new(newest.clone()))),
                (None, Some(old)) => Ok(Found::Old(old)),
                (None, None) => Err(none_left(dir, &survey)),
            }
        }
    }
}

/// The backup of this id or name; the newest (by sequence) that is readable when none is given. A directory of the old script's in `--dir`
/// (`cluster/`, `etc/`, …) is the id `upgrade-recovery` and is imported (see [`import`]) on the way, when it is asked for or there is nothing
/// else: the caller holds the lock. Its contents are not checked here: see [`verify`](super::verify()).
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the wanted one is damaged, or only damaged ones are left;
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no such backup, or none at all.
pub fn choose(node: &Node, dir: &RecoveryDir, wanted: Option<&str>, progress: &Progress) -> Result<Backup> {
    publish::settle(dir)?;
    match find(dir, wanted, progress)? {
        Found::Backup(backup) => Ok(*backup),
        Found::Old(old) => import::import(node, dir, &old, progress),
    }
}

/// Checks one backup, whatever its state: by id or name; the newest one when none is given. See [`verify::report`] and [`legacy::verify`].
///
/// # Errors
/// As [`choose`] when there is no such backup; when interrupted. What is wrong with it is in the report.
pub fn check(dir: &RecoveryDir, wanted: Option<&str>, deep: bool, progress: &Progress) -> Result<VerifyReport> {
    let survey = survey(dir)?;
    if let (Some(LEGACY_ID), Some(old)) = (wanted, legacy::find(dir)) {
        return legacy::verify(&old, progress);
    }
    let usable = wanted.map_or_else(|| survey.backups.first(), |wanted| survey.find(wanted)).map(|backup| &backup.id);
    let damaged = || survey.damaged.iter().map(|(id, _)| id).find(|id| wanted.is_none_or(|wanted| *id == wanted));
    match (usable.or_else(damaged), wanted) {
        (Some(id), _) => verify::report(&dir.backups().join(id), id, deep, progress),
        (None, Some(wanted)) => Err(no_such(dir, &survey, wanted)),
        (None, None) => Err(none_left(dir, &survey)),
    }
}

fn no_such(dir: &RecoveryDir, survey: &Survey, wanted: &str) -> anyhow::Error {
    if let Some((id, error)) = survey.damaged.iter().find(|(id, _)| id == wanted) {
        return damaged(format!("the backup {id} is damaged: {error:#}"));
    }
    if survey.partial.iter().any(|id| id == wanted || id.strip_suffix(PARTIAL) == Some(wanted)) {
        return misfit(format!("the backup {wanted} was never finished; `recovery list` shows those that were"));
    }
    misfit(format!("{} holds no backup with the id or name `{wanted}`; `recovery list` shows what there is", dir.shown().display()))
}

fn none_left(dir: &RecoveryDir, survey: &Survey) -> anyhow::Error {
    let dir = dir.shown().display();
    match survey.damaged.first() {
        Some((id, error)) => damaged(format!("{dir} holds damaged backups only, {id} among them: {error:#}")),
        None => misfit(format!("{dir} holds no backup")),
    }
}

/// What a `delete` will take away: see [`deletion`].
#[derive(Debug)]
pub struct Deletion {
    /// The backup's id; `None` when it is deleted already.
    pub id: Option<String>,
    kept: Vec<String>,
}

/// Looks which backup a `delete` means, and whether it may: the last good one only with `force`, none while a recovery is in progress. Nothing is changed.
///
/// # Errors
/// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) during a recovery, [`FailureKind::Usage`](crate::error::FailureKind::Usage) for the last good one
/// without `force`, [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no backup of this name. An id of which there is none is deleted already.
pub fn deletion(dir: &RecoveryDir, wanted: &str, force: bool, progress: &Progress) -> Result<Deletion> {
    not_during_a_recovery(dir)?;
    if wanted == LEGACY_ID {
        return Err(misfit(
            "the backup of upgrade-recovery.sh is not the agent's to delete: remove `cluster`, `etc`, `local`, `kubelet` by hand",
        ));
    }
    let found = survey(dir)?;
    let unusable = found.damaged.iter().map(|(id, _)| id).chain(&found.partial).find(|id| *id == wanted);
    let id = match (unusable, found.find(wanted)) {
        (Some(id), _) => Some(id.clone()),
        (None, Some(backup)) => {
            let others = found.backups.iter().filter(|b| b.id != backup.id);
            if !force && !any_good(others, progress)? {
                return Err(usage(format!(
                    "{} is the last good backup; `recovery delete --force {wanted}` deletes it all the same",
                    backup.id
                )));
            }
            Some(backup.id.clone())
        }
        // A deletion that was cut short is finished; one that was not is what was asked for, when an id says that no other can be meant.
        (None, None) if found.deleting.iter().any(|left| left.strip_suffix(DELETING) == Some(wanted)) => Some(wanted.to_owned()),
        (None, None) if names::is_id(wanted) => None,
        (None, None) => return Err(no_such(dir, &found, wanted)),
    };
    let kept = found.backups.iter().map(|backup| backup.id.clone()).filter(|kept| Some(kept) != id.as_ref()).collect();
    Ok(Deletion { id, kept })
}

/// Deletes what was looked at.
///
/// # Errors
/// When something cannot be removed.
pub fn delete(node: &Node, dir: &RecoveryDir, Deletion { id, kept }: Deletion) -> Result<Removed> {
    if let Some(id) = id.as_ref().filter(|id| !is_gone(&dir.backups().join(id))) {
        remove(dir, id)?;
    }
    let mut removed = Removed { removed: id.into_iter().collect(), kept, ..Removed::default() };
    finish(node, dir, &mut removed)?;
    Ok(removed)
}

fn any_good<'a>(backups: impl Iterator<Item = &'a Backup>, progress: &Progress) -> Result<bool> {
    for backup in backups {
        if verify::report(&backup.path, &backup.id, false, progress)?.good {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Deletes what is older than the newest `keep` good backups, unfinished ones, and what an earlier deletion left. "Good" is checked against
/// `SHA256SUMS`, except for `trusted` (just verified). While there are no `keep` good ones, no published backup is deleted; a damaged one that is newer is
/// left for somebody to look at.
///
/// # Errors
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) during a recovery, [`FailureKind::Usage`](crate::error::FailureKind::Usage) for `keep` 0.
pub fn prune(node: &Node, dir: &RecoveryDir, keep: usize, trusted: Option<&str>, progress: &Progress) -> Result<Removed> {
    not_during_a_recovery(dir)?;
    if keep == 0 {
        return Err(usage("the last good backup is never pruned: keep at least 1"));
    }
    publish::settle(dir)?;
    let found = survey(dir)?;
    let mut result = Removed::default();
    for id in &found.partial {
        remove(dir, id)?;
        result.removed.push(id.clone());
    }
    if found.backups.len() > keep {
        for backup in &found.backups {
            if result.kept.len() == keep {
                remove(dir, &backup.id)?;
                result.removed.push(backup.id.clone());
            } else if trusted == Some(backup.id.as_str()) || verify::report(&backup.path, &backup.id, false, progress)?.good {
                result.kept.push(backup.id.clone());
            } else {
                result.warnings.push(format!("the backup {} is damaged: `recovery verify {0}` says how", backup.id));
            }
        }
    } else {
        result.kept = found.backups.iter().map(|b| b.id.clone()).collect();
    }
    result.warnings.extend(found.damaged.iter().map(|(id, error)| format!("the backup {id} is damaged: {error:#}")));
    finish(node, dir, &mut result)?;
    Ok(result)
}

/// What follows every deletion: the rest of those that were cut short, the pins that nothing needs any more, the link.
fn finish(node: &Node, dir: &RecoveryDir, result: &mut Removed) -> Result<()> {
    let found = survey(dir)?;
    for id in &found.deleting {
        durable::remove_tree(&dir.backups().join(id))?;
    }
    match pins::drop_unneeded(node, dir, &found) {
        Ok(unpinned) => result.unpinned = unpinned,
        Err(error) => result.warnings.push(format!("pins that no backup needs any more stay: {error:#}")),
    }
    if let Err(error) = link_latest(dir, found.backups.first()) {
        result.warnings.push(format!("{error:#}"));
    }
    Ok(())
}

/// Points `latest` at `newest`.
///
/// # Errors
/// When the link cannot be made or removed.
pub fn link_latest(dir: &RecoveryDir, newest: Option<&Backup>) -> Result<()> {
    match newest {
        Some(backup) => durable::symlink(&Path::new("backups").join(&backup.id), &dir.latest()),
        None => durable::remove(&dir.latest()),
    }
}

/// Renames first: a deletion that is cut short leaves nothing that looks like a backup.
pub(super) fn remove(dir: &RecoveryDir, id: &str) -> Result<()> {
    let path = dir.backups().join(id);
    let doomed = dir.backups().join(format!("{id}{DELETING}"));
    let remove = || -> Result<()> {
        durable::remove_tree(&doomed)?;
        durable::rename(&path, &doomed)?;
        durable::remove_tree(&doomed)
    };
    remove().with_context(|| format!("deleting the backup {id}"))
}

fn not_during_a_recovery(dir: &RecoveryDir) -> Result<()> {
    if dir.in_recovery() {
        return Err(busy("a recovery is in progress: nothing is deleted before it has ended (`recovery status` shows it)"));
    }
    Ok(())
}
