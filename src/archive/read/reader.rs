//! Reading tar: one entry after the other, each checked; anything that cannot be restored faithfully is refused.
//!
//! Understands what a pack writes, and what GNU tar writes in its own and in pax format (long names, large numbers, sparse files of version
//! 1.0). All names are checked by [`path_from_name`](crate::archive::path::path_from_name).

use std::io::BufRead;

use anyhow::Result;

use super::block::Raw;
use super::member::Member;
use super::records::{Extension, check_complete, is_first_volume};
use super::sparse;
use crate::archive::entry::Kind;
use crate::archive::tar::{BLOCK, padding};
use crate::archive::unreadable::unreadable;
use crate::compression::is_tar;
use crate::error::{damaged, unsupported};
use crate::node::clock::interrupted;

/// The most bytes of all extended headers of an entry: more than the kernel's limits on names and attributes allow.
const LARGEST_EXTENSION: u64 = 4 << 20;

/// Reads entries from a tar stream.
#[derive(Debug)]
pub(in crate::archive) struct TarReader<R> {
    input: R,
    /// Bytes to skip before the next header: content that was not read, and padding.
    left: u64,
    /// Bytes read so far.
    position: u64,
    /// A block that was read ahead: the next header.
    ahead: Option<[u8; BLOCK]>,
    /// What the global headers so far say about all entries that follow.
    defaults: Extension,
    /// True when its label says that it is the first volume of several.
    first_volume: bool,
    /// True when an entry was read.
    begun: bool,
}

/// Called with an offset in the file and the bytes at that offset.
pub(in crate::archive) type OnPiece<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<()>;

impl<R: BufRead> TarReader<R> {
    pub(in crate::archive) fn new(input: R) -> Self {
        Self { input, left: 0, position: 0, ahead: None, defaults: Extension::default(), first_volume: false, begun: false }
    }

    /// The next entry; `None` at the end of the archive. The unread content of the last entry is skipped.
    ///
    /// # Errors
    /// `FailureKind::Damaged` for anything that is not a sound tar header, and for a stream that ends without the end mark.
    pub(in crate::archive) fn next(&mut self) -> Result<Option<Member>> {
        self.pass_over()?;
        // Any number of extended headers may come before an entry; they are collected until then, up to a limit.
        let (mut said, mut room) = (Vec::new(), LARGEST_EXTENSION);
        loop {
            let block = self.block()?;
            if block == [0; BLOCK] {
                let mut second = [0; BLOCK];
                // Some programs write a single block of zeros at the very end, and GNU tar accepts it.
                let len = self.up_to_a_block(&mut second)?;
                if !said.is_empty() || second != [0; BLOCK] || (len != 0 && len != BLOCK) {
                    return Err(damaged("the archive is damaged: its end mark is not whole"));
                }
                return Ok(None);
            }
            let mut raw = Raw::of(&block)?;
            match raw.kind {
                b'x' => said.push((raw.kind, self.extension(raw.size, &mut room)?)),
                b'L' | b'K' => said.push((raw.kind, self.long(raw.size, &mut room)?)),
                b'g' => {
                    let records = self.extension(raw.size, &mut room)?;
                    self.defaults.read_defaults(&records)?;
                    self.first_volume |= self.defaults.first_volume;
                }
                // The name of the archive, in GNU tar's own format.
                b'V' => {
                    self.first_volume |= is_first_volume(&raw.name)?;
                    self.pass(
                        raw.size
                            .checked_add(padded(raw.size))
                            .ok_or_else(|| damaged("the archive is damaged: its label has an impossible size"))?,
                    )?;
                }
                kind => {
                    if kind == b'D' {
                        // A directory of an incremental archive, and the names in it.
                        check_complete(&self.extension(raw.size, &mut room)?)?;
                        (raw.kind, raw.size) = (b'5', 0);
                    }
                    let member = Member::new(raw, self.more(said)?)?;
                    self.begun = true;
                    self.left = member.stored + padded(member.stored);
                    if member.entry.kind != Kind::File && self.left > 0 {
                        self.pass_odd_content()?;
                    }
                    return Ok(Some(member));
                }
            }
        }
    }

    /// What the headers before an entry say of it, beyond the defaults.
    fn more(&self, said: Vec<(u8, Vec<u8>)>) -> Result<Extension> {
        let mut more = self.defaults.clone();
        for (kind, bytes) in said {
            match kind {
                b'L' => more.path = Some(bytes),
                b'K' => more.target = Some(bytes),
                _ => more.read_records(&bytes)?,
            }
        }
        Ok(more)
    }

    /// Reads the content of the entry that [`TarReader::next`] returned last. Holes are left out; the file's length is the entry's size.
    ///
    /// # Errors
    /// The errors of `sink`; `FailureKind::Damaged` when the content is cut off, or the map of a sparse file is invalid; when interrupted,
    /// at the next piece.
    pub(in crate::archive) fn content(&mut self, member: &Member, sink: OnPiece<'_>) -> Result<()> {
        let segments = if member.sparse {
            let (segments, left) = sparse::read_map(&member.entry, self.left, || self.block())?;
            self.left = left;
            segments
        } else {
            vec![(0, member.stored)]
        };
        for (offset, len) in segments {
            let mut done = 0;
            while done < len {
                interrupted()?;
                let chunk = fill(&mut self.input, self.first_volume)?;
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

    /// Skips the unread content of the last entry.
    pub(in crate::archive) fn pass_over(&mut self) -> Result<()> {
        let left = std::mem::take(&mut self.left);
        self.pass(left)
    }

    /// The start of the next header, counted from the first.
    pub(in crate::archive) fn next_position(&self) -> u64 {
        let ahead = if self.ahead.is_some() { BLOCK as u64 } else { 0 };
        self.position + self.left - ahead
    }

    /// The input that is read from.
    pub(in crate::archive) fn into_input(self) -> R {
        self.input
    }

    /// Skips the content of an entry that should have none. Some tars give directories and links a size but no content, and POSIX says that
    /// there is none; but GNU tar and pax(1) read content of that size. So the next block decides: when it is a header, there is no
    /// content.
    fn pass_odd_content(&mut self) -> Result<()> {
        let block = self.block()?;
        if block == [0; BLOCK] || is_tar(&block) {
            (self.ahead, self.left) = (Some(block), 0);
        } else {
            self.left -= BLOCK as u64;
        }
        Ok(())
    }

    /// Reads to the end of the input, so that all its checksums are checked.
    ///
    /// # Errors
    /// When anything but zeros follows. tar would ignore it and unpack what it has read; but a restore also deletes, and would delete what
    /// is only after the end mark. An archive that begins with zeros does not count as empty.
    pub(in crate::archive) fn drain(&mut self) -> Result<()> {
        let mut block = [0; BLOCK];
        loop {
            interrupted()?;
            let len = self.up_to_a_block(&mut block)?;
            if len == 0 {
                return Ok(());
            }
            if block[..len].iter().all(|byte| *byte == 0) {
                continue;
            }
            if self.begun {
                return Err(unsupported(
                    "the archive goes on after its end mark, like several archives joined together: unpack it with \
                     `tar --ignore-zeros`, check that everything is there, and pack the tree as one archive",
                ));
            }
            if len == BLOCK && is_tar(&block) {
                return Err(unsupported(
                    "the archive begins with an end mark, and goes on after it: unpack it with `tar --ignore-zeros`, and pack the tree as \
                     one archive",
                ));
            }
            return Err(damaged(
                "it is not a tar archive, or its beginning is lost: it begins with zeros, and what follows is not an entry",
            ));
        }
    }

    /// Reads a block, or the rest before the end of the input; returns how many bytes.
    fn up_to_a_block(&mut self, block: &mut [u8; BLOCK]) -> Result<usize> {
        let mut len = 0;
        while len < BLOCK {
            let chunk = fill_or_end(&mut self.input)?;
            if chunk.is_empty() {
                break;
            }
            let take = chunk.len().min(BLOCK - len);
            block[len..len + take].copy_from_slice(&chunk[..take]);
            self.input.consume(take);
            len += take;
        }
        Ok(len)
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        if let Some(block) = self.ahead.take() {
            return Ok(block);
        }
        let mut block = [0; BLOCK];
        self.exact(&mut block)?;
        Ok(block)
    }

    fn exact(&mut self, mut into: &mut [u8]) -> Result<()> {
        while !into.is_empty() {
            let chunk = fill(&mut self.input, self.first_volume)?;
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
            let chunk = fill(&mut self.input, self.first_volume)?.len();
            let take = usize::try_from(len).map_or(chunk, |len| len.min(chunk));
            self.input.consume(take);
            self.position += take as u64;
            len -= take as u64;
        }
        Ok(())
    }

    /// The content of an extended header. `room` is the number of bytes still allowed; content and header are taken from it.
    fn extension(&mut self, len: u64, room: &mut u64) -> Result<Vec<u8>> {
        *room = room.checked_sub(len.saturating_add(BLOCK as u64)).ok_or_else(|| {
            damaged(format!("the archive is hostile or damaged: more than {LARGEST_EXTENSION} bytes of extended headers for one entry"))
        })?;
        let mut bytes = vec![0; usize::try_from(len)?];
        self.exact(&mut bytes)?;
        self.pass(padded(len))?;
        Ok(bytes)
    }

    /// A long name in GNU tar's own format: it ends with a zero byte.
    fn long(&mut self, len: u64, room: &mut u64) -> Result<Vec<u8>> {
        let mut name = self.extension(len, room)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }
}

fn padded(len: u64) -> u64 {
    padding(len).len() as u64
}

/// The next bytes, at least one.
fn fill(input: &mut impl BufRead, first_volume: bool) -> Result<&[u8]> {
    let chunk = fill_or_end(input)?;
    match chunk {
        [] if first_volume => Err(unsupported(
            "the archive is the first volume of several, by its label, and goes on in the next: unpack them with `tar --multi-volume`, and \
             pack the tree as one archive",
        )),
        [] => Err(damaged("the archive is truncated")),
        chunk => Ok(chunk),
    }
}

fn fill_or_end(input: &mut impl BufRead) -> Result<&[u8]> {
    input.fill_buf().map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::acl;
    use crate::archive::entry::{APPEND_ONLY, Attributes, Entry, IMMUTABLE, Time};
    use crate::archive::pack::header;

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
        header::encode(entry, None, &[], &mut bytes)?;
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
    fn a_header_with_a_wrong_checksum_is_refused() {
        let mut bytes = Vec::new();
        let plain = Entry { mtime: Time::default(), attributes: Attributes::default(), ..entry(Kind::Fifo, b"f") };
        header::encode(&plain, None, &[], &mut bytes).unwrap();
        assert_eq!(bytes.len(), BLOCK);
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            let read = TarReader::new(&bytes[..]).next();
            assert!(read.is_err(), "flipped at {at}");
            bytes[at] ^= 1;
        }
    }
}
