//! `/var/lib/recovery/last-backup.json`: how the last run of a backup ended, whoever asked for it.

use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Format;

/// This format.
pub const FORMAT: Format = Format { name: "the note of the last run of a backup", version: 2 };

/// Since which version it has a checksum.
const SEALED: u32 = 2;

/// Version 2, which has a [checksum](super::seal), and 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1 or 2.
    pub version: u32,
    /// Version of the agent that wrote it.
    pub agent: String,
    /// The recovery directory that the backup was for.
    pub directory: PathBuf,
    /// Who asked, as in the manifest.
    pub asked_by: String,
    /// When it began.
    pub begun: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// The id of the backup that it took.
    pub backup: Option<String>,
    /// The exit code that this is: 0 when it took one.
    pub exit: u8,
    /// The kind of its failure.
    pub failure: Option<String>,
    /// What it failed of, in words.
    pub why: Option<String>,
}

/// Reads one of any version.
///
/// # Errors
/// As [`Format::read_sealed`].
pub fn read(json: &[u8]) -> Result<V1> {
    FORMAT.read_sealed(SEALED, json, |_, json| serde_json::from_slice(json))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn version_1_is_read_for_ever() {
        assert_eq!(read(&samples::check_layout::<V1>("last-run", 1)).unwrap().version, 1);
    }

    #[test]
    fn version_2_is_what_is_written() {
        let (old, new) = (read(&samples::read("last-run.1.json")).unwrap(), read(&samples::check_sealed::<V1>("last-run", 2)).unwrap());
        assert_eq!(new, V1 { version: FORMAT.version, ..old });
    }
}
