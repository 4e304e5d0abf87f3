//! The index of an archive: its entries, and where they are.
//!
//! An archive is, in this order:
//!
//! | what | as | holds |
//! |---|---|---|
//! | data | zstd frames, independent of each other | the tar stream |
//! | index | a skippable frame | [`MAGIC`], version (4 bytes), length of what follows (4 bytes), a [`Head`], and one [`Record`] per entry |
//! | end | a zstd frame | the tar end mark |
//! | trailer | a skippable frame of fixed length | where the index is, and its BLAKE3: [`Trailer`] |
//!
//! The end mark comes after the index, so that an archive that is cut off anywhere lacks the end mark or the trailer. The first entry in
//! the tar stream has a mark that says that an index follows: an archive with this mark but without a trailer is damaged, and is not taken
//! for one without an index.
//!
//! Numbers are little-endian. The head is a zstd frame of its own; all records together are another, each after its length (4 bytes). Both
//! are in the format of [postcard](https://postcard.jamesmunns.com/wire-format): the fields in the order of the structs here, without
//! names. So every change of a struct, or of the order of its fields, is a new version: then the structs of the present version move to a
//! module of their own, with a `From` into the new ones.
//!
//! **Other versions.** An index of an older version stays readable for ever (version 1 is older than the first release, and is skipped). An
//! index of a newer version is skipped, as by `tar` and `zstd`: the archive is read from start to end, which takes longer but restores the
//! same, because [`existence`](Record::existence) is in the tar stream too, as a comment. (One difference remains: an archive without any
//! security label counts as one that has no labels, so those on disk stay.) For this, the skippable frames and the trailer with its own
//! magic number are the same in every version. A *damaged* index is not skipped: an archive is as it was written, or it is refused. The
//! message says how `zstd` shows whether the data is whole, and makes a plain tar archive of it.
//!
//! The sample is `index.VERSION.bin`, an archive with every kind of entry in it; its schema is that of [`Head`] and [`Record`].

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Format;

/// The format.
pub const FORMAT: Format = Format { name: "the index of the archive", version: 2 };

/// The first bytes of the index.
pub const MAGIC: &[u8; 8] = b"RECOVIDX";
/// The first bytes of the trailer.
const TRAILER_MAGIC: &[u8; 8] = b"RECOVEND";
/// The first of the sixteen magic numbers of skippable frames (RFC 8878, 3.1.2).
const SKIPPABLE: u32 = 0x184D_2A50;
/// Bytes of the header of a skippable frame: magic number, and the length of what follows.
pub const SKIPPABLE_LEN: usize = 8;
/// How many bytes identify a frame of ours: the header of a skippable frame, and our magic.
pub const FRAME_HEAD: usize = SKIPPABLE_LEN + 8;

/// The header of a skippable frame of `len` bytes.
///
/// # Errors
/// When the length is too large for such a frame.
pub fn skippable(len: usize) -> Result<[u8; SKIPPABLE_LEN]> {
    let len = u32::try_from(len).context("the index is too large")?;
    let mut header = [0; SKIPPABLE_LEN];
    header[..4].copy_from_slice(&SKIPPABLE.to_le_bytes());
    header[4..].copy_from_slice(&len.to_le_bytes());
    Ok(header)
}

/// True for the first bytes of a frame ([`FRAME_HEAD`] of them, if there are) that is an index or a trailer of any version. Another
/// program's skippable frame is neither: pzstd puts one before each frame.
#[must_use]
pub fn is_ours(frame: &[u8]) -> bool {
    frame.starts_with(&SKIPPABLE.to_le_bytes())
        && frame.get(SKIPPABLE_LEN..).is_some_and(|rest| rest.starts_with(MAGIC) || rest.starts_with(TRAILER_MAGIC))
}

/// The last bytes of an archive: the header of a skippable frame, [its magic number](TRAILER_MAGIC), these fields, and the first 16 bytes
/// of the BLAKE3 of all of that. The trailer is the same in every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The version of the index.
    pub version: u32,
    /// Where in the file the content of the index's frame starts.
    pub start: u64,
    /// The length of that content.
    pub len: u64,
    /// The BLAKE3 of that content.
    pub hash: [u8; 32],
}

impl Trailer {
    /// Its length in the file.
    pub const LEN: usize = Self::SAID + 16;
    /// The length of the part that its own checksum covers.
    const SAID: usize = SKIPPABLE_LEN + 8 + 4 + 8 + 8 + 32;

    /// The bytes at the end of the file.
    ///
    /// # Errors
    /// Never fails.
    pub fn to_bytes(self) -> Result<Vec<u8>> {
        let mut bytes = skippable(Self::LEN - SKIPPABLE_LEN)?.to_vec();
        bytes.extend_from_slice(TRAILER_MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.start.to_le_bytes());
        bytes.extend_from_slice(&self.len.to_le_bytes());
        bytes.extend_from_slice(&self.hash);
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(&sum.as_bytes()[..16]);
        Ok(bytes)
    }

    /// The trailer in the last bytes of a file; `None` when they are not a trailer.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        let trailer = Self {
            version: u32::from_le_bytes(std::array::from_fn(|n| bytes[16 + n])),
            start: number(20),
            len: number(28),
            hash: std::array::from_fn(|n| bytes[36 + n]),
        };
        trailer.to_bytes().ok().filter(|written| written == bytes).map(|_| trailer)
    }
}

/// A time: seconds since 1970, and the nanoseconds after them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Time {
    /// Seconds; before 1970, less than 0.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// One frame of data: an independent piece of the tar stream.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Frame {
    /// The frame's start in the file.
    pub offset: u64,
    /// The frame's length in the file.
    pub len: u32,
    /// The frame's length when decompressed.
    pub plain_len: u32,
    /// BLAKE3 of the frame as it is in the file.
    pub hash: [u8; 32],
}

/// What the index says about the whole archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Head {
    /// When reading the tree began, by the clock of the machine.
    pub started: Time,
    /// How many records follow.
    pub entries: u32,
    /// The frames that hold the tar stream, without gaps from the start of the file to the index.
    pub frames: Vec<Frame>,
}

/// The kind of an entry.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of an earlier entry that is not a directory.
    HardLink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// What the index says about one entry. Records are sorted by path: a directory before what is in it, names by their bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Record {
    /// The path relative to the root of the tree, without a slash at either end; empty for the root.
    pub path: Vec<u8>,
    /// Its kind.
    pub kind: Kind,
    /// Permissions, set-id and sticky bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// 1: immutable (`chattr +i`), 2: append-only (`chattr +a`), 3: both.
    pub flags: u8,
    /// Extended attributes, name and value, sorted by name; ACLs as the kernel's `system.posix_acl_*`. A hard link has none.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// When it was modified.
    pub mtime: Time,
    /// The size of a file, bytes, holes included; else 0.
    pub size: u64,
    /// The target of a symbolic link; the path of the earlier entry for a hard link; else empty.
    pub target: Vec<u8>,
    /// Major and minor number of a device; else 0.
    pub device: (u32, u32),
    /// True when only its existence is recorded: it is a parent of what was selected, or a mount point, which was not entered.
    pub existence: bool,
    /// For a file that is not empty: BLAKE3 of its content without aligned blocks of 4 KiB that hold only zeros. If there are such blocks:
    /// BLAKE3 (with the context `recovery 2026-11 archive: a content with gaps`) of that hash, of the BLAKE3 of start and length of each
    /// run of such blocks, and of the size. For anything else: zeros.
    pub hash: [u8; 32],
    /// Bytes of a file's content that are in the archive, without holes.
    pub data: u64,
    /// The frame that holds its tar header, counted from 0,
    pub frame: u32,
    /// and the offset of the header in the decompressed frame.
    pub offset: u32,
    /// The inode from which it was packed.
    pub inode: u64,
    /// The change time of that inode, so that a later pack can tell that it is unchanged.
    pub ctime: Time,
}

#[cfg(test)]
mod tests {
    use schemars::generate::SchemaSettings;
    use schemars::transform::RecursiveTransform;

    use super::*;
    use crate::formats::{samples, to_json};

    #[test]
    fn the_layout_of_version_2_is_what_it_was() {
        // A better comment is not another layout.
        let without_comments = RecursiveTransform(|schema: &mut schemars::Schema| drop(schema.remove("description")));
        let schema = SchemaSettings::default().with_transform(without_comments).into_generator().into_root_schema_for::<(Head, Record)>();
        samples::same("index.2.schema.json", &to_json(&schema).unwrap());
        let sample = samples::read("index.2.bin");
        let bytes = sample.last_chunk::<{ Trailer::LEN }>().unwrap();
        let trailer = Trailer::parse(bytes).unwrap();
        assert_eq!((trailer.version, trailer.to_bytes().unwrap()), (2, bytes.to_vec()));
        let start = usize::try_from(trailer.start).unwrap();
        let index = &sample[start..][..usize::try_from(trailer.len).unwrap()];
        assert_eq!(*blake3::hash(index).as_bytes(), trailer.hash);
        assert_eq!(index[..12], [&MAGIC[..], &2_u32.to_le_bytes()].concat());
        assert_eq!(sample[start - SKIPPABLE_LEN..start], skippable(index.len()).unwrap());
        assert!(is_ours(&sample[start - SKIPPABLE_LEN..]) && is_ours(bytes) && !is_ours(&sample));
    }

    #[test]
    fn a_trailer_in_which_a_bit_has_changed_is_none() {
        let trailer = Trailer { version: 2, start: 1, len: 1 << 40, hash: [7; 32] };
        let mut bytes: [u8; Trailer::LEN] = trailer.to_bytes().unwrap().try_into().unwrap();
        assert_eq!(Trailer::parse(&bytes), Some(trailer));
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(Trailer::parse(&bytes), None, "byte {at}");
            bytes[at] ^= 1;
        }
    }
}
