//! The journal of a run: JSON Lines ([`formats::journal`](crate::formats::journal)), one event a line, each synced before anything is done.
//!
//! Its presence means that the run is open. It is read by replaying every line through the machine. A last line that was torn by a power cut is
//! cut off before the next is written: its event did not happen, as far as anyone may rely on it, and every step can be done twice. Anything else
//! that is wrong with it is damage, and refused.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::machine::{Event, Phase, Plan, PlannedPhase, PlannedStep, State, transition};
use crate::error::{AndNext, Failure, FailureKind, Next, by_hand, damaged, kind, unsupported};
use crate::formats::journal::{self as format, FORMAT, FailedV1, LineV2};
use crate::node::durable;

/// The boot id in the name of a boot. (The rest tells soft reboots, which keep the kernel and with it the id.)
fn kernel(boot: &str) -> &str {
    boot.split_once('+').map_or(boot, |(id, _)| id)
}

/// A kind of run: what can be carried out, as a type.
pub trait Procedure: Debug + Sized + 'static {
    /// Its name, as the journal writes it.
    const NAME: &'static str;
    /// The largest journal that is read, bytes. No run writes one of this size.
    const MOST: u64 = 8 << 20;
    /// True when journald is told of its phases and failed steps, by fields and message ids that are those of a recovery.
    const IN_JOURNALD: bool = false;
    /// What is left of a run that was interrupted, as messages say it.
    const INTERRUPTED: &'static str;
    /// Its phases.
    type Phase: Phase;
    /// What a run was asked to do; the same for as long as it is open.
    type Beginning: Debug + Clone + PartialEq;

    /// Reads what a run was asked to do.
    ///
    /// # Errors
    /// When it is not that of such a run.
    fn read_beginning(json: Value) -> serde_json::Result<Self::Beginning>;

    /// What a run was asked to do, for its journal.
    ///
    /// # Errors
    /// When it cannot be serialized.
    fn write_beginning(beginning: &Self::Beginning) -> serde_json::Result<Value>;

    /// True when these bytes in the place of the journal are those of another tool: there is no run then.
    #[must_use]
    fn is_foreign(_: &[u8]) -> bool {
        false
    }

    /// What to do about a journal that cannot be read.
    #[must_use]
    fn past_the_journal() -> Next;

    /// What to do about a failure of this kind that stopped a run, where its cause does not say.
    fn way_on(reading: &Reading<Self>, kind: FailureKind) -> Next;

    /// What messages call a step.
    #[must_use]
    fn step_named(phase: Self::Phase, step: &str) -> String {
        format!("phase {phase}, step {step}")
    }
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<P> {
    /// 1 for the first line, then one more each.
    pub sequence: u64,
    /// The node's wall clock.
    pub time: Timestamp,
    /// The boot in which it was written.
    pub boot: String,
    /// What happened.
    pub event: Event<P>,
    /// More about it: a step's note, its figures, the [cause of its failure](Record::failure).
    pub detail: Value,
}

impl<P: Phase> Record<P> {
    /// The failure that it records, if it does.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        if !matches!(self.event, Event::StepFailed(..)) {
            return None;
        }
        let none = || Failure { kind: FailureKind::Failed, message: "no cause was recorded".to_owned(), next: None };
        Some(serde_json::from_value::<FailedV1>(self.detail.clone()).map_or_else(|_| none(), Failure::from))
    }
}

impl From<FailedV1> for Failure {
    fn from(FailedV1 { cause: message, kind, next, exit }: FailedV1) -> Self {
        // Agents that wrote no kind had the way on in the same sentence.
        let message = if kind.is_some() { message } else { message.split("; next: ").next().unwrap_or_default().to_owned() };
        let kind = kind.and_then(|kind| serde_json::from_value(kind.into()).ok());
        let next = next.and_then(|next| serde_json::from_value(next).ok());
        Self { kind: kind.unwrap_or_else(|| FailureKind::of_code(exit)), message, next }
    }
}

impl FailedV1 {
    /// A failure, for the journal.
    ///
    /// # Errors
    /// When it cannot be serialized.
    pub fn of(error: &anyhow::Error) -> serde_json::Result<Self> {
        let kind = Some(crate::error::kind(error).name());
        let next = crate::error::next(error).map(serde_json::to_value).transpose()?;
        Ok(Self { cause: crate::error::said(error), kind, next, exit: crate::error::exit_code(error) })
    }
}

/// A journal as read: nothing of it can be changed through this.
#[derive(Debug, Clone)]
pub struct Reading<T: Procedure> {
    /// The run's id.
    pub run: String,
    /// What it is about: the id of the backup that is restored, or taken.
    pub subject: String,
    /// Version of the agent that began it, when the journal says so.
    pub agent: Option<String>,
    /// Everything the run will do.
    pub plan: Arc<Plan<T::Phase>>,
    /// What the run was asked to do.
    pub beginning: T::Beginning,
    /// Its lines.
    pub records: Vec<Record<T::Phase>>,
    /// Where the run stands after them.
    pub state: State<T::Phase>,
    /// Bytes of its whole lines.
    whole: u64,
    /// Bytes of a torn line after them.
    torn: u64,
}

/// The journal of an open run, open for writing. Only who holds the lock may have one.
#[derive(Debug)]
pub struct Journal<T: Procedure> {
    path: PathBuf,
    file: File,
    boot: String,
    reading: Reading<T>,
}

impl<T: Procedure> Reading<T> {
    /// Reads a journal; `None` when there is none, or what is there is [another tool's](Procedure::is_foreign).
    ///
    /// # Errors
    /// [`FailureKind::Damaged`] when it cannot be read, or anything but a torn last line is wrong with it; [`FailureKind::Unsupported`] when a newer
    /// agent wrote it. The message names the ways out.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        Self::named(path, path)
    }

    /// As [`Reading::of`], of a journal that messages call `shown`: as the node does.
    ///
    /// # Errors
    /// As [`Reading::of`].
    pub fn named(path: &Path, shown: &Path) -> Result<Option<Self>> {
        let refused =
            |why: String| damaged(format!("the journal {} cannot be read: {why}", shown.display())).and_next(T::past_the_journal());
        let bytes = match durable::read(path, T::MOST) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| refused(error.to_string()))?,
        };
        if T::is_foreign(&bytes) {
            return Ok(None);
        }
        Self::replay(&bytes).map(Some).map_err(|(line, why)| {
            if kind(&why) == FailureKind::Unsupported {
                return why
                    .context(format!("line {line} of the journal {}", shown.display()))
                    .and_next(by_hand("go on with the agent that wrote it; `recovery --version` says which one this is"));
            }
            refused(format!("line {line}: {why:#}"))
        })
    }

    /// The last line.
    #[must_use]
    pub fn last(&self) -> &Record<T::Phase> {
        &self.records[self.records.len() - 1]
    }

    /// The last line with this event.
    #[must_use]
    pub fn last_of(&self, event: &Event<T::Phase>) -> Option<&Record<T::Phase>> {
        self.records.iter().rev().find(|r| r.event == *event)
    }

    /// True when a step of this name ever said that it would act, in whatever phase.
    #[must_use]
    pub fn attempted(&self, step: &str) -> bool {
        self.records.iter().any(|r| matches!(&r.event, Event::StepIntent(_, name) if name == step))
    }

    /// True when any step ever said that it would act.
    #[must_use]
    pub fn acted(&self) -> bool {
        self.records.iter().any(|r| matches!(r.event, Event::StepIntent(..)))
    }

    /// True when the node has rebooted since the last step of a phase was done: `boot` is another boot, with a kernel of its own. False
    /// before any was.
    #[must_use]
    pub fn rebooted_since(&self, phase: T::Phase, boot: &str) -> bool {
        self.last_boot_of(phase).is_some_and(|then| kernel(then) != kernel(boot))
    }

    /// True when the node has gone through a soft reboot since then, and not rebooted.
    #[must_use]
    pub fn soft_rebooted_since(&self, phase: T::Phase, boot: &str) -> bool {
        self.last_boot_of(phase).is_some_and(|then| then != boot && kernel(then) == kernel(boot))
    }

    fn last_boot_of(&self, phase: T::Phase) -> Option<&str> {
        self.records.iter().rev().find(|r| matches!(r.event, Event::StepDone(of, _) if of == phase)).map(|r| r.boot.as_str())
    }

    /// True when this run has asked for a reboot, and the node has rebooted since.
    #[must_use]
    pub fn has_rebooted(&self, boot: &str) -> bool {
        let asked = self.records.iter().rev().find(|r| matches!(r.event, Event::RebootRequested(_)));
        asked.is_some_and(|r| kernel(&r.boot) != kernel(boot))
    }

    /// True when the node has rebooted since the last line was written: `boot` is another boot, with a kernel of its own.
    #[must_use]
    pub fn is_of_an_earlier_boot(&self, boot: &str) -> bool {
        kernel(&self.last().boot) != kernel(boot)
    }

    /// How many bytes of a torn last line were found.
    #[must_use]
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// That a phase or step of this journal is none that this agent knows, and which agent does know it.
    #[must_use]
    pub fn unknown(&self, what: &str) -> anyhow::Error {
        unknown(what, self.agent.as_deref()).and_next(T::past_the_journal())
    }

    /// Reads lines until the end, or until the last one if that is torn. The error is that of the line it names.
    fn replay(bytes: &[u8]) -> Result<Self, (usize, anyhow::Error)> {
        let mut lines = bytes.split_inclusive(|b| *b == b'\n');
        // A first line is never torn: the file is renamed into place with it.
        let text = lines.next().ok_or_else(|| (1, anyhow!("it is empty")))?;
        let mut reading = whole_line(text, None).and_then(|line| Self::begun(line, text.len())).map_err(|why| (1, why))?;
        for (text, number) in lines.zip(2..) {
            let line = match whole_line(text, reading.agent.as_deref()) {
                Ok(line) => line,
                Err(why) if reading.whole + text.len() as u64 == bytes.len() as u64 && why.downcast_ref::<Failure>().is_none() => break,
                Err(why) => return Err((number, why)),
            };
            reading.follow(line, text.len()).map_err(|why| (number, why))?;
        }
        reading.torn = bytes.len() as u64 - reading.whole;
        Ok(reading)
    }

    /// What the first line says.
    fn begun(line: LineV2, len: usize) -> Result<Self> {
        ensure!(line.sequence == 1, "it has number {}, not 1", line.sequence);
        ensure!(line.event == format::EventV1::RunBegun, "it is not the beginning of a run");
        let LineV2 { sequence, time, run, subject, boot, detail, .. } = line;
        let begun: format::BegunV2 = serde_json::from_value(detail).context("reading what the run was asked to do")?;
        ensure!(begun.procedure == T::NAME, "it is the journal of a {}, not of a {}", begun.procedure, T::NAME);
        let agent = begun.agent;
        let planned = |phase: format::PhaseV1| {
            let known = T::Phase::of_name(&phase.phase).ok_or_else(|| unknown(&format!("phase {}", phase.phase), agent.as_deref()))?;
            let steps = phase.steps.into_iter().map(|step| PlannedStep { name: step.name, volatile: step.volatile }).collect();
            Ok(PlannedPhase { phase: known, reboot: phase.reboot, steps })
        };
        let plan: Arc<Plan<T::Phase>> = Arc::new(begun.plan.into_iter().map(planned).collect::<Result<_>>()?);
        let beginning = T::read_beginning(begun.beginning).context("reading what the run was asked to do")?;
        let event = Event::RunBegun(plan.clone());
        let state = transition(&State::Idle, &event)?;
        let records = vec![Record { sequence, time, boot, event, detail: Value::Null }];
        Ok(Self { run, subject, agent, plan, beginning, records, state, whole: len as u64, torn: 0 })
    }

    /// Takes one more line, which must belong to the same run and continue its numbering.
    fn follow(&mut self, line: LineV2, len: usize) -> Result<()> {
        let expected = self.last().sequence + 1;
        ensure!(line.sequence == expected, "it has number {}, not {expected}", line.sequence);
        ensure!(line.run == self.run, "it belongs to run {}, not {}", line.run, self.run);
        ensure!(line.subject == self.subject, "it is about {}, not about {}", line.subject, self.subject);
        let event = event_of(&line)?;
        self.state = transition(&self.state, &event)?;
        self.records.push(Record { sequence: line.sequence, time: line.time, boot: line.boot, event, detail: line.detail });
        self.whole += len as u64;
        Ok(())
    }
}

fn unknown(what: &str, agent: Option<&str>) -> anyhow::Error {
    let by = agent.map_or_else(|| "another agent".to_owned(), |agent| format!("recovery {agent}"));
    unsupported(format!("recovery {} knows no {what}: the run was begun by {by}, which can go on with it", env!("CARGO_PKG_VERSION")))
}

fn whole_line(text: &[u8], agent: Option<&str>) -> Result<LineV2> {
    LineV2::of(text.strip_suffix(b"\n").ok_or_else(|| anyhow!("it has no newline at its end"))?, agent)
}

/// The event that a line records; not that of the first one.
fn event_of<P: Phase>(line: &LineV2) -> Result<Event<P>> {
    use format::EventV1 as Recorded;
    let phase = || {
        let name = line.phase.as_deref().ok_or_else(|| anyhow!("it names no phase"))?;
        P::of_name(name).ok_or_else(|| anyhow!("it names a phase that is not in the plan: {name}"))
    };
    let step = || line.step.clone().ok_or_else(|| anyhow!("it names no step"));
    Ok(match line.event {
        Recorded::RunBegun => anyhow::bail!("the beginning of a run cannot follow another line"),
        Recorded::PhaseBegun => Event::PhaseBegun(phase()?),
        Recorded::StepIntent => Event::StepIntent(phase()?, step()?),
        Recorded::StepNoted => Event::StepNoted(phase()?, step()?),
        Recorded::StepDone => Event::StepDone(phase()?, step()?),
        Recorded::StepFailed => Event::StepFailed(phase()?, step()?),
        Recorded::RebootRequested => Event::RebootRequested(phase()?),
        Recorded::PhaseDone => Event::PhaseDone(phase()?),
        Recorded::Finished => Event::Finished,
        Recorded::Abandoned => Event::Abandoned,
    })
}

/// What a line calls an event.
fn name_of<P>(event: &Event<P>) -> format::EventV1 {
    use format::EventV1 as Recorded;
    match event {
        Event::RunBegun(_) => Recorded::RunBegun,
        Event::PhaseBegun(_) => Recorded::PhaseBegun,
        Event::StepIntent(..) => Recorded::StepIntent,
        Event::StepNoted(..) => Recorded::StepNoted,
        Event::StepDone(..) => Recorded::StepDone,
        Event::StepFailed(..) => Recorded::StepFailed,
        Event::RebootRequested(_) => Recorded::RebootRequested,
        Event::PhaseDone(_) => Recorded::PhaseDone,
        Event::Finished => Recorded::Finished,
        Event::Abandoned => Recorded::Abandoned,
    }
}

/// A run that is about to begin.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its id.
    pub run: &'a str,
    /// What it is about.
    pub subject: &'a str,
    /// The boot in which it begins.
    pub boot: &'a str,
}

impl<T: Procedure> Journal<T> {
    /// Begins the journal of a run in one durable step, replacing what is there: from here on the run is open.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(path: &Path, new: New<'_>, plan: &Plan<T::Phase>, beginning: &T::Beginning) -> Result<Self> {
        let step = |step: &PlannedStep| format::StepV1 { name: step.name.clone(), volatile: step.volatile };
        let planned = plan.iter().map(|planned| format::PhaseV1 {
            phase: planned.phase.name().to_owned(),
            reboot: planned.reboot,
            steps: planned.steps.iter().map(step).collect(),
        });
        let begun = || {
            serde_json::to_value(format::BegunV2 {
                procedure: T::NAME.to_owned(),
                agent: Some(env!("CARGO_PKG_VERSION").to_owned()),
                plan: planned.collect(),
                beginning: T::write_beginning(beginning)?,
            })
        };
        let line = LineV2 {
            version: FORMAT.version,
            sequence: 1,
            time: Timestamp::now(),
            run: new.run.to_owned(),
            subject: new.subject.to_owned(),
            boot: new.boot.to_owned(),
            phase: None,
            step: None,
            event: format::EventV1::RunBegun,
            detail: begun().context("serializing what the run was asked to do")?,
        };
        durable::write(path, line.to_text()?.as_bytes(), 0o600)?;
        Self::open(path, new.boot)?.with_context(|| format!("{} is gone", path.display()))
    }

    /// Opens the journal of the open run, if there is one, and cuts off a torn last line.
    ///
    /// # Errors
    /// As [`Reading::of`], and when it cannot be opened or cut.
    pub fn open(path: &Path, boot: &str) -> Result<Option<Self>> {
        let Some(mut reading) = Reading::of(path)? else { return Ok(None) };
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().append(true).open(path)?;
            if reading.torn > 0 {
                file.set_len(reading.whole)?;
                file.sync_all()?;
            }
            Ok(file)
        };
        let file = open().with_context(|| format!("opening the journal {}", path.display()))?;
        if reading.torn > 0 {
            tracing::warn!(
                "cut {} bytes of a torn last line off the journal {}: its event counts as not happened",
                reading.torn,
                path.display()
            );
            reading.torn = 0;
        }
        Ok(Some(Self { path: path.to_owned(), file, boot: boot.to_owned(), reading }))
    }

    /// What has been written so far.
    #[must_use]
    pub fn reading(&self) -> &Reading<T> {
        &self.reading
    }

    /// The boot in which this process writes.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Writes an event down, durably: when this has returned, it has happened.
    ///
    /// # Errors
    /// When the event cannot happen now, or the line cannot be written; then nothing has happened.
    pub fn append(&mut self, event: &Event<T::Phase>, detail: Value) -> Result<()> {
        let state = transition(&self.reading.state, event).context("writing the journal")?;
        let record = Record {
            sequence: self.reading.last().sequence + 1,
            time: Timestamp::now(),
            boot: self.boot.clone(),
            event: event.clone(),
            detail,
        };
        let text = self.line_of(&record).to_text()?;
        if let Err(error) = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()) {
            // What was written of it must not stand before the next line. Should this fail too, it is a torn line, which is cut off later.
            let _ = self.file.set_len(self.reading.whole);
            return Err(error).with_context(|| format!("writing the journal {}", self.path.display()));
        }
        self.reading.whole += text.len() as u64;
        self.reading.records.push(record);
        self.reading.state = state;
        Ok(())
    }

    fn line_of(&self, record: &Record<T::Phase>) -> LineV2 {
        LineV2 {
            version: FORMAT.version,
            sequence: record.sequence,
            time: record.time,
            run: self.reading.run.clone(),
            subject: self.reading.subject.clone(),
            boot: record.boot.clone(),
            phase: record.event.phase().map(|phase| phase.name().to_owned()),
            step: record.event.step().map(str::to_owned),
            event: name_of(&record.event),
            detail: record.detail.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
