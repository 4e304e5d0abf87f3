//! The check of a backup, the same for `verify`, for publishing, and for a recovery: its files are as they were written, and a recovery can
//! use them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::layout::{MANIFEST, SUMS, is_file, is_gone};
use super::parts::{Holds, Part};
use super::published::{Backup, complete};
use super::sums::{Sum, hash_all, read_sums};
use crate::archive::Archive;
use crate::error::{Failure, FailureKind, busy, damaged, kind, said};
use crate::etcd;
use crate::node::{clock::interrupted, profile::Profile};
use crate::report::Progress;

/// The result of checking one backup.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// The backup.
    pub id: String,
    /// True when the contents of the archives were checked too.
    pub deep: bool,
    /// True when nothing is wrong.
    pub good: bool,
    /// Bytes of everything that was checked.
    pub bytes: u64,
    /// Its files and their sums; empty for an old backup, which has no sums.
    pub files: BTreeMap<String, Sum>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// The kind of failure with which a recovery would refuse it; `None` when it is good.
    pub kind: Option<FailureKind>,
}

impl VerifyReport {
    /// The report on the backup `id`, with everything that is `wrong` with it.
    pub(super) fn new(id: &str, deep: bool, files: BTreeMap<String, Sum>, wrong: &[anyhow::Error]) -> Self {
        // When the problems are of different kinds, something is damaged; what cannot be read counts as damaged too.
        let mut kinds = wrong.iter().map(|error| match kind(error) {
            kind @ (FailureKind::Unsupported | FailureKind::Misfit) => kind,
            _ => FailureKind::Damaged,
        });
        let kind = kinds.next().map(|first| if kinds.all(|kind| kind == first) { first } else { FailureKind::Damaged });
        let problems = wrong.iter().map(said).collect();
        let bytes = files.values().map(|sum| sum.bytes).sum();
        Self { id: id.to_owned(), deep, good: wrong.is_empty(), bytes, files, problems, kind }
    }

    /// The word for a backup that is not good.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.kind {
            Some(FailureKind::Unsupported) => "not supported",
            Some(FailureKind::Misfit) => "not usable",
            _ => "damaged",
        }
    }

    /// The error for a caller that needs the backup; messages call it `what`.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`] with everything that is wrong; [`FailureKind::Unsupported`] or [`FailureKind::Misfit`] when it is sound,
    /// but a recovery cannot use it.
    pub fn accept(&self, what: &str) -> Result<()> {
        if self.good { Ok(()) } else { Err(self.failure(format!("{what} is {}: {}", self.verdict(), self.problems.join("; ")))) }
    }

    /// An error of the report's kind, with `text`.
    #[must_use]
    pub fn failure(&self, text: String) -> anyhow::Error {
        Failure { kind: self.kind.unwrap_or(FailureKind::Damaged), message: text, next: None }.into()
    }
}

/// Checks every file against `SHA256SUMS`, that nothing is missing or added, and that a recovery [can use](check_part) each file. `deep`
/// also decompresses everything: every content of an archive is checked against its index, and the whole etcd snapshot.
///
/// # Errors
/// As [`VerifyReport::accept`]; as [`report`].
pub fn verify(backup: &Backup, deep: bool, progress: &Progress) -> Result<()> {
    report(&backup.path, &backup.id, deep, progress)?.accept(&format!("the backup {}", backup.id))
}

/// As [`verify`], for any directory that should be the backup `id`; what is wrong is in the report.
///
/// # Errors
/// [`FailureKind::Interrupted`] when the agent is interrupted; [`FailureKind::Busy`] when the backup is deleted meanwhile;
/// [`FailureKind::NoSpace`] without scratch space for the snapshot.
pub fn report(path: &Path, id: &str, deep: bool, progress: &Progress) -> Result<VerifyReport> {
    let mut wrong = Vec::new();
    let manifest = complete(path).map_err(|error| wrong.push(error)).ok();
    // This agent cannot know which files a newer version has, nor what is in them.
    if wrong.first().is_some_and(|error| kind(error) == FailureKind::Unsupported) {
        return Ok(VerifyReport::new(id, deep, BTreeMap::new(), &wrong));
    }
    if let Some(other) = manifest.as_ref().map(|manifest| &manifest.id).filter(|other| *other != id) {
        wrong.push(damaged(format!("its {MANIFEST} says that it is {other}")));
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
            // An interruption is no damage, and neither is a lack of scratch space.
            Err(error) if matches!(kind(&error), FailureKind::NoSpace | FailureKind::Interrupted) => return Err(error),
            Err(error) => wrong.push(error),
            Ok(()) => {}
        }
    }
    // If the whole backup is gone, its missing files are no damage.
    if !wrong.is_empty() && is_gone(path) {
        return Err(busy(format!("the backup {id} was deleted while it was checked")));
    }
    Ok(VerifyReport::new(id, deep, files, &wrong))
}

/// Checks that a recovery can use the file `name` of the backup at `path`: a file with the right sum can be hostile, of an unsupported
/// kind, or lack what a node needs. An archive is opened, which checks every name in it; that of the static pods must have the manifests
/// that are put in place by name (those of `profile`, when it is known); the snapshot must begin like one. `deep` also reads all of it, and
/// the structure of the snapshot. Any other file passes.
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

/// The manifests of the static pods that a recovery starts first, one by one: nothing else starts before they run.
fn has_manifests(archive: &Archive, profile: &Profile) -> Result<()> {
    for pod in [profile.etcd(), profile.api_server()] {
        let manifest = profile.manifest(pod);
        if !archive.paths().any(|path| Path::new(profile.kubernetes).join(path) == manifest) {
            return Err(damaged(format!("it has no {}, which every recovery needs", manifest.display())));
        }
    }
    Ok(())
}
