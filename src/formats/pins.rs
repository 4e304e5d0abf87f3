//! `pins.json` of the recovery directory: which deployments the agent has pinned.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Format;
use super::deployment::DeploymentV1;

/// The format.
pub const FORMAT: Format = Format { name: "pins.json", version: 2 };

/// Since which version it has a checksum.
const SEALED: u32 = 2;

/// Version 2, which has a [checksum](super::seal), and 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1 or 2.
    pub version: u32,
    /// The pins that the agent itself has set.
    pub ours: Vec<DeploymentV1>,
}

/// Reads a file of any version.
///
/// # Errors
/// As [`Format::read_sealed`].
pub fn read(json: &[u8]) -> Result<V1> {
    FORMAT.read_sealed(SEALED, json, |_, json| serde_json::from_slice(json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::samples;

    #[test]
    fn version_1_is_read_for_ever() {
        assert_eq!(read(&samples::check_layout::<V1>("pins", 1)).unwrap().version, 1);
    }

    #[test]
    fn version_2_is_what_is_written() {
        let (old, new) = (read(&samples::read("pins.1.json")).unwrap(), read(&samples::check_sealed::<V1>("pins", 2)).unwrap());
        assert_eq!(new, V1 { version: FORMAT.version, ..old });
    }
}
