//! The index at the end of an archive, in skippable frames that zstd and GNU tar skip: written here, and read record by record.
//! [`formats::index`](crate::formats::index) has its layout; its structs are converted here from and into the types that archives work
//! with.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use super::content::Hash;
use super::entry::{Attributes, Entry, Kind, Time};
use super::tar::BLOCK;
use super::unreadable::unreadable;
use crate::error::{AndNext, Next, by_hand, damaged};
use crate::formats::index::{self as layout, FORMAT, MAGIC, SKIPPABLE_LEN, Trailer, skippable};

/// The most bytes of one record: a path, a target, and all the attributes that the kernel allows an inode.
const LARGEST_RECORD: u32 = 1 << 20;
/// The most bytes of the head: enough for some 600,000 frames.
const LARGEST_HEAD: u64 = 32 << 20;
/// The window for reading the records, as a power of two: larger than the one for writing.
const RECORDS_WINDOW: u32 = 21;
/// The most bytes of a frame, compressed or not, so that memory stays bounded whatever an archive says.
pub(super) const LARGEST_FRAME: u32 = 8 << 20;

/// One frame of data: an independent piece of the tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// The frame's start in the file.
    pub(super) offset: u64,
    /// The frame's length in the file.
    pub(super) len: u32,
    /// The frame's length when decompressed.
    pub(super) plain_len: u32,
    /// BLAKE3 of the frame as it is in the file.
    pub(super) hash: Hash,
}

/// What the index says of the archive as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// When reading the tree began, by the clock of this machine.
    pub(super) started: Time,
    /// How many records follow.
    pub(super) entries: u32,
    /// The frames that hold the tar stream.
    pub(super) frames: Vec<Frame>,
}

/// What the index says of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) entry: Entry,
    /// True when only its existence is recorded: it is a parent of what was selected, or a mount point, which was not entered.
    pub(super) existence: bool,
    /// The hash of a file that is not empty.
    pub(super) hash: Hash,
    /// Bytes of a file's content that are in the archive, without holes.
    pub(super) data: u64,
    /// The place of the entry's header: the frame, and the offset in the decompressed frame.
    pub(super) frame: u32,
    pub(super) offset: u32,
    /// The inode from which the entry was packed, so that a later pack can tell that it is still the same.
    pub(super) inode: u64,
    pub(super) ctime: Time,
}

/// Collects records in compressed form, so that an unfinished index takes little memory.
pub(super) struct Writer {
    stream: zstd::stream::write::Encoder<'static, Vec<u8>>,
    entries: u32,
}

impl Writer {
    pub(super) fn new() -> Result<Self> {
        let stream = zstd::stream::write::Encoder::new(Vec::new(), 1).context("preparing the index")?;
        Ok(Self { stream, entries: 0 })
    }

    pub(super) fn add(&mut self, record: Record) -> Result<()> {
        let bytes = postcard::to_stdvec(&layout::Record::from(record)).context("encoding an index record")?;
        self.stream.write_all(&u32::try_from(bytes.len())?.to_le_bytes())?;
        self.stream.write_all(&bytes)?;
        self.entries = self.entries.checked_add(1).context("counting the entries of the archive")?;
        Ok(())
    }

    /// Everything after the data of an archive whose frames end at `offset`: index, end mark, trailer.
    pub(super) fn finish(self, started: Time, frames: Vec<Frame>, offset: u64) -> Result<Vec<u8>> {
        let written = frames.len();
        let head = postcard::to_stdvec(&layout::Head::from(Head { started, entries: self.entries, frames }))?;
        ensure!(head.len() as u64 <= LARGEST_HEAD, "the archive is too large: it has {written} frames");
        let head = zstd::bulk::compress(&head, 1).context("compressing the index")?;
        let records = self.stream.finish().context("compressing the index")?;
        let mut index = Vec::with_capacity(head.len() + records.len() + 16);
        index.extend_from_slice(MAGIC);
        index.extend_from_slice(&FORMAT.version.to_le_bytes());
        index.extend_from_slice(&u32::try_from(head.len())?.to_le_bytes());
        index.extend_from_slice(&head);
        index.extend_from_slice(&records);
        drop(records);
        let mut out = skippable(index.len())?.to_vec();
        let start = offset + out.len() as u64;
        let trailer = Trailer { version: FORMAT.version, start, len: index.len() as u64, hash: *blake3::hash(&index).as_bytes() };
        out.extend_from_slice(&index);
        drop(index);
        out.extend_from_slice(&end_frame()?);
        out.extend_from_slice(&trailer.to_bytes()?);
        Ok(out)
    }
}

/// The tar end mark, two blocks of zeros, in a frame of its own.
fn end_frame() -> Result<Vec<u8>> {
    let mut compressor = compressor()?;
    compressor.compress(&[0; 2 * BLOCK]).context("compressing the end mark")
}

/// A compressor for the frames of an archive: fast, and with a checksum of the content for `zstd -t`.
pub(super) fn compressor() -> Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(1).context("preparing to compress")?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).context("preparing to compress")?;
    Ok(compressor)
}

/// What is at the end of an archive.
pub(super) enum Opened {
    /// An index that can be used.
    Index(Box<Reader>),
    /// An index of a version that this agent does not know.
    OfVersion(u32),
    /// No index, or a part of one.
    Missing,
}

/// Reads an index, record by record.
pub(super) struct Reader {
    pub(super) head: Head,
    records: BufReader<zstd::stream::read::Decoder<'static, BufReader<Span>>>,
    left: u32,
    buffer: Vec<u8>,
}

impl Reader {
    /// Opens the index of an archive, if it has a usable one. Everything but the records themselves is checked here, and the checksum of
    /// the whole.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when it is damaged.
    pub(super) fn open(file: &File) -> Result<Opened> {
        let len = file.metadata().context("reading the size of the archive")?.len();
        let Some(trailer) = trailer(file, len)? else { return Ok(Opened::Missing) };
        if trailer.version != FORMAT.version {
            return Ok(Opened::OfVersion(trailer.version));
        }
        let behind = len - Trailer::LEN as u64;
        let end = trailer.start.checked_add(trailer.len).filter(|end| *end <= behind).ok_or_else(|| bad("its place"))?;
        check_hash(file, &trailer)?;
        let mut fixed = [0; MAGIC.len() + 4 + 4];
        if trailer.len < fixed.len() as u64 || trailer.start < SKIPPABLE_LEN as u64 {
            return Err(bad("it is too short"));
        }
        let data_end = trailer.start - SKIPPABLE_LEN as u64;
        let mut before = [0; SKIPPABLE_LEN];
        file.read_exact_at(&mut before, data_end).map_err(unreadable)?;
        if before != skippable(usize::try_from(trailer.len)?)? {
            return Err(bad("the frame around it"));
        }
        file.read_exact_at(&mut fixed, trailer.start).map_err(unreadable)?;
        let head_len = u64::from(u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]));
        let head_start = trailer.start + fixed.len() as u64;
        if fixed[..8] != MAGIC[..] || fixed[8..12] != FORMAT.version.to_le_bytes() || head_len > end - head_start {
            return Err(bad("its head"));
        }
        check_end_mark(file, end, behind)?;
        let head = read_head(file, head_start, head_len, data_end)?;
        let span = Span { file: file.try_clone().context("opening the index")?, at: head_start + head_len, end };
        let decoder = decoder(span)?;
        let left = head.entries;
        Ok(Opened::Index(Box::new(Self { head, records: BufReader::with_capacity(64 << 10, decoder), left, buffer: Vec::new() })))
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
            return Err(bad("a record is too long"));
        }
        self.buffer.resize(usize::try_from(len)?, 0);
        self.records.read_exact(&mut self.buffer).map_err(unreadable)?;
        decode::<layout::Record>(&self.buffer).map(|record| Some(record.into()))
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(bad("a record cannot be read")),
    }
}

/// The trailer of an archive of `len` bytes; `None` when it has none.
fn trailer(file: &File, len: u64) -> Result<Option<Trailer>> {
    let Some(at) = len.checked_sub(Trailer::LEN as u64) else { return Ok(None) };
    let mut bytes = [0; Trailer::LEN];
    file.read_exact_at(&mut bytes, at).map_err(unreadable)?;
    Ok(Trailer::parse(&bytes))
}

/// The error for an index that is not as it was written.
fn bad(why: &str) -> anyhow::Error {
    damaged(format!("the index of the archive is damaged: {why}")).and_next(salvage())
}

/// What to do about an archive whose index is lost: the data comes before the index, and has checksums of its own.
pub(super) fn salvage() -> Next {
    by_hand(
        "use another backup; or, if `zstd -d --long=31 ARCHIVE -o FILE.tar` finds nothing wrong (the data has its own checksums), use \
         FILE.tar in place of the archive",
    )
}

fn check_hash(file: &File, trailer: &Trailer) -> Result<()> {
    let mut span = Span { file: file.try_clone().context("opening the index")?, at: trailer.start, end: trailer.start + trailer.len };
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut BufReader::with_capacity(128 << 10, &mut span), &mut hasher).map_err(unreadable)?;
    if *hasher.finalize().as_bytes() == trailer.hash { Ok(()) } else { Err(bad("its checksum")) }
}

fn check_end_mark(file: &File, at: u64, end: u64) -> Result<()> {
    let bad = || damaged("the archive is damaged: its end mark is not whole");
    let len = end.checked_sub(at).and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= 1024).ok_or_else(bad)?;
    let mut frame = vec![0; len];
    file.read_exact_at(&mut frame, at).map_err(unreadable)?;
    let mark = zstd::bulk::decompress(&frame, 2 * BLOCK).map_err(|_| bad())?;
    if mark == [0; 2 * BLOCK] { Ok(()) } else { Err(bad()) }
}

/// Reads the head, and checks that the frames in it follow each other without a gap from the start of the file to the index.
fn read_head(file: &File, at: u64, len: u64, data_end: u64) -> Result<Head> {
    let span = Span { file: file.try_clone().context("opening the index")?, at, end: at + len };
    let mut bytes = Vec::new();
    decoder(span)?.take(LARGEST_HEAD + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_HEAD {
        return Err(bad("its list of frames is too long"));
    }
    let head = Head::from(decode::<layout::Head>(&bytes)?);
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
    decoder.window_log_max(RECORDS_WINDOW).context("opening the index")?;
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

impl From<Time> for layout::Time {
    fn from(Time { seconds, nanoseconds }: Time) -> Self {
        Self { seconds, nanoseconds }
    }
}

impl From<layout::Time> for Time {
    fn from(layout::Time { seconds, nanoseconds }: layout::Time) -> Self {
        Self { seconds, nanoseconds }
    }
}

impl From<Head> for layout::Head {
    fn from(Head { started, entries, frames }: Head) -> Self {
        let frame = |Frame { offset, len, plain_len, hash }| layout::Frame { offset, len, plain_len, hash };
        Self { started: started.into(), entries, frames: frames.into_iter().map(frame).collect() }
    }
}

impl From<layout::Head> for Head {
    fn from(layout::Head { started, entries, frames }: layout::Head) -> Self {
        let frame = |layout::Frame { offset, len, plain_len, hash }| Frame { offset, len, plain_len, hash };
        Self { started: started.into(), entries, frames: frames.into_iter().map(frame).collect() }
    }
}

impl From<Kind> for layout::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::File,
            Kind::Directory => Self::Directory,
            Kind::Symlink => Self::Symlink,
            Kind::HardLink => Self::HardLink,
            Kind::Fifo => Self::Fifo,
            Kind::CharDevice => Self::CharDevice,
            Kind::BlockDevice => Self::BlockDevice,
        }
    }
}

impl From<layout::Kind> for Kind {
    fn from(kind: layout::Kind) -> Self {
        match kind {
            layout::Kind::File => Self::File,
            layout::Kind::Directory => Self::Directory,
            layout::Kind::Symlink => Self::Symlink,
            layout::Kind::HardLink => Self::HardLink,
            layout::Kind::Fifo => Self::Fifo,
            layout::Kind::CharDevice => Self::CharDevice,
            layout::Kind::BlockDevice => Self::BlockDevice,
        }
    }
}

impl From<Record> for layout::Record {
    fn from(Record { entry, existence, hash, data, frame, offset, inode, ctime }: Record) -> Self {
        let Entry { path, kind, attributes: Attributes { mode, uid, gid, flags, xattrs }, mtime, size, target, device } = entry;
        let (kind, mtime, ctime) = (kind.into(), mtime.into(), ctime.into());
        Self { path, kind, mode, uid, gid, flags, xattrs, mtime, size, target, device, existence, hash, data, frame, offset, inode, ctime }
    }
}

impl From<layout::Record> for Record {
    fn from(record: layout::Record) -> Self {
        let layout::Record { path, kind, mode, uid, gid, flags, xattrs, mtime, size, target, device, .. } = record;
        let layout::Record { existence, hash, data, frame, offset, inode, ctime, .. } = record;
        let (attributes, kind, mtime) = (Attributes { mode, uid, gid, flags, xattrs }, kind.into(), mtime.into());
        let mut entry = Entry { path, kind, attributes, mtime, size, target, device };
        entry.normalize();
        Self { entry, existence, hash, data, frame, offset, inode, ctime: ctime.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Archive;
    use crate::formats::samples;

    const SAMPLE: &str = "index.2.bin";

    fn read(file: &File) -> (Head, Vec<Record>, Vec<Vec<u8>>) {
        let Opened::Index(mut reader) = Reader::open(file).unwrap() else { panic!("it has no index") };
        let (mut records, mut raw) = (Vec::new(), Vec::new());
        while let Some(record) = reader.next().unwrap() {
            records.push(record);
            raw.push(reader.buffer.clone());
        }
        (reader.head, records, raw)
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    /// The sample was made by the first agent with this version. The test writes its index again, and gets the same bytes except for the
    /// compression.
    #[test]
    fn the_sample_of_version_2_is_read_and_written_as_it_is() {
        use Kind::{BlockDevice, CharDevice, Directory, Fifo, File, HardLink, Symlink};
        let sample = samples::read(SAMPLE);
        let old = file(&sample);
        let archive = Archive::open(old.path()).unwrap();
        archive.verify(&|_| ()).unwrap();
        assert_eq!(archive.read_file("a".as_ref()).unwrap().unwrap(), b"text");
        let (head, records, raw) = read(old.as_file());
        let kinds = records.iter().map(|record| record.entry.kind);
        assert!(kinds.eq([Directory, File, BlockDevice, CharDevice, Directory, File, HardLink, Fifo, Directory, Symlink, File]));
        assert!(records.iter().filter(|record| record.existence).map(|record| &record.entry.path[..]).eq([b"m"]));
        let mut writer = Writer::new().unwrap();
        records.into_iter().for_each(|record| writer.add(record).unwrap());
        let data: u64 = head.frames.iter().map(|frame| u64::from(frame.len)).sum();
        let mut bytes = sample[..usize::try_from(data).unwrap()].to_vec();
        bytes.extend(writer.finish(head.started, head.frames.clone(), data).unwrap());
        let (head_again, _, raw_again) = read(file(&bytes).as_file());
        assert_eq!((head_again, raw_again), (head, raw));
    }
}
