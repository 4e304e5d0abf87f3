//! What an emulated API server is started with, and the faults it can be given while it runs.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::operators::Operators;
use super::store::{Etcd, Store};

/// Everything one server is started with.
pub struct ApiConfig {
    /// Where it listens; taken by the server.
    pub listener: Option<TcpListener>,
    /// Its serving certificates and keys, PEM; the one whose names fit the client's TLS name is shown, else the first.
    pub serving: Vec<(PathBuf, PathBuf)>,
    /// Who signs its clients' certificates, PEM.
    pub client_ca: PathBuf,
    /// Its objects.
    pub store: Arc<Store>,
    /// The static-pod operators; without them this is an upstream cluster, and OpenShift's resources answer 404.
    pub operators: Option<Operators>,
    /// A JSON file of [`Faults`], looked at for each connection and request; none when it is missing.
    pub faults: Option<PathBuf>,
    /// Where each request is noted, one JSON object a line: method, path, query, user, sni, code.
    pub log: Option<PathBuf>,
}

/// What is wrong with the server: `{"fault": "refuse", "delay_ms": 100}`. Write the file beside and rename it: it is read at any time.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The fault.
    pub fault: Option<Fault>,
    /// Each answer takes this many milliseconds more.
    pub delay_ms: u64,
    /// What befalls single requests; the first that fits one.
    pub mishaps: Vec<Mishap>,
}

/// What befalls requests of one kind, `{"method": "PUT", "path": "/api/v1/namespaces/a/configmaps/b", "times": 2, "what": {"code": 500}}`: so often, and then
/// no more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mishap {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// Dry runs, or what is none.
    #[serde(default)]
    pub dry: bool,
    /// How often.
    pub times: u32,
    /// What.
    pub what: Befalls,
}

/// What befalls a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Befalls {
    /// It is answered with this code, and not carried out.
    Code(u16),
    /// It takes this many milliseconds more.
    Delay(u64),
    /// The connection is closed, and nothing is carried out.
    Lost,
    /// It is carried out, and the connection is closed without an answer.
    Cut,
    /// The connection is closed, and it is carried out when the same is asked for again: just before that.
    Late,
    /// Somebody else writes to the object just before it is carried out.
    Overtaken,
    /// It is carried out, somebody else writes to the object, and the connection is closed without an answer.
    CutAndChanged,
    /// The connection is closed, as is every other for this many milliseconds: the server is away.
    Away(u64),
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nobody listens.
    Refuse,
    /// Requests are taken and not answered for as long as this stands.
    Hang,
    /// Every answer is 503.
    Unavailable,
    /// Ready, but every resource answers 429, as custom resources do for the first seconds after a start (seen on 1.34).
    Busy,
    /// `/readyz` says not ready, for the reason the real one gives while it starts.
    NotReady,
}

impl ApiConfig {
    /// Reads kube-apiserver's own command line (`--secure-port=`, `--tls-cert-file=`, `--tls-private-key-file=`, `--tls-sni-cert-key=`,
    /// `--client-ca-file=`, `--etcd-servers=`, `--etcd-cafile=`, `--etcd-certfile=`, `--etcd-keyfile=`, `--etcd-prefix=`); its paths
    /// are below `root`. Without `--etcd-servers=` the objects are in memory. An OpenShift node (one with `/etc/kubernetes/static-pod-resources`) gets the operators. Faults are read from
    /// `/var/lib/emulated/api-faults.json`, operators' delays from `api-operators.json` there; the log is `api-requests.log` there.
    ///
    /// # Errors
    /// When a flag is missing or the port is taken.
    pub fn from_args(root: &Path, args: &[String]) -> Result<Self> {
        let all = |name: &str| -> Vec<String> {
            args.iter().filter_map(|arg| arg.strip_prefix(&format!("--{name}=")).map(str::to_owned)).collect()
        };
        let one = |name: &str| all(name).pop().with_context(|| format!("--{name}= is missing"));
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        let port: u16 = all("secure-port").pop().map_or(Ok(6443), |p| p.parse()).context("reading --secure-port=")?;
        let mut serving = vec![(below(&one("tls-cert-file")?), below(&one("tls-private-key-file")?))];
        for pair in all("tls-sni-cert-key") {
            let (cert, key) = pair.split_once(',').with_context(|| format!("--tls-sni-cert-key={pair} is no pair"))?;
            serving.push((below(cert), below(key)));
        }
        let store = match all("etcd-servers").pop() {
            None => Store::memory(),
            Some(servers) => Store::etcd(Etcd {
                url: servers.split(',').next().unwrap_or_default().replace("//localhost:", "//127.0.0.1:"),
                ca: below(&one("etcd-cafile")?),
                cert: below(&one("etcd-certfile")?),
                key: below(&one("etcd-keyfile")?),
                prefix: all("etcd-prefix").pop().unwrap_or_else(|| "registry".into()),
            }),
        };
        let state = root.join("var/lib/emulated");
        std::fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
        let operators = if root.join("etc/kubernetes/static-pod-resources").exists() {
            Some(Operators::of_node(root, &state.join("api-operators.json"))?)
        } else {
            None
        };
        Ok(Self {
            listener: Some(TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("listening on port {port}"))?),
            serving,
            client_ca: below(&one("client-ca-file")?),
            store: Arc::new(store),
            operators,
            faults: Some(state.join("api-faults.json")),
            log: Some(state.join("api-requests.log")),
        })
    }

    /// The faults at this moment.
    pub fn faults(&self) -> Faults {
        let Some(text) = self.faults.as_ref().and_then(|path| std::fs::read_to_string(path).ok()) else { return Faults::default() };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            eprintln!("api: reading the faults: {error}");
            Faults::default()
        })
    }
}
