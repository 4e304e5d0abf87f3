//! Checks what etcd relies on when it starts on a database: it panics where that does not hold, and by then the old data directory would be
//! gone.
//!
//! The tree is checked as by bbolt when it looks for its free pages (go.etcd.io/bbolt, `tx_check.go`; here in [`Bolt::walk`]); the contents
//! as decoded by etcd 3.4 to 3.7 at their start (`mvcc/kvstore.go`, `lease/lessor.go`, `auth/store.go`, `etcdserver/api/membership`,
//! `etcdserver/api/v3alarm`). What a restore writes anew (members, index, term) is not checked.

use anyhow::Result;

use super::bolt::{BUCKET, Bolt, Item};
use super::revision::{REVISION, not_etcd, revision_of_key};

/// etcd has a dozen buckets.
const MOST_BUCKETS: usize = 1000;
/// etcd's longest name of a bucket has 15 bytes.
const LONGEST_NAME: usize = 255;

/// Wire types of protobuf.
const NUMBER: u64 = 0;
const BYTES: u64 = 2;
/// The wire types of the fields, from 1 on, of the messages that etcd keeps: `mvccpb.KeyValue`, `leasepb.Lease`,
/// `etcdserverpb.AlarmMember`, `authpb.User` with its options, `authpb.Role` with its permissions.
const KEY_VALUE: [u64; 6] = [BYTES, NUMBER, NUMBER, NUMBER, BYTES, NUMBER];
const LEASE: [u64; 3] = [NUMBER; 3];
const ALARM: [u64; 2] = [NUMBER; 2];
const USER: [u64; 4] = [BYTES; 4];
const USER_OPTIONS: [u64; 1] = [NUMBER];
const ROLE: [u64; 2] = [BYTES; 2];
const PERMISSION: [u64; 3] = [NUMBER, BYTES, BYTES];

/// What is found on the walk through a database.
pub(super) enum Seen<'a> {
    /// The bucket of this name begins.
    Bucket(&'a [u8]),
    /// A key of the bucket of this name.
    Item(&'a [u8], Item<'a>),
}

/// Checks every page that is in use and every key, and calls `each` with each bucket and key, in order.
pub(super) fn sound(bolt: &Bolt<'_>, each: &mut dyn FnMut(Seen<'_>) -> Result<()>) -> Result<()> {
    let mut walk = bolt.walk();
    let mut buckets = Vec::new();
    walk.each(&bolt.root(), &mut |item| {
        if item.flags & BUCKET == 0 {
            return Err(bolt.bad("a key of its root is not a bucket"));
        }
        if buckets.len() == MOST_BUCKETS || item.key.len() > LONGEST_NAME {
            return Err(bolt.bad(format!(
                "it has more than {MOST_BUCKETS} buckets, or one whose name is longer than {LONGEST_NAME} bytes: etcd has a dozen, with \
                 short names"
            )));
        }
        buckets.push((item.key.to_vec(), bolt.bucket(item.value)?));
        Ok(())
    })?;
    for (name, bucket) in &buckets {
        each(Seen::Bucket(name))?;
        let mut last = None;
        walk.each(bucket, &mut |item| {
            let wrong = if item.flags & BUCKET != 0 { Some("holds a bucket") } else { wrong_item(name, item, &mut last) };
            match wrong {
                Some(wrong) => Err(bolt.bad(format!("a key of the bucket `{}` {wrong}", String::from_utf8_lossy(name).escape_debug()))),
                None => each(Seen::Item(name, item)),
            }
        })?;
    }
    if buckets.iter().any(|(name, _)| name == b"key") { Ok(()) } else { Err(not_etcd(bolt)) }
}

/// What etcd could not read in a key of the bucket `name`; `last` is the revision of the key before it.
fn wrong_item(name: &[u8], item: Item<'_>, last: &mut Option<Vec<u8>>) -> Option<&'static str> {
    let Item { key, value, .. } = item;
    let number = |bytes: &[u8]| bytes.len() == size_of::<u64>();
    let is = |good: bool, wrong: &'static str| (!good).then_some(wrong);
    match (name, key) {
        (b"key", _) => {
            let (true, Some(revision)) = (revision_of_key(key).is_some(), key.get(..REVISION)) else { return Some("is not a revision") };
            // The same revision as a value and as a tombstone: the keys are in order, but etcd never writes both.
            if last.as_deref() == Some(revision) {
                return Some("repeats the revision before it");
            }
            let kept = last.get_or_insert_default();
            kept.clear();
            kept.extend_from_slice(revision);
            is(message(value, &KEY_VALUE, &[]), "has a value that etcd cannot read")
        }
        (b"lease", _) => is(message(value, &LEASE, &[]), "is not a lease"),
        // An alarm is all in its key.
        (b"alarm", _) => is(message(key, &ALARM, &[]), "is not an alarm"),
        (b"authUsers", _) => is(message(value, &USER, &[(4, &USER_OPTIONS)]), "is not a user"),
        (b"authRoles", _) => is(message(value, &ROLE, &[(2, &PERMISSION)]), "is not a role"),
        (b"auth", b"authRevision") | (b"meta", b"term") => is(number(value), "is not a number of 8 bytes"),
        (b"meta", b"scheduledCompactRev" | b"finishedCompactRev") => {
            is(value.len() == REVISION && revision_of_key(value).is_some(), "is not a revision")
        }
        (b"meta", b"confState") | (b"cluster", b"downgrade") => {
            is(serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(value).is_ok(), "is not JSON")
        }
        (b"cluster", b"clusterVersion") => is(is_version(value), "is not a version"),
        _ => None,
    }
}

/// True for `3.5.0`, and `3.6.0-alpha.1`.
fn is_version(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let numbers: Vec<&str> = text.split(['-', '+']).next().unwrap_or_default().split('.').collect();
    numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u32>().is_ok())
}

/// True for a protobuf message whose fields have the wire types `kinds`, and whose fields listed in `inner` are such messages too. Fields
/// with higher numbers are from a later version.
fn message(mut bytes: &[u8], kinds: &[u64], inner: &[(u64, &[u64])]) -> bool {
    let mut next = || -> Option<bool> {
        while !bytes.is_empty() {
            let (field, kind, content) = field(&mut bytes)?;
            let known = usize::try_from(field).ok()?.checked_sub(1).and_then(|at| kinds.get(at));
            let within = inner.iter().find(|(of, _)| *of == field).is_none_or(|(_, kinds)| message(content, kinds, &[]));
            if known.is_some_and(|known| *known != kind) || !within {
                return None;
            }
        }
        Some(true)
    };
    next().is_some()
}

/// The next field of a protobuf message: its number, wire type, and content (none for a number).
pub(super) fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, u64, &'a [u8])> {
    let tag = varint(bytes)?;
    let kind = tag & 7;
    let len = match kind {
        NUMBER => varint(bytes).map(|_| 0)?,
        1 => 8,
        BYTES => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (content, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    (tag >> 3 > 0).then_some((tag >> 3, kind, content))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::revision::key_of_revision;

    fn wrong(name: &str, key: &[u8], value: &[u8]) -> bool {
        wrong_item(name.as_bytes(), Item { flags: 0, key, value }, &mut None).is_some()
    }

    #[test]
    fn what_etcd_decodes_at_its_start_is_decoded() {
        let revision = key_of_revision(7);
        let value = b"\x0a\x03abc\x10\x07\x18\x07\x20\x01\x2a\x01v";
        for (name, key, good, bad) in [
            ("key", &revision[..], &value[..], &b"\x0a\x7fabc"[..]),
            ("key", &revision, b"", b"\x08\x01"),
            ("lease", b"\0\0\0\0\0\0\0\x01", b"\x08\x01\x10\x0a", b"\x0a\x01x"),
            ("authUsers", b"root", b"\x0a\x04root\x1a\x04root\x22\x02\x08\x01", b"\x0a\x04root\x22\x02\x0a\x09"),
            ("authRoles", b"root", b"\x0a\x04root\x12\x02\x08\x02", b"\x0a\x04root\x12\x02\x0a\x09"),
            ("auth", b"authRevision", b"\0\0\0\0\0\0\0\x01", b"\x01"),
            ("meta", b"scheduledCompactRev", &revision, b"\0\0"),
            ("meta", b"confState", br#"{"voters":[1]}"#, b"{"),
            ("cluster", b"clusterVersion", b"3.6.0-alpha.1", b"3.x"),
            ("cluster", b"downgrade", br#"{"enabled":false}"#, b""),
        ] {
            assert!(!wrong(name, key, good), "{name}: {good:?}");
            assert!(wrong(name, key, bad), "{name}: {bad:?}");
        }
        assert!(wrong("key", b"not a revision", value));
        assert!(wrong("alarm", b"\x0a\x7f", b"") && !wrong("alarm", b"\x08\x01\x10\x01", b""));
        // A field of a later version.
        assert!(!wrong("lease", b"", b"\x08\x01\x50\x01"));
    }

    #[test]
    fn a_revision_is_there_once() {
        let mut last = None;
        let mut see = |key: &[u8]| wrong_item(b"key", Item { flags: 0, key, value: b"" }, &mut last);
        let tombstone = [&key_of_revision(7)[..], b"t"].concat();
        assert_eq!(see(&key_of_revision(7)), None);
        assert_eq!(see(&tombstone), Some("repeats the revision before it"));
        assert_eq!(see(&key_of_revision(8)), None);
    }
}
