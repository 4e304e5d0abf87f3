//! What is read of the status of objects on a cluster. The whole types, with all that a pod may have, would be a tenth of the program.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::kube::objects::{Condition, Conditions, Object, Unread};

/// A list. One without items is none: the answer of something else.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    pub(super) items: Vec<T>,
}

/// A Job.
pub(super) type JobObject = Object<Unread, Conditions>;
/// A pod.
pub(super) type Pod = Object<Unread, PodStatus>;
/// Anything of which the metadata alone is read.
pub(super) type Bare = Object<Unread, Unread>;

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
    pub(super) running: Option<Unread>,
    pub(super) waiting: Option<Said>,
    pub(super) terminated: Option<Said>,
}

/// What is said of a container; the exit code, where it has ended.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Said {
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) exit_code: i64,
}

/// A Secret: its values in base64.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Secret {
    pub(super) data: BTreeMap<String, String>,
}
