//! What pax records say about an entry: the keywords of pax(1), of GNU tar and of star(5) that matter here. Others are ignored.
//!
//! A record applies to the entry that follows it or, in a global header, to all entries that follow and have no record of their own. An
//! empty value cancels what was said before, as in pax(1); but an extended attribute can be empty.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::archive::acl;
use crate::archive::entry::{APPEND_ONLY, IMMUTABLE, Time};
use crate::archive::tar::{EXISTENCE, INDEXED};
use crate::archive::xattrs::{LABEL, Xattrs, is_kept};
use crate::error::{damaged, unsupported};

/// The most bytes of all global headers together: they are kept, and applied to each entry.
const LARGEST_DEFAULTS: usize = 64 << 10;

/// What extended headers and long names say about the entry that follows them.
#[derive(Debug, Default, Clone)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) flags: u8,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The security label from `RHT.security.selinux`. A record of the attribute itself, in the same header, is more exact and wins.
    label: Option<Vec<u8>>,
    /// ACLs as text. They are converted once the entry's name is known, so that an error can name the entry.
    acls: BTreeMap<&'static [u8], Vec<u8>>,
    /// True when the entry has the mark [`INDEXED`], or [`EXISTENCE`].
    pub(super) indexed: bool,
    pub(super) existence: bool,
    /// `GNU.sparse.major` and `.minor`, `.name`, `.realsize`; and whether there was another keyword of that family.
    pub(super) sparse_version: (Option<u64>, Option<u64>),
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_other: bool,
    /// True when the archive is the first volume of several, by its label.
    pub(super) first_volume: bool,
}

impl Extension {
    /// Adds the records of a global header, which are defaults for the entries that follow.
    ///
    /// # Errors
    /// As [`Extension::read_records`]; `FailureKind::Unsupported` when there are more than can be kept for each entry.
    pub(super) fn read_defaults(&mut self, bytes: &[u8]) -> Result<()> {
        self.read_records(bytes)?;
        if let Some(label) = self.xattrs.remove(LABEL) {
            self.label = Some(label);
        }
        let names = [&self.path, &self.target, &self.label, &self.sparse_name].into_iter().flatten().map(Vec::len).sum::<usize>();
        let attributes = self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if names + attributes + self.acls.values().map(Vec::len).sum::<usize>() > LARGEST_DEFAULTS {
            return Err(unsupported(format!(
                "the global headers of the archive have more than {LARGEST_DEFAULTS} bytes: unpack it with tar, and pack the tree without \
                 global headers"
            )));
        }
        Ok(())
    }

    /// Adds the records of an extended header.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when one of them is invalid; `FailureKind::Unsupported` for a later volume, or a part of an incremental
    /// archive.
    pub(super) fn read_records(&mut self, mut bytes: &[u8]) -> Result<()> {
        let bad = || damaged("the archive is hostile or damaged: an extended header is not in the format of pax(1)");
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let len: usize = std::str::from_utf8(&bytes[..blank]).ok().and_then(|len| len.parse().ok()).ok_or_else(bad)?;
            let record = bytes.get(blank + 1..len).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            self.record(&record[..equals], &record[equals + 1..])
                .with_context(|| format!("reading the record {:?}", record[..equals].escape_ascii().to_string()))?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = given(value, bytes)?,
            b"linkpath" => self.target = given(value, bytes)?,
            b"size" => self.size = given(value, parse)?,
            b"uid" => self.uid = given(value, parse)?,
            b"gid" => self.gid = given(value, parse)?,
            b"mtime" => self.mtime = given(value, time)?,
            b"comment" => {
                self.indexed |= value == INDEXED;
                self.existence |= value == EXISTENCE;
            }
            // GNU tar writes an empty one for every directory that has a default ACL.
            b"SCHILY.acl.access" => drop(self.acls.insert(acl::ACCESS, value.to_vec())),
            b"SCHILY.acl.default" => drop(self.acls.insert(acl::DEFAULT, value.to_vec())),
            // GNU tar sets the label with its terminating zero.
            b"RHT.security.selinux" => self.label = given(value, |value| Ok([value, b"\0"].concat()))?,
            b"SCHILY.fflags" => self.flags = flags(value),
            b"GNU.sparse.major" => self.sparse_version.0 = given(value, parse)?,
            b"GNU.sparse.minor" => self.sparse_version.1 = given(value, parse)?,
            b"GNU.sparse.name" => self.sparse_name = given(value, bytes)?,
            b"GNU.sparse.realsize" => self.sparse_size = given(value, parse)?,
            b"GNU.volume.label" => self.first_volume |= is_first_volume(value)?,
            b"GNU.dumpdir" => check_complete(value)?,
            key if key.starts_with(b"GNU.sparse.") => self.sparse_other = true,
            // The file that continues here, its size, and how much of it was in the volume before.
            key if key.starts_with(b"GNU.volume.") => return Err(later_volume()),
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attribute(&unescape(name), value.to_vec());
                }
            }
        }
        Ok(())
    }

    /// The extended attributes, including ACLs in the kernel's form; names in ACLs are looked up on the system on which this runs.
    ///
    /// # Errors
    /// The errors of [`acl::from_text`].
    pub(super) fn xattrs(&mut self) -> Result<Xattrs> {
        static NAMES: OnceLock<acl::Names> = OnceLock::new();
        let mut all = std::mem::take(&mut self.xattrs);
        if let Some(label) = self.label.take() {
            all.entry(LABEL.to_vec()).or_insert(label);
        }
        for (name, text) in &self.acls {
            let list = acl::from_text(text, || NAMES.get_or_init(|| acl::Names::of(Path::new("/"))))?;
            // An empty text is not an ACL.
            if !text.trim_ascii().is_empty() {
                all.insert(name.to_vec(), list);
            }
        }
        Ok(all.into_iter().collect())
    }

    fn attribute(&mut self, name: &[u8], value: Vec<u8>) {
        if is_kept(name) {
            self.xattrs.insert(name.to_vec(), value);
        }
    }
}

/// True for the label of the first of several volumes, which GNU tar makes from the label that the user gives.
///
/// # Errors
/// `FailureKind::Unsupported` for the label of a later volume: the data before it is not in this archive.
pub(super) fn is_first_volume(label: &[u8]) -> Result<bool> {
    const SIGN: &[u8] = b" Volume ";
    let at = label.windows(SIGN.len()).rposition(|part| part == SIGN);
    match at.and_then(|at| parse::<u64>(&label[at + SIGN.len()..]).ok()) {
        Some(2..) => Err(later_volume()),
        number => Ok(number == Some(1)),
    }
}

/// The error for an archive that is a volume, and not the first.
pub(super) fn later_volume() -> anyhow::Error {
    unsupported(
        "the archive is one of several volumes, and not the first: unpack them with `tar --multi-volume`, and pack the tree as \
         one archive",
    )
}

/// Refuses an incremental archive of GNU tar that does not hold all files of a directory. `list` describes the names in it, as in the
/// chapter "Dumpdir" of the manual: a letter, the name and a zero byte for each; the letter `N` marks a file that has not changed, and so
/// is not in the archive.
///
/// # Errors
/// `FailureKind::Unsupported` when a file is not in it.
pub(super) fn check_complete(list: &[u8]) -> Result<()> {
    if !list.split(|b| *b == 0).any(|record| record.starts_with(b"N")) {
        return Ok(());
    }
    Err(unsupported(
        "the archive is incremental and holds only what had changed: unpack it and those before it with `tar \
         --listed-incremental=/dev/null -x`, oldest first, and pack the tree anew",
    ))
}

fn unescape(name: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(name.len()), name);
    while let Some((byte, after)) = rest.split_first() {
        let (byte, after) = match rest {
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            _ => (*byte, after),
        };
        plain.push(byte);
        rest = after;
    }
    plain
}

/// File flags by their BSD names, as star and bsdtar write them.
fn flags(value: &[u8]) -> u8 {
    value.split(|b| *b == b',').fold(0, |flags, word| match word {
        b"schg" | b"schange" | b"simmutable" => flags | IMMUTABLE,
        b"sappnd" | b"sappend" => flags | APPEND_ONLY,
        _ => flags,
    })
}

/// The value of a record; `None` when it is empty.
fn given<T>(value: &[u8], read: impl FnOnce(&[u8]) -> Result<T>) -> Result<Option<T>> {
    if value.is_empty() { Ok(None) } else { read(value).map(Some) }
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of those that `given` takes")]
fn bytes(value: &[u8]) -> Result<Vec<u8>> {
    Ok(value.to_vec())
}

fn parse<N: std::str::FromStr>(value: &[u8]) -> Result<N> {
    let number = std::str::from_utf8(value).ok().filter(|text| !text.starts_with('+')).and_then(|text| text.parse().ok());
    number.ok_or_else(|| not_a_number(value))
}

fn not_a_number(value: &[u8]) -> anyhow::Error {
    damaged(format!("the archive is hostile or damaged: {:?} is not a number in range", value.escape_ascii().to_string()))
}

/// Decimal seconds, with a fraction of any length.
fn time(value: &[u8]) -> Result<Time> {
    let mut parts = value.splitn(2, |b| *b == b'.');
    let whole = parts.next().unwrap_or_default();
    let seconds: i64 = parse(whole)?;
    let fraction = parts.next().unwrap_or_default();
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.get(place).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return Err(not_a_number(value));
        }
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    if whole.starts_with(b"-") && nanoseconds > 0 {
        let seconds = seconds.checked_sub(1).ok_or_else(|| damaged("the archive is hostile or damaged: a time is out of range"))?;
        return Ok(Time { seconds, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Ok(Time { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        for (text, seconds, nanoseconds) in
            [("5", 5, 0), ("5.5", 5, 500_000_000), ("-4.75", -5, 250_000_000), ("-0.000000001", -1, 999_999_999)]
        {
            assert_eq!(time(text.as_bytes()).unwrap(), Time { seconds, nanoseconds }, "{text}");
        }
        for text in ["", "x", "1.x", "99999999999999999999", "--1"] {
            assert_eq!(exit_code(&time(text.as_bytes()).unwrap_err()), 65, "{text}");
        }
    }

    #[test]
    fn a_label_of_an_entry_is_said_more_of_than_one_of_all() -> Result<()> {
        let attribute = "36 SCHILY.xattr.security.selinux=a\0\n";
        let (all, own, none) = ("28 RHT.security.selinux=all\n", "28 RHT.security.selinux=own\n", "25 RHT.security.selinux=\n");
        let cases = [
            (all, String::new(), Some("all\0")),
            (all, own.to_owned(), Some("own\0")),
            (all, none.to_owned(), None),
            (attribute, own.to_owned(), Some("own\0")),
            (all, attribute.to_owned(), Some("a\0")),
            ("", attribute.to_owned() + own, Some("a\0")),
            ("", own.to_owned() + attribute, Some("a\0")),
        ];
        for (defaults, own, label) in cases {
            let mut more = Extension::default();
            more.read_defaults(defaults.as_bytes())?;
            more.read_records(own.as_bytes())?;
            assert_eq!(more.xattrs()?.first().map(|(_, value)| value.as_slice()), label.map(str::as_bytes));
        }
        Ok(())
    }

    #[test]
    fn a_volume_is_told_by_its_label() {
        for (label, first) in
            [("", false), ("weekly", false), ("weekly Volume 1", true), ("a Volume 2 Volume 1", true), ("Volume 2", false)]
        {
            assert_eq!(is_first_volume(label.as_bytes()).unwrap(), first, "{label}");
        }
        assert_eq!(exit_code(&is_first_volume(b"weekly Volume 10").unwrap_err()), 64);
    }
}
