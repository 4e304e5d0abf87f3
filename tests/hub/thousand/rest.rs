//! Requests to a cluster, and their answers. What is refused as by the real server: what is not there, what is there already, another version,
//! another uid, what is changed of a Job, anything in a namespace that is not there or going. What is not understood is answered with 400 and a word.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use http::{Method, Response, StatusCode};
use hyper::body::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::jobs::Job;
use super::store::{Key, metadata};
use super::{Shared, Weather, World};
use crate::https::{self, Body};
use crate::kubelet::tail;

/// What there is: resource as it is counted, its kind, and whether it is in namespaces.
const RESOURCES: [(&str, &str, bool); 17] = [
    ("configmaps", "ConfigMap", true),
    ("events", "Event", true),
    ("namespaces", "Namespace", false),
    ("nodes", "Node", false),
    ("pods", "Pod", true),
    ("secrets", "Secret", true),
    ("serviceaccounts", "ServiceAccount", true),
    ("jobs.batch", "Job", true),
    ("leases.coordination.k8s.io", "Lease", true),
    ("networkpolicies.networking.k8s.io", "NetworkPolicy", true),
    ("roles.rbac.authorization.k8s.io", "Role", true),
    ("rolebindings.rbac.authorization.k8s.io", "RoleBinding", true),
    ("clusterroles.rbac.authorization.k8s.io", "ClusterRole", false),
    ("clusterrolebindings.rbac.authorization.k8s.io", "ClusterRoleBinding", false),
    ("validatingadmissionpolicies.admissionregistration.k8s.io", "ValidatingAdmissionPolicy", false),
    ("validatingadmissionpolicybindings.admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", false),
    ("clusterversions.config.openshift.io", "ClusterVersion", false),
];
const JSON: &str = "application/json";
/// How long a namespace takes to go.
const TERMINATING: Duration = Duration::from_millis(200);

type Refused = Response<Body>;

/// A request.
pub(super) struct Asked {
    method: Method,
    /// Its words.
    path: Vec<String>,
    query: BTreeMap<String, String>,
    form: String,
    body: Bytes,
}

/// What a path is about.
struct Target {
    resource: &'static str,
    kind: &'static str,
    api_version: String,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
}

/// An answer that is a Status.
pub(super) fn refusal(code: u16, reason: &str, message: &str) -> Refused {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code,
    });
    https::answer(StatusCode::from_u16(code).expect("a code"), JSON, status.to_string())
}

fn said(object: &Value) -> Response<Body> {
    https::answer(StatusCode::OK, JSON, object.to_string())
}

fn bad(message: &str) -> Refused {
    refusal(400, "BadRequest", message)
}

impl Asked {
    pub(super) fn parse(method: &Method, path: &str, query: &str, form: &str, body: Bytes) -> Self {
        let text = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        Self {
            method: method.clone(),
            path: path
                .split('/')
                .filter(|word| !word.is_empty())
                .map(|word| percent_decode_str(word).decode_utf8_lossy().into_owned())
                .collect(),
            query: query
                .split('&')
                .filter(|option| !option.is_empty())
                .map(|option| option.split_once('=').unwrap_or((option, "")))
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            form: form.to_owned(),
            body,
        }
    }

    fn option(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    fn watches(&self) -> bool {
        matches!(self.option("watch"), "true" | "1")
    }

    fn applies(&self) -> bool {
        self.form.starts_with("application/apply-patch")
    }

    /// What it is counted as.
    pub(super) fn counted(&self) -> String {
        let Some(target) = self.target() else { return format!("get /{}", self.path.join("/")) };
        let verb = match self.method {
            Method::GET if self.watches() => "watch",
            Method::GET if target.name.is_none() => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH if self.applies() => "apply",
            Method::PATCH => "patch",
            _ => "delete",
        };
        target.sub.map_or_else(|| format!("{verb} {}", target.resource), |sub| format!("{verb} {}/{sub}", target.resource))
    }

    fn target(&self) -> Option<Target> {
        let words: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let (api_version, group, rest) = match words[..] {
            ["api", version, ref rest @ ..] => (version.to_owned(), "", rest),
            ["apis", group, version, ref rest @ ..] => (format!("{group}/{version}"), group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (plural, name, sub) = match *rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(name), None),
            [plural, name, sub] => (plural, Some(name), Some(sub)),
            _ => return None,
        };
        let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let &(resource, kind, namespaced) = RESOURCES.iter().find(|(known, ..)| *known == resource)?;
        // Across all namespaces is read alone.
        if namespaced == namespace.is_none() && (name.is_some() || !namespaced || self.method != Method::GET) {
            return None;
        }
        let owned = |word: Option<&str>| word.map(str::to_owned);
        Some(Target { resource, kind, api_version, namespace: owned(namespace), name: owned(name), sub: owned(sub) })
    }

    fn json(&self) -> Result<Value, Refused> {
        serde_json::from_slice(&self.body).map_err(|error| bad(&format!("the body is no JSON: {error}")))
    }
}

impl Target {
    fn key(&self, name: &str) -> Key {
        (self.resource.to_owned(), self.namespace.clone().unwrap_or_default(), name.to_owned())
    }

    fn not_found(&self, name: &str) -> Refused {
        refusal(404, "NotFound", &format!("{} {name:?} not found", self.resource))
    }
}

/// Labels and fields that are asked for.
#[derive(Clone, Default)]
struct Selector {
    labels: Vec<(String, Option<(bool, String)>, bool)>,
    name: Option<String>,
}

impl Selector {
    fn of(asked: &Asked) -> Result<Self, Refused> {
        let mut selector = Self::default();
        for part in asked.option("labelSelector").split(',').filter(|part| !part.is_empty()) {
            if part.contains(['(', ')', ' ']) {
                return Err(bad("selectors by sets are not understood here"));
            }
            let owned = |word: &str| word.trim_matches('=').to_owned();
            selector.labels.push(match (part.split_once("!="), part.split_once('='), part.strip_prefix('!')) {
                (Some((label, value)), ..) => (owned(label), Some((false, owned(value))), true),
                (_, Some((label, value)), _) => (owned(label), Some((true, owned(value))), true),
                (.., Some(label)) => (owned(label), None, false),
                _ => (owned(part), None, true),
            });
        }
        for part in asked.option("fieldSelector").split(',').filter(|part| !part.is_empty()) {
            let name = part.strip_prefix("metadata.name=").ok_or_else(|| bad("fields other than metadata.name are not understood here"))?;
            selector.name = Some(name.trim_matches('=').to_owned());
        }
        Ok(selector)
    }

    fn takes(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"][name].as_str();
        self.name.as_ref().is_none_or(|name| object["metadata"]["name"] == **name)
            && self.labels.iter().all(|(name, value, there)| match value {
                Some((equal, value)) => (label(name) == Some(value)) == *equal,
                None => label(name).is_some() == *there,
            })
    }
}

/// The answer to a request.
pub(super) fn answer(shared: &Shared, cluster: &str, asked: &Asked) -> Response<Body> {
    match asked.path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["version"] => return said(&json!({"major": "1", "minor": "34", "gitVersion": "v1.34.4", "platform": "linux/amd64"})),
        ["readyz" | "livez" | "healthz"] => return https::answer(StatusCode::OK, "text/plain", "ok"),
        _ => {}
    }
    let Some(target) = asked.target() else {
        return refusal(404, "NotFound", "the server could not find the requested resource");
    };
    let answered = match (&asked.method, &target.name) {
        (&Method::GET, _) if asked.watches() => watched(shared, cluster, asked, target),
        (&Method::GET, None) => list(shared, cluster, asked, &target),
        (&Method::GET, Some(name)) => read(shared, cluster, asked, &target, name),
        (&Method::POST, None) => create(shared, cluster, asked, &target),
        (&Method::PUT | &Method::PATCH, Some(name)) => change(shared, cluster, asked, &target, name),
        (&Method::DELETE, _) => delete(shared, cluster, asked, &target),
        _ => Err(refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")),
    };
    answered.unwrap_or_else(|refused| refused)
}

fn read(shared: &Shared, cluster: &str, asked: &Asked, target: &Target, name: &str) -> Result<Response<Body>, Refused> {
    let world = shared.world();
    let spoke = &world.spokes[cluster];
    let key = target.key(name);
    let object = spoke.get(&key).ok_or_else(|| target.not_found(name))?;
    match target.sub.as_deref() {
        None | Some("status") => Ok(said(object)),
        Some("log") if target.resource == "pods" => {
            if object["status"]["phase"] == "Pending" {
                return Err(bad(&format!("container in pod {name:?} is waiting to start: ContainerCreating")));
            }
            let options: BTreeMap<&str, &str> = asked.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            Ok(https::answer(StatusCode::OK, "text/plain", tail(spoke.logs.get(&key).map_or("", String::as_str), &options)))
        }
        Some(sub) => Err(refusal(404, "NotFound", &format!("{} has no {sub} here", target.resource))),
    }
}

fn list(shared: &Shared, cluster: &str, asked: &Asked, target: &Target) -> Result<Response<Body>, Refused> {
    let selector = Selector::of(asked)?;
    let world = shared.world();
    let spoke = &world.spokes[cluster];
    let items: Vec<&Value> = spoke.of(target.resource, target.namespace.as_deref()).filter(|object| selector.takes(object)).collect();
    Ok(said(&json!({
        "kind": format!("{}List", target.kind), "apiVersion": target.api_version,
        "metadata": {"resourceVersion": spoke.version.to_string()}, "items": items,
    })))
}

fn create(shared: &Shared, cluster: &str, asked: &Asked, target: &Target) -> Result<Response<Body>, Refused> {
    let mut object = asked.json()?;
    let name = match (object["metadata"]["name"].as_str(), object["metadata"]["generateName"].as_str()) {
        (Some(name), _) => name.to_owned(),
        (None, Some(begin)) => format!("{begin}{}", &uuid::Uuid::new_v4().simple().to_string()[..5]),
        _ => return Err(refusal(422, "Invalid", "metadata.name: Required value: name or generateName is required")),
    };
    let mut world = shared.world();
    let key = target.key(&name);
    if world.spokes[cluster].get(&key).is_some() {
        return Err(refusal(409, "AlreadyExists", &format!("{} {name:?} already exists", target.resource)));
    }
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    made(shared, &mut world, cluster, asked, target, key, object)
}

/// Stores an object that was not there.
fn made(
    shared: &Shared,
    world: &mut World,
    cluster: &str,
    asked: &Asked,
    target: &Target,
    key: Key,
    mut object: Value,
) -> Result<Response<Body>, Refused> {
    let spoke = world.spokes.get_mut(cluster).expect("it was there");
    if let Some(namespace) = &target.namespace {
        match spoke.get(&("namespaces".to_owned(), String::new(), namespace.clone())) {
            None => return Err(refusal(404, "NotFound", &format!("namespaces {namespace:?} not found"))),
            Some(there) if !there["metadata"]["deletionTimestamp"].is_null() => {
                let message = format!("unable to create new content in namespace {namespace} because it is being terminated");
                return Err(refusal(403, "Forbidden", &message));
            }
            Some(_) => {}
        }
    }
    object["kind"] = target.kind.into();
    object["apiVersion"] = target.api_version.as_str().into();
    if target.resource == "namespaces" {
        object["status"] = json!({"phase": "Active"});
    }
    if asked.option("dryRun") != "All" {
        object = spoke.put(key.clone(), object);
        if target.resource == "jobs.batch" {
            Job::begin(shared, world, cluster, &key, &object);
        }
    }
    Ok(https::answer(StatusCode::CREATED, JSON, object.to_string()))
}

/// PUT, and patches: apply and merge.
fn change(shared: &Shared, cluster: &str, asked: &Asked, target: &Target, name: &str) -> Result<Response<Body>, Refused> {
    let given = asked.json()?;
    let key = target.key(name);
    let mut world = shared.world();
    if asked.applies() && asked.option("fieldManager").is_empty() {
        return Err(bad("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"));
    }
    let Some(before) = world.spokes[cluster].get(&key).cloned() else {
        if asked.applies() && target.sub.is_none() {
            return made(shared, &mut world, cluster, asked, target, key, given);
        }
        return Err(target.not_found(name));
    };
    for field in ["uid", "resourceVersion"] {
        let wanted = &given["metadata"][field];
        if !wanted.is_null() && *wanted != before["metadata"][field] {
            let message = format!("Operation cannot be fulfilled on {} {name:?}: the object has been modified", target.resource);
            return Err(refusal(409, "Conflict", &message));
        }
    }
    let mut object = if asked.method == Method::PUT {
        let mut object = given;
        let kept = metadata(&mut object);
        if !before["metadata"]["deletionTimestamp"].is_null() {
            kept.insert("deletionTimestamp".to_owned(), before["metadata"]["deletionTimestamp"].clone());
        }
        object
    } else if asked.applies() {
        let mut object = before.clone();
        for (field, value) in given.as_object().into_iter().flatten() {
            if field == "metadata" {
                merge(&mut object[field], value);
            } else {
                object[field] = value.clone();
            }
        }
        object
    } else if asked.form.starts_with("application/merge-patch") || asked.form.starts_with("application/strategic-merge-patch") {
        let mut object = before.clone();
        merge(&mut object, &given);
        object
    } else {
        return Err(refusal(415, "UnsupportedMediaType", &format!("{} is not understood here", asked.form)));
    };
    // A status is changed as such, the rest without it.
    match target.sub.as_deref() {
        None if before["status"].is_null() => {
            object.as_object_mut().map(|object| object.remove("status"));
        }
        None => object["status"] = before["status"].clone(),
        Some("status") => {
            let status = object["status"].clone();
            object = before.clone();
            object["status"] = status;
        }
        Some(sub) => return Err(refusal(404, "NotFound", &format!("{} has no {sub} here", target.resource))),
    }
    if target.resource == "jobs.batch" && object["spec"]["template"] != before["spec"]["template"] {
        return Err(refusal(422, "Invalid", &format!("Job.batch {name:?} is invalid: spec.template: Invalid value: field is immutable")));
    }
    if asked.option("dryRun") != "All" {
        let released = !object["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(&object);
        object = world.spokes.get_mut(cluster).expect("it was there").put(key.clone(), object);
        if released {
            world.remove(cluster, &key, true);
        }
    }
    Ok(said(&object))
}

/// As RFC 7386 has it.
fn merge(into: &mut Value, change: &Value) {
    let Some(change) = change.as_object() else {
        into.clone_from(change);
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in change {
        if value.is_null() {
            into.as_object_mut().map(|into| into.remove(field));
        } else {
            merge(&mut into[field], value);
        }
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

fn delete(shared: &Shared, cluster: &str, asked: &Asked, target: &Target) -> Result<Response<Body>, Refused> {
    let options = if asked.body.is_empty() { json!({}) } else { asked.json()? };
    let selector = Selector::of(asked)?;
    let policy = options["propagationPolicy"].as_str().unwrap_or(asked.option("propagationPolicy"));
    // The pods of a Job stay unless it is said that they go: what batch/v1 does for old clients.
    let with_dependents = if policy.is_empty() { target.resource != "jobs.batch" } else { policy != "Orphan" };
    let mut world = shared.world();
    let names: Vec<String> = match &target.name {
        Some(name) => vec![name.clone()],
        None => world.spokes[cluster]
            .of(target.resource, target.namespace.as_deref())
            .filter(|object| selector.takes(object))
            .filter_map(|object| Some(object["metadata"]["name"].as_str()?.to_owned()))
            .collect(),
    };
    for name in names {
        let key = target.key(&name);
        let spoke = world.spokes.get_mut(cluster).expect("it was there");
        let mut object = spoke.get(&key).cloned().ok_or_else(|| target.not_found(&name))?;
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return Err(refusal(409, "Conflict", &format!("Precondition failed: {field} in precondition: {wanted}")));
            }
        }
        let waits = has_finalizers(&object) || target.resource == "namespaces";
        if !waits {
            world.remove(cluster, &key, with_dependents);
        } else if object["metadata"]["deletionTimestamp"].is_null() {
            metadata(&mut object).insert("deletionTimestamp".to_owned(), crate::kubelet::time(jiff::Timestamp::now()).into());
            if target.resource == "namespaces" {
                object["status"] = json!({"phase": "Terminating"});
                let (shared, cluster) = (shared.clone(), cluster.to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep(TERMINATING).await;
                    shared.world().remove_namespace(&cluster, &name);
                });
            }
            let object = spoke.put(key, object);
            if target.name.is_some() {
                return Ok(said(&object));
            }
        }
    }
    Ok(said(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})))
}

/// A watch: what it is about, and how far it has told.
struct Watch {
    shared: Shared,
    cluster: String,
    target: Target,
    selector: Selector,
    from: u64,
    lines: VecDeque<Bytes>,
    changes: watch::Receiver<()>,
    end: Instant,
}

fn line(what: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": what, "object": object})).into()
}

fn watched(shared: &Shared, cluster: &str, asked: &Asked, target: Target) -> Result<Response<Body>, Refused> {
    let selector = Selector::of(asked)?;
    let world = shared.world();
    let spoke = &world.spokes[cluster];
    let mut lines = VecDeque::new();
    let initial = asked.option("sendInitialEvents") == "true";
    let from = match asked.option("resourceVersion") {
        _ if initial => None,
        "" | "0" => None,
        version => Some(version.parse::<u64>().map_err(|_| bad(&format!("resourceVersion: Invalid value: {version:?}")))?),
    };
    if from.is_none() {
        let there = spoke.of(target.resource, target.namespace.as_deref()).filter(|object| selector.takes(object));
        lines.extend(there.map(|object| line("ADDED", object)));
    }
    if initial {
        let version = spoke.version.to_string();
        let metadata = json!({"resourceVersion": version, "annotations": {"k8s.io/initial-events-end": "true"}});
        lines.push_back(line("BOOKMARK", &json!({"kind": target.kind, "apiVersion": target.api_version, "metadata": metadata})));
    }
    let seconds = asked.option("timeoutSeconds").parse().unwrap_or(1800);
    let watch = Watch {
        shared: shared.clone(),
        cluster: cluster.to_owned(),
        from: from.unwrap_or(spoke.version),
        target,
        selector,
        lines,
        changes: spoke.watch(),
        end: Instant::now() + Duration::from_secs(seconds),
    };
    Ok(https::pieces(JSON, futures::stream::unfold(watch, Watch::next)))
}

impl Watch {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            self.changes.mark_unchanged();
            let fair = self.look()?;
            if fair && let Some(line) = self.lines.pop_front() {
                return Some((line, self));
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.end) => return None,
            }
        }
    }

    /// Takes over what has changed. Whether it may be told; `None`: nobody is there any more to tell it.
    fn look(&mut self) -> Option<bool> {
        let shared = self.shared.clone();
        let world = shared.world();
        let spoke = world.spokes.get(&self.cluster)?;
        match spoke.weather {
            Weather::Fair => {}
            Weather::Hanging => return Some(false),
            Weather::Gone | Weather::Unauthorized => return None,
        }
        if self.from < spoke.version && spoke.changes.front().is_some_and(|first| first.version > self.from + 1) {
            let gone = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
                "message": format!("too old resource version: {}", self.from),
            });
            self.lines.push_back(line("ERROR", &gone));
            self.end = Instant::now();
        }
        let later = spoke.changes.partition_point(|change| change.version <= self.from);
        for change in spoke.changes.iter().skip(later) {
            let (resource, namespace, _) = &change.key;
            let within = self.target.namespace.as_ref().is_none_or(|one| one == namespace);
            let named = self.target.name.as_ref().is_none_or(|name| *name == change.key.2);
            if resource == self.target.resource && within && named && self.selector.takes(&change.object) {
                self.lines.push_back(line(change.what, &change.object));
            }
        }
        self.from = spoke.version;
        Some(true)
    }
}
