//! `prune`: all but the newest good ones less.

use anyhow::Result;

use super::after::{Removed, finish, not_during_a_recovery};
use crate::backup::published::Backup;
use crate::backup::survey::{remove, survey};
use crate::backup::take::publish;
use crate::backup::verify;
use crate::error::usage;
use crate::node::{Node, dir::RecoveryDir};
use crate::report::Progress;

/// Deletes what is older than the newest `keep` good backups, unfinished ones, and what an earlier deletion left. "Good" is checked against
/// `SHA256SUMS`, except for `trusted` (just verified). While there are no `keep` good ones, no published backup is deleted; a damaged one that is newer is
/// left for somebody to look at, and one of a newer agent's, which nobody here can judge, neither counts nor goes.
///
/// # Errors
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) during a recovery, [`FailureKind::Usage`](crate::error::FailureKind::Usage) for `keep` 0.
pub fn prune(node: &Node, dir: &RecoveryDir, keep: usize, trusted: Option<&str>, progress: &Progress) -> Result<Removed> {
    not_during_a_recovery(dir)?;
    if keep == 0 {
        return Err(usage("the last good backup is never pruned: keep at least 1"));
    }
    publish::finish_interrupted(dir)?;
    let found = survey(dir)?;
    let mut result = Removed::default();
    for id in &found.partial {
        remove(dir, id)?;
        result.removed.push(id.clone());
    }
    if found.backups.len() > keep {
        for Backup { id, path, .. } in &found.backups {
            if result.kept.len() == keep {
                remove(dir, id)?;
                result.removed.push(id.clone());
                continue;
            }
            let report = if trusted == Some(id.as_str()) { None } else { Some(verify::report(path, id, false, progress)?) };
            match report.filter(|report| !report.good) {
                Some(bad) => result.warnings.push(format!("the backup {id} is {}: `recovery verify {id}` says how", bad.verdict())),
                None => result.kept.push(id.clone()),
            }
        }
    } else {
        result.kept = found.backups.iter().map(|b| b.id.clone()).collect();
    }
    let newer = |(id, error): &(String, _)| format!("the backup {id} is not supported and stays: {error:#}");
    result.warnings.extend(found.unsupported.iter().map(newer));
    result.warnings.extend(found.damaged.iter().map(|(id, error)| format!("the backup {id} is damaged: {error:#}")));
    finish(node, dir, &mut result)?;
    Ok(result)
}
