//! Watching another agent at its work: `resume` while the unit is already at it.

use std::time::Duration;

use anyhow::{Context, Result};

use super::history;
use super::procedure::{Reading, State};
use super::report::{Outcome, RunReport};
use crate::engine::{driver, machine::Stage};
use crate::error::{self, AndNext, FailureKind, kind};
use crate::node::dir::RecoveryDir;
use crate::session::Session;

const PAUSE: Duration = Duration::from_millis(500);

/// Shows what happens to the open run until its agent ends, and ends as that did.
///
/// # Errors
/// The failure that the other agent met; [`FailureKind::Interrupted`] when it was interrupted, or this one is.
pub(super) fn follow(session: &Session<'_>) -> Result<RunReport> {
    let Session { node, dir, progress, .. } = *session;
    progress.say("another agent is at work on this recovery; showing its progress until it ends");
    let (mut last, mut shown) = (Reading::in_progress(dir)?, None);
    loop {
        let held = match dir.lock("resume") {
            Ok(free) => {
                drop(free);
                None
            }
            Err(error) if kind(&error) == FailureKind::Locked => Some(error),
            Err(error) => return Err(error),
        };
        if let Some(reading) = Reading::in_progress(dir)? {
            last = Some(reading);
        }
        if let Some(reading) = &last
            && shown.as_ref() != Some(&reading.state)
        {
            progress.say(&reading.state.to_string());
            shown = Some(reading.state.clone());
        }
        let Some(held) = held else { break };
        // Without a journal there is nothing to show: it is some other verb that holds the lock.
        if last.is_none() {
            return Err(held);
        }
        node.clock().sleep(PAUSE)?;
    }
    result(dir, last.as_ref(), &node.clock().boot_id()?)
}

/// What the other agent left: the journal's last line, or the report of the finished run.
fn result(dir: &RecoveryDir, last: Option<&Reading>, boot: &str) -> Result<RunReport> {
    let last = last.context("the journal is gone")?;
    if !dir.in_recovery() {
        // A report of an abandoned run is not one of how far it came.
        return if last.state == State::Abandoned {
            Ok(RunReport::of(last, Outcome::Abandoned))
        } else {
            history::report_of(dir, &last.run)
        };
    }
    let State::Open(open) = &last.state else {
        let outcome = if last.state == State::Abandoned { Outcome::Abandoned } else { Outcome::Finished };
        return Ok(RunReport::of(last, outcome));
    };
    let rebooted = open.awaits_reboot().is_some_and(|phase| last.rebooted_since(phase, boot));
    match open.stage {
        Stage::Failed(_) => Err(driver::recorded_failure(last).context("the failed step is not in the journal")?),
        Stage::Reboot if !rebooted => Ok(RunReport::of(last, Outcome::RebootNeeded)),
        Stage::Before if last.beginning.asked.step => Ok(RunReport::of(last, Outcome::PhaseDone)),
        _ => Err(error::interrupted(format!("the other agent ended, and did not go on from {}", last.state))
            .and_next(error::run("recovery resume", ""))),
    }
}
