//! What steps of a recovery note in the [journal](super::journal), to know it when they, or later steps, are done after a crash: the detail of
//! a line [`StepNoted`](super::journal::EventV1::StepNoted).
//!
//! They go with the journal and have no version of their own: a note that is to say something else is that of a step with another name.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Of step `old-containers`: the ids of the containers that there were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct OldContainersV1(pub Vec<String>);

/// Of step `etcd-data`: what is added to the greatest revision of the backup's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct EtcdDataV1(pub u64);

/// Of step `start-kubelet`: when kubelet was started, by both clocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StartKubeletV1 {
    /// The boot that `since_boot` counts from.
    pub boot: String,
    /// By the wall clock, which may be set right later.
    pub wall: Timestamp,
    /// Seconds.
    pub since_boot: f64,
}

/// Of step `patch-served-objects`: the object that is about to be put through the API server, or that was and has been given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ServedObjectV1 {
    /// Its place among all that the rules are about, from 0.
    pub number: u64,
    /// The version in which it was read.
    pub resource_version: String,
    /// SHA-256, hex, of what it becomes, without what the server counts and without its status.
    pub sha256: String,
    /// What people are told of it, when it was not patched after all, or nobody can tell: it is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
}

/// Of step `etcd-copy`: what is to be said of the data that is about to be removed, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct EtcdCopyV1(pub Vec<String>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::samples;

    #[test]
    fn what_a_step_has_noted_stays_as_it_is() {
        samples::check_layout::<OldContainersV1>("note-old-containers", 1);
        samples::check_layout::<EtcdDataV1>("note-etcd-data", 1);
        samples::check_layout::<StartKubeletV1>("note-start-kubelet", 1);
        samples::check_layout::<EtcdCopyV1>("note-etcd-copy", 1);
        samples::check_layout::<ServedObjectV1>("note-patch-served-objects", 1);
    }
}
