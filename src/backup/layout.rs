//! What a backup is made of on disk: the names of its files.

use std::path::Path;

use anyhow::{Context, Result};

use crate::error::damaged;

/// `/etc`, without what [`STATIC_PODS`] owns.
pub const ETC: &str = "etc.tar.zst";
/// `/usr/local`.
pub const USR_LOCAL: &str = "usr-local.tar.zst";
/// `/var/lib/kubelet`.
pub const KUBELET: &str = "kubelet.tar.zst";
/// Managed files elsewhere: the tree is `/`. It is missing when there are none.
pub const EXTRAS: &str = "extras.tar.zst";
/// `manifests` and `static-pod-resources` of `/etc/kubernetes`: the tree is `/etc/kubernetes`.
pub const STATIC_PODS: &str = "static-pods.tar.zst";
/// The etcd snapshot.
pub const ETCD: &str = "etcd-snapshot.db.zst";
/// What every backup holds, of either profile and imported ones too: without any of these no node comes back. Only the [`EXTRAS`] may be missing.
pub const MANDATORY: [&str; 5] = [ETC, USR_LOCAL, KUBELET, STATIC_PODS, ETCD];
/// The [`Manifest`].
pub const MANIFEST: &str = "manifest.json";
/// Sums of every other file.
pub const SUMS: &str = "SHA256SUMS";
/// The end of the name of a backup that is being taken.
pub const PARTIAL: &str = ".partial";
/// The end of the name of a backup that is being deleted.
pub const DELETING: &str = ".deleting";
/// The id of what the old script left in the recovery directory.
pub const LEGACY_ID: &str = "upgrade-recovery";

/// Reads a file of the backup in the directory `backup` that every look at it reads, damaged backups too: nothing is waited for, as for the
/// writer of a FIFO, and what is larger than `most` bytes is not read.
pub(super) fn read_small(backup: &Path, name: &str, most: u64) -> Result<Vec<u8>> {
    let path = backup.join(name);
    let meta = path.symlink_metadata().map_err(|e| damaged(format!("it has no readable {name}: {e}")))?;
    if !meta.is_file() {
        return Err(damaged(format!("its {name} is not a regular file")));
    }
    if meta.len() > most {
        return Err(damaged(format!("its {name} has {} bytes; no more than {most} are read", meta.len())));
    }
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// True when what was found is there no more: `delete` and `prune` rename a backup before they remove its files.
pub(super) fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// True of a regular file; links are not followed.
pub(super) fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}
