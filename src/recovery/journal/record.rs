//! One line of the journal: JSON, with a checksum of its own bytes at its end.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::machine::{Event, Phase, Plan};
use super::Beginning;
use crate::error::damaged;

/// The only version so far.
pub const VERSION: u32 = 1;
/// What stands between a line's content and its checksum.
const SUM: &str = ",\"sum\":\"";
/// How long the checksum with what follows it is: eight hex digits, quote, brace.
const SUM_END: usize = 8 + 2;

/// What a line records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// 1 for the first line, then one more each.
    pub sequence: u64,
    /// The node's wall clock.
    pub time: Timestamp,
    /// The run.
    pub run: String,
    /// The backup it restores.
    pub backup: String,
    /// The boot in which it was written.
    pub boot: String,
    /// The phase it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The step it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What happened.
    pub event: Kind,
    /// More about it: the plan, a step's note, its figures, the cause of its failure.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// The kinds of [`Event`], as the journal writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`Event::RunBegun`]; its detail is the [`Beginning`].
    RunBegun,
    /// [`Event::PhaseBegun`].
    PhaseBegun,
    /// [`Event::StepIntent`].
    StepIntent,
    /// [`Event::StepNoted`].
    StepNoted,
    /// [`Event::StepDone`].
    StepDone,
    /// [`Event::StepFailed`].
    StepFailed,
    /// [`Event::RebootRequested`].
    RebootRequested,
    /// [`Event::PhaseDone`].
    PhaseDone,
    /// [`Event::Finished`].
    Finished,
    /// [`Event::Abandoned`].
    Abandoned,
}

/// The kind, phase and step that stand for an event.
pub(super) fn parts(event: &Event) -> (Kind, Option<Phase>, Option<String>) {
    let step = |kind, phase: &Phase, step: &String| (kind, Some(*phase), Some(step.clone()));
    match event {
        Event::RunBegun(_) => (Kind::RunBegun, None, None),
        Event::PhaseBegun(phase) => (Kind::PhaseBegun, Some(*phase), None),
        Event::StepIntent(phase, s) => step(Kind::StepIntent, phase, s),
        Event::StepNoted(phase, s) => step(Kind::StepNoted, phase, s),
        Event::StepDone(phase, s) => step(Kind::StepDone, phase, s),
        Event::StepFailed(phase, s) => step(Kind::StepFailed, phase, s),
        Event::RebootRequested(phase) => (Kind::RebootRequested, Some(*phase), None),
        Event::PhaseDone(phase) => (Kind::PhaseDone, Some(*phase), None),
        Event::Finished => (Kind::Finished, None, None),
        Event::Abandoned => (Kind::Abandoned, None, None),
    }
}

impl Record {
    /// The line, newline included.
    ///
    /// # Errors
    /// When it cannot be serialized.
    pub fn to_line(&self) -> Result<String> {
        let mut line = serde_json::to_string(self).context("serializing a line of the journal")?;
        let sum = crc32c::crc32c(line.as_bytes());
        line.pop();
        Ok(format!("{line}{SUM}{sum:08x}\"}}\n"))
    }

    /// The record of a line, without its newline.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is of a newer version; any other error when it is no line of a journal.
    pub fn of_line(line: &[u8]) -> Result<Self> {
        let line = std::str::from_utf8(line).context("it is not text")?;
        if let Some(version) = newer_version(line) {
            return Err(damaged(format!("it was written by a newer agent (journal version {version}; this one reads up to {VERSION})")));
        }
        let (content, sum) = line
            .len()
            .checked_sub(SUM.len() + SUM_END)
            .filter(|at| line.is_char_boundary(*at))
            .map(|at| line.split_at(at))
            .ok_or_else(|| anyhow!("it is too short"))?;
        let sum = sum.strip_prefix(SUM).and_then(|s| s.strip_suffix("\"}")).ok_or_else(|| anyhow!("it has no checksum"))?;
        let content = format!("{content}}}");
        if sum != format!("{:08x}", crc32c::crc32c(content.as_bytes())) {
            bail!("its checksum does not match");
        }
        serde_json::from_str(&content).context("it is not a line of a journal")
    }

    /// The event it records.
    ///
    /// # Errors
    /// When phase, step or plan are missing.
    pub fn event(&self) -> Result<Event> {
        let phase = || self.phase.ok_or_else(|| anyhow!("it names no phase"));
        let step = || self.step.clone().ok_or_else(|| anyhow!("it names no step"));
        Ok(match self.event {
            Kind::RunBegun => Event::RunBegun(self.plan()?),
            Kind::PhaseBegun => Event::PhaseBegun(phase()?),
            Kind::StepIntent => Event::StepIntent(phase()?, step()?),
            Kind::StepNoted => Event::StepNoted(phase()?, step()?),
            Kind::StepDone => Event::StepDone(phase()?, step()?),
            Kind::StepFailed => Event::StepFailed(phase()?, step()?),
            Kind::RebootRequested => Event::RebootRequested(phase()?),
            Kind::PhaseDone => Event::PhaseDone(phase()?),
            Kind::Finished => Event::Finished,
            Kind::Abandoned => Event::Abandoned,
        })
    }

    /// The step's failure, when this records one.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        (self.event == Kind::StepFailed).then(|| self.detail.get("cause").and_then(Value::as_str).unwrap_or("no cause was recorded"))
    }

    fn plan(&self) -> Result<Arc<Plan>> {
        let beginning: Beginning = serde_json::from_value(self.detail.clone()).context("reading what the run was asked to do")?;
        Ok(Arc::new(beginning.phases))
    }
}

/// The version of a line that says it is newer than this agent: asked before anything else, because its form may be another one.
fn newer_version(line: &str) -> Option<u64> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("version")?.as_u64().filter(|v| *v > u64::from(VERSION))
}
