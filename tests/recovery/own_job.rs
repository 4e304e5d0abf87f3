//! The Job that asked for the backup comes back out of its etcd, and under CRI-O runs again, in whatever pod kubelet makes for it.

use anyhow::{Context, Result, ensure};
use recovery::backup::asked_by::HANDED_ON;
use recovery::tools::crictl;
use serde_json::{Value, json};

use crate::through::{Ended, command, node, ok, settled};
use testing::node::{Kind, Node};

const JOB: &str = "11111111-2222-4333-8444-555555555555";
const HUBS: &str = "22222222-2222-4333-8444-555555555555";
const OTHER: &str = "33333333-2222-4333-8444-555555555555";

/// `backup`, as a container that has entered its node calls it.
fn backup_for(node: &Node, asker: &str) -> Result<Ended> {
    Ok(command(node, &["backup"])?.env(HANDED_ON, asker).output().context("running the agent")?.into())
}

/// It took none: its Job has had it.
fn is_done(node: &Node, asker: &str, job: &str) -> Result<()> {
    let said = backup_for(node, asker)?.expect(0, &[])?.out;
    ensure!(said.starts_with(&format!("already done: job/{job} asked for the backup ")), "{said}");
    Ok(())
}

/// A sandbox of a pod with these labels, as CRI-O shows it of a pod whose container has ended.
fn sandbox(node: &Node, pod: &str, labels: &Value) -> Result<()> {
    node.place().change("runtime.json", |runtime: &mut Value| {
        let sandboxes = runtime["sandboxes"].as_array_mut().context("no sandboxes")?;
        sandboxes.push(json!({
            "id": pod.replace('-', "").repeat(2), "name": format!("backup-{}", &pod[..4]), "namespace": "recovery", "uid": pod, "attempt": 0,
            "created_at": 1, "ready": false, "host_network": true, "labels": labels, "source": "api",
        }));
        Ok(())
    })
}

fn of_job(job: &str) -> Value {
    json!({"batch.kubernetes.io/controller-uid": job, "controller-uid": job})
}

fn asked_by(node: &Node) -> Result<Vec<String>> {
    let list: Value = serde_json::from_str(&ok(node, &["--json", "list"])?)?;
    let asked = list.as_array().context("no list")?.iter().map(|one| one["asked_by"].as_str().unwrap_or_default().to_owned());
    Ok(asked.collect())
}

#[test]
fn the_job_of_a_backup_is_served_once_in_whatever_pod_it_comes_back() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    let pods = ["0a1b2c3d-1111", "0a1b2c3d-2222", "0a1b2c3d-3333", "0a1b2c3d-4444"].map(|start| format!("{start}-4333-8444-555555555555"));
    let [first, second, third, unknown] = &pods;
    backup_for(&node, &format!("job/{JOB}"))?.expect(0, &[])?;
    is_done(&node, &format!("job/{JOB}"), JOB)?;
    // The hub's Job does not say its UID: the runtime does, also of a new pod.
    sandbox(&node, first, &of_job(HUBS))?;
    backup_for(&node, &format!("pod/{first}"))?.expect(0, &[])?;
    ensure!(asked_by(&node)? == [format!("job/{HUBS}"), format!("job/{JOB}")], "{:?}", asked_by(&node)?);
    sandbox(&node, second, &of_job(HUBS))?;
    is_done(&node, &format!("pod/{second}"), HUBS)?;
    node.ruin()?;
    node.roll_back_platform()?;

    // What has ended of the Job's pod goes with the others: CRI-O would keep it over no reboot, but its image might go with it.
    sandbox(&node, third, &of_job(HUBS))?;
    ok(&node, &["restore-files", "--yes"])?;
    let (asks, removed) = (node.calls()?, third.replace('-', "").repeat(2));
    ensure!(
        asks.iter().any(|call| call.tool == "crictl" && call.args.contains("rmp") && call.args.contains(&removed)),
        "it stays: {asks:?}"
    );
    node.reboot()?;

    // The recovery is open.
    testing::node::wait_for("the container runtime", || Ok(crictl::answers(&node.agent())))?;
    sandbox(&node, third, &of_job(HUBS))?;
    sandbox(&node, unknown, &json!({"app": "backup"}))?;
    is_done(&node, &format!("job/{JOB}"), JOB)?;
    is_done(&node, &format!("pod/{third}"), HUBS)?;
    backup_for(&node, &format!("job/{OTHER}"))?.expect(75, &["a recovery is in progress"])?;
    backup_for(&node, &format!("pod/{unknown}"))?.expect(75, &["a recovery is in progress", "its Job is unknown", "RECOVERY_JOB_UID"])?;
    ok(&node, &["resume"])?;
    settled(&node)?;

    is_done(&node, &format!("job/{JOB}"), JOB)?;
    ensure!(asked_by(&node)?.len() == 2, "{:?}", asked_by(&node)?);
    backup_for(&node, &format!("job/{OTHER}"))?.expect(0, &[])?;
    ensure!(asked_by(&node)?[0] == format!("job/{OTHER}"), "another Job had no backup: {:?}", asked_by(&node)?);
    Ok(())
}
