//! Carries an open run on, and ends one that is over. Who calls this has the lock.

use std::time::Duration;

use anyhow::Result;

use super::procedure::{Journal, Reading, State};
use super::report::{Outcome, RunReport};
use super::run::{KUBELET_UNIT, Run};
use super::undo::{Undo, Units};
use super::{ending, history, step};
use crate::backup::{self, Backup};
use crate::engine::driver::{self, Halt, Until, drive};
use crate::error::{AndNext, run, unanswered};
use crate::node::clock::ignore_hangup;
use crate::node::dir::RecoveryDir;
use crate::node::hold;
use crate::session::{Locked, Session};
use crate::tools::{ostree, systemctl};

/// How often a reboot is asked for that systemd does not agree to, and how long it has to happen all the same.
const REBOOT_ATTEMPTS: u32 = 3;
const REBOOT_PAUSE: Duration = Duration::from_secs(20);

/// How one process carries a run on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Go {
    pub wait: Duration,
    pub until: Until,
    pub reboot: bool,
}

/// Does what is left of the run, or as much of it as `go` says.
///
/// # Errors
/// That of the step that failed; it is in the journal, and the message names the next command.
pub(super) fn carry_on(session: &Locked<'_>, journal: &mut Journal, mut undo: Undo, backup: Option<Backup>, go: Go) -> Result<RunReport> {
    // A connection that drops must not leave the node between two releases, held.
    ignore_hangup()?;
    // A step that was cut short may have left it permissive.
    undo.restore_selinux(session)?;
    if !matches!(journal.reading().state, State::Open(_)) {
        return put_away(session, journal.reading(), undo).map(|outcome| RunReport::of(journal.reading(), outcome));
    }
    let go_on = || {
        hold_again(session, journal.reading(), &mut undo)?;
        let backup = match backup {
            Some(backup) => backup,
            None => backup::choose(session, Some(&journal.reading().subject))?,
        };
        let profile = journal.reading().beginning.profile.profile();
        drive(journal, &mut Run { session: **session, wait: go.wait, profile, backup, undo }, go.until)
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
        history::settle(session.dir, journal.reading())?;
    }
    Ok(report)
}

/// Asks for the reboot that a run has come to, once its journal is closed. What systemctl says proves nothing; the next boot does.
///
/// # Errors
/// When systemd does not take it.
pub(super) fn rebooting(session: &Session<'_>, report: RunReport) -> Result<RunReport> {
    if report.outcome == Outcome::Rebooting {
        ask_for_the_reboot(session)?;
    }
    Ok(report)
}

/// Ends a run that is over, or was given up by an agent that did not come to the end of that.
pub(super) fn put_away(session: &Session<'_>, reading: &Reading, undo: Undo) -> Result<Outcome> {
    if reading.state == State::Abandoned {
        return ending::give_up(session, Some(reading), Some(undo), Units::Leave).map(|_| Outcome::Abandoned);
    }
    history::settle(session.dir, reading).map(|()| Outcome::Finished)
}

/// From the step that places it to the one that lifts it, the hold is there, whoever took it away meanwhile; and once it has been stopped,
/// kubelet does not run. When somebody has seen to it that it does, what was stopped may run as well: that is noted before it shows no more.
fn hold_again(session: &Session<'_>, reading: &Reading, undo: &mut Undo) -> Result<()> {
    let node = session.node;
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

/// What the run must undo. Without the file, a hold is all that can be known of, and that is on the node to see.
pub(super) fn undo_of(dir: &RecoveryDir, reading: &Reading) -> Result<Undo> {
    if let Some(undo) = Undo::load(dir)? {
        return Ok(undo);
    }
    let mut undo = Undo::of(&reading.subject, reading.beginning.asked);
    undo.runs.push(reading.run.clone());
    Ok(undo)
}
