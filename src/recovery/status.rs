//! Where a recovery stands: read from its journal, without the lock.

use anyhow::Result;
use serde::Serialize;

use super::history;
use super::procedure::{Reading, Recovery, State};
use super::report::RunStatus;
use crate::engine::{Procedure, driver};
use crate::error::Next;
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
    /// The command to go on with; nothing while an agent is at work on the run.
    pub next: Option<String>,
}

/// Where the recovery of this directory stands. Nothing is changed, and no lock is needed.
///
/// # Errors
/// When the recovery directory is not root's alone. A journal that cannot be read is reported, not an error.
pub fn status(session: &Session<'_>) -> Result<StatusReport> {
    let Session { node, dir, .. } = *session;
    let hold = hold::is_placed(node);
    let (reading, unreadable) = match Reading::of(&dir.journal()) {
        Ok(reading) => (reading, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let (at_work, old_script) = (dir.holder(), dir.old_stages());
    let run = reading.as_ref().map(RunStatus::of);
    let elsewhere = if hold { hold::other_owner(node, dir) } else { None };
    let next = match (&reading, &unreadable) {
        (Some(_), _) if at_work.is_some() => None,
        (Some(reading), _) => Some(next(reading, node.clock().boot_id().ok().as_deref())),
        (None, Some(_)) => Some("`recovery restart`, or `recovery abandon`".to_owned()),
        (None, None) => match elsewhere {
            Some(owner) => Some(format!("`recovery --dir {owner} status`: kubelet is held by a recovery there")),
            None if dir.undo().exists() || (hold::is_left(node) && !hold) => Some("`recovery abandon` puts back what an ended recovery left behind".to_owned()),
            None if old_script.is_some() => Some(
                "`recovery recover` to bring the node back to a backup, in place of that recovery; `recovery abandon` when the node is well as it is"
                    .to_owned(),
            ),
            None => hold.then(|| {
                let shown = dir.shown().display();
                format!("`findmnt {shown}`: kubelet is held by a recovery that is not there; when that is mounted, `recovery resume`")
            }),
        },
    };
    let last = if dir.in_recovery() { None } else { history::last(dir) };
    Ok(StatusReport { run, unreadable, old_script, at_work, hold, soft_reboot: ostree::soft_reboot_is_prepared(node), last, next })
}

/// The command to go on with, in this boot.
fn next(reading: &Reading, boot: Option<&str>) -> String {
    let awaited = if let State::Open(open) = &reading.state { open.awaits_reboot() } else { None };
    if awaited.is_some_and(|phase| boot.is_some_and(|boot| !reading.rebooted_since(phase, boot))) {
        return "`systemctl reboot`".to_owned();
    }
    let failed = reading.last().failure();
    match failed.and_then(|failed| failed.next).or_else(|| driver::recorded_kind(reading).map(|kind| Recovery::way_on(reading, kind))) {
        // What stopped it says what to do, and going on is not it.
        Some(next) if next != Next::Resume => next.to_string(),
        _ if reading.beginning.asked.step => "`recovery resume --step`".to_owned(),
        _ => "`recovery resume`".to_owned(),
    }
}
