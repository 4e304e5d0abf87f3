//! `recovery up`: everything on a node, and what is said of what is not up.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json as value};

use crate::through::{self, Ended, command, json, node, ok, over_the_reboot, run};
use testing::node::{Kind, Node, wait_for};

const OPERATOR: &str = "/kubernetes.io/config.openshift.io/clusteroperators/machine-config";
const WORKLOADS: &str = "/kubernetes.io/deployments/site";

fn up(node: &Node, args: &[&str]) -> Result<(Option<i32>, Value)> {
    let ended: Ended = node.run(&[&["--json", "up"], args].concat())?.into();
    let report = serde_json::from_str(&ended.out).with_context(|| format!("{ended}"))?;
    Ok((ended.code, report))
}

/// A Deployment of two pods, so many of which are available.
fn deployment(available: i64) -> String {
    value!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "radio", "namespace": "site"},
        "spec": {"replicas": 2}, "status": {"availableReplicas": available},
    })
    .to_string()
}

/// The parts that are not up, each with what is said of its first object.
fn down(report: &Value) -> Vec<(String, String)> {
    let parts = report["parts"].as_array().cloned().unwrap_or_default();
    let said = |part: &Value| {
        let trouble = part["down"][0]["trouble"].as_str()?;
        Some((part["part"].as_str()?.to_owned(), trouble.to_owned()))
    };
    parts.iter().filter_map(said).collect()
}

#[test]
fn everything_and_what_is_not() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    let began = Instant::now();
    let (code, report) = up(&node, &["--hold", "3"])?;
    ensure!(code == Some(0) && report["up"] == true && down(&report).is_empty(), "{report}");
    ensure!(began.elapsed() >= Duration::from_secs(3) && report["held"].as_f64().is_some_and(|held| held >= 3.0), "{report}");
    let text = ok(&node, &["up", "--hold", "0"])?;
    for part in ["kubelet", "container runtime", "static pods", "API server", "ClusterVersion", "ClusterOperators", "everything is up"] {
        ensure!(text.contains(part), "it does not name {part}: {text}");
    }
    let backup = json(&node, &["backup"])?;
    let id = backup["manifest"]["id"].as_str().context("no id")?;

    let (_, found) = node.keys()?.into_iter().find(|(key, _)| key == OPERATOR.as_bytes()).context("no such operator")?;
    let mut operator: Value = serde_json::from_slice(&found)?;
    for condition in operator["status"]["conditions"].as_array_mut().context("no conditions")? {
        if condition["type"] == "Degraded" {
            condition["status"] = value!("True");
        }
    }
    node.put_key(OPERATOR, &operator.to_string())?;
    for args in [&["--wait", "1"][..], &["--wait", "1", "--backup", id]] {
        let (code, report) = up(&node, args)?;
        ensure!(code == Some(69) && down(&report) == [("cluster-operators".to_owned(), "it is degraded".to_owned())], "{report}");
    }
    // A backup that was taken with it degraded does not wait for better.
    let backup = json(&node, &["backup"])?;
    let id = backup["manifest"]["id"].as_str().context("no id")?;
    let (code, report) = up(&node, &["--hold", "0", "--backup", id])?;
    ensure!(code == Some(0), "{report}");
    node.put_key(OPERATOR, &String::from_utf8_lossy(&found))?;

    // It comes up while it is waited for.
    let manifest = node.at("/etc/kubernetes/manifests/kube-scheduler-pod.yaml");
    let scheduler = std::fs::read(&manifest)?;
    std::fs::remove_file(&manifest)?;
    wait_for("the scheduler to end", || Ok(down(&up(&node, &["--wait", "0"])?.1).iter().any(|(part, _)| part == "static-pods")))?;
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| up(&node, &["--hold", "1", "--wait", "60"]));
        std::fs::write(&manifest, &scheduler)?;
        waiting.join().expect("waiting")
    })?;
    ensure!(waiting.0 == Some(0), "{}", waiting.1);

    // Without an API server nothing else can be said of the cluster.
    std::fs::remove_file(node.at("/etc/kubernetes/manifests/kube-apiserver-pod.yaml"))?;
    let (code, report) = up(&node, &["--wait", "5"])?;
    let parts: Vec<String> = down(&report).into_iter().map(|(part, _)| part).collect();
    ensure!(code == Some(69) && parts == ["static-pods", "api-server"], "{report}");
    ensure!(report["parts"].as_array().is_some_and(|parts| parts.len() == 4), "{report}");
    Ok(())
}

/// What the agent says that it has found so far.
fn said(file: &Path, words: &str) -> Result<()> {
    wait_for(words, || Ok(std::fs::read_to_string(file)?.contains(words)))
}

#[test]
fn a_recovery_ends_when_everything_has_stayed_up_and_names_what_did_not() -> Result<()> {
    let (temporary, node) = node(Kind::Kubeadm, |_| ())?;
    let radio = |available: i64| node.put_key("/registry/deployments/site/radio", &deployment(available));
    radio(2)?;
    ok(&node, &["backup"])?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    ok(&node, &["resume", "--step"])?;
    radio(1)?;
    run(&node, &["resume", "--wait", "1"])?.expect(
        69,
        &["step cluster failed", "waited", "workloads: Deployment site/radio: 1 of 2 pods are available", "next:", "recovery resume"],
    )?;

    radio(2)?;
    let file = temporary.path().join("said");
    let mut resumed = command(&node, &["--json", "resume", "--hold", "20"])?;
    let mut resumed = resumed.stdout(Stdio::piped()).stderr(File::create(&file)?).spawn()?;
    said(&file, "everything is up; it has to stay so for 20 s")?;
    radio(1)?;
    said(&file, "workloads: Deployment site/radio: 1 of 2 pods are available")?;
    ensure!(resumed.try_wait()?.is_none(), "it ended although not everything is up");
    radio(2)?;
    let back = Instant::now();
    let ended = through::ended(resumed)?;
    let report: Value = serde_json::from_str(&ended.out).with_context(|| ended.to_string())?;
    ensure!(ended.code == Some(0) && report["outcome"] == "finished", "{report}");
    ensure!(back.elapsed() >= Duration::from_secs(20), "the time did not begin anew: it ended after {:?}", back.elapsed());
    ensure!(std::fs::read_to_string(&file)?.contains("Deployment site/radio was up and went down again: 1 of 2"), "{report}");
    let warnings = report["run"]["warnings"].to_string();
    ensure!(warnings.contains("workloads: Deployment site/radio was up and went down again: 1 of 2 pods are available"), "{warnings}");
    let steps = report["run"]["phases"].as_array().into_iter().flatten().flat_map(|phase| phase["steps"].as_array().into_iter().flatten());
    let cluster = steps.into_iter().find(|step| step["name"] == "cluster").context("no such step")?;
    ensure!(cluster["figures"]["held"].as_f64().is_some_and(|held| held >= 20.0), "{cluster}");
    Ok(())
}

#[test]
fn workloads_as_they_were() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    node.put_key(&format!("{WORKLOADS}/radio"), &deployment(2))?;
    let backup = json(&node, &["backup"])?;
    let radio = value!([{"kind": "Deployment", "namespace": "site", "name": "radio"}]);
    ensure!(backup["manifest"]["workloads"] == radio, "{}", backup["manifest"]);
    let id = backup["manifest"]["id"].as_str().context("no id")?;
    node.put_key(&format!("{WORKLOADS}/radio"), &deployment(1))?;
    let (code, report) = up(&node, &["--wait", "1", "--backup", id])?;
    ensure!(code == Some(69) && down(&report) == [("workloads".to_owned(), "1 of 2 pods are available".to_owned())], "{report}");
    Ok(())
}
