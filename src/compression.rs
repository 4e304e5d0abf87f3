//! Recognises by its first bytes how a file is compressed. A sound file in a format that is not supported is then named, with the command
//! that unpacks it, so that nobody takes a backup for lost. Also reads files compressed with zstd.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::report::paths;

/// The size of a tar block, bytes. The first block tells whether a file is a tar archive.
pub const TAR_BLOCK: usize = 512;

/// How far back a zstd frame may refer, as a power of two: a file can ask for that much memory. `zstd -d` and tar have the same limit
/// unless told otherwise (`--long=31`; `ZSTD_WINDOWLOG_LIMIT_DEFAULT`).
pub const WINDOW: u32 = 27;
/// The size of the pieces in which compressed files are read, bytes.
pub const BUFFER: usize = 128 << 10;
/// What the zstd library says about a frame that exceeds [`WINDOW`] (`ZSTD_error_frameParameter_windowTooLarge`).
const TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// A program's format for compressed files or archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The name of the format.
    pub name: &'static str,
    /// True when it holds files with names, and not one stream.
    pub holds_files: bool,
    /// The command, without the file's name, that writes a file's content to its output; for several files, one after the other.
    unpack: &'static str,
}

const fn stream(name: &'static str, unpack: &'static str) -> Compression {
    Compression { name, holds_files: false, unpack }
}

const fn files(name: &'static str, unpack: &'static str) -> Compression {
    Compression { name, holds_files: true, unpack }
}

impl Compression {
    /// The format of a file that begins with `head` (16 bytes, or all there are); `None` when it is not a known one. The magic numbers are
    /// from the formats' specifications, and from file(1).
    #[must_use]
    pub fn of(head: &[u8]) -> Option<Self> {
        Some(match head {
            [0x1F, 0x8B, ..] => stream("gzip", "gzip -dc"),
            [0x1F, 0x9D, ..] => stream("compress", "gzip -dc"),
            // A frame (RFC 8878, 3.1.1), or a skippable one.
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => stream("zstd", "zstd -dc --long=31"),
            [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => stream("xz", "xz -dc"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => stream("bzip2", "bzip2 -dc"),
            // A frame, and one of the older format.
            [0x04, 0x22, 0x4D, 0x18, ..] | [0x02, 0x21, 0x4C, 0x18, ..] => stream("lz4", "lz4 -dc"),
            [b'L', b'Z', b'I', b'P', 0 | 1, ..] => stream("lzip", "lzip -dc"),
            [0x89, b'L', b'Z', b'O', 0, 0x0D, 0x0A, 0x1A, 0x0A, ..] => stream("lzop", "lzop -dc"),
            // It has no magic number: these are the properties that every program writes, and the size of the dictionary, which is never 0.
            [0x5D, 0, 0, size, more, ..] if *size != 0 || *more != 0 => stream("lzma", "xz -dc"),
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, ..] => files("zip", "unzip -p"),
            [b'7', b'z', 0xBC, 0xAF, 0x27, 0x1C, ..] => files("7z", "7z x -so"),
            // As text, and as binary in either byte order (cpio(5)).
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2' | b'7', ..] | [0xC7, 0x71, ..] | [0x71, 0xC7, ..] => files("cpio", "bsdtar -xOf"),
            [b'x', b'a', b'r', b'!', ..] => files("xar", "bsdtar -xOf"),
            [b'!', b'<', b'a', b'r', b'c', b'h', b'>', b'\n', ..] => files("ar", "ar p"),
            _ => return None,
        })
    }

    /// The command, for a shell, that writes the content of `file` to its output.
    #[must_use]
    pub fn command(&self, file: &Path) -> String {
        format!("{} {}", self.unpack, word(file))
    }
}

/// True for a block that is a tar header, made by any kind of tar: its checksum is right. The magic number is not checked, because not all
/// headers have one.
#[must_use]
pub fn is_tar(block: &[u8]) -> bool {
    let Some(block) = block.first_chunk::<TAR_BLOCK>() else { return false };
    // The sum of all bytes, with blanks in place of the sum itself; in octal digits between blanks or zeros (pax(1), "ustar").
    let sum: u32 = block.iter().enumerate().map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte })).sum();
    let said = std::str::from_utf8(&block[148..156]).unwrap_or_default().trim_matches([' ', '\0']);
    u32::from_str_radix(said, 8) == Ok(sum)
}

/// A frame that refers farther back than [`WINDOW`].
#[derive(Debug, thiserror::Error)]
#[error("more than {} MiB of memory are needed to decompress it", (1 << WINDOW) >> 20)]
pub struct WindowTooLarge;

impl WindowTooLarge {
    /// True when `error` was caused by it.
    #[must_use]
    pub fn is_cause_of(error: &io::Error) -> bool {
        matches!(error.get_ref(), Some(own) if own.is::<Self>())
    }
}

/// The content of the zstd frames of a file, one after the other. Zeros after the last one, with which dd and tapes fill up a file, are
/// skipped, as by gzip.
pub struct Unzstd<R> {
    raw: BufReader<R>,
    decoder: Decoder<'static>,
    /// True before a frame, and after the last.
    between: bool,
}

impl<R: Read> Unzstd<R> {
    /// The content of `raw`, from its first frame on.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(raw: R) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW))?;
        Ok(Self { raw: BufReader::with_capacity(BUFFER, raw), decoder, between: true })
    }

    /// The input, which is at the start of a frame when [`Unzstd::is_between`] frames.
    pub fn raw(&self) -> &BufReader<R> {
        &self.raw
    }

    /// True before a frame, and after the last.
    pub fn is_between(&self) -> bool {
        self.between
    }

    /// Reads from the current frame, or the one that begins here; 0 when it has ended, or there is none. [`Unzstd`] itself, as a [`Read`],
    /// continues with the next frame.
    ///
    /// # Errors
    /// [`WindowTooLarge`]; when the file cannot be read, or is damaged.
    pub fn read_frame(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.between && is_at_end(&mut self.raw)? {
            return Ok(0);
        }
        loop {
            let packed = self.raw.fill_buf()?;
            let (mut from, mut to) = (InBuffer::around(packed), OutBuffer::around(&mut *into));
            let hint = self.decoder.run(&mut from, &mut to).map_err(too_large)?;
            let (taken, read, ended) = (from.pos(), to.pos(), packed.is_empty());
            self.raw.consume(taken);
            self.between = hint == 0;
            if read > 0 || self.between || into.is_empty() {
                return Ok(read);
            }
            if ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// True when only zeros follow, or nothing. Call it only [between](Unzstd::is_between) frames.
    ///
    /// # Errors
    /// When the file cannot be read, or something follows the zeros.
    pub fn is_at_end(&mut self) -> io::Result<bool> {
        is_at_end(&mut self.raw)
    }
}

impl<R: Read> Read for Unzstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.read_frame(into)?;
            if read > 0 || into.is_empty() || self.is_at_end()? {
                return Ok(read);
            }
        }
    }
}

fn too_large(error: io::Error) -> io::Error {
    if error.to_string() == TOO_LARGE { io::Error::other(WindowTooLarge) } else { error }
}

/// True when only zeros follow a member of a compressed file, or nothing; the zeros are skipped.
///
/// # Errors
/// When it cannot be read, or something follows the zeros.
pub fn is_at_end(raw: &mut impl BufRead) -> io::Result<bool> {
    let mut padded = false;
    loop {
        let chunk = raw.fill_buf()?;
        match chunk.first() {
            None => return Ok(true),
            Some(0) if chunk.iter().all(|byte| *byte == 0) => padded = true,
            Some(first) if padded || *first == 0 => return Err(io::Error::other("something follows the zeros at its end")),
            Some(_) => return Ok(false),
        }
        let len = chunk.len();
        raw.consume(len);
    }
}

/// A path as one word of a shell.
#[must_use]
pub fn word(path: &Path) -> String {
    let text = paths::text(path);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_told_by_its_first_bytes() {
        let cases: [(&[u8], Option<&str>); 20] = [
            (&[0x1F, 0x8B, 8, 0], Some("gzip -dc a")),
            (&[0x28, 0xB5, 0x2F, 0xFD], Some("zstd -dc --long=31 a")),
            (&[0x5E, 0x2A, 0x4D, 0x18, 0], Some("zstd -dc --long=31 a")),
            (b"\xFD7zXZ\0\0\x04", Some("xz -dc a")),
            (b"BZh91AY&SY", Some("bzip2 -dc a")),
            (b"BZh of a name", None),
            (&[0x04, 0x22, 0x4D, 0x18, 0x64], Some("lz4 -dc a")),
            (b"PK\x03\x04\x14\0", Some("unzip -p a")),
            (b"7z\xBC\xAF\x27\x1C", Some("7z x -so a")),
            (b"LZIP\x01", Some("lzip -dc a")),
            (b"070701009864f7", Some("bsdtar -xOf a")),
            (b"070703", None),
            (b"\xC7\x71\0\xFE", Some("bsdtar -xOf a")),
            (b"xar!\0\x1C\0\x01", Some("bsdtar -xOf a")),
            (b"!<arch>\ndebian-binary", Some("ar p a")),
            (b"!<arch> of a name", None),
            (&[0x5D, 0, 0, 0x80, 0, 0xFF], Some("xz -dc a")),
            (b"]\0\0\0\0\0", None),
            (b"etc/hosts", None),
            (b"", None),
        ];
        for (head, command) in cases {
            assert_eq!(Compression::of(head).map(|found| found.command(Path::new("a"))).as_deref(), command, "{head:?}");
        }
    }

    #[test]
    fn frames_follow_each_other_and_zeros_fill_up() {
        let frame = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
        let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0][..], b"own"].concat();
        let read = |packed: &[&[u8]]| {
            let mut all = Vec::new();
            Unzstd::new(&packed.concat()[..])?.read_to_end(&mut all).map(|_| all)
        };
        let (one, two, zeros) = (frame(b"one"), frame(b"two"), vec![0; 300_000]);
        assert_eq!(read(&[&one, &skippable, &frame(b""), &two]).unwrap(), b"onetwo");
        assert_eq!(read(&[&one, &two, &zeros]).unwrap(), b"onetwo");
        assert_eq!(read(&[]).unwrap(), b"");
        for damaged in [&[&one[..], &zeros, &two][..], &[&one, b"x"], &[&one, &two[..two.len() - 1]], &[&skippable[..9]]] {
            assert!(read(damaged).is_err(), "{damaged:?}");
        }
        let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        wide.window_log(WINDOW + 1).unwrap();
        io::Write::write_all(&mut wide, b"of unknown length").unwrap();
        let error = read(&[&wide.finish().unwrap()]).unwrap_err();
        assert!(WindowTooLarge::is_cause_of(&error), "{error}");
    }

    #[test]
    fn a_tar_header_is_told_by_its_checksum() {
        let mut header = tar::Header::new_old();
        header.set_path("etc/").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut block = *header.as_bytes();
        assert!(is_tar(&block) && !is_tar(&block[..511]) && !is_tar(&[0; TAR_BLOCK]));
        block[0] ^= 1;
        assert!(!is_tar(&block));
    }

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(word(Path::new("/a/b-1.tar.xz")), "/a/b-1.tar.xz");
        assert_eq!(word(Path::new("a b's")), r"'a b'\''s'");
    }
}
