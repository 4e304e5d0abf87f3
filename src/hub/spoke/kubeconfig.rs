//! The end that speaks to the cluster's own API, by a kubeconfig from a Secret on the hub.
//!
//! Whoever may write that Secret says where the hub connects to; no more. So a kubeconfig that names a program to run, or files of the hub's own to
//! read, is refused: its credentials have to be in it.

use std::time::Duration;

use data_encoding::BASE64;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kube::api::{DeleteParams, GetParams, ListParams, LogParams, Patch, PatchParams, PropagationPolicy, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Config};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::kinds::{Bare, ContainerState, JobObject, List, Pod, Secret};
use super::objects::{BACKUP, COMMAND, CONTAINER, INSTALLED, NAMESPACE, TRY_LABEL, Try};
use super::request::{self, LIMIT, WATCH, ask, ask_for};
use super::{Job, JobEnd, Look, Other, Spoke, Trouble, unreachable, waits_for};
use crate::hub::FIELD_MANAGER;
use crate::hub::api::GateState;
use crate::kube::Upgraded;
use crate::kube::objects::{Metadata, condition, is_true};
use crate::kube::policy::{self, Permission};
use crate::node::yaml;

/// How much of a pod's log is kept: lines, and bytes.
const LOG: (i64, usize) = (20, 4096);
/// The most bytes of a log that are asked for: it has lines of any length, and the first of those bytes are what is cut.
const MOST_LOG: i64 = 1 << 20;
/// The most objects of a kind that are looked at: the hub itself leaves one, with its pod.
const MOST: u32 = 50;

/// A cluster that is reached by a kubeconfig.
#[derive(Clone)]
pub struct ByKubeconfig {
    client: Client,
}

impl ByKubeconfig {
    /// The way to the cluster `cluster`, by the Secret `CLUSTER-kubeconfig` of the hub's namespace `namespace`.
    ///
    /// # Errors
    /// [`Trouble::Unreachable`] when there is no such Secret, or none that can be used: that may be put right meanwhile.
    pub async fn find(hub: &Client, namespace: &str, cluster: &str) -> Result<Self, Trouble> {
        let name = format!("{cluster}-kubeconfig");
        let secrets = Request::new(format!("/api/v1/namespaces/{namespace}/secrets"));
        let secret: Option<Secret> = ask_for(hub, secrets.get(&name, &GetParams::default()))
            .await
            .map_err(|trouble| unreachable("NoKubeconfig", format!("asking the hub for the Secret {name}: {trouble}")))?;
        let none =
            || unreachable("NoKubeconfig", format!("there is no Secret {name} in {namespace} with a kubeconfig under the key `value`"));
        let text = secret.and_then(|mut secret| secret.data.remove("value")).ok_or_else(none)?;
        let bad = |why: String| unreachable("BadKubeconfig", format!("the kubeconfig in the Secret {name} cannot be used: {why}"));
        let text = BASE64.decode(text.as_bytes()).map_err(|error| bad(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|_| bad("it is not text".to_owned()))?;
        let kubeconfig: Kubeconfig = yaml::first_of_secrets(&text).map_err(|error| bad(format!("{error:#}")))?;
        let config = config(kubeconfig).await.map_err(bad)?;
        Ok(Self { client: Client::try_from(config).map_err(|error| bad(error.to_string()))? })
    }

    async fn list<T: DeserializeOwned>(&self, resource: &Request, labels: &str) -> Result<Vec<T>, Trouble> {
        let parameters =
            ListParams { label_selector: Some(labels.to_owned()).filter(|labels| !labels.is_empty()), ..ListParams::default() };
        let list: Option<List<T>> = ask_for(&self.client, resource.list(&parameters.limit(MOST))).await?;
        // A list is there as long as the API server is, be it empty.
        list.map(|list| list.items).ok_or_else(|| unreachable("Unreachable", "the API server says that there is no such list"))
    }

    /// The Job of a try, with what its pod said.
    async fn told(&self, this: &Try, job: &JobObject) -> Result<Job, Trouble> {
        let uid = job.metadata.uid.clone();
        let end = end(job);
        let mut all: Vec<Pod> = self.list(&pods(), &format!("{TRY_LABEL}={}", this.uid)).await?;
        all.sort_by_key(|pod| pod.metadata.creation_timestamp);
        let Some(pod) = all.last() else {
            return Ok(Job { uid, end, said: String::new(), runs: false, waits: String::new(), log: String::new() });
        };
        let (said, waits) = heard(pod);
        // At a Job's deadline its pod is deleted before the Job has failed, and the log goes with it.
        let fails = matches!(end, JobEnd::Failed { .. }) || is_true(&job.status.conditions, "FailureTarget");
        let log = if fails { self.log(&pod.metadata.name).await } else { String::new() };
        let runs = container(pod).is_some_and(|state| state.running.is_some());
        Ok(Job { uid, end, said, runs, waits, log })
    }

    /// The last lines of a pod's log; where there is none to be had, why.
    async fn log(&self, pod: &str) -> String {
        let last = LogParams {
            container: Some(CONTAINER.to_owned()),
            tail_lines: Some(LOG.0),
            limit_bytes: Some(MOST_LOG),
            ..LogParams::default()
        };
        let why = match ask(&self.client, pods().logs(pod, &last)).await {
            Ok(Some(log)) => return crate::hub::last(String::from_utf8_lossy(&log).trim_end(), LOG.1),
            Ok(None) => "it is gone".to_owned(),
            Err(trouble) => trouble.to_string(),
        };
        format!("(the log of the pod {pod} is not to be had: {why})")
    }

    async fn apply(&self, path: &str, object: &Value) -> Result<(), Trouble> {
        let (resource, name) = at(path);
        let request = resource.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object));
        let applied = ask(&self.client, request).await?;
        applied.map(drop).ok_or_else(|| unreachable("Unreachable", format!("the API server does not know {path}")))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Trouble> {
        let (resource, name) = at(path);
        ask_for(&self.client, resource.get(name, &GetParams::default())).await
    }

    /// Has an object removed, with what belongs to it; one that is not there is no trouble, nor one that goes already.
    async fn delete(&self, resource: &Request, name: &str, propagation: PropagationPolicy) -> Result<(), Trouble> {
        let parameters = DeleteParams { propagation_policy: Some(propagation), ..DeleteParams::default() };
        ask(&self.client, resource.delete(name, &parameters)).await.map(drop)
    }

    /// Whether it has admission policies, as Kubernetes from 1.30.
    async fn has_policies(&self) -> Result<bool, Trouble> {
        let of: Option<Resources> = self.get("/apis/admissionregistration.k8s.io/v1").await?;
        Ok(of.is_some_and(|of| of.resources.iter().any(|one| one.name == "validatingadmissionpolicies")))
    }

    /// What an upgrade changes in this cluster's API, where it changes anything there.
    async fn upgraded(&self) -> Result<Option<Upgraded>, Trouble> {
        #[derive(Deserialize)]
        struct Groups {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            name: String,
        }
        let groups: Option<Groups> = self.get("/apis").await?;
        let groups = groups.map(|all| all.groups).unwrap_or_default();
        Ok(Upgraded::ALL.into_iter().find(|upgraded| groups.iter().any(|group| group.name == upgraded.resource().0)))
    }
}

/// Whose try an object is of.
fn other(meta: &Metadata) -> Option<Other> {
    let (namespace, name) = meta.annotations.get(BACKUP)?.split_once('/')?;
    Some(Other { uid: meta.labels.get(TRY_LABEL)?.clone(), namespace: namespace.to_owned(), name: name.to_owned() })
}

/// What a group of the API serves.
#[derive(Deserialize)]
struct Resources {
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
}

fn namespaces() -> Request {
    Request::new("/api/v1/namespaces")
}

fn jobs() -> Request {
    Request::new(format!("/apis/batch/v1/namespaces/{NAMESPACE}/jobs"))
}

fn pods() -> Request {
    Request::new(format!("/api/v1/namespaces/{NAMESPACE}/pods"))
}

/// The resource and the name of what is at a path.
fn at(path: &str) -> (Request, &str) {
    let (resource, name) = path.rsplit_once('/').unwrap_or((path, ""));
    (Request::new(resource), name)
}

/// The settings of a client: what the kubeconfig says, and nothing that is the hub's own.
async fn config(kubeconfig: Kubeconfig) -> Result<Config, String> {
    for user in kubeconfig.auth_infos.iter().filter_map(|user| user.auth_info.as_ref()) {
        let outside = [
            ("exec", user.exec.is_some()),
            ("auth-provider", user.auth_provider.is_some()),
            ("tokenFile", user.token_file.is_some()),
            ("client-certificate", user.client_certificate.is_some()),
            ("client-key", user.client_key.is_some()),
        ];
        if let Some((field, _)) = outside.iter().find(|(_, there)| *there) {
            return Err(format!("its user has `{field}`, which is of the machine where it was made: the credentials have to be in it"));
        }
    }
    for cluster in kubeconfig.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref()) {
        if cluster.certificate_authority.is_some() {
            return Err("its cluster has `certificate-authority`, a file of the machine where it was made: it has to be in it".to_owned());
        }
        if cluster.proxy_url.is_some() {
            return Err("its cluster has `proxy-url`, which the hub does not do".to_owned());
        }
    }
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|error| error.to_string())?;
    config.connect_timeout = Some(LIMIT);
    config.write_timeout = Some(LIMIT);
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH) + 30));
    Ok(config)
}

/// How a Job stands: the Job's controller sets one of these two conditions last.
fn end(job: &JobObject) -> JobEnd {
    let conditions = &job.status.conditions;
    match condition(conditions, "Failed").filter(|_| is_true(conditions, "Failed")) {
        Some(failed) => JobEnd::Failed { reason: failed.reason.clone(), message: failed.message.clone() },
        None if is_true(conditions, "Complete") => JobEnd::Complete,
        None => JobEnd::Running,
    }
}

/// The state of the agent's container.
fn container(pod: &Pod) -> Option<&ContainerState> {
    pod.status.container_statuses.iter().find(|one| one.name == CONTAINER).map(|one| &one.state)
}

/// What the container of a pod said when it ended, and what it waits for.
fn heard(pod: &Pod) -> (String, String) {
    let (status, state) = (&pod.status, container(pod));
    let ended = state.and_then(|state| state.terminated.as_ref());
    let words = ended.map(|ended| ended.message.as_str()).unwrap_or_default();
    // One that was lost with its node's power says nothing more: 255, Unknown.
    let wordless = ended.filter(|ended| ended.exit_code != 0);
    let wordless = wordless.map(|ended| format!("its container exited with {} ({})", ended.exit_code, ended.reason)).unwrap_or_default();
    // A pod that never came to its container, or was taken off the node: kubelet says why in the pod itself.
    let said = [words, &status.message, &status.reason, &wordless].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let pair = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
    let waiting = state.and_then(|state| state.waiting.as_ref()).map(|waiting| pair(&waiting.reason, &waiting.message));
    let scheduled = condition(&status.conditions, "PodScheduled").filter(|one| one.status.as_deref() == Some("False"));
    let waits = waits_for(waiting, scheduled.map(|condition| pair(&condition.reason, &condition.message)));
    (said.to_owned(), waits)
}

/// The path of an object of one of the kinds that are put on a cluster.
fn path(object: &Value) -> Option<String> {
    let meta = object.get("metadata")?;
    let name = meta.get("name")?.as_str()?;
    let namespace = meta.get("namespace").and_then(Value::as_str).unwrap_or(NAMESPACE);
    Some(match object.get("kind")?.as_str()? {
        "Namespace" => format!("/api/v1/namespaces/{name}"),
        "ServiceAccount" => format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}"),
        "Role" => format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{name}"),
        "RoleBinding" => format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/{name}"),
        "Job" => format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}"),
        _ => return None,
    })
}

impl Spoke for ByKubeconfig {
    fn look<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<Look, Trouble>> {
        async move {
            let mut look = Look::default();
            let (mut own, all) = (None, self.list::<JobObject>(&jobs(), "").await?);
            for job in all {
                match job.metadata.labels.get(TRY_LABEL) {
                    // Deleted by somebody while it runs: it is gone, only not yet.
                    Some(uid) if *uid == this.uid && job.metadata.deletion_timestamp.is_none() => own = Some(job),
                    _ => {
                        look.leftovers.push(format!("the Job {}", job.metadata.name));
                        look.others.extend(other(&job.metadata));
                    }
                }
            }
            if let Some(job) = own {
                look.job = Some(self.told(this, &job).await?);
                return Ok(look);
            }
            // A Job can be gone before its pods are.
            let left = self.list::<Pod>(&pods(), "").await?;
            look.leftovers.extend(left.iter().map(|pod| format!("the pod {}", pod.metadata.name)));
            look.others.extend(left.iter().filter_map(|pod| other(&pod.metadata)));
            look.others.retain(|other| other.uid != this.uid);
            if look.leftovers.is_empty() {
                let namespace: Option<Bare> = ask_for(&self.client, namespaces().get(NAMESPACE, &GetParams::default())).await?;
                if namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
                    look.leftovers.push(format!("the namespace {NAMESPACE}"));
                }
            }
            Ok(look)
        }
        .boxed()
    }

    fn clear<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            for job in self.list::<JobObject>(&jobs(), "").await? {
                let own = job.metadata.labels.get(TRY_LABEL) == Some(&this.uid);
                if !own && job.metadata.deletion_timestamp.is_none() {
                    self.delete(&jobs(), &job.metadata.name, PropagationPolicy::Foreground).await?;
                }
            }
            for pod in self.list::<Pod>(&pods(), "").await? {
                if pod.metadata.owner_references.is_empty() && pod.metadata.deletion_timestamp.is_none() {
                    self.delete(&pods(), &pod.metadata.name, PropagationPolicy::Background).await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn start<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            for object in this.prerequisites().iter().chain([&this.job()]) {
                let path = path(object).ok_or_else(|| Trouble::Refused("an object without a name".to_owned()))?;
                self.apply(&path, object).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn watch<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<BoxStream<'static, ()>, Trouble>> {
        async move {
            let parameters = WatchParams::default().labels(&format!("{TRY_LABEL}={}", this.uid)).timeout(WATCH);
            request::watch(&self.client, jobs().watch(&parameters, "0")).await
        }
        .boxed()
    }

    fn remove<'a>(&'a self, this: &'a Try, everything: bool) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            if everything {
                return self.delete(&namespaces(), NAMESPACE, PropagationPolicy::Background).await;
            }
            self.delete(&jobs(), &this.job, PropagationPolicy::Background).await
        }
        .boxed()
    }

    fn gate<'a>(&'a self, this: &'a Try, permission: &'a Permission, install: bool) -> BoxFuture<'a, Result<GateState, Trouble>> {
        async move {
            if !self.has_policies().await? {
                return Ok(GateState::NotSupported);
            }
            let installed = self.get::<Bare>(policy::BINDING).await?.is_some();
            // Of an API server that has just started, not all groups are known: that is asked for what is to be installed, and never of a gate that is there.
            let upgraded = if install && !installed { self.upgraded().await? } else { None };
            if !installed && upgraded.is_none() {
                return Ok(GateState::NotInstalled);
            }
            // The permission first, the binding last: nothing is refused for want of a parameter.
            self.apply(policy::PARAMETER, &policy::parameter(permission, COMMAND)).await?;
            if let Some(upgraded) = upgraded {
                let mut policy = policy::policy(upgraded);
                policy["metadata"]["labels"] = json!({INSTALLED: this.place()});
                self.apply(policy::POLICY, &policy).await?;
                self.apply(policy::BINDING, &policy::binding()).await?;
            }
            Ok(GateState::from(permission))
        }
        .boxed()
    }

    fn ungate<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            if !self.has_policies().await? {
                return Ok(());
            }
            let policy: Option<Bare> = self.get(policy::POLICY).await?;
            if policy.is_some_and(|policy| policy.metadata.labels.get(INSTALLED) == Some(&this.place())) {
                // The binding first: nothing is refused for want of the others. Last what says whose they are: done half, it is gone on with.
                for path in [policy::BINDING, policy::PARAMETER, policy::POLICY] {
                    let (resource, name) = at(path);
                    self.delete(&resource, name, PropagationPolicy::Background).await?;
                }
            }
            Ok(())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
