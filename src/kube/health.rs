//! Whether what runs in the cluster is up, one verdict for each object.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::objects::{Condition, Conditions, Metadata, Object, Unread, condition, is_true, or_default};
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
    fn of(metadata: &Metadata, trouble: Option<String>) -> Self {
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
#[serde(rename_all = "camelCase", default)]
struct ManagementStatus {
    #[serde(deserialize_with = "or_default")]
    observed_generation: i64,
    #[serde(deserialize_with = "or_default")]
    release: String,
    #[serde(deserialize_with = "or_default")]
    components: BTreeMap<String, Component>,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Component {
    #[serde(deserialize_with = "or_default")]
    success: bool,
    #[serde(deserialize_with = "or_default")]
    error: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Release {
    #[serde(deserialize_with = "or_default")]
    release: String,
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

    /// k0rdent's Management: at the release that it is asked to be at, and every component ready. One that `was_there` has to be there. (Which release
    /// that is, a recovery may have changed by rules.)
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn managements(&self, was_there: bool) -> Result<Vec<Health>> {
        let path = self.resource("k0rdent.mirantis.com", "managements")?;
        let all: Vec<Object<Release, ManagementStatus>> =
            path.map_or_else(|| Ok(Vec::new()), |path| self.list(&path)).context("asking for k0rdent's Management")?;
        if all.is_empty() && was_there {
            return Ok(vec![Health { name: "Management".to_owned(), trouble: Some("it is not there".to_owned()) }]);
        }
        Ok(all.iter().map(|one| Health::of(&one.metadata, management_trouble(&one.metadata, &one.spec, &one.status))).collect())
    }

    /// Flux's HelmReleases: each is ready, but those that are suspended.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn helm_releases(&self) -> Result<Vec<Health>> {
        let Some(path) = self.resource("helm.toolkit.fluxcd.io", "helmreleases")? else { return Ok(Vec::new()) };
        let all: Vec<Object<Release, HelmStatus>> = self.list(&path).context("asking for the HelmReleases")?;
        Ok(all
            .iter()
            .filter(|one| !one.spec.suspend)
            .map(|one| Health::of(&one.metadata, helm_trouble(&one.metadata, &one.status)))
            .collect())
    }
}

/// Why the condition of this type is not True.
fn unless_true(conditions: &[Condition], kind: &str) -> Option<String> {
    if is_true(conditions, kind) {
        return None;
    }
    let message = condition(conditions, kind).map(|condition| condition.message.as_str()).filter(|message| !message.is_empty());
    Some(message.map_or_else(|| format!("it is not {kind}"), |message| format!("it is not {kind}: {message}")))
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

fn management_trouble(metadata: &Metadata, spec: &Release, status: &ManagementStatus) -> Option<String> {
    if status.observed_generation < metadata.generation {
        return Some("its controller has not seen it yet".to_owned());
    }
    if spec.release != status.release {
        return Some(format!("it is at the release {}, and is to be at {}", or_none(&status.release), spec.release));
    }
    let failed: Vec<String> = status
        .components
        .iter()
        .filter(|(_, component)| !component.success)
        .map(|(name, component)| format!("{name} ({})", or_none(&component.error)))
        .collect();
    if failed.is_empty() {
        unless_true(&status.conditions, "Ready")
    } else {
        Some(format!("components that are not ready: {}", failed.join(", ")))
    }
}

fn helm_trouble(metadata: &Metadata, status: &HelmStatus) -> Option<String> {
    let is_old = status.observed_generation.is_some_and(|seen| seen < metadata.generation);
    if is_old { Some("its controller has not seen it yet".to_owned()) } else { unless_true(&status.conditions, "Ready") }
}

fn or_none(text: &str) -> &str {
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

    #[test]
    fn a_management_is_up_when_it_is_where_it_is_asked_to_be_with_all_components() {
        let trouble = |generation, status| {
            let metadata = Metadata { generation, ..Metadata::default() };
            let spec = Release { release: "kcm-0-2-0".to_owned(), suspend: false };
            management_trouble(&metadata, &spec, &serde_json::from_value(status).unwrap())
        };
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let up = json!({"observedGeneration": 2, "release": "kcm-0-2-0", "components": {"kcm": {"success": true}}, "conditions": ready});
        assert_eq!(trouble(2, up.clone()), None);
        assert!(trouble(3, up).is_some_and(|why| why.contains("not seen")));
        let other = json!({"observedGeneration": 2, "release": "kcm-0-3-0", "conditions": ready});
        assert!(trouble(2, other).is_some_and(|why| why.contains("at the release kcm-0-3-0, and is to be at kcm-0-2-0")));
        let half =
            json!({"observedGeneration": 2, "release": "kcm-0-2-0", "components": {"capi": {"error": "no chart"}}, "conditions": ready});
        assert_eq!(trouble(2, half).as_deref(), Some("components that are not ready: capi (no chart)"));
        assert_eq!(trouble(2, json!({"observedGeneration": 2, "release": "kcm-0-2-0"})).as_deref(), Some("it is not Ready"));
    }
}
