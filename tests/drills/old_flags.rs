//! By hand, as those do it who know upgrade-recovery.sh; and a second recovery from the same backup.

use anyhow::{Result, ensure};

use super::hands::{self, HOLD, agent, back_up, fails, ok, unit_status, wait_recovered};
use super::node::{Broken, Limit, Node};

const CALL: Limit = Limit::of(120);

/// The old tool, which has to end with 0.
fn old_tool(node: &Node, flags: &[&str]) -> Result<String> {
    Ok(node.exec(&[&["/var/recovery/upgrade-recovery.sh"], flags].concat(), CALL)?.checked()?.stdout)
}

#[test]
fn the_old_tools_way_works_twice_from_one_backup() -> Result<()> {
    let (node, _dir) = hands::up("kubeadm")?;
    let before = back_up(&node)?;
    node.upgrade(Broken::Etcd)?;
    // The old tool left the deployment to rpm-ostree, and so does its name.
    fails(&node, &["restore-files", "--yes"], 78, &["platform --rollback"])?;
    hands::over_the_reboot(&node, &["platform", "--rollback", "--yes"])?;
    ensure!(node.exists(HOLD)?, "kubelet is not held after the rollback");
    ensure!(node.exec(&["systemctl", "is-active", "kubelet"], CALL)?.stdout.trim() == "inactive");

    // Files, reboot; the unit does the rest.
    let said = old_tool(&node, &[])?;
    ensure!(said.contains("systemctl reboot"), "it does not ask for the reboot: {said}");
    fails(&node, &["resume"], 75, &["has not rebooted"])?;
    node.reboot()?;
    wait_recovered(&node, 1)?;
    before.is_back(&node)?;

    // The same backup again, one phase at a time: the unit leaves it alone.
    node.kubectl(&["create", "configmap", "written-after", "--from-literal=word=lost again"])?;
    node.kubectl(&["delete", "configmap", "written-before"])?;
    ensure!(old_tool(&node, &["--step"])?.contains("systemctl reboot"));
    node.reboot()?;
    let seen = || {
        let status = unit_status(&node)?;
        Ok((status.contains("left to a person") && status.contains("Active: inactive (dead)")).then_some(()))
    };
    CALL.wait("the unit to look at the run and leave it", seen, || unit_status(&node).unwrap_or_default())?;
    ensure!(node.exists(HOLD)?, "kubelet is not held after the reboot");
    let said = old_tool(&node, &["--resume", "--step"])?;
    ensure!(said.contains("the phase is done") && said.contains("resume --step"), "{said}");
    ensure!(ok(&node, &["status"])?.contains("resume --step"));
    let said = old_tool(&node, &["--resume", "--step"])?;
    ensure!(said.contains("the recovery is finished"), "{said}");
    wait_recovered(&node, 2)?;
    before.is_back(&node)?;
    ensure!(agent(&node, &["resume"])?.stdout.contains("nothing to do"));
    node.down()
}
