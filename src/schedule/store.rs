//! The schedules of a node, one file each, and what became of them so far.
//!
//! They are on `/var`, outside `/etc` and etcd: no rollback brings old ones back. Who changes them holds the recovery directory's lock.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::cron::Cron;
use super::zone::{UTC, zone};
use crate::backup::names::{label_value, shortened};
use crate::error::{AndNext, Failure, damaged, kind, misfit, next, run, said, usage};
use crate::formats::{schedule as format, seal};
use crate::node::dir::{RecoveryDir, check_is_roots};
use crate::node::timer::{SCHEDULES, owner};
use crate::node::{Node, durable};

/// How a file of a schedule ends.
const ENDING: &str = ".json";
/// The longest name that a file has of it: file systems take 255 bytes, and its ending and that of what is being written come behind it.
const LONGEST_FILE: usize = 200;
/// The longest name of a schedule, as of every object in Kubernetes.
const LONGEST: usize = 253;

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// When: the expression as it was given.
    pub expression: String,
    /// The time zone that was given beside it.
    pub time_zone: Option<String>,
    /// A backup is to be taken before an upgrade, too.
    pub before_upgrade: bool,
    /// How many good backups of it are kept.
    pub keep: u32,
    /// It is not carried out for now.
    pub paused: bool,
    /// When it was made.
    pub created: Timestamp,
    /// What became of it so far.
    pub state: State,
}

/// What became of a schedule so far: see [`format::V1`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// From when on its next instant is counted: when it was made, changed or resumed, or when it last ran.
    #[serde(skip)]
    pub base: Timestamp,
    /// The same, while the clock says that `base` is yet to come.
    #[serde(skip)]
    pub instead: Option<Timestamp>,
    /// When it last ran by itself.
    #[serde(skip)]
    pub ran: Option<Moment>,
    /// What is due and has not succeeded yet.
    pub waiting: Option<Waiting>,
    /// The last run, however it ended.
    pub last: Option<Run>,
    /// The last run that ended well.
    pub good: Option<Run>,
}

/// A moment, by the wall clock and by the one that no one sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock.
    pub wall: Timestamp,
    /// The boot.
    pub boot: String,
    /// Seconds since it began.
    pub seconds: u64,
}

/// People and programs that look at a schedule want the wall clock.
fn wall<S: serde::Serializer>(moment: &Moment, to: S) -> Result<S::Ok, S::Error> {
    moment.wall.serialize(to)
}

/// A run that is due and has not succeeded yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Since when it is due.
    pub since: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was last tried.
    #[serde(serialize_with = "wall")]
    pub tried: Moment,
    /// Why it did not succeed.
    pub why: String,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// When it began.
    pub begun: Timestamp,
    /// When it ended; nothing while it is at work, or when it was cut short.
    pub ended: Option<Timestamp>,
    /// The name of the backup that it is to take.
    pub name: String,
    /// The id of the backup that it took.
    pub backup: Option<String>,
    /// The kind of its failure.
    pub failure: Option<String>,
    /// What it failed of, in words.
    pub why: Option<String>,
}

impl State {
    /// Of a schedule that is made, or begins anew, at this time.
    #[must_use]
    pub fn begin(now: Timestamp) -> Self {
        Self { base: now, instead: None, ran: None, waiting: None, last: None, good: None }
    }
}

impl Schedule {
    /// Its expression.
    ///
    /// # Errors
    /// As [`Cron::parse`].
    pub fn cron(&self) -> Result<Cron> {
        Cron::parse(&self.expression)
    }

    /// The name of its time zone: that in its expression, else that beside it, else UTC.
    ///
    /// # Errors
    /// As [`Cron::parse`]; [`FailureKind::Usage`](crate::error::FailureKind::Usage) when both are given and are not the same.
    pub fn zone_name(&self) -> Result<String> {
        let cron = self.cron()?;
        match (cron.zone(), self.time_zone.as_deref()) {
            (Some(within), Some(beside)) if within != beside => {
                Err(usage(format!("the time zone is {beside}, and the expression `{}` says {within}: give one of them", self.expression)))
            }
            (within, beside) => Ok(within.or(beside).filter(|name| !name.is_empty()).unwrap_or(UTC).to_owned()),
        }
    }

    /// Its time zone.
    ///
    /// # Errors
    /// As [`Schedule::zone_name`] and [`zone`].
    pub fn zone(&self) -> Result<TimeZone> {
        zone(&self.zone_name()?)
    }

    /// The value of the label that its backups have.
    #[must_use]
    pub fn label(&self) -> String {
        label_value(&self.name)
    }
}

/// Checks the name of a schedule: that of an object in Kubernetes (RFC 1123 subdomain).
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage).
pub fn check_name(name: &str) -> Result<()> {
    let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| part.starts_with(end) && part.ends_with(end) && part.chars().all(|c| end(c) || c == '-');
    if name.len() > LONGEST || !name.split('.').all(part) {
        let shown: String = name.chars().take(80).collect();
        return Err(usage(format!(
            "`{shown}` cannot name a schedule: small letters, digits, - and ., as Kubernetes has it, up to {LONGEST}"
        )));
    }
    Ok(())
}

/// All schedules of a node.
#[derive(Debug, Default)]
pub struct Schedules {
    /// By their names.
    pub all: BTreeMap<String, Schedule>,
    /// Files that cannot be read as schedules, by their names, and why.
    pub unreadable: BTreeMap<String, anyhow::Error>,
}

impl Schedules {
    /// Reads them. Nobody but root may have been able to write to them.
    ///
    /// # Errors
    /// [`FailureKind::NotPermitted`](crate::error::FailureKind::NotPermitted) when others can write there; when the directory cannot be listed.
    pub fn of(node: &Node) -> Result<Self> {
        let mut found = Self::default();
        let dir = node.path(SCHEDULES);
        check(node)?;
        let list = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            list => list.with_context(|| format!("listing {SCHEDULES}"))?,
        };
        for entry in list {
            let file = entry.with_context(|| format!("listing {SCHEDULES}"))?.file_name().to_string_lossy().into_owned();
            let Some(stem) = file.strip_suffix(ENDING).filter(|stem| !stem.starts_with('.')) else { continue };
            match read(&dir.join(&file)).and_then(|schedule| named(schedule, stem)) {
                Ok(schedule) => drop(found.all.insert(schedule.name.clone(), schedule)),
                Err(error) => drop(found.unreadable.insert(stem.to_owned(), error.context(format!("reading {SCHEDULES}/{file}")))),
            }
        }
        Ok(found)
    }

    /// True when there is none, readable or not.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.unreadable.is_empty()
    }

    /// The one of this name, where there is one.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<&Schedule>> {
        if let Some(error) = self.unreadable.get(&stem(name)) {
            return Err(Failure { kind: kind(error), message: said(error), next: next(error).cloned() }.into());
        }
        Ok(self.all.get(name))
    }

    /// True when there is one of this name, readable or not.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.all.contains_key(name) || self.unreadable.contains_key(&stem(name))
    }

    /// The one of this name.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is none; why it cannot be read.
    pub fn take(mut self, name: &str) -> Result<Schedule> {
        if let Some(error) = self.unreadable.remove(&stem(name)) {
            return Err(error);
        }
        self.all
            .remove(name)
            .ok_or_else(|| misfit(format!("there is no schedule `{name}`; `recovery schedule list` shows those there are")))
    }

    /// How many good backups of each are kept, by the label that they have. Of one that cannot be read nobody knows: all.
    #[must_use]
    pub fn keeps(&self) -> BTreeMap<String, usize> {
        let readable = self.all.values().map(|schedule| (schedule.label(), schedule.keep as usize));
        // (A name that is cut in the file is cut in another way in the label; its backups are then of a schedule that is not known.)
        readable.chain(self.unreadable.keys().map(|stem| (label_value(stem), usize::MAX))).collect()
    }
}

/// Fails when the schedules of this node are those of another recovery directory.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit), with the command that is about that one.
pub fn check_owner(node: &Node, dir: &RecoveryDir) -> Result<()> {
    match owner(node)? {
        Some(owner) if owner != dir.shown() => {
            let (owner, ours) = (owner.display(), dir.shown().display());
            Err(misfit(format!("the schedules of this node put their backups into {owner}, not {ours}"))
                .and_next(run(format!("recovery --dir {owner} schedule list"), "shows them")))
        }
        _ => Ok(()),
    }
}

/// Checks that the directory of the schedules, and the one above it, are root's and that nobody else can write to them.
fn check(node: &Node) -> Result<()> {
    let dir = node.path(SCHEDULES);
    for path in dir.parent().into_iter().chain([dir.as_path()]) {
        check_is_roots(path, &node.shown(path), "others could have written a schedule", "go-w")?;
    }
    Ok(())
}

fn stem(name: &str) -> String {
    shortened(name, LONGEST_FILE)
}

fn path(node: &Node, name: &str) -> PathBuf {
    node.path(SCHEDULES).join(stem(name) + ENDING)
}

fn read(path: &Path) -> Result<Schedule> {
    format::read(&durable::read(path, durable::SMALL)?).map(Schedule::from)
}

/// A schedule under a name that is not its own was not written by the agent.
fn named(schedule: Schedule, file: &str) -> Result<Schedule> {
    check_name(&schedule.name).map_err(|error| damaged(format!("{error:#}")))?;
    if stem(&schedule.name) == file {
        return Ok(schedule);
    }
    Err(damaged(format!("it says that it is {}", schedule.name)))
}

/// Makes their directory where it is missing, for root alone.
///
/// # Errors
/// As [`Schedules::of`]; when it cannot be made.
pub fn prepare(node: &Node) -> Result<()> {
    let dir = node.path(SCHEDULES);
    let above = dir.parent().context("the schedules have no directory")?;
    std::fs::create_dir_all(above).with_context(|| format!("making {}", node.shown(above).display()))?;
    durable::create_dir(&dir, 0o700)?;
    check(node)
}

/// Writes a schedule, durably.
///
/// # Errors
/// When it cannot be written.
pub fn write(node: &Node, schedule: &Schedule) -> Result<()> {
    let json = seal(&format::V1::from(schedule.clone())).context("writing a schedule as JSON")?;
    durable::write(&path(node, &schedule.name), &json, 0o600)
}

/// Removes a schedule, durably; one that is not there is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(node: &Node, name: &str) -> Result<()> {
    durable::remove(&path(node, name))
}

impl From<format::V1> for Schedule {
    fn from(read: format::V1) -> Self {
        let moment = |one: format::MomentV1| Moment { wall: one.wall, boot: one.boot, seconds: one.seconds };
        let run = |one: format::RunV1| {
            let format::RunV1 { begun, ended, name, backup, failure, why } = one;
            Run { begun, ended, name, backup, failure, why }
        };
        let waiting = |one: format::WaitingV1| {
            let format::WaitingV1 { since, attempts, tried, why } = one;
            Waiting { since, attempts, tried: moment(tried), why }
        };
        let format::V1 { name, cron, time_zone, before_upgrade, keep, paused, created, base, instead, .. } = read;
        let state = State {
            base,
            instead,
            ran: read.ran.map(moment),
            waiting: read.waiting.map(waiting),
            last: read.last.map(run),
            good: read.good.map(run),
        };
        Self { name, expression: cron, time_zone, before_upgrade, keep, paused, created, state }
    }
}

impl From<Schedule> for format::V1 {
    fn from(schedule: Schedule) -> Self {
        let moment = |one: Moment| format::MomentV1 { wall: one.wall, boot: one.boot, seconds: one.seconds };
        let run = |one: Run| {
            let Run { begun, ended, name, backup, failure, why } = one;
            format::RunV1 { begun, ended, name, backup, failure, why }
        };
        let waiting = |one: Waiting| {
            let Waiting { since, attempts, tried, why } = one;
            format::WaitingV1 { since, attempts, tried: moment(tried), why }
        };
        let Schedule { name, expression: cron, time_zone, before_upgrade, keep, paused, created, state } = schedule;
        let State { base, instead, ran, waiting: waits, last, good } = state;
        Self {
            version: format::FORMAT.version,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            name,
            cron,
            time_zone,
            before_upgrade,
            keep,
            paused,
            created,
            base,
            instead,
            ran: ran.map(moment),
            waiting: waits.map(waiting),
            last: last.map(run),
            good: good.map(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use crate::formats::samples;

    #[test]
    fn what_is_written_is_read_again() -> Result<()> {
        let sample = format::read(&samples::read("schedule.2.json"))?;
        assert_eq!(format::V1::from(Schedule::from(sample.clone())), sample);
        let schedule = Schedule::from(sample);
        assert_eq!((schedule.zone_name()?.as_str(), schedule.label().as_str()), ("Europe/Berlin", "example-backup"));
        let other = Schedule { time_zone: Some("UTC".to_owned()), ..schedule };
        assert_eq!(other.zone_name().map_err(|error| exit_code(&error)), Err(2));
        Ok(())
    }

    #[test]
    fn a_schedule_is_called_as_an_object_of_kubernetes() {
        for good in ["example-backup", "a", "0", "a.b-c.d", &"x".repeat(253)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a..b", ".a", "A", "a_b", "a/b", "ä", &"x".repeat(254)] {
            assert_eq!(check_name(bad).map_err(|error| exit_code(&error)), Err(2), "{bad}");
        }
    }
}
