//! Archives without an index: made by GNU tar, compressed or not. They are read from start to end.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::content::{Content, Sum};
use super::entry::Kind;
use super::parse::{Member, TarReader, unreadable};
use super::table::{Builder, Id, Table};
use crate::error::damaged;
use crate::node::clock::interrupted;

/// As far back as a compressed archive may refer, as a power of two: memory that the decompressor needs. `zstd` goes beyond it only when asked
/// (`--long`, `--ultra`).
const WINDOW: u32 = 25;

/// An archive without an index.
#[derive(Debug)]
pub(super) struct Stream {
    file: File,
    /// Of each entry in the stream, its row in the table.
    rows: Vec<Id>,
}

impl Stream {
    /// Reads all of it once, and checks every name.
    ///
    /// # Errors
    /// `Failure::Damaged` when anything in it is not sound.
    pub(super) fn open(file: File) -> Result<(Self, Table)> {
        let mut builder = Builder::default();
        let mut place = 0;
        read(&file, |member, reader| {
            if member.indexed && place == 0 {
                return Err(damaged("the archive is damaged: its index, or the end of it, is cut off"));
            }
            let sum = sum(&member, reader)?;
            builder.add_member(member.entry, sum, place)?;
            place += 1;
            Ok(())
        })?;
        let (table, rows) = builder.finish_stream()?;
        Ok((Self { file, rows }, table))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Calls `each` for every entry, with its row, in the order of the stream.
    ///
    /// # Errors
    /// Those of `each`, and as [`Stream::open`]: the file could have changed since.
    pub(super) fn each(&self, mut each: impl FnMut(Id, &Member, &mut TarReader<Box<dyn BufRead>>) -> Result<()>) -> Result<()> {
        let mut rows = self.rows.iter();
        read(&self.file, |member, reader| {
            let row = rows.next().ok_or_else(|| damaged("the archive has changed since it was opened"))?;
            each(*row, &member, reader)
        })
    }
}

/// The sum of an entry's content; that of an empty file and of other kinds is nothing.
pub(super) fn sum<R: BufRead>(member: &Member, reader: &mut TarReader<R>) -> Result<Sum> {
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

fn read(file: &File, mut each: impl FnMut(Member, &mut TarReader<Box<dyn BufRead>>) -> Result<()>) -> Result<()> {
    let mut reader = TarReader::new(input(file)?);
    while let Some(member) = reader.next()? {
        interrupted()?;
        each(member, &mut reader)?;
    }
    reader.drain()
}

/// The tar stream: compressed with zstd or gzip, or not at all, told by the first bytes.
fn input(file: &File) -> Result<Box<dyn BufRead>> {
    const BUFFER: usize = 128 << 10;
    let mut magic = [0; 4];
    let len = file.read_at(&mut magic, 0).map_err(unreadable)?;
    let start = Start { file: file.try_clone().context("reading the archive")?, at: 0 };
    let raw = BufReader::with_capacity(BUFFER, start);
    Ok(match &magic[..len] {
        // A frame (RFC 8878, 3.1.1), or a skippable one.
        [0x28, 0xB5, 0x2F, 0xFD] | [0x50..=0x5F, 0x2A, 0x4D, 0x18] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(raw).context("preparing to decompress")?;
            decoder.window_log_max(WINDOW).context("preparing to decompress")?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        [0x1F, 0x8B, ..] => Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(raw))),
        _ => Box::new(raw),
    })
}

/// A file from its start, whatever its position, which a clone shares.
struct Start {
    file: File,
    at: u64,
}

impl std::io::Read for Start {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
