//! Why something in a tree is not in its archive as it is.

use serde::{Serialize, Serializer};

/// Why a path is not in the archive, or not as it is now. [`Display`](std::fmt::Display) is a phrase that follows the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    /// A socket is of no use without the program that listens on it.
    #[error("is a socket")]
    Socket,
    /// What is mounted there is another tree. The mount point itself is in the archive.
    #[error("is a mount point: its content is not the tree's")]
    MountPoint,
    /// The archive that is being written, or the one that it replaces.
    #[error("is the archive itself")]
    Archive,
    /// It was there when the directory was listed, but not when it was read.
    #[error("vanished while the tree was being read")]
    Vanished,
    /// It changed each time it was read. It is in the archive, but its content may be of no one moment.
    #[error("is written to all the time: it was packed as last read")]
    Restless,
    /// Not one path, but the number of those that are not named.
    #[error("{0} more were left out")]
    More(u64),
}

impl Skipped {
    /// True for what every archive leaves out on every node, which need not be reported.
    #[must_use]
    pub const fn by_design(self) -> bool {
        matches!(self, Self::Socket | Self::MountPoint)
    }
}

/// Reports have the phrase.
impl Serialize for Skipped {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
