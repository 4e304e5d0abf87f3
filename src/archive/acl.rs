//! POSIX ACLs: between the kernel's binary attribute (`linux/posix_acl_xattr.h`, version 2) and the text that tar archives hold
//! (`SCHILY.acl.access`, `SCHILY.acl.default`: star(5), acl(5)). Users and groups are numbers: no name is ever looked up.

use std::fmt::Write;

use anyhow::{Result, anyhow};

use crate::error::damaged;

/// The attribute of an access ACL.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of a directory's default ACL.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
/// Tag numbers, their words, and whether they carry an id.
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
    if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
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

/// The binary form of an ACL's text, short or long, its entries separated by commas or lines; star's fourth field is the id.
///
/// # Errors
/// `Failure::Damaged` when it cannot be read, or names a user or group by name only.
pub(super) fn from_text(text: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(text).map_err(|_| damaged("an ACL in the archive is not text"))?;
    let mut binary = VERSION.to_le_bytes().to_vec();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (tag, permissions, id) = entry(line).ok_or_else(|| damaged(format!("an ACL in the archive has an entry {line:?}")))?;
        binary.extend_from_slice(&tag.to_le_bytes());
        binary.extend_from_slice(&permissions.to_le_bytes());
        binary.extend_from_slice(&id.to_le_bytes());
    }
    Ok(binary)
}

/// True for an access ACL that says no more than the mode does: file systems do not keep it.
pub(super) fn is_mode(binary: &[u8]) -> bool {
    let (entries, _) = binary.get(4..).unwrap_or_default().as_chunks::<8>();
    entries
        .iter()
        .all(|[t0, t1, ..]| TAGS.iter().any(|(tag, word, has_id)| *tag == u16::from_le_bytes([*t0, *t1]) && !has_id && *word != "mask"))
}

fn entry(line: &str) -> Option<(u16, u16, u32)> {
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
    let (tag, _, has_id) = TAGS.iter().find(|(_, known, has_id)| *known == word && *has_id != who.is_empty())?;
    let id = if *has_id { number.unwrap_or(who).parse().ok()? } else { NO_ID };
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
    Some((*tag, bits, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn text_and_binary_are_the_same() -> Result<()> {
        let text = "user::rwx,user:1000:r--,group::r-x,group:4294967000:--x,mask::r-x,other::---";
        let binary = from_text(text.as_bytes())?;
        assert_eq!(binary.len(), 4 + 6 * 8);
        assert_eq!(to_text(&binary)?, text);
        let long = "user::rwx\nuser:joe:r--:1000\t#effective:r--\ng::r-x\ngroup:4294967000:x\nm:r-x\nother:---\n";
        assert_eq!(from_text(long.as_bytes())?, binary);
        assert!(!is_mode(&binary) && is_mode(&from_text(b"user::rwx,group::r-x,other::---")?));
        Ok(())
    }

    #[test]
    fn what_is_no_acl_is_refused() {
        for text in ["user:joe:rwx", "user::rwz", "rwx", "clown::rwx", "user:1000", "other:5:rwx"] {
            assert_eq!(exit_code(&from_text(text.as_bytes()).unwrap_err()), 65, "{text}");
        }
        assert!(to_text(b"\x01\0\0\0").is_err());
        assert!(to_text(b"\x02\0\0\0\x03\0\0\0\0\0\0\0").is_err());
        assert!(to_text(b"\x02\0\0\0\x01").is_err());
    }
}
