//! What a recovery takes away and its report keeps: that somebody let an upgrade pass the gate.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::through::{journal_says, names, node, ok, over_the_reboot, settled, start};
use testing::node::{Kind, Node};
use testing::place::Wrong;

const MANAGEMENT: &str = "/registry/k0rdent.mirantis.com/managements/kcm";
const JOURNAL: &str = "/var/recovery/progress";
const SAYS: &str = "in the etcd data that was replaced, an annotation lets the upgrade that it names pass the gate without a good backup: \"kcm-0-4-0: no time\"";

/// The agent goes on until it is about to do this step, and is killed there.
fn killed_at(node: &Node, phase: &str, step: &str) -> Result<()> {
    let mut agent = start(node, &["resume"])?;
    let says = journal_says(node, phase, step);
    kill_process(Pid::from_child(&agent), Signal::KILL)?;
    agent.wait()?;
    says
}

#[test]
fn an_annotation_in_the_data_from_before_a_restart_and_before_a_kill_is_in_the_report() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |_| ())?;
    ok(&node, &["backup"])?;
    let management = json!({
        "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management", "spec": {"release": "kcm-0-4-0"},
        "metadata": {"name": "kcm", "uid": "kcm", "annotations": {"recovery/skip-gate": "kcm-0-4-0: no time"}},
    });
    node.put_key(MANAGEMENT, &management.to_string())?;
    node.ruin()?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    // The first run has replaced etcd's data; the one that takes its place finds nothing of it in what it replaces.
    killed_at(&node, "resume", "start-kubelet")?;
    over_the_reboot(&node, &["restart", "--yes"])?;

    // There is time to kill it after the data is gone.
    killed_at(&node, "finish", "cluster")?;
    node.fault("systemctl", "", None, Wrong::Slow(2000))?;
    killed_at(&node, "finish", "put-back")?;
    node.clear_faults()?;
    let of_the_step = |line: &&str| serde_json::from_str(line).is_ok_and(|line: Value| line["step"] == "etcd-copy");
    let journal = std::fs::read_to_string(node.at(JOURNAL))?;
    let (noted, _) = journal.lines().enumerate().filter(|(_, line)| of_the_step(line)).nth(1).context("the step has noted nothing")?;
    let lines: Vec<&str> = journal.split_inclusive('\n').collect();
    let read: Value = serde_json::from_str(lines[noted])?;
    ensure!(read["event"] == "step-noted" && read["detail"] == json!([SAYS]), "{read}");
    // The power failed before the step was said to be done.
    std::fs::write(node.at(JOURNAL), lines[..=noted].concat())?;
    ok(&node, &["resume"])?;
    settled(&node)?;
    let reports = names(&node.at("/var/recovery/history"))?
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "json"));
    let reports = reports.map(|name| Ok(serde_json::from_slice(&std::fs::read(node.at("/var/recovery/history").join(name))?)?));
    let reports = reports.collect::<Result<Vec<Value>>>()?;
    let report = reports.iter().find(|report| report["end"] == "finished").context("no report of a recovery that ended")?;
    let said = report["run"]["warnings"].as_array().into_iter().flatten().filter(|warning| **warning == SAYS).count();
    ensure!(said == 1, "{}", report["run"]["warnings"]);
    Ok(())
}
