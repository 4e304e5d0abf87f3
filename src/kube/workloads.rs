//! Deployments, StatefulSets and DaemonSets: which are available.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::objects::{Object, or_default};

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Workload {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The kind of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
}

impl WorkloadKind {
    const ALL: [Self; 3] = [Self::Deployment, Self::StatefulSet, Self::DaemonSet];

    fn resource(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::StatefulSet => "statefulsets",
            Self::DaemonSet => "daemonsets",
        }
    }
}

impl std::fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        })
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

type Found = Object<Spec, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    /// 1 where it is not given.
    replicas: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "or_default")]
    observed_generation: i64,
    #[serde(deserialize_with = "or_default")]
    available_replicas: i64,
    #[serde(deserialize_with = "or_default")]
    ready_replicas: i64,
    #[serde(deserialize_with = "or_default")]
    desired_number_scheduled: i64,
    #[serde(deserialize_with = "or_default")]
    number_available: i64,
}

/// (A StatefulSet has counted available pods since Kubernetes 1.22; its ready ones are what `kubectl get` shows.)
fn pods(kind: WorkloadKind, found: &Found) -> Pods {
    let (wanted, status) = (found.spec.replicas.unwrap_or(1), &found.status);
    let (wanted, up) = match kind {
        WorkloadKind::Deployment => (wanted, status.available_replicas),
        WorkloadKind::StatefulSet => (wanted, status.ready_replicas),
        WorkloadKind::DaemonSet => (status.desired_number_scheduled, status.number_available),
    };
    let is_seen = status.observed_generation >= found.metadata.generation;
    Pods { wanted: if is_seen { wanted } else { wanted.max(1) }, up: if is_seen { up } else { 0 } }
}

/// How a workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pods {
    /// How many it should have; none where it is scaled to zero.
    pub(super) wanted: i64,
    /// How many are available. None, while its controller has not seen what is asked for now.
    pub(super) up: i64,
}

impl Pods {
    pub(super) fn are_up(self) -> bool {
        self.up >= self.wanted
    }
}

impl Client {
    /// Every workload.
    pub(super) fn workloads(&self) -> Result<BTreeMap<Workload, Pods>> {
        let mut all = BTreeMap::new();
        for kind in WorkloadKind::ALL {
            self.each(&format!("/apis/apps/v1/{}", kind.resource()), |found: Found| {
                let pods = pods(kind, &found);
                all.insert(Workload { kind, namespace: found.metadata.namespace, name: found.metadata.name }, pods);
            })
            .with_context(|| format!("asking for every {kind}"))?;
        }
        Ok(all)
    }

    /// The workloads that have all the pods they should have, and should have any; by kind, namespace and name.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn available_workloads(&self) -> Result<Vec<Workload>> {
        let all = self.workloads()?.into_iter();
        Ok(all.filter(|(_, pods)| pods.wanted > 0 && pods.are_up()).map(|(workload, _)| workload).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_workload_is_counted_as_kubectl_shows_it() {
        let pods = |kind, object: serde_json::Value| {
            let Pods { wanted, up } = pods(kind, &serde_json::from_value(object).unwrap());
            (wanted, up)
        };
        let deployment =
            json!({"metadata": {"name": "a"}, "spec": {"replicas": 2}, "status": {"readyReplicas": 2, "availableReplicas": 1}});
        assert_eq!(pods(WorkloadKind::Deployment, deployment), (2, 1));
        assert_eq!(pods(WorkloadKind::StatefulSet, json!({"spec": {}, "status": {"replicas": 1, "readyReplicas": 1}})), (1, 1));
        let daemons = json!({"spec": {}, "status": {"desiredNumberScheduled": 1, "numberReady": 1, "numberUnavailable": 1}});
        assert_eq!(pods(WorkloadKind::DaemonSet, daemons), (1, 0));
        // On a node that none of its pods may run on.
        assert_eq!(pods(WorkloadKind::DaemonSet, json!({"spec": {}, "status": {"desiredNumberScheduled": 0}})), (0, 0));
        assert_eq!(pods(WorkloadKind::Deployment, json!({"spec": {"replicas": 0}})), (0, 0));
        // What it says is of what was asked for before.
        let unseen =
            json!({"metadata": {"generation": 3}, "spec": {"replicas": 1}, "status": {"observedGeneration": 2, "availableReplicas": 1}});
        assert_eq!(pods(WorkloadKind::Deployment, unseen), (1, 0));
    }
}
