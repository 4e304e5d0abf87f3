//! Revisions: the keys of etcd's bucket `key`.

use anyhow::Result;

use super::bolt::Bolt;

/// Bytes of a key of the bucket `key`: main revision, `_`, sub revision.
pub(super) const REVISION: usize = 17;

/// The key of the bucket `key` for a revision.
pub(super) fn key_of_revision(main: i64) -> [u8; REVISION] {
    let mut key = [0; REVISION];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[8] = b'_';
    key
}

/// The main revision in a key of the bucket `key`; a tombstone's is one byte longer.
pub(super) fn revision_of_key(key: &[u8]) -> Option<i64> {
    let main = i64::from_be_bytes(*key.first_chunk()?);
    let shaped = key.get(8) == Some(&b'_') && (key.len() == REVISION || (key.len() == REVISION + 1 && key.ends_with(b"t")));
    (shaped && main >= 0).then_some(main)
}

/// The error for a bbolt database that is not etcd's.
pub(super) fn not_etcd(bolt: &Bolt<'_>) -> anyhow::Error {
    bolt.bad("it has no bucket `key`: this is not a snapshot of etcd 3")
}

/// The greatest revision in a database; 0 when nothing was ever written.
pub(super) fn revision(bolt: &Bolt<'_>) -> Result<i64> {
    let bucket = bolt.find(b"key")?.ok_or_else(|| not_etcd(bolt))?;
    match bolt.last_key(&bucket)? {
        Some(key) => revision_of_key(&key).ok_or_else(|| bolt.bad("the last key of the bucket `key` is not a revision")),
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_read() {
        assert_eq!(revision_of_key(&key_of_revision(1_000_000_007)), Some(1_000_000_007));
        assert_eq!(revision_of_key(b"\0\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0\x01t"), Some(5));
        for bad in [&b"\0\0\0\0\0\0\0\x05"[..], b"\0\0\0\0\0\0\0\x05x\0\0\0\0\0\0\0\0", b"\xff\0\0\0\0\0\0\x05_\0\0\0\0\0\0\0\0", b""] {
            assert_eq!(revision_of_key(bad), None);
        }
    }
}
