//! The steps of all phases: the plan of a run is made of them, and each is found here when its turn has come.

use anyhow::Result;
use serde_json::Value;

use super::platform::table::Action;
use super::procedure::{Event, Journal, Phase, Plan, Recovery};
use super::run::{Doing, Run, Step, target};
use super::{finish, platform, redeploy, restore_files, resume};
use crate::engine::driver::Work;
use crate::engine::machine::{Phase as _, PlannedPhase, PlannedStep};
use crate::node::profile::Profile;
use crate::report::unit;

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

/// Everything a recovery of a node of this profile does; with the platform phase, when that has something to do; with the steps that patch, when there
/// are `rules` to patch by.
pub(super) fn plan(profile: &Profile, platform: &Action, rules: bool) -> Plan {
    let reboot = |phase| match phase {
        Phase::Platform => matches!(platform, Action::RollBack { .. } | Action::Reboot { .. }),
        phase => phase == Phase::RestoreFiles,
    };
    let planned = |phase: Phase| PlannedPhase {
        phase,
        reboot: reboot(phase),
        steps: steps(phase)
            .iter()
            .filter(|step| (step.applies)(profile) && (rules || !step.patches))
            .map(|step| PlannedStep { name: step.name.to_owned(), volatile: step.volatile })
            .collect(),
    };
    let first = (*platform != Action::Nothing).then_some(Phase::Platform);
    let phases = first.into_iter().chain([Phase::RestoreFiles, Phase::Resume, Phase::Redeploy, Phase::Finish]);
    phases.map(planned).filter(|planned| !planned.steps.is_empty()).collect()
}

impl Work for Run<'_> {
    type Of = Recovery;

    fn perform(&mut self, journal: &mut Journal, phase: Phase, step: &str) -> Result<Value> {
        let known = steps(phase).iter().find(|s| s.name == step);
        let Step { name, says, act, .. } = known.ok_or_else(|| journal.reading().unknown(&format!("step {step} of phase {phase}")))?;
        let run = journal.reading().run.as_str();
        tracing::info!(recovery_run = run, recovery_phase = phase.name(), recovery_step = name, "{phase}: {says}");
        unit::status(&format!("{phase}: {says}"));
        let begun = self.session.node.clock().since_boot();
        let mut here = Doing::of(self, journal, phase, name);
        act(&mut here)?;
        let (mut figures, warnings, waited) = here.done();
        let seconds = self.session.node.clock().since_boot().saturating_sub(begun).as_secs_f64();
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
        platform::needs_reboot(self.session.node, &target(journal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::machine::transition;
    use crate::node::profile::{KUBEADM, OPENSHIFT};
    use crate::recovery::procedure::State;
    use std::sync::Arc;

    #[test]
    fn the_plans_of_both_profiles_are_sound_and_differ_where_they_should() {
        for profile in [&OPENSHIFT, &KUBEADM] {
            assert!(transition(&State::Idle, &Event::RunBegun(Arc::new(plan(profile, &Action::Nothing, true)))).is_ok());
        }
        let phases = |profile| plan(profile, &Action::Nothing, false).iter().map(|p| p.phase).collect::<Vec<_>>();
        assert_eq!(phases(&OPENSHIFT), [Phase::RestoreFiles, Phase::Resume, Phase::Redeploy, Phase::Finish]);
        assert_eq!(phases(&KUBEADM), [Phase::RestoreFiles, Phase::Resume, Phase::Finish]);
        let redeployed: Vec<String> = plan(&OPENSHIFT, &Action::Nothing, false)[2].steps.iter().map(|s| s.name.clone()).collect();
        assert_eq!(redeployed, OPENSHIFT.redeployed.iter().map(|r| r.resource).collect::<Vec<_>>());
    }

    #[test]
    fn the_hold_comes_before_everything_and_goes_when_everything_is_restored() {
        let roll_back = Action::RollBack { ahead: Vec::new(), between: Vec::new() };
        for planned in [&OPENSHIFT, &KUBEADM].into_iter().flat_map(|profile| plan(profile, &roll_back, true)) {
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
                    assert!(at("start-kubelet") < at("etcd-answers") && at("etcd-answers") < at("patch-objects"));
                    assert!(at("patch-objects") < at("api-server-manifest") && at("api-server-ready") < at("patched-objects"));
                    assert!(at("patched-objects") < at("manifests"));
                }
                _ => {}
            }
        }
    }
}
