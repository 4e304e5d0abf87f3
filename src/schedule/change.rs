//! Making, changing and deleting schedules. All of what is asked is looked at first: either all of it comes to be, or nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::arm::arm;
use super::due::distance;
use super::store::{self, Schedule, Schedules, State, check_name, check_owner};
use crate::agent::install;
use crate::backup::survey::{Survey, survey};
use crate::backup::take::{KEEP, trees::refuse_dir_inside};
use crate::error::{AndNext, by_hand, unsupported, usage};
use crate::node::timer;
use crate::session::{Locked, Session};
use crate::tools::systemctl;

/// The shortest time between two instants that a schedule may have: cron has none that is shorter.
const LEAST: Duration = Duration::from_secs(60);
/// Instants that are as far apart are not looked at: no backup of a single node takes as long.
const FAR_APART: Duration = Duration::from_secs(3600);

/// What is asked of a schedule, new or not. What is not said stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// When; a new one has to say it.
    pub cron: Option<String>,
    /// The time zone.
    pub time_zone: Option<String>,
    /// Whether a backup is to be taken before an upgrade, too.
    pub before_upgrade: Option<bool>,
    /// How many good backups of it are kept.
    pub keep: Option<u32>,
    /// Whether it is not carried out for now.
    pub paused: Option<bool>,
}

impl Change {
    /// Nothing is asked of this one.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self { name: name.to_owned(), cron: None, time_zone: None, before_upgrade: None, keep: None, paused: None }
    }

    /// The schedule that comes of it.
    fn made(&self, old: Option<&Schedule>, now: Timestamp) -> Result<Schedule> {
        check_name(&self.name)?;
        let mut made = match old {
            Some(old) => old.clone(),
            None => Schedule {
                name: self.name.clone(),
                expression: String::new(),
                time_zone: None,
                before_upgrade: false,
                keep: KEEP,
                paused: false,
                created: now,
                state: State::begin(now),
            },
        };
        match &self.cron {
            Some(cron) => made.expression.clone_from(cron),
            None if old.is_none() => return Err(usage(format!("there is no schedule `{}` yet: a new one needs --cron", self.name))),
            None => {}
        }
        if let Some(zone) = &self.time_zone {
            // An empty one is none.
            made.time_zone = Some(zone.clone()).filter(|zone| !zone.is_empty());
        }
        made.before_upgrade = self.before_upgrade.unwrap_or(made.before_upgrade);
        made.keep = self.keep.unwrap_or(made.keep);
        made.paused = self.paused.unwrap_or(made.paused);
        // One that is changed, or goes on, begins at its next instant: what it missed as it was before is nobody's concern any more.
        let begins_anew = old.is_some_and(|old| {
            old.expression != made.expression || old.zone_name().ok() != made.zone_name().ok() || (old.paused && !made.paused)
        });
        if begins_anew {
            made.state = State { last: made.state.last, good: made.state.good, ..State::begin(now) };
        }
        Ok(made)
    }
}

/// The next instants of a schedule.
///
/// # Errors
/// When its expression or zone cannot be read.
pub fn instants(schedule: &Schedule, after: Timestamp, how_many: usize) -> Result<Vec<Timestamp>> {
    Ok(schedule.cron()?.instants(after, &schedule.zone()?).take(how_many).collect())
}

/// Checks that a schedule can be carried out, where a backup takes so long.
fn check(schedule: &Schedule, backup_takes: Option<Duration>, now: Timestamp) -> Result<()> {
    let (cron, zone): (_, TimeZone) = (schedule.cron()?, schedule.zone()?);
    if schedule.keep == 0 {
        return Err(usage("at least one good backup is always kept: --keep takes 1 or more"));
    }
    if cron.next(now, &zone).is_none() {
        return Err(usage(format!("`{}` never occurs: no day of the next five years is like that", schedule.expression)));
    }
    let Some(apart) = distance(&cron, &zone, now) else { return Ok(()) };
    if apart < LEAST {
        return Err(unsupported(format!("`{}` is every {} s: a minute is the least", schedule.expression, apart.as_secs())));
    }
    match Pace::of(apart, backup_takes) {
        Pace::TooOften(_, takes) => Err(unsupported(format!(
            "`{}` is every {} s at times, and the last backup took {} s: one would follow the other without end",
            schedule.expression,
            apart.as_secs(),
            takes.as_secs()
        ))
        .and_next(by_hand("choose instants that are further apart"))),
        Pace::Fits | Pace::Unknown(_) => Ok(()),
    }
}

/// Whether a schedule is more often than a backup takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It is not.
    Fits,
    /// It is this often at times, and no backup on this node tells how long one takes.
    Unknown(Duration),
    /// It is this often at times, and the last backup took as long.
    TooOften(Duration, Duration),
}

impl Pace {
    fn of(apart: Duration, backup_takes: Option<Duration>) -> Self {
        match backup_takes {
            Some(takes) if apart < takes => Self::TooOften(apart, takes),
            None if apart < FAR_APART => Self::Unknown(apart),
            _ => Self::Fits,
        }
    }

    /// That of a schedule, where a backup [takes](backup_takes) so long. What was let through once can become too often: the node has more to save by now, or
    /// no backup told before.
    ///
    /// # Errors
    /// When its expression or zone cannot be read.
    pub fn now(schedule: &Schedule, backup_takes: Option<Duration>, now: Timestamp) -> Result<Self> {
        let apart = distance(&schedule.cron()?, &schedule.zone()?, now);
        Ok(apart.map_or(Self::Fits, |apart| Self::of(apart, backup_takes)))
    }

    /// What somebody should know of it.
    #[must_use]
    pub fn said(&self) -> Option<String> {
        match self {
            Self::Fits => None,
            Self::Unknown(apart) => Some(format!(
                "it is every {} s at times, and no backup tells yet how long one takes: its first run does, and `recovery schedule list` \
                 then says when it is too often",
                apart.as_secs()
            )),
            Self::TooOften(apart, takes) => Some(format!(
                "it is every {} s at times, and the last backup took {} s: instants that come while it runs are left out; choose some that \
                 are further apart",
                apart.as_secs(),
                takes.as_secs()
            )),
        }
    }
}

/// How long a backup takes: the newest one that says so.
#[must_use]
pub fn backup_takes(survey: &Survey) -> Option<Duration> {
    survey.backups.iter().find_map(|backup| backup.manifest.seconds).map(Duration::from_secs)
}

/// Makes or changes schedules, and has the node wake for them. All or none of them.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for what cannot be, [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for
/// what is more often than a backup takes; as [`Schedules::of`] and [`check_owner`]; when systemd does not answer, or something cannot be written.
pub fn put(session: &Locked<'_>, changes: &[Change]) -> Result<Vec<Schedule>> {
    let Session { node, dir, .. } = **session;
    refuse_dir_inside(node, dir)?;
    check_owner(node, dir)?;
    let now = node.clock().now();
    let takes = backup_takes(&survey(dir)?);
    let there = Schedules::of(node)?;
    let made = changes.iter().map(|change| {
        let what = || format!("the schedule {}", change.name);
        let made = change.made(there.find(&change.name)?, now).with_context(what)?;
        let old = there.find(&change.name)?;
        // One that is only told to keep more, or to stop, was let through before.
        let is_new = old.is_none_or(|old| old.state.base != made.state.base || old.expression != made.expression || old.keep == 0);
        check(&made, takes.filter(|_| is_new), now).with_context(what)?;
        Ok(made)
    });
    let made: Vec<Schedule> = made.collect::<Result<_>>()?;
    // Who would not be woken must not believe that they were.
    systemctl::show(node, timer::TIMER).context("asking systemd for its timers, by which schedules are woken")?;
    install::install(node, dir)?;
    store::prepare(node)?;
    // First, because a schedule without it would wake nobody.
    timer::own(node, dir.shown())?;
    made.iter().try_for_each(|schedule| store::write(node, schedule))?;
    arm(node)?;
    Ok(made)
}

/// Deletes a schedule; its backups stay. One that cannot be read is deleted as well.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is none of this name; as [`check_owner`]; when systemd does not answer, or
/// something cannot be removed.
pub fn delete(session: &Locked<'_>, name: &str) -> Result<()> {
    let Session { node, dir, .. } = **session;
    check_owner(node, dir)?;
    check_name(name)?;
    let there = Schedules::of(node)?;
    if !there.has(name) {
        // An earlier call may have been killed before the node was told.
        if there.is_empty() {
            arm(node)?;
        }
        there.take(name)?;
    }
    store::remove(node, name)?;
    arm(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn new(cron: &str) -> Schedule {
        Change { cron: Some(cron.to_owned()), ..Change::of("a") }.made(None, at("2026-01-01T00:00:00Z")).unwrap()
    }

    #[test]
    fn what_never_occurs_or_is_too_often_is_refused() {
        let refused = |cron: &str, takes: u64| {
            check(&new(cron), Some(Duration::from_secs(takes)), at("2026-01-01T00:00:00Z"))
                .map_err(|error| (exit_code(&error), error.to_string()))
        };
        for fits in ["0 */6 * * *", "* * * * *", "@every 60s", "0 0 29 2 *", "TZ=Asia/Tokyo @daily"] {
            assert_eq!(refused(fits, 60), Ok(()), "{fits}");
        }
        for (cron, takes, code, says) in [
            ("0 0 31 2 *", 0, 2, "never occurs"),
            (", * * * *", 0, 2, "never occurs"),
            ("61 * * * *", 0, 2, "cannot be read"),
            ("@every 59s", 0, 64, "every 59 s"),
            ("0,5 0 * * *", 301, 64, "the last backup took 301 s"),
            ("*/5 * * * *", 301, 64, "every 300 s at times"),
            ("* * * * *", 61, 64, "every 60 s at times"),
        ] {
            let (got, said) = refused(cron, takes).unwrap_err();
            assert!(got == code && said.contains(says), "{cron}: {got} {said}");
        }
    }

    #[test]
    fn what_was_let_through_is_looked_at_again() {
        let now = at("2026-01-01T00:00:00Z");
        let pace = |cron: &str, takes: Option<u64>| Pace::now(&new(cron), takes.map(Duration::from_secs), now).unwrap();
        assert_eq!(pace("* * * * *", None), Pace::Unknown(Duration::from_secs(60)));
        assert!(pace("* * * * *", None).said().is_some_and(|said| said.contains("no backup tells yet")));
        assert_eq!(pace("0 */6 * * *", None), Pace::Fits);
        assert_eq!(pace("* * * * *", Some(60)), Pace::Fits);
        assert_eq!(pace("* * * * *", Some(61)), Pace::TooOften(Duration::from_secs(60), Duration::from_secs(61)));
        assert_eq!(pace("0 */6 * * *", Some(61)).said(), None);
    }

    #[test]
    fn what_is_not_said_stays_and_what_is_changed_begins_anew() {
        let (then, now) = (at("2026-01-01T00:00:00Z"), at("2026-02-01T00:00:00Z"));
        let old = new("@daily");
        assert_eq!((old.keep, old.paused, old.before_upgrade, old.state.base), (KEEP, false, false, then));
        let same = Change { keep: Some(7), cron: Some("@daily".to_owned()), ..Change::of("a") }.made(Some(&old), now).unwrap();
        assert_eq!((same.keep, same.state.base, same.created), (7, then, then));
        for change in [
            Change { cron: Some("@hourly".to_owned()), ..Change::of("a") },
            Change { time_zone: Some("Asia/Tokyo".to_owned()), ..Change::of("a") },
        ] {
            assert_eq!(change.made(Some(&old), now).unwrap().state.base, now);
        }
        let paused = Change { paused: Some(true), ..Change::of("a") }.made(Some(&old), now).unwrap();
        assert!(paused.paused && paused.state.base == then);
        let on = Change { paused: Some(false), ..Change::of("a") }.made(Some(&paused), now).unwrap();
        assert!(!on.paused && on.state.base == now);
        assert_eq!(Change::of("a").made(None, now).map_err(|error| exit_code(&error)), Err(2));
    }
}
