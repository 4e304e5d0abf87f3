//! What a snapshot contains, counted as etcdutl does, over every page.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::bolt::Bolt;
use super::check::{self, Seen, field};
use super::revision::{REVISION, revision_of_key};
use super::{Member, Status, Tick, snapshot};

/// Reads a snapshot's content; see [`super::status()`]. With `skip` it needs no trailer.
pub(super) fn status(path: &Path, skip: bool, tick: Tick<'_>) -> Result<Status> {
    in_database(path, skip, tick, of_database)
}

/// Calls `look` with the database of a snapshot and its length; the trailer is checked, unless `skip`.
pub(super) fn in_database<T>(path: &Path, skip: bool, tick: Tick<'_>, look: impl FnOnce(&Bolt<'_>, u64) -> Result<T>) -> Result<T> {
    let Database { file, len, name } = Database::open(path, skip, tick)?;
    look(&Bolt::open(&file, len, &name)?, len)
}

/// The database of a snapshot: a file without a name where the snapshot is compressed, else the snapshot itself.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) file: File,
    pub(super) len: u64,
    pub(super) name: String,
}

impl Database {
    /// Opens a snapshot; the trailer is checked, unless `skip`.
    pub(super) fn open(path: &Path, skip: bool, tick: Tick<'_>) -> Result<Self> {
        let name = path.display().to_string();
        let file = snapshot::open(path)?;
        if !snapshot::is_compressed(&file, path)? {
            let len = snapshot::verify(path, skip, tick)?.len;
            return Ok(Self { file, len, name });
        }
        // Never beside the snapshot, which may be on a read-only medium, and not in memory, where `/tmp` often is.
        let dir = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let scratch =
            scratch(&dir).with_context(|| format!("making a scratch file in {} (TMPDIR names another directory)", dir.display()))?;
        let len = snapshot::unpack(path, &scratch, skip, tick)
            .with_context(|| format!("unpacking {name} into {} (TMPDIR names another directory)", dir.display()))?
            .len;
        Ok(Self { file: scratch, len, name })
    }
}

/// A file without a name, which vanishes with the process however that ends.
fn scratch(dir: &Path) -> Result<File> {
    let path = dir.join(format!(".recovery-{}", uuid::Uuid::new_v4()));
    let file = super::new_file(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
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

/// The live keys, as hashes of 64 bits: a million keys take 20 MB. Two keys of a million have the same hash in one of forty million
/// snapshots.
#[derive(Default)]
struct Live {
    keys: HashSet<u64>,
    hasher: RandomState,
}

impl Live {
    /// Counts the next revision; `None` when its value is not etcd's.
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

/// The field `key` (1) of the protobuf message `mvccpb.KeyValue`; empty when it is missing, as in the revision that a bump adds.
pub(super) fn key_of_value(mut message: &[u8]) -> Option<&[u8]> {
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
    fn the_key_is_found_in_its_message() {
        // create_revision 300 (field 2), then the key: another encoder may use this order.
        assert_eq!(key_of_value(b"\x10\xac\x02\x0a\x03abc\x2a\x01v"), Some(&b"abc"[..]));
        assert_eq!(key_of_value(b""), Some(&b""[..]));
        assert_eq!(key_of_value(b"\x0a\x7fabc"), None);
        assert_eq!(key_of_value(&[0x80; 20]), None);
    }
}
