//! `undo.json`: what a recovery changed that is not part of the backup, and must put back however the recovery ends.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Format;
use super::journal::{AskedV1, AskedV4};

/// This format.
pub const FORMAT: Format = Format { name: "undo.json", version: 3 };

/// Since which version it has a checksum.
const SEALED: u32 = 3;

/// Version 3, which has a [checksum](super::seal), and 2: for how long the cluster has to stay as the backup recorded it is among the options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V2 {
    /// 2 or 3.
    pub version: u32,
    /// The runs that may have left something, oldest first.
    pub runs: Vec<String>,
    /// The backup that is being restored.
    pub backup: String,
    /// The options.
    pub asked: AskedV4,
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

impl From<V1> for V2 {
    fn from(old: V1) -> Self {
        let V1 { version: _, runs, backup, asked, selinux, units, runtime, undone_at } = old;
        Self { version: FORMAT.version, runs, backup, asked: asked.into(), selinux, units, runtime, undone_at }
    }
}

/// Reads a file of any version.
///
/// # Errors
/// As [`Format::read`].
pub fn read(json: &[u8]) -> Result<V2> {
    FORMAT.read_sealed(SEALED, json, |version, json| match version {
        1 => serde_json::from_slice::<V1>(json).map(V2::from),
        _ => serde_json::from_slice(json),
    })
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn version_1_is_read_for_ever() {
        let read = read(&samples::check_layout::<V1>("undo", 1)).unwrap();
        assert_eq!((read.version, read.asked.wait, read.asked.hold), (FORMAT.version, Some(3600), None));
    }

    #[test]
    fn version_2_is_read_for_ever() {
        let sample = samples::check_layout::<V2>("undo", 2);
        assert_eq!(serde_json::from_slice::<V2>(&sample).unwrap(), read(&sample).unwrap());
    }

    #[test]
    fn version_3_is_what_is_written() {
        let (old, new) = (read(&samples::read("undo.2.json")).unwrap(), read(&samples::check_sealed::<V2>("undo", 3)).unwrap());
        assert_eq!(new, V2 { version: FORMAT.version, ..old });
    }
}
