//! `prune`: deletes all but the newest good backups.

use anyhow::Result;

use super::after::{Removed, clear_up, not_during_a_recovery};
use crate::backup::published::Backup;
use crate::backup::survey::Survey;
use crate::backup::verify;
use crate::error::usage;
use crate::session::{Locked, Session};

/// Deletes the backups that are older than the newest `keep` good ones, unfinished backups, and what an interrupted deletion left. Whether
/// a backup is good is checked against its `SHA256SUMS`, on disk and now; `trusted` has just been checked. While there are fewer than `keep` good ones, no
/// published backup is deleted. A damaged one among the newest stays, for somebody to look at it. One that a newer agent took stays as
/// well, and does not count as good: this agent cannot read it.
///
/// # Errors
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) during a recovery; as [`check_keep`]; when something cannot be read or removed.
pub fn prune(session: &Locked<'_>, mut found: Survey, keep: usize, trusted: Option<&str>) -> Result<Removed> {
    let Session { dir, progress, .. } = **session;
    not_during_a_recovery(dir)?;
    check_keep(keep)?;
    let mut result = Removed::default();
    for id in found.partial.clone() {
        found.remove(dir, &id)?;
        result.removed.push(id);
    }
    if found.backups.len() > keep {
        for Backup { id, path, .. } in found.backups.clone() {
            if result.kept.len() == keep {
                found.remove(dir, &id)?;
                result.removed.push(id);
                continue;
            }
            let report = if trusted == Some(id.as_str()) { None } else { Some(verify::report(&path, &id, false, progress)?) };
            match report.filter(|report| !report.good) {
                Some(bad) => result.warnings.push(format!("the backup {id} is {}: `recovery verify {id}` says how", bad.verdict())),
                None => result.kept.push(id),
            }
        }
    } else {
        result.kept = found.backups.iter().map(|b| b.id.clone()).collect();
    }
    let newer = |(id, error): &(String, _)| format!("the backup {id} is not supported and stays: {error:#}");
    result.warnings.extend(found.unsupported.iter().map(newer));
    result.warnings.extend(found.damaged.iter().map(|(id, error)| format!("the backup {id} is damaged: {error:#}")));
    clear_up(session, &found, &mut result)?;
    Ok(result)
}

/// Checks how many good backups are to be kept.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for none at all.
pub fn check_keep(keep: usize) -> Result<()> {
    if keep == 0 { Err(usage("at least one good backup is always kept: --keep takes 1 or more")) } else { Ok(()) }
}
