//! A procedure for the engine's own tests.

use serde_json::Value;

use super::journal::{Journal, New, Procedure, Reading};
use super::machine::{self, PlannedPhase, PlannedStep};
use crate::error::{self, FailureKind, Next};

/// It is asked for a word.
#[derive(Debug)]
pub(super) struct Trial;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    First,
    Second,
    Third,
    Fourth,
    Last,
}

pub(super) type Plan = machine::Plan<Phase>;
pub(super) type Event = machine::Event<Phase>;
pub(super) type State = machine::State<Phase>;

pub(super) const PHASES: [Phase; 5] = [Phase::First, Phase::Second, Phase::Third, Phase::Fourth, Phase::Last];

impl machine::Phase for Phase {
    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Third => "third",
            Self::Fourth => "fourth",
            Self::Last => "last",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        PHASES.into_iter().find(|phase| machine::Phase::name(*phase) == name)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(machine::Phase::name(*self))
    }
}

impl Procedure for Trial {
    const NAME: &'static str = "trial";
    const INTERRUPTED: &'static str = "the trial is open";
    type Phase = Phase;
    type Beginning = String;

    fn read_beginning(json: Value) -> serde_json::Result<String> {
        serde_json::from_value(json)
    }

    fn write_beginning(asked: &String) -> serde_json::Result<Value> {
        serde_json::to_value(asked)
    }

    fn is_foreign(bytes: &[u8]) -> bool {
        bytes == b"another tool's\n"
    }

    fn past_the_journal() -> Next {
        Next::Restart { backup: None }
    }

    fn way_on(_: &Reading<Self>, kind: FailureKind) -> Next {
        if kind == FailureKind::Interrupted { error::by_hand("try it again") } else { Next::Resume }
    }
}

/// A phase with steps of these names, each volatile or not.
pub(super) fn phase(phase: Phase, reboot: bool, steps: &[(&str, bool)]) -> PlannedPhase<Phase> {
    let step = |(name, volatile): &(&str, bool)| PlannedStep { name: (*name).to_owned(), volatile: *volatile };
    PlannedPhase { phase, reboot, steps: steps.iter().map(step).collect() }
}

/// Begins the journal of a run.
pub(super) fn begin(path: &std::path::Path, boot: &str, plan: &Plan) -> Journal<Trial> {
    Journal::begin(path, New { run: "run-1", subject: "b-1", boot }, plan, &"a word".to_owned()).unwrap()
}
