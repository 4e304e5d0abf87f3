//! A client that a test uses as a person uses kubectl: JSON in and out, a time limit on each request.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use real_node::Limit;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// For one request, unless a test says otherwise: a server that hangs is one of the things that are tested.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);

/// A client of one cluster.
pub(crate) struct Api {
    runtime: Runtime,
    /// For whatever else kube's client can do; [`Api::run`] runs it.
    pub(crate) client: kube::Client,
    /// How long a request may take.
    pub(crate) limit: Duration,
}

impl Api {
    /// For a kubeconfig, as text.
    pub(crate) fn of(kubeconfig: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client(kubeconfig))?;
        Ok(Self { runtime, client, limit: REQUEST })
    }

    /// Runs a future on the client's runtime.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The object or list at a path; `None` when there is none.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Value>> {
        self.ask(Method::GET, path, "", None)
    }

    /// The items of a list.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.get(path)?.with_context(|| format!("{path} is no list"))?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Makes an object in the collection at `path`.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.ask(Method::POST, path, "application/json", Some(object))?.with_context(|| format!("{path}: not found"))
    }

    /// Applies an object at its own path, as the field manager `test`, which takes all of its fields.
    pub(crate) fn apply(&self, path: &str, object: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager=test&force=true");
        let applied = self.ask(Method::PATCH, &path, "application/apply-patch+yaml", Some(object))?;
        applied.with_context(|| format!("{path}: not found"))
    }

    /// Merges something into an object, or with `…/status` into its status.
    pub(crate) fn merge(&self, path: &str, change: &Value) -> Result<Value> {
        let merged = self.ask(Method::PATCH, path, "application/merge-patch+json", Some(change))?;
        merged.with_context(|| format!("{path}: not found"))
    }

    /// Deletes an object with what it owns; one that is not there is deleted.
    pub(crate) fn delete(&self, path: &str) -> Result<()> {
        let how = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        self.ask(Method::DELETE, path, "application/json", Some(&how)).map(drop)
    }

    /// What is no JSON: a pod's log, metrics.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        let request = Request::get(path).body(Vec::new())?;
        let answer = self.run(async { tokio::time::timeout(self.limit, self.client.request_text(request)).await });
        answer.with_context(|| format!("GET {path}: no answer"))?.with_context(|| format!("GET {path}"))
    }

    fn ask(&self, method: Method, path: &str, form: &str, body: Option<&Value>) -> Result<Option<Value>> {
        let answer = self.run(async { tokio::time::timeout(self.limit, ask(&self.client, method, path, form, body)).await });
        answer.with_context(|| format!("{path}: no answer"))?
    }

    /// Looks at an object until `done` says something of it. Requests that fail meanwhile are made again.
    pub(crate) fn until<T>(&self, path: &str, limit: Limit, mut done: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        let end = Instant::now() + limit.0;
        loop {
            let last = match self.get(path) {
                Ok(Some(object)) => match done(&object) {
                    Some(found) => return Ok(found),
                    None => object.to_string(),
                },
                Ok(None) => "it is not there".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            ensure!(Instant::now() < end, "waited {} s for {path}: {last}", limit.0.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// kube's client for a kubeconfig, as text.
pub(crate) async fn client(kubeconfig: &str) -> Result<kube::Client> {
    let config = kube::Config::from_custom_kubeconfig(Kubeconfig::from_yaml(kubeconfig)?, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// One request. `None` is the answer 404.
pub(crate) async fn ask(client: &kube::Client, method: Method, path: &str, form: &str, body: Option<&Value>) -> Result<Option<Value>> {
    let what = format!("{method} {path}");
    let mut request = Request::builder().method(method).uri(path);
    if body.is_some() {
        request = request.header("content-type", form);
    }
    let request = request.body(body.map(Value::to_string).unwrap_or_default().into_bytes())?;
    match tokio::time::timeout(REQUEST, client.request::<Value>(request)).await.with_context(|| format!("{what}: no answer"))? {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error).context(what),
    }
}
