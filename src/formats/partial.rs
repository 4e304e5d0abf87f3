//! `state.json` of a backup that is being taken: what of it is finished, and what must be the same for it to be gone on with.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Format;
use super::deployment::DeploymentV1;

/// The format.
pub const FORMAT: Format = Format { name: "state.json", version: 1 };

/// Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1.
    pub version: u32,
    /// When it was begun, by the node's clock.
    pub taken: Timestamp,
    /// When it was begun, in seconds since boot.
    pub begun: u64,
    /// What must be the same.
    pub conditions: ConditionsV1,
    /// The files that are finished, by name.
    pub finished: BTreeMap<String, FinishedV1>,
}

/// What must be the same for it to be gone on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ConditionsV1 {
    /// The booted deployment, where there is one.
    pub deployment: Option<DeploymentV1>,
    /// Which boot.
    pub boot_id: String,
    /// SHA-256 (hex) of `currentconfig`, where there is one.
    pub current_config: Option<String>,
    /// Version of the agent that began it.
    pub agent: String,
}

/// A file that is finished and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FinishedV1 {
    /// Bytes of content, before compression.
    pub bytes: u64,
    /// Bytes of the file.
    pub stored: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::samples;

    #[test]
    fn version_1_stays_as_it_is() {
        samples::check::<V1>("partial", 1);
    }
}
