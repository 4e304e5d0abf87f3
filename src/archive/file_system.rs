//! What messages say about a file system.

use std::os::fd::OwnedFd;

/// A file system with less space than this is full, bytes.
const NEARLY_FULL: u64 = 1 << 20;

/// True when the file system of `file` has no room left.
pub(super) fn is_full(file: &OwnedFd) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < NEARLY_FULL || fs.f_favail == 0)
}

/// The kind of file system that `file` is on.
pub(super) fn name(file: &OwnedFd) -> String {
    // linux/magic.h
    match rustix::fs::fstatfs(file).map(|fs| u64::try_from(fs.f_type).unwrap_or_default()) {
        Ok(0xEF53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "XFS".to_owned(),
        Ok(0x9123_683E) => "btrfs".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x794C_7630) => "overlay".to_owned(),
        Ok(other) => format!("type {other:#x}"),
        Err(_) => "of unknown type".to_owned(),
    }
}
