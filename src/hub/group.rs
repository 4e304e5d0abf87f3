//! The controller of `ClusterGroupBackup`: which clusters it has, and what [planning](super::plan) says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ObjectMeta};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use super::about;
use super::api::{CLUSTER_LABEL, ClusterBackup, ClusterGroupBackup, ClusterGroupBackupStatus, FINALIZER, GROUP_LABEL, Reach};
use super::own::{self, Failed};
use super::plan::{self, BACKUP_SUCCEEDED, PROGRESSING, Plan};
use super::run::Hub;
use crate::backup::names::{check_labels, shortened};

/// The least time between two looks at a group, of which a thousand clusters ask for a thousand.
const LEAST: Duration = Duration::from_millis(300);
/// How long a list of clusters is believed.
const LISTED: Duration = Duration::from_secs(60);
/// The pause after which a group is looked at although nothing has happened.
const NET: Duration = Duration::from_secs(300);
/// How long a `ClusterBackup` that was made may take to appear in the cache.
const APPEARS: Duration = Duration::from_secs(300);
/// The longest name of an object.
const LONGEST: usize = 253;

/// What the hub has made and not yet heard of, and the lists of clusters that it has asked for.
#[derive(Default)]
pub struct Known {
    made: Mutex<HashMap<String, (ClusterBackup, Instant)>>,
    listed: Mutex<HashMap<String, (Vec<String>, Instant)>>,
}

/// One look at a group.
///
/// # Errors
/// [`Failed`]; it is looked at again.
pub async fn reconcile(group: Arc<ClusterGroupBackup>, hub: Arc<Hub>) -> Result<Action, Failed> {
    // Kubernetes removes what belongs to it.
    if group.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    tokio::time::sleep(LEAST).await;
    let now = Timestamp::now();
    let clusters = match clusters(&group, &hub).await? {
        Ok(clusters) => clusters,
        Err(why) => {
            refuse(&group, &hub, "NoClusterApi", &why, now).await?;
            return Ok(Action::requeue(about(LISTED)));
        }
    };
    let tries = tries(&group, &hub);
    let tries: Vec<&ClusterBackup> = tries.iter().map(AsRef::as_ref).collect();
    let Plan { begin, forget, status, next } = plan::plan(&group, &clusters, &tries, now);
    for (cluster, attempt) in begin {
        if let Err(why) = make(&group, &hub, &cluster, attempt).await? {
            refuse(&group, &hub, "Refused", &why, now).await?;
            return Ok(Action::requeue(about(LISTED)));
        }
    }
    let backups = own::scoped::<ClusterBackup>(&hub.client, group.namespace().as_deref());
    for name in forget {
        own::delete(&backups, &name).await?;
    }
    write(&group, &hub, &status).await?;
    let until = next.and_then(|next| Duration::try_from(next.duration_since(Timestamp::now())).ok()).unwrap_or(NET);
    Ok(Action::requeue(about(NET).min(until + Duration::from_secs(1))))
}

/// All `ClusterBackups` of a group: those in the cache, and those made a moment ago.
fn tries(group: &ClusterGroupBackup, hub: &Hub) -> Vec<Arc<ClusterBackup>> {
    let (namespace, name) = (group.namespace(), group.name_any());
    let is_of = |one: &ClusterBackup| one.namespace() == namespace && one.spec.group == name;
    let mut tries = hub.backups.state_filter(is_of);
    let mut made = hub.known.made.lock().unwrap_or_else(PoisonError::into_inner);
    made.retain(|_, (one, when)| hub.backups.get(&ObjectRef::from_obj(one)).is_none() && when.elapsed() < APPEARS);
    tries.extend(made.values().filter(|(one, _)| is_of(one)).map(|(one, _)| Arc::new(one.clone())));
    tries
}

/// The clusters that a group chooses; inside, why they cannot be known.
async fn clusters(group: &ClusterGroupBackup, hub: &Hub) -> Result<Result<BTreeSet<String>, String>, Failed> {
    let mut all: BTreeSet<String> = group.spec.clusters.iter().cloned().collect();
    if group.spec.cluster_label_selectors.is_empty() {
        return Ok(Ok(all));
    }
    let key = format!("{} {}", group.uid().unwrap_or_default(), group.metadata.generation.unwrap_or_default());
    let known = {
        let mut listed = hub.known.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.retain(|_, (_, when)| when.elapsed() < LISTED);
        listed.get(&key).map(|(names, _)| names.clone())
    };
    let names = match known {
        Some(names) => names,
        None => match chosen(group, hub).await? {
            Ok(names) => {
                let mut listed = hub.known.listed.lock().unwrap_or_else(PoisonError::into_inner);
                listed.insert(key, (names.clone(), Instant::now()));
                names
            }
            Err(why) => return Ok(Err(why)),
        },
    };
    all.extend(names);
    Ok(Ok(all))
}

/// Asks the hub for the clusters whose labels a group chooses.
async fn chosen(group: &ClusterGroupBackup, hub: &Hub) -> Result<Result<Vec<String>, String>, Failed> {
    let (kinds, kind): (&[&str], _) = match group.spec.reach {
        Reach::Kubeconfig => (&["cluster.x-k8s.io/v1beta2", "cluster.x-k8s.io/v1beta1"], "Cluster"),
        Reach::ManifestWork => (&["cluster.open-cluster-management.io/v1"], "ManagedCluster"),
    };
    for api_version in kinds {
        let (api_group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(api_group, version, kind));
        let api: Api<DynamicObject> = match group.spec.reach {
            Reach::Kubeconfig => Api::namespaced_with(hub.client.clone(), &group.namespace().unwrap_or_default(), &resource),
            Reach::ManifestWork => Api::all_with(hub.client.clone(), &resource),
        };
        let list: Vec<PartialObjectMeta<DynamicObject>> = match own::list("", async |page| api.list_metadata(&page).await).await {
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            list => list?,
        };
        let chooses = |labels: &BTreeMap<String, String>| group.spec.cluster_label_selectors.iter().any(|one| one.chooses(labels));
        return Ok(Ok(list.iter().filter(|one| chooses(one.labels())).map(ResourceExt::name_any).collect()));
    }
    Ok(Err(format!("the hub has no {kind} ({}), by whose labels clusters could be chosen: name them in spec.clusters", kinds.join(", "))))
}

/// Makes the `ClusterBackup` of a try; inside, why the API server does not take it.
async fn make(group: &ClusterGroupBackup, hub: &Hub, cluster: &str, attempt: u32) -> Result<Result<(), String>, Failed> {
    let namespace = group.namespace().unwrap_or_default();
    let spec = plan::spec(group, cluster, attempt, &hub.image);
    let mut labels = if check_labels(&spec.labels).is_ok() { spec.labels.clone() } else { BTreeMap::new() };
    labels.extend([(GROUP_LABEL.to_owned(), spec.group.clone()), (CLUSTER_LABEL.to_owned(), cluster.to_owned())]);
    // A name of its own for each try: whoever makes it a second time meets the first.
    let name = shortened(&format!("{}-{cluster}-{attempt}", spec.group), LONGEST);
    let mut backup = ClusterBackup::new(&name, spec);
    backup.metadata = ObjectMeta {
        name: Some(name),
        namespace: Some(namespace.clone()),
        labels: Some(labels),
        finalizers: Some(vec![FINALIZER.to_owned()]),
        owner_references: group.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    match own::create(hub, &backup).await {
        Ok(Some(made)) => {
            let mut all = hub.known.made.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(made.uid().unwrap_or_default(), (made, Instant::now()));
            Ok(Ok(()))
        }
        // It was made before, and the cache is behind.
        Ok(None) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            Ok(Err(format!("the ClusterBackup of {cluster} is refused: {}", status.message)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Says of a group that it comes to nothing.
async fn refuse(group: &ClusterGroupBackup, hub: &Hub, reason: &str, why: &str, now: Timestamp) -> Result<(), Failed> {
    let before = group.status.clone().unwrap_or_default();
    let generation = group.metadata.generation;
    let condition = |kind: &str| plan::set(&before.conditions, kind, false, reason, why.to_owned(), generation, now);
    let conditions = vec![condition(BACKUP_SUCCEEDED), condition(PROGRESSING)];
    write(group, hub, &ClusterGroupBackupStatus { observed_generation: generation, conditions, ..before }).await
}

/// Writes the status where it is another, and tells of what has changed.
async fn write(group: &ClusterGroupBackup, hub: &Hub, status: &ClusterGroupBackupStatus) -> Result<(), Failed> {
    let before = group.status.clone().unwrap_or_default();
    if before == *status {
        return Ok(());
    }
    own::write_status(hub, group, status).await?;
    for condition in &status.conditions {
        let was = before.conditions.iter().find(|one| one.kind == condition.kind).map(|one| one.reason.as_str());
        if condition.kind == BACKUP_SUCCEEDED && was != Some(condition.reason.as_str()) {
            let is_bad = matches!(condition.reason.as_str(), "Failed" | "PartiallyDone" | "Refused" | "NoClusterApi");
            let kind = if is_bad { EventType::Warning } else { EventType::Normal };
            own::publish(hub, &group.object_ref(&()), kind, &condition.reason, &condition.message).await;
        }
    }
    Ok(())
}

/// The group that a `ClusterBackup` belongs to.
pub(super) fn of_backup(backup: &ClusterBackup) -> ObjectRef<ClusterGroupBackup> {
    ObjectRef::new(&backup.spec.group).within(&backup.namespace().unwrap_or_default())
}
