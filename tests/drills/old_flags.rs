//! By hand, as those do it who know upgrade-recovery.sh; and a second recovery from the same backup.

use std::process::Stdio;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::hands::{self, HOLD, UNIT, agent, back_up, fails, ok, unit_status, wait_recovered};
use super::moment::{Stopped, journal, said};
use real_node::{Broken, Limit, Node};

const CALL: Limit = Limit::of(300);
const UNIT_FILE: &str = "/etc/systemd/system/recovery-resume.service";

/// The old tool, which has to end with 0.
fn old_tool(node: &Node, flags: &[&str]) -> Result<String> {
    Ok(node.exec(&[&["/var/recovery/upgrade-recovery.sh"], flags].concat(), CALL)?.checked()?.stdout)
}

/// The old tool's `--resume --step`, which meets a kubelet without the certificate that the backup has of it, as when that has expired: it has to
/// ask for another one before its node can be Ready.
fn resume_with_a_kubelet_that_must_ask(node: &Node) -> Result<String> {
    // Not by `exec`, which lets everything go on that is stopped.
    let tool = node
        .command(&["/var/recovery/upgrade-recovery.sh", "--resume", "--step"])?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let agent = Stopped::at(node, "resume kubelet-files step-done", CALL)?;
    let steps: Vec<String> = journal(node)?.iter().map(said).collect();
    ensure!(!steps.iter().any(|step| step.starts_with("resume start-kubelet ")), "the agent was stopped too late: {steps:?}");
    node.run(&["sh", "-c", "rm /etc/kubernetes/kubelet.conf /var/lib/kubelet/pki/kubelet-client-*"])?;
    agent.go_on_with(&tool)?;
    let done = tool.wait_with_output()?;
    ensure!(done.status.success(), "it ended with {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// What kubelet asked for in this boot, and the agent approved it, as the request and the log say.
fn the_agent_has_approved(node: &Node) -> Result<()> {
    let requests = node.get(&["certificatesigningrequests"])?;
    let since = node.power()?.since;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_this_boot = |request: &&Value| {
        let made = word(&request["metadata"]["creationTimestamp"]).parse::<jiff::Timestamp>();
        made.is_ok_and(|made| made.as_second() >= since) && request["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client-kubelet"
    };
    let asked: Vec<&Value> = requests["items"].as_array().into_iter().flatten().filter(of_this_boot).collect();
    ensure!(!asked.is_empty(), "kubelet has asked for nothing: {requests}");
    for request in asked {
        let name = word(&request["metadata"]["name"]);
        let approved = &request["status"]["conditions"][0];
        ensure!(approved["type"] == "Approved" && approved["reason"] == "RecoveryApprove", "{name} is {}", request["status"]);
        ensure!(request["status"]["certificate"].is_string(), "{name} was not signed");
        let logged = node.run(&["journalctl", "--boot", "--output=cat", "--no-pager", &format!("REQUEST={name}")])?;
        ensure!(logged.contains("approved a certificate request of this node"), "the log does not name {name}: {logged}");
    }
    ensure!(node.exists("/etc/kubernetes/kubelet.conf")?, "kubelet has no kubeconfig");
    Ok(())
}

#[test]
fn the_old_tools_way_works_twice_from_one_backup() -> Result<()> {
    let (_dir, node) = hands::up("kubeadm")?;
    let before = back_up(&node)?;
    node.upgrade(Broken::Etcd)?;
    // The old tool left the deployment to rpm-ostree, and so does its name.
    fails(&node, &["restore-files", "--yes"], 78, &["platform --rollback"])?;
    hands::over_the_reboot(&node, &["platform", "--rollback", "--yes"])?;
    ensure!(node.exists(HOLD)?, "kubelet is not held after the rollback");
    ensure!(node.exec(&["systemctl", "is-active", "kubelet"], CALL)?.stdout.trim() == "inactive");

    // Files, reboot, and the rest by hand, for the unit is masked.
    let said = old_tool(&node, &[])?;
    ensure!(said.contains("systemctl reboot"), "it does not ask for the reboot: {said}");
    fails(&node, &["resume"], 75, &["has not rebooted"])?;
    node.run(&["sh", "-c", &format!("cp {UNIT_FILE} /var/tmp && ln --symbolic --force /dev/null {UNIT_FILE}")])?;
    node.reboot()?;
    let state = node.exec(&["systemctl", "is-enabled", UNIT], CALL)?.stdout;
    ensure!(state.trim() == "masked" && node.exists(HOLD)? && node.exists("/var/recovery/progress")?, "the unit is {state}");
    let said = old_tool(&node, &["--resume"])?;
    ensure!(said.contains("the recovery is finished"), "{said}");
    node.run(&["sh", "-c", &format!("mv /var/tmp/{UNIT} {UNIT_FILE} && systemctl daemon-reload")])?;
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
    let said = resume_with_a_kubelet_that_must_ask(&node)?;
    ensure!(said.contains("the phase is done") && said.contains("resume --step"), "{said}");
    ensure!(ok(&node, &["status"])?.contains("resume --step"));
    let said = old_tool(&node, &["--resume", "--step"])?;
    ensure!(said.contains("the recovery is finished"), "{said}");
    wait_recovered(&node, 2)?;
    the_agent_has_approved(&node)?;
    before.is_back(&node)?;
    ensure!(agent(&node, &["resume"])?.stdout.contains("nothing to do"));
    node.down()
}
