//! `recovery-run` in etcd's member directory: says that a recovery has built this member, and from what.
//!
//! It is the last file that is written into a new member. It stays there while etcd runs on the member; etcd ignores it.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Format;
use crate::error::damaged;

/// The format.
pub const FORMAT: Format = Format { name: "recovery-run", version: 1 };

/// Version 1, which has no field for its version; later versions have one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// The run that built it.
    pub run: String,
    /// The restored member.
    pub restored: RestoredV1,
}

/// A member, as it was restored from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RestoredV1 {
    /// Member id.
    pub member_id: u64,
    /// Cluster id.
    pub cluster_id: u64,
    /// Member name.
    pub name: String,
    /// The revision at which etcd starts on it.
    pub revision: i64,
}

/// Reads a marker of any version.
///
/// # Errors
/// As [`Format::read`].
pub fn read(json: &[u8]) -> Result<V1> {
    #[derive(Deserialize)]
    struct Head {
        version: Option<u32>,
        agent: Option<String>,
    }
    let bad = |error: serde_json::Error| damaged(format!("{} is not valid: {error}", FORMAT.name));
    let head: Head = serde_json::from_slice(json).map_err(bad)?;
    if let Some(version) = head.version {
        FORMAT.check_version(version, head.agent.as_deref())?;
    }
    serde_json::from_slice(json).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{FailureKind, kind};
    use crate::formats::samples;

    #[test]
    fn version_1_stays_as_it_is_and_a_later_one_is_not_supported() {
        assert_eq!(read(&samples::check_layout::<V1>("member", 1)).unwrap().restored.name, "node-1");
        let of = |json: &[u8]| kind(&read(json).unwrap_err());
        assert_eq!(of(br#"{"version": 2, "agent": "9.1.0", "run": {}}"#), FailureKind::Unsupported);
        for bad in [&br#"{"run": "x"}"#[..], br#"{"version": 1}"#, b"", b"[]"] {
            assert_eq!(of(bad), FailureKind::Damaged, "{}", String::from_utf8_lossy(bad));
        }
    }
}
