//! Carries a run out: asks the machine what is next, writes the intent down, acts, writes the end down.
//!
//! It knows neither the steps nor the node: those are behind [`Work`], so that crashes can be tried at every boundary with steps that
//! are none.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::journal::{Journal, Procedure, Reading};
use super::machine::{Due, Event, Phase, PlannedStep, Stage, State};
use crate::error::{self, Failure, FailureKind};
use crate::formats::journal::FailedV1;
use crate::report::event::{self, About, tell};

/// The phases of a kind of work.
type PhaseOf<W> = <<W as Work>::Of as Procedure>::Phase;

/// What the driver carries out.
pub trait Work {
    /// What kind of run it is.
    type Of: Procedure;

    /// Does one step and returns its figures. The step decides from the node whether something is left to do; it may be done again at
    /// any time. It writes its notes through `journal`, which knows the step as the one that acts.
    ///
    /// # Errors
    /// When it could not be done. [`error::FailureKind::Interrupted`] is no failure: the step stays open.
    fn perform(&mut self, journal: &mut Journal<Self::Of>, phase: PhaseOf<Self>, step: &str) -> Result<Value>;

    /// Called before each event is written: progress, and a place to stop for tests.
    ///
    /// # Errors
    /// Whatever must stop the run here, with nothing written.
    fn before(&mut self, journal: &Journal<Self::Of>, event: &Event<PhaseOf<Self>>) -> Result<()>;

    /// Whether the reboot at the end of a phase is still to come, as the node has it. It is asked only when the node has not rebooted
    /// since the phase's last step.
    ///
    /// # Errors
    /// When the node does not say.
    fn needs_reboot(&self, journal: &Journal<Self::Of>, phase: PhaseOf<Self>) -> Result<bool>;

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
pub enum Halt<P> {
    /// Every phase is done and the journal says so: what is left is to put it away.
    Finished,
    /// The phase is done but for the reboot.
    Reboot(P),
    /// This phase was the one that was asked for.
    After(P),
}

/// Carries the run of `journal` on from wherever it stands.
///
/// # Errors
/// That of a step, with the step's name and the next command around it; it is in the journal by then. That of the journal itself.
pub fn drive<W: Work>(journal: &mut Journal<W::Of>, work: &mut W, until: Until) -> Result<Halt<PhaseOf<W>>> {
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
        match open.due(lost, rebooted) {
            Due::Begin(phase) => {
                write(journal, work, &Event::PhaseBegun(phase), Value::Null)?;
                tell_phase(journal.reading(), phase, "begins");
            }
            Due::Step(phase, step) => {
                worked = Some(phase);
                one_step(journal, work, phase, &step.name)?;
            }
            Due::Reboot(phase) => {
                let why = if rebooted { json!({"already": "what it is for has happened"}) } else { Value::Null };
                write(journal, work, &Event::RebootRequested(phase), why)?;
                if !rebooted {
                    return Ok(Halt::Reboot(phase));
                }
            }
            Due::End(phase) => {
                // With --step, a phase counts as the one that was asked for although only its end was still to be written. Not after its reboot: then the
                // phase was done before, and the next one is meant.
                if open.planned().is_some_and(|planned| !planned.reboot) || !journal.reading().rebooted_since(phase, journal.boot()) {
                    worked = Some(phase);
                }
                write(journal, work, &Event::PhaseDone(phase), Value::Null)?;
                tell_phase(journal.reading(), phase, "is done");
            }
            Due::Finish => write(journal, work, &Event::Finished, Value::Null)?,
        }
    }
}

/// Writes the intent, does the step, writes its end or its failure.
fn one_step<W: Work>(journal: &mut Journal<W::Of>, work: &mut W, phase: PhaseOf<W>, step: &str) -> Result<()> {
    write(journal, work, &Event::StepIntent(phase, step.to_owned()), Value::Null)?;
    match work.perform(journal, phase, step) {
        Ok(figures) => write(journal, work, &Event::StepDone(phase, step.to_owned()), figures),
        Err(error) => {
            let failure = of_step(journal.reading(), phase, step, &error);
            // An interruption is no failure: the step is open and is taken up again.
            if error::kind(&error) != FailureKind::Interrupted {
                tell_failure(journal.reading(), phase, step, &failure);
                if let Err(unwritten) = write_failure(journal, work, phase, step, &error) {
                    tracing::warn!("the failure could not be written to the journal: {unwritten:#}");
                }
            }
            Err(failure)
        }
    }
}

fn write_failure<W: Work>(journal: &mut Journal<W::Of>, work: &mut W, phase: PhaseOf<W>, step: &str, error: &anyhow::Error) -> Result<()> {
    let detail = FailedV1::of(error).and_then(serde_json::to_value).context("serializing the failure")?;
    write(journal, work, &Event::StepFailed(phase, step.to_owned()), detail)
}

fn write<W: Work>(journal: &mut Journal<W::Of>, work: &mut W, event: &Event<PhaseOf<W>>, detail: Value) -> Result<()> {
    work.before(journal, event)?;
    journal.append(event, detail)
}

/// True when a volatile step was last done in another boot, or before it was undone.
fn is_lost<T: Procedure>(journal: &Journal<T>, undone_at: u64, phase: T::Phase, step: &PlannedStep) -> bool {
    let done = journal.reading().last_of(&Event::StepDone(phase, step.name.clone()));
    done.is_none_or(|done| done.boot != journal.boot() || done.sequence <= undone_at)
}

/// The failure that a journal ends with, as the agent that met it reported it.
#[must_use]
pub fn recorded_failure<T: Procedure>(reading: &Reading<T>) -> Option<anyhow::Error> {
    let last = reading.last();
    let (cause, phase) = (last.failure()?, last.event.phase()?);
    Some(of_step(reading, phase, last.event.step()?, &cause.into()))
}

/// A step's failure, with the step's name and the way on.
fn of_step<T: Procedure>(reading: &Reading<T>, phase: T::Phase, step: &str, cause: &anyhow::Error) -> anyhow::Error {
    let how = if error::kind(cause) == FailureKind::Interrupted { "was interrupted" } else { "failed" };
    stopped(reading, cause, &format!("{} {how}: {}", T::step_named(phase, step), error::said(cause)))
}

/// An error that stopped a run, with the way on.
#[must_use]
pub fn with_next<T: Procedure>(reading: &Reading<T>, error: &anyhow::Error) -> anyhow::Error {
    stopped(reading, error, &error::said(error))
}

/// A failure of the kind of `cause` that says `message`. Where the cause names the way out, there is no other.
fn stopped<T: Procedure>(reading: &Reading<T>, cause: &anyhow::Error, message: &str) -> anyhow::Error {
    let kind = error::kind(cause);
    let next = error::next(cause).cloned().unwrap_or_else(|| T::way_on(reading, kind));
    let open =
        if kind == FailureKind::Interrupted && error::next(cause).is_none() { format!("; {}", T::INTERRUPTED) } else { String::new() };
    Failure { kind, message: format!("{message}{open}"), next: Some(next) }.into()
}

/// What entries of journald about a phase of this run have.
fn about<T: Procedure>(reading: &Reading<T>, phase: T::Phase) -> About<'_> {
    About { run: Some(&reading.run), backup: Some(&reading.subject), phase: Some(phase.name()), ..About::default() }
}

fn tell_phase<T: Procedure>(reading: &Reading<T>, phase: T::Phase, what: &str) {
    if T::IN_JOURNALD {
        tell(&event::PHASE, about(reading, phase), &format!("phase {phase} {what}"));
    }
}

fn tell_failure<T: Procedure>(reading: &Reading<T>, phase: T::Phase, step: &str, failure: &anyhow::Error) {
    if T::IN_JOURNALD {
        let next = error::next(failure).map(ToString::to_string);
        let (exit, next) = (Some(error::exit_code(failure)), Some(next.as_deref().unwrap_or(event::NO_NEXT)));
        tell(&event::STEP_FAILED, About { step: Some(step), exit, next, ..about(reading, phase) }, &failure.to_string());
    }
}

#[cfg(test)]
mod tests;
