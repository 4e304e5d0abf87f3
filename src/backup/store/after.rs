//! What `delete` and `prune` share: what they report, and what follows a deletion.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::backup::published::Backup;
use crate::backup::survey::Survey;
use crate::backup::take::pins;
use crate::error::busy;
use crate::node::{dir::RecoveryDir, durable};
use crate::session::{Locked, Session};

/// What `delete` and `prune` did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Removed {
    /// Ids that are gone.
    pub removed: Vec<String>,
    /// Ids of those that stay, newest first; of `prune`, the good ones.
    pub kept: Vec<String>,
    /// Deployments whose pin was dropped.
    pub unpinned: Vec<String>,
    /// What went wrong without stopping it.
    pub warnings: Vec<String>,
}

pub(super) fn not_during_a_recovery(dir: &RecoveryDir) -> Result<()> {
    if dir.in_recovery() {
        return Err(busy("a recovery is in progress: nothing is deleted before it has ended (`recovery status` shows it)"));
    }
    Ok(())
}

/// What follows every deletion: interrupted ones are finished, pins that no backup needs any more are dropped, and the link `latest` is
/// set.
pub(super) fn clear_up(session: &Locked<'_>, found: &Survey, result: &mut Removed) -> Result<()> {
    let Session { node, dir, .. } = **session;
    for id in &found.deleting {
        durable::remove_tree(&dir.backups().join(id))?;
    }
    match pins::drop_unneeded(node, dir, found) {
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
