//! Where a recovery stands: read from its journal, without the lock.

use anyhow::Result;
use serde::Serialize;

use super::history;
use super::procedure::{Reading, Recovery, State};
use super::report::{RunStatus, resume_command, words_of};
use crate::engine::Procedure;
use crate::error::{Next, by_hand, run, said};
use crate::node::hold;
use crate::session::Session;
use crate::tools::ostree;

/// Where a recovery stands.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// The run in progress.
    pub run: Option<RunStatus>,
    /// The journal is there but cannot be read: why.
    pub unreadable: Option<String>,
    /// The stages that upgrade-recovery.sh noted of a recovery that it has begun and not ended: none of this agent's, and nothing that it goes on with.
    pub old_script: Option<Vec<String>>,
    /// The agent that is at work on this recovery directory: its verb, process, and since when.
    pub at_work: Option<String>,
    /// kubelet is held.
    pub hold: bool,
    /// A soft reboot is prepared: a plain `systemctl reboot` goes into it, past the boot loader. A recovery takes that back.
    pub soft_reboot: bool,
    /// The run that ended last, while none is in progress.
    pub last: Option<RunStatus>,
    /// How to go on; nothing while an agent is at work on the run.
    #[serde(serialize_with = "words_of")]
    pub next: Option<Next>,
}

/// Where the recovery of this directory stands. Nothing is changed, and no lock is needed.
///
/// # Errors
/// When the recovery directory is not root's alone. A journal that cannot be read is reported, not an error.
pub fn status(session: &Session<'_>) -> Result<StatusReport> {
    let Session { node, dir, .. } = *session;
    let hold = hold::is_placed(node);
    let (reading, unreadable) = match Reading::in_progress(dir) {
        Ok(reading) => (reading, None),
        Err(error) => (None, Some(said(&error))),
    };
    let (at_work, old_script) = (dir.holder(), dir.old_stages());
    let elsewhere = if hold { hold::other_owner(node, dir) } else { None };
    let next = match (&reading, &unreadable) {
        (Some(_), _) if at_work.is_some() => None,
        (Some(reading), _) => Some(next(reading, node.clock().boot_id().ok().as_deref())),
        (None, Some(_)) => Some(Recovery::past_the_journal()),
        (None, None) => match elsewhere {
            Some(owner) => Some(run(format!("recovery --dir {owner} status"), "shows the recovery there, which holds kubelet")),
            None if dir.undo().exists() || (hold::is_left(node) && !hold) => {
                Some(run("recovery abandon", "puts back what an ended recovery left behind"))
            }
            None if old_script.is_some() => Some(in_place_of_the_old_script()),
            None => hold.then(|| {
                let why = "shows whether the recovery directory is mounted: the recovery that holds kubelet is not in it; with it there, \
                           `recovery resume`";
                run(format!("findmnt {}", dir.shown().display()), why)
            }),
        },
    };
    let last = if dir.in_recovery() { None } else { history::last(dir) };
    let run = reading.as_ref().map(RunStatus::of);
    Ok(StatusReport { run, unreadable, old_script, at_work, hold, soft_reboot: ostree::soft_reboot_is_prepared(node), last, next })
}

/// What to do about a recovery of upgrade-recovery.sh that is not over.
pub(super) fn in_place_of_the_old_script() -> Next {
    run("recovery recover", "to bring the node back to a backup, in its place, or `recovery abandon` when the node is well as it is")
}

/// How to go on with an open run in this boot.
fn next(reading: &Reading, boot: Option<&str>) -> Next {
    let awaited = if let State::Open(open) = &reading.state { open.awaits_reboot() } else { None };
    if awaited.is_some_and(|phase| boot.is_some_and(|boot| !reading.rebooted_since(phase, boot))) {
        return run("systemctl reboot", "");
    }
    match reading.last().failure().map(|failure| failure.next.unwrap_or_else(|| Recovery::way_on(reading, failure.kind))) {
        // What stopped it says what to do first.
        Some(Next::Again { when }) => by_hand(format!("{when}, then `{}`", resume_command(reading))),
        Some(Next::Run { command, why }) if !command.starts_with("recovery ") => {
            by_hand(format!("{}, then `{}`", run(command, why), resume_command(reading)))
        }
        Some(next) if next != Next::Resume => next,
        _ => run(resume_command(reading), ""),
    }
}
