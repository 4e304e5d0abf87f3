//! Taking a backup: the steps, in order.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::options::TakeOptions;
use super::partial::{Conditions, Finished, Partial};
use super::preflight::{self, Facts};
use super::publish::{finish_interrupted, publish};
use super::trees::{self, Tree};
use super::{install, pins};
use crate::archive::{self, Skipped};
use crate::backup::asked_by::AskedBy;
use crate::backup::manifest::{Etcd, Manifest};
use crate::backup::names;
use crate::backup::parts::ETCD;
use crate::backup::published::Backup;
use crate::backup::store::{after::link_latest, prune::check_keep, prune::prune};
use crate::backup::survey::{Survey, survey};
use crate::error::{FailureKind, busy, kind};
use crate::etcd;
use crate::node::{Node, clock::interrupted, dir::RecoveryDir, hold};
use crate::report::{Progress, paths};
use crate::session::{Locked, Session};
use crate::tools::ostree;

/// How often etcd and the static pods are taken when a roll-out gets between them.
const ATTEMPTS: u32 = 3;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A backup was taken.
    Taken,
    /// The same Job has had its backup: there is nothing to do.
    AlreadyDone,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Taken {
    /// How it ended.
    pub outcome: Outcome,
    /// The backup's directory, as the node calls it.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Bytes it takes on disk.
    pub stored: u64,
    /// Bytes of content that were taken over from the backup before.
    pub reused: u64,
    /// How long it took.
    pub seconds: f64,
    /// Sockets, and files that vanished meanwhile: path and why.
    pub skipped: Vec<(String, Skipped)>,
    /// Standby deployments that were removed.
    pub undeployed: Vec<String>,
    /// Older backups that were removed.
    pub pruned: Vec<String>,
    /// What somebody should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Takes a backup. The caller holds the lock of `dir`, and has called [`trees::refuse_dir_inside`] before it made `dir`.
///
/// An interrupted one is continued; one that does not fit on the disk is given up. The backup before is not touched until the new one is
/// published.
///
/// # Errors
/// [`FailureKind::Busy`] during a recovery, unless the same Job asks again; [`FailureKind::Usage`]
/// for a name or label that cannot be; as [`preflight::look`] and [`preflight::space`]; when anything cannot be read or written.
pub fn take(session: &Locked<'_>, options: &TakeOptions) -> Result<Taken> {
    let Session { node, dir, progress, .. } = **session;
    let began = Instant::now();
    check_options(options)?;
    trees::refuse_dir_inside(node, dir)?;
    finish_interrupted(dir)?;
    let survey = survey(dir)?;
    if let Some(done) = taken_before(node, &survey, &options.asked_by, began) {
        return Ok(done);
    }
    refuse_during_a_recovery(dir, &options.asked_by)?;
    let old = dir.old_recovery();
    let looked = preflight::look(node, dir, options, &survey, progress);
    let mut facts = looked.map_err(|error| old.iter().cloned().fold(error, anyhow::Error::context))?;
    facts.warnings.extend(old.map(|old| {
        format!("{old}: this backup has the node as it is now; standby deployments and older backups stay until `recovery abandon` or `recovery recover`")
    }));
    let conditions = Conditions::of(node, facts.booted.as_ref().map(|(_, id)| id.clone()))?;
    let release = facts.cluster.as_ref().map(|cluster| cluster.version.as_str());
    let mut partial = Partial::continue_or_begin(node, dir, &survey, &conditions, release)?;
    let mut run = Run { node, dir, options, progress, survey: &survey, facts: &facts, reused: 0, skipped: Vec::new() };
    let backup = match run.make(&mut partial) {
        Ok(backup) => backup,
        Err(error) => return Err(give_up(error, partial, dir)),
    };
    let (reused, skipped) = (run.reused, run.skipped);
    let mut taken = Taken { reused, skipped, warnings: facts.warnings, ..Taken::of(node, &backup, Outcome::Taken, began) };
    make_room(session, options, &backup, &mut taken);
    taken.seconds = began.elapsed().as_secs_f64();
    Ok(taken)
}

fn check_options(options: &TakeOptions) -> Result<()> {
    options.name.as_deref().map_or(Ok(()), names::check_name)?;
    names::check_labels(&options.labels)?;
    check_keep(options.keep)
}

/// The backup that the same Job or pod has asked for before: a recovery restores the Job with etcd, and it runs and asks again. Published
/// backups never change, so this needs no lock; and it must not take it, because the recovery that brought the Job back has it.
///
/// # Errors
/// When the backups cannot be listed.
pub fn already_taken(session: &Session<'_>, asked_by: &AskedBy) -> Result<Option<Taken>> {
    let Session { node, dir, .. } = *session;
    let began = Instant::now();
    if !asked_by.asks_once() || !dir.backups().exists() {
        return Ok(None);
    }
    Ok(taken_before(node, &survey(dir)?, asked_by, began))
}

fn taken_before(node: &Node, survey: &Survey, asked_by: &AskedBy, began: Instant) -> Option<Taken> {
    if !asked_by.asks_once() {
        return None;
    }
    let done = survey.backups.iter().find(|backup| backup.manifest.asked_by == *asked_by);
    done.map(|backup| Taken::of(node, backup, Outcome::AlreadyDone, began))
}

fn refuse_during_a_recovery(dir: &RecoveryDir, asked_by: &AskedBy) -> Result<()> {
    if !dir.in_recovery() {
        return Ok(());
    }
    let hint = match asked_by {
        AskedBy::Pod(uid) => format!(
            "; the pod {uid} asks, and nothing says of which Job it is: if it is that of the backup that is restored, its backup is there, and its failure \
             means nothing. A Job that passes its UID on in RECOVERY_JOB_UID is known again in whatever pod"
        ),
        _ => String::new(),
    };
    Err(busy(format!(
        "a recovery is in progress: no backup is taken before it has ended (`recovery status` shows it, `recovery resume` continues it, \
         `recovery abandon` ends it){hint}"
    )))
}

/// An unfinished backup stays for the next attempt, unless the disk is full: then it is deleted, to leave room.
fn give_up(error: anyhow::Error, partial: Partial, dir: &RecoveryDir) -> anyhow::Error {
    if kind(&error) != FailureKind::NoSpace {
        return error;
    }
    match partial.discard(dir) {
        Ok(()) => error.context("the unfinished backup was deleted again, older ones are untouched"),
        Err(second) => error.context(format!("the unfinished backup could not be deleted ({second:#})")),
    }
}

/// One attempt at a backup.
struct Run<'a> {
    node: &'a Node,
    dir: &'a RecoveryDir,
    options: &'a TakeOptions,
    progress: &'a Progress,
    survey: &'a Survey,
    facts: &'a Facts,
    reused: u64,
    skipped: Vec<(String, Skipped)>,
}

impl Run<'_> {
    /// The steps that make the backup.
    fn make(&mut self, partial: &mut Partial) -> Result<Backup> {
        preflight::space(self.dir, self.facts, self.survey, partial)?;
        install::install(self.node, self.dir)?;
        if let Some((booted, _)) = &self.facts.booted {
            pins::pin(self.node, self.dir, booted)?;
        }
        // Before /etc is archived: every deployment that is restored from here has the files.
        hold::install(&self.node.real_path("/etc"), self.dir).context("putting the kubelet hold and the resume unit into /etc")?;
        for tree in &self.facts.trees.first {
            self.archive(tree, partial)?;
        }
        let etcd = self.etcd_and_static_pods(partial)?;
        interrupted()?;
        publish(self.dir, partial, self.manifest(partial, etcd)?, self.progress)
    }

    fn archive(&mut self, tree: &Tree, partial: &mut Partial) -> Result<()> {
        interrupted()?;
        if partial.finished().contains_key(tree.file) {
            self.progress.say(&format!("{} is finished already", tree.shown));
            return Ok(());
        }
        let file = partial.room_for(tree.file)?;
        let previous = self.survey.backups.iter().map(|b| b.file(tree.file)).find(|file| file.is_file());
        let task = self.progress.task(&format!("archiving {}", tree.shown), None);
        let packed = archive::pack(&tree.root, &file, &tree.selection, previous.as_deref(), &|bytes| task.add(bytes))
            .with_context(|| format!("archiving {}", tree.shown))?;
        self.reused += packed.reused;
        let shown = |path: PathBuf| paths::text(&Path::new(tree.shown).join(path));
        self.skipped.extend(packed.skipped.into_iter().map(|(path, why)| (shown(path), why)));
        partial.finish(tree.file, Finished { bytes: packed.bytes, stored: packed.stored, sha256: packed.sha256 })
    }

    /// etcd's data and what is on disk of the static pods must be of one moment (the keys of encrypted secrets are among the latter): when
    /// a manifest changes in between, both are taken again.
    fn etcd_and_static_pods(&mut self, partial: &mut Partial) -> Result<Etcd> {
        for _ in 0..ATTEMPTS {
            let before = self.manifests_in_use()?;
            let etcd = self.save_etcd(partial)?;
            let tree = self.facts.trees.static_pods.clone();
            // An archive from the attempt before is of another moment than this snapshot.
            partial.room_for(tree.file)?;
            self.archive(&tree, partial)?;
            if self.manifests_in_use()? == before {
                return Ok(etcd);
            }
            self.progress.say("a static pod was rolled out meanwhile: etcd and static pods are taken again");
        }
        Err(busy("static pods are being rolled out again and again: wait until the operators are at rest (`oc get clusteroperators`)"))
    }

    fn save_etcd(&self, partial: &mut Partial) -> Result<Etcd> {
        let file = partial.room_for(ETCD)?;
        // What is counted here is in the snapshot, which is begun a moment later.
        let health = etcd::health(&self.facts.endpoint, self.options.wait).context("asking etcd how it is")?;
        let task = self.progress.task("saving etcd", u64::try_from(health.db_size).ok());
        let saved = etcd::save(&self.facts.endpoint, &file, self.options.wait, &|bytes| task.add(bytes)).context("saving etcd")?;
        partial.finish(ETCD, Finished { bytes: saved.bytes, stored: saved.stored, sha256: saved.sha256 })?;
        Ok(Etcd { version: Some(health.version), revision: health.revision, keys: Some(health.keys), bytes: saved.bytes })
    }

    /// What identifies the revision of each static pod: its manifest, which names it. (Times of files say nothing.)
    fn manifests_in_use(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let digest = |path: PathBuf| {
            if !self.node.exists(&path) {
                return Ok(None);
            }
            self.node.read(&path).map(|bytes| Some(Sha256::digest(bytes).to_vec()))
        };
        self.facts.profile.static_pods.iter().map(|pod| digest(self.facts.profile.manifest(pod))).collect()
    }

    fn manifest(&self, partial: &Partial, etcd: Etcd) -> Result<Manifest> {
        Ok(Manifest {
            sequence: self.survey.next_sequence(),
            id: partial.id.clone(),
            name: self.options.name.clone(),
            labels: self.options.labels.clone(),
            asked_by: self.options.asked_by.clone(),
            taken: partial.taken(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            profile: self.facts.profile.kind,
            identity: self.facts.identity.clone(),
            boot_id: self.node.clock().boot_id()?,
            cluster: self.facts.cluster.clone(),
            deployment: self.facts.booted.as_ref().map(|(_, id)| id.clone()),
            etcd,
            operators: self.facts.operators.clone(),
            images: self.facts.images.clone(),
            certificates_expire: self.facts.certificates_expire.as_ref().map(|(when, _)| *when),
            etc_excludes: self.facts.trees.etc_excludes.clone(),
            managed_files: self.facts.trees.managed_files.clone(),
            runtime_unit: self.facts.runtime_unit.clone(),
            operator_containers: self.facts.operator_containers.clone(),
            sizes: partial.finished().iter().map(|(name, finished)| (name.clone(), finished.bytes)).collect(),
        })
    }
}

/// What is done only once the backup is published: the link `latest`, standby deployments, older backups. A failure here is a warning: the
/// backup is there.
fn make_room(session: &Locked<'_>, options: &TakeOptions, backup: &Backup, taken: &mut Taken) {
    let Session { node, dir, .. } = **session;
    if let Err(error) = link_latest(dir, Some(backup)) {
        taken.warnings.push(format!("{error:#}"));
    }
    // With a recovery open, even another tool's, what it may need stays.
    if dir.old_stages().is_some() {
        return;
    }
    match remove_standbys(node, &mut taken.undeployed) {
        Ok(()) => {}
        Err(error) => taken.warnings.push(format!("standby deployments stay: {error:#}")),
    }
    match prune(session, options.keep, Some(&backup.id)) {
        Ok(removed) => {
            taken.pruned = removed.removed;
            taken.warnings.extend(removed.warnings);
        }
        Err(error) => taken.warnings.push(format!("older backups stay: {error:#}")),
    }
}

/// Removes the deployments behind the booted one in its own stateroot that are not pinned: the upgrade needs the room, in `/boot` above
/// all.
fn remove_standbys(node: &Node, removed: &mut Vec<String>) -> Result<()> {
    if !ostree::is_ostree(node) {
        return Ok(());
    }
    let deployments = ostree::deployments(node)?;
    let Some(at) = deployments.iter().position(|d| d.booted) else { return Ok(()) };
    let standby = |d: &&ostree::Deployment| !d.pinned && !d.staged && !d.pending && d.stateroot == deployments[at].stateroot;
    // From the last one up: the indexes of those before do not shift.
    for deployment in deployments[at + 1..].iter().rev().filter(standby) {
        ostree::undeploy(node, deployment)?;
        removed.push(format!("{}.{}", deployment.checksum, deployment.serial));
    }
    Ok(())
}

impl Taken {
    fn of(node: &Node, backup: &Backup, outcome: Outcome, began: Instant) -> Self {
        let stored = backup.manifest.sizes.keys().filter_map(|name| backup.file(name).metadata().ok()).map(|meta| meta.len()).sum();
        Self {
            outcome,
            path: node.shown(&backup.path),
            manifest: backup.manifest.clone(),
            stored,
            reused: 0,
            seconds: began.elapsed().as_secs_f64(),
            skipped: Vec::new(),
            undeployed: Vec::new(),
            pruned: Vec::new(),
            warnings: Vec::new(),
        }
    }
}
