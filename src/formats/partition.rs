//! What the [journal](super::journal) of a recovery partition that is being made (`/var/lib/recovery/partition/progress`) has beyond other journals:
//! what was decided before the first change ([`BeginningV1`]).

use serde::{Deserialize, Serialize};

/// What is made, and on which disk. Everything that a crash could leave is recognised by these identifiers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BeginningV1 {
    /// The disk, as it was named.
    pub device: String,
    /// Its size, bytes.
    pub disk_size: u64,
    /// The identifier of its partition table.
    pub table: String,
    /// That table is a new one, on a disk that had none.
    pub new_table: bool,
    /// First byte of the partition.
    pub start: u64,
    /// Its size, bytes.
    pub size: u64,
    /// The identifier of the partition.
    pub partition: String,
    /// The identifier of the file system.
    pub file_system: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::samples;

    #[test]
    fn version_1_stays_as_it_is() {
        samples::check_layout::<BeginningV1>("partition", 1);
    }
}
