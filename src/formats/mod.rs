//! What is written to disk and read again later, perhaps by another version of the agent: one module for each format.
//!
//! Each format has structs of its own that are used only for reading and writing. The rooms convert them from and into their working types
//! (`From`), so that a working type can change while the file stays the same. Each file names its version. The rules:
//!
//! * An agent writes the newest version that it knows, and reads every version there ever was.
//! * A field that a version does not have counts as damage and is never ignored: nobody knows what it was meant to change.
//! * A file of a newer version is sound and not supported: the message names the version of the agent that wrote it, where the file says so.
//! * A struct that belongs to a version has its number in its name (`V1`, `LineV2`): that of the first version with it, if later ones have
//!   it too.
//! * Any change of a layout is a new version, even one more optional field: the structs of the old version stay, with a `From` into the new
//!   ones.
//! * What the agent acts on later, and no sum elsewhere covers, ends with a [checksum](seal) of its own: a unit with one letter changed is still a
//!   unit's name, and would be another one.
//!
//! Some differ. An archive can be read without its [`index`], so that one of another version than the newest is passed over; what a restore that was
//! killed left in its [`stage`] or for an etcd it [`made`] is, too. What an unfinished backup notes ([`partial`]) is read by the agent alone that
//! began it: the sample of its version 1 is there to be discarded. The [`notes`] of steps go with the journal. Version 1 of the marker in a
//! [`member`] directory of etcd and of the reports in [`history`] do not say their version; later ones do. (Some fields of version 1 of [`manifest`] and [`undo`] came before there was this rule.)
//!
//! Every version that can be read has a sample in `tests/fixtures/formats/` (`NAME.VERSION.json`; `.jsonl`, `.bin`), with every field in
//! it, and its schema (`NAME.VERSION.schema.json`): a test reads each, writes it again, and compares both byte by byte, so that no layout
//! changes by accident.

pub mod deployment;
pub mod history;
pub mod index;
pub mod job_result;
pub mod journal;
pub mod last_run;
pub mod made;
pub mod manifest;
pub mod member;
pub mod notes;
pub mod partial;
pub mod partition;
pub mod pins;
pub mod schedule;
pub mod stage;
pub mod undo;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::{damaged, unsupported};

/// Comes before the checksum of a document, and after it.
const SUM: (&str, &str) = (",\n  \"sum\": \"", "\"\n}\n");
/// The end of a document without one.
const END: &str = "\n}\n";

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The name of such a file in messages: "manifest.json".
    pub name: &'static str,
    /// The newest version, which is the one that is written. The first version is 1.
    pub version: u32,
}

/// The fields that every version of every format has.
#[derive(Deserialize)]
struct Head {
    version: u32,
    /// The version of the agent that wrote it.
    agent: Option<String>,
}

impl Format {
    /// Reads a JSON document of this format. `layout` reads a document of a known version.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is of a newer version;
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it does not have the layout of its version.
    pub fn read<T>(self, json: &[u8], layout: impl FnOnce(u32, &[u8]) -> serde_json::Result<T>) -> Result<T> {
        let name = self.name;
        let bad = |error: serde_json::Error| damaged(format!("{name} is not valid: {error}"));
        // The version comes first: this agent does not know the layout of a newer one.
        let head: Head = serde_json::from_slice(json).map_err(bad)?;
        self.check_version(head.version, head.agent.as_deref())?;
        layout(head.version, json).map_err(bad)
    }

    /// Reads a JSON document of this format that ends with a [checksum](seal) from the version `since` on. `layout` reads the document without it.
    ///
    /// # Errors
    /// As [`Format::read`]; [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the checksum is missing, or is not that of the document.
    pub fn read_sealed<T>(self, since: u32, json: &[u8], layout: impl FnOnce(u32, &[u8]) -> serde_json::Result<T>) -> Result<T> {
        let bad = |why: &str| damaged(format!("{} is not valid: {why}", self.name));
        let content = match checked(json) {
            // Before its version is looked at, which may be what is damaged.
            Some((content, matches)) => matches.then_some(content).map(Some).ok_or_else(|| bad("its checksum does not match"))?,
            // A newer agent may have another kind of checksum.
            None => None,
        };
        let is_sealed = content.is_some();
        self.read(content.as_deref().unwrap_or(json), |version, document| Ok((version, layout(version, document)))).and_then(
            |(version, read)| {
                if version >= since && !is_sealed {
                    return Err(bad("it has no checksum"));
                }
                read.map_err(|error| bad(&error.to_string()))
            },
        )
    }

    /// Checks the version in a file of this format. `agent` is the version of the agent that wrote the file, for the message.
    ///
    /// # Errors
    /// As [`Format::read`].
    pub fn check_version(self, version: u32, agent: Option<&str>) -> Result<()> {
        let Self { name, version: newest } = self;
        if version == 0 {
            return Err(damaged(format!("{name} is not valid: there is no version 0")));
        }
        if version <= newest {
            return Ok(());
        }
        let writer = agent.map_or_else(|| "a newer agent".to_owned(), |agent| format!("recovery {agent}"));
        Err(unsupported(format!(
            "{name} is of version {version}, written by {writer}; this is recovery {}, which reads up to version {newest}: use that agent, or a newer one",
            env!("CARGO_PKG_VERSION")
        )))
    }
}

/// A document as in its file: indented, with a newline at its end.
///
/// # Errors
/// When it cannot be serialized.
pub fn to_json(document: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(document)?;
    json.push(b'\n');
    Ok(json)
}

/// A document as in its file, as [`to_json`] has it, with a last field `sum`: the CRC-32C (hex) of the document without that field. Every change of
/// one byte, and of up to four that lie together, is found by it.
///
/// # Errors
/// When it cannot be serialized.
pub fn seal(document: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut json = to_json(document)?;
    let sum = crc32c::crc32c(&json);
    json.truncate(json.len() - END.len());
    json.extend_from_slice(format!("{}{sum:08x}{}", SUM.0, SUM.1).as_bytes());
    Ok(json)
}

/// The document in a file that [`seal`] has made, without its checksum; `None` where there is none, or it does not match.
#[must_use]
pub fn unsealed(json: &[u8]) -> Option<Vec<u8>> {
    checked(json).and_then(|(content, matches)| matches.then_some(content))
}

/// The document in a file that ends with a checksum, without that, and whether it matches; `None` where there is none.
fn checked(json: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (content, sum) = json.strip_suffix(SUM.1.as_bytes())?.split_last_chunk::<8>()?;
    let content = [content.strip_suffix(SUM.0.as_bytes())?, END.as_bytes()].concat();
    let matches = *sum == *format!("{:08x}", crc32c::crc32c(&content)).as_bytes();
    Some((content, matches))
}

/// The samples: see the page of the [room](crate::formats).
#[cfg(test)]
pub(crate) mod samples {
    use std::path::PathBuf;

    use schemars::JsonSchema;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    fn path(file: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats").join(file)
    }

    /// The bytes of a sample.
    pub(crate) fn read(file: &str) -> Vec<u8> {
        std::fs::read(path(file)).unwrap_or_else(|error| panic!("{}: {error}", path(file).display()))
    }

    /// Compares what is written now with what was committed.
    pub(crate) fn same(file: &str, made: &[u8]) {
        if std::fs::read(path(file)).ok().as_deref() != Some(made) {
            let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target").join(file);
            std::fs::write(&beside, made).unwrap();
            panic!(
                "{} is not what the agent makes now, which is in {}: a layout never changes; make a new version of it",
                path(file).display(),
                beside.display()
            );
        }
    }

    /// Checks the sample `NAME.VERSION.json` of a JSON format and its schema against `T`, the layout of that version; returns the sample's bytes.
    pub(crate) fn check_layout<T: Serialize + DeserializeOwned + JsonSchema>(name: &str, version: u32) -> Vec<u8> {
        let file = format!("{name}.{version}.json");
        let sample = read(&file);
        let document: T = serde_json::from_slice(&sample).unwrap_or_else(|error| panic!("{file}: {error}"));
        same(&file, &super::to_json(&document).unwrap());
        schema::<T>(name, version);
        sample
    }

    /// Checks the sample `NAME.VERSION.json` of a format whose version has a checksum, against `T`, the layout of that version; returns the sample's
    /// bytes. Its schema is that of the version whose number the struct has.
    pub(crate) fn check_sealed<T: Serialize + DeserializeOwned>(name: &str, version: u32) -> Vec<u8> {
        let file = format!("{name}.{version}.json");
        let sample = read(&file);
        let content = super::unsealed(&sample).unwrap_or_else(|| panic!("{file}: its checksum does not match"));
        let document: T = serde_json::from_slice(&content).unwrap_or_else(|error| panic!("{file}: {error}"));
        same(&file, &super::seal(&document).unwrap());
        sample
    }

    /// Checks the schema of `T`, the layout of this version, against the one that was committed.
    pub(crate) fn schema<T: JsonSchema>(name: &str, version: u32) {
        let mut schema = serde_json::to_value(schemars::schema_for!(T)).unwrap();
        without_words(&mut schema);
        same(&format!("{name}.{version}.schema.json"), &super::to_json(&schema).unwrap());
    }

    /// Removes the comments: they may be improved.
    fn without_words(schema: &mut serde_json::Value) {
        match schema {
            serde_json::Value::Object(fields) => {
                fields.retain(|name, value| !(name == "description" && value.is_string()));
                fields.values_mut().for_each(without_words);
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(without_words),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{FailureKind, kind};

    #[test]
    fn the_version_decides_who_may_read_a_file() {
        let format = Format { name: "undo.json", version: 2 };
        let read = |json: &str| format.read(json.as_bytes(), |version, _| Ok(version));
        assert_eq!(read(r#"{"version": 1, "more": 1}"#).unwrap(), 1);
        assert_eq!(read(r#"{"version": 2}"#).unwrap(), 2);
        let newer = read(r#"{"version": 3, "agent": "9.1.0", "unheard-of": {}}"#).unwrap_err();
        assert!(kind(&newer) == FailureKind::Unsupported && newer.to_string().contains("recovery 9.1.0"), "{newer}");
        for damaged in [r#"{"version": 0}"#, r#"{"version": "1"}"#, "{}", "", "[1]", r#"{"version": 1"#] {
            assert_eq!(kind(&read(damaged).unwrap_err()), FailureKind::Damaged, "{damaged}");
        }
    }

    #[test]
    fn a_checksum_finds_every_change() {
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Note {
            version: u32,
            units: Vec<String>,
        }
        let format = Format { name: "the note", version: 2 };
        let read = |json: &[u8]| format.read_sealed(2, json, |_, json| serde_json::from_slice::<Note>(json));
        let note = |version| Note { version, units: vec!["kubelet.service".to_owned()] };
        let sealed = seal(&note(2)).unwrap();
        assert_eq!(read(&sealed).unwrap().units, note(2).units);
        // Version 1 had none.
        assert_eq!(read(&to_json(&note(1)).unwrap()).unwrap().version, 1);
        assert_eq!(kind(&read(&seal(&note(3)).unwrap()).err().unwrap()), FailureKind::Unsupported);
        for plain in [to_json(&note(2)).unwrap(), sealed[..sealed.len() - 1].to_vec(), sealed[..sealed.len() / 2].to_vec()] {
            assert_eq!(kind(&read(&plain).err().unwrap()), FailureKind::Damaged);
        }
        for at in 0..sealed.len() {
            for change in 1..=255 {
                let mut bytes = sealed.clone();
                bytes[at] ^= change;
                assert_eq!(read(&bytes).err().map(|error| kind(&error)), Some(FailureKind::Damaged), "{at} {change}");
            }
        }
    }
}
