//! What these tests stand on: Jobs end on it as they do on a cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use real_node::Limit;
use serde_json::{Value, json};

use crate::api::{Api, REQUEST, ask, client};
use crate::cluster::{Cluster, secret, silent};
use crate::kubelet::{Kubelet, Play};
use crate::thousand::{Life, Thousand, Weather};

pub(crate) const LIMIT: Limit = Limit::of(60);
pub(crate) const JOBS: &str = "/apis/batch/v1/namespaces/trial/jobs";
pub(crate) const PODS: &str = "/api/v1/namespaces/trial/pods";

pub(crate) fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "trial", "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
    }})
}

pub(crate) fn job(name: &str, deadline: u64) -> Value {
    let container = json!({"name": "main", "image": "image", "securityContext": {"privileged": true}});
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "trial"},
        "spec": {"backoffLimit": 0, "activeDeadlineSeconds": deadline, "template": {"spec": {
            "restartPolicy": "Never", "hostPID": true, "automountServiceAccountToken": false, "containers": [container],
        }}},
    })
}

/// The reason with which a Job has ended: `Complete`, or why it failed.
fn ended(job: &Value) -> Option<String> {
    let conditions = job["status"]["conditions"].as_array()?;
    let end = conditions.iter().find(|one| (one["type"] == "Complete" || one["type"] == "Failed") && one["status"] == "True")?;
    Some(if end["type"] == "Complete" { "Complete".to_owned() } else { end["reason"].as_str().unwrap_or_default().to_owned() })
}

#[test]
pub(crate) fn jobs_end_as_on_a_cluster() -> Result<()> {
    let cluster = Cluster::start("jobs", true)?;
    let api = &cluster.api;
    api.create("/api/v1/namespaces", &namespace())?;
    api.until("/api/v1/namespaces/trial/serviceaccounts/default", LIMIT, |_| Some(()))?;
    let kubelet = Kubelet::start(&cluster, "node", |pod| match pod["metadata"]["labels"]["job-name"].as_str() {
        Some("good") => Play::exits(300, 0, "{\"verified\":true}").with_log("one\ntwo\nthree\n"),
        Some("bad") => Play::exits(300, 65, "the disk is full").with_log("it is full\n"),
        Some("evicted") => Play::evicted(300, "The node was low on resource: ephemeral-storage."),
        Some("late") => Play::hangs().when_told(300, 75, "told to stop"),
        Some("nowhere") => Play::Unschedulable,
        _ => Play::NoImage,
    })?;
    for (name, deadline) in [("good", 60), ("bad", 60), ("evicted", 60), ("late", 3), ("nowhere", 3), ("pulls", 3)] {
        api.apply(&format!("{JOBS}/{name}"), &job(name, deadline))?;
    }
    let pod_of = |name: &str| -> Result<Option<Value>> { Ok(api.list(&format!("{PODS}?labelSelector=job-name%3D{name}"))?.pop()) };
    let terminated = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    for (name, reason) in [
        ("good", "Complete"),
        ("bad", "BackoffLimitExceeded"),
        ("evicted", "BackoffLimitExceeded"),
        ("late", "DeadlineExceeded"),
        ("nowhere", "DeadlineExceeded"),
        ("pulls", "DeadlineExceeded"),
    ] {
        let found = api.until(&format!("{JOBS}/{name}"), LIMIT, ended).with_context(|| cluster.said())?;
        ensure!(found == reason, "{name} ended with {found}");
        // Of a Job that is out of time no pod is left, and of others there is.
        let end = Instant::now() + LIMIT.0;
        while reason == "DeadlineExceeded" && pod_of(name)?.is_some() {
            ensure!(Instant::now() < end, "{name}: the pod is still there");
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(reason == "DeadlineExceeded" || pod_of(name)?.is_some(), "{name}: the pod is gone");
    }
    let good = pod_of("good")?.context("no pod")?;
    ensure!(good["status"]["phase"] == "Succeeded" && terminated(&good)["message"] == "{\"verified\":true}", "{good}");
    let name = good["metadata"]["name"].as_str().context("no name")?;
    ensure!(api.text(&format!("{PODS}/{name}/log"))? == "one\ntwo\nthree\n");
    ensure!(api.text(&format!("{PODS}/{name}/log?tailLines=1"))? == "three\n");
    let bad = pod_of("bad")?.context("no pod")?;
    ensure!(terminated(&bad)["exitCode"] == 65 && terminated(&bad)["message"] == "the disk is full", "{bad}");
    ensure!(pod_of("evicted")?.context("no pod")?["status"]["reason"] == "Evicted");
    ensure!(kubelet.pods() == 6, "{} pods", kubelet.pods());

    // A Job goes with its pod, and a namespace with all.
    api.delete(&format!("{JOBS}/good"))?;
    let end = Instant::now() + LIMIT.0;
    while pod_of("good")?.is_some() {
        ensure!(Instant::now() < end, "the pod of a Job that was deleted is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    api.delete("/api/v1/namespaces/trial")?;
    while api.get("/api/v1/namespaces/trial")?.is_some() {
        ensure!(Instant::now() < end, "the namespace is still there: {}", cluster.said());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_server_goes_and_comes_back() -> Result<()> {
    let mut cluster = Cluster::start("away", true)?;
    cluster.api.create("/api/v1/namespaces", &namespace())?;
    cluster.api.until("/api/v1/namespaces/trial/serviceaccounts/default", LIMIT, |_| Some(()))?;
    let kubelet = Kubelet::start(&cluster, "node", |pod| match pod["metadata"]["labels"]["job-name"].as_str() {
        Some("meanwhile") => Play::exits(4000, 0, "done meanwhile"),
        _ => Play::hangs().with_log("on it\n"),
    })?;
    for name in ["meanwhile", "killed"] {
        cluster.api.apply(&format!("{JOBS}/{name}"), &job(name, 600))?;
        cluster.api.until(&format!("{JOBS}/{name}"), LIMIT, |job| (job["status"]["ready"] == 1).then_some(()))?;
    }
    ensure!(cluster.requests()?.get("APPLY jobs") == Some(&2), "{:?}", cluster.requests()?);

    cluster.freeze()?;
    cluster.api.limit = Duration::from_secs(1);
    let error = cluster.api.get(JOBS).err().context("a server that hangs answers")?;
    ensure!(format!("{error:#}").contains("no answer"), "{error:#}");
    cluster.thaw()?;
    cluster.api.limit = REQUEST;
    ensure!(cluster.api.list(JOBS)?.len() == 2);

    cluster.stop();
    ensure!(cluster.api.get(JOBS).is_err(), "a server that is stopped answers");
    cluster.start_again()?;
    // What ended while it was away is told.
    let end = cluster.api.until(&format!("{JOBS}/meanwhile"), LIMIT, ended)?;
    ensure!(end == "Complete", "it ended with {end}");

    // A node that is killed says nothing more; when it is back, what it was about.
    let pod = cluster.api.list(&format!("{PODS}?labelSelector=job-name%3Dkilled"))?.pop().context("no pod")?;
    let log = format!("{PODS}/{}/log", pod["metadata"]["name"].as_str().context("no name")?);
    ensure!(cluster.api.text(&log)? == "on it\n");
    kubelet.kill();
    ensure!(cluster.api.text(&log).is_err(), "a node that is off shows a log");
    kubelet.boot();
    let end = cluster.api.until(&format!("{JOBS}/killed"), LIMIT, ended)?;
    ensure!(end == "BackoffLimitExceeded", "it ended with {end}");

    // Rights are the account's own; somebody has none; one server answers nothing. The account's kubeconfig is kept as a hub finds it.
    let account = cluster.kubeconfig_of_account("trial", "default")?;
    cluster.api.create("/api/v1/namespaces/trial/secrets", &secret("trial", "spoke", &account))?;
    let kept = cluster.api.get("/api/v1/namespaces/trial/secrets/spoke-kubeconfig")?.context("no Secret")?;
    ensure!(kept["data"]["value"] == data_encoding::BASE64.encode(account.as_bytes()), "{kept}");
    let forbidden = Api::of(&account)?.get(JOBS).err().context("an account without rights may")?;
    ensure!(format!("{forbidden:#}").contains("system:serviceaccount:trial:default"), "{forbidden:#}");
    let forbidden = Api::of(&cluster.kubeconfig_of("somebody", None)?)?.get(JOBS).err().context("somebody may")?;
    ensure!(format!("{forbidden:#}").contains("\"somebody\" cannot list"), "{forbidden:#}");
    let (kubeconfig, _listener) = silent()?;
    let mut api = Api::of(&kubeconfig)?;
    api.limit = Duration::from_secs(1);
    let error = api.get("/version").err().context("what is silent answers")?;
    ensure!(format!("{error:#}").contains("no answer"), "{error:#}");
    let applied = cluster.kubectl(&["apply", "-f", "-"], &namespace().to_string().replace("trial", "by-hand"))?.checked()?;
    ensure!(applied.stdout.contains("namespace/by-hand created"), "{}", applied.stdout);
    Ok(())
}

#[test]
fn a_thousand_clusters_in_one_process() -> Result<()> {
    const CLUSTERS: usize = 1000;
    const AT_ONCE: usize = 50;
    let names = || (0..CLUSTERS).map(|n| format!("spoke-{n:04}"));
    let thousand = Thousand::start(names(), |cluster, nth| Life {
        starts: Duration::from_millis(20),
        // The first take so long that as many as may be are at work at once.
        takes: Duration::from_millis(match cluster {
            "spoke-0003" => 60_000,
            first if first < "spoke-0100" => 1000,
            _ => 200,
        }),
        code: if cluster == "spoke-0002" { 65 } else { 0 },
        message: format!("{cluster}, pod {nth}"),
        log: "one\ntwo\n".to_owned(),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let began = Instant::now();
    // So many at work at a time, each seen by a watch.
    let results: Vec<Result<Value>> = runtime.block_on(async {
        let each = names().map(|name| {
            let kubeconfig = thousand.kubeconfig(&name);
            async move { one_job(&kubeconfig).await.with_context(|| name) }
        });
        futures::StreamExt::collect(futures::StreamExt::buffer_unordered(futures::stream::iter(each), AT_ONCE)).await
    });
    let took = began.elapsed();
    let mut ends = std::collections::BTreeMap::<String, usize>::new();
    for result in results {
        *ends.entry(ended(&result?).context("it has not ended")?).or_default() += 1;
    }
    ensure!(ends == [("BackoffLimitExceeded".into(), 1), ("Complete".into(), 998), ("DeadlineExceeded".into(), 1)].into(), "{ends:?}");
    ensure!(thousand.most_at_work() == AT_ONCE && thousand.at_work() == 0, "{} at work", thousand.most_at_work());
    ensure!(names().all(|name| thousand.jobs(&name).is_ok_and(|jobs| jobs == 1)));
    ensure!(took < Duration::from_secs(120), "{took:?}");

    // A pod's message and log; a Job's pods stay when nobody says that they go, and a namespace takes a moment.
    let api = Api::of(&thousand.kubeconfig("spoke-0002"))?;
    let pod = api.list(PODS)?.pop().context("no pod")?;
    ensure!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "spoke-0002, pod 0", "{pod}");
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    ensure!(api.text(&format!("{PODS}/{name}/log?tailLines=1"))? == "two\n");
    let mut other = job("job", 2);
    ensure!(api.apply(&format!("{JOBS}/job"), &other)?["metadata"]["generation"] == 1);
    other["spec"]["template"]["spec"]["hostPID"] = false.into();
    let refused = api.apply(&format!("{JOBS}/job"), &other).err().context("a Job's template is changed")?;
    ensure!(format!("{refused:#}").contains("field is immutable"), "{refused:#}");
    api.run(ask(&api.client, http::Method::DELETE, &format!("{JOBS}/job"), "", None))?;
    ensure!(api.list(JOBS)?.is_empty() && api.list(PODS)?.len() == 1);
    api.delete("/api/v1/namespaces/trial")?;
    let refused = api.create(JOBS, &job("late", 2)).err().context("made in a namespace that goes")?;
    ensure!(format!("{refused:#}").contains("being terminated"), "{refused:#}");
    let end = Instant::now() + LIMIT.0;
    while api.get("/api/v1/namespaces/trial")?.is_some() {
        ensure!(Instant::now() < end, "the namespace is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(thousand.objects("spoke-0002", "pods")?.is_empty());

    // One of them in bad weather is that one alone.
    let mut api = Api::of(&thousand.kubeconfig("spoke-0001"))?;
    api.limit = Duration::from_secs(1);
    for (weather, says) in [(Weather::Gone, "error"), (Weather::Hanging, "no answer"), (Weather::Unauthorized, "Unauthorized")] {
        thousand.set("spoke-0001", weather)?;
        let error = api.get(JOBS).err().with_context(|| format!("it answers while {weather:?}"))?;
        ensure!(format!("{error:#}").contains(says), "{weather:?}: {error:#}");
        ensure!(Api::of(&thousand.kubeconfig("spoke-0000"))?.list(JOBS)?.len() == 1);
    }
    thousand.set("spoke-0001", Weather::Fair)?;
    ensure!(api.list(JOBS)?.len() == 1);
    let asked = thousand.requests("spoke-0000")?;
    ensure!(asked.get("apply jobs.batch") == Some(&1) && asked.get("list jobs.batch") == Some(&4), "{asked:?}");
    let all = thousand.all_requests();
    println!("{took:?} for {CLUSTERS} Jobs, {all} requests");
    ensure!(all > 3000, "{all} requests");
    Ok(())
}

/// Applies a namespace and a Job, and watches until it has ended.
async fn one_job(kubeconfig: &str) -> Result<Value> {
    let client = client(kubeconfig).await?;
    let form = "application/apply-patch+yaml";
    for (path, object) in [("/api/v1/namespaces/trial", namespace()), (&format!("{JOBS}/job"), job("job", 2))] {
        ask(&client, http::Method::PATCH, &format!("{path}?fieldManager=test"), form, Some(&object)).await?.context("not found")?;
    }
    let list = ask(&client, http::Method::GET, JOBS, "", None).await?.context("no list")?;
    // On a busy machine it has ended already.
    if let Some(job) = list["items"].as_array().into_iter().flatten().find(|job| ended(job).is_some()) {
        return Ok(job.clone());
    }
    let version = list["metadata"]["resourceVersion"].as_str().context("no version")?;
    let path = format!("{JOBS}?watch=true&resourceVersion={version}&fieldSelector=metadata.name%3Djob&timeoutSeconds=60");
    let events = client.request_events::<Value>(http::Request::get(path).body(Vec::new())?).await?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = futures::TryStreamExt::try_next(&mut events).await? {
        if let kube::core::WatchEvent::Modified(job) = event
            && ended(&job).is_some()
        {
            return Ok(job);
        }
    }
    anyhow::bail!("the watch is over")
}
