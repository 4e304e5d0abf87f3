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
use kube::{Client, Resource, ResourceExt};

use super::about;
use super::api::{CLUSTER_LABEL, ClusterBackup, ClusterGroupBackup, ClusterGroupBackupStatus, FINALIZER, GROUP_LABEL, Reach};
use super::own::{self, Failed};
use super::plan::{self, BACKUP_SUCCEEDED, PROGRESSING, Plan};
use super::run::Hub;
use crate::backup::names::{check_labels, check_name};

/// The least time between two looks at a group, of which a thousand clusters ask for a thousand.
const LEAST: Duration = Duration::from_millis(300);
/// How long a list of clusters is believed.
const LISTED: Duration = Duration::from_secs(60);
/// The pause after which a group is looked at although nothing has happened.
const NET: Duration = Duration::from_secs(300);
/// How long a `ClusterBackup` that was made may take to appear in the cache.
const APPEARS: Duration = Duration::from_secs(300);

/// What the hub has made and not yet heard of; the lists of clusters that it has asked for, and the tries that it could not make: by the groups.
#[derive(Default)]
pub struct Known {
    made: Recent<ClusterBackup>,
    listed: Recent<Vec<String>>,
    refused: Recent<BTreeMap<String, String>>,
}

/// What is known by a key, and since when.
type Recent<T> = Mutex<HashMap<String, (T, Instant)>>;

/// What is known of a group, as long as it is believed.
fn recent<T: Clone>(of: &Recent<T>, key: &str) -> Option<T> {
    let mut all = of.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|_, (_, when)| when.elapsed() < LISTED);
    all.get(key).map(|(known, _)| known.clone())
}

/// From now on it is known.
fn remember<T>(of: &Recent<T>, key: String, known: T) {
    of.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (known, Instant::now()));
}

/// One look at a group.
///
/// # Errors
/// [`Failed`]; it is looked at again.
pub async fn reconcile(group: Arc<ClusterGroupBackup>, hub: Arc<Hub>) -> Result<Action, Failed> {
    tokio::time::sleep(LEAST).await;
    // As it is after the pause. What belongs to one that goes, Kubernetes removes, and nothing is made for it any more.
    let now = hub.groups.get(&ObjectRef::from_obj(&*group));
    let Some(group) = now.filter(|group| group.metadata.deletion_timestamp.is_none()) else {
        return Ok(Action::await_change());
    };
    let now = Timestamp::now();
    let clusters = match clusters(&group, &hub).await? {
        Ok(clusters) => clusters,
        Err((reason, why)) => {
            refuse(&group, &hub, reason, &why, now).await?;
            return Ok(Action::requeue(about(LISTED)));
        }
    };
    let tries = tries(&group, &hub);
    let tries: Vec<&ClusterBackup> = tries.iter().map(AsRef::as_ref).collect();
    let mut refused = recent(&hub.known.refused, &key(&group)).unwrap_or_default();
    let mut plan = plan::plan(&group, &clusters, &refused, &tries, now);
    let mut made = true;
    for (cluster, attempt) in std::mem::take(&mut plan.begin) {
        match make(&group, &hub, &cluster, attempt).await? {
            Made::Yes => {}
            Made::Refused(why) => {
                made = false;
                refused.insert(cluster, why);
            }
            Made::None(why) => {
                refuse(&group, &hub, "Refused", &why, now).await?;
                return Ok(Action::requeue(about(LISTED)));
            }
        }
    }
    if !made {
        // They hold nobody up: others take their places at the next look.
        plan = plan::plan(&group, &clusters, &refused, &tries, now);
        remember(&hub.known.refused, key(&group), refused);
    }
    let Plan { forget, status, next, .. } = plan;
    let backups = own::scoped::<ClusterBackup>(&hub.client, group.namespace().as_deref());
    for name in forget {
        own::delete(&backups, &name).await?;
    }
    write(&group, &hub, &status).await?;
    if !made {
        return Ok(Action::requeue(LEAST));
    }
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

/// A group, as it is now.
fn key(group: &ClusterGroupBackup) -> String {
    format!("{} {}", group.uid().unwrap_or_default(), group.metadata.generation.unwrap_or_default())
}

/// A reason and a sentence.
type Why = (&'static str, String);

/// The clusters that a group chooses; inside, why they cannot be known.
async fn clusters(group: &ClusterGroupBackup, hub: &Hub) -> Result<Result<BTreeSet<String>, Why>, Failed> {
    let mut all: BTreeSet<String> = group.spec.clusters.iter().cloned().collect();
    if group.spec.cluster_label_selectors.is_empty() {
        return Ok(Ok(all));
    }
    let names = match recent(&hub.known.listed, &key(group)) {
        Some(names) => names,
        None => match chosen(group, &hub.client).await? {
            Ok(names) => {
                remember(&hub.known.listed, key(group), names.clone());
                names
            }
            Err(why) => return Ok(Err(why)),
        },
    };
    all.extend(names);
    Ok(Ok(all))
}

/// Asks the hub for the clusters whose labels a group chooses; inside, why they cannot be known.
///
/// # Errors
/// When the hub's API does not answer.
pub(super) async fn chosen(group: &ClusterGroupBackup, hub: &Client) -> kube::Result<Result<Vec<String>, Why>> {
    let (kinds, kind): (&[&str], _) = match group.spec.reach {
        Reach::Kubeconfig => (&["cluster.x-k8s.io/v1beta2", "cluster.x-k8s.io/v1beta1"], "Cluster"),
        Reach::ManifestWork => (&["cluster.open-cluster-management.io/v1"], "ManagedCluster"),
    };
    for api_version in kinds {
        let (api_group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(api_group, version, kind));
        let api: Api<DynamicObject> = match group.spec.reach {
            Reach::Kubeconfig => Api::namespaced_with(hub.clone(), &group.namespace().unwrap_or_default(), &resource),
            Reach::ManifestWork => Api::all_with(hub.clone(), &resource),
        };
        let list: Vec<PartialObjectMeta<DynamicObject>> = match own::list("", async |page| api.list_metadata(&page).await).await {
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Ok(Err(("NoRights", format!("the labels of clusters cannot be read: {}", status.message))));
            }
            list => list?,
        };
        let chooses = |labels: &BTreeMap<String, String>| group.spec.cluster_label_selectors.iter().any(|one| one.chooses(labels));
        return Ok(Ok(list.iter().filter(|one| chooses(one.labels())).map(ResourceExt::name_any).collect()));
    }
    let why = format!("the hub has no {kind} ({}), by whose labels clusters could be chosen: name them in spec.clusters", kinds.join(", "));
    Ok(Err(("NoClusterApi", why)))
}

/// What became of a `ClusterBackup` that was to be made.
enum Made {
    /// It is there.
    Yes,
    /// It is refused: why.
    Refused(String),
    /// As is every one: the hub has no rights, or a quota is used up.
    None(String),
}

/// Makes the `ClusterBackup` of a try.
async fn make(group: &ClusterGroupBackup, hub: &Hub, cluster: &str, attempt: u32) -> Result<Made, Failed> {
    let namespace = group.namespace().unwrap_or_default();
    let spec = plan::spec(group, cluster, attempt, &hub.image);
    // What its node would refuse.
    if let Err(error) = check_labels(&spec.labels).and_then(|()| check_name(&spec.backup_name)) {
        return Ok(Made::Refused(format!("{error:#}")));
    }
    let mut labels = spec.labels.clone();
    labels.extend([(GROUP_LABEL.to_owned(), spec.group.clone()), (CLUSTER_LABEL.to_owned(), cluster.to_owned())]);
    // A name of its own for each try: whoever makes it a second time meets the first. In a cluster's name there is no dot.
    let name = format!("{}.{cluster}.{attempt}", spec.group);
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
            remember(&hub.known.made, made.uid().unwrap_or_default(), made);
            Ok(Made::Yes)
        }
        // It was made before, and the cache is behind; or by somebody else.
        Ok(None) => {
            let there = own::api(hub, &backup).get_opt(&backup.name_any()).await?;
            let is_own = |there: &ClusterBackup| (&there.spec.group, &there.spec.cluster) == (&backup.spec.group, &backup.spec.cluster);
            let is_in_the_way = there.is_some_and(|there| !is_own(&there));
            let why = || format!("there is another ClusterBackup called {}: delete it", backup.name_any());
            Ok(if is_in_the_way { Made::Refused(why()) } else { Made::Yes })
        }
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Made::None(status.message)),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => Ok(Made::Refused(status.message)),
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
            let is_bad = matches!(condition.reason.as_str(), "Failed" | "PartiallyDone" | "Refused" | "NoRights" | "NoClusterApi");
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
