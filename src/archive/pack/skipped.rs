//! Why something that a tree has is not in its archive as it is.

use serde::{Serialize, Serializer};

/// Why a path is not in the archive, or not as it is now. [`Display`](std::fmt::Display) says it of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    /// A socket is nothing without the program that listens on it.
    #[error("is a socket")]
    Socket,
    /// What is mounted there is another tree. That the mount point is there is in the archive.
    #[error("is a mount point: its content is not the tree's")]
    MountPoint,
    /// The archive that is being written, or the one that it replaces.
    #[error("is the archive itself")]
    Archive,
    /// It was there when the directory was listed, and not when it was to be read.
    #[error("vanished while the tree was being read")]
    Vanished,
    /// It changed each time it was read. It is in the archive, and its content may be of no one moment.
    #[error("is written to all the time: it was packed as it was read last")]
    Restless,
    /// Not one path, but so many that are not named.
    #[error("{0} more were left out")]
    More(u64),
}

impl Skipped {
    /// True for what is left out of every archive, on every node: nobody needs to be told.
    #[must_use]
    pub const fn by_design(self) -> bool {
        matches!(self, Self::Socket | Self::MountPoint)
    }
}

/// Reports have it in words.
impl Serialize for Skipped {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
