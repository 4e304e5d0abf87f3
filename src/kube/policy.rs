//! The gate in the API server: a `ValidatingAdmissionPolicy` that refuses a change of the release while no good backup is on record.
//!
//! Its parameter is a ConfigMap that the agent keeps: whether the gate is open, for which release, by which backup, until when. Without it the policy
//! refuses. CEL has no clock, but the API server stamps every change with the time, in `metadata.managedFields`, before it asks policies: that is
//! compared with the end of the permission, so that it ends by itself also where no agent runs any more.

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, Refused, is_missing};
use super::objects::{Unread, or_default};
use super::release::Upgraded;
use crate::error::{AndNext, run, unsupported};

/// An annotation on what is upgraded, `RELEASE: REASON`, lets the upgrade to that release pass without a backup.
pub(super) const SKIP: &str = "recovery/skip-gate";

const NAME: &str = "recovery-upgrade-gate";
/// The path of the ConfigMap.
pub const PARAMETER: &str = "/api/v1/namespaces/kube-system/configmaps/recovery-upgrade-gate";
/// The path of the policy.
pub const POLICY: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/recovery-upgrade-gate";
/// The path of what puts the policy into force.
pub const BINDING: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/recovery-upgrade-gate";

/// Another release is asked for than before. That nothing is asked for any more is no upgrade.
const IS_UPGRADE: &str = "has(object.spec) && (\
     (has(object.spec.desiredUpdate) && !(has(oldObject.spec.desiredUpdate) && object.spec.desiredUpdate == oldObject.spec.desiredUpdate)) || \
     (has(object.spec.release) && !(has(oldObject.spec.release) && object.spec.release == oldObject.spec.release)))";
/// The release that is asked for; where that is an image alone, the image.
const TO: &str = "has(object.spec.release) ? string(object.spec.release) : !has(object.spec.desiredUpdate) ? \"\" : \
     has(object.spec.desiredUpdate.version) && object.spec.desiredUpdate.version != \"\" ? string(object.spec.desiredUpdate.version) : \
     has(object.spec.desiredUpdate.image) ? string(object.spec.desiredUpdate.image) : \"\"";
/// When the API server has stamped this change.
const STAMPED: &str = "has(object.metadata.managedFields) ? \
     object.metadata.managedFields.filter(field, has(field.time)).map(field, timestamp(field.time)) : []";
/// The annotation, when it is about this very release: it stays on the object, and must not let the next upgrade pass.
const REASON: &str = "has(object.metadata.annotations) && \"recovery/skip-gate\" in object.metadata.annotations && variables.to != \"\" && \
     object.metadata.annotations[\"recovery/skip-gate\"].startsWith(variables.to + \":\") ? \
     object.metadata.annotations[\"recovery/skip-gate\"] : \"\"";
/// The release that the cluster is at, by the object's own status: a permission is for an upgrade from there, and none from where it has led.
const AT: &str = "!has(oldObject.status) ? \"\" : object.kind == \"Management\" ? \
     (has(oldObject.status.release) ? string(oldObject.status.release) : \"\") : \
     has(oldObject.status.history) && oldObject.status.history.exists(one, one.state == \"Completed\") ? \
     string(oldObject.status.history.filter(one, one.state == \"Completed\")[0].version) : \"\"";
/// Back to where the cluster is; passed over with a reason; or the gate is open.
const MAY: &str = "(variables.to != \"\" && variables.to == variables.at) || variables.reason != \"\" || \
     (params.data.state == \"open\" && params.data.release == variables.at && size(variables.stamped) > 0 && \
     variables.stamped.max() <= timestamp(params.data.until))";
const WHY: &str = "\"the upgrade to \" + variables.to + \" waits for a good backup of this node: \" + \
     (params.data.state != \"open\" ? params.data.why : params.data.release != variables.at ? \
     \"the last one is of \" + params.data.release + \", and the cluster is at \" + variables.at : \
     \"the last one was good until \" + params.data.until) + \
     \"; on the node, `\" + params.data.command + \"` takes one and opens the gate\"";

/// What the API server's gate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Permission {
    /// An upgrade from this release may begin.
    Open {
        /// Where the cluster is.
        release: String,
        /// The good backup.
        backup: String,
        /// When that is too old.
        until: Timestamp,
    },
    /// None may begin.
    Closed {
        /// Where the cluster is.
        release: String,
        /// Why not.
        why: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Parameter {
    #[serde(deserialize_with = "or_default")]
    data: Data,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Data {
    state: String,
    release: String,
    backup: String,
    until: String,
    why: String,
    command: String,
}

impl Permission {
    fn data(&self, command: &str) -> Data {
        let command = command.to_owned();
        match self.clone() {
            Self::Open { release, backup, until } => {
                Data { state: "open".to_owned(), release, backup, until: until.to_string(), command, ..Data::default() }
            }
            Self::Closed { release, why } => Data { state: "closed".to_owned(), release, why, command, ..Data::default() },
        }
    }

    fn of(data: Data) -> Self {
        match data.until.parse() {
            Ok(until) if data.state == "open" => Self::Open { release: data.release, backup: data.backup, until },
            _ => Self::Closed { release: data.release, why: data.why },
        }
    }
}

impl Client {
    /// Puts the gate into the API server, with this permission; safe to call again. It holds some seconds later.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) before Kubernetes 1.30, which has no such policies;
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; when it refuses.
    pub fn install_gate(&self, upgraded: Upgraded, permission: &Permission, command: &str) -> Result<()> {
        if let Err(error) = self.get::<Value>("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies?limit=1") {
            if !is_missing(&error) {
                return Err(error.context("asking whether the API server has admission policies"));
            }
            return Err(unsupported("this API server has no ValidatingAdmissionPolicy: these came with Kubernetes 1.30 (OpenShift 4.17)")
                .and_next(run("recovery gate --take", "before an upgrade, exits with 0 only when it may begin")));
        }
        // The permission first, the binding last: nothing is refused for want of a parameter.
        self.set_gate(permission, command)?;
        self.apply(POLICY, &policy(upgraded)).context("putting the policy in place")?;
        self.apply(BINDING, &binding()).context("putting the policy's binding in place")
    }

    /// Writes down whether an upgrade may begin.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; when it refuses.
    pub fn set_gate(&self, permission: &Permission, command: &str) -> Result<()> {
        self.apply(PARAMETER, &parameter(permission, command)).context("writing down whether an upgrade may begin")
    }

    /// As [`Client::set_gate`], where the gate is installed, and only what is not written there already.
    ///
    /// # Errors
    /// As [`Client::set_gate`].
    pub fn keep_gate(&self, permission: &Permission, command: &str) -> Result<()> {
        match self.absent::<Parameter>(PARAMETER)?.map(|parameter| Permission::of(parameter.data)) {
            Some(written) if written == *permission => Ok(()),
            Some(_) => self.set_gate(permission, command),
            // Somebody may have deleted it alone: nobody passes then.
            None => self.installed_gate()?.map_or(Ok(()), |_| self.set_gate(permission, command)),
        }
    }

    /// What the gate in the API server says; `None` when it is not installed.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn installed_gate(&self) -> Result<Option<Permission>> {
        if self.absent::<Unread>(BINDING)?.is_none() || self.absent::<Unread>(POLICY)?.is_none() {
            return Ok(None);
        }
        let missing = || Permission::Closed { release: String::new(), why: "its ConfigMap is missing".to_owned() };
        Ok(Some(self.absent::<Parameter>(PARAMETER)?.map_or_else(missing, |parameter| Permission::of(parameter.data))))
    }

    /// Takes the gate away; false when there was none.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; when it refuses.
    pub fn remove_gate(&self) -> Result<bool> {
        let mut was_there = false;
        for path in [BINDING, POLICY, PARAMETER] {
            was_there |= self.delete(path)?;
        }
        Ok(was_there)
    }

    /// The object at `path`; `None` when it, or its resource, is not there.
    fn absent<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        match self.get(path) {
            Err(error) if is_missing(&error) => Ok(None),
            found => found.map(Some),
        }
    }
}

/// True when it was the gate that refused.
#[must_use]
pub fn is_gate(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.message.contains(NAME))
}

/// The ConfigMap that says whether an upgrade may begin. `command` is what people run on the node to have it opened.
#[must_use]
pub fn parameter(permission: &Permission, command: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": "kube-system"},
        "data": permission.data(command),
    })
}

/// The policy.
#[must_use]
pub fn policy(upgraded: Upgraded) -> Value {
    let (group, resource) = upgraded.resource();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            // Not its status, which only says what is.
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [group], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": [resource], "scope": "Cluster",
            }]},
            "matchConditions": [{"name": "is-upgrade", "expression": IS_UPGRADE}],
            "variables": [
                {"name": "to", "expression": TO},
                {"name": "at", "expression": AT},
                {"name": "stamped", "expression": STAMPED},
                {"name": "reason", "expression": REASON},
            ],
            "validations": [{"expression": MAY, "messageExpression": WHY, "reason": "Forbidden"}],
            "auditAnnotations": [{
                "key": "passed-over",
                "valueExpression": "string(variables.reason)",
            }],
        },
    })
}

/// What puts the policy into force.
#[must_use]
pub fn binding() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": NAME},
        "spec": {
            "policyName": NAME,
            "paramRef": {"name": NAME, "namespace": "kube-system", "parameterNotFoundAction": "Deny"},
            "validationActions": ["Deny", "Audit"],
        },
    })
}
