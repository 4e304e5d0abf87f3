//! Which release the cluster is at and is to be at: OpenShift's ClusterVersion, k0rdent's Management.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::Client;
use super::objects::{Condition, Object, condition, is_true, or_default};

const CLUSTER_VERSION: &str = "/apis/config.openshift.io/v1/clusterversions/version";

/// k0rdent's Management object, of which a cluster has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Management {
    /// The release that it is at, `kcm-0-2-0`: `status.release`. `None` on a new one, and on one that Velero has restored.
    pub release: Option<String>,
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

type ClusterVersion = Object<ClusterVersionSpec, ClusterVersionStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClusterVersionSpec {
    #[serde(deserialize_with = "or_default")]
    desired_update: Value,
}

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
            Upgraded::ClusterVersion => (CLUSTER_VERSION.to_owned(), json!({"spec": {"desiredUpdate": {"version": release}}})),
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

fn management(object: &ManagementObject) -> Management {
    let (spec, status) = (&object.spec, &object.status);
    let is_current = status.observed_generation >= object.metadata.generation && spec.release == status.release;
    Management {
        release: Some(status.release.clone()).filter(|release| !release.is_empty()),
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
    let failing = condition(&status.conditions, "Failing").filter(|failing| failing.status.as_deref() == Some("True"));
    Upgrade::Going(match failing {
        Some(failing) => failing.message.clone(),
        None => why(&status.conditions, "Progressing", "the ClusterVersion says nothing yet"),
    })
}

fn why(conditions: &[Condition], kind: &str, otherwise: &str) -> String {
    let message = condition(conditions, kind).map(|condition| condition.message.as_str()).filter(|message| !message.is_empty());
    message.unwrap_or(otherwise).to_owned()
}
