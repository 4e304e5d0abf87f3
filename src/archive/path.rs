//! Paths within a tree, and names in an archive that become such paths.
//!
//! A path is relative to the root of the tree, without a slash at either end; that of the root itself is empty.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;

use crate::error::{damaged, unsupported};

/// The longest path that the kernel accepts (`PATH_MAX` less its terminating zero).
pub(super) const LONGEST_PATH: usize = 4095;
/// The longest name that messages show whole, bytes.
const LONGEST_SHOWN: usize = 400;
/// The longest name in a directory, and of an extended attribute (`NAME_MAX`, `XATTR_NAME_MAX`).
pub(super) const LONGEST_NAME: usize = 255;

/// The order of a walk that visits a directory before what is in it, and names by their bytes.
pub(super) fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    // A slash ends a component, so it sorts before every byte that could continue one; no name holds a zero byte.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// True when `path` is `parent` or below it.
pub(super) fn is_below(path: &[u8], parent: &[u8]) -> bool {
    parent.is_empty() || (path.starts_with(parent) && (path.len() == parent.len() || path[parent.len()] == b'/'))
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

/// A path for messages: quoted, with control characters escaped.
pub(super) fn shown(path: &[u8]) -> String {
    if path.is_empty() { "the root of the tree".to_owned() } else { quoted(path) }
}

/// The middle of a long name is left out.
fn quoted(name: &[u8]) -> String {
    let quote = |name: &[u8]| format!("{:?}", OsStr::from_bytes(name));
    if name.len() <= LONGEST_SHOWN {
        return quote(name);
    }
    let (head, tail) = (&name[..LONGEST_SHOWN / 2], &name[name.len() - LONGEST_SHOWN / 4..]);
    format!("{} … {} ({} bytes)", quote(head), quote(tail), name.len())
}

/// The path of an entry, from its name in the archive. Empty components and `.` are left out, as the kernel ignores them. A name that
/// begins with a slash is taken as one below the root of the tree, as by GNU tar and bsdtar. Every name that could lead out of the tree is
/// refused.
///
/// # Errors
/// `FailureKind::Damaged` for a name that is empty or has `..` in it; `FailureKind::Unsupported` for one that is too long, because some
/// file system may allow it.
pub(super) fn path_from_name(name: &[u8]) -> Result<Vec<u8>> {
    let refuse = |why: &str| damaged(format!("the archive is hostile or damaged: the name {} {why}", quoted(name)));
    if name.is_empty() {
        return Err(refuse("is empty"));
    }
    let path = name.split(|b| *b == b'/').filter(|part| !matches!(part, [] | [b'.'])).collect::<Vec<_>>().join(&b'/');
    // After "./", "." or "/" nothing is left: the root.
    if !path.is_empty() {
        check_path(&path).map_err(refuse)?;
    }
    let longest = path.split(|b| *b == b'/').map(<[u8]>::len).max().unwrap_or(0);
    if path.len() > LONGEST_PATH || longest > LONGEST_NAME {
        return Err(unsupported(format!(
            "the name {} in the archive is too long: Linux accepts paths of at most {LONGEST_PATH} bytes, with names of at most \
             {LONGEST_NAME}, in one call; pack the tree without it",
            quoted(name)
        )));
    }
    Ok(path)
}

/// An error that says what is wrong with a path: see [`path_from_name`].
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
