//! Redeploying the static pods of a control plane through their operators, and noticing when that is done.
//!
//! An operator answers a new `forceRedeploymentReason` with a new revision and installs it. Its conditions lag behind its revisions:
//! recorded over an install of OpenShift 4.13, `NodeInstallerProgressing` of all four still said `AllNodesAtLatestRevision` for 1 to 13 s
//! after a new revision had appeared. So only the numbers are compared, and they must hold for a while.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, PAUSE, is_conflict};
use super::objects::{Object, or_default};
use crate::error::busy;
use crate::node::clock::Deadline;
use crate::node::profile::Redeployed;

/// The annotation that keeps the revision to wait for. It is set in the same write as the reason, so that after a crash either both are
/// there or neither is; the operators leave it alone.
const ANNOTATION: &str = "recovery/redeploy-revision";
/// How often a write is tried when other clients change the object meanwhile; the same number as kubectl's.
const TRIES: usize = 10;

pub(super) type Operator = Object<OperatorSpec, OperatorStatus>;

/// Spec of a static-pod operator.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OperatorSpec {
    #[serde(deserialize_with = "or_default")]
    force_redeployment_reason: String,
    #[serde(deserialize_with = "or_default")]
    management_state: String,
}

/// Status of a static-pod operator; all of it can be missing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OperatorStatus {
    #[serde(deserialize_with = "or_default")]
    latest_available_revision: i64,
    #[serde(deserialize_with = "or_default")]
    node_statuses: Vec<NodeStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    node_name: String,
    #[serde(deserialize_with = "or_default")]
    current_revision: i64,
    #[serde(deserialize_with = "or_default")]
    target_revision: i64,
    #[serde(deserialize_with = "or_default")]
    last_failed_revision: i64,
    #[serde(deserialize_with = "or_default")]
    last_failed_revision_errors: Vec<String>,
}

impl OperatorStatus {
    /// `Ok` when every node has reached `revision`, is at the latest revision and not on its way to another; else where it is.
    fn settled(&self, revision: i64) -> Result<(), String> {
        let latest = self.latest_available_revision;
        if self.node_statuses.is_empty() {
            return Err("it knows of no node yet".to_owned());
        }
        for node in &self.node_statuses {
            let (name, current, target) = (&node.node_name, node.current_revision, node.target_revision);
            let failed = if node.last_failed_revision > current {
                let errors = node.last_failed_revision_errors.join("; ");
                format!(", and installing revision {} failed: {errors}", node.last_failed_revision)
            } else {
                String::new()
            };
            if target != 0 && target != current {
                return Err(format!("node {name} is at revision {current}, on the way to {target}{failed}"));
            }
            if current < revision.max(latest) {
                return Err(format!("node {name} is at revision {current}, the latest available one is {latest}{failed}"));
            }
        }
        Ok(())
    }
}

/// Whether a condition has held for long enough. It is told the result of each look; a failed look counts as false.
#[derive(Debug)]
struct Holding {
    needed: Duration,
    since: Option<Duration>,
}

impl Holding {
    fn look(&mut self, is_so: bool, now: Duration) -> bool {
        self.since = is_so.then(|| self.since.unwrap_or(now));
        self.since.is_some_and(|since| now.saturating_sub(since) >= self.needed)
    }
}

impl Client {
    /// The resource names of static-pod operators that roll out a revision now; a backup must not be taken in the middle of that.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn rolling_out(&self, redeployed: &[Redeployed]) -> Result<Vec<String>> {
        let mut rolling = Vec::new();
        for one in redeployed {
            if self.operator(one)?.status.settled(0).is_err() {
                rolling.push(one.resource.to_owned());
            }
        }
        Ok(rolling)
    }

    /// Sets `forceRedeploymentReason` of a static-pod operator to `reason` and returns the revision to wait for: the latest available
    /// before it, plus one. Each wanted redeployment needs a `reason` of its own.
    ///
    /// Safe to call again after a crash with the same `reason`: the reason is then not set again, and the first call's number is returned,
    /// from an annotation that is written together with the reason.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; when it refuses.
    pub fn force_redeployment(&self, operator: &Redeployed, reason: &str) -> Result<i64> {
        let what = || format!("asking {} for a redeployment", operator.resource);
        for _ in 0..TRIES {
            let object = self.operator(operator).with_context(what)?;
            let latest = object.status.latest_available_revision;
            if object.spec.force_redeployment_reason == reason {
                let kept = object.metadata.annotations.get(ANNOTATION).and_then(|number| number.parse().ok());
                // Without the annotation somebody set the same reason by hand; the revision that it led to is the latest.
                return Ok(kept.unwrap_or(latest));
            }
            // With the version, reading `latest` and writing are one step: a revision that appears in between makes the write a conflict.
            let change = json!({
                "metadata": {"resourceVersion": object.metadata.resource_version, "annotations": {ANNOTATION: (latest + 1).to_string()}},
                "spec": {"forceRedeploymentReason": reason},
            });
            match self.patch(&path(operator), &change) {
                Err(error) if is_conflict(&error) => self.clock.sleep(Duration::from_millis(100))?,
                done => return done.map(|()| latest + 1).with_context(what),
            }
        }
        Err(busy(format!("{}/cluster was changed by others each of the {TRIES} times it was written", operator.resource)))
    }

    /// Waits until every node's current revision has reached `revision`, is the latest, and has held there for a while.
    ///
    /// `note` is told at every look what the wait is for.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) at the deadline, with the operator's revisions and what may be in
    /// its way;
    /// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when interrupted.
    pub fn wait_revision(&self, operator: &Redeployed, revision: i64, deadline: Deadline, note: &dyn Fn(&str)) -> Result<()> {
        let state = RefCell::new(String::new());
        let mut holding = Holding { needed: self.hold, since: None };
        let look = || {
            let (settled, now) = match self.operator(operator) {
                Err(error) => (false, format!("{error:#}")),
                Ok(object) => match object.status.settled(revision) {
                    Ok(()) => (true, format!("it reached revision {revision}, and has to stay there for {} s", self.hold.as_secs())),
                    Err(why) => (false, unmanaged(&object.spec, why)),
                },
            };
            note(&format!("{}: {now}", operator.resource));
            state.replace(now);
            Ok(holding.look(settled, self.clock.since_boot()).then_some(()))
        };
        let why = || [vec![state.borrow().clone()], self.obstacles()].concat().join("; ");
        deadline.wait_for(
            &format!("{} to be at revision {revision}", operator.resource),
            PAUSE.min(self.hold.max(Duration::from_millis(100))),
            look,
            why,
        )
    }

    fn operator(&self, operator: &Redeployed) -> Result<Operator> {
        self.get(&path(operator))
    }
}

fn path(operator: &Redeployed) -> String {
    format!("/apis/operator.openshift.io/v1/{}/cluster", operator.resource)
}

/// Adds to `why` that an unmanaged operator never redeploys anything.
fn unmanaged(spec: &OperatorSpec, why: String) -> String {
    match spec.management_state.as_str() {
        "" | "Managed" => why,
        state => format!("{why}; its managementState is {state}, so it will not redeploy anything"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::objects::capture;
    use serde_json::Value;

    fn settled(name: &str, revision: i64) -> Result<(), String> {
        capture::<Operator>(name).status.settled(revision)
    }

    #[test]
    fn only_numbers_tell_that_a_revision_is_reached() {
        assert!(settled("etcd-0-no-status.json", 0).is_err());
        assert!(settled("etcd-1-revision-0.json", 1).is_err());
        assert!(settled("etcd-2-installing-first.json", 2).unwrap_err().contains("on the way to 2"));
        // This operator's condition says that all nodes are at the latest revision.
        let stale = settled("etcd-3-new-revision-stale-condition.json", 2).unwrap_err();
        assert_eq!(stale, "node sno-node-0 is at revision 2, the latest available one is 3");
        assert!(settled("etcd-4-progressing-no-target.json", 3).is_err());
        assert!(settled("etcd-5-installing-rev3.json", 3).is_err());
        assert!(settled("etcd-6-at-latest-rev3.json", 3).is_ok());
        assert!(settled("etcd-6-at-latest-rev3.json", 2).is_ok());
        assert!(settled("etcd-6-at-latest-rev3.json", 4).is_err());
        assert!(settled("kubeapiserver-1-new-revision-stale-condition.json", 2).is_err());
        assert!(settled("kubeapiserver-2-installing-rev3.json", 3).is_err());
        assert!(settled("kubeapiserver-3-at-latest-rev3.json", 3).is_ok());
        assert!(settled("kubecontrollermanager-new-revision-stale-condition.json", 5).is_err());
        assert!(settled("kubescheduler-at-latest-rev5.json", 5).is_ok());
    }

    #[test]
    fn a_failed_installation_is_told() {
        let status = OperatorStatus {
            latest_available_revision: 4,
            node_statuses: vec![NodeStatus {
                node_name: "n".into(),
                current_revision: 3,
                target_revision: 4,
                last_failed_revision: 4,
                last_failed_revision_errors: vec!["no space".into()],
            }],
        };
        assert_eq!(status.settled(4).unwrap_err(), "node n is at revision 3, on the way to 4, and installing revision 4 failed: no space");
    }

    #[test]
    fn something_holds_only_when_no_look_in_between_says_otherwise() {
        let mut holding = Holding { needed: Duration::from_secs(10), since: None };
        let mut look = |is_so, at| holding.look(is_so, Duration::from_secs(at));
        assert!(!look(true, 0) && !look(true, 9) && !look(false, 10) && !look(true, 11) && !look(true, 20));
        assert!(look(true, 21));
    }

    /// The operators' states over a whole install, recorded each second. A wait must end only when nothing changes for 10 s, and never in
    /// one of the many states whose condition says that all nodes are at the latest revision although a newer one exists.
    #[test]
    fn a_recorded_install_is_never_taken_for_done_too_early() {
        let timeline: Vec<Seen> = capture("sno-static-pod-rollout-timeline.json");
        let mut stale = 0;
        for kind in ["etcds", "kubeapiservers", "kubecontrollermanagers", "kubeschedulers"] {
            let states: Vec<&Seen> = timeline.iter().filter(|seen| seen.kind == kind).collect();
            let last = states.last().unwrap();
            let end = last.status().latest_available_revision;
            assert!(end >= 3 && last.status().settled(end).is_ok(), "{kind}");
            for state in &states {
                let now = state.status();
                let says_done = state.status["NodeInstallerProgressing"]["reason"] == "AllNodesAtLatestRevision";
                let is_done = now.settled(0).is_ok();
                stale += usize::from(says_done && !is_done);
                assert!(!is_done || now.node_statuses.iter().all(|n| n.current_revision == now.latest_available_revision));
            }
            let done = replay(&states, end).expect(kind);
            assert!(done >= last.second() + 10, "{kind} was taken for done before its last change");
        }
        assert!(stale >= 4, "the recording has stale conditions of every operator, found {stale}");
    }

    #[derive(Deserialize)]
    struct Seen {
        kind: String,
        #[serde(rename = "seenAt")]
        at: jiff::Timestamp,
        status: Value,
    }

    impl Seen {
        fn status(&self) -> OperatorStatus {
            serde_json::from_value(self.status.clone()).unwrap()
        }

        fn second(&self) -> u64 {
            u64::try_from(self.at.as_second()).unwrap()
        }
    }

    /// The second at which a wait for `revision` ends.
    fn replay(states: &[&Seen], revision: i64) -> Option<u64> {
        let mut holding = Holding { needed: Duration::from_secs(10), since: None };
        let (start, end) = (states.first()?.second(), states.last()?.second());
        (start..end + 60).find(|second| {
            let now = states.iter().rev().find(|state| state.second() <= *second);
            let settled = now.is_some_and(|state| state.status().settled(revision).is_ok());
            holding.look(settled, Duration::from_secs(*second))
        })
    }
}
