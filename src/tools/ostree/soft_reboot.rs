//! A prepared soft reboot: `/run/nextroot`, into which systemd (254 and later) goes at a plain `systemctl reboot`, kernel and boot loader left out.

use anyhow::Result;

use super::deployment::CHANGE;
use crate::error::{AndNext, FailureKind, kind, misfit, run, said};
use crate::node::Node;
use crate::tools::systemctl;

/// The root that a soft reboot goes into (`systemd-soft-reboot.service(8)`). It stays when the deployment that it was made of is dropped:
/// `ostree admin undeploy` and `rpm-ostree cleanup` leave it mounted (ostree 2026.4), and the list of deployments no longer tells of it.
pub const NEXT_ROOT: &str = "/run/nextroot";

/// Takes back what ostree has prepared.
pub const UNDO: &str = "ostree admin prepare-soft-reboot --reset";

/// The operating system whose root the node runs, by its own name: after a soft reboot into one that was dropped, ostree knows of none.
#[must_use]
pub fn running(node: &Node) -> Option<String> {
    let text = node.read_text("/usr/lib/os-release").ok()?;
    let value =
        |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(|value| value.trim_matches('"').to_owned());
    // Of a release of RHCOS, the pretty name has the version too; that of a deployment stands in the other.
    ["PRETTY_NAME", "OSTREE_VERSION"].into_iter().find_map(value)
}

/// A failure of ostree. After a soft reboot into a deployment that was dropped it fails at everything, and a real reboot is the way out.
pub(super) fn explained(node: &Node, error: anyhow::Error) -> anyhow::Error {
    if kind(&error) == FailureKind::Interrupted || systemctl::soft_reboots(node) == 0 {
        return error;
    }
    let runs = running(node).map_or_else(String::new, |name| format!(" ({name})"));
    misfit(format!("{}: the node has gone through a soft reboot, and ostree may not know what it runs{runs}", said(&error)))
        .and_next(run("systemctl reboot", ", and the same again"))
}

/// True while there is something to go into. An empty directory is nothing: systemd looks for the tree of an operating system.
#[must_use]
pub fn is_prepared(node: &Node) -> bool {
    match std::fs::read_dir(node.real_path(NEXT_ROOT)) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Takes back what was prepared, so that the next reboot is a real one, into what the boot loader has first. True when something was.
///
/// # Errors
/// [`FailureKind::Misfit`] when it is still there: it was not ostree that made it, or ostree cannot undo it.
pub fn clear(node: &Node) -> Result<bool> {
    if !is_prepared(node) {
        return Ok(false);
    }
    let reset = node.command("ostree").and_then(|ostree| ostree.args(["admin", "prepare-soft-reboot", "--reset"]).limit(CHANGE).run());
    if !is_prepared(node) {
        return Ok(true);
    }
    let said = reset.err().map_or_else(String::new, |error| format!(" ({error:#})"));
    Err(misfit(format!(
        "a soft reboot into {NEXT_ROOT} is prepared, and ostree does not take it back{said}: a reboot would go into that root, not into the backup's \
         deployment"
    ))
    .and_next(run(format!("umount -R {NEXT_ROOT}"), ", then `recovery resume`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use std::os::unix::fs::PermissionsExt;

    /// A node with an `ostree` that does as `script` says; `$ROOT` is the node's root.
    fn node(script: &str) -> Result<(tempfile::TempDir, Node)> {
        let root = tempfile::tempdir()?;
        let tools = root.path().join("tools");
        std::fs::create_dir_all(&tools)?;
        let program = tools.join("ostree");
        std::fs::write(&program, format!("#!/bin/sh\nROOT={}\n{script}\n", root.path().display()))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        let node = Node::at(root.path(), Some(&tools));
        Ok((root, node))
    }

    #[test]
    fn what_is_prepared_is_taken_back_or_refused() -> Result<()> {
        let (root, sound) = node(r#"test "$*" = "admin prepare-soft-reboot --reset" && rm -r "$ROOT/run/nextroot/usr""#)?;
        assert!(!is_prepared(&sound) && !clear(&sound)?);
        // What ostree leaves behind is an empty directory.
        std::fs::create_dir_all(root.path().join("run/nextroot"))?;
        assert!(!is_prepared(&sound));
        std::fs::create_dir_all(root.path().join("run/nextroot/usr"))?;
        assert!(is_prepared(&sound) && clear(&sound)?);
        assert!(!is_prepared(&sound) && !clear(&sound)?);
        let (root, old) = node("echo \"error: Unknown command 'prepare-soft-reboot'\" >&2; exit 1")?;
        std::fs::create_dir_all(root.path().join("run/nextroot/usr"))?;
        let error = clear(&old).unwrap_err();
        assert_eq!(exit_code(&error), 78);
        assert!(error.to_string().contains("umount -R /run/nextroot") && error.to_string().contains("Unknown command"), "{error}");
        Ok(())
    }
}
