//! Where a recovery stands: read from its journal, without the lock.

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::journal::{Kind, Reading};
use super::machine::{Phase, Stage, State};
use super::{driver, history};
use crate::error;
use crate::node::dir::RecoveryDir;
use crate::node::{Node, hold};
use crate::tools::ostree;

/// Where a recovery stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusReport {
    /// The run in progress.
    pub run: Option<RunStatus>,
    /// The journal is there but cannot be read: why.
    pub unreadable: Option<String>,
    /// The stages that upgrade-recovery.sh noted of a recovery that it has begun and not ended: none of this agent's, and nothing that it goes on with.
    #[serde(default)]
    pub old_script: Option<Vec<String>>,
    /// The agent that is at work on this recovery directory: its verb, process, and since when.
    pub at_work: Option<String>,
    /// kubelet is held.
    pub hold: bool,
    /// A soft reboot is prepared: a plain `systemctl reboot` goes into it, past the boot loader. A recovery takes that back.
    #[serde(default)]
    pub soft_reboot: bool,
    /// The run that ended last, while none is in progress.
    pub last: Option<RunStatus>,
    /// The command to go on with; nothing while an agent is at work on the run.
    pub next: Option<String>,
}

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunStatus {
    /// Its id.
    pub id: String,
    /// The backup it restores.
    pub backup: String,
    /// In words: what it is doing or waiting for.
    pub state: String,
    /// The phase it is in.
    pub phase: Option<Phase>,
    /// The step it is at.
    pub step: Option<String>,
    /// When it was begun.
    pub begun: Timestamp,
    /// When something last happened.
    pub since: Timestamp,
    /// Why the step it is at failed, when it did.
    pub failure: Option<String>,
    /// It waits for this node to reboot.
    pub needs_reboot: bool,
    /// It goes on only when told to, one phase at a time.
    pub by_step: bool,
    /// Every step of the plan.
    pub phases: Vec<PhaseStatus>,
    /// What was found and gone on with, by the beginning and by each step.
    pub warnings: Vec<String>,
}

/// A phase of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PhaseStatus {
    /// Which.
    pub phase: Phase,
    /// Its steps.
    pub steps: Vec<StepStatus>,
}

/// A step of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepStatus {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub state: StepState,
    /// How often it said that it would act.
    pub attempts: usize,
    /// How long it took the last time, seconds, waiting included.
    pub seconds: Option<f64>,
    /// Of those, how long it waited for others.
    pub waited: Option<f64>,
    /// Its figures.
    pub figures: Value,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Its turn has not come.
    Waiting,
    /// It has begun; it acts, or was interrupted.
    Begun,
    /// It failed.
    Failed,
    /// It has its effect.
    Done,
}

/// Where the recovery of this directory stands. Nothing is changed, and no lock is needed.
///
/// # Errors
/// When the recovery directory is not root's alone. A journal that cannot be read is reported, not an error.
pub fn status(node: &Node, dir: &RecoveryDir) -> Result<StatusReport> {
    dir.check()?;
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

impl RunStatus {
    /// From a journal.
    #[must_use]
    pub fn of(reading: &Reading) -> Self {
        let open = if let State::Open(open) = &reading.state { Some(open) } else { None };
        let last = reading.last();
        let from = |record: &super::journal::Record| {
            let warnings = record.detail.get("warnings").and_then(Value::as_array).cloned().unwrap_or_default();
            warnings.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut warnings: Vec<String> = reading.records.iter().flat_map(from).collect();
        let mut seen = std::collections::HashSet::new();
        warnings.retain(|w| seen.insert(w.clone()));
        Self {
            id: reading.run().to_owned(),
            backup: reading.backup().to_owned(),
            state: reading.state.describe(),
            phase: open.and_then(|o| o.planned()).map(|p| p.phase),
            step: open.and_then(|o| o.step()).map(|s| s.name.clone()),
            begun: reading.records[0].time,
            since: last.time,
            failure: last.cause().map(str::to_owned),
            needs_reboot: open.is_some_and(|o| o.stage == Stage::Reboot),
            by_step: reading.beginning.asked.step,
            phases: phases(reading),
            warnings,
        }
    }
}

/// The command to go on with, in this boot.
fn next(reading: &Reading, boot: Option<&str>) -> String {
    let awaited = if let State::Open(open) = &reading.state { open.awaits_reboot() } else { None };
    if awaited.is_some_and(|phase| boot.is_some_and(|boot| !reading.rebooted_since(phase, boot))) {
        return "`systemctl reboot`".to_owned();
    }
    match reading.last().cause().map(|_| driver::recorded_kind(reading)) {
        // The same would fail the same way.
        Some(kind @ error::FailureKind::Damaged) => driver::way_on(reading, kind).to_string(),
        _ if reading.beginning.asked.step => "`recovery resume --step`".to_owned(),
        _ => "`recovery resume`".to_owned(),
    }
}

fn phases(reading: &Reading) -> Vec<PhaseStatus> {
    let step = |phase: Phase, name: &str| {
        let mine = |kind: Kind| reading.last_of(phase, name, kind);
        let attempts = reading
            .records
            .iter()
            .filter(|r| r.event == Kind::StepIntent && r.phase == Some(phase) && r.step.as_deref() == Some(name))
            .count();
        let at = |kind| mine(kind).map_or(0, |r| r.sequence);
        let (done, failed, intent) = (at(Kind::StepDone), at(Kind::StepFailed), at(Kind::StepIntent));
        let state = if intent == 0 {
            StepState::Waiting
        } else if done > intent {
            StepState::Done
        } else if failed > intent {
            StepState::Failed
        } else {
            StepState::Begun
        };
        let figures = mine(Kind::StepDone).map(|r| r.detail.clone()).unwrap_or_default();
        let number = |name: &str| figures.get(name).and_then(Value::as_f64);
        StepStatus { name: name.to_owned(), state, attempts, seconds: number("seconds"), waited: number("waited"), figures }
    };
    let planned = reading.beginning.phases.iter();
    planned.map(|p| PhaseStatus { phase: p.phase, steps: p.steps.iter().map(|s| step(p.phase, &s.name)).collect() }).collect()
}
