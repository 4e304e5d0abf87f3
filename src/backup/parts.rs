//! The parts of a node that a backup holds, each in a file of its own, and what belongs to which: one owner for each path. There is no
//! other list.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::{Archive, Selection};
use crate::node::profile::Profile;
use crate::node::{hold, timer};

/// `/etc`, without what [`STATIC_PODS`] owns.
pub const ETC: &str = "etc.tar.zst";
/// `/usr/local`.
pub const USR_LOCAL: &str = "usr-local.tar.zst";
/// `/var/lib/kubelet`.
pub const KUBELET: &str = "kubelet.tar.zst";
/// Managed files elsewhere. It is missing when there are none.
pub const EXTRAS: &str = "extras.tar.zst";
/// What of the profile's Kubernetes directory ([`Profile::kubernetes`]) it [owns](Profile::owned).
pub const STATIC_PODS: &str = "static-pods.tar.zst";
/// The etcd snapshot.
pub const ETCD: &str = "etcd-snapshot.db.zst";

/// A part of the node in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its file in the backup.
    pub file: &'static str,
    /// What it is of, as the node calls it: the directory that the names in its archive are relative to.
    pub tree: &'static str,
    /// How much of the tree.
    pub holds: Holds,
    /// Its tree in the layout of upgrade-recovery.sh, where that has one.
    pub legacy: Option<&'static str>,
}

/// How much of a tree a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// All that no other part owns.
    Whole,
    /// The directories that the profile says.
    Owned,
    /// Chosen files, and none at all on some nodes: it may be missing. Without any other part, no node comes back.
    Chosen,
    /// What etcd gives out of it: it is no archive, but a snapshot.
    Snapshot,
}

impl Part {
    /// All, in the order in which an export writes them: each tree after those that it is inside of.
    pub const ALL: [Self; 6] = [
        Self { file: ETC, tree: "/etc", holds: Holds::Whole, legacy: Some("etc") },
        Self { file: STATIC_PODS, tree: "/etc/kubernetes", holds: Holds::Owned, legacy: Some("etc/kubernetes") },
        Self { file: USR_LOCAL, tree: "/usr/local", holds: Holds::Whole, legacy: Some("local") },
        Self { file: KUBELET, tree: "/var/lib/kubelet", holds: Holds::Whole, legacy: Some("kubelet") },
        Self { file: EXTRAS, tree: "/", holds: Holds::Chosen, legacy: None },
        Self { file: ETCD, tree: "/var/lib/etcd", holds: Holds::Snapshot, legacy: None },
    ];

    /// The tree of the part in the file `name`.
    ///
    /// # Errors
    /// When there is no such part.
    pub fn tree_of(name: &str) -> Result<&'static str> {
        Ok(Self::of_file(name).with_context(|| format!("no part of a backup is in {name}"))?.tree)
    }

    /// The part in the file `name`, when it is one.
    #[must_use]
    pub fn of_file(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.file == name)
    }

    /// Those whose tree is archived whole, in the order in which they are.
    pub fn whole() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|part| part.holds == Holds::Whole)
    }

    /// Those that every backup has, of either profile and imported ones too: without any of these no node comes back.
    pub fn mandatory() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|part| part.holds != Holds::Chosen)
    }

    /// The trees of the layout of upgrade-recovery.sh, each with the part that it is of.
    pub fn in_legacy() -> impl Iterator<Item = (Self, &'static str)> {
        Self::ALL.into_iter().filter_map(|part| Some((part, part.legacy?)))
    }
}

/// systemd's marker of `/etc` having been updated: it says something of this boot, not of the configuration
/// (systemd-update-done.service(8)).
const UPDATED: &str = ".updated";
/// Rewrites the API server's manifest when a roll-out fails: never to be started out of a backup.
pub const STARTUP_MONITOR: &str = "manifests/kube-apiserver-startup-monitor-pod.yaml";

/// What of `/etc` its own archive holds: all but what [`STATIC_PODS`] owns.
///
/// # Errors
/// Never for the profiles there are.
pub fn without_owned(profile: &Profile) -> Result<Selection> {
    let kubernetes = Path::new(profile.kubernetes).strip_prefix("/etc").context("the profile's Kubernetes directory is not below /etc")?;
    Selection::all().except(profile.owned.iter().map(|owned| kubernetes.join(owned)))
}

/// What of the profile's Kubernetes directory [`STATIC_PODS`] holds.
///
/// # Errors
/// Never for the profiles there are.
pub fn owned(profile: &Profile) -> Result<Selection> {
    Selection::all().only(profile.owned).except([STARTUP_MONITOR])
}

/// What of `/` the archive of the extras holds: its files, each by its whole path. The directories above them are passed on the way and may
/// be mount points, as `/var` is on an ostree host: a selection that holds those as well stops there.
#[must_use]
pub fn extras_in(archive: &Archive) -> Selection {
    Selection::all().only(extra_files(archive))
}

/// The files in the archive of the extras, relative to `/`.
#[must_use]
pub fn extra_files(archive: &Archive) -> Vec<&Path> {
    let paths: Vec<&Path> = archive.paths().collect();
    // In order, what leads to something is followed by it.
    let leads_on = |at: usize| paths.get(at + 1).is_some_and(|next| next.starts_with(paths[at]));
    (0..paths.len()).filter(|at| !leads_on(*at)).map(|at| paths[at]).collect()
}

/// What no restore of `/etc` touches, on any node.
#[must_use]
pub fn always_excluded() -> [PathBuf; 7] {
    let (service, timer, wanted) = (timer::SERVICE_UNIT, timer::TIMER_UNIT, timer::WANTED);
    [UPDATED, hold::DROP_IN, hold::WIPE_DROP_IN, hold::RESUME_UNIT, service, timer, wanted].map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::profile::{KUBEADM, OPENSHIFT};

    #[test]
    fn the_table_fits_together() {
        for (at, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(Part::of_file(part.file), Some(part), "a file of two parts");
            // An export writes a tree into the one around it, which is there already.
            let inside = |other: &Part| part.legacy.zip(other.legacy).is_some_and(|(own, around)| Path::new(own).starts_with(around));
            assert!(!Part::ALL[at + 1..].iter().any(inside), "{}", part.file);
        }
        let owned: Vec<_> = Part::ALL.into_iter().filter(|part| part.holds == Holds::Owned).map(|part| part.tree).collect();
        assert!(owned == [OPENSHIFT.kubernetes] && owned == [KUBEADM.kubernetes], "{owned:?}");
        assert_eq!(Part::mandatory().count() + 1, Part::ALL.len());
    }
}
