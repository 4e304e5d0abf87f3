//! Clusters, and what stands before them, that say what they should not; and tries that are in each other's way.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::between::{Between, Moment, Verdict};
use crate::cluster::Cluster;
use crate::fleet::{Hub, LIMIT, path, verified};
use crate::kubelet::{Kubelet, Play};
use crate::states::{JOBS, by_image, of};

/// Of what is no API server, a load balancer whose backends are gone, no word counts; nor does an answer without end.
#[test]
fn what_is_no_api_server_is_not_believed() -> Result<()> {
    let (hub, spoke) = (Hub::start()?, Cluster::start("one", true)?);
    let kubelet = Kubelet::start(&spoke, "node", |_| Play::exits(30_000, 0, &verified()))?;
    let says: Arc<Mutex<Option<(u16, String)>>> = Arc::default();
    let told = Arc::clone(&says);
    let between = Between::start(&spoke.kubeconfig, move |_, _, moment| {
        let says = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        says.filter(|_| moment == Moment::Asked).map_or(Verdict::Pass, |(status, text)| Verdict::Answer(status, text))
    })?;
    let say = |says_now: Option<(u16, String)>| *says.lock().unwrap_or_else(PoisonError::into_inner) = says_now;
    hub.knows("one", &between.kubeconfig)?;
    let running = hub.run(&hub.kubeconfig()?)?;
    hub.group("all", &of("one", "any"))?;
    hub.state("all.one.1", "Active")?;
    let job = spoke.api.list(JOBS)?.pop().context("no Job")?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    // As many as fit into what is read: in memory each is many times as large.
    let endless = format!("{{\"items\":[{}{{}}]}}", "{},".repeat(600_000));
    for (status, text) in
        [(404, "404 page not found\n"), (400, "Bad Request"), (403, "<html>no</html>"), (404, "{}"), (200, endless.as_str())]
    {
        say(Some((status, text.to_owned())));
        // So that the hub looks.
        spoke.api.merge(&format!("{JOBS}/{job}"), &json!({"metadata": {"annotations": {"looked": status.to_string()}}}))?;
        let is = |one: &Value| (one["status"]["state"] == "Active" && one["status"]["reason"] == "Unreachable").then_some(());
        hub.cluster.api.until(&path("clusterbackups", "all.one.1"), LIMIT, is).with_context(|| format!("{status}: {}", hub.said()))?;
    }
    say(None);
    hub.state("all.one.1", "Succeeded")?;
    ensure!(kubelet.pods() == 1, "{} pods", kubelet.pods());
    let memory = running.peak()?;
    ensure!(memory < 100 << 20, "the hub took {} MiB", memory >> 20);
    Ok(())
}

/// However much a cluster says, and however often something else, the hub's API takes it, and is not kept busy with it.
#[test]
fn a_cluster_that_talks_without_end_keeps_nobody_busy() -> Result<()> {
    let (hub, spoke) = (Hub::start()?, Cluster::start("one", true)?);
    let _kubelet = Kubelet::start(&spoke, "node", |pod| match pod["spec"]["containers"][0]["image"].as_str() {
        Some("talks") => Play::exits(300, 1, &"word ".repeat(50_000)),
        _ => Play::NoImage,
    })?;
    hub.knows("one", &spoke.kubeconfig)?;
    let _running = hub.run(&hub.kubeconfig()?)?;
    hub.group("talks", &of("one", "talks"))?;
    let talks = hub.state("talks.one.1", "UnrecoverableError")?;
    let message = talks["message"].as_str().unwrap_or_default();
    ensure!(message.len() <= 4096 && message.ends_with("word word"), "{} bytes", message.len());

    hub.group("waits", &of("one", "missing"))?;
    hub.state("waits.one.1", "Active")?;
    let job = spoke.api.list(JOBS)?.pop().context("no Job")?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let pods = "/api/v1/namespaces/recovery-spoke/pods";
    let writes = || -> Result<u64> {
        let all = hub.cluster.requests()?;
        Ok(all.iter().filter(|(what, _)| what.contains("clusterbackups")).map(|(_, count)| count).sum())
    };
    let (before, begun) = (writes()?, Instant::now());
    let mut changes = 0;
    while begun.elapsed() < Duration::from_secs(15) {
        let pod = spoke.api.list(pods)?.pop().context("no pod")?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": format!("for the {changes}th time")}});
        let status = json!({"name": "recovery", "image": "missing", "imageID": "", "ready": false, "restartCount": 0, "state": waiting});
        spoke.api.merge(&format!("{pods}/{pod}/status"), &json!({"status": {"containerStatuses": [status]}}))?;
        spoke.api.merge(&format!("{JOBS}/{job}"), &json!({"metadata": {"annotations": {"change": changes.to_string()}}}))?;
        changes += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    let written = writes()? - before;
    println!("{changes} changes in 15 s, {written} requests about them to the hub's API");
    ensure!(changes > 30 && written <= 8, "{changes} changes, {written} requests: {:?}", hub.cluster.requests()?);
    Ok(())
}

#[test]
fn tries_that_are_in_each_others_way() -> Result<()> {
    let (hub, spoke) = (Hub::start()?, Cluster::start("one", true)?);
    let kubelet = Kubelet::start(&spoke, "node", by_image)?;
    for name in ["one", "uno", "two"] {
        hub.knows(name, &spoke.kubeconfig)?;
    }
    let _running = hub.run(&hub.kubeconfig()?)?;

    // One cluster under two names: the second leaves the first alone, and comes after it.
    hub.group(
        "names",
        &json!({"clusters": ["one", "uno"], "image": "slow", "retries": 0, "deadlineSeconds": 60, "giveUpAfterSeconds": 90}),
    )?;
    hub.reason("names", "BackupSucceeded", "BackupCompleted")?;
    ensure!(kubelet.pods() == 2, "{} pods", kubelet.pods());

    // A name that somebody has taken is that cluster's trouble alone; it is tried again when it is free.
    let mut other = hub.cluster.api.get(&path("clusterbackups", "names.one.1"))?.context("it is gone")?["spec"].clone();
    (other["cluster"], other["group"]) = (json!("elsewhere"), json!("nobodys"));
    let taken = json!({"apiVersion": "hub.recovery/v1alpha1", "kind": "ClusterBackup", "metadata": {"name": "taken.one.1"}, "spec": other});
    hub.cluster.api.create(&path("clusterbackups", ""), &taken)?;
    hub.group("taken", &json!({"clusters": ["one", "two"], "image": "verified", "maxConcurrency": 1}))?;
    hub.state("taken.two.1", "Succeeded")?;
    hub.reason("taken", "BackupSucceeded", "PartiallyDone")?;
    let failed = hub.cluster.api.get(&path("clustergroupbackups", "taken"))?.unwrap_or_default()["status"]["failed"][0].clone();
    ensure!(failed["name"] == "one" && failed["reason"].as_str().is_some_and(|why| why.contains("another ClusterBackup")), "{failed}");

    // One whose finalizer is taken off by hand, and which is gone at once, has its cluster no longer.
    hub.group("torn", &of("one", "hangs"))?;
    hub.state("torn.one.1", "Active")?;
    hub.cluster.api.delete(&path("clustergroupbackups", "torn"))?;
    hub.cluster.api.merge(&path("clusterbackups", "torn.one.1"), &json!({"metadata": {"finalizers": []}}))?;
    hub.cluster.api.delete(&path("clusterbackups", "torn.one.1"))?;
    hub.group("next", &of("one", "verified"))?;
    hub.state("next.one.1", "Succeeded")?;

    // A backup that is not good any more when it ends would not be the next time, either.
    hub.group("expired", &of("one", "expired"))?;
    let expired = hub.state("expired.one.1", "UnrecoverableError")?;
    ensure!(expired["reason"] == "Expired" && expired["verified"].is_null(), "{expired}");
    hub.reason("expired", "BackupSucceeded", "Failed")?;
    ensure!(hub.cluster.api.get(&path("clusterbackups", "expired.one.2"))?.is_none());
    Ok(())
}
