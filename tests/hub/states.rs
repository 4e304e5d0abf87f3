//! Each state of a cluster's backup, by what really leads there.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::fleet::{Hub, LIMIT, path, verified, verified_until};
use crate::kubelet::{Kubelet, Play};

pub(crate) const JOBS: &str = "/apis/batch/v1/namespaces/recovery-spoke/jobs";
const GATE: &str = "/api/v1/namespaces/kube-system/configmaps/recovery-upgrade-gate";

pub(crate) fn of(cluster: &str, image: &str) -> Value {
    json!({"clusters": [cluster], "image": image, "retries": 0, "deadlineSeconds": 60, "giveUpAfterSeconds": 90})
}

/// What becomes of a pod, by the image that it is to run.
pub(crate) fn by_image(pod: &Value) -> Play {
    match pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default() {
        "verified" => Play::exits(1500, 0, &verified()),
        "slow" => Play::exits(6000, 0, &verified()),
        "silent" => Play::exits(300, 0, ""),
        "expired" => Play::exits(300, 0, &verified_until(jiff::Timestamp::from_second(1_700_000_000).ok())),
        "fails" => {
            Play::exits(300, 73, "error: no space on /var/recovery").with_log("looking for room\nerror: no space on /var/recovery\n")
        }
        "missing" => Play::NoImage,
        _ => Play::hangs(),
    }
}

#[test]
fn each_end_of_a_job_is_that_of_its_state() -> Result<()> {
    let (hub, spoke) = (Hub::start()?, Cluster::start("one", true)?);
    let kubelet = Kubelet::start(&spoke, "node", by_image)?;
    hub.knows("one", &spoke.kubeconfig)?;
    let _running = hub.run(&hub.kubeconfig()?)?;

    // The node's word; the Job goes, its events stay.
    hub.group("good", &of("one", "verified"))?;
    let good = hub.state("good.one.1", "Succeeded")?;
    ensure!(good["verified"] == true && good["backupId"] == "20260301T021704Z-4.16.3" && good["digest"] == "0f", "{good}");
    hub.reason("good", "BackupSucceeded", "BackupCompleted")?;
    hub.cluster.api.until(&path("clusterbackups", "good.one.1"), LIMIT, |one| (one["status"]["cleaned"] == true).then_some(()))?;
    ensure!(spoke.api.list(JOBS)?.is_empty(), "the Job has stayed");
    let told = hub.told("good.one.1")?;
    ensure!(told == ["PreparingToStart", "Starting", "Active", "Succeeded"], "{told:?}");

    // A program that only ends with 0 is no agent.
    hub.group("silent", &of("one", "silent"))?;
    let silent = hub.state("silent.one.1", "UnrecoverableError")?;
    ensure!(silent["reason"] == "NotVerified" && silent["verified"].is_null() && silent["backupId"].is_null(), "{silent}");

    // Its last words, and the end of its log; the Job stays to be looked at, until the next try.
    hub.group("fails", &of("one", "fails"))?;
    let fails = hub.state("fails.one.1", "UnrecoverableError")?;
    ensure!(fails["reason"] == "BackoffLimitExceeded" && fails["message"] == "error: no space on /var/recovery", "{fails}");
    ensure!(fails["log"].as_str().is_some_and(|log| log.starts_with("looking for room")), "{fails}");
    ensure!(spoke.api.list(JOBS)?.len() == 1, "the Job is gone");
    hub.reason("fails", "Progressing", "Completed")?;
    let failed = hub.cluster.api.get(&path("clustergroupbackups", "fails"))?.unwrap_or_default();
    ensure!(failed["status"]["failed"][0]["name"] == "one", "{failed}");

    // At the Job's deadline; the next try takes the place of what it has left.
    let mut late = of("one", "hangs");
    (late["deadlineSeconds"], late["retries"]) = (4.into(), 1.into());
    hub.group("late", &late)?;
    let first = hub.state("late.one.1", "BackupTimeout")?;
    ensure!(first["reason"] == "DeadlineExceeded", "{first}");
    let jobs_before = spoke.api.list(JOBS)?;
    hub.state("late.one.2", "Active")?;
    let jobs = spoke.api.list(JOBS)?;
    ensure!(jobs.len() == 1 && jobs_before.iter().all(|job| job["metadata"]["uid"] != jobs[0]["metadata"]["uid"]), "{jobs:?}");
    hub.state("late.one.2", "BackupTimeout")?;
    hub.reason("late", "BackupSucceeded", "Failed")?;

    // An image that is not there is named, after the pod is gone, too.
    let mut missing = of("one", "missing");
    missing["deadlineSeconds"] = 30.into();
    hub.group("missing", &missing)?;
    let missing = hub.state("missing.one.1", "BackupTimeout")?;
    ensure!(
        missing["message"].as_str().is_some_and(|text| text.contains("ErrImagePull") || text.contains("ImagePullBackOff")),
        "{missing}"
    );

    // A Job that is gone.
    hub.group("gone", &of("one", "hangs"))?;
    hub.state("gone.one.1", "Active")?;
    let job = &spoke.api.list(JOBS)?[0]["metadata"]["name"];
    spoke.api.delete(&format!("{JOBS}/{}", job.as_str().unwrap_or_default()))?;
    let gone = hub.state("gone.one.1", "UnrecoverableError")?;
    ensure!(gone["reason"] == "JobVanished", "{gone}");

    // Two groups want the same cluster: one after the other.
    let pods = kubelet.pods();
    hub.group("left", &of("one", "verified"))?;
    hub.group("right", &of("one", "verified"))?;
    hub.state("left.one.1", "Succeeded")?;
    hub.state("right.one.1", "Succeeded")?;
    ensure!(kubelet.pods() == pods + 2, "{} pods", kubelet.pods() - pods);

    // What was put there goes with the last of them: as the README has it.
    for words in [
        "delete backupschedules,clustergroupbackups --all --all-namespaces",
        "wait --for=delete clusterbackups --all --all-namespaces --timeout 2m",
    ] {
        hub.cluster.kubectl(&words.split(' ').collect::<Vec<_>>(), "")?.checked().with_context(|| hub.said())?;
    }
    ensure!(hub.cluster.api.list(&path("clusterbackups", ""))?.is_empty(), "not all have gone");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while spoke.api.get("/api/v1/namespaces/recovery-spoke")?.is_some() {
        ensure!(std::time::Instant::now() < end, "the namespace stays");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn a_cluster_out_of_reach_is_said_to_be_and_given_up_in_time() -> Result<()> {
    let (hub, spoke) = (Hub::start()?, Cluster::start("one", true)?);
    let _kubelet = Kubelet::start(&spoke, "node", by_image)?;
    hub.knows("one", &spoke.kubeconfig)?;
    let dir = tempfile::tempdir()?;
    let ran = dir.path().join("ran");
    let exec = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {exec: \
                {apiVersion: client.authentication.k8s.io/v1, command: /usr/bin/touch, args: [RAN], \
                interactiveMode: Never}}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n";
    hub.knows("exec", &exec.replace("RAN", &ran.display().to_string()))?;
    let _running = hub.run(&hub.kubeconfig()?)?;
    let mut short = of("one", "hangs");
    (short["clusters"], short["deadlineSeconds"], short["giveUpAfterSeconds"]) = (json!(["nobody", "exec"]), 5.into(), 8.into());
    hub.group("away", &short)?;
    let nobody = hub.state("away.nobody.1", "BackupTimeout")?;
    ensure!(
        nobody["reason"] == "GaveUp" && nobody["message"].as_str().is_some_and(|text| text.contains("no Secret nobody-kubeconfig")),
        "{nobody}"
    );
    let exec = hub.state("away.exec.1", "BackupTimeout")?;
    ensure!(exec["message"].as_str().is_some_and(|text| text.contains("`exec`")), "{exec}");
    ensure!(!ran.exists(), "the hub has run a program of a kubeconfig");
    hub.reason("away", "BackupSucceeded", "Failed")?;

    // One that answers no more before its Job is there: said, and no state; then it is there again, and goes on.
    spoke.freeze()?;
    hub.group("hangs", &of("one", "verified"))?;
    hub.cluster.api.until(&path("clusterbackups", "hangs.one.1"), LIMIT, |one| {
        (one["status"]["state"] == "PreparingToStart" && one["status"]["reason"] == "Unreachable").then_some(())
    })?;
    spoke.thaw()?;
    hub.state("hangs.one.1", "Succeeded")?;

    // One that is dead holds nobody up: what was put there is left behind, and said to be.
    spoke.freeze()?;
    // Its group makes no other try, which would need what is there.
    hub.forget("clustergroupbackups", "hangs")?;
    hub.forget("clusterbackups", "hangs.one.1")?;
    ensure!(hub.told("hangs.one.1")?.contains(&"LeftBehind".to_owned()), "{:?}", hub.told("hangs.one.1")?);
    spoke.thaw()?;
    Ok(())
}

/// Of two replicas one is active; when that is killed, or stands still and comes back, there is still one Job.
#[test]
fn the_second_replica_goes_on_where_the_first_was_killed() -> Result<()> {
    let (hub, spoke) = (Hub::start()?, Cluster::start("one", true)?);
    let kubelet = Kubelet::start(&spoke, "node", |_| Play::exits(25_000, 0, &verified()))?;
    hub.knows("one", &spoke.kubeconfig)?;
    let first = hub.run(&hub.kubeconfig()?)?;
    hub.group("all", &of("one", "any"))?;
    let active = hub.state("all.one.1", "Active")?;
    let second = hub.run(&hub.kubeconfig()?)?;
    // It stands still for longer than its Lease lasts; the other takes over, and the first, back again, sees that and ends.
    first.stop()?;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/recovery-hub/leases/recovery-hub";
    let holder = |lease: &Value| lease["spec"]["holderIdentity"].as_str().map(str::to_owned);
    let was = hub.cluster.api.get(leases)?.and_then(|lease| holder(&lease)).unwrap_or_default();
    let waited = std::time::Instant::now();
    hub.cluster.api.until(leases, LIMIT, |lease| holder(lease).filter(|now| *now != was))?;
    println!("the other replica is active after {:.1} s", waited.elapsed().as_secs_f64());
    first.go_on()?;
    let done = hub.state("all.one.1", "Succeeded")?;
    ensure!(done["job"] == active["job"] && kubelet.pods() == 1, "{done}");
    ensure!(first.ends(std::time::Duration::from_secs(20))?, "the first replica goes on beside the second");
    drop(second);
    Ok(())
}

#[test]
fn the_gate_of_a_cluster_follows_its_last_backup() -> Result<()> {
    let (hub, spoke) = (Hub::start()?, Cluster::start("one", true)?);
    let _kubelet = Kubelet::start(&spoke, "node", by_image)?;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "clusterversions.config.openshift.io"},
        "spec": {
            "group": "config.openshift.io", "scope": "Cluster",
            "names": {"kind": "ClusterVersion", "plural": "clusterversions", "singular": "clusterversion"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    spoke.api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition)?;
    let versions = "/apis/config.openshift.io/v1/clusterversions";
    spoke.api.until(versions, LIMIT, |_| Some(()))?;
    let version = json!({"apiVersion": "config.openshift.io/v1", "kind": "ClusterVersion", "metadata": {"name": "version"}, "spec": {"channel": "x"}});
    spoke.api.create(versions, &version)?;
    let status = json!({"status": {"history": [{"state": "Completed", "version": "4.16.3"}]}});
    spoke.api.merge(&format!("{versions}/version/status"), &status)?;
    hub.knows("one", &spoke.kubeconfig)?;
    let _running = hub.run(&hub.kubeconfig()?)?;
    let upgrade = |to: &str| spoke.api.merge(&format!("{versions}/version"), &json!({"spec": {"desiredUpdate": {"version": to}}}));

    let with_gate = |image: &str| {
        let mut spec = of("one", image);
        spec["installGate"] = true.into();
        spec
    };
    hub.group("fails", &with_gate("fails"))?;
    let is = |name: &'static str, gate: &'static str| {
        hub.cluster.api.until(&path("clusterbackups", name), LIMIT, move |one| (one["status"]["gate"] == gate).then_some(()))
    };
    is("fails.one.1", "Closed")?;
    // The API server takes a policy up some seconds later.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let refused = loop {
        match upgrade("4.17.1") {
            Err(error) => break format!("{error:#}"),
            Ok(_) => ensure!(std::time::Instant::now() < end, "an upgrade is not refused"),
        }
        spoke.api.merge(&format!("{versions}/version"), &json!({"spec": {"desiredUpdate": null}}))?;
        std::thread::sleep(std::time::Duration::from_millis(300));
    };
    ensure!(refused.contains("waits for a good backup") && refused.contains("UnrecoverableError"), "{refused}");
    hub.group("good", &with_gate("verified"))?;
    is("good.one.1", "Open")?;
    upgrade("4.17.1")?;
    // The next try fails: closed again.
    hub.group("again", &with_gate("fails"))?;
    is("again.one.1", "Closed")?;
    let closed = spoke.api.get(GATE)?.unwrap_or_default();
    ensure!(closed["data"]["state"] == "closed", "{closed}");
    let refused = upgrade("4.17.2").err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("waits for a good backup"), "{refused}");

    // When the one that failed is taken back, the word of the one before it counts again.
    hub.forget("clustergroupbackups", "again")?;
    hub.forget("clusterbackups", "again.one.1")?;
    let opened = |config: &Value| (config["data"]["state"] == "open").then_some(());
    spoke.api.until(GATE, LIMIT, opened)?;
    is("good.one.1", "Open")?;
    // Of two that begin together, the word of the one that ended last.
    hub.group("left", &with_gate("verified"))?;
    hub.group("right", &with_gate("fails"))?;
    let left = hub.state("left.one.1", "Succeeded")?;
    let right = hub.state("right.one.1", "UnrecoverableError")?;
    let (last, gate) =
        if left["startedAt"].as_str() > right["startedAt"].as_str() { ("left.one.1", "Open") } else { ("right.one.1", "Closed") };
    is(last, gate)?;
    // With the last of them the gate goes that the hub has installed.
    for group in ["fails", "good", "left", "right"] {
        hub.cluster.api.delete(&path("clustergroupbackups", group))?;
    }
    for backup in hub.cluster.api.list(&path("clusterbackups", ""))? {
        hub.forget("clusterbackups", backup["metadata"]["name"].as_str().unwrap_or_default())?;
    }
    ensure!(spoke.api.get(GATE)?.is_none(), "the gate's ConfigMap stays");
    for kind in ["policies", "policybindings"] {
        let left = spoke.api.list(&format!("/apis/admissionregistration.k8s.io/v1/validatingadmission{kind}"))?;
        ensure!(!left.iter().any(|one| one["metadata"]["name"] == "recovery-upgrade-gate"), "{left:?}");
    }
    Ok(())
}
