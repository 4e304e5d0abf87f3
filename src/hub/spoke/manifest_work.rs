//! The end that speaks through Open Cluster Management: a `ManifestWork` in the cluster's namespace on the hub, carried out by OCM's work agent on the
//! spoke, which reports fields of the objects into the work's status. What is in a work is in [the page on works](super::work).
//!
//! What that agent does decides how this is done (its releases 0.16 to 1.2, read; 1.2, seen):
//!
//! * It finds objects by their names alone, and a Job's pod has a name that nobody knows before. So a work has the pod itself, without a Job.
//! * By every strategy it makes an object that has vanished once more: after minutes, at any change of the work, whenever it starts. So when the pod is
//!   first seen its uid is noted on the work, in the same change by which every object becomes `ReadOnly`: from there on the agent reports, and makes
//!   nothing. A pod of another uid is another one: that of the try has vanished.
//! * What it reported stays when the object is gone, and when the agent is. So values count while their object is `Available`, and those that may
//!   still change, while the cluster is: its `ManagedCluster` says so.
//! * It removes all objects of a work that is deleted, the namespace with them, and takes its finalizer off when they are gone: a work that is gone
//!   has left nothing. Where the agent is away, the deletion waits for it; nobody else has to.
//! * It reports again after one to two minutes, or at once where its release knows `feedbackScrapeType` (1.2).
//!
//! There is no log this way: the end of it is in the termination message of a container that failed without one. A gate is kept where it is
//! installed; it is not installed, because the rights that OCM gives its agent do not reach to admission policies.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams, WatchParams};
use serde_json::{Value, json};

use super::objects::{COMMAND, TRY_LABEL, Try};
use super::request::{WATCH, absent, within, within_raw};
use super::work::{self, Found, Work};
use super::{Job, JobEnd, Look, Spoke, Trouble, unreachable};
use crate::hub::FIELD_MANAGER;
use crate::hub::api::GateState;
use crate::kube::{Permission, policy};

/// The label of all works of the hub; its value is what for.
const OWN: &str = "hub.recovery/work";
/// The work that keeps a cluster's gate; there only while that is written.
const GATE: &str = "recovery-gate";
/// How long a gate's work is waited for; the next call goes on with it.
const GATE_LIMIT: Duration = Duration::from_secs(20);
const GATE_PAUSE: Duration = Duration::from_millis(500);

/// A cluster that is reached by OCM's agent.
#[derive(Clone)]
pub struct ByManifestWork {
    work: ApiResource,
    works: Api<DynamicObject>,
    clusters: Api<DynamicObject>,
    cluster: String,
}

impl ByManifestWork {
    /// The way to the managed cluster `cluster`.
    #[must_use]
    pub fn new(hub: &Client, cluster: &str) -> Self {
        let kind = |group: &str, kind: &str| ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        let work = kind("work.open-cluster-management.io", "ManifestWork");
        let managed = kind("cluster.open-cluster-management.io", "ManagedCluster");
        Self {
            works: Api::namespaced_with(hub.clone(), cluster, &work),
            clusters: Api::all_with(hub.clone(), &managed),
            work,
            cluster: cluster.to_owned(),
        }
    }

    /// The works of the hub for this cluster.
    async fn own(&self) -> Result<Vec<Work>, Trouble> {
        let list = absent(within_raw(self.works.list(&ListParams::default().labels(OWN))).await)?;
        let list =
            list.ok_or_else(|| unreachable("NoManifestWork", "the hub has no ManifestWork: it is no hub of Open Cluster Management"))?;
        Ok(list.items.iter().map(Work::of).collect())
    }

    /// Whether what the agent has reported is what is.
    async fn is_reached(&self) -> Result<(), Trouble> {
        let managed = absent(within_raw(self.clusters.get(&self.cluster)).await)?;
        let managed = managed.ok_or_else(|| unreachable("NoManagedCluster", format!("the hub has no ManagedCluster {}", self.cluster)))?;
        let conditions = managed.data.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        for (condition, reason, otherwise) in [
            ("HubAcceptedManagedCluster", "NotAccepted", "nobody has accepted it"),
            ("ManagedClusterConditionAvailable", "Unreachable", "its agent has never been heard of"),
        ] {
            let condition = conditions.iter().find(|one| one["type"] == condition);
            if condition.is_none_or(|one| one["status"] != "True") {
                let word = |field: &str| condition.and_then(|one| one[field].as_str()).filter(|text| !text.is_empty());
                let why = word("message").or_else(|| word("reason")).unwrap_or(otherwise);
                return Err(unreachable(reason, format!("Open Cluster Management does not reach the cluster {}: {why}", self.cluster)));
            }
        }
        Ok(())
    }

    /// Makes a work; of one that is there already it is content. Not by server-side apply, which refuses a field that an older definition of the kind does
    /// not have; a creation drops it.
    async fn create(&self, name: &str, labels: BTreeMap<String, String>, spec: Value) -> Result<(), Trouble> {
        let mut work = DynamicObject::new(name, &self.work).data(json!({"spec": spec}));
        work.metadata.labels = Some(labels);
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match within_raw(self.works.create(&parameters, &work)).await {
            Err(error) if matches!(&*error, kube::Error::Api(status) if status.reason == "AlreadyExists") => Ok(()),
            made => absent(made)?.map(drop).ok_or_else(|| {
                unreachable(
                    "NoNamespace",
                    format!("the hub has no namespace {}, which the cluster's ManifestWorks would be in", self.cluster),
                )
            }),
        }
    }

    async fn change(&self, name: &str, change: Value) -> Result<(), Trouble> {
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        within(self.works.patch(name, &parameters, &Patch::Merge(change))).await.map(drop)
    }

    async fn delete(&self, name: &str) -> Result<(), Trouble> {
        absent(within_raw(self.works.delete(name, &DeleteParams::default())).await).map(drop)
    }

    /// The pod of a try, as its Job: what it says of itself, as far as that counts.
    async fn told(&self, work: &Work, this: &Try) -> Result<Option<Job>, Trouble> {
        let found = work.pod(this);
        if let Found::There(values) = &found {
            let job = work::job(values);
            if work.pod.is_none() && !job.uid.is_empty() {
                self.change(&work.name, work::seen(this, &job.uid)).await?;
            }
            if work.pod.as_ref().is_some_and(|pod| *pod != job.uid) {
                return Ok(None);
            }
            if job.end != JobEnd::Running {
                return Ok(Some(job));
            }
        }
        self.is_reached().await?;
        match found {
            Found::There(values) => Ok(Some(work::job(&values)).filter(|job| !job.uid.is_empty())),
            Found::Untold | Found::Missing => Ok(None),
            Found::NotApplied(why) => Err(work::refusal(why)),
            Found::Unknown(why) => Err(unreachable("Unreachable", why)),
        }
    }

    /// One step of the gate's work; what the gate is when it was the last.
    async fn keep_gate(&self, permission: &Permission) -> Result<Option<GateState>, Trouble> {
        let Some(work) = absent(within_raw(self.works.get(GATE)).await)?.as_ref().map(Work::of) else {
            let labels = BTreeMap::from([(OWN.to_owned(), "gate".to_owned())]);
            self.create(GATE, labels, work::gate_spec()).await?;
            return Ok(None);
        };
        if work.is_deleted {
            return Ok(None);
        }
        let parameter = policy::parameter(permission, COMMAND);
        let state = match work.gate() {
            Found::Unknown(why) => return Err(unreachable("Unreachable", why)),
            Found::There(_) if !(work.writes_gate() && work.is_of_gate(&parameter)) => {
                self.change(GATE, json!({"spec": work::gate_written(&parameter)})).await?;
                return Ok(None);
            }
            Found::Missing if !work.writes_gate() => GateState::NotInstalled,
            _ if work.writes_gate() && work.is_applied() => GateState::from(permission),
            _ => return work.not_applied().map_or(Ok(None), |why| Err(work::refusal(why))),
        };
        // Nobody but the node writes the gate from here on.
        self.delete(GATE).await?;
        Ok(Some(state))
    }
}

impl Spoke for ByManifestWork {
    fn look<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<Look, Trouble>> {
        async move {
            let mut look = Look::default();
            let mut own = None;
            for work in self.own().await? {
                match work.labels.get(TRY_LABEL) {
                    Some(uid) if *uid == this.uid && !work.is_deleted => own = Some(work),
                    Some(_) => look.leftovers.push(format!("the ManifestWork {}", work.name)),
                    None => {}
                }
            }
            match own {
                Some(work) => look.job = self.told(&work, this).await?,
                None => self.is_reached().await?,
            }
            Ok(look)
        }
        .boxed()
    }

    fn clear<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            for work in self.own().await? {
                if !work.is_deleted && work.labels.get(TRY_LABEL).is_some_and(|uid| *uid != this.uid) {
                    self.delete(&work.name).await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn start<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        let mut labels = this.labels();
        labels.insert(OWN.to_owned(), "try".to_owned());
        self.create(&this.job, labels, work::spec(this)).boxed()
    }

    fn watch<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<BoxStream<'static, ()>, Trouble>> {
        async move {
            let parameters = WatchParams::default().labels(&format!("{TRY_LABEL}={}", this.uid)).timeout(WATCH);
            let stream = within(async { self.works.watch(&parameters, "0").await.map(StreamExt::boxed) }).await?;
            Ok(stream.map_ok(drop).take_while(|item| std::future::ready(item.is_ok())).map(drop).boxed())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, this: &'a Try, everything: bool) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            if !everything {
                return self.delete(&this.job).await;
            }
            for work in self.own().await? {
                self.delete(&work.name).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn gate<'a>(&'a self, _: &'a Try, permission: &'a Permission, _: bool) -> BoxFuture<'a, Result<GateState, Trouble>> {
        async move {
            self.is_reached().await?;
            let end = Instant::now() + GATE_LIMIT;
            loop {
                if let Some(state) = self.keep_gate(permission).await? {
                    return Ok(state);
                }
                if Instant::now() > end {
                    return Err(unreachable("NotApplied", format!("the ManifestWork {GATE} is not carried out yet")));
                }
                tokio::time::sleep(GATE_PAUSE).await;
            }
        }
        .boxed()
    }

    /// This way installs none.
    fn ungate<'a>(&'a self, _: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        std::future::ready(Ok(())).boxed()
    }
}
