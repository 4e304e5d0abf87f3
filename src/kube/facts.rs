//! Facts about the cluster, and the state of its operators.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Client, is_missing};
use super::objects::{Condition, Conditions, Object, Unread, condition, is_true, or_default};
use crate::error::busy;
use crate::node::profile::Kind;

/// Where OpenShift's one ClusterVersion is.
pub(super) const CLUSTER_VERSION: &str = "/apis/config.openshift.io/v1/clusterversions/version";

/// State of one ClusterOperator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorState {
    /// Its name.
    pub name: String,
    /// Version of `operator`, when given.
    pub version: Option<String>,
    /// Available is True.
    pub available: bool,
    /// Progressing is True.
    pub progressing: bool,
    /// Degraded is True.
    pub degraded: bool,
}

/// Which cluster and release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// `spec.clusterID` of the ClusterVersion; on a kubeadm cluster the uid of namespace kube-system.
    pub id: String,
    /// Version of the newest Completed history entry; on kubeadm the server's git version.
    pub version: String,
    /// Its release image, when there is one.
    pub image: Option<String>,
    /// True while the ClusterVersion is Progressing.
    pub progressing: bool,
}

type ClusterVersion = Object<ClusterVersionSpec, ClusterVersionStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ClusterVersionSpec {
    #[serde(rename = "clusterID")]
    cluster_id: String,
    #[serde(rename = "desiredUpdate", deserialize_with = "or_default")]
    desired_update: Update,
}

/// The release that is asked for: by its version, its image, or both. It stays when the cluster has come there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Update {
    #[serde(deserialize_with = "or_default")]
    version: String,
    #[serde(deserialize_with = "or_default")]
    image: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ClusterVersionStatus {
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    history: Vec<Release>,
}

/// An entry of the history, newest first. A version can be there twice (another architecture); the completion time is null while Partial.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Release {
    state: String,
    version: String,
    #[serde(deserialize_with = "or_default")]
    image: String,
}

pub(super) type ClusterOperator = Object<Unread, ClusterOperatorStatus>;

/// Status of a ClusterOperator.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClusterOperatorStatus {
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    versions: Vec<OperandVersion>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct OperandVersion {
    name: String,
    version: String,
}

impl Client {
    /// Which cluster and release.
    ///
    /// # Errors
    /// As [`Client::cluster_and_update`].
    pub fn cluster(&self) -> Result<Cluster> {
        Ok(self.cluster_and_update()?.0)
    }

    /// Which cluster and release, and the release that it is asked to go to, as [`update_ahead`]; none where there is no ClusterVersion.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer,
    /// [`FailureKind::Busy`](crate::error::FailureKind::Busy) while the cluster is still being installed.
    pub fn cluster_and_update(&self) -> Result<(Cluster, Option<String>)> {
        match self.profile.kind {
            Kind::OpenShift => {
                let version: ClusterVersion = self.get(CLUSTER_VERSION).context("asking for the ClusterVersion")?;
                Ok((cluster(&version).context("asking for the ClusterVersion")?, ahead(version)))
            }
            Kind::Kubeadm => {
                let namespace: Object<Unread, Unread> = self.get("/api/v1/namespaces/kube-system")?;
                let version: ServerVersion = self.get("/version")?;
                Ok((Cluster { id: namespace.metadata.uid, version: version.git_version, image: None, progressing: false }, None))
            }
        }
    }

    /// All `ClusterOperator` objects, by name; empty where the API has none.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn operators(&self) -> Result<Vec<OperatorState>> {
        let mut states: Vec<OperatorState> = self.cluster_operators()?.iter().map(operator).collect();
        states.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(states)
    }

    pub(super) fn cluster_operators(&self) -> Result<Vec<ClusterOperator>> {
        self.list("/apis/config.openshift.io/v1/clusteroperators").context("asking for the ClusterOperators")
    }

    /// True when the node's condition Ready is True and kubelet has reported it at `since` or later. A restored etcd still holds the
    /// condition from the time of the backup, and nothing corrects that for 40 s; a kubelet reports as soon as it starts. False when there
    /// is no such node.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn node_ready(&self, name: &str, since: Option<Timestamp>) -> Result<bool> {
        let node = match self.get::<Object<Unread, Conditions>>(&format!("/api/v1/nodes/{name}")) {
            Err(error) if is_missing(&error) => return Ok(false),
            node => node?,
        };
        // The API gives whole seconds.
        let reported = condition(&node.status.conditions, "Ready").and_then(|ready| ready.reported);
        let is_fresh = since.is_none_or(|since| reported.is_some_and(|at| at.as_second() >= since.as_second()));
        Ok(is_fresh && is_true(&node.status.conditions, "Ready"))
    }
}

/// What `/version` says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServerVersion {
    git_version: String,
}

fn cluster(version: &ClusterVersion) -> Result<Cluster> {
    let done = version.status.history.iter().find(|release| release.state == "Completed");
    let done = done.ok_or_else(|| busy("this cluster is still being installed: its ClusterVersion has no completed release yet"))?;
    Ok(Cluster {
        id: version.spec.cluster_id.clone(),
        version: done.version.clone(),
        image: Some(done.image.clone()).filter(|image| !image.is_empty()),
        progressing: is_true(&version.status.conditions, "Progressing"),
    })
}

/// The release that a `ClusterVersion` asks for in `spec.desiredUpdate` and that the cluster is not at: cluster-version-operator goes there as soon as it
/// runs, from a restored etcd too.
#[must_use]
pub fn update_ahead(cluster_version: &Value) -> Option<String> {
    ahead(serde_json::from_value(cluster_version.clone()).ok()?)
}

fn ahead(version: ClusterVersion) -> Option<String> {
    let Update { version: wanted, image } = version.spec.desired_update;
    let done = version.status.history.into_iter().find(|release| release.state == "Completed").unwrap_or_default();
    let is_there = (wanted.is_empty() || wanted == done.version) && (image.is_empty() || image == done.image);
    (!is_there).then_some(if wanted.is_empty() { image } else { wanted })
}

fn operator(operator: &ClusterOperator) -> OperatorState {
    let status = &operator.status;
    OperatorState {
        name: operator.metadata.name.clone(),
        version: status.versions.iter().find(|v| v.name == "operator").map(|v| v.version.clone()),
        available: is_true(&status.conditions, "Available"),
        progressing: is_true(&status.conditions, "Progressing"),
        degraded: is_true(&status.conditions, "Degraded"),
    }
}

impl ClusterOperatorStatus {
    /// What is wrong with this operator: the message of its Degraded condition, or that it is not available. `None` when it is well.
    pub(super) fn trouble(&self) -> Option<String> {
        if is_true(&self.conditions, "Degraded") {
            let message = condition(&self.conditions, "Degraded").map_or("", |c| c.message.as_str());
            return Some(format!("is degraded: {}", first_line(message)));
        }
        let available = condition(&self.conditions, "Available").filter(|c| c.status.as_deref() == Some("False"))?;
        Some(format!("is not available: {}", first_line(&available.message)))
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("it does not say why")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use crate::kube::objects::{List, capture};

    #[test]
    fn an_update_is_ahead_until_the_cluster_is_there() {
        let ahead = |name: &str| update_ahead(&capture(name));
        assert!(ahead("clusterversion-sno-upgrading-4.16-to-4.17.json").unwrap().ends_with("992bd8e33109"));
        assert_eq!(ahead("clusterversion-upgrading-failing-4.14.json").as_deref(), Some("4.14.1"));
        for none in ["clusterversion-after-upgrade-4.18.json", "clusterversion-fresh-4.14.json", "clusterversion-sno-0-created.json"] {
            assert_eq!(ahead(none), None, "{none}");
        }
        // Asked for, and held by somebody who says that the cluster cannot be upgraded: nothing moves yet.
        let mut asked: Value = capture("clusterversion-fresh-4.14.json");
        asked["spec"]["desiredUpdate"] = serde_json::json!({"version": "4.15.0", "image": null});
        assert_eq!(update_ahead(&asked).as_deref(), Some("4.15.0"));
    }

    #[test]
    fn releases_are_read_before_while_and_after_an_upgrade() {
        let read = |name: &str| cluster(&capture(name));
        for fresh in ["clusterversion-sno-0-created.json", "clusterversion-sno-1-installing.json"] {
            assert_eq!(exit_code(&read(fresh).unwrap_err()), 75, "{fresh}");
        }
        let installed = read("clusterversion-sno-2-installed.json").unwrap();
        assert_eq!(installed.id, "f6f009e8-52a4-44f0-9da3-8f1555e3132b");
        assert_eq!(installed.version, "4.13.0-0.ci.test-2023-03-09-115511-ci-ln-88xnydk-latest");
        assert!(installed.image.unwrap().contains("@sha256:d1680bbb"));
        assert!(!installed.progressing);
        // In the middle of an upgrade, the release is the one from which the cluster is upgraded.
        let upgrading = read("clusterversion-sno-upgrading-4.16-to-4.17.json").unwrap();
        assert!(upgrading.progressing && upgrading.version.starts_with("4.16."), "{upgrading:?}");
        assert!(read("clusterversion-upgrading-failing-4.14.json").unwrap().progressing);
        assert!(!read("clusterversion-after-upgrade-4.18.json").unwrap().progressing);
        assert!(!read("clusterversion-fresh-4.14.json").unwrap().progressing);
    }

    #[test]
    fn operators_are_read_in_the_middle_of_an_upgrade() {
        let list: List<ClusterOperator> = capture("clusteroperators-sno-upgrading-4.16-to-4.17.json");
        let states: Vec<_> = list.items.iter().map(operator).collect();
        assert_eq!(
            states.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "machine-config"]
        );
        assert!(states[0].available && !states[0].progressing && !states[0].degraded);
        assert!(states[1].progressing, "{:?}", states[1]);
        assert!(states.iter().all(|s| s.version.is_some()));
        assert!(list.items.iter().all(|o| o.status.trouble().is_none()));
    }

    #[test]
    fn a_node_is_ready_by_its_condition() {
        for name in ["node-sno-4.16.json", "real-node-ready-k8s-1.34.json"] {
            let node: Object<Unread, Conditions> = capture(name);
            assert!(is_true(&node.status.conditions, "Ready"), "{name}");
        }
    }
}
