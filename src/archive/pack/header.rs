//! Writing tar: the blocks before an entry's content, in POSIX pax format with the records that GNU tar reads.
//!
//! The formats are those of pax(1) (ustar and extended headers), of GNU tar's manual ("GNU.sparse" version 1.0, `RHT.security.selinux`) and
//! of star(5) (`SCHILY.xattr`, `SCHILY.acl`, `SCHILY.fflags`). No user or group names are written: owners are numbers.

use anyhow::Result;

use crate::archive::acl;
use crate::archive::entry::{APPEND_ONLY, Entry, IMMUTABLE, Kind, Time};
use crate::archive::tar::{BLOCK, Segments, padding};
use crate::archive::xattrs::LABEL;

/// The largest number in a field of 12: 11 octal digits and a blank.
const LARGEST_12: u64 = 0o77_777_777_777;
/// The largest number in a field of 8.
const LARGEST_8: u64 = 0o7_777_777;

/// Appends the header blocks of `entry` to `out`, with `comments` in them and, for a sparse file, the map of its segments. Then come the
/// content and the [`padding`].
///
/// # Errors
/// When an ACL is not in Linux's format.
pub(in crate::archive) fn encode(entry: &Entry, segments: Option<&Segments>, comments: &[&[u8]], out: &mut Vec<u8>) -> Result<()> {
    let name = name_of(entry);
    let map = segments.map(map_of);
    let stored = match (&map, segments) {
        (Some(map), Some(segments)) => map.len() as u64 + segments.iter().map(|s| s.1).sum::<u64>(),
        _ => entry.size,
    };
    let mut records = Records::default();
    comments.iter().for_each(|comment| records.add(b"comment", comment));
    let header_name = if map.is_some() {
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add(b"GNU.sparse.name", &name);
        records.add(b"GNU.sparse.realsize", entry.size.to_string().as_bytes());
        // The name under which a tar without sparse files unpacks the map and the pieces. It is not the file's own name, because that would
        // not be the file.
        [b"GNUSparseFile.0/", &name[..name.len().min(80)]].concat()
    } else {
        if name.len() > 100 {
            records.add(b"path", &name);
        }
        name.clone()
    };
    if entry.target.len() > 100 {
        records.add(b"linkpath", &entry.target);
    }
    number_records(entry, stored, &mut records);
    attribute_records(entry, &mut records)?;
    if !records.0.is_empty() {
        let last = name.rsplit(|b| *b == b'/').find(|part| !part.is_empty()).unwrap_or(b"root");
        let fields = Fields { name: &[b"PaxHeaders/", last].concat(), kind: b'x', size: records.0.len() as u64, ..Fields::default() };
        fields.block(out);
        out.extend_from_slice(&records.0);
        out.extend_from_slice(padding(records.0.len() as u64));
    }
    header(entry, &header_name, stored).block(out);
    out.extend_from_slice(&map.unwrap_or_default());
    Ok(())
}

fn name_of(entry: &Entry) -> Vec<u8> {
    match entry.kind {
        Kind::Directory if entry.path.is_empty() => b"./".to_vec(),
        Kind::Directory => [&entry.path[..], b"/"].concat(),
        _ => entry.path.clone(),
    }
}

/// The map before a sparse file's content (GNU.sparse 1.0): the number of segments, then offset and length of each, one decimal number a
/// line, filled up to whole blocks.
fn map_of(segments: &Segments) -> Vec<u8> {
    let numbers = segments.iter().flat_map(|(offset, len)| [*offset, *len]);
    let mut map = Vec::new();
    for number in std::iter::once(segments.len() as u64).chain(numbers) {
        map.extend_from_slice(number.to_string().as_bytes());
        map.push(b'\n');
    }
    map.extend_from_slice(padding(map.len() as u64));
    map
}

fn number_records(entry: &Entry, stored: u64, records: &mut Records) {
    let Time { seconds, nanoseconds } = entry.mtime;
    if nanoseconds != 0 || u64::try_from(seconds).map_or(true, |s| s > LARGEST_12) {
        records.add(b"mtime", decimal(entry.mtime).as_bytes());
    }
    if stored > LARGEST_12 {
        records.add(b"size", stored.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.attributes.uid), (b"gid", entry.attributes.gid)] {
        if u64::from(id) > LARGEST_8 {
            records.add(key, id.to_string().as_bytes());
        }
    }
}

/// A time in pax format: decimal seconds; before 1970 the fraction counts downwards.
fn decimal(Time { seconds, nanoseconds }: Time) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        _ => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
    }
}

fn attribute_records(entry: &Entry, records: &mut Records) -> Result<()> {
    if entry.kind == Kind::HardLink {
        return Ok(());
    }
    for (name, value) in &entry.attributes.xattrs {
        match name.as_slice() {
            acl::ACCESS => records.add(b"SCHILY.acl.access", acl::to_text(value)?.as_bytes()),
            acl::DEFAULT => records.add(b"SCHILY.acl.default", acl::to_text(value)?.as_bytes()),
            name => {
                if name == LABEL {
                    // The record that `tar --selinux` reads; the record below has the label as it is, with its terminating zero.
                    records.add(b"RHT.security.selinux", value.strip_suffix(b"\0").unwrap_or(value));
                }
                records.add(&[b"SCHILY.xattr.", &escape(name)[..]].concat(), value);
            }
        }
    }
    let mut flags = Vec::new();
    for (flag, word) in [(IMMUTABLE, "schg"), (APPEND_ONLY, "sappnd")] {
        if entry.attributes.flags & flag != 0 {
            flags.push(word);
        }
    }
    if !flags.is_empty() {
        records.add(b"SCHILY.fflags", flags.join(",").as_bytes());
    }
    Ok(())
}

/// The name of an attribute as GNU tar (1.31 and later) writes it in a keyword, which ends at the first `=`.
fn escape(name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'%' => escaped.extend_from_slice(b"%25"),
            b'=' => escaped.extend_from_slice(b"%3D"),
            byte => escaped.push(*byte),
        }
    }
    escaped
}

fn header<'a>(entry: &'a Entry, name: &'a [u8], stored: u64) -> Fields<'a> {
    let kind = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    let Entry { attributes, target, device, .. } = entry;
    Fields {
        name,
        kind,
        size: if entry.kind == Kind::File { stored } else { 0 },
        mode: attributes.mode,
        ids: (attributes.uid, attributes.gid),
        mtime: u64::try_from(entry.mtime.seconds).unwrap_or(0),
        target,
        device: *device,
    }
}

/// The records of an extended header: each "length key=value\n", the length counting itself.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(len.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// The fields of one ustar header block.
#[derive(Default)]
struct Fields<'a> {
    name: &'a [u8],
    kind: u8,
    size: u64,
    mode: u32,
    ids: (u32, u32),
    mtime: u64,
    target: &'a [u8],
    device: (u32, u32),
}

impl Fields<'_> {
    /// Appends the block. A value that does not fit its field is in the extended header before it.
    fn block(&self, out: &mut Vec<u8>) {
        let mut block = [0; BLOCK];
        let mut text = |at: usize, len: usize, bytes: &[u8]| {
            let len = len.min(bytes.len());
            block[at..at + len].copy_from_slice(&bytes[..len]);
        };
        let small = |number: u32| format!("{:07o}", if u64::from(number) > LARGEST_8 { 0 } else { number });
        let large = |number: u64| format!("{:011o}", if number > LARGEST_12 { 0 } else { number });
        text(0, 100, self.name);
        text(100, 8, small(self.mode).as_bytes());
        text(108, 8, small(self.ids.0).as_bytes());
        text(116, 8, small(self.ids.1).as_bytes());
        text(124, 12, large(self.size).as_bytes());
        text(136, 12, large(self.mtime).as_bytes());
        text(148, 8, b"        ");
        text(156, 1, &[self.kind]);
        text(157, 100, self.target);
        text(257, 8, b"ustar\x0000");
        text(329, 8, small(self.device.0).as_bytes());
        text(337, 8, small(self.device.1).as_bytes());
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for len in [0, 1, 3, 86, 87, 88, 89, 90, 91, 980, 981, 982, 983, 984, 985, 9974, 9975, 9976, 9977] {
            let mut records = Records::default();
            records.add(b"path", &vec![b'x'; len]);
            let text = String::from_utf8(records.0).unwrap();
            assert_eq!(text.split(' ').next().unwrap(), text.len().to_string(), "{len}");
        }
    }

    #[test]
    fn times_before_1970_count_downwards() {
        let time = |seconds, nanoseconds| decimal(Time { seconds, nanoseconds });
        assert_eq!(time(5, 1), "5.000000001");
        assert_eq!(time(-5, 0), "-5");
        assert_eq!(time(-5, 250_000_000), "-4.750000000");
        assert_eq!(time(-1, 999_999_999), "-0.000000001");
    }
}
