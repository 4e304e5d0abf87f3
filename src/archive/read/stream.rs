//! Archives without an index, or with one that this agent does not know: they are read from start to end, as tar does.

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
    /// Of each entry in the stream, its row in the table; of one that a later one replaces, none.
    rows: Vec<Option<Id>>,
}

impl Stream {
    /// Reads all of it once, and checks every name. `passed_over`: there is a whole index, of a version that this agent does not know.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when anything in it is not sound; `FailureKind::Unsupported` when it is, and is nothing that can be restored.
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
        // Of one that was decompressed, or compressed anew, no part of the index is left.
        if marked && remains && !passed_over {
            return Err(damaged("the archive is damaged: its index, or the end of it, is cut off").and_next(salvage()));
        }
        let (table, rows) = builder.finish_stream(place)?;
        Ok((Self { file, path: path.to_owned(), rows }, table))
    }

    pub(in crate::archive) fn file(&self) -> &File {
        &self.file
    }

    /// Calls `each` for every entry that is in the table, with its row, in the order of the stream.
    ///
    /// # Errors
    /// Those of `each`, and as [`Stream::open`]: the file could have changed since.
    pub(in crate::archive) fn each(&self, mut each: impl FnMut(Id, &Member, &mut TarReader<Input>) -> Result<()>) -> Result<()> {
        let mut rows = self.rows.iter();
        read(&self.file, &self.path, |member, reader| {
            let row = rows.next().ok_or_else(|| damaged("the archive has changed since it was opened"))?;
            row.map_or(Ok(()), |row| each(row, &member, reader))
        })
        .map(drop)
    }
}

/// The sum of an entry's content; that of an empty file and of other kinds is nothing.
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

/// Reads all entries; true when there was an index among them, or the trailer of one.
fn read(file: &File, path: &Path, mut each: impl FnMut(Member, &mut TarReader<Input>) -> Result<()>) -> Result<bool> {
    let mut reader = TarReader::new(input::open(file, path)?);
    while let Some(member) = reader.next()? {
        interrupted()?;
        each(member, &mut reader)?;
    }
    reader.drain()?;
    Ok(reader.into_input().get_ref().has_index())
}
