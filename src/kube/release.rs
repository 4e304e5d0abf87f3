//! Which release the cluster is at and is to be at: OpenShift's ClusterVersion, k0rdent's Management.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::Client;
use super::facts::CLUSTER_VERSION;
use super::management::{Management, ManagementObject};
use super::objects::{Condition, Object, Unread, condition, is_true, or_default};
use super::policy::SKIP;
use crate::node::profile::Profile;

/// What an upgrade changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Upgraded {
    /// `spec.desiredUpdate` of OpenShift's ClusterVersion.
    ClusterVersion,
    /// `spec.release` of k0rdent's Management.
    Management,
}

impl Upgraded {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ClusterVersion, Self::Management];

    /// The API group and the resource of the object.
    #[must_use]
    pub fn resource(self) -> (&'static str, &'static str) {
        match self {
            Self::ClusterVersion => ("config.openshift.io", "clusterversions"),
            Self::Management => ("k0rdent.mirantis.com", "managements"),
        }
    }

    /// The object by which a cluster is upgraded; `None` where that is done by hand (kubeadm without k0rdent).
    #[must_use]
    pub fn of(profile: &Profile, management: Option<&Management>) -> Option<Self> {
        if profile.is_openshift() {
            return Some(Self::ClusterVersion);
        }
        management.map(|_| Self::Management)
    }
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
    /// The operator does not take the release: why. It looks again at times, and may take it then.
    Refused(String),
}

/// The annotation by which an upgrade may pass without a good backup. Whether there was that upgrade, and whether it had to pass by this, it does not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The annotation: the release, and the reason.
    pub why: String,
    /// The client that wrote it, as it calls itself: `kubectl-annotate`. Which person that was, the API server's audit log says.
    pub by: Option<String>,
    /// When it was written.
    pub at: Option<Timestamp>,
}

impl Skipped {
    /// Of an object as the API and etcd have it. Who wrote the annotation is in `metadata.managedFields`, which the API server keeps.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let why = metadata["annotations"][SKIP].as_str()?.to_owned();
        let field = format!("f:{SKIP}");
        let has = |entry: &&Value| entry["fieldsV1"]["f:metadata"]["f:annotations"].get(&field).is_some();
        let entry = metadata["managedFields"].as_array().into_iter().flatten().find(has);
        let word = |name: &str| entry.and_then(|entry| entry[name].as_str());
        Some(Self { why, by: word("manager").map(str::to_owned), at: word("time").and_then(|time| time.parse().ok()) })
    }
}

impl Skipped {
    /// What it means, in a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!("an annotation lets the upgrade that it names pass the gate without a good backup: {self}")
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = self.by.as_deref().map_or(String::new(), |by| format!(", written by {by}"));
        let at = self.at.map_or(String::new(), |at| format!(" at {at:.0}"));
        write!(f, "\"{}\"{by}{at}", self.why)
    }
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
    /// Asks for `release`: from here on the upgrade goes on by itself.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; [`Refused`](super::Refused), also by the gate.
    pub fn ask_for_release(&self, upgraded: Upgraded, release: &str, is_dry: bool) -> Result<()> {
        let change = match upgraded {
            // What an earlier update was asked for with is not meant any more.
            Upgraded::ClusterVersion => json!({"desiredUpdate": {"version": release, "image": null, "force": null, "architecture": null}}),
            Upgraded::Management => json!({"release": release}),
        };
        let path = self.upgraded_path(upgraded)?;
        let query = if is_dry { "?dryRun=All" } else { "" };
        self.patch(&format!("{path}{query}"), &json!({"spec": change})).with_context(|| format!("asking for the release {release}"))
    }

    /// Where what is upgraded is.
    fn upgraded_path(&self, upgraded: Upgraded) -> Result<String> {
        Ok(match upgraded {
            Upgraded::ClusterVersion => CLUSTER_VERSION.to_owned(),
            Upgraded::Management => self.management_object()?.context("there is no Management any more")?.0,
        })
    }

    /// The upgrade that passes the gate without a backup, where somebody has said so on what is upgraded.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn skipped(&self, upgraded: Upgraded) -> Result<Option<Skipped>> {
        let object: Value = self.get(&self.upgraded_path(upgraded)?).with_context(|| format!("asking for the {upgraded}"))?;
        Ok(Skipped::of(&object))
    }

    /// How far the upgrade to `release` has come.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn upgrade(&self, upgraded: Upgraded, release: &str) -> Result<Upgrade> {
        Ok(match upgraded {
            Upgraded::ClusterVersion => cluster_version(&self.get(CLUSTER_VERSION)?, release),
            Upgraded::Management => match self.management_object()? {
                Some((_, object)) => management(&object, release),
                None => Upgrade::Going("there is no Management any more".to_owned()),
            },
        })
    }
}

fn management(object: &ManagementObject, release: &str) -> Upgrade {
    if object.asked() != release {
        return Upgrade::Going(format!("the Management is asked to go to {}", object.asked()));
    }
    match (object.refusal(), object.trouble()) {
        // One that it has taken before is half-way there.
        (Some(why), _) if !object.is_at(release) => Upgrade::Refused(why),
        (_, Some(why)) => Upgrade::Going(why),
        (_, None) => Upgrade::Done,
    }
}

fn cluster_version(object: &ClusterVersion, release: &str) -> Upgrade {
    let status = &object.status;
    let newest = status.history.first();
    let is_there = newest.is_some_and(|update| update.version == release && update.state == "Completed");
    let is_seen = status.observed_generation >= object.metadata.generation;
    if is_there && is_seen && !is_true(&status.conditions, "Progressing") {
        return Upgrade::Done;
    }
    // Why it does not begin, before how far it is: the operator refuses a release that it does not know, or whose signature is not good.
    let is = |kind: &str, status: &str| condition(&object.status.conditions, kind).filter(|found| found.status.as_deref() == Some(status));
    if let Some(refused) = is("Invalid", "True").or_else(|| is("ReleaseAccepted", "False")) {
        // Until it has seen what it is asked for now, this is about what it was asked for before; and one that it has taken before is half-way there.
        let is_under_way = newest.is_some_and(|update| update.version == release);
        return if is_seen && !is_under_way { Upgrade::Refused(refused.message.clone()) } else { Upgrade::Going(refused.message.clone()) };
    }
    // An update that fails half-way is tried again, and often gets further.
    Upgrade::Going(is("Failing", "True").map_or_else(
        || why(&status.conditions, "Progressing", "the ClusterVersion says nothing yet"),
        |failing| format!("it is failing: {}", failing.message),
    ))
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
            {"type": "Failing", "status": "True", "message": "an operator is degraded"},
        ]);
        let look = |generation: i64, conditions: &Value| {
            let status = json!({"observedGeneration": 3, "conditions": conditions});
            cluster_version(&object(json!({"metadata": {"generation": generation}, "status": status})), "4.17.1")
        };
        assert_eq!(look(3, &conditions), Upgrade::Refused("the release has no signature".to_owned()));
        assert_eq!(
            look(4, &conditions),
            Upgrade::Going("the release has no signature".to_owned()),
            "of the release that was asked for before"
        );
        let mut begun = object::<ClusterVersion>(json!({"status": {"conditions": conditions}}));
        begun.status.history = vec![Update { state: "Partial".to_owned(), version: "4.17.1".to_owned() }];
        assert_eq!(
            cluster_version(&begun, "4.17.1"),
            Upgrade::Going("the release has no signature".to_owned()),
            "it has been accepted before"
        );
        assert_eq!(look(3, &json!([conditions[0], conditions[2]])), Upgrade::Going("it is failing: an operator is degraded".to_owned()));
    }

    #[test]
    fn an_upgrade_of_k0rdent_is_refused_going_or_done() {
        let look = |asked: &str, at: &str, reason: &str| {
            let status = if reason == "AllComponentsHealthy" { "True" } else { "False" };
            let ready = json!({"type": "Ready", "status": status, "reason": reason, "message": "says why", "observedGeneration": 2});
            management(
                &object(json!({
                    "metadata": {"name": "kcm", "generation": 2}, "spec": {"release": asked},
                    "status": {"release": at, "observedGeneration": 2, "conditions": [ready]},
                })),
                "kcm-0-3-0",
            )
        };
        let (to, from) = ("kcm-0-3-0", "kcm-0-2-0");
        assert_eq!(look(to, to, "AllComponentsHealthy"), Upgrade::Done);
        assert_eq!(look(to, to, "NotAllComponentsHealthy"), Upgrade::Going("it is not Ready: says why".to_owned()));
        assert_eq!(look(to, from, "HasIncompatibleContracts"), Upgrade::Refused("kcm does not take it: says why".to_owned()));
        assert_eq!(look(to, to, "HasIncompatibleContracts"), Upgrade::Going("kcm does not take it: says why".to_owned()), "half-way there");
        assert!(matches!(look(from, from, "AllComponentsHealthy"), Upgrade::Going(why) if why.contains("asked to go to kcm-0-2-0")));
    }

    #[test]
    fn who_let_an_upgrade_pass_is_told() {
        let mut object = json!({"metadata": {"annotations": {SKIP: "4.17.1: the site is new"}, "managedFields": [
            {"manager": "oc", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:channel": {}}}},
            {"manager": "kubectl-annotate", "time": "2026-01-02T00:00:00Z", "fieldsV1": {"f:metadata": {"f:annotations": {"f:recovery/skip-gate": {}}}}},
        ]}});
        let told = Skipped::of(&object).unwrap().to_string();
        assert_eq!(told, "\"4.17.1: the site is new\", written by kubectl-annotate at 2026-01-02T00:00:00Z");
        object["metadata"]["managedFields"] = json!(null);
        assert_eq!(Skipped::of(&object).unwrap().to_string(), "\"4.17.1: the site is new\"");
        object["metadata"]["annotations"] = json!({});
        assert_eq!(Skipped::of(&object), None);
    }
}
