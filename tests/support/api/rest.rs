//! REST: paths, verbs, versions of objects, and errors as a real API server words them.

use anyhow::Result;
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::admission;
use super::config::{ApiConfig, Fault};
use super::resources::Resource;
use super::store::Item;
use super::tls::User;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Its method.
    pub(crate) method: Method,
    /// Its path.
    pub(crate) path: String,
    /// What is after the question mark.
    pub(crate) query: String,
    /// Type of its body.
    pub(crate) content_type: String,
    /// Its body.
    pub(crate) body: Bytes,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Said {
    /// Status code.
    pub(crate) code: StatusCode,
    /// Type of its body.
    pub(crate) content_type: &'static str,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Said {
    /// Plain text.
    pub(crate) fn text(code: StatusCode, text: &str) -> Self {
        Self { code, content_type: "text/plain; charset=utf-8", body: Bytes::from(text.to_owned()) }
    }

    fn json(code: StatusCode, value: &Value) -> Self {
        Self { code, content_type: "application/json", body: Bytes::from(value.to_string()) }
    }
}

/// A refusal: becomes a `Status` object.
#[derive(Debug)]
pub(crate) struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl Refusal {
    /// With its code, machine-readable reason and message.
    pub(crate) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    pub(crate) fn said(&self) -> Said {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        Said::json(self.code, &status)
    }
}

impl From<anyhow::Error> for Refusal {
    /// What a real API server says when etcd does not answer.
    fn from(error: anyhow::Error) -> Self {
        eprintln!("api: {error:#}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "etcdserver: request timed out")
    }
}

/// What a path names.
#[derive(Debug)]
pub(crate) struct Target {
    /// Which resource.
    pub(crate) resource: &'static Resource,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
}

impl Target {
    /// `None` for a path that names nothing here.
    fn of(path: &str, openshift: bool) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, plural, more @ ..] if Resource::find(group, version, plural).is_some_and(|r| r.namespaced) => {
                (Some((*namespace).to_owned()), [&[*plural], more].concat())
            }
            rest => (None, rest.to_vec()),
        };
        let resource = Resource::find(group, version, rest.first()?).filter(|r| openshift || !r.is_custom())?;
        let part = |at: usize| rest.get(at).map(|part| (*part).to_owned());
        (rest.len() <= 3).then(|| Self { resource, namespace, name: part(1), sub: part(2) })
    }

    fn key(&self, name: &str) -> String {
        self.resource.key(self.namespace.as_deref(), name)
    }

    fn not_found(&self, name: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "NotFound", format!("{} \"{name}\" not found", self.resource.full_name()))
    }

    fn conflict(&self, name: &str) -> Refusal {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes to the latest version \
             and try again",
            self.resource.full_name()
        );
        Refusal::new(StatusCode::CONFLICT, "Conflict", message)
    }
}

/// Answers one request.
pub(crate) async fn answer(config: &ApiConfig, user: Option<&User>, asked: &Asked) -> Said {
    match asked.path.as_str() {
        "/livez" | "/healthz" => return Said::text(StatusCode::OK, "ok"),
        "/readyz" => return readyz(config).await,
        "/version" => return Said::json(StatusCode::OK, &version()),
        _ => {}
    }
    let done = match (user, Target::of(&asked.path, config.operators.is_some())) {
        (None, _) => Err(Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")),
        (Some(_), None) => return Said::text(StatusCode::NOT_FOUND, "404 page not found\n"),
        (Some(user), Some(target)) => match authorize(user, &target, &asked.method) {
            Ok(()) => serve(config, user, &target, asked).await,
            Err(refusal) => Err(refusal),
        },
    };
    done.unwrap_or_else(|refusal| refusal.said())
}

async fn readyz(config: &ApiConfig) -> Said {
    let failed = if config.faults().fault == Some(Fault::NotReady) {
        Some("poststarthook/rbac/bootstrap-roles")
    } else if config.store.get("readyz").await.is_err() {
        Some("etcd")
    } else {
        None
    };
    match failed {
        None => Said::text(StatusCode::OK, "ok"),
        Some(check) => Said::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("[+]ping ok\n[+]log ok\n[-]{check} failed: reason withheld\n[+]informer-sync ok\nreadyz check failed\n"),
        ),
    }
}

fn version() -> Value {
    json!({"major": "1", "minor": "29", "gitVersion": "v1.29.6+aba1e8d", "gitCommit": "", "gitTreeState": "clean",
           "buildDate": "2024-06-12T00:00:00Z", "goVersion": "go1.21.9", "compiler": "gc", "platform": "linux/amd64"})
}

fn authorize(user: &User, target: &Target, method: &Method) -> Result<(), Refusal> {
    let is = |group: &str| user.groups.iter().any(|g| g == group);
    let asks_for_certificates = target.resource.plural == "certificatesigningrequests"
        && target.sub.is_none()
        && [Method::GET, Method::POST].contains(method)
        && (is("system:nodes") || is("system:bootstrappers"));
    if is("system:masters") || asks_for_certificates {
        return Ok(());
    }
    let message = format!(
        "{} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" at the cluster scope",
        target.resource.full_name(),
        user.name,
        method.as_str().to_lowercase(),
        target.resource.plural,
        target.resource.group
    );
    Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message))
}

async fn serve(config: &ApiConfig, user: &User, target: &Target, asked: &Asked) -> Result<Said, Refusal> {
    if asked.method != Method::GET {
        admission::webhooks(&config.store, target.resource, &asked.method).await?;
    }
    let name = target.name.as_deref();
    match (asked.method.as_str(), name) {
        ("GET", None) => list(config, target, &asked.query).await,
        ("GET", Some(name)) => {
            let item = find(config, target, name).await?;
            Ok(Said::json(StatusCode::OK, &shown(item.value, item.revision)))
        }
        ("POST", None) if asked.query == "dryRun=All" => Ok(Said::json(StatusCode::CREATED, &body(asked)?)),
        ("POST", None) => create(config, user, target, body(asked)?).await,
        ("PUT", Some(name)) if asked.query == "dryRun=All" => {
            // What makes an object invalid is in no schema here.
            find(config, target, name).await?;
            Ok(Said::json(StatusCode::OK, &body(asked)?))
        }
        ("PUT", Some(name)) => update(config, target, name, body(asked)?).await,
        ("PATCH", Some(name)) => patch(config, target, name, asked).await,
        ("DELETE", Some(name)) => delete(config, target, name).await,
        _ => Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    }
}

fn body(asked: &Asked) -> Result<Value, Refusal> {
    serde_json::from_slice(&asked.body)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "BadRequest", format!("the body of the request is not JSON: {error}")))
}

async fn find(config: &ApiConfig, target: &Target, name: &str) -> Result<Item, Refusal> {
    config.store.get(&target.key(name)).await?.ok_or_else(|| target.not_found(name))
}

/// The object as a client gets it: with its resource version.
fn shown(mut value: Value, revision: i64) -> Value {
    value["metadata"]["resourceVersion"] = json!(revision.to_string());
    value
}

async fn list(config: &ApiConfig, target: &Target, query: &str) -> Result<Said, Refusal> {
    let (items, revision) = config.store.list(&target.resource.below(target.namespace.as_deref())).await?;
    let selected = items.into_iter().filter(|item| selects(query, &item.value)).map(|item| {
        let mut value = shown(item.value, item.revision);
        // A list of a built-in resource gives kind and version once, for the list.
        if let (false, Some(object)) = (target.resource.is_custom(), value.as_object_mut()) {
            object.shift_remove("kind");
            object.shift_remove("apiVersion");
        }
        value
    });
    let list = json!({
        "kind": format!("{}List", target.resource.kind), "apiVersion": target.resource.api_version(),
        "metadata": {"resourceVersion": revision.to_string()}, "items": selected.collect::<Vec<_>>(),
    });
    Ok(Said::json(StatusCode::OK, &list))
}

/// Whether an object is asked for by `labelSelector` (`a=b`, `a in (b,c)`, `a`, joined by commas) and `fieldSelector` (`metadata.name=x`).
fn selects(query: &str, object: &Value) -> bool {
    query.split('&').filter_map(|pair| pair.split_once('=')).all(|(name, value)| {
        let value = percent_encoding::percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned();
        match name {
            "labelSelector" => requirements(&value).iter().all(|requirement| fits(requirement, &object["metadata"]["labels"])),
            "fieldSelector" => value.strip_prefix("metadata.name=").is_none_or(|name| object["metadata"]["name"] == name),
            _ => true,
        }
    })
}

/// Splits at the commas that are not inside parentheses.
fn requirements(selector: &str) -> Vec<String> {
    let mut depth = 0;
    let split = selector.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    split.map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn fits(requirement: &str, labels: &Value) -> bool {
    if let Some((key, set)) = requirement.split_once(" in ") {
        let have = labels[key.trim()].as_str();
        return set.trim().trim_matches(['(', ')']).split(',').any(|value| have == Some(value.trim()));
    }
    match requirement.split_once('=') {
        Some((key, value)) => labels[key.trim_end_matches('=')].as_str() == Some(value.trim_start_matches('=')),
        None => !labels[requirement].is_null(),
    }
}

async fn create(config: &ApiConfig, user: &User, target: &Target, mut object: Value) -> Result<Said, Refusal> {
    let metadata = &mut object["metadata"];
    if metadata["name"].is_null()
        && let Some(prefix) = metadata["generateName"].as_str()
    {
        metadata["name"] = json!(format!("{prefix}{}", &uuid::Uuid::new_v4().simple().to_string()[..5]));
    }
    let Some(name) = metadata["name"].as_str().map(str::to_owned) else {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "metadata.name: Required value: name or generateName is required",
        ));
    };
    metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
    metadata["creationTimestamp"] = json!(now());
    if target.resource.is_custom() {
        metadata["generation"] = json!(1);
    }
    if let Some(namespace) = &target.namespace {
        metadata["namespace"] = json!(namespace);
    }
    admission::request(target.resource, user, &mut object)?;
    // Status has its own way in.
    if let Some(object) = object.as_object_mut() {
        object.shift_remove("status");
    }
    admission::validate(target.resource, &Value::Null, &object)?;
    if let Some(revision) = config.store.put(&target.key(&name), &object, 0).await? {
        return Ok(Said::json(StatusCode::CREATED, &shown(object, revision)));
    }
    let message = format!("{} \"{name}\" already exists", target.resource.full_name());
    Err(Refusal::new(StatusCode::CONFLICT, "AlreadyExists", message))
}

/// The time as API objects have it: whole seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn update(config: &ApiConfig, target: &Target, name: &str, new: Value) -> Result<Said, Refusal> {
    let old = find(config, target, name).await?;
    save(config, target, name, old, new).await
}

async fn patch(config: &ApiConfig, target: &Target, name: &str, asked: &Asked) -> Result<Said, Refusal> {
    if asked.content_type != "application/merge-patch+json" {
        let message = "the body of the request was in an unknown format - accepted media types include: application/merge-patch+json";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message));
    }
    let change = body(asked)?;
    // A patch that names no version is tried again when somebody else was faster, as the real server does.
    for _ in 0..5 {
        let old = find(config, target, name).await?;
        let mut new = shown(old.value.clone(), old.revision);
        merge(&mut new, &change);
        match save(config, target, name, old, new).await {
            Err(refusal) if refusal.code == StatusCode::CONFLICT && change["metadata"]["resourceVersion"].is_null() => {}
            done => return done,
        }
    }
    Err(target.conflict(name))
}

/// JSON merge patch, RFC 7386.
fn merge(into: &mut Value, change: &Value) {
    let Some(change) = change.as_object() else {
        *into = change.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in change {
        if value.is_null() {
            if let Some(object) = into.as_object_mut() {
                object.shift_remove(name);
            }
        } else {
            merge(&mut into[name.as_str()], value);
        }
    }
}

/// Puts `new` in the place of `old`, as far as the part that was asked for goes: the object without its status, or only the status.
async fn save(config: &ApiConfig, target: &Target, name: &str, old: Item, mut new: Value) -> Result<Said, Refusal> {
    let version = new["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    if version.is_some_and(|version| version != old.revision.to_string()) {
        return Err(target.conflict(name));
    }
    let mut result = old.value.clone();
    match target.sub.as_deref() {
        None => {
            result = new.clone();
            for kept in ["uid", "creationTimestamp", "generation"] {
                result["metadata"][kept] = old.value["metadata"][kept].clone();
            }
            result["status"] = old.value["status"].clone();
            if target.resource.is_custom() && result["spec"] != old.value["spec"] {
                result["metadata"]["generation"] = json!(old.value["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
            }
        }
        Some("status") => result["status"] = new["status"].take(),
        Some("approval") if target.resource.plural == "certificatesigningrequests" => {
            result["status"]["conditions"] = new["status"]["conditions"].take();
        }
        Some(_) => return Err(target.not_found(name)),
    }
    strip(&mut result);
    admission::validate(target.resource, &old.value, &result)?;
    if result == old.value {
        return Ok(Said::json(StatusCode::OK, &shown(result, old.revision)));
    }
    match config.store.put(&target.key(name), &result, old.revision).await? {
        Some(revision) => Ok(Said::json(StatusCode::OK, &shown(result, revision))),
        None => Err(target.conflict(name)),
    }
}

/// Takes away what is not stored: the version, and what is null.
fn strip(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.shift_remove("resourceVersion");
        metadata.retain(|_, value| !value.is_null());
    }
    if let Some(object) = object.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
}

async fn delete(config: &ApiConfig, target: &Target, name: &str) -> Result<Said, Refusal> {
    let old = find(config, target, name).await?;
    if config.store.delete(&target.key(name), old.revision).await? {
        Ok(Said::json(StatusCode::OK, &shown(old.value, old.revision)))
    } else {
        Err(target.conflict(name))
    }
}
