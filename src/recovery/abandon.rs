//! Giving a recovery up.

use anyhow::Result;
use serde_json::Value;

use super::ending::give_up;
use super::history;
use super::procedure::{Event, Journal, State, this_boot};
use super::report::AbandonReport;
use super::undo::{Undo, Units};
use crate::node::hold;
use crate::session::Session;

/// Ends the run: puts back what `undo.json` holds, lifts the hold, moves the journal to `history/`. The files stay as they are; the report
/// says what that is. It needs no readable journal. With `force`, a hold is lifted although its recovery is not in `dir`.
///
/// # Errors
/// [`FailureKind::Locked`](crate::error::FailureKind::Locked) when another agent has the lock; when something cannot be put back: the recovery is
/// then still in progress.
pub fn abandon(session: &Session<'_>, force: bool) -> Result<Option<AbandonReport>> {
    let Session { node, dir, .. } = *session;
    let nothing = || !dir.journal().exists() && !dir.undo().exists() && !hold::is_left(node);
    if nothing() {
        return Ok(None);
    }
    let locked = session.lock("abandon")?;
    // Another agent may have ended it before it let the lock go.
    if nothing() {
        return Ok(None);
    }
    if force { hold::check_owner(node, dir) } else { hold::check_run(node, dir) }?;
    let set_aside = history::set_aside_old(dir)?;
    if let (Some(said), true) = (&set_aside, nothing()) {
        let state = "the node's files are as upgrade-recovery.sh left them; it disables kubelet while it restores: `systemctl is-enabled kubelet.service`. \
                     `recovery recover` makes the node whole";
        return Ok(Some(AbandonReport { run: None, put_back: vec![said.clone()], changed: Vec::new(), state: state.to_owned() }));
    }
    let (undo, reading) = (Undo::load(dir)?, history::readable(dir));
    // First of all: what is put back from here on must not be gone on with.
    if reading.as_ref().is_some_and(|r| matches!(r.state, State::Open(_)))
        && let Some(mut journal) = Journal::open(&dir.journal(), &this_boot(node)?)?
    {
        journal.append(&Event::Abandoned, Value::Null)?;
    }
    let mut report = give_up(&locked, reading.as_ref(), undo, Units::Start)?;
    report.put_back.extend(set_aside);
    Ok(Some(report))
}
