//! Taking a backup: the steps, in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::options::TakeOptions;
use super::partial::{Finished, Partial, archives, figures, finished, room_for};
use super::preflight::{self, Facts};
use super::procedure::{CHECK, Conditions, ETCD_AND_STATIC_PODS, Event, HOLD_FILES, INSTALL, Journal, MANIFEST, PIN, Phase, Taking, plan};
use super::publish::{finish_interrupted, publish, read_back, seal};
use super::trees::{self, Tree};
use super::{log, pins};
use crate::agent::install;
use crate::archive::{self, Skipped};
use crate::backup::asked_by::AskedBy;
use crate::backup::last_run;
use crate::backup::layout::{LOG, PARTIAL};
use crate::backup::manifest::{Etcd, Manifest};
use crate::backup::names;
use crate::backup::parts::ETCD;
use crate::backup::published::Backup;
use crate::backup::store::{after::link_latest, prune::prune};
use crate::backup::survey::{Survey, survey};
use crate::engine::driver::{Until, Work, drive, with_next};
use crate::error::{AndNext, FailureKind, busy, kind};
use crate::etcd;
use crate::node::{Node, clock::interrupted, dir::RecoveryDir, hold, recovery_mount, timer};
use crate::report::event::{self, About, tell};
use crate::report::{Progress, paths};
use crate::session::{Locked, Session};
use crate::tools::ostree;

/// How many times etcd and the static pods are saved when a roll-out comes in between.
const ATTEMPTS: u32 = 3;

/// How the call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A backup was taken.
    Taken,
    /// The same Job already has its backup: nothing was done.
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
    /// Bytes of content that were taken over from the previous backup.
    pub reused: u64,
    /// How long it took.
    pub seconds: f64,
    /// Sockets, and files that vanished meanwhile: path and why.
    pub skipped: Vec<(String, Skipped)>,
    /// Standby deployments that were removed.
    pub undeployed: Vec<String>,
    /// Older backups that were removed.
    pub pruned: Vec<String>,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// Takes a backup. The caller holds the lock of `dir`, and called [`trees::refuse_dir_inside`] before it made `dir`.
///
/// An interrupted backup is continued; one that does not fit on the disk is given up. Older backups are not touched until the new one is
/// published. How it ended is [noted](last_run).
///
/// # Errors
/// [`FailureKind::Busy`] during a recovery, unless the same Job asks again; [`FailureKind::Usage`] for an invalid name or label; as
/// [`preflight::look`] and [`preflight::space`]; when anything cannot be read or written.
pub fn take(session: &Locked<'_>, options: &TakeOptions) -> Result<Taken> {
    let begun = session.node.clock().now();
    let taken = attempt(session, options);
    let end = taken.as_ref().map(|taken| (taken.outcome, taken.manifest.id.as_str()));
    // That a Job already has its backup is no run.
    if !matches!(end, Ok((Outcome::AlreadyDone, _))) {
        last_run::note(session.node, session.dir, &options.asked_by, begun, end.map(|(_, id)| id));
        tell_end(&taken);
    }
    taken
}

fn tell_end(taken: &Result<Taken>) {
    match taken {
        Ok(Taken { manifest, seconds, warnings, .. }) => {
            let warned = if warnings.is_empty() { String::new() } else { format!(", with {} warnings", warnings.len()) };
            let about = About { backup: Some(&manifest.id), ..About::default() };
            tell(&event::BACKUP_GOOD, about, &format!("backup {} is complete, after {seconds:.0} s{warned}", manifest.id));
        }
        Err(error) => {
            let kind = if kind(error).is_not_now() { &event::BACKUP_NOT_NOW } else { &event::BACKUP_FAILED };
            event::tell_error(kind, About::default(), "taking a backup", error);
        }
    }
}

fn attempt(session: &Locked<'_>, options: &TakeOptions) -> Result<Taken> {
    let Session { node, dir, progress, .. } = **session;
    let began = Instant::now();
    check_options(options)?;
    trees::refuse_dir_inside(node, dir)?;
    let mount = recovery_mount::check(node, dir)?;
    let mut survey = finish_interrupted(session)?;
    if let Some(mut done) = taken_before(node, &survey, &options.asked_by, began) {
        // The attempt that took it may have been killed before it came to them.
        if !dir.in_recovery() && dir.old_stages().is_none() {
            prune_older(session, options, survey, &mut done);
        }
        return Ok(done);
    }
    refuse_during_a_recovery(dir, &options.asked_by)?;
    let old = dir.old_recovery();
    let looked = preflight::look(node, options, &survey, progress);
    let mut facts = looked.map_err(|error| old.iter().cloned().fold(error, anyhow::Error::context))?;
    facts.warnings.extend(mount);
    facts.warnings.extend(old.map(|old| {
        format!("{old}: this backup has the node as it is now; standby deployments and older backups stay until `recovery abandon` or `recovery recover`")
    }));
    let mut partial = partial(node, dir, &mut survey, &facts)?;
    let mut run = Run {
        node,
        dir,
        options,
        progress,
        survey: &survey,
        facts: &facts,
        began,
        etcd: None,
        undone_at: 0,
        sealed: false,
        reused: 0,
        skipped: Vec::new(),
    };
    let backup = match run.make(&mut partial) {
        Ok(backup) => backup,
        Err(error) => return Err(give_up(error, partial, dir)),
    };
    let (reused, skipped) = (run.reused, run.skipped);
    let mut taken = Taken { reused, skipped, warnings: facts.warnings, ..Taken::of(node, &backup, Outcome::Taken, began) };
    survey.add(backup);
    make_room(session, options, survey, &mut taken);
    taken.seconds = began.elapsed().as_secs_f64();
    Ok(taken)
}

/// The unfinished backup that is gone on with, or a new one.
fn partial(node: &Node, dir: &RecoveryDir, survey: &mut Survey, facts: &Facts) -> Result<Partial> {
    let archives: Vec<&str> = facts.trees.first.iter().map(|tree| tree.file).collect();
    let plan = plan(facts.booted.is_some(), &archives);
    let conditions = Conditions::of(node, facts.booted.as_ref().map(|(_, id)| id.clone()))?;
    let release = facts.cluster.as_ref().map(|cluster| cluster.version.as_str());
    Partial::continue_or_begin(node, dir, survey, &plan, &conditions, release)
}

fn check_options(options: &TakeOptions) -> Result<()> {
    options.name.as_deref().map_or(Ok(()), names::check_name)?;
    names::check_labels(&options.labels)?;
    options.keep.check()
}

/// The earlier backup of the same Job or pod: a recovery restores the Job with etcd, and the Job runs and asks again. This takes no lock,
/// because the recovery that brought the Job back holds it; and it needs none, because published backups never change.
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
            "; the pod {uid} asks, and its Job is unknown: if it is the Job of the backup that is being restored, its backup is complete, \
             and its failure does not matter. A Job that passes its UID on in RECOVERY_JOB_UID is recognised in any pod"
        ),
        _ => String::new(),
    };
    Err(busy(format!(
        "a recovery is in progress: no backup is taken before it has ended (`recovery status` shows it, `recovery resume` continues it, \
         `recovery abandon` ends it){hint}"
    )))
}

/// An unfinished backup is kept for the next attempt, unless the disk is full: then it is deleted to make room.
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
    /// When this process began.
    began: Instant,
    /// What was saved of etcd.
    etcd: Option<Etcd>,
    /// The last line of the journal when this process opened it.
    undone_at: u64,
    /// True when manifest and sums are on disk.
    sealed: bool,
    reused: u64,
    skipped: Vec<(String, Skipped)>,
}

impl Work for Run<'_> {
    type Of = Taking;

    fn perform(&mut self, journal: &mut Journal, _: Phase, step: &str) -> Result<Value> {
        let (node, dir, facts) = (self.node, self.dir, self.facts);
        let partial = dir.backups().join(format!("{}{PARTIAL}", journal.reading().subject));
        match step {
            INSTALL => install::install(node, dir)?,
            PIN => facts.booted.as_ref().map_or(Ok(()), |(booted, _)| pins::pin(node, dir, booted))?,
            // Before /etc is archived, so that every deployment restored from this backup has the files.
            HOLD_FILES => {
                let etc = node.real_path("/etc");
                hold::install(&etc, dir).context("putting the kubelet hold and the resume unit into /etc")?;
                timer::install(node, &etc).context("putting the timer of scheduled backups into /etc")?;
            }
            ETCD_AND_STATIC_PODS => return figures(self.etcd_and_static_pods(&partial)?),
            CHECK => read_back(&partial, &finished(journal.reading())?, facts.profile, self.progress)?,
            MANIFEST => {
                let mut files = finished(journal.reading())?;
                files.insert(LOG.to_owned(), self.log(journal, &partial)?);
                seal(&partial, &files, &self.manifest(journal, &files)?)?;
                self.sealed = true;
            }
            archive => {
                let tree = facts.trees.first.iter().find(|tree| tree.file == archive);
                let tree = tree.ok_or_else(|| journal.reading().unknown(&format!("step {step}")))?;
                return figures(BTreeMap::from([self.archive(tree, &partial)?]));
            }
        }
        Ok(Value::Null)
    }

    /// A finished step is always recorded, even when this process was asked to end.
    fn before(&mut self, _: &Journal, event: &Event) -> Result<()> {
        if matches!(event, Event::StepDone(..) | Event::PhaseDone(_) | Event::Finished) { Ok(()) } else { interrupted() }
    }

    fn needs_reboot(&self, _: &Journal, _: Phase) -> Result<bool> {
        Ok(false)
    }

    /// Everything that another process did is done again, except the archives.
    fn undone_at(&self) -> u64 {
        self.undone_at
    }
}

impl Run<'_> {
    /// Does everything that makes the backup.
    fn make(&mut self, partial: &mut Partial) -> Result<Backup> {
        let kept = archives(partial.journal.reading())?;
        preflight::space(self.dir, self.facts, self.survey, kept.values().map(|file| file.stored).sum())?;
        for tree in self.facts.trees.first.iter().filter(|tree| kept.contains_key(tree.file)) {
            self.progress.say(&format!("{} is finished already", tree.shown));
        }
        self.undone_at = partial.journal.reading().last().sequence;
        // Once it is sealed, only the name is missing: it does not even need room for the journal's last lines.
        if let Err(error) = drive(&mut partial.journal, self, Until::End)
            && !self.sealed
        {
            let error = with_next(partial.journal.reading(), &error);
            return Err(if kind(&error) == FailureKind::NoSpace { error.and_next(self.dir.make_room()) } else { error });
        }
        publish(self.dir, &partial.path, &partial.id)
    }

    fn archive(&mut self, tree: &Tree, partial: &Path) -> Result<(String, Finished)> {
        interrupted()?;
        let file = room_for(partial, tree.file)?;
        let previous = self.survey.backups.iter().map(|b| b.file(tree.file)).find(|file| file.is_file());
        let task = self.progress.task(&format!("archiving {}", tree.shown), None);
        let packed = archive::pack(&tree.root, &file, &tree.selection, previous.as_deref(), &|bytes| task.add(bytes))
            .with_context(|| format!("archiving {}", tree.shown))?;
        self.reused += packed.reused;
        let shown = |path: PathBuf| paths::text(&Path::new(tree.shown).join(path));
        self.skipped.extend(packed.skipped.into_iter().map(|(path, why)| (shown(path), why)));
        Ok((tree.file.to_owned(), Finished { bytes: packed.bytes, stored: packed.stored, sha256: packed.sha256 }))
    }

    /// etcd's data and the static pods' files must be of the same moment (the keys of encrypted secrets are among the latter). When a
    /// manifest changes in between, both are saved again.
    fn etcd_and_static_pods(&mut self, partial: &Path) -> Result<BTreeMap<String, Finished>> {
        for _ in 0..ATTEMPTS {
            let before = self.manifests_in_use()?;
            let etcd = self.save_etcd(partial)?;
            let static_pods = self.archive(&self.facts.trees.static_pods, partial)?;
            if self.manifests_in_use()? == before {
                return Ok(BTreeMap::from([etcd, static_pods]));
            }
            self.progress.say("a static pod was rolled out meanwhile: etcd and static pods are taken again");
        }
        Err(busy("static pods were rolled out during each attempt: wait until the operators are at rest (`oc get clusteroperators`)"))
    }

    fn save_etcd(&mut self, partial: &Path) -> Result<(String, Finished)> {
        let file = room_for(partial, ETCD)?;
        // What is counted here is in the snapshot, which begins a moment later.
        let health = etcd::health(&self.facts.endpoint, self.options.wait).context("asking etcd for its state")?;
        let task = self.progress.task("saving etcd", u64::try_from(health.db_size).ok());
        let saved = etcd::save(&self.facts.endpoint, &file, self.options.wait, &|bytes| task.add(bytes)).context("saving etcd")?;
        self.etcd = Some(Etcd { version: Some(health.version), revision: health.revision, keys: Some(health.keys), bytes: saved.bytes });
        Ok((ETCD.to_owned(), Finished { bytes: saved.bytes, stored: saved.stored, sha256: saved.sha256 }))
    }

    /// What identifies the revision of each static pod: its manifest, which names the revision. (File times prove nothing.)
    fn manifests_in_use(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let digest = |path: PathBuf| {
            if !self.node.exists(&path) {
                return Ok(None);
            }
            self.node.read(&path).map(|bytes| Some(Sha256::digest(bytes).to_vec()))
        };
        self.facts.profile.static_pods.iter().map(|pod| digest(self.facts.profile.manifest(pod))).collect()
    }

    /// The log, which is a file of the backup as the others.
    fn log(&self, journal: &Journal, partial: &Path) -> Result<Finished> {
        let log = log::write(partial, journal.reading(), &self.facts.warnings, &self.skipped)?;
        let bytes = log.len() as u64;
        Ok(Finished { bytes, stored: bytes, sha256: HEXLOWER.encode(&Sha256::digest(&log)) })
    }

    /// How long it took so far, where this process does all of it: between two that take a backup, any time may pass.
    fn seconds(&self, journal: &Journal) -> Option<u64> {
        let has_gone_on = self.undone_at > journal.reading().records[0].sequence;
        (!has_gone_on).then(|| self.began.elapsed().as_secs())
    }

    fn manifest(&self, journal: &Journal, files: &BTreeMap<String, Finished>) -> Result<Manifest> {
        Ok(Manifest {
            sequence: self.survey.next_sequence(),
            id: journal.reading().subject.clone(),
            name: self.options.name.clone(),
            labels: self.options.labels.clone(),
            asked_by: self.options.asked_by.clone(),
            taken: journal.reading().beginning.taken,
            seconds: self.seconds(journal),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            profile: self.facts.profile.kind,
            identity: self.facts.identity.clone(),
            boot_id: journal.boot().to_owned(),
            cluster: self.facts.cluster.clone(),
            deployment: self.facts.booted.as_ref().map(|(_, id)| id.clone()),
            etcd: self.etcd.clone().context("etcd was not saved before")?,
            operators: self.facts.operators.clone(),
            images: self.facts.images.clone(),
            certificates_expire: self.facts.certificates_expire.as_ref().map(|(when, _)| *when),
            etc_excludes: self.facts.trees.etc_excludes.clone(),
            managed_files: self.facts.trees.managed_files.clone(),
            runtime_unit: self.facts.runtime_unit.clone(),
            operator_containers: self.facts.operator_containers.clone(),
            management: self.facts.management.clone(),
            warnings: self.facts.warnings.clone(),
            workloads: self.facts.workloads.clone(),
            sizes: files.iter().map(|(name, one)| (name.clone(), one.bytes)).collect(),
        })
    }
}

/// What is done only once the backup is published: the link `latest`, standby deployments, older backups. A failure here is a warning: the
/// backup is there.
fn make_room(session: &Locked<'_>, options: &TakeOptions, survey: Survey, taken: &mut Taken) {
    let Session { node, dir, .. } = **session;
    if let Err(error) = link_latest(dir, survey.backups.first()) {
        taken.warnings.push(format!("{error:#}"));
    }
    // While a recovery is open, even another tool's, everything that it may need stays.
    if dir.old_stages().is_some() {
        return;
    }
    match remove_standbys(node, &mut taken.undeployed) {
        Ok(()) => {}
        Err(error) => taken.warnings.push(format!("standby deployments stay: {error:#}")),
    }
    prune_older(session, options, survey, taken);
}

/// Removes older backups, and what an interrupted deletion has left; a failure is a warning.
fn prune_older(session: &Locked<'_>, options: &TakeOptions, survey: Survey, taken: &mut Taken) {
    match prune(session, survey, &options.keep, Some(&taken.manifest.id)) {
        Ok(removed) => {
            taken.pruned = removed.removed;
            taken.warnings.extend(removed.warnings);
        }
        Err(error) => taken.warnings.push(format!("older backups stay: {error:#}")),
    }
}

/// Removes the deployments behind the booted one in its own stateroot that are not pinned: the upgrade needs the room, mainly in `/boot`.
fn remove_standbys(node: &Node, removed: &mut Vec<String>) -> Result<()> {
    if !ostree::is_ostree(node) {
        return Ok(());
    }
    let deployments = ostree::deployments(node)?;
    let Some(at) = deployments.iter().position(|d| d.booted) else { return Ok(()) };
    let standby = |d: &&ostree::Deployment| !d.pinned && !d.staged && !d.pending && d.stateroot == deployments[at].stateroot;
    // From the last one up, so that the indexes of the others do not shift.
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
