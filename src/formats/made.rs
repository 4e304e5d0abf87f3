//! `recovery-restore` in etcd's member directory: what `etcd restore` has made, for the moment between the time when it is whole and the end of
//! the call.
//!
//! One that cannot be read, or is not of this version, tells nothing: the directory is then one that is not empty.

use serde::{Deserialize, Serialize};

use super::member::RestoredV1;

/// Version 1, which does not say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// SHA-256 of the database in the snapshot, hex.
    pub snapshot: String,
    /// What was asked for.
    pub options: OptionsV1,
    /// What is in it.
    pub restored: RestoredV1,
    /// The files that it made, as they were left: an etcd that has run since has changed them.
    pub files: Vec<LeftV1>,
}

/// A file below the member directory: name, bytes, time of the last change (seconds, nanoseconds).
pub type LeftV1 = (String, u64, i64, i64);

/// How a data directory is rebuilt; what is not given is as in the snapshot, or as etcdutl has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OptionsV1 {
    /// Member name.
    pub name: Option<String>,
    /// Peer URLs.
    pub peer_urls: Vec<String>,
    /// Cluster token.
    pub token: Option<String>,
    /// Added to the greatest revision.
    pub bump_revision: u64,
    /// Old revisions answer "compacted".
    pub mark_compacted: bool,
    /// A file without a valid trailer is taken.
    pub skip_hash_check: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::samples;

    #[test]
    fn version_1_stays_as_it_is() {
        samples::check_layout::<V1>("made", 1);
    }
}
