//! Where the recovery directory lives, how full that is, and what a failure of the disk that the node runs from would cost.

use anyhow::Result;
use serde::Serialize;

use super::look::{below, open_creation};
use crate::error::{Next, said};
use crate::node::block;
use crate::node::mounts::space;
use crate::node::recovery_mount::{self, Configured, configured, is_mounted};
use crate::session::Session;

/// What a failure would cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// The disk of the operating system takes no backup with it.
    Nothing,
    /// The root file system takes none, the disk takes all.
    WithTheDisk,
    /// Both take all.
    Everything,
}

/// `partition status`
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The recovery directory.
    pub dir: String,
    /// It is a mount of a file system of its own.
    pub own_file_system: bool,
    /// The disks below it.
    pub disks: Vec<String>,
    /// The disks that the node runs from.
    pub root_disks: Vec<String>,
    /// Bytes of its file system.
    pub size: u64,
    /// Bytes free there.
    pub free: u64,
    /// The unit that mounts it at a boot.
    pub unit: Option<String>,
    /// What that mounts.
    pub what: Option<String>,
    /// What a failure would cost.
    pub cost: Cost,
    /// What is wrong, and what to do about it.
    pub problem: Option<String>,
    /// What to do about it.
    pub next: Option<Next>,
    /// Bytes of an old copy below the mount.
    pub below: u64,
    /// A partition is being made: what goes on with it.
    pub open: Option<Next>,
}

/// Looks.
///
/// # Errors
/// When the node does not say.
pub fn status(session: &Session<'_>) -> Result<Status> {
    let (node, dir) = (session.node, session.dir);
    let own = is_mounted(dir)? && !block::is_on_system(node, dir.shown())?;
    // Where it does not exist yet, the file system that it would be made on.
    let place = dir.path().ancestors().find(|place| place.exists()).unwrap_or(dir.path());
    let (free, size) = space(place)?;
    let disks = block::disks_below(node, &node.shown(place));
    let root_disks = block::root_disks(node);
    // Where the kernel does not say one of them, they may be the same.
    let apart = !disks.is_empty() && !root_disks.is_empty() && disks.is_disjoint(&root_disks);
    let cost = match (apart, own) {
        (true, _) => Cost::Nothing,
        (false, true) => Cost::WithTheDisk,
        (false, false) => Cost::Everything,
    };
    let open = open_creation(node);
    let (problem, next) = match recovery_mount::check(node, dir) {
        // What is being made is not in use yet: what goes on with it is said.
        Ok(warning) => (warning.filter(|_| open.is_none()), None),
        Err(error) => (Some(said(&error)), crate::error::next(&error).cloned()),
    };
    let (unit, what) = configured(node, dir)?.map(|Configured { file, what, .. }| (file.display().to_string(), what)).unzip();
    Ok(Status {
        dir: dir.shown().display().to_string(),
        own_file_system: own,
        disks: disks.into_iter().collect(),
        root_disks: root_disks.into_iter().collect(),
        size,
        free,
        unit,
        what,
        cost,
        problem,
        next,
        below: below(dir)?,
        open,
    })
}
