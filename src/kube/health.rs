//! Whether what runs in the cluster is up, one verdict for each object.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::objects::{Condition, Conditions, Metadata, Object, Unread, condition, or_default, unless_true};
use super::workloads::Workload;

/// One object, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Its name, with its namespace where it has one.
    pub name: String,
    /// Why it is not up; `None` when it is.
    pub trouble: Option<String>,
}

impl Health {
    pub(super) fn of(metadata: &Metadata, trouble: Option<String>) -> Self {
        let Metadata { name, namespace, .. } = metadata;
        Self { name: if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") }, trouble }
    }
}

type Conditioned = Object<Unread, Conditions>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VersionStatus {
    #[serde(deserialize_with = "or_default")]
    desired: Desired,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Desired {
    version: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct HelmSpec {
    #[serde(deserialize_with = "or_default")]
    suspend: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HelmStatus {
    observed_generation: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

impl Client {
    /// The MachineConfigPools: rolled out, and not degraded.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn machine_config_pools(&self) -> Result<Vec<Health>> {
        let all: Vec<Conditioned> =
            self.list("/apis/machineconfiguration.openshift.io/v1/machineconfigpools").context("asking for the MachineConfigPools")?;
        Ok(all.iter().map(|pool| Health::of(&pool.metadata, pool_trouble(&pool.status.conditions))).collect())
    }

    /// The ClusterVersion: at rest, and at `release` where that is given.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn cluster_versions(&self, release: Option<&str>) -> Result<Vec<Health>> {
        let all: Vec<Object<Unread, VersionStatus>> =
            self.list("/apis/config.openshift.io/v1/clusterversions").context("asking for the ClusterVersion")?;
        Ok(all.iter().map(|version| Health::of(&version.metadata, version_trouble(&version.status, release))).collect())
    }

    /// These workloads, or all where none are given: every one has the pods that it should have.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn workloads_health(&self, then: Option<&[Workload]>) -> Result<Vec<Health>> {
        let now = self.workloads()?;
        let health = |workload: &Workload| {
            let trouble = match now.get(workload) {
                Some(pods) if pods.are_up() => None,
                Some(pods) => Some(format!("{} of {} pods are available", pods.up, pods.wanted)),
                None => Some("it is not there".to_owned()),
            };
            Health { name: workload.to_string(), trouble }
        };
        Ok(then.map_or_else(|| now.keys().map(health).collect(), |then| then.iter().map(health).collect()))
    }

    /// The definitions of custom resources: each is served.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn definitions(&self) -> Result<Vec<Health>> {
        let mut found = Vec::new();
        // With their schemas they are tens of megabytes together.
        self.each("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", |definition: Conditioned| {
            found.push(Health::of(&definition.metadata, unless_true(&definition.status.conditions, "Established")));
        })
        .context("asking for the CustomResourceDefinitions")?;
        Ok(found)
    }

    /// Flux's HelmReleases: each is ready, but those that are suspended.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn helm_releases(&self) -> Result<Vec<Health>> {
        let Some(path) = self.resource("helm.toolkit.fluxcd.io", "helmreleases")? else { return Ok(Vec::new()) };
        let all: Vec<Object<HelmSpec, HelmStatus>> = self.list(&path).context("asking for the HelmReleases")?;
        Ok(all
            .iter()
            .filter(|one| !one.spec.suspend)
            .map(|one| Health::of(&one.metadata, helm_trouble(&one.metadata, &one.status)))
            .collect())
    }
}

fn pool_trouble(conditions: &[Condition]) -> Option<String> {
    if let Some(degraded) = condition(conditions, "Degraded").filter(|degraded| degraded.status.as_deref() == Some("True")) {
        return Some(format!("it is degraded: {}", degraded.message));
    }
    unless_true(conditions, "Updated")
}

fn version_trouble(status: &VersionStatus, release: Option<&str>) -> Option<String> {
    if let Some(release) = release.filter(|release| *release != status.desired.version) {
        return Some(format!("its release is to be {}, not {release}", or_none(&status.desired.version)));
    }
    let is = |kind: &str, status_is: &str| condition(&status.conditions, kind).filter(|found| found.status.as_deref() == Some(status_is));
    if let Some(progressing) = is("Progressing", "True") {
        return Some(format!("it is progressing: {}", progressing.message));
    }
    if let Some(failing) = is("Failing", "True") {
        return Some(format!("it is failing: {}", failing.message));
    }
    unless_true(&status.conditions, "Available")
}

fn helm_trouble(metadata: &Metadata, status: &HelmStatus) -> Option<String> {
    let is_old = status.observed_generation.is_some_and(|seen| seen < metadata.generation);
    if is_old { Some("its controller has not seen it yet".to_owned()) } else { unless_true(&status.conditions, "Ready") }
}

pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { "none yet" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::objects::{List, capture};
    use serde_json::json;

    #[test]
    fn pools_and_versions_of_real_clusters() {
        let pools: List<Conditioned> = capture("machineconfigpools-sno-4.16.json");
        assert!(!pools.items.is_empty());
        for pool in &pools.items {
            assert_eq!(pool_trouble(&pool.status.conditions), None, "{}", pool.metadata.name);
        }
        let version = |name: &str| capture::<Object<Unread, VersionStatus>>(name).status;
        let upgrading = version("clusterversion-sno-upgrading-4.16-to-4.17.json");
        assert!(version_trouble(&upgrading, None).is_some_and(|why| why.starts_with("it is progressing: ")));
        assert!(version_trouble(&upgrading, Some("4.16.3")).is_some_and(|why| why.ends_with("not 4.16.3")));
        let after = version("clusterversion-after-upgrade-4.18.json");
        // The history has it too.
        assert_eq!((after.desired.version.as_str(), version_trouble(&after, Some("4.18.0-ec.3"))), ("4.18.0-ec.3", None));
        assert!(version_trouble(&VersionStatus::default(), None).is_some(), "it says nothing yet");
        assert!(version_trouble(&version("clusterversion-upgrading-failing-4.14.json"), None).is_some());
    }

    #[test]
    fn a_pool_that_is_not_rolled_out_says_why() {
        let trouble = |conditions| pool_trouble(&serde_json::from_value::<Vec<Condition>>(conditions).unwrap());
        assert_eq!(trouble(json!([{"type": "Updated", "status": "False"}])).as_deref(), Some("it is not Updated"));
        let degraded = json!([{"type": "Updated", "status": "True"}, {"type": "Degraded", "status": "True", "message": "1 node"}]);
        assert_eq!(trouble(degraded).as_deref(), Some("it is degraded: 1 node"));
    }

    #[test]
    fn a_helm_release_is_up_when_its_controller_has_seen_it_and_it_is_ready() {
        let trouble =
            |generation, status| helm_trouble(&Metadata { generation, ..Metadata::default() }, &serde_json::from_value(status).unwrap());
        let ready = json!({"observedGeneration": 2, "conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(trouble(2, ready.clone()), None);
        assert!(trouble(3, ready).is_some_and(|why| why.contains("not seen")));
        let failed = json!({"conditions": [{"type": "Ready", "status": "False", "message": "timed out"}]});
        assert_eq!(trouble(2, failed).as_deref(), Some("it is not Ready: timed out"));
    }
}
