//! What pax records say of an entry: the keywords of pax(1), of GNU tar and of star(5) that matter here. Others are passed over.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use super::acl;
use super::entry::{APPEND_ONLY, IMMUTABLE, Time, Xattrs};
use super::header::INDEXED;
use crate::error::{damaged, unsupported};

/// What extended headers and long names say of the entry that follows them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) flags: u8,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// ACLs as text: what is wrong with one is said of the entry, whose name can come later.
    pub(super) acls: Vec<(&'static [u8], Vec<u8>)>,
    pub(super) indexed: bool,
    /// `GNU.sparse.major` and `.minor`, `.name`, `.realsize`; and whether there was any other of that family.
    pub(super) sparse_version: (Option<u64>, Option<u64>),
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_other: bool,
    /// It goes on with what an archive before this one begins.
    pub(super) continued: bool,
}

impl Extension {
    /// Adds the records of an extended header.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when one of them is not sound.
    pub(super) fn read_records(&mut self, mut bytes: &[u8]) -> Result<()> {
        let bad = || damaged("the archive is hostile or damaged: an extended header is not sound");
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
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.target = Some(value.to_vec()),
            b"size" => self.size = Some(parse(value)?),
            b"uid" => self.uid = Some(parse(value)?),
            b"gid" => self.gid = Some(parse(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"comment" => self.indexed |= value == INDEXED,
            // GNU tar writes one for every directory that has a default ACL.
            b"SCHILY.acl.access" => self.acls.push((acl::ACCESS, value.to_vec())),
            b"SCHILY.acl.default" => self.acls.push((acl::DEFAULT, value.to_vec())),
            b"RHT.security.selinux" => {
                // GNU tar sets the label with its terminating zero; a record of the attribute itself says more and wins.
                self.xattrs.entry(b"security.selinux".to_vec()).or_insert_with(|| [value, b"\0"].concat());
            }
            b"SCHILY.fflags" => self.flags = flags(value),
            b"GNU.sparse.major" => self.sparse_version.0 = Some(parse(value)?),
            b"GNU.sparse.minor" => self.sparse_version.1 = Some(parse(value)?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => self.sparse_size = Some(parse(value)?),
            b"GNU.volume.offset" => self.continued = true,
            b"GNU.dumpdir" => check_complete(value)?,
            key if key.starts_with(b"GNU.sparse.") => self.sparse_other = true,
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attribute(&unescape(name), value.to_vec());
                }
            }
        }
        Ok(())
    }

    /// The extended attributes, ACLs among them in the kernel's form; names in those are looked up on the system that runs this.
    ///
    /// # Errors
    /// Those of [`acl::from_text`].
    pub(super) fn xattrs(xattrs: BTreeMap<Vec<u8>, Vec<u8>>, acls: &[(&'static [u8], Vec<u8>)]) -> Result<Xattrs> {
        static NAMES: OnceLock<acl::Names> = OnceLock::new();
        let mut all = xattrs;
        for (name, text) in acls {
            let list = acl::from_text(text, || NAMES.get_or_init(|| acl::Names::of(Path::new("/"))))?;
            // Empty, it is none.
            if !text.trim_ascii().is_empty() {
                all.insert(name.to_vec(), list);
            }
        }
        Ok(all.into_iter().collect())
    }

    fn attribute(&mut self, name: &[u8], value: Vec<u8>) {
        if super::tree::is_kept(name) {
            self.xattrs.insert(name.to_vec(), value);
        }
    }
}

/// Refuses an incremental archive of GNU tar that does not hold all of a directory. `list` is what it says of the names in it, as in the
/// manual's chapter "Dumpdir": a letter, the name and a zero byte for each; `N` is said of what has not changed, and is not in the archive.
///
/// # Errors
/// `FailureKind::Unsupported` when something is not in it.
pub(super) fn check_complete(list: &[u8]) -> Result<()> {
    if !list.split(|b| *b == 0).any(|record| record.starts_with(b"N")) {
        return Ok(());
    }
    Err(unsupported(
        "the archive is incremental and holds only what had changed: unpack it and those before it with `tar --listed-incremental=/dev/null -x`, \
         oldest first, and pack the tree anew",
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
}
