//! POSIX ACLs: conversion between the kernel's binary attribute (`linux/posix_acl_xattr.h`, version 2) and the text in tar archives
//! (`SCHILY.acl.access`, `SCHILY.acl.default`: star(5), acl(5)). Our own archives have users and groups as numbers. GNU tar writes names;
//! like tar, the agent looks them up in the files of the system that it runs on (also when the tree belongs to another system, or `--root`
//! names one): see [`Names`].

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Result, anyhow};

use crate::error::{damaged, unsupported};

/// The attribute of an access ACL.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of a directory's default ACL.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// XFS lists every ACL a second time under these names, in a format of its own (Linux, `fs/xfs/xfs_xattr.c`). Neither is a separate
/// attribute: removing it removes the ACL.
const TWINS: [&[u8]; 2] = [b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"];

const XATTR_VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
/// Numbers of the tags, their words, and whether they carry an id.
const TAGS: [(u16, &str, bool); 6] =
    [(1, "user", false), (2, "user", true), (4, "group", false), (8, "group", true), (16, "mask", false), (32, "other", false)];

/// The text of a binary ACL.
///
/// # Errors
/// When it is of another version, or not an ACL at all.
pub(super) fn to_text(binary: &[u8]) -> Result<String> {
    let odd = || anyhow!("an ACL is not of the form that Linux keeps (version 2)");
    let (version, entries) = binary.split_first_chunk::<4>().ok_or_else(odd)?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != XATTR_VERSION || !rest.is_empty() {
        return Err(odd());
    }
    let mut text = String::new();
    for &[t0, t1, p0, p1, i0, i1, i2, i3] in entries {
        let (tag, permissions) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]));
        let (_, word, has_id) = TAGS.iter().find(|known| known.0 == tag).ok_or_else(odd)?;
        let id = if *has_id { u32::from_le_bytes([i0, i1, i2, i3]).to_string() } else { String::new() };
        let bit = |bit, letter| if permissions & bit != 0 { letter } else { '-' };
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, "{comma}{word}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'))?;
    }
    Ok(text)
}

/// True for the two attributes that hold ACLs.
pub(super) fn is_acl(name: &[u8]) -> bool {
    matches!(name, ACCESS | DEFAULT)
}

/// True for an attribute that is only a second view of an ACL: see [`TWINS`].
pub(super) fn is_twin(name: &[u8]) -> bool {
    TWINS.contains(&name)
}

/// The numbers of users and groups by name, read from files only: a name service can be slow, or missing.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Names {
    /// The names of the system below `root`: `/etc` first, then `/usr/lib`, where image-based systems keep their own (nss-altfiles).
    pub(super) fn of(root: &Path) -> Self {
        let read = |name: &str| {
            let mut all = HashMap::new();
            for directory in ["etc", "usr/lib"] {
                let bytes = std::fs::read(root.join(directory).join(name)).unwrap_or_default();
                for line in String::from_utf8_lossy(&bytes).lines() {
                    // passwd(5), group(5): both begin with name, password and number.
                    let mut fields = line.split(':');
                    if let (Some(name), Some(Ok(id))) = (fields.next(), fields.nth(1).map(str::parse)) {
                        all.entry(name.to_owned()).or_insert(id);
                    }
                }
            }
            all
        };
        Self { users: read("passwd"), groups: read("group") }
    }

    fn find(&self, word: &str, name: &str) -> Result<u32> {
        let (known, file) = if word == "user" { (&self.users, "/etc/passwd") } else { (&self.groups, "/etc/group") };
        known.get(name).copied().ok_or_else(|| {
            unsupported(format!(
                "an ACL has the {word} {name:?} by name only, but {file} of the running system does not have it: add the {word}, or make \
                 the archive with `recovery archive pack`, which writes numbers"
            ))
        })
    }
}

/// The binary form of an ACL's text, short or long. Entries are separated by commas or newlines; star's fourth field is the id. The entries
/// are put into the order that the kernel wants: bsdtar writes them in another.
///
/// # Errors
/// `FailureKind::Damaged` when it cannot be read; `FailureKind::Unsupported` when it names a user or group that `names` does not have.
pub(super) fn from_text(text: &[u8], names: impl Fn() -> &'static Names) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(text).map_err(|_| damaged("an ACL in the archive is not text"))?;
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let read = entry(line).ok_or_else(|| damaged(format!("an ACL in the archive has an entry that cannot be read: {line:?}")))?;
        let id = match read.who {
            Who::Nobody => NO_ID,
            Who::Number(id) => id,
            Who::Name(word, name) => names().find(word, name)?,
        };
        entries.push((read.tag, read.permissions, id));
    }
    // The tags' numbers are in that order; entries with the same tag keep theirs.
    entries.sort_by_key(|(tag, ..)| *tag);
    let mut binary = XATTR_VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        binary.extend_from_slice(&tag.to_le_bytes());
        binary.extend_from_slice(&permissions.to_le_bytes());
        binary.extend_from_slice(&id.to_le_bytes());
    }
    Ok(binary)
}

/// The tags, permissions and ids of a binary ACL.
fn entries(binary: &[u8]) -> impl Iterator<Item = (u16, u16, u32)> + '_ {
    let (entries, _) = binary.get(4..).unwrap_or_default().as_chunks::<8>();
    entries.iter().map(|[t0, t1, p0, p1, i0, i1, i2, i3]| {
        (u16::from_le_bytes([*t0, *t1]), u16::from_le_bytes([*p0, *p1]), u32::from_le_bytes([*i0, *i1, *i2, *i3]))
    })
}

/// Sets the id of entries that name nobody to what the kernel shows there: it reads past whatever another program has written.
pub(super) fn normalize(binary: &mut [u8]) {
    let (entries, _) = binary.get_mut(4..).unwrap_or_default().as_chunks_mut::<8>();
    for entry in entries {
        if !matches!(u16::from_le_bytes([entry[0], entry[1]]), 2 | 8) {
            entry[4..].copy_from_slice(&NO_ID.to_le_bytes());
        }
    }
}

/// True for an ACL that the kernel accepts (`posix_acl_valid`): in order, one entry each for owner, group and others, and a mask when any
/// user or group is named.
pub(super) fn is_valid(binary: &[u8]) -> bool {
    let count = |tag| entries(binary).filter(|entry| entry.0 == tag).count();
    let named = count(2) + count(8) > 0;
    to_text(binary).is_ok()
        && entries(binary).map(|entry| entry.0).is_sorted()
        && entries(binary).all(|(tag, permissions, id)| permissions <= 7 && (!matches!(tag, 2 | 8) || id != NO_ID))
        && [1, 4, 32].into_iter().all(|tag| count(tag) == 1)
        && (usize::from(named)..=1).contains(&count(16))
}

/// `mode` with the permissions of an access ACL for owner, group and others, as the kernel shows it once the ACL is set: where the ACL has
/// a mask, the mode's group bits are the mask.
pub(super) fn mode_of(binary: &[u8], mode: u32) -> u32 {
    let masked = entries(binary).any(|entry| entry.0 == 16);
    entries(binary).fold(mode, |mode, (tag, permissions, _)| {
        let shift = match tag {
            1 => 6,
            4 if !masked => 3,
            16 => 3,
            32 => 0,
            _ => return mode,
        };
        mode & !(7 << shift) | u32::from(permissions & 7) << shift
    })
}

/// True for an access ACL that says no more than the mode: file systems do not store it.
pub(super) fn is_mode(binary: &[u8]) -> bool {
    entries(binary).all(|entry| TAGS.iter().any(|(tag, word, has_id)| *tag == entry.0 && !has_id && *word != "mask"))
}

/// One entry of an ACL's text.
struct Line<'a> {
    tag: u16,
    permissions: u16,
    who: Who<'a>,
}

/// Whom an entry names.
enum Who<'a> {
    Nobody,
    Number(u32),
    /// `user` or `group`, and the name.
    Name(&'static str, &'a str),
}

fn entry(line: &str) -> Option<Line<'_>> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    // `other` and `mask` may be written without the empty field.
    let (word, who, permissions, number) = match fields.as_slice() {
        [word @ ("m" | "mask" | "o" | "other"), permissions] => (*word, "", *permissions, None),
        [word, who, permissions] => (*word, *who, *permissions, None),
        [word, who, permissions, number] => (*word, *who, *permissions, Some(*number)),
        _ => return None,
    };
    let word = match word {
        "u" => "user",
        "g" => "group",
        "m" => "mask",
        "o" => "other",
        word => word,
    };
    let (tag, word, has_id) = TAGS.iter().find(|(_, known, has_id)| *known == word && *has_id != who.is_empty())?;
    let who = match number {
        _ if !has_id => Who::Nobody,
        Some(number) => Who::Number(number.parse().ok()?),
        // As in setfacl(1), digits are a number.
        None => who.parse().map_or(Who::Name(word, who), Who::Number),
    };
    let mut bits = 0;
    for letter in permissions.chars() {
        bits |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    Some(Line { tag: *tag, permissions: bits, who })
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::error::exit_code;

    /// The names of a system that has the user joe and the group wheel.
    fn names() -> &'static Names {
        static NAMES: OnceLock<Names> = OnceLock::new();
        NAMES.get_or_init(|| {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(root.path().join("etc")).unwrap();
            std::fs::create_dir_all(root.path().join("usr/lib")).unwrap();
            std::fs::write(root.path().join("etc/passwd"), "joe:x:1000:1000::/:/bin/sh\nbroken\n").unwrap();
            std::fs::write(root.path().join("usr/lib/passwd"), "joe:x:1:1::/:/bin/sh\ncore:x:1001:1::/:/bin/sh\n").unwrap();
            std::fs::write(root.path().join("etc/group"), "wheel:x:10:joe\n").unwrap();
            Names::of(root.path())
        })
    }

    fn binary(text: &str) -> Vec<u8> {
        from_text(text.as_bytes(), names).unwrap()
    }

    #[test]
    fn text_and_binary_are_the_same() -> Result<()> {
        let text = "user::rwx,user:1000:r--,group::r-x,group:4294967000:--x,mask::r-x,other::---";
        let list = binary(text);
        assert_eq!(list.len(), 4 + 6 * 8);
        assert_eq!(to_text(&list)?, text);
        let long = "user::rwx\nuser:joe:r--:1000\t#effective:r--\ng::r-x\ngroup:4294967000:x\nm:r-x\nother:---\n";
        assert_eq!(binary(long), list);
        assert!(!is_mode(&list) && is_mode(&binary("user::rwx,group::r-x,other::---")));
        Ok(())
    }

    #[test]
    fn the_order_of_other_programs_becomes_that_of_the_kernel() {
        let list = binary("user::rw-,group::r--,other::r--,group:7:r--,user:9:rw-,user:8:r--,mask::rw-");
        assert_eq!(to_text(&list).unwrap(), "user::rw-,user:9:rw-,user:8:r--,group::r--,group:7:r--,mask::rw-,other::r--");
        assert!(is_valid(&list));
    }

    #[test]
    fn names_are_looked_up_in_the_files_of_the_system() {
        let list = binary("user::rw-,user:joe:rw-,user:core:r--,group::r--,group:wheel:r--,mask::rw-,other::r--");
        assert_eq!(to_text(&list).unwrap(), "user::rw-,user:1000:rw-,user:1001:r--,group::r--,group:10:r--,mask::rw-,other::r--");
        for text in ["user:nobody-has-it:rwx", "group:joe:rwx", "user:broken:r--"] {
            let error = from_text(text.as_bytes(), names).unwrap_err();
            assert_eq!(exit_code(&error), 64, "{error:#}");
        }
    }

    #[test]
    fn an_id_where_nobody_is_named_says_nothing() {
        let list = binary("user::rwx,user:7:r--,group::r-x,mask::r-x,other::r-x");
        let mut odd = list.clone();
        // The entries of the owner and of the group.
        for at in [4 + 4, 4 + 2 * 8 + 7] {
            odd[at] = 9;
        }
        assert_ne!(odd, list);
        normalize(&mut odd);
        assert_eq!(odd, list);
        normalize(&mut [2, 0, 0]);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_not_valid() {
        for text in [
            "user::rw-,user:9:rw-,group::r--,other::r--",
            "user::rw-,group::r--",
            "user::rw-,user::rw-,group::r--,other::r--",
            "user::rw-,group::r--,mask::r--,mask::r--,other::r--",
            "user::rw-,user:4294967295:rw-,group::r--,mask::r--,other::r--",
            "",
        ] {
            assert!(!is_valid(&binary(text)), "{text}");
        }
        assert!(is_valid(&binary("user::rw-,group::r--,other::r--")) && is_valid(&binary("user::rw-,group::r--,mask::r--,other::r--")));
        assert!(!is_valid(b""));
    }

    #[test]
    fn the_mode_follows_an_acl_as_in_the_kernel() {
        for (list, mode) in [
            ("user::rw-,user:9:rwx,group::r--,mask::rw-,other::--x", 0o4661),
            ("user::r-x,group::rwx,other::---", 0o4570),
            ("user::rwx,group::---,mask::rwx,other::r--", 0o4774),
            ("user::rw-", 0o4644),
        ] {
            assert_eq!(mode_of(&binary(list), 0o4744), mode, "{list}");
        }
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        for text in ["user::rwz", "rwx", "clown::rwx", "user:1000", "other:5:rwx", "user:joe:rwx:x"] {
            assert_eq!(exit_code(&from_text(text.as_bytes(), names).unwrap_err()), 65, "{text}");
        }
        assert!(to_text(b"\x01\0\0\0").is_err());
        assert!(to_text(b"\x02\0\0\0\x03\0\0\0\0\0\0\0").is_err());
        assert!(to_text(b"\x02\0\0\0\x01").is_err());
    }
}
