//! Every pair of state and event of a small plan, and what must be done next in every state.

use super::super::trial::{Event, PHASES, Phase, Plan, State, phase};
use super::{Arc, Due, Open, Stage, transition};

fn plan() -> Arc<Plan> {
    Arc::new(vec![
        phase(Phase::Second, true, &[("stop", true), ("restore", false), ("check", false)]),
        phase(Phase::Third, false, &[("start", true), ("wait", false)]),
    ])
}

fn open(phase: usize, done: usize, stage: Stage) -> State {
    State::Open(Open { plan: plan(), phase, done, stage })
}

/// Every state that the plan can be in.
fn states() -> Vec<State> {
    let mut states = vec![State::Idle, State::Finished, State::Abandoned, open(2, 0, Stage::Before)];
    for (phase, planned) in plan().iter().enumerate() {
        let last = planned.steps.len();
        states.push(open(phase, 0, Stage::Before));
        for done in 0..=last {
            states.push(open(phase, done, Stage::Between));
            for i in (0..last).filter(|i| *i == done || (*i < done && done < last && planned.steps[*i].volatile)) {
                states.push(open(phase, done, Stage::Acting(i)));
                states.push(open(phase, done, Stage::Failed(i)));
            }
        }
        if planned.reboot {
            states.push(open(phase, last, Stage::Reboot));
        }
    }
    states
}

/// Every event that the plan can know, and some that it cannot.
fn events() -> Vec<Event> {
    let mut events = vec![Event::RunBegun(plan()), Event::RunBegun(Arc::new(Vec::new())), Event::Finished, Event::Abandoned];
    for phase in PHASES {
        events.extend([Event::PhaseBegun(phase), Event::RebootRequested(phase), Event::PhaseDone(phase)]);
        for step in ["stop", "restore", "check", "start", "wait", "unheard-of"] {
            let step = step.to_owned();
            events.extend([
                Event::StepIntent(phase, step.clone()),
                Event::StepNoted(phase, step.clone()),
                Event::StepDone(phase, step.clone()),
                Event::StepFailed(phase, step),
            ]);
        }
    }
    events
}

/// The same rules once more, as a list of sentences instead of a function: what may follow, and nothing else.
fn expected(state: &State) -> Vec<(Event, State)> {
    let State::Open(at) = state else {
        return if *state == State::Idle { vec![(Event::RunBegun(plan()), open(0, 0, Stage::Before))] } else { Vec::new() };
    };
    let mut may = vec![(Event::Abandoned, State::Abandoned)];
    let Some(planned) = plan().get(at.phase).cloned() else {
        may.push((Event::Finished, State::Finished));
        return may;
    };
    let (phase, last, name) = (planned.phase, planned.steps.len(), |i: usize| planned.steps[i].name.clone());
    match at.stage {
        Stage::Before => may.push((Event::PhaseBegun(phase), open(at.phase, 0, Stage::Between))),
        Stage::Reboot => {
            may.push((Event::RebootRequested(phase), state.clone()));
            may.push((Event::PhaseDone(phase), open(at.phase + 1, 0, Stage::Before)));
        }
        Stage::Between if at.done == last && planned.reboot => {
            may.push((Event::RebootRequested(phase), open(at.phase, last, Stage::Reboot)));
        }
        Stage::Between if at.done == last => may.push((Event::PhaseDone(phase), open(at.phase + 1, 0, Stage::Before))),
        Stage::Between | Stage::Failed(_) => {}
        Stage::Acting(i) => {
            may.push((Event::StepNoted(phase, name(i)), state.clone()));
            may.push((Event::StepDone(phase, name(i)), open(at.phase, at.done.max(i + 1), Stage::Between)));
            may.push((Event::StepFailed(phase, name(i)), open(at.phase, at.done, Stage::Failed(i))));
        }
    }
    if matches!(at.stage, Stage::Between | Stage::Acting(_) | Stage::Failed(_)) {
        for i in (0..last).filter(|i| *i == at.done || (*i < at.done && at.done < last && planned.steps[*i].volatile)) {
            may.push((Event::StepIntent(phase, name(i)), open(at.phase, at.done, Stage::Acting(i))));
        }
    }
    may
}

#[test]
fn every_pair_of_state_and_event_has_its_answer() {
    let (mut legal, mut illegal) = (0, 0);
    for state in states() {
        let may = expected(&state);
        for event in events() {
            let want = may.iter().find(|(e, _)| *e == event).map(|(_, next)| next);
            match transition(&state, &event) {
                Ok(next) => {
                    assert_eq!(Some(&next), want, "{event:?} in {state:?}");
                    assert!(states().contains(&next), "{event:?} leads {state:?} to a state that is none: {next:?}");
                    legal += 1;
                }
                Err(error) => {
                    assert_eq!(want, None, "{event:?} in {state:?}: {error}");
                    assert!(error.to_string().contains("cannot follow"));
                    illegal += 1;
                }
            }
        }
        assert!(may.iter().all(|(event, _)| events().contains(event)), "an event of {state:?} was not tried");
    }
    assert_eq!(legal + illegal, states().len() * events().len());
    assert!(legal > states().len());
}

#[test]
fn plans_out_of_order_or_with_equal_names_are_refused() {
    let one = |of, names: &[&str]| phase(of, false, &names.iter().map(|name| (*name, false)).collect::<Vec<_>>());
    let begins = |plan: Plan| transition(&State::Idle, &Event::RunBegun(Arc::new(plan))).is_ok();
    assert!(begins(vec![one(Phase::Second, &["a", "b"]), one(Phase::Last, &["a"])]));
    assert!(!begins(vec![one(Phase::Last, &["a"]), one(Phase::Third, &["a"])]));
    assert!(!begins(vec![one(Phase::Third, &["a"]), one(Phase::Third, &["a"])]));
    assert!(!begins(vec![one(Phase::Third, &["a", "a"])]));
    assert!(!begins(vec![one(Phase::Third, &[])]));
}

#[test]
fn doing_what_is_next_leads_from_everywhere_to_the_end() {
    for (state, boots) in states().into_iter().flat_map(|s| [(s.clone(), false), (s, true)]) {
        let (mut state, mut events, mut lost) = (state, 0, boots);
        while let State::Open(at) = &state {
            let event = match at.due(|_| lost, true) {
                Due::Begin(phase) => Event::PhaseBegun(phase),
                Due::Step(phase, step) if matches!(at.stage, Stage::Acting(i) if at.planned().unwrap().steps[i] == *step) => {
                    lost = false;
                    Event::StepDone(phase, step.name.clone())
                }
                Due::Step(phase, step) => Event::StepIntent(phase, step.name.clone()),
                Due::Reboot(phase) => Event::RebootRequested(phase),
                Due::End(phase) => Event::PhaseDone(phase),
                Due::Finish => Event::Finished,
            };
            state = transition(&state, &event).unwrap();
            events += 1;
            assert!(events < 50, "no end from {state:?}");
        }
    }
}

#[test]
fn a_reboot_makes_volatile_steps_come_again_and_nothing_else() {
    let State::Open(at) = open(0, 2, Stage::Failed(2)) else { unreachable!() };
    assert!(matches!(at.due(|_| true, false), Due::Step(Phase::Second, s) if s.name == "stop"));
    assert!(matches!(at.due(|_| false, false), Due::Step(Phase::Second, s) if s.name == "check"));
}

#[test]
fn a_phase_that_ends_with_a_reboot_does_not_end_without_one() {
    let State::Open(at) = open(0, 3, Stage::Reboot) else { unreachable!() };
    assert_eq!(at.due(|_| false, false), Due::Reboot(Phase::Second));
    assert_eq!(at.due(|_| false, true), Due::End(Phase::Second));
}
