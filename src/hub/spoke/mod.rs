//! The way to a cluster: one trait with two ends, [`kubeconfig`] (its own API) and [`manifest_work`] (Open Cluster Management's agent there). What is put on
//! a cluster is the same either way: [`objects`].

mod kinds;
pub mod kubeconfig;
pub mod manifest_work;
pub mod objects;
mod request;
mod work;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::api::GateState;
use crate::formats::job_result;
use crate::kube::Permission;
pub use objects::Try;

/// What a look at a cluster has found of a try.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// What belongs to other tries: names, for people.
    pub leftovers: Vec<String>,
    /// Those tries, where it says whose it is.
    pub others: Vec<Other>,
    /// The Job of this one.
    pub job: Option<Job>,
}

/// Another try, of which something is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// The uid of its `ClusterBackup`.
    pub uid: String,
    /// Its namespace on the hub that made it, which may be another hub.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// The Job of a try, as a look has found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its uid; empty where the way does not tell.
    pub uid: String,
    /// How it stands.
    pub end: JobEnd,
    /// What its pod said when it ended, in the pod's termination message.
    pub said: String,
    /// Its container runs.
    pub runs: bool,
    /// What it waits for, of one that has not begun: an image that cannot be pulled.
    pub waits: String,
    /// The last lines of its pod's log, of one that failed or is about to.
    pub log: String,
}

/// How a Job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// It is not over.
    Running,
    /// It is complete.
    Complete,
    /// It failed.
    Failed {
        /// Kubernetes' word for it: `DeadlineExceeded`, `BackoffLimitExceeded`.
        reason: String,
        /// Its sentence.
        message: String,
    },
}

/// The most bytes of a termination message.
const MOST_SAID: usize = 4096;

impl Job {
    /// What the node says of the backup that it took; none where it said nothing, or nothing of the kind.
    #[must_use]
    pub fn result(&self) -> Option<job_result::V1> {
        // kubelet keeps no more of what a container says.
        (self.said.len() <= MOST_SAID).then(|| job_result::read(self.said.as_bytes()).ok()).flatten()
    }
}

/// Why a request to a cluster came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It does not answer, or there is no way to it for now: it is asked again.
    #[error("{message}")]
    Unreachable {
        /// One word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// It will refuse this again.
    #[error("{0}")]
    Refused(String),
}

/// Without a way to the cluster: of its reason, and in what words.
pub(super) fn unreachable(reason: &'static str, message: impl Into<String>) -> Trouble {
    Trouble::Unreachable { reason, message: message.into() }
}

/// What a pod waits for that has not begun, of what is said of its container and of its place on a node: reason and message.
fn waits_for(waiting: Option<(String, String)>, unscheduled: Option<(String, String)>) -> String {
    let waiting = waiting.filter(|(reason, _)| reason != "ContainerCreating");
    match waiting.or(unscheduled) {
        Some((reason, message)) if message.is_empty() => reason,
        Some((reason, message)) => format!("{reason}: {message}"),
        None => String::new(),
    }
}

/// A cluster, and the way to it. Each call is safe to repeat, and each ends in its time.
pub trait Spoke: Send + Sync {
    /// Looks what is there of this try and of others.
    fn look<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<Look, Trouble>>;

    /// Has what belongs to other tries removed. It is gone when a look does not find it any more.
    fn clear<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>>;

    /// Puts there what the try needs, its Job last.
    fn start<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>>;

    /// An item whenever something may have changed there; ends when it cannot be watched any more.
    fn watch<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<BoxStream<'static, ()>, Trouble>>;

    /// Removes the try's Job; with `everything`, whatever the hub has ever put there, but for the gate.
    fn remove<'a>(&'a self, this: &'a Try, everything: bool) -> BoxFuture<'a, Result<(), Trouble>>;

    /// Writes down whether an upgrade may begin, where the gate is installed; with `install`, installs it first.
    fn gate<'a>(&'a self, this: &'a Try, permission: &'a Permission, install: bool) -> BoxFuture<'a, Result<GateState, Trouble>>;

    /// Removes the gate, where it was for this cluster, under this name, that the hub has installed it.
    fn ungate<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>>;
}
