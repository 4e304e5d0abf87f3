//! A prepared soft reboot: `/run/nextroot`, which a plain `systemctl reboot` (systemd 254 and later) enters without going through kernel
//! and boot loader.

use anyhow::Result;

use super::deployment::CHANGE;
use crate::error::{AndNext, FailureKind, kind, misfit, run, said};
use crate::node::Node;
use crate::tools::systemctl;

/// The root that a soft reboot enters (`systemd-soft-reboot.service(8)`). It stays when the deployment that it was made from is dropped:
/// `ostree admin undeploy` and `rpm-ostree cleanup` leave it mounted (ostree 2026.4), and the list of deployments no longer shows it.
pub const NEXT_ROOT: &str = "/run/nextroot";

/// The command that cancels a soft reboot that ostree has prepared.
pub const UNDO: &str = "ostree admin prepare-soft-reboot --reset";

/// The name of the operating system that the node runs: after a soft reboot into a deployment that was dropped, ostree knows no such
/// deployment.
#[must_use]
pub fn running(node: &Node) -> Option<String> {
    let text = node.read_text("/usr/lib/os-release").ok()?;
    let value =
        |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(|value| value.trim_matches('"').to_owned());
    // On RHCOS the pretty name contains the version too, and `OSTREE_VERSION` has that of the deployment.
    ["PRETTY_NAME", "OSTREE_VERSION"].into_iter().find_map(value)
}

/// Explains a failure of ostree. After a soft reboot into a deployment that was dropped, every call of ostree fails until a real reboot.
pub(super) fn explained(node: &Node, error: anyhow::Error) -> anyhow::Error {
    if kind(&error) == FailureKind::Interrupted || systemctl::soft_reboots(node) == 0 {
        return error;
    }
    let runs = running(node).map_or_else(String::new, |name| format!(" ({name})"));
    misfit(format!("{}: the node has gone through a soft reboot, and ostree may not know what it runs{runs}", said(&error)))
        .and_next(run("systemctl reboot", ", then run the same command again"))
}

/// True while a root is there to enter. An empty directory does not count: systemd looks for the tree of an operating system.
#[must_use]
pub fn is_prepared(node: &Node) -> bool {
    match std::fs::read_dir(node.real_path(NEXT_ROOT)) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Cancels a prepared soft reboot, so that the next reboot is a real one, into what the boot loader has first. True when one was prepared.
///
/// # Errors
/// [`FailureKind::Misfit`] when it is still there: ostree did not prepare it, or cannot cancel it.
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
        "a soft reboot into {NEXT_ROOT} is prepared, and ostree does not cancel it{said}: a reboot would go into that root, not into the \
         backup's deployment"
    ))
    .and_next(run(format!("umount -R {NEXT_ROOT}"), ", then `recovery resume`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use std::os::unix::fs::PermissionsExt;

    /// A node whose `ostree` is `script`; `$ROOT` is the node's root.
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
