//! What a recovery has come to, as it is reported and kept in `history/`: read from its journal alone.

use std::collections::HashSet;
use std::fmt;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::procedure::{Event, Phase, Reading, State};
use crate::engine::machine::Stage;
use crate::error::{self, Next};

/// How far a recovery came in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is finished.
    Finished,
    /// It was given up before.
    Abandoned,
    /// The node has to be rebooted by whoever runs it.
    RebootNeeded,
    /// The node is going down for its reboot.
    Rebooting,
    /// One phase was asked for, and is done.
    PhaseDone,
    /// The run goes on one phase at a time, when a person says so: the unit leaves it alone.
    LeftToAPerson,
}

/// The report of a recovery: what was done so far, step by step.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// How far it came.
    pub outcome: Outcome,
    /// The run.
    pub run: RunStatus,
    /// How long its steps took, seconds, waiting included; the time between them (reboots) is not in it.
    pub seconds: f64,
    /// Of those, how long it waited for others.
    pub waited: f64,
    /// How to go on, unless it is over.
    #[serde(serialize_with = "words_of")]
    pub next: Option<Next>,
}

/// A run.
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
pub struct PhaseStatus {
    /// Which.
    pub phase: Phase,
    /// Its steps.
    pub steps: Vec<StepStatus>,
}

/// A step of a run.
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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

/// What giving up left behind.
#[derive(Debug, Clone, Serialize)]
pub struct AbandonReport {
    /// The run, when its journal could be read.
    pub run: Option<RunStatus>,
    /// What was put back, and what is left to do by hand.
    pub put_back: Vec<String>,
    /// Steps that changed the node's disk and were done, or begun.
    pub changed: Vec<Changed>,
    /// What state the node is in, in words.
    pub state: String,
}

/// A step that changed the node's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Its phase.
    pub phase: Phase,
    /// Its name.
    pub step: String,
    /// It was begun and is not done.
    pub in_part: bool,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, step, in_part } = self;
        write!(f, "{phase}: {step}{}", if *in_part { " (in part)" } else { "" })
    }
}

impl Serialize for Changed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl RunStatus {
    /// From a journal.
    #[must_use]
    pub fn of(reading: &Reading) -> Self {
        let open = if let State::Open(open) = &reading.state { Some(open) } else { None };
        let last = reading.last();
        let of_steps = reading.records.iter().filter_map(|record| record.detail.get("warnings")?.as_array()).flatten();
        let mut warnings = reading.beginning.warnings.clone();
        warnings.extend(of_steps.filter_map(Value::as_str).map(str::to_owned));
        let mut seen = HashSet::new();
        warnings.retain(|w| seen.insert(w.clone()));
        Self {
            id: reading.run.clone(),
            backup: reading.subject.clone(),
            state: reading.state.to_string(),
            phase: open.and_then(|o| o.planned()).map(|p| p.phase),
            step: open.and_then(|o| o.step()).map(|s| s.name.clone()),
            begun: reading.records[0].time,
            since: last.time,
            failure: last.failure().map(|failure| failure.message),
            needs_reboot: open.is_some_and(|o| o.stage == Stage::Reboot),
            by_step: reading.beginning.asked.step,
            phases: phases(reading),
            warnings,
        }
    }
}

fn phases(reading: &Reading) -> Vec<PhaseStatus> {
    let step = |phase: Phase, name: &str| {
        let last = |event: fn(Phase, String) -> Event| reading.last_of(&event(phase, name.to_owned()));
        let at = |event| last(event).map_or(0, |r| r.sequence);
        let (done, failed, intent) = (at(Event::StepDone), at(Event::StepFailed), at(Event::StepIntent));
        let attempt = Event::StepIntent(phase, name.to_owned());
        let attempts = reading.records.iter().filter(|r| r.event == attempt).count();
        let state = if intent == 0 {
            StepState::Waiting
        } else if done > intent {
            StepState::Done
        } else if failed > intent {
            StepState::Failed
        } else {
            StepState::Begun
        };
        let figures = last(Event::StepDone).map(|r| r.detail.clone()).unwrap_or_default();
        let number = |name: &str| figures.get(name).and_then(Value::as_f64);
        StepStatus { name: name.to_owned(), state, attempts, seconds: number("seconds"), waited: number("waited"), figures }
    };
    let planned = reading.plan.iter();
    planned.map(|p| PhaseStatus { phase: p.phase, steps: p.steps.iter().map(|s| step(p.phase, &s.name)).collect() }).collect()
}

/// The command that goes on with a run, as it has to be called.
pub(super) fn resume_command(reading: &Reading) -> &'static str {
    if reading.beginning.asked.step { "recovery resume --step" } else { "recovery resume" }
}

/// JSON has what to do next as people read it; for `serialize_with`.
#[expect(clippy::ref_option, reason = "serde hands the field over so")]
pub(super) fn words_of<S: Serializer>(next: &Option<Next>, to: S) -> Result<S::Ok, S::Error> {
    next.as_ref().map(ToString::to_string).serialize(to)
}

impl RunReport {
    pub(super) fn of(reading: &Reading, outcome: Outcome) -> Self {
        let run = RunStatus::of(reading);
        let sum =
            |of: fn(&StepStatus) -> Option<f64>| run.phases.iter().flat_map(|p| &p.steps).filter_map(of).fold(0.0, std::ops::Add::add);
        let by_itself = if run.by_step { "" } else { " (the unit does that by itself)" };
        let go_on = resume_command(reading);
        let next = match outcome {
            Outcome::Finished | Outcome::Abandoned => None,
            Outcome::RebootNeeded => Some(error::run("systemctl reboot", format!(", then `{go_on}`{by_itself}"))),
            Outcome::Rebooting => Some(error::run(go_on, format!("after the reboot{by_itself}"))),
            Outcome::PhaseDone | Outcome::LeftToAPerson => Some(error::run(go_on, "")),
        };
        Self { outcome, seconds: sum(|s| s.seconds), waited: sum(|s| s.waited), run, next }
    }
}
