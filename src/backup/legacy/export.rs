//! Writes a backup in the old script's layout, for `upgrade-recovery.sh`, `cluster-restore.sh` and people with a shell: see
//! [`layout`](super::layout).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use jiff::tz::TimeZone;
use serde::Serialize;

use super::excludes;
use super::layout::{EXCLUDE_LIST, EXTRAS_TGZ};
use crate::archive::{Archive, Extra, Selection};
use crate::backup::parts::{ETCD, EXTRAS, Part, STATIC_PODS};
use crate::backup::published::Backup;
use crate::backup::verify::verify;
use crate::error::{AndNext, by_hand, damaged, misfit, usage};
use crate::etcd;
use crate::node::profile::{Kind, OPENSHIFT, StaticPod};
use crate::node::static_pod::revision_in_use;
use crate::node::{Node, clock::interrupted, durable};
use crate::report::{Progress, paths};

/// What was exported.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// The backup.
    pub id: String,
    /// The directory.
    #[serde(serialize_with = "paths::one")]
    pub to: PathBuf,
    /// True when everything was there already: an earlier call had finished.
    pub already: bool,
}

/// Writes `backup` into the directory `to`, which must be empty or not exist, in the old script's layout: its own directories have mode
/// 0700 and its own files 0600. An export that was interrupted there begins again; a complete one of this backup is left as it is.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when `to` holds something else,
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) for a backup of a kubeadm node,
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the backup is damaged; when something cannot be written. A failure
/// leaves nothing behind.
pub fn export(backup: &Backup, to: &Path, progress: &Progress) -> Result<Exported> {
    if backup.manifest.profile != Kind::OpenShift {
        return Err(misfit("the layout of upgrade-recovery.sh is that of an OpenShift node; this backup is of a kubeadm one"));
    }
    let write = Export { backup, to, progress };
    let exported = |already| Exported { id: backup.id.clone(), to: to.to_owned(), already };
    if to.join(UNFINISHED).symlink_metadata().is_ok() {
        write.clear()?;
    }
    if std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        let is_whole = write.is_whole();
        interrupted()?;
        if is_whole.unwrap_or(false) {
            return Ok(exported(true));
        }
        return Err(usage(format!("{} is not empty, and what is in it is not a whole export of the backup {}", to.display(), backup.id))
            .and_next(by_hand("name another directory, or empty this one")));
    }
    verify(backup, false, progress)?;
    durable::create_dir(to, 0o700)?;
    let all = || -> Result<()> {
        private(&to.join(UNFINISHED))?.sync_all()?;
        durable::sync_dir(to)?;
        write.all()?;
        durable::remove(&to.join(UNFINISHED))
    };
    all().or_else(|error| {
        write.clear()?;
        Err(error.context(format!("exporting the backup {}", backup.id)))
    })?;
    Ok(exported(false))
}

/// As [`export`], but only what `cluster-restore.sh` reads: `cluster/`, and the static pods from which it is made.
///
/// # Errors
/// As [`export`].
pub fn export_cluster(backup: &Backup, to: &Path, progress: &Progress) -> Result<()> {
    durable::create_dir(to, 0o700)?;
    durable::create_dir(&to.join("etc"), 0o700)?;
    let write = Export { backup, to, progress };
    write.tree(STATIC_PODS, "etc/kubernetes")?;
    write.cluster()
}

const EXTRAS_STAGING: &str = ".extras";
/// Exists until the export is complete: what is beside it is an interrupted export of the agent's, and belongs to nobody else.
const UNFINISHED: &str = ".unfinished-export";
struct Export<'a> {
    backup: &'a Backup,
    to: &'a Path,
    progress: &'a Progress,
}

impl Export<'_> {
    fn all(&self) -> Result<()> {
        Part::in_legacy().try_for_each(|(part, place)| self.tree(part.file, place))?;
        self.cluster()?;
        self.extras()?;
        let list = excludes::to_list(&self.backup.manifest.etc_excludes);
        durable::write(&self.to.join(EXCLUDE_LIST), list.as_bytes(), 0o600)?;
        durable::sync_file_system(self.to)
    }

    /// Removes what an export writes; the mark of an unfinished export goes last.
    fn clear(&self) -> Result<()> {
        // Left where the list was being written.
        durable::remove(&durable::beside(&self.to.join(EXCLUDE_LIST))?)?;
        let left = ["cluster", "etc", "local", "kubelet", EXTRAS_TGZ, EXCLUDE_LIST, EXTRAS_STAGING, UNFINISHED];
        left.iter().try_for_each(|name| durable::remove_tree(&self.to.join(name)))
    }

    /// True when everything that an export of this backup writes is there, with the same content. The two `.tar.gz` are only read to their
    /// end: their bytes depend on the order in which a file system lists its files.
    fn is_whole(&self) -> Result<bool> {
        for (part, place) in Part::in_legacy() {
            let (archive, tree) = (Archive::open(&self.backup.file(part.file))?, self.to.join(place));
            if !tree.is_dir() || !archive.compare(&tree, &Selection::all(), Extra::Keep, &|_| {})?.0.is_empty() {
                return Ok(false);
            }
        }
        let mut snapshot = etcd::reader(&self.backup.file(ETCD))?;
        let list = excludes::to_list(&self.backup.manifest.etc_excludes);
        let mut tars = vec![self.in_cluster("static_kuberesources", "tar.gz")];
        tars.extend(self.backup.file(EXTRAS).exists().then(|| self.to.join(EXTRAS_TGZ)));
        for tar in tars {
            std::io::copy(&mut flate2::read::GzDecoder::new(File::open(tar)?), &mut std::io::sink())?;
        }
        Ok(durable::is_same(&self.in_cluster("snapshot", "db"), &mut snapshot)?
            && durable::is_same(&self.to.join(EXCLUDE_LIST), &mut list.as_bytes())?)
    }

    /// A file in `cluster/`, with the time in its name as in the old script.
    fn in_cluster(&self, what: &str, extension: &str) -> PathBuf {
        let date = self.backup.manifest.taken.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d_%H%M%S");
        self.to.join("cluster").join(format!("{what}_{date}.{extension}"))
    }

    fn tree(&self, name: &str, place: &str) -> Result<()> {
        interrupted()?;
        let (archive, tree) = (Archive::open(&self.backup.file(name))?, self.to.join(place));
        durable::create_dir(&tree, 0o700)?;
        let task = self.progress.task(&format!("exporting {place}"), Some(archive.bytes()));
        // `etc/kubernetes` already has files of `etc`.
        archive.restore(&tree, &Selection::all(), Extra::Keep, &|bytes| task.add(bytes)).with_context(|| format!("unpacking {name}"))?;
        Ok(())
    }

    fn cluster(&self) -> Result<()> {
        durable::create_dir(&self.to.join("cluster"), 0o700)?;
        let snapshot = || -> Result<()> {
            let mut reader = etcd::reader(&self.backup.file(ETCD))?;
            let mut file = private(&self.in_cluster("snapshot", "db"))?;
            std::io::copy(&mut reader, &mut file)?;
            Ok(file.sync_all()?)
        };
        snapshot().context("unpacking the etcd snapshot")?;
        tar_gz(&self.in_cluster("static_kuberesources", "tar.gz"), |tar| {
            for (container, revision) in self.revisions()? {
                let name = Path::new("static-pod-resources").join(format!("{container}-pod-{revision}"));
                let from = self.to.join("etc/kubernetes").join(&name);
                tar.append_dir_all(&name, &from).with_context(|| format!("packing {}", name.display()))?;
            }
            Ok(())
        })
    }

    /// Container and revision in use of each static pod: from the manifest's label, never from file times.
    fn revisions(&self) -> Result<Vec<(&'static str, u32)>> {
        let exported = Node::at(self.to, None);
        let revision = |pod: &StaticPod| -> Result<u32> {
            let none = || damaged(format!("the manifest {} of the backup does not say which revision it is", pod.manifest));
            revision_in_use(&exported, &OPENSHIFT, pod)?.ok_or_else(none)
        };
        OPENSHIFT.static_pods.iter().map(|pod| Ok((pod.container, revision(pod)?))).collect()
    }

    fn extras(&self) -> Result<()> {
        let file = self.backup.file(EXTRAS);
        if !file.exists() {
            return Ok(());
        }
        self.tree(EXTRAS, EXTRAS_STAGING)?;
        let (staging, archive) = (self.to.join(EXTRAS_STAGING), Archive::open(&file)?);
        let is_dir = |path: &Path| staging.join(path).symlink_metadata().is_ok_and(|meta| meta.is_dir());
        tar_gz(&self.to.join(EXTRAS_TGZ), |tar| {
            for path in archive.paths().filter(|path| !is_dir(path)) {
                tar.append_path_with_name(staging.join(path), path).with_context(|| format!("packing {}", path.display()))?;
            }
            Ok(())
        })?;
        durable::remove_tree(&staging)
    }
}

fn tar_gz(path: &Path, fill: impl FnOnce(&mut tar::Builder<GzEncoder<File>>) -> Result<()>) -> Result<()> {
    let write = || -> Result<()> {
        let mut tar = tar::Builder::new(GzEncoder::new(private(path)?, Compression::default()));
        tar.follow_symlinks(false);
        fill(&mut tar)?;
        Ok(tar.into_inner()?.finish()?.sync_all()?)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

fn private(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(|| format!("creating {}", path.display()))
}
