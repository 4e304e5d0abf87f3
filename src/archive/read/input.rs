//! The tar stream in a file: compressed with zstd or gzip, or not at all, recognised by its first bytes.
//!
//! A compressed archive can consist of several members, one after the other, and end with zeros (written by bsdtar into a pipe, by dd, or
//! on tape). gzip ignores the zeros; here they are ignored for zstd too.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::tar::BLOCK;
use crate::archive::unreadable::{Carried, unreadable};
use crate::compression::{BUFFER, Compression, Unzstd, WindowTooLarge, is_at_end, is_tar, word};
use crate::error::unsupported;
use crate::formats::index as layout;
use crate::node::clock::interrupted;

/// A tar stream.
pub(in crate::archive) type Input = BufReader<Unpacked>;

/// Opens the tar stream that is in `file`; `path` is its name, for messages.
///
/// # Errors
/// `FailureKind::Unsupported` when it has another compression.
pub(in crate::archive) fn open(file: &File, path: &Path) -> Result<Input> {
    let mut head = [0; BLOCK];
    let len = read_at(file, 0, &mut head).map_err(unreadable)?;
    let start = Start { file: file.try_clone().context("reading the archive")?, at: 0 };
    // The first entry's name can be anything, so a tar header is recognised before all magic numbers.
    let is_tar = is_tar(&head[..len]);
    let compression = if is_tar { None } else { Compression::of(&head[..len]) };
    let unpacked = match compression {
        None if is_tar => Unpacked::Plain(start),
        None => {
            refuse_others(file, &head[..len], path)?;
            Unpacked::Plain(start)
        }
        Some(Compression { name: "zstd", .. }) => {
            let frames = Unzstd::new(start).context("preparing to decompress")?;
            Unpacked::Zstd(Box::new(Zstd { frames, indexed: false }))
        }
        Some(Compression { name: "gzip", .. }) => {
            Unpacked::Gzip(Some(Box::new(flate2::bufread::GzDecoder::new(BufReader::with_capacity(BUFFER, start)))))
        }
        Some(other) => return Err(not_taken(other, path)),
    };
    Ok(BufReader::with_capacity(BUFFER, unpacked))
}

/// Reads the bytes from `at` on, up to the length of `into`, or fewer at the end of the file.
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
        "it is compressed with {name}, which is not supported; decompress it, and use the result: {} > {}",
        other.command(path),
        word(&tar_of(path))
    ))
}

/// The error for an archive of another kind that bsdtar can convert to tar.
fn not_tar(name: &str, path: &Path) -> anyhow::Error {
    unsupported(format!(
        "it is an archive of the kind {name}, which is not supported; make a tar archive of it: bsdtar -cf {} @{}",
        word(&tar_of(path)),
        word(path)
    ))
}

/// The name for a tar archive made from `path`.
fn tar_of(path: &Path) -> PathBuf {
    let tar = path.with_extension("");
    if tar.extension().is_some_and(|extension| extension == "tar") && tar != path {
        return tar;
    }
    let mut tar = path.as_os_str().to_owned();
    tar.push(".tar");
    tar.into()
}

/// Refuses uncompressed archives and lists of files of other kinds, each by its name.
fn refuse_others(file: &File, head: &[u8], path: &Path) -> Result<()> {
    // An ISO image: its volume descriptors begin in sector 16 (ECMA-119, 6.7.1 and 8.1); before them can be anything.
    let mut volume = [0; 5];
    let read = read_at(file, 16 * 2048 + 1, &mut volume).map_err(unreadable)?;
    if volume[..read] == *b"CD001" {
        return Err(not_tar("ISO 9660", path));
    }
    if head.starts_with(b"#mtree") {
        return Err(unsupported(format!(
            "it is a list of files (mtree), without their content; where the files are, make a tar archive of them: bsdtar -cf {} @{}",
            word(&tar_of(path)),
            word(path)
        )));
    }
    // GNU's begins with the name of a shell, others with this sentence, in a comment or after a colon.
    if !contains(&head[..head.len().min(64)], b"This is a shell archive") {
        return Ok(());
    }
    Err(unsupported(format!(
        "it is a shell archive, which is a program and not supported; if you trust it, run it in an empty directory, and pack that \
         directory: sh {}",
        word(path)
    )))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The tar stream of a file.
pub(in crate::archive) enum Unpacked {
    Plain(Start),
    /// True when nothing follows the last member.
    Gzip(Option<Box<flate2::bufread::GzDecoder<BufReader<Start>>>>),
    Zstd(Box<Zstd>),
}

impl Unpacked {
    /// True when an index, or its trailer, was among the bytes read. An archive that was compressed again has neither.
    pub(in crate::archive) fn has_index(&self) -> bool {
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

/// Frames of zstd, one after the other; an index of ours may be among them.
pub(in crate::archive) struct Zstd {
    frames: Unzstd<Start>,
    /// True when an index was skipped.
    indexed: bool,
}

impl Zstd {
    /// True when an index or its trailer comes next.
    fn is_at_index(&self) -> io::Result<bool> {
        let (raw, mut head) = (self.frames.raw(), [0; layout::FRAME_HEAD]);
        let start = raw.get_ref();
        let len = read_at(&start.file, start.at - raw.buffer().len() as u64, &mut head)?;
        Ok(layout::is_ours(&head[..len]))
    }
}

impl Read for Zstd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.frames.is_between() {
                if self.frames.is_at_end()? {
                    return Ok(0);
                }
                self.indexed |= self.is_at_index()?;
            }
            let read = self.frames.read_frame(into).map_err(with_the_way_on)?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
        }
    }
}

/// Adds to an error what to do about it, where that is known.
fn with_the_way_on(error: io::Error) -> io::Error {
    if !WindowTooLarge::is_cause_of(&error) {
        return error;
    }
    io::Error::other(Carried(unsupported(format!(
        "{error}; decompress it first, and use the result: zstd -d --long=31 ARCHIVE -o FILE.tar"
    ))))
}

/// A file, read from its start. The handle's own position is not used, because clones of the handle share it.
pub(in crate::archive) struct Start {
    file: File,
    at: u64,
}

impl Read for Start {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        interrupted().map_err(|error| io::Error::other(Carried(error)))?;
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
