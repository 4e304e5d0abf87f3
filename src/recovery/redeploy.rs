//! Phase `redeploy`: each static-pod operator rolls its pods out once more, so that none goes on with files of before the rollback.
//!
//! Every operator is a step of its own. The reason is the run's own, and the revision to wait for is kept with it in the operator's
//! object: a step that is done again after a crash does not ask twice, and waits for the same revision. An operator that did not run when the
//! backup was taken (scaled to zero) does not run now either: nobody would answer.

use anyhow::{Context, Result};

use super::run::{Doing, Step};
use super::step;
use super::waits::{self, PAUSE};
use crate::node::profile::Profile;
use crate::up::containers;

pub(super) const STEPS: &[Step] = &[
    Step::new(step::ETCDS, "redeploying etcd", redeploy).only(|p| has(p, step::ETCDS)),
    Step::new(step::KUBEAPISERVERS, "redeploying kube-apiserver", redeploy).only(|p| has(p, step::KUBEAPISERVERS)),
    Step::new(step::KUBECONTROLLERMANAGERS, "redeploying kube-controller-manager", redeploy).only(|p| has(p, step::KUBECONTROLLERMANAGERS)),
    Step::new(step::KUBESCHEDULERS, "redeploying kube-scheduler", redeploy).only(|p| has(p, step::KUBESCHEDULERS)),
];

fn has(profile: &Profile, resource: &str) -> bool {
    profile.redeployed.iter().any(|r| r.resource == resource)
}

fn redeploy(here: &mut Doing<'_, '_>) -> Result<()> {
    let profile = here.run.profile;
    let operator = profile.redeployed.iter().find(|r| r.resource == here.step()).context("the profile has no such operator")?;
    let ran = here.run.backup.manifest.operator_containers.as_deref();
    if !containers::wanted(profile, ran).iter().any(|(container, _)| *container == operator.container) {
        here.warn(format!(
            "{} is not redeployed: its operator, {}, did not run when the backup was taken",
            operator.resource, operator.container
        ));
        return Ok(());
    }
    let client = waits::api(here)?;
    let reason = format!("recovery {}", here.id());
    // A refusal is waited out as well: it may come from a webhook whose pod is only starting.
    let last = std::cell::RefCell::new(String::new());
    let revision = here.wait_for(
        &format!("{} to accept a reason to redeploy", operator.resource),
        PAUSE,
        |_| Ok(client.force_redeployment(operator, &reason).map_err(|error| *last.borrow_mut() = format!("{error:#}")).ok()),
        |_| waits::with_obstacles(last.borrow().clone(), &client),
    )?;
    here.figure("revision", revision);
    here.waiting(&format!("waiting for revision {revision} of {}", operator.resource), |here, task| {
        let deadline = here.run.session.node.clock().deadline(here.run.wait);
        client.wait_revision(operator, revision, deadline, &|state| {
            task.note(state);
            waits::approve(here, &client);
        })
    })
}
