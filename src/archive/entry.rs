//! One entry of an archive: what it is, and everything about it that a restore brings back.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::acl;
use crate::error::{damaged, unsupported};

/// The longest path the kernel takes (`PATH_MAX` less its terminating zero).
pub(super) const LONGEST_PATH: usize = 4095;
/// Bytes of a name that are shown whole.
const LONGEST_SHOWN: usize = 400;
/// The longest name in a directory, and of an extended attribute (`NAME_MAX`, `XATTR_NAME_MAX`).
const LONGEST_NAME: usize = 255;
/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
const LONGEST_VALUE: usize = 64 << 10;
/// What an entry takes in memory beyond its names and attributes, at most.
pub(super) const ENTRY: usize = 100;
/// What one entry may take in memory.
pub(super) const LARGEST_ENTRY: u64 = 512 << 10;
/// What all entries of an archive may take: more than a million do of the usual size. Any pod can make files with long names and large
/// attributes, and an archive of a few kilobytes can hold as many. This bounds the memory, beyond what trees of nodes need: to compare an
/// archive that comes up to it takes half as much again.
pub(super) const LARGEST_TABLE: u64 = 256 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    /// Another name of an earlier entry that is not a directory.
    HardLink,
    Fifo,
    CharDevice,
    BlockDevice,
}

/// A time as file systems keep it: seconds since 1970, and the nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// Extended attributes: name and value, sorted by name. ACLs are among them, as the kernel's `system.posix_acl_*`.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The flag that forbids every change (`chattr +i`).
pub(super) const IMMUTABLE: u8 = 1;
/// The flag that forbids every change but appending (`chattr +a`).
pub(super) const APPEND_ONLY: u8 = 2;

/// What many entries have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub(super) struct Attributes {
    /// Permissions, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// [`IMMUTABLE`], [`APPEND_ONLY`].
    pub(super) flags: u8,
    pub(super) xattrs: Xattrs,
}

impl Attributes {
    /// What they take in memory.
    pub(super) fn weight(&self) -> u64 {
        self.xattrs.iter().map(|(name, value)| (ENTRY + name.len() + value.len()) as u64).sum()
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Relative to the root of the tree, without a slash at either end; the root itself is empty.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
    pub(super) mtime: Time,
    /// Of a file, bytes, holes included; else 0.
    pub(super) size: u64,
    /// Of a symbolic link, where it points; of a hard link, the path of the earlier entry; else empty.
    pub(super) target: Vec<u8>,
    /// Of a device, major and minor; else 0.
    pub(super) device: (u32, u32),
}

impl Entry {
    /// What it takes in memory, without its attributes.
    pub(super) fn weight(&self) -> u64 {
        (ENTRY + self.path.len() + self.target.len()) as u64
    }

    /// Makes of an entry what a file system makes of it: the mode says what an access ACL says, as GNU tar and bsdtar restore it (bsdtar writes the
    /// ACL's group into the mode, where a file system shows its mask), and an ACL that says no more than the mode is none. What earlier releases
    /// packed of XFS's second view of ACLs is left out.
    pub(super) fn settle(&mut self) {
        let Attributes { mode, xattrs, .. } = &mut self.attributes;
        xattrs.retain(|(name, value)| {
            if name == acl::ACCESS {
                *mode = acl::mode_of(value, *mode);
            }
            !(acl::is_twin(name) || name == acl::ACCESS && acl::is_mode(value))
        });
    }

    /// Checks what a tar header or an index can say and the kernel cannot.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when something is not as it can be on any disk.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |why: &str| Err(damaged(format!("the archive is hostile or damaged: {} {why}", shown(&self.path))));
        if !self.path.is_empty()
            && let Err(why) = check_path(&self.path)
        {
            return refuse(why);
        }
        if self.path.len() > LONGEST_PATH || self.path.split(|b| *b == b'/').any(|name| name.len() > LONGEST_NAME) {
            return refuse("has a name that is too long");
        }
        let Self { kind, size, target, attributes, mtime, device, .. } = self;
        let link = matches!(kind, Kind::Symlink | Kind::HardLink);
        if (*kind != Kind::File && *size != 0) || link == target.is_empty() || target.contains(&0) || target.len() > LONGEST_PATH {
            return refuse("is not sound");
        }
        // The kernel takes the owner -1 for "leave it as it is", and keeps 12 bits of a major number and 20 of a minor.
        let ids = attributes.uid == u32::MAX || attributes.gid == u32::MAX;
        if ids || device.0 >= 1 << 12 || device.1 >= 1 << 20 {
            return refuse("has an owner or a device number that no system can have");
        }
        if attributes.mode & !0o7777 != 0 || mtime.nanoseconds >= 1_000_000_000 || i64::try_from(*size).is_err() {
            return refuse("has numbers that are out of range");
        }
        let sound = |(name, value): &(Vec<u8>, Vec<u8>)| {
            super::tree::is_kept(name) && !name.contains(&0) && name.len() <= LONGEST_NAME && value.len() <= LONGEST_VALUE
        };
        if let Some((name, _)) = attributes.xattrs.iter().find(|(name, value)| acl::is_acl(name) && !acl::is_valid(value)) {
            return refuse(&format!("has an ACL that no file system takes ({})", name.escape_ascii()));
        }
        if *kind != Kind::Directory && attributes.xattrs.iter().any(|(name, _)| name == acl::DEFAULT) {
            return refuse("has a default ACL and is not a directory");
        }
        if !attributes.xattrs.iter().all(sound) || !attributes.xattrs.is_sorted_by(|a, b| a.0 < b.0) {
            return refuse("has attributes that are not sound");
        }
        Ok(())
    }
}

/// BLAKE3 of a file's content. Aligned blocks of 4 KiB that hold nothing but zeros are left out, whether they are stored or holes; when there
/// are any, a BLAKE3 of that hash, of where they are, and of the size: see [`Content`](super::content::Content).
pub(super) type Hash = [u8; 32];

/// The order of a walk that visits a directory before what is in it, and names by their bytes.
pub(super) fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    // A slash ends a component, so it comes before every byte that could continue it; no name holds a zero byte.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// The directory that holds `path`, and its name there; `None` for the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// A path with `name` added.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, name].join(&b'/') }
}

/// A path, for messages: quoted, and what a terminal would act on is escaped.
pub(super) fn shown(path: &[u8]) -> String {
    if path.is_empty() { "the root of the tree".to_owned() } else { quoted(path) }
}

/// The middle of a name so long that nobody reads it is left out.
fn quoted(name: &[u8]) -> String {
    let quote = |name: &[u8]| format!("{:?}", OsStr::from_bytes(name));
    if name.len() <= LONGEST_SHOWN {
        return quote(name);
    }
    let (head, tail) = (&name[..LONGEST_SHOWN / 2], &name[name.len() - LONGEST_SHOWN / 4..]);
    format!("{} … {} ({} bytes)", quote(head), quote(tail), name.len())
}

/// The path of an entry from its name in the archive. Empty components and `.` lead nowhere, and are left out as the kernel does; a name that begins
/// with a slash is one below the root of the tree, as GNU tar and bsdtar take it; every name that could lead out of the tree is refused.
///
/// # Errors
/// `FailureKind::Damaged` for a name that is empty, or has `..` in it; `FailureKind::Unsupported` for one that is too long: some file system may have
/// had it.
pub(super) fn path_from_name(name: &[u8]) -> Result<Vec<u8>> {
    let refuse = |why: &str| damaged(format!("the archive is hostile or damaged: the name {} {why}", quoted(name)));
    if name.is_empty() {
        return Err(refuse("is empty"));
    }
    let path = name.split(|b| *b == b'/').filter(|part| !matches!(part, [] | [b'.'])).collect::<Vec<_>>().join(&b'/');
    // What is left of "./", "." and "/" is the root.
    if !path.is_empty() {
        check_path(&path).map_err(refuse)?;
    }
    let longest = path.split(|b| *b == b'/').map(<[u8]>::len).max().unwrap_or(0);
    if path.len() > LONGEST_PATH || longest > LONGEST_NAME {
        return Err(unsupported(format!(
            "the name {} in the archive is too long: a path of at most {LONGEST_PATH} bytes is taken, of names of at most {LONGEST_NAME}, as Linux takes \
             them in one call; pack the tree without it",
            quoted(name)
        )));
    }
    Ok(path)
}

/// Says what is wrong with a path, if anything: see [`path_from_name`].
pub(super) fn check_path(path: &[u8]) -> Result<(), &'static str> {
    if path.starts_with(b"/") {
        return Err("is absolute");
    }
    if path.contains(&0) {
        return Err("holds a zero byte");
    }
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" => return Err("has an empty component"),
            b"." | b".." => return Err("leaves its directory"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn names_that_leave_the_tree_are_refused() {
        for name in ["", "..", "/..", "/../a", "a/..", "a/../../b", "../a", "./../a", "a//..", "a/./../..", "//..", "a\0b"] {
            let error = path_from_name(name.as_bytes()).unwrap_err();
            assert_eq!(exit_code(&error), 65, "{name:?}");
        }
    }

    #[test]
    fn names_that_are_too_long_are_not_supported_and_not_printed_whole() -> Result<()> {
        let (fits, deep_and_fits) = ("x".repeat(255), format!("{}x", "x/".repeat(2047)));
        for name in [&fits, &deep_and_fits] {
            assert_eq!(path_from_name(name.as_bytes())?, name.as_bytes());
        }
        for name in ["x".repeat(256), format!("{deep_and_fits}x"), "x/".repeat(5000)] {
            let error = path_from_name(name.as_bytes()).unwrap_err();
            assert_eq!(exit_code(&error), 64, "{name:?}");
            let text = error.to_string();
            assert!(text.len() < 1000 && text.contains("4095 bytes") && text.contains("at most 255"), "{text}");
        }
        Ok(())
    }

    #[test]
    fn names_of_gnu_tar_are_understood() -> Result<()> {
        for (name, path) in [("./", ""), (".", ""), ("./a", "a"), ("./a/", "a"), ("a/b/", "a/b"), ("...", "..."), (".a", ".a")]
            .into_iter()
            .chain([("a//b", "a/b"), ("a/./b", "a/b"), (".//a", "a"), ("a/.", "a"), ("a/./", "a"), (".//./", "")])
            .chain([("/", ""), ("//", ""), ("/etc/passwd", "etc/passwd"), ("//a", "a"), ("/./a/", "a")])
        {
            assert_eq!(path_from_name(name.as_bytes())?, path.as_bytes(), "{name}");
        }
        Ok(())
    }

    #[test]
    fn the_order_is_that_of_a_walk() {
        let sorted = ["", "a", "a/b", "a/b/c", "a/c", "a.b", "a0", "b"];
        for pair in sorted.windows(2) {
            assert_eq!(compare_paths(pair[0].as_bytes(), pair[1].as_bytes()), Ordering::Less, "{pair:?}");
        }
    }
}
