//! What is in a `ManifestWork` (`work.open-cluster-management.io/v1`), and what OCM's agent says of it. No request is made here.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde::Deserialize;
use serde_json::{Value, json};

use super::objects::{CONTAINER, NAMESPACE, Try};
use super::{Job, JobEnd, Trouble, unreachable, waits_for};
use crate::kube::objects::{self, Condition};
use crate::kube::policy;

/// The annotation of a work with the uid of its pod, once that was seen.
pub(super) const POD: &str = "hub.recovery/pod";

const RBAC: &str = "rbac.authorization.k8s.io";

/// What of a pod is reported, and under what name. A field that is not there is not reported.
const REPORTED: [(&str, &str); 12] = [
    ("uid", ".metadata.uid"),
    ("phase", ".status.phase"),
    ("reason", ".status.reason"),
    ("message", ".status.message"),
    ("scheduled", ".status.conditions[?(@.type==\"PodScheduled\")].status"),
    ("scheduledReason", ".status.conditions[?(@.type==\"PodScheduled\")].reason"),
    ("scheduledMessage", ".status.conditions[?(@.type==\"PodScheduled\")].message"),
    ("waitingReason", ".state.waiting.reason"),
    ("waitingMessage", ".state.waiting.message"),
    ("endedReason", ".state.terminated.reason"),
    ("exitCode", ".state.terminated.exitCode"),
    ("said", ".state.terminated.message"),
];

/// A work, as it is on the hub.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) is_deleted: bool,
    /// The uid of its pod, once that was seen.
    pub(super) pod: Option<String>,
    generation: i64,
    spec: Value,
    manifests: Vec<Manifest>,
}

/// What the agent says of one object of a work.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    resource_meta: Place,
    conditions: Vec<Condition>,
    status_feedback: Feedback,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Place {
    resource: String,
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Feedback {
    values: Vec<Reported>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reported {
    name: String,
    field_value: Field,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Field {
    string: Option<String>,
    integer: Option<i64>,
}

/// How an object of a work stands on the spoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing was said of it yet.
    Untold,
    /// It is not there.
    Missing,
    /// It could not be put there: why.
    NotApplied(String),
    /// The agent could not look: why.
    Unknown(String),
    /// It is there: the fields that are reported.
    There(BTreeMap<String, String>),
}

impl Work {
    /// Of an object that the hub's API has given. What is not there counts as empty.
    pub(super) fn of(work: &DynamicObject) -> Self {
        let manifests = work.data.pointer("/status/resourceStatus/manifests").cloned().unwrap_or_default();
        Self {
            name: work.name_any(),
            labels: work.labels().clone(),
            is_deleted: work.metadata.deletion_timestamp.is_some(),
            pod: work.annotations().get(POD).cloned(),
            generation: work.metadata.generation.unwrap_or_default(),
            manifests: serde_json::from_value(manifests).unwrap_or_default(),
            spec: work.data.get("spec").cloned().unwrap_or_default(),
        }
    }

    /// The pod of a try.
    pub(super) fn pod(&self, this: &Try) -> Found {
        match self.object("pods", NAMESPACE, &this.job) {
            // What is refused before it keeps it from being made.
            found @ (Found::Missing | Found::Untold) => self.not_applied().map_or(found, Found::NotApplied),
            found => found,
        }
    }

    /// The ConfigMap of the gate.
    pub(super) fn gate(&self) -> Found {
        let (namespace, name) = gate_place();
        self.object("configmaps", namespace, name)
    }

    /// True when the agent is to write the gate, not only to look for it.
    pub(super) fn writes_gate(&self) -> bool {
        self.spec["manifestConfigs"][0]["updateStrategy"]["type"] == "ServerSideApply"
    }

    /// True when it says of the gate what `parameter`, its ConfigMap, says.
    pub(super) fn is_of_gate(&self, parameter: &Value) -> bool {
        self.spec["workload"]["manifests"][0]["data"] == parameter["data"]
    }

    /// True when the agent has put all of it, as it is now, onto the spoke.
    pub(super) fn is_applied(&self) -> bool {
        let is_applied = |one: &Condition| one.status.as_deref() == Some("True") && one.observed_generation == Some(self.generation);
        !self.manifests.is_empty() && self.manifests.iter().all(|manifest| manifest.condition("Applied").is_some_and(is_applied))
    }

    /// What the agent could not put there of the work as it is now: the first, and why.
    pub(super) fn not_applied(&self) -> Option<String> {
        let of_now = |one: &&Condition| one.status.as_deref() == Some("False") && one.observed_generation == Some(self.generation);
        self.manifests.iter().find_map(|manifest| manifest.condition("Applied").filter(of_now).map(|one| one.message.clone()))
    }

    fn object(&self, resource: &str, namespace: &str, name: &str) -> Found {
        let is_it = |place: &Place| place.resource == resource && place.namespace == namespace && place.name == name;
        let Some(manifest) = self.manifests.iter().find(|one| is_it(&one.resource_meta)) else { return Found::Untold };
        match manifest.condition("Available") {
            None => Found::Untold,
            Some(one) if one.status.as_deref() == Some("True") => Found::There(manifest.values()),
            Some(one) if one.status.as_deref() == Some("False") => Found::Missing,
            Some(one) => Found::Unknown(one.message.clone()),
        }
    }
}

impl Manifest {
    fn condition(&self, name: &str) -> Option<&Condition> {
        objects::condition(&self.conditions, name)
    }

    fn values(&self) -> BTreeMap<String, String> {
        let text = |field: &Field| field.string.clone().or_else(|| field.integer.map(|number| number.to_string()));
        self.status_feedback.values.iter().filter_map(|one| Some((one.name.clone(), text(&one.field_value)?))).collect()
    }
}

/// A pod as what it stands for.
pub(super) fn job(values: &BTreeMap<String, String>) -> Job {
    let value = |name: &str| values.get(name).cloned().unwrap_or_default();
    let pair = |reason: &str, message: &str| (value(reason), value(message));
    let waiting = values.contains_key("waitingReason").then(|| pair("waitingReason", "waitingMessage"));
    let unscheduled = (value("scheduled") == "False").then(|| pair("scheduledReason", "scheduledMessage"));
    let waits = waits_for(waiting, unscheduled);
    let end = match value("phase").as_str() {
        "Succeeded" => JobEnd::Complete,
        "Failed" => {
            let exit = values.get("exitCode").map(|code| format!("its container exited with {code}"));
            JobEnd::Failed {
                reason: [value("reason"), value("endedReason")].into_iter().find(|one| !one.is_empty()).unwrap_or_default(),
                message: values.get("message").cloned().or(exit).unwrap_or_default(),
            }
        }
        _ => JobEnd::Running,
    };
    // Its log is not to be had this way; its end is in what it said.
    Job { uid: value("uid"), end, said: value("said"), runs: value("phase") == "Running", waits, log: String::new() }
}

/// The work of a try, before its pod was seen.
pub(super) fn spec(this: &Try) -> Value {
    let objects: Vec<Value> = this.prerequisites().into_iter().chain([this.pod()]).collect();
    let configs = configs(this, "CreateOnly");
    json!({"workload": {"manifests": objects}, "manifestConfigs": configs})
}

/// What is changed of the work of a try when its pod was seen: from then on nothing is made any more.
pub(super) fn seen(this: &Try, uid: &str) -> Value {
    json!({"metadata": {"annotations": {POD: uid}}, "spec": {"manifestConfigs": configs(this, "ReadOnly")}})
}

/// The work that looks whether a cluster has a gate. It is orphaned when it is deleted: the gate is the cluster's.
pub(super) fn gate_spec() -> Value {
    let (namespace, name) = gate_place();
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}});
    gate(&object, &json!({"type": "ReadOnly"}))
}

/// The same, when it is to write the gate. The agent does so again every few minutes, for as long as there is the work.
pub(super) fn gate_written(parameter: &Value) -> Value {
    let by_force = json!({"force": true, "fieldManager": "work-agent-recovery"});
    gate(parameter, &json!({"type": "ServerSideApply", "serverSideApply": by_force}))
}

fn gate(object: &Value, strategy: &Value) -> Value {
    let (namespace, name) = gate_place();
    let place = json!({"group": "", "resource": "configmaps", "namespace": namespace, "name": name});
    json!({
        "deleteOption": {"propagationPolicy": "Orphan"},
        "workload": {"manifests": [object]},
        "manifestConfigs": [{"resourceIdentifier": place, "updateStrategy": strategy}],
    })
}

/// Namespace and name of the gate's ConfigMap.
fn gate_place() -> (&'static str, &'static str) {
    let mut parts = policy::PARAMETER.rsplit('/');
    let name = parts.next().unwrap_or_default();
    (parts.nth(1).unwrap_or_default(), name)
}

/// How the objects of a try are put there, and what of the pod is reported.
fn configs(this: &Try, strategy: &str) -> Vec<Value> {
    let of = |group: &str, resource: &str, namespace: &str, name: &str| {
        json!({
            "resourceIdentifier": {"group": group, "resource": resource, "namespace": namespace, "name": name},
            "updateStrategy": {"type": strategy},
        })
    };
    let path = |path: &str| match path.strip_prefix(".state") {
        Some(rest) => format!(".status.containerStatuses[?(@.name==\"{CONTAINER}\")].state{rest}"),
        None => path.to_owned(),
    };
    let paths: Vec<Value> = REPORTED.iter().map(|(name, of)| json!({"name": name, "path": path(of)})).collect();
    let mut pod = of("", "pods", NAMESPACE, &this.job);
    pod["feedbackRules"] = json!([{"type": "JSONPaths", "jsonPaths": paths}]);
    // By a watch, where the agent can: of a single node it looks once in one to two minutes.
    pod["feedbackScrapeType"] = "Watch".into();
    let mut configs = vec![of("", "namespaces", "", NAMESPACE)];
    for (group, resource) in [("", "serviceaccounts"), (RBAC, "roles"), (RBAC, "rolebindings")] {
        configs.push(of(group, resource, NAMESPACE, super::objects::ACCOUNT));
    }
    configs.push(pod);
    configs
}

/// Whether the spoke will refuse it again, by what the agent repeats of its API server's words.
pub(super) fn refusal(message: String) -> Trouble {
    let is_kept_away = message.contains("is forbidden") && !message.contains("cannot ") && !message.contains("is being terminated");
    if is_kept_away || message.contains("is invalid:") || message.contains("denied the request") {
        return Trouble::Refused(message);
    }
    unreachable("NotApplied", message)
}

#[cfg(test)]
mod tests;
