//! The tar stream in a file: compressed with zstd or gzip, or not at all, told by its first bytes.
//!
//! A compressed archive can be of several members, one after the other, and be filled up with zeros, as bsdtar into a pipe, dd and tapes
//! do it: gzip passes over them, and so is done here for both.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::BLOCK;
use super::parse::{Carried, is_header, unreadable};
use crate::compression::{Compression, word};
use crate::error::unsupported;
use crate::node::clock::interrupted;

/// As far back as a compressed archive may refer, as a power of two: memory that is taken for an archive that asks for it. `zstd -d` and tar
/// take no more either, unless they are asked to (`--long=31`).
const WINDOW: u32 = 27;
const BUFFER: usize = 128 << 10;
/// What the zstd library says of a frame that goes beyond [`WINDOW`] (`ZSTD_error_frameParameter_windowTooLarge`).
const TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// A tar stream.
pub(super) type Input = BufReader<Unpacked>;

/// Opens the tar stream that is in `file`; `path` is its name, for messages.
///
/// # Errors
/// `FailureKind::Unsupported` when it is compressed with something else.
pub(super) fn open(file: &File, path: &Path) -> Result<Input> {
    let mut head = [0; BLOCK];
    let len = head_of(file, &mut head).map_err(unreadable)?;
    let start = Start { file: file.try_clone().context("reading the archive")?, at: 0 };
    // The name of a first entry can be anything, so a tar header comes before all magic numbers.
    let compression = if len == BLOCK && is_header(&head) { None } else { Compression::of(&head[..len]) };
    let unpacked = match compression {
        None => Unpacked::Plain(start),
        Some(Compression { name: "zstd", .. }) => Unpacked::Zstd(Box::new(Zstd::new(start)?)),
        Some(Compression { name: "gzip", .. }) => {
            Unpacked::Gzip(Some(Box::new(flate2::bufread::GzDecoder::new(BufReader::with_capacity(BUFFER, start)))))
        }
        Some(other) => return Err(not_taken(other, path)),
    };
    Ok(BufReader::with_capacity(BUFFER, unpacked))
}

/// Reads as much as there is, up to a block.
fn head_of(file: &File, head: &mut [u8; BLOCK]) -> io::Result<usize> {
    let mut len = 0;
    while len < BLOCK {
        match file.read_at(&mut head[len..], len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

fn not_taken(other: Compression, path: &Path) -> anyhow::Error {
    let mut tar = path.with_extension("");
    if tar.extension().is_none_or(|extension| extension != "tar") || tar == path {
        tar = path.as_os_str().to_owned().into();
        tar.as_mut_os_string().push(".tar");
    }
    let name = other.name;
    if other.holds_files {
        return unsupported(format!(
            "it is a {name} archive, which is not taken; make a tar archive of it: bsdtar -cf {} @{}",
            word(&tar),
            word(path)
        ));
    }
    unsupported(format!(
        "it is compressed with {name}, which is not taken; decompress it, and use what comes out: {} > {}",
        other.command(path),
        word(&tar)
    ))
}

/// What comes out of a file.
pub(super) enum Unpacked {
    Plain(Start),
    /// Nothing after the last member.
    Gzip(Option<Box<flate2::bufread::GzDecoder<BufReader<Start>>>>),
    Zstd(Box<Zstd>),
}

impl Unpacked {
    /// There was a skippable frame among what has been read: zstd keeps none of them when an archive is compressed anew.
    pub(super) fn has_skipped(&self) -> bool {
        matches!(self, Self::Zstd(zstd) if zstd.skipped)
    }
}

impl Read for Unpacked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(start) => start.read(into),
            Self::Zstd(zstd) => zstd.read(into),
            Self::Gzip(member) => loop {
                let Some(mut decoder) = member.take() else { return Ok(0) };
                let read = decoder.read(into)?;
                if read > 0 || into.is_empty() {
                    *member = Some(decoder);
                    return Ok(read);
                }
                let mut raw = decoder.into_inner();
                if !is_at_end(&mut raw)? {
                    *member = Some(Box::new(flate2::bufread::GzDecoder::new(raw)));
                }
            },
        }
    }
}

/// True when nothing follows a member, or nothing but zeros.
fn is_at_end(raw: &mut impl BufRead) -> io::Result<bool> {
    let mut padded = false;
    loop {
        interrupted().map_err(|error| io::Error::other(Carried(error)))?;
        let chunk = raw.fill_buf()?;
        match chunk.first() {
            None => return Ok(true),
            Some(0) if chunk.iter().all(|byte| *byte == 0) => padded = true,
            Some(first) if padded || *first == 0 => return Err(io::Error::other("there is something behind the zeros that fill it up")),
            Some(_) => return Ok(false),
        }
        let len = chunk.len();
        raw.consume(len);
    }
}

/// Frames of zstd, one after the other.
pub(super) struct Zstd {
    raw: BufReader<Start>,
    decoder: Decoder<'static>,
    /// Before a frame, or behind the last.
    between: bool,
    skipped: bool,
}

impl Zstd {
    fn new(start: Start) -> Result<Self> {
        let mut decoder = Decoder::new().context("preparing to decompress")?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW)).context("preparing to decompress")?;
        Ok(Self { raw: BufReader::with_capacity(BUFFER, start), decoder, between: true, skipped: false })
    }
}

impl Read for Zstd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.between && is_at_end(&mut self.raw)? {
                return Ok(0);
            }
            let packed = self.raw.fill_buf()?;
            if self.between {
                // The first byte tells the magic number of a skippable frame (RFC 8878, 3.1.2) from that of any other.
                self.skipped |= packed.first().is_some_and(|byte| matches!(byte, 0x50..=0x5F));
            }
            let (mut from, mut to) = (InBuffer::around(packed), OutBuffer::around(&mut *into));
            let hint = self.decoder.run(&mut from, &mut to).map_err(refused)?;
            let (taken, read, ended) = (from.pos(), to.pos(), packed.is_empty());
            self.raw.consume(taken);
            self.between = hint == 0;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            if ended && !self.between {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn refused(error: io::Error) -> io::Error {
    if error.to_string() != TOO_LARGE {
        return error;
    }
    io::Error::other(Carried(unsupported(format!(
        "more than {} MiB of memory are needed to decompress it; decompress it first, and use what comes out: zstd -d --long=31 ARCHIVE -o FILE.tar",
        (1 << WINDOW) >> 20
    ))))
}

/// A file from its start, whatever its position, which a clone shares.
pub(super) struct Start {
    file: File,
    at: u64,
}

impl Read for Start {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
