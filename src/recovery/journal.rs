//! The journal of the run: `progress` in the recovery directory, JSON Lines, one event a line, each synced before anything is done.
//!
//! Its presence means that a recovery is in progress. It is read by replaying every line through the machine. A last line that was
//! torn by a power cut is cut off before the next is written: its event did not happen, as far as anyone may rely on it, and every
//! step can be done twice. Anything else that is wrong with it is damage, and refused.

mod record;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::WAIT;
use super::machine::{Event, Phase, Plan, State, transition};
use crate::backup::manifest::DeploymentId;
use crate::error::{AndNext, Next, damaged};
use crate::node::dir::old_stages;
use crate::node::{Node, durable, profile};
use crate::tools::systemctl;
pub use record::{Kind, Record, VERSION};

/// No run writes a journal of this size, bytes: that of one that was resumed once has some 20 KiB. A file that is larger is not one.
const MOST: u64 = 8 << 20;

/// What a run was asked to do: the detail of its first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beginning {
    /// The kind of control plane.
    pub profile: profile::Kind,
    /// The deployment the backup belongs to, when it records one.
    pub target: Option<DeploymentId>,
    /// What was asked for.
    pub asked: Asked,
    /// The run this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<String>,
    /// A run of which nothing else is known had left a hold or something to undo: what it changed, nobody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherits: bool,
    /// What was found and gone on with nevertheless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Everything the run will do.
    pub phases: Plan,
}

/// Choices of whoever began the run that hold until it ends, across reboots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Go on where the platform table, identity or clock say no.
    pub force: bool,
    /// Reboot without asking when the files are restored.
    pub reboot: bool,
    /// One phase at a time: the unit does not continue this run by itself.
    pub step: bool,
    /// How etcd is restored.
    pub etcd: EtcdRestore,
    /// The deadline of each wait, seconds, when it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
}

impl Asked {
    /// The deadline of each wait.
    pub(super) fn deadline(&self) -> Duration {
        self.wait.map_or(WAIT, Duration::from_secs)
    }
}

/// How etcd's data is restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EtcdRestore {
    /// By this agent.
    #[default]
    Native,
    /// By the cluster's own `/usr/local/bin/cluster-restore.sh`.
    ClusterRestore,
}

/// This boot, as a journal names it: its id and, behind a `+`, how many soft reboots it has seen, when there were any. These keep the
/// kernel, and with it the id, and end all that runs: what a volatile step did is lost with them as with a real one.
///
/// # Errors
/// When the kernel does not say its boot id.
pub(super) fn this_boot(node: &Node) -> Result<String> {
    let id = node.clock().boot_id()?;
    Ok(match systemctl::soft_reboots(node) {
        0 => id,
        number => format!("{id}+{number}"),
    })
}

/// The boot id in the name of a boot.
fn kernel(boot: &str) -> &str {
    boot.split_once('+').map_or(boot, |(id, _)| id)
}

/// A journal as read: nothing of it can be changed through this.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Its lines.
    pub records: Vec<Record>,
    /// Where the run stands after them.
    pub state: State,
    /// What the run was asked to do.
    pub beginning: Beginning,
    /// Bytes of its whole lines.
    whole: u64,
    /// Bytes of a torn line after them.
    torn: u64,
}

/// The journal of the run in progress, open for writing. Only who holds the lock may have one.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    boot: String,
    reading: Reading,
}

impl Reading {
    /// Reads a journal; `None` when there is none, or what is there are the notes of upgrade-recovery.sh.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it cannot be read, or anything but a torn last line is wrong with it; the
    /// message names the ways out.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        let refused =
            |why: String| damaged(format!("the journal {} cannot be read: {why}", path.display())).and_next(Next::Restart { backup: None });
        let bytes = match durable::read(path, MOST) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| refused(error.to_string()))?,
        };
        if old_stages(&bytes).is_some() {
            return Ok(None);
        }
        Self::replay(&bytes).map(Some).map_err(|(line, why)| refused(format!("line {line}: {why:#}")))
    }

    /// The run's id.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.records[0].run
    }

    /// The id of the backup it restores.
    #[must_use]
    pub fn backup(&self) -> &str {
        &self.records[0].backup
    }

    /// The last line.
    #[must_use]
    pub fn last(&self) -> &Record {
        &self.records[self.records.len() - 1]
    }

    /// The last line of this kind about a step.
    #[must_use]
    pub fn last_of(&self, phase: Phase, step: &str, kind: Kind) -> Option<&Record> {
        self.records.iter().rev().find(|r| r.event == kind && r.phase == Some(phase) && r.step.as_deref() == Some(step))
    }

    /// True when a step of this name ever said that it would act, in whatever phase.
    #[must_use]
    pub fn attempted(&self, step: &str) -> bool {
        self.records.iter().any(|r| r.event == Kind::StepIntent && r.step.as_deref() == Some(step))
    }

    /// True when any step ever said that it would act.
    #[must_use]
    pub fn acted(&self) -> bool {
        self.records.iter().any(|r| r.event == Kind::StepIntent)
    }

    /// True when the node has rebooted since the last step of a phase was done: `boot` is another boot, with a kernel of its own. False
    /// before any was.
    #[must_use]
    pub fn rebooted_since(&self, phase: Phase, boot: &str) -> bool {
        self.last_boot_of(phase).is_some_and(|then| kernel(then) != kernel(boot))
    }

    /// True when the node has gone through a soft reboot since then, and not rebooted.
    #[must_use]
    pub fn soft_rebooted_since(&self, phase: Phase, boot: &str) -> bool {
        self.last_boot_of(phase).is_some_and(|then| then != boot && kernel(then) == kernel(boot))
    }

    fn last_boot_of(&self, phase: Phase) -> Option<&str> {
        self.records.iter().rev().find(|r| r.event == Kind::StepDone && r.phase == Some(phase)).map(|r| r.boot.as_str())
    }

    /// True when this run has asked for a reboot, and the node has rebooted since.
    #[must_use]
    pub fn has_rebooted(&self, boot: &str) -> bool {
        let asked = self.records.iter().rev().find(|r| r.event == Kind::RebootRequested);
        asked.is_some_and(|r| kernel(&r.boot) != kernel(boot))
    }

    /// How many bytes of a torn last line were found.
    #[must_use]
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// Reads lines until the end, or until the last one if that is torn. The error is that of the line it names.
    fn replay(bytes: &[u8]) -> Result<Self, (usize, anyhow::Error)> {
        let (mut records, mut state, mut whole) = (Vec::<Record>::new(), State::Idle, 0);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let (number, is_last) = (records.len() + 1, whole + line.len() == bytes.len());
            let record = match line.strip_suffix(b"\n").ok_or_else(|| anyhow!("it does not end")).and_then(Record::of_line) {
                Ok(record) => record,
                // A first line is never torn: the file is renamed into place with it.
                Err(why) if is_last && number > 1 && why.downcast_ref::<crate::error::Failure>().is_none() => break,
                Err(why) => return Err((number, why)),
            };
            state = follow(&state, records.last(), &record).map_err(|why| (number, why))?;
            records.push(record);
            whole += line.len();
        }
        let beginning = records.first().ok_or_else(|| (1, anyhow!("it is empty")))?.detail.clone();
        let beginning = serde_json::from_value(beginning).map_err(|why| (1, anyhow!(why)))?;
        Ok(Self { records, state, beginning, whole: whole as u64, torn: (bytes.len() - whole) as u64 })
    }
}

/// The state after one more line, which must belong to the same run and continue its numbering.
fn follow(state: &State, before: Option<&Record>, record: &Record) -> Result<State> {
    let expected = before.map_or(1, |b| b.sequence + 1);
    anyhow::ensure!(record.sequence == expected, "it has number {}, not {expected}", record.sequence);
    if let Some(first) = before {
        anyhow::ensure!(record.run == first.run, "it belongs to run {}, not {}", record.run, first.run);
        anyhow::ensure!(record.backup == first.backup, "it speaks of backup {}, not {}", record.backup, first.backup);
    }
    Ok(transition(state, &record.event()?)?)
}

impl Journal {
    /// Begins the journal of a run in one durable step, replacing what is there: from here on a recovery is in progress.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(path: &Path, run: &str, backup: &str, boot: &str, beginning: &Beginning) -> Result<Self> {
        let record = Record {
            version: VERSION,
            sequence: 1,
            time: Timestamp::now(),
            run: run.to_owned(),
            backup: backup.to_owned(),
            boot: boot.to_owned(),
            phase: None,
            step: None,
            event: Kind::RunBegun,
            detail: serde_json::to_value(beginning).context("serializing what the run was asked to do")?,
        };
        durable::write(path, record.to_line()?.as_bytes(), 0o600)?;
        Self::open(path, boot)?.with_context(|| format!("{} is gone", path.display()))
    }

    /// Opens the journal of the run in progress, if there is one, and cuts off a torn last line.
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
    pub fn reading(&self) -> &Reading {
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
    pub fn append(&mut self, event: &Event, detail: Value) -> Result<()> {
        let state = transition(&self.reading.state, event).context("writing the journal")?;
        let (kind, phase, step) = record::parts(event);
        let last = self.reading.last();
        let record = Record {
            version: VERSION,
            sequence: last.sequence + 1,
            time: Timestamp::now(),
            run: last.run.clone(),
            backup: last.backup.clone(),
            boot: self.boot.clone(),
            phase,
            step,
            event: kind,
            detail,
        };
        let line = record.to_line()?;
        if let Err(error) = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data()) {
            // What was written of it must not stand before the next line. Should this fail too, it is a torn line, which is cut off later.
            let _ = self.file.set_len(self.reading.whole);
            return Err(error).with_context(|| format!("writing the journal {}", self.path.display()));
        }
        self.reading.whole += line.len() as u64;
        self.reading.records.push(record);
        self.reading.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
