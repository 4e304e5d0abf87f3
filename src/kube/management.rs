//! k0rdent's Management, of which a cluster has one: where it is, and the one judgement of whether that is where it should be.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::Client;
use super::health::{Health, or_none};
use super::objects::{Condition, Object, condition, or_default, unless_true};

/// Why kcm does not take a release, in its condition `Ready` (kcm 1.0 to 1.12): there is none of that name, its templates are not valid, or its providers do
/// not fit together. It looks again when that changes.
const REFUSALS: [&str; 3] = ["ReleaseIsNotFound", "ReleaseIsNotReady", "HasIncompatibleContracts"];

/// k0rdent's Management object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Management {
    /// The release that it is at, `kcm-0-2-0`: `status.release`. `None` on a new one, and on one that Velero has restored.
    pub release: Option<String>,
    /// The release that it is asked to be at: `spec.release`.
    pub asked: String,
    /// It is at the release that was asked for, and every component is ready.
    pub ready: bool,
}

pub(super) type ManagementObject = Object<Spec, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Spec {
    #[serde(deserialize_with = "or_default")]
    release: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
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

impl Client {
    /// k0rdent's Management; `None` where there is none.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn management(&self) -> Result<Option<Management>> {
        Ok(self.management_object()?.map(|(_, object)| Management::of(&object)))
    }

    /// Whether k0rdent's Management is at the release that it is asked to be at, with every component ready. One that `was_there` has to be there. (Which
    /// release that is, a recovery may have changed by rules.)
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn management_health(&self, was_there: bool) -> Result<Option<Health>> {
        let missing = || was_there.then(|| Health { name: "Management".to_owned(), trouble: Some("it is not there".to_owned()) });
        let found = self.management_object()?.map(|(_, object)| Health::of(&object.metadata, object.trouble()));
        Ok(found.or_else(missing))
    }

    /// Its path, in the version that the API server prefers, and what is there.
    pub(super) fn management_object(&self) -> Result<Option<(String, ManagementObject)>> {
        let Some(path) = self.resource("k0rdent.mirantis.com", "managements")? else { return Ok(None) };
        let all: Vec<ManagementObject> = self.list(&path).context("asking for k0rdent's Management")?;
        Ok(all.into_iter().next().map(|object| (format!("{path}/{}", object.metadata.name), object)))
    }
}

impl Management {
    fn of(object: &ManagementObject) -> Self {
        Self {
            release: Some(object.status.release.clone()).filter(|release| !release.is_empty()),
            asked: object.spec.release.clone(),
            ready: object.trouble().is_none(),
        }
    }
}

impl ManagementObject {
    /// Why it is not up, or not where it is asked to be.
    pub(super) fn trouble(&self) -> Option<String> {
        if let Some(why) = self.refusal() {
            return Some(why);
        }
        let (asked, status) = (&self.spec.release, &self.status);
        if status.observed_generation < self.metadata.generation {
            return Some("its controller has not seen it yet".to_owned());
        }
        if *asked != status.release {
            return Some(format!("it is at the release {}, and is to be at {asked}", or_none(&status.release)));
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

    /// Why kcm does not take the release that it is asked for now.
    pub(super) fn refusal(&self) -> Option<String> {
        let ready = condition(&self.status.conditions, "Ready")?;
        let is_current = ready.observed_generation.unwrap_or(self.status.observed_generation) >= self.metadata.generation;
        (is_current && REFUSALS.contains(&ready.reason.as_str())).then(|| format!("kcm does not take it: {}", ready.message))
    }

    /// True when its status says that it is at this release: kcm says so as soon as it has begun to go there.
    pub(super) fn is_at(&self, release: &str) -> bool {
        self.status.release == release
    }

    /// The release that it is asked to be at.
    pub(super) fn asked(&self) -> &str {
        &self.spec.release
    }
}

/// The release that k0rdent is at, and the one that its Management asks for, where they differ: kcm goes there as soon as it runs, from a restored etcd
/// too. `None` for one that does not say where it is.
#[must_use]
pub fn management_ahead(object: &Value) -> Option<(String, String)> {
    let Management { release, asked, .. } = Management::of(&serde_json::from_value(object.clone()).ok()?);
    release.filter(|release| *release != asked && !asked.is_empty()).map(|release| (release, asked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(generation: i64, asked: &str, status: &Value) -> ManagementObject {
        let object = json!({"metadata": {"name": "kcm", "generation": generation}, "spec": {"release": asked}, "status": status});
        serde_json::from_value(object).unwrap()
    }

    fn up() -> Value {
        json!({
            "observedGeneration": 2, "release": "kcm-0-2-0", "components": {"kcm": {"success": true}},
            "conditions": [{"type": "Ready", "status": "True", "reason": "AllComponentsHealthy", "observedGeneration": 2}],
        })
    }

    fn with(change: impl FnOnce(&mut Value)) -> Value {
        let mut status = up();
        change(&mut status);
        status
    }

    #[test]
    fn a_management_is_up_when_it_is_where_it_is_asked_to_be_with_all_components() {
        let trouble = |generation, asked, status: Value| {
            let object = object(generation, asked, &status);
            // What a backup records, a gate looks at and `up` says is one judgement.
            assert_eq!(Management::of(&object).ready, object.trouble().is_none());
            object.trouble().unwrap_or_default()
        };
        assert_eq!(trouble(2, "kcm-0-2-0", up()), "");
        assert!(trouble(3, "kcm-0-2-0", up()).contains("not seen"));
        assert!(trouble(2, "kcm-0-3-0", up()).contains("at the release kcm-0-2-0, and is to be at kcm-0-3-0"));
        let half = with(|status| status["components"]["capi"] = json!({"error": "no chart"}));
        assert_eq!(trouble(2, "kcm-0-2-0", half), "components that are not ready: capi (no chart)");
        let not_ready = with(|status| status["conditions"][0]["status"] = json!("False"));
        assert_eq!(trouble(2, "kcm-0-2-0", not_ready), "it is not Ready");
        assert_eq!(trouble(2, "kcm-0-2-0", with(|status| status["conditions"] = json!(null))), "it is not Ready");
    }

    #[test]
    fn as_velero_restores_it_it_is_at_no_release() {
        assert_eq!(
            Management::of(&object(1, "kcm-0-2-0", &json!(null))),
            Management { release: None, asked: "kcm-0-2-0".to_owned(), ready: false }
        );
    }

    #[test]
    fn a_release_that_kcm_does_not_take() {
        let refused = |seen: i64| {
            let ready = json!({"type": "Ready", "status": "False", "reason": "ReleaseIsNotFound", "observedGeneration": seen, "message": "no kcm-9"});
            object(3, "kcm-9", &with(|status| status["conditions"] = json!([ready]))).refusal()
        };
        assert_eq!(refused(3).as_deref(), Some("kcm does not take it: no kcm-9"));
        assert_eq!(refused(2), None, "that was about what was asked for before");
        assert_eq!(object(2, "kcm-0-2-0", &up()).refusal(), None);
        let going =
            with(|status| status["conditions"][0] = json!({"type": "Ready", "status": "False", "reason": "NotAllComponentsHealthy"}));
        assert_eq!(object(2, "kcm-0-2-0", &going).refusal(), None, "that passes");
    }
}
