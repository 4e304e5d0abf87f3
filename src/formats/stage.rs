//! `directories` in the stage of a restore, and the attribute on the directory that the stage is in: what directories on the way were like,
//! for whoever comes after a restore that was killed. In the format of postcard.
//!
//! Those of another version are passed over, with a warning: they are renamed when they are whole, so that what cannot be read is another
//! agent's, or nobody's, and to stop for it would help no one.

use serde::{Deserialize, Serialize};

use super::Format;

/// This format.
pub const FORMAT: Format = Format { name: "the notes of a restore", version: 1 };

/// Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct V1 {
    /// 1.
    pub version: u8,
    /// The directories.
    pub directories: Vec<DirectoryV1>,
}

/// A directory as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DirectoryV1 {
    /// Relative to the directory that the stage is in.
    pub path: Vec<u8>,
    /// The time of its last change: seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
    /// Flags that forbid changes.
    pub flags: u8,
}

/// What was noted; `None` for anything that is not of this version.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<V1> {
    let (read, rest) = postcard::take_from_bytes::<V1>(bytes).ok()?;
    (u32::from(read.version) == FORMAT.version && rest.is_empty()).then_some(read)
}

/// What is written.
///
/// # Errors
/// When it cannot be serialized.
pub fn write(directories: Vec<DirectoryV1>) -> postcard::Result<Vec<u8>> {
    postcard::to_stdvec(&V1 { version: 1, directories })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::samples;

    #[test]
    fn version_1_stays_as_it_is_and_another_is_nothing() {
        let mut sample = samples::read("stage.1.bin");
        let notes = read(&sample).unwrap();
        assert_eq!(notes.directories.len(), 2);
        samples::same("stage.1.bin", &write(notes.directories).unwrap());
        samples::schema::<V1>("stage", 1);
        sample[0] = 2;
        assert_eq!(read(&sample), None);
    }
}
