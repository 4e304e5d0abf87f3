//! The values that live in a snapshot: the newest revision of each key, without those that were deleted.
//!
//! A database holds revisions in their order. It is gone through from its end, so that the first revision of a key is the newest. In memory is a hash of
//! 64 bits for each key that is wanted.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use anyhow::Result;

use super::EachValue;
use super::bolt::Bolt;
use super::check::field;
use super::revision::{REVISION, not_etcd, revision_of_key};
use super::status::key_of_value;

/// Calls `each` with key and value of every live key that is `wanted`, the one that was last written first.
///
/// That two of a million keys have the same hash happens once in forty million snapshots; the older of such a pair is left out. Never is a value taken for
/// another key's, because key and value stand together.
pub(super) fn each(bolt: &Bolt<'_>, wanted: &mut dyn FnMut(&[u8]) -> bool, each: EachValue<'_>) -> Result<()> {
    let bucket = bolt.find(b"key")?.ok_or_else(|| not_etcd(bolt))?;
    let (mut seen, hasher) = (HashSet::new(), RandomState::new());
    bolt.walk().backwards().each(&bucket, &mut |item| {
        revision_of_key(item.key).ok_or_else(|| bolt.bad("a key of the bucket `key` is not a revision"))?;
        let key = key_of_value(item.value).ok_or_else(|| bolt.bad("a revision holds no key and value"))?;
        // A longer one says that the key was deleted.
        if wanted(key) && seen.insert(hasher.hash_one(key)) && item.key.len() == REVISION {
            each(key, value_of(item.value).ok_or_else(|| bolt.bad("a key holds no value"))?)?;
        }
        Ok(())
    })
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
