//! Requests to a cluster, and their answers. What is refused as by the real server: what is not there, what is there already, another
//! version, another uid, what is changed of a Job, anything in a namespace that is not there or going. What is not understood is answered
//! with a word.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::asked::{Asked, Selector, Target};
use super::jobs::Job;
use super::store::{Key, metadata};
use super::watch::watched;
use super::{Shared, World};
use crate::https::{self, Body};
use crate::kubelet::{tail, time};

pub(super) const JSON: &str = "application/json";
/// How long a namespace takes to go.
const TERMINATING: Duration = Duration::from_millis(200);

/// Why a request is refused: code, reason, message.
pub(super) struct Refused(u16, &'static str, String);

impl Refused {
    /// As a Status.
    pub(super) fn said(&self) -> Response<Body> {
        let Self(code, reason, message) = self;
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code,
        });
        https::answer(StatusCode::from_u16(*code).expect("a code"), JSON, status.to_string())
    }
}

pub(super) fn refusal(code: u16, reason: &'static str, message: &str) -> Refused {
    Refused(code, reason, message.to_owned())
}

pub(super) fn bad(message: &str) -> Refused {
    refusal(400, "BadRequest", message)
}

fn said(object: &Value) -> Response<Body> {
    https::answer(StatusCode::OK, JSON, object.to_string())
}

/// The answer to a request.
pub(super) fn answer(shared: &Shared, cluster: &str, asked: &Asked) -> Response<Body> {
    match asked.path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["version"] => return said(&json!({"major": "1", "minor": "34", "gitVersion": "v1.34.4", "platform": "linux/amd64"})),
        ["readyz" | "livez" | "healthz"] => return https::answer(StatusCode::OK, "text/plain", "ok"),
        _ => {}
    }
    let Some(target) = asked.target() else {
        return refusal(404, "NotFound", "the server could not find the requested resource").said();
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
    answered.unwrap_or_else(|refused| refused.said())
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
    made(shared, &mut world, cluster, asked, target, &key, object)
}

/// Stores an object that was not there.
fn made(
    shared: &Shared,
    world: &mut World,
    cluster: &str,
    asked: &Asked,
    target: &Target,
    key: &Key,
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
    if asked.option("dryRun") != "All" {
        object = if target.resource == "namespaces" { spoke.put_namespace(&key.2, object) } else { spoke.put(key.clone(), object) };
        if target.resource == "jobs.batch" {
            Job::begin(shared, world, cluster, key, &object);
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
        let message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        return Err(refusal(422, "Invalid", message));
    }
    let Some(before) = world.spokes[cluster].get(&key).cloned() else {
        if asked.applies() && target.sub.is_none() {
            return made(shared, &mut world, cluster, asked, target, &key, given);
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
        let spoke = world.spokes.get_mut(cluster).expect("it was there");
        if !object["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(&object) {
            spoke.last(&key, &object);
            world.remove(cluster, &key, true);
        } else {
            object = spoke.put(key, object);
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
            metadata(&mut object).insert("deletionTimestamp".to_owned(), time(jiff::Timestamp::now()).into());
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
