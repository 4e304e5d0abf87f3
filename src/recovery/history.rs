//! Where runs go when they are over: journal and report of each, by its id, in `history/`.

use std::path::Path;

use anyhow::{Context, Result};

use super::procedure::{Phase, Reading};
use super::report::{AbandonReport, Outcome, PhaseStatus, RunReport, RunStatus, StepState, StepStatus};
use super::undo::Undo;
use crate::engine::machine::Phase as _;
use crate::formats::{self, history as format};
use crate::node::dir::RecoveryDir;
use crate::node::durable;
use crate::report::event::{self, About, tell};
use crate::session::Locked;

/// The journal, if it can be read. `restart` and `abandon` go past one that cannot: it is a warning.
pub(super) fn readable(dir: &RecoveryDir) -> Option<Reading> {
    Reading::in_progress(dir).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        None
    })
}

/// Puts a run that is finished away: its report, then its journal, go to `history/`. Done again after a crash, it ends the same.
pub(super) fn keep_finished(session: &Locked<'_>, reading: &Reading) -> Result<()> {
    let report = RunReport::of(reading, Outcome::Finished);
    let said =
        format!("recovery {} is finished: its steps took {:.0} s, {:.0} of them waiting", reading.run, report.seconds, report.waited);
    keep(session, Some(&reading.run), &report.into())?;
    let about = About { run: Some(&reading.run), backup: Some(&reading.subject), ..About::default() };
    tell(&event::RECOVERY_FINISHED, about, &said);
    Ok(())
}

/// The run that ended last, when its report can be read: for people, so that nothing is made of one that cannot.
pub(super) fn last(dir: &RecoveryDir) -> Option<RunStatus> {
    let report = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let json = (path.extension()? == "json").then(|| durable::read(&path, durable::SMALL).ok())??;
        RunStatus::of_format(format::read(&json).ok()?.run?)
    };
    std::fs::read_dir(dir.history()).ok()?.filter_map(report).max_by_key(|run| run.since)
}

/// The report of a run that is finished.
pub(super) fn report_of(dir: &RecoveryDir, run: &str) -> Result<RunReport> {
    let name = format!("{run}.json");
    let read = || RunReport::of_history(&durable::read(&dir.history().join(&name), durable::SMALL)?);
    read().with_context(|| format!("the recovery has ended; reading {}", dir.shown_history().join(&name).display()))
}

impl RunReport {
    /// Reads the report of a run that is finished, as `history/` keeps it.
    ///
    /// # Errors
    /// When it is not one, or is that of a run that was given up.
    pub fn of_history(json: &[u8]) -> Result<Self> {
        let report = format::read(json)?;
        let run = report.run.and_then(RunStatus::of_format).context("it does not say what was done")?;
        anyhow::ensure!(report.end == format::EndV1::Finished, "it is that of a run that was given up");
        Ok(Self { outcome: Outcome::Finished, run, seconds: report.seconds, waited: report.waited, next: None })
    }
}

fn write_report(dir: &RecoveryDir, name: &str, report: &format::V2) -> Result<()> {
    let json = formats::to_json(report).context("serializing the report")?;
    durable::write(&dir.history().join(format!("{name}.json")), &json, 0o600)
}

/// Gives the journal so far a second name in `history/`: the new one replaces the first in one step, so there is never none.
pub(super) fn keep_journal_so_far(session: &Locked<'_>, run: Option<&str>) -> Result<()> {
    let dir = session.dir;
    let name = format!("{}.progress", name_of(dir, run)?);
    let path = dir.history().join(&name);
    if !dir.in_recovery() {
        return Ok(());
    }
    durable::remove(&path)?;
    std::fs::hard_link(dir.journal(), &path)
        .with_context(|| format!("moving the journal to {}", dir.shown_history().join(&name).display()))?;
    durable::sync_dir(&dir.history())
}

/// Moves the notes of a recovery that upgrade-recovery.sh did not end to `history/`, and says so.
pub(super) fn set_aside_old(session: &Locked<'_>) -> Result<Option<String>> {
    let dir = session.dir;
    let Some(old) = dir.old_recovery() else { return Ok(None) };
    durable::create_dir(&dir.history(), 0o700)?;
    let name = format!("upgrade-recovery-{}.progress", jiff::Timestamp::now().as_second());
    durable::rename(&dir.journal(), &dir.history().join(&name))?;
    Ok(Some(format!("{old}: its notes are now {}", dir.shown_history().join(name).display())))
}

/// The name of a run's files in `history/`, which is made. A run nobody can name is called by the time.
fn name_of(dir: &RecoveryDir, run: Option<&str>) -> Result<String> {
    durable::create_dir(&dir.history(), 0o700)?;
    let plain = |run: &&str| Path::new(run).components().count() == 1 && !run.contains(['/', '.']) && !run.is_empty();
    Ok(run.filter(plain).map_or_else(|| format!("unknown-{}", jiff::Timestamp::now().as_second()), str::to_owned))
}

/// Nothing is left to undo; report and journal of a run go to `history/`. The journal goes last: until then, every verb sees a run that is
/// over and puts it away.
pub(super) fn keep(session: &Locked<'_>, run: Option<&str>, report: &format::V2) -> Result<()> {
    let dir = session.dir;
    let name = name_of(dir, run)?;
    write_report(dir, &name, report)?;
    Undo::forget(session)?;
    if dir.in_recovery() {
        durable::rename(&dir.journal(), &dir.history().join(format!("{name}.progress")))?;
        // A restart that was cut short has linked it there before, and a rename between two names of one file does nothing.
        durable::remove(&dir.journal())?;
    }
    Ok(())
}

impl From<RunReport> for format::V2 {
    fn from(report: RunReport) -> Self {
        let RunReport { outcome: _, run, seconds, waited, next: _ } = report;
        let mut new = Self::empty(format::EndV1::Finished);
        (new.run, new.seconds, new.waited) = (Some(run.into()), seconds, waited);
        new
    }
}

impl From<AbandonReport> for format::V2 {
    fn from(report: AbandonReport) -> Self {
        let AbandonReport { run, put_back, changed, state } = report;
        let mut new = Self::empty(format::EndV1::Abandoned);
        let steps = || run.iter().flat_map(|run| &run.phases).flat_map(|phase| &phase.steps);
        (new.seconds, new.waited) = (steps().filter_map(|step| step.seconds).sum(), steps().filter_map(|step| step.waited).sum());
        (new.put_back, new.state) = (put_back, Some(state));
        new.changed = changed.iter().map(ToString::to_string).collect();
        new.run = run.map(Into::into);
        new
    }
}

impl format::V2 {
    fn empty(end: format::EndV1) -> Self {
        let agent = Some(env!("CARGO_PKG_VERSION").to_owned());
        let (put_back, changed) = (Vec::new(), Vec::new());
        Self { version: format::FORMAT.version, agent, end, run: None, put_back, changed, state: None, seconds: 0.0, waited: 0.0 }
    }
}

impl From<RunStatus> for format::RunV1 {
    fn from(run: RunStatus) -> Self {
        let RunStatus { id, backup, state, phase, step, begun, since, failure, needs_reboot, by_step, phases, warnings } = run;
        let phase = phase.map(|phase| phase.name().to_owned());
        let phases = phases.into_iter().map(format::PhaseV1::from).collect();
        Self { id, backup, state, phase, step, begun, since, failure, needs_reboot, by_step, phases, warnings }
    }
}

impl From<PhaseStatus> for format::PhaseV1 {
    fn from(status: PhaseStatus) -> Self {
        let step = |step: StepStatus| {
            let StepStatus { name, state, attempts, seconds, waited, figures } = step;
            let state = match state {
                StepState::Waiting => format::StepStateV1::Waiting,
                StepState::Begun => format::StepStateV1::Begun,
                StepState::Failed => format::StepStateV1::Failed,
                StepState::Done => format::StepStateV1::Done,
            };
            format::StepV1 { name, state, attempts, seconds, waited, figures }
        };
        Self { phase: status.phase.name().to_owned(), steps: status.steps.into_iter().map(step).collect() }
    }
}

impl RunStatus {
    /// A run as its report has it; `None` when it has phases that this agent does not know.
    fn of_format(run: format::RunV1) -> Option<Self> {
        let format::RunV1 { id, backup, state, phase, step, begun, since, failure, needs_reboot, by_step, phases, warnings } = run;
        let phase = match phase {
            Some(name) => Some(Phase::of_name(&name)?),
            None => None,
        };
        let phases = phases.into_iter().map(PhaseStatus::of_format).collect::<Option<_>>()?;
        Some(Self { id, backup, state, phase, step, begun, since, failure, needs_reboot, by_step, phases, warnings })
    }
}

impl From<format::StepStateV1> for StepState {
    fn from(read: format::StepStateV1) -> Self {
        match read {
            format::StepStateV1::Waiting => Self::Waiting,
            format::StepStateV1::Begun => Self::Begun,
            format::StepStateV1::Failed => Self::Failed,
            format::StepStateV1::Done => Self::Done,
        }
    }
}

impl PhaseStatus {
    fn of_format(read: format::PhaseV1) -> Option<Self> {
        let step = |step: format::StepV1| {
            let format::StepV1 { name, state, attempts, seconds, waited, figures } = step;
            StepStatus { name, state: state.into(), attempts, seconds, waited, figures }
        };
        Some(Self { phase: Phase::of_name(&read.phase)?, steps: read.steps.into_iter().map(step).collect() })
    }
}
