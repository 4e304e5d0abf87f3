//! Waits that cannot end: they end at their deadline, with the cause and the next command; what is mended goes on from there.

use anyhow::{Context, Result, ensure};
use recovery::report::event;
use serde_json::json;

use super::hands::{self, AGENT, UNIT, back_up, fails, unit_status, wait_recovered};
use super::moment::{Stopped, wait_event};
use real_node::{Limit, Node};

const SOON: Limit = Limit::of(120);
/// A whole recovery, at its slowest.
const RECOVERED: Limit = Limit::of(1200);
/// etcd's port for its peers.
const PORT: &str = "2380";
const DROP_IN: &str = "/etc/systemd/system/recovery-resume.service.d";

/// From now on the unit waits less long, and gives up after fewer attempts. Until now it did as it is packaged.
fn run_out_of_patience(node: &Node, wait: u32, attempts: u32) -> Result<()> {
    let drop_in =
        format!("[Unit]\nStartLimitBurst={attempts}\n[Service]\nRestartSec=1\nExecStart=\nExecStart={AGENT} --wait {wait} resume --unit\n");
    node.put(&format!("{DROP_IN}/short.conf"), drop_in.as_bytes(), 0o644)?;
    node.run(&["systemctl", "daemon-reload"])?;
    // The starts so far do not count.
    node.run(&["systemctl", "reset-failed", UNIT])?;
    node.run(&["systemctl", "restart", UNIT]).map(drop)
}

/// The unit is as it is packaged again.
fn take_heart(node: &Node) -> Result<()> {
    node.run(&["rm", "--recursive", DROP_IN])?;
    node.run(&["systemctl", "daemon-reload"]).map(drop)
}

/// The log has the failure as an entry of its kind, with the step it is of.
fn failure_is_logged(node: &Node, phase: &str, step: &str, cause: &str) -> Result<()> {
    let fields = [("MESSAGE_ID", event::STEP_FAILED.id), ("RECOVERY_PHASE", phase), ("RECOVERY_STEP", step)]
        .map(|(name, value)| format!("{name}={value}"));
    let argv = [&["journalctl", "--output=cat", "--no-pager"][..], &fields.each_ref().map(String::as_str)].concat();
    let logged = node.run(&argv)?;
    ensure!(logged.contains(cause), "the log has no failure of {step} with `{cause}`: {logged}");
    Ok(())
}

/// Waits until the unit has given up; what an administrator sees of it.
fn given_up(node: &Node) -> Result<String> {
    let seen = || {
        let status = unit_status(node)?;
        Ok(status.contains("Active: failed").then_some(status))
    };
    let status = SOON.wait("the unit to give up", seen, || unit_status(node).unwrap_or_default())?;
    eprintln!("{status}");
    Ok(status)
}

/// The line of a unit's status in which the agent says how it stands.
fn status_line(status: &str) -> Result<&str> {
    status.lines().find_map(|line| line.trim().strip_prefix("Status: ")).with_context(|| format!("there is no `Status:` in\n{status}"))
}

#[test]
fn an_etcd_that_cannot_start_is_given_up_with_its_cause_and_goes_on_once_mended() -> Result<()> {
    let (_dir, node) = hands::up("kubeadm")?;
    let before = back_up(&node)?;
    hands::over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    // Looked at before etcd is restored; taken when all that etcd needs is there.
    let _agent = Stopped::at(&node, "resume start-runtime step-done", SOON)?;
    let listen = format!("import socket, time; s = socket.create_server(('', {PORT})); time.sleep(9999)");
    node.run(&["systemd-run", "--quiet", "--unit=squatter", "python3", "-c", &listen])?;
    let taken = ["ss", "--listening", "--numeric", "--tcp", "--no-header", &format!("sport = :{PORT}")];
    node.wait_output("the port to be taken", &taken, |text| !text.is_empty())?;
    // systemd tells it to end and to go on.
    run_out_of_patience(&node, 15, 2)?;

    let status = given_up(&node)?;
    let line = status_line(&status)?;
    for words in ["step etcd-answers failed", "address already in use", "next: put the cause right and `/var/recovery/recovery resume`"] {
        ensure!(line.contains(words), "`{words}` is not in {line}");
    }
    ensure!(node.run(&["systemctl", "show", "--property=NRestarts", "--value", UNIT])?.trim() != "0", "it was not tried again");
    let says = ["phase resume, step etcd-answers failed", "address already in use", "recovery resume"];
    fails(&node, &["resume", "--wait", "5"], 69, &says)?;
    failure_is_logged(&node, "resume", "etcd-answers", "address already in use")?;
    let status = hands::ok(&node, &["status"])?;
    ensure!(status.contains("address already in use") && status.contains("next: `"), "{status}");

    node.run(&["systemctl", "stop", "squatter"])?;
    take_heart(&node)?;
    hands::ok(&node, &["resume"])?;
    wait_recovered(&node, 1)?;
    before.is_back(&node)?;
    node.down()
}

#[test]
fn a_webhook_and_a_stuck_operator_are_named_and_it_goes_on_once_they_are_mended() -> Result<()> {
    let (_dir, node) = hands::up("")?;
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "gatekeeper"},
        "webhooks": [{
            "name": "nothing-passes.example.com", "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 1, "clientConfig": {"url": "https://127.0.0.1:9/"},
            "rules": [{"apiGroups": ["operator.openshift.io"], "apiVersions": ["*"], "operations": ["*"], "resources": ["etcds"]}],
        }],
    });
    node.apply(&[webhook])?;
    let before = back_up(&node)?;
    node.put("/var/lib/operators/pace.json", br#"{"stuck": ["etcds"]}"#, 0o644)?;
    hands::over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    wait_event(&node, "redeploy etcds step-intent", RECOVERED)?;
    run_out_of_patience(&node, 15, 1)?;

    let status = given_up(&node)?;
    let line = status_line(&status)?;
    for words in ["phase redeploy", "nothing-passes.example.com", "recovery resume"] {
        ensure!(line.contains(words), "`{words}` is not in {line}");
    }
    fails(&node, &["resume", "--wait", "10"], 69, &["step etcds failed", "nothing-passes.example.com", "recovery resume"])?;

    node.kubectl(&["delete", "validatingwebhookconfiguration", "gatekeeper"])?;
    fails(&node, &["resume", "--wait", "10"], 69, &["step etcds failed", "etcds", "revision", "recovery resume"])?;

    node.run(&["rm", "/var/lib/operators/pace.json"])?;
    take_heart(&node)?;
    let done = node.exec(&[AGENT, "resume"], RECOVERED)?.checked()?;
    ensure!(done.stdout.contains("the recovery is finished"), "{}", done.stdout);
    wait_recovered(&node, 1)?;
    before.is_back(&node)?;
    node.down()
}
