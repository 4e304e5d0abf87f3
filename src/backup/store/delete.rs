//! `delete`: deletes one backup.

use anyhow::Result;

use super::after::{Removed, clear_up, not_during_a_recovery};
use super::choose::no_such;
use crate::backup::layout::{DELETING, LEGACY_ID, is_gone};
use crate::backup::names;
use crate::backup::published::Backup;
use crate::backup::survey::{Survey, survey};
use crate::backup::verify;
use crate::error::{misfit, usage};
use crate::report::Progress;
use crate::session::{Locked, Session};

/// What a `delete` will delete: see [`deletion`].
#[derive(Debug)]
pub struct Deletion {
    /// The backup's id; `None` when it is deleted already.
    pub id: Option<String>,
    found: Survey,
}

/// Finds the backup that is to be deleted, and checks that it may be: the last good one only with `force`, none while a recovery is in
/// progress. Nothing is changed.
///
/// # Errors
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) during a recovery, [`FailureKind::Usage`](crate::error::FailureKind::Usage) for
/// the last good one without `force`, [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no backup of this name. An
/// id of which there is none is deleted already.
pub fn deletion(session: &Locked<'_>, wanted: &str, force: bool) -> Result<Deletion> {
    let Session { dir, progress, .. } = **session;
    not_during_a_recovery(dir)?;
    if wanted == LEGACY_ID {
        return Err(misfit(
            "the backup of upgrade-recovery.sh is not the agent's to delete: remove `cluster`, `etc`, `local`, `kubelet` by hand",
        ));
    }
    let found = survey(dir)?;
    let is_it = |id: &&String| *id == wanted;
    let unusable = found.damaged.iter().map(|(id, _)| id).chain(&found.partial).find(is_it);
    let published = found.find(wanted).map(|backup| &backup.id);
    // What this agent cannot read may be the only good one that there is.
    let newer = found.unsupported.iter().map(|(id, _)| id).find(is_it);
    let id = match (unusable, published.or(newer)) {
        (Some(id), _) => Some(id.clone()),
        (None, Some(id)) => {
            if !force && !any_good(found.backups.iter().filter(|other| other.id != *id), progress)? {
                let what = if published.is_some() { "is the last good backup" } else { "is not supported, and no other backup is good" };
                return Err(usage(format!("{id} {what}; `recovery delete --force {wanted}` deletes it all the same")));
            }
            Some(id.clone())
        }
        // An interrupted deletion is finished by the same call again. An id of which there is no backup (a name may be a slip of the pen)
        // is deleted already.
        (None, None) if found.deleting.iter().any(|left| left.strip_suffix(DELETING) == Some(wanted)) => Some(wanted.to_owned()),
        (None, None) if names::is_id(wanted) => None,
        (None, None) => return Err(no_such(dir, &found, wanted)),
    };
    Ok(Deletion { id, found })
}

/// Deletes what [`deletion`] found.
///
/// # Errors
/// When something cannot be removed.
pub fn delete(session: &Locked<'_>, Deletion { id, mut found }: Deletion) -> Result<Removed> {
    let dir = session.dir;
    if let Some(id) = id.as_ref().filter(|id| !is_gone(&dir.backups().join(id))) {
        found.remove(dir, id)?;
    }
    let kept = found.backups.iter().map(|backup| backup.id.clone()).collect();
    let mut removed = Removed { removed: id.into_iter().collect(), kept, ..Removed::default() };
    clear_up(session, &found, &mut removed)?;
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
