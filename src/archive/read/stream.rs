//! Archives without an index, or with one of an unknown version: they are read from start to end, as tar does.

use std::fs::File;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::builder::Builder;
use super::input::{self, Input};
use super::member::Member;
use super::reader::TarReader;
use super::table::{Id, Table};
use crate::archive::content::{Content, Sum};
use crate::archive::entry::Kind;
use crate::archive::index::salvage;
use crate::error::{AndNext, damaged};
use crate::node::clock::interrupted;

/// An archive without an index.
#[derive(Debug)]
pub(in crate::archive) struct Stream {
    file: File,
    path: PathBuf,
    /// The table's row of each entry in the stream; `None` for an entry that a later one replaces.
    rows: Vec<Option<Id>>,
}

impl Stream {
    /// Reads the whole stream once, and checks every name. `passed_over`: it has a whole index, of an unknown version.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when anything in it is invalid; `FailureKind::Unsupported` when it is sound, but cannot be restored.
    pub(in crate::archive) fn open(file: File, path: &Path, passed_over: bool) -> Result<(Self, Table)> {
        let mut builder = Builder::default();
        let (mut place, mut marked) = (0, false);
        let remains = read(&file, path, |member, reader| {
            marked |= member.indexed && place == 0;
            let sum = sum(&member, reader)?;
            builder.add_member(member.entry, member.existence, sum, place)?;
            place += 1;
            Ok(())
        })?;
        // An archive that was decompressed, or compressed again, has no part of the index left.
        if marked && remains && !passed_over {
            return Err(damaged("the archive is damaged: its index, or the end of it, is cut off").and_next(salvage()));
        }
        let (table, rows) = builder.finish_stream(place)?;
        Ok((Self { file, path: path.to_owned(), rows }, table))
    }

    pub(in crate::archive) fn file(&self) -> &File {
        &self.file
    }

    /// Calls `each` for every entry in the table, with its row, in the order of the stream.
    ///
    /// # Errors
    /// The errors of `each`, and those of [`Stream::open`]: the file may have changed since.
    pub(in crate::archive) fn each(&self, mut each: impl FnMut(Id, &Member, &mut TarReader<Input>) -> Result<()>) -> Result<()> {
        let mut rows = self.rows.iter();
        read(&self.file, &self.path, |member, reader| {
            let row = rows.next().ok_or_else(|| damaged("the archive has changed since it was opened"))?;
            row.map_or(Ok(()), |row| each(row, &member, reader))
        })
        .map(drop)
    }
}

/// The sum of an entry's content; the default for an empty file and for other kinds.
pub(in crate::archive) fn sum<R: BufRead>(member: &Member, reader: &mut TarReader<R>) -> Result<Sum> {
    if member.entry.kind != Kind::File || member.entry.size == 0 {
        return Ok(Sum::default());
    }
    let mut content = Content::default();
    reader.content(member, &mut |offset, bytes| {
        content.add(offset, bytes);
        Ok(())
    })?;
    Ok(content.finish(member.entry.size))
}

/// Reads all entries; true when an index, or its trailer, was among them.
fn read(file: &File, path: &Path, mut each: impl FnMut(Member, &mut TarReader<Input>) -> Result<()>) -> Result<bool> {
    let mut reader = TarReader::new(input::open(file, path)?);
    while let Some(member) = reader.next()? {
        interrupted()?;
        each(member, &mut reader)?;
    }
    reader.drain()?;
    Ok(reader.into_input().get_ref().has_index())
}
