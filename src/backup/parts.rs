//! The parts of a node in a backup, each in a file of its own, and which paths belong to which part: each path has one owner. There is no
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
/// Managed files outside the other trees. It is missing when there are none.
pub const EXTRAS: &str = "extras.tar.zst";
/// The parts of the profile's Kubernetes directory ([`Profile::kubernetes`]) that it [owns](Profile::owned).
pub const STATIC_PODS: &str = "static-pods.tar.zst";
/// The etcd snapshot.
pub const ETCD: &str = "etcd-snapshot.db.zst";

/// A part of the node in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its file in the backup.
    pub file: &'static str,
    /// The part's path on the node: names in its archive are relative to it.
    pub tree: &'static str,
    /// How much of the tree it holds.
    pub holds: Holds,
    /// Its tree in the layout of upgrade-recovery.sh, if that has one.
    pub legacy: Option<&'static str>,
}

/// How much of a tree a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Everything that no other part owns.
    Whole,
    /// The directories that the profile lists.
    Owned,
    /// Chosen files, on some nodes none: this part may be missing. Every other part is needed to bring a node back.
    Chosen,
    /// etcd's data: a snapshot, not an archive.
    Snapshot,
}

impl Part {
    /// All parts, in the order of an export: each tree after the tree that contains it.
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

    /// The part in the file `name`, if it is one.
    #[must_use]
    pub fn of_file(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.file == name)
    }

    /// The parts whose tree is archived whole, in their order.
    pub fn whole() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|part| part.holds == Holds::Whole)
    }

    /// The parts that every backup has, with either profile, imported ones included: none of them can be missing if a node is to come back.
    pub fn mandatory() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|part| part.holds != Holds::Chosen)
    }

    /// The trees in the layout of upgrade-recovery.sh, each with its part.
    pub fn in_legacy() -> impl Iterator<Item = (Self, &'static str)> {
        Self::ALL.into_iter().filter_map(|part| Some((part, part.legacy?)))
    }
}

/// systemd's marker that `/etc` was updated: it concerns this boot, not the configuration (systemd-update-done.service(8)).
const UPDATED: &str = ".updated";
/// Rewrites the API server's manifest when a roll-out fails, so it must never be started from a backup.
pub const STARTUP_MONITOR: &str = "manifests/kube-apiserver-startup-monitor-pod.yaml";

/// The selection of `/etc` for its archive: everything but what [`STATIC_PODS`] owns.
///
/// # Errors
/// Not with the existing profiles.
pub fn without_owned(profile: &Profile) -> Result<Selection> {
    let kubernetes = Path::new(profile.kubernetes).strip_prefix("/etc").context("the profile's Kubernetes directory is not below /etc")?;
    Selection::all().except(profile.owned.iter().map(|owned| kubernetes.join(owned)))
}

/// The selection of the profile's Kubernetes directory for [`STATIC_PODS`].
///
/// # Errors
/// Not with the existing profiles.
pub fn owned(profile: &Profile) -> Result<Selection> {
    Selection::all().only(profile.owned).except([STARTUP_MONITOR])
}

/// The selection of `/` for the extras: their files, each by its whole path. The directories above them are only passed through, because
/// they may be mount points, as `/var` is on an ostree host: a selection that included them would stop there.
#[must_use]
pub fn extras_in(archive: &Archive) -> Selection {
    Selection::all().only(extra_files(archive))
}

/// The files in the archive of the extras, relative to `/`.
#[must_use]
pub fn extra_files(archive: &Archive) -> Vec<&Path> {
    let paths: Vec<&Path> = archive.paths().collect();
    // The list is in order, so a directory comes right before what is in it.
    let leads_on = |at: usize| paths.get(at + 1).is_some_and(|next| next.starts_with(paths[at]));
    (0..paths.len()).filter(|at| !leads_on(*at)).map(|at| paths[at]).collect()
}

/// Paths that no restore of `/etc` touches, on any node.
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
            // An export writes a tree into one that contains it and exists already.
            let inside = |other: &Part| part.legacy.zip(other.legacy).is_some_and(|(own, around)| Path::new(own).starts_with(around));
            assert!(!Part::ALL[at + 1..].iter().any(inside), "{}", part.file);
        }
        let owned: Vec<_> = Part::ALL.into_iter().filter(|part| part.holds == Holds::Owned).map(|part| part.tree).collect();
        assert!(owned == [OPENSHIFT.kubernetes] && owned == [KUBEADM.kubernetes], "{owned:?}");
        assert_eq!(Part::mandatory().count() + 1, Part::ALL.len());
    }
}
