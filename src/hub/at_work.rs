//! Who works on which cluster, the ways there, and the watches of what happens there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::task::AbortHandle;

use super::about;
use super::api::{ClusterBackup, Reach};
use super::run::Hub;
use super::spoke::kubeconfig::ByKubeconfig;
use super::spoke::manifest_work::ByManifestWork;
use super::spoke::{Spoke, Trouble, Try};

/// The least time between two looks that a spoke asks for.
const BREATH: Duration = Duration::from_millis(300);

/// The ways to the spokes that are worked on, and who works on which cluster.
#[derive(Default)]
pub struct AtWork(Mutex<HashMap<String, Way>>);

struct Way {
    cluster: Key,
    spoke: Option<Arc<dyn Spoke>>,
    watch: Option<AbortHandle>,
}

/// A cluster, by what tells it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(Reach, String, String);

impl Key {
    pub(super) fn of(backup: &ClusterBackup) -> Self {
        let spec = &backup.spec;
        // Its namespace is part of what a kubeconfig's cluster is; a managed cluster has its own.
        let namespace = if spec.reach == Reach::Kubeconfig { backup.namespace().unwrap_or_default() } else { String::new() };
        Self(spec.reach, namespace, spec.cluster.clone())
    }
}

impl AtWork {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Way>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many spokes are worked on.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True when none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes the cluster for this try; false when another has it.
    pub(super) fn claim(&self, uid: &str, cluster: &Key) -> bool {
        let mut ways = self.lock();
        if ways.iter().any(|(other, way)| other != uid && way.cluster == *cluster) {
            return false;
        }
        ways.entry(uid.to_owned()).or_insert_with(|| Way { cluster: cluster.clone(), spoke: None, watch: None });
        true
    }

    /// The try is over, or nothing is known of the way to it any more.
    pub(super) fn forget(&self, uid: &str) {
        if let Some(watch) = self.lock().remove(uid).and_then(|way| way.watch) {
            watch.abort();
        }
    }

    /// The way is found anew at the next look: the kubeconfig may be another by then.
    pub(super) fn lose(&self, uid: &str) {
        if let Some(way) = self.lock().get_mut(uid) {
            way.spoke = None;
            if let Some(watch) = way.watch.take() {
                watch.abort();
            }
        }
    }
}

/// The way to a try's cluster; found once, as long as it is worked on.
pub(super) async fn way(hub: &Hub, backup: &ClusterBackup, this: &Try) -> Result<Arc<dyn Spoke>, Trouble> {
    if let Some(spoke) = hub.at_work.lock().get(&this.uid).and_then(|way| way.spoke.clone()) {
        return Ok(spoke);
    }
    let spoke: Arc<dyn Spoke> = match backup.spec.reach {
        Reach::Kubeconfig => Arc::new(ByKubeconfig::find(&hub.client, &this.namespace, &this.cluster).await?),
        Reach::ManifestWork => Arc::new(ByManifestWork::new(&hub.client, &this.cluster)),
    };
    if let Some(way) = hub.at_work.lock().get_mut(&this.uid) {
        way.spoke = Some(spoke.clone());
    }
    Ok(spoke)
}

/// Has the try looked at whenever its Job changes.
pub(super) async fn watch(hub: &Arc<Hub>, this: &Try, spoke: &Arc<dyn Spoke>) {
    let is_watched = |way: &Way| way.watch.as_ref().is_some_and(|watch| !watch.is_finished());
    if hub.at_work.lock().get(&this.uid).is_none_or(is_watched) {
        return;
    }
    // That it cannot be watched is seen by the next look.
    let Ok(mut changes) = spoke.watch(this).await else { return };
    let (wake, place) = (hub.wake.clone(), ObjectRef::<ClusterBackup>::new(&this.name).within(&this.namespace));
    let task = tokio::spawn(async move {
        while changes.next().await.is_some() {
            wake.unbounded_send(place.clone()).ok();
            // However much a cluster has to tell, it is not looked at without a pause.
            tokio::time::sleep(BREATH).await;
        }
        // Whoever watches again at once asks a server that cannot be watched without end.
        tokio::time::sleep(about(Duration::from_secs(2))).await;
        wake.unbounded_send(place).ok();
    });
    if let Some(way) = hub.at_work.lock().get_mut(&this.uid) {
        way.watch = Some(task.abort_handle());
    }
}
