//! How a deployment is written, in every format that names one.

use serde::{Deserialize, Serialize};

/// Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DeploymentV1 {
    /// Stateroot.
    pub stateroot: String,
    /// Commit checksum.
    pub checksum: String,
    /// Distinguishes deployments of one commit in one stateroot.
    pub serial: u32,
    /// Version of the commit, when it has one.
    pub version: Option<String>,
    /// Kernel arguments.
    pub kernel_arguments: Vec<String>,
}
