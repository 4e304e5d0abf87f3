//! Backups: what one is on disk, and how one is taken, checked, listed, pruned, exported, and imported from the old script.
//!
//! Reading order: this page; [`names`] (what one may be called); [`manifest`] (what a backup says of itself); [`mod@take`] (the steps in order:
//! [`asked_by`], [`preflight`], [`trees`] with [`tmpfiles`], [`partial`], [`install`], [`pins`], [`publish`]); [`mod@verify`]; [`store`] (list, choose,
//! delete, prune); [`legacy`], [`import`], [`mod@export`] (the old script's layout) with `excludes`.
//!
//! Whoever calls something here that changes the recovery directory holds its [lock](crate::node::dir::RecoveryDir::lock).

pub mod asked_by;
mod excludes;
pub mod export;
pub mod import;
pub mod install;
pub mod legacy;
pub mod manifest;
pub mod names;
pub mod partial;
pub mod pins;
pub mod preflight;
pub mod publish;
pub mod store;
pub mod take;
pub mod tmpfiles;
pub mod trees;
pub mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use export::{export, export_cluster};
use manifest::Manifest;
pub use store::choose;
pub use take::take;
pub use verify::verify;

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

/// A published backup.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Its id: the name of its directory.
    pub id: String,
    /// Its directory.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Backup {
    /// One of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Reads a file of the backup in the directory `backup` that every look at it reads, damaged backups too: nothing is waited for, as for the
/// writer of a FIFO, and what is larger than `most` bytes is not read.
fn read_small(backup: &Path, name: &str, most: u64) -> Result<Vec<u8>> {
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
