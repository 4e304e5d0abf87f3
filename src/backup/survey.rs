//! All backups in `backups/`.
//!
//! Order is the manifests' sequence. Imported backups have the sequence 0: whatever the agent took itself is newer. The link `latest` is
//! for people and is never read.
//!
//! A command looks once. Who has the lock is the only one that changes anything in there, and notes what it changes in its [`Survey`].

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::layout::{DELETING, LEGACY_ID, PARTIAL, is_gone};
use super::manifest::Manifest;
use super::published::Backup;
use crate::error::{FailureKind, kind, said};
use crate::node::{dir::RecoveryDir, durable};

/// What lies in `backups/`.
#[derive(Debug, Default)]
pub struct Survey {
    /// Published, with a readable manifest and all files: newest first. The contents of the files have not been read.
    pub backups: Vec<Backup>,
    /// Published, but damaged; with the error.
    pub damaged: Vec<(String, anyhow::Error)>,
    /// Published by a newer agent in a version that this one cannot read; with the error. They may well be good.
    pub unsupported: Vec<(String, anyhow::Error)>,
    /// Being taken, or interrupted.
    pub partial: Vec<String>,
    /// What an interrupted deletion left.
    pub deleting: Vec<String>,
    /// The highest sequence of a published backup, including those of a newer agent.
    last_sequence: u64,
}

/// Looks at everything in `backups/`.
///
/// # Errors
/// When it cannot be listed; a directory that does not exist is empty.
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
        // `backups` may be a file system of its own.
        if id == "lost+found" {
            continue;
        }
        if id.ends_with(PARTIAL) {
            survey.partial.push(id);
        } else if id.ends_with(DELETING) {
            survey.deleting.push(id);
        } else {
            match Backup::open(&path, &id) {
                Ok(backup) => {
                    survey.last_sequence = survey.last_sequence.max(backup.manifest.sequence);
                    survey.backups.push(backup);
                }
                // It was deleted while it was looked at, so nothing is wrong with it.
                Err(_) if is_gone(&path) => {}
                Err(error) if kind(&error) == FailureKind::Unsupported => {
                    survey.last_sequence = survey.last_sequence.max(Manifest::sequence_of(&path).unwrap_or(0));
                    survey.unsupported.push((id, error));
                }
                Err(error) => survey.damaged.push((id, error)),
            }
        }
    }
    survey.sort();
    survey.damaged.sort_by(|a, b| b.0.cmp(&a.0));
    survey.unsupported.sort_by(|a, b| b.0.cmp(&a.0));
    survey.partial.sort();
    Ok(survey)
}

/// True when `dir` no longer has a backup `id`, complete or not. The old script's backup is in another place, and never counts as deleted.
#[must_use]
pub fn is_deleted(dir: &RecoveryDir, id: &str) -> bool {
    id != LEGACY_ID && is_gone(&dir.backups().join(id))
}

fn order(backup: &Backup) -> (u64, Timestamp, &str) {
    (backup.manifest.sequence, backup.manifest.taken, &backup.id)
}

impl Survey {
    /// The backup with this id or, when there is none, the newest with this name.
    #[must_use]
    pub fn find(&self, wanted: &str) -> Option<&Backup> {
        let by_id = self.backups.iter().find(|b| b.id == wanted);
        by_id.or_else(|| self.backups.iter().find(|b| b.manifest.name.as_deref() == Some(wanted)))
    }

    /// What is passed over when no backup is named, and why, one sentence each.
    #[must_use]
    pub fn passed_over(&self) -> Vec<String> {
        let sentence = |(id, error): &(String, anyhow::Error), how: &str| {
            format!(
                "the backup {id} is {how} and passed over, although it may be newer than the one that is taken instead: {}",
                said(error)
            )
        };
        let unsupported = self.unsupported.iter().map(|one| sentence(one, "not supported"));
        unsupported.chain(self.damaged.iter().map(|one| sentence(one, "damaged"))).collect()
    }

    /// The number of the next backup.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.last_sequence.saturating_add(1)
    }

    /// Notes a backup that has been published since.
    pub(crate) fn add(&mut self, backup: Backup) {
        self.partial.retain(|name| name.strip_suffix(PARTIAL) != Some(backup.id.as_str()));
        self.last_sequence = self.last_sequence.max(backup.manifest.sequence);
        self.backups.push(backup);
        self.sort();
    }

    /// Deletes the backup `id`, finished or not, here and on disk.
    pub(crate) fn remove(&mut self, dir: &RecoveryDir, id: &str) -> Result<()> {
        remove(dir, id)?;
        self.backups.retain(|backup| backup.id != id);
        self.partial.retain(|partial| partial != id);
        self.damaged.retain(|(damaged, _)| damaged != id);
        self.unsupported.retain(|(unsupported, _)| unsupported != id);
        Ok(())
    }

    fn sort(&mut self) {
        self.backups.sort_by(|a, b| order(b).cmp(&order(a)));
    }
}

/// Deletes the backup `id`, finished or not. It is renamed first, so that an interrupted deletion leaves nothing that looks like a backup.
pub(crate) fn remove(dir: &RecoveryDir, id: &str) -> Result<()> {
    let path = dir.backups().join(id);
    let doomed = dir.backups().join(format!("{id}{DELETING}"));
    let remove = || -> Result<()> {
        durable::remove_tree(&doomed)?;
        durable::rename(&path, &doomed)?;
        durable::remove_tree(&doomed)
    };
    remove().with_context(|| format!("deleting the backup {id}"))
}
