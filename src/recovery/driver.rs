//! Carries a run out: asks the machine what is next, writes the intent down, acts, writes the end down.
//!
//! It knows neither the steps nor the node: those are behind [`Work`], so that crashes can be tried at every boundary with steps that
//! are none.

use serde_json::{Value, json};

use anyhow::Result;

use super::journal::{Journal, Kind, Reading};
use super::machine::{Event, Next, Phase, PlannedStep, Stage, State};
use crate::error::{self, Failure};

/// `MESSAGE_ID` of the journald entry that a run writes when it begins or ends a phase (`systemd.journal-fields(7)`).
pub const MESSAGE_PHASE: &str = "a4c4c7eb11d94d0385259294778c1f2f";
/// `MESSAGE_ID` of the entry of a failed step.
pub const MESSAGE_FAILED: &str = "f1c594d3ffff49419f5bfc4c56dcce99";

/// What the driver carries out.
pub trait Work {
    /// Does one step and returns its figures. The step decides from the node whether something is left to do; it may be done again at
    /// any time. It writes its notes through `journal`, which knows the step as the one that acts.
    ///
    /// # Errors
    /// When it could not be done. [`error::FailureKind::Interrupted`] is no failure: the step stays open.
    fn perform(&mut self, journal: &mut Journal, phase: Phase, step: &str) -> Result<Value>;

    /// Called before each event is written: progress, and a place to stop for tests.
    ///
    /// # Errors
    /// Whatever must stop the run here, with nothing written.
    fn before(&mut self, journal: &Journal, event: &Event) -> Result<()>;

    /// Whether the reboot at the end of a phase is still to come, as the node has it. It is asked only when the node has not rebooted
    /// since the phase's last step.
    ///
    /// # Errors
    /// When the node does not say.
    fn needs_reboot(&self, journal: &Journal, phase: Phase) -> Result<bool>;

    /// How many lines the journal had when something on the node undid what volatile steps do, other than a reboot; 0 when nothing did.
    fn undone_at(&self) -> u64 {
        0
    }
}

/// How far a run goes in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// To the end, or to the reboot.
    End,
    /// To the end of the phase in which something was done, or to the reboot.
    Phase,
}

/// Why a run stopped without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// Every phase is done and the journal says so: what is left is to put it away.
    Finished,
    /// The phase is done but for the reboot.
    Reboot(Phase),
    /// This phase was the one that was asked for.
    After(Phase),
}

/// Carries the run of `journal` on from wherever it stands.
///
/// # Errors
/// That of a step, with the step's name and the next command around it; it is in the journal by then. That of the journal itself.
pub fn drive(journal: &mut Journal, work: &mut impl Work, until: Until) -> Result<Halt> {
    let mut worked = None;
    loop {
        let State::Open(open) = &journal.reading().state else { return Ok(Halt::Finished) };
        let open = open.clone();
        let phase = open.planned().map(|p| p.phase);
        if let (Until::Phase, Some(worked), Some(_), Stage::Before) = (until, worked, phase, open.stage) {
            return Ok(Halt::After(worked));
        }
        let rebooted = open.awaits_reboot().map_or(Ok(false), |phase| {
            Ok::<_, anyhow::Error>(journal.reading().rebooted_since(phase, journal.boot()) || !work.needs_reboot(journal, phase)?)
        })?;
        let lost = |step: &PlannedStep| phase.is_some_and(|p| is_lost(journal, work.undone_at(), p, step));
        match open.next(lost, rebooted) {
            Next::Begin(phase) => {
                write(journal, work, &Event::PhaseBegun(phase), Value::Null)?;
                tell_phase(journal.reading(), phase, "begins");
            }
            Next::Step(phase, step) => {
                worked = Some(phase);
                one_step(journal, work, phase, &step.name)?;
            }
            Next::Reboot(phase) => {
                let why = if rebooted { json!({"already": "what it is for has happened"}) } else { Value::Null };
                write(journal, work, &Event::RebootRequested(phase), why)?;
                if !rebooted {
                    return Ok(Halt::Reboot(phase));
                }
            }
            Next::End(phase) => {
                // Of a phase whose end alone was still to be written, one that was killed was asked for no more; after a reboot, the next one is meant.
                if open.planned().is_some_and(|planned| !planned.reboot) || !journal.reading().rebooted_since(phase, journal.boot()) {
                    worked = Some(phase);
                }
                write(journal, work, &Event::PhaseDone(phase), Value::Null)?;
                tell_phase(journal.reading(), phase, "is done");
            }
            Next::Finish => write(journal, work, &Event::Finished, Value::Null)?,
        }
    }
}

/// Writes the intent, does the step, writes its end or its failure.
fn one_step(journal: &mut Journal, work: &mut impl Work, phase: Phase, step: &str) -> Result<()> {
    write(journal, work, &Event::StepIntent(phase, step.to_owned()), Value::Null)?;
    let run = journal.reading().run().to_owned();
    match work.perform(journal, phase, step) {
        Ok(figures) => write(journal, work, &Event::StepDone(phase, step.to_owned()), figures),
        Err(error) => {
            let failure = of_step(journal.reading(), Some(phase), step, &error);
            // An interruption is no failure: the step is open and is taken up again.
            if error::kind(&error) != error::FailureKind::Interrupted {
                tracing::error!(recovery_run = %run, recovery_phase = phase.name(), recovery_step = step, message_id = MESSAGE_FAILED, "{failure}");
                let cause = json!({
                    "cause": error::said(&error),
                    "kind": error::kind(&error),
                    "next": error::next(&error),
                    "exit": error::exit_code(&error),
                });
                if let Err(unwritten) = write(journal, work, &Event::StepFailed(phase, step.to_owned()), cause) {
                    tracing::warn!("the failure could not be written to the journal: {unwritten:#}");
                }
            }
            Err(failure)
        }
    }
}

fn write(journal: &mut Journal, work: &mut impl Work, event: &Event, detail: Value) -> Result<()> {
    work.before(journal, event)?;
    journal.append(event, detail)
}

/// True when a volatile step was last done in another boot, or before it was undone.
fn is_lost(journal: &Journal, undone_at: u64, phase: Phase, step: &PlannedStep) -> bool {
    let done = journal.reading().last_of(phase, &step.name, Kind::StepDone);
    done.is_none_or(|done| done.boot != journal.boot() || done.sequence <= undone_at)
}

/// What to do about a failure of this kind that stopped a run, where its cause does not say.
pub(super) fn way_on(reading: &Reading, kind: error::FailureKind) -> error::Next {
    match kind {
        error::FailureKind::Damaged => {
            error::by_hand("`recovery verify`, then `recovery restart --backup ID` with a backup that is whole, or `recovery abandon`")
        }
        error::FailureKind::NoSpace => error::by_hand("make room, then `recovery resume`"),
        error::FailureKind::Interrupted => {
            let by_itself = if reading.beginning.asked.step { "" } else { " (the unit does by itself, at the next boot at the latest)" };
            error::by_hand(format!("`recovery resume` to go on{by_itself}, or `recovery abandon`"))
        }
        _ => error::Next::Resume,
    }
}

/// The kind of the failure that a journal ends with. (Journals of earlier agents hold its exit code alone.)
pub(super) fn recorded_kind(reading: &Reading) -> error::FailureKind {
    let detail = &reading.last().detail;
    let kind = detail.get("kind").and_then(|kind| serde_json::from_value(kind.clone()).ok());
    let code = || detail.get("exit").and_then(Value::as_u64).and_then(|code| u8::try_from(code).ok());
    kind.unwrap_or_else(|| code().map_or(error::FailureKind::Failed, error::FailureKind::of_code))
}

/// The failure that a journal ends with, as the agent that met it reported it.
pub(super) fn recorded_failure(reading: &Reading) -> anyhow::Error {
    let last = reading.last();
    let next = last.detail.get("next").and_then(|next| serde_json::from_value(next.clone()).ok());
    let cause = Failure { kind: recorded_kind(reading), message: last.cause().unwrap_or("?").to_owned(), next };
    of_step(reading, last.phase, last.step.as_deref().unwrap_or("?"), &cause.into())
}

/// A step's failure, with the step's name and the way on.
fn of_step(reading: &Reading, phase: Option<Phase>, step: &str, cause: &anyhow::Error) -> anyhow::Error {
    let how = if error::kind(cause) == error::FailureKind::Interrupted { "was interrupted" } else { "failed" };
    stopped(reading, cause, &format!("phase {}, step {step} {how}: {}", phase.map_or("?", Phase::name), error::said(cause)))
}

/// An error that stopped a run, with the way on.
pub(super) fn with_next(reading: &Reading, error: &anyhow::Error) -> anyhow::Error {
    stopped(reading, error, &error::said(error))
}

/// A failure of the kind of `cause` that says `message`. Where the cause names the way out, there is no other.
fn stopped(reading: &Reading, cause: &anyhow::Error, message: &str) -> anyhow::Error {
    let kind = error::kind(cause);
    let next = error::next(cause).cloned().unwrap_or_else(|| way_on(reading, kind));
    let open = if kind == error::FailureKind::Interrupted && error::next(cause).is_none() { "; the recovery is open" } else { "" };
    Failure { kind, message: format!("{message}{open}"), next: Some(next) }.into()
}

fn tell_phase(reading: &Reading, phase: Phase, what: &str) {
    tracing::info!(recovery_run = reading.run(), recovery_phase = phase.name(), message_id = MESSAGE_PHASE, "phase {phase} {what}");
}

#[cfg(test)]
mod tests;
