//! Paths in reports. A name on disk is any bytes, JSON and people's terminals want text: what is not UTF-8 is escaped, `\xff`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// A path as text: one that is UTF-8 as it is; of another, each byte that is not as `\x` and two digits.
#[must_use]
pub fn text(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
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
pub fn with_reasons<S: Serializer>(paths: &[(PathBuf, String)], to: S) -> Result<S::Ok, S::Error> {
    paths.iter().map(|(path, why)| (text(path), why)).collect::<Vec<_>>().serialize(to)
}
