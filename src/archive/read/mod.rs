//! Opening an archive: its entries, with every name checked, and where its data is.
//!
//! Reading order: tar: [`block`] (one header block), [`records`] (what extended headers say), [`member`] (both combined: an entry),
//! [`sparse`] (the map of a sparse file), [`reader`] (entry after entry); the archive as a whole: [`table`] (all entries in memory),
//! [`builder`] (makes the table), [`input`] (the tar stream in a file), [`stream`] (an archive without an index), [`verify`] (all of it, or
//! one file).

mod block;
mod builder;
mod input;
mod member;
mod records;
mod sparse;

pub(super) mod reader;
pub(super) mod stream;
pub(super) mod table;
pub(super) mod verify;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use self::builder::Builder;
use self::stream::Stream;
use self::table::Table;
use super::frames::Frames;
use super::index::{self, Opened};
use crate::error::damaged;
use crate::formats::index::FORMAT;

/// Where the data of an archive comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// With an index: several threads can read any part of it.
    Indexed(Arc<Frames>),
    /// Without an index: it is read from start to end.
    Stream(Stream),
}

impl Source {
    /// The archive's file.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::Indexed(frames) => frames.file(),
            Self::Stream(stream) => stream.file(),
        }
    }
}

/// Opens the archive in `file`; `path` is its name in messages.
///
/// # Errors
/// As [`Archive::open`](super::Archive::open).
pub(super) fn open(file: File, path: &Path) -> Result<(Table, Source)> {
    let version = match index::Reader::open(&file)? {
        Opened::Index(reader) => return read_index(reader, file),
        Opened::OfVersion(version) => Some(version),
        Opened::Missing => None,
    };
    if let Some(version) = version {
        tracing::warn!(
            "the index of the archive {} is of version {version}, and this agent, recovery {}, knows version {}: the archive is read from \
             start to end, which takes longer",
            path.display(),
            env!("CARGO_PKG_VERSION"),
            FORMAT.version
        );
    }
    let (stream, table) = Stream::open(file, path, version.is_some())?;
    Ok((table, Source::Stream(stream)))
}

/// Checks that a new archive in `file` opens with its index.
///
/// # Errors
/// When it does not.
pub(super) fn check_index(file: &File) -> Result<()> {
    let Opened::Index(reader) = index::Reader::open(file)? else { anyhow::bail!("its index is missing") };
    read_index(reader, file.try_clone()?).map(drop)
}

/// Reads and checks the whole index.
fn read_index(mut reader: Box<index::Reader>, file: File) -> Result<(Table, Source)> {
    let mut builder = Builder::default();
    while let Some(record) = reader.next()? {
        builder.add_record(record)?;
    }
    let (table, frames) = (builder.finish_index()?, reader.head.frames);
    check_places(&table, frames.len())?;
    Ok((table, Source::Indexed(Arc::new(Frames::new(file, frames)))))
}

/// Checks that the entries are in the data in the order of the index, each in a frame that exists.
fn check_places(table: &Table, frames: usize) -> Result<()> {
    let place = |id| (table.row(id).frame, table.row(id).offset);
    let in_order = table.ids().skip(1).all(|id| place(id - 1) < place(id));
    if in_order && table.ids().last().is_none_or(|id| (table.row(id).frame as usize) < frames) {
        return Ok(());
    }
    Err(damaged("the index of the archive is hostile or damaged: its entries are not where its frames are"))
}
