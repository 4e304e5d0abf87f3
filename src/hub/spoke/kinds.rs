//! The few fields that are read of objects on a cluster. The whole types, with all that a pod may have, would be a tenth of the program.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A list.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    pub(super) items: Vec<T>,
}

/// An object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Object<Status> {
    pub(super) metadata: Metadata,
    pub(super) status: Status,
}

/// The metadata of every object.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) creation_timestamp: Option<Timestamp>,
    pub(super) deletion_timestamp: Option<Timestamp>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) owner_references: Vec<IgnoredAny>,
}

/// Of a Job.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JobStatus {
    pub(super) conditions: Vec<Condition>,
}

/// A condition.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    pub(super) r#type: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) conditions: Vec<Condition>,
    pub(super) container_statuses: Vec<ContainerStatus>,
}

/// Of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    pub(super) state: ContainerState,
}

/// One of these.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    pub(super) running: Option<IgnoredAny>,
    pub(super) waiting: Option<Said>,
    pub(super) terminated: Option<Said>,
}

/// What is said of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Said {
    pub(super) reason: String,
    pub(super) message: String,
}

/// A Secret: its values in base64.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Secret {
    pub(super) data: BTreeMap<String, String>,
}
