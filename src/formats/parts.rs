//! What several formats hold.

use serde::{Deserialize, Serialize};

use crate::node::profile;

/// The kind of control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// OpenShift.
    OpenShift,
    /// Upstream static pods as kubeadm lays them out.
    Kubeadm,
}

impl From<Profile> for profile::Kind {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::OpenShift => Self::OpenShift,
            Profile::Kubeadm => Self::Kubeadm,
        }
    }
}

impl From<profile::Kind> for Profile {
    fn from(profile: profile::Kind) -> Self {
        match profile {
            profile::Kind::OpenShift => Self::OpenShift,
            profile::Kind::Kubeadm => Self::Kubeadm,
        }
    }
}

/// A deployment of ostree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// Stateroot.
    pub stateroot: String,
    /// Commit checksum.
    pub checksum: String,
    /// Serial.
    pub serial: u32,
    /// Version, when it has one.
    pub version: Option<String>,
    /// Kernel arguments.
    pub kernel_arguments: Vec<String>,
}
