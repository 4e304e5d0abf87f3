//! Taking the backups that are due.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::arm::{arm, now};
use super::change::{Pace, backup_takes};
use super::due::{Now, Verdict, adopted, begin, failed, judge, settle, succeeded};
use super::store::{self, Schedule, Schedules, check_owner};
use crate::backup::asked_by::AskedBy;
use crate::backup::names::{LONGEST, SCHEDULE_LABEL, shortened};
use crate::backup::store::{Retention, finish_interrupted, survey};
use crate::backup::take::{TakeOptions, Taken, take};
use crate::error::{AndNext, FailureKind, Next, by_hand, kind, said};
use crate::node::clock::interrupted;
use crate::report::event::{self, About, tell};
use crate::session::{Locked, Session};

/// From which delay on a backup counts as missed: another backup before it can take as long.
const LATE: SignedDuration = SignedDuration::from_mins(30);

/// What became of a schedule that was due.
#[derive(Debug, Serialize)]
pub struct Ran {
    /// Its name.
    pub schedule: String,
    /// The id of its backup.
    pub backup: Option<String>,
    /// Why it has none, or waits.
    pub why: Option<String>,
    /// What somebody should know, one sentence each.
    pub warnings: Vec<String>,
    /// What it failed of.
    #[serde(skip)]
    pub error: Option<anyhow::Error>,
}

/// The backup `<name>-<YYYYMMDDhhmmss>` in UTC, as kcm calls it.
#[must_use]
pub fn backup_name(schedule: &str, begun: Timestamp) -> String {
    shortened(&format!("{schedule}-{}", begun.to_zoned(TimeZone::UTC).strftime("%Y%m%d%H%M%S")), LONGEST)
}

/// Takes the backups that are due, one after the other. Each schedule runs once at most. Who is woken for this then [arms](arm) the timer, however this ended.
///
/// # Errors
/// As [`Schedules::of`] and [`check_owner`]; when a state cannot be written; when interrupted. That a backup failed is in the report.
pub fn due(session: Session<'_>, wait: Duration) -> Result<Vec<Ran>> {
    let Session { node, dir, .. } = session;
    check_owner(node, dir)?;
    let schedules = Schedules::of(node)?;
    let mut done: Vec<Ran> = schedules.unreadable.into_iter().map(|(file, error)| Ran::without(file, error)).collect();
    // What is in the way is asked for each time: a backup may take long.
    loop {
        interrupted()?;
        // The lock first: what is read before it, somebody else may be changing.
        let (locked, holder) = match session.lock("schedule due") {
            Ok(locked) => (Some(locked), None),
            Err(error) if kind(&error) == FailureKind::Locked => (None, Some(said(&error))),
            Err(error) => return Err(error),
        };
        let mut now = now(node, dir)?;
        now.blocked = now.blocked.or(holder);
        let schedules = Schedules::of(node)?;
        if schedules.all.is_empty() {
            return Ok(done);
        }
        let mut due: Option<(Timestamp, Schedule)> = None;
        let mut waiting = Vec::new();
        for (name, mut schedule) in schedules.all {
            if settle(&mut schedule.state, &now) && locked.is_some() {
                store::write(node, &schedule)?;
            }
            if done.iter().any(|ran| ran.schedule == name) {
                continue;
            }
            match judge(&schedule, &now) {
                Ok(Verdict::Due(since)) if due.as_ref().is_none_or(|(first, _)| since < *first) => due = Some((since, schedule)),
                Ok(Verdict::Waits { why, .. }) => {
                    waiting.push(Ran { schedule: name, backup: None, why: Some(why), warnings: Vec::new(), error: None });
                }
                Ok(_) => {}
                Err(error) => done.push(Ran::without(name, error)),
            }
        }
        let (Some((since, schedule)), Some(locked)) = (due, locked) else {
            done.extend(waiting);
            return Ok(done);
        };
        let name = schedule.name.clone();
        // What was tried before was not missed.
        if schedule.state.waiting.is_none() {
            tell_late(&name, since, now.moment.wall);
        }
        done.push(match run(&locked, schedule, &now, wait, false, true)? {
            Ok((backup, warnings)) => Ran { schedule: name, backup: Some(backup), why: None, warnings, error: None },
            Err(error) => Ran::without(name, error),
        });
    }
}

/// Tells journald of a schedule that runs later than a timer may be, or a backup before it takes.
fn tell_late(name: &str, since: Timestamp, now: Timestamp) {
    if now.duration_since(since) > LATE {
        let about = About { schedule: Some(name), ..About::default() };
        tell(&event::SCHEDULE_MISSED, about, &format!("the schedule {name} was due at {since:.0}, and its backup is taken now"));
    }
}

impl Ran {
    fn without(schedule: String, error: anyhow::Error) -> Self {
        Self { schedule, backup: None, why: Some(format!("{error:#}")), warnings: Vec::new(), error: Some(error) }
    }
}

/// Takes a backup of a schedule now, due or not.
///
/// # Errors
/// As [`Schedules::take`] and [`take`]; when its state cannot be written, or systemd does not answer.
pub fn now_once(session: &Locked<'_>, name: &str, wait: Duration, force: bool) -> Result<(String, Vec<String>)> {
    let Session { node, dir, .. } = **session;
    check_owner(node, dir)?;
    let schedule = Schedules::of(node)?.take(name)?;
    let now = now(node, dir)?;
    let ran = run(session, schedule, &now, wait, force, false)?;
    let armed = arm(node);
    let ran = ran?;
    armed.map(|()| ran)
}

/// One run, written down before and after: the outer error is that this could not be done.
fn run(
    session: &Locked<'_>,
    mut schedule: Schedule,
    now: &Now,
    wait: Duration,
    force: bool,
    by_itself: bool,
) -> Result<Result<(String, Vec<String>)>> {
    let Session { node, .. } = **session;
    let moment = by_itself.then(|| now.moment.clone());
    if by_itself && let Some((id, took)) = cut_short(session, &schedule)? {
        adopted(&mut schedule, id.clone(), took);
        store::write(node, &schedule)?;
        return Ok(Ok((id, vec!["it was taken before, by an agent that was stopped before it could write that down".to_owned()])));
    }
    // What fitted when the schedule was set need not fit any more.
    let too_often = match Pace::now(&schedule, backup_takes(&survey(session.dir)?), now.moment.wall)? {
        pace @ Pace::TooOften(..) => Vec::from_iter(pace.said()),
        Pace::Fits | Pace::Unknown(_) => Vec::new(),
    };
    let name = backup_name(&schedule.name, now.moment.wall);
    begin(&mut schedule, now, name.clone(), by_itself)?;
    store::write(node, &schedule)?;
    let options = TakeOptions {
        name: Some(name),
        labels: BTreeMap::from([(SCHEDULE_LABEL.to_owned(), schedule.label())]),
        force,
        keep: Retention { others: None, schedules: Schedules::of(node)?.keeps(), gone: None },
        wait,
        asked_by: AskedBy::Schedule(schedule.name.clone()),
    };
    let taken = take(session, &options).context("taking a backup").map_err(|error| with_room(session, &schedule, error));
    let ended = node.clock().now();
    match &taken {
        Ok(Taken { manifest, .. }) => succeeded(&mut schedule, manifest.id.clone(), ended, moment),
        Err(error) => {
            if !kind(error).is_not_now() {
                let about = About { schedule: Some(&schedule.name), ..About::default() };
                event::tell_error(&event::SCHEDULE_FAILED, about, &format!("the schedule {}", schedule.name), error);
            }
            failed(&mut schedule, kind(error).name(), said(error), ended);
        }
    }
    store::write(node, &schedule)?;
    Ok(taken.map(|taken| (taken.manifest.id, [too_often, taken.warnings].concat())))
}

/// The backup of the schedule's last run, where that was cut short after the backup was complete, and how long it took. One that an earlier run is known to have taken is not
/// its: two runs within a second have one name.
fn cut_short(session: &Locked<'_>, schedule: &Schedule) -> Result<Option<(String, Option<Duration>)>> {
    let Some(last) = schedule.state.last.as_ref().filter(|last| last.ended.is_none()) else { return Ok(None) };
    let by = AskedBy::Schedule(schedule.name.clone());
    let known = schedule.state.good.as_ref().and_then(|good| good.backup.as_ref());
    let found = finish_interrupted(session)?
        .backups
        .into_iter()
        .find(|backup| backup.manifest.asked_by == by && backup.manifest.name.as_ref() == Some(&last.name) && Some(&backup.id) != known);
    Ok(found.map(|backup| (backup.id, backup.manifest.seconds.map(Duration::from_secs))))
}

/// Where there is no room: what is in the way, of this schedule and of others.
fn with_room(session: &Locked<'_>, schedule: &Schedule, error: anyhow::Error) -> anyhow::Error {
    if kind(&error) != FailureKind::NoSpace {
        return error;
    }
    let Ok(found) = survey(session.dir) else { return error };
    let label = schedule.label();
    let ours = found.backups.iter().filter(|backup| backup.manifest.labels.get(SCHEDULE_LABEL) == Some(&label)).count();
    let others = found.backups.len() - ours;
    error.and_next(room(&schedule.name, ours, schedule.keep, others))
}

fn room(name: &str, ours: usize, keep: u32, others: usize) -> Next {
    by_hand(format!(
        "of the backups there, {ours} are of this schedule, which keeps {keep} (`recovery schedule set {name} --keep N`), and {others} are \
         not and are left alone: `recovery list` shows them, `recovery delete ID` and `recovery prune --keep 1` make room"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_called_as_kcm_calls_it() -> Result<()> {
        let begun: Timestamp = "2026-11-21T06:05:36.9Z".parse()?;
        assert_eq!(backup_name("example-backup", begun), "example-backup-20261121060536");
        let long = backup_name(&"x".repeat(253), begun);
        assert!(long.len() == 253 && long.starts_with("xxx") && !long.contains("2026"), "{long}");
        crate::backup::names::check_name(&long)
    }
}
