//! The cheap API server beside the real one: asked the same, they say the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::{Value, json};

use crate::api::{Api, ask};
use crate::between::{Between, Moment, Verdict};
use crate::cluster::Cluster;
use crate::harness::{JOBS, LIMIT, PODS, job, namespace};
use crate::thousand::{Life, Thousand};

const MAPS: &str = "/api/v1/namespaces/trial/configmaps";
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";

/// One server, and what it has said.
struct Talk {
    api: Api,
    said: Vec<String>,
}

impl Talk {
    /// Asks, and notes what `see` sees in the answer, or why it is refused.
    fn ask(&mut self, method: Method, path: &str, form: &str, body: Option<&Value>, see: impl FnOnce(&Value) -> Value) -> Option<Value> {
        let what = format!("{method} {path}");
        let answer = self.api.run(ask(&self.api.client, method, path, form, body));
        let said = match &answer {
            Ok(Some(object)) => see(object).to_string(),
            Ok(None) => "404".to_owned(),
            Err(error) => match error.downcast_ref::<kube::Error>() {
                Some(kube::Error::Api(status)) => format!("{} {}", status.code, status.reason),
                _ => format!("{error:#}"),
            },
        };
        self.said.push(format!("{what}: {said}"));
        answer.ok().flatten()
    }

    fn until_gone(&self, path: &str) -> Result<()> {
        let end = Instant::now() + LIMIT.0;
        while self.api.get(path)?.is_some() {
            ensure!(Instant::now() < end, "{path} is still there");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "recovery"}}, "data": data})
}

/// What a hub may do to a cluster, and what befalls it there.
fn talk(api: Api) -> Result<Vec<String>> {
    let mut talk = Talk { api, said: Vec::new() };
    let seen = |fields: &'static str| move |object: &Value| object.pointer(fields).cloned().unwrap_or_default();
    let one = format!("{MAPS}/one");
    let applied = format!("{one}?fieldManager=hub&force=true");
    let first = map("one", &json!({"a": "1", "b": "2"}));
    // Nothing there yet.
    talk.ask(Method::GET, "/api/v1/namespaces/trial", "", None, seen(""));
    talk.ask(Method::PATCH, &applied, APPLY, Some(&first), seen("/data"));
    talk.ask(Method::GET, "/apis/nowhere.example.com/v1/things", "", None, seen(""));
    talk.ask(Method::POST, "/api/v1/namespaces", "application/json", Some(&namespace()), seen("/status"));
    talk.ask(Method::POST, "/api/v1/namespaces", "application/json", Some(&namespace()), seen("/status"));
    talk.api.until("/api/v1/namespaces/trial/serviceaccounts/default", LIMIT, |_| Some(()))?;

    // Applied, and applied again; versions.
    talk.ask(Method::PATCH, &one, APPLY, Some(&first), seen("/data"));
    let before = talk.ask(Method::PATCH, &applied, APPLY, Some(&first), seen("/data")).context("not made")?;
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    let same = version(&before);
    talk.ask(Method::PATCH, &applied, APPLY, Some(&first), move |object| (version(object) == same).into());
    talk.ask(Method::PATCH, &applied, APPLY, Some(&map("one", &json!({"a": "3"}))), seen("/data"));
    let mut late = before.clone();
    late["data"]["a"] = "4".into();
    talk.ask(Method::PUT, &one, "application/json", Some(&late), seen("/data"));
    late["metadata"]["resourceVersion"] = Value::Null;
    talk.ask(Method::PUT, &one, "application/json", Some(&late), seen("/data"));
    let change = json!({"metadata": {"annotations": {"x": "y"}}, "data": {"a": null, "c": "5"}});
    talk.ask(Method::PATCH, &one, MERGE, Some(&change), seen("/data"));
    talk.ask(Method::PATCH, &format!("{MAPS}/none"), MERGE, Some(&change), seen("/data"));

    // Found.
    talk.ask(Method::PATCH, &format!("{MAPS}/two?fieldManager=hub&dryRun=All"), APPLY, Some(&map("two", &json!({}))), seen("/kind"));
    let names = |list: &Value| {
        let names = list["items"].as_array().into_iter().flatten().map(|object| object["metadata"]["name"].clone());
        Value::from(names.filter(|name| name != "kube-root-ca.crt").collect::<Vec<_>>())
    };
    for query in
        ["labelSelector=app%3Drecovery", "labelSelector=app!%3Drecovery", "labelSelector=!app", "fieldSelector=metadata.name%3Done", ""]
    {
        talk.ask(Method::GET, &format!("{MAPS}?{query}"), "", None, names);
    }
    talk.ask(Method::GET, MAPS, "", None, seen("/kind"));

    // Deleted: another of that name, one that waits, one that is gone.
    let other = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    talk.ask(Method::DELETE, &one, "application/json", Some(&other), seen("/status"));
    talk.ask(Method::PATCH, &one, MERGE, Some(&json!({"metadata": {"finalizers": ["example.com/hold"]}})), seen("/metadata/finalizers"));
    talk.ask(Method::DELETE, &one, "", None, |object| object["metadata"]["deletionTimestamp"].is_string().into());
    talk.ask(Method::GET, &one, "", None, |object| object["metadata"]["deletionTimestamp"].is_string().into());
    talk.ask(Method::PATCH, &one, MERGE, Some(&json!({"metadata": {"finalizers": null}})), seen("/data"));
    talk.ask(Method::GET, &one, "", None, seen("/data"));
    talk.ask(Method::DELETE, &one, "", None, seen("/data"));

    // Watched from a version on: what has happened since, until the time is over.
    let version = before["metadata"]["resourceVersion"].as_str().context("no version")?;
    let events =
        talk.api.text(&format!("{MAPS}?watch=true&resourceVersion={version}&fieldSelector=metadata.name%3Done&timeoutSeconds=1"))?;
    for line in events.lines() {
        let event: Value = serde_json::from_str(line)?;
        talk.said.push(format!("{} {}", event["type"], event["object"]["data"]));
    }

    // A Job, its pod, and what stays of it.
    let (path, applied) = (format!("{JOBS}/job"), format!("{JOBS}/job?fieldManager=hub&force=true"));
    let object = job("job", 600);
    talk.ask(Method::PATCH, &applied, APPLY, Some(&object), seen("/metadata/generation"));
    talk.api.until(&path, LIMIT, |job| (job["status"]["active"] == 1).then_some(()))?;
    talk.ask(Method::GET, &path, "", None, |job| json!([job["status"]["ready"], job["status"]["startTime"].is_string()]));
    talk.ask(Method::PATCH, &applied, APPLY, Some(&object), seen("/metadata/generation"));
    let mut changed = object.clone();
    changed["spec"]["template"]["spec"]["hostPID"] = false.into();
    talk.ask(Method::PATCH, &applied, APPLY, Some(&changed), seen("/kind"));
    let pods = |list: &Value| {
        let of = |pod: &Value| {
            let (labels, owner) = (&pod["metadata"]["labels"], &pod["metadata"]["ownerReferences"][0]);
            json!([pod["status"]["phase"], labels["job-name"], labels["batch.kubernetes.io/job-name"], owner["kind"], owner["name"]])
        };
        Value::from(list["items"].as_array().into_iter().flatten().map(of).collect::<Vec<_>>())
    };
    talk.ask(Method::GET, &format!("{PODS}?labelSelector=job-name%3Djob"), "", None, pods);
    talk.ask(Method::DELETE, &path, "", None, |_| Value::Null);
    talk.until_gone(&path)?;
    talk.ask(Method::GET, &format!("{PODS}?labelSelector=job-name%3Djob"), "", None, |list| list["items"].as_array().map(Vec::len).into());
    talk.ask(Method::DELETE, PODS, "", None, |_| Value::Null);

    talk.ask(Method::DELETE, "/api/v1/namespaces/trial", "", None, seen("/status/phase"));
    talk.ask(Method::POST, MAPS, "application/json", Some(&first), seen("/kind"));
    talk.until_gone("/api/v1/namespaces/trial")?;
    talk.ask(Method::GET, &path, "", None, seen("/kind"));
    Ok(talk.said)
}

#[test]
fn the_cheap_server_says_what_the_real_one_says() -> Result<()> {
    let cluster = Cluster::start("alike", true)?;
    let real = talk(Api::of(&cluster.kubeconfig)?).with_context(|| cluster.said())?;
    let thousand = Thousand::start(["one".to_owned()], |_, _| Life {
        starts: Duration::from_secs(600),
        takes: Duration::ZERO,
        code: 0,
        message: String::new(),
        log: String::new(),
    })?;
    let cheap = talk(Api::of(&thousand.kubeconfig("one"))?)?;
    let different: Vec<String> =
        real.iter().zip(&cheap).filter(|(real, cheap)| real != cheap).map(|(real, cheap)| format!("{real}\n  not {cheap}")).collect();
    ensure!(different.is_empty() && real.len() == cheap.len(), "the real one says\n{}", different.join("\n"));
    // What is compared are answers.
    ensure!(real.iter().any(|said| said.ends_with("409 Conflict")) && real.iter().any(|said| said.ends_with("422 Invalid")), "{real:#?}");
    Ok(())
}

#[test]
fn what_stands_between_passes_on_and_cuts() -> Result<()> {
    let cluster = Cluster::start("between", true)?;
    // All that is said between is the same, watches included.
    let open = Between::start(&cluster.kubeconfig, |_, _, _| Verdict::Pass)?;
    let through = talk(Api::of(&open.kubeconfig)?).with_context(|| cluster.said())?;
    ensure!(through == talk(Api::of(&cluster.kubeconfig)?)? && open.asked() > through.len(), "{through:#?}");

    // Cut before the server sees it, nothing is made; cut afterwards, it is made, and nobody knows.
    let moment = |at: &str| if at == "before" { Moment::Asked } else { Moment::Answered };
    for at in ["before", "after"] {
        let cut = Between::start(&cluster.kubeconfig, move |number, what, now| {
            if number == 1 && what.starts_with("POST ") && now == moment(at) { Verdict::Cut } else { Verdict::Pass }
        })?;
        let (api, path) = (Api::of(&cut.kubeconfig)?, "/api/v1/namespaces/default/configmaps");
        let there = api.list(path)?.len();
        ensure!(api.create(path, &map(at, &json!({}))).is_err(), "{at}: it is answered");
        ensure!(cut.asked() == 2, "{} requests", cut.asked());
        ensure!(api.list(path)?.len() == there + usize::from(at == "after"), "{at}");
    }
    Ok(())
}
