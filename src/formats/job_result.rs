//! The termination message of the pod of a backup that is done: what a hub reads of it. One line of JSON; a backup that is not done leaves a sentence.

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Format;

/// This format.
pub const FORMAT: Format = Format { name: "what the node said of its backup", version: 1 };

/// Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1.
    pub version: u32,
    /// Version of the agent that wrote it.
    pub agent: String,
    /// The backup's id.
    pub backup: String,
    /// It was read back whole, and found good.
    pub verified: bool,
    /// SHA-256 (hex) of its `SHA256SUMS`.
    pub digest: String,
    /// The release that the cluster was at; `None` when its API did not say.
    pub release: Option<String>,
    /// When it was begun, by the node's clock.
    pub taken: Timestamp,
    /// When the first of the certificates in it expires.
    pub certificates_expire: Option<Timestamp>,
}

/// Reads one of any version.
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
        assert_eq!(read(&samples::check_layout::<V1>("job-result", 1)).unwrap().version, 1);
    }
}
