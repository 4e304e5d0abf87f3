//! The kubelet hold: what makes every instant of a recovery safe to boot into.
//!
//! Two small files belong in the `/etc` of every deployment that could boot: a drop-in that keeps kubelet from starting while
//! [`HOLD`] exists, and the unit that continues an open recovery. A restore of `/etc` never removes them.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Node, durable};

/// While this file exists, kubelet does not start. On `/var`, which every deployment shares.
pub const HOLD: &str = "/var/lib/recovery/hold-kubelet";
/// The drop-in of `kubelet.service`, relative to `/etc`.
pub const DROP_IN: &str = "systemd/system/kubelet.service.d/10-recovery-hold.conf";
/// The resume unit, relative to `/etc`.
pub const RESUME_UNIT: &str = "systemd/system/recovery-resume.service";
/// The resume unit's name.
pub const RESUME_UNIT_NAME: &str = "recovery-resume.service";

const FILES: [(&str, &str); 2] =
    [(DROP_IN, include_str!("../../systemd/10-recovery-hold.conf")), (RESUME_UNIT, include_str!("../../systemd/recovery-resume.service"))];

/// Puts both files into the `/etc` at `etc` (the booted one, or another deployment's); true when something was written.
///
/// # Errors
/// When they cannot be written.
pub fn install(etc: &Path) -> Result<bool> {
    let mut wrote = false;
    for (name, text) in FILES {
        let path = etc.join(name);
        if std::fs::read(&path).is_ok_and(|have| have == text.as_bytes()) {
            continue;
        }
        let parent = path.parent().unwrap_or(etc);
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        durable::write(&path, text.as_bytes(), 0o644)?;
        durable::sync_dir(parent.parent().unwrap_or(etc))?;
        wrote = true;
    }
    Ok(wrote)
}

/// True when both files are in the `/etc` at `etc`, as this version writes them.
#[must_use]
pub fn is_installed(etc: &Path) -> bool {
    FILES.iter().all(|(name, text)| std::fs::read(etc.join(name)).is_ok_and(|have| have == text.as_bytes()))
}

/// Creates the hold file, durably. `run` is written into it, for people.
///
/// # Errors
/// When it cannot be written.
pub fn place(node: &Node, run: &str) -> Result<()> {
    let path = node.path(HOLD);
    let dir = path.parent().context("the hold file has no directory")?;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    durable::write(&path, format!("kubelet is held by recovery {run}: see `recovery status`\n").as_bytes(), 0o644)?;
    // The directory itself may be new.
    dir.parent().map_or(Ok(()), durable::sync_dir)
}

/// Removes the hold file, durably.
///
/// # Errors
/// When it cannot be removed.
pub fn lift(node: &Node) -> Result<()> {
    durable::remove(&node.path(HOLD))
}

/// True while the hold file exists.
#[must_use]
pub fn is_placed(node: &Node) -> bool {
    node.exists(HOLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hold_is_placed_and_lifted() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let node = Node::at(dir.path(), None);
        place(&node, "r1")?;
        place(&node, "r1")?;
        assert!(is_placed(&node));
        lift(&node)?;
        lift(&node)?;
        assert!(!is_placed(&node));
        Ok(())
    }

    #[test]
    fn the_files_are_installed_once() -> Result<()> {
        let etc = tempfile::tempdir()?;
        assert!(!is_installed(etc.path()));
        assert!(install(etc.path())?);
        assert!(!install(etc.path())?);
        assert!(is_installed(etc.path()));
        Ok(())
    }
}
