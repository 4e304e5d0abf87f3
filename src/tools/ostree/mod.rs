//! `ostree admin`: deployments, in boot order.
//!
//! A deployment is stateroot, checksum and serial. Its index is good for one call: it is looked up just before each, because every
//! change of the list shifts it, and the list is read again afterwards.

mod boot;
pub mod parse;
mod soft_reboot;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::error::misfit;
use crate::node::Node;

pub use boot::kernel_arguments;
pub use soft_reboot::{NEXT_ROOT, UNDO as UNDO_SOFT_REBOOT, clear as clear_soft_reboot, is_prepared as soft_reboot_is_prepared, running};

/// For a change of the list: it writes the boot loader's entries, and a removal also prunes the repository.
const CHANGE: Duration = Duration::from_secs(300);

/// One deployment.
#[expect(clippy::struct_excessive_bools, reason = "they are ostree's own marks, each of which can stand with most others")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Position in boot order, as `pin` and `undeploy` take it; 0 boots next.
    pub index: usize,
    /// Stateroot.
    pub stateroot: String,
    /// Commit checksum, 64 hex digits.
    pub checksum: String,
    /// Serial: tells deployments of the same commit apart.
    pub serial: u32,
    /// Running now.
    pub booted: bool,
    /// Staged: finalised at shutdown (a locked one too, once it is unlocked).
    pub staged: bool,
    /// The first one ahead of the booted one in its stateroot, staged or not.
    pub pending: bool,
    /// The first one after the booted one in its stateroot.
    pub rollback: bool,
    /// Pinned: kept when others are cleaned up. `undeploy` itself does not respect it.
    pub pinned: bool,
    /// Prepared for a soft reboot: a plain `systemctl reboot` goes into it, whatever boots next.
    #[serde(default)]
    pub soft_reboot: bool,
    /// Version, when the commit has one.
    pub version: Option<String>,
}

impl Deployment {
    /// True when both are the same deployment, wherever it stands now (as libostree's `ostree_deployment_equal`).
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (&self.stateroot, &self.checksum, self.serial) == (&other.stateroot, &other.checksum, other.serial)
    }
}

/// A deployment as messages name it: stateroot, the first twelve digits of the checksum, serial.
#[must_use]
pub fn short(stateroot: &str, checksum: &str, serial: u32) -> String {
    format!("{stateroot} {}.{serial}", checksum.get(..12).unwrap_or(checksum))
}

impl std::fmt::Display for Deployment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}.{}", self.stateroot, self.checksum, self.serial)
    }
}

/// Where the physical root is mounted, read-only on most hosts.
pub const SYSROOT: &str = "/sysroot";

/// The root of a deployment that is not booted, as the node calls it.
#[must_use]
pub fn root_of(deployment: &Deployment) -> PathBuf {
    let Deployment { stateroot, checksum, serial, .. } = deployment;
    PathBuf::from(format!("{SYSROOT}/ostree/deploy/{stateroot}/deploy/{checksum}.{serial}"))
}

/// The `/etc` of a deployment that is not booted, as the node calls it.
#[must_use]
pub fn etc_of(deployment: &Deployment) -> PathBuf {
    root_of(deployment).join("etc")
}

/// True where this node is an ostree host (`/run/ostree-booted`).
#[must_use]
pub fn is_ostree(node: &Node) -> bool {
    node.exists("/run/ostree-booted")
}

/// The deployments in boot order.
///
/// # Errors
/// When ostree fails ([`FailureKind::Misfit`](crate::error::FailureKind::Misfit) after a soft reboot, where it may not know what it runs in); when
/// it prints anything but its deployments in both of its forms.
pub fn deployments(node: &Node) -> Result<Vec<Deployment>> {
    let status = || Ok::<_, anyhow::Error>(node.command("ostree")?.args(["admin", "status"]));
    // The option is there from 2025.3 on; it also fails, unlike the text form, when a commit object is missing.
    let output = status()?.arg("--json").output()?;
    let json = output.status.success().then(|| parse::json(&output.stdout));
    let unusable = match json {
        Some(Ok(all)) => return Ok(all),
        Some(Err(error)) => Some(error),
        None => None,
    };
    let output = status()?.run().map_err(|error| soft_reboot::explained(node, error))?;
    // What the JSON of another version lacks, the text form says.
    parse::text(output.text()?).map_err(|error| match unusable {
        Some(unusable) => error.context(format!("{unusable:#}; then, without --json")),
        None => error,
    })
}

/// True for a stateroot and a checksum as there can be: they are names in the path of a deployment, and must not lead anywhere else.
pub(super) fn are_names(stateroot: &str, checksum: &str) -> bool {
    let component = !matches!(stateroot, "" | "." | "..") && !stateroot.contains(['/', '\0']);
    component && checksum.len() >= 40 && checksum.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Marks the deployments next to the booted one as ostree does (`ostree_sysroot_query_deployments_for`): its own printed marks come and
/// go between versions and forms, and rpm-ostree prints none.
pub(super) fn mark_neighbours(all: &mut [Deployment]) {
    let Some(booted) = all.iter().position(|d| d.booted) else { return };
    let stateroot = all[booted].stateroot.clone();
    let (before, after) = all.split_at_mut(booted);
    if let Some(first) = before.iter_mut().find(|d| d.stateroot == stateroot) {
        first.pending = true;
    }
    if let Some(first) = after.iter_mut().skip(1).find(|d| d.stateroot == stateroot) {
        first.rollback = true;
    }
}

/// Pins a deployment and checks that it took. One that is pinned already is left as it is.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no such deployment, or it is only staged; when ostree fails, or the
/// deployment is not pinned afterwards.
pub fn pin(node: &Node, deployment: &Deployment) -> Result<()> {
    set_pin(node, deployment, true).with_context(|| format!("pinning {deployment}"))
}

/// Unpins a deployment and checks that it took. One that is not pinned is left as it is.
///
/// # Errors
/// As [`pin`].
pub fn unpin(node: &Node, deployment: &Deployment) -> Result<()> {
    set_pin(node, deployment, false).with_context(|| format!("unpinning {deployment}"))
}

fn set_pin(node: &Node, deployment: &Deployment, pinned: bool) -> Result<()> {
    let now = find(&deployments(node)?, deployment)?;
    if now.pinned == pinned {
        return Ok(());
    }
    if now.staged {
        return Err(misfit("it is only staged, and ostree cannot pin it before it has been booted"));
    }
    let options: &[&str] = if pinned { &[] } else { &["--unpin"] };
    node.command("ostree")?.args(["admin", "pin"]).args(options).arg(now.index.to_string()).limit(CHANGE).run()?;
    let after = find(&deployments(node)?, deployment)?;
    if after.pinned != pinned {
        bail!("ostree ended well, but the deployment is {} pinned", if pinned { "not" } else { "still" });
    }
    Ok(())
}

/// Removes a deployment that is neither booted nor pinned, and checks that it went and no other did. One that is gone already is fine.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when it is booted or pinned, or when ostree sees no booted deployment at all (it
/// would then remove the running one); when ostree fails, or something else is gone afterwards.
pub fn undeploy(node: &Node, deployment: &Deployment) -> Result<()> {
    undeploy_found(node, deployment).with_context(|| format!("removing the deployment {deployment}"))
}

fn undeploy_found(node: &Node, deployment: &Deployment) -> Result<()> {
    let before = deployments(node)?;
    let Ok(now) = find(&before, deployment) else { return Ok(()) };
    if now.booted || now.pinned {
        return Err(misfit(if now.booted { "it is booted" } else { "it is pinned" }));
    }
    if !before.iter().any(|d| d.booted) {
        return Err(misfit("ostree sees no booted deployment here, so it would not protect the running one"));
    }
    node.command("ostree")?.args(["admin", "undeploy"]).arg(now.index.to_string()).limit(CHANGE).run()?;
    let after = deployments(node)?;
    if find(&after, deployment).is_ok() {
        bail!("ostree ended well, but the deployment is still there");
    }
    if let Some(lost) = before.iter().find(|d| !d.is(deployment) && find(&after, d).is_err()) {
        bail!("the list changed at the same moment, and {lost} is gone as well: look at `ostree admin status`");
    }
    Ok(())
}

fn find(all: &[Deployment], wanted: &Deployment) -> Result<Deployment> {
    all.iter().find(|d| d.is(wanted)).cloned().ok_or_else(|| misfit(format!("there is no deployment {wanted} on this node")))
}
