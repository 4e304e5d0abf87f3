//! What a step has at hand: the node, the backup, what was asked for, its notes in the journal, and waits that know their deadline.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::driver::Work;
use super::journal::{Journal, Kind};
use super::machine::{Event, Phase, Plan, PlannedPhase, PlannedStep};
use super::platform::table::{Action, Target};
use super::undo::Undo;
use super::{finish, platform, redeploy, restore_files, resume};
use crate::archive::{Archive, Extra, Selection};
use crate::backup::Backup;
use crate::error::damaged;
use crate::node::Node;
use crate::node::dir::RecoveryDir;
use crate::node::profile::Profile;
use crate::report::{Progress, Task, unit};
use crate::tools::{needs, runtime};

pub(super) use crate::tools::needs::KUBELET_UNIT;

/// A run, in the hands of the process that carries it on.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub node: &'a Node,
    pub dir: &'a RecoveryDir,
    pub progress: &'a Progress,
    /// The deadline of each wait.
    pub wait: Duration,
    pub profile: &'static Profile,
    pub backup: Backup,
    pub undo: Undo,
}

impl Run<'_> {
    /// The unit of the container runtime that runs, to be stopped; while none does, the one that ran last. After the rollback it may be another than
    /// when the run began.
    pub(super) fn running_runtime(&self) -> Result<String> {
        let last = self.undo.runtime.as_deref();
        let recorded: Vec<&str> = self.backup.manifest.runtime_unit.as_deref().into_iter().chain(last).collect();
        let running = runtime::running(self.node, self.profile, &recorded)?;
        Ok(running.unwrap_or_else(|| last.unwrap_or(self.profile.runtime_unit).to_owned()))
    }

    /// The unit to start the container runtime with, once the backup's release is booted with the backup's `/etc`: the one that it recorded. Of a backup
    /// that recorded none it is the one that was stopped there, or that is found.
    pub(super) fn runtime_to_start(&self) -> Result<String> {
        let known = self.backup.manifest.runtime_unit.as_deref().or(self.undo.runtime.as_deref());
        runtime::unit(self.node, self.profile, known, &|unit| needs::unloadable(self.node, unit))
    }
}

/// A step of a phase: what the plan says of it, and what it does.
pub(super) struct Step {
    name: &'static str,
    says: &'static str,
    volatile: bool,
    changes: bool,
    applies: fn(&Profile) -> bool,
    act: fn(&mut Doing<'_, '_>) -> Result<()>,
}

impl Step {
    /// A step that every kind of node has and whose effect is on disk.
    pub(super) const fn new(name: &'static str, says: &'static str, act: fn(&mut Doing<'_, '_>) -> Result<()>) -> Self {
        Self { name, says, volatile: false, changes: false, applies: |_| true, act }
    }

    /// Its effect is lost at a reboot.
    pub(super) const fn volatile(self) -> Self {
        Self { volatile: true, ..self }
    }

    /// It changes what the node would boot or run: once it has begun, the node is no longer what it was.
    pub(super) const fn changes(self) -> Self {
        Self { changes: true, ..self }
    }

    /// Only nodes of some profiles have it.
    pub(super) const fn only(self, applies: fn(&Profile) -> bool) -> Self {
        Self { applies, ..self }
    }
}

/// The steps of a phase, for every kind of node.
fn steps(phase: Phase) -> &'static [Step] {
    match phase {
        Phase::Platform => platform::STEPS,
        Phase::RestoreFiles => restore_files::STEPS,
        Phase::Resume => resume::STEPS,
        Phase::Redeploy => redeploy::STEPS,
        Phase::Finish => finish::STEPS,
    }
}

/// True for a step that [changes](Step::changes) what the node would boot or run.
pub(super) fn changes(phase: Phase, step: &str) -> bool {
    steps(phase).iter().any(|known| known.name == step && known.changes)
}

/// Everything a recovery of a node of this profile does; with the platform phase, when that has something to do.
pub(super) fn plan(profile: &Profile, platform: &Action) -> Plan {
    let reboot = |phase| match phase {
        Phase::Platform => matches!(platform, Action::RollBack { .. } | Action::Reboot { .. }),
        phase => phase == Phase::RestoreFiles,
    };
    let planned = |phase: Phase| PlannedPhase {
        phase,
        reboot: reboot(phase),
        steps: steps(phase)
            .iter()
            .filter(|step| (step.applies)(profile))
            .map(|step| PlannedStep { name: step.name.to_owned(), volatile: step.volatile })
            .collect(),
    };
    let first = (*platform != Action::Nothing).then_some(Phase::Platform);
    let phases = first.into_iter().chain([Phase::RestoreFiles, Phase::Resume, Phase::Redeploy, Phase::Finish]);
    phases.map(planned).filter(|planned| !planned.steps.is_empty()).collect()
}

impl Work for Run<'_> {
    fn perform(&mut self, journal: &mut Journal, phase: Phase, step: &str) -> Result<Value> {
        let known = steps(phase).iter().find(|s| s.name == step);
        let Step { name, says, act, .. } = known.ok_or_else(|| {
            damaged(format!(
                "this agent knows no step {step} of {phase}: the run was begun by another version, which can also go on with it"
            ))
        })?;
        let run = journal.reading().run();
        tracing::info!(recovery_run = run, recovery_phase = phase.name(), recovery_step = name, "{phase}: {says}");
        unit::status(&format!("{phase}: {says}"));
        let begun = self.node.clock().since_boot();
        let mut here = Doing { run: self, journal, phase, step: name, figures: Map::new(), warnings: Vec::new(), waited: Duration::ZERO };
        act(&mut here)?;
        let (mut figures, warnings, waited) = (here.figures, here.warnings, here.waited);
        let seconds = self.node.clock().since_boot().saturating_sub(begun).as_secs_f64();
        figures.insert("seconds".to_owned(), seconds.into());
        if !waited.is_zero() {
            figures.insert("waited".to_owned(), waited.as_secs_f64().into());
        }
        if !warnings.is_empty() {
            figures.insert("warnings".to_owned(), warnings.into());
        }
        Ok(Value::Object(figures))
    }

    fn undone_at(&self) -> u64 {
        self.undo.undone_at.unwrap_or(0)
    }

    fn before(&mut self, _: &Journal, _: &Event) -> Result<()> {
        crate::node::clock::interrupted()
    }

    fn needs_reboot(&self, journal: &Journal, phase: Phase) -> Result<bool> {
        // A soft reboot may have left a root that ostree does not know; and it has left the kernel as it was, whatever the root.
        if phase != Phase::Platform || journal.reading().soft_rebooted_since(phase, journal.boot()) {
            return Ok(true);
        }
        platform::needs_reboot(self.node, &target(journal))
    }
}

fn target(journal: &Journal) -> Target {
    journal.reading().beginning.target.clone().map_or(Target::Pinned, Target::Recorded)
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

impl Doing<'_, '_> {
    /// The name of the step.
    pub(super) fn step(&self) -> &'static str {
        self.step
    }

    /// The run's id.
    pub(super) fn id(&self) -> String {
        self.journal.reading().run().to_owned()
    }

    /// What was asked for when the run began.
    pub(super) fn asked(&self) -> super::journal::Asked {
        self.journal.reading().beginning.asked
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
        tracing::warn!(
            recovery_run = self.journal.reading().run(),
            recovery_phase = self.phase.name(),
            recovery_step = self.step,
            "{warning}"
        );
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

    /// What another step has noted in this run.
    pub(super) fn noted_by<T: DeserializeOwned>(&self, phase: Phase, step: &str) -> Result<Option<T>> {
        let Some(record) = self.journal.reading().last_of(phase, step, Kind::StepNoted) else { return Ok(None) };
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
        let (node, wait) = (self.run.node, self.run.wait);
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
        let clock = self.run.node.clock();
        let (begun, task) = (clock.since_boot(), self.run.progress.task(what, None));
        let result = wait(self, &task);
        drop(task);
        self.waited += clock.since_boot().saturating_sub(begun);
        result
    }

    /// Makes a tree of the node equal to an archive of the backup, with labels that the running policy may not know.
    pub(super) fn restore(&mut self, file: &str, tree: &str, selection: &Selection, extra: Extra) -> Result<()> {
        let run = &mut *self.run;
        let root = run.node.real_path(tree);
        let archive = Archive::open(&run.backup.file(file)).with_context(|| format!("opening {file} of backup {}", run.backup.id))?;
        let task = run.progress.task(&format!("restoring {tree}"), Some(archive.bytes()));
        let restore = || archive.restore(&root, selection, extra, &|bytes| task.add(bytes));
        let counts = run.undo.permissive(run.node, run.dir, restore).with_context(|| format!("restoring {tree} from {file}"))?;
        self.figure("counts", counts);
        Ok(())
    }

    /// Restores one path of the static pods' archive, relative to the Kubernetes directory.
    pub(super) fn restore_static_pods(&mut self, path: &Path, extra: Extra) -> Result<()> {
        let selection = Selection::all().only([path]);
        self.restore(crate::backup::STATIC_PODS, self.run.profile.kubernetes, &selection, extra)
    }

    /// The name of a directory of the profile below its Kubernetes directory.
    pub(super) fn below_kubernetes(&self, path: &str) -> Result<std::path::PathBuf> {
        let kubernetes = self.run.profile.kubernetes;
        let rest = Path::new(path).strip_prefix(kubernetes).map_err(|_| anyhow!("{path} is not below {kubernetes}"))?;
        Ok(rest.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::profile::{KUBEADM, OPENSHIFT};
    use crate::recovery::machine::{State, transition};
    use std::sync::Arc;

    #[test]
    fn the_plans_of_both_profiles_are_sound_and_differ_where_they_should() {
        for profile in [&OPENSHIFT, &KUBEADM] {
            assert!(transition(&State::Idle, &Event::RunBegun(Arc::new(plan(profile, &Action::Nothing)))).is_ok());
        }
        let phases = |profile| plan(profile, &Action::Nothing).iter().map(|p| p.phase).collect::<Vec<_>>();
        assert_eq!(phases(&OPENSHIFT), [Phase::RestoreFiles, Phase::Resume, Phase::Redeploy, Phase::Finish]);
        assert_eq!(phases(&KUBEADM), [Phase::RestoreFiles, Phase::Resume, Phase::Finish]);
        let redeployed: Vec<String> = plan(&OPENSHIFT, &Action::Nothing)[2].steps.iter().map(|s| s.name.clone()).collect();
        assert_eq!(redeployed, OPENSHIFT.redeployed.iter().map(|r| r.resource).collect::<Vec<_>>());
    }

    #[test]
    fn the_hold_comes_before_everything_and_goes_when_everything_is_restored() {
        let roll_back = Action::RollBack { ahead: Vec::new(), between: Vec::new() };
        for planned in [&OPENSHIFT, &KUBEADM].into_iter().flat_map(|profile| plan(profile, &roll_back)) {
            let names: Vec<&str> = planned.steps.iter().map(|s| s.name.as_str()).collect();
            let at = |name: &str| names.iter().position(|n| *n == name).unwrap();
            match planned.phase {
                Phase::Platform => {
                    assert!(planned.reboot && at("hold") < at("stop-kubelet") && at("stop-kubelet") < at("target-files"));
                    assert!(at("target-files") < at("drop-ahead") && at("roll-back") < at("next-boot"));
                }
                Phase::RestoreFiles => {
                    assert!(at("hold") < at("stop-kubelet") && at("stop-kubelet") < at("stop-containers"));
                    assert!(at("old-containers") < at("stop-containers") && at("stop-containers") < at("stop-runtime"));
                    assert!(at("stop-runtime") < at("newer-files") && at("newer-files") < at("etc"));
                }
                Phase::Resume => {
                    assert!(at("etcd-manifest") < at("lift-hold") && at("lift-hold") < at("start-kubelet"));
                    assert!(at("start-kubelet") < at("etcd-answers") && at("etcd-answers") < at("api-server-manifest"));
                }
                _ => {}
            }
        }
    }
}
