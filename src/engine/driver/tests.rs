//! A run of steps that are none, stopped at every point at which it can be stopped, and carried on in the same boot or in another.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::super::trial::{self, Event, Phase, Plan, Trial, phase};
use super::*;
use crate::error::{AndNext, Next, exit_code, unanswered};

type Journal = super::Journal<Trial>;
type Reading = super::Reading<Trial>;

const RESTORED: &[(&str, bool)] = &[("stop", true), ("note", false), ("restore", false), ("check", false)];
const RESUMED: &[(&str, bool)] = &[("etcd", false), ("start", true), ("lift", false), ("wait", false)];
const FINISHED: &[(&str, bool)] = &[("clear", false)];

fn plan() -> Plan {
    vec![phase(Phase::Second, true, RESTORED), phase(Phase::Third, false, RESUMED), phase(Phase::Last, false, FINISHED)]
}

/// Makes a failure of one kind.
type OfKind = fn(&str) -> anyhow::Error;

/// A node whose state is which steps had their effect, and in which boot.
#[derive(Default)]
struct Fake {
    effects: BTreeMap<String, String>,
    /// Points passed, and the one at which the power fails.
    points: usize,
    power_fails_at: Option<usize>,
    fails_once: Option<(&'static str, OfKind)>,
    /// What the reboot is for has happened without one.
    reboot_is_behind: bool,
    noted: Option<usize>,
}

impl Fake {
    fn point(&mut self) -> Result<()> {
        self.points += 1;
        if self.power_fails_at == Some(self.points) { Err(error::interrupted("the power fails")) } else { Ok(()) }
    }

    fn reboot(&mut self) {
        self.effects.retain(|step, _| !is_volatile(step));
    }
}

fn is_volatile(step: &str) -> bool {
    plan().iter().flat_map(|p| p.steps.clone()).any(|s| s.name == step && s.volatile)
}

impl Work for Fake {
    type Of = Trial;

    fn perform(&mut self, journal: &mut Journal, phase: Phase, step: &str) -> Result<Value> {
        let planned = plan().into_iter().find(|p| p.phase == phase).unwrap();
        let here = planned.steps.iter().position(|s| s.name == step).unwrap();
        for before in &planned.steps[..here] {
            assert!(self.effects.contains_key(&before.name), "{step} acts, but {} has no effect in this boot", before.name);
        }
        self.point()?;
        if let Some((_, error)) = self.fails_once.take_if(|(name, _)| *name == step) {
            return Err(error("it hangs"));
        }
        if step == "note" && journal.reading().last_of(&Event::StepNoted(phase, step.to_owned())).is_none() {
            journal.append(&Event::StepNoted(phase, step.to_owned()), json!({"seen": 7}))?;
            self.noted = Some(self.noted.unwrap_or(0) + 1);
            self.point()?;
        }
        self.effects.insert(step.to_owned(), journal.boot().to_owned());
        self.point()?;
        Ok(Value::Null)
    }

    fn before(&mut self, _: &Journal, _: &Event) -> Result<()> {
        self.point()
    }

    fn needs_reboot(&self, _: &Journal, _: Phase) -> Result<bool> {
        Ok(!self.reboot_is_behind)
    }
}

fn begin(dir: &Path) -> PathBuf {
    let path = dir.join("progress");
    trial::begin(&path, "boot-0", &plan());
    path
}

/// Carries on until the run is finished, rebooting when asked to; returns the events without repetitions.
fn to_the_end(path: &Path, fake: &mut Fake, boot: u32) -> Vec<String> {
    after_a_soft_reboot(path, fake, boot, "")
}

/// As [`to_the_end`], from a boot that has gone through a soft reboot, as its name says.
fn after_a_soft_reboot(path: &Path, fake: &mut Fake, mut boot: u32, mut soft: &str) -> Vec<String> {
    loop {
        let mut journal = Journal::open(path, &format!("boot-{boot}{soft}")).unwrap().unwrap();
        match drive(&mut journal, fake, Until::End).unwrap() {
            Halt::Finished => break,
            Halt::Reboot(_) => {
                fake.reboot();
                (boot, soft) = (boot + 1, "");
            }
            Halt::After(phase) => panic!("stopped after {phase}"),
        }
    }
    let mut seen = Vec::new();
    for record in &Reading::of(path).unwrap().unwrap().records {
        let event = record.event.to_string();
        if !seen.contains(&event) {
            seen.push(event);
        }
    }
    seen
}

#[test]
fn a_run_stopped_at_any_point_ends_as_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::default();
    let expected = to_the_end(&begin(dir.path()), &mut fake, 0);
    let points = fake.points;
    assert!(points > 40);
    for (at, reboots, torn) in (1..=points).flat_map(|at| [(at, false, false), (at, true, false), (at, true, true)]) {
        let path = begin(dir.path());
        let mut fake = Fake { power_fails_at: Some(at), ..Fake::default() };
        let mut boot = 0;
        loop {
            let mut journal = Journal::open(&path, &format!("boot-{boot}")).unwrap().unwrap();
            match drive(&mut journal, &mut fake, Until::End) {
                Ok(Halt::Reboot(_)) => {}
                Ok(halt) => panic!("{halt:?} before the power failed at {at}"),
                Err(error) => {
                    assert_eq!(exit_code(&error), 75);
                    break;
                }
            }
            fake.reboot();
            boot += 1;
        }
        if torn {
            std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"version\":1,\"sequ").unwrap();
        }
        if reboots {
            fake.reboot();
            boot += 1;
        }
        assert_eq!(to_the_end(&path, &mut fake, boot), expected, "stopped at point {at}, rebooted: {reboots}");
        assert_eq!(fake.noted, Some(1), "noted once, not more, when stopped at point {at}");
    }
}

/// It ends what runs, as a real one does, and is not the reboot that a phase ends with.
#[test]
fn a_soft_reboot_at_any_point_undoes_what_runs_and_is_no_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::default();
    let expected = to_the_end(&begin(dir.path()), &mut fake, 0);
    for at in 1.. {
        let path = begin(dir.path());
        let mut fake = Fake { power_fails_at: Some(at), ..Fake::default() };
        let first = drive(&mut Journal::open(&path, "boot-0").unwrap().unwrap(), &mut fake, Until::End);
        fake.power_fails_at = None;
        fake.reboot();
        assert_eq!(after_a_soft_reboot(&path, &mut fake, 0, "+1"), expected, "a soft reboot at point {at}");
        let resumed = RESUMED.iter().map(|(step, _)| fake.effects[*step].as_str());
        assert!(resumed.eq(RESUMED.iter().map(|_| "boot-1")), "the phase after the reboot came before it: {:?}", fake.effects);
        // The last point is the reboot that it has come to.
        if let Ok(halt) = first {
            assert!(halt == Halt::Reboot(Phase::Second) && at > 10, "{halt:?} at point {at}");
            break;
        }
    }
}

#[test]
fn a_failure_is_in_the_journal_and_the_step_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = begin(dir.path());
    let mut fake = Fake { fails_once: Some(("restore", |m| unanswered(m))), ..Fake::default() };
    let mut journal = Journal::open(&path, "boot-0").unwrap().unwrap();
    let error = drive(&mut journal, &mut fake, Until::End).unwrap_err();
    assert_eq!(exit_code(&error), 69);
    let text = format!("{error:#}");
    assert_eq!(text, "phase second, step restore failed: it hangs; next: put the cause right and `recovery resume`, or `recovery abandon`");
    let last = journal.reading().last().clone();
    assert_eq!(last.failure().unwrap().message, "it hangs");
    drop(journal);
    assert!(to_the_end(&path, &mut fake, 0).contains(&"the end of the run".to_owned()));
}

#[test]
fn one_phase_at_a_time_stops_after_each_in_which_something_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = begin(dir.path());
    let mut fake = Fake::default();
    let mut halts = Vec::new();
    for boot in ["boot-0", "boot-1", "boot-1"] {
        let mut journal = Journal::open(&path, boot).unwrap().unwrap();
        halts.push(drive(&mut journal, &mut fake, Until::Phase).unwrap());
    }
    assert_eq!(halts, [Halt::Reboot(Phase::Second), Halt::After(Phase::Third), Halt::Finished]);
}

#[test]
fn one_phase_that_was_stopped_at_any_point_and_asked_for_again_is_no_phase_more() {
    let dir = tempfile::tempdir().unwrap();
    let step = |fake: &mut Fake, path: &Path, boot| drive(&mut Journal::open(path, boot).unwrap().unwrap(), fake, Until::Phase);
    for reboot_is_behind in [false, true] {
        for at in 1.. {
            let path = begin(dir.path());
            let mut fake = Fake { power_fails_at: Some(at), reboot_is_behind, ..Fake::default() };
            let first = step(&mut fake, &path, "boot-0");
            let halt = first.as_ref().map_or_else(|_| step(&mut fake, &path, "boot-0").unwrap(), |halt| *halt);
            let whole = if reboot_is_behind { Halt::After(Phase::Second) } else { Halt::Reboot(Phase::Second) };
            assert_eq!(halt, whole, "stopped at point {at}");
            if first.is_ok() {
                assert!(at > 10, "nothing was ever stopped");
                break;
            }
        }
    }
    let (path, mut fake) = (begin(dir.path()), Fake::default());
    // The phase after the reboot has none of its own: its end is written by who did its last step, or by who comes after that one.
    assert_eq!(step(&mut fake, &path, "boot-0").unwrap(), Halt::Reboot(Phase::Second));
    let reached = std::fs::read(&path).unwrap();
    let before = fake.points;
    assert_eq!(step(&mut fake, &path, "boot-1").unwrap(), Halt::After(Phase::Third));
    for at in 1..=fake.points - before {
        std::fs::write(&path, &reached).unwrap();
        let mut fake = Fake { power_fails_at: Some(at), ..Fake::default() };
        assert_eq!(exit_code(&step(&mut fake, &path, "boot-1").unwrap_err()), 75);
        assert_eq!(step(&mut fake, &path, "boot-1").unwrap(), Halt::After(Phase::Third), "stopped at point {at}");
    }
}

#[test]
fn a_reboot_whose_purpose_is_behind_the_node_is_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = begin(dir.path());
    let mut fake = Fake { reboot_is_behind: true, ..Fake::default() };
    let mut journal = Journal::open(&path, "boot-0").unwrap().unwrap();
    assert_eq!(drive(&mut journal, &mut fake, Until::End).unwrap(), Halt::Finished);
    assert!(journal.reading().records.iter().all(|record| record.boot == "boot-0"));
}

/// In the message of a step, and over the journal to whoever follows the run.
#[test]
fn every_failure_keeps_its_kind_and_its_way_out() {
    use crate::error::{busy, damaged, locked, misfit, no_space, not_permitted, unsupported, usage};
    let kinds: [(OfKind, FailureKind); 10] = [
        (|m| anyhow!(m.to_owned()), FailureKind::Failed),
        (|m| usage(m), FailureKind::Usage),
        (|m| unsupported(m), FailureKind::Unsupported),
        (|m| damaged(m), FailureKind::Damaged),
        (|m| unanswered(m), FailureKind::Unanswered),
        (|m| no_space(m), FailureKind::NoSpace),
        (|m| locked(m), FailureKind::Locked),
        (|m| busy(m), FailureKind::Busy),
        (|m| not_permitted(m), FailureKind::NotPermitted),
        (|m| misfit(m).and_next(Next::Reboot), FailureKind::Misfit),
    ];
    for (make, kind) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&begin(dir.path()), "boot-0").unwrap().unwrap();
        let mut fake = Fake { fails_once: Some(("restore", make)), ..Fake::default() };
        let met = drive(&mut journal, &mut fake, Until::End).unwrap_err();
        let followed = recorded_failure(journal.reading()).unwrap();
        assert_eq!((error::kind(&met), error::kind(&followed)), (kind, kind));
        assert_eq!(format!("{met:#}"), format!("{followed:#}"));
        assert_eq!(error::next(&met), error::next(&followed));
        assert_eq!(error::next(&met) == Some(&Next::Reboot), kind == FailureKind::Misfit);
    }
}

/// A journal of an agent that wrote exit codes alone.
#[test]
fn a_failure_in_an_older_journal_has_the_kind_of_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&begin(dir.path()), "boot-0").unwrap().unwrap();
    let (phase, step) = (Phase::Second, RESTORED[0].0.to_owned());
    journal.append(&Event::PhaseBegun(phase), Value::Null).unwrap();
    journal.append(&Event::StepIntent(phase, step.clone()), Value::Null).unwrap();
    journal.append(&Event::StepFailed(phase, step), json!({"cause": "it hangs", "exit": 69})).unwrap();
    let reading = journal.reading();
    assert_eq!(error::kind(&recorded_failure(reading).unwrap()), FailureKind::Unanswered);
}

#[test]
fn a_full_disk_keeps_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&begin(dir.path()), "boot-0").unwrap().unwrap();
    let full = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull)).context("writing");
    assert_eq!(error::kind(&with_next(journal.reading(), &full)), FailureKind::NoSpace);
}
