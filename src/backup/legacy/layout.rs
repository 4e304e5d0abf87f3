//! What the old `upgrade-recovery.sh` leaves in the recovery directory:
//!
//! ```text
//! cluster/snapshot_<date>[__POSSIBLY_DIRTY__].db                  etcdctl snapshot save, trailer included
//! cluster/static_kuberesources_<date>[…].tar.gz                   static-pod-resources/<pod>-pod-<revision>/… of the four pods
//! etc/  local/ (before 4.10: usrlocal/)  kubelet/                  copies of /etc, /usr/local, /var/lib/kubelet
//! extras.tgz                                                       managed files elsewhere, relative to /; may be missing
//! etc.exclude.list                                                 rsync patterns that a restore of /etc leaves alone
//! ```
//!
//! It has no checksums: [`check`](super::check) checks what can be checked without them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use sha2::{Digest, Sha256};

use crate::error::damaged;
use crate::node::profile::OPENSHIFT;
use crate::node::{dir::RecoveryDir, mounts};

/// The list of what a restore of `/etc` excludes.
pub(super) const EXCLUDE_LIST: &str = "etc.exclude.list";
/// The archive of its managed files.
pub(super) const EXTRAS_TGZ: &str = "extras.tgz";
const SNAPSHOT: (&str, &str) = ("snapshot_", ".db");
const RESOURCES: (&str, &str) = ("static_kuberesources_", ".tar.gz");

/// An old backup.
#[derive(Debug, Clone)]
pub struct Legacy {
    pub(super) root: PathBuf,
    snapshot: Option<PathBuf>,
    resources: Option<PathBuf>,
    local: Option<PathBuf>,
}

/// The parts of an old backup that has them all.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) snapshot: &'a Path,
    pub(super) resources: &'a Path,
    pub(super) etc: PathBuf,
    pub(super) local: &'a Path,
    pub(super) kubelet: PathBuf,
    /// `None` where no file is managed outside the three trees.
    pub(super) extras: Option<PathBuf>,
    /// The path of the list of excludes; a missing list is empty.
    pub(super) excludes: PathBuf,
}

/// The old backup in `dir`, if there is one, complete or not.
#[must_use]
pub fn find(dir: &RecoveryDir) -> Option<Legacy> {
    let root = dir.path().to_owned();
    if !is_dir(&root.join("cluster")) {
        return None;
    }
    let snapshot = newest(&root.join("cluster"), SNAPSHOT, None);
    let date = snapshot.as_deref().and_then(date);
    let resources = newest(&root.join("cluster"), RESOURCES, date.as_deref()).or_else(|| newest(&root.join("cluster"), RESOURCES, None));
    let local = ["local", "usrlocal"].map(|name| root.join(name)).into_iter().find(|path| is_dir(path));
    Some(Legacy { root, snapshot, resources, local })
}

impl Legacy {
    /// The parts.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) with the part that is missing or is not a file.
    pub(super) fn parts(&self) -> Result<Parts<'_>> {
        let missing = |what: &str| damaged(format!("the backup of upgrade-recovery.sh has no {what}"));
        let (etc, kubelet, extras) = (self.root.join("etc"), self.root.join("kubelet"), self.root.join(EXTRAS_TGZ));
        for path in [&etc, &kubelet] {
            if !is_dir(path) {
                return Err(missing(&format!("{}/", path.file_name().unwrap_or_default().display())));
            }
        }
        let extras = match extras.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            _ if extras.is_file() => Some(extras),
            _ => return Err(damaged(format!("{EXTRAS_TGZ} of the backup of upgrade-recovery.sh is not a regular file"))),
        };
        Ok(Parts {
            snapshot: self.snapshot.as_deref().ok_or_else(|| missing("cluster/snapshot_*.db"))?,
            resources: self.resources.as_deref().ok_or_else(|| missing("cluster/static_kuberesources_*.tar.gz"))?,
            etc,
            local: self.local.as_deref().ok_or_else(|| missing("local/"))?,
            kubelet,
            extras,
            excludes: self.root.join(EXCLUDE_LIST),
        })
    }

    /// When it was taken, from its names (nodes run on UTC), else from the snapshot's file time.
    #[must_use]
    pub fn taken(&self) -> Option<Timestamp> {
        let snapshot = self.snapshot.as_deref()?;
        let named = || DateTime::strptime("%Y-%m-%d_%H%M%S", date(snapshot)?).ok()?.to_zoned(TimeZone::UTC).ok();
        named().map(|time| time.timestamp()).or_else(|| Timestamp::try_from(snapshot.metadata().ok()?.modified().ok()?).ok())
    }

    /// Bytes it takes on disk.
    #[must_use]
    pub fn usage(&self) -> u64 {
        self.files().values().sum()
    }

    /// Bytes of each part on disk, by its name in the directory.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, u64> {
        let parts = ["cluster", "etc", "kubelet", EXTRAS_TGZ].map(|name| self.root.join(name));
        let there = parts.iter().chain(&self.local).filter(|path| path.exists());
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        there.map(|path| (name(path), mounts::usage(path).unwrap_or(0))).collect()
    }

    /// Distinguishes successive old backups in the same place, by names, sizes and times of the files that each run writes anew.
    ///
    /// # Errors
    /// When a part is missing or cannot be looked at.
    pub(super) fn fingerprint(&self) -> Result<String> {
        let parts = self.parts()?;
        let mut hasher = Sha256::new();
        let excludes = Some(parts.excludes.as_path()).filter(|list| list.exists());
        for path in [parts.snapshot, parts.resources].into_iter().chain(excludes).chain(parts.extras.as_deref()) {
            let meta = path.symlink_metadata().with_context(|| format!("looking at {}", path.display()))?;
            hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            hasher.update(format!("\0{}\0{}.{}\0", meta.len(), meta.mtime(), meta.mtime_nsec()));
        }
        Ok(HEXLOWER.encode(&hasher.finalize())[..32].to_owned())
    }
}

/// The revision directory of each of the four pods, in their order: `static-pod-resources/etcd-pod-3`.
pub(super) fn revisions(members: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let revision = |container: &str| {
        let prefix = format!("{container}-pod-");
        let dirs = members.iter().filter_map(|path| {
            let mut parts = path.components();
            let (first, dir) = (parts.next()?.as_os_str(), parts.next()?.as_os_str().to_str()?);
            let number: u64 = dir.strip_prefix(&prefix)?.parse().ok()?;
            (first == "static-pod-resources").then(|| (number, Path::new(first).join(dir)))
        });
        dirs.max().map(|(_, dir)| dir).ok_or_else(|| damaged(format!("there is no revision of the static pod {container} in it")))
    };
    OPENSHIFT.static_pods.iter().map(|pod| revision(pod.container)).collect()
}

/// The last by name of the files `prefix…suffix`, with this date when one is given: the same choice as `cluster-restore.sh`.
fn newest(dir: &Path, (prefix, suffix): (&str, &str), date: Option<&str>) -> Option<PathBuf> {
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let rest = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        rest.is_some_and(|rest| date.is_none_or(|date| rest.starts_with(date))) && path.symlink_metadata().is_ok_and(|meta| meta.is_file())
    };
    std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(fits).max()
}

/// `2024-05-01_120000` of `snapshot_2024-05-01_120000__POSSIBLY_DIRTY__.db`.
fn date(snapshot: &Path) -> Option<String> {
    let name = snapshot.file_name()?.to_str()?.strip_prefix(SNAPSHOT.0)?;
    name.get(..17).map(str::to_owned)
}

pub(super) fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}
