//! The machine of a run: which events may follow which, and what is to be done next. Pure: no clock, no file, no node.
//!
//! A run follows the [`Plan`] that its first event carries, so that a journal can be replayed, shown and judged by itself, whatever
//! steps the agent that reads it would take today.

use std::fmt::{self, Debug, Display, Formatter};
use std::sync::Arc;

use serde::Serialize;

/// The phases of one kind of run, in their order: an enum of the room that owns the steps.
pub trait Phase: Copy + Debug + Display + Ord + 'static {
    /// Its name, as users and the journal write it.
    fn name(self) -> &'static str;

    /// The phase of this name.
    fn of_name(name: &str) -> Option<Self>;
}

/// A step, as the plan of a run lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// Its name, unique within its phase.
    pub name: String,
    /// Its effect is lost at a reboot: it is done again when one comes before the phase has ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub volatile: bool,
}

/// A phase, as the plan of a run lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPhase<P> {
    /// Which one.
    pub phase: P,
    /// It ends with a reboot of the node.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reboot: bool,
    /// Its steps, in order.
    pub steps: Vec<PlannedStep>,
}

impl<P> PlannedPhase<P> {
    fn position(&self, step: &str) -> Option<usize> {
        self.steps.iter().position(|s| s.name == step)
    }
}

/// Everything a run will do, in order.
pub type Plan<P> = Vec<PlannedPhase<P>>;

/// What can happen to a run. Each is one line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<P> {
    /// A run was begun, to follow this plan.
    RunBegun(Arc<Plan<P>>),
    /// A phase was begun.
    PhaseBegun(P),
    /// A step is about to act.
    StepIntent(P, String),
    /// A step in the middle of its work writes down what it must still know after a crash.
    StepNoted(P, String),
    /// A step has its effect.
    StepDone(P, String),
    /// A step has failed. It may be tried again.
    StepFailed(P, String),
    /// The phase has nothing left to do but the reboot.
    RebootRequested(P),
    /// A phase has ended.
    PhaseDone(P),
    /// The run has reached its end.
    Finished,
    /// The run was given up.
    Abandoned,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<P> {
    /// There is no run.
    Idle,
    /// There is one, and it is not over.
    Open(Open<P>),
    /// The run is over: it reached its end.
    Finished,
    /// The run is over: it was given up.
    Abandoned,
}

/// An open run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open<P> {
    /// What it will do.
    pub plan: Arc<Plan<P>>,
    /// Index in the plan of the phase it is in, or before which it stands; the plan's length when every phase is done.
    pub phase: usize,
    /// How many of that phase's steps are done: the index of the first that is not.
    pub done: usize,
    /// What it is doing there.
    pub stage: Stage,
}

/// What an open run is doing in its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The phase has not begun.
    Before,
    /// Between two steps.
    Between,
    /// The step of this index has said what it will do. After a crash, nobody knows how far it came.
    Acting(usize),
    /// The step of this index has failed.
    Failed(usize),
    /// Nothing is left of the phase but the reboot.
    Reboot,
}

/// An event that cannot happen in a state: a journal that holds one was not written by this agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} cannot follow {state}")]
pub struct IllegalTransition {
    state: String,
    event: String,
}

/// What an open run has to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<'a, P> {
    /// Begin this phase.
    Begin(P),
    /// Do this step.
    Step(P, &'a PlannedStep),
    /// Reboot, before this phase can end.
    Reboot(P),
    /// End this phase.
    End(P),
    /// Finish the run.
    Finish,
}

/// The state after `event`, or why there is none. Total: every pair has an answer.
///
/// # Errors
/// [`IllegalTransition`] when `event` cannot happen in `state`.
pub fn transition<P: Phase>(state: &State<P>, event: &Event<P>) -> Result<State<P>, IllegalTransition> {
    let next = match (state, event) {
        (State::Idle, Event::RunBegun(plan)) if is_sound(plan) => {
            Some(State::Open(Open { plan: plan.clone(), phase: 0, done: 0, stage: Stage::Before }))
        }
        (State::Open(_), Event::Abandoned) => Some(State::Abandoned),
        (State::Open(open), Event::Finished) if open.phase == open.plan.len() => Some(State::Finished),
        (State::Open(open), event) => open.after(event).map(State::Open),
        _ => None,
    };
    next.ok_or_else(|| IllegalTransition { state: state.to_string(), event: event.to_string() })
}

/// A plan has phases in their order, each once, with steps whose names are unique.
fn is_sound<P: Phase>(plan: &Plan<P>) -> bool {
    let names_differ = |p: &PlannedPhase<P>| p.steps.iter().enumerate().all(|(i, s)| p.position(&s.name) == Some(i));
    !plan.is_empty()
        && plan.windows(2).all(|pair| pair[0].phase < pair[1].phase)
        && plan.iter().all(|p| !p.steps.is_empty() && names_differ(p))
}

impl<P: Phase> Open<P> {
    /// The phase it is in or stands before; `None` when all are done.
    #[must_use]
    pub fn planned(&self) -> Option<&PlannedPhase<P>> {
        self.plan.get(self.phase)
    }

    /// The step it is at: the one that acts, failed, or comes next.
    #[must_use]
    pub fn step(&self) -> Option<&PlannedStep> {
        let at = match self.stage {
            Stage::Before | Stage::Reboot => return None,
            Stage::Between => self.done,
            Stage::Acting(i) | Stage::Failed(i) => i,
        };
        self.planned()?.steps.get(at)
    }

    /// The phase whose steps are all done and which ends with a reboot.
    #[must_use]
    pub fn awaits_reboot(&self) -> Option<P> {
        let planned = self.planned().filter(|p| p.reboot && self.done == p.steps.len())?;
        (self.stage != Stage::Before).then_some(planned.phase)
    }

    /// What has to be done now. `lost` says of a volatile step that is done whether a reboot has undone it; `rebooted`, whether the reboot
    /// at the end of the phase is behind it.
    pub fn due(&self, lost: impl Fn(&PlannedStep) -> bool, rebooted: bool) -> Due<'_, P> {
        let Some(planned) = self.planned() else { return Due::Finish };
        let phase = planned.phase;
        if self.stage == Stage::Before {
            return Due::Begin(phase);
        }
        let Some(step) = planned.steps.get(self.done) else {
            return if planned.reboot && !(rebooted && self.stage == Stage::Reboot) { Due::Reboot(phase) } else { Due::End(phase) };
        };
        let again = planned.steps[..self.done].iter().find(|s| s.volatile && lost(s));
        Due::Step(phase, again.unwrap_or(step))
    }

    fn after(&self, event: &Event<P>) -> Option<Self> {
        let planned = self.planned()?;
        let here = |phase: &P| *phase == planned.phase;
        let at = |phase: &P, step: &str| planned.position(step).filter(|_| here(phase));
        let acting = |phase: &P, step: &str| at(phase, step).filter(|i| self.stage == Stage::Acting(*i));
        let all_done = self.done == planned.steps.len();
        let (mut next, in_steps) = (self.clone(), !matches!(self.stage, Stage::Before | Stage::Reboot));
        match event {
            Event::PhaseBegun(phase) if here(phase) && self.stage == Stage::Before => next.stage = Stage::Between,
            Event::StepIntent(phase, step) => {
                let i = at(phase, step)?;
                let allowed = i == self.done || (i < self.done && !all_done && planned.steps[i].volatile);
                next.stage = (in_steps && allowed).then_some(Stage::Acting(i))?;
            }
            Event::StepNoted(phase, step) => {
                acting(phase, step)?;
            }
            Event::StepDone(phase, step) => {
                next.done = self.done.max(acting(phase, step)? + 1);
                next.stage = Stage::Between;
            }
            Event::StepFailed(phase, step) => next.stage = Stage::Failed(acting(phase, step)?),
            Event::RebootRequested(phase)
                if here(phase) && planned.reboot && all_done && matches!(self.stage, Stage::Between | Stage::Reboot) =>
            {
                next.stage = Stage::Reboot;
            }
            Event::PhaseDone(phase)
                if here(phase) && all_done && self.stage == if planned.reboot { Stage::Reboot } else { Stage::Between } =>
            {
                next = Self { plan: self.plan.clone(), phase: self.phase + 1, done: 0, stage: Stage::Before };
            }
            _ => return None,
        }
        Some(next)
    }
}

impl<P: Phase> Event<P> {
    /// The phase that it is about.
    #[must_use]
    pub fn phase(&self) -> Option<P> {
        match self {
            Self::RunBegun(_) | Self::Finished | Self::Abandoned => None,
            Self::PhaseBegun(phase)
            | Self::StepIntent(phase, _)
            | Self::StepNoted(phase, _)
            | Self::StepDone(phase, _)
            | Self::StepFailed(phase, _)
            | Self::RebootRequested(phase)
            | Self::PhaseDone(phase) => Some(*phase),
        }
    }

    /// The step that it is about.
    #[must_use]
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::StepIntent(_, step) | Self::StepNoted(_, step) | Self::StepDone(_, step) | Self::StepFailed(_, step) => Some(step),
            _ => None,
        }
    }
}

impl<P: Phase> Display for Event<P> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::RunBegun(_) => f.write_str("the beginning of a run"),
            Self::PhaseBegun(phase) => write!(f, "the beginning of phase {phase}"),
            Self::StepIntent(phase, step) => write!(f, "the intent of step {step} of {phase}"),
            Self::StepNoted(phase, step) => write!(f, "a note of step {step} of {phase}"),
            Self::StepDone(phase, step) => write!(f, "the end of step {step} of {phase}"),
            Self::StepFailed(phase, step) => write!(f, "the failure of step {step} of {phase}"),
            Self::RebootRequested(phase) => write!(f, "the reboot of phase {phase}"),
            Self::PhaseDone(phase) => write!(f, "the end of phase {phase}"),
            Self::Finished => f.write_str("the end of the run"),
            Self::Abandoned => f.write_str("giving the run up"),
        }
    }
}

impl<P: Phase> Display for State<P> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let open = match self {
            Self::Idle => return f.write_str("no run"),
            Self::Finished => return f.write_str("a finished run"),
            Self::Abandoned => return f.write_str("an abandoned run"),
            Self::Open(open) => open,
        };
        let Some(planned) = open.planned() else { return f.write_str("a run whose phases are all done") };
        let phase = planned.phase;
        let step = open.step().map_or("", |step| step.name.as_str());
        match open.stage {
            Stage::Before => write!(f, "a run whose next phase is {phase}"),
            Stage::Between if step.is_empty() => write!(f, "a run that is at the end of phase {phase}"),
            Stage::Between => write!(f, "a run whose next step is {step} of {phase}"),
            Stage::Acting(_) => write!(f, "a run in the middle of step {step} of {phase}"),
            Stage::Failed(_) => write!(f, "a run whose step {step} of {phase} failed"),
            Stage::Reboot => write!(f, "a run that waits for the reboot at the end of {phase}"),
        }
    }
}

#[cfg(test)]
mod tests;
