//! `undo.json`: what a recovery changed that is not part of the backup, and must put back however the recovery ends.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Format;
use super::journal::AskedV1;

/// This format.
pub const FORMAT: Format = Format { name: "undo.json", version: 1 };

/// Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1.
    pub version: u32,
    /// The runs that may have left something, oldest first.
    pub runs: Vec<String>,
    /// The backup that is being restored.
    pub backup: String,
    /// The options.
    pub asked: AskedV1,
    /// The SELinux mode to put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxModeV1>,
    /// Units that are stopped, and whether they ran, or would have without further action.
    pub units: BTreeMap<String, bool>,
    /// The unit of the container runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The last line of the journal when it was found that somebody had released kubelet in the middle of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_at: Option<u64>,
}

/// What the kernel does with an access that the policy forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SelinuxModeV1 {
    /// The access is denied.
    Enforcing,
    /// The access is logged and allowed.
    Permissive,
}

/// Reads a file of any version.
///
/// # Errors
/// As [`Format::read`].
pub fn read(json: &[u8]) -> Result<V1> {
    FORMAT.read(json, |_, json| serde_json::from_slice(json))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn version_1_is_what_is_written() {
        assert_eq!(read(&samples::check_layout::<V1>("undo", 1)).unwrap().version, 1);
    }
}
