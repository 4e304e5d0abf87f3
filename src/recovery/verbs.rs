//! What users ask for of a recovery that is open: go on with it, and what it reports. Each verb takes the lock first and looks at the
//! journal then.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::driver::{self, Halt, Until, drive};
use super::journal::{Journal, Reading, this_boot};
use super::machine::{Phase, Stage, State};
use super::platform::table::{self, PlatformReport, Target};
use super::preflight;
use super::run::{KUBELET_UNIT, Run};
use super::status::RunStatus;
use super::undo::{Undo, Units};
use super::{abandon, follow, history};
use crate::backup::store::{self, Found};
use crate::backup::{self, Backup};
use crate::error::{AndNext, FailureKind, Next, busy, by_hand, kind, run, unanswered, unsupported};
use crate::node::clock::ignore_hangup;
use crate::node::dir::{Lock, RecoveryDir};
use crate::node::{Node, hold};
use crate::report::Progress;
use crate::tools::{ostree, systemctl};

/// How often a reboot is asked for that systemd does not agree to, and how long it has to happen all the same.
const REBOOT_ATTEMPTS: u32 = 3;
const REBOOT_PAUSE: Duration = Duration::from_secs(20);

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
    /// The deadline of each wait, when it is another than the run was begun with.
    pub wait: Option<Duration>,
}

/// How one process carries a run on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Go {
    pub wait: Duration,
    pub until: Until,
    pub reboot: bool,
}

/// Goes on with the run that is open, after its last finished step. While another agent is at it, shows its progress until it ends, and
/// ends with its result.
///
/// # Errors
/// [`FailureKind::Busy`] when the node has not rebooted since its files were restored;
/// [`FailureKind::Unsupported`] when it is upgrade-recovery.sh that has begun a recovery; that of the step that failed.
pub fn resume(node: &Node, dir: &RecoveryDir, options: &ResumeOptions, progress: &Progress) -> Result<Option<RunReport>> {
    dir.check()?;
    if !dir.in_recovery() {
        hold::check_run(node, dir)?;
        return match dir.old_recovery() {
            // It was begun by a person, and is left to one.
            Some(old) if options.unit => {
                tracing::info!("{old}: it is left alone");
                Ok(None)
            }
            Some(old) => Err(unsupported(format!("{old}, and this agent cannot go on with it")).and_next(by_hand(
                "`recovery recover` to bring the node back to a backup, in its place, or `recovery abandon` when the node is well as it is",
            ))),
            None => Ok(None),
        };
    }
    let lock = match dir.lock("resume") {
        Ok(lock) => lock,
        Err(error) if kind(&error) == FailureKind::Locked => return follow::follow(node, dir, progress).map(Some),
        Err(error) => return Err(error),
    };
    let boot = this_boot(node)?;
    let Some(mut journal) = Journal::open(&dir.journal(), &boot)? else { return Ok(None) };
    let reading = journal.reading();
    if reading.beginning.asked.step && options.unit {
        return Ok(Some(RunReport::of(reading, Outcome::LeftToAPerson)));
    }
    let asked = reading.beginning.asked;
    // With consent to reboot, the reboot is asked for again: the first time, something may have held it up.
    if let State::Open(open) = &reading.state
        && let (Stage::Reboot, Some(phase)) = (open.stage, open.awaits_reboot())
        && !reading.rebooted_since(phase, &boot)
    {
        let said = not_rebooted(node, reading, phase, &boot);
        if !asked.reboot {
            // Somebody may have prepared a soft reboot since what boots next was checked: the reboot that is asked for here is to be a real
            // one.
            ostree::clear_soft_reboot(node)?;
            return Err(busy(said).and_next(Next::Reboot));
        }
        progress.say(&format!("{said}; the reboot is asked for again"));
    }
    let until = if options.step { Until::Phase } else { Until::End };
    let undo = undo_of(dir, reading)?;
    let wait = options.wait.unwrap_or(asked.deadline());
    let report = carry_on(node, dir, &mut journal, undo, None, Go { wait, until, reboot: asked.reboot }, progress)?;
    drop((journal, lock));
    rebooting(node, report, progress).map(Some)
}

/// That the reboot at the end of a phase is still to come, and what has come instead, when something has.
fn not_rebooted(node: &Node, reading: &Reading, phase: Phase, boot: &str) -> String {
    let said = format!("the node has not rebooted since phase {phase} was done: its boot id is the same");
    if !reading.soft_rebooted_since(phase, boot) {
        return said;
    }
    let runs = ostree::running(node).map_or_else(String::new, |name| format!(" ({name} runs)"));
    format!(
        "{said}. It has gone through a soft reboot, which changes the root alone and goes past the boot loader, so that another deployment than the \
         backup's may run, even one that was dropped{runs}"
    )
}

/// Does what is left of the run, or as much of it as `go` says.
///
/// # Errors
/// That of the step that failed; it is in the journal, and the message names the next command.
pub(super) fn carry_on(
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
        return put_away(node, dir, journal.reading(), undo).map(|outcome| RunReport::of(journal.reading(), outcome));
    }
    let go_on = || {
        hold_again(node, dir, journal.reading(), &mut undo)?;
        let backup = match backup {
            Some(backup) => backup,
            None => backup::choose(node, dir, Some(journal.reading().backup()), progress)?,
        };
        let profile = journal.reading().beginning.profile.profile();
        drive(journal, &mut Run { node, dir, progress, wait: go.wait, profile, backup, undo }, go.until)
    };
    let halt = go_on().map_err(|error| driver::with_next(journal.reading(), &error))?;
    let outcome = match halt {
        Halt::Finished => Outcome::Finished,
        Halt::After(_) => Outcome::PhaseDone,
        Halt::Reboot(_) if go.reboot => Outcome::Rebooting,
        Halt::Reboot(_) => Outcome::RebootNeeded,
    };
    let report = RunReport::of(journal.reading(), outcome);
    if outcome == Outcome::Finished {
        history::settle(dir, journal.reading())?;
    }
    Ok(report)
}

/// Asks for the reboot that a run has come to, once its journal is closed. What systemctl says proves nothing; the next boot does.
///
/// # Errors
/// When systemd does not take it.
pub(super) fn rebooting(node: &Node, report: RunReport, progress: &Progress) -> Result<RunReport> {
    if report.outcome == Outcome::Rebooting {
        ask_for_the_reboot(node, progress)?;
    }
    Ok(report)
}

/// Ends a run that is over, or was given up by an agent that did not come to the end of that.
pub(super) fn put_away(node: &Node, dir: &RecoveryDir, reading: &Reading, undo: Undo) -> Result<Outcome> {
    if reading.state == State::Abandoned {
        return abandon::put_away(node, dir, Some(reading), Some(undo), Units::Leave).map(|_| Outcome::Abandoned);
    }
    history::settle(dir, reading).map(|()| Outcome::Finished)
}

/// From the step that places it to the one that lifts it, the hold is there, whoever took it away meanwhile; and once it has been stopped,
/// kubelet does not run. When somebody has seen to it that it does, what was stopped may run as well: that is noted before it shows no more.
fn hold_again(node: &Node, dir: &RecoveryDir, reading: &Reading, undo: &mut Undo) -> Result<()> {
    if !reading.attempted("hold") || reading.attempted("lift-hold") {
        return Ok(());
    }
    let runs = reading.attempted("stop-kubelet") && !systemctl::show(node, KUBELET_UNIT)?.is_stopped();
    if hold::is_placed(node) && !runs {
        return Ok(());
    }
    tracing::warn!("kubelet was let go in the middle of the recovery; it is held again, and what it may have started is stopped again");
    undo.undone_at = Some(reading.last().sequence);
    undo.place_hold(node, dir)?;
    systemctl::stop(node, KUBELET_UNIT)
}

/// Asks again after a failure, which may be one of the connection alone, or of something that held the reboot up for a moment.
fn ask_for_the_reboot(node: &Node, progress: &Progress) -> Result<()> {
    ostree::clear_soft_reboot(node)?;
    for _ in 0..REBOOT_ATTEMPTS {
        let Some(said) = systemctl::reboot(node)? else { return Ok(()) };
        progress.say(&format!("asked for the reboot; systemctl said: {said}"));
        node.clock().sleep(REBOOT_PAUSE)?;
    }
    Err(unanswered("the reboot was asked for and does not come")
        .and_next(run("systemctl reboot", "asks again; what holds it up is in `systemd-inhibit --list`")))
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
        let by_step = run.by_step;
        let next = match outcome {
            Outcome::Finished | Outcome::Abandoned => None,
            Outcome::RebootNeeded if by_step => Some("`systemctl reboot`, then `recovery resume --step`".to_owned()),
            Outcome::RebootNeeded => Some("`systemctl reboot`, then `recovery resume` (the unit does that by itself)".to_owned()),
            Outcome::Rebooting if by_step => Some("`recovery resume --step` after the reboot".to_owned()),
            Outcome::Rebooting => Some("`recovery resume` after the reboot (the unit does that by itself)".to_owned()),
            Outcome::PhaseDone | Outcome::LeftToAPerson => Some("`recovery resume --step`".to_owned()),
        };
        Self { outcome, seconds: sum(|s| s.seconds), waited: sum(|s| s.waited), run, next }
    }
}

pub(super) fn locked(dir: &RecoveryDir, verb: &str) -> Result<Lock> {
    dir.check()?;
    dir.lock(verb)
}

/// What the run must undo. Without the file, a hold is all that can be known of, and that is on the node to see.
pub(super) fn undo_of(dir: &RecoveryDir, reading: &Reading) -> Result<Undo> {
    if let Some(undo) = Undo::load(dir)? {
        return Ok(undo);
    }
    let mut undo = Undo::of(reading.backup(), reading.beginning.asked);
    undo.runs.push(reading.run().to_owned());
    Ok(undo)
}
