//! Why nothing changes: what is looked at when a wait reaches its deadline. Also the deletion of pods that are in the way.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::client::{Client, is_missing};
use super::health::Health;
use super::objects::{Conditions, Metadata, Object, Unread, is_true, or_default};

/// The most sentences of one kind, so that the message stays readable.
const MOST: usize = 5;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct WebhookConfiguration {
    metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    webhooks: Vec<Webhook>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Webhook {
    name: String,
    failure_policy: Option<String>,
    #[serde(deserialize_with = "or_default")]
    client_config: ClientConfig,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ClientConfig {
    service: Option<Service>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Service {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Endpoints {
    #[serde(deserialize_with = "or_default")]
    subsets: Vec<Subset>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Subset {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<Unread>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(deserialize_with = "or_default")]
    phase: String,
    #[serde(deserialize_with = "or_default")]
    container_statuses: Vec<ContainerStatus>,
    #[serde(flatten)]
    conditions: Conditions,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: String,
    #[serde(deserialize_with = "or_default")]
    state: ContainerState,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
    #[serde(deserialize_with = "or_default")]
    message: String,
}

impl Client {
    /// Deletes the pods of a namespace whose label `app` has one of these values; returns how many.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer; when it refuses.
    pub fn delete_pods(&self, namespace: &str, apps: &[&str]) -> Result<usize> {
        let selector = format!("app in ({})", apps.join(","));
        let selector = percent_encoding::utf8_percent_encode(&selector, percent_encoding::NON_ALPHANUMERIC);
        let pods: Vec<Object<Unread, Unread>> = self.list(&format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"))?;
        let mut deleted = 0;
        for pod in pods {
            let path = format!("/api/v1/namespaces/{namespace}/pods/{}", pod.metadata.name);
            deleted += usize::from(self.delete(&path).with_context(|| format!("deleting the pod {}", pod.metadata.name))?);
        }
        Ok(deleted)
    }

    /// Sentences that may explain why nothing changes: pending certificate requests, webhooks that fail closed and have no endpoint,
    /// operators that are not well, pods of the control plane that do not run. Never fails: a query that fails becomes a sentence too.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        // First one look at the server: without an answer, each of the queries below would wait for its time limit.
        if let Err(error) = self.ready() {
            return vec![format!("{error:#}")];
        }
        let parts = [self.undecided(), self.closed_webhooks(), self.unwell(), self.not_running()];
        parts.into_iter().flat_map(|part| part.map_or_else(|error| vec![format!("{error:#}")], few)).collect()
    }

    fn undecided(&self) -> Result<Vec<String>> {
        let sentence =
            |name: &str, user: &str| format!("the certificate request {name} of {user} is pending (kubectl certificate approve {name})");
        Ok(self.pending_requests()?.iter().map(|r| sentence(&r.metadata.name, &r.spec.username)).collect())
    }

    /// Webhooks with `failurePolicy: Fail` (the default) whose service has no endpoint: every write they match is refused.
    fn closed_webhooks(&self) -> Result<Vec<String>> {
        let mut sentences = Vec::new();
        for (configuration, webhook, service) in self.fail_closed()? {
            if !self.is_served(&service)? {
                sentences.push(format!(
                    "the webhook {webhook} fails closed and its service {}/{} has no endpoint (kubectl delete {configuration})",
                    service.namespace, service.name
                ));
            }
        }
        Ok(sentences)
    }

    /// Those webhooks that fail closed and are a service of the cluster: kind and name of the configuration, name of the webhook, service.
    fn fail_closed(&self) -> Result<Vec<(String, String, Service)>> {
        let mut found = Vec::new();
        for kind in ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"] {
            let configurations: Vec<WebhookConfiguration> = self.list(&format!("/apis/admissionregistration.k8s.io/v1/{kind}"))?;
            for (configuration, webhook) in configurations.iter().flat_map(|c| c.webhooks.iter().map(move |w| (c, w))) {
                if let Some(service) = webhook.client_config.service.as_ref().filter(|_| fails_closed(webhook)) {
                    found.push((format!("{kind} {}", configuration.metadata.name), webhook.name.clone(), service.clone()));
                }
            }
        }
        Ok(found)
    }

    /// Whether somebody answers for each webhook that fails closed.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer.
    pub fn webhooks(&self) -> Result<Vec<Health>> {
        let mut found = Vec::new();
        for (_, webhook, service) in self.fail_closed()? {
            let trouble =
                (!self.is_served(&service)?).then(|| format!("its service {}/{} has no endpoint", service.namespace, service.name));
            found.push(Health { name: webhook, trouble });
        }
        Ok(found)
    }

    fn is_served(&self, service: &Service) -> Result<bool> {
        match self.get::<Endpoints>(&format!("/api/v1/namespaces/{}/endpoints/{}", service.namespace, service.name)) {
            Err(error) if is_missing(&error) => Ok(false),
            endpoints => Ok(endpoints?.subsets.iter().any(|subset| !subset.addresses.is_empty())),
        }
    }

    fn unwell(&self) -> Result<Vec<String>> {
        let operators = self.cluster_operators()?;
        Ok(operators.iter().filter_map(|o| o.status.trouble().map(|why| format!("the operator {} {why}", o.metadata.name))).collect())
    }

    /// Pods in the namespaces of the control plane, and of its operators, that neither run nor have completed.
    fn not_running(&self) -> Result<Vec<String>> {
        let pods = self.profile.static_pods.iter().map(|pod| pod.namespace);
        let mut namespaces: Vec<&str> = pods.chain(self.profile.operator_containers.iter().map(|c| c.namespace)).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let mut sentences = Vec::new();
        for namespace in namespaces {
            let pods: Vec<Object<Unread, PodStatus>> = self.list(&format!("/api/v1/namespaces/{namespace}/pods"))?;
            sentences.extend(
                pods.iter()
                    .filter_map(|pod| why_not_running(&pod.status).map(|why| format!("the pod {namespace}/{} {why}", pod.metadata.name))),
            );
        }
        Ok(sentences)
    }
}

fn few(mut sentences: Vec<String>) -> Vec<String> {
    if sentences.len() > MOST {
        let more = sentences.len() - MOST;
        sentences.truncate(MOST);
        sentences.push(format!("and {more} more like the last one"));
    }
    sentences
}

fn fails_closed(webhook: &Webhook) -> bool {
    webhook.failure_policy.as_deref().is_none_or(|policy| policy == "Fail")
}

fn why_not_running(status: &PodStatus) -> Option<String> {
    if status.phase == "Succeeded" || (status.phase == "Running" && is_true(&status.conditions.conditions, "Ready")) {
        return None;
    }
    let waiting = status.container_statuses.iter().find_map(|c| c.state.waiting.as_ref().map(|w| (c.name.as_str(), w)));
    Some(match waiting {
        Some((name, why)) => format!("waits: container {name}: {} {}", why.reason, why.message).trim_end().to_owned(),
        None if status.phase == "Running" => "runs but is not ready".to_owned(),
        None => format!("is {}", if status.phase.is_empty() { "not started" } else { &status.phase }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::objects::{List, capture};

    #[test]
    fn static_pods_that_run_are_no_obstacle() {
        let pods: List<Object<Unread, PodStatus>> = capture("real-static-pod-mirrors-k8s-1.34.json");
        assert_eq!(pods.items.len(), 4);
        assert!(pods.items.iter().all(|pod| why_not_running(&pod.status).is_none()));
    }

    #[test]
    fn a_pod_that_does_not_run_says_why() {
        let why = |status: &str| why_not_running(&serde_json::from_str(status).unwrap());
        assert_eq!(why(r#"{"phase": "Succeeded"}"#), None);
        assert_eq!(why("{}").unwrap(), "is not started");
        assert_eq!(why(r#"{"phase": "Running", "conditions": null}"#).unwrap(), "runs but is not ready");
        let crashing = r#"{"phase": "Running", "containerStatuses": [{"name": "a", "state": {"running": {}}},
            {"name": "b", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}}]}"#;
        assert_eq!(why(crashing).unwrap(), "waits: container b: CrashLoopBackOff back-off 5m0s");
    }

    #[test]
    fn the_policy_of_a_webhook_is_fail_unless_it_says_otherwise() {
        let closed = |json: &str| fails_closed(&serde_json::from_str(json).unwrap());
        assert!(closed("{}") && closed(r#"{"failurePolicy": "Fail"}"#) && !closed(r#"{"failurePolicy": "Ignore"}"#));
    }

    #[test]
    fn a_long_list_is_cut() {
        let many = few((0..9).map(|n| n.to_string()).collect());
        assert_eq!(many.last().unwrap(), "and 4 more like the last one");
    }
}
