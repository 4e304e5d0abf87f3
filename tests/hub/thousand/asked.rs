//! What a request is about.

use std::collections::BTreeMap;

use http::Method;
use hyper::body::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::rest::{Refused, bad, refusal};
use super::store::Key;

/// What there is: resource as it is counted, its kind, and whether it is in namespaces.
const RESOURCES: [(&str, &str, bool); 17] = [
    ("configmaps", "ConfigMap", true),
    ("events", "Event", true),
    ("namespaces", "Namespace", false),
    ("nodes", "Node", false),
    ("pods", "Pod", true),
    ("secrets", "Secret", true),
    ("serviceaccounts", "ServiceAccount", true),
    ("jobs.batch", "Job", true),
    ("leases.coordination.k8s.io", "Lease", true),
    ("networkpolicies.networking.k8s.io", "NetworkPolicy", true),
    ("roles.rbac.authorization.k8s.io", "Role", true),
    ("rolebindings.rbac.authorization.k8s.io", "RoleBinding", true),
    ("clusterroles.rbac.authorization.k8s.io", "ClusterRole", false),
    ("clusterrolebindings.rbac.authorization.k8s.io", "ClusterRoleBinding", false),
    ("validatingadmissionpolicies.admissionregistration.k8s.io", "ValidatingAdmissionPolicy", false),
    ("validatingadmissionpolicybindings.admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", false),
    ("clusterversions.config.openshift.io", "ClusterVersion", false),
];
/// A request.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Its words.
    pub(super) path: Vec<String>,
    pub(super) query: BTreeMap<String, String>,
    pub(super) form: String,
    pub(super) body: Bytes,
}

/// What a path is about.
pub(super) struct Target {
    pub(super) resource: &'static str,
    pub(super) kind: &'static str,
    pub(super) api_version: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) sub: Option<String>,
}

impl Asked {
    pub(super) fn parse(method: &Method, path: &str, query: &str, form: &str, body: Bytes) -> Self {
        let text = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        Self {
            method: method.clone(),
            path: path
                .split('/')
                .filter(|word| !word.is_empty())
                .map(|word| percent_decode_str(word).decode_utf8_lossy().into_owned())
                .collect(),
            query: query
                .split('&')
                .filter(|option| !option.is_empty())
                .map(|option| option.split_once('=').unwrap_or((option, "")))
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            form: form.to_owned(),
            body,
        }
    }

    pub(super) fn option(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub(super) fn watches(&self) -> bool {
        matches!(self.option("watch"), "true" | "1")
    }

    pub(super) fn applies(&self) -> bool {
        self.form.starts_with("application/apply-patch")
    }

    /// What it is counted as.
    pub(super) fn counted(&self) -> String {
        let Some(target) = self.target() else { return format!("get /{}", self.path.join("/")) };
        let verb = match self.method {
            Method::GET if self.watches() => "watch",
            Method::GET if target.name.is_none() => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH if self.applies() => "apply",
            Method::PATCH => "patch",
            _ => "delete",
        };
        target.sub.map_or_else(|| format!("{verb} {}", target.resource), |sub| format!("{verb} {}/{sub}", target.resource))
    }

    pub(super) fn target(&self) -> Option<Target> {
        let words: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let (api_version, group, rest) = match words[..] {
            ["api", version, ref rest @ ..] => (version.to_owned(), "", rest),
            ["apis", group, version, ref rest @ ..] => (format!("{group}/{version}"), group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (plural, name, sub) = match *rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(name), None),
            [plural, name, sub] => (plural, Some(name), Some(sub)),
            _ => return None,
        };
        let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let &(resource, kind, namespaced) = RESOURCES.iter().find(|(known, ..)| *known == resource)?;
        // Across all namespaces is read alone.
        if namespaced == namespace.is_none() && (name.is_some() || !namespaced || self.method != Method::GET) {
            return None;
        }
        let owned = |word: Option<&str>| word.map(str::to_owned);
        Some(Target { resource, kind, api_version, namespace: owned(namespace), name: owned(name), sub: owned(sub) })
    }

    pub(super) fn json(&self) -> Result<Value, Refused> {
        serde_json::from_slice(&self.body).map_err(|error| bad(&format!("the body is no JSON: {error}")))
    }
}

impl Target {
    pub(super) fn key(&self, name: &str) -> Key {
        (self.resource.to_owned(), self.namespace.clone().unwrap_or_default(), name.to_owned())
    }

    pub(super) fn not_found(&self, name: &str) -> Refused {
        refusal(404, "NotFound", &format!("{} {name:?} not found", self.resource))
    }
}

/// Labels and fields that are asked for.
#[derive(Clone, Default)]
pub(super) struct Selector {
    labels: Vec<(String, Wanted)>,
    name: Option<String>,
}

/// What is wanted of a label.
#[derive(Clone)]
enum Wanted {
    Is(String),
    IsNot(String),
    There,
    NotThere,
}

impl Selector {
    pub(super) fn of(asked: &Asked) -> Result<Self, Refused> {
        let mut selector = Self::default();
        for part in asked.option("labelSelector").split(',').filter(|part| !part.is_empty()) {
            if part.contains(['(', ')', ' ']) {
                return Err(bad("selectors by sets are not understood here"));
            }
            let (label, wanted) = if let Some((label, value)) = part.split_once("!=") {
                (label, Wanted::IsNot(value.to_owned()))
            } else if let Some((label, value)) = part.split_once('=') {
                (label, Wanted::Is(value.trim_start_matches('=').to_owned()))
            } else if let Some(label) = part.strip_prefix('!') {
                (label, Wanted::NotThere)
            } else {
                (part, Wanted::There)
            };
            selector.labels.push((label.to_owned(), wanted));
        }
        for part in asked.option("fieldSelector").split(',').filter(|part| !part.is_empty()) {
            let name = part.strip_prefix("metadata.name=").ok_or_else(|| bad("fields other than metadata.name are not understood here"))?;
            selector.name = Some(name.trim_matches('=').to_owned());
        }
        Ok(selector)
    }

    pub(super) fn takes(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"][name].as_str();
        self.name.as_ref().is_none_or(|name| object["metadata"]["name"] == **name)
            && self.labels.iter().all(|(name, wanted)| match wanted {
                Wanted::Is(value) => label(name) == Some(value),
                Wanted::IsNot(value) => label(name) != Some(value),
                Wanted::There => label(name).is_some(),
                Wanted::NotThere => label(name).is_none(),
            })
    }
}
