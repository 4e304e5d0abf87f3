//! The few fields of API objects that are read. All others are ignored, and a missing or null field counts as empty: `status` is absent on
//! new objects, `history[].completionTime` null, `targetRevision` absent when idle.

use serde::{Deserialize, Deserializer};

/// Reads null as the default, like a missing field.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A list.
#[derive(Debug, Deserialize)]
pub(crate) struct List<T> {
    #[serde(default)]
    pub(crate) metadata: ListMetadata,
    #[serde(default = "Vec::new", deserialize_with = "or_default", bound(deserialize = "T: Deserialize<'de>"))]
    pub(crate) items: Vec<T>,
}

/// Of a list.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ListMetadata {
    /// Where the rest of it begins; empty at its end.
    #[serde(rename = "continue", default, deserialize_with = "or_default")]
    pub(crate) rest: String,
}

/// An object with the parts that the reader is interested in.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Object<Spec: Default, Status: Default> {
    #[serde(default)]
    pub(crate) metadata: Metadata,
    #[serde(default, deserialize_with = "or_default", bound(deserialize = "Spec: Deserialize<'de>"))]
    pub(crate) spec: Spec,
    #[serde(default, deserialize_with = "or_default", bound(deserialize = "Status: Deserialize<'de>"))]
    pub(crate) status: Status,
}

/// The metadata of every object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) resource_version: String,
    pub(crate) creation_timestamp: Option<jiff::Timestamp>,
    pub(crate) deletion_timestamp: Option<jiff::Timestamp>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) owner_references: Vec<Unread>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// A part of which nothing is read.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Unread {}

/// A condition; there is at most one of each type, in no order. `status` did not exist in v1beta1 certificate requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) reason: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) message: String,
    /// The generation of the object that it is about, where it says so.
    #[serde(rename = "observedGeneration")]
    pub(crate) observed_generation: Option<i64>,
    /// When the condition was last reported. A node's condition has it; most others do not.
    #[serde(rename = "lastHeartbeatTime")]
    pub(crate) reported: Option<jiff::Timestamp>,
}

/// A status of which only the conditions are read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions {
    #[serde(deserialize_with = "or_default")]
    pub(crate) conditions: Vec<Condition>,
}

/// The condition of this type, when it is there.
pub(crate) fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// True when the condition of this type is True.
pub(crate) fn is_true(conditions: &[Condition], kind: &str) -> bool {
    condition(conditions, kind).is_some_and(|condition| condition.status.as_deref() == Some("True"))
}

/// Why the condition of this type is not True.
pub(crate) fn unless_true(conditions: &[Condition], kind: &str) -> Option<String> {
    if is_true(conditions, kind) {
        return None;
    }
    let message = condition(conditions, kind).map(|condition| condition.message.as_str()).filter(|message| !message.is_empty());
    Some(message.map_or_else(|| format!("it is not {kind}"), |message| format!("it is not {kind}: {message}")))
}

/// Reads a capture of a real cluster.
#[cfg(test)]
pub(crate) fn capture<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oc").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
