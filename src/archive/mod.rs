//! tar + zstd archives of a tree, with full fidelity.
//!
//! An archive is a standard `.tar.zst`: GNU tar and zstd alone restore it (`tar --zstd -xp --xattrs --xattrs-include='*' --acls`). Behind
//! the data stands an index ([`index`]) that both pass over, and that lets a restore check every name before anything is changed, skip
//! what is equal without decompressing it, and a later backup take over what has not changed.
//!
//! Reading order: [`select`] (which part of a tree), [`entry`] (what is kept of a path), [`tree`] (a tree on disk); packing: [`walk`],
//! [`header`], [`content`], [`reuse`], [`pack`](mod@pack), [`sink`], [`check`], [`index`]; reading: [`block`], [`records`], [`parse`], [`frames`], [`input`], [`stream`], [`table`], [`verify`];
//! restoring: [`compare`], [`plan`], [`needed`], [`stage`], [`noted`], [`trial`], [`remove`], [`restore`].

mod acl;
mod block;
mod check;
mod compare;
mod content;
mod entry;
mod frames;
mod header;
mod index;
mod input;
mod needed;
mod noted;
mod pack;
mod parse;
mod plan;
mod records;
mod remove;
mod restore;
mod reuse;
pub(crate) mod select;
mod sink;
mod stage;
mod stream;
mod table;
mod tree;
mod trial;
mod verify;
mod walk;
mod work;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::error::{damaged, usage};
use crate::node::durable;
use crate::report::paths;
use entry::Kind;
use frames::{FrameReader, Frames};
use stream::Stream;
use table::{Builder, Table};
use tree::Tree;

pub use select::Selection;
pub use walk::BY_DESIGN;

/// Called with bytes done since the last call.
pub type Tick<'a> = &'a (dyn Fn(u64) + Sync);

/// [`Archive::read_file`] is for files of up to so many bytes.
const LARGEST_READ: u64 = 64 << 20;

/// What `pack` made.
#[derive(Debug, Clone, Serialize)]
pub struct Packed {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of file content, without holes.
    pub bytes: u64,
    /// Size of the archive file, bytes.
    pub stored: u64,
    /// SHA-256 of the archive file, hex.
    pub sha256: String,
    /// Of `bytes`, those taken over from the previous archive without reading them.
    pub reused: u64,
    /// Sockets, mount points, the archive itself, what vanished while it was being read, and files that never rested, which were packed as they
    /// were read last: path and why. Nothing else is ever left out.
    #[serde(serialize_with = "paths::with_reasons")]
    pub skipped: Vec<(PathBuf, String)>,
}

/// Packs a tree into `file` (0600). `previous` is an older archive of the same tree to take unchanged parts from; it may be `file` itself.
///
/// It is made beside `file`, synced, and renamed when it is whole: until then, and when this fails, what is there stays as it is.
/// The file is read back from the disk before this returns. Mount points below the tree are not entered. A file that changes while it is
/// read is read again.
///
/// # Errors
/// When something in the tree cannot be read; [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when an archive cannot hold it: it
/// is not left out, because a restore deletes what the archive does not have;
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) when it does not rest; or the archive cannot be written, or something other than a file is where it is to be; never
/// for a `previous` that is missing or damaged.
pub fn pack(tree: &Path, file: &Path, selection: &Selection, previous: Option<&Path>, tick: Tick<'_>) -> Result<Packed> {
    pack::pack(tree, file, selection, previous, tick)
}

/// Removes what a restore that was interrupted has left in `tree`, which nobody will finish: a directory with parts of files, secrets among
/// them. It stands at the root of the tree, and of each other file system on the way to what was restored: a `tree` of its own for this.
/// True when there was one. What the restore had changed so far is synced first: see [`Archive::restore`].
///
/// # Errors
/// When it cannot be synced or removed.
pub fn sweep(tree: &Path) -> Result<bool> {
    if !tree.try_exists().with_context(|| format!("looking for {}", tree.display()))? {
        return Ok(false);
    }
    stage::sweep_alone(&Tree::open(tree)?)
}

/// An archive, opened for reading, its names checked.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    table: Table,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// With an index: any part of it can be read, by several threads.
    Indexed(Arc<Frames>),
    /// Without one: it is read from start to end.
    Stream(Stream),
}

impl Source {
    fn file(&self) -> &File {
        match self {
            Self::Indexed(frames) => frames.file(),
            Self::Stream(stream) => stream.file(),
        }
    }
}

/// What a restore does or would do to one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Relative to the tree's root.
    #[serde(serialize_with = "paths::one")]
    pub path: PathBuf,
    /// What is done.
    pub action: Action,
    /// Why: which of content, mode, owner, … differ.
    pub why: String,
}

/// What is done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was not there.
    Create,
    /// Content or kind differ.
    Replace,
    /// Only owner, mode, times or attributes differ.
    Metadata,
    /// It is not in the archive.
    Delete,
}

/// What a restore did or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Created.
    pub created: u64,
    /// Replaced.
    pub replaced: u64,
    /// Metadata only.
    pub metadata: u64,
    /// Deleted.
    pub deleted: u64,
    /// Equal already.
    pub unchanged: u64,
    /// Bytes of content written.
    pub bytes: u64,
}

/// Whether a restore deletes what the archive does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// The tree becomes equal to the archive.
    Delete,
    /// What else is there stays (`extras.tar.zst`).
    Keep,
}

impl Archive {
    /// Opens it and checks every name in it; nothing is changed by an archive that does not open.
    ///
    /// Archives without an index, from GNU tar, are taken too: compressed with zstd or gzip, or not at all. They are read to the end here.
    /// Of what is in one several times the last is taken, as tar does.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is damaged or truncated, or has a name that leads out of the tree, is
    /// below something that is not a directory, or is a hard link to something that does not come before it.
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is sound, but compressed otherwise, of a kind of tar that is not
    /// taken, beyond a limit of this agent, or not a regular file: the message says what to do.
    pub fn open(file: &Path) -> Result<Self> {
        let open = || Self::open_file(durable::open_regular(file)?, file);
        let (table, source) = open().with_context(|| format!("opening the archive {}", file.display()))?;
        Ok(Self { path: file.to_owned(), table, source })
    }

    fn open_file(file: File, path: &Path) -> Result<(Table, Source)> {
        if let Some(opened) = Self::open_indexed(&file)? {
            return Ok(opened);
        }
        let without_index = index::is_of_other_version(&file)?;
        let (stream, table) = Stream::open(file, path, without_index)?;
        Ok((table, Source::Stream(stream)))
    }

    /// Opens one that has an index.
    fn open_indexed(file: &File) -> Result<Option<(Table, Source)>> {
        let Some(mut reader) = index::Reader::open(file)? else { return Ok(None) };
        let mut builder = Builder::default();
        while let Some(record) = reader.next()? {
            builder.add_record(record)?;
        }
        let (table, frames) = (builder.finish_index()?, std::mem::take(&mut reader.head.frames));
        check_places(&table, frames.len())?;
        let file = file.try_clone().context("opening the archive")?;
        Ok(Some((table, Source::Indexed(Arc::new(Frames::new(file, frames))))))
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

    /// True when it holds the directory itself that it is restored to. One that does not (`tar -cf FILE a b`) says nothing of what else lies directly
    /// in that: it stays.
    #[must_use]
    pub fn holds_root(&self) -> bool {
        self.table.find(b"").is_some_and(|root| !self.table.row(root).existence)
    }

    /// The paths in it, in order; that of the root is empty.
    pub fn paths(&self) -> impl Iterator<Item = &Path> + '_ {
        self.table.paths()
    }

    /// Where a symbolic link points; `None` when there is no such link.
    #[must_use]
    pub fn read_link(&self, path: &Path) -> Option<&Path> {
        use std::os::unix::ffi::OsStrExt;
        let target = self.table.target(self.table.find(path.as_os_str().as_bytes())?);
        (!target.is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(target)))
    }

    /// The content of one (small) regular file, when it is there.
    ///
    /// # Errors
    /// When it is damaged, or larger than 64 MiB.
    pub fn read_file(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        use std::os::unix::ffi::OsStrExt;
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
        let mut content = content::Content::default();
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
    /// As [`Archive::restore`], but for writing.
    pub fn compare(&self, tree: &Path, selection: &Selection, extra: Extra, tick: Tick<'_>) -> Result<(Vec<Change>, Counts)> {
        restore::compare(&self.table, &self.source, tree, selection, extra, tick)
            .with_context(|| format!("comparing {} with the archive {}", tree.display(), self.path.display()))
    }

    /// Makes `tree` (within `selection`) equal to the archive, and durable. The directory is made when it is not there.
    ///
    /// What is equal is not written to. What differs is written beside the tree's content (`.recovery-stage`), given its metadata, and
    /// renamed into place. The old or the new file is there at any instant, also after a power cut: what replaces something is on disk before
    /// it is renamed. Interrupted anywhere, it can be run again.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when a part that is needed is damaged, before anything is changed;
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when a mount point below the tree would have to be changed;
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when the archive itself is in what is to be restored;
    /// exit code 73 when the disk is full; or when something cannot be restored faithfully.
    pub fn restore(&self, tree: &Path, selection: &Selection, extra: Extra, tick: Tick<'_>) -> Result<Counts> {
        restore::restore(&self.table, &self.source, tree, selection, extra, tick)
            .with_context(|| format!("restoring {} from the archive {}", tree.display(), self.path.display()))
    }
}

/// Checks that the entries are in the data in the order of the index, each in a frame that there is.
fn check_places(table: &Table, frames: usize) -> Result<()> {
    let place = |id| (table.row(id).frame, table.row(id).offset);
    let in_order = table.ids().skip(1).all(|id| place(id - 1) < place(id));
    if in_order && table.ids().last().is_none_or(|id| (table.row(id).frame as usize) < frames) {
        return Ok(());
    }
    Err(damaged("the index of the archive is hostile or damaged: its entries are not where its frames are"))
}
