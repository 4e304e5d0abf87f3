//! The account of a run, for people who were not there: the report that `history/` keeps, or where an open run stands, with each attempt at each step from
//! the journal. Nothing is changed, and no lock is needed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::history;
use super::procedure::{Event, Phase, Reading, State};
use super::report::{RunStatus, StepState, words_of};
use super::status::status;
use crate::engine::journal::Record;
use crate::engine::machine::Phase as _;
use crate::error::{AndNext, Failure, FailureKind, Next, damaged, kind, misfit, run as command, said};
use crate::formats::history as format;
use crate::node::identity::Identity;
use crate::node::profile::Profile;
use crate::node::{Node, dir::RecoveryDir, durable};
use crate::session::Session;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It has not.
    Open,
    /// It reached its end.
    Finished,
    /// It was given up.
    Abandoned,
    /// Another run began in its place.
    Replaced,
}

/// The account of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Account {
    /// Its id, or the name under which it is kept where nothing says its id.
    pub id: String,
    /// The backup that it restores.
    pub backup: Option<String>,
    /// The node's name.
    pub node: Option<String>,
    /// Version of the agent that began it.
    pub agent: Option<String>,
    /// How it ended.
    pub end: End,
    /// In words: what it is doing, or was doing last.
    pub state: Option<String>,
    /// When it was begun.
    pub begun: Option<Timestamp>,
    /// When it ended, or something last happened.
    pub ended: Option<Timestamp>,
    /// How long its steps took, seconds: every attempt, and waiting.
    pub seconds: f64,
    /// Of those, how long they waited for others.
    pub waited: f64,
    /// Of those, how long attempts took that did not reach their end; where the journal is not known, none.
    pub unfinished: f64,
    /// Every phase of its plan.
    pub phases: Vec<PhaseAccount>,
    /// What was found and gone on with.
    pub warnings: Vec<String>,
    /// What an abandoned run put back, and what it left to do by hand.
    pub put_back: Vec<String>,
    /// Steps that had changed the node's disk when the run was abandoned.
    pub changed: Vec<String>,
    /// What state an abandoned run left the node in.
    pub left: Option<String>,
    /// Why its journal is not in this account; attempts and times are not known then.
    pub without_journal: Option<String>,
    /// How to go on.
    #[serde(serialize_with = "words_of")]
    pub next: Option<Next>,
}

/// A phase of a run.
#[derive(Debug, Clone, Serialize)]
pub struct PhaseAccount {
    /// Which.
    pub phase: String,
    /// How long its steps took, seconds: every attempt, and waiting.
    pub seconds: f64,
    /// Of those, how long they waited for others.
    pub waited: f64,
    /// Of those, how long attempts took that did not reach their end.
    pub unfinished: f64,
    /// Its steps.
    pub steps: Vec<StepAccount>,
    /// The reboots at its end.
    pub reboots: Vec<Reboot>,
}

/// A reboot that a run asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reboot {
    /// When it was asked for.
    pub asked: Timestamp,
    /// When the run went on after it.
    pub back: Option<Timestamp>,
}

/// A step of a run.
#[derive(Debug, Clone, Serialize)]
pub struct StepAccount {
    /// Its name.
    pub step: String,
    /// What became of it.
    pub state: StepState,
    /// How often it was tried.
    pub tries: usize,
    /// How long it took the last time, seconds, waiting included.
    pub seconds: Option<f64>,
    /// Of those, how long it waited for others.
    pub waited: Option<f64>,
    /// Each time it was tried, as the journal has it.
    pub attempts: Vec<Attempt>,
}

/// An attempt at a step.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    /// When it began.
    pub begun: Timestamp,
    /// When it ended, or was last heard of.
    pub ended: Timestamp,
    /// How it ended.
    pub end: AttemptEnd,
    /// How long it took, seconds, waiting included; where the step does not say, by the wall clock.
    pub seconds: f64,
    /// Of those, how long it waited for others, as far as it says.
    pub waited: f64,
    /// Why it failed.
    pub failure: Option<FailureAccount>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptEnd {
    /// The step had its effect.
    Done,
    /// It failed.
    Failed,
    /// It was cut short: by a signal, a crash, a power cut.
    CutShort,
    /// It has not ended, as far as anyone knows.
    Open,
}

/// A failure, as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureAccount {
    /// Its kind.
    pub kind: String,
    /// What failed, on what, and why.
    pub message: String,
    /// What to do about it, where it said so.
    pub next: Option<String>,
}

/// What there is of a run.
#[derive(Debug, Default)]
struct Kept {
    report: bool,
    journal: bool,
}

/// The account of the run `wanted`; without it, of the one that is open or ended last.
///
/// # Errors
/// [`FailureKind::Misfit`] when there is no such run, with the ids of those there are; when what is kept of it cannot
/// be read.
pub fn account(session: &Session<'_>, wanted: Option<&str>) -> Result<Account> {
    let dir = session.dir;
    let open = Reading::in_progress(dir);
    let is_wanted = |reading: &Reading| wanted.is_none_or(|wanted| wanted == reading.run);
    let open = match open {
        Ok(Some(reading)) if is_wanted(&reading) => return of_open(session, &reading),
        Err(error) if wanted.is_none() => return Err(error),
        open => open.ok().flatten(),
    };
    let runs = kept(&dir.history());
    let mut known: Vec<&str> = runs.keys().map(String::as_str).collect();
    known.extend(open.as_ref().map(|reading| reading.run.as_str()));
    let Some(id) = wanted.map(str::to_owned).or_else(|| last(dir, &runs)) else {
        return Err(misfit(format!("no recovery of this node is known in {}", dir.shown().display())));
    };
    let Some(kept) = runs.get(&id) else {
        let known = if known.is_empty() { "none is known".to_owned() } else { format!("those there are: {}", known.join(", ")) };
        return Err(misfit(format!("there is no recovery `{id}` in {}; {known}", dir.shown().display()))
            .and_next(command("recovery report", "is about the last one")));
    };
    of_kept(session.node, &dir.history(), &id, kept)
}

/// The runs in `history/`, by the names of their files. What upgrade-recovery.sh left is no run of this agent.
fn kept(history: &Path) -> BTreeMap<String, Kept> {
    let mut runs: BTreeMap<String, Kept> = BTreeMap::new();
    for entry in std::fs::read_dir(history).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((stem, end)) = name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty() && !stem.starts_with(['.'])) else { continue };
        match end {
            "json" => runs.entry(stem.to_owned()).or_default().report = true,
            "progress" if !stem.starts_with("upgrade-recovery-") => runs.entry(stem.to_owned()).or_default().journal = true,
            _ => {}
        }
    }
    runs
}

/// The run that ended last, as `status` says; where no report can be read, the one whose files were written last.
fn last(dir: &RecoveryDir, runs: &BTreeMap<String, Kept>) -> Option<String> {
    if let Some(run) = history::last(dir).filter(|run| runs.contains_key(&run.id)) {
        return Some(run.id);
    }
    let written = |(id, kept): (&String, &Kept)| {
        let name = format!("{id}.{}", if kept.report { "json" } else { "progress" });
        Some((kept.report, dir.history().join(name).metadata().ok()?.modified().ok()?, id.clone()))
    };
    // A run that another one replaced has no report, and is never the last one.
    runs.iter().filter_map(written).max().map(|(_, _, id)| id)
}

fn of_open(session: &Session<'_>, reading: &Reading) -> Result<Account> {
    let next = status(session)?.next;
    let is_open = matches!(reading.state, State::Open(_));
    let mut account = Account::bare(session.node, &reading.run);
    account.run(RunStatus::of(reading).into());
    account.journal(reading);
    account.end = if is_open { End::Open } else { end_of(reading) };
    account.next = next;
    Ok(account)
}

fn of_kept(node: &Node, history: &Path, id: &str, kept: &Kept) -> Result<Account> {
    let path = history.join(format!("{id}.progress"));
    let journal = if kept.journal { Reading::named(&path, &node.shown(&path)) } else { Ok(None) };
    let mut account = Account::bare(node, id);
    if kept.report {
        let path = history.join(format!("{id}.json"));
        let read = durable::read(&path, durable::SMALL).map_err(|error| damaged(format!("it cannot be read: {error}")));
        let report =
            read.and_then(|json| format::read(&json)).map_err(|error| error.context(format!("reading {}", node.shown(&path).display())))?;
        account.report(report);
    }
    match journal {
        Ok(Some(reading)) => {
            if !kept.report {
                account.run(RunStatus::of(&reading).into());
                account.end = end_of(&reading);
            }
            account.journal(&reading);
        }
        Ok(None) => account.without_journal = Some("it is not kept beside the report".to_owned()),
        // What to do about the journal of an open run is not what to do about one that is over.
        Err(error) if !kept.report && kind(&error) == FailureKind::Damaged => return Err(damaged(said(&error))),
        Err(error) if !kept.report => return Err(error),
        Err(error) => account.without_journal = Some(said(&error)),
    }
    Ok(account)
}

/// How the run of a journal ended that is kept by itself.
fn end_of(reading: &Reading) -> End {
    match reading.state {
        State::Finished => End::Finished,
        State::Abandoned => End::Abandoned,
        State::Open(_) | State::Idle => End::Replaced,
    }
}

impl Account {
    fn bare(node: &Node, id: &str) -> Self {
        let name = || Some(node.read_text("/etc/hostname").ok()?.trim().to_owned()).filter(|name| !name.is_empty());
        let identity = Profile::of(node).and_then(|profile| Identity::of(node, profile)).ok();
        Self {
            id: id.to_owned(),
            backup: None,
            node: identity.map(|identity| identity.node_name).or_else(name),
            agent: None,
            end: End::Replaced,
            state: None,
            begun: None,
            ended: None,
            seconds: 0.0,
            waited: 0.0,
            unfinished: 0.0,
            phases: Vec::new(),
            warnings: Vec::new(),
            put_back: Vec::new(),
            changed: Vec::new(),
            left: None,
            without_journal: None,
            next: None,
        }
    }

    /// Takes over what a report says.
    fn report(&mut self, report: format::V2) {
        let format::V2 { agent, end, run, put_back, changed, state: left, .. } = report;
        self.end = match end {
            format::EndV1::Finished => End::Finished,
            format::EndV1::Abandoned => End::Abandoned,
        };
        (self.agent, self.put_back, self.changed, self.left) = (agent, put_back, changed, left);
        if let Some(run) = run {
            self.run(run);
        }
    }

    /// Takes over where a run stands.
    fn run(&mut self, run: format::RunV1) {
        let format::RunV1 { id, backup, state, begun, since, phases, warnings, .. } = run;
        (self.id, self.backup, self.state) = (id, Some(backup), Some(state));
        (self.begun, self.ended, self.warnings) = (Some(begun), Some(since), warnings);
        self.phases = phases.into_iter().map(PhaseAccount::of).collect();
        self.sum();
    }

    fn sum(&mut self) {
        let sum = |of: fn(&PhaseAccount) -> f64| self.phases.iter().map(of).fold(0.0, std::ops::Add::add);
        (self.seconds, self.waited, self.unfinished) = (sum(|one| one.seconds), sum(|one| one.waited), sum(|one| one.unfinished));
    }

    /// Adds each attempt and each reboot of a journal.
    fn journal(&mut self, reading: &Reading) {
        self.agent = reading.agent.clone().or(self.agent.take());
        let records = &reading.records;
        for (index, record) in records.iter().enumerate() {
            let following = records.get(index + 1);
            match &record.event {
                Event::StepIntent(phase, name) => {
                    let attempt = attempt(&records[index..]);
                    let steps = self.phases.iter_mut().filter(|one| one.phase == phase.name()).flat_map(|one| &mut one.steps);
                    steps.filter(|step| step.step == *name).for_each(|step| step.attempts.push(attempt.clone()));
                }
                // What it was for can have happened before.
                Event::RebootRequested(phase) if following.is_none_or(|next| next.boot != record.boot) => {
                    let reboot = Reboot { asked: record.time, back: following.map(|next| next.time) };
                    let phases = self.phases.iter_mut().filter(|one| one.phase == phase.name());
                    phases.for_each(|one| one.reboots.push(reboot.clone()));
                }
                _ => {}
            }
        }
        self.phases.iter_mut().for_each(PhaseAccount::sum);
        self.sum();
    }
}

/// The attempt at a step that begins with the first of these lines.
fn attempt(records: &[Record<Phase>]) -> Attempt {
    let begun = records[0].time;
    let ends = |end: AttemptEnd, ended: Timestamp| {
        let seconds = ended.duration_since(begun).as_secs_f64().max(0.0);
        Attempt { begun, ended, end, seconds, waited: 0.0, failure: None }
    };
    let mut heard = begun;
    for record in &records[1..] {
        let number = |name: &str| record.detail.get(name).and_then(Value::as_f64);
        match record.event {
            Event::StepNoted(..) => heard = record.time,
            Event::StepDone(..) => {
                let done = ends(AttemptEnd::Done, record.time);
                return Attempt { seconds: number("seconds").unwrap_or(done.seconds), waited: number("waited").unwrap_or(0.0), ..done };
            }
            Event::StepFailed(..) => {
                return Attempt { failure: record.failure().map(FailureAccount::from), ..ends(AttemptEnd::Failed, record.time) };
            }
            _ => return ends(AttemptEnd::CutShort, heard),
        }
    }
    ends(AttemptEnd::Open, heard)
}

impl From<Failure> for FailureAccount {
    fn from(Failure { kind, message, next }: Failure) -> Self {
        Self { kind: kind.name(), message, next: next.map(|next| next.to_string()) }
    }
}

impl PhaseAccount {
    /// True when any of its steps has.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.steps.iter().any(|step| step.state != StepState::Waiting)
    }

    fn of(phase: format::PhaseV1) -> Self {
        let steps = phase.steps.into_iter().map(StepAccount::of).collect();
        let mut of = Self { phase: phase.phase, seconds: 0.0, waited: 0.0, unfinished: 0.0, steps, reboots: Vec::new() };
        of.sum();
        of
    }

    fn sum(&mut self) {
        (self.seconds, self.waited, self.unfinished) = (0.0, 0.0, 0.0);
        for step in &self.steps {
            self.seconds += step.seconds.unwrap_or(0.0);
            self.waited += step.waited.unwrap_or(0.0);
            // What the step itself says is about the last time that it was done.
            let said = step.attempts.iter().rposition(|attempt| attempt.end == AttemptEnd::Done);
            for (_, attempt) in step.attempts.iter().enumerate().filter(|(at, _)| Some(*at) != said) {
                self.seconds += attempt.seconds;
                self.waited += attempt.waited;
                self.unfinished += if attempt.end == AttemptEnd::Done { 0.0 } else { attempt.seconds };
            }
        }
    }
}

impl StepAccount {
    fn of(step: format::StepV1) -> Self {
        let format::StepV1 { name: step, state, attempts: tries, seconds, waited, .. } = step;
        Self { step, state: state.into(), tries, seconds, waited, attempts: Vec::new() }
    }
}

#[cfg(test)]
mod tests;
