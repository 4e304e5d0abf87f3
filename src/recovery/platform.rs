//! Phase `platform`: the backup's deployment is what boots next. It ends with a reboot, unless that deployment is booted already.
//!
//! What is still to be done is asked of the node before every step, by the [`table`]: a rollback that is done again would take the first
//! one back. From the hold on, and with its files in the `/etc` of both deployments, kubelet does not start in either of them.

pub mod table;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};

use self::table::{Action, PlatformReport, Target, judge};
use super::run::{Doing, Step};
use super::{restore_files, step};
use crate::backup::store::{self, Found};
use crate::error::{AndNext, misfit};
use crate::node::crio::{self, Release};
use crate::node::profile::Profile;
use crate::node::{Node, hold, mounts, recovery_mount, timer};
use crate::session::Session;
use crate::tools::ostree::{self, Deployment};
use crate::tools::{crictl, rpm_ostree, systemctl};

/// machine-config-daemon drives rpm-ostree itself: a transaction of its own would stand in the way of ours.
const DAEMON: (&str, &str) = ("machine-config-daemon", "openshift-machine-config-operator");

pub(super) const STEPS: &[Step] = &[
    Step::new(step::HOLD, "holding kubelet, whatever boots", restore_files::place_hold),
    Step::new(step::STOP_KUBELET, "stopping kubelet", restore_files::stop_kubelet).volatile(),
    Step::new(step::STOP_DAEMON, "stopping machine-config-daemon", stop_daemon).volatile().only(Profile::is_openshift),
    Step::new(step::TARGET_FILES, "holding kubelet in the backup's deployment too", target_files),
    Step::new(step::DROP_AHEAD, "dropping what would boot before the backup's deployment", drop_ahead).changes(),
    Step::new(step::UNDEPLOY_BETWEEN, "removing standbys before the backup's deployment", undeploy_between).changes(),
    Step::new(step::ROLL_BACK, "rolling back to the backup's deployment", roll_back).changes(),
    Step::new(step::STOP_CONTAINERS, "stopping containers and removing pod sandboxes", stop_containers).volatile(),
    Step::new(step::NEXT_BOOT, "checking that the backup's deployment boots next", next_boot),
];

/// The platform table for a backup; for the pinned deployment when there is no backup to ask.
///
/// # Errors
/// When the backup that was asked for cannot be had, or ostree does not answer.
pub fn platform_report(session: &Session<'_>, wanted: Option<&str>) -> Result<PlatformReport> {
    let found = store::survey(session.dir).and_then(|survey| {
        if wanted.is_none() {
            survey.passed_over().iter().for_each(|sentence| session.progress.say(sentence));
        }
        store::find(session, &survey, wanted)
    });
    let target = match found {
        Ok(Found::Backup(backup)) => Target::of(backup.manifest.deployment.as_ref()),
        Err(error) if wanted.is_some() => return Err(error),
        Ok(Found::Old(_)) | Err(_) => Target::Pinned,
    };
    table::report(session.node, target)
}

/// What the table asks for now.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) with the table when it refuses; when ostree does not answer.
fn action(here: &Doing<'_, '_>) -> Result<Action> {
    let all = ostree::deployments(here.run.session.node)?;
    match judge(&all, &here.target()) {
        Action::Refuse { why, way } => {
            let error = misfit(format!("{why}; {}", table::in_order(&all)));
            Err(match way {
                Some(way) => error.and_next(way),
                None => error,
            })
        }
        action => Ok(action),
    }
}

/// True when the phase has to end with a reboot: the target boots next, and is not what runs.
///
/// # Errors
/// When ostree does not answer.
pub(super) fn needs_reboot(node: &Node, target: &Target) -> Result<bool> {
    Ok(judge(&ostree::deployments(node)?, target) != Action::Nothing)
}

fn stop_daemon(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    let runtime = here.run.running_runtime()?;
    restore_files::settled_runtime(here, &runtime)?;
    if systemctl::show(node, &runtime)?.is_stopped() {
        return Ok(());
    }
    let (name, namespace) = DAEMON;
    let deadline = node.clock().deadline(here.run.wait);
    let mine = |c: &crictl::Container| c.running && c.name == name && c.namespace == namespace;
    let stopped = crictl::containers(node).and_then(|all| {
        let ids: Vec<String> = all.into_iter().filter(mine).map(|c| c.id).collect();
        crictl::stop(node, &ids, restore_files::GRACE, &deadline)
    });
    restore_files::tolerate(here, stopped)
}

/// `/etc` belongs to a deployment: the target's may be of before the backup, and know nothing of the hold.
fn target_files(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    let all = ostree::deployments(node)?;
    let target = here.target().find(&all).map_err(misfit)?;
    // The booted one has them by now, and a staged one takes them over when it is merged at shutdown.
    if target.booted || target.staged {
        return Ok(());
    }
    let etc = node.real_path(ostree::etc_of(target));
    anyhow::ensure!(etc.is_dir(), "the deployment {target} has no {}", node.shown(&etc).display());
    let dir = here.run.session.dir;
    let install = || {
        hold::install(&etc, dir)?;
        recovery_mount::install(node, dir, &etc)?;
        timer::install(node, &etc).map(drop)
    };
    mounts::writable(node, ostree::SYSROOT, install).with_context(|| {
        format!(
            "putting the hold's files, the mount of the recovery directory and the timer of scheduled backups into {}",
            node.shown(&etc).display()
        )
    })
}

fn drop_ahead(here: &mut Doing<'_, '_>) -> Result<()> {
    // What machine-config-daemon has begun goes on without it, and may end with one more deployment.
    restore_files::idle_rpm_ostree(here)?;
    let ahead = action(here)?.ahead();
    if ahead.is_empty() {
        return Ok(());
    }
    here.figure("dropped", names(&ahead));
    rpm_ostree::cleanup_pending(here.run.session.node, here.run.wait)?;
    // It removes what is staged and pending; anything that it leaves is removed by name.
    for left in action(here)?.ahead() {
        ostree::undeploy(here.run.session.node, &left)?;
    }
    let left = action(here)?.ahead();
    anyhow::ensure!(left.is_empty(), "{} would still boot before the backup's deployment", names(&left).join(", "));
    Ok(())
}

fn undeploy_between(here: &mut Doing<'_, '_>) -> Result<()> {
    let Action::RollBack { between, .. } = action(here)? else { return Ok(()) };
    here.figure("undeployed", names(&between));
    between.iter().try_for_each(|standby| ostree::undeploy(here.run.session.node, standby))
}

fn roll_back(here: &mut Doing<'_, '_>) -> Result<()> {
    let Action::RollBack { .. } = action(here)? else { return Ok(()) };
    rpm_ostree::rollback(here.run.session.node, here.run.wait)?;
    // A later step would find it too, but `resume` does this one again only if it has failed.
    let after = action(here)?;
    anyhow::ensure!(!matches!(after, Action::RollBack { .. }), "`rpm-ostree rollback` reported success, but {}", after.summary());
    Ok(())
}

/// What could not be removed may cost its images: the target's CRI-O is of another release, and may delete those that it finds containers
/// of.
fn stop_containers(here: &mut Doing<'_, '_>) -> Result<()> {
    restore_files::stop_containers(here)?;
    let lost = images_lost(here);
    restore_files::tolerate(here, lost)
}

fn images_lost(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    let release = here.run.backup.manifest.cluster.as_ref().and_then(|cluster| Release::of_openshift(&cluster.version));
    let Some(next) = release.filter(|_| crictl::answers(node)) else { return Ok(()) };
    let left: BTreeSet<String> = crictl::containers(node)?.into_iter().map(|container| container.image).collect();
    if left.is_empty() || !crictl::is_crio(node)? {
        return Ok(());
    }
    let all = ostree::deployments(node)?;
    let target = here.target().find(&all).map_err(misfit)?;
    let etc = if target.booted { PathBuf::from("/etc") } else { ostree::etc_of(target) };
    if let Some(last) = crio::deletes_those_of(node, &etc, next) {
        let left: Vec<String> = left.into_iter().collect();
        here.warn(format!(
            "containers are left, and the images of these go with the reboot, to be pulled again: {}. CRI-O {next}, of the backup's release, deletes them \
             because the one that ran last ({last}) is another (version_file_persist)",
            left.join(", ")
        ));
    }
    Ok(())
}

fn next_boot(here: &mut Doing<'_, '_>) -> Result<()> {
    restore_files::real_reboot(here)?;
    let all = ostree::deployments(here.run.session.node)?;
    if let Some(past) = table::goes_past(&all) {
        return Err(misfit(past));
    }
    match judge(&all, &here.target()) {
        Action::Nothing => Ok(()),
        Action::Reboot { ahead } if ahead.is_empty() => Ok(()),
        other => Err(misfit(format!("the backup's deployment does not boot next: {}; {}", other.summary(), table::in_order(&all)))),
    }
}

fn names(deployments: &[Deployment]) -> Vec<String> {
    deployments.iter().map(ToString::to_string).collect()
}
