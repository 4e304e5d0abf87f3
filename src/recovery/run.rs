//! What a step has at hand: the node, the backup, what was asked for, its notes in the journal, and waits that know their deadline.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::modifier::Objects;
use super::platform::table::Target;
use super::procedure::{Asked, Event, Journal, Phase};
use super::undo::Undo;
use crate::archive::{Archive, Extra, Selection};
use crate::backup::parts::Part;
use crate::backup::{Backup, STATIC_PODS};
use crate::engine::machine::Phase as _;
use crate::error::damaged;
use crate::node::Node;
use crate::node::profile::Profile;
use crate::report::event::{self, About, tell};
use crate::report::{Task, unit};
use crate::session::Locked;
use crate::tools::{needs, runtime};

pub(super) use crate::tools::needs::KUBELET_UNIT;

/// A run, in the hands of the process that carries it on.
pub(super) struct Run<'a> {
    pub session: &'a Locked<'a>,
    /// The deadline of each wait.
    pub wait: Duration,
    /// For how long the cluster has to stay as the backup recorded it.
    pub hold: Duration,
    pub profile: &'static Profile,
    pub backup: Backup,
    /// The backup's objects, from the first step that looks at them to the last.
    pub objects: Option<Rc<Objects>>,
    pub undo: Undo,
}

impl Run<'_> {
    /// The unit of the container runtime that runs, to be stopped; while none does, the one that ran last. After the rollback it may be another than
    /// when the run began.
    pub(super) fn running_runtime(&self) -> Result<String> {
        let last = self.undo.runtime.as_deref();
        let recorded: Vec<&str> = self.backup.manifest.runtime_unit.as_deref().into_iter().chain(last).collect();
        let running = runtime::running(self.session.node, self.profile, &recorded)?;
        Ok(running.unwrap_or_else(|| last.unwrap_or(self.profile.runtime_unit).to_owned()))
    }

    /// The unit to start the container runtime with, once the backup's release is booted with the backup's `/etc`: the one that it recorded. Of a backup
    /// that recorded none it is the one that was stopped there, or that is found.
    pub(super) fn runtime_to_start(&self) -> Result<String> {
        let known = self.backup.manifest.runtime_unit.as_deref().or(self.undo.runtime.as_deref());
        runtime::unit(self.session.node, self.profile, known, &|unit| needs::unloadable(self.session.node, unit))
    }
}

/// A step of a phase: what the plan says of it, and what it does.
pub(super) struct Step {
    pub name: &'static str,
    pub says: &'static str,
    pub volatile: bool,
    pub changes: bool,
    pub patches: bool,
    pub applies: fn(&Profile) -> bool,
    pub act: fn(&mut Doing<'_, '_>) -> Result<()>,
}

impl Step {
    /// A step that every kind of node has and whose effect is on disk.
    pub(super) const fn new(name: &'static str, says: &'static str, act: fn(&mut Doing<'_, '_>) -> Result<()>) -> Self {
        Self { name, says, volatile: false, changes: false, patches: false, applies: |_| true, act }
    }

    /// Its effect is lost at a reboot.
    pub(super) const fn volatile(self) -> Self {
        Self { volatile: true, ..self }
    }

    /// It changes what the node would boot or run: once it has begun, the node is no longer what it was.
    pub(super) const fn changes(self) -> Self {
        Self { changes: true, ..self }
    }

    /// Only recoveries with rules of a resource modifier have it.
    pub(super) const fn patches(self) -> Self {
        Self { patches: true, ..self }
    }

    /// Only nodes of some profiles have it.
    pub(super) const fn only(self, applies: fn(&Profile) -> bool) -> Self {
        Self { applies, ..self }
    }
}

/// Which deployment a run restores.
pub(super) fn target(journal: &Journal) -> Target {
    Target::of(journal.reading().beginning.target.as_ref())
}

/// A step while it is being done.
pub(super) struct Doing<'a, 'n> {
    pub run: &'a mut Run<'n>,
    journal: &'a mut Journal,
    phase: Phase,
    step: &'static str,
    figures: Map<String, Value>,
    warnings: Vec<String>,
    waited: Duration,
}

impl<'a, 'n> Doing<'a, 'n> {
    /// A step that begins.
    pub(super) fn of(run: &'a mut Run<'n>, journal: &'a mut Journal, phase: Phase, step: &'static str) -> Self {
        Self { run, journal, phase, step, figures: Map::new(), warnings: Vec::new(), waited: Duration::ZERO }
    }

    /// Its figures, its warnings, and how long it waited.
    pub(super) fn done(self) -> (Map<String, Value>, Vec<String>, Duration) {
        (self.figures, self.warnings, self.waited)
    }
    /// The name of the step.
    pub(super) fn step(&self) -> &'static str {
        self.step
    }

    /// The run's id.
    pub(super) fn id(&self) -> String {
        self.journal.reading().run.clone()
    }

    /// What was asked for when the run began.
    pub(super) fn asked(&self) -> Asked {
        self.journal.reading().beginning.asked
    }

    /// The rules of the run's resource modifier.
    pub(super) fn rules(&self) -> Option<&str> {
        self.journal.reading().beginning.rules.as_deref()
    }

    /// The backup's objects.
    pub(super) fn objects(&mut self) -> Result<Rc<Objects>> {
        if let Some(objects) = &self.run.objects {
            return Ok(Rc::clone(objects));
        }
        let objects = Rc::new(Objects::of(&self.run.backup, self.run.session.progress)?);
        Ok(Rc::clone(self.run.objects.insert(objects)))
    }

    /// The node has rebooted since this run asked for it.
    pub(super) fn has_rebooted(&self) -> bool {
        self.journal.reading().has_rebooted(self.journal.boot())
    }

    /// Which deployment the run restores.
    pub(super) fn target(&self) -> Target {
        target(self.journal)
    }

    /// Something people should know, which does not stop the recovery.
    pub(super) fn warn(&mut self, warning: String) {
        let (reading, phase, step) = (self.journal.reading(), Some(self.phase.name()), Some(self.step));
        let about = About { run: Some(&reading.run), backup: Some(&reading.subject), phase, step, ..About::default() };
        tell(&event::STEP_WARNED, about, &warning);
        self.warnings.push(warning);
    }

    /// A figure of the step, for its line in the journal and the report.
    pub(super) fn figure(&mut self, name: &str, value: impl Serialize) {
        if let Ok(value) = serde_json::to_value(value) {
            self.figures.insert(name.to_owned(), value);
        }
    }

    /// Writes down, durably, what the step must still know when it is done again after a crash.
    pub(super) fn note(&mut self, what: &impl Serialize) -> Result<()> {
        let note = serde_json::to_value(what).context("serializing a note of the step")?;
        self.journal.append(&Event::StepNoted(self.phase, self.step.to_owned()), note)
    }

    /// What the step has noted in this run, now or before a crash.
    pub(super) fn noted<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.noted_by(self.phase, self.step)
    }

    /// All that the step has noted in this run, in its order.
    pub(super) fn all_noted<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let event = Event::StepNoted(self.phase, self.step.to_owned());
        let notes = self.journal.reading().records.iter().filter(|record| record.event == event);
        let read = notes.map(|record| serde_json::from_value(record.detail.clone())).collect::<Result<_, _>>();
        read.map_err(|error| damaged(format!("a note of step {} in the journal cannot be read: {error}", self.step)))
    }

    /// What another step has noted in this run.
    pub(super) fn noted_by<T: DeserializeOwned>(&self, phase: Phase, step: &str) -> Result<Option<T>> {
        let Some(record) = self.journal.reading().last_of(&Event::StepNoted(phase, step.to_owned())) else { return Ok(None) };
        let read = serde_json::from_value(record.detail.clone());
        read.map(Some).map_err(|error| damaged(format!("the note of step {step} in the journal cannot be read: {error}")))
    }

    /// Waits until `look` finds something, at most until the run's deadline; `why` then says what is in the way. The time counts as waiting.
    pub(super) fn wait_for<T>(
        &mut self,
        what: &str,
        pause: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>>,
        why: impl FnOnce(&Node) -> String,
    ) -> Result<T> {
        let (node, wait) = (self.run.session.node, self.run.wait);
        unit::status(&format!("{}: waiting for {what}", self.phase));
        self.waiting(&format!("waiting for {what}"), |here, task| {
            let looked = || {
                task.alive();
                look(here)
            };
            node.clock().deadline(wait).wait_for(what, pause, looked, || why(node))
        })
    }

    /// Does something that mostly waits, shown as `what`: its time counts as waiting.
    pub(super) fn waiting<T>(&mut self, what: &str, wait: impl FnOnce(&mut Self, &Task) -> Result<T>) -> Result<T> {
        let clock = self.run.session.node.clock();
        let (begun, task) = (clock.since_boot(), self.run.session.progress.task(what, None));
        let result = wait(self, &task);
        drop(task);
        self.waited += clock.since_boot().saturating_sub(begun);
        result
    }

    /// Makes the tree of a part equal to its archive in the backup, with labels that the running policy may not know.
    pub(super) fn restore(&mut self, file: &str, selection: &Selection, extra: Extra) -> Result<()> {
        let (run, tree) = (&mut *self.run, Part::tree_of(file)?);
        let root = run.session.node.real_path(tree);
        let archive = Archive::open(&run.backup.file(file)).with_context(|| format!("opening {file} of backup {}", run.backup.id))?;
        let task = run.session.progress.task(&format!("restoring {tree}"), Some(archive.bytes()));
        let restore = || archive.restore(&root, selection, extra, &|bytes| task.add(bytes));
        let counts = run.undo.permissive(run.session, restore).with_context(|| format!("restoring {tree} from {file}"))?;
        self.figure("counts", counts);
        Ok(())
    }

    /// Restores one path of the static pods' archive, relative to the Kubernetes directory.
    pub(super) fn restore_static_pods(&mut self, path: &Path, extra: Extra) -> Result<()> {
        let selection = Selection::all().only([path]);
        self.restore(STATIC_PODS, &selection, extra)
    }

    /// The name of a directory of the profile below its Kubernetes directory.
    pub(super) fn below_kubernetes(&self, path: &str) -> Result<std::path::PathBuf> {
        let kubernetes = self.run.profile.kubernetes;
        let rest = Path::new(path).strip_prefix(kubernetes).map_err(|_| anyhow!("{path} is not below {kubernetes}"))?;
        Ok(rest.to_owned())
    }
}
