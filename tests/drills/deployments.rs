//! The rows of the platform table, on a node whose etcd has a partition of its own and whose static pods have company.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::hands::{self, HOLD, back_up, fails, ok, wait_recovered};
use real_node::release::{AFTER, BEFORE};
use real_node::{Broken, Limit, Node};

const OSTREE: Limit = Limit::of(120);

fn ostree(node: &Node, args: &[&str]) -> Result<()> {
    node.exec(&[&["ostree"], args].concat(), OSTREE)?.checked().map(drop)
}

/// What the agent makes of the deployments: the action's name, and how many there are.
fn action(node: &Node) -> Result<(String, usize)> {
    let report: Value = serde_json::from_str(&ok(node, &["platform", "--json"])?)?;
    let all = report["deployments"].as_array().context("no deployments")?;
    eprintln!("{}", report["summary"]);
    Ok((report["action"]["do"].as_str().unwrap_or_default().to_owned(), all.len()))
}

/// Where a deployment stands in boot order.
fn place(node: &Node, deployment: &str) -> Result<usize> {
    let report: Value = serde_json::from_str(&ok(node, &["platform", "--json"])?)?;
    let is_it = |one: &Value| format!("{}.{}", one["checksum"].as_str().unwrap_or_default(), one["serial"]) == deployment;
    report["deployments"].as_array().and_then(|all| all.iter().position(is_it)).with_context(|| format!("no {deployment} in {report}"))
}

/// There is no way that the agent takes by itself: it says why and shows the table, and the node is as it was.
fn is_refused(node: &Node, says: &[&str]) -> Result<()> {
    fails(node, &["recover", "--yes"], 78, says)?;
    ensure!(!node.exists(HOLD)? && !node.exists("/var/recovery/progress")?, "a refused recovery has begun");
    ensure!(node.run(&["systemctl", "is-active", "kubelet"])?.trim() == "active");
    Ok(())
}

/// Changes what a recovery has to take back.
fn change(node: &Node) -> Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "written-after", "namespace": "default"}, "data": {"word": "lost"}});
    node.apply(&[map])?;
    node.kubectl(&["delete", "configmap", "written-before", "--ignore-not-found"])?;
    node.run(&["sh", "-c", "rm /etc/kubernetes/manifests/criometricsproxy.yaml; date >/etc/kubernetes/manifests/.new; date >/etc/motd"])
        .map(drop)
}

/// The backup's deployment is booted and next; nothing is left of what was in its way.
fn is_settled(node: &Node, target: &str) -> Result<()> {
    ensure!(node.power()?.deployment == target, "booted is {} and not {target}", node.power()?.deployment);
    ensure!(action(node)?.0 == "nothing", "{:?}", action(node)?);
    ensure!(node.exists("/etc/kubernetes/manifests/criometricsproxy.yaml")? && !node.exists("/etc/kubernetes/manifests/.new")?);
    ensure!(node.run(&["findmnt", "--noheadings", "--output=TARGET", "--mountpoint=/var/lib/etcd"])?.trim() == "/var/lib/etcd");
    node.wait_containers(&["kube-rbac-proxy-crio"])?;
    let others = node.run(&["sh", "-c", "ls -A /var/lib/etcd"])?;
    ensure!(others.trim() == "member", "etcd's partition holds {others}");
    Ok(())
}

#[test]
fn whatever_stands_ahead_and_between_the_backups_deployment_comes_back() -> Result<()> {
    let (_dir, node) = hands::up("kubeadm,etcd-mount,extra-manifest,standbys=2")?;
    let target = node.power()?.deployment;
    let before = back_up(&node)?;
    // Once there is a backup, what stood behind goes: each holds a kernel in /boot.
    ensure!(action(&node)? == ("nothing".to_owned(), 1), "{:?}", action(&node)?);

    // Booted, with one release pending and another staged ahead of it: both are dropped, and nothing is rolled back.
    ostree(&node, &["admin", "deploy", "--os=rhcos", "--karg-append=pending=1", &AFTER.branch()])?;
    ostree(&node, &["admin", "deploy", "--stage", &AFTER.branch()])?;
    ensure!(action(&node)?.0 == "drop", "{:?}", action(&node)?);
    change(&node)?;
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    wait_recovered(&node, 1)?;
    before.is_back(&node)?;
    is_settled(&node, &target)?;

    // Behind the failed release and a standby, with another release staged ahead.
    node.upgrade(Broken::ApiServer)?;
    ostree(&node, &["admin", "deploy", "--os=rhcos", "--not-as-default", "--retain", "--karg-append=standby=1", &BEFORE.branch()])?;
    ostree(&node, &["admin", "deploy", "--stage", &AFTER.branch()])?;
    let (what, deployments) = action(&node)?;
    ensure!(what == "roll-back" && deployments >= 4, "{what} of {deployments}");
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    wait_recovered(&node, 2)?;
    before.is_back(&node)?;
    is_settled(&node, &target)?;

    // On the next release for good. Rolled back by hand, the node only has to reboot; rolled back once more, all is as it was.
    ostree(&node, &["admin", "deploy", "--os=rhcos", &AFTER.branch()])?;
    node.reboot()?;
    node.wait_well()?;
    change(&node)?;
    for expected in ["reboot", "roll-back"] {
        node.run(&["rpm-ostree", "rollback"])?;
        ensure!(action(&node)?.0 == expected, "{:?}", action(&node)?);
    }
    // Then somebody removes the backup's deployment: refused, and the table is shown.
    let place = place(&node, &target)?;
    ostree(&node, &["admin", "undeploy", &place.to_string()])?;
    is_refused(&node, &["is gone; nothing is pinned", AFTER.version, "booted"])?;
    // Deployed again it is pending and was never booted, and once it is pinned it can be trusted to stay.
    ostree(&node, &["admin", "deploy", "--os=rhcos", &BEFORE.branch()])?;
    is_refused(&node, &["is not pinned", BEFORE.version, AFTER.version, "pending"])?;
    ostree(&node, &["admin", "pin", "0"])?;
    ensure!(action(&node)?.0 == "reboot", "{:?}", action(&node)?);
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    wait_recovered(&node, 3)?;
    before.is_back(&node)?;
    is_settled(&node, &target)?;
    node.down()
}
