//! The controller of `ClusterBackup`: one look at the spoke, one step of the [`machine`](super::machine), what the new state asks for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedSender;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::task::AbortHandle;

use super::api::{ClusterBackup, ClusterBackupStatus, FINALIZER, GateState, Reach};
use super::machine::{Over, Seen, State, transition};
use super::plan::good_until;
use super::run::Hub;
use super::spoke::kubeconfig::ByKubeconfig;
use super::spoke::manifest_work::ByManifestWork;
use super::spoke::{Job, JobEnd, Look, Spoke, Trouble, Try};
use super::{FIELD_MANAGER, about, chain, last};
use crate::backup::names::RELEASE_LABEL;
use crate::kube::Permission;

/// The pause before a cluster that does not answer is asked again, and before it is looked whether leftovers are gone.
const AGAIN: Duration = Duration::from_secs(10);
/// The pause before it is looked again whether a Job's pod has begun.
const BEGINS: Duration = Duration::from_secs(20);
/// The pause after which a running Job is looked at although nothing was heard.
const NET: Duration = Duration::from_secs(120);
/// The pause before a gate that could not be written is tried again.
const GATE_AGAIN: Duration = Duration::from_secs(300);
/// The least time between two looks that a spoke asks for.
const BREATH: Duration = Duration::from_millis(300);
/// How long a `ClusterBackup` that is deleted waits for its spoke.
const FAREWELL: SignedDuration = SignedDuration::from_secs(120);
/// The most bytes of a message in a status, and in an event.
const MOST_MESSAGE: usize = 4096;
const MOST_NOTE: usize = 1024;

/// Why a look at an object came to nothing; it is looked at again.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The hub's own API.
    #[error("asking the hub's API: {}", chain(.0))]
    Hub(#[from] Box<kube::Error>),
    /// A state that cannot be.
    #[error(transparent)]
    Over(#[from] Over),
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        Self::Hub(Box::new(error))
    }
}

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
struct Key(Reach, String, String);

impl Key {
    fn of(backup: &ClusterBackup) -> Self {
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
    fn claim(&self, uid: &str, cluster: &Key) -> bool {
        let mut ways = self.lock();
        if ways.iter().any(|(other, way)| other != uid && way.cluster == *cluster) {
            return false;
        }
        ways.entry(uid.to_owned()).or_insert_with(|| Way { cluster: cluster.clone(), spoke: None, watch: None });
        true
    }

    /// The try is over, or nothing is known of the way to it any more.
    fn forget(&self, uid: &str) {
        if let Some(watch) = self.lock().remove(uid).and_then(|way| way.watch) {
            watch.abort();
        }
    }

    /// The way is found anew at the next look: the kubeconfig may be another by then.
    fn lose(&self, uid: &str) {
        if let Some(way) = self.lock().get_mut(uid) {
            way.spoke = None;
            if let Some(watch) = way.watch.take() {
                watch.abort();
            }
        }
    }
}

/// The way to a try's cluster; found once, as long as it is worked on.
async fn way(hub: &Hub, backup: &ClusterBackup, this: &Try) -> Result<Arc<dyn Spoke>, Trouble> {
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

/// One look at a `ClusterBackup`.
///
/// # Errors
/// [`Failed`]; it is looked at again.
pub async fn reconcile(backup: Arc<ClusterBackup>, hub: Arc<Hub>) -> Result<Action, Failed> {
    let Some(this) = Try::of(&backup) else { return Ok(Action::await_change()) };
    if backup.metadata.deletion_timestamp.is_some() {
        return farewell(&backup, &this, &hub).await;
    }
    if !backup.finalizers().iter().any(|one| one == FINALIZER) {
        add_finalizer(&backup, &hub).await?;
        return Ok(Action::await_change());
    }
    let status = backup.status.clone().unwrap_or_default();
    if status.state.is_final() {
        return after(&backup, &this, status, &hub).await;
    }
    if status.started_at.is_none() {
        return begin(&backup, &this, status, &hub).await;
    }
    // Of a hub that went on where another was.
    hub.at_work.claim(&this.uid, &Key::of(&backup));
    step(&backup, &this, &status, &hub).await
}

/// Begins with a cluster, unless another try of any group is at it: its clock runs from here.
async fn begin(backup: &ClusterBackup, this: &Try, status: ClusterBackupStatus, hub: &Hub) -> Result<Action, Failed> {
    let key = Key::of(backup);
    let is_busy = |other: &ClusterBackup| {
        let status = other.status.clone().unwrap_or_default();
        other.uid() != backup.uid() && Key::of(other) == key && status.started_at.is_some() && !status.state.is_final()
    };
    let other = hub.backups.find(|other| is_busy(other));
    if other.is_some() || !hub.at_work.claim(&this.uid, &key) {
        let who = other.map_or_else(|| "another one".to_owned(), |other| other.name_any());
        let message = format!("waiting for the end of another backup of this cluster: {who}");
        let waiting = ClusterBackupStatus { reason: "AnotherBackup".to_owned(), message, ..status.clone() };
        if waiting != status {
            write(hub, backup, &waiting).await?;
        }
        return Ok(Action::requeue(about(AGAIN)));
    }
    let now = Timestamp::now();
    let begun = ClusterBackupStatus {
        state: State::PreparingToStart,
        since: Some(now),
        started_at: Some(now),
        reason: "Begun".to_owned(),
        message: "looking for what earlier tries have left on the cluster".to_owned(),
        ..status
    };
    write(hub, backup, &begun).await?;
    tell(hub, backup, &begun).await;
    Ok(Action::requeue(about(AGAIN)))
}

/// One step of a try.
async fn step(backup: &ClusterBackup, this: &Try, status: &ClusterBackupStatus, hub: &Arc<Hub>) -> Result<Action, Failed> {
    let spoke = match way(hub, backup, this).await {
        Ok(spoke) => spoke,
        Err(trouble) => return settle(backup, this, status, &Err(trouble), hub).await,
    };
    let looked = spoke.look(this).await;
    let next = next_state(backup, status, &looked);
    if next != status.state || looked.is_err() {
        return settle(backup, this, status, &looked, hub).await;
    }
    // The state stays: what it asks for is done, once more where it was done before.
    let done = match (&looked, status.state) {
        (Ok(look), State::PreparingToStart) if !look.leftovers.is_empty() => spoke.clear(this).await,
        (Ok(look), State::Starting) if look.job.is_none() => {
            // Of this the hub must be certain: a state in the cache may be one behind, and a Job is made once.
            let newest = Api::<ClusterBackup>::namespaced(hub.client.clone(), &this.namespace).get_status(&this.name).await?;
            if newest.metadata.resource_version != backup.metadata.resource_version {
                return Ok(Action::requeue(Duration::from_millis(200)));
            }
            spoke.start(this).await
        }
        _ => Ok(()),
    };
    if let Err(trouble) = done {
        return settle(backup, this, status, &Err(trouble), hub).await;
    }
    if status.state != State::PreparingToStart {
        watch(hub, this, &spoke).await;
    }
    settle(backup, this, status, &looked, hub).await
}

/// What was seen.
fn seen(looked: &Result<Look, Trouble>) -> Seen {
    match looked {
        Err(Trouble::Unreachable { .. }) => Seen::Unreachable,
        Err(Trouble::Refused(_)) => Seen::Refused,
        Ok(Look { job: Some(job), .. }) => match &job.end {
            JobEnd::Running => Seen::Running,
            JobEnd::Complete if job.result().is_some_and(|result| result.verified) => Seen::Verified,
            JobEnd::Complete => Seen::Unproven,
            JobEnd::Failed { reason, .. } if reason == "DeadlineExceeded" => Seen::DeadlineExceeded,
            JobEnd::Failed { .. } => Seen::Failed,
        },
        Ok(look) if look.leftovers.is_empty() => Seen::Nothing,
        Ok(_) => Seen::Leftovers,
    }
}

/// What was seen, with the hub's clock.
fn seen_in_time(backup: &ClusterBackup, status: &ClusterBackupStatus, looked: &Result<Look, Trouble>) -> Seen {
    let seen = seen(looked);
    if !seen.is_end() && remaining(backup, status).is_zero() { Seen::TooLate } else { seen }
}

fn next_state(backup: &ClusterBackup, status: &ClusterBackupStatus, looked: &Result<Look, Trouble>) -> State {
    transition(status.state, seen_in_time(backup, status, looked)).unwrap_or(status.state)
}

/// How long the hub still waits for it.
fn remaining(backup: &ClusterBackup, status: &ClusterBackupStatus) -> Duration {
    let limit = SignedDuration::from_secs(i64::from(backup.spec.give_up_after_seconds));
    let until = status.started_at.and_then(|begun| begun.checked_add(limit).ok()).unwrap_or(Timestamp::MAX);
    Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default()
}

/// Writes down what was seen, and says when to look again.
async fn settle(
    backup: &ClusterBackup,
    this: &Try,
    status: &ClusterBackupStatus,
    looked: &Result<Look, Trouble>,
    hub: &Hub,
) -> Result<Action, Failed> {
    let seen = seen_in_time(backup, status, looked);
    let next = transition(status.state, seen)?;
    let now = Timestamp::now();
    let mut said = ClusterBackupStatus { state: next, ..status.clone() };
    if next != status.state {
        said.since = Some(now);
    }
    (said.reason, said.message) = words(backup, status, seen, looked);
    said.message = last(&said.message, MOST_MESSAGE);
    if let Ok(Look { job: Some(job), .. }) = looked {
        said.job = Some(job.uid.clone()).filter(|uid| !uid.is_empty()).or(said.job);
        if !job.log.is_empty() && (said.log.is_empty() || next.is_final()) {
            said.log.clone_from(&job.log);
        }
        if next == State::Succeeded {
            proven(backup, &mut said, job, now);
        }
    }
    if next.is_final() {
        said.completed_at = Some(now);
    }
    if said != *status {
        write(hub, backup, &said).await?;
        if next != status.state {
            hub.numbers.count(next);
            tell(hub, backup, &said).await;
        }
    }
    if matches!(seen, Seen::Unreachable) {
        hub.at_work.lose(&this.uid);
    }
    if next != status.state {
        // The change itself wakes it; this is for one that gets lost.
        return Ok(Action::requeue(about(AGAIN)));
    }
    let runs = matches!(looked, Ok(Look { job: Some(job), .. }) if job.runs);
    // Why a pod does not begin, the Job does not say.
    let pause = match seen {
        Seen::Running if runs => NET,
        Seen::Running => about(BEGINS),
        _ => about(AGAIN),
    };
    Ok(Action::requeue(pause.min(remaining(backup, status) + Duration::from_millis(500))))
}

/// What the node has said of its backup.
fn proven(backup: &ClusterBackup, said: &mut ClusterBackupStatus, job: &Job, now: Timestamp) {
    let Some(result) = job.result() else { return };
    said.verified = result.verified;
    said.good_until = Some(good_until(&backup.spec.max_age, result.taken, now, result.certificates_expire));
    said.backup_id = Some(result.backup);
    said.digest = Some(result.digest);
    said.release = result.release;
    said.taken = Some(result.taken);
    said.expires = result.certificates_expire;
}

/// A word and sentences for what was seen.
fn words(backup: &ClusterBackup, status: &ClusterBackupStatus, seen: Seen, looked: &Result<Look, Trouble>) -> (String, String) {
    let word = |word: &str, message: String| (word.to_owned(), message);
    let vanished = status.state == State::Active && matches!(seen, Seen::Nothing | Seen::Leftovers);
    if vanished {
        let which = status.job.as_deref().unwrap_or("of this try");
        return word(
            "JobVanished",
            format!("the Job ({which}) is gone, and nobody knows what it did: it was deleted, or the cluster was set back"),
        );
    }
    let job = looked.as_ref().ok().and_then(|look| look.job.as_ref());
    let heard = job.map(|job| job.said.trim()).unwrap_or_default();
    match (seen, looked) {
        (Seen::TooLate, _) => {
            let last = if status.message.is_empty() { status.state.name().to_owned() } else { status.message.clone() };
            word(
                "GaveUp",
                format!("not done {} s after it was begun ({}): {last}", backup.spec.give_up_after_seconds, with_reason(&status.reason)),
            )
        }
        (_, Err(Trouble::Unreachable { reason, message })) => word(reason, message.clone()),
        (_, Err(Trouble::Refused(message))) => word("Refused", message.clone()),
        (Seen::Leftovers, Ok(look)) => {
            word("Leftovers", format!("waiting until what earlier tries left on the cluster is gone: {}", first(&look.leftovers)))
        }
        (Seen::Nothing, _) => word("Starting", "putting the Job onto the cluster".to_owned()),
        (Seen::Verified, _) => word("Verified", "the node has read the whole backup back and found it good".to_owned()),
        (Seen::Unproven, _) => {
            let said = if heard.is_empty() { "nothing".to_owned() } else { format!("\"{heard}\"") };
            word("NotVerified", format!("the Job is complete, but the node did not say that its backup is verified: its pod said {said}"))
        }
        (Seen::Running, Ok(Look { job: Some(job), .. })) if !job.waits.is_empty() => word("PodWaiting", job.waits.clone()),
        // At its deadline a Job is without a pod for a moment: why that did not begin is still what there is to say.
        (Seen::Running, Ok(Look { job: Some(job), .. })) if !job.runs && status.reason == "PodWaiting" => {
            word(&status.reason, status.message.clone())
        }
        (Seen::Running, _) => word("Running", "the backup is being taken".to_owned()),
        (_, Ok(Look { job: Some(Job { end: JobEnd::Failed { reason, message }, waits, .. }), .. })) => {
            let why = [heard, waits.as_str(), message.as_str()].into_iter().find(|text| !text.is_empty()).unwrap_or("it did not say why");
            let reason = if reason.is_empty() { "JobFailed" } else { reason };
            // The pod is gone by now.
            let until =
                if heard.is_empty() && status.reason == "PodWaiting" { format!("; until then: {}", status.message) } else { String::new() };
            word(reason, format!("{why}{until}"))
        }
        (_, Ok(_)) => word("Unknown", String::new()),
    }
}

fn with_reason(reason: &str) -> &str {
    if reason.is_empty() { "nothing was heard" } else { reason }
}

/// The first of some names, for a sentence.
fn first(names: &[String]) -> String {
    let more = names.len().saturating_sub(3);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{rest}", names.iter().take(3).cloned().collect::<Vec<_>>().join(", "))
}

/// Has the try looked at whenever its Job changes.
async fn watch(hub: &Arc<Hub>, this: &Try, spoke: &Arc<dyn Spoke>) {
    let is_watched = |way: &Way| way.watch.as_ref().is_some_and(|watch| !watch.is_finished());
    if hub.at_work.lock().get(&this.uid).is_none_or(is_watched) {
        return;
    }
    // That it cannot be watched is seen by the next look.
    let Ok(mut changes) = spoke.watch(this).await else { return };
    let (wake, place): (UnboundedSender<_>, _) = (hub.wake.clone(), ObjectRef::<ClusterBackup>::new(&this.name).within(&this.namespace));
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

/// What is left to do for a try that is over: its Job is removed where it succeeded, and the cluster's gate is kept.
async fn after(backup: &ClusterBackup, this: &Try, status: ClusterBackupStatus, hub: &Hub) -> Result<Action, Failed> {
    let mut said = status.clone();
    let mut again = None;
    let release = label(status.release.as_deref());
    if let Some(release) = release.filter(|release| backup.labels().get(RELEASE_LABEL) != Some(release)) {
        let labels = json!({"metadata": {"labels": {RELEASE_LABEL: release}}});
        api(hub, backup).patch(&this.name, &PatchParams::default(), &Patch::Merge(labels)).await?;
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    if status.state == State::Succeeded && !status.cleaned {
        match way(hub, backup, this).await {
            Ok(spoke) => match spoke.remove(this, false).await {
                Ok(()) => said.cleaned = true,
                Err(_) => again = Some(about(GATE_AGAIN)),
            },
            Err(_) => again = Some(about(GATE_AGAIN)),
        }
    }
    let permission = permission(&status, Timestamp::now());
    let wanted = if matches!(permission, Permission::Open { .. }) { GateState::Open } else { GateState::Closed };
    let written = status.gate.is_some_and(|gate| gate == wanted || gate == GateState::NotInstalled);
    if !written && is_newest(backup, hub) {
        let written = match way(hub, backup, this).await {
            Ok(spoke) => spoke.gate(&permission, backup.spec.install_gate).await,
            Err(trouble) => Err(trouble),
        };
        match written {
            Ok(gate) => said.gate = Some(gate),
            Err(trouble) => {
                tracing::debug!("the gate of {}: {trouble}", this.cluster);
                again = Some(about(GATE_AGAIN));
            }
        }
    }
    hub.at_work.forget(&this.uid);
    if said != status {
        write(hub, backup, &said).await?;
    }
    if let (Permission::Open { until, .. }, None) = (&permission, again) {
        again = Duration::try_from(until.duration_since(Timestamp::now())).ok().map(|left| left + Duration::from_secs(1));
    }
    Ok(again.map_or_else(Action::await_change, Action::requeue))
}

/// Whether an upgrade may begin after this try.
fn permission(status: &ClusterBackupStatus, now: Timestamp) -> Permission {
    let release = status.release.clone().unwrap_or_default();
    match (status.state, status.good_until, &status.backup_id) {
        (State::Succeeded, Some(until), Some(backup)) if until > now => Permission::Open { release, backup: backup.clone(), until },
        (State::Succeeded, Some(until), _) => Permission::Closed { release, why: format!("the last backup was good until {until:.0}") },
        _ => Permission::Closed { release, why: format!("the last backup ended in {} ({})", status.state, status.reason) },
    }
}

/// True when no later try of this cluster is known.
fn is_newest(backup: &ClusterBackup, hub: &Hub) -> bool {
    let (key, made) = (Key::of(backup), backup.creation_timestamp());
    hub.backups.find(|other| Key::of(other) == key && other.uid() != backup.uid() && other.creation_timestamp() >= made).is_none()
}

/// A release as a label's value.
fn label(release: Option<&str>) -> Option<String> {
    release.filter(|release| !release.is_empty()).map(crate::backup::names::label_value)
}

/// Removes what the try has made on its spoke, and lets it go; one whose spoke is dead waits no longer than [`FAREWELL`].
async fn farewell(backup: &ClusterBackup, this: &Try, hub: &Hub) -> Result<Action, Failed> {
    if !backup.finalizers().iter().any(|one| one == FINALIZER) {
        hub.at_work.forget(&this.uid);
        return Ok(Action::await_change());
    }
    let key = Key::of(backup);
    let others =
        hub.backups.find(|other| other.uid() != backup.uid() && Key::of(other) == key && other.metadata.deletion_timestamp.is_none());
    let status = backup.status.clone().unwrap_or_default();
    let has_begun = status.started_at.is_some();
    if has_begun && !(status.cleaned && others.is_some()) {
        let removed = match way(hub, backup, this).await {
            Ok(spoke) => spoke.remove(this, others.is_none()).await,
            Err(trouble) => Err(trouble),
        };
        if let Err(trouble) = removed {
            hub.at_work.lose(&this.uid);
            let since = backup.metadata.deletion_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
            if Timestamp::now().duration_since(since) < FAREWELL {
                return Ok(Action::requeue(about(AGAIN)));
            }
            let note = format!("what was put onto the cluster stays there: {trouble}");
            publish(hub, &backup.object_ref(&()), EventType::Warning, "LeftBehind", &note).await;
        }
    }
    let left: Vec<&String> = backup.finalizers().iter().filter(|one| *one != FINALIZER).collect();
    let patch = json!({"metadata": {"finalizers": left, "resourceVersion": backup.metadata.resource_version}});
    match api(hub, backup).patch(&this.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        patched => drop(patched?),
    }
    hub.at_work.forget(&this.uid);
    Ok(Action::await_change())
}

async fn add_finalizer(backup: &ClusterBackup, hub: &Hub) -> Result<(), Failed> {
    let finalizers: Vec<String> = backup.finalizers().iter().cloned().chain([FINALIZER.to_owned()]).collect();
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": backup.metadata.resource_version}});
    api(hub, backup).patch(&backup.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

fn api(hub: &Hub, backup: &ClusterBackup) -> Api<ClusterBackup> {
    Api::namespaced(hub.client.clone(), &backup.namespace().unwrap_or_default())
}

/// Writes the status that was decided by this very version of the object.
async fn write(hub: &Hub, backup: &ClusterBackup, status: &ClusterBackupStatus) -> Result<(), Failed> {
    let patch = json!({
        "apiVersion": ClusterBackup::api_version(&()),
        "kind": ClusterBackup::kind(&()),
        "metadata": {"name": backup.name_any(), "resourceVersion": backup.metadata.resource_version},
        "status": status,
    });
    api(hub, backup).patch_status(&backup.name_any(), &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(patch)).await?;
    Ok(())
}

/// Tells of a state in an event.
async fn tell(hub: &Hub, backup: &ClusterBackup, status: &ClusterBackupStatus) {
    let kind =
        if matches!(status.state, State::BackupTimeout | State::UnrecoverableError) { EventType::Warning } else { EventType::Normal };
    let note = format!("{}: {}: {}", backup.spec.cluster, status.reason, status.message);
    publish(hub, &backup.object_ref(&()), kind, status.state.name(), &note).await;
    tracing::info!("{} {}: {note}", backup.name_any(), status.state);
}

/// Publishes an event; one that is lost is no failure.
pub(super) async fn publish(hub: &Hub, about: &ObjectReference, kind: EventType, reason: &str, note: &str) {
    let note = if note.len() > MOST_NOTE { last(note, MOST_NOTE) } else { note.to_owned() };
    let event = Event { type_: kind, reason: reason.to_owned(), note: Some(note), action: "Backup".to_owned(), secondary: None };
    if let Err(error) = hub.recorder.publish(&event, about).await {
        tracing::debug!("an event is lost: {}", chain(&error));
    }
}

/// Somebody else has changed the object since it was read.
fn is_conflict(error: &Failed) -> bool {
    matches!(error, Failed::Hub(error) if matches!(&**error, kube::Error::Api(status) if status.code == 409))
}

/// The pause after a failure.
pub(super) fn again(error: &Failed) -> Action {
    // Somebody else has written meanwhile: that arrives by itself, in a moment.
    Action::requeue(if is_conflict(error) { Duration::from_millis(500) } else { about(Duration::from_secs(5)) })
}
