//! Which release the cluster is at and is to be at: OpenShift's ClusterVersion, k0rdent's Management.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::Client;
use super::facts::CLUSTER_VERSION;
use super::objects::{Condition, Object, Unread, condition, is_true, or_default};

/// k0rdent's Management object, of which a cluster has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Management {
    /// The release that it is at, `kcm-0-2-0`: `status.release`. `None` on a new one, and on one that Velero has restored.
    pub release: Option<String>,
    /// The release that it is asked to be at: `spec.release`.
    pub asked: String,
    /// It is at the release that was asked for, and every component is ready.
    pub ready: bool,
}

/// What an upgrade changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Upgraded {
    /// `spec.desiredUpdate` of OpenShift's ClusterVersion.
    ClusterVersion,
    /// `spec.release` of k0rdent's Management.
    Management,
}

impl std::fmt::Display for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::ClusterVersion => "ClusterVersion",
            Self::Management => "Management",
        })
    }
}

/// How far an upgrade has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// The cluster is at the release, and at rest.
    Done,
    /// Not yet: what it says.
    Going(String),
}

type ManagementObject = Object<ManagementSpec, ManagementStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ManagementSpec {
    #[serde(deserialize_with = "or_default")]
    release: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ManagementStatus {
    #[serde(deserialize_with = "or_default")]
    release: String,
    #[serde(deserialize_with = "or_default")]
    observed_generation: i64,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

type ClusterVersion = Object<Unread, ClusterVersionStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClusterVersionStatus {
    #[serde(deserialize_with = "or_default")]
    observed_generation: i64,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    history: Vec<Update>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Update {
    state: String,
    version: String,
}

impl Client {
    /// k0rdent's Management; `None` where there is none.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn management(&self) -> Result<Option<Management>> {
        Ok(self.management_object()?.map(|(_, object)| management(&object)))
    }

    /// Its path, in the version that the API server prefers, and what is there.
    fn management_object(&self) -> Result<Option<(String, ManagementObject)>> {
        let Some(path) = self.resource("k0rdent.mirantis.com", "managements")? else { return Ok(None) };
        let all: Vec<ManagementObject> = self.list(&path).context("asking for k0rdent's Management")?;
        Ok(all.into_iter().next().map(|object| (format!("{path}/{}", object.metadata.name), object)))
    }

    /// Asks for `release`: from here on the upgrade goes on by itself.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; [`Refused`](super::Refused), also by the gate.
    pub fn ask_for_release(&self, upgraded: Upgraded, release: &str, is_dry: bool) -> Result<()> {
        let (path, change) = match upgraded {
            Upgraded::ClusterVersion => {
                // What an earlier update was asked for with is not meant any more.
                let update = json!({"version": release, "image": null, "force": null, "architecture": null});
                (CLUSTER_VERSION.to_owned(), json!({"spec": {"desiredUpdate": update}}))
            }
            Upgraded::Management => {
                let found = self.management_object()?.context("there is no Management any more")?;
                (found.0, json!({"spec": {"release": release}}))
            }
        };
        let query = if is_dry { "?dryRun=All" } else { "" };
        self.patch(&format!("{path}{query}"), &change).with_context(|| format!("asking for the release {release}"))
    }

    /// The value of an annotation of what is upgraded.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn upgraded_annotation(&self, upgraded: Upgraded, annotation: &str) -> Result<Option<String>> {
        let mut metadata = match upgraded {
            Upgraded::ClusterVersion => self.get::<ClusterVersion>(CLUSTER_VERSION)?.metadata,
            Upgraded::Management => self.management_object()?.map(|(_, object)| object.metadata).unwrap_or_default(),
        };
        Ok(metadata.annotations.remove(annotation))
    }

    /// How far the upgrade to `release` has come.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn upgrade(&self, upgraded: Upgraded, release: &str) -> Result<Upgrade> {
        Ok(match upgraded {
            Upgraded::ClusterVersion => cluster_version(&self.get(CLUSTER_VERSION)?, release),
            Upgraded::Management => match self.management_object()? {
                Some((_, object)) if object.spec.release == release && management(&object).ready => Upgrade::Done,
                Some((_, object)) => Upgrade::Going(why(&object.status.conditions, "Ready", "the Management says nothing yet")),
                None => Upgrade::Going("there is no Management any more".to_owned()),
            },
        })
    }
}

/// The release that k0rdent is at, and the one that its Management asks for, where they differ: kcm goes there as soon as it runs, from a restored etcd
/// too. `None` for one that does not say where it is.
#[must_use]
pub fn management_ahead(object: &Value) -> Option<(String, String)> {
    let Management { release, asked, .. } = management(&serde_json::from_value(object.clone()).ok()?);
    release.filter(|release| *release != asked && !asked.is_empty()).map(|release| (release, asked))
}

fn management(object: &ManagementObject) -> Management {
    let (spec, status) = (&object.spec, &object.status);
    let is_current = status.observed_generation >= object.metadata.generation && spec.release == status.release;
    Management {
        release: Some(status.release.clone()).filter(|release| !release.is_empty()),
        asked: spec.release.clone(),
        ready: is_current && is_true(&status.conditions, "Ready"),
    }
}

fn cluster_version(object: &ClusterVersion, release: &str) -> Upgrade {
    let status = &object.status;
    let newest = status.history.first();
    let is_there = newest.is_some_and(|update| update.version == release && update.state == "Completed");
    if is_there && status.observed_generation >= object.metadata.generation && !is_true(&status.conditions, "Progressing") {
        return Upgrade::Done;
    }
    // Why it does not begin, before how far it is: the operator refuses a release that it does not know, or whose signature is not good.
    let is = |kind: &str, status: &str| condition(&object.status.conditions, kind).filter(|found| found.status.as_deref() == Some(status));
    let trouble = is("Invalid", "True").or_else(|| is("ReleaseAccepted", "False")).or_else(|| is("Failing", "True"));
    Upgrade::Going(match trouble {
        Some(trouble) => trouble.message.clone(),
        None => why(&status.conditions, "Progressing", "the ClusterVersion says nothing yet"),
    })
}

fn why(conditions: &[Condition], kind: &str, otherwise: &str) -> String {
    let message = condition(conditions, kind).map(|condition| condition.message.as_str()).filter(|message| !message.is_empty());
    message.unwrap_or(otherwise).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::objects::capture;

    fn object<T: serde::de::DeserializeOwned>(json: Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_management_is_ready_at_the_release_that_it_is_asked_for_when_its_controller_has_seen_that() {
        let of = |generation: i64, asked: &str, at: &str, ready: &str| {
            management(&object(json!({
                "metadata": {"name": "kcm", "generation": generation}, "spec": {"release": asked},
                "status": {"release": at, "observedGeneration": 2, "conditions": [{"type": "Ready", "status": ready}]},
            })))
        };
        let at = |asked: &str, ready| Management { release: Some("kcm-0-2-0".to_owned()), asked: asked.to_owned(), ready };
        assert_eq!(of(2, "kcm-0-2-0", "kcm-0-2-0", "True"), at("kcm-0-2-0", true));
        assert_eq!(of(2, "kcm-0-3-0", "kcm-0-2-0", "True"), at("kcm-0-3-0", false));
        assert_eq!(of(3, "kcm-0-2-0", "kcm-0-2-0", "True"), at("kcm-0-2-0", false));
        assert_eq!(of(2, "kcm-0-2-0", "kcm-0-2-0", "False"), at("kcm-0-2-0", false));
        assert_eq!(of(2, "kcm-0-2-0", "", "True").release, None, "as Velero restores it");
    }

    #[test]
    fn a_cluster_version_has_arrived_when_the_update_is_completed_and_seen_and_nothing_moves() {
        let mut after: Value = capture("clusterversion-after-upgrade-4.18.json");
        let release = after["status"]["history"][0]["version"].as_str().unwrap().to_owned();
        let look = |value: &Value, release: &str| cluster_version(&object(value.clone()), release);
        assert_eq!(look(&after, &release), Upgrade::Done);
        assert!(matches!(look(&after, "4.99.0"), Upgrade::Going(_)));
        after["metadata"]["generation"] = json!(after["status"]["observedGeneration"].as_i64().unwrap() + 1);
        assert!(matches!(look(&after, &release), Upgrade::Going(_)), "not seen yet");
        let failing: Value = capture("clusterversion-upgrading-failing-4.14.json");
        let Upgrade::Going(why) = look(&failing, "4.99.0") else { unreachable!() };
        assert!(!why.is_empty() && !why.contains("says nothing"), "{why}");
    }

    #[test]
    fn why_an_update_does_not_begin_is_said_first() {
        let conditions = json!([
            {"type": "Progressing", "status": "False", "message": "Cluster version is 4.16.3"},
            {"type": "ReleaseAccepted", "status": "False", "message": "the release has no signature"},
        ]);
        let refused = object(json!({"status": {"conditions": conditions}}));
        assert_eq!(cluster_version(&refused, "4.17.1"), Upgrade::Going("the release has no signature".to_owned()));
    }
}
