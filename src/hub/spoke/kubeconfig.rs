//! The end that speaks to the cluster's own API, by a kubeconfig from a Secret on the hub.
//!
//! Whoever may write that Secret says where the hub connects to; no more. So a kubeconfig that names a program to run, or files of the hub's own to
//! read, is refused: its credentials have to be in it.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::api::batch::v1::{Job as JobObject, JobCondition};
use k8s_openapi::api::core::v1::{ContainerState, Namespace, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PropagationPolicy};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use serde_json::Value;

use super::objects::{COMMAND, CONTAINER, NAMESPACE, TRY_LABEL, Try};
use super::request::{LIMIT, WATCH, absent, within, within_raw};
use super::{Job, JobEnd, Look, Spoke, Trouble, unreachable};
use crate::hub::FIELD_MANAGER;
use crate::hub::api::GateState;
use crate::kube::Upgraded;
use crate::kube::policy::{self, Permission};

/// How much of a pod's log is kept: lines, and bytes.
const LOG: (i64, usize) = (20, 4096);

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
        let secret = within(Api::<Secret>::namespaced(hub.clone(), namespace).get_opt(&name)).await.map_err(|trouble| match trouble {
            Trouble::Unreachable { message, .. } => unreachable("NoKubeconfig", format!("asking the hub for the Secret {name}: {message}")),
            refused @ Trouble::Refused(_) => refused,
        })?;
        let none =
            || unreachable("NoKubeconfig", format!("there is no Secret {name} in {namespace} with a kubeconfig under the key `value`"));
        let text = secret.and_then(|secret| secret.data?.remove("value")).ok_or_else(none)?;
        let bad = |why: String| unreachable("BadKubeconfig", format!("the kubeconfig in the Secret {name} cannot be used: {why}"));
        let text = String::from_utf8(text.0).map_err(|_| bad("it is not text".to_owned()))?;
        let kubeconfig = Kubeconfig::from_yaml(&text).map_err(|error| bad(error.to_string()))?;
        let config = config(kubeconfig).await.map_err(bad)?;
        Ok(Self { client: Client::try_from(config).map_err(|error| bad(error.to_string()))? })
    }

    fn jobs(&self) -> Api<JobObject> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The Job of a try, with what its pod said.
    async fn told(&self, job: &JobObject) -> Result<Job, Trouble> {
        let uid = job.uid().unwrap_or_default();
        let end = end(job);
        // Of a label selector no more is known than that; of a Job that is there, its pods are asked for by its uid.
        let of_job = ListParams::default().labels(&format!("controller-uid={uid}")).limit(10);
        let pods = within(self.pods().list(&of_job)).await?.items;
        let Some(pod) = pods.iter().max_by_key(|pod| pod.creation_timestamp()) else {
            return Ok(Job { uid, end, said: String::new(), runs: false, waits: String::new(), log: String::new() });
        };
        let (said, waits) = heard(pod);
        // At a Job's deadline its pod is deleted before the Job has failed, and the log goes with it.
        let fails = matches!(end, JobEnd::Failed { .. }) || conditions(job).any(|condition| condition.type_ == "FailureTarget");
        let log = if fails { self.log(&pod.name_any()).await } else { String::new() };
        let runs = container(pod).is_some_and(|state| state.running.is_some());
        Ok(Job { uid, end, said, runs, waits, log })
    }

    /// The last lines of a pod's log; where there is none to be had, why.
    async fn log(&self, pod: &str) -> String {
        let last = LogParams { container: Some(CONTAINER.to_owned()), tail_lines: Some(LOG.0), ..LogParams::default() };
        match within(self.pods().logs(pod, &last)).await {
            Ok(log) => crate::hub::last(log.trim_end(), LOG.1),
            Err(trouble) => format!("(the log of the pod {pod} is not to be had: {trouble})"),
        }
    }

    async fn apply(&self, object: &Value) -> Result<(), Trouble> {
        let path = path(object).ok_or_else(|| Trouble::Refused("an object without a name".to_owned()))?;
        self.apply_at(&path, object).await
    }

    async fn apply_at(&self, path: &str, object: &Value) -> Result<(), Trouble> {
        let (resource, name) = path.rsplit_once('/').unwrap_or((path, ""));
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let request = kube::core::Request::new(resource).patch(name, &parameters, &Patch::Apply(object));
        let request = request.map_err(|error| Trouble::Refused(error.to_string()))?;
        within(self.client.request::<Value>(request)).await.map(drop)
    }

    async fn get(&self, path: &str) -> Result<Option<Value>, Trouble> {
        let (resource, name) = path.rsplit_once('/').unwrap_or((path, ""));
        let request = kube::core::Request::new(resource).get(name, &kube::api::GetParams::default());
        let request = request.map_err(|error| Trouble::Refused(error.to_string()))?;
        absent(within_raw(self.client.request::<Value>(request)).await)
    }

    /// What an upgrade changes in this cluster's API, where it changes anything there.
    async fn upgraded(&self) -> Result<Option<Upgraded>, Trouble> {
        let groups = within(self.client.list_api_groups()).await?.groups;
        Ok(Upgraded::ALL.into_iter().find(|upgraded| groups.iter().any(|group| group.name == upgraded.resource().0)))
    }
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

/// The conditions of a Job that are true.
fn conditions(job: &JobObject) -> impl Iterator<Item = &JobCondition> {
    job.status.iter().flat_map(|status| status.conditions.iter().flatten()).filter(|one| one.status == "True")
}

/// How a Job stands: the Job's controller sets one of these two conditions last.
fn end(job: &JobObject) -> JobEnd {
    let end = |condition: &JobCondition| match condition.type_.as_str() {
        "Complete" => Some(JobEnd::Complete),
        "Failed" => Some(JobEnd::Failed {
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
        }),
        _ => None,
    };
    conditions(job).find_map(end).unwrap_or(JobEnd::Running)
}

/// The state of the agent's container.
fn container(pod: &Pod) -> Option<&ContainerState> {
    let all = pod.status.as_ref()?.container_statuses.as_ref()?;
    all.iter().find(|one| one.name == CONTAINER)?.state.as_ref()
}

/// What the container of a pod said when it ended, and what it waits for.
fn heard(pod: &Pod) -> (String, String) {
    let (status, state) = (pod.status.as_ref(), container(pod));
    let ended = state.and_then(|state| state.terminated.as_ref());
    let mut said = ended.and_then(|ended| ended.message.clone()).unwrap_or_default();
    if said.is_empty() {
        // A pod that never came to its container, or was taken off the node: kubelet says why in the pod itself.
        said = status.and_then(|status| status.message.clone().or_else(|| status.reason.clone())).unwrap_or_default();
    }
    let waiting = state.and_then(|state| state.waiting.as_ref()).filter(|waiting| waiting.reason.as_deref() != Some("ContainerCreating"));
    let waits = waiting.map(|waiting| {
        let reason = waiting.reason.clone().unwrap_or_default();
        waiting.message.as_ref().map_or_else(|| reason.clone(), |message| format!("{reason}: {message}"))
    });
    let scheduled = status.and_then(|status| status.conditions.as_ref()).and_then(|all| {
        let not = all.iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")?;
        Some(format!("{}: {}", not.reason.clone().unwrap_or_default(), not.message.clone().unwrap_or_default()))
    });
    (said, waits.or(scheduled).unwrap_or_default())
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
            let (mut own, jobs) = (None, within(self.jobs().list(&ListParams::default())).await?);
            for job in jobs.items {
                match job.labels().get(TRY_LABEL) {
                    // Deleted by somebody while it runs: it is gone, only not yet.
                    Some(uid) if *uid == this.uid && job.metadata.deletion_timestamp.is_none() => own = Some(job),
                    _ => look.leftovers.push(format!("the Job {}", job.name_any())),
                }
            }
            if let Some(job) = own {
                look.job = Some(self.told(&job).await?);
                return Ok(look);
            }
            // A Job can be gone before its pods are.
            let pods = within(self.pods().list(&ListParams::default().limit(50))).await?;
            look.leftovers.extend(pods.items.iter().map(|pod| format!("the pod {}", pod.name_any())));
            if look.leftovers.is_empty() {
                let namespace = within(Api::<Namespace>::all(self.client.clone()).get_opt(NAMESPACE)).await?;
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
            let delete = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
            for job in within(self.jobs().list(&ListParams::default())).await?.items {
                let own = job.labels().get(TRY_LABEL) == Some(&this.uid);
                if !own && job.metadata.deletion_timestamp.is_none() {
                    absent(within_raw(self.jobs().delete(&job.name_any(), &delete)).await)?;
                }
            }
            for pod in within(self.pods().list(&ListParams::default().limit(50))).await?.items {
                let orphan = pod.owner_references().is_empty() && pod.metadata.deletion_timestamp.is_none();
                if orphan {
                    absent(within_raw(self.pods().delete(&pod.name_any(), &DeleteParams::default())).await)?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn start<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            for object in this.prerequisites() {
                self.apply(&object).await?;
            }
            self.apply(&this.job()).await
        }
        .boxed()
    }

    fn watch<'a>(&'a self, this: &'a Try) -> BoxFuture<'a, Result<BoxStream<'static, ()>, Trouble>> {
        async move {
            let parameters = kube::api::WatchParams::default().labels(&format!("{TRY_LABEL}={}", this.uid)).timeout(WATCH);
            let stream = within(async { self.jobs().watch(&parameters, "0").await.map(StreamExt::boxed) }).await?;
            Ok(stream.map_ok(drop).take_while(|item| std::future::ready(item.is_ok())).map(drop).boxed())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, this: &'a Try, everything: bool) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            let delete = DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
            if everything {
                let all = Api::<Namespace>::all(self.client.clone());
                return absent(within_raw(all.delete(NAMESPACE, &delete)).await).map(drop);
            }
            absent(within_raw(self.jobs().delete(&this.job, &delete)).await).map(drop)
        }
        .boxed()
    }

    fn gate<'a>(&'a self, permission: &'a Permission, install: bool) -> BoxFuture<'a, Result<GateState, Trouble>> {
        async move {
            let Some(upgraded) = self.upgraded().await? else { return Ok(GateState::NotInstalled) };
            let installed = self.get(policy::BINDING).await?.is_some();
            if !installed && !install {
                return Ok(GateState::NotInstalled);
            }
            // The permission first, the binding last: nothing is refused for want of a parameter.
            self.apply_at(policy::PARAMETER, &policy::parameter(permission, COMMAND)).await?;
            if !installed {
                self.apply_at(policy::POLICY, &policy::policy(upgraded)).await?;
                self.apply_at(policy::BINDING, &policy::binding()).await?;
            }
            Ok(match permission {
                Permission::Open { .. } => GateState::Open,
                Permission::Closed { .. } => GateState::Closed,
            })
        }
        .boxed()
    }
}
