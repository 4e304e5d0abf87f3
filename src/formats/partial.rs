//! What the [journal](super::journal) of an unfinished backup (`journal` in its directory) has beyond other journals: how the backup was
//! begun ([`BeginningV2`]), and which files a step has finished ([`DoneV2`], the detail of the step's end).
//!
//! This is version 2, for version 2 of the journal. Version 1 was a file of its own, `state.json`. No agent continues a backup that another
//! one began: it discards it, and begins again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::deployment::DeploymentV1;

/// The begin of a backup. Boot, agent and plan are in the journal's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BeginningV2 {
    /// When it was begun, by the node's clock.
    pub taken: Timestamp,
    /// When it was begun, in seconds since boot.
    pub begun: u64,
    /// The booted deployment, where there is one.
    pub deployment: Option<DeploymentV1>,
    /// SHA-256 (hex) of `currentconfig`, where there is one.
    pub current_config: Option<String>,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DoneV2 {
    /// The files that are finished and on disk, by name.
    pub files: BTreeMap<String, FinishedV2>,
}

/// A file that is finished and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FinishedV2 {
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
    fn version_2_stays_as_it_is() {
        samples::check_layout::<BeginningV2>("partial", 2);
        samples::check_layout::<DoneV2>("partial-done", 2);
    }
}
