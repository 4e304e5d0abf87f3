//! All entries of an archive in memory, compact and in the order of a walk.
//!
//! A row takes 48 bytes and its path, and a file that is not empty the same again; what entries have in common is stored once.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::archive::content::Sum;
use crate::archive::entry::{Attributes, Entry, Kind, Time};
use crate::archive::path::compare_paths;
use crate::archive::xattrs::LABEL;

/// The number of a row.
pub(in crate::archive) type Id = u32;

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(in crate::archive) struct Row {
    pub(in crate::archive) kind: Kind,
    /// True when only its existence is recorded.
    pub(in crate::archive) existence: bool,
    /// One past the last row below it.
    pub(in crate::archive) end: Id,
    pub(in crate::archive) mtime: Time,
    /// The size of a file.
    pub(in crate::archive) size: u64,
    /// The sum of a file that is not empty.
    pub(in crate::archive) sum: Sum,
    /// The place of its header in an archive with an index; without one, its number in the stream.
    pub(in crate::archive) frame: u32,
    pub(in crate::archive) offset: u32,
}

/// One entry, as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct CompactRow {
    pub(super) path_start: u32,
    pub(super) path_len: u16,
    pub(super) kind: Kind,
    pub(super) existence: bool,
    pub(super) attributes: u32,
    pub(super) end: Id,
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) frame: u32,
    pub(super) offset: u32,
    pub(super) more: More,
}

/// Data that only some kinds have.
#[derive(Debug, Clone, Copy)]
pub(super) enum More {
    Nothing,
    /// A file that is not empty: an index into the contents.
    Content(u32),
    /// A link's target: an index into the targets.
    Target(u32),
    /// The row of a hard link's target.
    Leader(Id),
    Device(u32, u32),
}

/// All entries, sorted by [`compare_paths`].
#[derive(Debug, Default)]
pub(in crate::archive) struct Table {
    pub(super) paths: Vec<u8>,
    pub(super) rows: Vec<CompactRow>,
    /// Size and sum of each file that is not empty.
    pub(super) contents: Vec<(u64, Sum)>,
    pub(super) attributes: Vec<Attributes>,
    pub(super) targets: Vec<Box<[u8]>>,
    pub(super) bytes: u64,
}

impl Table {
    pub(in crate::archive) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The numbers of all rows, in order.
    pub(in crate::archive) fn ids(&self) -> std::ops::Range<Id> {
        // Their number is checked when they are added.
        0..Id::try_from(self.rows.len()).unwrap_or(Id::MAX)
    }

    pub(in crate::archive) fn row(&self, id: Id) -> Row {
        let CompactRow { kind, existence, end, seconds, nanoseconds, frame, offset, more, .. } = *self.compact(id);
        let (size, sum) = if let More::Content(content) = more { self.contents[content as usize] } else { Default::default() };
        Row { kind, existence, end, mtime: Time { seconds, nanoseconds }, size, sum, frame, offset }
    }

    /// A row as it is stored.
    pub(super) fn compact(&self, id: Id) -> &CompactRow {
        &self.rows[id as usize]
    }

    pub(in crate::archive) fn path(&self, id: Id) -> &[u8] {
        self.path_of(self.compact(id))
    }

    /// The path of a row, which may not be in the table yet.
    pub(super) fn path_of(&self, row: &CompactRow) -> &[u8] {
        &self.paths[row.path_start as usize..][..usize::from(row.path_len)]
    }

    pub(in crate::archive) fn paths(&self) -> impl Iterator<Item = &Path> + '_ {
        self.rows.iter().map(|row| Path::new(OsStr::from_bytes(self.path_of(row))))
    }

    pub(in crate::archive) fn attributes(&self, id: Id) -> &Attributes {
        &self.attributes[self.compact(id).attributes as usize]
    }

    /// Bytes of file content, without holes.
    pub(in crate::archive) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True when an entry has a security label.
    pub(in crate::archive) fn is_labelled(&self) -> bool {
        self.attributes.iter().any(|attributes| attributes.xattrs.iter().any(|(name, _)| name == LABEL))
    }

    /// The row of a hard link's target; for any other entry, its own row.
    pub(in crate::archive) fn leader(&self, id: Id) -> Id {
        match self.compact(id).more {
            More::Leader(leader) => leader,
            _ => id,
        }
    }

    /// Where a symbolic link points.
    pub(in crate::archive) fn target(&self, id: Id) -> &[u8] {
        match self.compact(id).more {
            More::Target(target) => &self.targets[target as usize],
            _ => b"",
        }
    }

    pub(in crate::archive) fn device(&self, id: Id) -> (u32, u32) {
        match self.compact(id).more {
            More::Device(major, minor) => (major, minor),
            _ => (0, 0),
        }
    }

    /// The row of a path.
    pub(in crate::archive) fn find(&self, path: &[u8]) -> Option<Id> {
        let at = self.rows.binary_search_by(|row| compare_paths(self.path_of(row), path)).ok()?;
        Id::try_from(at).ok()
    }

    /// The rows directly below a directory's, in order.
    pub(in crate::archive) fn children(&self, id: Id) -> impl Iterator<Item = Id> + '_ {
        let end = self.compact(id).end;
        let first = Some(id + 1).filter(|child| *child < end);
        std::iter::successors(first, move |child| Some(self.compact(*child).end).filter(|next| *next < end))
    }

    /// The entry of a row, as in its header in the archive.
    pub(in crate::archive) fn entry(&self, id: Id) -> Entry {
        let row = self.row(id);
        Entry {
            path: self.path(id).to_vec(),
            kind: row.kind,
            attributes: self.attributes(id).clone(),
            mtime: row.mtime,
            size: row.size,
            target: match self.compact(id).more {
                More::Leader(leader) => self.path(leader).to_vec(),
                _ => self.target(id).to_vec(),
            },
            device: self.device(id),
        }
    }
}
