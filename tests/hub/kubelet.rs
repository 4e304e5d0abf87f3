//! What plays scheduler and kubelet on a [`Cluster`], which has no node: takes each pod through its life as a test says, honours deletion
//! as a kubelet does, and answers for logs, so that what is seen through the API is written by the real job controller.
//!
//! Only pods with the restart policy Never: no container is started twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{ask, client};
use crate::cluster::Cluster;
use crate::https::{self, Body, answer};

/// How often it looks, as the emulated node's.
const LOOK: Duration = Duration::from_millis(100);
/// Between the pod's coming to the node and its container's running.
const CREATING: Duration = Duration::from_millis(200);

/// What becomes of a pod.
#[derive(Debug, Clone)]
pub(crate) enum Play {
    /// No node has room for it.
    Unschedulable,
    /// Its image cannot be pulled.
    NoImage,
    /// It runs.
    Runs(Run),
}

/// How a pod's container runs.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// What it prints.
    pub(crate) log: String,
    /// How it ends by itself, and after how long; `None`: never.
    pub(crate) end: Option<(Duration, End)>,
    /// How it ends when it is told to, and after how long. After the pod's grace period it is killed.
    pub(crate) told: (Duration, End),
}

/// The end of a container.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// It exits: code, and what it has written as its termination message.
    Exit(i32, String),
    /// The pod is evicted, with this message.
    Evicted(String),
}

impl Play {
    /// Exits with a code and a termination message after so many milliseconds.
    pub(crate) fn exits(after: u64, code: i32, message: &str) -> Self {
        Self::runs(Some((Duration::from_millis(after), End::Exit(code, message.to_owned()))))
    }

    /// Is evicted after so many milliseconds.
    pub(crate) fn evicted(after: u64, message: &str) -> Self {
        Self::runs(Some((Duration::from_millis(after), End::Evicted(message.to_owned()))))
    }

    /// Never ends by itself.
    pub(crate) fn hangs() -> Self {
        Self::runs(None)
    }

    fn runs(end: Option<(Duration, End)>) -> Self {
        Self::Runs(Run { log: String::new(), end, told: (Duration::from_millis(100), End::Exit(143, String::new())) })
    }

    /// And prints this.
    pub(crate) fn with_log(mut self, log: &str) -> Self {
        if let Self::Runs(run) = &mut self {
            log.clone_into(&mut run.log);
        }
        self
    }

    /// And ends so many milliseconds after it was told to, with this code and message.
    pub(crate) fn when_told(mut self, after: u64, code: i32, message: &str) -> Self {
        if let Self::Runs(run) = &mut self {
            run.told = (Duration::from_millis(after), End::Exit(code, message.to_owned()));
        }
        self
    }
}

/// How far it is with a pod.
#[derive(Debug, Clone)]
enum State {
    /// No node, or no image.
    Waits,
    Creating(Instant),
    Running {
        since: Instant,
        started: Timestamp,
        /// Until when it may go on, and how it ends then, since it was told to end.
        told: Option<(Instant, End)>,
    },
    Ended {
        started: Timestamp,
        at: Timestamp,
        end: End,
    },
    /// It ran when the node was rebooted.
    Lost(Timestamp),
}

/// A pod that it has, or has had.
#[derive(Debug, Clone)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
    containers: Vec<(String, String)>,
    play: Play,
    state: State,
    /// The status that was last written.
    written: Option<Value>,
}

#[derive(Default)]
struct Shared {
    /// By uid; what is gone from the API stays, as what was seen.
    pods: BTreeMap<String, Pod>,
    dead: bool,
    ends: bool,
}

type Script = Box<dyn FnMut(&Value) -> Play + Send>;

/// The scheduler and the kubelet of a cluster; gone when dropped.
pub(crate) struct Kubelet {
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Registers a node and begins. `script` is asked once for each pod what becomes of it, with the pod as it is in the API.
    pub(crate) fn start(cluster: &Cluster, node: &str, script: impl FnMut(&Value) -> Play + Send + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let now = time(Timestamp::now());
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
            "name": node, "labels": {"kubernetes.io/hostname": node, "node-role.kubernetes.io/control-plane": ""},
        }});
        cluster.api.apply(&format!("/api/v1/nodes/{node}"), &object)?;
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": node}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [ready],
        }});
        cluster.api.merge(&format!("/api/v1/nodes/{node}/status"), &status)?;
        let tls = https::tls(&cluster.authority.issue(&format!("system:node:{node}"), Some("system:nodes"), &["127.0.0.1"])?)?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (kubeconfig, node, script) = (cluster.kubeconfig.clone(), node.to_owned(), Box::new(script) as Script);
        let client = runtime.block_on(client(&kubeconfig))?;
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let logs = Arc::clone(&of_thread);
                tokio::spawn(https::serve(listener, tls, move |request| log(Arc::clone(&logs), request)));
                Work { client, node, script, shared: of_thread }.go().await;
            });
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The node is switched off: nothing is reported or deleted any more, and no log is to be had.
    pub(crate) fn kill(&self) {
        locked(&self.shared).dead = true;
    }

    /// It is switched on again: what ran is lost, which is reported as kubelet does.
    pub(crate) fn boot(&self) {
        let mut shared = locked(&self.shared);
        for pod in shared.pods.values_mut() {
            match &pod.state {
                State::Running { started, .. } => pod.state = State::Lost(*started),
                State::Creating(_) => pod.state = State::Creating(Instant::now()),
                _ => {}
            }
        }
        shared.dead = false;
    }

    /// How many pods have come to it since it began.
    pub(crate) fn pods(&self) -> usize {
        locked(&self.shared).pods.len()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        locked(&self.shared).ends = true;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What its thread works with.
struct Work {
    client: kube::Client,
    node: String,
    script: Script,
    shared: Arc<Mutex<Shared>>,
}

impl Work {
    async fn go(&mut self) {
        loop {
            let (dead, ends) = {
                let shared = locked(&self.shared);
                (shared.dead, shared.ends)
            };
            if ends {
                return;
            }
            if !dead {
                self.pass_time();
                // Without an API server the pods go on; it is told when it is there.
                if let Ok(Some(list)) = ask(&self.client, Method::GET, "/api/v1/pods?resourceVersion=0", "", None).await {
                    for pod in list["items"].as_array().into_iter().flatten() {
                        let _ = self.look(pod).await;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What happens by itself.
    fn pass_time(&self) {
        let now = Instant::now();
        for pod in locked(&self.shared).pods.values_mut() {
            let Play::Runs(run) = &pod.play else { continue };
            match &pod.state {
                State::Creating(since) if now >= *since + CREATING => {
                    pod.state = State::Running { since: now, started: Timestamp::now(), told: None };
                }
                State::Running { since, started, told } => {
                    let by_itself = run.end.as_ref().map(|(after, end)| (*since + *after, end));
                    let told = told.as_ref().map(|(at, end)| (*at, end));
                    let first = [by_itself, told].into_iter().flatten().min_by_key(|(at, _)| *at);
                    if let Some((_, end)) = first.filter(|(at, _)| now >= *at) {
                        pod.state = State::Ended { started: *started, at: Timestamp::now(), end: end.clone() };
                    }
                }
                _ => {}
            }
        }
    }

    /// Does for one pod what is to be done now.
    async fn look(&mut self, object: &Value) -> Result<()> {
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name, uid) = (text(&metadata["namespace"]), text(&metadata["name"]), text(&metadata["uid"]));
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let known = locked(&self.shared).pods.get(&uid).cloned();
        let mut pod = if let Some(pod) = known {
            pod
        } else {
            ensure!(object["spec"]["restartPolicy"] == "Never", "{path} restarts, which this kubelet cannot");
            let containers = object["spec"]["containers"].as_array().into_iter().flatten();
            let containers = containers.map(|container| (text(&container["name"]), text(&container["image"]))).collect();
            let play = (self.script)(object);
            Pod { namespace, name, uid: uid.clone(), containers, play, state: State::Waits, written: None }
        };
        if object["spec"]["nodeName"].is_null() && !matches!(pod.play, Play::Unschedulable) {
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": self.node},
            });
            match ask(&self.client, Method::POST, &format!("{path}/binding"), "application/json", Some(&binding)).await {
                // Bound already: the list is from before.
                Err(error) if format!("{error:#}").contains("already assigned") => {}
                bound => drop(bound?),
            }
            if matches!(pod.state, State::Waits) && matches!(pod.play, Play::Runs(_)) {
                pod.state = State::Creating(Instant::now());
            }
        }
        if !metadata["deletionTimestamp"].is_null() {
            let grace = metadata["deletionGracePeriodSeconds"].as_u64().unwrap_or(30);
            pod.end(Duration::from_secs(grace));
        }
        let status = pod.status();
        let written = pod.written.replace(status.clone());
        locked(&self.shared).pods.insert(uid.clone(), pod.clone());
        if written.as_ref() != Some(&status) {
            let form = "application/merge-patch+json";
            if let Err(error) = ask(&self.client, Method::PATCH, &format!("{path}/status"), form, Some(&json!({"status": status}))).await {
                if let Some(pod) = locked(&self.shared).pods.get_mut(&uid) {
                    pod.written = None;
                }
                return Err(error);
            }
        }
        if !metadata["deletionTimestamp"].is_null() && pod.is_over() {
            let how = json!({
                "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid},
            });
            ask(&self.client, Method::DELETE, &path, "application/json", Some(&how)).await?;
        }
        Ok(())
    }
}

impl Pod {
    /// It is told to end.
    fn end(&mut self, grace: Duration) {
        match (&mut self.state, &self.play) {
            (State::Running { told: told @ None, .. }, Play::Runs(run)) => {
                let (after, end) = run.told.clone();
                let end = if after <= grace { end } else { End::Exit(137, String::new()) };
                *told = Some((Instant::now() + after.min(grace), end));
            }
            (State::Creating(_) | State::Waits, _) => {
                let now = Timestamp::now();
                self.state = State::Ended { started: now, at: now, end: End::Exit(137, String::new()) };
            }
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended { .. } | State::Lost(_))
    }

    /// As kubelet writes it.
    fn status(&self) -> Value {
        let id = format!("containerd://{}", self.uid);
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let terminated = |started: Timestamp, at: Timestamp, code: i32, reason: &str, message: &str| {
            json!({"terminated": {
                "exitCode": code, "reason": reason, "message": message, "containerID": id, "startedAt": time(started), "finishedAt": time(at),
            }})
        };
        let (phase, state) = match &self.state {
            State::Waits if matches!(self.play, Play::Unschedulable) => {
                let message = "0/1 nodes are available: 1 Insufficient memory.";
                let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
                return json!({"phase": "Pending", "conditions": [condition]});
            }
            State::Waits => ("Pending", waiting("ImagePullBackOff", "Back-off pulling image: not found")),
            State::Creating(_) => ("Pending", json!({"waiting": {"reason": "ContainerCreating"}})),
            State::Running { started, .. } => ("Running", json!({"running": {"startedAt": time(*started)}})),
            State::Ended { started, at, end: End::Exit(0, message) } => ("Succeeded", terminated(*started, *at, 0, "Completed", message)),
            State::Ended { started, at, end: End::Exit(code, message) } => ("Failed", terminated(*started, *at, *code, "Error", message)),
            State::Ended { started, at, end: End::Evicted(_) } => ("Failed", terminated(*started, *at, 137, "Error", "")),
            State::Lost(started) => {
                let message = "The container could not be located when the pod was terminated";
                ("Failed", terminated(*started, *started, 137, "ContainerStatusUnknown", message))
            }
        };
        let running = phase == "Running";
        let containers = self.containers.iter().map(|(name, image)| {
            json!({
                "name": name, "image": image, "imageID": image, "ready": running, "started": running, "restartCount": 0,
                "state": state, "lastState": {},
            })
        });
        let condition = |kind: &str, yes: bool| json!({"type": kind, "status": if yes { "True" } else { "False" }});
        let mut conditions = vec![
            condition("PodScheduled", true),
            condition("Initialized", true),
            condition("ContainersReady", running),
            condition("Ready", running),
        ];
        let mut status = json!({"phase": phase, "hostIP": "127.0.0.1", "containerStatuses": containers.collect::<Vec<_>>()});
        if let State::Ended { end: End::Evicted(message), .. } = &self.state {
            status["reason"] = "Evicted".into();
            status["message"] = message.as_str().into();
            conditions.push(json!({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message}));
        }
        status["conditions"] = conditions.into();
        status
    }

    /// Its log, or why there is none.
    fn log(&self, container: &str) -> Result<&str> {
        match (&self.state, &self.play) {
            (State::Running { .. } | State::Ended { .. }, Play::Runs(run)) => Ok(&run.log),
            (State::Lost(_), _) => bail!("failed to try resolving symlinks in path: no such file or directory"),
            _ => bail!("container {container:?} in pod {:?} is waiting to start: ContainerCreating", self.name),
        }
    }
}

/// `GET /containerLogs/NAMESPACE/POD/CONTAINER`, as the API server asks for it.
async fn log(shared: Arc<Mutex<Shared>>, request: Request<Incoming>) -> Option<Response<Body>> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let said = |status, text: String| Some(answer(status, "text/plain", text));
    let ["", "containerLogs", namespace, name, container] = path.split('/').collect::<Vec<_>>()[..] else {
        return said(StatusCode::NOT_FOUND, format!("{path}: not found"));
    };
    let options: BTreeMap<&str, &str> = query.split('&').filter_map(|option| option.split_once('=')).collect();
    let follow = options.get("follow") == Some(&"true");
    loop {
        {
            let shared = locked(&shared);
            if shared.dead {
                return None;
            }
            // The last of this name.
            let pods: BTreeSet<&str> = shared.pods.values().map(|pod| pod.name.as_str()).collect();
            let Some(pod) = shared.pods.values().rfind(|pod| pod.namespace == namespace && pod.name == name) else {
                return said(StatusCode::NOT_FOUND, format!("pod {name:?} is none of {pods:?}"));
            };
            match pod.log(container) {
                Err(why) => return said(StatusCode::BAD_REQUEST, format!("{why}")),
                Ok(log) if !follow || pod.is_over() => return said(StatusCode::OK, tail(log, &options)),
                Ok(_) => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The part of a log that was asked for.
pub(crate) fn tail(log: &str, options: &BTreeMap<&str, &str>) -> String {
    let number = |name: &str| options.get(name).and_then(|value| value.parse::<usize>().ok());
    let lines: Vec<&str> = log.split_inclusive('\n').collect();
    let mut text = lines[lines.len() - number("tailLines").unwrap_or(lines.len()).min(lines.len())..].concat();
    let mut limit = number("limitBytes").unwrap_or(text.len()).min(text.len());
    while !text.is_char_boundary(limit) {
        limit -= 1;
    }
    text.truncate(limit);
    text
}

/// As Kubernetes writes it.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
