//! Nodes whose container runtime is another unit or another socket than their kind's usual ones; and what a recovery needs that is not
//! there.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use recovery::backup::manifest::Manifest;
use recovery::tools::crictl;
use serde_json::json;

use crate::through::{names, node, ok, over_the_reboot, run, same, settled};
use testing::node::{Kind, Node, checked, wait_for};
use testing::place::Config;

/// The manifest of the one backup.
fn manifest(node: &Node) -> Result<Manifest> {
    let backups = node.at("/var/recovery/backups");
    let [id] = &names(&backups)?[..] else { anyhow::bail!("not one backup: {:?}", names(&backups)?) };
    Manifest::read(&backups.join(id))
}

/// The calls of a program so far, its arguments.
fn calls(node: &Node, tool: &str) -> Result<Vec<String>> {
    Ok(node.calls()?.into_iter().filter(|call| call.tool == tool).map(|call| call.args).collect())
}

/// A recovery is refused with this reason, and has changed nothing; a backup warns of the same.
fn refused(node: &Node, why: &str) -> Result<()> {
    let changes = |calls: Vec<String>| calls.into_iter().filter(|call| !call.contains("show ")).collect::<Vec<_>>();
    let before = (node.snapshot()?, changes(calls(node, "systemctl")?));
    run(node, &["recover", "--yes"])?.expect(78, &["nothing was changed", why, "next:"])?;
    let left = ["/var/recovery/progress", "/var/recovery/undo.json", "/var/lib/recovery/hold-kubelet"].map(|path| node.at(path).exists());
    ensure!(left == [false; 3], "it has begun: {left:?}");
    let after = (node.snapshot()?, changes(calls(node, "systemctl")?));
    ensure!(before.0.differences(&after.0).is_empty() && before.1 == after.1, "{:?}", before.0.differences(&after.0));
    let said = ok(node, &["backup"])?;
    let warns = said.lines().any(|line| line.contains("warning: a recovery would be refused here: ") && line.contains(why));
    ensure!(warns, "{said}");
    ok(node, &["prune", "--keep", "1", "--yes"]).map(drop)
}

#[test]
fn a_kubeadm_node_with_crio() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |options| options.runtime = ("cri-o.service", "/var/run/crio/crio.sock"))?;
    let said = ok(&node, &["backup"])?;
    ensure!(!said.contains("a recovery would be refused"), "{said}");
    ensure!(manifest(&node)?.runtime_unit.as_deref() == Some("cri-o.service"));
    // Without being told, crictl looks at the usual places; the agent says what kubelet is told.
    let endpoint = "--runtime-endpoint=unix:///run/crio/crio.sock --image-endpoint=unix:///run/crio/crio.sock ";
    let asked = |node: &Node| Ok::<_, anyhow::Error>(calls(node, "crictl")?.iter().filter(|call| call.contains(endpoint)).count());
    ensure!(asked(&node)? > 0, "{:?}", calls(&node, "crictl")?);

    // A unit, a program, a directory: each is seen before anything is changed.
    let (unit, away) = (node.at("/usr/lib/systemd/system/cri-o.service"), node.at("/usr/lib/systemd/system/away"));
    std::fs::rename(&unit, &away)?;
    refused(&node, "there is no unit cri-o.service on this node")?;
    std::fs::rename(&away, &unit)?;
    let (program, away) = (node.place().tools().join("crictl"), node.place().dir().join("crictl"));
    std::fs::rename(&program, &away)?;
    refused(&node, "`crictl` is missing on this node")?;
    std::fs::rename(&away, &program)?;
    // Where /usr/local leads to.
    let folder = node.at("/var/usrlocal");
    checked(Command::new("mount").arg("--bind").arg(&folder).arg(&folder))?;
    checked(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&folder))?;
    refused(&node, "/var/usrlocal is on a file system that is mounted read-only")?;
    checked(Command::new("umount").arg(&folder))?;
    // etcd's data itself, not what is above it.
    let folder = node.at("/var/lib/etcd");
    checked(Command::new("mount").arg("--bind").arg(&folder).arg(&folder))?;
    checked(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&folder))?;
    let dry_run = || run(&node, &["restore-files", "--dry-run"]);
    let said = dry_run()?;
    checked(Command::new("umount").arg(&folder))?;
    said.expect(78, &["/var/lib/etcd is on a file system that is mounted read-only", "next:"])?;
    dry_run()?.expect(0, &[])?;

    let before = node.snapshot()?;
    node.ruin()?;
    over_the_reboot(&node, &["recover", "--yes"])?;
    ok(&node, &["resume"])?;
    same(&node, &before)?;
    let units = calls(&node, "systemctl")?;
    ensure!(["stop cri-o.service", "start cri-o.service"].iter().all(|call| units.iter().any(|made| made == call)), "{units:?}");
    ensure!(!units.iter().any(|call| call.contains("containerd")), "{units:?}");
    settled(&node)
}

/// The failed release calls the runtime's unit something else: what listens there is stopped there, what the backup recorded is started.
#[test]
fn a_failed_release_that_calls_the_runtime_something_else() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |options| options.runtime_after_upgrade = Some("cri-runtime.service"))?;
    ok(&node, &["backup"])?;
    ensure!(manifest(&node)?.runtime_unit.as_deref() == Some("crio.service"));
    let rollback = "a recovery that has to roll back would be refused here: `rpm-ostree` is missing on this node";
    let (program, away) = (node.place().tools().join("rpm-ostree"), node.place().dir().join("rpm-ostree"));
    std::fs::rename(&program, &away)?;
    let said = ok(&node, &["backup"])?;
    ensure!(said.contains(rollback), "{said}");
    std::fs::rename(&away, &program)?;
    let said = ok(&node, &["backup"])?;
    ensure!(!said.contains("would be refused here"), "{said}");
    ok(&node, &["prune", "--keep", "1", "--yes"])?;
    node.ruin()?;

    // What the backup's deployment lacks is seen now, not after two reboots.
    let deployments = node.place().sysroot().join("ostree/deploy/rhcos/deploy");
    let files: Vec<_> = names(&deployments)?
        .iter()
        .map(|deployment| deployments.join(deployment).join("usr/lib/systemd/system/crio.service"))
        .filter(|path| path.exists())
        .collect();
    let [file] = &files[..] else { anyhow::bail!("not one deployment has the unit: {files:?}") };
    std::fs::rename(file, file.with_extension("away"))?;
    let why = "there is no unit crio.service in the backup's deployment or its /etc";
    run(&node, &["recover", "--yes"])?.expect(78, &["nothing was changed", why, "next:"])?;
    std::fs::rename(file.with_extension("away"), file)?;

    over_the_reboot(&node, &["recover", "--yes"])?;
    let (_, boots) = node.power()?;
    ok(&node, &["resume"])?;
    node.wait_boot(boots)?;
    let said = run(&node, &["--json", "resume"])?.expect(0, &[])?;
    ensure!(serde_json::from_str::<serde_json::Value>(&said.out)?["outcome"] == "finished", "{said}");
    ensure!(!said.to_string().contains("CRI-O left no"), "{said}");
    let units = calls(&node, "systemctl")?;
    let made = |call: &str| units.iter().any(|made| made == call);
    ensure!(made("stop crio.service") && made("start crio.service") && !made("start cri-runtime.service"), "{units:?}");
    settled(&node)
}

/// The operator of kube-scheduler, scaled to zero: kubelet has no pod of it any more, and nobody answers a reason to redeploy.
fn scale_to_zero(node: &Node) -> Result<()> {
    const CONTAINER: &str = "kube-scheduler-operator-container";
    node.place().change("config.json", |config: &mut Config| {
        config.api_pods.retain(|pod| pod.container != CONTAINER);
        Ok(())
    })?;
    let emulated = node.at("/var/lib/emulated");
    std::fs::create_dir_all(&emulated)?;
    std::fs::write(emulated.join("api-operators.json"), json!({"absent": ["kubeschedulers"]}).to_string())?;
    checked(node.tool("systemctl").args(["restart", "kubelet.service"]))?;
    let runs = || Ok(crictl::containers(&node.agent())?.iter().any(|c| c.running && c.name == CONTAINER));
    wait_for("the operator to be gone", || runs().map(|runs: bool| !runs))
}

#[test]
fn an_openshift_node_with_a_runtime_of_its_own_and_an_operator_scaled_to_zero() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |options| options.runtime = ("site-runtime.service", "/run/site/crio.sock"))?;
    scale_to_zero(&node)?;
    ok(&node, &["backup"])?;
    let manifest = manifest(&node)?;
    ensure!(manifest.runtime_unit.as_deref() == Some("site-runtime.service"));
    let ran = manifest.operator_containers.context("it does not say which operators ran")?;
    let containers: Vec<&str> = ran.iter().map(|(container, _)| container.as_str()).collect();
    ensure!(containers == ["etcd-operator", "kube-apiserver-operator", "kube-controller-manager-operator"], "{containers:?}");

    node.ruin()?;
    over_the_reboot(&node, &["recover", "--yes"])?;
    let (_, boots) = node.power()?;
    ok(&node, &["resume"])?;
    node.wait_boot(boots)?;
    // Well below the deadline of one wait.
    let begun = std::time::Instant::now();
    let said =
        run(&node, &["--json", "resume"])?.expect(0, &["kubeschedulers is not redeployed", "did not run when the backup was taken"])?;
    ensure!(begun.elapsed() < std::time::Duration::from_secs(100), "{:?}", begun.elapsed());
    ensure!(serde_json::from_str::<serde_json::Value>(&said.out)?["outcome"] == "finished", "{said}");
    let redeployed = node.keys()?.into_iter().filter(|(key, _)| key.starts_with(b"/kubernetes.io/operator.openshift.io/"));
    let asked: Vec<String> = redeployed
        .filter(|(_, object)| String::from_utf8_lossy(object).contains("\"forceRedeploymentReason\":\"recovery "))
        .map(|(key, _)| String::from_utf8_lossy(&key).into_owned())
        .collect();
    ensure!(asked.len() == 3 && !asked.iter().any(|key| key.contains("kubeschedulers")), "{asked:?}");
    let units = calls(&node, "systemctl")?;
    ensure!(
        ["stop site-runtime.service", "start site-runtime.service"].iter().all(|call| units.iter().any(|made| made == call)),
        "{units:?}"
    );
    settled(&node)
}
