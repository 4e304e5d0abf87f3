//! Reading tar: one entry after the other, each checked; everything that cannot be restored faithfully is refused.
//!
//! Understands what [`super::header`] writes and what GNU tar writes in its own and in pax format (long names, large numbers, sparse files
//! of version 1.0). All names are checked by [`path_from_name`].

use std::io::BufRead;

use anyhow::{Context, Result};

use super::entry::{Attributes, Entry, Kind, Time, path_from_name, shown};
use super::header::{BLOCK, Segments};
use super::records::Extension;
use crate::error::damaged;
use crate::node::clock::interrupted;

/// More than all extended headers of an entry can be by the kernel's limits on names and attributes.
const LARGEST_EXTENSION: u64 = 4 << 20;
/// More segments than this are not packed, so not believed either.
pub(super) const MOST_SEGMENTS: usize = 1 << 16;

/// An entry as it stands in the stream, before its content.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) entry: Entry,
    /// Bytes of its content in the stream, without the padding.
    stored: u64,
    sparse: bool,
    /// It bears the mark of an archive that an index follows.
    pub(super) indexed: bool,
}

/// Reads entries from a tar stream.
#[derive(Debug)]
pub(super) struct TarReader<R> {
    input: R,
    /// Bytes still to be passed over before the next header: content nobody asked for, and padding.
    left: u64,
    /// Bytes read so far.
    position: u64,
}

/// Called with the offset in the file and the bytes that belong there.
pub(super) type Sink<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<()>;

impl<R: BufRead> TarReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, left: 0, position: 0 }
    }

    /// The next entry; `None` at the end of the archive. What was not read of the last one's content is passed over.
    ///
    /// # Errors
    /// `Failure::Damaged` for anything that is not a sound tar header, and for a stream that ends without the end mark.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        self.pass_over()?;
        // Any number of them may come before an entry, and all that they say is held.
        let (mut more, mut room) = (Extension::default(), LARGEST_EXTENSION);
        loop {
            let block = self.block()?;
            if block == [0; BLOCK] {
                if more != Extension::default() || self.block()? != [0; BLOCK] {
                    return Err(damaged("the archive is damaged: its end mark is not whole"));
                }
                return Ok(None);
            }
            let raw = Raw::of(&block)?;
            match raw.kind {
                b'x' => more.read_records(&self.extension(raw.size, &mut room)?)?,
                // Records for all that follows; nothing that matters is ever in them.
                b'g' => drop(self.extension(raw.size, &mut room)?),
                b'L' => more.path = Some(self.long(raw.size, &mut room)?),
                b'K' => more.target = Some(self.long(raw.size, &mut room)?),
                _ => {
                    let member = member(raw, more)?;
                    self.left = member.stored + padded(member.stored);
                    return Ok(Some(member));
                }
            }
        }
    }

    /// Reads the content of the entry that [`TarReader::next`] returned last. Holes are left out; the file's length is its entry's size.
    ///
    /// # Errors
    /// Those of `sink`; `Failure::Damaged` when it is cut off, or the map of a sparse file is not sound; when interrupted, at the next piece.
    pub(super) fn content(&mut self, member: &Member, sink: Sink<'_>) -> Result<()> {
        let segments = if member.sparse { self.map(member)? } else { vec![(0, member.stored)] };
        for (offset, len) in segments {
            let mut done = 0;
            while done < len {
                interrupted()?;
                let chunk = fill(&mut self.input)?;
                let take = usize::try_from(len - done).map_or(chunk.len(), |left| left.min(chunk.len()));
                sink(offset + done, &chunk[..take])?;
                self.input.consume(take);
                done += take as u64;
                self.position += take as u64;
                self.left -= take as u64;
            }
        }
        Ok(())
    }

    /// Passes over what was not read of the last entry.
    pub(super) fn pass_over(&mut self) -> Result<()> {
        let left = std::mem::take(&mut self.left);
        self.pass(left)
    }

    /// Where the next header starts, counted from the first.
    pub(super) fn next_position(&self) -> u64 {
        self.position + self.left
    }

    /// Reads on to the end of the input, so that its checksums are checked to the last.
    pub(super) fn drain(&mut self) -> Result<()> {
        loop {
            interrupted()?;
            let len = fill_or_end(&mut self.input)?.len();
            if len == 0 {
                return Ok(());
            }
            self.input.consume(len);
        }
    }

    /// The map at the head of a sparse file: see [`super::header`].
    fn map(&mut self, member: &Member) -> Result<Segments> {
        let bad = || damaged(format!("the archive is damaged: the map of the sparse file {} is not sound", shown(&member.entry.path)));
        let mut numbers = Numbers { block: [0; BLOCK], at: BLOCK };
        let count = numbers.next(self).and_then(|count| usize::try_from(count).ok()).filter(|n| *n <= MOST_SEGMENTS).ok_or_else(bad)?;
        let (mut segments, mut end, mut data) = (Segments::with_capacity(count), 0, 0);
        for _ in 0..count {
            let (offset, len) = numbers.next(self).zip(numbers.next(self)).ok_or_else(bad)?;
            if offset < end || offset.checked_add(len).is_none_or(|end| end > member.entry.size) {
                return Err(bad());
            }
            // Pieces begin on a block of the archive: only the last may end within one.
            if data % BLOCK as u64 != 0 && len > 0 {
                return Err(bad());
            }
            (end, data) = (offset + len, data + len);
            segments.push((offset, len));
        }
        if data + padded(data) == self.left { Ok(segments) } else { Err(bad()) }
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.exact(&mut block)?;
        Ok(block)
    }

    fn exact(&mut self, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            let chunk = fill(&mut self.input)?;
            let take = chunk.len().min(into.len());
            into[..take].copy_from_slice(&chunk[..take]);
            into = &mut into[take..];
            self.input.consume(take);
            self.position += take as u64;
        }
        Ok(())
    }

    fn pass(&mut self, mut len: u64) -> Result<()> {
        while len > 0 {
            interrupted()?;
            let chunk = fill(&mut self.input)?.len();
            let take = usize::try_from(len).map_or(chunk, |len| len.min(chunk));
            self.input.consume(take);
            self.position += take as u64;
            len -= take as u64;
        }
        Ok(())
    }

    /// The content of an extended header, for which there is `room`.
    fn extension(&mut self, len: u64, room: &mut u64) -> Result<Vec<u8>> {
        *room = room.checked_sub(len).ok_or_else(|| {
            damaged(format!("the archive is hostile or damaged: more than {LARGEST_EXTENSION} bytes of extended headers for one entry"))
        })?;
        let mut bytes = vec![0; usize::try_from(len)?];
        self.exact(&mut bytes)?;
        self.pass(padded(len))?;
        Ok(bytes)
    }

    /// A long name of GNU tar's own format: it ends with a zero byte.
    fn long(&mut self, len: u64, room: &mut u64) -> Result<Vec<u8>> {
        let mut name = self.extension(len, room)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }
}

fn padded(len: u64) -> u64 {
    super::header::padding(len).len() as u64
}

/// The next bytes, at least one.
fn fill(input: &mut impl BufRead) -> Result<&[u8]> {
    let chunk = fill_or_end(input)?;
    if chunk.is_empty() { Err(damaged("the archive is truncated")) } else { Ok(chunk) }
}

fn fill_or_end(input: &mut impl BufRead) -> Result<&[u8]> {
    input.fill_buf().map_err(unreadable)
}

/// One of our own errors, on its way through [`std::io::Read`].
#[derive(Debug)]
pub(super) struct Carried(pub(super) anyhow::Error);

impl std::fmt::Display for Carried {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{:#}", self.0)
    }
}

impl std::error::Error for Carried {}

/// What an error while reading compressed data means: the disk's own errors have a number, a decompressor's have not.
pub(super) fn unreadable(error: std::io::Error) -> anyhow::Error {
    if error.raw_os_error().is_some() {
        return anyhow::Error::from(error).context("reading the archive");
    }
    match error.downcast::<Carried>() {
        Ok(Carried(own)) => own,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => damaged("the archive is truncated"),
        Err(error) => damaged(format!("the archive is damaged: {error}")),
    }
}

/// The numbers of a sparse map, read a block at a time.
struct Numbers {
    block: [u8; BLOCK],
    at: usize,
}

impl Numbers {
    fn next<R: BufRead>(&mut self, reader: &mut TarReader<R>) -> Option<u64> {
        let mut number: Option<u64> = None;
        loop {
            if self.at == BLOCK {
                reader.left = reader.left.checked_sub(BLOCK as u64)?;
                self.block = reader.block().ok()?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'0'..=b'9' => number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(u64::from(byte - b'0'))?),
                b'\n' => return number,
                _ => return None,
            }
        }
    }
}

/// The fields of one header block.
struct Raw {
    name: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    kind: u8,
    target: Vec<u8>,
    device: (u32, u32),
}

impl Raw {
    fn of(block: &[u8; BLOCK]) -> Result<Self> {
        let sum =
            block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*b) }).sum::<u32>();
        if number(&block[148..156])? != i64::from(sum) {
            return Err(damaged("the archive is damaged: the checksum of a tar header is wrong"));
        }
        let id = |field: &[u8]| number(field).and_then(|n| u32::try_from(n).map_err(|_| bad_number(field)));
        let posix = block[257..265] == *b"ustar\x0000";
        let mut name = text(&block[..100]).to_vec();
        let prefix = text(&block[345..500]);
        if posix && !prefix.is_empty() {
            name = [prefix, b"/", &name[..]].concat();
        }
        let kind = block[156];
        // Only devices have these; elsewhere old archives leave anything in them.
        let device = if matches!(kind, b'3' | b'4') { (id(&block[329..337])?, id(&block[337..345])?) } else { (0, 0) };
        Ok(Self {
            name,
            mode: id(&block[100..108])?,
            uid: id(&block[108..116])?,
            gid: id(&block[116..124])?,
            size: u64::try_from(number(&block[124..136])?).map_err(|_| bad_number(&block[124..136]))?,
            mtime: number(&block[136..148])?,
            kind,
            target: text(&block[157..257]).to_vec(),
            device,
        })
    }
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn bad_number(field: &[u8]) -> anyhow::Error {
    damaged(format!("the archive is hostile or damaged: {:?} in a tar header is not a number in range", field.escape_ascii().to_string()))
}

/// A number: octal digits between blanks or zeros, or GNU tar's base 256, told by the highest bit.
fn number(field: &[u8]) -> Result<i64> {
    let bad = || bad_number(field);
    let (first, rest) = field.split_first().ok_or_else(bad)?;
    if first & 0x80 != 0 {
        let mut value = i64::from(if first & 0x40 != 0 { -1_i8 } else { 0 });
        for byte in std::iter::once(first & 0x3F | if first & 0x40 != 0 { 0xC0 } else { 0 }).chain(rest.iter().copied()) {
            value = value.checked_mul(256).and_then(|v| v.checked_add(i64::from(byte))).ok_or_else(bad)?;
        }
        return Ok(value);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(digits.len());
    if digits[end..].iter().any(|b| !matches!(b, b' ' | 0)) {
        return Err(bad());
    }
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or_else(bad),
        _ => Err(bad()),
    })
}

/// Puts a header and what was said before it together.
fn member(raw: Raw, more: Extension) -> Result<Member> {
    let version = match more.sparse_version {
        (None, None) if !more.sparse_other => None,
        version => Some(version),
    };
    if version.is_some_and(|version| version != (Some(1), Some(0))) || raw.kind == b'S' {
        return Err(damaged(
            "the archive holds a sparse file in a form that is not supported; pack it with --format=posix --sparse-version=1.0",
        ));
    }
    let name = more.sparse_name.or(more.path).unwrap_or(raw.name);
    let kind = match raw.kind {
        // Before POSIX a directory was a file whose name ended with a slash.
        b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(damaged(format!("the archive holds an entry of type {:?}, which is not supported", char::from(other)))),
    };
    let path = path_from_name(&name)?;
    let refuse = |why: &str| damaged(format!("the archive is hostile or damaged: {} {why}", shown(&path)));
    let stored = more.size.unwrap_or(raw.size);
    if stored > i64::MAX.unsigned_abs() - BLOCK as u64 || (kind != Kind::File && stored != 0) {
        return Err(refuse("has a size it cannot have"));
    }
    let target = match kind {
        Kind::HardLink => path_from_name(&more.target.unwrap_or(raw.target))?,
        Kind::Symlink => more.target.unwrap_or(raw.target),
        _ => Vec::new(),
    };
    if kind == Kind::Symlink && (target.is_empty() || target.contains(&0) || target.len() > super::entry::LONGEST_PATH) {
        return Err(refuse("is a symbolic link to nothing"));
    }
    let sparse = version.is_some() && kind == Kind::File;
    let size = if sparse { more.sparse_size.ok_or_else(|| refuse("is sparse and has no size"))? } else { stored };
    if size > i64::MAX.unsigned_abs() {
        return Err(refuse("has a size it cannot have"));
    }
    let attributes = Attributes {
        mode: raw.mode & 0o7777,
        uid: more.uid.unwrap_or(raw.uid),
        gid: more.gid.unwrap_or(raw.gid),
        flags: more.flags,
        xattrs: Extension::xattrs(more.xattrs, &more.acls).with_context(|| format!("reading the ACL of {}", shown(&path)))?,
    };
    let mtime = more.mtime.unwrap_or(Time { seconds: raw.mtime, nanoseconds: 0 });
    let mut entry = Entry { path, kind, attributes, mtime, size, target, device: raw.device };
    entry.settle();
    Ok(Member { entry, stored, sparse, indexed: more.indexed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::entry::{APPEND_ONLY, IMMUTABLE};
    use crate::archive::{acl, header};
    use crate::error::exit_code;

    fn entry(kind: Kind, path: &[u8]) -> Entry {
        Entry {
            path: path.to_vec(),
            kind,
            attributes: Attributes { mode: 0o4755, uid: 3_000_000, gid: 7, flags: 0, xattrs: Vec::new() },
            mtime: Time { seconds: -5, nanoseconds: 7 },
            size: 0,
            target: Vec::new(),
            device: (0, 0),
        }
    }

    fn round_trip(entry: &Entry) -> Result<Entry> {
        let mut bytes = Vec::new();
        header::encode(entry, None, false, &mut bytes)?;
        Ok(TarReader::new(&bytes[..]).next()?.unwrap().entry)
    }

    #[test]
    fn what_is_written_is_read_again() -> Result<()> {
        let mut all = vec![
            Entry { device: (259, 1_048_575), ..entry(Kind::BlockDevice, b"disk") },
            Entry { size: 1 << 40, ..entry(Kind::File, &[b'n'; 101]) },
            Entry { target: vec![b't'; 101], ..entry(Kind::Symlink, b"\xff\n") },
            Entry { target: b"x/y".to_vec(), ..entry(Kind::HardLink, b"z") },
            entry(Kind::Directory, b""),
            entry(Kind::Directory, [&[b'd'; 99][..], b"/e"].concat().as_slice()),
            entry(Kind::Fifo, b"f"),
        ];
        all[1].attributes.xattrs = vec![
            (b"security.selinux".to_vec(), b"a:b:c\0".to_vec()),
            (
                b"system.posix_acl_access".to_vec(),
                acl::from_text(b"user::rwx,user:7:r--,group::r-x,mask::r-x,other::r-x", || panic!("no name is in it"))?,
            ),
            (b"user.100%=x".to_vec(), b"a=b\n\0".to_vec()),
        ];
        all[1].attributes.flags = IMMUTABLE | APPEND_ONLY;
        for entry in all {
            assert_eq!(round_trip(&entry)?, entry);
        }
        Ok(())
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for field in [&b"12x\0"[..], b"8\0", b"1 1 ", b"7777777777777777777777777\0", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(exit_code(&number(field).unwrap_err()), 65, "{field:?}");
        }
        assert_eq!(number(b"\0\0\0").unwrap(), 0);
        assert_eq!(number(b" 755 ").unwrap(), 0o755);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0").unwrap(), 256);
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap(), -2);
    }

    #[test]
    fn a_header_with_a_wrong_checksum_is_refused() {
        let mut bytes = Vec::new();
        let plain = Entry { mtime: Time::default(), attributes: Attributes::default(), ..entry(Kind::Fifo, b"f") };
        header::encode(&plain, None, false, &mut bytes).unwrap();
        assert_eq!(bytes.len(), BLOCK);
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            let read = TarReader::new(&bytes[..]).next();
            assert!(read.is_err(), "flipped at {at}");
            bytes[at] ^= 1;
        }
    }
}
