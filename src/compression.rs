//! What a file is packed with, by its first bytes: so that a sound file of a kind that is not read here is named for what it is, with the
//! command that makes it readable, and nobody takes a backup for lost.

use std::path::Path;

use crate::report::paths;

/// A program's format that a file can be packed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// What the format is called.
    pub name: &'static str,
    /// It holds files with names, and not one stream.
    pub holds_files: bool,
    /// The command that writes what is in a file, whose name follows, to its output; of several files, one after the other.
    unpack: &'static str,
}

const fn stream(name: &'static str, unpack: &'static str) -> Compression {
    Compression { name, holds_files: false, unpack }
}

const fn files(name: &'static str, unpack: &'static str) -> Compression {
    Compression { name, holds_files: true, unpack }
}

impl Compression {
    /// The compression that a file has which begins with `head` (16 bytes, or all there are); `None` when it is none of those known.
    /// The magic numbers are those of the formats' specifications, and of file(1).
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
            // A frame, and one of the format before it.
            [0x04, 0x22, 0x4D, 0x18, ..] | [0x02, 0x21, 0x4C, 0x18, ..] => stream("lz4", "lz4 -dc"),
            [b'L', b'Z', b'I', b'P', 0 | 1, ..] => stream("lzip", "lzip -dc"),
            [0x89, b'L', b'Z', b'O', 0, 0x0D, 0x0A, 0x1A, 0x0A, ..] => stream("lzop", "lzop -dc"),
            // It has no magic number: properties as every program writes them, and the size of the dictionary, which is never none.
            [0x5D, 0, 0, size, more, ..] if *size != 0 || *more != 0 => stream("lzma", "xz -dc"),
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, ..] => files("zip", "unzip -p"),
            [b'7', b'z', 0xBC, 0xAF, 0x27, 0x1C, ..] => files("7z", "7z x -so"),
            // In text, and in binary of either byte order (cpio(5)).
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2' | b'7', ..] | [0xC7, 0x71, ..] | [0x71, 0xC7, ..] => files("cpio", "bsdtar -xOf"),
            [b'x', b'a', b'r', b'!', ..] => files("xar", "bsdtar -xOf"),
            [b'!', b'<', b'a', b'r', b'c', b'h', b'>', b'\n', ..] => files("ar", "ar p"),
            _ => return None,
        })
    }

    /// The command, for a shell, that writes what is in `file` to its output.
    #[must_use]
    pub fn command(&self, file: &Path) -> String {
        format!("{} {}", self.unpack, word(file))
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
    fn a_path_is_one_word() {
        assert_eq!(word(Path::new("/a/b-1.tar.xz")), "/a/b-1.tar.xz");
        assert_eq!(word(Path::new("a b's")), r"'a b'\''s'");
    }
}
