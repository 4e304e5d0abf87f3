//! What is left to do for a try that is over, or deleted: what it made on its cluster goes, and the cluster's gate is kept.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::about;
use super::api::{ClusterBackup, ClusterBackupStatus, FINALIZER, GateState};
use super::at_work::{Key, way};
use super::backup::AGAIN;
use super::machine::State;
use super::own::{self, Failed};
use super::run::Hub;
use super::spoke::Try;
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
    if status.state == State::Succeeded && !status.cleaned {
        let removed = async { way(hub, backup, this).await?.remove(this, false).await };
        match removed.await {
            Ok(()) => said.cleaned = true,
            Err(_) => again = Some(about(GATE_AGAIN)),
        }
    }
    let permission = permission(&status, Timestamp::now());
    let wanted = if matches!(permission, Permission::Open { .. }) { GateState::Open } else { GateState::Closed };
    let written = status.gate.is_some_and(|gate| gate == wanted || gate == GateState::NotInstalled);
    if !written && is_newest(backup, hub) {
        let written = async { way(hub, backup, this).await?.gate(&permission, backup.spec.install_gate).await };
        match written.await {
            Ok(gate) => said.gate = Some(gate),
            Err(trouble) => {
                tracing::debug!("the gate of {}: {trouble}", this.cluster);
                again = Some(about(GATE_AGAIN));
            }
        }
    }
    hub.at_work.forget(&this.uid);
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
pub(super) async fn farewell(backup: &ClusterBackup, this: &Try, hub: &Hub) -> Result<Action, Failed> {
    if !backup.finalizers().iter().any(|one| one == FINALIZER) {
        hub.at_work.forget(&this.uid);
        return Ok(Action::await_change());
    }
    let key = Key::of(backup);
    let others =
        hub.backups.find(|other| other.uid() != backup.uid() && Key::of(other) == key && other.metadata.deletion_timestamp.is_none());
    let is_clean = backup.status.as_ref().is_some_and(|status| status.cleaned) && others.is_some();
    if backup.has_begun() && !is_clean {
        let removed = async { way(hub, backup, this).await?.remove(this, others.is_none()).await };
        if let Err(trouble) = removed.await {
            hub.at_work.lose(&this.uid);
            let since = backup.metadata.deletion_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
            if Timestamp::now().duration_since(since) < FAREWELL {
                return Ok(Action::requeue(about(AGAIN)));
            }
            let note = format!("what was put onto the cluster stays there: {trouble}");
            own::publish(hub, &backup.object_ref(&()), EventType::Warning, "LeftBehind", &note).await;
        }
    }
    own::set_finalizers(hub, backup, backup.finalizers().iter().filter(|one| *one != FINALIZER).cloned()).await?;
    hub.at_work.forget(&this.uid);
    Ok(Action::await_change())
}
