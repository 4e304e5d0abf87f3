//! How a run ends that is given up: what it changed and must undo is put back, what it left is named.

use anyhow::Result;

use super::procedure::{Phase, Reading, State};
use super::report::{AbandonReport, Changed, RunStatus, StepState};
use super::resume::EXPORTED;
use super::undo::{Undo, Units};
use super::{history, steps};
use crate::archive;
use crate::backup::parts::{Holds, Part};
use crate::etcd;
use crate::node::profile::Profile;
use crate::node::{Node, durable, hold};
use crate::session::Session;
use crate::tools::ostree;

/// What follows giving up: puts back what `undo.json` holds, removes what a restore left unfinished, reports, and files the run away. Done again
/// after a crash, it ends the same. `units`: what becomes of those that were stopped where nothing else was changed.
///
/// # Errors
/// When something cannot be put back, removed or written.
pub(super) fn give_up(session: &Session<'_>, reading: Option<&Reading>, undo: Option<Undo>, units: Units) -> Result<AbandonReport> {
    let Session { node, dir, .. } = *session;
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
    history::close(dir, old.as_deref(), &report.clone().into())?;
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
    Some(format!("the deployment {next} boots next: {booted}"))
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
            "the journal could not be read, so nobody knows how far the recovery came: treat the node's files as half restored".to_owned()
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
