//! Who works on which cluster, the ways there, and the watches of what happens there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::task::AbortHandle;

use super::about;
use super::api::{ClusterBackup, Reach};
use super::run::Hub;
use super::spoke::kubeconfig::ByKubeconfig;
use super::spoke::manifest_work::ByManifestWork;
use super::spoke::{Spoke, Trouble, Try};

/// The least time between two looks that a spoke asks for.
const BREATH: Duration = Duration::from_millis(300);

/// Who works on which cluster, and the ways to those.
#[derive(Default)]
pub struct AtWork(Mutex<HashMap<Key, Way>>);

struct Way {
    uid: String,
    place: ObjectRef<ClusterBackup>,
    spoke: Option<Arc<dyn Spoke>>,
    watch: Option<AbortHandle>,
    /// When words were last written that are no new state.
    written: Option<Instant>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.lose();
    }
}

impl Way {
    fn lose(&mut self) {
        self.spoke = None;
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
    }
}

/// A cluster, by what tells it from others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(Reach, String, String);

impl Key {
    pub(super) fn of(backup: &ClusterBackup) -> Self {
        let spec = &backup.spec;
        // Its namespace is part of what a kubeconfig's cluster is; a managed cluster has its own.
        let namespace = if spec.reach == Reach::Kubeconfig { backup.namespace().unwrap_or_default() } else { String::new() };
        Self(spec.reach, namespace, spec.cluster.clone())
    }

    /// True when it is that of this try.
    pub(super) fn is_of(&self, backup: &ClusterBackup) -> bool {
        let Self(reach, namespace, cluster) = self;
        backup.spec.cluster == *cluster
            && backup.spec.reach == *reach
            && (*reach == Reach::ManifestWork || backup.metadata.namespace.as_deref().unwrap_or_default() == namespace)
    }
}

/// True while a try is there, this very one, and is not over.
pub(super) fn under_way(backups: &Store<ClusterBackup>, place: &ObjectRef<ClusterBackup>, uid: &str) -> bool {
    backups.get(place).is_some_and(|one| one.uid().as_deref() == Some(uid) && !one.state().is_final())
}

impl AtWork {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Way>> {
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

    /// Takes the cluster for this try.
    ///
    /// # Errors
    /// The name of the one that is at it. One that is over or gone, however it went, is at nothing.
    pub(super) fn claim(&self, key: &Key, this: &Try, backups: &Store<ClusterBackup>) -> Result<(), String> {
        let mut ways = self.lock();
        match ways.get(key) {
            Some(way) if way.uid == this.uid => return Ok(()),
            Some(way) if under_way(backups, &way.place, &way.uid) => return Err(way.place.name.clone()),
            _ => {}
        }
        let place = ObjectRef::new(&this.name).within(&this.namespace);
        ways.insert(key.clone(), Way { uid: this.uid.clone(), place, spoke: None, watch: None, written: None });
        Ok(())
    }

    /// The try is over.
    pub(super) fn forget(&self, key: &Key, uid: &str) {
        let mut ways = self.lock();
        if ways.get(key).is_some_and(|way| way.uid == uid) {
            ways.remove(key);
        }
    }

    /// The way is found anew at the next look: the kubeconfig may be another by then.
    pub(super) fn lose(&self, key: &Key, uid: &str) {
        self.with(key, uid, Way::lose);
    }

    /// True when words that are no new state may be written: not again before `pause` is over, however often a cluster says something else.
    pub(super) fn may_write(&self, key: &Key, uid: &str, pause: Duration) -> bool {
        let may = |way: &mut Way| {
            let may = way.written.is_none_or(|when| when.elapsed() >= pause);
            if may {
                way.written = Some(Instant::now());
            }
            may
        };
        self.with(key, uid, may).unwrap_or(true)
    }

    fn with<T>(&self, key: &Key, uid: &str, work: impl FnOnce(&mut Way) -> T) -> Option<T> {
        self.lock().get_mut(key).filter(|way| way.uid == uid).map(work)
    }
}

/// The way to a try's cluster; found once, as long as it is worked on.
pub(super) async fn way(hub: &Hub, backup: &ClusterBackup, this: &Try) -> Result<Arc<dyn Spoke>, Trouble> {
    let key = Key::of(backup);
    if let Some(spoke) = hub.at_work.with(&key, &this.uid, |way| way.spoke.clone()).flatten() {
        return Ok(spoke);
    }
    let spoke: Arc<dyn Spoke> = match backup.spec.reach {
        Reach::Kubeconfig => Arc::new(ByKubeconfig::find(&hub.client, &this.namespace, &this.cluster).await?),
        Reach::ManifestWork => Arc::new(ByManifestWork::new(&hub.client, &this.cluster)),
    };
    hub.at_work.with(&key, &this.uid, |way| way.spoke = Some(spoke.clone()));
    Ok(spoke)
}

/// Has the try looked at whenever its Job changes.
pub(super) async fn watch(hub: &Arc<Hub>, key: &Key, this: &Try, spoke: &Arc<dyn Spoke>) {
    let is_watched = |way: &mut Way| way.watch.as_ref().is_some_and(|watch| !watch.is_finished());
    if hub.at_work.with(key, &this.uid, is_watched) != Some(false) {
        return;
    }
    // That it cannot be watched is seen by the next look.
    let Ok(mut changes) = spoke.watch(this).await else { return };
    let (wake, place) = (hub.wake.clone(), ObjectRef::<ClusterBackup>::new(&this.name).within(&this.namespace));
    let task = async move {
        while changes.next().await.is_some() {
            wake.unbounded_send(place.clone()).ok();
            // However much a cluster has to tell, it is not looked at without a pause.
            tokio::time::sleep(BREATH).await;
        }
        // Whoever watches again at once asks a server that cannot be watched without end.
        tokio::time::sleep(about(Duration::from_secs(2))).await;
        wake.unbounded_send(place).ok();
    };
    // Whoever has lost its cluster meanwhile watches nothing.
    hub.at_work.with(key, &this.uid, |way| way.watch = Some(tokio::spawn(task).abort_handle()));
}
