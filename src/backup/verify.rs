//! The one judge of a backup, for `verify`, for what publishes one, and for a recovery: its files are those that were written, and a
//! recovery takes them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::layout::{SUMS, is_file, is_gone};
use super::parts::{Holds, Part};
use super::published::{Backup, complete};
use super::sums::{Sum, hash_all, read_sums};
use crate::archive::Archive;
use crate::error::{Failure, FailureKind, busy, damaged, kind, said};
use crate::etcd;
use crate::node::{clock::interrupted, profile::Profile};
use crate::report::Progress;

/// What a check of one backup found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// The backup.
    pub id: String,
    /// True when the contents of the archives were checked too.
    pub deep: bool,
    /// True when nothing is wrong.
    pub good: bool,
    /// Bytes of all that was looked at.
    pub bytes: u64,
    /// Its files, as they are; of an old backup, which has no sums, none are listed.
    pub files: BTreeMap<String, Sum>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// The kind of failure of a recovery that is asked for it; none when it is good.
    pub kind: Option<FailureKind>,
}

impl VerifyReport {
    /// What was found of the backup `id`: all that is `wrong` with it.
    pub(super) fn new(id: &str, deep: bool, files: BTreeMap<String, Sum>, wrong: &[anyhow::Error]) -> Self {
        // Where not all is of one kind, something is damaged, and so is what cannot be read.
        let mut kinds = wrong.iter().map(|error| match kind(error) {
            kind @ (FailureKind::Unsupported | FailureKind::Misfit) => kind,
            _ => FailureKind::Damaged,
        });
        let kind = kinds.next().map(|first| if kinds.all(|kind| kind == first) { first } else { FailureKind::Damaged });
        let problems = wrong.iter().map(said).collect();
        let bytes = files.values().map(|sum| sum.bytes).sum();
        Self { id: id.to_owned(), deep, good: wrong.is_empty(), bytes, files, problems, kind }
    }

    /// What to call a backup that is not good.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.kind {
            Some(FailureKind::Unsupported) => "not supported",
            Some(FailureKind::Misfit) => "not usable",
            _ => "damaged",
        }
    }

    /// The failure of whoever needs the backup, which messages call `what`.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`] with all that is wrong;
    /// [`FailureKind::Unsupported`] or [`FailureKind::Misfit`]
    /// when it is sound, and a recovery does not take it.
    pub fn accept(&self, what: &str) -> Result<()> {
        if self.good { Ok(()) } else { Err(self.failure(format!("{what} is {}: {}", self.verdict(), self.problems.join("; ")))) }
    }

    /// A failure of the kind that this report is of, which says `text`.
    #[must_use]
    pub fn failure(&self, text: String) -> anyhow::Error {
        Failure { kind: self.kind.unwrap_or(FailureKind::Damaged), message: text, next: None }.into()
    }
}

/// Checks every file against `SHA256SUMS`, that nothing is missing or added, and that each file is one that [a recovery takes](check_part).
/// `deep` also decompresses everything: every content of an archive against its index, and all of the etcd snapshot.
///
/// # Errors
/// As [`VerifyReport::accept`]; as [`report`].
pub fn verify(backup: &Backup, deep: bool, progress: &Progress) -> Result<()> {
    report(&backup.path, &backup.id, deep, progress)?.accept(&format!("the backup {}", backup.id))
}

/// As [`verify`], for any directory that should be the backup `id`; what is wrong is in the report.
///
/// # Errors
/// [`FailureKind::Interrupted`] when the agent is interrupted, or when the backup is deleted
/// meanwhile; [`FailureKind::NoSpace`] without scratch space for the snapshot.
pub fn report(path: &Path, id: &str, deep: bool, progress: &Progress) -> Result<VerifyReport> {
    let mut wrong = Vec::new();
    let manifest = complete(path).map_err(|error| wrong.push(error)).ok();
    // What files a newer version has, and what is in them, is not for this agent to judge.
    if wrong.first().is_some_and(|error| kind(error) == FailureKind::Unsupported) {
        return Ok(VerifyReport::new(id, deep, BTreeMap::new(), &wrong));
    }
    if let Some(other) = manifest.as_ref().map(|manifest| &manifest.id).filter(|other| *other != id) {
        wrong.push(damaged(format!("its manifest says that it is {other}")));
    }
    let sums = read_sums(path).unwrap_or_default();
    let names: Vec<String> = sums.keys().filter(|name| is_file(&path.join(name))).cloned().collect();
    let total = names.iter().filter_map(|n| path.join(n).metadata().ok()).map(|m| m.len()).sum();
    let task = progress.task(&format!("checking {id}"), Some(total));
    let mut files = BTreeMap::new();
    for (name, result) in hash_all(path, &names, &|bytes| task.add(bytes))? {
        match result {
            Ok(sum) => {
                if sum.sha256 != sums[&name] {
                    wrong.push(damaged(format!("{name} is not what {SUMS} says")));
                }
                files.insert(name, sum);
            }
            Err(error) => wrong.push(error),
        }
    }
    task.note("contents");
    let profile = manifest.map(|manifest| manifest.profile.profile());
    for name in &names {
        interrupted()?;
        match check_part(path, name, profile, deep) {
            // An interruption is no damage, nor is a lack of scratch space.
            Err(error) if matches!(kind(&error), FailureKind::NoSpace | FailureKind::Interrupted) => return Err(error),
            Err(error) => wrong.push(error),
            Ok(()) => {}
        }
    }
    // What is missing because all of it is, is no damage.
    if !wrong.is_empty() && is_gone(path) {
        return Err(busy(format!("the backup {id} was deleted while it was checked")));
    }
    Ok(VerifyReport::new(id, deep, files, &wrong))
}

/// Checks the file `name` of the backup at `path` as a recovery takes it: what is right by its sum can be hostile, of a kind that is not
/// taken, or without what a node needs. An archive is opened, which checks every name in it; that of the static pods has the manifests that
/// are put in place by name (those of `profile`, when that is known); the snapshot begins as one does. `deep` reads all of it, too, and the
/// structure of the snapshot. Any other file passes.
///
/// # Errors
/// As [`Archive::open`], [`Archive::verify`], [`etcd::look`], [`etcd::check_restorable`].
pub(super) fn check_part(path: &Path, name: &str, profile: Option<&Profile>, deep: bool) -> Result<()> {
    let (file, ticks) = (path.join(name), |_| {});
    let check = || match Part::of_file(name).map(|part| part.holds) {
        Some(Holds::Snapshot) => {
            etcd::look(&file)?;
            if deep { etcd::check_restorable(&file, &ticks) } else { Ok(()) }
        }
        Some(holds) => {
            let archive = Archive::open(&file)?;
            if let Some(profile) = profile.filter(|_| holds == Holds::Owned) {
                has_manifests(&archive, profile)?;
            }
            if deep { archive.verify(&ticks) } else { Ok(()) }
        }
        None => Ok(()),
    };
    check().with_context(|| name.to_owned())
}

/// The static pods that a recovery starts first, one by one: nothing else starts before they run.
fn has_manifests(archive: &Archive, profile: &Profile) -> Result<()> {
    for pod in [profile.etcd(), profile.api_server()] {
        let manifest = profile.manifest(pod);
        if !archive.paths().any(|path| Path::new(profile.kubernetes).join(path) == manifest) {
            return Err(damaged(format!("it holds no {}, without which no node can be recovered", manifest.display())));
        }
    }
    Ok(())
}
