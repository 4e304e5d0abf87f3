//! Cheap API servers for a thousand clusters: one thread, one port, a path for each (`https://127.0.0.1:PORT/c/NAME`). As much of the API
//! as a hub needs of a cluster, in memory; a Job takes as long as a test says, then it is what the test says.
//!
//! - `store`: objects, their versions, who watches them.
//! - `asked`: what a request is about; `rest`: what is done, and what is refused as by the real one; `watch`: watches.
//! - `jobs`: what becomes of Jobs.

mod asked;
mod jobs;
mod rest;
mod store;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use testing::pki::Authority;
use tokio::sync::Notify;

use self::store::Spoke;
use crate::cluster::with_token;
use crate::https::{self, Body};

/// How a cluster answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// As it should.
    Fair,
    /// Not at all: each connection is closed when something is asked.
    Gone,
    /// Not until the weather changes. Watches stay open and say nothing.
    Hanging,
    /// That it does not know who asks.
    Unauthorized,
}

/// What becomes of a Job's pod.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    /// How long it is pending.
    pub(crate) starts: Duration,
    /// How long it then runs.
    pub(crate) takes: Duration,
    /// Its exit code.
    pub(crate) code: i32,
    /// Its termination message.
    pub(crate) message: String,
    /// What it prints.
    pub(crate) log: String,
}

type Script = Box<dyn Fn(&str, usize) -> Life + Send + Sync>;

/// All clusters, and what is counted over all of them.
struct World {
    spokes: BTreeMap<String, Spoke>,
    /// Uids of the Jobs that were made and have neither ended nor gone.
    at_work: HashSet<String>,
    most: usize,
}

/// What requests work on.
#[derive(Clone)]
struct Shared {
    world: Arc<Mutex<World>>,
    script: Arc<Script>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The servers; gone when dropped.
pub(crate) struct Thousand {
    port: u16,
    authority: Authority,
    shared: Shared,
    end: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Thousand {
    /// Begins to serve clusters of these names. `script` says what becomes of a pod, by its cluster and how many pods that has had before.
    pub(crate) fn start(
        names: impl IntoIterator<Item = String>,
        script: impl Fn(&str, usize) -> Life + Send + Sync + 'static,
    ) -> Result<Self> {
        let authority = Authority::new("thousand-ca")?;
        let tls = https::tls(&authority.issue("kube-apiserver", None, &["127.0.0.1"])?)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let spokes = names.into_iter().map(|name| (name, Spoke::new())).collect();
        let world = Arc::new(Mutex::new(World { spokes, at_work: HashSet::new(), most: 0 }));
        let shared = Shared { world, script: Arc::new(Box::new(script)) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let end = Arc::new(Notify::new());
        let (of_thread, ends) = (shared.clone(), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let served = https::serve(listener, tls, move |request| answer(of_thread.clone(), request));
                tokio::select! {
                    served = served => eprintln!("the thousand clusters are gone: {served:?}"),
                    () = ends.notified() => {}
                }
            });
        });
        Ok(Self { port, authority, shared, end, thread: Some(thread) })
    }

    /// The kubeconfig of a cluster: with a token, which is its name.
    pub(crate) fn kubeconfig(&self, name: &str) -> String {
        with_token(&format!("https://127.0.0.1:{}/c/{name}", self.port), &self.authority, name)
    }

    /// How a cluster answers from now on.
    pub(crate) fn set(&self, name: &str, weather: Weather) -> Result<()> {
        self.of(name, |spoke| spoke.set(weather))
    }

    /// What a cluster was asked, by `VERB RESOURCE` (`get`, `list`, `watch`, `create`, `update`, `patch`, `apply`, `delete`), watches when
    /// they begin.
    pub(crate) fn requests(&self, name: &str) -> Result<BTreeMap<String, u64>> {
        self.of(name, |spoke| spoke.requests.clone())
    }

    /// How many requests all of them have had.
    pub(crate) fn all_requests(&self) -> u64 {
        self.shared.world().spokes.values().flat_map(|spoke| spoke.requests.values()).sum()
    }

    /// How many Jobs a cluster has ever had.
    pub(crate) fn jobs(&self, name: &str) -> Result<usize> {
        self.of(name, |spoke| spoke.jobs)
    }

    /// How many Jobs are at work now: made, and neither ended nor deleted.
    pub(crate) fn at_work(&self) -> usize {
        self.shared.world().at_work.len()
    }

    /// The most that ever were at work at the same time, on all clusters together.
    pub(crate) fn most_at_work(&self) -> usize {
        self.shared.world().most
    }

    /// What a cluster holds of a resource (`jobs.batch`, `namespaces`).
    pub(crate) fn objects(&self, name: &str, resource: &str) -> Result<Vec<Value>> {
        self.of(name, |spoke| spoke.of(resource, None).cloned().collect())
    }

    fn of<T>(&self, name: &str, work: impl FnOnce(&mut Spoke) -> T) -> Result<T> {
        let mut world = self.shared.world();
        Ok(work(world.spokes.get_mut(name).with_context(|| format!("there is no cluster {name}"))?))
    }
}

impl Drop for Thousand {
    fn drop(&mut self) {
        self.end.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn answer(shared: Shared, request: Request<Incoming>) -> Option<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default();
    let Some((name, path)) = path.strip_prefix("/c/").and_then(|rest| rest.split_once('/')) else {
        return Some(https::answer(StatusCode::NOT_FOUND, "text/plain", "the path of no cluster\n"));
    };
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let asked = asked::Asked::parse(&parts.method, path, query, header("content-type"), body);
    let knows = header("authorization").strip_prefix("Bearer ") == Some(name);
    let Some(mut changes) = shared.world().spokes.get_mut(name).map(|spoke| {
        spoke.count(&asked.counted());
        spoke.watch()
    }) else {
        return Some(https::answer(StatusCode::NOT_FOUND, "text/plain", "no such cluster\n"));
    };
    loop {
        let weather = shared.world().spokes.get(name)?.weather;
        match weather {
            Weather::Fair if knows => break,
            Weather::Fair | Weather::Unauthorized => return Some(rest::refusal(401, "Unauthorized", "Unauthorized").said()),
            Weather::Gone => return None,
            Weather::Hanging => changes.changed().await.ok()?,
        }
    }
    Some(rest::answer(&shared, name, &asked))
}
