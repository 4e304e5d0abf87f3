//! One entry of a tar stream: its header, combined with the extended headers before it.

use anyhow::{Context, Result};

use super::block::Raw;
use super::records::{Extension, later_volume};
use crate::archive::entry::{Attributes, Entry, Kind, Time};
use crate::archive::path::{LONGEST_PATH, path_from_name, shown};
use crate::archive::tar::BLOCK;
use crate::error::{damaged, unsupported};

/// An entry as it is in the stream, before its content.
#[derive(Debug)]
pub(in crate::archive) struct Member {
    pub(in crate::archive) entry: Entry,
    /// Bytes of its content in the stream, without the padding.
    pub(in crate::archive) stored: u64,
    /// True when its content begins with the map of a sparse file.
    pub(in crate::archive) sparse: bool,
    /// True when it has the mark of an archive that an index follows.
    pub(in crate::archive) indexed: bool,
    /// True when only its existence is recorded.
    pub(in crate::archive) existence: bool,
}

impl Member {
    /// Combines a header with what was said before it.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when no disk can have such an entry; `FailureKind::Unsupported` for a kind of entry that is not supported.
    pub(super) fn new(raw: Raw, mut more: Extension) -> Result<Self> {
        let version = match more.sparse_version {
            (None, None) if !more.sparse_other => None,
            version => Some(version),
        };
        if version.is_some_and(|version| version != (Some(1), Some(0))) || raw.kind == b'S' {
            return Err(unsupported(
                "the archive holds a sparse file in a format that is not supported: unpack it with tar, and pack it with --format=posix \
                 --sparse-version=1.0, or without --sparse",
            ));
        }
        if raw.kind == b'M' {
            return Err(later_volume());
        }
        let xattrs = more.xattrs();
        let name = more.sparse_name.or(more.path).unwrap_or(raw.name);
        let kind = match raw.kind {
            // Before POSIX a directory was a file whose name ended with a slash.
            b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let (kind, name) = (char::from(other), shown(&name));
                return Err(unsupported(format!(
                    "in the archive, {name} is of type {kind:?}, which is not supported: pack the tree with GNU tar or bsdtar"
                )));
            }
        };
        let path = path_from_name(&name)?;
        let refuse = |why: &str| damaged(format!("the archive is hostile or damaged: {} {why}", shown(&path)));
        let stored = more.size.unwrap_or(raw.size);
        if stored > i64::MAX.unsigned_abs() - BLOCK as u64 {
            return Err(refuse("has a size it cannot have"));
        }
        let target = match kind {
            Kind::HardLink => path_from_name(&more.target.unwrap_or(raw.target))?,
            Kind::Symlink => more.target.unwrap_or(raw.target),
            _ => Vec::new(),
        };
        if kind == Kind::Symlink && (target.is_empty() || target.contains(&0) || target.len() > LONGEST_PATH) {
            return Err(refuse("is a symbolic link to nothing"));
        }
        let sparse = version.is_some() && kind == Kind::File;
        let size = match kind {
            Kind::File if sparse => more.sparse_size.ok_or_else(|| refuse("is sparse and has no size"))?,
            Kind::File => stored,
            _ => 0,
        };
        if size > i64::MAX.unsigned_abs() {
            return Err(refuse("has a size it cannot have"));
        }
        let attributes = Attributes {
            mode: raw.mode & 0o7777,
            uid: more.uid.unwrap_or(raw.uid),
            gid: more.gid.unwrap_or(raw.gid),
            flags: more.flags,
            xattrs: xattrs.with_context(|| format!("reading the ACL of {}", shown(&path)))?,
        };
        let mtime = more.mtime.unwrap_or(Time { seconds: raw.mtime, nanoseconds: 0 });
        let mut entry = Entry { path, kind, attributes, mtime, size, target, device: raw.device };
        entry.normalize();
        Ok(Self { entry, stored, sparse, indexed: more.indexed, existence: more.existence })
    }
}
