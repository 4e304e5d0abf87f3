//! One request to the node's API server, with a limit; and the wait until it is ready.

use std::convert::Infallible;
use std::fmt::{Debug, Formatter};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ::kube::client::{Body, ConfigExt};
use anyhow::{Context, Result};
use http::{Method, Request, header};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kubeconfig::{self, Access, LOOPBACK};
use super::objects::List;
use crate::error::unanswered;
use crate::node::Node;
use crate::node::clock::{Clock, Deadline};
use crate::node::profile::Profile;

/// Who asks, as audit logs and `managedFields` have it.
const AGENT: &str = concat!("recovery/", env!("CARGO_PKG_VERSION"));
/// The time limit of one request, including the connection.
const LIMIT: Duration = Duration::from_secs(10);
/// The pause between two looks of a wait.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How many items are asked for at a time.
const PAGE: u32 = 50;
/// How often a busy server is asked, as often as its own clients do (client-go `rest/with_retry.go`).
const TRIES_WHEN_BUSY: u32 = 10;
/// How long a revision must stay before it counts. The operators' conditions were seen to lag behind their revisions for up to 13 s, and in
/// that time the revision numbers moved on within 3 s.
const HOLD: Duration = Duration::from_secs(10);

/// A client of the node's own API server. Every call has a time limit; nothing is cached, and no connection is kept, because the server
/// restarts more than once in a recovery.
///
/// Calls block. Threads can share it; they take turns.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    http: ::kube::Client,
    token: Option<String>,
    file: PathBuf,
    server: String,
    pub(super) profile: &'static Profile,
    pub(super) clock: Clock,
    limit: Duration,
    pub(super) hold: Duration,
}

/// The API server answered with a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the API server refused ({code} {reason}): {message}")]
pub struct Refused {
    /// HTTP status code.
    pub code: u16,
    /// Its machine-readable reason: `NotFound`, `Conflict`, `InternalError`, …
    pub reason: String,
    /// Its message, which names a webhook that failed, for example.
    pub message: String,
}

impl Debug for Client {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("file", &self.file).field("server", &self.server).finish_non_exhaustive()
    }
}

impl Client {
    /// A client from the first of the profile's kubeconfigs that exists. No request is sent.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when the node has none of them, or one that cannot be used; when one of the files
    /// it refers to cannot be read.
    pub fn of(node: &Node, profile: &Profile) -> Result<Self> {
        let access = kubeconfig::find(node, profile)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the client's runtime")?;
        let http = {
            // The client starts a task at once, so it must be made inside the runtime.
            let _inside = runtime.enter();
            connect(&access)
        };
        let http = http.with_context(|| format!("using the kubeconfig {}", access.file.display()))?;
        let Access { file, server, token, .. } = access;
        let (profile, clock) = (profile.kind.profile(), node.clock().clone());
        Ok(Self { runtime, http, token, file, server, profile, clock, limit: LIMIT, hold: HOLD })
    }

    /// The same client with another time limit of one request; the default is 10 s.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The same client with another time for which a revision must hold; the default is 10 s.
    #[must_use]
    pub fn with_hold(self, hold: Duration) -> Self {
        Self { hold, ..self }
    }

    /// One look at `/readyz`: `Ok(())` when ready, else the reason why not.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when it does not answer; [`Refused`] with the checks that failed.
    pub fn ready(&self) -> Result<()> {
        match self.call(Method::GET, "/readyz", "", Vec::new()) {
            Err(error) => match error.downcast::<Refused>() {
                Ok(refused) => Err(Refused { message: failed_checks(&refused.message), ..refused }.into()),
                Err(error) => Err(error),
            },
            Ok(_) => Ok(()),
        }
    }

    /// Calls `look` until it returns a value, about every second. While the control plane starts it is normal that the API server does not
    /// answer or refuses, so only the deadline or an interruption ends the wait.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) at the deadline, with `what` was waited for and the last error;
    /// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when interrupted.
    pub fn patiently<T>(&self, what: &str, deadline: Deadline, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let said = std::cell::RefCell::new("it has not happened yet".to_owned());
        let attempt = || match look() {
            Ok(found) => Ok(found),
            Err(error) => {
                said.replace(format!("{error:#}"));
                Ok(None)
            }
        };
        deadline.wait_for(what, PAUSE, attempt, || said.borrow().clone())
    }

    /// The object at `path`.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(path, &self.call(Method::GET, path, "", Vec::new())?)
    }

    /// The items of the list at `path`; none where the API does not know the resource.
    pub(super) fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        match self.get::<List<T>>(path) {
            // Until the server has read their definitions, custom resources are unknown too; its readiness waits for that.
            Err(error) if is_missing(&error) => self.ready().map(|()| Vec::new()),
            list => Ok(list?.items),
        }
    }

    /// Each item of the list at `path`, some at a time: however many there are, and however large.
    pub(super) fn each<T: DeserializeOwned>(&self, path: &str, mut take: impl FnMut(T)) -> Result<()> {
        let mut from = String::new();
        loop {
            let list = match self.get::<List<T>>(&format!("{path}?limit={PAGE}{from}")) {
                Err(error) if is_missing(&error) => return self.ready(),
                list => list?,
            };
            list.items.into_iter().for_each(&mut take);
            if list.metadata.rest.is_empty() {
                return Ok(());
            }
            from = format!("&continue={}", percent_encoding::utf8_percent_encode(&list.metadata.rest, percent_encoding::NON_ALPHANUMERIC));
        }
    }

    /// Where the objects of a resource are, in the version of its group that the API server prefers; `None` where it has no such group.
    pub(super) fn resource(&self, group: &str, resource: &str) -> Result<Option<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Group {
            preferred_version: Version,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            group_version: String,
        }
        match self.get::<Group>(&format!("/apis/{group}")) {
            Err(error) if is_missing(&error) => Ok(None),
            found => Ok(Some(format!(
                "/apis/{}/{resource}",
                found.with_context(|| format!("asking for the versions of {group}"))?.preferred_version.group_version
            ))),
        }
    }

    /// Changes the object at `path` by a JSON merge patch.
    pub(super) fn patch(&self, path: &str, change: &Value) -> Result<()> {
        self.call(Method::PATCH, path, "application/merge-patch+json", change.to_string().into_bytes()).map(drop)
    }

    /// Makes the object at `path` have what `object` has, whether it is there or not (server-side apply, as the manager `recovery`).
    pub(super) fn apply(&self, path: &str, object: &Value) -> Result<()> {
        let path = format!("{path}?fieldManager=recovery&force=true");
        self.call(Method::PATCH, &path, "application/apply-patch+yaml", object.to_string().into_bytes()).map(drop)
    }

    /// Puts `object` at `path`; what it becomes.
    pub(super) fn put(&self, path: &str, object: &Value) -> Result<Value> {
        parse(path, &self.call(Method::PUT, path, "application/json", object.to_string().into_bytes())?)
    }

    /// Makes `object`, in the list at `path`.
    pub(super) fn post(&self, path: &str, object: &Value) -> Result<()> {
        self.call(Method::POST, path, "application/json", object.to_string().into_bytes()).map(drop)
    }

    /// Deletes the object at `path`; false when it was already gone.
    pub(super) fn delete(&self, path: &str) -> Result<bool> {
        match self.call(Method::DELETE, path, "", Vec::new()) {
            Err(error) if is_missing(&error) => Ok(false),
            done => done.map(|_| true),
        }
    }

    /// Sends a request. A server that is too busy answers 429, and one that has just started does so for resources whose storage it has not
    /// read yet. Nothing was done then, and the request is sent again, as Kubernetes' own clients do.
    fn call(&self, method: Method, path: &str, content_type: &str, body: Vec<u8>) -> Result<String> {
        for _ in 1..TRIES_WHEN_BUSY {
            match self.attempt(method.clone(), path, content_type, body.clone()) {
                Err(error) if is_busy(&error) => self.clock.sleep(PAUSE)?,
                done => return done,
            }
        }
        let busy = |error| if is_busy(&error) { unanswered(format!("{error:#}")) } else { error };
        self.attempt(method, path, content_type, body).map_err(busy)
    }

    fn attempt(&self, method: Method, path: &str, content_type: &str, body: Vec<u8>) -> Result<String> {
        let what = format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
        request = request.header(header::USER_AGENT, AGENT);
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(body).with_context(|| format!("asking for {what}"))?;
        let answer = self.runtime.block_on(async { tokio::time::timeout(self.limit, self.http.request_text(request)).await });
        match answer {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(::kube::Error::Api(status))) => Err(self.refused(*status).into()),
            Ok(Err(error)) => Err(unanswered(format!("the API server at {} does not answer: {}", self.server, root_cause(&error)))),
            Err(_) => Err(unanswered(format!("the API server at {} took more than {} s to answer", self.server, self.limit.as_secs_f32()))),
        }
        .with_context(|| what)
    }

    fn refused(&self, status: ::kube::core::Status) -> Refused {
        let message = match status.code {
            401 => format!("the credentials in {} are not accepted; they may have expired, or be another cluster's", self.file.display()),
            _ => status.message,
        };
        Refused { code: status.code, reason: status.reason, message }
    }
}

/// An HTTP client that always connects to the loopback address, whatever the server's name, without a proxy and without keeping
/// connections.
fn connect(access: &Access) -> Result<::kube::Client> {
    let loopback =
        tower::service_fn(|_name| async { Ok::<_, Infallible>(LOOPBACK.map(|address| SocketAddr::new(address, 0)).into_iter()) });
    let mut connector = HttpConnector::new_with_resolver(loopback);
    connector.enforce_http(false);
    let connector = access.config.rustls_https_connector_with_connector(connector)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build::<_, Body>(connector);
    let service = tower::ServiceBuilder::new().layer(access.config.base_uri_layer()).service(http);
    Ok(::kube::Client::new(service, "default"))
}

fn parse<T: DeserializeOwned>(path: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("reading what the API server has at {path}"))
}

/// True when the API server says that there is no such object, or no such resource.
pub(super) fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 404)
}

fn is_busy(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 429)
}

/// True when another client changed the object meanwhile.
pub(super) fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 409)
}

/// The innermost cause: `Connection refused`, or what is wrong with its certificate. The layers above it only say "client error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The lines of `/readyz` that begin with `[-]`, without the marks; the whole text where there are none.
fn failed_checks(text: &str) -> String {
    let failed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    if failed.is_empty() { text.trim().replace('\n', " ") } else { failed.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_checks_that_fail_are_told() {
        let text = "[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/crd-informer-synced failed: reason withheld\nreadyz check failed";
        assert_eq!(failed_checks(text), "etcd failed: reason withheld, poststarthook/crd-informer-synced failed: reason withheld");
        assert_eq!(failed_checks("apiserver not ready\n"), "apiserver not ready");
    }
}
