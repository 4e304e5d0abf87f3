//! Phase `restore-files`: the files of the operating system, as the backup has them. It ends with a reboot.
//!
//! From the hold on, kubelet does not start whatever boots; so every step may be cut short anywhere and done again.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::platform::table::{self, When};
use super::run::{Doing, KUBELET_UNIT, Step};
use super::step;
use crate::agent::install;
use crate::archive::{Archive, Extra, Selection};
use crate::backup::asked_by::AskedBy;
use crate::backup::parts::{Part, always_excluded, extras_in, without_owned};
use crate::backup::{Backup, ETC, EXTRAS, USR_LOCAL};
use crate::error::{FailureKind, kind};
use crate::formats::notes::OldContainersV1;
use crate::node::machine_config::MachineConfig;
use crate::node::profile::Profile;
use crate::node::{crio, durable, hold, recovery_mount, timer};
use crate::session::Session;
use crate::tools::{crictl, ostree, rpm_ostree, systemctl};

/// How long a container has to end before it is killed. Its work is about to be undone: it needs no more than to close its files.
pub(super) const GRACE: Duration = Duration::from_secs(5);

pub(super) const STEPS: &[Step] = &[
    Step::new(step::DEPLOYMENT, "checking which deployment is booted and which boots next", deployment).volatile(),
    Step::new(step::HOLD, "holding kubelet, whatever boots", place_hold),
    Step::new(step::STOP_KUBELET, "stopping kubelet", stop_kubelet).volatile(),
    Step::new(step::OLD_CONTAINERS, "noting which containers there are", note_containers),
    Step::new(step::STOP_CONTAINERS, "stopping containers and removing pod sandboxes", stop_containers).volatile(),
    Step::new(step::STOP_RUNTIME, "stopping the container runtime", stop_runtime).volatile(),
    Step::new(step::NEWER_FILES, "removing files that only the newer release put outside /etc", remove_newer_files).changes(),
    Step::new(step::USR_LOCAL, "restoring /usr/local", restore_usr_local).changes(),
    Step::new(step::ETC, "restoring /etc", restore_etc).changes(),
    Step::new(step::EXTRAS, "restoring managed files elsewhere", restore_extras).changes(),
    Step::new(step::UNIT_FILES, "reloading the unit files", reload),
    Step::new(step::NEXT_BOOT, "checking again what boots next", next_boot),
];

/// machine-config-daemon is stopped by now, but what it has begun goes on without it, and may yet stage a deployment.
fn next_boot(here: &mut Doing<'_, '_>) -> Result<()> {
    idle_rpm_ostree(here)?;
    deployment(here)
}

/// Waits for the end of rpm-ostree's transaction, if there is one. Where rpm-ostree does not say, that is a warning.
pub(super) fn idle_rpm_ostree(here: &mut Doing<'_, '_>) -> Result<()> {
    if let Some(why) = rpm_ostree::idle(here.run.session.node, here.run.wait)? {
        here.warn(why);
    }
    Ok(())
}

/// The target is booted and boots next; everything else would restore one release's files onto another.
pub(super) fn deployment(here: &mut Doing<'_, '_>) -> Result<()> {
    real_reboot(here)?;
    let rebooted = here.has_rebooted();
    let when = if rebooted { When::Rebooted } else { When::Open };
    let report = table::report(here.run.session.node, here.target())?;
    match report.check(here.asked().force, when)? {
        Some(warning) => here.warn(warning),
        None if rebooted => {
            let booted = report.deployments.iter().find(|d| d.booted).map(ToString::to_string);
            tracing::info!("the node has rebooted as meant{}", booted.as_ref().map_or_else(String::new, |d| format!(", into {d}")));
            here.figure("rebooted_into", booted);
        }
        None => {}
    }
    Ok(())
}

/// Nothing but the deployment that is checked may be booted: a prepared soft reboot would go past the boot loader, into a root that nobody looked
/// at and where nothing holds kubelet.
pub(super) fn real_reboot(here: &mut Doing<'_, '_>) -> Result<()> {
    if ostree::clear_soft_reboot(here.run.session.node)? {
        here.warn(format!("a soft reboot into {} was prepared; it is taken back: the reboot is a real one", ostree::NEXT_ROOT));
    }
    Ok(())
}

pub(super) fn place_hold(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    // Whoever reboots from now on must not get past the hold.
    real_reboot(here)?;
    hold::install(&node.real_path("/etc"), here.run.session.dir)?;
    timer::install(node, &node.real_path("/etc"))?;
    // After a boot with the hold, systemd no longer shows whether kubelet ran before.
    here.run.undo.note_unit(here.run.session, KUBELET_UNIT)?;
    here.run.undo.place_hold(here.run.session)?;
    if let Err(error) = install_agent(here) {
        here.warn(format!("the agent cannot be installed for the unit, which is tried again at the end of the phase: {error:#}"));
    }
    // systemd must know of the condition before anyone starts kubelet in this boot.
    systemctl::daemon_reload(node)
}

/// What the unit runs after the reboot: this very agent, because an older one may not read what this one writes.
fn install_agent(here: &Doing<'_, '_>) -> Result<()> {
    install::install(here.run.session.node, here.run.session.dir)
}

pub(super) fn stop_kubelet(here: &mut Doing<'_, '_>) -> Result<()> {
    stop_unit(here, KUBELET_UNIT)
}

fn stop_unit(here: &mut Doing<'_, '_>, unit: &str) -> Result<()> {
    let run = &mut *here.run;
    run.undo.note_unit(run.session, unit)?;
    systemctl::stop(run.session.node, unit)
}

/// Waits while the runtime is still starting, which can take long at a boot: it can neither say which containers there are nor be stopped in
/// order. When it does not come to an end, that is a warning.
pub(super) fn settled_runtime(here: &mut Doing<'_, '_>, unit: &str) -> Result<()> {
    let look = |here: &mut Doing<'_, '_>| Ok((!systemctl::show(here.run.session.node, unit)?.is_starting()).then_some(()));
    let settled =
        here.wait_for("the container runtime to have started", Duration::from_secs(1), look, |_| format!("see `journalctl -u {unit}`"));
    tolerate(here, settled)
}

/// The ids of all containers, once, before they are gone: at the end, only containers with other ids count as restarted.
fn note_containers(here: &mut Doing<'_, '_>) -> Result<()> {
    if here.noted::<OldContainersV1>()?.is_some() {
        return Ok(());
    }
    let runtime = here.run.running_runtime()?;
    settled_runtime(here, &runtime)?;
    let ids: Vec<String> = match crictl::containers(here.run.session.node) {
        Ok(containers) => containers.into_iter().map(|c| c.id).collect(),
        Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
        Err(error) => {
            here.warn(format!("the container runtime does not answer, so which containers are old cannot be noted, and after the reboot all count as new: {error:#}"));
            Vec::new()
        }
    };
    here.note(&OldContainersV1(ids))
}

/// Containers first, then sandboxes, those on the pod network before those on the host's: removing a sandbox asks the network's own
/// pods for help, and hangs when they are gone. What cannot be removed is a warning: the reboot ends it anyway. It is done before each of the two
/// reboots: CRI-O of another minor release (`version_file_persist`) deletes the images of the containers that it finds in its store.
pub(super) fn stop_containers(here: &mut Doing<'_, '_>) -> Result<()> {
    let runtime = here.run.running_runtime()?;
    settled_runtime(here, &runtime)?;
    if systemctl::show(here.run.session.node, &runtime)?.is_stopped() {
        return Ok(());
    }
    let stopped = here.waiting("stopping containers and pod sandboxes", |here, _| stop_and_remove(here));
    tolerate(here, stopped)
}

fn stop_and_remove(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    let deadline = node.clock().deadline(here.run.wait);
    let running: Vec<String> = crictl::containers(node)?.into_iter().filter(|c| c.running).map(|c| c.id).collect();
    here.figure("stopped", running.len());
    let stopped = crictl::stop(node, &running, GRACE, &deadline);
    tolerate(here, stopped)?;
    let (mut on_host, mut on_pods, mut answers) = (Vec::new(), Vec::new(), true);
    let asked_by = kept_pod(here)?;
    for sandbox in crictl::sandboxes(node)? {
        crate::node::clock::interrupted()?;
        if !sandbox.ready && asked_by.as_ref().is_some_and(|asked_by| asked_by.has_pod(&sandbox.labels)) {
            continue;
        }
        // A sandbox that cannot be asked goes with the first, as if it were on the pod network: those need the network's pods to be removed.
        let asked = if answers { crictl::is_host_network(node, &sandbox.id) } else { Ok(false) };
        // A runtime that has failed to answer once is asked no more: each time may take half a minute. (A sandbox that is gone is no failure.)
        answers &= asked.is_ok();
        if asked.unwrap_or(false) { &mut on_host } else { &mut on_pods }.push(sandbox.id);
    }
    here.figure("sandboxes", on_host.len() + on_pods.len());
    for ids in [on_pods, on_host] {
        let removed = crictl::remove_sandboxes(node, &ids, &deadline);
        tolerate(here, removed)?;
    }
    Ok(())
}

/// Whose pod is kept once it has ended: who asked for the backup. In the restored etcd it is running; kubelet takes the end of its
/// container from the runtime, and calls it failed if the runtime knows of none. CRI-O keeps it over no reboot: there the Job gets another
/// pod, which says that its backup is done; what was left of it until then could cost its image, where CRI-O deletes those of another
/// release's containers.
fn kept_pod(here: &Doing<'_, '_>) -> Result<Option<AskedBy>> {
    let asked_by = Some(here.run.backup.manifest.asked_by.clone()).filter(AskedBy::asks_once);
    Ok(if asked_by.is_some() && crictl::is_crio(here.run.session.node)? { None } else { asked_by })
}

/// Turns a failure into a warning, unless it is an interruption.
pub(super) fn tolerate(here: &mut Doing<'_, '_>, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if kind(&error) == FailureKind::Interrupted => Err(error),
        Err(error) => {
            here.warn(format!("{error:#}"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn stop_runtime(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    // Which unit it is shows only while it runs.
    let unit = here.run.running_runtime()?;
    here.run.undo.note_runtime(here.run.session, &unit)?;
    stop_unit(here, &unit)?;
    if let Some(mark) = crio::missing_mark(node)
        && systemctl::show(node, crio::WIPE_UNIT)?.exists()
    {
        let then = if crio::repairs(node) {
            "CRI-O checks its images when it starts, and repairs them"
        } else {
            "CRI-O does not check its images when it starts, before 1.31 or because it is told so: one that was being written may be broken (`crictl rmi` \
             lets it be pulled again)"
        };
        here.warn(format!(
            "CRI-O left no {}: it did not stop in order, and {} would erase all images at the next boot; it is held while this recovery is open, and {then}",
            mark.display(),
            crio::WIPE_UNIT
        ));
    }
    Ok(())
}

/// What the newer release's configuration manages outside `/etc` and the backup's does not. It goes before `/etc` is restored, because
/// that brings the older configuration back, which knows nothing of these files.
fn remove_newer_files(here: &mut Doing<'_, '_>) -> Result<()> {
    let newer = newer_files(here);
    let mut removed = Vec::new();
    for path in newer {
        let place = here.run.session.node.path(&path);
        let Ok(meta) = place.symlink_metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_file() || kind.is_symlink() || kind.is_fifo() {
            durable::remove(&place)?;
            removed.push(path);
        } else {
            here.warn(format!("{} was managed by the newer release and stays: it is no longer a file", path.display()));
        }
    }
    here.figure("removed", removed);
    Ok(())
}

fn newer_files(here: &mut Doing<'_, '_>) -> Vec<PathBuf> {
    let known = here.run.backup.manifest.managed_files.clone();
    let config = match MachineConfig::current(here.run.session.node) {
        // It is the failed release's, and about to be replaced: an upgrade that died half-way may have left anything there.
        Err(error) => {
            here.warn(format!("files of the newer release outside /etc stay, because its configuration cannot be read: {error:#}"));
            return Vec::new();
        }
        Ok(None) => return Vec::new(),
        Ok(Some(config)) => config,
    };
    if known.is_empty() {
        here.warn("the backup does not say which files its configuration managed: files of the newer release outside /etc stay".to_owned());
        return Vec::new();
    }
    let run = &*here.run;
    // What another archive holds is not this step's: that tree is made equal as a whole.
    let trees: Vec<PathBuf> = Part::whole().map(|part| run.session.node.real_path(part.tree)).collect();
    let own = run.session.dir.path();
    let elsewhere = |path: &Path| {
        let real = run.session.node.path(path);
        !real.starts_with(own) && !trees.iter().any(|tree| real.starts_with(tree))
    };
    config.outside_etc().into_iter().filter(|path| !known.contains(path) && elsewhere(path)).collect()
}

fn restore_usr_local(here: &mut Doing<'_, '_>) -> Result<()> {
    here.restore(USR_LOCAL, &Selection::all(), Extra::Delete)
}

fn restore_etc(here: &mut Doing<'_, '_>) -> Result<()> {
    let backup = &here.run.backup;
    let selection = etc_selection(here.run.session, here.run.profile, backup, &open(backup, ETC)?)?;
    here.restore(ETC, &selection, Extra::Delete)
}

/// What the backup's archive of `/etc` holds, without what the backup says to leave alone and what no restore touches: the files of the
/// hold, and what mounts the recovery directory, are never removed, nor replaced by older ones.
fn etc_selection(session: &Session<'_>, profile: &Profile, backup: &Backup, archive: &Archive) -> Result<Selection> {
    let there = |path: &Path| archive.read_file(path).ok().flatten().or_else(|| archive.read_link(path).map(|_| Vec::new()));
    let mount = recovery_mount::kept(session.node, session.dir, &there)?;
    without_owned(profile)?.except(backup.manifest.etc_excludes.iter().cloned().chain(always_excluded()).chain(mount))
}

fn restore_extras(here: &mut Doing<'_, '_>) -> Result<()> {
    if !here.run.backup.file(EXTRAS).exists() {
        return Ok(());
    }
    let selection = extras_in(&open(&here.run.backup, EXTRAS)?);
    here.restore(EXTRAS, &selection, Extra::Keep)
}

fn reload(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    hold::install(&node.real_path("/etc"), here.run.session.dir)?;
    timer::install(node, &node.real_path("/etc"))?;
    anyhow::ensure!(hold::is_placed(node), "the hold file {} is gone: kubelet would start after the reboot", hold::HOLD);
    if let Err(error) = install_agent(here) {
        here.warn(format!("after the reboot nothing goes on by itself, because the agent cannot be installed for the unit: call `recovery resume` then: {error:#}"));
    }
    systemctl::daemon_reload(node)
}

/// What the phase would change, for `--dry-run`: each tree with its archive, and what of it is compared.
pub(super) fn trees(session: &Session<'_>, profile: &Profile, backup: &Backup) -> Result<Vec<(&'static str, Archive, Selection, Extra)>> {
    let etc = open(backup, ETC)?;
    let etc_selection = etc_selection(session, profile, backup, &etc)?;
    let mut trees = vec![
        (Part::tree_of(USR_LOCAL)?, open(backup, USR_LOCAL)?, Selection::all(), Extra::Delete),
        (Part::tree_of(ETC)?, etc, etc_selection, Extra::Delete),
    ];
    if backup.file(EXTRAS).exists() {
        let extras = open(backup, EXTRAS)?;
        let selection = extras_in(&extras);
        trees.push((Part::tree_of(EXTRAS)?, extras, selection, Extra::Keep));
    }
    Ok(trees)
}

fn open(backup: &Backup, file: &str) -> Result<Archive> {
    Archive::open(&backup.file(file)).with_context(|| format!("opening {file} of backup {}", backup.id))
}
