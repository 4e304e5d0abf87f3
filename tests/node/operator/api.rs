//! The API server, as a pod's service account sees it. On the host's network, by number: services and names are not played here.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{Method, Request, header};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use x509_parser::pem::Pem;

const SERVER: &str = "https://127.0.0.1:6443";
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const LIMIT: Duration = Duration::from_secs(10);

/// A client.
pub(crate) struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    /// With what kubelet has mounted in this pod. The token is read again when it is renewed.
    pub(crate) fn of_pod() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let authority = std::fs::read(Path::new(ACCOUNT).join("ca.crt")).context("reading the cluster's authority")?;
        let mut config = Config::new(SERVER.parse()?);
        config.root_cert = Some(Pem::iter_from_buffer(&authority).map(|pem| Ok(pem?.contents)).collect::<Result<_>>()?);
        config.auth_info.token_file = Some(format!("{ACCOUNT}/token"));
        let client = {
            let _inside = runtime.enter();
            Client::try_from(config).context("making a client")?
        };
        Ok(Self { runtime, client })
    }

    /// An object or a list; none when there is no such thing.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Value>> {
        self.call(Method::GET, path, &Value::Null)
    }

    /// Creates an object in the collection at `path`.
    pub(crate) fn post(&self, path: &str, object: &Value) -> Result<()> {
        self.call(Method::POST, path, object).map(drop)
    }

    /// Replaces it; a conflict is an error.
    pub(crate) fn put(&self, path: &str, object: &Value) -> Result<()> {
        self.call(Method::PUT, path, object).map(drop)
    }

    /// Changes it by a JSON merge patch.
    pub(crate) fn patch(&self, path: &str, change: &Value) -> Result<()> {
        self.call(Method::PATCH, path, change).map(drop)
    }

    /// Edits the status of an object; somebody else being faster is an error, and for the next round.
    pub(crate) fn change_status(&self, path: &str, edit: impl FnOnce(&mut Value)) -> Result<()> {
        let Some(mut object) = self.get(path)? else { return Ok(()) };
        let before = object["status"].clone();
        if object["status"].is_null() {
            object["status"] = json!({});
        }
        edit(&mut object["status"]);
        if object["status"] == before { Ok(()) } else { self.put(&format!("{path}/status"), &object) }
    }

    fn call(&self, method: Method, path: &str, body: &Value) -> Result<Option<Value>> {
        let what = format!("{method} {path}");
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind).body(body)?;
        let answer = async { tokio::time::timeout(LIMIT, self.client.request_text(request)).await };
        match self.runtime.block_on(answer) {
            Ok(Ok(text)) => Ok(Some(serde_json::from_str(&text).with_context(|| format!("reading the answer to {what}"))?)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
            Ok(Err(error)) => Err(error).context(what),
            Err(_) => bail!("{what}: no answer within {} s", LIMIT.as_secs()),
        }
    }
}
