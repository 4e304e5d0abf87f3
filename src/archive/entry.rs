//! One entry of an archive: what it is, and everything about it that a restore brings back.

use anyhow::Result;

use super::acl;
use super::path::{LONGEST_NAME, LONGEST_PATH, check_path, shown};
use super::xattrs::{Xattrs, is_kept};
use crate::error::damaged;

/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
const LONGEST_VALUE: usize = 64 << 10;
/// The most memory that an entry takes, beyond its names and attributes, bytes.
pub(super) const ENTRY: usize = 100;
/// The most memory that one entry may take, bytes.
pub(super) const LARGEST_ENTRY: u64 = 512 << 10;
/// The most memory that all entries of an archive may take, bytes: enough for more than a million of the usual size, far more than a node's
/// trees need. Any pod can make files with long names and large attributes, and an archive of a few kilobytes can hold very many. Comparing
/// an archive at this limit takes half as much memory again.
pub(super) const LARGEST_TABLE: u64 = 256 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    /// Another name of an earlier entry that is not a directory.
    HardLink,
    Fifo,
    CharDevice,
    BlockDevice,
}

/// A time as file systems keep it: seconds since 1970, and the nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// The flag that forbids every change (`chattr +i`).
pub(super) const IMMUTABLE: u8 = 1;
/// The flag that forbids every change but appending (`chattr +a`).
pub(super) const APPEND_ONLY: u8 = 2;

/// The attributes that many entries have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Attributes {
    /// Permissions, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// [`IMMUTABLE`], [`APPEND_ONLY`].
    pub(super) flags: u8,
    pub(super) xattrs: Xattrs,
}

impl Attributes {
    /// The memory that they take, bytes.
    pub(super) fn weight(&self) -> u64 {
        self.xattrs.iter().map(|(name, value)| (ENTRY + name.len() + value.len()) as u64).sum()
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the root of the tree, without a slash at either end; the root itself is empty.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
    pub(super) mtime: Time,
    /// The size of a file, bytes, holes included; else 0.
    pub(super) size: u64,
    /// The target of a symbolic link; the path of the earlier entry for a hard link; else empty.
    pub(super) target: Vec<u8>,
    /// Major and minor number of a device; else 0.
    pub(super) device: (u32, u32),
}

impl Entry {
    /// The memory that the entry takes without its attributes, bytes.
    pub(super) fn weight(&self) -> u64 {
        (ENTRY + self.path.len() + self.target.len()) as u64
    }

    /// Changes the entry to what a file system makes of it. The mode gets what an access ACL says, as GNU tar and bsdtar restore it (bsdtar
    /// writes the ACL's group into the mode, where a file system shows its mask), and an ACL that says no more than the mode is removed. So
    /// is XFS's second view of ACLs, which earlier releases packed.
    pub(super) fn normalize(&mut self) {
        let Attributes { mode, xattrs, .. } = &mut self.attributes;
        xattrs.iter_mut().filter(|(name, _)| acl::is_acl(name)).for_each(|(_, value)| acl::normalize(value));
        xattrs.retain(|(name, value)| {
            if name == acl::ACCESS {
                *mode = acl::mode_of(value, *mode);
            }
            !(acl::is_twin(name) || name == acl::ACCESS && acl::is_mode(value))
        });
    }

    /// Checks that the entry can exist on a disk: a tar header or an index can hold what no kernel would show.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when it cannot exist on any disk.
    pub(super) fn validate(&self) -> Result<()> {
        let refuse = |why: &str| Err(damaged(format!("the archive is hostile or damaged: {} {why}", shown(&self.path))));
        if !self.path.is_empty()
            && let Err(why) = check_path(&self.path)
        {
            return refuse(why);
        }
        if self.path.len() > LONGEST_PATH || self.path.split(|b| *b == b'/').any(|name| name.len() > LONGEST_NAME) {
            return refuse("has a name that is too long");
        }
        let Self { kind, size, target, attributes, mtime, device, .. } = self;
        let link = matches!(kind, Kind::Symlink | Kind::HardLink);
        if (*kind != Kind::File && *size != 0) || link == target.is_empty() || target.contains(&0) || target.len() > LONGEST_PATH {
            return refuse("has a size or a link target that an entry of its kind cannot have");
        }
        // The kernel takes the owner -1 as "do not change it", and keeps 12 bits of a major number and 20 of a minor.
        let ids = attributes.uid == u32::MAX || attributes.gid == u32::MAX;
        if ids || device.0 >= 1 << 12 || device.1 >= 1 << 20 {
            return refuse("has an owner or a device number that no system can have");
        }
        if attributes.mode & !0o7777 != 0 || mtime.nanoseconds >= 1_000_000_000 || i64::try_from(*size).is_err() {
            return refuse("has numbers that are out of range");
        }
        let sound = |(name, value): &(Vec<u8>, Vec<u8>)| {
            is_kept(name) && !name.contains(&0) && name.len() <= LONGEST_NAME && value.len() <= LONGEST_VALUE
        };
        if let Some((name, _)) = attributes.xattrs.iter().find(|(name, value)| acl::is_acl(name) && !acl::is_valid(value)) {
            return refuse(&format!("has an ACL that no file system accepts ({})", name.escape_ascii()));
        }
        if *kind != Kind::Directory && attributes.xattrs.iter().any(|(name, _)| name == acl::DEFAULT) {
            return refuse("has a default ACL and is not a directory");
        }
        if !attributes.xattrs.iter().all(sound) || !attributes.xattrs.is_sorted_by(|a, b| a.0 < b.0) {
            return refuse("has extended attributes that no file system accepts, or in the wrong order");
        }
        Ok(())
    }
}
