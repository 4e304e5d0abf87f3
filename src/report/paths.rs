//! Paths in reports. A file name can be any bytes, but JSON and terminals need text: bytes that are not UTF-8 are escaped, `\xff`. JSON has
//! everything else unchanged ([`text`]); for people, control characters are escaped too ([`shown`]).

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::words;

/// A path as text, without loss: UTF-8 stays as it is; any other byte becomes `\x` and two digits.
#[must_use]
pub fn text(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// A path for people, on one line: control characters are escaped too (see [`words::line`]). A backslash in the name is doubled, as `ls -b`
/// does, so that it differs from an escape such as `\x1b`.
#[must_use]
pub fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(&words::line(&chunk.valid().replace('\\', "\\\\")));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// Serializes a path in a report; for `serialize_with`.
///
/// # Errors
/// The errors of the serializer.
pub fn one<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(path))
}

/// Serializes paths, each with a reason, in a report; for `serialize_with`.
///
/// # Errors
/// The errors of the serializer.
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
