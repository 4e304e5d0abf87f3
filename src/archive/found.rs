//! What the kernel says of a path: one `statx`, converted to the archive's types.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::entry::{APPEND_ONLY, IMMUTABLE, Kind, Time};

/// The last second that file systems can store: ext4 with small inodes and XFS without `bigtime`, ext4, XFS with `bigtime`. The first
/// second is the same for all. (Linux: `fs/ext4/ext4.h`, `fs/xfs/libxfs/xfs_format.h`.)
const LAST_SECONDS: [i64; 4] = [i32::MAX as i64, u32::MAX as i64, 15_032_385_535, 16_299_260_424];
const FIRST_SECOND: i64 = i32::MIN as i64;

/// See [`Found::identity`].
pub(super) type Identity = ((u32, u32), u64, Time);

/// What `statx` says of one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// `None` for a socket, which cannot be kept.
    pub(super) kind: Option<Kind>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    /// When the inode was created, where the file system says so (XFS, ext4); else 1970.
    birth: Time,
    pub(super) size: u64,
    pub(super) inode: u64,
    pub(super) file_system: (u32, u32),
    pub(super) links: u32,
    pub(super) device: (u32, u32),
    pub(super) flags: u8,
    /// True when it has fewer blocks than its size needs.
    pub(super) holes: bool,
    /// True when it is the root of a mount; Linux says so from 5.8 on.
    pub(super) mount_root: Option<bool>,
}

impl Found {
    /// Looks at `name` in `directory` without following a link; `None` when nothing is there.
    pub(super) fn at(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<Option<Self>> {
        let name = if name.is_empty() { b"." } else { name };
        match statx(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at an open file.
    pub(super) fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        statx(file.as_fd(), b"", AtFlags::EMPTY_PATH)
    }

    /// True when the modification time is `wanted`, as far as the file system can store it: a time beyond its range becomes the last one in
    /// range (`timestamp_truncate` in Linux), and where only whole seconds are stored, the fraction is lost.
    pub(super) fn has_mtime(&self, wanted: Time) -> bool {
        let whole_seconds = self.mtime.nanoseconds == 0 && self.ctime.nanoseconds == 0;
        self.mtime == wanted
            || (whole_seconds && self.mtime.seconds == wanted.seconds)
            || (LAST_SECONDS.contains(&self.mtime.seconds) && wanted.seconds >= self.mtime.seconds)
            || (self.mtime.seconds == FIRST_SECOND && wanted.seconds <= self.mtime.seconds)
    }

    /// Distinguishes an inode from every other, including past ones: file systems reuse the number of a removed inode.
    pub(super) fn identity(&self) -> Identity {
        (self.file_system, self.inode, self.birth)
    }

    /// True when neither content nor metadata can have changed between the two looks.
    pub(super) fn is_unchanged(&self, later: &Self) -> bool {
        (self.inode, self.size, self.mtime, self.ctime) == (later.inode, later.size, later.mtime, later.ctime)
    }
}

fn statx(directory: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> rustix::io::Result<Found> {
    let found: Statx = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let attribute = |attribute| found.stx_attributes.contains(attribute);
    let kind = match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::CharacterDevice => Some(Kind::CharDevice),
        FileType::BlockDevice => Some(Kind::BlockDevice),
        _ => None,
    };
    let is_device = matches!(kind, Some(Kind::CharDevice | Kind::BlockDevice));
    let time = |time: rustix::fs::StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    Ok(Found {
        kind,
        mode: u32::from(found.stx_mode) & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        mtime: time(found.stx_mtime),
        ctime: time(found.stx_ctime),
        birth: time(found.stx_btime),
        size: if kind == Some(Kind::File) { found.stx_size } else { 0 },
        inode: found.stx_ino,
        file_system: (found.stx_dev_major, found.stx_dev_minor),
        links: found.stx_nlink,
        device: if is_device { (found.stx_rdev_major, found.stx_rdev_minor) } else { (0, 0) },
        flags: if attribute(StatxAttributes::IMMUTABLE) { IMMUTABLE } else { 0 }
            | if attribute(StatxAttributes::APPEND) { APPEND_ONLY } else { 0 },
        holes: found.stx_blocks.saturating_mul(512) < found.stx_size,
        mount_root: mount_root(&found),
    })
}

/// Whether a mount begins there; `None` where the kernel does not say.
pub(super) fn mount_root(found: &Statx) -> Option<bool> {
    let told = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    told.then_some(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
