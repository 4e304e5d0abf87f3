//! What is looked at before a recovery begins. It changes nothing, and finds what would stop the recovery half-way.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::modifier::{self, Looked, ModifierReport};
use super::platform::table::{self, Action, PlatformReport, Target, When};
use super::procedure::{Asked, EtcdRestore, Plan};
use super::restore_files;
use super::resume::CLUSTER_RESTORE;
use super::run::KUBELET_UNIT;
use super::undo::Undo;
use crate::agent::install;
use crate::archive::{Archive, Change, Counts, Extra, Selection};
use crate::backup::manifest::{Image, Manifest};
use crate::backup::parts::{self, Holds, Part};
use crate::backup::{self, Backup, ETC, EXTRAS, USR_LOCAL};
use crate::error::{AndNext, Failure, FailureKind, Next, kind, misfit, no_space, run, together, unsupported};
use crate::node::dir::RecoveryDir;
use crate::node::identity::Identity;
use crate::node::profile::{Kind, Profile};
use crate::node::{Node, hold, mounts, recovery_mount};
use crate::report::Progress;
use crate::session::Session;
use crate::tools::needs::{self, Need, UnitFile};
use crate::tools::{crictl, ostree, systemctl};

/// How long a clock that is earlier than the backup is given to be set: time synchronisation often comes minutes after the network.
const CLOCK_WAIT: Duration = Duration::from_secs(30);
/// Kept free on every file system beyond what the restore is known to need, bytes.
const SPARE: u64 = 64 << 20;
/// What a recovery writes into its own directory besides the agent: journal, `undo.json`, report. Bytes.
const OWN: u64 = 1 << 20;

/// What a recovery is asked to do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Id or name of the backup; the newest unless given.
    pub backup: Option<String>,
    /// Choices that hold for the whole run.
    pub asked: Asked,
    /// Where it begins.
    pub from: FirstPhase,
    /// Compare every tree and list what would change.
    pub compare: bool,
    /// Rules of a resource modifier, by which objects are patched before anybody can read them.
    pub rules: Option<String>,
}

/// Where a recovery begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FirstPhase {
    /// With the deployment, when the table asks for something there.
    Platform,
    /// With the files: the deployment must be right already.
    #[default]
    Files,
}

/// What a recovery found and would do, for people to agree to.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The backup.
    pub backup: String,
    /// When it was taken.
    pub taken: Timestamp,
    /// The release it belongs to.
    pub release: Option<String>,
    /// The platform table.
    pub platform: PlatformReport,
    /// What is wrong and gone on with.
    pub warnings: Vec<String>,
    /// The unit that the container runtime is started with, once everything is restored.
    pub runtime_unit: String,
    /// Images that were in use, or pinned, and are not on the node: where they are needed, they have to be pulled.
    pub missing_images: Vec<Image>,
    /// How long checking the backup took, seconds.
    pub verified_seconds: f64,
    /// The open run this goes on with.
    pub continues: Option<String>,
    /// The open run whose place this takes.
    pub replaces: Option<String>,
    /// What would change, tree by tree, when that was asked for.
    pub changes: Vec<TreeChanges>,
    /// What the rules of the resource modifier would change, when there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modifier: Option<ModifierReport>,
    /// The phases and their steps.
    pub phases: Plan,
}

/// What a restore would change in one tree.
#[derive(Debug, Clone, Serialize)]
pub struct TreeChanges {
    /// The tree.
    pub tree: String,
    /// Each change.
    pub changes: Vec<Change>,
    /// Their numbers.
    pub counts: Counts,
}

/// Whether the node still has to show that it is the backup's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdentityCheck {
    /// It has to.
    Needed,
    /// It has shown it to the run that is restarted, which may have taken away what the identity is read from.
    Passed,
}

/// Looks at the backup and the node.
///
/// # Errors
/// Those of choosing and verifying the backup; [`FailureKind::Unsupported`] for rules where etcd is restored by the cluster's own
/// script; [`FailureKind::Misfit`] when it is another node's or the target
/// does not boot next (unless forced), or when etcd is to be restored by a script that is not there; [`FailureKind::NoSpace`].
pub(super) fn look(session: &Session<'_>, backup: &Backup, options: &Options, check: IdentityCheck) -> Result<PlanReport> {
    let Session { node, dir, progress, .. } = *session;
    let manifest = &backup.manifest;
    let profile = manifest.profile.profile();
    let force = options.asked.force;
    if options.rules.is_some() && options.asked.etcd == EtcdRestore::ClusterRestore {
        return Err(unsupported(
            "the cluster's own restore starts the API server by itself, so that objects cannot be patched before it runs: leave --etcd-restore away",
        ));
    }
    hold::check_owner(node, dir)?;
    let mount = recovery_mount::check(node, dir)?;
    let begun = node.clock().since_boot();
    backup::verify(backup, false, progress).with_context(|| format!("checking backup {}", backup.id))?;
    let verified_seconds = node.clock().since_boot().saturating_sub(begun).as_secs_f64();
    let mut warnings = identity(node, manifest, profile, force, check)?;
    warnings.extend(dates(node, manifest, progress)?);
    let target = Target::of(manifest.deployment.as_ref());
    let platform = table::report(node, target.clone())?;
    let action = match (&platform.action, options.from) {
        (Action::Nothing, _) => Action::Nothing,
        (Action::Drop { .. } | Action::RollBack { .. } | Action::Reboot { .. }, FirstPhase::Platform) => platform.action.clone(),
        _ => {
            warnings.push(platform.refused(force, When::Before)?);
            Action::Nothing
        }
    };
    warnings.extend(platform.soft_reboot.clone());
    let deployment = other_deployment(&action, &target, &platform.deployments);
    let runtime_unit = needs(node, dir, backup, deployment.as_deref(), &needed_programs(&action, options.asked))?;
    warnings.extend(programs(node).context("looking whether the programs are there that a recovery needs: nothing was changed")?);
    warnings.extend(mount);
    warnings.extend(comes_back(node, dir)?);
    stays_in_fstab(node, dir, backup)?;
    space(node, dir, backup, profile)?;
    if options.asked.etcd == EtcdRestore::ClusterRestore {
        has_cluster_restore(backup, profile)?;
    }
    let missing_images = missing_images(node, manifest, &mut warnings);
    let changes = if options.compare { compare(session, profile, backup)? } else { Vec::new() };
    Ok(PlanReport {
        backup: backup.id.clone(),
        taken: manifest.taken,
        release: manifest.cluster.as_ref().map(|c| c.version.clone()),
        phases: super::steps::plan(profile, &action, options.rules.is_some()),
        platform,
        warnings,
        runtime_unit,
        missing_images,
        verified_seconds,
        continues: None,
        replaces: None,
        changes,
        modifier: None,
    })
}

/// Runs the rules of the resource modifier on the backup, and looks for an upgrade that the backup's cluster would begin again.
///
/// # Errors
/// Those of [`modifier::look`]: they are about the rules, not about the backup.
pub(super) fn run_rules(session: &Session<'_>, backup: &Backup, options: &Options, report: &mut PlanReport) -> Result<()> {
    // Of a kubeadm cluster without k0rdent nothing is asked by an object.
    if options.rules.is_some() || backup.manifest.profile.profile().is_openshift() || backup.manifest.management.is_some() {
        let Looked { modifier, warnings } = modifier::look(backup, options.rules.as_deref(), session.progress)?;
        report.modifier = modifier;
        report.warnings.extend(warnings);
    }
    Ok(())
}

/// Whether this is the backup's node. It works with the API down.
fn identity(node: &Node, manifest: &Manifest, profile: &Profile, force: bool, check: IdentityCheck) -> Result<Vec<String>> {
    let differences = match Identity::of(node, profile) {
        Ok(now) => manifest.identity.differences(&now),
        Err(error) => vec![format!("the node does not say who it is: {error:#}")],
    };
    if differences.is_empty() || force || check == IdentityCheck::Passed {
        return Ok(differences);
    }
    Err(misfit(format!("this node is not the one that backup {} was taken of: {}", manifest.id, differences.join("; ")))
        .and_next(run("recovery list", "shows the backups, --force restores it all the same")))
}

/// Expired certificates and a clock before the backup are warnings: OpenShift can renew, dead clocks happen.
fn dates(node: &Node, manifest: &Manifest, progress: &Progress) -> Result<Vec<String>> {
    let clock = node.clock();
    if clock.now() < manifest.taken {
        let task = progress.task("waiting for the clock to be set", None);
        let deadline = clock.deadline(CLOCK_WAIT);
        while clock.now() < manifest.taken && !deadline.passed() {
            clock.sleep(Duration::from_secs(1))?;
        }
        drop(task);
    }
    Ok(date_warnings(clock.now(), manifest))
}

fn date_warnings(now: Timestamp, manifest: &Manifest) -> Vec<String> {
    let mut warnings = Vec::new();
    if now < manifest.taken {
        warnings.push(format!(
            "the clock says {now:.0}, before the backup was taken ({:.0}): certificates may count as not yet valid",
            manifest.taken
        ));
    }
    if let Some(expired) = manifest.certificates_expire.filter(|expire| *expire <= now) {
        warnings
            .push(format!("the first of the backup's certificates expired on {expired:.0}: the cluster has to renew them before it works"));
    }
    warnings
}

/// The programs that the platform phase and the cluster's own restore run, beyond those that every recovery runs.
fn needed_programs(action: &Action, asked: Asked) -> Vec<&'static str> {
    let rpm_ostree = matches!(action, Action::Drop { .. } | Action::RollBack { .. } | Action::Reboot { .. }).then_some("rpm-ostree");
    let bash = (asked.etcd == EtcdRestore::ClusterRestore).then_some("bash");
    rpm_ostree.into_iter().chain(bash).collect()
}

/// Whether the node has everything that a later step needs; the unit of its container runtime.
fn needs(node: &Node, dir: &RecoveryDir, backup: &Backup, deployment: Option<&Path>, programs: &[&str]) -> Result<String> {
    let etc = Archive::open(&backup.file(ETC)).with_context(|| format!("opening {ETC} of backup {}", backup.id))?;
    let units: BTreeSet<PathBuf> = etc.paths().filter(|path| path.starts_with(needs::UNITS_IN_ETC)).map(Path::to_owned).collect();
    let in_etc = |unit: &str| {
        let path = Path::new(needs::UNITS_IN_ETC).join(unit);
        UnitFile::of(etc.read_link(&path), units.contains(&path))
    };
    // A run that is restarted may have stopped it.
    let stopped = Undo::load(dir)?.and_then(|undo| undo.runtime);
    let recorded = backup.manifest.runtime_unit.as_deref().or(stopped.as_deref());
    let look = || {
        let need = Need { recorded, programs, deployment, in_etc: &in_etc };
        let mut found = needs::look(node, backup.manifest.profile.profile(), &need)?;
        found.missing.extend(extras_read_only(node, backup)?);
        Ok::<_, anyhow::Error>(found)
    };
    let found = look().context("looking whether everything is there that a recovery needs: nothing was changed")?;
    match found.runtime {
        Some(unit) if found.missing.is_empty() => Ok(unit),
        _ => Err(lacking(found.missing)),
    }
}

fn lacking(missing: Vec<Failure>) -> anyhow::Error {
    let (what, next): (Vec<_>, Vec<_>) = missing.into_iter().map(|lack| (lack.message, lack.next)).unzip();
    let error = misfit(format!("this node lacks what a recovery needs, so nothing was changed: {}", what.join("; ")));
    match together(next.into_iter().flatten().collect(), ", and ") {
        Some(next) => error.and_next(next),
        None => error,
    }
}

/// The root of the deployment that the plan boots, where that is not the booted one.
fn other_deployment(action: &Action, target: &Target, all: &[ostree::Deployment]) -> Option<PathBuf> {
    let boots = matches!(action, Action::RollBack { .. } | Action::Reboot { .. });
    boots.then(|| target.find(all).ok().map(ostree::root_of)).flatten()
}

/// Folders in which a managed file has to be restored and cannot be. A file that is as the backup has it is not written to, and does not count.
fn extras_read_only(node: &Node, backup: &Backup) -> Result<Vec<Failure>> {
    if !backup.file(EXTRAS).exists() {
        return Ok(Vec::new());
    }
    let archive = Archive::open(&backup.file(EXTRAS)).with_context(|| format!("opening {EXTRAS} of backup {}", backup.id))?;
    let mut found = Vec::new();
    for (folder, files) in extra_folders(&archive) {
        let Some(why) = needs::read_only(node, &folder)? else { continue };
        let (changes, _) = archive.compare(&node.real_path("/"), &Selection::all().only(files), Extra::Keep, &|_| ())?;
        if !changes.is_empty() {
            found.push(why);
        }
    }
    Ok(found)
}

/// The files in the archive of the extras, by the folder that each is in.
fn extra_folders(archive: &Archive) -> BTreeMap<PathBuf, Vec<&Path>> {
    let mut folders: BTreeMap<PathBuf, Vec<&Path>> = BTreeMap::new();
    for file in parts::extra_files(archive) {
        if let Some(folder) = file.parent() {
            folders.entry(Path::new("/").join(folder)).or_default().push(file);
        }
    }
    folders
}

/// Whether systemd and the container runtime, which the first steps need, answer. A container runtime that is down, or that hangs, is a warning: it may be what is
/// broken, and the reboot ends the containers that it cannot stop.
fn programs(node: &Node) -> Result<Option<String>> {
    systemctl::show(node, KUBELET_UNIT)?;
    match crictl::containers(node) {
        Ok(_) => Ok(None),
        Err(error) if matches!(kind(&error), FailureKind::Interrupted | FailureKind::Misfit) => Err(error),
        Err(error) => Ok(Some(format!("the container runtime does not answer, so that containers run until the reboot: {error:#}"))),
    }
}

/// Whether the recovery directory is there again after the reboot: without it kubelet stays held, and nothing goes on.
fn comes_back(node: &Node, dir: &RecoveryDir) -> Result<Option<String>> {
    let points = mounts::mounts()?.into_iter().map(|mount| node.shown(&mount.point)).filter(|point| dir.shown().starts_with(point));
    // The root and /var are mounted at every boot, or the node does not come up.
    let below_var = |point: &PathBuf| point.starts_with("/var") && point != Path::new("/var");
    let Some(point) = points.max_by_key(|point| point.components().count()).filter(below_var) else { return Ok(None) };
    Ok((!systemctl::mounts_at_boot(node, &point)?).then(|| {
        format!(
            "systemd has no unit that mounts {0} at boot: after the reboot nothing goes on by itself until {0} is mounted and `recovery resume` is called",
            point.display()
        )
    }))
}

/// A line of `/etc/fstab` that mounts the recovery directory must be in the backup, too: its `/etc` is what is booted.
fn stays_in_fstab(node: &Node, dir: &RecoveryDir, backup: &Backup) -> Result<()> {
    if !recovery_mount::is_of_fstab(node, dir)? {
        return Ok(());
    }
    let archive = Archive::open(&backup.file(ETC)).with_context(|| format!("opening {ETC} of backup {}", backup.id))?;
    let text = archive.read_file(Path::new("fstab"))?.unwrap_or_default();
    if recovery_mount::in_fstab(&String::from_utf8_lossy(&text), dir.shown()) {
        return Ok(());
    }
    let (shown, unit) = (dir.shown().display(), recovery_mount::unit_name(dir.shown()));
    Err(misfit(format!(
        "a line of /etc/fstab mounts {shown}, and /etc/fstab of backup {} has none: after the reboot the journal would be out of sight, and kubelet held",
        backup.id
    ))
    .and_next(run(
        format!("cp /run/systemd/generator/{unit} /etc/systemd/system/ && systemctl add-wants local-fs.target {unit}"),
        "makes a unit of the line, which a recovery keeps; then the same command again",
    )))
}

/// Whether there is room for what the restore adds, and for what the recovery writes into its own directory. (Where the two share a file system, the
/// second is within [`SPARE`].)
fn space(node: &Node, dir: &RecoveryDir, backup: &Backup, profile: &Profile) -> Result<()> {
    own_space(dir)?;
    let mut needs: BTreeMap<u64, (u64, Vec<PathBuf>)> = BTreeMap::new();
    for (shown, bytes) in growth(node, backup, profile)? {
        let (sum, trees) = needs.entry(device(node, &shown)?).or_default();
        *sum = sum.saturating_add(bytes);
        trees.push(shown);
    }
    for (bytes, trees) in needs.into_values() {
        let (free, _) = mounts::space(existing(&node.real_path(&trees[0])))?;
        if bytes.saturating_add(SPARE) > free {
            let at = trees[0].clone();
            let trees: Vec<_> = trees.iter().map(|tree| tree.display().to_string()).collect();
            return Err(no_space(format!(
                "the file system of {} has {free} bytes free; the restore needs {bytes}, and {SPARE} to spare",
                trees.join(", ")
            ))
            .and_next(Next::MakeRoom { dir: Some(at), how: "make room, then run this again".to_owned() }));
        }
    }
    Ok(())
}

/// Where the restore writes, with the bytes that this takes beyond what is there now: each tree, and etcd's data, of which there are two for a
/// while. The root itself is never among them: on a composefs host that is an image without a free byte, and nothing is written there.
fn growth(node: &Node, backup: &Backup, profile: &Profile) -> Result<Vec<(PathBuf, u64)>> {
    let manifest = &backup.manifest;
    let size = |file: &str| manifest.sizes.get(file).copied().unwrap_or(0);
    let mut growth = vec![(PathBuf::from(profile.etcd_data), manifest.etcd.bytes)];
    for part in Part::ALL.into_iter().filter(|part| matches!(part.holds, Holds::Whole | Holds::Owned) && size(part.file) > 0) {
        growth.push((part.tree.into(), size(part.file).saturating_sub(mounts::usage(&node.real_path(part.tree))?)));
    }
    if size(EXTRAS) > 0 {
        let archive = Archive::open(&backup.file(EXTRAS))?;
        // Managed files elsewhere are small: each file system that takes some is asked for room for all of them.
        let mut folders = BTreeMap::new();
        for folder in extra_folders(&archive).into_keys() {
            folders.insert(device(node, &folder)?, folder);
        }
        growth.extend(folders.into_values().map(|folder| (folder, size(EXTRAS))));
    }
    Ok(growth)
}

/// The file system that holds `shown`, or will.
fn device(node: &Node, shown: &Path) -> Result<u64> {
    Ok(existing(&node.real_path(shown)).metadata().with_context(|| format!("looking at {}", shown.display()))?.dev())
}

/// Whether the recovery can note what it does, and leave the agent that goes on after the reboot.
fn own_space(dir: &RecoveryDir) -> Result<()> {
    let needed = OWN + install::room(dir)?;
    let (free, _) = mounts::space(dir.path())?;
    if free >= needed {
        return Ok(());
    }
    let error = no_space(format!("{} has {free} bytes free; the recovery writes up to {needed} there", dir.shown().display()));
    Err(error.and_next(dir.make_room_here()))
}

/// Whether the cluster's own restore can be run when it is its turn: that is after the reboot, when all else is restored.
fn has_cluster_restore(backup: &Backup, profile: &Profile) -> Result<()> {
    if profile.kind != Kind::OpenShift {
        return Err(misfit("this cluster has no restore of its own: leave --etcd-restore away"));
    }
    let archive = Archive::open(&backup.file(USR_LOCAL)).with_context(|| format!("opening {USR_LOCAL} of backup {}", backup.id))?;
    let usr_local = Path::new(Part::tree_of(USR_LOCAL)?);
    if archive.paths().any(|path| usr_local.join(path) == Path::new(CLUSTER_RESTORE)) {
        return Ok(());
    }
    Err(misfit(format!("backup {} holds no {CLUSTER_RESTORE}: leave --etcd-restore away", backup.id)))
}

/// The nearest directory on the way to `path` that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"))
}

/// The images that the backup names and the container runtime has no more.
///
/// # Errors
/// When the runtime does not say what it has.
pub(super) fn images_gone(node: &Node, manifest: &Manifest) -> Result<Vec<Image>> {
    if manifest.images.is_empty() {
        return Ok(Vec::new());
    }
    crictl::images(node).map(|there| images_not_among(&manifest.images, &there)).context("it is unknown whether the images are still there")
}

fn missing_images(node: &Node, manifest: &Manifest, warnings: &mut Vec<String>) -> Vec<Image> {
    let missing = images_gone(node, manifest).unwrap_or_else(|error| {
        warnings.push(format!("{error:#}"));
        Vec::new()
    });
    if !missing.is_empty() {
        warnings.push(format!(
            "{} images that the node had in use, or pinned, are gone: where they are needed, they have to be pulled",
            missing.len()
        ));
    }
    missing
}

fn images_not_among(then: &[Image], now: &[crictl::Image]) -> Vec<Image> {
    let is_there = |image: &Image| now.iter().any(|there| there.is(&image.id) || there.is(&image.name));
    then.iter().filter(|image| !is_there(image)).cloned().collect()
}

/// What the first phase would change.
fn compare(session: &Session<'_>, profile: &Profile, backup: &Backup) -> Result<Vec<TreeChanges>> {
    let Session { node, progress, .. } = *session;
    let mut all = Vec::new();
    for (tree, archive, selection, extra) in restore_files::trees(session, profile, backup)? {
        let task = progress.task(&format!("comparing {tree}"), Some(archive.bytes()));
        let compared = archive.compare(&node.real_path(tree), &selection, extra, &|bytes| task.add(bytes));
        let (changes, counts) = compared.with_context(|| format!("comparing {tree} with backup {}", backup.id))?;
        all.push(TreeChanges { tree: tree.to_owned(), changes, counts });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_missing_only_when_no_name_of_it_is_there() {
        let there = [crictl::Image {
            id: "sha256:aa".to_owned(),
            tags: vec!["registry/a:1".to_owned()],
            digests: vec!["registry/a@sha256:dd".to_owned()],
            size: 1,
            pinned: false,
        }];
        let is_missing = |id: &str, name: &str| !images_not_among(&[Image { id: id.to_owned(), name: name.to_owned() }], &there).is_empty();
        assert!(!is_missing("sha256:aa", "another"), "by its id");
        assert!(!is_missing("aa", "another"), "by its id as CRI-O writes it");
        assert!(!is_missing("bb", "registry/a:1") && !is_missing("bb", "registry/a@sha256:dd"), "pulled again under the same name");
        assert!(is_missing("bb", "registry/b:1"));
    }
}
