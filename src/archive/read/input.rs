//! The tar stream in a file: compressed with zstd or gzip, or not at all, told by its first bytes.
//!
//! A compressed archive can be of several members, one after the other, and be filled up with zeros, as bsdtar into a pipe, dd and tapes
//! do it: gzip passes over them, and so is done here for both.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::header::BLOCK;
use super::index;
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
    let len = read_at(file, 0, &mut head).map_err(unreadable)?;
    let start = Start { file: file.try_clone().context("reading the archive")?, at: 0 };
    // The name of a first entry can be anything, so a tar header comes before all magic numbers.
    let is_tar = len == BLOCK && is_header(&head);
    let compression = if is_tar { None } else { Compression::of(&head[..len]) };
    let unpacked = match compression {
        None if is_tar => Unpacked::Plain(start),
        None => {
            refuse_others(file, &head[..len], path)?;
            Unpacked::Plain(start)
        }
        Some(Compression { name: "zstd", .. }) => Unpacked::Zstd(Box::new(Zstd::new(start)?)),
        Some(Compression { name: "gzip", .. }) => {
            Unpacked::Gzip(Some(Box::new(flate2::bufread::GzDecoder::new(BufReader::with_capacity(BUFFER, start)))))
        }
        Some(other) => return Err(not_taken(other, path)),
    };
    Ok(BufReader::with_capacity(BUFFER, unpacked))
}

/// Reads as much as there is from a place on, up to the length of `into`.
fn read_at(file: &File, at: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < into.len() {
        match file.read_at(&mut into[len..], at + len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

fn not_taken(other: Compression, path: &Path) -> anyhow::Error {
    let name = other.name;
    if other.holds_files {
        return not_tar(name, path);
    }
    unsupported(format!(
        "it is compressed with {name}, which is not taken; decompress it, and use what comes out: {} > {}",
        other.command(path),
        word(&tar_of(path))
    ))
}

/// It is an archive of another kind, of which bsdtar makes a tar archive.
fn not_tar(name: &str, path: &Path) -> anyhow::Error {
    unsupported(format!(
        "it is an archive of the kind {name}, which is not taken; make a tar archive of it: bsdtar -cf {} @{}",
        word(&tar_of(path)),
        word(path)
    ))
}

/// What a tar archive that is made of `path` is called.
fn tar_of(path: &Path) -> PathBuf {
    let tar = path.with_extension("");
    if tar.extension().is_some_and(|extension| extension == "tar") && tar != path {
        return tar;
    }
    let mut tar = path.as_os_str().to_owned();
    tar.push(".tar");
    tar.into()
}

/// Names what is neither tar nor packed, and holds files or tells of them.
fn refuse_others(file: &File, head: &[u8], path: &Path) -> Result<()> {
    // Its volume descriptors begin in sector 16 (ECMA-119, 6.7.1 and 8.1); what is before them can be anything.
    let mut volume = [0; 5];
    let read = read_at(file, 16 * 2048 + 1, &mut volume).map_err(unreadable)?;
    if volume[..read] == *b"CD001" {
        return Err(not_tar("ISO 9660", path));
    }
    if head.starts_with(b"#mtree") {
        return Err(unsupported(format!(
            "it is a list of files (mtree), without what is in them; where they are, make a tar archive of them: bsdtar -cf {} @{}",
            word(&tar_of(path)),
            word(path)
        )));
    }
    // GNU's begins with the name of a shell, others with this, in a comment or after a colon.
    if !contains(&head[..head.len().min(64)], b"This is a shell archive") {
        return Ok(());
    }
    Err(unsupported(format!(
        "it is a shell archive, which is a program and not taken; if you trust it, run it in an empty directory, and pack that: sh {}",
        word(path)
    )))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What comes out of a file.
pub(super) enum Unpacked {
    Plain(Start),
    /// Nothing after the last member.
    Gzip(Option<Box<flate2::bufread::GzDecoder<BufReader<Start>>>>),
    Zstd(Box<Zstd>),
}

impl Unpacked {
    /// There was an index among what has been read, or its trailer: nothing is left of them when an archive is compressed anew.
    pub(super) fn has_index(&self) -> bool {
        matches!(self, Self::Zstd(zstd) if zstd.indexed)
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
    /// An index was passed over.
    indexed: bool,
}

impl Zstd {
    fn new(start: Start) -> Result<Self> {
        let mut decoder = Decoder::new().context("preparing to decompress")?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW)).context("preparing to decompress")?;
        Ok(Self { raw: BufReader::with_capacity(BUFFER, start), decoder, between: true, indexed: false })
    }

    /// True when what comes next is an index, or its trailer.
    fn is_at_index(&self) -> io::Result<bool> {
        let (start, mut head) = (self.raw.get_ref(), [0; index::FRAME_HEAD]);
        let len = read_at(&start.file, start.at - self.raw.buffer().len() as u64, &mut head)?;
        Ok(index::is_ours(&head[..len]))
    }
}

impl Read for Zstd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.between && is_at_end(&mut self.raw)? {
                return Ok(0);
            }
            if self.between {
                self.indexed |= self.is_at_index()?;
            }
            let packed = self.raw.fill_buf()?;
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
