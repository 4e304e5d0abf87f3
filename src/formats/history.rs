//! `history/RUN.json`: the report of a recovery that is over. (`RUN.progress` beside it is its [journal](super::journal).)
//!
//! | version | written by | what is new |
//! |---|---|---|
//! | 1 | 0.1.0, before its release | has no version; a run that was given up has another layout than one that is finished |
//! | 2 | 0.1.0 | one layout for both |

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Format;
use crate::error::damaged;

/// This format.
pub const FORMAT: Format = Format { name: "the report of a recovery", version: 2 };

/// Version 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V2 {
    /// 2.
    pub version: u32,
    /// Version of the agent that wrote it.
    pub agent: Option<String>,
    /// How the run ended.
    pub end: EndV1,
    /// The run; `None` when its journal could not be read.
    pub run: Option<RunV1>,
    /// What the end of an abandoned run put back, and what it left to do by hand; empty for a finished run.
    pub put_back: Vec<String>,
    /// Steps that had changed the node's disk when the run was abandoned: `PHASE: STEP`.
    pub changed: Vec<String>,
    /// The state of the node at that time, in words.
    pub state: Option<String>,
    /// How long the steps took, seconds, waiting included.
    pub seconds: f64,
    /// How long they waited, as part of that, seconds.
    pub waited: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EndV1 {
    /// It reached its end.
    Finished,
    /// It was abandoned.
    Abandoned,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RunV1 {
    /// Its id.
    pub id: String,
    /// The backup that it restored.
    pub backup: String,
    /// What it was doing, in words.
    pub state: String,
    /// The phase it was in.
    pub phase: Option<String>,
    /// The step it was at.
    pub step: Option<String>,
    /// When it was begun.
    pub begun: Timestamp,
    /// The time of its last line in the journal.
    pub since: Timestamp,
    /// Why its current step failed, if it did.
    pub failure: Option<String>,
    /// True when it waited for the node to reboot.
    pub needs_reboot: bool,
    /// True when it continued only on a command.
    pub by_step: bool,
    /// Every step of the plan.
    pub phases: Vec<PhaseV1>,
    /// What was found before its begin that did not stop it.
    pub warnings: Vec<String>,
}

/// A phase of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PhaseV1 {
    /// Which.
    pub phase: String,
    /// Its steps.
    pub steps: Vec<StepV1>,
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StepV1 {
    /// Its name.
    pub name: String,
    /// The step's state.
    pub state: StepStateV1,
    /// How many times it began to act.
    pub attempts: usize,
    /// How long it took the last time, seconds, including waits.
    pub seconds: Option<f64>,
    /// How long it waited, as part of that, seconds.
    pub waited: Option<f64>,
    /// Its results.
    pub figures: Value,
}

/// The state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum StepStateV1 {
    /// It had not begun.
    Waiting,
    /// It had begun.
    Begun,
    /// It failed.
    Failed,
    /// It was done.
    Done,
}

/// Version 1 of a finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct FinishedV1 {
    outcome: EndV1,
    run: RunV1,
    seconds: f64,
    waited: f64,
    next: Option<String>,
}

/// Version 1 of an abandoned run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct AbandonedV1 {
    run: Option<RunV1>,
    put_back: Vec<String>,
    changed: Vec<String>,
    state: String,
}

impl From<FinishedV1> for V2 {
    fn from(old: FinishedV1) -> Self {
        let FinishedV1 { outcome: end, run, seconds, waited, .. } = old;
        let run = Some(run);
        Self { version: FORMAT.version, agent: None, end, run, put_back: Vec::new(), changed: Vec::new(), state: None, seconds, waited }
    }
}

impl From<AbandonedV1> for V2 {
    fn from(old: AbandonedV1) -> Self {
        let AbandonedV1 { run, put_back, changed, state } = old;
        let sum =
            |of: fn(&StepV1) -> Option<f64>| run.iter().flat_map(|run| &run.phases).flat_map(|phase| &phase.steps).filter_map(of).sum();
        let (seconds, waited) = (sum(|step| step.seconds), sum(|step| step.waited));
        Self { version: FORMAT.version, agent: None, end: EndV1::Abandoned, run, put_back, changed, state: Some(state), seconds, waited }
    }
}

/// Reads a report of any version.
///
/// # Errors
/// As [`Format::read`].
pub fn read(json: &[u8]) -> Result<V2> {
    let bad = |error: serde_json::Error| damaged(format!("{} is not valid: {error}", FORMAT.name));
    let whole: Value = serde_json::from_slice(json).map_err(bad)?;
    // Reports of version 1 do not name their version.
    if whole.get("version").is_some() {
        return FORMAT.read(json, |_, json| serde_json::from_slice(json));
    }
    let old = if whole.get("outcome").is_some() {
        serde_json::from_value::<FinishedV1>(whole).map(V2::from)
    } else {
        serde_json::from_value::<AbandonedV1>(whole).map(V2::from)
    };
    old.map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn both_layouts_of_version_1_are_read_for_ever() {
        let finished = read(&samples::check_layout::<FinishedV1>("history-finished", 1)).unwrap();
        assert_eq!((finished.end, finished.run.unwrap().phases.len()), (EndV1::Finished, 2));
        let abandoned = read(&samples::check_layout::<AbandonedV1>("history-abandoned", 1)).unwrap();
        assert_eq!((abandoned.end, abandoned.put_back.len(), abandoned.changed.len()), (EndV1::Abandoned, 1, 2));
        assert!(abandoned.seconds > abandoned.waited && abandoned.waited > 0.0);
    }

    #[test]
    fn version_2_is_what_is_written() {
        assert_eq!(read(&samples::check_layout::<V2>("history", 2)).unwrap().version, 2);
    }
}
