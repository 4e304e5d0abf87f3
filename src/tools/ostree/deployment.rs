//! A deployment, and where it is on disk.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// For a change of the list: it writes the boot loader's entries, and a removal also prunes the repository.
pub(super) const CHANGE: Duration = Duration::from_secs(300);

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

/// True for a stateroot and a checksum as there can be: they are names in the path of a deployment, and must not lead anywhere else.
pub(in crate::tools) fn are_names(stateroot: &str, checksum: &str) -> bool {
    let component = !matches!(stateroot, "" | "." | "..") && !stateroot.contains(['/', '\0']);
    component && checksum.len() >= 40 && checksum.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Marks the deployments next to the booted one as ostree does (`ostree_sysroot_query_deployments_for`): its own printed marks come and
/// go between versions and forms, and rpm-ostree prints none.
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
