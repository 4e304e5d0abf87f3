//! A snapshot file: the stream that etcd sent, plain or compressed with zstd (its first bytes tell which, not its name). The stream is a
//! bbolt database and the SHA-256 over it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::Tick;
use super::bolt::Meta;
use super::pipe::{PIECE, Source, pump};
use crate::compression::{Compression, TAR_BLOCK, Unzstd, WindowTooLarge, is_tar, word};
use crate::error::{damaged, unsupported};
use crate::node::durable;

/// Bytes of the SHA-256 after the database.
pub(super) const TRAILER: usize = 32;
/// The database is a multiple of this, so the length alone tells whether a trailer follows (etcd, `hasChecksum`).
const SECTOR: u64 = 512;
/// A snapshot that was found to be whole.
pub(super) struct Whole {
    /// Bytes of its database.
    pub(super) len: u64,
    /// SHA-256 of its database.
    pub(super) sha256: [u8; TRAILER],
}

/// Checks the trailer of a stream while it is read.
#[derive(Default)]
pub(super) struct Trailer {
    hash: Sha256,
    /// The last bytes so far, which may be the trailer.
    held: Vec<u8>,
    len: u64,
    /// True when the stream begins like a database.
    database: bool,
}

impl Trailer {
    /// Takes the next bytes.
    pub(super) fn update(&mut self, piece: &[u8]) {
        if self.len == 0 {
            self.database = Meta::check_head(piece, "").is_ok();
        }
        self.len += piece.len() as u64;
        let early = (self.held.len() + piece.len()).saturating_sub(TRAILER);
        let from_held = early.min(self.held.len());
        self.hash.update(&self.held[..from_held]);
        self.held.drain(..from_held);
        let (hashed, kept) = piece.split_at(early - from_held);
        self.hash.update(hashed);
        self.held.extend_from_slice(kept);
    }

    /// What the stream `name` was, if it is whole. With `skip` it need not be, as with `--skip-hash-check`: a trailer is cut off when the
    /// length says that there is one.
    pub(super) fn finish(mut self, name: &str, skip: bool) -> Result<Whole> {
        let has_trailer = self.len % SECTOR == TRAILER as u64;
        if !has_trailer && !skip {
            return Err(not_whole(name, self.len, self.database));
        }
        let mut len = self.len - TRAILER.min(self.held.len()) as u64;
        if !has_trailer {
            self.hash.update(&self.held);
            len = self.len;
        }
        let sha256 = self.hash.finalize().into();
        if has_trailer && !skip && sha256 != self.held.as_slice() {
            return Err(damaged(format!("{name} is damaged: its SHA-256 does not match its content; use another backup")));
        }
        Ok(Whole { len, sha256 })
    }
}

/// The error for a stream without a trailer. When it is a `database`, the error says how to use it all the same.
fn not_whole(name: &str, len: u64, database: bool) -> anyhow::Error {
    let hint = if database {
        " (a database that was copied from a data directory has no SHA-256: `recovery etcd restore` and `recovery etcd status` take it \
         with --skip-hash-check)"
    } else {
        ""
    };
    damaged(format!("{name} is not a whole snapshot: {len} bytes cannot be a database and its SHA-256{hint}"))
}

/// True when the name says that a snapshot should be compressed.
pub(super) fn is_to_be_compressed(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "zst" || extension == "zstd")
}

/// True for a file that is compressed with zstd, false for a plain one.
///
/// # Errors
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for a file that is packed with another program.
pub(super) fn is_compressed(file: &File, path: &Path) -> Result<bool> {
    let mut head = [0; TAR_BLOCK];
    let read =
        rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut head, 0)).with_context(|| format!("reading {}", path.display()))?;
    let head = &head[..read];
    match Compression::of(head) {
        None => not_in_tar(head, path).map(|()| false),
        Some(packed) if packed.name == "zstd" => Ok(true),
        Some(packed) => Err(unsupported(format!(
            "{} is packed with {}, but a snapshot must be plain or compressed with zstd: unpack it first: `{} > snapshot.db`",
            path.display(),
            packed.name,
            packed.command(path)
        ))),
    }
}

/// Refuses a tar archive.
fn not_in_tar(head: &[u8], path: &Path) -> Result<()> {
    if !is_tar(head) {
        return Ok(());
    }
    Err(unsupported(format!(
        "{} is a tar archive, not a snapshot: take the snapshot out first (`tar -xf {}`), and name that file",
        path.display(),
        word(path)
    )))
}

/// Refuses a file that is packed a second time inside zstd.
fn not_packed_twice(head: &[u8], path: &Path) -> Result<()> {
    not_in_tar(head, path)?;
    let (Some(inner), Some(zstd)) = (Compression::of(head), Compression::of(&ZSTD)) else { return Ok(()) };
    let mut unpacked = path.as_os_str().to_owned();
    unpacked.push(".unpacked");
    let unpacked = Path::new(&unpacked);
    Err(unsupported(format!(
        "{} is packed twice, with {} and then with zstd: unpack it first: `{} > {}`, then `{} > snapshot.db`",
        path.display(),
        inner.name,
        zstd.command(path),
        word(unpacked),
        inner.command(unpacked)
    )))
}

/// The bytes that etcd sent, of a snapshot file.
pub(super) fn reader(path: &Path) -> Result<Box<dyn Read + Send>> {
    let file = open(path)?;
    Ok(if is_compressed(&file, path)? { Box::new(Unzstd::new(file)?) } else { Box::new(file) })
}

/// The first bytes of every zstd frame.
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Opens a snapshot for reading.
pub(super) fn open(path: &Path) -> Result<File> {
    durable::open_regular(path).with_context(|| format!("opening {}", path.display()))
}

/// The stream in a snapshot file.
struct Stream<'a> {
    reader: Box<dyn Read + Send + 'a>,
    path: &'a Path,
    /// True for a compressed file of which nothing has been read yet.
    unseen: bool,
}

impl<'a> Stream<'a> {
    fn new(file: &'a File, path: &'a Path, tick: Tick<'a>) -> Result<Self> {
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential).ok();
        let counted = Counted { file, tick };
        let compressed = is_compressed(file, path)?;
        let reader: Box<dyn Read + Send> = if compressed { Box::new(Unzstd::new(counted)?) } else { Box::new(counted) };
        Ok(Self { reader, path, unseen: compressed })
    }
}

impl Source for Stream<'_> {
    fn fill(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        let name = self.path.display();
        self.reader.fill(piece).map_err(|error| match error.downcast_ref::<std::io::Error>() {
            Some(cause) if WindowTooLarge::is_cause_of(cause) => {
                unsupported(format!("{name}: {cause}: unpack it first: `zstd -d --long=31 {}`", word(self.path)))
            }
            // A disk error has an error number; the decompressor's errors have none.
            Some(cause) if cause.raw_os_error().is_none() => damaged(format!("{name} is damaged: {cause}; use another backup")),
            _ => error.context(format!("reading {name}")),
        })?;
        if std::mem::take(&mut self.unseen) { not_packed_twice(piece, self.path) } else { Ok(()) }
    }
}

/// Counts what is read from a file.
struct Counted<'a> {
    file: &'a File,
    tick: Tick<'a>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        (self.tick)(read as u64);
        Ok(read)
    }
}

/// Checks by its first bytes that a snapshot is of a supported kind and, if it is plain, by its length that it can be whole.
pub(super) fn look(path: &Path) -> Result<()> {
    let (file, name) = (open(path)?, path.display().to_string());
    if !is_compressed(&file, path)? {
        let len = file.metadata().with_context(|| format!("looking at {name}"))?.len();
        if len % SECTOR != TRAILER as u64 {
            let mut head = Vec::new();
            (&file).fill(&mut head).with_context(|| format!("reading {name}"))?;
            return Err(not_whole(&name, len, Meta::check_head(&head, &name).is_ok()));
        }
    }
    let mut head = Vec::new();
    Stream::new(&file, path, &|_| {})?.fill(&mut head)?;
    Meta::check_head(&head, &name)
}

/// Reads a whole snapshot and returns what it is; with `skip` it needs no trailer.
pub(super) fn verify(path: &Path, skip: bool, tick: Tick<'_>) -> Result<Whole> {
    pass(&mut Stream::new(&open(path)?, path, tick)?, path, skip, &mut std::io::sink())
}

/// Writes the database of a snapshot to the new file `to`, and checks it at the same time.
pub(super) fn unpack(path: &Path, to: &File, skip: bool, tick: Tick<'_>) -> Result<Whole> {
    let from = open(path)?;
    let copied = if is_compressed(&from, path)? { None } else { Copied::start(&from, to, tick)? };
    let whole = match copied {
        Some(mut copied) => pass(&mut copied, path, skip, &mut std::io::sink())?,
        None => pass(&mut Stream::new(&from, path, tick)?, path, skip, &mut Written(WriteBack::new(to)))?,
    };
    to.set_len(whole.len).context("cutting the trailer off the database")?;
    Ok(whole)
}

fn pass(source: &mut dyn Source, path: &Path, skip: bool, sink: &mut (dyn Write + Send)) -> Result<Whole> {
    let mut trailer = Trailer::default();
    let look = &mut |piece: &[u8]| {
        trailer.update(piece);
        Ok(())
    };
    pump(source, look, sink)?;
    trailer.finish(&path.display().to_string(), skip)
}

/// A file that the kernel copies (or on XFS and Btrfs clones) while it is read. The copy is what is read, and so checked.
struct Copied<'a> {
    from: &'a File,
    to: WriteBack<'a>,
    read: u64,
    tick: Tick<'a>,
}

/// Bytes that are copied at once: a little more than can wait to be looked at.
const COPIED: usize = 4 * PIECE;

impl<'a> Copied<'a> {
    /// Copies the first piece; `None` where the kernel cannot copy between these two files.
    fn start(from: &'a File, to: &'a File, tick: Tick<'a>) -> Result<Option<Self>> {
        let mut copied = Self { from, to: WriteBack::new(to), read: 0, tick };
        match copied.advance() {
            Ok(()) => Ok(Some(copied)),
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error).context("copying the database"),
        }
    }

    fn advance(&mut self) -> Result<(), Errno> {
        let (mut from, mut to) = (self.to.written, self.to.written);
        let count = rustix::fs::copy_file_range(self.from, Some(&mut from), self.to.file, Some(&mut to), COPIED)?;
        self.to.advance(count as u64);
        Ok(())
    }
}

impl Source for Copied<'_> {
    fn fill(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        if self.read == self.to.written {
            self.advance().context("copying the database")?;
        }
        let count = (self.to.written - self.read).min(PIECE as u64);
        piece.resize(usize::try_from(count)?, 0);
        self.to.file.read_exact_at(piece, self.read).context("reading the copy of the database")?;
        self.read += count;
        (self.tick)(count);
        Ok(())
    }
}

/// Makes the kernel begin to write a file to disk long before the final sync.
struct WriteBack<'a> {
    file: &'a File,
    written: u64,
    started: u64,
}

/// Bytes that are handed to the disk at once.
const BATCH: u64 = 8 << 20;

impl<'a> WriteBack<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, written: 0, started: 0 }
    }

    fn advance(&mut self, count: u64) {
        self.written += count;
        if self.written - self.started >= BATCH {
            // For a range that is said not to be needed again, Linux starts the write-back and keeps the dirty pages. It is only a hint.
            let range = NonZeroU64::new(self.written - self.started);
            rustix::fs::fadvise(self.file, self.started, range, rustix::fs::Advice::DontNeed).ok();
            self.started = self.written;
        }
    }
}

/// A file that is written piece by piece.
struct Written<'a>(WriteBack<'a>);

impl Write for Written<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.0.file.write(bytes)?;
        self.0.advance(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn whole(len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    #[test]
    fn the_trailer_is_found_however_the_stream_is_cut() -> Result<()> {
        let bytes = whole(1024);
        for size in [1, 7, 31, 32, 33, 500, 2000] {
            let mut trailer = Trailer::default();
            bytes.chunks(size).for_each(|piece| trailer.update(piece));
            assert_eq!(trailer.finish("x", false)?.len, 1024);
        }
        Ok(())
    }

    #[test]
    fn anything_but_the_whole_is_refused() {
        let bytes = whole(1024);
        for at in [0, 700, 1023, 1024, 1055] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let mut trailer = Trailer::default();
            trailer.update(&flipped);
            assert_eq!(exit_code(&trailer.finish("x", false).err().unwrap()), 65, "byte {at}");
        }
        for len in [0, 31, 32, 544, 1024, 1055] {
            let mut trailer = Trailer::default();
            trailer.update(&bytes[..len]);
            assert_eq!(exit_code(&trailer.finish("x", false).err().unwrap()), 65, "{len} bytes");
        }
    }
}
