//! Phase `resume`: the control plane, as the backup has it, started in order.
//!
//! kubelet is held until everything on disk is restored. Then etcd's manifest is the only one, so that etcd comes first; the API server
//! is next, then the rest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::preflight::images_gone;
use super::procedure::{EtcdRestore, Phase};
use super::run::{Doing, KUBELET_UNIT, Step};
use super::waits::{self, PAUSE};
use super::{patch, restore_files, step, undo};
use crate::archive::{Extra, Selection};
use crate::backup::asked_by::AskedBy;
use crate::backup::parts::STARTUP_MONITOR;
use crate::backup::{self, ETCD, KUBELET, STATIC_PODS};
use crate::error::{FailureKind, kind};
use crate::etcd::{self, Endpoint};
use crate::formats::notes::{EtcdDataV1, OldContainersV1, StartKubeletV1};
use crate::kube::Client;
use crate::node::machine_config::MachineConfig;
use crate::node::profile::Profile;
use crate::node::{durable, hold};
use crate::tools::{crictl, systemctl};
use crate::up::containers;

/// Where OVN-Kubernetes keeps a node's databases: from 4.14 on, and before. They are rebuilt from the cluster, whose older state they contradict.
const OVN: [&str; 2] = ["/var/lib/ovn-ic/etc", "/var/lib/ovn/etc"];
/// The units that hold the switch's own state, in the order in which they are restarted.
const OVS_UNITS: [&str; 2] = ["ovs-vswitchd.service", "ovsdb-server.service"];
/// The pods that read those databases: label `app`, with the name they had in earlier releases.
const OVN_PODS: (&str, &[&str]) = ("openshift-ovn-kubernetes", &["ovnkube-control-plane", "ovnkube-master", "ovnkube-node"]);
/// The script of cluster-etcd-operator.
pub(super) const CLUSTER_RESTORE: &str = "/usr/local/bin/cluster-restore.sh";
/// What it is given, in the recovery directory while it runs: the snapshot and the static pods, keys among them.
pub(super) const EXPORTED: &str = "cluster-restore";
/// How long one look at etcd may take.
const ONE_LOOK: Duration = Duration::from_secs(10);

pub(super) const STEPS: &[Step] = &[
    Step::new(step::BACKUP, "checking the backup again", check_backup),
    Step::new(step::DEPLOYMENT, "checking that the backup's deployment is booted", restore_files::deployment).volatile(),
    Step::new(step::STOP_KUBELET, "making sure that kubelet is stopped", stop_kubelet),
    Step::new(step::KUBELET_FILES, "restoring /var/lib/kubelet", restore_kubelet).changes(),
    Step::new(step::NETWORK_DATABASES, "removing OVN's databases", remove_ovn).changes().only(Profile::is_openshift),
    Step::new(step::NO_MANIFESTS, "emptying the directory of static pods", empty_manifests).changes(),
    Step::new(step::STATIC_PODS, "restoring what the static pods read", restore_resources).changes(),
    Step::new(step::ETCD_DATA, "restoring etcd's data", restore_etcd).changes(),
    Step::new(step::ETCD_MANIFEST, "putting etcd's manifest in place", etcd_manifest),
    Step::new(step::MACHINE_CONFIG, "comparing the files with the machine configuration", machine_config).only(Profile::is_openshift),
    Step::new(step::START_RUNTIME, "starting the container runtime", start_runtime).volatile(),
    Step::new(step::LIFT_HOLD, "lifting the hold on kubelet", lift_hold),
    Step::new(step::START_KUBELET, "starting kubelet", start_kubelet).volatile(),
    Step::new(step::ETCD_ANSWERS, "waiting for etcd", etcd_answers),
    Step::new(step::PATCH_OBJECTS, "patching objects in etcd by the rules of the resource modifier", patch::patch_objects).patches(),
    Step::new(step::API_SERVER_MANIFEST, "putting the API server's manifest in place", api_server_manifest),
    Step::new(step::API_SERVER_READY, "waiting for the API server", api_server_ready),
    Step::new(step::PATCHED_OBJECTS, "reading the patched objects back", patch::patched_objects).patches(),
    Step::new(step::PATCH_SERVED, "patching objects through the API server by the rules of the resource modifier", patch::patch_served)
        .patches(),
    Step::new(step::OWN_JOB, "giving the backup's own Job time to end", own_job),
    Step::new(step::MANIFESTS, "putting the other manifests in place", other_manifests),
    Step::new(step::NETWORK_PODS, "restarting OVN's pods", restart_ovn).only(Profile::is_openshift),
    Step::new(step::CONTAINERS, "waiting for the control plane's containers", containers),
];

/// Days may have passed since the files were restored.
fn check_backup(here: &mut Doing<'_, '_>) -> Result<()> {
    backup::verify(&here.run.backup, false, here.run.session.progress)
}

/// The hold has kept it from starting; somebody may have started it in spite of that, before the hold's drop-in was there.
fn stop_kubelet(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    if !hold::is_placed(node) {
        here.run.undo.place_hold(here.run.session)?;
    }
    systemctl::stop(node, KUBELET_UNIT)
}

/// The state files of kubelet's CPU and memory managers come from the same moment as its configuration in `/etc`, so their policies
/// agree; on OpenShift, `kubelet-cleanup.service` deletes them anyway.
fn restore_kubelet(here: &mut Doing<'_, '_>) -> Result<()> {
    here.restore(KUBELET, &Selection::all(), Extra::Delete)
}

fn remove_ovn(here: &mut Doing<'_, '_>) -> Result<()> {
    let node = here.run.session.node;
    let dirs: Vec<&str> = OVN.into_iter().filter(|dir| node.real_path(dir).is_dir()).collect();
    if dirs.is_empty() {
        return Ok(());
    }
    for dir in dirs {
        for entry in std::fs::read_dir(node.real_path(dir)).with_context(|| format!("listing {dir}"))? {
            let path = entry.with_context(|| format!("listing {dir}"))?.path();
            if path.extension().is_some_and(|e| e == "db") {
                durable::remove(&path)?;
            }
        }
    }
    for unit in OVS_UNITS {
        if systemctl::show(node, unit)?.load == "loaded" {
            systemctl::restart(node, unit)?;
        }
    }
    Ok(())
}

/// The newer release's manifests must be gone before kubelet starts. Those of the backup come one by one.
fn empty_manifests(here: &mut Doing<'_, '_>) -> Result<()> {
    let shown = here.run.profile.manifests;
    let dir = here.run.session.node.real_path(shown);
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("listing {shown}"))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {shown}"))?;
        let kind = entry.file_type().with_context(|| format!("looking at {}", entry.path().display()))?;
        if kind.is_dir() { durable::remove_tree(&entry.path()) } else { durable::remove(&entry.path()) }?;
    }
    Ok(())
}

/// Every directory that the static pods' archive owns but that of the manifests.
fn restore_resources(here: &mut Doing<'_, '_>) -> Result<()> {
    let profile = here.run.profile;
    let manifests = here.below_kubernetes(profile.manifests)?;
    let resources = profile.owned.iter().map(Path::new).filter(|owned| **owned != manifests);
    let selection = Selection::all().only(resources);
    here.restore(STATIC_PODS, &selection, Extra::Delete)
}

fn restore_etcd(here: &mut Doing<'_, '_>) -> Result<()> {
    match here.asked().etcd {
        EtcdRestore::Native => restore_etcd_natively(here),
        EtcdRestore::ClusterRestore => run_cluster_restore(here),
    }
}

/// Rebuilds etcd's data from the snapshot. The revision is raised so far that no client's cache can outlive the rollback; by how much is
/// noted first, because after a crash in the middle the old data cannot be asked any more.
fn restore_etcd_natively(here: &mut Doing<'_, '_>) -> Result<()> {
    let data = here.run.session.node.real_path(here.run.profile.etcd_data);
    let id = here.id();
    if etcd::is_replaced(&data, &id) {
        return Ok(());
    }
    super::ports::check_free(here.run.session.node, here.run.profile)?;
    let bump_revision = if let Some(EtcdDataV1(noted)) = here.noted()? { noted } else { note_bump(here, &data)? };
    let options = etcd::Options { bump_revision, mark_compacted: true, ..etcd::Options::default() };
    let snapshot = here.run.backup.file(ETCD);
    let task = here.run.session.progress.task("restoring etcd", Some(here.run.backup.manifest.etcd.bytes));
    let restored = etcd::replace(&snapshot, &data, &id, &options, &|bytes| task.add(bytes)).context("restoring etcd's data")?;
    drop(task);
    here.figure("member", restored);
    Ok(())
}

fn note_bump(here: &mut Doing<'_, '_>, data: &Path) -> Result<u64> {
    let old = etcd::revision_of(data).unwrap_or_else(|error| {
        here.warn(format!("the newest revision of the etcd data that is replaced cannot be read, so that the usual 1,000,000,000 is added to the backup's: {error:#}"));
        None
    });
    let bump = etcd::bump_for(here.run.backup.manifest.etcd.revision, old);
    here.note(&EtcdDataV1(bump))?;
    Ok(bump)
}

/// The cluster's own script, on the part of the old script's layout that it reads. It brings etcd's manifest itself and needs the runtime.
fn run_cluster_restore(here: &mut Doing<'_, '_>) -> Result<()> {
    start_runtime(here)?;
    let run = &*here.run;
    let exported = run.session.dir.path().join(EXPORTED);
    durable::remove_tree(&exported)?;
    backup::export_cluster(&run.backup, &exported, run.session.progress).context("exporting the backup for the cluster's own restore")?;
    let script = run.session.node.real_path(CLUSTER_RESTORE);
    let result = run.session.node.command("bash")?.arg(script).arg(exported.join("cluster")).limit(run.wait).run();
    let removed = durable::remove_tree(&exported);
    result.context("running the cluster's own restore")?;
    removed
}

fn etcd_manifest(here: &mut Doing<'_, '_>) -> Result<()> {
    // The cluster's own restore has put a manifest there that restores when it starts: etcd's operator replaces it.
    if here.asked().etcd == EtcdRestore::ClusterRestore {
        return Ok(());
    }
    manifest(here, here.run.profile.etcd().manifest)
}

fn manifest(here: &mut Doing<'_, '_>, file: &str) -> Result<()> {
    let path = here.below_kubernetes(here.run.profile.manifests)?.join(file);
    here.restore_static_pods(&path, Extra::Keep)
}

/// machine-config-daemon stops with "unexpected on-disk state" on any difference: better known now than found later. The manifests are not
/// all there yet; they come one by one.
fn machine_config(here: &mut Doing<'_, '_>) -> Result<()> {
    let (node, manifests) = (here.run.session.node, here.run.profile.manifests);
    let found = MachineConfig::current(node).and_then(|config| config.map_or(Ok(Vec::new()), |config| config.differences_on_disk(node)));
    let differences = match found {
        Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
        Err(error) => {
            here.warn(format!("it is unknown whether the files are as the machine configuration says: {error:#}"));
            return Ok(());
        }
        Ok(differences) => differences,
    };
    for difference in differences.into_iter().filter(|difference| !difference.path.starts_with(manifests)) {
        here.warn(format!("{} {}, unlike the machine configuration", difference.path.display(), difference.what));
    }
    Ok(())
}

fn start_runtime(here: &mut Doing<'_, '_>) -> Result<()> {
    let unit = here.run.runtime_to_start()?;
    restore_files::settled_runtime(here, &unit)?;
    systemctl::start(here.run.session.node, &unit)?;
    here.wait_for(
        "the container runtime to answer",
        Duration::from_secs(1),
        |here| Ok(crictl::answers(here.run.session.node).then_some(())),
        |_| format!("crictl gets no answer: see `journalctl -u {unit}`"),
    )?;
    name_images_gone(here)
}

/// Images that are gone do not stop it: kubelet pulls them where it can. Where it cannot, the waits that follow last until their deadline, and whoever
/// looks has to know why.
fn name_images_gone(here: &mut Doing<'_, '_>) -> Result<()> {
    match images_gone(here.run.session.node, &here.run.backup.manifest) {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => {
            let names: Vec<&str> = gone.iter().map(|image| image.name.as_str()).collect();
            here.warn(format!(
                "{} images that the node had in use, or pinned, are gone; where kubelet cannot pull them, bring them back (`podman load` for CRI-O, \
                 `ctr -n k8s.io images import` for containerd): {}",
                names.len(),
                names.join(", ")
            ));
        }
        Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
        Err(error) => here.warn(format!("{error:#}")),
    }
    Ok(())
}

fn lift_hold(here: &mut Doing<'_, '_>) -> Result<()> {
    let held = hold::is_placed(here.run.session.node);
    hold::lift(here.run.session.node)?;
    if held {
        undo::tell_lifted(&here.id());
    }
    Ok(())
}

/// When its process was started is noted: after a power cut in this phase that was the boot, maybe minutes ago, and what it has asked for since
/// then is as fresh as what it asks for now.
fn start_kubelet(here: &mut Doing<'_, '_>) -> Result<()> {
    let (node, clock) = (here.run.session.node, here.run.session.node.clock());
    let begun = clock.since_boot();
    systemctl::start(node, KUBELET_UNIT)?;
    let started = systemctl::show(node, KUBELET_UNIT)?.started;
    // A unit that systemd knows no process of was started here, if anywhere.
    let ago = started.map_or_else(|| clock.since_boot().saturating_sub(begun), |started| clock.since_monotonic(started));
    let since_boot = clock.since_boot().saturating_sub(ago).as_secs_f64();
    here.note(&StartKubeletV1 { boot: clock.boot_id()?, wall: clock.now() - ago, since_boot })
}

fn etcd_answers(here: &mut Doing<'_, '_>) -> Result<()> {
    let endpoint = Endpoint::of(here.run.session.node, here.run.profile)?;
    let pod = here.run.profile.etcd();
    let last = std::cell::RefCell::new(String::new());
    let health = here.wait_for(
        "etcd to answer",
        PAUSE,
        |_| {
            let health = etcd::health(&endpoint, ONE_LOOK);
            Ok(health.map_err(|error| *last.borrow_mut() = format!("{error:#}")).ok())
        },
        |node| format!("{}; {}", last.borrow(), containers::explain(node, &[(pod.container, pod.namespace)])),
    )?;
    here.figure("etcd", health);
    Ok(())
}

fn api_server_manifest(here: &mut Doing<'_, '_>) -> Result<()> {
    manifest(here, here.run.profile.api_server().manifest)
}

fn api_server_ready(here: &mut Doing<'_, '_>) -> Result<()> {
    waits::api(here).map(drop)
}

/// The Job that asked for the backup is at work in the restored etcd. It is to say that its backup is there, in the pod that kubelet makes for it:
/// before its controller runs, which comes with the other manifests.
fn own_job(here: &mut Doing<'_, '_>) -> Result<()> {
    let AskedBy::Job(uid) = here.run.backup.manifest.asked_by.clone() else { return Ok(()) };
    let client = waits::api(here)?;
    match client.give_time(&uid, here.run.session.node.clock().now()) {
        Ok(change) => here.figure("changed", change),
        Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
        Err(error) => here.warn(format!("the Job of this backup may end as failed, which says nothing of the backup: {error:#}")),
    }
    Ok(())
}

/// The whole directory, so that it has every file that the backup has, and no other.
fn other_manifests(here: &mut Doing<'_, '_>) -> Result<()> {
    let manifests = here.below_kubernetes(here.run.profile.manifests)?;
    let mut left_alone = vec![PathBuf::from(STARTUP_MONITOR)];
    if here.asked().etcd == EtcdRestore::ClusterRestore {
        left_alone.push(manifests.join(here.run.profile.etcd().manifest));
    }
    let selection = Selection::all().only([&manifests]).except(left_alone)?;
    here.restore(STATIC_PODS, &selection, Extra::Delete)
}

fn restart_ovn(here: &mut Doing<'_, '_>) -> Result<()> {
    if !OVN.iter().any(|dir| here.run.session.node.exists(dir)) {
        return Ok(());
    }
    let client = waits::api(here)?;
    let (namespace, apps) = OVN_PODS;
    let last = std::cell::RefCell::new(String::new());
    let deleted = here.wait_for(
        "OVN's pods to be deleted",
        PAUSE,
        |_| Ok(client.delete_pods(namespace, apps).map_err(|error| *last.borrow_mut() = format!("{error:#}")).ok()),
        |_| last.borrow().clone(),
    )?;
    here.figure("deleted", deleted);
    Ok(())
}

/// The end of the phase: everything that ran when the backup was taken runs in a container that is not one of the old ones.
fn containers(here: &mut Doing<'_, '_>) -> Result<()> {
    let wanted = containers::wanted(here.run.profile, here.run.backup.manifest.operator_containers.as_deref());
    let OldContainersV1(old) =
        here.noted_by(Phase::RestoreFiles, step::OLD_CONTAINERS)?.context("the journal does not say which containers are old")?;
    let client = Client::of(here.run.session.node, here.run.profile)?;
    let left = std::cell::RefCell::new(wanted.clone());
    here.wait_for(
        "the control plane's containers",
        PAUSE,
        |here| {
            waits::approve(here, &client);
            // A runtime that does not answer this time may do so the next.
            if let Ok(containers) = crictl::containers(here.run.session.node) {
                *left.borrow_mut() = containers::missing(&wanted, &containers, &old);
            }
            Ok(left.borrow().is_empty().then_some(()))
        },
        |node| waits::with_obstacles(containers::explain(node, &left.borrow()), &client),
    )
}
