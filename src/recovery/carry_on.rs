//! Going on with a recovery that is open: the verb `resume`, and what it shares with the verbs that begin one. Whoever goes on with a run has
//! the lock, and looks at the journal after that.

use std::time::Duration;

use anyhow::Result;

use super::procedure::{Journal, Phase, Reading, Recovery, State, this_boot};
use super::report::{Outcome, RunReport};
use super::run::{KUBELET_UNIT, Run};
use super::undo::{Undo, Units};
use super::{abandon, follow, history, status, step};
use crate::agent::install;
use crate::backup::{self, Backup, store};
use crate::engine::Procedure as _;
use crate::engine::driver::{self, Halt, Until, drive};
use crate::engine::machine::{Phase as _, Stage};
use crate::error::{AndNext, FailureKind, Next, busy, damaged, kind, run, unanswered, unsupported};
use crate::node::clock::ignore_hangup;
use crate::node::{Node, hold};
use crate::report::event::{self, About, tell};
use crate::session::{Locked, Session};
use crate::tools::{ostree, systemctl};

/// How often a reboot is asked for that systemd does not agree to, and how long it has to happen all the same.
const REBOOT_ATTEMPTS: u32 = 3;
const REBOOT_PAUSE: Duration = Duration::from_secs(20);

/// What `resume` is asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResumeOptions {
    /// Do one phase, then stop.
    pub step: bool,
    /// It is the systemd unit that asks: a run that goes one phase at a time is left alone.
    pub unit: bool,
    /// The deadline of each wait, when it is another than the run was begun with.
    pub wait: Option<Duration>,
    /// For how long the cluster has to stay as the backup recorded it, when it is for another time than the run was begun with.
    pub hold: Option<Duration>,
}

/// Goes on with the run that is open, after its last finished step. While another agent is at it, shows its progress until it ends, and
/// ends with its result.
///
/// # Errors
/// [`FailureKind::Busy`] when the node has not rebooted since its files were restored; [`FailureKind::Damaged`] when its journal cannot be read, or is gone;
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
            // The hold is lifted before its journal is put away.
            None if hold::is_placed(node) => {
                let journal = dir.shown_journal();
                Err(damaged(format!("the journal {} is missing, and kubelet is held by the recovery that wrote it", journal.display()))
                    .and_next(Recovery::past_the_journal()))
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
    // Where the agent may reboot the node, it asks for the reboot again: the first time, something may have held it up.
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
    tell(&event::RECOVERY_RESUMED, about(&reading.run, &reading.subject), &format!("recovery {} goes on: {}", reading.run, reading.state));
    let undo = Undo::of_run(dir, reading)?;
    let (wait, hold) = (options.wait.unwrap_or(asked.deadline()), options.hold.unwrap_or(asked.hold()));
    let report = carry_on(&locked, &mut journal, undo, None, Go { wait, hold, until, reboot: asked.reboot })?;
    drop(journal);
    reboot_if_due(&locked.unlock(), report).map(Some)
}

/// What an entry of journald about a run has.
pub(super) fn about<'a>(run: &'a str, backup: &'a str) -> About<'a> {
    About { run: Some(run), backup: Some(backup), ..About::default() }
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

/// How one process carries a run on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Go {
    /// The deadline of each wait.
    pub wait: Duration,
    /// For how long the cluster has to stay as the backup recorded it.
    pub hold: Duration,
    /// How far.
    pub until: Until,
    /// Whether it may reboot the node.
    pub reboot: bool,
}

/// Does what is left of the run, or as much of it as `go` says.
///
/// # Errors
/// That of the step that failed; it is in the journal, and the message names the next command.
pub(super) fn carry_on(session: &Locked<'_>, journal: &mut Journal, mut undo: Undo, backup: Option<Backup>, go: Go) -> Result<RunReport> {
    // An SSH connection that drops must not leave the node held, between two releases.
    ignore_hangup()?;
    // A step that was cut short may have left SELinux permissive.
    undo.leave_mode_of_next_boot(session, journal.reading(), journal.boot())?;
    undo.restore_selinux(session)?;
    if !matches!(journal.reading().state, State::Open(_)) {
        return clear_away(session, journal.reading(), undo).map(|outcome| RunReport::of(journal.reading(), outcome));
    }
    // The agent that lies here goes on after the reboot: it has to know the lines that are written from now on.
    if journal.reading().attempted(step::HOLD)
        && let Err(error) = install::install(session.node, session.dir)
    {
        tracing::warn!("this agent could not be put in the recovery directory, where the unit looks for it: {error:#}");
    }
    let go_on = || {
        hold_again(session, journal.reading(), &mut undo)?;
        let backup = match backup {
            Some(backup) => backup,
            None => backup::choose(session, &store::survey(session.dir)?, Some(&journal.reading().subject))?,
        };
        let profile = journal.reading().beginning.profile.profile();
        drive(journal, &mut Run { session, wait: go.wait, hold: go.hold, profile, backup, objects: None, undo }, go.until)
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
        history::keep_finished(session, journal.reading())?;
    }
    Ok(report)
}

/// Asks for the reboot that a run has come to, once its journal is closed. What systemctl says proves nothing; the next boot does.
///
/// # Errors
/// When systemd does not take it.
pub(super) fn reboot_if_due(session: &Session<'_>, report: RunReport) -> Result<RunReport> {
    let run = &report.run;
    let (phase, next) = (run.phase.map(Phase::name), report.next.as_ref().map(ToString::to_string));
    let about = About { phase, next: next.as_deref(), ..about(&run.id, &run.backup) };
    match report.outcome {
        Outcome::Rebooting => {
            tell(&event::REBOOT_ASKED, about, &format!("recovery {} asks for the reboot of this node", run.id));
            ask_for_the_reboot(session)?;
        }
        Outcome::RebootNeeded => tell(&event::REBOOT_NEEDED, about, &format!("recovery {} waits for a reboot of this node", run.id)),
        _ => {}
    }
    Ok(report)
}

/// Clears away a run that is over although its journal is still in place: the agent that finished or abandoned it was cut short.
pub(super) fn clear_away(session: &Locked<'_>, reading: &Reading, undo: Undo) -> Result<Outcome> {
    if reading.state == State::Abandoned {
        return abandon::end_abandoned(session, Some(reading), Some(undo), Units::Leave).map(|_| Outcome::Abandoned);
    }
    history::keep_finished(session, reading).map(|()| Outcome::Finished)
}

/// Places the hold again and stops kubelet, when somebody took the hold away or started kubelet between the steps that place and lift the hold. What
/// the recovery had stopped may have been started with it: that is noted first, so that those steps are done again. The images are kept again until the
/// recovery is over.
fn hold_again(session: &Locked<'_>, reading: &Reading, undo: &mut Undo) -> Result<()> {
    let node = session.node;
    if reading.attempted(step::HOLD) && !node.exists(hold::KEEP_IMAGES) {
        tracing::warn!("{} was removed in the middle of the recovery; it is placed again", hold::KEEP_IMAGES);
        hold::keep_images(node, &reading.run)?;
    }
    if !reading.attempted(step::HOLD) || reading.attempted(step::LIFT_HOLD) {
        return Ok(());
    }
    let runs = reading.attempted(step::STOP_KUBELET) && !systemctl::show(node, KUBELET_UNIT)?.is_stopped();
    if hold::is_placed(node) && !runs {
        return Ok(());
    }
    tracing::warn!("kubelet was let go in the middle of the recovery; it is held again, and what it may have started is stopped again");
    undo.undone_at = Some(reading.last().sequence);
    undo.place_hold(session)?;
    systemctl::stop(node, KUBELET_UNIT)
}

/// Asks again after a failure, which may be one of the connection alone, or of something that held the reboot up for a moment.
fn ask_for_the_reboot(session: &Session<'_>) -> Result<()> {
    let Session { node, progress, .. } = *session;
    ostree::clear_soft_reboot(node)?;
    for _ in 0..REBOOT_ATTEMPTS {
        let Some(said) = systemctl::reboot(node)? else { return Ok(()) };
        progress.say(&format!("asked for the reboot; systemctl said: {said}"));
        node.clock().sleep(REBOOT_PAUSE)?;
    }
    Err(unanswered("the reboot was asked for and does not come")
        .and_next(run("systemctl reboot", "asks again; what holds it up is in `systemd-inhibit --list`")))
}
