//! What else of an OpenShift node is in the way of a recovery: the daemon that drives rpm-ostree, and OVN's databases of a later state.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use recovery::tools::crictl;

use crate::through::{ended, json, names, node, ok, over_the_reboot, run, settled, start};
use testing::node::{Kind, Node, wait_for};
use testing::place::{ApiPod, Config, Wrong};

const DAEMON: &str = "machine-config-daemon";
const OVN_PODS: &str = "/kubernetes.io/pods/openshift-ovn-kubernetes/";

/// From the next start of kubelet on, the daemon runs too.
fn add_daemon(node: &Node) -> Result<()> {
    node.place().change("config.json", |config: &mut Config| {
        let image = config.api_pods.first().context("no pods")?.image.clone();
        let namespace = "openshift-machine-config-operator".to_owned();
        config.api_pods.push(ApiPod { namespace, name: format!("{DAEMON}-7xk2q"), container: DAEMON.to_owned(), image });
        Ok(())
    })
}

/// Names of OVN's pods in the cluster.
fn ovn_pods(node: &Node) -> Result<Vec<String>> {
    let keys = node.keys()?.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned());
    Ok(keys.filter_map(|key| key.strip_prefix(OVN_PODS).map(str::to_owned)).collect())
}

/// Where a call of this program with these words is among all.
fn call(node: &Node, tool: &str, words: &str) -> Result<usize> {
    let calls = node.calls()?;
    calls.iter().position(|call| call.tool == tool && call.args.contains(words)).with_context(|| format!("no `{tool} {words}`: {calls:?}"))
}

#[test]
fn the_daemon_is_stopped_before_the_rollback_and_ovn_begins_anew() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    let databases = ["/var/lib/ovn-ic/etc", "/var/lib/ovn/etc"].map(|dir| node.at(dir));
    for dir in &databases {
        std::fs::create_dir_all(dir)?;
        for file in ["ovnnb_db.db", "ovnsb_db.db", "system-id.conf"] {
            std::fs::write(dir.join(file), "of now")?;
        }
    }
    ok(&node, &["backup"])?;
    ensure!(ovn_pods(&node)?.len() == 2, "{:?}", ovn_pods(&node)?);
    // The new release serves, and somebody wants the old one back all the same.
    add_daemon(&node)?;
    node.upgrade_platform()?;
    node.wait_containers(&[DAEMON, "etcd"])?;

    node.fault("rpm-ostree", "rollback", Some(1), Wrong::Fail("error: as told".to_owned(), 1))?;
    run(&node, &["recover", "--yes"])?.expect(1, &["phase platform, step roll-back failed"])?;
    let containers = crictl::containers(&node.agent())?;
    let daemon = containers.iter().find(|container| container.name == DAEMON).context("no daemon")?;
    ensure!(!daemon.running, "the daemon runs beside the rollback: {daemon:?}");
    ensure!(containers.iter().any(|container| container.name == "etcd" && container.running), "nothing else is stopped for it");
    ensure!(call(&node, "crictl", &format!(" {}", daemon.id))? < call(&node, "rpm-ostree", "rollback")?);

    over_the_reboot(&node, &["resume"])?;
    let (_, boots) = node.power()?;
    ok(&node, &["resume"])?;
    node.wait_boot(boots)?;
    ensure!(names(&databases[0])?.len() == 3, "they are removed once kubelet cannot run any more, not before");
    let report = json(&node, &["resume"])?;
    ensure!(report["outcome"] == "finished", "{report}");
    for dir in &databases {
        ensure!(names(dir)? == ["system-id.conf"], "{}: {:?}", dir.display(), names(dir)?);
    }
    let switch = [call(&node, "systemctl", "restart ovs-vswitchd.service")?, call(&node, "systemctl", "restart ovsdb-server.service")?];
    ensure!(switch[0] < switch[1], "{switch:?}");
    ensure!(ovn_pods(&node)?.is_empty(), "{:?}", ovn_pods(&node)?);
    let others = node.keys()?.into_iter().filter(|(key, _)| key.starts_with(b"/kubernetes.io/pods/")).count();
    ensure!(others > 0, "all pods are deleted");
    settled(&node)
}

/// A rebase under way, whose client is gone; it ends when the file that is returned is removed.
fn endless_rebase(node: &Node) -> Result<PathBuf> {
    let slow = node.at("/run/slow-registry");
    std::fs::write(&slow, "")?;
    let mut client = node.tool("rpm-ostree").args(["rebase", "os/4.17.0"]).spawn()?;
    let runs = || Ok(String::from_utf8(node.tool("rpm-ostree").args(["status", "--json"]).output()?.stdout)?.contains("\"Rebase\""));
    wait_for("the rebase to begin", runs)?;
    client.kill()?;
    client.wait()?;
    Ok(slow)
}

#[test]
fn what_a_rebase_stages_while_files_are_restored_is_not_booted() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.upgrade_platform()?;
    over_the_reboot(&node, &["platform", "--rollback", "--yes"])?;
    let slow = endless_rebase(&node)?;
    // The daemon's start may fail: that does not say that nothing runs.
    node.fault("rpm-ostree", "status --json", Some(1), Wrong::Fail("error: as told".to_owned(), 1))?;
    let says = ["phase restore-files, step next-boot failed", "another transaction (Rebase) kept rpm-ostree busy"];
    run(&node, &["--wait", "3", "restore-files", "--reboot", "--yes"])?.expect(1, &says)?;
    std::fs::remove_file(&slow)?;
    run(&node, &["resume"])?.expect(78, &["phase restore-files, step next-boot failed", "boots next", "next: `recovery restart`"])?;
    ensure!(json(&node, &["status"])?["hold"] == true, "kubelet is held");
    Ok(())
}

#[test]
fn a_rebase_that_outlives_the_daemon_is_waited_for_and_its_deployment_dropped() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.upgrade_platform()?;
    let slow = endless_rebase(&node)?;

    // It does not end in time: known before anything was dropped or rolled back.
    let short = ["--wait", "3", "platform", "--rollback", "--yes"];
    let says = ["phase platform, step drop-ahead failed", "another transaction (Rebase) kept rpm-ostree busy", "`rpm-ostree cancel`"];
    run(&node, &short)?.expect(1, &says)?;

    let (_, boots) = node.power()?;
    let agent = start(&node, &["resume"])?;
    wait_for("the agent to wait for it", || Ok(json(&node, &["status"])?["at_work"].is_string()))?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    std::fs::remove_file(&slow)?;
    ended(agent)?.expect(0, &["rpm-ostree is busy with another transaction (Rebase)"])?;
    node.wait_boot(boots)?;
    let table = json(&node, &["platform"])?;
    ensure!(table["action"]["do"] == "nothing" && table["deployments"][0]["booted"] == true, "{table}");
    let dropped = node.calls()?.iter().filter(|call| call.tool == "rpm-ostree" && call.args == "cleanup -p").count();
    ensure!(dropped == 1, "the agent dropped nothing: the rebase staged nothing");
    Ok(())
}
