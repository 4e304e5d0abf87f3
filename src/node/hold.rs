//! The kubelet hold: it makes a boot safe at every moment of a recovery.
//!
//! Three small files belong in the `/etc` of every deployment that could boot: a drop-in that keeps kubelet from starting while
//! [`HOLD`] exists, one that keeps CRI-O's images while [`KEEP_IMAGES`] does, and the unit that continues an open recovery. A restore of `/etc` never removes them.

use std::path::Path;

use anyhow::{Context, Result};

use super::crio::WIPE_UNIT;
use super::dir::{DEFAULT, RecoveryDir};
use super::{Node, durable};
use crate::error::{AndNext, misfit, run};

/// While this file exists, kubelet does not start. On `/var`, which every deployment shares.
pub const HOLD: &str = "/var/lib/recovery/hold-kubelet";
/// While this file exists, `crio-wipe.service` does not start: a power cut in a recovery costs no image.
pub const KEEP_IMAGES: &str = "/var/lib/recovery/keep-images";
/// Begins the line of the hold file that names the recovery directory.
const OWNER: &str = "directory: ";
/// The drop-in of `kubelet.service`, relative to `/etc`.
pub const DROP_IN: &str = "systemd/system/kubelet.service.d/10-recovery-hold.conf";
/// The drop-in of `crio-wipe.service`, relative to `/etc`.
pub const WIPE_DROP_IN: &str = "systemd/system/crio-wipe.service.d/10-recovery-images.conf";
/// The resume unit.
pub const RESUME: &str = "recovery-resume.service";
/// The resume unit's file, relative to `/etc`.
pub const RESUME_UNIT: &str = "systemd/system/recovery-resume.service";

/// The files, for a recovery directory.
fn files(dir: &RecoveryDir) -> [(&'static str, String); 3] {
    let unit = include_str!("../../systemd/recovery-resume.service");
    let unit = match dir.shown().to_str() {
        // Each mention is replaced only once: the other path may contain the default one.
        Some(other) if other != DEFAULT => {
            unit.split(DEFAULT).collect::<Vec<_>>().join(other).replace("/recovery resume", &format!("/recovery --dir {other} resume"))
        }
        _ => unit.to_owned(),
    };
    let drop_ins = [include_str!("../../systemd/10-recovery-hold.conf"), include_str!("../../systemd/10-recovery-images.conf")];
    let [kubelet, wipe] = drop_ins.map(str::to_owned);
    [(DROP_IN, kubelet), (WIPE_DROP_IN, wipe), (RESUME_UNIT, unit)]
}

/// Puts the files into the `/etc` at `etc` (the booted one, or another deployment's); true when something was written.
///
/// # Errors
/// When they cannot be written.
pub fn install(etc: &Path, dir: &RecoveryDir) -> Result<bool> {
    let mut wrote = false;
    for (name, text) in files(dir) {
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

/// True when all of them are in the `/etc` at `etc`, as this version writes them.
#[must_use]
pub fn is_installed(etc: &Path, dir: &RecoveryDir) -> bool {
    files(dir).iter().all(|(name, text)| std::fs::read(etc.join(name)).is_ok_and(|have| have == text.as_bytes()))
}

/// Creates the hold file, durably. It names its run, for people, and its recovery directory.
///
/// # Errors
/// When it cannot be written.
pub fn place(node: &Node, dir: &RecoveryDir, run: &str) -> Result<()> {
    let shown = dir.shown().display();
    write(node, HOLD, &format!("kubelet is held by recovery {run}: see `{shown}/recovery --dir {shown} status`\n{OWNER}{shown}\n"))
}

/// Creates the file that keeps CRI-O's images, durably.
///
/// # Errors
/// When it cannot be written.
pub fn keep_images(node: &Node, run: &str) -> Result<()> {
    write(node, KEEP_IMAGES, &format!("{WIPE_UNIT} is held by recovery {run}\n"))
}

fn write(node: &Node, file: &str, text: &str) -> Result<()> {
    let path = node.path(file);
    let parent = path.parent().with_context(|| format!("{file} has no directory"))?;
    std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    durable::write(&path, text.as_bytes(), 0o644)?;
    // The directory itself may be new.
    parent.parent().map_or(Ok(()), durable::sync_dir)
}

/// The node's path of the recovery directory whose run holds kubelet, when it is not `dir`.
#[must_use]
pub fn other_owner(node: &Node, dir: &RecoveryDir) -> Option<String> {
    let text = node.read_text(HOLD).ok()?;
    let owner = text.lines().find_map(|line| line.strip_prefix(OWNER))?;
    (Path::new(owner) != dir.shown()).then(|| owner.to_owned())
}

/// True while a recovery still keeps a unit from starting: [`HOLD`] or [`KEEP_IMAGES`] exists.
#[must_use]
pub fn is_left(node: &Node) -> bool {
    is_placed(node) || node.exists(KEEP_IMAGES)
}

/// Fails when the hold exists but its recovery does not: the recovery directory may then not be the right one.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit), with what to do.
pub fn check_run(node: &Node, dir: &RecoveryDir) -> Result<()> {
    check_owner(node, dir)?;
    if !is_placed(node) || dir.in_recovery() || dir.undo().exists() {
        return Ok(());
    }
    let shown = dir.shown().display();
    let said = format!("kubelet is held by a recovery, but {shown} has no recovery in it: its file system may not be mounted");
    Err(misfit(said).and_next(run(
        format!("findmnt {shown}"),
        "shows it; when it is mounted, `recovery resume`; when it is lost, `recovery abandon --force` lets kubelet start on whatever is \
         there",
    )))
}

/// Fails when the hold belongs to a recovery with another recovery directory.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit), with the command that shows that recovery.
pub fn check_owner(node: &Node, dir: &RecoveryDir) -> Result<()> {
    match other_owner(node, dir) {
        Some(owner) => {
            Err(misfit(format!("kubelet is held by a recovery whose directory is {owner}, not {}: {HOLD} says so", dir.shown().display()))
                .and_next(run(format!("recovery --dir {owner} status"), "")))
        }
        None => Ok(()),
    }
}

/// Removes the hold file, durably.
///
/// # Errors
/// When it cannot be removed.
pub fn lift(node: &Node) -> Result<()> {
    durable::remove(&node.path(HOLD))
}

/// Removes the file that keeps CRI-O's images, durably; true when it was there.
///
/// # Errors
/// When it cannot be removed.
pub fn release_images(node: &Node) -> Result<bool> {
    let was = node.exists(KEEP_IMAGES);
    durable::remove(&node.path(KEEP_IMAGES))?;
    Ok(was)
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
        let (ours, other) = (RecoveryDir::new(&node, Path::new(DEFAULT)), RecoveryDir::new(&node, Path::new("/var/other")));
        place(&node, &ours, "r1")?;
        place(&node, &ours, "r1")?;
        assert!(is_placed(&node) && other_owner(&node, &ours).is_none());
        assert_eq!(other_owner(&node, &other).as_deref(), Some(DEFAULT));
        assert_eq!(crate::error::exit_code(&check_owner(&node, &other).unwrap_err()), 78);
        lift(&node)?;
        lift(&node)?;
        keep_images(&node, "r1")?;
        assert!(node.exists(KEEP_IMAGES) && release_images(&node)? && !release_images(&node)? && !node.exists(KEEP_IMAGES));
        assert!(!is_placed(&node));
        Ok(())
    }

    #[test]
    fn the_files_are_installed_once() -> Result<()> {
        let etc = tempfile::tempdir()?;
        let node = Node::at(etc.path(), None);
        let (dir, other) = (RecoveryDir::new(&node, Path::new(DEFAULT)), RecoveryDir::new(&node, Path::new("/var/recovery/b")));
        assert!(!is_installed(etc.path(), &dir));
        assert!(install(etc.path(), &dir)?);
        assert!(!install(etc.path(), &dir)?);
        assert!(is_installed(etc.path(), &dir) && !is_installed(etc.path(), &other));
        assert!(install(etc.path(), &other)?);
        let unit = std::fs::read_to_string(etc.path().join(RESUME_UNIT))?;
        assert!(unit.contains("ExecStart=/var/recovery/b/recovery --dir /var/recovery/b resume --unit\n"), "{unit}");
        assert!(unit.contains("ConditionPathExists=/var/recovery/b/progress\n"), "{unit}");
        Ok(())
    }
}
