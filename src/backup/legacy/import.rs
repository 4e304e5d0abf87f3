//! Makes an ordinary backup of the old script's. The original stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layout::{Legacy, Parts, revisions};
use super::{check, excludes, members};
use crate::archive::{self, Archive, Extra, Selection};
use crate::backup::asked_by::AskedBy;
use crate::backup::layout::LEGACY_ID;
use crate::backup::manifest::{Etcd, Manifest};
use crate::backup::parts::{self, ETC, ETCD, EXTRAS, KUBELET, STATIC_PODS, USR_LOCAL};
use crate::backup::published::Backup;
use crate::backup::sums::{Cached, hash};
use crate::backup::survey::Survey;
use crate::backup::take::partial::{Finished, Partial, room_for};
use crate::backup::take::procedure::{self, Conditions};
use crate::backup::take::publish::{publish, read_back, seal};
use crate::backup::take::trees;
use crate::error::{AndNext, damaged, no_space};
use crate::etcd;
use crate::node::certificates::certificates_expire;
use crate::node::identity::Identity;
use crate::node::machine_config::MachineConfig;
use crate::node::profile::{Kind, OPENSHIFT};
use crate::node::selinux::label_like;
use crate::node::{Node, clock::interrupted, durable, mounts};
use crate::session::{Locked, Session};

/// The label that holds the fingerprint of the old backup that was imported.
const FINGERPRINT: &str = "upgrade-recovery/fingerprint";
/// The folder in the unfinished backup in which the parts are put together.
const STAGING: &str = "staging";

/// Imports the old backup, once: later calls find the imported one by the old one's fingerprint. Its sequence is 0, so all backups of the
/// agent's own are newer. It names no deployment, so a recovery goes back to the pinned one.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the old backup is damaged,
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is sound but a part of it is not supported;
/// [`FailureKind::NoSpace`](crate::error::FailureKind::NoSpace) when there is no room for a second copy; when something cannot be read or
/// written. Nothing is left behind then.
pub fn import(session: &Locked<'_>, survey: &Survey, old: &Legacy) -> Result<Backup> {
    let Session { node, dir, progress, .. } = **session;
    let fingerprint = old.fingerprint()?;
    if let Some(done) = survey.backups.iter().find(|b| b.manifest.labels.get(FINGERPRINT) == Some(&fingerprint)) {
        return Ok(done.clone());
    }
    progress.say("importing the backup of upgrade-recovery.sh; it stays as it is");
    check::verify(old, progress)?.accept("the backup of upgrade-recovery.sh")?;
    // Files become smaller when packed, but for a while the snapshot is there twice.
    let (needed, (free, _)) = (old.usage(), mounts::space(dir.path())?);
    if free < needed {
        let shown = dir.shown().display();
        return Err(no_space(format!(
            "importing the backup of upgrade-recovery.sh takes up to {needed} bytes and {shown} has {free} free"
        ))
        .and_next(dir.make_room_here()));
    }
    // The old script knew of no `backups/`.
    durable::create_dir(&dir.backups(), 0o700)?;
    let taken = old.taken().unwrap_or_else(|| node.clock().now());
    let conditions = Conditions::of(node, None)?;
    let partial = Partial::begin(node, dir, &procedure::import(), taken, &conditions, Some(LEGACY_ID))?;
    let parts = old.parts()?;
    let made = Import { session: **session, parts: &parts, partial: &partial, finished: BTreeMap::new() }.make(fingerprint);
    made.or_else(|error| {
        partial.discard(dir)?;
        Err(error.context("importing the backup of upgrade-recovery.sh"))
    })
}

struct Import<'a> {
    session: Session<'a>,
    parts: &'a Parts<'a>,
    partial: &'a Partial,
    finished: BTreeMap<String, Finished>,
}

impl Import<'_> {
    fn make(mut self, fingerprint: String) -> Result<Backup> {
        let (id, partial) = (self.partial.id.clone(), self.partial.path.clone());
        let staging = partial.join(STAGING);
        durable::create_dir(&staging, 0o700)?;
        self.pack(ETC, &self.parts.etc, &parts::without_owned(&OPENSHIFT)?)?;
        self.pack(USR_LOCAL, self.parts.local, &Selection::all())?;
        self.pack(KUBELET, &self.parts.kubelet, &Selection::all())?;
        if let Some(extras) = &self.parts.extras {
            self.extras(extras, &staging.join("extras"))?;
        }
        self.static_pods(&staging)?;
        let etcd = self.etcd()?;
        durable::remove_tree(&staging)?;
        read_back(&partial, &self.finished, OPENSHIFT.kind.profile(), self.session.progress)?;
        seal(&partial, &self.finished, &self.manifest(etcd, fingerprint)?)?;
        publish(self.session.dir, &partial, &id)
    }

    fn pack(&mut self, name: &str, tree: &Path, selection: &Selection) -> Result<()> {
        interrupted()?;
        let file = room_for(&self.partial.path, name)?;
        let task = self.session.progress.task(&format!("importing {name}"), None);
        let packed = archive::pack(tree, &file, selection, None, &|bytes| task.add(bytes)).with_context(|| format!("packing {name}"))?;
        self.finished.insert(name.to_owned(), Finished { bytes: packed.bytes, stored: packed.stored, sha256: packed.sha256 });
        Ok(())
    }

    /// The old script's tar has no labels: each file gets the label of what is now in its place. It names files as the machine
    /// configuration does, also through links (`/opt` is one on an ostree host); a backup names them by their real paths, because its
    /// restore follows no links.
    fn extras(&mut self, tar: &Path, staging: &Path) -> Result<()> {
        let (unpacked, placed) = (staging.join("unpacked"), staging.join("placed"));
        durable::create_dir(staging, 0o700)?;
        durable::create_dir(&placed, 0o700)?;
        let mut names = BTreeSet::new();
        for name in members::unpack(tar, &unpacked)?.files() {
            let there = trees::real(self.session.node, &Path::new("/").join(name.parent().unwrap_or(name)))
                .join(name.file_name().unwrap_or_default());
            label_like(&there, &unpacked.join(name))?;
            let real =
                there.strip_prefix(self.session.node.root()).with_context(|| format!("{} is outside of the node", there.display()))?;
            if let Some(other) = names.iter().find(|other: &&PathBuf| other.starts_with(real) || real.starts_with(other)) {
                return Err(damaged(format!("{} and {} in it have conflicting paths", other.display(), real.display())));
            }
            let to = placed.join(real);
            std::fs::create_dir_all(to.parent().unwrap_or(&placed)).context("making room for the managed files")?;
            std::fs::rename(unpacked.join(name), &to).with_context(|| format!("putting {} in its place", real.display()))?;
            names.insert(real.to_owned());
        }
        if names.is_empty() {
            return Ok(());
        }
        self.pack(EXTRAS, &placed, &Selection::all().only(&names))
    }

    /// The whole of `manifests` and `static-pod-resources` from the copy of `/etc`; and over them the revisions that were saved with the
    /// snapshot, with their manifests.
    fn static_pods(&mut self, staging: &Path) -> Result<()> {
        let (kubernetes, resources) = (staging.join("kubernetes"), staging.join("resources"));
        let (source, selection) = (self.parts.etc.join("kubernetes"), parts::owned(&OPENSHIFT)?);
        let copy = staging.join("kubernetes.tar.zst");
        archive::pack(&source, &copy, &selection, None, &|_| {}).context("copying the static pods")?;
        copy_dir(&source, &kubernetes)?;
        Archive::open(&copy)?.restore(&kubernetes, &Selection::all(), Extra::Delete, &|_| {}).context("copying the static pods")?;
        let revisions = revisions(&members::unpack(self.parts.resources, &resources)?.names)?;
        overlay(&resources, &kubernetes)?;
        for (pod, revision) in OPENSHIFT.static_pods.iter().zip(revisions) {
            let from = kubernetes.join(&revision).join(pod.manifest);
            let to = kubernetes.join("manifests").join(pod.manifest);
            let saved =
                std::fs::read(&from).map_err(|e| damaged(format!("{} of the old backup: {e}", revision.join(pod.manifest).display())))?;
            if std::fs::read(&to).ok().as_ref() != Some(&saved) {
                std::fs::copy(&from, &to).with_context(|| format!("putting the manifest of {} in place", pod.container))?;
                label_like(&kubernetes.join("manifests"), &to)?;
            }
        }
        self.pack(STATIC_PODS, &kubernetes, &selection)
    }

    fn etcd(&mut self) -> Result<Etcd> {
        let from = self.parts.snapshot;
        let status = etcd::status(from, &|_| {}).context("looking into the etcd snapshot")?;
        let file = room_for(&self.partial.path, ETCD)?;
        let compress = || -> Result<u64> {
            let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
            let mut encoder = zstd::Encoder::new(out, 1)?;
            encoder.multithread(2)?;
            encoder.include_checksum(true)?;
            let bytes = std::io::copy(&mut etcd::reader(from)?, &mut encoder)?;
            encoder.finish()?.sync_all()?;
            Ok(bytes)
        };
        let bytes = compress().context("compressing the etcd snapshot")?;
        let sum = hash(&file, Cached::Take, &|_| {})?;
        self.finished.insert(ETCD.to_owned(), Finished { bytes, stored: sum.bytes, sha256: sum.sha256 });
        Ok(Etcd { version: None, revision: status.revision, keys: None, bytes })
    }

    fn manifest(&self, etcd: Etcd, fingerprint: String) -> Result<Manifest> {
        // The copy of /etc is read as if it were a node's.
        let copy = Node::at(self.session.dir.path(), None);
        let expire = certificates_expire(&copy, &OPENSHIFT).unwrap_or_else(|error| {
            self.session.progress.say(&format!("it is unknown when the certificates in it expire: {error:#}"));
            None
        });
        Ok(Manifest {
            sequence: 0,
            id: self.partial.id.clone(),
            name: None,
            labels: BTreeMap::from([(FINGERPRINT.to_owned(), fingerprint)]),
            asked_by: AskedBy::OldScript,
            taken: self.partial.taken(),
            seconds: None,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            profile: Kind::OpenShift,
            identity: Identity::of(&copy, &OPENSHIFT)?,
            boot_id: String::new(),
            cluster: None,
            deployment: None,
            etcd,
            operators: Vec::new(),
            images: Vec::new(),
            certificates_expire: expire.map(|(when, _)| when),
            etc_excludes: excludes::read_list(&self.parts.excludes, &[&self.parts.etc, &self.session.node.real_path("/etc")])?,
            managed_files: MachineConfig::current(&copy)?.map(|config| config.outside_etc()).unwrap_or_default(),
            runtime_unit: None,
            operator_containers: None,
            management: None,
            warnings: Vec::new(),
            workloads: None,
            sizes: self.finished.iter().map(|(name, one)| (name.clone(), one.bytes)).collect(),
        })
    }
}

/// Moves everything new or different below `from` to the same place below `to`.
fn overlay(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let source = entry.with_context(|| format!("listing {}", from.display()))?.path();
        let target = to.join(source.file_name().unwrap_or_default());
        let (new, old) = (source.symlink_metadata().context("looking at a saved file")?, target.symlink_metadata().ok());
        match old {
            Some(old) if new.is_dir() && old.is_dir() => overlay(&source, &target)?,
            Some(old) if new.is_file() && old.is_file() && durable::is_same(&target, &mut File::open(&source)?)? => {}
            old => {
                // A directory must not replace a file, nor a file a directory.
                if old.is_some_and(|old| old.is_dir() || new.is_dir()) {
                    durable::remove_tree(&target)?;
                }
                std::fs::rename(&source, &target).with_context(|| format!("putting {} in place", target.display()))?;
                label_tree(to, &target)?;
            }
        }
    }
    Ok(())
}

/// Makes an empty directory with the owner, mode and label of another.
fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    durable::create_dir(to, 0o700)?;
    let meta = from.metadata().with_context(|| format!("looking at {}", from.display()))?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid())).with_context(|| format!("changing the owner of {}", to.display()))?;
    std::fs::set_permissions(to, Permissions::from_mode(meta.mode() & 0o7777))
        .with_context(|| format!("changing the mode of {}", to.display()))?;
    label_like(from, to)
}

fn label_tree(like: &Path, tree: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(tree) {
        label_like(like, entry.context("walking through the static pods")?.path())?;
    }
    Ok(())
}
