//! Paths in reports. A name on disk is any bytes, JSON and people's terminals want text: what is not UTF-8 is escaped, `\xff`. JSON has the rest
//! exactly ([`text`]); people are shown what a terminal would obey ([`shown`]).

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::words;

/// A path as text, exactly: one that is UTF-8 as it is; of another, each byte that is not as `\x` and two digits.
#[must_use]
pub fn text(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// A path as people see it, in one line: also what a terminal would obey is escaped (see [`words::line`]). A backslash of the name itself is
/// doubled, as `ls -b` does, so that `\x1b` is told from an escape.
#[must_use]
pub fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(&words::line(&chunk.valid().replace('\\', "\\\\")));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// Writes a path in a report; for `serialize_with`.
///
/// # Errors
/// Those of the serializer.
pub fn one<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(path))
}

/// Writes paths, and why, in a report; for `serialize_with`.
///
/// # Errors
/// Those of the serializer.
pub fn with_reasons<W: Serialize, S: Serializer>(paths: &[(PathBuf, W)], to: S) -> Result<S::Ok, S::Error> {
    paths.iter().map(|(path, why)| (text(path), why)).collect::<Vec<_>>().serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_name_is_exact_for_json_and_harmless_for_people() {
        let path = |bytes| Path::new(OsStr::from_bytes(bytes)).to_owned();
        let hostile = path(b"etc/a\x1b]0;t\x07\nb \xff\\c\xc2\x9b");
        assert_eq!(text(&hostile), "etc/a\x1b]0;t\x07\nb \\xff\\c\u{9b}");
        assert_eq!(shown(&hostile), "etc/a\\x1b]0;t\\x07\\nb \\xff\\\\c\\u{9b}");
        assert_eq!(shown(&path("caf\u{e9} x".as_bytes())), "caf\u{e9} x");
    }
}
