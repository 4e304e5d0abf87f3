//! What is in a snapshot: counted as etcdutl counts, over every page.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::bolt::Bolt;
use super::check::{self, Seen, field};
use super::{Member, Status, Tick, snapshot};
use crate::error::damaged;

/// Bytes of a key of the bucket `key`: main revision, `_`, sub revision.
pub(super) const REVISION: usize = 17;

/// Looks into a snapshot; see [`super::status()`]. With `skip` it needs no trailer.
pub(super) fn status(path: &Path, skip: bool, tick: Tick<'_>) -> Result<Status> {
    in_database(path, skip, tick, of_database)
}

/// Looks with `look` into the database of a snapshot, whose trailer is checked, unless `skip`; `look` is given its length too.
pub(super) fn in_database<T>(path: &Path, skip: bool, tick: Tick<'_>, look: impl FnOnce(&Bolt<'_>, u64) -> Result<T>) -> Result<T> {
    let name = path.display().to_string();
    let file = snapshot::open(path)?;
    if !snapshot::is_compressed(&file, path)? {
        let len = snapshot::check(path, skip, tick)?.len;
        return look(&Bolt::open(&file, len, &name)?, len);
    }
    // Never beside the snapshot: that may be on a medium that nobody may write to. And not in memory, where `/tmp` often is.
    let dir = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let made = tempfile::tempfile_in(&dir);
    let scratch = made.with_context(|| format!("making a scratch file in {} (TMPDIR names another directory)", dir.display()))?;
    let len = snapshot::unpack(path, &scratch, skip, tick)
        .with_context(|| format!("unpacking {name} into {} (TMPDIR names another directory)", dir.display()))?
        .len;
    look(&Bolt::open(&scratch, len, &name)?, len)
}

fn of_database(bolt: &Bolt<'_>, db_size: u64) -> Result<Status> {
    let (mut hash, mut items, mut revision, mut version) = (0, 0, 0, None);
    let (mut live, mut members) = (Live::default(), Vec::new());
    check::sound(bolt, &mut |seen| {
        let (bucket, item) = match seen {
            Seen::Bucket(name) => {
                hash = crc32c::crc32c_append(hash, name);
                return Ok(());
            }
            Seen::Item(bucket, item) => (bucket, item),
        };
        items += 1;
        hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, item.key), item.value);
        match (bucket, item.key) {
            (b"key", key) => {
                revision = revision_of_key(key).ok_or_else(|| bolt.bad("a key of the bucket `key` is not a revision"))?;
                live.see(key, item.value).ok_or_else(|| bolt.bad(format!("revision {revision} holds no key and value")))?;
            }
            (b"members", _) => members.push(Member::parse(item.value).map_err(|error| bolt.bad(format!("{error:#}")))?),
            (b"meta", b"storageVersion") => version = Some(String::from_utf8_lossy(item.value).into_owned()),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Status { hash, revision, total_keys: live.keys.len() as u64, items, db_size, version, members })
}

/// The error for a database that is bbolt's, but not etcd's.
pub(super) fn not_etcd(bolt: &Bolt<'_>) -> anyhow::Error {
    bolt.bad("it has no bucket `key`: this is not a snapshot of etcd 3")
}

/// The members that a database records.
pub(super) fn members(bolt: &Bolt<'_>) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    if let Some(bucket) = bolt.find(b"members")? {
        bolt.walk().each(&bucket, &mut |item| {
            members.push(Member::parse(item.value).map_err(|error| bolt.bad(format!("{error:#}")))?);
            Ok(())
        })?;
    }
    Ok(members)
}

/// The greatest revision in a database; 0 when nothing was ever written.
pub(super) fn revision(bolt: &Bolt<'_>) -> Result<i64> {
    let bucket = bolt.find(b"key")?.ok_or_else(|| not_etcd(bolt))?;
    match bolt.last_key(&bucket)? {
        Some(key) => revision_of_key(&key).ok_or_else(|| bolt.bad("the last key of the bucket `key` is not a revision")),
        None => Ok(0),
    }
}

/// The greatest revision in the data directory of a stopped etcd; see [`super::revision_of`].
pub(super) fn revision_of(data_dir: &Path) -> Result<Option<i64>> {
    let (mut newest, mut unread) = (None, None);
    for member in [vec![data_dir.join("member")], super::replace::kept(data_dir)?].concat() {
        match revision_of_member(&member) {
            Ok(revision) => newest = newest.max(revision),
            Err(error) => {
                tracing::warn!("the revision of {} is not counted: {error:#}", member.display());
                unread.get_or_insert(error);
            }
        }
    }
    // What can be read is worth more than nothing; where nothing can be, the caller is to know.
    unread.filter(|_| newest.is_none()).map_or(Ok(newest), Err)
}

fn revision_of_member(member: &Path) -> Result<Option<i64>> {
    let path = member.join("snap/db");
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let len = file.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
    if len == 0 {
        return Err(damaged(format!("{} is empty", path.display())));
    }
    revision(&Bolt::open(&file, len, &path.display().to_string())?).map(Some)
}

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

/// The keys that live, as a hash of 64 bits each: a million take 20 MB. That two of a million are taken for one happens once
/// in forty million snapshots.
#[derive(Default)]
struct Live {
    keys: HashSet<u64>,
    hasher: RandomState,
}

impl Live {
    /// Takes the next revision; `None` when its value is not etcd's.
    fn see(&mut self, revision: &[u8], value: &[u8]) -> Option<()> {
        let hash = self.hasher.hash_one(key_of_value(value)?);
        if revision.len() > REVISION {
            self.keys.remove(&hash);
        } else {
            self.keys.insert(hash);
        }
        Some(())
    }
}

/// The field `key` (1) of the protobuf message `mvccpb.KeyValue`; empty when it is left out, as in the revision that a bump adds.
fn key_of_value(mut message: &[u8]) -> Option<&[u8]> {
    while !message.is_empty() {
        if let (1, 2, key) = field(&mut message)? {
            return Some(key);
        }
    }
    Some(&[])
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

    #[test]
    fn the_key_is_found_in_its_message() {
        // create_revision 300 (field 2), then the key, as another marshaller might order them.
        assert_eq!(key_of_value(b"\x10\xac\x02\x0a\x03abc\x2a\x01v"), Some(&b"abc"[..]));
        assert_eq!(key_of_value(b""), Some(&b""[..]));
        assert_eq!(key_of_value(b"\x0a\x7fabc"), None);
        assert_eq!(key_of_value(&[0x80; 20]), None);
    }

    #[test]
    fn what_is_missing_is_no_error() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(revision_of(dir.path())?, None);
        std::fs::create_dir_all(dir.path().join("member/snap"))?;
        std::fs::write(dir.path().join("member/snap/db"), b"")?;
        assert_eq!(crate::error::exit_code(&revision_of(dir.path()).unwrap_err()), 65);
        Ok(())
    }
}
