//! The controller of `BackupSchedule`: makes a group at each instant, as [`schedule::cron`](crate::schedule::cron) reads it. What was missed is made up for
//! once; while the group before is at work, the next one waits.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kube::api::ObjectMeta;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use super::about;
use super::api::{BackupSchedule, BackupScheduleStatus, ClusterGroupBackup, Condition, SCHEDULE_LABEL};
use super::own::{self, Failed};
use super::plan::{BACKUP_SUCCEEDED, PROGRESSING, set};
use super::run::Hub;
use crate::schedule::cron::Cron;
use crate::schedule::zone::zone;

/// The pause after which a schedule is looked at although nothing has happened: a clock can be set.
const NET: Duration = Duration::from_secs(300);
/// The most instants that are looked through for the last one that was missed.
const MISSED: usize = 100_000;

/// What a schedule has to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Make a group for this instant; the one after it comes then.
    Now(Timestamp, Option<Timestamp>),
    /// Nothing until then.
    At(Timestamp),
    /// Nothing, ever.
    Never,
}

/// What a schedule has to do that ran last for the instant `last`, or was made then.
#[must_use]
pub fn due(cron: &Cron, zone: &TimeZone, last: Timestamp, now: Timestamp) -> Due {
    let Some(next) = cron.next(last, zone) else { return Due::Never };
    if next > now {
        return Due::At(next);
    }
    // What was missed is one run: that of the last instant of all.
    let missed = cron.instants(last, zone).take(MISSED).take_while(|instant| *instant <= now).last().unwrap_or(next);
    Due::Now(missed, cron.next(now, zone))
}

/// One look at a schedule.
///
/// # Errors
/// [`Failed`]; it is looked at again.
pub async fn reconcile(schedule: Arc<BackupSchedule>, hub: Arc<Hub>) -> Result<Action, Failed> {
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let now = Timestamp::now();
    let before = schedule.status.clone().unwrap_or_default();
    let mut status = BackupScheduleStatus { observed_generation: schedule.metadata.generation, next_attempt: None, ..before.clone() };
    let condition = |kind: &str, is: bool, reason: &str, message: String| {
        set(&before.conditions, kind, is, reason, message, schedule.metadata.generation, now)
    };
    let read = read(&schedule);
    let valid = match &read {
        Ok(_) => condition("ScheduleValid", true, "Valid", "the schedule can be read".to_owned()),
        Err(why) => condition("ScheduleValid", false, "Invalid", why.clone()),
    };
    let groups = groups(&schedule, &hub);
    let last = groups.last().cloned();
    // Of one that is not over yet, nothing is said.
    let over = groups.iter().rev().find(|group| !is_at_work(group));
    status.conditions = [Some(valid), over.and_then(|group| last_run(group, &condition))].into_iter().flatten().collect();
    let mut again = NET;
    if let Ok((cron, zone)) = read {
        // A clock that was ahead once silences nobody.
        let base = before.last_run.or_else(|| schedule.creation_timestamp().map(|time| time.0)).unwrap_or(now).min(now);
        match due(&cron, &zone, base, now) {
            _ if schedule.spec.paused => {}
            Due::Never => {}
            Due::At(next) => {
                status.next_attempt = Some(next);
                again = Duration::try_from(next.duration_since(now)).unwrap_or_default() + Duration::from_millis(100);
            }
            // As a run that comes late, it begins once the one before is over.
            Due::Now(instant, _) if last.as_deref().is_some_and(is_at_work) => status.next_attempt = Some(instant),
            Due::Now(instant, next) => {
                status.last_group = Some(make(&schedule, &hub, instant).await?);
                status.last_run = Some(instant);
                status.next_attempt = next;
                again = Duration::from_secs(1);
            }
        }
    }
    forget(&schedule, &hub, &groups).await?;
    if status != before {
        own::write_status(&hub, &*schedule, &status).await?;
    }
    Ok(Action::requeue(again.min(about(NET))))
}

/// The expression and its zone, or why they cannot be read.
fn read(schedule: &BackupSchedule) -> Result<(Cron, TimeZone), String> {
    let spec = &schedule.spec;
    let cron = Cron::parse(&spec.schedule).map_err(|error| format!("{error:#}"))?;
    let named = match cron.zone() {
        Some(before) if !spec.time_zone.is_empty() && spec.time_zone != before && spec.time_zone != crate::schedule::zone::UTC => {
            return Err(format!("the expression says {before}, and spec.timeZone says {}", spec.time_zone));
        }
        Some(before) => before.to_owned(),
        None => spec.time_zone.clone(),
    };
    let zone = zone(&named).map_err(|error| format!("{error:#}"))?;
    if cron.next(Timestamp::now(), &zone).is_none() {
        return Err("it does not occur within five years".to_owned());
    }
    Ok((cron, zone))
}

/// The groups of a schedule, the oldest first.
fn groups(schedule: &BackupSchedule, hub: &Hub) -> Vec<Arc<ClusterGroupBackup>> {
    let (namespace, name) = (schedule.namespace(), schedule.name_any());
    let mut groups = hub.groups.state_filter(|group| group.namespace() == namespace && group.labels().get(SCHEDULE_LABEL) == Some(&name));
    groups.sort_by_key(|group| group.name_any());
    groups
}

/// True while a group has something to do.
fn is_at_work(group: &ClusterGroupBackup) -> bool {
    let conditions = group.status.iter().flat_map(|status| &status.conditions);
    // One that nobody has looked at yet, too.
    !conditions.clone().any(|one| one.kind == PROGRESSING)
        || conditions.into_iter().any(|one| one.kind == PROGRESSING && one.status == "True")
}

fn last_run(group: &ClusterGroupBackup, condition: &impl Fn(&str, bool, &str, String) -> Condition) -> Option<Condition> {
    let found = group.status.as_ref().and_then(|status| status.conditions.iter().find(|one| one.kind == BACKUP_SUCCEEDED))?;
    let is = found.reason == "BackupCompleted";
    Some(condition("LastRunSucceeded", is, &found.reason, format!("{}: {}", group.name_any(), found.message)))
}

/// Makes the group of an instant; its name is that instant's, so that it is made once.
async fn make(schedule: &BackupSchedule, hub: &Hub, instant: Timestamp) -> Result<String, Failed> {
    let name = format!("{}-{}", schedule.name_any(), instant.strftime("%Y%m%d%H%M%S"));
    let mut group = ClusterGroupBackup::new(&name, schedule.spec.template.clone());
    group.metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: schedule.namespace(),
        labels: Some([(SCHEDULE_LABEL.to_owned(), schedule.name_any())].into()),
        owner_references: schedule.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    own::create(hub, &group).await?;
    Ok(name)
}

/// Deletes the groups that are over, but for the newest.
async fn forget(schedule: &BackupSchedule, hub: &Hub, groups: &[Arc<ClusterGroupBackup>]) -> Result<(), Failed> {
    let over: Vec<_> = groups.iter().filter(|group| !is_at_work(group) && group.metadata.deletion_timestamp.is_none()).collect();
    let surplus = over.len().saturating_sub(schedule.spec.history as usize);
    let api = own::scoped::<ClusterGroupBackup>(&hub.client, schedule.namespace().as_deref());
    for group in over.into_iter().take(surplus) {
        own::delete(&api, &group.name_any()).await?;
    }
    Ok(())
}

/// The schedule of a group, where it has one.
pub(super) fn of_group(group: &ClusterGroupBackup) -> Option<ObjectRef<BackupSchedule>> {
    let name = group.labels().get(SCHEDULE_LABEL)?;
    Some(ObjectRef::new(name).within(&group.namespace().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_missed_is_made_up_for_once() {
        let cron = Cron::parse("30 2 * * *").unwrap();
        let due = |last: &str, now: &str| due(&cron, &TimeZone::UTC, time(last), time(now));
        let of = |text: &str| time(text);
        assert_eq!(due("2026-03-01T00:00:00Z", "2026-03-01T02:29:59Z"), Due::At(of("2026-03-01T02:30:00Z")));
        let at_once = Due::Now(of("2026-03-01T02:30:00Z"), Some(of("2026-03-02T02:30:00Z")));
        assert_eq!(due("2026-03-01T00:00:00Z", "2026-03-01T02:30:00Z"), at_once);
        // The hub was off for a week.
        let late = Due::Now(of("2026-03-08T02:30:00Z"), Some(of("2026-03-09T02:30:00Z")));
        assert_eq!(due("2026-03-01T02:30:00Z", "2026-03-08T12:00:00Z"), late);
    }

    fn schedule(spec: &str, zone: &str) -> BackupSchedule {
        let spec = json!({"schedule": spec, "timeZone": zone, "template": {"clusters": ["a"]}});
        BackupSchedule::new("s", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert!(read(&schedule("30 2 * * *", "Europe/Berlin")).is_ok());
        assert!(read(&schedule("TZ=Europe/Berlin 30 2 * * *", "UTC")).is_ok());
        for (spec, zone, why) in [
            ("61 2 * * *", "UTC", "beyond"),
            ("0 0 30 2 *", "UTC", "does not occur"),
            ("@daily", "Nowhere/Bad", "no time zone"),
            ("TZ=Europe/Berlin @daily", "Asia/Tokyo", "spec.timeZone says Asia/Tokyo"),
        ] {
            let said = read(&schedule(spec, zone)).unwrap_err();
            assert!(said.contains(why), "{spec} {zone}: {said}");
        }
    }
}
