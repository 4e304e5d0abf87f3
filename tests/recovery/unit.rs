//! What the systemd unit runs after a reboot, and people who run `resume` while it is at work.

use anyhow::{Result, ensure};

use crate::through::{ended, journal_says, json, node, ok, over_the_reboot, run, same, settled, start};
use testing::node::{Kind, Node, wait_for};
use testing::place::Wrong;

/// What the unit's agent has said so far; nothing while it was never started.
fn unit_log(node: &Node) -> String {
    // The unit runs the installed agent, and its messages say how to call that.
    let agent = format!("`{} ", node.at("/var/recovery/recovery").display());
    std::fs::read_to_string(node.place().state("resume.log")).unwrap_or_default().replace(&agent, "`recovery ")
}

#[test]
fn the_unit_goes_on_after_the_reboot_and_others_follow_it() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |options| options.resume_unit = true)?;
    ok(&node, &["backup"])?;
    let before = node.snapshot()?;
    node.reboot()?;
    node.wait_api()?;
    ensure!(unit_log(&node).is_empty(), "with no recovery open, the unit is not started: {}", unit_log(&node));
    node.ruin()?;

    // It is at work for a while, and then fails.
    node.fault("systemctl", "stop kubelet", None, Wrong::Slow(15_000))?;
    node.fault("systemctl", "start containerd", None, Wrong::Fail("Job for containerd.service failed.".to_owned(), 1))?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    journal_says(&node, "resume", "stop-kubelet")?;
    for verb in ["backup", "restore-files", "restart", "abandon"] {
        run(&node, &[verb, "--yes"])?.expect(75, &["`recovery resume` (process", "run this again when that has ended"])?;
    }
    let status = json(&node, &["status"])?;
    let at_work = status["at_work"].as_str().is_some_and(|holder| holder.starts_with("`recovery resume` (process"));
    ensure!(at_work && status["next"].is_null(), "there is nothing for a person to do: {status}");
    let failure = [
        "phase resume, step start-runtime failed",
        "Job for containerd.service failed.",
        "next: put the cause right and `recovery resume`",
    ];
    let followed = run(&node, &["resume"])?.expect(69, &["another agent is at work"])?;
    ensure!(failure.iter().all(|words| followed.err.contains(words)), "{followed}");
    ensure!(failure.iter().all(|words| unit_log(&node).contains(words)), "{}", unit_log(&node));

    let status = json(&node, &["status"])?;
    ensure!(status["at_work"].is_null() && status["next"] == "`recovery resume`", "{status}");

    // Mended; two people at once.
    node.clear_faults()?;
    let first = start(&node, &["resume"])?;
    journal_says(&node, "resume", "etcd-answers")?;
    let second = ended(start(&node, &["--json", "resume"])?)?.expect(0, &["another agent is at work"])?;
    ended(first)?.expect(0, &[])?;
    let report: serde_json::Value = serde_json::from_str(&second.out)?;
    ensure!(report["outcome"] == "finished" && report["run"]["id"].is_string(), "{report}");
    same(&node, &before)?;
    settled(&node)?;

    // One phase at a time is a person's business.
    ok(&node, &["restore-files", "--step", "--yes"])?;
    run(&node, &["resume"])?.expect(75, &["has not rebooted", "its boot id is the same; next: `systemctl reboot`"])?;
    node.fault("systemctl", "SoftRebootsCount", Some(1), Wrong::Print("SoftRebootsCount=1\n".to_owned()))?;
    run(&node, &["resume"])?.expect(75, &["has not rebooted", "gone through a soft reboot", "next: `systemctl reboot`"])?;
    node.reboot()?;
    wait_for("the unit's agent", || Ok(unit_log(&node).contains("recovery resume --step")))?;
    ensure!(node.at("/var/lib/recovery/hold-kubelet").exists(), "the unit went on with a run that waits for a person");
    let left = json(&node, &["resume", "--unit"])?;
    ensure!(left["outcome"] == "left-to-a-person" && left["next"] == "`recovery resume --step`", "{left}");
    let done = json(&node, &["resume", "--step"])?;
    ensure!(done["outcome"] == "phase-done", "{done}");
    // Without --step a person asks for all the rest.
    let (_, boots) = node.power()?;
    ensure!(json(&node, &["resume"])?["outcome"] == "finished" && node.power()?.1 == boots);
    settled(&node)
}
