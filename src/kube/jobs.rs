//! A Job that the restored etcd brings back in the middle of its work.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::client::Client;
use super::objects::{Condition, Object, is_true, or_default};

/// How long a Job that comes back must have at least: for an image to be unpacked, and for two pods one after the other.
const TIME: Duration = Duration::from_secs(600);
/// `backoffLimit` where none is given: the API's default.
const RETRIES: i64 = 6;
/// Conditions of a Job that has ended, or is about to.
const ENDS: [&str; 4] = ["Complete", "Failed", "FailureTarget", "SuccessCriteriaMet"];

type Job = Object<Spec, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    backoff_limit: Option<i64>,
    active_deadline_seconds: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    start_time: Option<Timestamp>,
    #[serde(deserialize_with = "or_default")]
    failed: i64,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
}

impl Client {
    /// Allows the Job with this UID one more pod and some minutes, when it exists and has not ended. Call it before the Job's controller
    /// runs, which would end the Job: kubelet reports a pod as failed that the container runtime no longer knows, and the Job's deadline
    /// counts from before the upgrade. Returns what was changed; `None` when nothing had to be.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; when it refuses.
    pub fn give_time(&self, job: &str, now: Timestamp) -> Result<Option<Value>> {
        let all: Vec<Job> = self.list("/apis/batch/v1/jobs")?;
        let Some(found) = all.into_iter().find(|one| one.metadata.uid == job) else { return Ok(None) };
        let Some(change) = allowance(&found, now) else { return Ok(None) };
        let (name, namespace) = (&found.metadata.name, &found.metadata.namespace);
        self.patch(&format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}"), &serde_json::json!({ "spec": &change }))
            .with_context(|| format!("allowing the Job {namespace}/{name} one more pod"))?;
        Ok(Some(change))
    }
}

/// The changes to the `spec` of a Job that has too little of something. After these changes there are none, or only for the time that has
/// passed.
fn allowance(job: &Job, now: Timestamp) -> Option<Value> {
    if ENDS.iter().any(|end| is_true(&job.status.conditions, end)) {
        return None;
    }
    let mut change = Map::new();
    let pods = job.status.failed + 1;
    if job.spec.backoff_limit.unwrap_or(RETRIES) < pods {
        change.insert("backoffLimit".to_owned(), pods.into());
    }
    if let (Some(deadline), Some(begun)) = (job.spec.active_deadline_seconds, job.status.start_time) {
        let needed = now.as_second() - begun.as_second() + TIME.as_secs().cast_signed();
        if deadline < needed {
            change.insert("activeDeadlineSeconds".to_owned(), needed.into());
        }
    }
    (!change.is_empty()).then_some(Value::Object(change))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(spec: &Value, status: &Value, now: &str) -> Option<Value> {
        let job = serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": spec, "status": status})).expect("a Job");
        allowance(&job, now.parse().expect("a time"))
    }

    #[test]
    fn a_job_gets_what_it_lacks() {
        let begun = json!({"active": 1, "startTime": "2026-01-01T00:00:00Z"});
        let (soon, late) = ("2026-01-01T00:02:00Z", "2026-01-02T00:00:00Z");
        let packaged = json!({"backoffLimit": 0, "activeDeadlineSeconds": 1800});
        assert_eq!(of(&packaged, &begun, soon), Some(json!({"backoffLimit": 1})));
        let late_change = json!({"backoffLimit": 1, "activeDeadlineSeconds": 87_000});
        assert_eq!(of(&packaged, &begun, late), Some(late_change.clone()));
        assert_eq!(of(&late_change, &begun, late), None, "done again");
        assert_eq!(of(&json!({}), &begun, late), None, "without a deadline, and with the retries that the API gives");
        let failed = json!({"failed": 2, "startTime": "2026-01-01T00:00:00Z", "conditions": null});
        assert_eq!(of(&json!({"backoffLimit": 2}), &failed, soon), Some(json!({"backoffLimit": 3})));
        for end in ENDS {
            let ended = json!({"startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": end, "status": "True"}]});
            assert_eq!(of(&packaged, &ended, late), None);
        }
    }
}
