//! tar + zstd archives of a tree, with full fidelity.
//!
//! An archive is a standard `.tar.zst`: GNU tar and zstd alone restore it (`tar --zstd -xp --xattrs --xattrs-include='*' --acls`). After
//! the data follows an index ([`index`]) that both programs skip. With it, a restore checks every name before it changes anything and skips
//! equal files without decompressing them, and a later backup takes over what has not changed.
//!
//! Reading order: what all rooms share: [`select`] (which part of a tree), [`path`] and [`entry`] (what is kept of one), [`xattrs`],
//! [`acl`]; [`tree`], [`found`], [`inode`], [`file_system`] (a tree on disk); [`tar`], [`content`] (the hash of a file), [`frames`],
//! [`index`], [`unreadable`] (an archive in its file); [`work`] (several threads). Then the rooms: [`pack`](mod@pack), [`read`],
//! [`restore`].

mod acl;
mod content;
mod entry;
mod file_system;
mod found;
mod frames;
mod index;
mod inode;
mod pack;
mod path;
mod read;
mod restore;
pub(crate) mod select;
mod tar;
mod tree;
mod unreadable;
mod work;
mod xattrs;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::content::Content;
use self::entry::Kind;
use self::frames::FrameReader;
use self::read::table::Table;
use self::read::{Source, verify};
use crate::error::{damaged, usage};
use crate::node::durable;

pub use self::pack::{Packed, Skipped, pack};
pub(crate) use self::restore::remove_all;
pub use self::restore::{Action, Change, Counts, Extra, sweep};
pub use self::select::Selection;
pub use self::work::Tick;

/// The largest file that [`Archive::read_file`] reads, bytes.
const LARGEST_READ: u64 = 64 << 20;

/// An archive, opened for reading, with its names checked.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    table: Table,
    source: Source,
}

impl Archive {
    /// Opens an archive and checks every name in it, before anything is changed.
    ///
    /// Archives without an index, such as GNU tar's, are accepted too: compressed with zstd or gzip, or not at all. They are read to the
    /// end here. If a path is in one several times, the last entry counts, as with tar.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is damaged or truncated, or has a name that leads out of the
    /// tree, that is below something other than a directory, or that is a hard link to something that does not come before it.
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is sound, but has another compression, an unsupported
    /// kind of tar, more than a limit of this agent allows, or is not a regular file: the message says what to do.
    pub fn open(file: &Path) -> Result<Self> {
        let open = || read::open(durable::open_regular(file)?, file);
        let (table, source) = open().with_context(|| format!("opening the archive {}", file.display()))?;
        Ok(Self { path: file.to_owned(), table, source })
    }

    /// Decompresses all of it and checks every content against the index: `verify`.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when anything is not as it was packed.
    pub fn verify(&self, tick: Tick<'_>) -> Result<()> {
        match &self.source {
            Source::Indexed(frames) => verify::indexed(frames, &self.table, tick),
            Source::Stream(stream) => verify::stream(stream, &self.table, tick),
        }
        .with_context(|| format!("verifying the archive {}", self.path.display()))
    }

    /// True when the archive has an entry for the root of the tree. One without (`tar -cf FILE a b`) says nothing about other files
    /// directly in the root, so a restore keeps them.
    #[must_use]
    pub fn holds_root(&self) -> bool {
        self.table.find(b"").is_some_and(|root| !self.table.row(root).existence)
    }

    /// The paths in the archive, in order; the root's path is empty.
    pub fn paths(&self) -> impl Iterator<Item = &Path> + '_ {
        self.table.paths()
    }

    /// The target of a symbolic link; `None` when there is no such link.
    #[must_use]
    pub fn read_link(&self, path: &Path) -> Option<&Path> {
        let target = self.table.target(self.table.find(path.as_os_str().as_bytes())?);
        (!target.is_empty()).then(|| Path::new(OsStr::from_bytes(target)))
    }

    /// The content of one (small) regular file; `None` when it is not in the archive.
    ///
    /// # Errors
    /// When it is damaged, or larger than 64 MiB.
    pub fn read_file(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let Some(id) = self.table.find(path.as_os_str().as_bytes()).map(|id| self.table.leader(id)) else { return Ok(None) };
        let row = self.table.row(id);
        if row.kind != Kind::File || row.existence {
            return Ok(None);
        }
        if row.size > LARGEST_READ {
            return Err(usage(format!("{} is {} bytes: too large to be read into memory", path.display(), row.size)));
        }
        let mut bytes = vec![0; usize::try_from(row.size)?];
        let mut sink = |offset, chunk: &[u8]| {
            let at = usize::try_from(offset)?;
            bytes.get_mut(at..at + chunk.len()).context("reading beyond the end of the file")?.copy_from_slice(chunk);
            Ok(())
        };
        match &self.source {
            Source::Indexed(frames) => verify::content(&mut FrameReader::new(frames.clone())?, &self.table, id, &mut sink),
            Source::Stream(stream) => stream.each(|row, member, reader| if row == id { reader.content(member, &mut sink) } else { Ok(()) }),
        }
        .with_context(|| format!("reading {} from the archive {}", path.display(), self.path.display()))?;
        let mut content = Content::default();
        content.add(0, &bytes);
        if row.size > 0 && content.finish(row.size).hash != row.sum.hash {
            return Err(damaged(format!("the archive {} is damaged: the content of {}", self.path.display(), path.display())));
        }
        Ok(Some(bytes))
    }

    /// Bytes of file content, without holes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.table.bytes()
    }

    /// What a restore would do; nothing is changed.
    ///
    /// # Errors
    /// As [`Archive::restore`], except for errors of writing.
    pub fn compare(&self, tree: &Path, selection: &Selection, extra: Extra, tick: Tick<'_>) -> Result<(Vec<Change>, Counts)> {
        restore::compare(&self.table, &self.source, tree, selection, extra, tick)
            .with_context(|| format!("comparing {} with the archive {}", tree.display(), self.path.display()))
    }

    /// Makes `tree` (within `selection`) equal to the archive, durably. The directory is made if it does not exist.
    ///
    /// What is equal is not written to. What differs is written to a folder of its own (`.recovery-stage`), given its metadata, synced, and
    /// then renamed into place: the old or the new file is there at any moment, also after a power cut. After an interruption it can be run
    /// again.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when a needed part is damaged, before anything is changed;
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when a mount point below the tree would have to be changed;
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when the archive itself is inside what is to be restored;
    /// exit code 73 when the disk is full; or when something cannot be restored faithfully.
    pub fn restore(&self, tree: &Path, selection: &Selection, extra: Extra, tick: Tick<'_>) -> Result<Counts> {
        restore::restore(&self.table, &self.source, tree, selection, extra, tick)
            .with_context(|| format!("restoring {} from the archive {}", tree.display(), self.path.display()))
    }
}
