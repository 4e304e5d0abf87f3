//! What users ask for of a recovery that is open: go on with it, and what it reports. Each verb takes the lock first and looks at the
//! journal then.

use std::time::Duration;

use anyhow::Result;

use super::carry_on::{Go, carry_on, rebooting, undo_of};
use super::follow;
use super::platform::table::{self, PlatformReport, Target};
use super::preflight;
use super::procedure::{Journal, Phase, Reading, State, this_boot};
use super::report::{Outcome, RunReport};
use super::status;
use crate::backup::store::{self, Found};
use crate::engine::driver::Until;
use crate::engine::machine::Stage;
use crate::error::{AndNext, FailureKind, Next, busy, kind, unsupported};
use crate::node::{Node, hold};
use crate::session::Session;
use crate::tools::ostree;

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

/// Goes on with the run that is open, after its last finished step. While another agent is at it, shows its progress until it ends, and
/// ends with its result.
///
/// # Errors
/// [`FailureKind::Busy`] when the node has not rebooted since its files were restored;
/// [`FailureKind::Unsupported`] when it is upgrade-recovery.sh that has begun a recovery; that of the step that failed.
pub fn resume(session: &Session<'_>, options: &ResumeOptions) -> Result<Option<RunReport>> {
    let Session { node, dir, progress, .. } = *session;
    if !dir.in_recovery() {
        hold::check_run(node, dir)?;
        return match dir.old_recovery() {
            // It was begun by a person, and is left to one.
            Some(old) if options.unit => {
                tracing::info!("{old}: it is left alone");
                Ok(None)
            }
            Some(old) => {
                Err(unsupported(format!("{old}, and this agent cannot go on with it")).and_next(status::in_place_of_the_old_script()))
            }
            None => Ok(None),
        };
    }
    let locked = match session.lock("resume") {
        Ok(locked) => locked,
        Err(error) if kind(&error) == FailureKind::Locked => return follow::follow(session).map(Some),
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
    let report = carry_on(&locked, &mut journal, undo, None, Go { wait, until, reboot: asked.reboot })?;
    drop(journal);
    rebooting(&locked.unlock(), report).map(Some)
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

/// The platform table for a backup; for the pinned deployment when there is no backup to ask.
///
/// # Errors
/// When the backup that was asked for cannot be had, or ostree does not answer.
pub fn platform_report(session: &Session<'_>, wanted: Option<&str>) -> Result<PlatformReport> {
    let target = match store::find(session, wanted) {
        Ok(Found::Backup(backup)) => preflight::target(&backup.manifest),
        Err(error) if wanted.is_some() => return Err(error),
        Ok(Found::Old(_)) | Err(_) => Target::Pinned,
    };
    table::report(session.node, target)
}
