//! A deployment, and where it is on disk.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The time limit of a change of the list: ostree then writes boot loader entries, and after a removal it also prunes the repository.
pub(super) const CHANGE: Duration = Duration::from_secs(300);

/// One deployment.
#[expect(clippy::struct_excessive_bools, reason = "they are ostree's own marks, each of which can stand with most others")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Place in boot order, which is the number that `pin` and `undeploy` take; 0 boots next.
    pub index: usize,
    /// Stateroot.
    pub stateroot: String,
    /// Commit checksum, 64 hex digits.
    pub checksum: String,
    /// Serial: distinguishes deployments of the same commit.
    pub serial: u32,
    /// Booted: the one that runs now.
    pub booted: bool,
    /// Staged: finalised at shutdown (a locked one too, once it is unlocked).
    pub staged: bool,
    /// The first one ahead of the booted one in its stateroot, staged or not.
    pub pending: bool,
    /// The first one after the booted one in its stateroot.
    pub rollback: bool,
    /// Pinned: kept when others are cleaned up. `undeploy` itself does not respect it.
    pub pinned: bool,
    /// Prepared for a soft reboot: a plain `systemctl reboot` goes into it, whatever the boot loader would boot next.
    #[serde(default)]
    pub soft_reboot: bool,
    /// Version, when the commit has one.
    pub version: Option<String>,
}

impl Deployment {
    /// True when both are the same deployment, at whatever place in the list (as libostree's `ostree_deployment_equal`).
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (&self.stateroot, &self.checksum, self.serial) == (&other.stateroot, &other.checksum, other.serial)
    }
}

/// The name of a deployment in messages: stateroot, the first twelve digits of the checksum, serial.
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

/// The root of a deployment that is not booted, as a path of the node.
#[must_use]
pub fn root_of(deployment: &Deployment) -> PathBuf {
    let Deployment { stateroot, checksum, serial, .. } = deployment;
    PathBuf::from(format!("{SYSROOT}/ostree/deploy/{stateroot}/deploy/{checksum}.{serial}"))
}

/// The `/etc` of a deployment that is not booted, as a path of the node.
#[must_use]
pub fn etc_of(deployment: &Deployment) -> PathBuf {
    root_of(deployment).join("etc")
}

/// True for a possible stateroot and checksum: they become names in the path of a deployment, and must not lead anywhere else.
pub(in crate::tools) fn are_names(stateroot: &str, checksum: &str) -> bool {
    let component = !matches!(stateroot, "" | "." | "..") && !stateroot.contains(['/', '\0']);
    component && checksum.len() >= 40 && checksum.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Marks the deployments next to the booted one as ostree does (`ostree_sysroot_query_deployments_for`). The marks that ostree prints
/// differ between versions and output forms, and rpm-ostree prints none.
pub(in crate::tools) fn mark_neighbours(all: &mut [Deployment]) {
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
