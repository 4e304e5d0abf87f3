//! The controller of `ClusterBackup`: one look at the spoke, one step of the [`machine`](super::machine), what the new state asks for.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use super::about;
use super::after::{after, farewell};
use super::api::{ClusterBackup, ClusterBackupStatus, FINALIZER};
use super::at_work::{Key, under_way, watch, way};
use super::machine::{Seen, State, transition};
use super::own::{self, Failed};
use super::plan::good_until;
use super::run::Hub;
use super::spoke::{Job, JobEnd, Look, Trouble, Try, unreachable};
use super::words::{a_word, sentences, words};

/// The pause before a cluster that does not answer is asked again, and before it is looked whether leftovers are gone.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// The pause before it is looked again whether a Job's pod has begun.
const BEGINS: Duration = Duration::from_secs(20);
/// The pause after which a running Job is looked at although nothing was heard.
const NET: Duration = Duration::from_secs(120);
/// The reason of one that waits for another.
const ANOTHER: &str = "AnotherBackup";

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
        own::set_finalizers(&hub, &*backup, backup.finalizers().iter().cloned().chain([FINALIZER.to_owned()])).await?;
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
    match hub.at_work.claim(&Key::of(&backup), &this, &hub.backups) {
        Ok(()) => step(&backup, &this, &status, &hub).await,
        Err(_) => Ok(Action::requeue(about(AGAIN))),
    }
}

/// Whoever has begun has its cluster: before anybody else begins.
pub(super) fn go_on(hub: &Hub) {
    for backup in hub.backups.state_filter(|one| one.has_begun() && !one.state().is_final()) {
        if let Some(this) = Try::of(&backup) {
            hub.at_work.claim(&Key::of(&backup), &this, &hub.backups).ok();
        }
    }
}

/// Begins with a cluster, unless another try of any group is at it: its clock runs from here.
async fn begin(backup: &ClusterBackup, this: &Try, status: ClusterBackupStatus, hub: &Hub) -> Result<Action, Failed> {
    if let Err(who) = hub.at_work.claim(&Key::of(backup), this, &hub.backups) {
        let message = format!("waiting for the end of another backup of this cluster: {who}");
        let waiting = ClusterBackupStatus { reason: ANOTHER.to_owned(), message, ..status.clone() };
        if waiting != status {
            own::write_status(hub, backup, &waiting).await?;
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
    own::write_status(hub, backup, &begun).await?;
    tell(hub, backup, &begun).await;
    Ok(Action::requeue(about(AGAIN)))
}

/// One step of a try: a look, and where that leaves the state as it is, what the state asks for, once more where it was done before.
async fn step(backup: &ClusterBackup, this: &Try, status: &ClusterBackupStatus, hub: &Arc<Hub>) -> Result<Action, Failed> {
    let spoke = match way(hub, backup, this).await {
        Ok(spoke) => spoke,
        Err(trouble) => return settle(backup, this, status, &Err(trouble), hub).await,
    };
    let mut looked = spoke.look(this).await;
    if let Ok(look) = &looked
        && transition(status.state, seen_in_time(backup, status, &looked))? == status.state
    {
        let done = match status.state {
            State::PreparingToStart if !look.leftovers.is_empty() => match at_it(look, hub) {
                Some(other) => Err(unreachable(ANOTHER, format!("another backup of this cluster, under another name, is at it: {other}"))),
                None => spoke.clear(this).await,
            },
            State::Starting if look.job.is_none() => {
                // Of this the hub must be certain: a state in the cache may be one behind, and a Job is made once.
                let newest = own::api(hub, backup).get_status(&this.name).await?;
                if newest.metadata.resource_version != backup.metadata.resource_version {
                    return Ok(Action::requeue(Duration::from_millis(200)));
                }
                spoke.start(this).await
            }
            _ => Ok(()),
        };
        match done {
            Ok(()) if status.state == State::PreparingToStart => {}
            Ok(()) => watch(hub, &Key::of(backup), this, &spoke).await,
            Err(trouble) => looked = Err(trouble),
        }
    }
    settle(backup, this, status, &looked, hub).await
}

/// The name of another try that is under way, of which something was seen on a cluster: that cluster has more than one name.
pub(super) fn at_it(look: &Look, hub: &Hub) -> Option<String> {
    look.others.iter().find_map(|other| {
        let place = ObjectRef::new(&other.name).within(&other.namespace);
        under_way(&hub.backups, &place, &other.uid).then(|| format!("{}/{}", other.namespace, other.name))
    })
}

/// What was seen.
fn seen(backup: &ClusterBackup, looked: &Result<Look, Trouble>, now: Timestamp) -> Seen {
    match looked {
        Err(Trouble::Unreachable { .. }) => Seen::Unreachable,
        Err(Trouble::Refused(_)) => Seen::Refused,
        Ok(Look { job: Some(job), .. }) => match &job.end {
            JobEnd::Running => Seen::Running,
            JobEnd::Complete => match job.result().filter(|result| result.verified) {
                Some(result) if good_until(&backup.spec.max_age, result.taken, now, result.certificates_expire) > now => Seen::Verified,
                Some(_) => Seen::Stale,
                None => Seen::Unproven,
            },
            JobEnd::Failed { reason, .. } if reason == "DeadlineExceeded" => Seen::DeadlineExceeded,
            JobEnd::Failed { .. } => Seen::Failed,
        },
        Ok(look) if look.leftovers.is_empty() => Seen::Nothing,
        Ok(_) => Seen::Leftovers,
    }
}

/// What was seen, with the hub's clock.
fn seen_in_time(backup: &ClusterBackup, status: &ClusterBackupStatus, looked: &Result<Look, Trouble>) -> Seen {
    let seen = seen(backup, looked, Timestamp::now());
    if !seen.is_end() && remaining(backup, status).is_zero() { Seen::TooLate } else { seen }
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
    (said.reason, said.message) = (a_word(&said.reason), sentences(&said.message));
    if let Ok(Look { job: Some(job), .. }) = looked {
        said.job = Some(a_word(&job.uid)).filter(|uid| !uid.is_empty()).or(said.job);
        if !job.log.is_empty() && (said.log.is_empty() || next.is_final()) {
            said.log = sentences(&job.log);
        }
        if next == State::Succeeded {
            proven(backup, &mut said, job, now);
        }
    }
    if next.is_final() {
        said.completed_at = Some(now);
    }
    let key = Key::of(backup);
    let is_news = said != *status;
    let is_told = is_news && (next != status.state || hub.at_work.may_write(&key, &this.uid, AGAIN));
    if is_told {
        own::write_status(hub, backup, &said).await?;
        if next != status.state {
            hub.numbers.count(next);
            tell(hub, backup, &said).await;
        }
    }
    if matches!(seen, Seen::Unreachable) {
        hub.at_work.lose(&key, &this.uid);
    }
    if next != status.state {
        // The change itself wakes it; this is for one that gets lost.
        return Ok(Action::requeue(about(AGAIN)));
    }
    let runs = matches!(looked, Ok(Look { job: Some(job), .. }) if job.runs);
    // Why a pod does not begin, the Job does not say.
    let pause = match seen {
        _ if is_news && !is_told => AGAIN,
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

/// Tells of a state in an event.
async fn tell(hub: &Hub, backup: &ClusterBackup, status: &ClusterBackupStatus) {
    let kind =
        if matches!(status.state, State::BackupTimeout | State::UnrecoverableError) { EventType::Warning } else { EventType::Normal };
    let note = format!("{}: {}: {}", backup.spec.cluster, status.reason, status.message);
    own::publish(hub, &backup.object_ref(&()), kind, status.state.name(), &note).await;
    tracing::info!("{} {}: {note}", backup.name_any(), status.state);
}
