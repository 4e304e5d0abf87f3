//! What there is to tell. It is read from files alone, without the lock and without asking the cluster or any program, so that nothing is waited for; and
//! each part by itself, so that one that cannot be read hides no other.

use std::collections::BTreeMap;

use anyhow::Result;
use jiff::Timestamp;
use kube::core::Selector;
use serde::Serialize;

use crate::backup::last_run::LastRun;
use crate::backup::store::{self, State};
use crate::node::mounts::space;
use crate::node::{Node, dir::RecoveryDir, hold, recovery_mount, timer};
use crate::recovery::status;
use crate::schedule::due::judge;
use crate::schedule::{Schedule, Schedules, Verdict, arm, instants};
use crate::session::Session;

/// The parts, each of which is read by itself.
pub const PARTS: [&str; 5] = ["backups", "last-run", "recovery", "room", "schedules"];

/// What there is to tell.
#[derive(Debug, Clone, Serialize)]
pub struct Metrics {
    /// When it was looked at.
    pub looked: Timestamp,
    /// Version of the agent.
    pub agent: &'static str,
    /// The recovery directory.
    pub directory: String,
    /// The [parts](PARTS) that could not be read, or not all of them, and why.
    pub errors: BTreeMap<&'static str, String>,
    /// The backups.
    pub backups: Option<Backups>,
    /// How the last run of a backup ended.
    pub last_run: Option<LastRun>,
    /// The schedules.
    pub schedules: Vec<Scheduled>,
    /// Recoveries.
    pub recovery: Option<Recovery>,
    /// The file system of the recovery directory.
    pub room: Option<Room>,
    /// kubelet is kept from starting.
    pub hold: bool,
    /// upgrade-recovery.sh has begun a recovery and not ended it.
    pub old_script: bool,
    /// An agent has the lock.
    pub at_work: bool,
}

/// The backups.
#[derive(Debug, Clone, Serialize)]
pub struct Backups {
    /// How many there are, by their state.
    pub states: BTreeMap<&'static str, usize>,
    /// The newest one that is complete, of this node, and whose certificates have not expired. Its contents were read when it was taken, and are not read here.
    pub good: Option<Good>,
}

/// The last good backup.
#[derive(Debug, Clone, Serialize)]
pub struct Good {
    /// Its id.
    pub id: String,
    /// When it was begun.
    pub taken: Timestamp,
    /// How long it took, seconds, where it says so.
    pub seconds: Option<u64>,
    /// Bytes that it takes on disk.
    pub stored: u64,
    /// When the first of its certificates expires.
    pub certificates_expire: Option<Timestamp>,
    /// How many warnings there were when it was taken.
    pub warnings: usize,
}

/// A schedule.
#[derive(Debug, Clone, Serialize)]
pub struct Scheduled {
    /// Its name.
    pub schedule: String,
    /// It is paused.
    pub paused: bool,
    /// Its next instant.
    pub next: Option<Timestamp>,
    /// Since when a backup of it is due that has not been taken yet.
    pub due: Option<Timestamp>,
    /// When the last run ended that ended well.
    pub good: Option<Timestamp>,
    /// Whether the last run that is over ended well.
    pub last_is_good: Option<bool>,
}

/// Recoveries.
#[derive(Debug, Clone, Serialize)]
pub struct Recovery {
    /// One is open, readable or not.
    pub is_open: bool,
    /// It, when its journal can be read.
    pub open: Option<Open>,
}

/// An open recovery.
#[derive(Debug, Clone, Serialize)]
pub struct Open {
    /// Its id.
    pub run: String,
    /// The backup that it restores.
    pub backup: String,
    /// The phase it is in.
    pub phase: Option<String>,
    /// The step it is at.
    pub step: Option<String>,
    /// When it was begun.
    pub begun: Timestamp,
    /// When something last happened.
    pub since: Timestamp,
    /// The step it is at has failed.
    pub failed: bool,
    /// It waits for a reboot.
    pub needs_reboot: bool,
}

/// The file system of the recovery directory.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Room {
    /// Its size, bytes.
    pub size: u64,
    /// Bytes free for root.
    pub free: u64,
}

/// Looks at a node. `session` is its recovery directory, or why that cannot be trusted.
#[must_use]
pub fn gather(node: &Node, dir: &RecoveryDir, session: &Result<Session<'_>>) -> Metrics {
    let now = node.clock().now();
    let mut errors = BTreeMap::new();
    let (schedules, unreadable) = schedules(node, dir, now).unwrap_or_else(|error| (Vec::new(), Some(format!("{error:#}"))));
    errors.extend(unreadable.map(|why| ("schedules", why)));
    let recovery = known(&mut errors, "recovery", within(session, recovery)).map(|(recovery, unreadable)| {
        errors.extend(unreadable.map(|why| ("recovery", why)));
        recovery
    });
    Metrics {
        looked: now,
        agent: env!("CARGO_PKG_VERSION"),
        directory: dir.shown().display().to_string(),
        backups: known(&mut errors, "backups", within(session, backups)),
        // A node can have several recovery directories.
        last_run: known(&mut errors, "last-run", LastRun::of(node)).flatten().filter(|run| run.directory == dir.shown()),
        room: known(&mut errors, "room", room(node, dir)),
        schedules,
        recovery,
        hold: hold::is_placed(node),
        old_script: dir.old_stages().is_some(),
        at_work: dir.holder().is_some(),
        errors,
    }
}

/// What was read of a part; why it could not be is noted.
fn known<T>(errors: &mut BTreeMap<&'static str, String>, part: &'static str, read: Result<T>) -> Option<T> {
    read.map_err(|error| errors.insert(part, format!("{error:#}"))).ok()
}

fn within<'a, T>(session: &Result<Session<'a>>, read: fn(&Session<'a>) -> Result<T>) -> Result<T> {
    match session {
        Ok(session) => read(session),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    }
}

fn backups(session: &Session<'_>) -> Result<Backups> {
    let listed = store::list(session, &Selector::default())?;
    let mut states: BTreeMap<&'static str, usize> = State::ALL.into_iter().map(|state| (state.name(), 0)).collect();
    for one in &listed {
        *states.entry(one.state.name()).or_default() += 1;
    }
    // The newest one comes first.
    let good = listed.into_iter().filter(|one| one.state == State::Complete).find_map(|one| {
        let (id, seconds, stored, warnings) = (one.id, one.seconds, one.stored, one.warnings.len());
        Some(Good { id, taken: one.taken?, seconds, stored, certificates_expire: one.certificates_expire, warnings })
    });
    Ok(Backups { states, good })
}

/// The schedules whose backups go to this recovery directory, and what is wrong with those that cannot be read.
fn schedules(node: &Node, dir: &RecoveryDir, now: Timestamp) -> Result<(Vec<Scheduled>, Option<String>)> {
    if timer::owner(node)?.is_none_or(|owner| owner != dir.shown()) {
        return Ok((Vec::new(), None));
    }
    let Schedules { all, unreadable } = Schedules::of(node)?;
    let clocks = arm::now(node, dir)?;
    let mut wrong: Vec<String> = unreadable.values().map(|error| format!("{error:#}")).collect();
    let mut readable = Vec::new();
    for schedule in all.into_values() {
        let (schedule, _) = schedule.settled(&clocks);
        match scheduled(&schedule, judge(&schedule, &clocks), now) {
            Ok(scheduled) => readable.push(scheduled),
            Err(error) => wrong.push(format!("{}: {error:#}", schedule.name)),
        }
    }
    Ok((readable, (!wrong.is_empty()).then(|| wrong.join("; "))))
}

fn scheduled(schedule: &Schedule, verdict: Result<Verdict>, now: Timestamp) -> Result<Scheduled> {
    let due = match verdict? {
        Verdict::Due(since) | Verdict::Waits { since, .. } => Some(since),
        Verdict::Paused | Verdict::Never | Verdict::At(_) => None,
    };
    let state = &schedule.state;
    Ok(Scheduled {
        schedule: schedule.name.clone(),
        paused: schedule.paused,
        next: if schedule.paused { None } else { instants(schedule, now, 1)?.first().copied() },
        due,
        good: state.good.as_ref().and_then(|run| run.ended),
        last_is_good: state.last.as_ref().filter(|run| run.ended.is_some()).map(|run| run.backup.is_some()),
    })
}

/// The recovery that is open, and why it cannot be read where it cannot.
fn recovery(session: &Session<'_>) -> Result<(Recovery, Option<String>)> {
    let report = status(session)?;
    let open = report.run.map(|run| Open {
        run: run.id,
        backup: run.backup,
        phase: run.phase.map(|phase| phase.to_string()),
        step: run.step,
        begun: run.begun,
        since: run.since,
        failed: run.failure.is_some(),
        needs_reboot: run.needs_reboot,
    });
    Ok((Recovery { is_open: open.is_some() || report.unreadable.is_some(), open }, report.unreadable))
}

/// The file system that the recovery directory is on, or would be made on. That of another one than is mounted there at every boot says nothing.
fn room(node: &Node, dir: &RecoveryDir) -> Result<Room> {
    recovery_mount::check(node, dir)?;
    let place = dir.path().ancestors().find(|place| place.exists()).unwrap_or(dir.path());
    space(place).map(|(free, size)| Room { size, free })
}
