//! What is left to do for a try that is over, or deleted: what it made on its cluster goes, and the cluster's gate is kept.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::about;
use super::api::{ClusterBackup, ClusterBackupStatus, ClusterGroupBackup, FINALIZER, GateState, Reach};
use super::at_work::{Key, way};
use super::backup::{AGAIN, at_it};
use super::machine::State;
use super::own::{self, Failed};
use super::run::Hub;
use super::spoke::Try;
use super::words::sentences;
use crate::backup::names::RELEASE_LABEL;
use crate::kube::Permission;

/// The pause before a gate that could not be written is tried again.
const GATE_AGAIN: Duration = Duration::from_secs(300);
/// How long a `ClusterBackup` that is deleted waits for its spoke.
const FAREWELL: SignedDuration = SignedDuration::from_secs(120);

/// What is left to do for a try that is over: its Job is removed where it succeeded, and the cluster's gate is kept.
pub(super) async fn after(backup: &ClusterBackup, this: &Try, status: ClusterBackupStatus, hub: &Hub) -> Result<Action, Failed> {
    let mut said = status.clone();
    let mut again = None;
    let release = label(status.release.as_deref());
    if let Some(release) = release.filter(|release| backup.labels().get(RELEASE_LABEL) != Some(release)) {
        own::change(hub, backup, json!({"metadata": {"labels": {RELEASE_LABEL: release}}})).await?;
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    // A Job that failed stays, to be looked at; one that nobody has ever seen is taken back before it begins some other day.
    if (status.state == State::Succeeded || status.job.is_none()) && !status.cleaned {
        let removed = async { way(hub, backup, this).await?.remove(this, false).await };
        match removed.await {
            Ok(()) => said.cleaned = true,
            Err(_) => again = Some(about(GATE_AGAIN)),
        }
    }
    let permission = permission(&status, Timestamp::now());
    let install = backup.spec.install_gate;
    let written = status.gate.is_some_and(|gate| match gate {
        GateState::NotSupported => true,
        GateState::NotInstalled => !install,
        gate => gate == GateState::from(&permission),
    });
    let key = Key::of(backup);
    if !written && last_word(&key, hub).is_some_and(|newest| newest.uid() == backup.uid()) {
        let written = async { way(hub, backup, this).await?.gate(this, &permission, install).await };
        match written.await {
            Ok(gate) => {
                (said.gate, said.gate_trouble) = (Some(gate), String::new());
                // Somebody else may have had the last word meanwhile: then that is written once more.
                speak(&key, backup, hub).await?;
                if gate == GateState::NotInstalled && install {
                    again = Some(about(GATE_AGAIN));
                }
            }
            Err(trouble) => {
                tracing::warn!("the gate of {}: {trouble}", this.cluster);
                // What is said of it changes the object, which is then looked at: it is said once.
                if said.gate_trouble.is_empty() {
                    said.gate_trouble = sentences(&trouble.to_string());
                }
                again = Some(about(GATE_AGAIN));
            }
        }
    }
    hub.at_work.forget(&key, &this.uid);
    if said != status {
        own::write_status(hub, backup, &said).await?;
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

/// The try of a cluster that was begun last of those that are over: its gate is that one's word, whichever group it is of.
fn last_word(key: &Key, hub: &Hub) -> Option<Arc<ClusterBackup>> {
    let over = hub.backups.state_filter(|one| key.is_of(one) && one.state().is_final() && one.metadata.deletion_timestamp.is_none());
    over.into_iter().max_by_key(|one| when_begun(one))
}

/// Of two that were begun in the same instant, one is the later one.
fn when_begun(backup: &ClusterBackup) -> (Option<Timestamp>, Option<String>) {
    (backup.status.as_ref().and_then(|status| status.started_at), backup.uid())
}

/// A release as a label's value.
fn label(release: Option<&str>) -> Option<String> {
    release.filter(|release| !release.is_empty()).map(crate::backup::names::label_value)
}

/// Removes what the try has made on its spoke, and lets it go; one whose spoke is dead waits no longer than [`FAREWELL`].
pub(super) async fn farewell(backup: &ClusterBackup, this: &Try, hub: &Hub) -> Result<Action, Failed> {
    let key = Key::of(backup);
    if !backup.finalizers().iter().any(|one| one == FINALIZER) {
        hub.at_work.forget(&key, &this.uid);
        return Ok(Action::await_change());
    }
    // One that has not begun has put nothing there, and would remove nothing.
    let is_other = |other: &ClusterBackup| {
        other.uid() != backup.uid() && key.is_of(other) && other.has_begun() && other.metadata.deletion_timestamp.is_none()
    };
    let is_last = hub.backups.find(is_other).is_none();
    let is_clean = backup.status.as_ref().is_some_and(|status| status.cleaned) && !is_last;
    if backup.has_begun() && !is_clean {
        let wants_gate = is_last && wants_gate(backup, hub).await?;
        let removed = async {
            let spoke = way(hub, backup, this).await?;
            // Under another name, the cluster may be somebody else's; not so a managed cluster, which need not be there for this.
            let everything = is_last && (backup.spec.reach == Reach::ManifestWork || at_it(&spoke.look(this).await?, hub).is_none());
            if everything && !wants_gate {
                spoke.ungate(this).await?;
            }
            spoke.remove(this, everything).await
        };
        if let Err(trouble) = removed.await {
            hub.at_work.lose(&key, &this.uid);
            let since = backup.metadata.deletion_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
            if Timestamp::now().duration_since(since) < FAREWELL {
                return Ok(Action::requeue(about(AGAIN)));
            }
            let note = format!("what was put onto the cluster stays there: {trouble}");
            own::publish(hub, &backup.object_ref(&()), EventType::Warning, "LeftBehind", &note).await;
        }
    }
    // The gate says what this one said; from here on it says what the one before did.
    if backup.state().is_final() {
        speak(&key, backup, hub).await?;
    }
    own::set_finalizers(hub, backup, backup.finalizers().iter().filter(|one| *one != FINALIZER).cloned()).await?;
    hub.at_work.forget(&key, &this.uid);
    Ok(Action::await_change())
}

/// Has the last word of a cluster written into its gate once more, where that is another's than this try's.
async fn speak(key: &Key, this: &ClusterBackup, hub: &Hub) -> Result<(), Failed> {
    let Some(newest) = last_word(key, hub).filter(|newest| newest.uid() != this.uid()) else { return Ok(()) };
    match &newest.status {
        Some(status) if status.gate.is_some() => {
            own::write_status(hub, &*newest, &ClusterBackupStatus { gate: None, ..status.clone() }).await
        }
        // It was never written: it is tried again now.
        _ => {
            hub.wake.unbounded_send(ObjectRef::from_obj(&*newest)).ok();
            Ok(())
        }
    }
}

/// True while the group of a try is there, has its cluster, and asks for the gate: where only the try goes, to be made once more, no upgrade slips through.
async fn wants_gate(backup: &ClusterBackup, hub: &Hub) -> Result<bool, Failed> {
    // Not from the cache, which may be behind: it is asked once.
    let groups = own::scoped::<ClusterGroupBackup>(&hub.client, backup.namespace().as_deref());
    let group = groups.get_opt(&backup.spec.group).await?;
    Ok(group.is_some_and(|group| {
        let spec = &group.spec;
        let has_it = spec.clusters.contains(&backup.spec.cluster) || !spec.cluster_label_selectors.is_empty();
        spec.install_gate && has_it && group.metadata.deletion_timestamp.is_none()
    }))
}
