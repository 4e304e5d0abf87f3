//! The index at the end of an archive, in skippable frames that zstd and GNU tar pass over.
//!
//! An archive is, in this order:
//!
//! | what | as | holds |
//! |---|---|---|
//! | data | zstd frames, independent of each other | the tar stream |
//! | index | a skippable frame | [`MAGIC`], version, [`Head`] and then one [`Record`] per entry |
//! | end | a zstd frame | the tar end mark |
//! | trailer | a skippable frame of fixed length | where the index is, and its BLAKE3 |
//!
//! The end mark stands behind the index so that an archive that is cut off anywhere lacks either it or the trailer. The first entry bears
//! the mark [`INDEXED`](super::tar::INDEXED): an archive that has the mark and no trailer is damaged, not one without an index.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::content::Hash;
use super::entry::{Entry, Time};
use super::tar::BLOCK;
use super::unreadable::unreadable;
use crate::error::damaged;

/// The version of the index. One of another version is passed over, and the archive read as GNU tar would.
const VERSION: u32 = 2;
const MAGIC: &[u8; 8] = b"RECOVIDX";
const TRAILER_MAGIC: &[u8; 8] = b"RECOVEND";
/// So many bytes tell a frame of ours: the header of a skippable frame, and our magic.
pub(super) const FRAME_HEAD: usize = 16;
/// The first of the sixteen magic numbers of skippable frames (RFC 8878, 3.1.2).
const SKIPPABLE: u32 = 0x184D_2A50;
/// Skippable frame header, magic, version, offset and length of the index's content, its BLAKE3, and the first bytes of the BLAKE3 of it all.
pub(super) const TRAILER_LEN: usize = 8 + 8 + 4 + 8 + 8 + 32 + 16;
/// What one record can come to: a path, a target, and all the attributes that the kernel allows an inode.
const LARGEST_RECORD: u32 = 1 << 20;
/// What the head can come to: some 600,000 frames.
const LARGEST_HEAD: u64 = 32 << 20;
/// The records are read with a window of so many bytes, as a power of two: more than they are written with.
const WINDOW: u32 = 21;
/// No frame is longer, compressed or not: memory stays bounded whatever an archive says.
pub(super) const LARGEST_FRAME: u32 = 8 << 20;

/// One frame of data: an independent piece of the tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frame {
    /// Where it starts in the file.
    pub(super) offset: u64,
    /// Its length there.
    pub(super) len: u32,
    /// Its length when decompressed.
    pub(super) plain_len: u32,
    /// BLAKE3 of it as it is in the file.
    pub(super) hash: Hash,
}

/// What the index says of the archive as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// When the tree was begun to be read, by the clock of this machine.
    pub(super) started: Time,
    /// How many records follow.
    pub(super) entries: u32,
    /// The frames that hold the tar stream.
    pub(super) frames: Vec<Frame>,
}

/// What the index says of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) entry: Entry,
    /// Only that it exists is meant: a parent of what was selected, or a mount point, which was not entered.
    pub(super) existence: bool,
    /// Of a file that is not empty.
    pub(super) hash: Hash,
    /// Bytes of a file's content that are in the archive: holes are not.
    pub(super) data: u64,
    /// Where its header is: which frame, and where in it, decompressed.
    pub(super) frame: u32,
    pub(super) offset: u32,
    /// Of the inode it was packed from, so that a later pack can tell that it is still the same.
    pub(super) inode: u64,
    pub(super) ctime: Time,
}

/// Collects records, compressed: so that an index in the making takes little memory.
pub(super) struct Writer {
    stream: zstd::stream::write::Encoder<'static, Vec<u8>>,
    entries: u32,
}

impl Writer {
    pub(super) fn new() -> Result<Self> {
        let stream = zstd::stream::write::Encoder::new(Vec::new(), 1).context("preparing the index")?;
        Ok(Self { stream, entries: 0 })
    }

    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        let bytes = postcard::to_stdvec(record).context("encoding an index record")?;
        self.stream.write_all(&u32::try_from(bytes.len())?.to_le_bytes())?;
        self.stream.write_all(&bytes)?;
        self.entries = self.entries.checked_add(1).context("counting the entries of the archive")?;
        Ok(())
    }

    /// All that follows the data of an archive whose frames end at `offset`: index, end mark, trailer.
    pub(super) fn finish(self, started: Time, frames: Vec<Frame>, offset: u64) -> Result<Vec<u8>> {
        let written = frames.len();
        let head = Head { started, entries: self.entries, frames };
        let head = postcard::to_stdvec(&head)?;
        ensure!(head.len() as u64 <= LARGEST_HEAD, "the archive is too large: it has {written} frames");
        let head = zstd::bulk::compress(&head, 1).context("compressing the index")?;
        let records = self.stream.finish().context("compressing the index")?;
        let mut index = Vec::with_capacity(head.len() + records.len() + 16);
        index.extend_from_slice(MAGIC);
        index.extend_from_slice(&VERSION.to_le_bytes());
        index.extend_from_slice(&u32::try_from(head.len())?.to_le_bytes());
        index.extend_from_slice(&head);
        index.extend_from_slice(&records);
        drop(records);
        let mut out = skippable(index.len())?;
        let start = offset + out.len() as u64;
        out.extend_from_slice(&index);
        out.extend_from_slice(&end_frame()?);
        let mut trailer = skippable(TRAILER_LEN - 8)?;
        trailer.extend_from_slice(TRAILER_MAGIC);
        trailer.extend_from_slice(&VERSION.to_le_bytes());
        trailer.extend_from_slice(&start.to_le_bytes());
        trailer.extend_from_slice(&(index.len() as u64).to_le_bytes());
        trailer.extend_from_slice(blake3::hash(&index).as_bytes());
        let sum = blake3::hash(&trailer);
        trailer.extend_from_slice(&sum.as_bytes()[..16]);
        out.extend_from_slice(&trailer);
        Ok(out)
    }
}

fn skippable(len: usize) -> Result<Vec<u8>> {
    let mut header = SKIPPABLE.to_le_bytes().to_vec();
    header.extend_from_slice(&u32::try_from(len).context("the index is too large")?.to_le_bytes());
    Ok(header)
}

/// The tar end mark, two blocks of zeros, in a frame of its own.
fn end_frame() -> Result<Vec<u8>> {
    let mut compressor = compressor()?;
    compressor.compress(&[0; 2 * BLOCK]).context("compressing the end mark")
}

/// A compressor of the frames of an archive: fast, and with a checksum of the content, for `zstd -t`.
pub(super) fn compressor() -> Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(1).context("preparing to compress")?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).context("preparing to compress")?;
    Ok(compressor)
}

/// True for the first bytes of a frame ([`FRAME_HEAD`] of them, if there are) that is an index or a trailer, of any version, and not another
/// program's skippable frame: pzstd puts one before each frame.
pub(super) fn is_ours(frame: &[u8]) -> bool {
    frame.starts_with(&SKIPPABLE.to_le_bytes())
        && frame.get(8..).is_some_and(|rest| rest.starts_with(MAGIC) || rest.starts_with(TRAILER_MAGIC))
}

/// True when there is a whole index of another version.
///
/// # Errors
/// When the archive cannot be read.
pub(super) fn is_of_other_version(file: &File) -> Result<bool> {
    let len = file.metadata().context("reading the size of the archive")?.len();
    Ok(Trailer::read(file, len)?.is_some_and(|trailer| trailer.version != VERSION))
}

/// Reads an index, record by record.
pub(super) struct Reader {
    pub(super) head: Head,
    records: BufReader<zstd::stream::read::Decoder<'static, BufReader<Span>>>,
    left: u32,
    buffer: Vec<u8>,
}

impl Reader {
    /// Opens the index of an archive; `None` when it has no trailer, or one of another version. Everything of it but the records themselves
    /// is checked here, and that the index is as it was written.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when it is damaged.
    pub(super) fn open(file: &File) -> Result<Option<Self>> {
        let len = file.metadata().context("reading the size of the archive")?.len();
        let Some(trailer) = Trailer::read(file, len)?.filter(|trailer| trailer.version == VERSION) else { return Ok(None) };
        let bad = |why: &str| damaged(format!("the index of the archive is damaged: {why}"));
        let end = trailer.start.checked_add(trailer.len).filter(|end| *end <= len - TRAILER_LEN as u64).ok_or_else(|| bad("its place"))?;
        check_hash(file, &trailer)?;
        let mut fixed = [0; 8 + 4 + 4];
        if trailer.len < fixed.len() as u64 || trailer.start < 8 {
            return Err(bad("it is too short"));
        }
        let mut before = [0; 8];
        file.read_exact_at(&mut before, trailer.start - 8).map_err(unreadable)?;
        if before[..] != skippable(usize::try_from(trailer.len)?)?[..] {
            return Err(bad("the frame around it"));
        }
        file.read_exact_at(&mut fixed, trailer.start).map_err(unreadable)?;
        let head_len = u64::from(u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]));
        if fixed[..8] != MAGIC[..] || fixed[8..12] != VERSION.to_le_bytes() || head_len + 16 > trailer.len {
            return Err(bad("its head"));
        }
        check_end_mark(file, end, len - TRAILER_LEN as u64)?;
        let head = read_head(file, trailer.start + 16, head_len, trailer.start - 8)?;
        let span = Span { file: file.try_clone().context("opening the index")?, at: trailer.start + 16 + head_len, end };
        let decoder = decoder(span)?;
        let left = head.entries;
        Ok(Some(Self { head, records: BufReader::with_capacity(64 << 10, decoder), left, buffer: Vec::new() }))
    }

    /// The next record; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut len = [0; 4];
        self.records.read_exact(&mut len).map_err(unreadable)?;
        let len = u32::from_le_bytes(len);
        if len > LARGEST_RECORD {
            return Err(damaged("the index of the archive is damaged: a record is too long"));
        }
        self.buffer.resize(usize::try_from(len)?, 0);
        self.records.read_exact(&mut self.buffer).map_err(unreadable)?;
        let mut record: Record = decode(&self.buffer)?;
        record.entry.settle();
        Ok(Some(record))
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(damaged("the index of the archive is damaged: a record cannot be read")),
    }
}

struct Trailer {
    version: u32,
    start: u64,
    len: u64,
    hash: [u8; 32],
}

impl Trailer {
    fn read(file: &File, len: u64) -> Result<Option<Self>> {
        let Some(at) = len.checked_sub(TRAILER_LEN as u64) else { return Ok(None) };
        let mut bytes = [0; TRAILER_LEN];
        file.read_exact_at(&mut bytes, at).map_err(unreadable)?;
        let (said, sum) = bytes.split_at(TRAILER_LEN - 16);
        if said[8..16] != TRAILER_MAGIC[..] || blake3::hash(said).as_bytes()[..16] != *sum || said[..8] != skippable(TRAILER_LEN - 8)?[..] {
            return Ok(None);
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| said[at + n]));
        let version = u32::from_le_bytes(std::array::from_fn(|n| said[16 + n]));
        Ok(Some(Self { version, start: number(20), len: number(28), hash: std::array::from_fn(|n| said[36 + n]) }))
    }
}

fn check_hash(file: &File, trailer: &Trailer) -> Result<()> {
    let mut span = Span { file: file.try_clone().context("opening the index")?, at: trailer.start, end: trailer.start + trailer.len };
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut BufReader::with_capacity(128 << 10, &mut span), &mut hasher).map_err(unreadable)?;
    if *hasher.finalize().as_bytes() == trailer.hash { Ok(()) } else { Err(damaged("the index of the archive is damaged: its checksum")) }
}

fn check_end_mark(file: &File, at: u64, end: u64) -> Result<()> {
    let bad = || damaged("the archive is damaged: its end mark is not whole");
    let len = end.checked_sub(at).and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= 1024).ok_or_else(bad)?;
    let mut frame = vec![0; len];
    file.read_exact_at(&mut frame, at).map_err(unreadable)?;
    let mark = zstd::bulk::decompress(&frame, 2 * BLOCK).map_err(|_| bad())?;
    if mark == [0; 2 * BLOCK] { Ok(()) } else { Err(bad()) }
}

/// Reads the head, and checks that the frames it tells of follow each other from the start of the file to the index.
fn read_head(file: &File, at: u64, len: u64, data_end: u64) -> Result<Head> {
    let bad = |why: &str| damaged(format!("the index of the archive is damaged: {why}"));
    let span = Span { file: file.try_clone().context("opening the index")?, at, end: at + len };
    let mut bytes = Vec::new();
    decoder(span)?.take(LARGEST_HEAD + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_HEAD {
        return Err(bad("its list of frames is too long"));
    }
    let head: Head = decode(&bytes)?;
    let mut next = 0;
    for frame in &head.frames {
        if frame.offset != next || frame.len > LARGEST_FRAME || frame.plain_len > LARGEST_FRAME {
            return Err(bad("its list of frames"));
        }
        next += u64::from(frame.len);
    }
    if next == data_end { Ok(head) } else { Err(bad("its list of frames")) }
}

fn decoder(span: Span) -> Result<zstd::stream::read::Decoder<'static, BufReader<Span>>> {
    let mut decoder = zstd::stream::read::Decoder::new(span).context("opening the index")?;
    decoder.window_log_max(WINDOW).context("opening the index")?;
    Ok(decoder)
}

/// A part of a file, read from its own position.
struct Span {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Span {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let len = usize::try_from(self.end - self.at).map_or(into.len(), |left| left.min(into.len()));
        let read = self.file.read_at(&mut into[..len], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
