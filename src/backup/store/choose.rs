//! The backup that is meant: by its id or name, or the newest.

use anyhow::Result;

use crate::backup::layout::{LEGACY_ID, PARTIAL};
use crate::backup::legacy::{self, Legacy, import::import};
use crate::backup::published::Backup;
use crate::backup::survey::{Survey, survey};
use crate::backup::verify::{self, VerifyReport};
use crate::error::{AndNext, damaged, misfit, run, unsupported};
use crate::node::dir::RecoveryDir;
use crate::session::{Locked, Session};

/// What [`find`] found.
#[derive(Debug)]
pub enum Found {
    /// A backup.
    Backup(Box<Backup>),
    /// One of the old script's, which is not imported yet, or asked for by its own id.
    Old(Legacy),
}

/// As [`choose`], for reports: nothing is imported, so that nothing changes. What is [passed over](Survey::passed_over), the caller says.
///
/// # Errors
/// As [`choose`].
pub fn find(session: &Session<'_>, survey: &Survey, wanted: Option<&str>) -> Result<Found> {
    let dir = session.dir;
    let old = legacy::find(dir);
    match wanted {
        Some(LEGACY_ID) => {
            old.map(Found::Old).ok_or_else(|| misfit(format!("{} holds no backup of upgrade-recovery.sh", dir.shown().display())))
        }
        Some(wanted) => survey.find(wanted).cloned().map(|b| Found::Backup(Box::new(b))).ok_or_else(|| no_such(dir, survey, wanted)),
        None => match (survey.backups.first(), old) {
            (Some(newest), _) => Ok(Found::Backup(Box::new(newest.clone()))),
            (None, Some(old)) => Ok(Found::Old(old)),
            (None, None) => Err(none_left(dir, survey)),
        },
    }
}

/// The backup of this id or name; the newest (by sequence) that is readable when none is given. A directory of the old script's in `--dir`
/// (`cluster/`, `etc/`, …) is the id `upgrade-recovery` and is imported (see [`import`](mod@legacy::import)) on the way, when it is asked
/// for or there is nothing else. Its contents are not checked here: see [`verify`](mod@verify).
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the wanted one is damaged, or only damaged ones are left;
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it, or the only one that might do, is of a newer version;
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no such backup, or none at all.
pub fn choose(session: &Locked<'_>, survey: &Survey, wanted: Option<&str>) -> Result<Backup> {
    match find(session, survey, wanted)? {
        Found::Backup(backup) => Ok(*backup),
        Found::Old(old) => import(session, survey, &old),
    }
}

/// As [`choose`], for a look that changes nothing: one of the old script's, which would have to be imported, is not taken.
///
/// # Errors
/// As [`choose`]; [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for one of the old script's.
pub fn choose_unchanged(session: &Session<'_>, survey: &Survey, wanted: Option<&str>) -> Result<Backup> {
    match find(session, survey, wanted)? {
        Found::Backup(backup) => Ok(*backup),
        Found::Old(_) => {
            Err(unsupported("what upgrade-recovery.sh left has to be imported before it can be compared, and a dry run changes nothing")
                .and_next(run(
                    format!("recovery verify {LEGACY_ID}"),
                    "checks it; the same without --dry-run imports it, and asks before anything is restored",
                )))
        }
    }
}

/// Checks one backup, whatever its state: by id or name; the newest one when none is given. See [`verify::report`] and [`legacy::verify`].
///
/// # Errors
/// As [`choose`] when there is no such backup; when interrupted. What is wrong with it is in the report.
pub fn verify_chosen(session: &Session<'_>, wanted: Option<&str>, deep: bool) -> Result<VerifyReport> {
    let Session { dir, progress, .. } = *session;
    let survey = survey(dir)?;
    if let (Some(LEGACY_ID), Some(old)) = (wanted, legacy::find(dir)) {
        return legacy::verify(&old, progress);
    }
    let usable = wanted.map_or_else(|| survey.backups.first(), |wanted| survey.find(wanted)).map(|backup| &backup.id);
    let others = survey.unsupported.iter().chain(&survey.damaged);
    let unusable = || others.map(|(id, _)| id).find(|id| wanted.is_none_or(|wanted| *id == wanted));
    match (usable.or_else(unusable), wanted) {
        (Some(id), _) => verify::report(&dir.backups().join(id), id, deep, progress),
        (None, Some(wanted)) => Err(no_such(dir, &survey, wanted)),
        (None, None) => Err(none_left(dir, &survey)),
    }
}

pub(super) fn no_such(dir: &RecoveryDir, survey: &Survey, wanted: &str) -> anyhow::Error {
    if let Some((id, error)) = survey.unsupported.iter().find(|(id, _)| id == wanted) {
        return unsupported(format!("the backup {id} is not supported: {error:#}"));
    }
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
    // Another agent can bring the node back; nothing helps with a damaged one.
    if let Some((id, error)) = survey.unsupported.first() {
        return unsupported(format!("{dir} holds no backup that this agent can use, but {id}, which is not supported: {error:#}"));
    }
    match survey.damaged.first() {
        Some((id, error)) => damaged(format!("{dir} holds damaged backups only, {id} among them: {error:#}")),
        None => misfit(format!("{dir} holds no backup")),
    }
}
