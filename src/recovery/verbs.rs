//! What users ask for: begin a recovery, go on with it, begin it again, give it up.
//!
//! Each takes the lock first and looks at the journal then. [`plan`] and [`plan_restart`] keep the lock while a person reads the plan.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::driver::{Halt, Until, drive};
use super::journal::{Beginning, Journal, Reading};
use super::machine::{Open, Phase, Stage, State};
use super::platform::table::{self, PlatformReport, Target};
use super::preflight::{self, First, Options, PlanReport};
use super::run::Run;
use super::status::RunStatus;
use super::undo::{Undo, Units};
use super::{Wait, follow, history};
use crate::backup::store::{self, Found};
use crate::backup::{self, Backup};
use crate::error::{exit_code, misfit, not_now, unanswered, usage};
use crate::node::clock::ignore_hangup;
use crate::node::dir::{Lock, RecoveryDir};
use crate::node::{Node, hold};
use crate::report::Progress;
use crate::tools::systemctl;

/// How often a reboot is asked for that systemd does not agree to, and how long it has to happen all the same.
const REBOOT_ATTEMPTS: u32 = 3;
const REBOOT_PAUSE: Duration = Duration::from_secs(20);

/// A recovery that has been looked into and waits for consent. It holds the lock.
#[derive(Debug)]
pub struct Proposal<'a> {
    node: &'a Node,
    dir: &'a RecoveryDir,
    progress: &'a Progress,
    options: Options,
    backup: Backup,
    origin: Origin,
    /// What it found and would do.
    pub report: PlanReport,
    lock: Lock,
}

#[derive(Debug)]
enum Origin {
    New,
    Restart { old: Option<String> },
    Continue,
}

/// How far a recovery came in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is finished.
    Finished,
    /// It was given up before.
    Abandoned,
    /// The node has to be rebooted by whoever runs it.
    RebootNeeded,
    /// The node is going down for its reboot.
    Rebooting,
    /// One phase was asked for, and is done.
    PhaseDone,
    /// The run goes on one phase at a time, when a person says so: the unit leaves it alone.
    LeftToAPerson,
}

/// The report of a recovery: what was done so far, step by step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunReport {
    /// How far it came.
    pub outcome: Outcome,
    /// The run.
    pub run: RunStatus,
    /// How long its steps took, seconds, waiting included; the time between them (reboots) is not in it.
    pub seconds: f64,
    /// Of those, how long it waited for others.
    pub waited: f64,
    /// The command to go on with, unless it is finished.
    pub next: Option<String>,
}

/// What `resume` is asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResumeOptions {
    /// Do one phase, then stop.
    pub step: bool,
    /// It is the systemd unit that asks: a run that goes one phase at a time is left alone.
    pub unit: bool,
    /// The deadline of each wait.
    pub wait: Wait,
}

/// Looks into a recovery and says what it would do. Nothing is changed. A run that is open in its first phase is gone on with.
///
/// # Errors
/// [`Failure::NotNow`](crate::error::Failure::NotNow) when another agent has the lock, or a run is open beyond its first phase; those of
/// the [`preflight`].
pub fn plan<'a>(node: &'a Node, dir: &'a RecoveryDir, mut options: Options, progress: &'a Progress) -> Result<Proposal<'a>> {
    let lock = locked(dir, "restore-files")?;
    let boot = node.clock().boot_id()?;
    if let Some(reading) = Reading::of(&dir.journal())?
        && let State::Open(open) = &reading.state
    {
        let way = match way_of(open, &reading, &boot) {
            // The steps go by what the run was asked.
            Way::On if options.asked.force && !reading.beginning.asked.force => Way::Anew,
            way => way,
        };
        let wanted = options.backup.as_deref().map(|wanted| backup::choose(node, dir, Some(wanted), progress)).transpose()?;
        let same = wanted.is_none_or(|wanted| wanted.id == reading.backup());
        if way == Way::Elsewhere || !same {
            return Err(not_now(format!(
                "a recovery from backup {} is in progress ({}); next: `recovery resume` to go on, `recovery restart` to begin again, `recovery abandon` \
                     to end it",
                reading.backup(),
                reading.state.describe()
            )));
        }
        options.asked.force |= reading.beginning.asked.force;
        let backup = backup::choose(node, dir, Some(reading.backup()), progress)?;
        let mut report = preflight::look(node, dir, &backup, &options, First::Restart, progress)?;
        report.continues = Some(reading.run().to_owned());
        let origin = if way == Way::Anew { Origin::Restart { old: report.continues.clone() } } else { Origin::Continue };
        return Ok(Proposal { node, dir, progress, options, backup, origin, report, lock });
    }
    let backup = backup::choose(node, dir, options.backup.as_deref(), progress)?;
    let report = preflight::look(node, dir, &backup, &options, First::Run, progress)?;
    Ok(Proposal { node, dir, progress, options, backup, origin: Origin::New, report, lock })
}

/// How a verb that begins a recovery goes on with one that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// No file is restored yet: a new run takes its place, with the phases and choices of now.
    Anew,
    /// It is restoring files: it goes on.
    On,
    /// It is beyond that.
    Elsewhere,
}

fn way_of(open: &Open, reading: &Reading, boot: &str) -> Way {
    match open.planned().map(|p| p.phase) {
        Some(Phase::Platform) => Way::Anew,
        Some(Phase::RestoreFiles) if open.stage == Stage::Before => Way::Anew,
        Some(Phase::RestoreFiles) => {
            let rebooted = open.stage == Stage::Reboot && reading.rebooted_since(Phase::RestoreFiles, boot);
            if rebooted { Way::Elsewhere } else { Way::On }
        }
        _ => Way::Elsewhere,
    }
}

/// Looks into beginning the open run again from its first phase. It needs no readable journal.
///
/// # Errors
/// [`Failure::Usage`](crate::error::Failure::Usage) when there is nothing to restart, or nothing says from which backup; as [`plan`].
pub fn plan_restart<'a>(node: &'a Node, dir: &'a RecoveryDir, mut options: Options, progress: &'a Progress) -> Result<Proposal<'a>> {
    let lock = locked(dir, "restart")?;
    let (undo, reading) = (Undo::load(dir)?, history::readable(dir)?);
    if undo.is_none() && !dir.in_recovery() {
        return Err(usage("no recovery is in progress here; next: `recovery restore-files` begins one"));
    }
    let known = reading.as_ref().map(|r| (r.backup().to_owned(), r.beginning.asked)).or(undo.as_ref().map(|u| (u.backup.clone(), u.asked)));
    let known_backup = known.as_ref().map(|(backup, _)| backup.clone());
    if let Some((backup, asked)) = known {
        options.backup.get_or_insert(backup);
        options.asked = super::Asked { force: options.asked.force || asked.force, step: options.asked.step || asked.step, ..asked };
    }
    let wanted = options.backup.as_deref().ok_or_else(|| {
        usage("neither the journal nor undo.json says which backup was being restored; next: `recovery restart --backup ID` (`recovery list`)")
    })?;
    let backup = backup::choose(node, dir, Some(wanted), progress)?;
    // The run before may have taken away what the identity is read from; it was checked for the backup of that run, and its likes.
    let checked = known_backup.and_then(|id| backup::choose(node, dir, Some(&id), progress).ok());
    let first = if checked.is_some_and(|one| one.manifest.identity == backup.manifest.identity) { First::Restart } else { First::Run };
    let report = preflight::look(node, dir, &backup, &options, first, progress)?;
    let old = reading.map(|r| r.run().to_owned()).or(undo.and_then(|u| u.runs.last().cloned()));
    Ok(Proposal { node, dir, progress, options, backup, origin: Origin::Restart { old }, report, lock })
}

impl Proposal<'_> {
    /// Carries the plan out: from here on, a recovery is in progress, until it is finished or abandoned.
    ///
    /// # Errors
    /// That of the step that failed; it is in the journal, and the message names the next command.
    pub fn begin(self) -> Result<RunReport> {
        let (node, dir) = (self.node, self.dir);
        let boot = node.clock().boot_id()?;
        let (mut journal, undo) = match self.origin {
            Origin::Continue => {
                let journal = Journal::open(&dir.journal(), &boot)?.context("the journal is gone")?;
                let undo = undo_of(dir, journal.reading())?;
                (journal, undo)
            }
            Origin::New => {
                if let Some(over) = Reading::of(&dir.journal())? {
                    history::settle(dir, &over)?;
                }
                open(dir, &self.backup, &self.report, &self.options, &boot, None)?
            }
            Origin::Restart { old } => {
                history::file_away(dir, old.as_deref())?;
                open(dir, &self.backup, &self.report, &self.options, &boot, old)?
            }
        };
        let asked = journal.reading().beginning.asked;
        let go = Go {
            wait: self.options.wait,
            until: if self.options.asked.step || asked.step { Until::Phase } else { Until::End },
            reboot: self.options.asked.reboot || asked.reboot,
        };
        let result = carry_on(node, dir, &mut journal, undo, Some(self.backup), go, self.progress);
        drop(self.lock);
        result
    }
}

/// How one process carries a run on.
#[derive(Debug, Clone, Copy)]
struct Go {
    wait: Wait,
    until: Until,
    reboot: bool,
}

/// Writes down that a run has begun: first what it must undo, then the journal.
fn open(
    dir: &RecoveryDir,
    backup: &Backup,
    report: &PlanReport,
    options: &Options,
    boot: &str,
    restarts: Option<String>,
) -> Result<(Journal, Undo)> {
    let id = Uuid::new_v4().to_string();
    // What runs before it changed, and did not put back, is still to be put back.
    let mut undo = Undo::load(dir)?.unwrap_or_else(|| Undo::of(&backup.id, options.asked));
    undo.runs.extend(restarts.clone().filter(|old| !undo.runs.contains(old)));
    undo.runs.push(id.clone());
    (undo.backup, undo.asked) = (backup.id.clone(), options.asked);
    undo.save(dir)?;
    let beginning = Beginning {
        profile: backup.manifest.profile,
        target: backup.manifest.deployment.clone(),
        asked: options.asked,
        restarts,
        warnings: report.warnings.clone(),
        phases: report.phases.clone(),
    };
    Ok((Journal::begin(&dir.journal(), &id, &backup.id, boot, &beginning)?, undo))
}

/// Goes on with the run that is open, after its last finished step. While another agent is at it, shows its progress until it ends, and
/// ends with its result.
///
/// # Errors
/// [`Failure::NotNow`](crate::error::Failure::NotNow) when the node has not rebooted since its files were restored; that of the step that
/// failed.
pub fn resume(node: &Node, dir: &RecoveryDir, options: &ResumeOptions, progress: &Progress) -> Result<Option<RunReport>> {
    dir.check()?;
    if !dir.in_recovery() {
        return Ok(None);
    }
    let lock = match dir.lock("resume") {
        Ok(lock) => lock,
        Err(error) if exit_code(&error) == 75 => return follow::follow(node, dir, progress).map(Some),
        Err(error) => return Err(error),
    };
    let boot = node.clock().boot_id()?;
    let Some(mut journal) = Journal::open(&dir.journal(), &boot)? else { return Ok(None) };
    let reading = journal.reading();
    if reading.beginning.asked.step && options.unit {
        return Ok(Some(RunReport::of(reading, Outcome::LeftToAPerson)));
    }
    let asked = reading.beginning.asked;
    // With consent to reboot, the reboot is asked for again: the first time, something may have held it up.
    if let State::Open(open) = &reading.state
        && let (Stage::Reboot, Some(phase), false) = (open.stage, open.awaits_reboot(), asked.reboot)
        && !reading.rebooted_since(phase, &boot)
    {
        return Err(not_now(format!(
            "the node has not rebooted since phase {phase} was done; next: `systemctl reboot`, then `recovery resume`"
        )));
    }
    let until = if options.step { Until::Phase } else { Until::End };
    let undo = undo_of(dir, reading)?;
    let report = carry_on(node, dir, &mut journal, undo, None, Go { wait: options.wait, until, reboot: asked.reboot }, progress)?;
    drop(lock);
    Ok(Some(report))
}

fn carry_on(
    node: &Node,
    dir: &RecoveryDir,
    journal: &mut Journal,
    mut undo: Undo,
    backup: Option<Backup>,
    go: Go,
    progress: &Progress,
) -> Result<RunReport> {
    // A connection that drops must not leave the node between two releases, held.
    ignore_hangup()?;
    // A step that was cut short may have left it permissive.
    undo.restore_selinux(node, dir)?;
    if !matches!(journal.reading().state, State::Open(_)) {
        if journal.reading().state == State::Abandoned {
            undo.put_back(node, dir, Units::Leave)?;
        }
        return history::settle(dir, journal.reading()).map(|outcome| RunReport::of(journal.reading(), outcome));
    }
    hold_again(node, dir, journal.reading(), &undo)?;
    let backup = match backup {
        Some(backup) => backup,
        None => backup::choose(node, dir, Some(journal.reading().backup()), progress)?,
    };
    let profile = journal.reading().beginning.profile.profile();
    let mut run = Run { node, dir, progress, wait: go.wait.0, profile, backup, undo };
    let halt = drive(journal, &mut run, go.until)?;
    let outcome = match halt {
        Halt::Finished => Outcome::Finished,
        Halt::After(_) => Outcome::PhaseDone,
        Halt::Reboot(_) if go.reboot => Outcome::Rebooting,
        Halt::Reboot(_) => Outcome::RebootNeeded,
    };
    let report = RunReport::of(journal.reading(), outcome);
    match outcome {
        Outcome::Finished => drop(history::settle(dir, journal.reading())?),
        // Every line of the journal is synced by now. What systemctl says proves nothing; the next boot does.
        Outcome::Rebooting => ask_for_the_reboot(node, progress)?,
        _ => {}
    }
    Ok(report)
}

/// From the step that places it to the one that lifts it, the hold is there, whoever took it away meanwhile.
fn hold_again(node: &Node, dir: &RecoveryDir, reading: &Reading, undo: &Undo) -> Result<()> {
    if reading.attempted("hold") && !reading.attempted("lift-hold") && !hold::is_placed(node) {
        tracing::warn!("the hold on kubelet was taken away in the middle of the recovery; it is placed again");
        undo.place_hold(node, dir)?;
    }
    Ok(())
}

/// Asks again after a failure, which may be one of the connection alone, or of something that held the reboot up for a moment.
fn ask_for_the_reboot(node: &Node, progress: &Progress) -> Result<()> {
    for _ in 0..REBOOT_ATTEMPTS {
        let Some(said) = systemctl::reboot(node)? else { return Ok(()) };
        progress.say(&format!("asked for the reboot; systemctl said: {said}"));
        node.clock().sleep(REBOOT_PAUSE)?;
    }
    Err(unanswered("the reboot was asked for and does not come; next: `systemctl reboot`; what holds it up is in `systemd-inhibit --list`"))
}

/// The platform table for a backup; for the pinned deployment when there is no backup to ask.
///
/// # Errors
/// When the backup that was asked for cannot be had, or ostree does not answer.
pub fn platform_report(node: &Node, dir: &RecoveryDir, wanted: Option<&str>, progress: &Progress) -> Result<PlatformReport> {
    let target = match store::find(dir, wanted, progress) {
        Ok(Found::Backup(backup)) => preflight::target(&backup.manifest),
        Err(error) if wanted.is_some() => return Err(error),
        Ok(Found::Old(_)) | Err(_) => Target::Pinned,
    };
    table::report(node, target)
}

impl RunReport {
    pub(super) fn of(reading: &Reading, outcome: Outcome) -> Self {
        let run = RunStatus::of(reading);
        let sum = |of: fn(&super::status::StepStatus) -> Option<f64>| {
            run.phases.iter().flat_map(|p| &p.steps).filter_map(of).fold(0.0, std::ops::Add::add)
        };
        let next = match outcome {
            Outcome::Finished | Outcome::Abandoned => None,
            Outcome::RebootNeeded => Some("`systemctl reboot`, then `recovery resume` (the unit does that by itself)".to_owned()),
            Outcome::Rebooting => Some("`recovery resume` after the reboot (the unit does that by itself)".to_owned()),
            Outcome::PhaseDone | Outcome::LeftToAPerson => Some("`recovery resume --step`".to_owned()),
        };
        Self { outcome, seconds: sum(|s| s.seconds), waited: sum(|s| s.waited), run, next }
    }
}

pub(super) fn locked(dir: &RecoveryDir, verb: &str) -> Result<Lock> {
    dir.check()?;
    if !dir.path().is_dir() {
        return Err(misfit(format!(
            "there is no recovery directory {} on this node: nothing was ever backed up to it",
            dir.shown().display()
        )));
    }
    dir.lock(verb)
}

/// What the run must undo. Without the file, a hold is all that can be known of, and that is on the node to see.
fn undo_of(dir: &RecoveryDir, reading: &Reading) -> Result<Undo> {
    if let Some(undo) = Undo::load(dir)? {
        return Ok(undo);
    }
    let mut undo = Undo::of(reading.backup(), reading.beginning.asked);
    undo.runs.push(reading.run().to_owned());
    Ok(undo)
}
