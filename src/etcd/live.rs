//! The values that live in a snapshot: the newest revision of each key, without those that were deleted.
//!
//! A database holds revisions in their order, so that only its end tells which value of a key is the newest: it is gone through twice, first for the
//! revisions, then for the values. In memory is a small entry for each key that is wanted.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use anyhow::Result;

use super::bolt::{Bolt, Bucket};
use super::check::field;
use super::revision::{REVISION, not_etcd, revision_of_key};
use super::status::{in_database, key_of_value};
use super::{EachValue, Tick};

/// Calls `each` with key and value of every live key that is `wanted`, in the order in which they were last written. With `skip` the file needs no
/// trailer.
pub(super) fn each(path: &Path, skip: bool, wanted: &mut dyn FnMut(&[u8]) -> bool, each: EachValue<'_>, tick: Tick<'_>) -> Result<()> {
    in_database(path, skip, tick, |bolt, _| {
        let bucket = bolt.find(b"key")?.ok_or_else(|| not_etcd(bolt))?;
        let newest = newest(bolt, &bucket, wanted)?;
        bolt.walk().each(&bucket, &mut |item| {
            let Some(revision) = item.key.first_chunk::<REVISION>().filter(|_| item.key.len() == REVISION) else { return Ok(()) };
            let key = key_of_value(item.value).unwrap_or_default();
            if newest.of(key) != Some(revision) {
                return Ok(());
            }
            let value = value_of(item.value).ok_or_else(|| bolt.bad("a key holds no value"))?;
            each(key, value)
        })
    })
}

/// The newest revision of each key, by a hash of 64 bits: that two of a million keys are taken for one happens once in forty million snapshots. Such a
/// pair loses one of its values; never is a value taken for another's, because a revision is of one key.
#[derive(Default)]
struct Newest {
    keys: HashMap<u64, [u8; REVISION]>,
    hasher: RandomState,
}

impl Newest {
    fn of(&self, key: &[u8]) -> Option<&[u8; REVISION]> {
        self.keys.get(&self.hasher.hash_one(key))
    }
}

fn newest(bolt: &Bolt<'_>, bucket: &Bucket, wanted: &mut dyn FnMut(&[u8]) -> bool) -> Result<Newest> {
    let mut newest = Newest::default();
    bolt.walk().each(bucket, &mut |item| {
        revision_of_key(item.key).ok_or_else(|| bolt.bad("a key of the bucket `key` is not a revision"))?;
        let key = key_of_value(item.value).ok_or_else(|| bolt.bad("a revision holds no key and value"))?;
        if wanted(key) {
            let hash = newest.hasher.hash_one(key);
            match item.key.first_chunk::<REVISION>().filter(|_| item.key.len() == REVISION) {
                Some(revision) => drop(newest.keys.insert(hash, *revision)),
                None => drop(newest.keys.remove(&hash)),
            }
        }
        Ok(())
    })?;
    Ok(newest)
}

/// The field `value` (5) of the protobuf message `mvccpb.KeyValue`; empty when it is left out.
fn value_of(mut message: &[u8]) -> Option<&[u8]> {
    let mut found: &[u8] = &[];
    while !message.is_empty() {
        if let (5, 2, value) = field(&mut message)? {
            found = value;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_found_in_its_message() {
        assert_eq!(value_of(b"\x0a\x03abc\x10\x07\x18\x07\x20\x01\x2a\x01v"), Some(&b"v"[..]));
        assert_eq!(value_of(b"\x0a\x03abc"), Some(&b""[..]));
        assert_eq!(value_of(b"\x2a\x09v"), None);
    }
}
