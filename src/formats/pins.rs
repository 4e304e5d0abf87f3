//! `pins.json` of the recovery directory: which deployments the agent has pinned.

use serde::{Deserialize, Serialize};

use super::Format;
use super::deployment::DeploymentV1;

/// The format.
pub const FORMAT: Format = Format { name: "pins.json", version: 1 };

/// Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1.
    pub version: u32,
    /// The pins that the agent itself has set.
    pub ours: Vec<DeploymentV1>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::samples;

    #[test]
    fn version_1_stays_as_it_is() {
        samples::check_layout::<V1>("pins", 1);
    }
}
