//! Ending a recovery where it is: the verb `abandon`. What the run changed and must undo is put back, what it left is named.

use anyhow::Result;
use serde_json::Value;

use super::procedure::{Event, Journal, Phase, Reading, State, this_boot};
use super::report::{AbandonReport, Changed, RunStatus, StepState};
use super::resume::EXPORTED;
use super::undo::{Undo, Units};
use super::{history, steps};
use crate::archive;
use crate::backup::parts::{Holds, Part};
use crate::etcd;
use crate::node::profile::Profile;
use crate::node::{Node, durable, hold};
use crate::report::event::{self, About, tell};
use crate::session::{Locked, Session};
use crate::tools::ostree;

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
    let set_aside = history::set_aside_old(&locked)?;
    if let (Some(said), true) = (&set_aside, nothing()) {
        let state = "the node's files are as upgrade-recovery.sh left them; it disables kubelet while it restores: `systemctl is-enabled \
                     kubelet.service`. `recovery recover` makes the node whole";
        return Ok(Some(AbandonReport { run: None, put_back: vec![said.clone()], changed: Vec::new(), state: state.to_owned() }));
    }
    let (mut undo, reading) = (Undo::load(dir)?, history::readable(dir));
    if let (Some(undo), Some(reading)) = (&mut undo, &reading) {
        undo.leave_mode_of_next_boot(&locked, reading, &this_boot(node)?)?;
    }
    // First of all: what is put back from here on must not be gone on with.
    if reading.as_ref().is_some_and(|r| matches!(r.state, State::Open(_)))
        && let Some(mut journal) = Journal::open(&dir.journal(), &this_boot(node)?)?
    {
        journal.append(&Event::Abandoned, Value::Null)?;
    }
    let mut report = end_abandoned(&locked, reading.as_ref(), undo, Units::Start)?;
    report.put_back.extend(set_aside);
    Ok(Some(report))
}

/// What follows once the journal says that the run is abandoned: puts back what `undo.json` holds, removes what a restore left unfinished, reports, and files the run away. Done again
/// after a crash, it ends the same. `units`: what becomes of those that were stopped where nothing else was changed.
///
/// # Errors
/// When something cannot be put back, removed or written.
pub(super) fn end_abandoned(session: &Locked<'_>, reading: Option<&Reading>, undo: Option<Undo>, units: Units) -> Result<AbandonReport> {
    let Session { node, dir, .. } = **session;
    let changed = reading.map(changed).unwrap_or_default();
    let untouched = match (reading, &undo) {
        (Some(reading), _) => changed.is_empty() && reading.beginning.restarts.is_none() && !reading.beginning.inherits,
        // What is to be put back is noted before the journal is begun: nothing noted, nothing done.
        (None, Some(undo)) => !dir.in_recovery() && !hold::is_placed(node) && undo.units.is_empty(),
        (None, None) => false,
    };
    let runs = undo.as_ref().map(|undo| undo.runs.clone()).unwrap_or_default();
    let mut put_back = match undo {
        Some(mut undo) => undo.put_back(session, if untouched { units } else { Units::Leave })?,
        // Images first: what is done again after a crash finds the hold that says so.
        None if hold::is_left(node) => {
            let mut said = Vec::new();
            if hold::release_images(node)? {
                said.push("the hold on CRI-O's images is lifted".to_owned());
            }
            if hold::is_placed(node) {
                hold::lift(node)?;
                said.push("the hold on kubelet is lifted".to_owned());
            }
            said
        }
        None => Vec::new(),
    };
    put_back.extend(swept(session)?);
    put_back.extend(kept_etcd(node, reading, &runs));
    put_back.extend(next_boot(node).filter(|_| changed.iter().any(|step| step.phase == Phase::Platform)));
    let old = reading.map(|r| r.run.clone()).or(runs.last().cloned());
    let state = state_of(reading, untouched, &changed);
    let report = AbandonReport { run: reading.map(RunStatus::of), put_back, changed, state };
    history::keep(session, old.as_deref(), &report.clone().into())?;
    let run = old.as_deref().unwrap_or("unknown");
    let next = if untouched {
        "nothing: the node is as it was"
    } else {
        "`recovery recover` makes the node whole; `recovery status` shows the rest"
    };
    let about = About { run: Some(run), next: Some(next), ..About::default() };
    tell(&event::RECOVERY_ABANDONED, about, &format!("recovery {run} is abandoned: {}", report.state));
    Ok(report)
}

/// What a restore that was cut short was about to put in place: parts of files, secrets among them.
fn swept(session: &Session<'_>) -> Result<Vec<String>> {
    durable::remove_tree(&session.dir.path().join(EXPORTED))?;
    let mut said = Vec::new();
    // A restore makes what it then puts in place at the root of its tree; managed files elsewhere, at the root of their file system.
    let archived = Part::ALL.into_iter().filter(|part| part.holds != Holds::Snapshot).map(|part| part.tree);
    for tree in archived.chain(["/var"]) {
        if archive::sweep(&session.node.real_path(tree))? {
            said.push(format!("what a restore of {tree} had left unfinished is removed"));
        }
    }
    Ok(said)
}

/// The etcd data that the runs replaced is kept, and stays: whether it or the restored one is wanted, a person decides.
fn kept_etcd(node: &Node, reading: Option<&Reading>, runs: &[String]) -> Vec<String> {
    let Some(profile) = reading.map(|r| r.beginning.profile.profile()).or_else(|| Profile::of(node).ok()) else { return Vec::new() };
    let kept = |run: &String| {
        let path = etcd::kept_of(&node.real_path(profile.etcd_data), run)?;
        Some(format!("the etcd data from before the recovery is kept as {}", node.shown(&path).display()))
    };
    runs.iter().filter_map(kept).collect()
}

/// What boots next, after a recovery that had begun to change that.
fn next_boot(node: &Node) -> Option<String> {
    let next = ostree::deployments(node).ok()?.into_iter().next()?;
    let booted = if next.booted { "the one that is booted" } else { "not the one that is booted" };
    Some(format!("the deployment {next} boots next, which is {booted}"))
}

fn changed(reading: &Reading) -> Vec<Changed> {
    let phases = RunStatus::of(reading).phases;
    let all = phases.iter().flat_map(|p| p.steps.iter().map(move |step| (p.phase, step)));
    let begun = all.filter(|(phase, step)| step.state != StepState::Waiting && steps::changes(*phase, &step.name));
    begun.map(|(phase, step)| Changed { phase, step: step.name.clone(), in_part: step.state != StepState::Done }).collect()
}

fn state_of(reading: Option<&Reading>, untouched: bool, changed: &[Changed]) -> String {
    let restored = || changed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match reading {
        _ if untouched => "nothing on disk was changed: the node is as it was before the recovery".to_owned(),
        None => {
            "the journal could not be read, so nobody knows how far the recovery came: treat the node's files as half restored. `recovery \
             recover` makes the node whole"
                .to_owned()
        }
        Some(reading) if reading.state == State::Finished => "the recovery was over already".to_owned(),
        Some(reading) => format!(
            "the recovery ended as {}; restored so far: {}; what is not restored is the newer release's. kubelet is no longer held: it \
             starts at the next boot, on whatever is there. `recovery recover` makes the node whole",
            reading.state,
            if changed.is_empty() { "what the runs before it restored".to_owned() } else { restored() }
        ),
    }
}
